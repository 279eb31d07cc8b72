/* reserve.c - what the program freed: found again by size class and stream, and given up when rounds have no need of
 * it. */
#include "gpu.h"

#define FREED_OF(l) CWS_LIST_OF(l, struct cws_gpu_extent, freed_link)
#define AGED_OF(l) CWS_LIST_OF(l, struct cws_gpu_extent, cached)

void cws_gpu_reserve_init(struct cws_gpu_reserve *reserve)
{
    cws_list_init(&reserve->cached);
    cws_list_init(&reserve->cold);
    for (unsigned i = 0; i < CWS_SIZE_CLASSES; i++)
        for (unsigned k = 0; k < CWS_RESERVE_STREAMS; k++)
            cws_list_init(&reserve->freed[i][k]);
    reserve->profile.floor = UINT64_MAX;
    for (unsigned i = 0; i < 2 * CWS_RESERVE_PLACES; i++)
        reserve->profile.least[i] = UINT64_MAX;
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

void cws_gpu_reserve_leave(struct cws_gpu_reserve *reserve, struct cws_gpu_extent *x)
{
    (void)reserve;
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
        if (cws_gpu_users_only(&gpu->streams, &x->users, stream) || cws_gpu_users_done(&gpu->streams, &x->users, mark))
            return x;
    }
    return NULL;
}

struct cws_gpu_extent *cws_gpu_reserve_take_locked(struct cws_gpu *gpu, uint32_t granules, CUstream stream)
{
    struct cws_list *lists = gpu->reserve.freed[cws_size_class(granules)];
    unsigned own = list_of(stream);
    cws_gpu_streams_look_again(&gpu->streams);
    struct cws_gpu_extent *x = look(gpu, &lists[own], true, granules, stream);
    for (unsigned i = 1; i < CWS_RESERVE_STREAMS && !x; i++) /* of other streams: what was freed first is done first */
        x = look(gpu, &lists[(own + i) % CWS_RESERVE_STREAMS], false, granules, stream);
    if (x)
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_ANONYMOUS);
    return x;
}

/* --- the profile ------------------------------------------------------------------------------------------- */

static void next_place(struct cws_gpu_reserve_profile *p)
{
    p->place = (p->place + 1) % (2 * CWS_RESERVE_PLACES);
    p->most[p->place] = 0;
    p->least[p->place] = UINT64_MAX;
    p->peak = 0;
    p->floor = UINT64_MAX;
    for (unsigned i = 0; i < 2 * CWS_RESERVE_PLACES; i++) {
        p->peak = p->most[i] > p->peak ? p->most[i] : p->peak;
        p->floor = p->least[i] < p->floor ? p->least[i] : p->floor;
    }
}

/* The program's own memory is `bytes` now, at the place `at`, of a round of `round` uses. */
static void note(struct cws_gpu_reserve_profile *p, uint64_t bytes, uint64_t at, uint64_t round)
{
    uint64_t uses = round / CWS_RESERVE_PLACES + 1;
    for (unsigned i = 0; at >= p->until && i < 2 * CWS_RESERVE_PLACES; i++, p->until += uses)
        next_place(p);
    p->until = at >= p->until ? at + uses : p->until;
    p->most[p->place] = bytes > p->most[p->place] ? bytes : p->most[p->place];
    p->least[p->place] = bytes < p->least[p->place] ? bytes : p->least[p->place];
    p->peak = bytes > p->peak ? bytes : p->peak;
    p->floor = bytes < p->floor ? bytes : p->floor;
}

void cws_gpu_reserve_note_locked(struct cws_gpu *gpu)
{
    note(&gpu->reserve.profile, gpu->budget.of_class[CWS_CLASS_FIXED], gpu->order.order.at,
         cws_gpu_order_rounds(&gpu->order, 1, gpu->core.tuning->reserve_uses / 2));
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

/* Is more held than what the peak of a round leaves over now? Sizes that take turns do not share memory, so it is that,
 * and as much again as comes and goes. */
static bool has_too_much(const struct cws_gpu *gpu)
{
    const struct cws_gpu_reserve_profile *p = &gpu->reserve.profile;
    uint64_t moves = p->peak > p->floor ? p->peak - p->floor : 0;
    uint64_t most = p->peak + moves / gpu->core.tuning->reserve_over_share;
    return gpu->budget.of_class[CWS_CLASS_RESERVE] + gpu->budget.of_class[CWS_CLASS_FIXED] > most;
}

void cws_gpu_reserve_age_locked(struct cws_gpu *gpu)
{
    uint64_t keep = cws_gpu_order_rounds(&gpu->order, 2, gpu->core.tuning->reserve_uses);
    cws_gpu_reserve_note_locked(gpu);
    while (!cws_list_is_empty(&gpu->reserve.cached) &&
           (gpu->config.strict || has_too_much(gpu) ||
            gpu->order.order.at - AGED_OF(gpu->reserve.cached.next)->freed_at > keep))
        cool_locked(gpu);
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
        if (cws_gpu_users_done(&gpu->streams, &AGED_OF(l)->users, true))
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
    for (unsigned i = 0; i < 2 * CWS_RESERVE_PLACES && keep == 0; i++)
        next_place(&gpu->reserve.profile);
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
    uint64_t aged = 0, listed = 0;
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
