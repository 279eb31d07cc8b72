/* use.c - uses: makes the ranges that a launch or a copy names ready before it is queued, and holds them until it was.
 * The common case, in which all of them are resident, takes one lock. */
#include "gpu.h"
#include "nvtx.h"

#include <stdlib.h>
#include <string.h>

enum { MANAGERS = 16 }; /* of a process */

void cws_gpu_uses_init(struct cws_gpu_uses *uses, struct cws_gpu_strict *strict)
{
    *uses = (struct cws_gpu_uses){.slow = CWS_LOCK_OF(CWS_RANK_GPU_SLOW)};
    *strict = (struct cws_gpu_strict){.lock = CWS_LOCK_OF(CWS_RANK_GPU_STRICT)};
}

/* How many uses this thread has open, per manager: one entry for each that it ever met. */
static _Thread_local struct {
    const struct cws_gpu *gpu;
    unsigned count;
} open_uses[MANAGERS];

static void count_open(const struct cws_gpu *gpu, int change)
{
    unsigned i = 0, free_line = MANAGERS - 1;
    for (; i < MANAGERS && open_uses[i].gpu != gpu; i++)
        if (open_uses[i].count == 0 && i < free_line)
            free_line = i;
    i = i < MANAGERS ? i : free_line;
    open_uses[i].gpu = gpu;
    open_uses[i].count += (unsigned)change;
}

unsigned cws_gpu_uses_open(const struct cws_gpu *gpu)
{
    for (unsigned i = 0; i < MANAGERS; i++)
        if (open_uses[i].gpu == gpu)
            return open_uses[i].count;
    return 0;
}

void cws_gpu_uses_stuck_locked(struct cws_gpu *gpu, bool stuck)
{
    unsigned open = cws_gpu_uses_open(gpu);
    gpu->uses.stuck += stuck ? open : -open;
}

/* --- the extents of a use ------------------------------------------------------------------------------- */

static bool grow(struct cws_gpu_use *use)
{
    bool few = use->extents == use->few;
    struct cws_gpu_extent **more = realloc(few ? NULL : use->extents, 4 * (size_t)use->room * sizeof *more);
    if (!more)
        return false;
    if (few)
        memcpy(more, use->few, sizeof use->few);
    use->extents = more;
    use->room *= 4;
    return true;
}

static bool has(const struct cws_gpu_use *use, const struct cws_gpu_extent *x)
{
    for (unsigned i = 0; i < use->count; i++)
        if (use->extents[i] == x)
            return true;
    return false;
}

static bool add_locked(struct cws_gpu_use *use, struct cws_gpu_extent *x)
{
    if (use->count == use->room && !grow(use))
        return false;
    use->extents[use->count++] = x;
    cws_gpu_range_name_locked(x->range);
    x->holds++;
    return true;
}

/* Bytes that this launch needs at the same time. */
static uint64_t set_bytes(const struct cws_gpu_use *use)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < use->count; i++)
        bytes += cws_gpu_span(use->extents[i]);
    return bytes;
}

/* What cannot be dropped, and the bytes of this launch that do not count there yet. */
static uint64_t needed(const struct cws_gpu *gpu, const struct cws_gpu_use *use)
{
    uint64_t bytes = cws_gpu_budget_undroppable(&gpu->budget);
    for (unsigned i = 0; i < use->count; i++) {
        const struct cws_gpu_extent *x = use->extents[i];
        if (x->state != CWS_EXTENT_ANONYMOUS && x->state != CWS_EXTENT_DIRTY && x->state != CWS_EXTENT_PROVING &&
            x->state != CWS_EXTENT_LOOKING && !x->range->freed)
            bytes += cws_gpu_span(x);
    }
    return bytes;
}

static void hold_locked(struct cws_gpu *gpu, struct cws_gpu_use *use, bool hold)
{
    for (unsigned i = 0; i < use->count; i++)
        use->extents[i]->holds += hold ? 1 : -1u;
    if (!hold && gpu->loader.starved)
        cws_gpu_wake_locked(&gpu->core);
}

static void unhold_locked(struct cws_gpu *gpu, struct cws_gpu_use *use)
{
    hold_locked(gpu, use, false);
    for (unsigned i = 0; i < use->count; i++)
        cws_gpu_range_unname_locked(gpu, use->extents[i]->range);
    use->count = 0;
    if (use->extents != use->few)
        free(use->extents);
    use->extents = use->few;
}

/* --- what is not there ------------------------------------------------------------------------------------ */

/* Gives a fresh extent memory, in this thread. */
static CUresult make_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_MAKING);
    struct cws_gpu_frame *frame = cws_gpu_frame_take(&gpu->frames, x->granules);
    if (!frame && cws_gpu_budget_grant_drops_lock(&gpu->budget, cws_gpu_span(x), false))
        frame = cws_gpu_frame_create_drops_lock(&gpu->frames, x->granules);
    if (frame) {
        cws_gpu_unlock(&gpu->core);
        bool traced = cws_trace_is_on() && cws_gpu_trace_extent_slow(x, CWS_TRACE_MAP);
        result = cws_gpu_frame_map(&gpu->frames, frame, x->base);
        cws_trace_end(CWS_TRACE_MAP, traced);
        cws_gpu_lock(&gpu->core);
    }
    if (result == CUDA_SUCCESS) {
        x->frame = frame;
    } else if (frame) {
        cws_gpu_frame_put(&gpu->frames, frame);
        cws_gpu_unexpected(&gpu->core, result, "mapping memory of the program");
    }
    cws_gpu_extent_set_locked(gpu, x, result == CUDA_SUCCESS ? CWS_EXTENT_ANONYMOUS : CWS_EXTENT_RESERVED);
    cws_gpu_extent_settle_locked(gpu, x);
    return result;
}

void cws_gpu_demand_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool demand)
{
    if (demand == cws_gpu_is_demanded(x))
        return;
    if (!demand) {
        cws_list_remove(&x->wanted);
        return;
    }
    cws_list_add_before(&gpu->ranges.wanted, &x->wanted);
    x->failed = CUDA_SUCCESS;
    gpu->uses.demanded += x->state == CWS_EXTENT_BOUND || x->state == CWS_EXTENT_PARTIAL;
    cws_gpu_wake_locked(&gpu->core);
}

static CUresult wait_ready_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    for (;;) {
        CUresult result;
        if (x->range->freed || cws_extent_is_mapped(x->state)) {
            /* freed since it was named: by a stray word, so nothing is missing */
            cws_gpu_demand_locked(gpu, x, false);
            return CUDA_SUCCESS;
        }
        if (x->state == CWS_EXTENT_RESERVED) {
            result = make_drops_lock(gpu, x);
            if (result != CUDA_SUCCESS)
                return result;
            continue;
        }
        if (cws_extent_is_away(x->state)) {
            cws_gpu_demand_locked(gpu, x, true);
            if (cws_extent_rests(x->state) && x->failed != CUDA_SUCCESS)
                return x->failed;
        }
        cws_gpu_changed_wait_drops_lock(&gpu->core);
    }
}

static CUresult ready_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    if (cws_extent_is_mapped(x->state) || x->range->freed)
        return wait_ready_drops_lock(gpu, x);
    enum cws_gpu_wait why = cws_extent_is_away(x->state) ? CWS_WAIT_WEIGHT : CWS_WAIT_FRESH;
    uint64_t begin = cws_gpu_now_ns();
    CUresult result = wait_ready_drops_lock(gpu, x);
    gpu->uses.waits[why]++;
    gpu->uses.wait_ns[why] += cws_gpu_now_ns() - begin;
    return result;
}

static void say_set_locked(struct cws_gpu *gpu, const struct cws_gpu_use *use, uint64_t need, unsigned others)
{
    uint64_t least = cws_gpu_room_least_locked(gpu, need, 0);
    unsigned long long budget = gpu->budget.bytes >> 20;
    cws_gpu_adopt_explain_locked(gpu);
    if (need <= gpu->budget.bytes && others) {
        cws_gpu_say(&gpu->core,
                    "a launch needs %llu MiB of device memory while %u calls around it hold what CODEC_VRAM_BUDGET "
                    "(%llu MiB) leaves",
                    (unsigned long long)(set_bytes(use) >> 20), others, budget);
        return;
    }
    cws_gpu_say(&gpu->core,
                "a launch needs %llu MiB of device memory at a time, more than CODEC_VRAM_BUDGET (%llu MiB) leaves; "
                "the least budget that would have done is %llu MiB",
                (unsigned long long)(set_bytes(use) >> 20), budget,
                (unsigned long long)((least + (1 << 20) - 1) >> 20));
}

static CUresult get_all_drops_lock(struct cws_gpu *gpu, struct cws_gpu_use *use)
{
    CUresult result = CUDA_SUCCESS;
    if (needed(gpu, use) > gpu->budget.bytes) {
        cws_gpu_pools_count(&gpu->pools);
        while (!cws_gpu_room_fits_locked(gpu, needed(gpu, use)) && result == CUDA_SUCCESS)
            if (!cws_gpu_prove_wait_drops_lock(gpu, needed(gpu, use)))
                result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    /* all of them at once: the loader takes them in turn */
    for (unsigned i = 0; i < use->count && result == CUDA_SUCCESS; i++)
        if (!use->extents[i]->range->freed && cws_extent_is_away(use->extents[i]->state))
            cws_gpu_demand_locked(gpu, use->extents[i], true);
    for (unsigned i = 0; i < use->count && result == CUDA_SUCCESS; i++)
        result = ready_drops_lock(gpu, use->extents[i]);
    for (unsigned i = 0; i < use->count && result != CUDA_SUCCESS; i++)
        cws_gpu_demand_locked(gpu, use->extents[i], false);
    return result;
}

/* Something has to be loaded or made. One launch at a time does this, and those that wait for their turn hold nothing:
 * two that hold halves of what the other needs would never end. */
static CUresult get_ready(struct cws_gpu *gpu, struct cws_gpu_use *use)
{
    uint64_t begin = cws_gpu_now_ns();
    if (cws_gpu_uses_open(gpu)) { /* others may wait for what this thread holds */
        cws_gpu_lock(&gpu->core);
        cws_gpu_uses_stuck_locked(gpu, true);
        cws_gpu_wake_locked(&gpu->core);
        cws_gpu_unlock(&gpu->core);
    }
    cws_lock_take(&gpu->uses.slow);
    cws_gpu_lock(&gpu->core);
    hold_locked(gpu, use, true);
    gpu->uses.waiting++;
    uint64_t before = gpu->uses.wait_ns[CWS_WAIT_WEIGHT];
    cws_gpu_streams_waits(&gpu->streams);
    cws_gpu_stream_mark(&gpu->streams, use->stream);
    CUresult result = get_all_drops_lock(gpu, use);
    uint64_t waited = gpu->uses.wait_ns[CWS_WAIT_WEIGHT] - before;
    if (waited && cws_gpu_stream_is_done(&gpu->streams, use->stream))
        gpu->uses.weights_stalled_ns += waited;
    gpu->uses.waiting--;
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        say_set_locked(gpu, use, needed(gpu, use), gpu->uses.running);
    cws_gpu_uses_stuck_locked(gpu, false);
    if (result != CUDA_SUCCESS) {
        unhold_locked(gpu, use);
    } else {
        gpu->uses.running++;
        count_open(gpu, 1);
    }
    gpu->uses.stall_ns += cws_gpu_now_ns() - begin;
    cws_gpu_unlock(&gpu->core);
    cws_lock_drop(&gpu->uses.slow);
    return result;
}

/* --- begin and end ------------------------------------------------------------------------------------------ */

/* Adds what an address names: all of its range. *all: it is there, and all before it. False: no memory. */
static bool name_locked(struct cws_gpu *gpu, struct cws_gpu_use *use, CUdeviceptr address, bool *all)
{
    struct cws_gpu_range *r = cws_gpu_range_at_locked(&gpu->ranges, address);
    bool room = true;
    for (uint32_t i = 0; r && i < r->extent_count && room; i++) {
        struct cws_gpu_extent *x = &r->extents[i];
        if (has(use, x)) /* a launch may have several pointers into it */
            continue;
        room = add_locked(use, x);
        x->used = gpu->uses.begun;
        if (cws_gpu_is_bound(x) && cws_trace_is_on())
            cws_gpu_trace_use_slow_locked(gpu, x);
        if (cws_gpu_is_bound(x))
            cws_gpu_order_use(&gpu->order, x);
        *all &= cws_extent_is_mapped(x->state);
    }
    return room;
}

static CUresult say_no_memory(struct cws_gpu *gpu)
{
    cws_gpu_say(&gpu->core, "a launch names %u paged allocations, and there is no host memory to hold more",
                CWS_GPU_USE_FEW);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult begin(struct cws_gpu *gpu, const CUdeviceptr *addresses, size_t count, struct cws_gpu_use *use)
{
    bool all = true, room = true, traced = false;
    char text[128];
    uint64_t missing = 0;
    text[0] = '\0';
    cws_gpu_lock(&gpu->core);
    gpu->uses.begun++;
    if (cws_gpu_budget_pages(&gpu->budget))
        cws_gpu_order_tell(&gpu->order, gpu->uses.wait_ns[CWS_WAIT_WEIGHT], gpu->uses.weights_stalled_ns);
    cws_gpu_look_used_locked(gpu);
    for (size_t i = 0; i < count && room; i++)
        room = name_locked(gpu, use, addresses[i], &all);
    if (use->count)
        cws_gpu_resize_use(&gpu->resize);
    cws_gpu_sets_note(&gpu->sets, use->extents, use->count, cws_gpu_budget_for_weights(&gpu->budget));
    if (room && !all && cws_trace_is_on())
        traced = cws_gpu_trace_wait_slow_locked(use);
    if (room && !all && cws_nvtx_is_on())
        cws_gpu_wait_text_locked(use, text, sizeof text, &missing);
    if (!room) {
        unhold_locked(gpu, use);
    } else if (!all) {
        hold_locked(gpu, use, false);
    } else if (use->count) {
        gpu->uses.running++;
        count_open(gpu, 1);
    }
    cws_gpu_unlock(&gpu->core);
    if (!room)
        return say_no_memory(gpu);
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
    use->extents = use->few;
    if (gpu->core.dead) /* before anything that waits: nobody is there */
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
    cws_gpu_lock(&gpu->core);
    if (queued)
        cws_gpu_stream_launched(&gpu->streams, use->stream);
    for (unsigned i = 0; i < use->count && queued; i++) {
        struct cws_gpu_extent *x = use->extents[i];
        if (cws_extent_is_mapped(x->state) && !cws_gpu_users_note(&gpu->streams, &x->users, use->stream))
            cws_gpu_range_pin_locked(x->range); /* as if it were used for ever */
    }
    if (queued)
        cws_gpu_stream_mark_own(&gpu->streams, use->stream);
    gpu->uses.running--;
    count_open(gpu, -1);
    unhold_locked(gpu, use);
    cws_gpu_unlock(&gpu->core);
    cws_gpu_strict_leave(gpu, use->stream, queued);
}

void cws_gpu_queued_other(struct cws_gpu *gpu)
{
    if (gpu->core.dead)
        return;
    cws_gpu_lock(&gpu->core);
    cws_gpu_streams_settle(&gpu->streams);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_recent(struct cws_gpu *gpu, void (*each)(void *arg, CUdeviceptr address), void *arg)
{
    if (gpu->core.dead)
        return;
    cws_gpu_lock(&gpu->core);
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        bool there = x->state == CWS_EXTENT_RESERVED || cws_extent_is_mapped(x->state) ||
                     x->state == CWS_EXTENT_LOOKING || x->state == CWS_EXTENT_PROVING;
        if (there && !x->range->freed && gpu->uses.begun - x->used <= gpu->core.tuning->recent_uses)
            each(arg, x->base);
    }
    cws_gpu_unlock(&gpu->core);
}

/* --- streams of the program --------------------------------------------------------------------------------- */

void cws_gpu_stream_gone(struct cws_gpu *gpu, CUstream stream)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_stream_end(&gpu->streams, stream);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_stream_captures(struct cws_gpu *gpu, CUstream stream)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_stream_mark_last(&gpu->streams, stream);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_context_gone(struct cws_gpu *gpu, CUcontext context)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_streams_context_end(&gpu->streams, context);
    cws_gpu_wake_locked(&gpu->core);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_synchronized(struct cws_gpu *gpu)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_streams_settle(&gpu->streams);
    cws_gpu_streams_synchronized(&gpu->streams);
    cws_gpu_wake_locked(&gpu->core);
    cws_gpu_unlock(&gpu->core);
}

const char *cws_gpu_uses_check(const struct cws_gpu *gpu)
{
    uint64_t holds = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        if (x->holds > x->range->named)
            return "uses: an extent is held by more uses than name its range";
        holds += x->holds;
    }
    if (holds < gpu->uses.running)
        return "uses: one that runs holds nothing";
    return NULL;
}
