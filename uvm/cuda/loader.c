/* loader.c - the loader thread. It decides which extent is loaded and which is evicted: first for launches that wait,
 * then ahead of them.
 *
 * Each pass of run() does one step of each kind, and a step that dropped the lock ends: the next pass looks at
 * everything again. That is the one place which does.
 *
 * What the loader waits for. A launch, memory that is given back and bytes that were fetched wake it at once (core.h).
 * What runs on the device can only be asked for, because a thread that waits for an event (cuEventSynchronize) waits
 * for nothing else, and a launch has to be able to interrupt it; a host function behind each batch or each use of the
 * program would hold its stream up. So it asks: for its own batches and hashes without the lock, for the program's
 * streams with it, less and less often the longer it waits. docs/notes/gpu-paging.md has what the three ways cost. */
#include "gpu.h"

#include <sys/prctl.h>

void cws_gpu_loader_trim_drops_lock(struct cws_gpu *gpu)
{
    if (gpu->config.release) {
        cws_gpu_unlock(&gpu->core);
        gpu->config.release(gpu);
        cws_gpu_lock(&gpu->core);
    }
    cws_gpu_pools_trim_drops_lock(&gpu->pools, 0);
}

/* Evicts one extent if `have`, the bytes of evictions in flight that no load has claimed, is less than `need`, for
 * something that a thread waits for. Where none is clean, what kernels put together of weights is looked for; then the
 * reserve goes, and last what has to be copied. Whether something moved. */
static bool drop_for_drops_lock(struct cws_gpu *gpu, uint64_t have, uint64_t need)
{
    if (have >= need)
        return false;
    struct cws_gpu_extent *victim = cws_gpu_order_victim(&gpu->order, (struct cws_gpu_price){.done = true});
    if (victim)
        return cws_gpu_drop_start_drops_lock(gpu, victim);
    if (gpu->drops.count || gpu->loads.count || cws_gpu_order_victim(&gpu->order, (struct cws_gpu_price){0}))
        return false;
    return cws_gpu_prove_one_drops_lock(gpu) || cws_gpu_reserve_steal_locked(gpu, need - have) ||
           cws_gpu_spill_one_drops_lock(gpu);
}

/* What somebody who waits leaves free for pools: the margin, if something can go in its place. It gives way where that
 * is in use, the streams have come to a stand and nothing moves here. */
static uint64_t margin_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_loader *l = &gpu->loader;
    uint64_t margin = cws_gpu_budget_margin(&gpu->budget);
    if (margin == 0 || gpu->drops.count)
        return margin;
    uint64_t now = cws_gpu_now_ns();
    if (l->margin_since_ns == 0 || l->margin_progress != gpu->streams.progress)
        l->margin_since_ns = now;
    l->margin_progress = gpu->streams.progress;
    bool stands = now - l->margin_since_ns > gpu->core.tuning->victim_wait_ns,
         may_go = cws_gpu_order_victim(&gpu->order, (struct cws_gpu_price){0}) || cws_gpu_spillable_locked(gpu) ||
                  cws_gpu_provable_locked(gpu);
    return may_go && !stands ? margin : 0;
}

/* A frame that can be had without an eviction, put where idle ones lie; `margin` bytes stay free. False: there is none
 * now. */
static bool find_frame_drops_lock(struct cws_gpu *gpu, uint32_t granules, uint64_t margin)
{
    uint64_t bytes = (uint64_t)granules * CWS_GPU_GRANULE, need = bytes + margin;
    if (cws_gpu_budget_attainable(&gpu->budget) < need)
        return false;
    if (cws_gpu_budget_left(&gpu->budget) < need)
        cws_gpu_release_idle_drops_lock(gpu, need);
    if (cws_gpu_budget_left(&gpu->budget) < need)
        return false;
    cws_gpu_budget_grant(&gpu->budget, bytes, false);
    struct cws_gpu_frame *frame = cws_gpu_frame_create_drops_lock(&gpu->frames, granules);
    if (frame)
        cws_gpu_frame_put(&gpu->frames, frame);
    return frame != NULL;
}

/* No load or eviction is in flight and none can start: a launch waits for what will not come. */
static bool is_hopeless_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    return gpu->uses.running <= gpu->uses.stuck && gpu->drops.count == 0 && gpu->loads.count == 0 &&
           !cws_gpu_order_victim(&gpu->order, (struct cws_gpu_price){0}) && cws_gpu_spillable_locked(gpu) == 0 &&
           cws_gpu_provable_locked(gpu) == 0 &&
           cws_gpu_budget_attainable(&gpu->budget) + gpu->budget.of_class[CWS_CLASS_RESERVE] < bytes;
}

/* Evicts a weight that is not needed soon, for what nobody waits for. */
static bool drop_unhurried_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_price price = {.until = gpu->order.order.at + gpu->core.tuning->reserve_ahead_uses, .done = true};
    struct cws_gpu_extent *victim = cws_gpu_order_victim(&gpu->order, price);
    return victim && cws_gpu_drop_start_drops_lock(gpu, victim);
}

/* --- memory for weights ------------------------------------------------------------------------------------- */

/* Extents that want memory, in the order in which they get it. */
struct wants {
    unsigned count;
    uint32_t granules[16]; /* of the first of them */
    uint64_t bytes;
};

static void remove_want(struct wants *w, const struct cws_gpu_extent *x)
{
    w->count--;
    w->bytes -= cws_gpu_span(x);
}

static void add_want(struct wants *w, const struct cws_gpu_extent *x)
{
    if (w->count < sizeof w->granules / sizeof *w->granules)
        w->granules[w->count] = x->granules;
    w->count++;
    w->bytes += cws_gpu_span(x);
}

/* Is a frame of the last one's size about to come free, beside those for the others? */
static bool is_coming(const struct cws_gpu *gpu, const struct wants *w, const struct cws_gpu_extent *x)
{
    unsigned wanted = 0;
    for (unsigned i = 0; i < w->count && i < sizeof w->granules / sizeof *w->granules; i++)
        wanted += w->granules[i] == x->granules;
    return cws_gpu_drops_of(&gpu->drops, x->granules) >= wanted;
}

/* FULL: no memory of another size is given up for it, and its own size has none now. */
enum supply { SUPPLY_MOVED, SUPPLY_COMES, SUPPLY_FULL, SUPPLY_NONE };

/* A weight of x's size goes, whose frame will do as it is. NONE: there is none. */
static enum supply supply_of_size_drops_lock(struct cws_gpu *gpu, const struct cws_gpu_extent *x, uint64_t until)
{
    struct cws_gpu_price price = {.until = until, .granules = x->granules, .done = true};
    struct cws_gpu_extent *victim = cws_gpu_order_victim(&gpu->order, price);
    if (victim)
        return cws_gpu_drop_start_drops_lock(gpu, victim) ? SUPPLY_MOVED : SUPPLY_COMES;
    price.done = false;
    if ((until || !cws_gpu_order_has_waited(&gpu->order)) && cws_gpu_order_victim(&gpu->order, price))
        return SUPPLY_COMES; /* once its uses are done */
    return SUPPLY_NONE;
}

static uint64_t without(uint64_t bytes, uint64_t margin) { return bytes > margin ? bytes - margin : 0; }

/* One step towards memory for x, the last of w, whose next use is at the place `until` (0: a launch waits for it); no
 * frame of its size lies idle. A weight of the same size goes before any other, and ahead of its use nothing else does
 * if as many of its size have memory as the plan wants: a program whose rounds are alike makes no frames. */
static enum supply supply_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x, uint64_t until,
                                     const struct wants *w)
{
    struct cws_gpu_budget *b = &gpu->budget;
    uint64_t margin = until ? cws_gpu_budget_margin(b) : margin_locked(gpu);
    if ((until ? cws_gpu_budget_left_ahead(b) : without(cws_gpu_budget_left(b), margin)) >= cws_gpu_span(x))
        return find_frame_drops_lock(gpu, x->granules, margin) ? SUPPLY_MOVED : SUPPLY_NONE;
    if (is_coming(gpu, w, x))
        return SUPPLY_COMES;
    enum supply same = supply_of_size_drops_lock(gpu, x, until);
    if (same != SUPPLY_NONE)
        return same;
    if (until && !cws_gpu_order_may_grow(&gpu->order, x))
        return SUPPLY_FULL;
    uint64_t attainable = until ? cws_gpu_budget_attainable_ahead(b) : without(cws_gpu_budget_attainable(b), margin);
    if (attainable >= w->bytes)
        return find_frame_drops_lock(gpu, x->granules, margin) ? SUPPLY_MOVED : SUPPLY_NONE;
    if (attainable + gpu->drops.bytes >= w->bytes)
        return SUPPLY_COMES;
    struct cws_gpu_price price = {.until = until, .spare = true, .done = true};
    struct cws_gpu_extent *victim = cws_gpu_order_victim(&gpu->order, price);
    if (!victim && (until == 0 || x->order.keeper)) {
        price.spare = false;
        victim = cws_gpu_order_victim(&gpu->order, price);
    }
    if (!victim)
        return SUPPLY_NONE;
    return cws_gpu_drop_start_drops_lock(gpu, victim) ? SUPPLY_MOVED : SUPPLY_COMES;
}

/* --- what others wait for --------------------------------------------------------------------------------- */

/* The first that waits for room, which is an easy one: no more than weights go for it. */
static bool serve_easy_drops_lock(struct cws_gpu *gpu, uint64_t bytes)
{
    struct cws_gpu_budget *b = &gpu->budget;
    if (cws_gpu_budget_left(b) < bytes && cws_gpu_release_idle_drops_lock(gpu, bytes))
        return true;
    if (cws_gpu_budget_left(b) < bytes && margin_locked(gpu) > 0)
        return drop_for_drops_lock(gpu, cws_gpu_budget_left(b) + gpu->drops.bytes, bytes);
    cws_gpu_budget_serve(b, cws_gpu_budget_left(b) >= bytes);
    return true;
}

/* The first that waits for room. Whether something moved, and may move again. */
static bool serve_room_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_budget *b = &gpu->budget;
    const struct cws_gpu_room *room = b->rooms;
    if (!room)
        return false;
    if (room->easy)
        return serve_easy_drops_lock(gpu, room->bytes);
    uint64_t bytes = room->bytes, need = bytes + (room->to_pool ? 0 : margin_locked(gpu));
    bool moved = cws_gpu_budget_left(b) < need && cws_gpu_release_idle_drops_lock(gpu, need);
    if (cws_gpu_budget_left(b) < need)
        moved |= drop_for_drops_lock(gpu, cws_gpu_budget_left(b) + gpu->drops.bytes, need);
    if (cws_gpu_budget_left(b) < need) {
        if (!is_hopeless_locked(gpu, bytes))
            return moved;
        cws_gpu_loader_trim_drops_lock(gpu);
        if (cws_gpu_budget_left(b) < bytes && !is_hopeless_locked(gpu, bytes))
            return true;
    }
    cws_gpu_budget_serve(b, cws_gpu_budget_left(b) >= bytes); /* only this thread takes it off the list */
    return true;
}

/* Memory that is not paged (a pool, a graph) took more than room was made for: weights are evicted. */
static bool shrink_drops_lock(struct cws_gpu *gpu)
{
    uint64_t used = cws_gpu_budget_used(&gpu->budget), budget = gpu->budget.bytes;
    if (used <= budget)
        return false;
    return cws_gpu_release_idle_drops_lock(gpu, 1) || drop_for_drops_lock(gpu, gpu->drops.bytes, used - budget);
}

static void refuse_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    x->failed = CUDA_ERROR_OUT_OF_MEMORY;
    cws_gpu_changed_locked(&gpu->core);
}

/* There is room, and the driver gives no memory. True: a launch fails for that. */
static bool is_refused_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    if (cws_gpu_budget_left(&gpu->budget) < cws_gpu_span(x) + margin_locked(gpu) ||
        ++gpu->loader.refusals <= gpu->core.tuning->refusals_most)
        return false;
    cws_gpu_say(&gpu->core,
                "the driver refuses %llu MiB of device memory inside CODEC_VRAM_BUDGET: other processes may have it",
                (unsigned long long)(cws_gpu_span(x) >> 20));
    gpu->loader.refusals = 0;
    refuse_locked(gpu, x);
    return true;
}

/* Memory for an extent that a launch waits for, the last of w; no frame of its size lies idle. True: something moved,
 * and what is wanted has to be looked at again. */
static bool room_for_demand_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x, const struct wants *w)
{
    uint64_t bytes = cws_gpu_span(x);
    enum supply supply = supply_drops_lock(gpu, x, 0, w);
    gpu->loader.refusals = supply == SUPPLY_MOVED ? 0 : gpu->loader.refusals;
    if (supply == SUPPLY_MOVED || !cws_gpu_is_demanded(x) || is_refused_locked(gpu, x))
        return true;
    if (supply == SUPPLY_COMES)
        return false;
    uint64_t need = w->bytes + margin_locked(gpu);
    if (drop_for_drops_lock(gpu, cws_gpu_budget_attainable(&gpu->budget) + gpu->drops.bytes, need))
        return true;
    if (!is_hopeless_locked(gpu, bytes))
        return false;
    cws_gpu_loader_trim_drops_lock(gpu);
    if (cws_gpu_budget_left(&gpu->budget) < bytes && is_hopeless_locked(gpu, bytes))
        refuse_locked(gpu, x);
    return true;
}

static bool serve_demand_drops_lock(struct cws_gpu *gpu, bool *unmet)
{
    struct wants wants = {0};
    for (struct cws_list *l = gpu->ranges.wanted.next; l != &gpu->ranges.wanted; l = l->next) {
        struct cws_gpu_extent *x = CWS_LIST_OF(l, struct cws_gpu_extent, wanted);
        struct cws_gpu_range *r = x->range;
        if (!cws_extent_rests(x->state) || x->failed != CUDA_SUCCESS)
            continue;
        *unmet = true;
        if (gpu->loads.count == cws_gpu_loads_most(gpu))
            break;
        struct cws_gpu_frame *frame = cws_gpu_frame_take(&gpu->frames, x->granules);
        if (frame && x->state == CWS_EXTENT_SPILLED) {
            cws_gpu_spill_restore_drops_lock(gpu, x, frame);
            return true;
        }
        if (frame)
            return cws_gpu_load_start_locked(gpu, x, frame, true);
        add_want(&wants, x);
        cws_gpu_range_name_locked(r); /* the launch that waits for it may give up, and another thread may free it */
        bool again = room_for_demand_drops_lock(gpu, x, &wants);
        cws_gpu_range_unname_locked(gpu, r);
        if (again)
            return true;
    }
    if (!*unmet)
        cws_gpu_order_waits_end(&gpu->order);
    if (!*unmet && !gpu->budget.rooms)
        gpu->loader.margin_since_ns = 0;
    return false;
}

/* --- ahead ---------------------------------------------------------------------------------------------------- */

/* Loads what comes next, as far as there is memory or something that is needed later. Returns whether something moved;
 * *pending: more could be done once the device has come further. */
static bool serve_ahead_drops_lock(struct cws_gpu *gpu, bool *pending)
{
    const struct cws_tuning *t = gpu->core.tuning;
    struct wants wants = {0};
    unsigned looked = 0;
    bool full = false;
    if (!gpu->config.prefetch || !cws_gpu_budget_pages(&gpu->budget))
        return false;
    cws_gpu_order_walk(&gpu->order);
    for (struct cws_gpu_extent *x = NULL; wants.count < t->load_ahead && looked < t->load_look_at &&
                                          gpu->loads.count + t->load_spare < cws_gpu_loads_most(gpu);
         looked++) {
        x = cws_gpu_order_coming(&gpu->order, x);
        if (!x)
            break;
        if (x->state != CWS_EXTENT_BOUND || x->failed != CUDA_SUCCESS ||
            !cws_order_is_sure(&gpu->order.order, &x->order))
            continue;
        struct cws_gpu_frame *frame = cws_gpu_frame_take(&gpu->frames, x->granules);
        if (frame)
            return cws_gpu_load_start_locked(gpu, x, frame, false);
        add_want(&wants, x);
        enum supply supply = supply_drops_lock(gpu, x, x->order.next_at, &wants);
        if (supply == SUPPLY_MOVED) /* the lock was free meanwhile, and x may have ended */
            return true;
        if (supply == SUPPLY_NONE)
            break;                   /* and none for what is needed later */
        if (supply == SUPPLY_FULL) { /* what comes later may be of another size */
            remove_want(&wants, x);
            full = true;
        }
    }
    *pending = wants.count > 0 || full;
    return false;
}

/* Makes memory free that the program is expected to want. Keepers are chosen beside it. */
static bool make_ready_drops_lock(struct cws_gpu *gpu)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    return cws_gpu_budget_attainable(b) + gpu->drops.bytes < b->expected && gpu->config.prefetch &&
           drop_unhurried_drops_lock(gpu);
}

/* A pool took of the margin: it is made anew. */
static bool restore_margin_drops_lock(struct cws_gpu *gpu)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    uint64_t margin = cws_gpu_budget_margin(b);
    if (cws_gpu_budget_left(b) >= margin)
        return false;
    return cws_gpu_release_idle_drops_lock(gpu, margin) ||
           (cws_gpu_budget_left(b) + gpu->drops.bytes < margin && drop_unhurried_drops_lock(gpu));
}

/* --- waiting --------------------------------------------------------------------------------------------------- */

/* Something of ours runs on the device: asks for it, without the lock, at growing intervals. No longer than it is worth
 * waiting before the program's streams are looked at again. */
static void wait_for_device_drops_lock(struct cws_gpu *gpu)
{
    const struct cws_tuning *t = gpu->core.tuning;
    bool ready = false;
    for (uint64_t ns = t->wait_first_ns, sum = 0; !ready && !gpu->core.work_due && sum < t->wait_together_ns;
         ns = ns < t->wait_most_ns ? ns + ns / 2 : ns) {
        cws_gpu_work_wait_drops_lock(&gpu->core, ns);
        sum += ns;
        if (gpu->core.work_due)
            break;
        cws_gpu_unlock(&gpu->core);
        ready = cws_gpu_load_is_ready(gpu) || cws_gpu_drop_is_ready(gpu);
        cws_gpu_lock(&gpu->core);
    }
}

struct patience {
    uint64_t ns;    /* of the next wait */
    uint64_t at;    /* place in the order at the last one */
    unsigned waits; /* since then */
};

/* Nothing can be done now. `pending`: it could, when the program's streams have come further. */
static void be_patient_drops_lock(struct cws_gpu *gpu, struct patience *p, bool pending)
{
    const struct cws_tuning *t = gpu->core.tuning;
    uint64_t at = gpu->order.order.at;
    if (gpu->staging.busy || gpu->drops.count) {
        wait_for_device_drops_lock(gpu);
        return;
    }
    p->waits = at == p->at ? p->waits + 1 : 0;
    p->at = at;
    bool waited_for = gpu->budget.rooms || gpu->uses.waiting || gpu->strict.due || gpu->proofs.asked ||
                      cws_gpu_resize_waits(&gpu->resize);
    if (waited_for || gpu->core.stop || (pending && p->waits < t->patience_waits)) {
        p->ns = p->ns == 0                    ? t->patience_first_ns
                : p->ns < t->patience_most_ns ? p->ns + p->ns / 2
                                              : t->patience_most_ns;
        gpu->loader.starved = waited_for;
        cws_gpu_work_wait_drops_lock(&gpu->core, p->ns);
        gpu->loader.starved = false;
        return;
    }
    /* The program rests, or there is nothing to load for a while. */
    if (gpu->config.prefetch && cws_gpu_budget_pages(&gpu->budget))
        cws_gpu_order_wake_after(&gpu->order, pending ? 1 : t->wake_uses);
    cws_gpu_work_wait_drops_lock(&gpu->core, UINT64_MAX);
    cws_gpu_order_wake_after(&gpu->order, UINT64_MAX);
    p->waits = 0;
}

/* --- the thread --------------------------------------------------------------------------------------------------- */

/* Nothing is under way, and nobody waits. */
static bool is_at_rest_locked(const struct cws_gpu *gpu)
{
    return gpu->loads.count == 0 && gpu->drops.count == 0 && !gpu->staging.busy && !gpu->budget.rooms &&
           !gpu->proofs.asked && !gpu->strict.due && !cws_gpu_resize_waits(&gpu->resize);
}

/* One step of each kind. Whether something moved. */
static bool step_drops_lock(struct cws_gpu *gpu, bool *pending)
{
    bool unmet = false, moved = shrink_drops_lock(gpu), due = cws_gpu_look_is_due_locked(gpu);
    cws_gpu_reserve_age_locked(gpu);
    moved |= cws_gpu_strict_step_drops_lock(gpu);
    moved |= cws_gpu_resize_step_drops_lock(gpu);
    cws_gpu_pools_trim_slack_drops_lock(&gpu->pools);
    moved |= serve_room_drops_lock(gpu);
    moved |= serve_demand_drops_lock(gpu, &unmet);
    moved |= cws_gpu_prove_asked_drops_lock(gpu);
    if (!gpu->budget.rooms && !unmet && !gpu->proofs.asked)
        moved |= restore_margin_drops_lock(gpu) || (!gpu->resize.asleep && make_ready_drops_lock(gpu)) ||
                 (!gpu->resize.asleep && !due && serve_ahead_drops_lock(gpu, pending));
    if (!moved && !unmet && is_at_rest_locked(gpu))
        moved = cws_gpu_look_drops_lock(gpu);
    return moved;
}

static void *run(void *arg)
{
    struct cws_gpu *gpu = arg;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    struct patience patience = {0};
    prctl(PR_SET_NAME, "codecllm-loader");
    prctl(PR_SET_TIMERSLACK, 1000); /* ns; else a short wait takes 50 us longer */
    gpu->core.driver->context_set(gpu->core.context);
    gpu->core.driver->capture_mode(&mode); /* the program may be capturing; what happens here is none of it */
    cws_gpu_lock(&gpu->core);
    for (;;) {
        bool pending = false;
        cws_gpu_streams_look_again(&gpu->streams);
        cws_gpu_work_begin_locked(&gpu->core);
        bool claimed = cws_gpu_host_unclaim(&gpu->sources); /* a spill that is still to be made claims it again */
        bool moved = cws_gpu_drops_reap_drops_lock(gpu);
        moved |= cws_gpu_loads_reap_drops_lock(gpu);
        if (gpu->core.stop && gpu->loads.count == 0 && gpu->drops.count == 0)
            break;
        if (gpu->core.stop) /* the fetchers are gone */
            cws_gpu_loads_fail_locked(gpu);
        else
            moved |= step_drops_lock(gpu, &pending);
        moved |= cws_gpu_loads_issue_drops_lock(gpu);
        if (claimed)
            cws_gpu_host_unclaimed(&gpu->sources);
        if (moved)
            gpu->loader.margin_since_ns = 0;
        if (moved || cws_gpu_trace_idle_drops_lock(gpu))
            patience.ns = 0;
        else
            be_patient_drops_lock(gpu, &patience, pending);
    }
    cws_gpu_unlock(&gpu->core);
    return NULL;
}

int cws_gpu_loader_start(struct cws_gpu *gpu, struct cws_error *err)
{
    int code = pthread_create(&gpu->loader.thread, NULL, run, gpu);
    gpu->loader.started = code == 0;
    return code ? cws_fail_errno(err, code, "starting threads for paging to the device") : 0;
}

void cws_gpu_loader_join(struct cws_gpu *gpu)
{
    if (gpu->loader.started)
        pthread_join(gpu->loader.thread, NULL);
    gpu->loader.started = false;
}
