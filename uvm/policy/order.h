/* order.h - the replacement policies of the CUDA manager: which range is needed next, which are kept, and which is
 * evicted (policy.h has those of views). No driver, and no clock but what it is told: uvm/cuda/order_use.c drives it
 * with ranges of a device, tools/bench/replay_device.c and replay_loader.c with recorded and made-up uses.
 * Threads: the caller serialises (the manager by its `lock`).
 *
 * A node is something with a size whose content can be loaded again. Uses are told one by one; from them the order is
 * learned (history.h), which gives the uses that are expected: a window that moves on by one with each use that was
 * foreseen, and is made anew after one that was not. From it each node has the place of its next use, and nodes lie in
 * two kinds of lists:
 *
 *   coming   every node that the window has, next use first: what to load
 *   lines    nodes that can be dropped (those for which cws_order_set_in said so), of keepers and of others, best
 *            victim last
 *
 * so that a use, the next node to load and the next victim cost no walk over all nodes. */
#ifndef CWS_ORDER_H
#define CWS_ORDER_H
#include "store/base/list.h"
#include "store/base/options.h"
#include "history.h"
#include "pace.h"
#include <stdbool.h>
#include <stdint.h>

enum { CWS_ORDER_STRAYS = 3, CWS_ORDER_STRAYED = 4, CWS_ORDER_SIZES = 128 };

struct cws_order_node { /* zero-initialised; every field but bytes, ahead and near belongs to the order */
    uint64_t bytes;     /* that dropping it gives back; set before cws_order_add, constant while in */
    bool ahead;         /* loaded on a guess, not used since: set by who loads, cleared by a use */
    bool keeper;        /* is to stay */
    bool in;            /* can be dropped */
    bool near;          /* loading it takes nothing of the link: set by who loads, before a plan */
    bool held;          /* has memory, or is getting it or giving it back (plan.h) */
    uint8_t size;       /* in cws_order.sizes, + 1; 0: none */
    uint8_t doubt;      /* 0: it comes at even distances. More: as a routed expert does, at any */
    uint32_t id;        /* in the order of cws_order_add */
    uint64_t last_tick; /* of its last use; 0: none */
    uint64_t gaps[2];   /* distances between its uses: the last two that differ; 0: not known */
    /* place of its next expected use (cws_order.at is the place of the last use); UINT64_MAX: none */
    uint64_t next_at;
    uint64_t last_at;    /* the last place that it has in the window */
    uint64_t history_at; /* history.h */
    uint64_t stray_at;   /* place + 1 of its last use out of order; 0: none */
    uint64_t stray_tick;
    uint64_t pace;  /* ns of work from its use to the next one of any, averaged over rounds; 0: not known */
    uint32_t comes; /* visits (plan.c) in one period of the window that keepers were chosen from; 0: none */
    uint64_t seen;  /* plan.c, while it makes a plan */
    struct cws_list all, coming, line;
};

struct cws_order_place { /* of the window */
    struct cws_order_node *node;
    uint64_t again; /* the next place of the same node; UINT64_MAX: none yet */
};

struct cws_order_size { /* plan.h: of what streams */
    uint64_t bytes;
    uint32_t quota; /* that may have memory at a time */
    uint32_t held;  /* that have */
};

struct cws_order {
    const struct cws_order_ops *ops;
    const struct cws_tuning *tuning; /* order_ */
    struct cws_list all;             /* most recently used last */
    uint32_t count, in_count, next_id;
    uint64_t bytes; /* of all nodes */
    struct cws_order_node *last, *before_last;
    struct cws_order_node *strays[CWS_ORDER_STRAYS];   /* uses out of order since the last one in order */
    struct cws_order_node *strayed[CWS_ORDER_STRAYED]; /* the last few such nodes; NULL: none */
    uint32_t stray_count, strayed_next;
    struct cws_history history;
    uint64_t tick;                  /* uses */
    uint64_t at;                    /* the same, counting what is used again at once as one */
    struct cws_order_place *window; /* places [at + 1, end), at index place % window_room */
    uint64_t end, window_room;
    struct cws_order_node *ahead_before, *ahead_last; /* the last two that the window reached */
    bool periodic;                                    /* the window is a repetition */
    bool foreseen;                                    /* the window and the lists are right */
    bool near_apart; /* what is near streams in memory of its own (plan.h): set by the caller, before a plan */
    struct cws_list coming, lines[2]; /* lines: others, keepers */
    uint32_t coming_count;
    uint64_t coming_bytes;
    uint64_t plan_room; /* the room that keepers were chosen for */
    uint32_t plan_count;
    uint64_t plan_period; /* and the period */
    uint64_t plan_most;   /* what is larger stays */
    bool plan_due;
    struct cws_pace pace;
    unsigned size_count;
    struct cws_order_size sizes[CWS_ORDER_SIZES]; /* of the plan, the largest first */
};

/* What tells the policies apart. Nodes used a moment ago are kept by all of them, if anything else can go. */
struct cws_order_ops {
    const char *name;
    bool has_keepers; /* the walk chooses nodes that stay */
    bool by_next_use; /* goes_before asks for the next use first; else for the last one alone */
    /* Is a the better one to drop? Both are keepers, or neither. */
    bool (*goes_before)(const struct cws_order *o, const struct cws_order_node *a, const struct cws_order_node *b);
    /* b, which can be dropped now, instead of a, which is better and still in use? */
    bool (*is_nearly_as_good)(const struct cws_order *o, const struct cws_order_node *b,
                              const struct cws_order_node *a);
};
extern const struct cws_order_ops cws_order_next, cws_order_lru;

/* tuning: the caller's, lives as long as o; cws_tuning_default where nothing is tried. */
void cws_order_init(struct cws_order *o, enum cws_policy_id policy, const struct cws_tuning *tuning);
void cws_order_deinit(struct cws_order *o); /* nodes are the caller's */

void cws_order_add(struct cws_order *o, struct cws_order_node *n);
/* n ends: nothing points to it any more. */
void cws_order_forget(struct cws_order *o, struct cws_order_node *n);
/* Of the next use: what the caller's clock says; for how long so far launches waited for nodes; and the sum of those
 * waits at whose end the device had nothing to do (pace.h). A caller that never tells gets plans by uses alone. */
static inline void cws_order_tell(struct cws_order *o, uint64_t now_ns, uint64_t waited_ns, uint64_t stalled_ns)
{
    o->pace.now = now_ns;
    o->pace.waited = waited_ns;
    o->pace.stalled = stalled_ns;
}
/* n is used, now. O(1) where it was foreseen. */
void cws_order_use(struct cws_order *o, struct cws_order_node *n);
/* n can be dropped from now on, or not any more. */
void cws_order_set_in(struct cws_order *o, struct cws_order_node *n, bool in);
/* Keepers are to be chosen anew: something that was one is no more. */
void cws_order_plan_again(struct cws_order *o);
/* Makes the window and the lists right, chooses keepers anew where that is due. `room`: bytes that nodes may have.
 * Without memory for it nothing is foreseen. O(1) if all uses since the last time were foreseen. */
void cws_order_walk(struct cws_order *o, uint64_t room);

/* What comes after n (NULL: first), or NULL. Walk before. */
struct cws_order_node *cws_order_coming(const struct cws_order *o, const struct cws_order_node *n);
/* Is it sure enough that it comes, so that it may be loaded ahead? In a repetition everything is. */
static inline bool cws_order_is_sure(const struct cws_order *o, const struct cws_order_node *n)
{
    return o->periodic || n->doubt == 0;
}
/* Uses of a round, where the order is a repetition; else 0. */
uint64_t cws_order_period(struct cws_order *o);
/* What to drop for a node whose next use is at the place `until` (0: that is needed now), or NULL: a node for which
 * may_go says true and, where is_done is not NULL, for which that says true, or nearly as good a one. Walk before. */
struct cws_order_node *cws_order_victim(const struct cws_order *o, uint64_t until,
                                        bool (*may_go)(void *arg, const struct cws_order_node *n),
                                        bool (*is_done)(void *arg, struct cws_order_node *n), void *arg);
#endif
