/* loader.c - the loader thread. It decides which range is loaded and which is evicted: first for launches that wait,
 * then ahead of them. */
#include "state.h"

#include <sys/prctl.h>
#include <time.h>

/* Bytes of the budget that are not used. */
static uint64_t free_bytes_locked(const struct cws_gpu *gpu)
{
    uint64_t used = cws_gpu_used_locked(gpu);
    return used < gpu->config.budget_bytes ? gpu->config.budget_bytes - used : 0;
}

/* slack: bytes that every pool may keep unused. */
static void trim_to_locked(struct cws_gpu *gpu, uint64_t slack)
{
    struct {
        CUmemoryPool handle;
        uint64_t keep;
    } pools[sizeof gpu->pools / sizeof *gpu->pools];
    unsigned count = gpu->pool_count;
    for (unsigned i = 0; i < count; i++) {
        pools[i].handle = gpu->pools[i].handle;
        pools[i].keep = slack ? gpu->pools[i].reserved - gpu->pools[i].unused + slack : 0;
    }
    pthread_mutex_unlock(&gpu->lock);
    if (slack == 0 && gpu->config.release)
        gpu->config.release(gpu);
    for (unsigned i = 0; i < count; i++)
        gpu->driver->pool_trim(pools[i].handle, pools[i].keep);
    pthread_mutex_lock(&gpu->lock);
    cws_gpu_recount_pools_locked(gpu);
}

static void trim_pools_locked(struct cws_gpu *gpu) { trim_to_locked(gpu, 0); }

/* While weights are paged, memory that pools have and do not use (PyTorch tells them to keep all that they ever had) is
 * better used for weights. Where it does not come free, or is taken again soon, that is tried seldom. */
static void trim_slack_locked(struct cws_gpu *gpu)
{
    const uint64_t first_ns = 100000000, most_ns = 60000000000, keep = (uint64_t)8 << 20, much = (uint64_t)24 << 20;
    uint64_t now = cws_gpu_now_ns(), unused = 0;
    if (now < gpu->trim_at_ns || gpu->resident_bytes >= gpu->bound_bytes)
        return;
    cws_gpu_recount_pools_locked(gpu);
    for (unsigned i = 0; i < gpu->pool_count; i++)
        unused += gpu->pools[i].unused;
    gpu->trim_wait_ns = gpu->trim_wait_ns ? gpu->trim_wait_ns : first_ns;
    if (unused >= much) {
        trim_to_locked(gpu, keep);
        gpu->trim_wait_ns = gpu->trim_wait_ns < most_ns / 4 ? 4 * gpu->trim_wait_ns : most_ns;
    }
    gpu->trim_at_ns = now + gpu->trim_wait_ns;
}

/* Evicts one range if `have`, the bytes of evictions in flight that no load has claimed, is less than `need`. True:
 * something was evicted, or its eviction started; it may have dropped `lock`. */
static bool drop_for_locked(struct cws_gpu *gpu, uint64_t until, uint64_t have, uint64_t need)
{
    if (have >= need)
        return false;
    struct cws_gpu_range *victim = cws_gpu_order_victim_locked(gpu, until, true);
    if (victim)
        return cws_gpu_drop_start_locked(gpu, victim);
    /* What has to be copied goes last: when nothing else is left. */
    return until == 0 && gpu->drop_count == 0 && gpu->load_count == 0 && !cws_gpu_order_victim_locked(gpu, 0, false) &&
           cws_gpu_spill_one_locked(gpu);
}

static struct cws_gpu_frame *frame_now_locked(struct cws_gpu *gpu, uint32_t granules)
{
    uint64_t bytes = (uint64_t)granules * CWS_GPU_GRANULE;
    struct cws_gpu_frame *frame = cws_gpu_frame_idle_locked(gpu, granules);
    if (frame)
        return frame;
    if (free_bytes_locked(gpu) < bytes && free_bytes_locked(gpu) + gpu->mapped_idle_bytes >= bytes)
        cws_gpu_release_idle_locked(gpu, bytes);
    if (free_bytes_locked(gpu) < bytes)
        return NULL;
    gpu->granted_bytes += bytes;
    return cws_gpu_frame_create_locked(gpu, granules);
}

/* No load or eviction is in flight and none can start: a launch waits for what will not come. */
static bool is_hopeless_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    return gpu->running_uses <= gpu->stuck_uses && gpu->drop_count == 0 && gpu->load_count == 0 &&
           !cws_gpu_order_victim_locked(gpu, 0, false) && cws_gpu_spillable_locked(gpu) == 0 &&
           free_bytes_locked(gpu) + gpu->mapped_idle_bytes < bytes;
}

static bool serve_rooms_locked(struct cws_gpu *gpu)
{
    bool moved = false;
    while (gpu->rooms) {
        struct cws_gpu_room *room = gpu->rooms;
        if (free_bytes_locked(gpu) < room->bytes)
            moved |= cws_gpu_release_idle_locked(gpu, room->bytes);
        if (free_bytes_locked(gpu) < room->bytes)
            moved |= drop_for_locked(gpu, 0, free_bytes_locked(gpu) + gpu->drop_bytes, room->bytes);
        if (free_bytes_locked(gpu) < room->bytes) {
            if (!is_hopeless_locked(gpu, room->bytes))
                return moved;
            trim_pools_locked(gpu);
            if (free_bytes_locked(gpu) < room->bytes) {
                if (!is_hopeless_locked(gpu, room->bytes))
                    return true;
                room->refused = true;
            }
        }
        if (!room->refused) {
            gpu->granted_bytes += room->bytes;
            room->granted = true;
        }
        gpu->rooms = room->next;
        uint64_t used = cws_gpu_used_locked(gpu);
        gpu->used_peak = used > gpu->used_peak ? used : gpu->used_peak;
        pthread_cond_broadcast(&gpu->changed);
        moved = true;
    }
    return moved;
}

/* Memory that is not paged (a pool, a graph) took more than room was made for: weights are evicted. */
static bool shrink_locked(struct cws_gpu *gpu)
{
    uint64_t used = cws_gpu_used_locked(gpu), budget = gpu->config.budget_bytes;
    if (used <= budget)
        return false;
    return cws_gpu_release_idle_locked(gpu, 1) || drop_for_locked(gpu, 0, gpu->drop_bytes, used - budget);
}

/* Memory for a range that a launch waits for; no frame of its size lies idle. True: something moved, and what is wanted
 * has to be looked at again. `wanted`: bytes, with those before it. Drops `lock`. */
static bool room_for_demand_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, uint64_t wanted)
{
    enum { REFUSALS = 50 };
    struct cws_gpu_frame *frame = frame_now_locked(gpu, r->granules);
    gpu->refusals = frame ? 0 : gpu->refusals;
    if (frame)
        cws_gpu_frame_put_idle_locked(gpu, frame);
    if (frame || !r->demanded)
        return true;
    /* there is room, and the driver gives no memory */
    if (free_bytes_locked(gpu) >= cws_gpu_span(r) && ++gpu->refusals > REFUSALS) {
        cws_gpu_say(
            gpu, "the driver refuses %llu MiB of device memory inside CODEC_VRAM_BUDGET: other processes may have it",
            (unsigned long long)(cws_gpu_span(r) >> 20));
        gpu->refusals = 0;
        r->failed = CUDA_ERROR_OUT_OF_MEMORY;
        pthread_cond_broadcast(&gpu->changed);
        return true;
    }
    if (drop_for_locked(gpu, 0, free_bytes_locked(gpu) + gpu->mapped_idle_bytes + gpu->drop_bytes, wanted))
        return true;
    if (!is_hopeless_locked(gpu, cws_gpu_span(r)))
        return false;
    trim_pools_locked(gpu);
    if (free_bytes_locked(gpu) < cws_gpu_span(r) && is_hopeless_locked(gpu, cws_gpu_span(r))) {
        r->failed = CUDA_ERROR_OUT_OF_MEMORY;
        pthread_cond_broadcast(&gpu->changed);
    }
    return true;
}

static bool serve_demand_locked(struct cws_gpu *gpu, bool *unmet)
{
    uint64_t wanted = 0;
    for (struct cws_list *l = gpu->wanted.next; l != &gpu->wanted; l = l->next) {
        struct cws_gpu_range *r = CWS_LIST_OF(l, struct cws_gpu_range, wanted);
        if ((r->state != CWS_RANGE_BOUND && r->state != CWS_RANGE_SPILLED) || r->failed != CUDA_SUCCESS)
            continue;
        *unmet = true;
        if (gpu->load_count == CWS_GPU_LOADS)
            break;
        struct cws_gpu_frame *frame = cws_gpu_frame_idle_locked(gpu, r->granules);
        if (frame && r->state == CWS_RANGE_SPILLED) {
            cws_gpu_spill_restore_locked(gpu, r, frame);
            return true;
        }
        if (frame)
            return cws_gpu_load_start_locked(gpu, r, frame, true);
        wanted += cws_gpu_span(r);
        r->named++; /* the launch that waits for it may give up, and another thread may free it */
        bool again = room_for_demand_locked(gpu, r, wanted);
        cws_gpu_range_unname_locked(gpu, r);
        if (again)
            return true;
    }
    if (!*unmet)
        gpu->waited_since_ns = 0;
    return false;
}

/* Loads what comes next, as far as there is memory or something that is needed later. Returns whether something moved;
 * *pending: more could be done once the device has come further. */
static bool serve_ahead_locked(struct cws_gpu *gpu, bool *pending)
{
    enum { AHEAD = 6, LOOK_AT = 64 };
    uint64_t wanted = 0;
    unsigned seen = 0, looked = 0;
    if (!gpu->config.prefetch || gpu->resident_bytes >= gpu->bound_bytes)
        return false;
    cws_gpu_order_walk_locked(gpu);
    for (struct cws_gpu_range *r = NULL; seen < AHEAD && looked < LOOK_AT && gpu->load_count + 2 < CWS_GPU_LOADS;
         looked++) {
        r = cws_gpu_order_coming_locked(gpu, r);
        if (!r)
            break;
        if (r->state != CWS_RANGE_BOUND || r->failed != CUDA_SUCCESS || !cws_order_is_sure(&gpu->order, &r->order))
            continue;
        seen++;
        struct cws_gpu_frame *frame = cws_gpu_frame_idle_locked(gpu, r->granules);
        if (frame)
            return cws_gpu_load_start_locked(gpu, r, frame, false);
        uint64_t free_or_idle = free_bytes_locked(gpu) + gpu->mapped_idle_bytes;
        wanted += cws_gpu_span(r);
        if (free_or_idle >= wanted) {
            frame = frame_now_locked(gpu, r->granules);
            *pending = !frame;
            if (frame) /* the lock was free, and r may have ended: look again */
                cws_gpu_frame_put_idle_locked(gpu, frame);
            return frame != NULL;
        }
        if (free_or_idle + gpu->drop_bytes >= wanted)
            continue;
        struct cws_gpu_range *victim = cws_gpu_order_victim_locked(gpu, r->order.next_at, true);
        if (!victim)
            break; /* and none for what is needed later */
        if (cws_gpu_drop_start_locked(gpu, victim))
            return true;
    }
    *pending = seen > 0;
    return false;
}

/* Waits until `work` is signalled, but no longer than this. */
static void wait_locked(struct cws_gpu *gpu, uint64_t ns)
{
    uint64_t at = cws_gpu_now_ns() + ns;
    const struct timespec until = {.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)};
    if (!gpu->work_due)
        pthread_cond_timedwait(&gpu->work, &gpu->lock, &until);
}

/* Something of ours runs on the device: asks for it, without the lock, at growing intervals. No longer than it is worth
 * waiting before the program's streams are looked at again. */
static void wait_for_device_locked(struct cws_gpu *gpu)
{
    enum { FIRST_NS = 20000, MOST_NS = 60000, TOGETHER_NS = 200000 };
    bool ready = false;
    for (uint64_t ns = FIRST_NS, sum = 0; !ready && !gpu->work_due && sum < TOGETHER_NS;
         ns = ns < MOST_NS ? ns + ns / 2 : ns) {
        wait_locked(gpu, ns);
        sum += ns;
        if (gpu->work_due)
            break;
        pthread_mutex_unlock(&gpu->lock);
        ready = cws_gpu_load_is_ready(gpu) || cws_gpu_drop_is_ready(gpu);
        pthread_mutex_lock(&gpu->lock);
    }
}

struct patience {
    uint64_t ns;    /* of the next wait */
    uint64_t at;    /* place in the order at the last one */
    unsigned waits; /* since then */
};

/* Nothing can be done now. `pending`: it could, when the program's streams have come further; they can only be
 * asked. */
static void be_patient_locked(struct cws_gpu *gpu, struct patience *p, bool pending)
{
    enum { FIRST_NS = 20000, MOST_NS = 200000, WAITS = 500 };
    if (gpu->slots_busy || gpu->drop_count) {
        wait_for_device_locked(gpu);
        return;
    }
    p->waits = gpu->order.at == p->at ? p->waits + 1 : 0;
    p->at = gpu->order.at;
    if (gpu->rooms || gpu->waiting || gpu->stop || (pending && p->waits < WAITS)) {
        p->ns = p->ns == 0 ? FIRST_NS : p->ns < MOST_NS ? p->ns + p->ns / 2 : MOST_NS;
        gpu->starved = gpu->rooms || gpu->waiting;
        wait_locked(gpu, p->ns);
        gpu->starved = false;
        return;
    }
    /* The program rests, or there is nothing to load for a while. */
    if (gpu->config.prefetch && gpu->resident_bytes < gpu->bound_bytes)
        gpu->wake_at = gpu->order.at + (pending ? 1 : 8);
    while (!gpu->work_due)
        pthread_cond_wait(&gpu->work, &gpu->lock);
    gpu->wake_at = UINT64_MAX;
    p->waits = 0;
}

void *cws_gpu_loader_main(void *arg)
{
    struct cws_gpu *gpu = arg;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    struct patience patience = {0};
    prctl(PR_SET_NAME, "codecllm-loader");
    prctl(PR_SET_TIMERSLACK, 1000); /* ns; else a short wait takes 50 us longer */
    gpu->driver->context_set(gpu->context);
    gpu->driver->capture_mode(&mode); /* the program may be capturing; what happens here is none of it */
    pthread_mutex_lock(&gpu->lock);
    for (;;) {
        bool pending = false, claimed = gpu->host_claimed != 0;
        gpu->look_round++;
        gpu->work_due = false;
        gpu->host_claimed = 0; /* a spill that is still to be made claims it again */
        bool moved = cws_gpu_drops_reap_locked(gpu);
        moved |= cws_gpu_loads_reap_locked(gpu);
        if (gpu->stop && gpu->load_count == 0 && gpu->drop_count == 0)
            break;
        for (unsigned i = 0; gpu->stop && i < gpu->load_count; i++)
            gpu->loads[i].failed = true; /* the fetchers are gone */
        if (!gpu->stop) {
            moved |= shrink_locked(gpu);
            moved |= cws_gpu_strict_drop_locked(gpu);
            trim_slack_locked(gpu);
            moved |= serve_rooms_locked(gpu);
            bool unmet = false;
            moved |= serve_demand_locked(gpu, &unmet);
            if (!gpu->rooms && !unmet)
                moved |= serve_ahead_locked(gpu, &pending);
        }
        moved |= cws_gpu_loads_issue_locked(gpu);
        if (claimed && !gpu->host_claimed)
            pthread_cond_signal(&gpu->fetch);
        if (moved || (gpu->trace.anchor && cws_gpu_trace_idle_locked(gpu))) {
            patience.ns = 0;
            continue;
        }
        be_patient_locked(gpu, &patience, pending);
    }
    pthread_mutex_unlock(&gpu->lock);
    return NULL;
}
