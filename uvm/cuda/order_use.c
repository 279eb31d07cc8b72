/* order_use.c - the extents of a device as nodes of the replacement policy. */
#include "order_use.h"
#include "uvm/policy/plan.h"

#define EXTENT_OF(n) CWS_LIST_OF(n, struct cws_gpu_extent, order)

void cws_gpu_order_init(struct cws_gpu_order *o, struct cws_gpu_core *core, struct cws_gpu_budget *budget,
                        struct cws_gpu_streams *streams, enum cws_policy_id policy)
{
    *o = (struct cws_gpu_order){.core = core, .budget = budget, .streams = streams, .wake_at = UINT64_MAX};
    cws_order_init(&o->order, policy, core->tuning);
}

void cws_gpu_order_close(struct cws_gpu_order *o) { cws_order_deinit(&o->order); }

void cws_gpu_order_add(struct cws_gpu_order *o, struct cws_gpu_extent *x)
{
    x->order.bytes = cws_gpu_span(x);
    cws_order_add(&o->order, &x->order);
}

void cws_gpu_order_tell(struct cws_gpu_order *o, uint64_t waited_ns, uint64_t stalled_ns)
{
    cws_order_tell(&o->order, cws_gpu_now_ns(), waited_ns, stalled_ns);
}

void cws_gpu_order_use(struct cws_gpu_order *o, struct cws_gpu_extent *x)
{
    bool again = o->order.last == &x->order;
    cws_order_use(&o->order, &x->order);
    if (!again && o->order.at >= o->wake_at) {
        o->wake_at = UINT64_MAX;
        cws_gpu_wake_locked(o->core);
    }
}

void cws_gpu_order_set_in(struct cws_gpu_order *o, struct cws_gpu_extent *x, bool in)
{
    cws_order_set_in(&o->order, &x->order, in);
}

void cws_gpu_order_set_held(struct cws_gpu_order *o, struct cws_gpu_extent *x, bool held)
{
    cws_order_set_held(&o->order, &x->order, held);
}

bool cws_gpu_order_may_grow(const struct cws_gpu_order *o, const struct cws_gpu_extent *x)
{
    return cws_order_may_grow(&o->order, &x->order);
}

void cws_gpu_order_lost(struct cws_gpu_order *o) { cws_order_plan_again(&o->order); }

void cws_gpu_order_forget(struct cws_gpu_order *o, struct cws_gpu_extent *x) { cws_order_forget(&o->order, &x->order); }

void cws_gpu_order_walk(struct cws_gpu_order *o)
{
    cws_order_walk(&o->order, cws_gpu_budget_beside_reserve(o->budget));
}

struct cws_gpu_extent *cws_gpu_order_coming(struct cws_gpu_order *o, struct cws_gpu_extent *x)
{
    struct cws_order_node *n = cws_order_coming(&o->order, x ? &x->order : NULL);
    return n ? EXTENT_OF(n) : NULL;
}

/* --- victims ------------------------------------------------------------------------------------------------- */

struct choice {
    struct cws_gpu_order *order;
    struct cws_gpu_price price;
};

static bool may_go(void *choice, const struct cws_order_node *n)
{
    const struct choice *c = choice;
    const struct cws_gpu_extent *x = CWS_LIST_OF(n, const struct cws_gpu_extent, order);
    return x->state == CWS_EXTENT_RESIDENT && !x->holds && !x->range->pinned &&
           (!c->price.granules || (x->granules == c->price.granules && !n->keeper)) &&
           (!c->price.spare || cws_order_is_spare(&c->order->order, n));
}

static bool is_done(void *choice, struct cws_order_node *n)
{
    const struct choice *c = choice;
    return cws_gpu_users_done(c->order->streams, &EXTENT_OF(n)->users, true);
}

static bool may_go_now(void *choice, const struct cws_order_node *n)
{
    struct cws_gpu_extent *x = EXTENT_OF(n);
    return may_go(choice, n) && is_done(choice, &x->order);
}

/* A launch may wait for a better victim, whose uses still run, but not for long after the streams have come to a stand:
 * what runs may itself wait for that launch. */
bool cws_gpu_order_has_waited(struct cws_gpu_order *o)
{
    uint64_t now = cws_gpu_now_ns();
    if (o->waited_since_ns == 0 || o->waited_progress != o->streams->progress)
        o->waited_since_ns = now;
    o->waited_progress = o->streams->progress;
    return now - o->waited_since_ns > o->core->tuning->victim_wait_ns;
}

struct cws_gpu_extent *cws_gpu_order_victim(struct cws_gpu_order *o, struct cws_gpu_price price)
{
    struct choice c = {o, price};
    cws_gpu_order_walk(o);
    struct cws_order_node *n = cws_order_victim(&o->order, price.until, may_go, price.done ? is_done : NULL, &c);
    if (!n && price.done && price.until == 0 && cws_gpu_order_has_waited(o))
        n = cws_order_victim(&o->order, price.until, may_go_now, NULL, &c);
    if (n && price.done)
        o->waited_since_ns = 0;
    return n ? EXTENT_OF(n) : NULL;
}

uint64_t cws_gpu_order_rounds(struct cws_gpu_order *o, uint64_t rounds, uint64_t fallback)
{
    uint64_t period = cws_order_period(&o->order);
    return period ? rounds * period : fallback;
}

void cws_gpu_order_waits_end(struct cws_gpu_order *o) { o->waited_since_ns = 0; }

void cws_gpu_order_wake_after(struct cws_gpu_order *o, uint64_t uses)
{
    o->wake_at = uses == UINT64_MAX ? UINT64_MAX : o->order.at + uses;
}

const char *cws_gpu_order_check(const struct cws_gpu_order *o, const struct cws_gpu_ranges *ranges)
{
    uint64_t bytes = 0;
    uint32_t count = 0, in = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(ranges, NULL); x; x = cws_gpu_extent_next(ranges, x)) {
        if (!cws_gpu_is_bound(x))
            continue;
        if (x->order.in != (x->state == CWS_EXTENT_RESIDENT))
            return "order: what can be dropped is not what is resident";
        if (x->order.held != cws_extent_holds_weight(x->state))
            return "order: what has memory is not what is held";
        count++;
        in += x->order.in;
        bytes += cws_gpu_span(x);
    }
    if (count != o->order.count || in != o->order.in_count || bytes != o->order.bytes)
        return "order: nodes are miscounted";
    return cws_order_plan_check(&o->order);
}
