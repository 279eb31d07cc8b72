/* policy.h - the replacement policies of views: which clean block of host memory is evicted next. No I/O, no memory of
 * its own: nodes live in the blocks.
 * Threads: the caller holds the pager lock. Every operation is O(1).
 *
 * A node is either out (absent, written, held or busy) or in (clean, may be dropped). Hits never reach user space: a
 * policy sees fills, and what is asked of it again after it was dropped. */
#ifndef CWS_POLICY_H
#define CWS_POLICY_H
#include "store/base/list.h"
#include "store/base/options.h"
#include "tuning.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cws_policy_place { CWS_PLACE_OUT, CWS_PLACE_WINDOW, CWS_PLACE_KEPT };

struct cws_policy_node {  /* zero-initialised; every field belongs to the policy but bytes */
    struct cws_list link; /* while in */
    uint32_t bytes;       /* set by the caller before on_fill; constant while in */
    uint8_t place;        /* enum cws_policy_place */
    bool seen;            /* was filled before */
    bool keeper;          /* was in the kept list when it was taken out for a moment */
};

struct cws_policy_list {
    struct cws_list head; /* head.next is the oldest */
    uint64_t bytes;
};

/* window.bytes + kept.bytes == bytes of all nodes that are in. */
struct cws_policy {
    const struct cws_policy_ops *ops;
    const struct cws_tuning *tuning; /* views_ */
    uint64_t budget_bytes;
    uint64_t unit_bytes;   /* size of an ordinary block */
    uint64_t window_bytes; /* what streams through; the rest of the budget is for keepers */
    uint64_t total_bytes;  /* of all views: what there is to keep. The pager sets it as views come and go */
    uint64_t seen_bytes;   /* of nodes that were filled at least once */
    struct cws_policy_list window, kept;
    double first_credit, again_credit, rotate_credit;
};

struct cws_policy_ops {
    const char *name;
    /* The block was filled and is clean. `prefetched`: nobody asked for it yet. */
    void (*on_fill)(struct cws_policy *p, struct cws_policy_node *n, bool prefetched);
    /* The block was asked for and is known to be in: a hold, a second fault. */
    void (*on_fault)(struct cws_policy *p, struct cws_policy_node *n);
    /* What to drop, or NULL. It stays in until cws_policy_remove. `for_prefetch`: only what is a fair price for a
     * guess. */
    struct cws_policy_node *(*pick_victim)(struct cws_policy *p, bool for_prefetch);
};

extern const struct cws_policy_ops cws_policy_lru, cws_policy_next;

/* tuning: the caller's, lives as long as p. */
void cws_policy_init(struct cws_policy *p, enum cws_policy_id id, uint64_t budget_bytes, uint64_t unit_bytes,
                     const struct cws_tuning *tuning);
/* Another budget: what streams and what stays follow it. What is in stays until it is picked. */
void cws_policy_set_budget(struct cws_policy *p, uint64_t budget_bytes);
/* Takes a node out: it is dropped, written to, held or busy. Out already: nothing happens. */
void cws_policy_remove(struct cws_policy *p, struct cws_policy_node *n);
/* Puts a node back that was out only for a moment (held, busy), where it was. */
void cws_policy_restore(struct cws_policy *p, struct cws_policy_node *n);
/* The node ends: forget that it was seen. */
void cws_policy_forget(struct cws_policy *p, struct cws_policy_node *n);
/* Recounts both lists; false when an account disagrees. For tests. */
bool cws_policy_check(const struct cws_policy *p);

/* For the policies themselves. The oldest of a list, or NULL: empty. */
static inline struct cws_policy_node *cws_policy_oldest(const struct cws_policy_list *l)
{
    return cws_list_is_empty(&l->head) ? NULL : CWS_LIST_OF(l->head.next, struct cws_policy_node, link);
}
void cws_policy_append(struct cws_policy *p, struct cws_policy_node *n, enum cws_policy_place place);
#endif
