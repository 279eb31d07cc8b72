/* arena.c - addresses for ranges and for aliases of frames: one large reservation each, made at the start. A piece that
 * was freed is given out again for a range of the same size. */
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

int cws_gpu_arena_open(struct cws_gpu *gpu, struct cws_gpu_arena *arena, uint64_t bytes, struct cws_error *err)
{
    CUresult result = gpu->driver->reserve(&arena->base, bytes, CWS_GPU_GRANULE, 0, 0);
    if (result != CUDA_SUCCESS) {
        arena->base = 0;
        return cws_driver_fail(gpu->driver, err, result, "reserving device addresses");
    }
    arena->granules = bytes / CWS_GPU_GRANULE;
    arena->next = 0;
    return 0;
}

void cws_gpu_arena_close(struct cws_gpu *gpu, struct cws_gpu_arena *arena)
{
    for (size_t i = 0; i < sizeof arena->holes / sizeof *arena->holes; i++) {
        for (struct cws_gpu_hole *h = arena->holes[i], *next; h; h = next) {
            next = h->next;
            free(h);
        }
        arena->holes[i] = NULL;
    }
    if (arena->base && !gpu->dead)
        gpu->driver->unreserve(arena->base, arena->granules * CWS_GPU_GRANULE);
    arena->base = 0;
}

CUdeviceptr cws_gpu_arena_take_locked(struct cws_gpu_arena *arena, uint32_t granules)
{
    uint64_t at = arena->next;
    if (granules < sizeof arena->holes / sizeof *arena->holes && arena->holes[granules]) {
        struct cws_gpu_hole *h = arena->holes[granules];
        arena->holes[granules] = h->next;
        at = h->at;
        free(h);
    } else if (arena->granules - at < granules) {
        return 0;
    } else {
        arena->next += granules;
    }
    return arena->base + at * CWS_GPU_GRANULE;
}

void cws_gpu_arena_give_locked(struct cws_gpu_arena *arena, CUdeviceptr at, uint32_t granules)
{
    uint64_t index = (at - arena->base) / CWS_GPU_GRANULE;
    if (index + granules == arena->next) {
        arena->next = index;
        return;
    }
    struct cws_gpu_hole *h = granules < sizeof arena->holes / sizeof *arena->holes ? malloc(sizeof *h) : NULL;
    if (!h)
        return; /* addresses are plenty */
    h->at = index;
    h->next = arena->holes[granules];
    arena->holes[granules] = h;
}

bool cws_gpu_owns(const struct cws_gpu *gpu, CUdeviceptr address)
{
    return address - gpu->arena.base < gpu->arena.granules * CWS_GPU_GRANULE;
}

struct cws_gpu_range *cws_gpu_range_at_locked(const struct cws_gpu *gpu, CUdeviceptr address)
{
    if (!cws_gpu_owns(gpu, address))
        return NULL;
    struct cws_gpu_range *r = gpu->by_granule[(address - gpu->arena.base) / CWS_GPU_GRANULE];
    return r && r->state != CWS_RANGE_CACHED && !r->freed ? r : NULL;
}

bool cws_gpu_extent(struct cws_gpu *gpu, CUdeviceptr address, CUdeviceptr *out_base, size_t *out_bytes)
{
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_range *r = cws_gpu_range_at_locked(gpu, address);
    bool found = r && address - r->base < r->bytes;
    if (found) {
        *out_base = r->base;
        *out_bytes = r->bytes;
    }
    pthread_mutex_unlock(&gpu->lock);
    return found;
}
