/* range.c - ranges, which are the program's allocations: made and freed; and what goes with each change of an extent's
 * state. */
#include "gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* --- open and close -------------------------------------------------------------------------------- */

static size_t table_bytes(const struct cws_gpu_ranges *ranges)
{
    return ranges->arena.granules * sizeof *ranges->by_granule;
}

void cws_gpu_ranges_init(struct cws_gpu_ranges *ranges)
{
    cws_list_init(&ranges->all);
    cws_list_init(&ranges->wanted);
}

int cws_gpu_ranges_open(struct cws_gpu_ranges *ranges, struct cws_gpu_core *core, uint64_t bytes, struct cws_error *err)
{
    int code = cws_gpu_arena_open(&ranges->arena, core, bytes, err);
    if (code)
        return code;
    void *table = mmap(NULL, table_bytes(ranges), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    if (table == MAP_FAILED)
        return cws_fail_errno(err, errno, "reserving the table of device ranges");
    ranges->by_granule = table;
    return 0;
}

/* --- states ------------------------------------------------------------------------------------------ */

void cws_gpu_extent_set_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, enum cws_extent_state to)
{
    enum cws_extent_state from = x->state;
    cws_extent_go(x, to);
    cws_gpu_budget_move(&gpu->budget, cws_extent_class(from), cws_extent_class(to), cws_gpu_span(x));
    if (cws_extent_is_freed(from))
        cws_gpu_reserve_leave(x);
    if (cws_extent_is_freed(to))
        cws_gpu_reserve_enter(&gpu->reserve, x, to == CWS_EXTENT_COLD);
    if (cws_extent_is_programs(from) != cws_extent_is_programs(to))
        cws_gpu_reserve_note_locked(gpu, x, cws_extent_is_programs(to));
    if (cws_gpu_is_bound(x) && (from == CWS_EXTENT_RESIDENT) != (to == CWS_EXTENT_RESIDENT))
        cws_gpu_order_set_in(&gpu->order, x, to == CWS_EXTENT_RESIDENT);
    if (cws_gpu_is_bound(x) && cws_extent_holds_weight(from) != cws_extent_holds_weight(to))
        cws_gpu_order_set_held(&gpu->order, x, cws_extent_holds_weight(to));
    if (to == CWS_EXTENT_DIRTY)
        cws_gpu_sets_forget(&gpu->sets, x);
    cws_gpu_trace_memory_locked(gpu);
}

static void drop_source_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    if (cws_gpu_is_bound(x)) {
        cws_gpu_budget_unbind(&gpu->budget, cws_gpu_span(x));
        cws_gpu_sets_forget(&gpu->sets, x);
        cws_gpu_order_forget(&gpu->order, x);
    }
    cws_gpu_pieces_clear(&gpu->sources, &x->pieces);
}

/* --- the end of a range ------------------------------------------------------------------------------- */

/* Frees the range if the program has, no extent of it has anything left, and no use names it: what has it in its list
 * may wait for it, where a stray word named it or the program's threads race. */
static void end_range_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    struct cws_gpu_ranges *ranges = &gpu->ranges;
    uint64_t first = cws_gpu_arena_index(&ranges->arena, r->base);
    bool over = r->freed && r->named == 0;
    for (uint32_t i = 0; i < r->extent_count; i++)
        over &= r->extents[i].state == CWS_EXTENT_RESERVED;
    if (!over)
        return;
    for (uint32_t i = 0; i < r->granules; i++)
        ranges->by_granule[first + i] = NULL;
    cws_gpu_arena_give(&ranges->arena, r->base, r->granules);
    cws_list_remove(&r->link);
    ranges->count--;
    free(r);
}

void cws_gpu_extent_end_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    drop_source_locked(gpu, x);
    cws_gpu_spill_forget_locked(gpu, x);
    if (x->state != CWS_EXTENT_RESERVED)
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_RESERVED);
    end_range_locked(gpu, x->range);
}

/* The program freed a mapped extent: its memory waits for the next allocation of its size. */
static void cache_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    drop_source_locked(gpu, x);
    cws_gpu_spill_forget_locked(gpu, x);
    x->freed_at = gpu->order.order.at;
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_CACHED);
}

void cws_gpu_extent_settle_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    if (x->range->freed && cws_extent_is_mapped(x->state)) {
        if (!cws_extent_is_freed(x->state))
            cache_locked(gpu, x);
    } else if (x->range->freed) {
        cws_gpu_extent_end_locked(gpu, x);
    }
    cws_gpu_changed_locked(&gpu->core);
}

void cws_gpu_range_unname_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    if (--r->named == 0)
        end_range_locked(gpu, r);
}

void cws_gpu_range_pin_locked(struct cws_gpu_range *r) { r->pinned = true; }

/* --- allocations --------------------------------------------------------------------------------------- */

/* A range with addresses for its size class, and memory of `granules`, later. */
static struct cws_gpu_range *create_locked(struct cws_gpu *gpu, uint32_t granules)
{
    struct cws_gpu_ranges *ranges = &gpu->ranges;
    struct cws_gpu_range *r = calloc(1, sizeof *r + sizeof *r->extents);
    if (!r)
        return NULL;
    r->base = cws_gpu_arena_take(&ranges->arena, granules);
    if (!r->base) {
        free(r);
        return NULL;
    }
    struct cws_gpu_extent *x = r->extents;
    r->granules = cws_size_class_round(granules);
    x->granules = granules;
    r->extent_count = 1;
    x->range = r;
    x->base = r->base;
    cws_list_init(&x->cached);
    cws_list_init(&x->freed_link);
    cws_list_init(&x->wanted);
    cws_list_add_before(&ranges->all, &r->link);
    uint64_t first = cws_gpu_arena_index(&ranges->arena, r->base);
    for (uint32_t i = 0; i < r->granules; i++)
        ranges->by_granule[first + i] = x;
    ranges->count++;
    return r;
}

static void say_too_much_locked(struct cws_gpu *gpu, size_t bytes, uint64_t least)
{
    cws_gpu_adopt_explain_locked(gpu);
    cws_gpu_say(&gpu->core,
                "an allocation of %.1f MiB does not fit CODEC_VRAM_BUDGET (%llu MiB, %llu MiB of it in use for what "
                "cannot be dropped); "
                "the least budget that would have done is %llu MiB",
                (double)bytes / (1 << 20), (unsigned long long)(gpu->budget.bytes >> 20),
                (unsigned long long)(cws_gpu_budget_undroppable(&gpu->budget) >> 20),
                (unsigned long long)((least + (1 << 20) - 1) >> 20));
}

CUresult cws_gpu_alloc(struct cws_gpu *gpu, size_t bytes, CUstream stream, CUdeviceptr *out)
{
    return cws_gpu_alloc_loading(gpu, bytes, 0, stream, out);
}

/* Does it fit, beside what cannot be dropped and the largest set that a launch named? Says so if not. *granules: those
 * of its class, or what it takes and no more where these do not fit. Before it says no, what kernels put together of
 * weights is given up. */
static bool fits_drops_lock(struct cws_gpu *gpu, size_t bytes, uint32_t *granules, uint64_t expected)
{
    uint64_t span = (uint64_t)*granules * CWS_GPU_GRANULE, need;
    uint64_t wide = (uint64_t)cws_size_class_round(*granules) * CWS_GPU_GRANULE;
    bool again = true, warms_up = bytes <= expected && bytes > gpu->budget.bytes / 2;
    while (again) {
        if (cws_gpu_budget_undroppable(&gpu->budget) + wide + gpu->sets.largest <= gpu->budget.bytes) {
            *granules = cws_size_class_round(*granules);
            return true;
        }
        cws_gpu_pools_count(&gpu->pools);
        need = cws_gpu_budget_undroppable(&gpu->budget) + span + gpu->sets.largest;
        if (warms_up || cws_gpu_room_fits_locked(gpu, need))
            return true;
        cws_gpu_uses_stuck_locked(gpu, true);
        again = cws_gpu_prove_wait_drops_lock(gpu, need);
        cws_gpu_uses_stuck_locked(gpu, false);
    }
    say_too_much_locked(gpu, bytes, cws_gpu_room_least_locked(gpu, need, span));
    return false;
}

CUresult cws_gpu_alloc_loading(struct cws_gpu *gpu, size_t bytes, uint64_t expected, CUstream stream, CUdeviceptr *out)
{
    if (gpu->core.dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > (uint64_t)CWS_GPU_GRANULE << 31)
        return CUDA_ERROR_OUT_OF_MEMORY;
    uint32_t granules = cws_gpu_granules_of(bytes);
    cws_gpu_lock(&gpu->core);
    struct cws_gpu_extent *x = cws_gpu_reserve_take_locked(gpu, granules, stream);
    struct cws_gpu_range *r = x ? x->range : NULL;
    if (!r && fits_drops_lock(gpu, bytes, &granules, expected))
        r = create_locked(gpu, granules);
    if (r) {
        r->freed = false;
        r->bytes = r->extents->bytes = bytes;
        r->extents->used = gpu->uses.begun;
        r->extents->adoptable = (struct cws_gpu_adoptable){.count = 0};
        cws_gpu_proof_forget_locked(r->extents);
        cws_gpu_look_made_locked(gpu, r->extents);
        r->extents->stream = stream;
        *out = r->base;
    }
    cws_gpu_unlock(&gpu->core);
    return r ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static bool is_being_made(const struct cws_gpu_range *r)
{
    for (uint32_t i = 0; i < r->extent_count; i++)
        if (r->extents[i].state == CWS_EXTENT_MAKING || r->extents[i].state == CWS_EXTENT_UNMAKING)
            return true;
    return false;
}

static void free_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, CUstream stream, bool in_order)
{
    bool owned = cws_extent_has_owner(x->state);
    cws_gpu_demand_locked(gpu, x, false);
    if ((cws_extent_is_mapped(x->state) || owned) &&
        in_order) { /* what is queued behind the last use that we saw may use it, too */
        if (!cws_gpu_users_note(&gpu->streams, &x->users, stream))
            cws_gpu_range_pin_locked(x->range);
        cws_gpu_stream_mark_own(&gpu->streams, stream);
    }
    x->stream = in_order ? stream : x->stream;
    if (owned)
        return; /* by a thread, which ends it */
    if (cws_extent_is_mapped(x->state))
        cache_locked(gpu, x);
    else
        cws_gpu_extent_end_locked(gpu, x);
}

CUresult cws_gpu_free(struct cws_gpu *gpu, CUdeviceptr address, CUstream stream, bool in_order)
{
    if (gpu->core.dead)
        return CUDA_ERROR_NOT_INITIALIZED;
    cws_gpu_strict_enter(gpu);
    cws_gpu_lock(&gpu->core);
    struct cws_gpu_range *r = cws_gpu_range_at_locked(&gpu->ranges, address);
    /* another thread uses it for the first time: that is the program's race */
    while (r && r->base == address && is_being_made(r)) {
        cws_gpu_changed_wait_drops_lock(&gpu->core);
        r = cws_gpu_range_at_locked(&gpu->ranges, address);
    }
    bool found = r && r->base == address;
    if (found) {
        r->freed = true;
        r->pinned = false;
        r->named++; /* until all extents were looked at */
        for (uint32_t i = 0; i < r->extent_count; i++)
            free_locked(gpu, &r->extents[i], stream, in_order);
        cws_gpu_changed_locked(&gpu->core);
        cws_gpu_range_unname_locked(gpu, r);
    }
    cws_gpu_unlock(&gpu->core);
    cws_gpu_strict_leave(gpu, stream, found && in_order);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void cws_gpu_ranges_close(struct cws_gpu *gpu)
{
    struct cws_gpu_ranges *ranges = &gpu->ranges;
    cws_gpu_lock(&gpu->core);
    while (!cws_list_is_empty(&ranges->all)) {
        struct cws_gpu_range *r = CWS_LIST_OF(ranges->all.next, struct cws_gpu_range, link);
        r->freed = true;
        r->named = 1;
        for (uint32_t i = 0; i < r->extent_count; i++) {
            struct cws_gpu_extent *x = &r->extents[i];
            struct cws_gpu_frame *frame = x->frame;
            cws_gpu_extent_settle_locked(gpu, x);
            if (x->state == CWS_EXTENT_CACHED)
                cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_COLD);
            if (x->state == CWS_EXTENT_COLD) {
                cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_UNMAKING);
                cws_gpu_frame_unmap(&gpu->frames, frame, x->base);
                x->frame = NULL;
                cws_gpu_frame_put(&gpu->frames, frame);
                cws_gpu_extent_end_locked(gpu, x);
            }
        }
        cws_gpu_range_unname_locked(gpu, r);
    }
    cws_gpu_unlock(&gpu->core);
    if (ranges->by_granule)
        munmap(ranges->by_granule, table_bytes(ranges));
    ranges->by_granule = NULL;
    cws_gpu_arena_close(&ranges->arena);
}

/* --- addresses ------------------------------------------------------------------------------------------- */

bool cws_gpu_owns(const struct cws_gpu *gpu, CUdeviceptr address)
{
    return cws_gpu_arena_has(&gpu->ranges.arena, address);
}

struct cws_gpu_range *cws_gpu_range_at_locked(const struct cws_gpu_ranges *ranges, CUdeviceptr address)
{
    if (!cws_gpu_arena_has(&ranges->arena, address))
        return NULL;
    const struct cws_gpu_extent *x = ranges->by_granule[cws_gpu_arena_index(&ranges->arena, address)];
    return x && !x->range->freed ? x->range : NULL;
}

bool cws_gpu_extent(struct cws_gpu *gpu, CUdeviceptr address, CUdeviceptr *out_base, size_t *out_bytes)
{
    cws_gpu_lock(&gpu->core);
    const struct cws_gpu_range *r = cws_gpu_range_at_locked(&gpu->ranges, address);
    bool found = r && address - r->base < r->bytes;
    if (found) {
        *out_base = r->base;
        *out_bytes = r->bytes;
    }
    cws_gpu_unlock(&gpu->core);
    return found;
}

void cws_gpu_pin(struct cws_gpu *gpu, CUdeviceptr address)
{
    cws_gpu_lock(&gpu->core);
    struct cws_gpu_range *r = cws_gpu_range_at_locked(&gpu->ranges, address);
    if (r)
        cws_gpu_range_pin_locked(r);
    cws_gpu_unlock(&gpu->core);
}

/* --- the check ---------------------------------------------------------------------------------------------- */

/* May its pieces be all that has its content? */
static bool rests_on_pieces(enum cws_extent_state s)
{
    return s == CWS_EXTENT_PARTIAL || s == CWS_EXTENT_BOUND || s == CWS_EXTENT_LOADING || s == CWS_EXTENT_RESIDENT ||
           s == CWS_EXTENT_DROPPING;
}

static const char *check_extent(const struct cws_gpu *gpu, const struct cws_gpu_extent *x)
{
    bool moves = x->state == CWS_EXTENT_MAKING || x->state == CWS_EXTENT_UNMAKING;
    bool wants_frame = cws_extent_is_mapped(x->state) || cws_extent_has_owner(x->state);
    if (!moves && wants_frame != (x->frame != NULL))
        return "I1: an extent has a frame in a state that has none, or none where there must be one";
    if (x->frame && x->frame->granules != x->granules)
        return "I2: a frame is not as large as its extent";
    if (!cws_gpu_is_bound(x) &&
        (x->state == CWS_EXTENT_BOUND || x->state == CWS_EXTENT_RESIDENT || x->state == CWS_EXTENT_DROPPING))
        return "I5: a bound extent has no source";
    if (cws_gpu_is_bound(x) &&
        (x->state == CWS_EXTENT_RESERVED || x->state == CWS_EXTENT_PARTIAL || x->state == CWS_EXTENT_ANONYMOUS))
        return "I5: each byte of an extent has a source, and it is not bound";
    if (!x->pieces.count && (x->state == CWS_EXTENT_PARTIAL || x->state == CWS_EXTENT_LOADING))
        return "I5: an extent that is filled in part has no source";
    for (uint32_t i = 0; i < x->pieces.count && rests_on_pieces(x->state); i++)
        if (cws_gpu_source_is_gone(x->pieces.list[i].source))
            return "I5: the only bytes of an adopted piece are gone";
    if (cws_extent_is_freed(x->state) && (!x->range->freed || x->pieces.count || x->spill.host))
        return "a freed extent has something left";
    if (x->state == CWS_EXTENT_DROPPING && x->holds && !cws_gpu_is_demanded(x) && gpu->uses.waiting == 0)
        return "I3: an extent that is held is being dropped";
    return cws_gpu_pieces_check(&x->pieces, x->bytes);
}

const char *cws_gpu_ranges_check(const struct cws_gpu *gpu)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    uint64_t classes[CWS_GPU_CLASSES] = {0}, bound = 0, frames = 0;
    uint32_t count = 0;
    for (const struct cws_list *l = gpu->frames.idle.next; l != &gpu->frames.idle; l = l->next)
        classes[CWS_CLASS_IDLE] += cws_gpu_frame_bytes(CWS_LIST_OF(l, const struct cws_gpu_frame, link));
    frames = classes[CWS_CLASS_IDLE];
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        const char *wrong = check_extent(gpu, x);
        if (wrong)
            return wrong;
        count += x == x->range->extents;
        frames += x->frame ? cws_gpu_span(x) : 0;
        classes[cws_extent_class(x->state)] += cws_gpu_span(x);
        bound += cws_gpu_is_bound(x) ? cws_gpu_span(x) : 0;
    }
    if (count != gpu->ranges.count)
        return "the ranges are miscounted";
    for (unsigned i = 0; i < CWS_GPU_CLASSES; i++)
        if (i != CWS_CLASS_NONE && classes[i] != b->of_class[i])
            return "an account disagrees with the extents";
    if (bound != b->bound)
        return "the account of bound bytes disagrees with the extents";
    /* not while a frame moves into an extent or out of one: for a moment it is in neither */
    return frames > b->frames ? "I2: frames are miscounted" : NULL;
}
