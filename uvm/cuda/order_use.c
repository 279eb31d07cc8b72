/* order_use.c - the ranges of a device as nodes of the replacement policy (uvm/policy/order.h): tells it of uses, and
 * asks it what to load and what to evict. */
#include "state.h"

void cws_gpu_order_add_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    r->order.bytes = cws_gpu_span(r);
    cws_order_add(&gpu->order, &r->order);
}

void cws_gpu_order_use_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    if (cws_trace_is_on())
        cws_gpu_trace_use_slow_locked(gpu, r);
    bool again = gpu->order.last == &r->order;
    cws_order_use(&gpu->order, &r->order);
    if (!again && gpu->order.at >= gpu->wake_at) {
        gpu->wake_at = UINT64_MAX;
        cws_gpu_wake_locked(gpu);
    }
}

void cws_gpu_order_forget_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    cws_order_forget(&gpu->order, &r->order);
}

static uint64_t room_for_weights(const struct cws_gpu *gpu)
{
    /* not what is granted: most of that is for loads in flight */
    uint64_t taken = cws_gpu_undroppable_locked(gpu);
    return taken < gpu->config.budget_bytes ? gpu->config.budget_bytes - taken : 0;
}

void cws_gpu_order_walk_locked(struct cws_gpu *gpu) { cws_order_walk(&gpu->order, room_for_weights(gpu)); }

struct cws_gpu_range *cws_gpu_order_coming_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    struct cws_order_node *n = cws_order_coming(&gpu->order, r ? &r->order : NULL);
    return n ? CWS_LIST_OF(n, struct cws_gpu_range, order) : NULL;
}

static bool may_go(void *gpu, const struct cws_order_node *n)
{
    const struct cws_gpu_range *r = CWS_LIST_OF(n, struct cws_gpu_range, order);
    (void)gpu;
    return r->state == CWS_RANGE_RESIDENT && !r->holds && !r->pinned;
}

static bool is_done(void *gpu, struct cws_order_node *n)
{
    return cws_gpu_uses_done_locked(gpu, CWS_LIST_OF(n, struct cws_gpu_range, order), true);
}

/* A launch may wait for a better victim, whose uses still run, but not for long: what runs may itself wait for that
 * launch. */
static bool has_waited_locked(struct cws_gpu *gpu)
{
    const uint64_t most_ns = 2000000;
    uint64_t now = cws_gpu_now_ns();
    if (gpu->waited_since_ns == 0)
        gpu->waited_since_ns = now;
    return now - gpu->waited_since_ns > most_ns;
}

static bool may_go_now(void *gpu, const struct cws_order_node *n)
{
    return may_go(gpu, n) && cws_gpu_uses_done_locked(gpu, CWS_LIST_OF(n, struct cws_gpu_range, order), true);
}

struct cws_gpu_range *cws_gpu_order_victim_locked(struct cws_gpu *gpu, uint64_t until, bool must_be_done)
{
    cws_gpu_order_walk_locked(gpu);
    struct cws_order_node *n = cws_order_victim(&gpu->order, until, may_go, must_be_done ? is_done : NULL, gpu);
    if (!n && must_be_done && until == 0 && has_waited_locked(gpu))
        n = cws_order_victim(&gpu->order, until, may_go_now, NULL, gpu);
    if (n && must_be_done)
        gpu->waited_since_ns = 0;
    return n ? CWS_LIST_OF(n, struct cws_gpu_range, order) : NULL;
}
