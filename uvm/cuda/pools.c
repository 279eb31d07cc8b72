/* pools.c - memory that pools of the driver hold. */
#include "pools.h"

#define UNIT 512u /* bytes; what a pool hands out is a multiple of it */
/* the largest step that is taken for granted of a pool that has to grow */
#define STEP_MAX ((uint64_t)64 << 20)
#define COUNT_EVERY 256u /* allocations: small ones come by the thousand */

enum { ROOM = sizeof((struct cws_gpu_pools *)NULL)->pools / sizeof(struct cws_gpu_pool) };

static uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

void cws_gpu_pools_init(struct cws_gpu_pools *p, struct cws_gpu_core *core, struct cws_gpu_budget *budget)
{
    *p = (struct cws_gpu_pools){.core = core, .budget = budget};
    cws_gpu_pools_budget_changed(p);
}

void cws_gpu_pools_budget_changed(struct cws_gpu_pools *p)
{
    const struct cws_tuning *t = p->core->tuning;
    uint64_t part = p->budget->bytes / t->pool_step_share;
    uint64_t step = part < t->pool_step_bytes ? part : t->pool_step_bytes;
    p->step = step > p->grown ? step : p->grown;
}

void cws_gpu_pools_add(struct cws_gpu_pools *p, CUmemoryPool pool)
{
    bool known = p->count == ROOM;
    for (unsigned i = 0; i < p->count; i++)
        known |= p->pools[i].handle == pool;
    if (!known)
        p->pools[p->count++] = (struct cws_gpu_pool){.handle = pool};
}

void cws_gpu_pools_remove(struct cws_gpu_pools *p, CUmemoryPool pool)
{
    for (unsigned i = 0; i < p->count; i++)
        if (p->pools[i].handle == pool)
            p->pools[i--] = p->pools[--p->count];
}

void cws_gpu_pools_count(struct cws_gpu_pools *pools)
{
    const struct cws_driver *d = pools->core->driver;
    uint64_t total = 0, bytes, used;
    for (unsigned i = 0; i < pools->count; i++) {
        struct cws_gpu_pool *p = &pools->pools[i];
        p->slack = p->unused = 0;
        if (d->pool_get(p->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &bytes) != CUDA_SUCCESS)
            continue;
        total += bytes;
        uint64_t grown = bytes > p->reserved ? bytes - p->reserved : 0;
        uint64_t step = grown < STEP_MAX ? grown : STEP_MAX;
        pools->grown = step > pools->grown ? step : pools->grown;
        pools->step = step > pools->step ? step : pools->step;
        if (grown && (!p->step || grown < p->step))
            p->step = grown;
        p->reserved = bytes;
        if (d->pool_get(p->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used) == CUDA_SUCCESS && used < bytes)
            p->slack = p->unused = bytes - used;
    }
    if (d->device_graph_memory(pools->core->device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &bytes) == CUDA_SUCCESS)
        total += bytes;
    pools->age = 0;
    cws_gpu_budget_set_pools(pools->budget, total);
}

/* --- an allocation --------------------------------------------------------------------------------------- */

/* Takes the bytes out of what the pool has and nobody uses, if they fit: each piece that it grew by may end in a rest
 * that is too small for any allocation. What is freed meanwhile is not counted, so this errs to the safe side, mostly:
 * a pool can be in more pieces than that, and grow. What was taken since it was asked fits one step, so that it has not
 * grown by more, which the budget's margin is for. */
static bool take_slack(struct cws_gpu_pools *pools, CUmemoryPool pool, uint64_t bytes)
{
    for (unsigned i = 0; i < pools->count; i++) {
        struct cws_gpu_pool *p = &pools->pools[i];
        if (pool ? p->handle != pool : i != 0)
            continue;
        p->largest = bytes > p->largest ? bytes : p->largest;
        uint64_t rests = p->step ? p->reserved / p->step * p->largest : 0, since = p->unused - p->slack;
        if (p->slack < bytes + rests || (since && since + bytes > p->step))
            return false;
        p->slack -= bytes;
        return true;
    }
    return false;
}

bool cws_gpu_pools_take(struct cws_gpu_pools *p, CUmemoryPool pool, uint64_t bytes)
{
    uint64_t units = round_up(bytes, UNIT);
    if (++p->age < COUNT_EVERY && take_slack(p, pool, units))
        return true;
    cws_gpu_pools_count(p);
    return take_slack(p, pool, units);
}

uint64_t cws_gpu_pools_growth(const struct cws_gpu_pools *p, uint64_t bytes, uint64_t *out_least)
{
    *out_least = round_up(round_up(bytes, UNIT), CWS_GPU_GRANULE);
    return *out_least > p->step ? *out_least : p->step;
}

/* --- trimming ---------------------------------------------------------------------------------------------- */

void cws_gpu_pools_trim_drops_lock(struct cws_gpu_pools *p, uint64_t slack)
{
    struct {
        CUmemoryPool handle;
        uint64_t keep;
    } pools[ROOM];
    unsigned count = p->count;
    for (unsigned i = 0; i < count; i++) {
        pools[i].handle = p->pools[i].handle;
        pools[i].keep = slack ? p->pools[i].reserved - p->pools[i].unused + slack : 0;
    }
    cws_gpu_unlock(p->core);
    for (unsigned i = 0; i < count; i++)
        p->core->driver->pool_trim(pools[i].handle, pools[i].keep);
    cws_gpu_lock(p->core);
    cws_gpu_pools_count(p);
}

/* Memory that pools have and do not use (PyTorch tells them to keep all that they ever had) is better used for weights.
 * Where it does not come free, or is taken again soon, that is tried seldom. */
void cws_gpu_pools_trim_slack_drops_lock(struct cws_gpu_pools *p)
{
    const struct cws_tuning *t = p->core->tuning;
    uint64_t now = cws_gpu_now_ns(), unused = 0;
    if (now < p->trim_at_ns || !cws_gpu_budget_pages(p->budget))
        return;
    cws_gpu_pools_count(p);
    for (unsigned i = 0; i < p->count; i++)
        unused += p->pools[i].unused;
    p->trim_wait_ns = p->trim_wait_ns ? p->trim_wait_ns : t->trim_first_ns;
    if (unused >= t->trim_much_bytes) {
        cws_gpu_pools_trim_drops_lock(p, t->trim_keep_bytes);
        p->trim_wait_ns = p->trim_wait_ns < t->trim_most_ns / t->trim_growth ? t->trim_growth * p->trim_wait_ns
                                                                             : t->trim_most_ns;
    }
    p->trim_at_ns = now + p->trim_wait_ns;
}

const char *cws_gpu_pools_check(const struct cws_gpu_pools *p)
{
    for (unsigned i = 0; i < p->count; i++) {
        if (p->pools[i].slack > p->pools[i].unused || p->pools[i].unused > p->pools[i].reserved)
            return "pools: more is unused than there is";
        for (unsigned k = 0; k < i; k++)
            if (p->pools[i].handle == p->pools[k].handle)
                return "pools: one is counted twice";
    }
    return NULL;
}
