/* spill.c - spilling: content that no source can give back (weights that were written to, the program's own data) goes
 * to pinned host memory when nothing else can be evicted, and comes back when it is used. Its hash is compared before
 * the device memory is given away, and again when it is back. The copy is kept while host memory lasts: what is only
 * read from then on is not copied out again. Where host memory is short, or anything fails, the range stays. The loader
 * does all of this, one range at a time. */
#include "state.h"

#include <string.h>

/* Launches; an allocation of the program that was used since then is not worth the way out and back, nor is what hidden
 * pointers reach. A written weight goes whenever nothing else can: the launch would fail. */
enum { UNUSED_LONG = 1024 };

static bool is_candidate(const struct cws_gpu *gpu, const struct cws_gpu_range *r)
{
    uint64_t age = gpu->uses - r->used;
    if (r->holds || r->pinned || r->freed || r->demanded)
        return false;
    return (r->state == CWS_RANGE_DIRTY && age >= 1) || (r->state == CWS_RANGE_ANONYMOUS && age >= UNUSED_LONG);
}

uint64_t cws_gpu_spillable_locked(const struct cws_gpu *gpu)
{
    uint64_t bytes = 0, left = cws_gpu_host_left_locked(gpu);
    for (const struct cws_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        const struct cws_gpu_range *r = CWS_LIST_OF(l, const struct cws_gpu_range, link);
        if (!r->keeps && cws_gpu_span(r) <= left && is_candidate(gpu, r)) {
            bytes += cws_gpu_span(r);
            left -= cws_gpu_span(r);
        }
    }
    return bytes;
}

/* The hash of a range's bytes through its frame's alias, and a copy of them: into `out`, or from `in` before. Waits for
 * it. */
static CUresult move_and_hash(struct cws_gpu *gpu, const struct cws_gpu_range *r, CUdeviceptr alias, void *out,
                              const void *in, struct cws_hash128 *hash)
{
    const struct cws_driver *d = gpu->driver;
    struct cws_gpu_drop *control = &gpu->drops[CWS_GPU_DROPS];
    *control->result = (struct cws_gpu_result){0};
    CUresult result = in ? d->copy_in_async(alias, in, r->bytes, gpu->drop_stream) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        result = cws_gpu_drop_hash(gpu, control, alias, r->bytes);
    if (result == CUDA_SUCCESS && out)
        result = d->copy_out_async(out, alias, r->bytes, gpu->drop_stream);
    /* also after an error: what was queued uses this memory */
    CUresult waited = d->stream_sync(gpu->drop_stream);
    *hash = cws_gpu_result_hash(control->result);
    return result == CUDA_SUCCESS ? waited : result;
}

static bool has_hash(const void *host, size_t bytes, struct cws_hash128 hash)
{
    struct cws_hash128 sum = {0};
    cws_content_hash_add(&sum, cws_content_key, host, bytes, 0);
    return sum.lo == hash.lo && sum.hi == hash.hi;
}

/* Is the copy that was kept what lies on the device? *hash: of the device's bytes. */
static bool is_kept(struct cws_gpu *gpu, const struct cws_gpu_range *r, const void *host, struct cws_hash128 *hash)
{
    return move_and_hash(gpu, r, r->frame->alias, NULL, NULL, hash) == CUDA_SUCCESS && hash->lo == r->spill_hash.lo &&
           hash->hi == r->spill_hash.hi && has_hash(host, r->bytes, *hash);
}

/* *host: the copy that was kept, or NULL; NULL if this fails. */
static bool copy_out(struct cws_gpu *gpu, const struct cws_gpu_range *r, void **host, struct cws_hash128 *hash)
{
    if (*host && is_kept(gpu, r, *host, hash))
        return true;
    if (!*host && gpu->driver->host_alloc(host, r->bytes, CU_MEMHOSTALLOC_PORTABLE) != CUDA_SUCCESS)
        return false;
    bool good = move_and_hash(gpu, r, r->frame->alias, *host, NULL, hash) == CUDA_SUCCESS;
    if (good && !has_hash(*host, r->bytes, *hash)) {
        cws_gpu_say(gpu, "device memory of %zu MiB reached host memory with other bytes; it stays on the device",
                    r->bytes >> 20);
        good = false;
    }
    if (!good) {
        gpu->driver->host_free(*host);
        *host = NULL;
    }
    return good;
}

/* Spills r, whose uses are done. If anything fails it stays on the device. */
static void spill_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    enum cws_range_state before = r->state;
    struct cws_gpu_frame *frame = r->frame;
    struct cws_hash128 hash = {0};
    void *host = r->spill;
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_SPILLING);
    if (r->spill_kept)
        gpu->kept_bytes -= cws_gpu_span(r);
    else
        gpu->host_bytes += cws_gpu_span(r);
    r->spill = NULL; /* it is this function's now */
    r->spill_kept = false;
    pthread_mutex_unlock(&gpu->lock);
    bool mapped = cws_gpu_unmap(gpu, r) != CUDA_SUCCESS, good = !mapped && copy_out(gpu, r, &host, &hash);
    if (!good && !mapped)
        cws_gpu_map_again(gpu, r, frame);
    if (!good && host)
        gpu->driver->host_free(host);
    pthread_mutex_lock(&gpu->lock);
    if (!good)
        gpu->host_bytes -= cws_gpu_span(r);
    r->keeps = !good; /* not tried again and again */
    if (good && r->freed) {
        cws_gpu_host_give_locked(gpu, host, cws_gpu_span(r));
        host = NULL;
    }
    if (good) {
        r->frame = NULL;
        r->spill = host;
        r->spill_hash = hash;
        r->spilled_from = before;
        cws_gpu_frame_put_idle_locked(gpu, frame);
        gpu->counts.spills++;
    }
    cws_gpu_range_set_locked(gpu, r, good ? CWS_RANGE_SPILLED : before);
    if (r->freed && good)
        cws_gpu_range_end_locked(gpu, r);
    else if (r->freed)
        cws_gpu_range_cache_locked(gpu, r);
    pthread_cond_broadcast(&gpu->changed);
}

/* Is `a` the better one to spill? One that is not expected again is best, else the one that is needed last. The next
 * launch may well name again what the last one did. */
static bool goes_before(const struct cws_gpu *gpu, const struct cws_gpu_range *a, const struct cws_gpu_range *b)
{
    bool a_last = a->source && gpu->order.last == &a->order, b_last = b->source && gpu->order.last == &b->order;
    uint64_t a_at = a->source ? a->order.next_at : UINT64_MAX, b_at = b->source ? b->order.next_at : UINT64_MAX;
    if (a_last != b_last)
        return b_last;
    return a_at != b_at ? a_at > b_at : a->used < b->used;
}

bool cws_gpu_spill_one_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_range *best = NULL;
    uint64_t left = cws_gpu_host_left_locked(gpu);
    cws_gpu_order_walk_locked(gpu);
    for (struct cws_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        struct cws_gpu_range *r = CWS_LIST_OF(l, struct cws_gpu_range, link);
        if (!r->keeps && cws_gpu_span(r) <= left && is_candidate(gpu, r) && (!best || goes_before(gpu, r, best)) &&
            cws_gpu_uses_done_locked(gpu, r, true))
            best = r;
    }
    if (!best || (!best->spill && !cws_gpu_host_claim_locked(gpu, cws_gpu_span(best))))
        return false;
    gpu->host_claimed = 0;
    spill_locked(gpu, best);
    return true;
}

/* May its host memory be given up? */
void cws_gpu_spill_forget_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    if (r->spill)
        cws_gpu_host_give_locked(gpu, r->spill, cws_gpu_span(r));
    if (r->spill_kept)
        gpu->kept_bytes -= cws_gpu_span(r);
    r->spill = NULL;
    r->spill_kept = false;
}

void cws_gpu_spill_restore_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, struct cws_gpu_frame *frame)
{
    struct cws_hash128 hash = {0};
    r->frame = frame;
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_SPILLING);
    pthread_mutex_unlock(&gpu->lock);
    CUresult result = move_and_hash(gpu, r, frame->alias, NULL, r->spill, &hash);
    bool same = hash.lo == r->spill_hash.lo && hash.hi == r->spill_hash.hi;
    if (result == CUDA_SUCCESS && same)
        result = cws_gpu_map(gpu, r, frame);
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(gpu, result, "bringing back spilled memory");
    else if (!same)
        cws_gpu_say(gpu,
                    "device memory of %zu MiB that was spilled to host memory came back with other bytes; the launch "
                    "that needs it fails",
                    r->bytes >> 20);
    pthread_mutex_lock(&gpu->lock);
    if (result == CUDA_SUCCESS && same) {
        cws_gpu_range_set_locked(gpu, r, r->spilled_from);
        r->spill_kept = true;
        gpu->kept_bytes += cws_gpu_span(r);
        gpu->counts.restores++;
        if (r->freed)
            cws_gpu_range_cache_locked(gpu, r);
    } else {
        r->frame = NULL;
        cws_gpu_frame_put_idle_locked(gpu, frame);
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_SPILLED);
        r->failed = (CUresult)304; /* CUDA_ERROR_OPERATING_SYSTEM */
        if (r->freed)
            cws_gpu_range_end_locked(gpu, r);
    }
    pthread_cond_broadcast(&gpu->changed);
}
