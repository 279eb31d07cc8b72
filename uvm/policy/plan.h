/* plan.h - the part of an order that plans a round: which nodes stay (keepers), and of each size how many of the others
 * may have memory at a time (its quota). A node that is loaded takes the memory of one of its size, so with quotas no
 * memory changes its size in a round that repeats itself: on a GPU that would be a piece given back to the driver and
 * one made anew.
 *
 * Keepers: what comes most often in a period first; of what comes equally often nodes that the link has to bring, and
 * of those small nodes first, because each costs its calls; of equally large ones as many as fit, evenly over the
 * period. A model's few nodes of one or more of the largest sizes all stay, where more can stay that way. Uses of a
 * node with but few others in between count as one (order_visit_uses).
 * By time: what comes more than once in a period stays. What streams is spread over the time of the period, so that the
 * link has as much to do everywhere; what is larger than a bound stays, with the bound for which that is least, and as
 * many sizes of small nodes as make it but little more.
 * What is near (cws_order_node.near) streams without the link. Where near_apart is set, it and the rest have quotas of
 * their own, so that the link has work while memory is taken by what is near.
 * Quotas: the most nodes of a size that stream within order_quota_uses consecutive uses, wherever in the round.
 * Threads: the caller of order.h serialises. */
#ifndef CWS_ORDER_PLAN_H
#define CWS_ORDER_PLAN_H
#include "order.h"

/* Makes a plan for `room` bytes from the window, which has a whole period or walk: sets `keeper` of every node, and the
 * sizes with their quotas. Without memory for it nothing stays, and there are no quotas.
 * by_time: over the time of the round, where that can be done. Returns whether it was. */
bool cws_order_plan(struct cws_order *o, uint64_t room, bool by_time);

/* Multiples of the golden ratio, modulo one: the nodes with the lowest ranks, however many, lie evenly over the order
 * in which nodes were added, as a walk mostly goes. A rank belongs to the node alone, so a plan for a little more room,
 * or after a use that nobody expected, is the old one and a node more or less. */
static inline uint32_t cws_order_rank(const struct cws_order_node *n) { return n->id * 2654435769u; }

/* n has memory, or is getting it or giving it back, or not any more. */
void cws_order_set_held(struct cws_order *o, struct cws_order_node *n, bool held);
/* n ends. */
void cws_order_plan_forget(struct cws_order *o, struct cws_order_node *n);

/* May memory of another size be given up for n? Not if n streams and as many of its size have memory as its quota. */
bool cws_order_may_grow(const struct cws_order *o, const struct cws_order_node *n);
/* May n's memory be given up for another size? Only if more of its size have memory than its quota. */
bool cws_order_is_spare(const struct cws_order *o, const struct cws_order_node *n);

/* NULL, or what does not hold. */
const char *cws_order_plan_check(const struct cws_order *o);
#endif
