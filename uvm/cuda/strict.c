/* strict.c - strict mode, for tests of programs: one use at a time, and after it every weight is unmapped, and what was
 * freed. A kernel that reads a weight without naming it, or what was freed, faults at once, whatever the budget. */
#include "gpu.h"

enum { LOOKS = 100 }; /* 20 to 200 us apart */

/* A use inside of another one, of the same thread: that has the lock. */
static bool is_inner(const struct cws_gpu *gpu) { return cws_gpu_uses_open(gpu) != 0; }

void cws_gpu_strict_enter(struct cws_gpu *gpu)
{
    if (gpu->config.strict && !is_inner(gpu))
        cws_lock_take(&gpu->strict.lock);
}

void cws_gpu_strict_leave(struct cws_gpu *gpu, CUstream stream, bool queued)
{
    if (!gpu->config.strict)
        return;
    if (queued) /* also an inner one: its stream may be another one, and the outer one may queue nothing */
        cws_driver_wait(gpu->core.driver, stream);
    if (is_inner(gpu))
        return;
    cws_gpu_lock(&gpu->core);
    gpu->strict.due = true;
    gpu->strict.looks = 0;
    cws_gpu_wake_locked(&gpu->core);
    while (gpu->strict.due && !gpu->core.stop)
        cws_gpu_changed_wait_drops_lock(&gpu->core);
    cws_gpu_unlock(&gpu->core);
    cws_lock_drop(&gpu->strict.lock);
}

bool cws_gpu_strict_step_drops_lock(struct cws_gpu *gpu)
{
    bool later = gpu->loads.count || gpu->drops.count;
    if (!gpu->strict.due)
        return false;
    if (cws_gpu_reserve_unmap_drops_lock(gpu)) /* what was freed: all of it is COLD */
        return true;
    for (struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        if (x->state != CWS_EXTENT_RESIDENT || x->holds || x->range->pinned)
            continue;
        if (cws_gpu_drop_start_drops_lock(gpu, x))
            return true;
        later = true;
    }
    /* the mark behind what was freed passes soon, but for a use in a graph that is being captured */
    if (!cws_list_is_empty(&gpu->reserve.cold) && gpu->strict.looks++ < LOOKS)
        later = true;
    if (later)
        return false;
    gpu->strict.due = false;
    cws_gpu_changed_locked(&gpu->core);
    return true;
}
