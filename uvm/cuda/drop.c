/* drop.c - eviction of a bound extent. It is unmapped and its content is hashed through the frame's alias, piece by
 * piece. If the hashes are those of its sources, the frame is free. If not, the program wrote to the extent, nothing
 * else has these bytes, and so it is mapped again and stays. */
#include "gpu.h"

static struct cws_gpu_drop *drop_at(struct cws_gpu_drops *drops, unsigned i)
{
    return &drops->at[(drops->head + i) % CWS_GPU_DROPS];
}

static struct cws_gpu_check *check_of(struct cws_gpu *gpu, const struct cws_gpu_drop *drop)
{
    return &gpu->staging.checks[drop - gpu->drops.at];
}

static uint32_t pieces_of_check(const struct cws_gpu_drop *drop)
{
    uint32_t left = drop->extent->pieces.count - drop->checked;
    return left < CWS_GPU_CHECK_JOBS ? left : CWS_GPU_CHECK_JOBS;
}

/* Nobody else has its bytes: it stays, for good. */
static void written_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_DIRTY);
    cws_gpu_pieces_unneeded(&gpu->sources, &x->pieces);
    cws_gpu_order_lost(&gpu->order);
}

/* Hashes the next pieces, as many as one check has room for. */
static CUresult start(struct cws_gpu *gpu, const struct cws_gpu_drop *drop)
{
    const struct cws_gpu_extent *x = drop->extent;
    struct cws_gpu_check *check = check_of(gpu, drop);
    uint32_t count = pieces_of_check(drop);
    for (uint32_t i = 0; i < count; i++)
        check->jobs[i] = cws_gpu_piece_job(&x->pieces.list[drop->checked + i], x->frame->alias);
    CUresult result = cws_gpu_check_start(&gpu->staging, check, count, cws_content_key);
    return result == CUDA_SUCCESS ? gpu->core.driver->event_record(check->done, gpu->staging.check_stream) : result;
}

bool cws_gpu_drop_start_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    struct cws_gpu_drops *drops = &gpu->drops;
    if (drops->count == CWS_GPU_DROPS)
        return false;
    struct cws_gpu_drop *drop = drop_at(drops, drops->count);
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_DROPPING);
    drop->extent = x;
    drop->checked = 0;
    drop->begin_ns = cws_trace_is_on() ? cws_trace_now() : 0;
    drops->count++;
    drops->bytes += cws_gpu_span(x);
    cws_gpu_unlock(&gpu->core);
    CUresult result = cws_gpu_frame_unmap(&gpu->frames, x->frame, x->base);
    if (result == CUDA_SUCCESS) {
        result = start(gpu, drop);
        if (result != CUDA_SUCCESS) {
            gpu->core.driver->stream_sync(gpu->staging.check_stream); /* the control block is used again */
            cws_gpu_unexpected(&gpu->core, result, "hashing a range");
            cws_gpu_frame_map_again(&gpu->frames, x->frame, x->base);
        }
    }
    cws_gpu_lock(&gpu->core);
    if (result != CUDA_SUCCESS) { /* better too much memory than wrong bytes */
        drops->count--;
        drops->bytes -= cws_gpu_span(x);
        written_locked(gpu, x);
        cws_gpu_extent_settle_locked(gpu, x);
    }
    return true;
}

static void finish_drops_lock(struct cws_gpu *gpu, struct cws_gpu_drop *drop, bool same)
{
    struct cws_gpu_drops *drops = &gpu->drops;
    struct cws_gpu_extent *x = drop->extent;
    struct cws_gpu_frame *frame = x->frame;
    drops->bytes -= cws_gpu_span(x);
    if (drop->begin_ns)
        cws_gpu_trace_drop_slow_locked(gpu, drop, !same && !x->range->freed);
    drops->head = (drops->head + 1) % CWS_GPU_DROPS;
    drops->count--;
    if (same || x->range->freed) {
        x->frame = NULL;
        cws_gpu_frame_put(&gpu->frames, frame);
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_BOUND);
        drops->dropped++;
    } else {
        cws_gpu_unlock(&gpu->core);
        cws_gpu_frame_map_again(&gpu->frames, frame, x->base);
        cws_gpu_lock(&gpu->core);
        written_locked(gpu, x);
    }
    cws_gpu_extent_settle_locked(gpu, x);
}

/* Are these pieces what their sources have? */
static bool are_same(const struct cws_gpu_drop *drop, const struct cws_gpu_check *check)
{
    bool same = true;
    for (uint32_t i = 0; i < pieces_of_check(drop); i++) {
        struct cws_hash128 hash = cws_gpu_result_hash(&check->results[i]);
        struct cws_hash128 theirs = cws_gpu_piece_hash(&drop->extent->pieces.list[drop->checked + i]);
        same &= hash.lo == theirs.lo && hash.hi == theirs.hi;
    }
    return same;
}

/* There are more pieces than were hashed. False: these cannot be. */
static bool go_on_drops_lock(struct cws_gpu *gpu, struct cws_gpu_drop *drop)
{
    drop->checked += pieces_of_check(drop);
    cws_gpu_unlock(&gpu->core);
    CUresult result = start(gpu, drop);
    if (result != CUDA_SUCCESS) {
        gpu->core.driver->stream_sync(gpu->staging.check_stream);
        cws_gpu_unexpected(&gpu->core, result, "hashing a range");
    }
    cws_gpu_lock(&gpu->core);
    return result == CUDA_SUCCESS;
}

bool cws_gpu_drops_reap_drops_lock(struct cws_gpu *gpu)
{
    bool moved = false;
    while (gpu->drops.count) {
        struct cws_gpu_drop *drop = drop_at(&gpu->drops, 0);
        const struct cws_gpu_check *check = check_of(gpu, drop);
        CUresult result = gpu->core.driver->event_query(check->done);
        if (result == CUDA_ERROR_NOT_READY)
            break;
        bool same = result == CUDA_SUCCESS && are_same(drop, check);
        bool more = same && drop->checked + pieces_of_check(drop) < drop->extent->pieces.count;
        moved = true;
        if (more && !drop->extent->range->freed && go_on_drops_lock(gpu, drop))
            continue;
        finish_drops_lock(gpu, drop, same && !more);
    }
    return moved;
}

unsigned cws_gpu_drops_of(const struct cws_gpu_drops *drops, uint32_t granules)
{
    unsigned count = 0;
    for (unsigned i = 0; i < drops->count; i++)
        count += drops->at[(drops->head + i) % CWS_GPU_DROPS].extent->granules == granules;
    return count;
}

bool cws_gpu_drop_is_ready(const struct cws_gpu *gpu)
{
    return gpu->drops.count &&
           gpu->core.driver->event_query(gpu->staging.checks[gpu->drops.head].done) != CUDA_ERROR_NOT_READY;
}

const char *cws_gpu_drops_check(const struct cws_gpu *gpu)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < gpu->drops.count; i++) {
        const struct cws_gpu_extent *x = gpu->drops.at[(gpu->drops.head + i) % CWS_GPU_DROPS].extent;
        if (x->state != CWS_EXTENT_DROPPING)
            return "drops: one that is under way is in another state";
        bytes += cws_gpu_span(x);
    }
    return bytes != gpu->drops.bytes ? "drops: their bytes are miscounted" : NULL;
}
