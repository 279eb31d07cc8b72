/* range.c - ranges, which are the program's allocations: made, freed, kept for the next one of the same size, and moved
 * from state to state. */
#include "state.h"

#include <stdlib.h>
#include <string.h>

static bool is_fixed(enum cws_range_state s)
{
    return s == CWS_RANGE_MAKING || s == CWS_RANGE_ANONYMOUS || s == CWS_RANGE_DIRTY || s == CWS_RANGE_SPILLING;
}

void cws_gpu_range_set_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, enum cws_range_state to)
{
    uint64_t span = cws_gpu_span(r);
    if (is_fixed(r->state))
        gpu->fixed_bytes -= span;
    if (is_fixed(to))
        gpu->fixed_bytes += span;
    if (r->state == CWS_RANGE_RESIDENT)
        gpu->resident_bytes -= span;
    if (to == CWS_RANGE_RESIDENT)
        gpu->resident_bytes += span;
    if (r->state == CWS_RANGE_CACHED) {
        gpu->mapped_idle_bytes -= span;
        cws_list_remove(&r->cached);
    }
    if (to == CWS_RANGE_CACHED) {
        gpu->mapped_idle_bytes += span;
        cws_list_add_before(&gpu->cached, &r->cached);
    }
    if (r->source && (r->state == CWS_RANGE_RESIDENT) != (to == CWS_RANGE_RESIDENT))
        cws_order_set_in(&gpu->order, &r->order, to == CWS_RANGE_RESIDENT);
    if (to == CWS_RANGE_DIRTY)
        cws_gpu_set_forget_locked(gpu, r);
    r->state = to;
    cws_gpu_trace_memory_locked(gpu);
}

static void drop_source_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    if (!r->source)
        return;
    gpu->bound_bytes -= cws_gpu_span(r);
    cws_gpu_set_forget_locked(gpu, r);
    struct cws_gpu_source *source = r->source;
    r->source = NULL;
    cws_gpu_order_forget_locked(gpu, r);
    cws_gpu_source_put_locked(gpu, source);
}

void cws_gpu_range_end_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    uint64_t first = (r->base - gpu->arena.base) / CWS_GPU_GRANULE;
    drop_source_locked(gpu, r);
    cws_gpu_spill_forget_locked(gpu, r);
    if (r->named) { /* by a stray word, or the program's threads race: what has it in its list may wait for it */
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_RESERVED);
        r->freed = true;
        pthread_cond_broadcast(&gpu->changed);
        return;
    }
    for (uint32_t i = 0; i < r->granules; i++)
        gpu->by_granule[first + i] = NULL;
    cws_gpu_arena_give_locked(&gpu->arena, r->base, r->granules);
    cws_list_remove(&r->link);
    gpu->range_count--;
    free(r);
}

void cws_gpu_range_unname_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    if (--r->named == 0 && r->freed && r->state == CWS_RANGE_RESERVED)
        cws_gpu_range_end_locked(gpu, r);
}

void cws_gpu_range_cache_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    r->freed = false;
    drop_source_locked(gpu, r);
    cws_gpu_spill_forget_locked(gpu, r);
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_CACHED);
}

/* A freed range of this size whose last uses come before the new ones in stream order. */
static struct cws_gpu_range *take_cached_locked(struct cws_gpu *gpu, uint32_t granules, CUstream stream)
{
    gpu->look_round++;
    for (struct cws_list *l = gpu->cached.prev; l != &gpu->cached; l = l->prev) {
        struct cws_gpu_range *r = CWS_LIST_OF(l, struct cws_gpu_range, cached);
        if (r->granules == granules &&
            (cws_gpu_uses_only_locked(gpu, r, stream) || cws_gpu_uses_done_locked(gpu, r, false)))
            return r;
    }
    return NULL;
}

static struct cws_gpu_range *create_locked(struct cws_gpu *gpu, uint32_t granules)
{
    struct cws_gpu_range *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->base = cws_gpu_arena_take_locked(&gpu->arena, granules);
    if (!r->base) {
        free(r);
        return NULL;
    }
    r->granules = granules;
    cws_list_init(&r->cached);
    cws_list_init(&r->wanted);
    cws_list_add_before(&gpu->ranges, &r->link);
    uint64_t first = (r->base - gpu->arena.base) / CWS_GPU_GRANULE;
    for (uint32_t i = 0; i < granules; i++)
        gpu->by_granule[first + i] = r;
    gpu->range_count++;
    return r;
}

static void say_too_much(struct cws_gpu *gpu, size_t bytes, uint64_t least)
{
    cws_gpu_say(gpu,
                "an allocation of %.1f MiB does not fit CODEC_VRAM_BUDGET (%llu MiB, %llu MiB of it in use for what "
                "cannot be dropped); "
                "the least budget that would have done is %llu MiB",
                (double)bytes / (1 << 20), (unsigned long long)(gpu->config.budget_bytes >> 20),
                (unsigned long long)(cws_gpu_undroppable_locked(gpu) >> 20),
                (unsigned long long)((least + (1 << 20) - 1) >> 20));
}

CUresult cws_gpu_alloc(struct cws_gpu *gpu, size_t bytes, CUstream stream, CUdeviceptr *out)
{
    return cws_gpu_alloc_loading(gpu, bytes, 0, stream, out);
}

CUresult cws_gpu_alloc_loading(struct cws_gpu *gpu, size_t bytes, uint64_t expected, CUstream stream, CUdeviceptr *out)
{
    if (gpu->dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    uint64_t granules = ((uint64_t)bytes + CWS_GPU_GRANULE - 1) / CWS_GPU_GRANULE;
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (granules > UINT32_MAX / 2)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_range *r = take_cached_locked(gpu, (uint32_t)granules, stream);
    if (r) {
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_ANONYMOUS);
    } else {
        uint64_t set = gpu->largest_set, need = cws_gpu_undroppable_locked(gpu) + granules * CWS_GPU_GRANULE + set;
        if (need > gpu->config.budget_bytes) {
            cws_gpu_recount_pools_locked(gpu);
            need = cws_gpu_undroppable_locked(gpu) + granules * CWS_GPU_GRANULE + set;
        }
        bool warms_up = bytes <= expected && bytes > gpu->config.budget_bytes / 2;
        if (!warms_up && need > gpu->config.budget_bytes &&
            need - cws_gpu_spillable_locked(gpu) > gpu->config.budget_bytes) {
            say_too_much(gpu, bytes, cws_gpu_least_budget_locked(gpu, need, granules * CWS_GPU_GRANULE));
            pthread_mutex_unlock(&gpu->lock);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        r = create_locked(gpu, (uint32_t)granules);
    }
    if (r) {
        r->bytes = bytes;
        r->used = gpu->uses;
        r->keeps = false;
        *out = r->base;
    }
    pthread_mutex_unlock(&gpu->lock);
    return r ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cws_gpu_free(struct cws_gpu *gpu, CUdeviceptr address, CUstream stream, bool in_order)
{
    if (gpu->dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_range *r = cws_gpu_range_at_locked(gpu, address);
    /* another thread uses it for the first time: that is the program's race */
    while (r && r->base == address && r->state == CWS_RANGE_MAKING) {
        pthread_cond_wait(&gpu->changed, &gpu->lock);
        r = cws_gpu_range_at_locked(gpu, address);
    }
    if (!r || r->base != address) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else {
        r->pinned = false;
        cws_gpu_demand_locked(gpu, r, false);
        if (r->state == CWS_RANGE_LOADING || r->state == CWS_RANGE_DROPPING || r->state == CWS_RANGE_SPILLING) {
            r->freed = true; /* the loader ends it */
        } else if (cws_gpu_is_mapped(r->state)) {
            if (in_order) { /* what is queued behind the last use that we saw may use it, too */
                cws_gpu_stream_note_use_locked(gpu, r, stream);
                cws_gpu_stream_mark_own_locked(gpu, stream);
            }
            cws_gpu_range_cache_locked(gpu, r);
        } else {
            cws_gpu_range_end_locked(gpu, r);
        }
    }
    pthread_mutex_unlock(&gpu->lock);
    return result;
}
