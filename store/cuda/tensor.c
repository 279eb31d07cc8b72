/* tensor.c - a compressed tensor in device memory: what its decode needs, and the decode. */
#include "tensor.h"
#include "store/format/content_hash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What goes to the scratch memory before a decode: table, jobs, results that are zero. Addresses in the jobs are
 * relative to the packed bytes, to the destination and to the scratch memory until then. */
struct cws_gpu_tensor {
    struct cws_gpu_batch batch;
    struct cws_hash128 *hashes; /* by chunk */
    uint8_t *image;
    uint64_t image_bytes, jobs_at, results_at;
};

static struct cws_gpu_job *jobs_of(const struct cws_gpu_tensor *t, uint8_t *image)
{
    return (struct cws_gpu_job *)(void *)(image + t->jobs_at);
}

/* One chunk's job, from its bytes at `stored`. */
static int describe(struct cws_gpu_tensor *t, const struct cws_tensor_info *info, uint64_t k, const uint8_t *stored,
                    struct cws_error *err)
{
    const struct cws_chunk_record *r = &info->chunks[k];
    struct cws_gpu_chunk chunk = {
        .dtype = info->dtype,
        .codec = (enum cws_codec_id)r->codec,
        .row_elems = info->record->row_elems,
        .first_byte = k * info->record->chunk_bytes,
        .stored_bytes = r->stored_bytes,
        .logical_bytes = r->logical_bytes,
        .stored = r->offset,
        .dst = k * info->record->chunk_bytes,
        .table = 16, /* not 0: it has one; where, is known at the decode */
    };
    t->hashes[k] = (struct cws_hash128){r->content_hash[0], r->content_hash[1]};
    return cws_gpu_job_init(&jobs_of(t, t->image)[k], &chunk, stored, err);
}

static int fill(struct cws_gpu_tensor *t, const struct cws_store *s, const struct cws_tensor_info *info,
                struct cws_error *err)
{
    const uint8_t *packed = cws_store_table(s, info);
    struct cws_store_cursor *cursor = NULL;
    uint8_t *stored = malloc((size_t)info->record->chunk_bytes + CWS_STREAM_PAD);
    int code = stored ? cws_store_cursor_create(s, 1, &cursor, err)
                      : cws_fail(err, -ENOMEM, "not enough memory for a tensor on the GPU");
    if (!code && packed)
        code = cws_gpu_table_build(packed, (struct cws_gpu_table *)(void *)t->image, err);
    for (uint64_t k = 0; k < info->record->chunk_count && !code; k++) {
        code = cws_store_fetch(cursor, info, k, 1, stored, err);
        if (!code)
            code = describe(t, info, k, stored, err);
    }
    if (!code)
        code = cws_gpu_batch_plan(jobs_of(t, t->image), (uint32_t)info->record->chunk_count, &t->batch, err);
    cws_store_cursor_destroy(cursor);
    free(stored);
    return code;
}

int cws_gpu_tensor_create(const struct cws_store *s, struct cws_gpu_tensor **out, struct cws_error *err)
{
    *out = NULL;
    const struct cws_tensor_info *info = cws_store_tensor(s, 0);
    if (cws_store_tensor_count(s) != 1 || info->record->chunk_count > UINT32_MAX)
        return cws_fail(err, CWS_E_USAGE, "%s: not a store of one tensor", cws_store_path(s));
    struct cws_gpu_tensor *t = calloc(1, sizeof *t);
    if (!t)
        return cws_fail(err, -ENOMEM, "not enough memory for a tensor on the GPU");
    uint64_t count = info->record->chunk_count;
    t->jobs_at = sizeof(struct cws_gpu_table);
    t->results_at = t->jobs_at + count * sizeof(struct cws_gpu_job);
    t->image_bytes = t->results_at + count * sizeof(struct cws_gpu_result);
    t->image = calloc(1, t->image_bytes);
    t->hashes = calloc(count + 1, sizeof *t->hashes);
    int code = t->image && t->hashes ? fill(t, s, info, err)
                                     : cws_fail(err, -ENOMEM, "not enough memory for a tensor on the GPU");
    if (code) {
        cws_gpu_tensor_destroy(t);
        return code;
    }
    *out = t;
    return 0;
}

void cws_gpu_tensor_destroy(struct cws_gpu_tensor *t)
{
    if (!t)
        return;
    free(t->image);
    free(t->hashes);
    free(t);
}

uint64_t cws_gpu_tensor_scratch_bytes(const struct cws_gpu_tensor *t) { return t->image_bytes; }

static int check_results(const struct cws_gpu_tensor *t, const struct cws_gpu_result *results, struct cws_error *err)
{
    for (uint32_t k = 0; k < t->batch.count; k++) {
        const char *what = results[k].status ? cws_gpu_status_text(results[k].status)
                                             : "the decoded bytes fail their content hash";
        struct cws_hash128 hash = cws_gpu_result_hash(&results[k]);
        if (results[k].status || hash.lo != t->hashes[k].lo || hash.hi != t->hashes[k].hi)
            return cws_fail(err, CWS_E_CORRUPT, "compressed tensor on the GPU: chunk %u: %s", k, what);
    }
    return 0;
}

int cws_gpu_tensor_decode(const struct cws_gpu_tensor *t, const struct cws_driver *driver,
                          const struct cws_gpu_decoder *dec, CUstream stream, CUdeviceptr packed, CUdeviceptr scratch,
                          CUdeviceptr dst, struct cws_error *err)
{
    if (t->batch.count == 0)
        return 0;
    if (packed % 16 || scratch % 16 || dst % 16)
        return cws_fail(err, CWS_E_BUG, "compressed tensor on the GPU: an address is no multiple of 16");
    uint8_t *image = malloc(t->image_bytes);
    if (!image)
        return cws_fail(err, -ENOMEM, "not enough memory to decode on the GPU");
    memcpy(image, t->image, t->image_bytes);
    struct cws_gpu_job *jobs = jobs_of(t, image);
    for (uint32_t k = 0; k < t->batch.count; k++) {
        jobs[k].stored += packed;
        jobs[k].dst += dst;
        jobs[k].table = jobs[k].table ? scratch : 0;
    }
    struct cws_gpu_result *results = (struct cws_gpu_result *)(void *)(image + t->results_at);
    int code = 0;
    /* From memory that is not pinned: the driver has its own copy when the call returns. */
    CUresult r = driver->copy_in_async(scratch, image, t->image_bytes, stream);
    if (r == CUDA_SUCCESS) {
        code = cws_gpu_decode(dec, stream, scratch + t->jobs_at, &t->batch, scratch + t->results_at, cws_content_key,
                              err);
        if (!code)
            r = driver->copy_out_async(results, scratch + t->results_at, t->image_bytes - t->results_at, stream);
        /* whatever happened: what was started uses the caller's memory */
        CUresult ended = driver->stream_sync(stream);
        r = r == CUDA_SUCCESS ? ended : r;
    }
    if (!code && r != CUDA_SUCCESS)
        code = cws_driver_fail(driver, err, r, "decoding a tensor on the GPU");
    if (!code)
        code = check_results(t, results, err);
    free(image);
    return code;
}
