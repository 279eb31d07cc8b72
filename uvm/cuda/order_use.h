/* order_use.h - the extents of a device as nodes of the replacement policy (uvm/policy/order.h): tells it of uses, and
 * asks it what to load and what to evict.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_ORDER_USE_H
#define CWS_GPU_ORDER_USE_H
#include "extent.h"

struct cws_gpu_order {
    struct cws_gpu_core *core;
    struct cws_gpu_budget *budget;
    struct cws_gpu_streams *streams;
    struct cws_order order; /* of the bound extents */
    /* the place in it from which on the loader is to look again; UINT64_MAX: it is awake, or nothing is to be loaded */
    uint64_t wake_at;
    /* a launch waits for a better victim, and streams have come no further; 0: none does */
    uint64_t waited_since_ns, waited_progress;
};

void cws_gpu_order_init(struct cws_gpu_order *o, struct cws_gpu_core *core, struct cws_gpu_budget *budget,
                        struct cws_gpu_streams *streams, enum cws_policy_id policy);
void cws_gpu_order_close(struct cws_gpu_order *o);

void cws_gpu_order_add(struct cws_gpu_order *o, struct cws_gpu_extent *x); /* it got a source */
/* Of the next use: for how long launches have waited for weights, and of that until the device had come to its end. */
void cws_gpu_order_tell(struct cws_gpu_order *o, uint64_t waited_ns, uint64_t stalled_ns);
void cws_gpu_order_use(struct cws_gpu_order *o, struct cws_gpu_extent *x);
/* It can be dropped from now on, or not any more. */
void cws_gpu_order_set_in(struct cws_gpu_order *o, struct cws_gpu_extent *x, bool in);
/* It is not paged any more, though it has a source: who stays is chosen anew. */
void cws_gpu_order_lost(struct cws_gpu_order *o);
void cws_gpu_order_forget(struct cws_gpu_order *o, struct cws_gpu_extent *x);
void cws_gpu_order_walk(struct cws_gpu_order *o);
/* What comes after x (NULL: first), or NULL. */
struct cws_gpu_extent *cws_gpu_order_coming(struct cws_gpu_order *o, struct cws_gpu_extent *x);
/* What may be dropped for an extent. */
struct cws_gpu_price {
    uint64_t until;    /* the place of that extent's next use; 0: now */
    uint32_t granules; /* only one of this size, whose frame will do; 0: any */
    bool spare;        /* only one of whose size more have memory than the plan wants */
    bool done;         /* only one whose uses are done */
};
/* What to drop, or NULL. */
struct cws_gpu_extent *cws_gpu_order_victim(struct cws_gpu_order *o, struct cws_gpu_price price);
/* May memory of another size be given up for it? No: as many of its size have memory as the plan wants (plan.h). */
bool cws_gpu_order_may_grow(const struct cws_gpu_order *o, const struct cws_gpu_extent *x);
/* It has memory, or is getting it or giving it back, or not any more. */
void cws_gpu_order_set_held(struct cws_gpu_order *o, struct cws_gpu_extent *x, bool held);
/* Uses, counted as places, of so many rounds; `fallback` where the order has none. */
uint64_t cws_gpu_order_rounds(struct cws_gpu_order *o, uint64_t rounds, uint64_t fallback);
/* Has a launch waited for a victim for as long as is good? */
bool cws_gpu_order_has_waited(struct cws_gpu_order *o);
/* No launch waits for a victim. */
void cws_gpu_order_waits_end(struct cws_gpu_order *o);
/* The loader sleeps until this many uses have passed (UINT64_MAX: it is awake). */
void cws_gpu_order_wake_after(struct cws_gpu_order *o, uint64_t uses);

/* NULL, or what does not hold. */
const char *cws_gpu_order_check(const struct cws_gpu_order *o, const struct cws_gpu_ranges *ranges);
#endif
