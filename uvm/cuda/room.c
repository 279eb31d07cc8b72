/* room.c - device memory that the program takes from the driver itself, outside of ranges: room is made for it, and it
 * is counted. What does not fit is refused with a line that names the least budget. */
#include "gpu.h"

#include <time.h>

/* That a stream is done shows a moment after it was asked for the first time: a mark has to come through. */
enum { TRIM_TRIES = 100 };
static const struct timespec trim_wait = {.tv_nsec = 50000};

/* The budget that holds so many bytes beside what cannot be dropped, what was promised, and the largest launch. */
static uint64_t need_locked(const struct cws_gpu *gpu, uint64_t bytes)
{
    return cws_gpu_budget_undroppable(&gpu->budget) + gpu->budget.granted + bytes + gpu->sets.largest;
}

bool cws_gpu_room_fits_locked(const struct cws_gpu *gpu, uint64_t need)
{
    return need <= gpu->budget.bytes || need - cws_gpu_spillable_locked(gpu) <= gpu->budget.bytes;
}

/* Times as many bytes of weights as an allocation has, of which it is not what they are put together in. */
enum { PARTS_MOST = 3 };

/* Weights that were brought since the last launch, if an allocation of `fresh` bytes may be what they are put together
 * in (torch.stack): the next launch names all of them then. 0: they are less than that, or far more. */
static uint64_t parts_of_locked(const struct cws_gpu *gpu, uint64_t fresh)
{
    uint64_t bytes = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        bytes += x->state == CWS_EXTENT_BOUND && x->look.made == gpu->uses.begun ? cws_gpu_span(x) : 0;
    if (bytes < fresh || bytes / PARTS_MOST > fresh)
        return 0;
    return bytes < fresh + fresh / 2 ? bytes : fresh; /* in whole granules, or those of several allocations */
}

uint64_t cws_gpu_room_least_locked(struct cws_gpu *gpu, uint64_t need, uint64_t fresh)
{
    uint64_t named = gpu->sets.largest, parts = parts_of_locked(gpu, fresh);
    named = parts > named ? parts : named;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        bool written = x->state == CWS_EXTENT_DIRTY || x->state == CWS_EXTENT_SPILLED ||
                       x->state == CWS_EXTENT_SPILLING || x->state == CWS_EXTENT_RESTORING;
        if (cws_gpu_is_bound(x) && !written && !x->range->freed && cws_gpu_span(x) > named)
            named = cws_gpu_span(x);
    }
    uint64_t later = cws_gpu_budget_undroppable(&gpu->budget) + fresh + named;
    uint64_t rest = (need > later ? need : later) - gpu->budget.ring, least = rest + gpu->budget.ring;
    /* staging grows with the budget, a 32nd as fast */
    for (uint64_t more; (more = rest + cws_gpu_staging_bytes(&gpu->core, gpu->config.ring_bytes, least)) > least;)
        least = more;
    cws_gpu_budget_note_least(&gpu->budget, least);
    return least;
}

CUresult cws_gpu_room_make_drops_lock(struct cws_gpu *gpu, uint64_t bytes, bool to_pool)
{
    struct cws_gpu_budget *b = &gpu->budget;
    uint64_t margin = to_pool ? 0 : cws_gpu_budget_margin(b);
    if (cws_gpu_budget_left(b) < bytes + margin)
        cws_gpu_pools_count(&gpu->pools);
    if (cws_gpu_budget_left(b) >= bytes + margin) {
        cws_gpu_budget_grant(b, bytes, to_pool);
        return CUDA_SUCCESS;
    }
    uint64_t need;
    bool fits;
    cws_gpu_streams_waits(&gpu->streams);
    cws_gpu_uses_stuck_locked(gpu, true);
    do {
        need = need_locked(gpu, bytes);
        fits = cws_gpu_budget_left(b) >= bytes || cws_gpu_room_fits_locked(gpu, need);
    } while (!fits && cws_gpu_prove_wait_drops_lock(gpu, need));
    bool granted = fits && cws_gpu_budget_grant_drops_lock(b, bytes, to_pool);
    cws_gpu_uses_stuck_locked(gpu, false);
    if (granted)
        return CUDA_SUCCESS;
    cws_gpu_room_least_locked(gpu, need, b->granted + bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult say_no_room(struct cws_gpu *gpu, size_t bytes)
{
    cws_gpu_lock(&gpu->core);
    uint64_t least = gpu->budget.least;
    cws_gpu_unlock(&gpu->core);
    cws_gpu_say(&gpu->core,
                "an allocation of %.1f MiB does not fit CODEC_VRAM_BUDGET; the least that would do is %llu MiB",
                (double)bytes / (1 << 20), (unsigned long long)((least + (1 << 20) - 1) >> 20));
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cws_gpu_make_room(struct cws_gpu *gpu, size_t bytes)
{
    if (gpu->core.dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    cws_gpu_lock(&gpu->core);
    CUresult result = cws_gpu_room_make_drops_lock(gpu, bytes, false);
    cws_gpu_unlock(&gpu->core);
    return result ? say_no_room(gpu, bytes) : CUDA_SUCCESS;
}

void cws_gpu_room_used(struct cws_gpu *gpu, size_t bytes, size_t taken)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_budget_plain_taken(&gpu->budget, bytes, taken);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_plain_freed(struct cws_gpu *gpu, size_t bytes)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_budget_plain_freed(&gpu->budget, bytes);
    cws_gpu_unlock(&gpu->core);
}

/* --- pools ----------------------------------------------------------------------------------------- */

/* A pool whose own memory should do may grow all the same, because that is in pieces. Where the margin for this is not
 * there, it is had of weights, or not at all. Returns what was granted. */
static uint64_t margin_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_budget *b = &gpu->budget;
    uint64_t margin = cws_gpu_budget_margin(b);
    if (cws_gpu_budget_left(b) >= margin || b->of_class[CWS_CLASS_RESIDENT] == 0)
        return 0;
    cws_gpu_pools_count(&gpu->pools);
    if (cws_gpu_budget_left(b) >= margin || need_locked(gpu, margin) > b->bytes)
        return 0;
    cws_gpu_uses_stuck_locked(gpu, true);
    bool granted = cws_gpu_budget_grant_easily_drops_lock(b, margin);
    cws_gpu_uses_stuck_locked(gpu, false);
    return granted ? margin : 0;
}

CUresult cws_gpu_pool_room(struct cws_gpu *gpu, CUmemoryPool pool, size_t bytes, size_t *room)
{
    CUresult result = CUDA_SUCCESS;
    *room = 0;
    if (gpu->core.dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    cws_gpu_lock(&gpu->core);
    if (cws_gpu_pools_take(&gpu->pools, pool, bytes)) {
        *room = margin_drops_lock(gpu);
    } else {
        uint64_t least, step = cws_gpu_pools_growth(&gpu->pools, bytes, &least);
        *room = need_locked(gpu, step) <= gpu->budget.bytes ? step : least;
        result = cws_gpu_room_make_drops_lock(gpu, *room, true);
    }
    cws_gpu_unlock(&gpu->core);
    return result ? say_no_room(gpu, bytes) : CUDA_SUCCESS;
}

void cws_gpu_pool_used(struct cws_gpu *gpu, size_t room)
{
    if (room == 0)
        return;
    cws_gpu_lock(&gpu->core);
    cws_gpu_budget_ungrant(&gpu->budget, room, true);
    cws_gpu_pools_count(&gpu->pools);
    cws_gpu_unlock(&gpu->core);
}

size_t cws_gpu_graph_room(struct cws_gpu *gpu, size_t bytes)
{
    if (gpu->core.dead)
        return 0;
    cws_gpu_lock(&gpu->core);
    uint64_t step = gpu->pools.step, room = step ? (bytes + step - 1) / step * step : bytes;
    if (need_locked(gpu, room) > gpu->budget.bytes || cws_gpu_room_make_drops_lock(gpu, room, true) != CUDA_SUCCESS)
        room = 0;
    cws_gpu_unlock(&gpu->core);
    return room;
}

void cws_gpu_graph_ran(struct cws_gpu *gpu, size_t room)
{
    cws_gpu_lock(&gpu->core);
    if (room)
        cws_gpu_budget_ungrant(&gpu->budget, room, true);
    cws_gpu_pools_count(&gpu->pools);
    cws_gpu_wake_locked(&gpu->core);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_trim(struct cws_gpu *gpu, size_t keep)
{
    if (gpu->core.dead)
        return;
    cws_gpu_lock(&gpu->core);
    for (unsigned i = 0; i < TRIM_TRIES && !cws_gpu_reserve_trim_drops_lock(gpu, keep); i++) {
        cws_gpu_unlock(&gpu->core);
        nanosleep(&trim_wait, NULL);
        cws_gpu_lock(&gpu->core);
    }
    cws_gpu_wake_locked(&gpu->core);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_pools_changed(struct cws_gpu *gpu)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_pools_count(&gpu->pools);
    cws_gpu_wake_locked(&gpu->core);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_pool_seen(struct cws_gpu *gpu, CUmemoryPool pool)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_pools_add(&gpu->pools, pool);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_pool_gone(struct cws_gpu *gpu, CUmemoryPool pool)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_pools_remove(&gpu->pools, pool);
    cws_gpu_unlock(&gpu->core);
}
