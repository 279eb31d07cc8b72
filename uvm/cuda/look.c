/* look.c - weights among what the program made, found while the loader rests. */
#include "gpu.h"

enum {
    TIMES_MOST = 16, /* looked at in vain: it is again 2^16 launches after its last use */
    STEP_MOST = 512,
};

void cws_gpu_look_filled_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    gpu->looks.filled = gpu->uses.begun + 1;
    if (x)
        x->look.early = true;
}

void cws_gpu_look_made_locked(const struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    uint64_t filled = gpu->looks.filled;
    x->look = (struct cws_gpu_look){
        .made = gpu->uses.begun,
        .made_at = gpu->order.order.at,
        .early = filled && gpu->uses.begun + 1 - filled < gpu->core.tuning->look_new_uses,
    };
}

/* --- which ------------------------------------------------------------------------------------------------ */

/* rest: places that an allocation must outlive, where it was not made while the program loaded. */
static bool is_candidate(const struct cws_gpu *gpu, const struct cws_gpu_extent *x, uint64_t rest)
{
    const struct cws_gpu_look *look = &x->look;
    if ((x->state != CWS_EXTENT_ANONYMOUS && x->state != CWS_EXTENT_DIRTY) || x->holds || x->range->pinned ||
        x->range->freed || cws_gpu_is_demanded(x) || look->used == x->used + 1 || x->bytes < CWS_GPU_RANGE_MIN)
        return false;
    if (gpu->uses.begun - x->used + 1 < (uint64_t)1 << look->times)
        return false;
    return look->early || x->state == CWS_EXTENT_DIRTY || gpu->order.order.at - look->made_at >= rest;
}

/* The one that was used longest ago, of those whose uses are done. */
static struct cws_gpu_extent *choose_locked(struct cws_gpu *gpu)
{
    const struct cws_tuning *t = gpu->core.tuning;
    uint64_t rest = cws_gpu_order_rounds(&gpu->order, t->look_rounds, t->look_rounds * t->spill_unused_long);
    struct cws_gpu_extent *best = NULL;
    for (struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        if (is_candidate(gpu, x, rest) && (!best || x->used < best->used) &&
            cws_gpu_users_done(&gpu->streams, &x->users, true))
            best = x;
    return best;
}

/* A search found nothing: it is the last one for some uses, and for a while where they come fast. */
static void put_off_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_looks *l = &gpu->looks;
    const struct cws_tuning *t = gpu->core.tuning;
    uint64_t now = cws_gpu_now_ns(), since = now - l->searched_ns;
    if (since < t->look_vain_ns && l->step <= STEP_MOST / 2)
        l->step *= 2;
    else if (since > 2 * t->look_vain_ns)
        l->step /= 2;
    l->step = l->step > t->look_uses ? l->step : t->look_uses;
    l->searched_ns = now;
    l->next = l->wakes = gpu->uses.begun + l->step;
    l->due_ns = 0;
}

static struct cws_gpu_extent *search_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_looks *l = &gpu->looks;
    const struct cws_tuning *t = gpu->core.tuning;
    if (gpu->uses.begun < l->next)
        return NULL;
    struct cws_gpu_extent *x = cws_gpu_adopt_is_short_locked(gpu, 0) ? choose_locked(gpu) : NULL;
    if (!x)
        put_off_locked(gpu);
    else if (l->due_ns == 0)
        l->due_ns = cws_gpu_now_ns() + t->look_every_ns;
    return x;
}

bool cws_gpu_look_is_due_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_looks *l = &gpu->looks;
    if (gpu->uses.begun < l->next || (l->due_ns && cws_gpu_now_ns() < l->due_ns))
        return false;
    return search_locked(gpu) && cws_gpu_now_ns() >= l->due_ns;
}

void cws_gpu_look_used_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_looks *l = &gpu->looks;
    if (gpu->uses.begun < l->wakes || !cws_gpu_adopt_is_short_locked(gpu, 0))
        return;
    l->wakes = gpu->uses.begun + gpu->core.tuning->look_uses;
    cws_gpu_wake_locked(&gpu->core);
}

/* --- what it is ------------------------------------------------------------------------------------------- */

/* Is its content what it was at the last look, or when it was spilled? The first look will do for what a copy brought.
 * False, too, where that cannot be known. */
static bool is_steady_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    struct cws_hash128 hash;
    struct cws_gpu_look *look = &x->look;
    bool brought = cws_gpu_is_brought(x), had = x->spill.host || look->hashed;
    struct cws_hash128 last = x->spill.host ? x->spill.hash : look->hash;
    cws_gpu_unlock(&gpu->core);
    CUresult result = cws_gpu_move_and_hash(gpu, x, NULL, NULL, &hash);
    cws_gpu_lock(&gpu->core);
    bool same = had && last.lo == hash.lo && last.hi == hash.hi;
    look->hashed = result == CUDA_SUCCESS;
    look->hash = hash;
    if (!look->hashed || !same)
        cws_gpu_spill_forget_locked(gpu, x); /* of what it was */
    return look->hashed && !x->range->freed && (brought || same);
}

/* Is it weights, in one way or the other? Then it has the pieces that say so. */
static bool is_known_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x, uint64_t used)
{
    bool old;
    return cws_gpu_prove_kept_drops_lock(gpu, x, used) ||
           (cws_gpu_adopt_may_locked(gpu, x, &old) && is_steady_drops_lock(gpu, x) &&
            cws_gpu_adopt_kept_drops_lock(gpu, x));
}

static void look_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    enum cws_extent_state before = x->state;
    bool was_bound = cws_gpu_is_bound(x);
    uint64_t used = x->used; /* a launch may name it meanwhile, and wait */
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_LOOKING);
    bool known = is_known_drops_lock(gpu, x, used);
    x->look.used = used + 1;
    if (known) {
        cws_gpu_bind_kept_locked(gpu, x, was_bound);
        gpu->looks.found++;
        x->look.times = 0;
        if (was_bound)
            cws_gpu_order_lost(&gpu->order); /* its place is planned again */
    } else {
        x->look.times += x->look.times < TIMES_MOST;
        cws_gpu_extent_set_locked(gpu, x, before);
    }
    cws_gpu_extent_settle_locked(gpu, x);
}

bool cws_gpu_look_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_extent *x = search_locked(gpu);
    if (!x)
        return false;
    look_drops_lock(gpu, x);
    gpu->looks.due_ns = 0;
    return true;
}
