/* bind.c - binding: when the program copies a tensor of a store or of a file, or chunks of one, into a range, nothing
 * is copied. The range notes where its bytes come from, and is filled before its first use. Where it has memory
 * already, or is used before all of it is bound, the copy is made, and what was copied is noted: once each of its bytes
 * has a source, it is bound, too. */
#include "gpu.h"

#include <stdlib.h>

/* Takes an extent's memory away: only one that was used before has any. True: it has none now. What is pinned stays
 * mapped: a kernel may reach it that nobody sees. */
static bool unmap_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    struct cws_gpu_range *r = x->range;
    if (r->pinned)
        return false;
    cws_gpu_range_name_locked(r); /* another thread may free it meanwhile */
    cws_gpu_users_wait_drops_lock(&gpu->streams, &x->users);
    bool unmapped = false;
    if (!x->holds && x->state == CWS_EXTENT_ANONYMOUS && !r->freed && !r->pinned) {
        struct cws_gpu_frame *frame = x->frame;
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_UNMAKING);
        cws_gpu_unlock(&gpu->core);
        unmapped = cws_gpu_frame_unmap(&gpu->frames, frame, x->base) == CUDA_SUCCESS;
        cws_gpu_lock(&gpu->core);
        if (unmapped) {
            x->frame = NULL;
            cws_gpu_pieces_clear(&gpu->sources, &x->pieces);
            cws_gpu_spill_forget_locked(gpu, x);
            cws_gpu_frame_put(&gpu->frames, frame);
        }
        cws_gpu_extent_set_locked(gpu, x, unmapped ? CWS_EXTENT_RESERVED : CWS_EXTENT_ANONYMOUS);
        cws_gpu_extent_settle_locked(gpu, x);
    }
    cws_gpu_range_unname_locked(gpu, r);
    return unmapped;
}

struct cws_gpu_extent *cws_gpu_bind_around_locked(const struct cws_gpu *gpu, CUdeviceptr address, size_t bytes)
{
    struct cws_gpu_range *r = cws_gpu_range_at_locked(&gpu->ranges, address);
    size_t at = r ? address - r->base : 0;
    return r && r->extent_count == 1 && at < r->bytes && bytes <= r->bytes - at ? r->extents : NULL;
}

static bool can_fill(const struct cws_gpu_extent *x, CUdeviceptr to, size_t bytes)
{
    return !x->holds && (x->state == CWS_EXTENT_RESERVED || x->state == CWS_EXTENT_PARTIAL) &&
           cws_gpu_pieces_may_fill(&x->pieces, to - x->base, bytes);
}

/* One that is bound already is written to like any other. */
struct cws_gpu_extent *cws_gpu_bind_target_drops_lock(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes,
                                                      CUstream stream)
{
    struct cws_gpu_extent *x = cws_gpu_bind_around_locked(gpu, to, bytes);
    if (!x || x->holds || !cws_gpu_stream_can_record(&gpu->streams, stream))
        return NULL;
    if (x->state == CWS_EXTENT_ANONYMOUS && (bytes != x->bytes || !unmap_drops_lock(gpu, x)))
        return NULL;
    x = cws_gpu_bind_around_locked(gpu, to, bytes);
    return x && can_fill(x, to, bytes) ? x : NULL;
}

bool cws_gpu_may_bind(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes)
{
    if (gpu->core.dead)
        return false;
    cws_gpu_lock(&gpu->core);
    const struct cws_gpu_extent *x = cws_gpu_bind_around_locked(gpu, to, bytes);
    bool may = x && (x->state == CWS_EXTENT_ANONYMOUS || can_fill(x, to, bytes));
    cws_gpu_unlock(&gpu->core);
    return may;
}

/* Each byte of it has a source now. */
static void bound_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, enum cws_extent_state to)
{
    cws_gpu_budget_bind(&gpu->budget, cws_gpu_span(x));
    cws_gpu_order_add(&gpu->order, x);
    cws_gpu_extent_set_locked(gpu, x, to);
}

bool cws_gpu_bind_put_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, const struct cws_gpu_piece *piece)
{
    if (!cws_gpu_pieces_put(&gpu->sources, &x->pieces, piece)) {
        cws_gpu_source_put(&gpu->sources, piece->source);
        return false;
    }
    x->granules = cws_gpu_granules_of(x->bytes); /* its frame has its exact size */
    if (cws_gpu_is_bound(x))
        bound_locked(gpu, x, CWS_EXTENT_BOUND);
    else if (x->state == CWS_EXTENT_RESERVED)
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_PARTIAL);
    cws_gpu_source_want(&gpu->sources, piece->source, piece->first_chunk, piece->chunk_count);
    cws_gpu_look_filled_locked(gpu, x);
    return true;
}

void cws_gpu_bind_kept_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool was_bound)
{
    if (was_bound)
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_RESIDENT);
    else
        bound_locked(gpu, x, CWS_EXTENT_RESIDENT);
}

void cws_gpu_bind_found_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool was_bound)
{
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_BOUND);
    if (was_bound)
        return;
    x->granules = cws_gpu_granules_of(x->bytes);
    cws_gpu_budget_bind(&gpu->budget, cws_gpu_span(x));
    cws_gpu_order_add(&gpu->order, x);
}

/* Binds what a copy to `to` brings. Takes over the piece's reference. */
static bool bind_drops_lock(struct cws_gpu *gpu, CUdeviceptr to, CUstream stream, struct cws_gpu_piece *piece)
{
    struct cws_gpu_extent *x = cws_gpu_bind_target_drops_lock(gpu, to, piece->bytes, stream);
    if (!x) {
        cws_gpu_source_put(&gpu->sources, piece->source);
        return false;
    }
    piece->at = to - x->base;
    return cws_gpu_bind_put_locked(gpu, x, piece);
}

/* The logical bytes of a store that a copy brings, as a piece of an extent. */
static const struct cws_tensor_info *tensor_of(const struct cws_store *store, uint64_t offset, size_t bytes,
                                               CUdeviceptr to, struct cws_gpu_piece *piece)
{
    const struct cws_tensor_info *t = cws_store_tensor_at(store, offset);
    /* extents begin at granules: any place in one will do here */
    return t && cws_gpu_piece_of(t, offset - t->begin, bytes, to % CWS_GPU_GRANULE, piece) ? t : NULL;
}

bool cws_gpu_bind(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_store *store,
                  uint64_t offset)
{
    struct cws_gpu_piece piece;
    const struct cws_tensor_info *t = tensor_of(store, offset, bytes, to, &piece);
    if (gpu->core.dead || !t)
        return false;
    cws_gpu_lock(&gpu->core);
    cws_gpu_known_add(&gpu->proofs.known, store);
    piece.source = cws_gpu_source_get(&gpu->sources, store, t); /* before the target loses its memory */
    bool bound = piece.source && bind_drops_lock(gpu, to, stream, &piece);
    cws_gpu_unlock(&gpu->core);
    return bound;
}

bool cws_gpu_bind_file(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_gpu_file *file,
                       uint64_t offset, const void *now)
{
    struct cws_gpu_piece piece;
    if (gpu->core.dead || bytes % 2 != 0 || to % 16 != 0)
        return false;
    struct cws_tensor_info *t = cws_gpu_file_describe(file, offset, bytes, now);
    if (!t)
        return false;
    cws_gpu_lock(&gpu->core);
    piece.source = cws_gpu_piece_of(t, 0, bytes, to % CWS_GPU_GRANULE, &piece)
                       ? cws_gpu_source_of_file(&gpu->sources, file, t)
                       : NULL;
    bool known = piece.source != NULL; /* then the source owns t */
    bool bound = known && bind_drops_lock(gpu, to, stream, &piece);
    cws_gpu_unlock(&gpu->core);
    if (!known)
        free(t);
    return bound;
}

/* --- copies that were made ---------------------------------------------------------------------------------- */

void cws_gpu_bind_note_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, const struct cws_gpu_piece *piece)
{
    if (x->state != CWS_EXTENT_ANONYMOUS || !cws_gpu_pieces_put(&gpu->sources, &x->pieces, piece)) {
        cws_gpu_source_put(&gpu->sources, piece->source);
        return;
    }
    if (!cws_gpu_is_bound(x))
        return;
    /* Its frame stays as it is; whether nobody wrote there since is seen when it is to be dropped. */
    cws_gpu_spill_forget_locked(gpu, x);
    bound_locked(gpu, x, CWS_EXTENT_RESIDENT);
    cws_gpu_wake_locked(&gpu->core);
}

void cws_gpu_copied(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, struct cws_store *store, uint64_t offset)
{
    struct cws_gpu_piece piece;
    const struct cws_tensor_info *t = tensor_of(store, offset, bytes, to, &piece);
    if (gpu->core.dead || !t)
        return;
    cws_gpu_lock(&gpu->core);
    struct cws_gpu_extent *x = cws_gpu_bind_around_locked(gpu, to, bytes);
    if (x && x->state == CWS_EXTENT_ANONYMOUS) {
        piece.at = to - x->base;
        piece.source = cws_gpu_source_get(&gpu->sources, store, t);
        if (piece.source)
            cws_gpu_bind_note_locked(gpu, x, &piece);
    }
    cws_gpu_unlock(&gpu->core);
}
