/* bind.c - binding: when the program copies a tensor of a store or of a file into a range, nothing is copied. The range
 * notes where its bytes come from, and is filled before its first use. */
#include "state.h"

#include <stdlib.h>

/* The tensor that is exactly these logical bytes, or NULL. */
static const struct cws_tensor_info *tensor_of(const struct cws_store *store, uint64_t offset, size_t bytes)
{
    const struct cws_tensor_info *t = cws_store_tensor_at(store, offset);
    return t && t->begin == offset && t->end - t->begin == bytes ? t : NULL;
}

/* Takes a range's memory away: only a range that was used before has any. True: it has none now. */
static bool unmap_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    cws_gpu_uses_wait_locked(gpu, r);
    if (r->holds || !cws_gpu_is_mapped(r->state) || r->freed)
        return false;
    struct cws_gpu_frame *frame = r->frame;
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_MAKING);
    pthread_mutex_unlock(&gpu->lock);
    CUresult result = cws_gpu_unmap(gpu, r);
    pthread_mutex_lock(&gpu->lock);
    if (result != CUDA_SUCCESS) {
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_ANONYMOUS);
    } else {
        r->frame = NULL;
        cws_gpu_spill_forget_locked(gpu, r);
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_RESERVED);
        cws_gpu_frame_put_idle_locked(gpu, frame);
    }
    pthread_cond_broadcast(&gpu->changed);
    return result == CUDA_SUCCESS;
}

/* The range that the copy fills exactly, if it can be bound now; or NULL. Drops `lock`. */
static struct cws_gpu_range *target_locked(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream)
{
    struct cws_gpu_range *r = cws_gpu_range_at_locked(gpu, to);
    struct cws_gpu_stream *s = cws_gpu_stream_locked(gpu, stream);
    if (!r || r->base != to || r->bytes != bytes || r->holds || !s || cws_gpu_stream_captures_locked(gpu, s))
        return NULL;
    if (r->state == CWS_RANGE_ANONYMOUS && !unmap_locked(gpu, r))
        return NULL;
    return r->state == CWS_RANGE_RESERVED ? r : NULL; /* bound already: this copy writes to it like any other */
}

static bool bind_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, struct cws_gpu_source *source)
{
    if (!source)
        return false;
    r->source = source;
    gpu->bound_bytes += cws_gpu_span(r);
    cws_gpu_order_add_locked(gpu, r);
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_BOUND);
    cws_gpu_source_want_locked(gpu, source, false);
    return true;
}

bool cws_gpu_bind(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_store *store,
                  uint64_t offset)
{
    const struct cws_tensor_info *t = tensor_of(store, offset, bytes);
    if (gpu->dead || !t || bytes % 2 != 0)
        return false;
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_range *r = target_locked(gpu, to, bytes, stream);
    bool bound = r && bind_locked(gpu, r, cws_gpu_source_get_locked(gpu, store, t));
    pthread_mutex_unlock(&gpu->lock);
    return bound;
}

bool cws_gpu_bind_file(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_gpu_file *file,
                       uint64_t offset, const void *now)
{
    if (gpu->dead || bytes % 2 != 0)
        return false;
    struct cws_tensor_info *t = cws_gpu_file_describe(file, offset, bytes, now);
    if (!t)
        return false;
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_range *r = target_locked(gpu, to, bytes, stream);
    bool bound = r && bind_locked(gpu, r, cws_gpu_source_of_file_locked(gpu, file, t));
    pthread_mutex_unlock(&gpu->lock);
    if (!bound)
        free(t);
    return bound;
}
