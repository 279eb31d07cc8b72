/* frame.c - frames, which are the physical memory of ranges, and the budget that all of them share. A frame has the
 * size of its range. It has a second address for its whole life, the alias, where it is decoded into and hashed. A
 * frame outlives the eviction of its range, because creating and releasing cost more than mapping. */
#include "state.h"

#include <stdlib.h>

enum { TRIES = 3 };    /* of a call that must not fail */
#define POOL_UNIT 512u /* bytes; what a pool hands out is a multiple of it */
/* the largest step that is taken for granted of a pool that has to grow */
#define POOL_STEP_MAX ((uint64_t)64 << 20)
#define POOL_RECOUNT_EVERY 256u /* allocations: small ones come by the thousand */

/* --- the budget ---------------------------------------------------------------------------------- */

uint64_t cws_gpu_used_locked(const struct cws_gpu *gpu)
{
    return gpu->frame_bytes + gpu->granted_bytes + gpu->ring_bytes + gpu->other_plain + gpu->other_pools;
}

uint64_t cws_gpu_undroppable_locked(const struct cws_gpu *gpu)
{
    return gpu->fixed_bytes + gpu->ring_bytes + gpu->other_plain + gpu->other_pools;
}

uint64_t cws_gpu_least_budget_locked(struct cws_gpu *gpu, uint64_t need, uint64_t fresh)
{
    uint64_t named = gpu->largest_set;
    for (const struct cws_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        const struct cws_gpu_range *r = CWS_LIST_OF(l, const struct cws_gpu_range, link);
        bool written = r->state == CWS_RANGE_DIRTY || r->state == CWS_RANGE_SPILLED || r->state == CWS_RANGE_SPILLING;
        if (r->source && !written && !r->freed && cws_gpu_span(r) > named)
            named = cws_gpu_span(r);
    }
    uint64_t later = cws_gpu_undroppable_locked(gpu) + fresh + named;
    uint64_t rest = (need > later ? need : later) - gpu->ring_bytes, least = rest + gpu->ring_bytes;
    /* staging grows with the budget, a 32nd as fast */
    for (uint64_t more; (more = rest + cws_gpu_ring_bytes(&gpu->config, least)) > least;)
        least = more;
    gpu->least_budget = least > gpu->least_budget ? least : gpu->least_budget;
    return least;
}

static uint64_t room_locked(const struct cws_gpu *gpu)
{
    uint64_t used = cws_gpu_used_locked(gpu);
    return used < gpu->config.budget_bytes ? gpu->config.budget_bytes - used : 0;
}

/* Room that was granted to a pool does not count towards the peak until the pool has taken it. */
static void note_peak_locked(struct cws_gpu *gpu)
{
    uint64_t used = cws_gpu_used_locked(gpu) - gpu->pool_granted_bytes;
    gpu->used_peak = used > gpu->used_peak ? used : gpu->used_peak;
}

/* Wakes the loader if memory that nobody made room for has outgrown the budget. */
static void check_budget_locked(struct cws_gpu *gpu)
{
    note_peak_locked(gpu);
    if (cws_gpu_used_locked(gpu) - gpu->pool_granted_bytes > gpu->config.budget_bytes)
        cws_gpu_wake_locked(gpu);
}

void cws_gpu_recount_pools_locked(struct cws_gpu *gpu)
{
    const struct cws_driver *d = gpu->driver;
    uint64_t total = 0, bytes, used;
    for (unsigned i = 0; i < gpu->pool_count; i++) {
        struct cws_gpu_pool *p = &gpu->pools[i];
        p->slack = p->unused = 0;
        if (d->pool_get(p->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &bytes) != CUDA_SUCCESS)
            continue;
        total += bytes;
        uint64_t grown = bytes > p->reserved ? bytes - p->reserved : 0;
        if (grown > gpu->pool_step)
            gpu->pool_step = grown < POOL_STEP_MAX ? grown : POOL_STEP_MAX;
        if (grown && (!p->step || grown < p->step))
            p->step = grown;
        p->reserved = bytes;
        if (d->pool_get(p->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used) == CUDA_SUCCESS && used < bytes)
            p->slack = p->unused = bytes - used;
    }
    if (d->device_graph_memory(gpu->device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &bytes) == CUDA_SUCCESS)
        total += bytes;
    gpu->other_pools = total;
    gpu->pool_age = 0;
    check_budget_locked(gpu);
}

void cws_gpu_pool_seen(struct cws_gpu *gpu, CUmemoryPool pool)
{
    pthread_mutex_lock(&gpu->lock);
    bool known = gpu->pool_count == sizeof gpu->pools / sizeof *gpu->pools;
    for (unsigned i = 0; i < gpu->pool_count; i++)
        known |= gpu->pools[i].handle == pool;
    if (!known)
        gpu->pools[gpu->pool_count++] = (struct cws_gpu_pool){.handle = pool};
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_pool_gone(struct cws_gpu *gpu, CUmemoryPool pool)
{
    pthread_mutex_lock(&gpu->lock);
    for (unsigned i = 0; i < gpu->pool_count; i++)
        if (gpu->pools[i].handle == pool)
            gpu->pools[i--] = gpu->pools[--gpu->pool_count];
    pthread_mutex_unlock(&gpu->lock);
}

bool cws_gpu_grant_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    if (!gpu->rooms && room_locked(gpu) >= bytes) {
        gpu->granted_bytes += bytes;
        note_peak_locked(gpu);
        return true;
    }
    struct cws_gpu_room room = {.bytes = bytes}, **link = &gpu->rooms;
    while (*link)
        link = &(*link)->next;
    *link = &room;
    cws_gpu_wake_locked(gpu);
    while (!room.granted && !room.refused)
        pthread_cond_wait(&gpu->changed, &gpu->lock);
    return room.granted; /* the loader took it off the list and counted it */
}

static CUresult make_room_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    if (room_locked(gpu) < bytes)
        cws_gpu_recount_pools_locked(gpu);
    if (room_locked(gpu) >= bytes) {
        gpu->granted_bytes += bytes;
        note_peak_locked(gpu);
        return CUDA_SUCCESS;
    }
    uint64_t need = cws_gpu_undroppable_locked(gpu) + gpu->granted_bytes + bytes + gpu->largest_set;
    unsigned stuck = cws_gpu_uses_open(gpu);
    gpu->stuck_uses += stuck;
    bool may = need <= gpu->config.budget_bytes || need - cws_gpu_spillable_locked(gpu) <= gpu->config.budget_bytes;
    bool granted = may && cws_gpu_grant_locked(gpu, bytes);
    gpu->stuck_uses -= stuck;
    if (granted)
        return CUDA_SUCCESS;
    cws_gpu_least_budget_locked(gpu, need, gpu->granted_bytes + bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult say_no_room(struct cws_gpu *gpu, size_t bytes)
{
    cws_gpu_say(gpu, "an allocation of %.1f MiB does not fit CODEC_VRAM_BUDGET; the least that would do is %llu MiB",
                (double)bytes / (1 << 20), (unsigned long long)((gpu->least_budget + (1 << 20) - 1) >> 20));
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cws_gpu_make_room(struct cws_gpu *gpu, size_t bytes)
{
    if (gpu->dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    pthread_mutex_lock(&gpu->lock);
    CUresult result = make_room_locked(gpu, bytes);
    pthread_mutex_unlock(&gpu->lock);
    return result ? say_no_room(gpu, bytes) : CUDA_SUCCESS;
}

void cws_gpu_room_used(struct cws_gpu *gpu, size_t bytes, size_t taken)
{
    pthread_mutex_lock(&gpu->lock);
    gpu->granted_bytes -= bytes;
    gpu->other_plain += taken;
    check_budget_locked(gpu);
    if (taken < bytes && gpu->rooms)
        cws_gpu_wake_locked(gpu);
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_plain_freed(struct cws_gpu *gpu, size_t bytes)
{
    pthread_mutex_lock(&gpu->lock);
    gpu->other_plain -= bytes;
    cws_gpu_wake_locked(gpu);
    pthread_mutex_unlock(&gpu->lock);
}

/* --- pools ----------------------------------------------------------------------------------------- */

/* Takes the bytes out of what the pool has and nobody uses, if they fit: each piece that it grew by may end in a rest
 * that is too small for any allocation. What is freed meanwhile is not counted, so this errs to the safe side, mostly:
 * a pool can be in more pieces than that, which shows when it is asked again. */
static bool take_slack_locked(struct cws_gpu *gpu, CUmemoryPool pool, uint64_t bytes)
{
    for (unsigned i = 0; i < gpu->pool_count; i++) {
        struct cws_gpu_pool *p = &gpu->pools[i];
        if (pool ? p->handle != pool : i != 0)
            continue;
        p->largest = bytes > p->largest ? bytes : p->largest;
        uint64_t rests = p->step ? p->reserved / p->step * p->largest : 0;
        if (p->slack < bytes + rests)
            return false;
        p->slack -= bytes;
        return true;
    }
    return false;
}

CUresult cws_gpu_pool_room(struct cws_gpu *gpu, CUmemoryPool pool, size_t bytes, size_t *room)
{
    if (gpu->dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    CUresult result = CUDA_SUCCESS;
    uint64_t units = ((uint64_t)bytes + POOL_UNIT - 1) / POOL_UNIT * POOL_UNIT,
             least = (units + CWS_GPU_GRANULE - 1) / CWS_GPU_GRANULE * CWS_GPU_GRANULE;
    *room = 0;
    pthread_mutex_lock(&gpu->lock);
    bool fits = ++gpu->pool_age < POOL_RECOUNT_EVERY && take_slack_locked(gpu, pool, units);
    if (!fits) {
        cws_gpu_recount_pools_locked(gpu);
        fits = take_slack_locked(gpu, pool, units);
    }
    if (!fits) {
        uint64_t step = least > gpu->pool_step ? least : gpu->pool_step;
        uint64_t need = cws_gpu_undroppable_locked(gpu) + gpu->granted_bytes + step + gpu->largest_set;
        *room = need <= gpu->config.budget_bytes ? step : least;
        result = make_room_locked(gpu, *room);
        gpu->pool_granted_bytes += result == CUDA_SUCCESS ? *room : 0;
    }
    pthread_mutex_unlock(&gpu->lock);
    return result ? say_no_room(gpu, bytes) : CUDA_SUCCESS;
}

void cws_gpu_pool_used(struct cws_gpu *gpu, size_t room)
{
    if (room == 0)
        return;
    pthread_mutex_lock(&gpu->lock);
    gpu->granted_bytes -= room;
    gpu->pool_granted_bytes -= room;
    cws_gpu_recount_pools_locked(gpu);
    if (gpu->rooms)
        cws_gpu_wake_locked(gpu);
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_pools_changed(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    cws_gpu_recount_pools_locked(gpu);
    cws_gpu_wake_locked(gpu);
    pthread_mutex_unlock(&gpu->lock);
}

/* --- frames -------------------------------------------------------------------------------------- */

static CUresult set_access(struct cws_gpu *gpu, CUdeviceptr at, uint64_t bytes)
{
    CUmemAccessDesc access = {.location = {CU_MEM_LOCATION_TYPE_DEVICE, gpu->device},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    return gpu->driver->set_access(at, bytes, &access, 1);
}

static CUresult map_at(struct cws_gpu *gpu, CUdeviceptr at, uint64_t bytes, CUmemGenericAllocationHandle handle)
{
    CUresult result = gpu->driver->map(at, bytes, 0, handle, 0);
    if (result == CUDA_SUCCESS) {
        result = set_access(gpu, at, bytes);
        if (result != CUDA_SUCCESS)
            gpu->driver->unmap(at, bytes);
    }
    return result;
}

CUresult cws_gpu_map(struct cws_gpu *gpu, const struct cws_gpu_range *r, const struct cws_gpu_frame *frame)
{
    bool traced = cws_trace_is_on() && cws_gpu_trace_range_slow(r, CWS_TRACE_MAP);
    CUresult result = map_at(gpu, r->base, cws_gpu_span(r), frame->handle);
    cws_trace_end(CWS_TRACE_MAP, traced);
    return result;
}

void cws_gpu_map_again(struct cws_gpu *gpu, const struct cws_gpu_range *r, const struct cws_gpu_frame *frame)
{
    CUresult result = CUDA_ERROR_UNKNOWN;
    for (unsigned i = 0; i < TRIES && result != CUDA_SUCCESS; i++)
        result = cws_gpu_map(gpu, r, frame);
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(gpu, result, "mapping device memory again that stays (a kernel that uses it will fail)");
}

CUresult cws_gpu_unmap(struct cws_gpu *gpu, const struct cws_gpu_range *r)
{
    CUresult result = gpu->driver->unmap(r->base, cws_gpu_span(r));
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(gpu, result, "unmapping a range");
    return result;
}

static CUresult create(struct cws_gpu *gpu, struct cws_gpu_frame *frame)
{
    uint64_t bytes = (uint64_t)frame->granules * CWS_GPU_GRANULE;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, gpu->device}};
    CUresult result = gpu->driver->create(&frame->handle, bytes, &prop, 0);
    if (result != CUDA_SUCCESS)
        return result;
    result = map_at(gpu, frame->alias, bytes, frame->handle);
    if (result != CUDA_SUCCESS)
        gpu->driver->release(frame->handle);
    return result;
}

struct cws_gpu_frame *cws_gpu_frame_create_locked(struct cws_gpu *gpu, uint32_t granules)
{
    uint64_t bytes = (uint64_t)granules * CWS_GPU_GRANULE;
    struct cws_gpu_frame *frame = calloc(1, sizeof *frame);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (frame) {
        frame->granules = granules;
        cws_list_init(&frame->link);
        frame->alias = cws_gpu_arena_take_locked(&gpu->aliases, granules);
    }
    if (frame && frame->alias) {
        pthread_mutex_unlock(&gpu->lock);
        result = create(gpu, frame);
        pthread_mutex_lock(&gpu->lock);
    }
    gpu->granted_bytes -= bytes;
    if (result == CUDA_SUCCESS) {
        gpu->frame_bytes += bytes;
        note_peak_locked(gpu);
        return frame;
    }
    if (frame && frame->alias)
        cws_gpu_arena_give_locked(&gpu->aliases, frame->alias, granules);
    free(frame);
    return NULL;
}

void cws_gpu_frame_destroy_locked(struct cws_gpu *gpu, struct cws_gpu_frame *frame)
{
    uint64_t bytes = (uint64_t)frame->granules * CWS_GPU_GRANULE;
    pthread_mutex_unlock(&gpu->lock);
    CUresult unmapped = CUDA_ERROR_UNKNOWN, result;
    for (unsigned i = 0; i < TRIES && unmapped != CUDA_SUCCESS; i++)
        unmapped = gpu->driver->unmap(frame->alias, bytes);
    result = unmapped == CUDA_SUCCESS ? gpu->driver->release(frame->handle) : unmapped;
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(gpu, result, "releasing device memory");
    pthread_mutex_lock(&gpu->lock);
    if (result == CUDA_SUCCESS)
        /* else it is gone for good: neither memory nor address may be taken for free */
        gpu->frame_bytes -= bytes;
    if (unmapped == CUDA_SUCCESS)
        cws_gpu_arena_give_locked(&gpu->aliases, frame->alias, frame->granules);
    free(frame);
}

struct cws_gpu_frame *cws_gpu_frame_idle_locked(struct cws_gpu *gpu, uint32_t granules)
{
    for (struct cws_list *l = gpu->idle.prev; l != &gpu->idle; l = l->prev) {
        struct cws_gpu_frame *frame = CWS_LIST_OF(l, struct cws_gpu_frame, link);
        if (frame->granules == granules) {
            cws_list_remove(&frame->link);
            gpu->mapped_idle_bytes -= (uint64_t)granules * CWS_GPU_GRANULE;
            return frame;
        }
    }
    return NULL;
}

void cws_gpu_frame_put_idle_locked(struct cws_gpu *gpu, struct cws_gpu_frame *frame)
{
    cws_list_add_before(&gpu->idle, &frame->link);
    gpu->mapped_idle_bytes += (uint64_t)frame->granules * CWS_GPU_GRANULE;
}

/* Takes the memory of a freed range whose uses are all done. */
static bool release_cached_locked(struct cws_gpu *gpu)
{
    for (struct cws_list *l = gpu->cached.next; l != &gpu->cached; l = l->next) {
        struct cws_gpu_range *r = CWS_LIST_OF(l, struct cws_gpu_range, cached);
        if (!cws_gpu_uses_done_locked(gpu, r, true))
            continue;
        struct cws_gpu_frame *frame = r->frame;
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_MAKING); /* ours alone */
        /* as before: a stray word may name it while the lock is free. A use that named it while it lived may even
         * hold it, and does not need it. */
        r->freed = true;
        pthread_mutex_unlock(&gpu->lock);
        cws_gpu_unmap(gpu, r);
        pthread_mutex_lock(&gpu->lock);
        r->frame = NULL;
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_RESERVED);
        cws_gpu_range_end_locked(gpu, r);
        cws_gpu_frame_put_idle_locked(gpu, frame);
        return true;
    }
    return false;
}

bool cws_gpu_release_idle_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    bool any = false;
    for (;;) {
        while (room_locked(gpu) < bytes && !cws_list_is_empty(&gpu->idle)) {
            struct cws_gpu_frame *frame = CWS_LIST_OF(gpu->idle.next, struct cws_gpu_frame, link);
            cws_list_remove(&frame->link);
            gpu->mapped_idle_bytes -= (uint64_t)frame->granules * CWS_GPU_GRANULE;
            cws_gpu_frame_destroy_locked(gpu, frame);
            any = true;
        }
        if (room_locked(gpu) >= bytes || !release_cached_locked(gpu))
            return any;
        any = true;
    }
}
