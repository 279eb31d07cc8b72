/* drop.c - eviction of a bound range. The range is unmapped and its content is hashed through the frame's alias. If the
 * hash is the source's, the frame is free. If not, the program wrote to the range, nothing else has these bytes, and so
 * it is mapped again and stays. */
#include "state.h"

/* Hashing has a stream of its own, and its job is read from host memory: on the stream of decodes or of copies an
 * eviction would wait for them. */
CUresult cws_gpu_drop_hash(struct cws_gpu *gpu, struct cws_gpu_drop *drop, CUdeviceptr alias, size_t bytes)
{
    const struct cws_driver *d = gpu->driver;
    struct cws_gpu_batch batch;
    struct cws_error err = {0};
    *drop->job = (struct cws_gpu_hash_job){.address = alias, .bytes = bytes};
    if (cws_gpu_hash_plan(drop->job, 1, &batch, &err))
        return CUDA_ERROR_UNKNOWN;
    /* the kernel adds to it */
    CUresult result = d->set8_async(drop->device_result, 0, sizeof *drop->result, gpu->drop_stream);
    if (result == CUDA_SUCCESS && cws_gpu_hash(gpu->decoder, gpu->drop_stream, (CUdeviceptr)(uintptr_t)drop->job,
                                               &batch, drop->device_result, cws_content_key, &err))
        result = CUDA_ERROR_UNKNOWN;
    return result == CUDA_SUCCESS
               ? d->copy_out_async(drop->result, drop->device_result, sizeof *drop->result, gpu->drop_stream)
               : result;
}

static CUresult start(struct cws_gpu *gpu, struct cws_gpu_drop *drop)
{
    CUresult result = cws_gpu_drop_hash(gpu, drop, drop->range->frame->alias, drop->range->bytes);
    return result == CUDA_SUCCESS ? gpu->driver->event_record(drop->done, gpu->drop_stream) : result;
}

/* The caller has made sure that nobody holds the range and that its uses are done. */
bool cws_gpu_drop_start_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    if (gpu->drop_count == CWS_GPU_DROPS)
        return false;
    struct cws_gpu_drop *drop = &gpu->drops[(gpu->drop_head + gpu->drop_count) % CWS_GPU_DROPS];
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_DROPPING);
    drop->range = r;
    drop->begin_ns = cws_trace_is_on() ? cws_trace_now() : 0;
    gpu->drop_count++;
    gpu->drop_bytes += cws_gpu_span(r);
    pthread_mutex_unlock(&gpu->lock);
    CUresult result = cws_gpu_unmap(gpu, r);
    if (result == CUDA_SUCCESS) {
        result = start(gpu, drop);
        if (result != CUDA_SUCCESS) {
            gpu->driver->stream_sync(gpu->drop_stream); /* the control block is used again */
            cws_gpu_unexpected(gpu, result, "hashing a range");
            cws_gpu_map_again(gpu, r, r->frame);
        }
    }
    pthread_mutex_lock(&gpu->lock);
    if (result != CUDA_SUCCESS) { /* it stays, for good: better too much memory than wrong bytes */
        gpu->drop_count--;
        gpu->drop_bytes -= cws_gpu_span(r);
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_DIRTY);
        cws_gpu_source_unneeded_locked(gpu, r->source);
        if (r->freed)
            cws_gpu_range_cache_locked(gpu, r);
        pthread_cond_broadcast(&gpu->changed);
    }
    return true;
}

static void finish_locked(struct cws_gpu *gpu, struct cws_gpu_drop *drop, bool same)
{
    struct cws_gpu_range *r = drop->range;
    struct cws_gpu_frame *frame = r->frame;
    gpu->drop_bytes -= cws_gpu_span(r);
    if (drop->begin_ns)
        cws_gpu_trace_drop_slow_locked(gpu, drop, !same && !r->freed);
    gpu->drop_head = (gpu->drop_head + 1) % CWS_GPU_DROPS;
    gpu->drop_count--;
    if (same || r->freed) {
        r->frame = NULL;
        cws_gpu_frame_put_idle_locked(gpu, frame);
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_BOUND);
        gpu->counts.drops++;
        if (r->freed)
            cws_gpu_range_end_locked(gpu, r);
    } else {
        pthread_mutex_unlock(&gpu->lock);
        cws_gpu_map_again(gpu, r, frame);
        pthread_mutex_lock(&gpu->lock);
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_DIRTY);
        cws_gpu_source_unneeded_locked(gpu, r->source);
        gpu->order.plan_due = true;
        if (r->freed)
            cws_gpu_range_cache_locked(gpu, r);
    }
    pthread_cond_broadcast(&gpu->changed);
}

bool cws_gpu_drops_reap_locked(struct cws_gpu *gpu)
{
    bool moved = false;
    while (gpu->drop_count) {
        struct cws_gpu_drop *drop = &gpu->drops[gpu->drop_head];
        CUresult result = gpu->driver->event_query(drop->done);
        if (result == CUDA_ERROR_NOT_READY)
            break;
        const struct cws_tensor_record *record = drop->range->source->tensor->record;
        struct cws_hash128 hash = cws_gpu_result_hash(drop->result);
        bool same = result == CUDA_SUCCESS && hash.lo == record->content_hash[0] && hash.hi == record->content_hash[1];
        finish_locked(gpu, drop, same);
        moved = true;
    }
    return moved;
}

bool cws_gpu_drop_is_ready(const struct cws_gpu *gpu)
{
    return gpu->drop_count && gpu->driver->event_query(gpu->drops[gpu->drop_head].done) != CUDA_ERROR_NOT_READY;
}
