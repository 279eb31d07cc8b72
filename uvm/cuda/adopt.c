/* adopt.c - adoption of what the program copies to the device from ordinary host memory, and of what it has there when
 * memory is short. */
#include "gpu.h"
#include "raw.h"

#include <stdlib.h>
#include <string.h>

enum { TRIES = 2, ROUNDS = 16 }; /* adopted so often, and changed since: it is left alone for so many rounds */

static struct cws_tensor_info *describe(size_t bytes, const void *host, const char *name)
{
    const struct cws_tensor_info like = {.name = name, .dtype = CWS_U8, .dtype_name = "U8"};
    return cws_gpu_raw_describe(&like, bytes, host);
}

/* --- at a copy ------------------------------------------------------------------------------------------------ */

/* Does the copy fill an extent, or a part of one, that can be bound? One that has memory from the reserve takes part in
 * a round already, unless weights are still to come (rest). */
static bool is_target_locked(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, uint64_t rest)
{
    struct cws_gpu_extent *x = cws_gpu_bind_around_locked(gpu, to, bytes);
    if (!x || x->holds || x->range->pinned)
        return false;
    x->adoptable.brought |= x->state == CWS_EXTENT_RESERVED && bytes == x->bytes;
    bool fresh = x->state == CWS_EXTENT_RESERVED || x->state == CWS_EXTENT_PARTIAL;
    bool fits = fresh ? cws_gpu_pieces_may_fill(&x->pieces, to - x->base, bytes)
                      : x->state == CWS_EXTENT_ANONYMOUS && rest && bytes == x->bytes;
    return fits && cws_gpu_stream_can_record(&gpu->streams, stream);
}

bool cws_gpu_adopt_is_short_locked(const struct cws_gpu *gpu, uint64_t more)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    uint64_t taken = cws_gpu_budget_undroppable(b) + b->bound + more;
    return taken > b->bytes - b->bytes / gpu->core.tuning->adopt_free_share;
}

bool cws_gpu_adopt_wants(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, uint64_t expected)
{
    struct cws_gpu_adopts *adopts = &gpu->adopts;
    if (gpu->core.dead || !gpu->config.adopt || bytes < CWS_GPU_RANGE_MIN || bytes % 2 != 0 || to % 16 != 0)
        return false;
    cws_gpu_lock(&gpu->core);
    /* a store whose tensors come as copies has them unbound until the end */
    uint64_t rest = expected > adopts->copied ? expected - adopts->copied : 0;
    bool wants = is_target_locked(gpu, to, bytes, stream, rest);
    if (wants) {
        cws_gpu_look_filled_locked(gpu, NULL);
        adopts->copied = expected ? adopts->copied + bytes : 0;
        wants = cws_gpu_adopt_is_short_locked(gpu, bytes > rest ? bytes : rest);
    }
    cws_gpu_unlock(&gpu->core);
    return wants;
}

/* Pinned memory with these bytes, and what describes them. False: there is none; *host is the caller's where it is not
 * NULL. */
static bool copy(const struct cws_gpu *gpu, const void *from, size_t bytes, void **host,
                 struct cws_tensor_info **tensor)
{
    const struct cws_driver *d = gpu->core.driver;
    *host = NULL;
    if (d->host_alloc(host, cws_gpu_host_bytes_of(bytes), CU_MEMHOSTALLOC_PORTABLE) != CUDA_SUCCESS)
        return false;
    memcpy(*host, from, bytes);
    *tensor = describe(bytes, *host, "copied by the program"); /* of the copy: another thread may write to the source */
    return *tensor != NULL;
}

/* *tensor and *host are NULL where the source owns them, or owned them. */
static bool bind_drops_lock(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, void **host,
                            struct cws_tensor_info **tensor)
{
    struct cws_gpu_piece piece;
    struct cws_gpu_extent *x = cws_gpu_bind_target_drops_lock(gpu, to, bytes, stream);
    if (!x || !cws_gpu_piece_of(*tensor, 0, bytes, to - x->base, &piece))
        return false;
    piece.source = cws_gpu_source_of_memory(&gpu->sources, *tensor, *host, cws_gpu_host_bytes_of(bytes));
    if (!piece.source)
        return false;
    *host = NULL;
    *tensor = NULL;
    return cws_gpu_bind_put_locked(gpu, x, &piece);
}

static bool adopt(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, const void *from)
{
    struct cws_tensor_info *tensor = NULL;
    size_t host_bytes = cws_gpu_host_bytes_of(bytes);
    void *host = NULL;
    cws_gpu_lock(&gpu->core);
    bool taken = cws_gpu_host_reserve_drops_lock(&gpu->sources, host_bytes);
    gpu->adopts.refused += taken ? 0 : bytes;
    cws_gpu_unlock(&gpu->core);
    if (!taken)
        return false;
    bool copied = copy(gpu, from, bytes, &host, &tensor), pinned = host != NULL;
    cws_gpu_lock(&gpu->core);
    bool bound = copied && bind_drops_lock(gpu, to, bytes, stream, &host, &tensor);
    if (!pinned)
        cws_gpu_host_untake(&gpu->sources, host_bytes);
    else if (host) /* a fetcher frees it */
        cws_gpu_host_give(&gpu->sources, host, host_bytes);
    cws_gpu_unlock(&gpu->core);
    free(tensor);
    return bound;
}

bool cws_gpu_adopt(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, const void *from)
{
    bool exchanged;
    if (gpu->core.dead)
        return false;
    /* host memory is pinned and freed, and another stream may capture */
    CUstreamCaptureMode mode = cws_driver_relax(gpu->core.driver, &exchanged);
    bool bound = adopt(gpu, to, bytes, stream, from);
    cws_driver_restore(gpu->core.driver, mode, exchanged);
    return bound;
}

/* --- from the device -------------------------------------------------------------------------------------------- */

bool cws_gpu_adopt_may_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool *old)
{
    struct cws_gpu_adoptable *a = &x->adoptable;
    *old = gpu->uses.begun - x->used >= gpu->core.tuning->spill_unused_long || cws_gpu_is_brought(x);
    if (!gpu->config.adopt || x->bytes < CWS_GPU_RANGE_MIN || x->bytes % 2 != 0 || gpu->order.order.at < a->until)
        return false;
    if (a->count < TRIES)
        return true;
    a->count = 0;
    a->until = gpu->order.order.at +
               cws_gpu_order_rounds(&gpu->order, ROUNDS, ROUNDS * gpu->core.tuning->spill_unused_long);
    return false;
}

struct cws_tensor_info *cws_gpu_adopt_describe(const struct cws_gpu_extent *x, const void *host,
                                               struct cws_hash128 hash)
{
    struct cws_tensor_info *t = describe(x->bytes, host, "memory of the program");
    if (t && (t->record->content_hash[0] != hash.lo || t->record->content_hash[1] != hash.hi)) {
        free(t);
        return NULL;
    }
    return t;
}

/* Its content gets a source, whose memory `host` is, counted as the extent's span: its one piece. False: no memory, and
 * nothing changed. */
static bool put_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, void *host, struct cws_tensor_info *tensor)
{
    struct cws_gpu_adoptable *a = &x->adoptable;
    struct cws_gpu_piece piece;
    bool was_bound = cws_gpu_is_bound(x); /* to what it was before it was written to */
    if (!cws_gpu_piece_of(tensor, 0, x->bytes, 0, &piece) || !cws_gpu_pieces_make_room(&x->pieces))
        return false;
    piece.source = cws_gpu_source_of_memory(&gpu->sources, tensor, host, cws_gpu_span(x));
    if (!piece.source || !cws_gpu_pieces_put(&gpu->sources, &x->pieces, &piece))
        return false; /* the latter cannot be */
    a->own |= a->brought ? a->count > 0 : !was_bound;
    a->count++;
    gpu->adopts.taken++;
    return true;
}

bool cws_gpu_adopt_spilled_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, void *host,
                                  struct cws_tensor_info *tensor)
{
    bool was_bound = cws_gpu_is_bound(x);
    if (!put_locked(gpu, x, host, tensor))
        return false;
    cws_gpu_bind_found_locked(gpu, x, was_bound);
    return true;
}

/* --- while it stays on the device --------------------------------------------------------------------------- */

/* Pinned memory of the extent's span, counted. NULL: there is none. */
static void *new_host_drops_lock(struct cws_gpu *gpu, const struct cws_gpu_extent *x)
{
    void *host = NULL;
    /* compressed bytes stay: weights are worth more there than what is on the device anyway */
    if (cws_gpu_host_unused(&gpu->sources) < cws_gpu_span(x) ||
        !cws_gpu_host_reserve_drops_lock(&gpu->sources, cws_gpu_span(x))) {
        gpu->adopts.refused += x->bytes;
        return NULL;
    }
    cws_gpu_unlock(&gpu->core);
    bool pinned = gpu->core.driver->host_alloc(&host, x->bytes, CU_MEMHOSTALLOC_PORTABLE) == CUDA_SUCCESS;
    cws_gpu_lock(&gpu->core);
    if (!pinned)
        cws_gpu_host_untake(&gpu->sources, cws_gpu_span(x));
    return pinned ? host : NULL;
}

bool cws_gpu_adopt_kept_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    struct cws_hash128 hash = x->look.hash;
    void *host = cws_gpu_spill_take_copy_locked(gpu, x);
    bool kept = host != NULL; /* when it was spilled: of the same hash, as describing it checks */
    host = host ? host : new_host_drops_lock(gpu, x);
    if (!host)
        return false;
    cws_gpu_unlock(&gpu->core);
    /* what a kernel writes meanwhile makes another hash, of the host's bytes or of the device's */
    bool good = kept || cws_gpu_move_and_hash(gpu, x, host, NULL, &hash) == CUDA_SUCCESS;
    struct cws_tensor_info *tensor = good ? cws_gpu_adopt_describe(x, host, hash) : NULL;
    cws_gpu_lock(&gpu->core);
    if (tensor && !x->range->freed && put_locked(gpu, x, host, tensor))
        return true;
    free(tensor);
    cws_gpu_host_give(&gpu->sources, host, cws_gpu_span(x));
    return false;
}

/* --- host memory for spills -------------------------------------------------------------------------------------- */

/* Bytes of host memory that giving it up would free. */
static uint64_t doubled_of(const struct cws_gpu_extent *x)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < x->pieces.count && x->state == CWS_EXTENT_RESIDENT; i++) {
        const struct cws_gpu_source *s = x->pieces.list[i].source;
        bytes += cws_gpu_source_is_adopted(s) && s->parts[0].host && s->refs == 1 ? s->parts[0].host_bytes : 0;
    }
    return bytes;
}

uint64_t cws_gpu_adopt_doubled_locked(const struct cws_gpu *gpu)
{
    uint64_t bytes = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        bytes += doubled_of(x);
    return bytes;
}

bool cws_gpu_adopt_give_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_extent *best = NULL;
    for (struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        if (doubled_of(x) && (!best || x->used > best->used))
            best = x;
    if (!best)
        return false;
    cws_gpu_extent_set_locked(gpu, best, CWS_EXTENT_DIRTY);
    cws_gpu_pieces_unneeded(&gpu->sources, &best->pieces);
    cws_gpu_order_lost(&gpu->order);
    return true;
}

/* --- for the user ------------------------------------------------------------------------------------------------ */

void cws_gpu_adopt_explain_locked(struct cws_gpu *gpu)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    struct cws_gpu_adopts *adopts = &gpu->adopts;
    uint64_t stays = b->of_class[CWS_CLASS_FIXED];
    if (adopts->explained || stays <= b->bound || stays < b->bytes / 2)
        return;
    adopts->explained = true;
    const char *why = !gpu->config.adopt ? "CODEC_ADOPT=0 is set"
                      : adopts->refused  ? "CODEC_HOST_BUDGET is used up"
                                         : "kernels wrote it: weights that a loader merges or converts on the GPU "
                                           "(convert them on the CPU, or save the model as it is then), caches or "
                                           "activations";
    cws_gpu_say(&gpu->core, "%llu MiB on the GPU are no bytes of a file and not adopted, so they are not paged: %s",
                (unsigned long long)(stays >> 20), why);
}
