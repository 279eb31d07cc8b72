/* What comes next, and who stays. A program that generates text walks over its weights again and again in the same order. The order is
 * learned as "after A, then B, comes C". The walk along it tells when each range is needed again; what is needed last is dropped first.
 *
 * On a cyclic scan that rule alone keeps a prefix of the cycle and streams the rest in one stretch, in which the link is busy and before which
 * it is idle. So keepers are chosen: evenly over the cycle, as many bytes as fit beside the window through which the others stream. */
#include "gpu_state.h"

#include <stdlib.h>

static struct cws_gpu_range *after(const struct cws_gpu_range *before, const struct cws_gpu_range *r)
{
    for (unsigned i = 0; i < 2; i++)
        if (r->follow[i].after && r->follow[i].before == before)
            return r->follow[i].after;
    return r->follow[0].after;
}

void cws_gpu_order_use_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    struct cws_gpu_range *last = gpu->last;
    r->last_tick = ++gpu->tick;
    r->prefetched = false;
    if (last == r)
        return;
    if (last && after(gpu->before_last, last) != r) {
        unsigned at = last->follow[0].before == gpu->before_last ? 0 : last->follow[1].before == gpu->before_last ? 1 : 2;
        if (at == 2) { /* the older of two contexts is forgotten */
            last->follow[1] = last->follow[0];
            at = 0;
        }
        last->follow[at].before = gpu->before_last;
        last->follow[at].after = r;
    }
    gpu->before_last = last;
    gpu->last = r;
    if (gpu->resident_bytes < gpu->bound_bytes)
        pthread_cond_signal(&gpu->work);
}

void cws_gpu_order_forget_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    for (struct cws_gpu_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        struct cws_gpu_range *other = CWS_GPU_OF(l, struct cws_gpu_range, link);
        for (unsigned i = 0; i < 2; i++)
            if (other->follow[i].after == r || other->follow[i].before == r)
                other->follow[i].after = other->follow[i].before = NULL;
    }
    r->follow[0].after = r->follow[1].after = NULL;
    r->keeper = false;
    if (gpu->last == r)
        gpu->last = NULL;
    if (gpu->before_last == r)
        gpu->before_last = NULL;
    gpu->foreseen_count = 0;
    gpu->walked_tick = UINT64_MAX;
    gpu->plan_due = true;
}

/* --- keepers ----------------------------------------------------------------------------------------- */

static uint64_t room_for_weights(const struct cws_gpu *gpu)
{
    uint64_t taken = cws_gpu_undroppable_locked(gpu); /* not what is granted: most of that is for weights on their way */
    return taken < gpu->config.budget_bytes ? gpu->config.budget_bytes - taken : 0;
}

static void choose_keepers_locked(struct cws_gpu *gpu)
{
    const uint64_t small = 2 * (uint64_t)CWS_GPU_GRANULE;
    uint64_t total = 0, largest = 0, small_bytes = 0, room = room_for_weights(gpu);
    for (uint32_t i = 0; i < gpu->foreseen_count; i++) {
        uint64_t span = cws_gpu_span(gpu->foreseen[i]);
        total += span;
        largest = span > largest ? span : largest;
        small_bytes += span <= small ? span : 0;
    }
    uint64_t window = largest + (room / 8 > (32u << 20) ? room / 8 : (32u << 20));
    uint64_t keep = total <= room ? total : room > window ? room - window : 0;
    /* A small range costs as many calls as a large one and gives back little: it stays, where that is cheap. */
    bool keep_small = small_bytes <= keep / 2;
    if (keep_small) {
        total -= small_bytes;
        keep -= small_bytes;
    }
    double rate = total ? (double)keep / (double)total : 0, credit = 0;
    uint32_t first = 0; /* wherever the walk stands now, the same ranges are chosen */
    for (uint32_t i = 0; i < gpu->foreseen_count; i++)
        first = gpu->foreseen[i]->id < gpu->foreseen[first]->id ? i : first;
    for (uint32_t i = 0; i < gpu->foreseen_count; i++) {
        struct cws_gpu_range *r = gpu->foreseen[(first + i) % gpu->foreseen_count];
        double span = (double)cws_gpu_span(r);
        if (keep_small && cws_gpu_span(r) <= small) {
            r->keeper = true;
            continue;
        }
        credit += rate * span;
        r->keeper = credit >= span;
        credit -= r->keeper ? span : 0;
    }
    gpu->plan_room = room;
    gpu->plan_count = gpu->foreseen_count;
    gpu->plan_due = false;
}

static bool plan_is_stale(const struct cws_gpu *gpu)
{
    uint64_t room = room_for_weights(gpu), moved = room > gpu->plan_room ? room - gpu->plan_room : gpu->plan_room - room;
    return gpu->plan_due || gpu->foreseen_count != gpu->plan_count || moved > gpu->plan_room / 16;
}

/* --- the walk ---------------------------------------------------------------------------------------- */

static bool need_foreseen(struct cws_gpu *gpu)
{
    if (gpu->foreseen_room >= gpu->range_count)
        return true;
    uint32_t room = gpu->range_count * 2;
    struct cws_gpu_range **list = realloc(gpu->foreseen, room * sizeof(struct cws_gpu_range *));
    if (!list)
        return false;
    gpu->foreseen = list;
    gpu->foreseen_room = room;
    return true;
}

void cws_gpu_order_walk_locked(struct cws_gpu *gpu)
{
    if (gpu->walked_tick == gpu->tick || !need_foreseen(gpu))
        return;
    gpu->walked_tick = gpu->tick;
    gpu->walk++;
    gpu->foreseen_count = 0;
    const struct cws_gpu_range *before = gpu->before_last;
    struct cws_gpu_range *at = gpu->last;
    for (uint64_t step = 1; at && step <= 2 * (uint64_t)gpu->range_count + 8; step++) {
        struct cws_gpu_range *next = after(before, at);
        if (!next)
            break;
        if (next->walk != gpu->walk) {
            next->walk = gpu->walk;
            next->next_at = step;
            gpu->foreseen[gpu->foreseen_count++] = next;
        }
        before = at;
        at = next;
    }
    /* A plan needs a whole cycle: the walk came back to where it stands, and met nearly all there is. (One use out of order can make a short circuit.) */
    uint64_t met = 0;
    for (uint32_t i = 0; i < gpu->foreseen_count; i++)
        met += cws_gpu_span(gpu->foreseen[i]);
    bool cycle = gpu->last && gpu->last->walk == gpu->walk && met >= gpu->bound_bytes / 8 * 7;
    if (cycle && gpu->config.policy == CWS_POLICY_NEXT && plan_is_stale(gpu))
        choose_keepers_locked(gpu);
}

static uint64_t next_use(const struct cws_gpu *gpu, const struct cws_gpu_range *r)
{
    return r->walk == gpu->walk ? r->next_at : UINT64_MAX;
}

/* Named by one of the last few launches: the next one may well name it, too (two kernels of one product), and the order that is learned does not
 * count such repetitions. */
static bool is_recent(const struct cws_gpu *gpu, const struct cws_gpu_range *r)
{
    enum { RECENT = 4 };
    return r->last_tick && gpu->tick - r->last_tick < RECENT;
}

/* Is a the better one to drop? */
static bool goes_before(const struct cws_gpu *gpu, const struct cws_gpu_range *a, const struct cws_gpu_range *b)
{
    if (is_recent(gpu, a) != is_recent(gpu, b))
        return !is_recent(gpu, a);
    if (gpu->config.policy == CWS_POLICY_LRU)
        return a->last_tick < b->last_tick;
    if (a->keeper != b->keeper)
        return !a->keeper;
    uint64_t next_a = next_use(gpu, a), next_b = next_use(gpu, b);
    return next_a != next_b ? next_a > next_b : a->last_tick < b->last_tick;
}

/* May it be dropped for a range that is needed after `until` uses? */
static bool is_fair_price(const struct cws_gpu *gpu, const struct cws_gpu_range *r, uint64_t until)
{
    if (r->state != CWS_RANGE_RESIDENT || r->holds || r->pinned)
        return false;
    if (until == 0)
        return true;
    return next_use(gpu, r) > until && !is_recent(gpu, r) && !r->prefetched && !(r->keeper && gpu->config.policy == CWS_POLICY_NEXT);
}

/* The program runs ahead of the device, so what should go is often still in use. To wait for it costs less than to take what is needed soon and load
 * that again: b, which is done, will do for a, which is better, if it is nearly as good. */
static bool is_nearly_as_good(const struct cws_gpu *gpu, const struct cws_gpu_range *b, const struct cws_gpu_range *a)
{
    if (gpu->config.policy == CWS_POLICY_LRU)
        return true;
    return b->keeper == a->keeper && next_use(gpu, b) >= next_use(gpu, a) / 4 * 3;
}

struct cws_gpu_range *cws_gpu_order_victim_locked(struct cws_gpu *gpu, uint64_t until, bool must_be_done)
{
    struct cws_gpu_range *best = NULL, *done = NULL;
    for (struct cws_gpu_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        struct cws_gpu_range *r = CWS_GPU_OF(l, struct cws_gpu_range, link);
        if (!is_fair_price(gpu, r, until))
            continue;
        if (!best || goes_before(gpu, r, best))
            best = r;
        if (must_be_done && (!done || goes_before(gpu, r, done)) && cws_gpu_uses_done_locked(gpu, r, true))
            done = r;
    }
    if (!must_be_done)
        return best;
    return done && (done == best || is_nearly_as_good(gpu, done, best)) ? done : NULL;
}
