/* strict.c - strict mode, for tests of programs: one use at a time, and after it every weight is unmapped. A kernel
 * that reads a weight without naming it faults at once, whatever the budget. */
#include "state.h"

void cws_gpu_strict_enter(struct cws_gpu *gpu)
{
    if (gpu->config.strict)
        pthread_mutex_lock(&gpu->strict);
}

void cws_gpu_strict_leave(struct cws_gpu *gpu, CUstream stream, bool queued)
{
    if (!gpu->config.strict)
        return;
    if (cws_gpu_uses_open(gpu) == 0) { /* else this one is inside of another, of the same thread */
        if (queued)
            cws_driver_wait(gpu->driver, stream);
        pthread_mutex_lock(&gpu->lock);
        gpu->strict_due = true;
        cws_gpu_wake_locked(gpu);
        while (gpu->strict_due && !gpu->stop)
            pthread_cond_wait(&gpu->changed, &gpu->lock);
        pthread_mutex_unlock(&gpu->lock);
    }
    pthread_mutex_unlock(&gpu->strict);
}

bool cws_gpu_strict_drop_locked(struct cws_gpu *gpu)
{
    bool later = gpu->load_count || gpu->drop_count;
    if (!gpu->strict_due)
        return false;
    for (struct cws_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        struct cws_gpu_range *r = CWS_LIST_OF(l, struct cws_gpu_range, link);
        if (r->state != CWS_RANGE_RESIDENT || r->holds || r->pinned)
            continue;
        if (cws_gpu_drop_start_locked(gpu, r))
            return true; /* `lock` was free */
        later = true;
    }
    if (later)
        return false;
    gpu->strict_due = false;
    pthread_cond_broadcast(&gpu->changed);
    return true;
}
