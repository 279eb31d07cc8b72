/* use.c - uses: makes the ranges that a launch or a copy names ready before it is queued, and holds them until it was.
 * The common case, in which all of them are resident, takes one lock. */
#include "state.h"
#include "nvtx.h"

#include <stdlib.h>
#include <string.h>

/* How many uses this thread has open, per manager: one entry for each that it ever met. A process has few. */
static _Thread_local struct {
    const struct cws_gpu *gpu;
    unsigned count;
} open_uses[CWS_GPU_MANAGERS];

static void count_open(const struct cws_gpu *gpu, int change)
{
    unsigned i = 0, free_line = CWS_GPU_MANAGERS - 1;
    for (; i < CWS_GPU_MANAGERS && open_uses[i].gpu != gpu; i++)
        if (open_uses[i].count == 0 && i < free_line)
            free_line = i;
    i = i < CWS_GPU_MANAGERS ? i : free_line;
    open_uses[i].gpu = gpu;
    open_uses[i].count += (unsigned)change;
}

unsigned cws_gpu_uses_open(const struct cws_gpu *gpu)
{
    for (unsigned i = 0; i < CWS_GPU_MANAGERS; i++)
        if (open_uses[i].gpu == gpu)
            return open_uses[i].count;
    return 0;
}

static bool grow(struct cws_gpu_use *use)
{
    bool few = use->ranges == use->few;
    struct cws_gpu_range **more = realloc(few ? NULL : use->ranges, 4 * (size_t)use->room * sizeof *more);
    if (!more)
        return false;
    if (few)
        memcpy(more, use->few, sizeof use->few);
    use->ranges = more;
    use->room *= 4;
    return true;
}

static bool add_locked(struct cws_gpu_use *use, struct cws_gpu_range *r)
{
    for (unsigned i = 0; i < use->count; i++)
        if (use->ranges[i] == r)
            return true;
    if (use->count == use->room && !grow(use))
        return false;
    use->ranges[use->count++] = r;
    r->named++;
    r->holds++;
    return true;
}

/* Bytes that this launch needs at the same time. */
static uint64_t set_bytes(const struct cws_gpu_use *use)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < use->count; i++)
        bytes += cws_gpu_span(use->ranges[i]);
    return bytes;
}

/* Of these, the bytes that do not count as undroppable yet. */
static uint64_t set_new_bytes(const struct cws_gpu_use *use)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < use->count; i++) {
        enum cws_range_state s = use->ranges[i]->state;
        if (s != CWS_RANGE_ANONYMOUS && s != CWS_RANGE_DIRTY && !use->ranges[i]->freed)
            bytes += cws_gpu_span(use->ranges[i]);
    }
    return bytes;
}

static void hold_locked(struct cws_gpu *gpu, struct cws_gpu_use *use, bool hold)
{
    for (unsigned i = 0; i < use->count; i++)
        use->ranges[i]->holds += hold ? 1 : -1u;
    if (!hold && gpu->starved)
        cws_gpu_wake_locked(gpu);
}

static void unhold_locked(struct cws_gpu *gpu, struct cws_gpu_use *use)
{
    hold_locked(gpu, use, false);
    for (unsigned i = 0; i < use->count; i++)
        cws_gpu_range_unname_locked(gpu, use->ranges[i]);
    use->count = 0;
    if (use->ranges != use->few)
        free(use->ranges);
    use->ranges = use->few;
}

/* Gives a fresh range memory, in this thread. */
static CUresult make_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    uint64_t bytes = cws_gpu_span(r);
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_MAKING);
    struct cws_gpu_frame *frame = cws_gpu_frame_idle_locked(gpu, r->granules);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (!frame && cws_gpu_grant_locked(gpu, bytes))
        frame = cws_gpu_frame_create_locked(gpu, r->granules);
    if (frame) {
        pthread_mutex_unlock(&gpu->lock);
        result = cws_gpu_map(gpu, r, frame);
        pthread_mutex_lock(&gpu->lock);
        if (result == CUDA_SUCCESS) {
            r->frame = frame;
        } else {
            cws_gpu_frame_put_idle_locked(gpu, frame);
            cws_gpu_unexpected(gpu, result, "mapping memory of the program");
        }
    }
    cws_gpu_range_set_locked(gpu, r, result == CUDA_SUCCESS ? CWS_RANGE_ANONYMOUS : CWS_RANGE_RESERVED);
    pthread_cond_broadcast(&gpu->changed);
    return result;
}

void cws_gpu_demand_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, bool demand)
{
    if (demand == r->demanded)
        return;
    r->demanded = demand;
    if (!demand) {
        cws_list_remove(&r->wanted);
        return;
    }
    cws_list_add_before(&gpu->wanted, &r->wanted);
    r->failed = CUDA_SUCCESS;
    gpu->counts.demand += r->state == CWS_RANGE_BOUND;
    cws_gpu_wake_locked(gpu);
}

static bool has_to_load(const struct cws_gpu_range *r)
{
    return !r->freed &&
           (r->state == CWS_RANGE_SPILLED || r->state == CWS_RANGE_SPILLING || r->state == CWS_RANGE_BOUND ||
            r->state == CWS_RANGE_LOADING || r->state == CWS_RANGE_DROPPING);
}

static CUresult ready_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    for (;;) {
        CUresult result;
        if (r->freed) { /* since it was named: by a stray word, so nothing is missing */
            cws_gpu_demand_locked(gpu, r, false);
            return CUDA_SUCCESS;
        }
        switch (r->state) {
        case CWS_RANGE_RESERVED:
            result = make_locked(gpu, r);
            if (result != CUDA_SUCCESS)
                return result;
            break;
        case CWS_RANGE_BOUND:
        case CWS_RANGE_LOADING:
        case CWS_RANGE_DROPPING:
        case CWS_RANGE_SPILLED:
        case CWS_RANGE_SPILLING:
            cws_gpu_demand_locked(gpu, r, true);
            if ((r->state == CWS_RANGE_BOUND || r->state == CWS_RANGE_SPILLED) && r->failed != CUDA_SUCCESS)
                return r->failed;
            pthread_cond_wait(&gpu->changed, &gpu->lock);
            break;
        case CWS_RANGE_MAKING: pthread_cond_wait(&gpu->changed, &gpu->lock); break;
        default: /* mapped */ cws_gpu_demand_locked(gpu, r, false); return CUDA_SUCCESS;
        }
    }
}

static void say_set_locked(struct cws_gpu *gpu, const struct cws_gpu_use *use, uint64_t need, unsigned others)
{
    uint64_t least = cws_gpu_least_budget_locked(gpu, need, 0);
    if (need <= gpu->config.budget_bytes && others) {
        cws_gpu_say(gpu,
                    "a launch needs %llu MiB of device memory while %u calls around it hold what CODEC_VRAM_BUDGET "
                    "(%llu MiB) leaves",
                    (unsigned long long)(set_bytes(use) >> 20), others,
                    (unsigned long long)(gpu->config.budget_bytes >> 20));
        return;
    }
    cws_gpu_say(gpu,
                "a launch needs %llu MiB of device memory at a time, more than CODEC_VRAM_BUDGET (%llu MiB) leaves; "
                "the least budget that would have done is %llu MiB",
                (unsigned long long)(set_bytes(use) >> 20), (unsigned long long)(gpu->config.budget_bytes >> 20),
                (unsigned long long)((least + (1 << 20) - 1) >> 20));
}

/* Something has to be loaded or made. One launch at a time does this, and those that wait for their turn hold nothing:
 * two that hold halves of what the other needs would never end. */
static CUresult get_ready(struct cws_gpu *gpu, struct cws_gpu_use *use)
{
    CUresult result = CUDA_SUCCESS;
    uint64_t begin = cws_gpu_now_ns();
    unsigned open = cws_gpu_uses_open(gpu);
    if (open) { /* others may wait for what this thread holds */
        pthread_mutex_lock(&gpu->lock);
        gpu->stuck_uses += open;
        cws_gpu_wake_locked(gpu);
        pthread_mutex_unlock(&gpu->lock);
    }
    pthread_mutex_lock(&gpu->slow);
    pthread_mutex_lock(&gpu->lock);
    hold_locked(gpu, use, true);
    gpu->waiting++;
    uint64_t need = cws_gpu_undroppable_locked(gpu) + set_new_bytes(use);
    if (need > gpu->config.budget_bytes) {
        cws_gpu_recount_pools_locked(gpu);
        need = cws_gpu_undroppable_locked(gpu) + set_new_bytes(use);
    }
    if (need > gpu->config.budget_bytes && need - cws_gpu_spillable_locked(gpu) > gpu->config.budget_bytes)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    /* all of them at once: the loader takes them in turn */
    for (unsigned i = 0; i < use->count && result == CUDA_SUCCESS; i++)
        if (has_to_load(use->ranges[i]))
            cws_gpu_demand_locked(gpu, use->ranges[i], true);
    for (unsigned i = 0; i < use->count && result == CUDA_SUCCESS; i++)
        result = ready_locked(gpu, use->ranges[i]);
    for (unsigned i = 0; i < use->count && result != CUDA_SUCCESS; i++)
        cws_gpu_demand_locked(gpu, use->ranges[i], false);
    gpu->waiting--;
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        need = cws_gpu_undroppable_locked(gpu) + set_new_bytes(use);
        say_set_locked(gpu, use, need, gpu->running_uses);
    }
    gpu->stuck_uses -= open;
    if (result != CUDA_SUCCESS)
        unhold_locked(gpu, use);
    else
        gpu->running_uses++;
    if (result == CUDA_SUCCESS)
        count_open(gpu, 1);
    gpu->counts.stall_ns += cws_gpu_now_ns() - begin;
    pthread_mutex_unlock(&gpu->lock);
    pthread_mutex_unlock(&gpu->slow);
    return result;
}

static CUresult begin(struct cws_gpu *gpu, const CUdeviceptr *addresses, size_t count, struct cws_gpu_use *use)
{
    bool all = true, room = true, traced = false;
    char text[128];
    uint64_t missing = 0;
    text[0] = '\0';
    pthread_mutex_lock(&gpu->lock);
    gpu->uses++;
    for (size_t i = 0; i < count && room; i++) {
        struct cws_gpu_range *r = cws_gpu_range_at_locked(gpu, addresses[i]);
        if (!r)
            continue;
        room = add_locked(use, r);
        r->used = gpu->uses;
        r->keeps = false;
        if (r->source)
            cws_gpu_order_use_locked(gpu, r);
        all &= cws_gpu_is_mapped(r->state);
    }
    cws_gpu_set_note_locked(gpu, use->ranges, use->count);
    if (room && !all && cws_trace_is_on())
        traced = cws_gpu_trace_wait_slow_locked(use);
    if (room && !all && cws_nvtx_is_on())
        cws_gpu_wait_text_locked(use, text, sizeof text, &missing);
    if (!room)
        unhold_locked(gpu, use);
    else if (!all)
        hold_locked(gpu, use, false);
    else if (use->count)
        gpu->running_uses++;
    if (room && all && use->count)
        count_open(gpu, 1);
    pthread_mutex_unlock(&gpu->lock);
    if (!room) {
        cws_gpu_say(gpu, "a launch names %u paged allocations, and there is no host memory to hold more",
                    CWS_GPU_USE_FEW);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    bool pushed = text[0] && cws_nvtx_push(text, missing);
    CUresult result = all ? CUDA_SUCCESS : get_ready(gpu, use);
    if (pushed)
        cws_nvtx_pop();
    cws_trace_end(CWS_TRACE_WAIT, traced);
    return result;
}

CUresult cws_gpu_begin(struct cws_gpu *gpu, CUstream stream, const CUdeviceptr *addresses, size_t count,
                       struct cws_gpu_use *use)
{
    use->stream = stream;
    use->count = 0;
    use->room = CWS_GPU_USE_FEW;
    use->ranges = use->few;
    if (gpu->dead) /* before anything that waits: nobody is there */
        return CUDA_ERROR_NOT_INITIALIZED;
    cws_gpu_strict_enter(gpu);
    CUresult result = begin(gpu, addresses, count, use);
    if (result != CUDA_SUCCESS || use->count == 0)
        cws_gpu_strict_leave(gpu, stream, /* queued */ false);
    return result;
}

void cws_gpu_end(struct cws_gpu *gpu, struct cws_gpu_use *use, bool queued)
{
    if (use->count == 0)
        return;
    pthread_mutex_lock(&gpu->lock);
    for (unsigned i = 0; i < use->count && queued; i++)
        if (cws_gpu_is_mapped(use->ranges[i]->state))
            cws_gpu_stream_note_use_locked(gpu, use->ranges[i], use->stream);
    if (queued)
        cws_gpu_stream_mark_own_locked(gpu, use->stream);
    gpu->running_uses--;
    count_open(gpu, -1);
    unhold_locked(gpu, use);
    pthread_mutex_unlock(&gpu->lock);
    cws_gpu_strict_leave(gpu, use->stream, queued);
}

void cws_gpu_pin(struct cws_gpu *gpu, CUdeviceptr address)
{
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_range *r = cws_gpu_range_at_locked(gpu, address);
    if (r)
        r->pinned = true;
    pthread_mutex_unlock(&gpu->lock);
}
