/* bind.c - binding: when the program copies a tensor of a store or of a file into a range, nothing is copied. The range
 * notes where its bytes come from, and is filled before its first use. */
#include "gpu.h"

#include <stdlib.h>

/* The tensor that is exactly these logical bytes, or NULL. */
static const struct cws_tensor_info *tensor_of(const struct cws_store *store, uint64_t offset, size_t bytes)
{
    const struct cws_tensor_info *t = cws_store_tensor_at(store, offset);
    return t && t->begin == offset && t->end - t->begin == bytes ? t : NULL;
}

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
            cws_gpu_spill_forget_locked(gpu, x);
            cws_gpu_frame_put(&gpu->frames, frame);
        }
        cws_gpu_extent_set_locked(gpu, x, unmapped ? CWS_EXTENT_RESERVED : CWS_EXTENT_ANONYMOUS);
        cws_gpu_extent_settle_locked(gpu, x);
    }
    cws_gpu_range_unname_locked(gpu, r);
    return unmapped;
}

/* The extent that the copy fills exactly, if it can be bound now; or NULL. */
static struct cws_gpu_extent *target_drops_lock(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream)
{
    struct cws_gpu_range *r = cws_gpu_range_at_locked(&gpu->ranges, to);
    if (!r || r->base != to || r->bytes != bytes || r->extent_count != 1 || r->extents->holds ||
        !cws_gpu_stream_can_record(&gpu->streams, stream))
        return NULL;
    if (r->extents->state == CWS_EXTENT_ANONYMOUS && !unmap_drops_lock(gpu, r->extents))
        return NULL;
    r = cws_gpu_range_at_locked(&gpu->ranges, to);
    /* bound already: this copy writes to it like any other */
    return r && r->base == to && r->bytes == bytes && r->extents->state == CWS_EXTENT_RESERVED ? r->extents : NULL;
}

static bool bind_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, struct cws_gpu_source *source)
{
    if (!source)
        return false;
    x->source = source;
    x->granules = cws_gpu_granules_of(x->bytes); /* its frame has its exact size */
    cws_gpu_budget_bind(&gpu->budget, cws_gpu_span(x));
    cws_gpu_order_add(&gpu->order, x);
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_BOUND);
    cws_gpu_source_want(&gpu->sources, source, false);
    return true;
}

bool cws_gpu_bind(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_store *store,
                  uint64_t offset)
{
    const struct cws_tensor_info *t = tensor_of(store, offset, bytes);
    if (gpu->core.dead || !t || bytes % 2 != 0)
        return false;
    cws_gpu_lock(&gpu->core);
    struct cws_gpu_extent *x = target_drops_lock(gpu, to, bytes, stream);
    bool bound = x && bind_locked(gpu, x, cws_gpu_source_get(&gpu->sources, store, t));
    cws_gpu_unlock(&gpu->core);
    return bound;
}

bool cws_gpu_bind_file(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_gpu_file *file,
                       uint64_t offset, const void *now)
{
    if (gpu->core.dead || bytes % 2 != 0)
        return false;
    struct cws_tensor_info *t = cws_gpu_file_describe(file, offset, bytes, now);
    if (!t)
        return false;
    cws_gpu_lock(&gpu->core);
    struct cws_gpu_extent *x = target_drops_lock(gpu, to, bytes, stream);
    bool bound = x && bind_locked(gpu, x, cws_gpu_source_of_file(&gpu->sources, file, t));
    cws_gpu_unlock(&gpu->core);
    if (!bound)
        free(t);
    return bound;
}
