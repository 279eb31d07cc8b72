/* arena.h - addresses for ranges and for aliases of frames: one large reservation each, made at the start. A piece is
 * as large as its size class (size_class.h), and once it was freed it is given out again for any size of that class:
 * what grows step by step takes the addresses of each class once, not of each size.
 * Threads: the caller of take and give holds the manager's lock. */
#ifndef CWS_GPU_ARENA_H
#define CWS_GPU_ARENA_H
#include "core.h"
#include "size_class.h"

struct cws_gpu_hole {
    uint64_t at;
    struct cws_gpu_hole *next;
};

struct cws_gpu_arena { /* addresses, in granules from base */
    struct cws_gpu_core *core;
    CUdeviceptr base;
    uint64_t granules, next;
    struct cws_gpu_hole *holes[CWS_SIZE_CLASSES];
};

CWS_MUST_CHECK int cws_gpu_arena_open(struct cws_gpu_arena *arena, struct cws_gpu_core *core, uint64_t bytes,
                                      struct cws_error *err);
void cws_gpu_arena_close(struct cws_gpu_arena *arena); /* zeroed, or open failed: nothing happens */

/* granules: 1 to 2^31, the same for both. 0: full. */
CUdeviceptr cws_gpu_arena_take(struct cws_gpu_arena *arena, uint32_t granules);
void cws_gpu_arena_give(struct cws_gpu_arena *arena, CUdeviceptr at, uint32_t granules);

static inline bool cws_gpu_arena_has(const struct cws_gpu_arena *arena, CUdeviceptr address)
{
    return address - arena->base < arena->granules * CWS_GPU_GRANULE;
}
static inline uint64_t cws_gpu_arena_index(const struct cws_gpu_arena *arena, CUdeviceptr address)
{
    return (address - arena->base) / CWS_GPU_GRANULE;
}
#endif
