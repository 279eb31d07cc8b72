/* resize.c - another budget while the program runs, and sleep. */
#include "gpu.h"

/* Times as long as a launch waits for a victim: for what is in use while no stream comes further; for less to be used
 * while they do; for what is in use when all else was dropped for sleep. */
enum { STANDS = 1000, SHRINKS = 5000, SLEEPS = 500 };
#define BYTES_MOST (UINT64_MAX / 4)

static unsigned long long mib(uint64_t bytes) { return bytes >> 20; }
static unsigned long long mib_up(uint64_t bytes) { return (bytes + (1 << 20) - 1) >> 20; }

/* --- what can be had -------------------------------------------------------------------------------------- */

/* What cannot be dropped, with the bytes of weights that stay where they are, or that a launch names at a time: the
 * least budget with which launches like those before do not fail. `spill`: less what may go to host memory. */
static uint64_t least_locked(const struct cws_gpu *gpu, bool spill)
{
    uint64_t pinned = 0, bytes = cws_gpu_budget_undroppable(&gpu->budget), away = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        pinned += x->state == CWS_EXTENT_RESIDENT && x->range->pinned ? cws_gpu_span(x) : 0;
    bytes += pinned > gpu->sets.largest ? pinned : gpu->sets.largest;
    if (spill)
        away = cws_gpu_spillable_locked(gpu);
    bytes = bytes > away ? bytes - away : 0;
    return bytes > 2 * gpu->budget.ring ? bytes : 2 * gpu->budget.ring;
}

/* A weight whose uses are done, whatever the order says of it; NULL: none. *waits: there is one that is in use. */
static struct cws_gpu_extent *weight_locked(struct cws_gpu *gpu, bool *waits)
{
    *waits = false;
    for (struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        if (x->state != CWS_EXTENT_RESIDENT || x->range->pinned)
            continue;
        if (!x->holds && cws_gpu_users_done(&gpu->streams, &x->users, true))
            return x;
        *waits = true;
    }
    return NULL;
}

/* Begins to look for how long nothing moves. */
static void watch(struct cws_gpu *gpu)
{
    struct cws_gpu_resize *r = &gpu->resize;
    r->bytes = cws_gpu_budget_used(&gpu->budget);
    r->progress = gpu->streams.progress;
    r->fell_ns = r->moved_ns = cws_gpu_now_ns();
}

/* For `stands` nothing has moved, or for `shrinks` no less came to be used. */
static bool has_waited(struct cws_gpu *gpu, unsigned stands, unsigned shrinks)
{
    struct cws_gpu_resize *r = &gpu->resize;
    uint64_t now = cws_gpu_now_ns(), used = cws_gpu_budget_used(&gpu->budget);
    uint64_t unit = gpu->core.tuning->victim_wait_ns;
    if (used < r->bytes)
        r->fell_ns = r->moved_ns = now;
    if (r->progress != gpu->streams.progress || gpu->drops.count || gpu->loads.count)
        r->moved_ns = now;
    r->bytes = used;
    r->progress = gpu->streams.progress;
    return now - r->moved_ns > stands * unit || now - r->fell_ns > shrinks * unit;
}

/* Nothing comes, and nothing can be had by waiting. */
static bool is_over_locked(struct cws_gpu *gpu, bool in_use)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    bool threads = gpu->uses.waiting || gpu->uses.running > gpu->uses.stuck;
    if (threads || in_use || gpu->drops.count || gpu->loads.count || b->rooms || b->of_class[CWS_CLASS_IDLE] ||
        b->of_class[CWS_CLASS_RESERVE])
        return false;
    return cws_gpu_spillable_locked(gpu) == 0 && cws_gpu_provable_locked(gpu) == 0;
}

/* --- in the loader ---------------------------------------------------------------------------------------- */

static void set_locked(struct cws_gpu *gpu, uint64_t bytes, uint64_t was)
{
    cws_gpu_budget_set(&gpu->budget, bytes, was);
    cws_gpu_pools_budget_changed(&gpu->pools);
}

static void answer_locked(struct cws_gpu *gpu, uint64_t least)
{
    gpu->resize.stage = CWS_RESIZE_NONE;
    gpu->resize.least = least;
    cws_gpu_changed_locked(&gpu->core);
}

static bool begin_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_resize *r = &gpu->resize;
    struct cws_gpu_budget *b = &gpu->budget;
    if (b->rooms) /* what was promised inside the old budget comes first */
        return false;
    cws_gpu_pools_count(&gpu->pools);
    if (cws_gpu_budget_used(b) > r->to)
        cws_gpu_loader_trim_drops_lock(gpu);
    if (b->rooms)
        return true;
    if (least_locked(gpu, true) > r->to) {
        answer_locked(gpu, least_locked(gpu, false));
        return true;
    }
    set_locked(gpu, r->to, b->bytes);
    r->stage = CWS_RESIZE_SHRINKING;
    watch(gpu);
    return true;
}

/* The loader evicts as for any budget that is exceeded; here goes what it leaves. */
static bool shrink_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_budget *b = &gpu->budget;
    bool in_use = false;
    if (cws_gpu_budget_used(b) <= b->bytes) {
        set_locked(gpu, b->bytes, 0);
        answer_locked(gpu, 0);
        return true;
    }
    if (gpu->drops.count)
        return false;
    if (!cws_gpu_order_victim(&gpu->order, (struct cws_gpu_price){.done = false})) {
        struct cws_gpu_extent *x = weight_locked(gpu, &in_use);
        if (x)
            return cws_gpu_drop_start_drops_lock(gpu, x);
    } else {
        in_use = true;
    }
    if (!is_over_locked(gpu, in_use) && !has_waited(gpu, STANDS, SHRINKS))
        return false;
    uint64_t least = least_locked(gpu, false), used = cws_gpu_budget_used(b);
    set_locked(gpu, b->was, 0);
    answer_locked(gpu, least > used ? least : used);
    return true;
}

static bool sleep_drops_lock(struct cws_gpu *gpu)
{
    bool in_use = false;
    struct cws_gpu_extent *x = gpu->resize.asleep ? weight_locked(gpu, &in_use) : NULL;
    if (x)
        return cws_gpu_drop_start_drops_lock(gpu, x);
    if (gpu->resize.asleep) {
        if (gpu->drops.count || gpu->loads.count)
            return false;
        in_use |= !cws_gpu_reserve_trim_drops_lock(gpu, 0);
        cws_gpu_release_idle_drops_lock(gpu, UINT64_MAX);
        if (in_use && !has_waited(gpu, SLEEPS, SLEEPS))
            return false;
        cws_gpu_loader_trim_drops_lock(gpu);
    }
    answer_locked(gpu, 0); /* also if the program woke up meanwhile */
    return true;
}

bool cws_gpu_resize_step_drops_lock(struct cws_gpu *gpu)
{
    switch (gpu->resize.stage) {
    case CWS_RESIZE_ASKED: return begin_drops_lock(gpu);
    case CWS_RESIZE_SHRINKING: return shrink_drops_lock(gpu);
    case CWS_RESIZE_SLEEP: return sleep_drops_lock(gpu);
    default: return false;
    }
}

/* --- for any thread ----------------------------------------------------------------------------------------- */

/* One thread at a time, which may even be inside a use. Its last launch is settled. */
static void enter_drops_lock(struct cws_gpu *gpu)
{
    while (gpu->resize.taken)
        cws_gpu_changed_wait_drops_lock(&gpu->core);
    gpu->resize.taken = true;
    cws_gpu_streams_settle(&gpu->streams);
    cws_gpu_uses_stuck_locked(gpu, true);
}

static void leave_locked(struct cws_gpu *gpu)
{
    cws_gpu_uses_stuck_locked(gpu, false);
    gpu->resize.taken = false;
    cws_gpu_changed_locked(&gpu->core);
    cws_gpu_wake_locked(&gpu->core);
}

static void ask_drops_lock(struct cws_gpu *gpu, enum cws_gpu_resize_stage stage)
{
    gpu->resize.stage = stage;
    cws_gpu_wake_locked(&gpu->core);
    while (gpu->resize.stage != CWS_RESIZE_NONE && !gpu->core.stop)
        cws_gpu_changed_wait_drops_lock(&gpu->core);
}

static int refuse_locked(const struct cws_gpu *gpu, uint64_t bytes, struct cws_error *err)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    return cws_fail(
        err, CWS_E_BUDGET,
        "a budget of %llu MiB cannot be met now: activations and what else cannot be dropped take %llu MiB, "
        "staging %llu MiB, the driver %llu MiB, and a launch needs %llu MiB of weights; the least that "
        "is sure to do now is %llu MiB; it stays at %llu MiB",
        mib(bytes), mib(b->of_class[CWS_CLASS_FIXED]), mib(b->ring), mib(b->plain + b->pools), mib(gpu->sets.largest),
        mib_up(gpu->resize.least), mib(b->bytes));
}

int cws_gpu_set_budget(struct cws_gpu *gpu, uint64_t bytes, struct cws_error *err)
{
    int code = 0;
    if (gpu->core.dead)
        return cws_fail(err, CWS_E_BUSY, "a forked process cannot change the budget of its parent's GPU");
    bytes = bytes < BYTES_MOST ? bytes : BYTES_MOST;
    cws_gpu_lock(&gpu->core);
    enter_drops_lock(gpu);
    if (bytes >= gpu->budget.bytes) {
        set_locked(gpu, bytes, 0);
    } else {
        for (uint64_t least; (least = least_locked(gpu, true)) > bytes;) /* what kernels put together may be weights */
            if (!cws_gpu_prove_wait_drops_lock(gpu, least - bytes + gpu->budget.bytes))
                break;
        gpu->resize.to = bytes;
        gpu->resize.least = 0;
        ask_drops_lock(gpu, CWS_RESIZE_ASKED);
        code = gpu->resize.least ? refuse_locked(gpu, bytes, err) : 0;
    }
    leave_locked(gpu);
    cws_gpu_unlock(&gpu->core);
    return code;
}

uint64_t cws_gpu_least_budget(struct cws_gpu *gpu)
{
    cws_gpu_lock(&gpu->core);
    uint64_t least = least_locked(gpu, false);
    cws_gpu_unlock(&gpu->core);
    return least;
}

void cws_gpu_sleep(struct cws_gpu *gpu)
{
    if (gpu->core.dead)
        return;
    cws_gpu_lock(&gpu->core);
    enter_drops_lock(gpu);
    gpu->resize.asleep = true;
    watch(gpu);
    ask_drops_lock(gpu, CWS_RESIZE_SLEEP);
    leave_locked(gpu);
    cws_gpu_unlock(&gpu->core);
}

void cws_gpu_wake_up(struct cws_gpu *gpu)
{
    if (gpu->core.dead)
        return;
    cws_gpu_lock(&gpu->core);
    gpu->resize.asleep = false;
    cws_gpu_wake_locked(&gpu->core);
    cws_gpu_unlock(&gpu->core);
}

/* --- the check ------------------------------------------------------------------------------------------------ */

const char *cws_gpu_resize_check(const struct cws_gpu *gpu)
{
    if (gpu->resize.stage != CWS_RESIZE_NONE && !gpu->resize.taken)
        return "resize: nobody waits for it";
    if ((gpu->budget.was != 0) != (gpu->resize.stage == CWS_RESIZE_SHRINKING))
        return "resize: the old budget is kept, and nobody makes room, or the other way round";
    return NULL;
}
