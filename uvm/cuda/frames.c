/* frames.c - frames: made, kept idle, mapped, given back to the driver. */
#include "frames.h"

#include <stdlib.h>

enum { TRIES = 3 }; /* of a call that must not fail */

int cws_gpu_frames_open(struct cws_gpu_frames *f, struct cws_gpu_core *core, struct cws_gpu_budget *budget,
                        uint64_t aliases, struct cws_error *err)
{
    f->core = core;
    f->budget = budget;
    cws_list_init(&f->idle);
    for (unsigned i = 0; i < CWS_GPU_FRAME_LISTS; i++)
        cws_list_init(&f->idle_of[i]);
    return cws_gpu_arena_open(&f->aliases, core, aliases, err);
}

void cws_gpu_frames_close(struct cws_gpu_frames *f)
{
    struct cws_gpu_frame *frame;
    if (!f->core)
        return;
    cws_gpu_lock(f->core);
    while ((frame = cws_gpu_frame_take_oldest(f)))
        cws_gpu_frame_release_drops_lock(f, frame);
    cws_gpu_unlock(f->core);
    cws_gpu_arena_close(&f->aliases);
}

/* --- the driver, without the lock -------------------------------------------------------------------------- */

static CUresult counted(struct cws_gpu_frames *f, CUresult result)
{
    atomic_fetch_add_explicit(&f->calls, 1, memory_order_relaxed);
    return result;
}

static CUresult map_at(struct cws_gpu_frames *f, CUdeviceptr at, uint64_t bytes, CUmemGenericAllocationHandle handle)
{
    const struct cws_driver *d = f->core->driver;
    const CUmemAccessDesc access = {.location = {CU_MEM_LOCATION_TYPE_DEVICE, f->core->device},
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUresult result = counted(f, d->map(at, bytes, 0, handle, 0));
    if (result != CUDA_SUCCESS)
        return result;
    result = counted(f, d->set_access(at, bytes, &access, 1));
    if (result != CUDA_SUCCESS)
        counted(f, d->unmap(at, bytes));
    return result;
}

CUresult cws_gpu_frame_map(struct cws_gpu_frames *f, const struct cws_gpu_frame *frame, CUdeviceptr at)
{
    return map_at(f, at, cws_gpu_frame_bytes(frame), frame->handle);
}

void cws_gpu_frame_map_again(struct cws_gpu_frames *f, const struct cws_gpu_frame *frame, CUdeviceptr at)
{
    CUresult result = CUDA_ERROR_UNKNOWN;
    for (unsigned i = 0; i < TRIES && result != CUDA_SUCCESS; i++)
        result = cws_gpu_frame_map(f, frame, at);
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(f->core, result, "mapping device memory again that stays (a kernel that uses it will fail)");
}

CUresult cws_gpu_frame_unmap(struct cws_gpu_frames *f, const struct cws_gpu_frame *frame, CUdeviceptr at)
{
    CUresult result = counted(f, f->core->driver->unmap(at, cws_gpu_frame_bytes(frame)));
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(f->core, result, "unmapping a range");
    return result;
}

static CUresult create(struct cws_gpu_frames *f, struct cws_gpu_frame *frame)
{
    const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {CU_MEM_LOCATION_TYPE_DEVICE, f->core->device}};
    uint64_t bytes = cws_gpu_frame_bytes(frame);
    CUresult result = counted(f, f->core->driver->create(&frame->handle, bytes, &prop, 0));
    if (result != CUDA_SUCCESS)
        return result;
    result = map_at(f, frame->alias, bytes, frame->handle);
    if (result != CUDA_SUCCESS)
        counted(f, f->core->driver->release(frame->handle));
    return result;
}

/* --- frames ------------------------------------------------------------------------------------------------ */

struct cws_gpu_frame *cws_gpu_frame_create_drops_lock(struct cws_gpu_frames *f, uint32_t granules)
{
    struct cws_gpu_frame *frame = calloc(1, sizeof *frame);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (frame) {
        frame->granules = granules;
        cws_list_init(&frame->link);
        cws_list_init(&frame->of_size);
        frame->alias = cws_gpu_arena_take(&f->aliases, granules);
    }
    if (frame && frame->alias) {
        cws_gpu_unlock(f->core);
        result = create(f, frame);
        cws_gpu_lock(f->core);
    }
    if (result == CUDA_SUCCESS) {
        cws_gpu_budget_frame_made(f->budget, cws_gpu_frame_bytes(frame));
        f->created++;
        f->count++;
        return frame;
    }
    cws_gpu_budget_ungrant(f->budget, (uint64_t)granules * CWS_GPU_GRANULE, false);
    if (frame && frame->alias)
        cws_gpu_arena_give(&f->aliases, frame->alias, granules);
    free(frame);
    return NULL;
}

void cws_gpu_frame_release_drops_lock(struct cws_gpu_frames *f, struct cws_gpu_frame *frame)
{
    const struct cws_driver *d = f->core->driver;
    uint64_t bytes = cws_gpu_frame_bytes(frame);
    cws_gpu_unlock(f->core);
    CUresult unmapped = CUDA_ERROR_UNKNOWN, result;
    for (unsigned i = 0; i < TRIES && unmapped != CUDA_SUCCESS; i++)
        unmapped = counted(f, d->unmap(frame->alias, bytes));
    result = unmapped == CUDA_SUCCESS ? counted(f, d->release(frame->handle)) : unmapped;
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(f->core, result, "releasing device memory");
    cws_gpu_lock(f->core);
    f->count--;
    f->released++;
    if (result == CUDA_SUCCESS)
        /* else it is gone for good: neither memory nor address may be taken for free */
        cws_gpu_budget_frame_gone(f->budget, bytes);
    if (unmapped == CUDA_SUCCESS)
        cws_gpu_arena_give(&f->aliases, frame->alias, frame->granules);
    free(frame);
}

static struct cws_gpu_frame *take(struct cws_gpu_frames *f, struct cws_gpu_frame *frame)
{
    cws_list_remove(&frame->link);
    cws_list_remove(&frame->of_size);
    cws_gpu_budget_move(f->budget, CWS_CLASS_IDLE, CWS_CLASS_NONE, cws_gpu_frame_bytes(frame));
    return frame;
}

struct cws_gpu_frame *cws_gpu_frame_take(struct cws_gpu_frames *f, uint32_t granules)
{
    const struct cws_list *list = &f->idle_of[granules % CWS_GPU_FRAME_LISTS];
    for (struct cws_list *l = list->prev; l != list; l = l->prev)
        if (CWS_LIST_OF(l, struct cws_gpu_frame, of_size)->granules == granules)
            return take(f, CWS_LIST_OF(l, struct cws_gpu_frame, of_size));
    return NULL;
}

struct cws_gpu_frame *cws_gpu_frame_take_oldest(struct cws_gpu_frames *f)
{
    return cws_list_is_empty(&f->idle) ? NULL : take(f, CWS_LIST_OF(f->idle.next, struct cws_gpu_frame, link));
}

void cws_gpu_frame_put(struct cws_gpu_frames *f, struct cws_gpu_frame *frame)
{
    cws_list_add_before(&f->idle, &frame->link);
    cws_list_add_before(&f->idle_of[frame->granules % CWS_GPU_FRAME_LISTS], &frame->of_size);
    cws_gpu_budget_move(f->budget, CWS_CLASS_NONE, CWS_CLASS_IDLE, cws_gpu_frame_bytes(frame));
}

const char *cws_gpu_frames_check(const struct cws_gpu_frames *f)
{
    uint64_t bytes = 0, count = 0;
    for (const struct cws_list *l = f->idle.next; l != &f->idle; l = l->next, count++)
        bytes += cws_gpu_frame_bytes(CWS_LIST_OF(l, const struct cws_gpu_frame, link));
    if (count > f->count)
        return "I2: more frames are idle than there are";
    return bytes > f->budget->of_class[CWS_CLASS_IDLE] ? "I2: idle frames are miscounted" : NULL;
}
