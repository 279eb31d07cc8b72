/* trace.c - what CODEC_TRACE records of a device. Host times come from the threads that do the work. Times of copies
 * and decoding come from the device's clock, by events that exist only if a trace was running when the manager was
 * opened. */
#include "gpu.h"

#include <stdio.h>
#include <string.h>

#define ANCHOR_EVERY_NS 2000000000u /* the driver tells the time between two events as a float of milliseconds */
#define COUNT_STEP_BYTES ((uint64_t)4 << 20)

static void describe(const struct cws_gpu_extent *x, enum cws_trace_kind kind, const char *why,
                     struct cws_trace_what *out)
{
    *out = (struct cws_trace_what){.kind = kind, .why = why, .bytes = x->bytes, .index = (x->base / CWS_GPU_GRANULE)};
    if (!x->pieces.count)
        return;
    out->tensor = x->pieces.list->source->tensor->name;
    out->tensor_bytes = x->bytes;
    out->index = x->order.id;
}

/* --- uses --------------------------------------------------------------------------------------------- */

/* Does a new round begin? A period of the order has passed; where there is none yet, a range is used that this round
 * has used already, and the round is about as long as the one before. */
static bool begins_round(const struct cws_gpu_trace *t, const struct cws_gpu_extent *x, struct cws_gpu *gpu)
{
    struct cws_order *o = &gpu->order.order;
    uint64_t period = cws_order_period(o);
    if (period)
        return o->at >= t->round_at + period;
    return x->order.last_tick > t->round_tick && o->last != &x->order &&
           (t->round_ranges >= t->before_ranges / 4 * 3 || o->tick - t->round_tick > 2 * t->before_uses);
}

void cws_gpu_trace_use_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_extent *x)
{
    static const char *const how[CWS_EXTENT_STATES] = {
        [CWS_EXTENT_BOUND] = "miss",      [CWS_EXTENT_LOADING] = "loading",     [CWS_EXTENT_DROPPING] = "dropping",
        [CWS_EXTENT_RESIDENT] = "hit",    [CWS_EXTENT_DIRTY] = "hit",           [CWS_EXTENT_SPILLING] = "spilled",
        [CWS_EXTENT_SPILLED] = "spilled", [CWS_EXTENT_RESTORING] = "restoring", [CWS_EXTENT_PROVING] = "proving",
        [CWS_EXTENT_LOOKING] = "looking",
    };
    struct cws_gpu_trace *t = &gpu->trace;
    struct cws_trace_what what;
    if (begins_round(t, x, gpu)) {
        t->before_ranges = t->round_ranges;
        t->before_uses = gpu->order.order.tick - t->round_tick;
        t->round_tick = gpu->order.order.tick;
        t->round_at = gpu->order.order.at;
        t->round_ranges = 0;
        CWS_TRACE_MARK(.kind = CWS_TRACE_CYCLE, .index = ++t->rounds);
    }
    t->round_ranges += x->order.last_tick <= t->round_tick;
    describe(x, CWS_TRACE_USE, how[x->state], &what);
    cws_trace_mark_slow(&what);
}

/* The ranges of a launch that are not resident: the first of them, and their bytes. */
static const struct cws_gpu_extent *missing(const struct cws_gpu_use *use, uint64_t *out_bytes)
{
    const struct cws_gpu_extent *first = NULL;
    *out_bytes = 0;
    for (unsigned i = 0; i < use->count; i++) {
        if (cws_extent_is_mapped(use->extents[i]->state))
            continue;
        first = first ? first : use->extents[i];
        *out_bytes += use->extents[i]->bytes;
    }
    return first;
}

void cws_gpu_wait_text_locked(const struct cws_gpu_use *use, char *out, size_t room, uint64_t *out_bytes)
{
    struct cws_trace_what what = {.tensor = NULL};
    const struct cws_gpu_extent *first = missing(use, out_bytes);
    if (first)
        describe(first, CWS_TRACE_WAIT, NULL, &what);
    snprintf(out, room, what.tensor ? "wait for %s" : "wait for memory", what.tensor);
}

bool cws_gpu_trace_wait_slow_locked(const struct cws_gpu_use *use)
{
    struct cws_trace_what what;
    uint64_t bytes;
    const struct cws_gpu_extent *first = missing(use, &bytes);
    if (!first)
        return false;
    describe(first, CWS_TRACE_WAIT, first->pieces.count ? "weights" : "fresh memory", &what);
    what.bytes = bytes;
    return cws_trace_begin_slow(&what);
}

bool cws_gpu_trace_extent_slow(const struct cws_gpu_extent *x, enum cws_trace_kind kind)
{
    struct cws_trace_what what;
    describe(x, kind, NULL, &what);
    return cws_trace_begin_slow(&what);
}

/* --- memory ------------------------------------------------------------------------------------------- */

void cws_gpu_trace_memory_slow_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_trace *t = &gpu->trace;
    const struct cws_gpu_budget *b = &gpu->budget;
    uint64_t weights = cws_gpu_budget_weights(b);
    uint64_t fixed = b->of_class[CWS_CLASS_IDLE] + b->of_class[CWS_CLASS_RESERVE] + cws_gpu_budget_undroppable(b);
    uint64_t moved = fixed > t->fixed ? fixed - t->fixed : t->fixed - fixed;
    if (weights == t->weights && moved < COUNT_STEP_BYTES)
        return;
    t->weights = weights;
    t->fixed = fixed;
    cws_trace_count(gpu->core.device, weights, fixed);
}

/* --- loads and drops ------------------------------------------------------------------------------------ */

void cws_gpu_trace_load_begin_slow_locked(struct cws_gpu *gpu, struct cws_gpu_load *load)
{
    uint32_t lane = (uint32_t)__builtin_ctz(~gpu->trace.lanes);
    if (lane >= CWS_TRACE_LOADS)
        return;
    gpu->trace.lanes |= 1u << lane;
    load->lane = lane + 1;
    load->begin_ns = cws_trace_now();
}

void cws_gpu_trace_load_end_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_load *load)
{
    struct cws_trace_what what;
    gpu->trace.lanes &= ~(1u << (load->lane - 1));
    describe(load->extent, CWS_TRACE_LOAD, load->failed ? "failed" : load->for_launch ? "demand" : "ahead", &what);
    cws_trace_span(cws_trace_lane(gpu->core.device, CWS_LANE_LOAD, load->lane - 1), load->begin_ns, cws_trace_now(),
                   &what);
}

void cws_gpu_trace_drop_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_drop *drop, bool kept)
{
    struct cws_trace_what what;
    describe(drop->extent, CWS_TRACE_DROP, kept ? "written, kept" : "dropped", &what);
    cws_trace_span(cws_trace_lane(gpu->core.device, CWS_LANE_DROP, (unsigned)(drop - gpu->drops.at)), drop->begin_ns,
                   cws_trace_now(), &what);
}

/* --- the device's clock ----------------------------------------------------------------------------------- */

static void forget_events(struct cws_gpu *gpu)
{
    cws_gpu_staging_time_all(&gpu->staging, false);
    if (gpu->trace.anchor)
        gpu->core.driver->event_destroy(gpu->trace.anchor);
    gpu->trace.anchor = NULL;
}

/* The copy stream is idle: what an event on it says is now, unless this thread was interrupted. */
static bool drop_anchor(struct cws_gpu *gpu)
{
    enum { TRIES = 4, GOOD_NS = 100000 };
    const struct cws_driver *d = gpu->core.driver;
    for (unsigned i = 0; i < TRIES; i++) {
        uint64_t before = cws_trace_now();
        if (d->event_record(gpu->trace.anchor, gpu->staging.copy_stream) != CUDA_SUCCESS ||
            d->event_sync(gpu->trace.anchor) != CUDA_SUCCESS)
            return false;
        uint64_t after = cws_trace_now();
        gpu->trace.anchor_ns = before + (after - before) / 2;
        if (after - before < GOOD_NS)
            break;
    }
    return true;
}

void cws_gpu_trace_open(struct cws_gpu *gpu)
{
    const struct cws_driver *d = gpu->core.driver;
    if (!cws_trace_is_on())
        return;
    bool made = d->event_create(&gpu->trace.anchor, CU_EVENT_DEFAULT) == CUDA_SUCCESS && drop_anchor(gpu);
    made = made && cws_gpu_staging_time_all(&gpu->staging, true);
    if (!made) /* a trace without them is one, too */
        forget_events(gpu);
}

void cws_gpu_trace_close(struct cws_gpu *gpu) { forget_events(gpu); }

static bool when(struct cws_gpu *gpu, const struct cws_gpu_slot *slot, enum cws_gpu_moment which, uint64_t *out_ns)
{
    float ms = 0;
    if (!(slot->timed & 1u << which) ||
        gpu->core.driver->event_elapsed(&ms, gpu->trace.anchor, slot->moments[which]) != CUDA_SUCCESS || ms < 0)
        return false;
    *out_ns = gpu->trace.anchor_ns + (uint64_t)((double)ms * 1e6);
    return true;
}

void cws_gpu_trace_batch_slow(struct cws_gpu *gpu, const struct cws_gpu_load *load, const struct cws_gpu_slot *slot)
{
    const struct cws_gpu_extent *x = load->extent;
    uint64_t at[CWS_GPU_MOMENTS] = {0}, stored = 0, logical = 0;
    bool known = gpu->trace.anchor != NULL;
    for (unsigned k = 0; k < CWS_GPU_MOMENTS; k++)
        known = known && when(gpu, slot, (enum cws_gpu_moment)k, &at[k]);
    if (!known)
        return;
    for (uint64_t i = 0; i < slot->chunks; i++) {
        stored += slot->jobs[i].stored_bytes;
        logical += slot->jobs[i].logical_bytes;
    }
    struct cws_trace_what what;
    describe(x, CWS_TRACE_COPY, NULL, &what);
    what.index = slot->first_chunk;
    what.bytes = stored;
    cws_trace_span(cws_trace_lane(gpu->core.device, CWS_LANE_COPY, 0), at[CWS_MOMENT_COPY], at[CWS_MOMENT_COPIED],
                   &what);
    what.kind = CWS_TRACE_DECODE;
    what.bytes = logical;
    cws_trace_span(cws_trace_lane(gpu->core.device, CWS_LANE_DECODE, 0), at[CWS_MOMENT_DECODE], at[CWS_MOMENT_DECODED],
                   &what);
}

bool cws_gpu_trace_idle_drops_lock(struct cws_gpu *gpu)
{
    if (!gpu->trace.anchor || gpu->staging.busy || cws_trace_now() - gpu->trace.anchor_ns < ANCHOR_EVERY_NS)
        return false;
    cws_gpu_unlock(&gpu->core);
    if (!drop_anchor(gpu))
        forget_events(gpu);
    cws_gpu_lock(&gpu->core);
    return true;
}
