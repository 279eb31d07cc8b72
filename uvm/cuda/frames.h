/* frames.h - frames, which are the physical memory of ranges. A frame has the size of what it is for. It has a second
 * address for its whole life, the alias, where it is decoded into and hashed. A frame outlives the eviction of its
 * range, because creating and releasing cost more than mapping.
 *
 * Invariant I2: a frame has exactly one place: it is idle here, or what was given it has it.
 * Threads: the caller of every function holds the manager's lock, but for those that say that they take none. */
#ifndef CWS_GPU_FRAMES_H
#define CWS_GPU_FRAMES_H
#include "store/base/list.h"
#include "arena.h"
#include "budget.h"
#include <stdatomic.h>

enum { CWS_GPU_FRAME_LISTS = 256 }; /* programs have tens of sizes */

struct cws_gpu_frame {
    CUmemGenericAllocationHandle handle;
    uint32_t granules;
    CUdeviceptr alias;             /* mapped here as long as the frame lives */
    struct cws_list link, of_size; /* when it is idle: lists of all, and by size */
};

struct cws_gpu_frames {
    struct cws_gpu_core *core;
    struct cws_gpu_budget *budget;
    struct cws_gpu_arena aliases;
    struct cws_list idle;                         /* oldest first */
    struct cws_list idle_of[CWS_GPU_FRAME_LISTS]; /* the same by size, modulo that */
    uint64_t count;                               /* frames that there are */
    /* since the manager was opened */
    uint64_t created, released;
    _Atomic uint64_t calls; /* of the driver, to create, release, map, unmap and give access */
};

static inline uint64_t cws_gpu_frame_bytes(const struct cws_gpu_frame *frame)
{
    return (uint64_t)frame->granules * CWS_GPU_GRANULE;
}

/* aliases: bytes of addresses. The lock is not held. */
CWS_MUST_CHECK int cws_gpu_frames_open(struct cws_gpu_frames *f, struct cws_gpu_core *core,
                                       struct cws_gpu_budget *budget, uint64_t aliases, struct cws_error *err);
/* All frames are idle. The lock is not held. */
void cws_gpu_frames_close(struct cws_gpu_frames *f);

/* A frame out of granted bytes, or NULL; then the grant is gone, too. */
struct cws_gpu_frame *cws_gpu_frame_create_drops_lock(struct cws_gpu_frames *f, uint32_t granules);
/* Gives a frame that has no place back to the driver. */
void cws_gpu_frame_release_drops_lock(struct cws_gpu_frames *f, struct cws_gpu_frame *frame);
/* Takes an idle one of that size; NULL: none. */
struct cws_gpu_frame *cws_gpu_frame_take(struct cws_gpu_frames *f, uint32_t granules);
/* Takes the one that was idle longest; NULL: none. */
struct cws_gpu_frame *cws_gpu_frame_take_oldest(struct cws_gpu_frames *f);
void cws_gpu_frame_put(struct cws_gpu_frames *f, struct cws_gpu_frame *frame);

/* Maps a frame at addresses of its size, or unmaps it. They take no lock. */
CUresult cws_gpu_frame_map(struct cws_gpu_frames *f, const struct cws_gpu_frame *frame, CUdeviceptr at);
/* Tries more than once: what lay there is in use. Says so where that does not help. */
void cws_gpu_frame_map_again(struct cws_gpu_frames *f, const struct cws_gpu_frame *frame, CUdeviceptr at);
CUresult cws_gpu_frame_unmap(struct cws_gpu_frames *f, const struct cws_gpu_frame *frame, CUdeviceptr at);

/* NULL, or what does not hold. */
const char *cws_gpu_frames_check(const struct cws_gpu_frames *f);
#endif
