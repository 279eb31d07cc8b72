/* reserve.c - what the program freed: found again by size class and stream, and given up when rounds have no need of
 * it. */
#include "gpu.h"

enum { ROUND_SHARE = 16 }; /* by which a round may be longer or shorter and is the same */

#define FREED_OF(l) CWS_LIST_OF(l, struct cws_gpu_extent, freed_link)
#define AGED_OF(l) CWS_LIST_OF(l, struct cws_gpu_extent, cached)

void cws_gpu_reserve_init(struct cws_gpu_reserve *reserve)
{
    cws_list_init(&reserve->cached);
    cws_list_init(&reserve->cold);
    for (unsigned i = 0; i < CWS_SIZE_CLASSES; i++)
        for (unsigned k = 0; k < CWS_RESERVE_STREAMS; k++)
            cws_list_init(&reserve->freed[i][k]);
}

/* --- lists ----------------------------------------------------------------------------------------------- */

static unsigned list_of(CUstream stream) { return (unsigned)((uintptr_t)stream >> 4) * 2654435769u >> 30; }

_Static_assert(CWS_RESERVE_STREAMS == 4, "list_of has two bits");

void cws_gpu_reserve_enter(struct cws_gpu_reserve *reserve, struct cws_gpu_extent *x, bool cold)
{
    struct cws_list *freed = &reserve->freed[cws_size_class(x->range->granules)][list_of(x->stream)];
    cws_list_add_before(cold ? freed->next : freed, &x->freed_link);
    cws_list_add_before(cold ? &reserve->cold : &reserve->cached, &x->cached);
}

void cws_gpu_reserve_leave(struct cws_gpu_extent *x)
{
    cws_list_remove(&x->cached);
    cws_list_remove(&x->freed_link);
}

/* The first of some at one end of a list that has the memory, and whose uses end before new ones on the stream. */
static struct cws_gpu_extent *look(struct cws_gpu *gpu, const struct cws_list *list, bool newest, uint32_t granules,
                                   CUstream stream)
{
    const struct cws_list *l = newest ? list->prev : list->next;
    for (unsigned i = 0; i < CWS_RESERVE_LOOKS && l != list; i++, l = newest ? l->prev : l->next) {
        struct cws_gpu_extent *x = FREED_OF(l);
        if (x->granules < granules)
            continue;
        bool mark = !newest || x->stream != stream; /* another stream may be in the same list */
        if (cws_gpu_users_only(&gpu->streams, &x->users, stream) ||
            cws_gpu_users_passed(&gpu->streams, &x->users, mark))
            return x;
    }
    return NULL;
}

static struct cws_gpu_extent *look_in_class(struct cws_gpu *gpu, unsigned class, uint32_t granules, CUstream stream)
{
    struct cws_list *lists = gpu->reserve.freed[class];
    unsigned own = list_of(stream);
    struct cws_gpu_extent *x = look(gpu, &lists[own], true, granules, stream);
    for (unsigned i = 1; i < CWS_RESERVE_STREAMS && !x; i++) /* of other streams: what was freed first is done first */
        x = look(gpu, &lists[(own + i) % CWS_RESERVE_STREAMS], false, granules, stream);
    return x;
}

struct cws_gpu_extent *cws_gpu_reserve_take_locked(struct cws_gpu *gpu, uint32_t granules, CUstream stream)
{
    unsigned class = cws_size_class(granules);
    cws_gpu_streams_look_again(&gpu->streams);
    struct cws_gpu_extent *x = look_in_class(gpu, class, granules, stream);
    if (!x && granules > 1 && class + 1 < CWS_SIZE_CLASSES) /* better an eighth too much than memory made anew */
        x = look_in_class(gpu, class + 1, granules, stream);
    if (x)
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_ANONYMOUS);
    return x;
}

/* --- the profile ------------------------------------------------------------------------------------------- */

static uint64_t place_of(const struct cws_gpu_reserve_profile *p, uint64_t at)
{
    return (at - p->begin) / (p->wide ? p->wide : 1);
}

/* Begins anew at this use, for rounds of so many. */
static void restart(struct cws_gpu_reserve_profile *p, uint64_t at, uint64_t round, bool known)
{
    uint64_t now = p->now;
    *p = (struct cws_gpu_reserve_profile){
        .round = round, .wide = round / CWS_RESERVE_PLACES + 1, .begin = at, .seen_at = at, .known = known};
    p->most[0] = p->least[0] = p->now = now;
}

static void next_place(struct cws_gpu_reserve_profile *p)
{
    p->place++;
    p->most[p->place % CWS_RESERVE_KEPT] = p->least[p->place % CWS_RESERVE_KEPT] = p->now;
}

/* Is that the round of the profile? A step of a denoiser is a round, too, within one that has a decoder: a shorter one
 * is not believed before two of the longer one have passed without it. */
static bool is_round(struct cws_gpu_reserve_profile *p, uint64_t at, uint64_t round, bool known)
{
    if (p->known != known)
        return p->known;
    bool alike = p->round && (round > p->round ? round - p->round : p->round - round) <= p->round / ROUND_SHARE;
    if (alike)
        p->seen_at = at;
    return alike || (round < p->round && at - p->seen_at < 2 * p->round);
}

/* The program's own memory is `bytes` now, at the use `at`, of a round of `round` uses; known: the order has rounds. */
static void note(struct cws_gpu_reserve_profile *p, uint64_t bytes, uint64_t at, uint64_t round, bool known)
{
    bool over = !p->wide || at < p->begin || place_of(p, at) > p->place + CWS_RESERVE_KEPT;
    if (over || !is_round(p, at, round, known))
        restart(p, at, round, known);
    for (uint64_t now = place_of(p, at); now > p->place;)
        next_place(p);
    uint64_t *most = &p->most[p->place % CWS_RESERVE_KEPT], *least = &p->least[p->place % CWS_RESERVE_KEPT];
    *most = bytes > *most ? bytes : *most;
    *least = bytes < *least ? bytes : *least;
    p->now = bytes;
}

struct span {
    uint64_t most, least;
};

static void look_at_uses(const struct cws_gpu_reserve_profile *p, uint64_t from, uint64_t to, struct span *out)
{
    uint64_t first = place_of(p, from), last = place_of(p, to);
    uint64_t kept = p->place < CWS_RESERVE_KEPT ? 0 : p->place - CWS_RESERVE_KEPT + 1;
    for (uint64_t i = first > kept ? first : kept; i <= last && i <= p->place; i++) {
        out->most = p->most[i % CWS_RESERVE_KEPT] > out->most ? p->most[i % CWS_RESERVE_KEPT] : out->most;
        out->least = p->least[i % CWS_RESERVE_KEPT] < out->least ? p->least[i % CWS_RESERVE_KEPT] : out->least;
    }
}

/* What the program had at most, and at least, from this place to `ahead` uses on in the last round and the one before,
 * as far as they are known, and a few uses before it: rounds are not alike to the use. Where none is known, or there
 * are no rounds: in all of two. */
static struct span expect(const struct cws_gpu_reserve_profile *p, uint64_t at, uint64_t ahead)
{
    struct span span = {0, UINT64_MAX};
    uint64_t before = at - p->begin;
    if (!p->known || before < p->round || ahead >= p->round) {
        look_at_uses(p, before < 2 * p->round ? p->begin : at - 2 * p->round, at, &span);
        return span;
    }
    for (uint64_t k = 1; k <= 2 && k * p->round <= before; k++) {
        uint64_t then = at - k * p->round;
        look_at_uses(p, then - (then - p->begin < p->wide ? then - p->begin : p->wide), then + ahead, &span);
    }
    look_at_uses(p, at, at, &span); /* it grows */
    return span;
}

static void note_now(struct cws_gpu *gpu, uint64_t bytes)
{
    uint64_t round = cws_gpu_order_rounds(&gpu->order, 1, 0), fallback = gpu->core.tuning->reserve_uses / 2;
    note(&gpu->reserve.profile, bytes, gpu->order.order.at, round ? round : fallback, round > 0);
}

void cws_gpu_reserve_note_locked(struct cws_gpu *gpu, const struct cws_gpu_extent *x, bool has)
{
    uint64_t now = gpu->reserve.profile.now;
    note_now(gpu, has ? now + cws_gpu_span(x) : now - cws_gpu_span(x));
}

/* --- what leaves it ---------------------------------------------------------------------------------------- */

/* What was freed first is COLD. */
static bool cool_locked(struct cws_gpu *gpu)
{
    if (cws_list_is_empty(&gpu->reserve.cached))
        return false;
    cws_gpu_extent_set_locked(gpu, AGED_OF(gpu->reserve.cached.next), CWS_EXTENT_COLD);
    return true;
}

/* What may be held beside what the program has: sizes that take turns do not share memory, so it is what was there at
 * most, and some times as much again as came and went. */
static uint64_t hold(const struct cws_gpu *gpu, const struct span *span)
{
    uint64_t moves = span->most > span->least ? span->most - span->least : 0, has = gpu->reserve.profile.now;
    uint64_t most = span->most + moves * gpu->core.tuning->reserve_over;
    return most > has ? most - has : 0;
}

void cws_gpu_reserve_age_locked(struct cws_gpu *gpu)
{
    const struct cws_tuning *t = gpu->core.tuning;
    const uint64_t *bytes = gpu->budget.of_class;
    uint64_t at = gpu->order.order.at, keep = cws_gpu_order_rounds(&gpu->order, 2, t->reserve_uses);
    note_now(gpu, gpu->reserve.profile.now);
    struct span span = expect(&gpu->reserve.profile, at, t->reserve_ahead_uses);
    while (!cws_list_is_empty(&gpu->reserve.cached) &&
           (gpu->config.strict || bytes[CWS_CLASS_RESERVE] > hold(gpu, &span) ||
            at - AGED_OF(gpu->reserve.cached.next)->freed_at > keep))
        cool_locked(gpu);
    uint64_t there = gpu->reserve.profile.now + bytes[CWS_CLASS_RESERVE];
    cws_gpu_budget_expect(&gpu->budget, gpu->reserve.profile.known && span.most > there ? span.most - there : 0);
}

bool cws_gpu_reserve_steal_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    uint64_t before = gpu->budget.of_class[CWS_CLASS_RESERVE];
    uint64_t wanted = cws_gpu_budget_attainable(&gpu->budget) + bytes;
    while (cws_gpu_budget_attainable(&gpu->budget) < wanted && cool_locked(gpu)) {
    }
    gpu->reserve.stolen += before - gpu->budget.of_class[CWS_CLASS_RESERVE];
    return gpu->budget.of_class[CWS_CLASS_RESERVE] != before;
}

uint32_t cws_gpu_reserve_unmap_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_extent *x = NULL;
    /* a use that named it while it lived may even hold it, and does not need it */
    for (struct cws_list *l = gpu->reserve.cold.next; !x && l != &gpu->reserve.cold; l = l->next)
        if (cws_gpu_users_passed(&gpu->streams, &AGED_OF(l)->users, true))
            x = AGED_OF(l);
    if (!x)
        return 0;
    struct cws_gpu_frame *frame = x->frame;
    uint32_t granules = x->granules;
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_UNMAKING);
    cws_gpu_unlock(&gpu->core);
    CUresult result = cws_gpu_frame_unmap(&gpu->frames, frame, x->base);
    cws_gpu_lock(&gpu->core);
    if (result != CUDA_SUCCESS) { /* it is nobody's for good: neither memory nor address may be taken for free */
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_ANONYMOUS);
    } else {
        x->frame = NULL;
        cws_gpu_frame_put(&gpu->frames, frame);
        cws_gpu_extent_end_locked(gpu, x);
    }
    return granules;
}

bool cws_gpu_reserve_trim_drops_lock(struct cws_gpu *gpu, uint64_t keep)
{
    if (keep == 0)
        restart(&gpu->reserve.profile, gpu->order.order.at, gpu->reserve.profile.round, gpu->reserve.profile.known);
    while (gpu->budget.of_class[CWS_CLASS_RESERVE] > keep && cool_locked(gpu)) {
    }
    cws_gpu_streams_look_again(&gpu->streams);
    for (uint32_t granules; (granules = cws_gpu_reserve_unmap_drops_lock(gpu)) > 0;) {
        struct cws_gpu_frame *frame = cws_gpu_frame_take(&gpu->frames, granules);
        if (frame)
            cws_gpu_frame_release_drops_lock(&gpu->frames, frame);
    }
    return cws_list_is_empty(&gpu->reserve.cold);
}

bool cws_gpu_release_idle_drops_lock(struct cws_gpu *gpu, uint64_t bytes)
{
    bool any = false;
    struct cws_gpu_frame *frame;
    for (;;) {
        while (cws_gpu_budget_left(&gpu->budget) < bytes && (frame = cws_gpu_frame_take_oldest(&gpu->frames))) {
            cws_gpu_frame_release_drops_lock(&gpu->frames, frame);
            any = true;
        }
        if (cws_gpu_budget_left(&gpu->budget) >= bytes || !cws_gpu_reserve_unmap_drops_lock(gpu))
            return any;
        any = true;
    }
}

/* --- the check ---------------------------------------------------------------------------------------------- */

const char *cws_gpu_reserve_check(const struct cws_gpu *gpu)
{
    const struct cws_gpu_reserve *reserve = &gpu->reserve;
    uint64_t aged = 0, listed = 0, has = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        has += cws_extent_is_programs(x->state) ? cws_gpu_span(x) : 0;
    if (has != reserve->profile.now)
        return "reserve: what the program has is miscounted";
    for (const struct cws_list *l = reserve->cached.next; l != &reserve->cached; l = l->next, aged++)
        if (AGED_OF(l)->state != CWS_EXTENT_CACHED)
            return "reserve: one that is in it is not CACHED";
    for (const struct cws_list *l = reserve->cold.next; l != &reserve->cold; l = l->next, aged++)
        if (AGED_OF(l)->state != CWS_EXTENT_COLD)
            return "reserve: one that left it is not COLD";
    for (unsigned i = 0; i < CWS_SIZE_CLASSES; i++)
        for (unsigned k = 0; k < CWS_RESERVE_STREAMS; k++) {
            const struct cws_list *list = &reserve->freed[i][k];
            for (const struct cws_list *l = list->next; l != list; l = l->next, listed++) {
                const struct cws_gpu_extent *x = FREED_OF(l);
                if (cws_size_class(x->range->granules) != i || list_of(x->stream) != k)
                    return "reserve: one lies in the wrong list";
            }
        }
    return aged != listed ? "reserve: one cannot be found" : NULL;
}
