/* arena.c - addresses: what was freed waits in a list per size class. */
#include "arena.h"

#include <stdlib.h>

int cws_gpu_arena_open(struct cws_gpu_arena *arena, struct cws_gpu_core *core, uint64_t bytes, struct cws_error *err)
{
    arena->core = core;
    CUresult result = core->driver->reserve(&arena->base, bytes, CWS_GPU_GRANULE, 0, 0);
    if (result != CUDA_SUCCESS) {
        arena->base = 0;
        return cws_driver_fail(core->driver, err, result, "reserving device addresses");
    }
    arena->granules = bytes / CWS_GPU_GRANULE;
    arena->next = 0;
    return 0;
}

void cws_gpu_arena_close(struct cws_gpu_arena *arena)
{
    for (size_t i = 0; i < sizeof arena->holes / sizeof *arena->holes; i++) {
        for (struct cws_gpu_hole *h = arena->holes[i], *next; h; h = next) {
            next = h->next;
            free(h);
        }
        arena->holes[i] = NULL;
    }
    if (arena->base)
        arena->core->driver->unreserve(arena->base, arena->granules * CWS_GPU_GRANULE);
    arena->base = 0;
}

CUdeviceptr cws_gpu_arena_take(struct cws_gpu_arena *arena, uint32_t granules)
{
    struct cws_gpu_hole **hole = &arena->holes[cws_size_class(granules)], *h = *hole;
    uint64_t at = arena->next;
    granules = cws_size_class_round(granules);
    if (h) {
        *hole = h->next;
        at = h->at;
        free(h);
    } else if (arena->granules - at < granules) {
        return 0;
    } else {
        arena->next += granules;
    }
    return arena->base + at * CWS_GPU_GRANULE;
}

void cws_gpu_arena_give(struct cws_gpu_arena *arena, CUdeviceptr at, uint32_t granules)
{
    struct cws_gpu_hole **hole = &arena->holes[cws_size_class(granules)];
    uint64_t index = cws_gpu_arena_index(arena, at);
    if (index + cws_size_class_round(granules) == arena->next) {
        arena->next = index;
        return;
    }
    struct cws_gpu_hole *h = malloc(sizeof *h);
    if (!h)
        return; /* addresses are plenty */
    h->at = index;
    h->next = *hole;
    *hole = h;
}
