/* spill.c - spilling: content that no source can give back (weights that were written to, the program's own data) goes
 * to pinned host memory when nothing else can be evicted, and comes back when it is used. Its hash is compared before
 * the device memory is given away, and again when it is back. The copy is kept while host memory lasts: what is only
 * read from then on is not copied out again. Where host memory is short, or anything fails, the extent stays. The
 * loader does all of this, one extent at a time. */
#include "gpu.h"

#include <stdlib.h>

/* May it go at once, however young it is? What went before and came back, a weight that was written, what a copy
 * brought, or what the program made while it loaded weights. */
static bool goes_at_once(const struct cws_gpu *gpu, const struct cws_gpu_extent *x)
{
    bool weight = (x->state == CWS_EXTENT_DIRTY && !x->adoptable.own) || cws_gpu_is_brought(x);
    return weight || (gpu->config.adopt && (cws_gpu_has_copy(x) || x->look.early));
}

/* Could it go, if its uses are done and host memory has room? It is asked where a launch or an allocation would fail
 * otherwise. What was used just now may be reached by hidden pointers, which a kernel before made of those that it was
 * given, and a launch that waits may name it itself. */
static bool is_candidate(const struct cws_gpu *gpu, const struct cws_gpu_extent *x)
{
    uint64_t age = gpu->uses.begun - x->used;
    if (x->state != CWS_EXTENT_DIRTY && x->state != CWS_EXTENT_ANONYMOUS)
        return false;
    if (x->holds || x->range->pinned || x->range->freed || cws_gpu_is_demanded(x) || x->spill.failed == x->used + 1)
        return false;
    if (goes_at_once(gpu, x))
        return age >= 1 || gpu->uses.waiting == 0;
    return age >= (gpu->config.adopt ? gpu->core.tuning->spill_unused : gpu->core.tuning->spill_unused_long);
}

/* Bytes of host memory that can be had: also what was adopted and is on the device, too. */
static uint64_t left_locked(const struct cws_gpu *gpu)
{
    return cws_gpu_host_left(&gpu->sources) + cws_gpu_adopt_doubled_locked(gpu);
}

uint64_t cws_gpu_spillable_locked(const struct cws_gpu *gpu)
{
    uint64_t bytes = 0, left = left_locked(gpu);
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        if (cws_gpu_span(x) <= left && is_candidate(gpu, x)) {
            bytes += cws_gpu_span(x);
            left -= cws_gpu_span(x);
        }
    }
    return bytes;
}

/* --- out --------------------------------------------------------------------------------------------- */

CUresult cws_gpu_move_and_hash(struct cws_gpu *gpu, const struct cws_gpu_extent *x, void *out, const void *in,
                               struct cws_hash128 *hash)
{
    const struct cws_driver *d = gpu->core.driver;
    CUstream stream = gpu->staging.check_stream;
    CUdeviceptr alias = x->frame->alias;
    struct cws_gpu_check *check = &gpu->staging.checks[CWS_GPU_DROPS];
    *check->results = (struct cws_gpu_result){0};
    *check->jobs = (struct cws_gpu_hash_job){.address = alias, .bytes = x->bytes};
    CUresult result = in ? d->copy_in_async(alias, in, x->bytes, stream) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        result = cws_gpu_check_start(&gpu->staging, check, 1, cws_content_key);
    if (result == CUDA_SUCCESS && out)
        result = d->copy_out_async(out, alias, x->bytes, stream);
    /* also after an error: what was queued uses this memory */
    CUresult waited = d->stream_sync(stream);
    *hash = cws_gpu_result_hash(check->results);
    return result == CUDA_SUCCESS ? waited : result;
}

static bool is_hash(struct cws_hash128 a, struct cws_hash128 b) { return a.lo == b.lo && a.hi == b.hi; }

static bool has_hash(const void *host, size_t bytes, struct cws_hash128 hash)
{
    struct cws_hash128 sum = {0};
    cws_content_hash_add(&sum, cws_content_key, host, bytes, 0);
    return is_hash(sum, hash);
}

/* Is the copy that was kept what lies on the device? *hash: of the device's bytes. */
static bool is_kept(struct cws_gpu *gpu, const struct cws_gpu_extent *x, const void *host, struct cws_hash128 *hash)
{
    return cws_gpu_move_and_hash(gpu, x, NULL, NULL, hash) == CUDA_SUCCESS && is_hash(*hash, x->spill.hash) &&
           has_hash(host, x->bytes, *hash);
}

/* *host: the copy that was kept, or NULL; NULL if this fails. */
static bool copy_out(struct cws_gpu *gpu, const struct cws_gpu_extent *x, void **host, struct cws_hash128 *hash)
{
    const struct cws_driver *d = gpu->core.driver;
    if (*host && is_kept(gpu, x, *host, hash))
        return true;
    if (!*host && d->host_alloc(host, x->bytes, CU_MEMHOSTALLOC_PORTABLE) != CUDA_SUCCESS)
        return false;
    bool good = cws_gpu_move_and_hash(gpu, x, *host, NULL, hash) == CUDA_SUCCESS;
    if (good && !has_hash(*host, x->bytes, *hash)) {
        cws_gpu_say(&gpu->core, "device memory of %zu MiB reached host memory with other bytes; it stays on the device",
                    x->bytes >> 20);
        good = false;
    }
    if (!good) {
        d->host_free(*host);
        *host = NULL;
    }
    return good;
}

/* x has its content in `host` and no frame: BOUND to it, or SPILLED. tensor: it is to be adopted, where it is not
 * NULL. */
static void out_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, const struct cws_gpu_spill *spill,
                       struct cws_tensor_info *tensor)
{
    struct cws_gpu_frame *frame = x->frame;
    x->frame = NULL;
    cws_gpu_frame_put(&gpu->frames, frame);
    if (tensor && cws_gpu_adopt_spilled_locked(gpu, x, spill->host, tensor)) {
        x->spill = (struct cws_gpu_spill){.host = NULL};
        return;
    }
    free(tensor);
    x->spill = *spill;
    gpu->spills.out++;
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_SPILLED);
}

/* Spills x, whose uses are done, or has it adopted. If anything fails it stays on the device. */
static void spill_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    enum cws_extent_state before = x->state;
    struct cws_gpu_frame *frame = x->frame;
    struct cws_hash128 hash = {0}, last = x->spill.hash;
    struct cws_tensor_info *tensor = NULL;
    void *host = x->spill.host;
    bool had = host != NULL, old, may = cws_gpu_adopt_may_locked(gpu, x, &old);
    if (host)
        cws_gpu_host_unkeep(&gpu->sources, cws_gpu_span(x));
    else
        cws_gpu_host_take(&gpu->sources, cws_gpu_span(x));
    x->spill.host = NULL; /* it is this function's now */
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_SPILLING);
    cws_gpu_unlock(&gpu->core);
    bool unmapped = cws_gpu_frame_unmap(&gpu->frames, frame, x->base) == CUDA_SUCCESS;
    bool good = unmapped && copy_out(gpu, x, &host, &hash);
    if (!good && unmapped)
        cws_gpu_frame_map_again(&gpu->frames, frame, x->base);
    if (!good && host)
        gpu->core.driver->host_free(host);
    if (good && may && (old || (had && is_hash(hash, last))))
        tensor = cws_gpu_adopt_describe(x, host, hash);
    cws_gpu_lock(&gpu->core);
    if (good) {
        const struct cws_gpu_spill spill = {.host = host, .hash = hash, .from = before};
        out_locked(gpu, x, &spill, tensor);
    } else {
        cws_gpu_host_untake(&gpu->sources, cws_gpu_span(x));
        x->spill.failed = x->used + 1;
        cws_gpu_extent_set_locked(gpu, x, before);
    }
    cws_gpu_extent_settle_locked(gpu, x);
}

/* Is `a` the better one to spill? One that is not expected again is best, else the one that is needed last. The next
 * launch may well name again what the last one did. */
static bool goes_before(const struct cws_gpu *gpu, const struct cws_gpu_extent *a, const struct cws_gpu_extent *b)
{
    const struct cws_order *o = &gpu->order.order;
    bool a_last = cws_gpu_is_bound(a) && o->last == &a->order, b_last = cws_gpu_is_bound(b) && o->last == &b->order;
    uint64_t a_at = cws_gpu_is_bound(a) ? a->order.next_at : UINT64_MAX,
             b_at = cws_gpu_is_bound(b) ? b->order.next_at : UINT64_MAX;
    if (a_last != b_last)
        return b_last;
    return a_at != b_at ? a_at > b_at : a->used < b->used;
}

/* Room in host memory for one more. Copies of what is on the device go after compressed bytes, and at last the copies
 * that make what was adopted a weight. */
static bool claim_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    enum cws_host_room room = cws_gpu_host_claim(&gpu->sources, bytes);
    for (struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x && room == CWS_HOST_SHORT;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        if (!cws_gpu_has_copy(x))
            continue;
        cws_gpu_spill_forget_locked(gpu, x);
        room = cws_gpu_host_claim(&gpu->sources, bytes);
    }
    while (room == CWS_HOST_SHORT && cws_gpu_adopt_give_locked(gpu))
        room = cws_gpu_host_claim(&gpu->sources, bytes);
    return room == CWS_HOST_FREE;
}

bool cws_gpu_spill_one_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_extent *best = NULL;
    uint64_t left = left_locked(gpu);
    cws_gpu_order_walk(&gpu->order);
    for (struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        if (cws_gpu_span(x) <= left && is_candidate(gpu, x) && (!best || goes_before(gpu, x, best)) &&
            cws_gpu_users_done(&gpu->streams, &x->users, true))
            best = x;
    if (!best || (!best->spill.host && !claim_locked(gpu, cws_gpu_span(best))))
        return false;
    spill_drops_lock(gpu, best);
    return true;
}

void *cws_gpu_spill_take_copy_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    void *host = x->spill.host;
    if (host)
        cws_gpu_host_unkeep(&gpu->sources, cws_gpu_span(x));
    x->spill = (struct cws_gpu_spill){.host = NULL};
    return host;
}

void cws_gpu_spill_forget_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    if (x->spill.host) {
        if (cws_gpu_has_copy(x))
            cws_gpu_host_unkeep(&gpu->sources, cws_gpu_span(x));
        cws_gpu_host_give(&gpu->sources, x->spill.host, cws_gpu_span(x));
    }
    x->spill = (struct cws_gpu_spill){.host = NULL};
}

/* --- and back ------------------------------------------------------------------------------------------ */

void cws_gpu_spill_restore_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x, struct cws_gpu_frame *frame)
{
    struct cws_hash128 hash = {0};
    x->frame = frame;
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_RESTORING);
    cws_gpu_unlock(&gpu->core);
    CUresult result = cws_gpu_move_and_hash(gpu, x, NULL, x->spill.host, &hash);
    bool same = is_hash(hash, x->spill.hash);
    if (result == CUDA_SUCCESS && same)
        result = cws_gpu_frame_map(&gpu->frames, frame, x->base);
    if (result != CUDA_SUCCESS)
        cws_gpu_unexpected(&gpu->core, result, "bringing back spilled memory");
    else if (!same)
        cws_gpu_say(&gpu->core,
                    "device memory of %zu MiB that was spilled to host memory came back with other bytes; the launch "
                    "that needs it fails",
                    x->bytes >> 20);
    cws_gpu_lock(&gpu->core);
    if (result == CUDA_SUCCESS && same) {
        cws_gpu_extent_set_locked(gpu, x, x->spill.from);
        cws_gpu_host_keep(&gpu->sources, cws_gpu_span(x));
        gpu->spills.in++;
    } else {
        x->frame = NULL;
        cws_gpu_frame_put(&gpu->frames, frame);
        cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_SPILLED);
        x->failed = (CUresult)304; /* CUDA_ERROR_OPERATING_SYSTEM */
    }
    cws_gpu_extent_settle_locked(gpu, x);
}

const char *cws_gpu_spills_check(const struct cws_gpu *gpu)
{
    uint64_t kept = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        bool has = cws_gpu_has_copy(x);
        if (x->state == CWS_EXTENT_SPILLED && !x->spill.host)
            return "spills: the content of one is lost";
        if (has && x->state != CWS_EXTENT_ANONYMOUS && x->state != CWS_EXTENT_DIRTY &&
            x->state != CWS_EXTENT_UNMAKING && x->state != CWS_EXTENT_LOOKING)
            return "spills: one that cannot be spilled has a copy";
        kept += has ? cws_gpu_span(x) : 0;
    }
    return kept != gpu->sources.kept_bytes ? "spills: copies are miscounted" : NULL;
}
