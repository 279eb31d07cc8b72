/* order.h - what comes next, and who stays: the replacement policies of the CUDA manager (policy.h has those of the host pager). No driver, no
 * clock: gpu_order.c drives it with ranges of a device, tools/replay with recorded and made-up uses.
 * Threads: the caller serialises (the manager by its `lock`).
 *
 * A node is something with a size whose content can be loaded again. Uses are told one by one; from them the order is learned as "after A, then
 * B, comes C". The walk along it tells when each node is needed again: foreseen[], and next_at of each node that the walk met. */
#ifndef CWS_ORDER_H
#define CWS_ORDER_H
#include "../store/options.h"
#include <stdbool.h>
#include <stdint.h>

struct cws_order_node { /* zero-initialised; every field but bytes and ahead belongs to the order */
    uint64_t bytes;     /* that dropping it gives back; set before cws_order_add, constant while in */
    bool ahead;         /* loaded on a guess, not used since: set by who loads, cleared by a use */
    bool keeper;        /* is to stay */
    uint32_t id;        /* in the order of cws_order_add */
    uint64_t last_tick; /* of its last use; 0: none */
    uint64_t next_at;   /* uses from now until the next one is expected; valid where walk is the order's */
    uint64_t walk;      /* the walk that set next_at */
    struct {
        struct cws_order_node *before, *after;
    } follow[2];        /* after `before`, this, then `after` */
    struct cws_order_node *prev, *next; /* of all, in the order of cws_order_add */
};

struct cws_order {
    const struct cws_order_ops *ops;
    struct cws_order_node head; /* circular */
    uint32_t count, next_id;
    uint64_t bytes;             /* of all nodes */
    struct cws_order_node *last, *before_last;
    uint64_t tick, walk, walked_tick;
    struct cws_order_node **foreseen; /* the walk: what comes next, each node once */
    uint32_t foreseen_count, foreseen_room;
    uint64_t plan_room;         /* the room that keepers were chosen for */
    uint32_t plan_count;
    bool plan_due;
};

/* What tells the policies apart. Nodes used a moment ago are kept by all of them, if anything else can go. */
struct cws_order_ops {
    const char *name;
    bool has_keepers; /* the walk chooses nodes that stay */
    /* Is a the better one to drop? */
    bool (*goes_before)(const struct cws_order *o, const struct cws_order_node *a, const struct cws_order_node *b);
    /* b, which can be dropped now, instead of a, which is better and still in use? */
    bool (*is_nearly_as_good)(const struct cws_order *o, const struct cws_order_node *b, const struct cws_order_node *a);
};
extern const struct cws_order_ops cws_order_next, cws_order_lru;

void cws_order_init(struct cws_order *o, enum cws_policy_id policy);
void cws_order_deinit(struct cws_order *o); /* nodes are the caller's */

void cws_order_add(struct cws_order *o, struct cws_order_node *n);
/* n ends: nothing points to it any more. */
void cws_order_forget(struct cws_order *o, struct cws_order_node *n);
/* n is used, now. */
void cws_order_use(struct cws_order *o, struct cws_order_node *n);
/* Sets foreseen[], and next_at of what is in it; chooses keepers anew where that is due. `room`: bytes that nodes may have. Without memory for
 * it nothing is foreseen. Cheap if nothing was used since the last time. */
void cws_order_walk(struct cws_order *o, uint64_t room);

/* What to drop for a node that is needed after `until` uses (0: now), or NULL: a node for which may_go says true and, where is_done is not NULL, for which
 * that says true, or nearly as good a one. Walk before. */
struct cws_order_node *cws_order_victim(const struct cws_order *o, uint64_t until, bool (*may_go)(void *arg, const struct cws_order_node *n),
                                        bool (*is_done)(void *arg, struct cws_order_node *n), void *arg);
#endif
