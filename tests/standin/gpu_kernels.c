/* gpu_kernels.c - host versions of the kernels in store/cuda, under the same names and with the same parameters: what a
 * fatbin loads as. They decode with the decoders for the CPU, which are tested against the reference. They
 * tell CWS_GPU_BAD_LANE for whatever the reference refuses, but for a head that changed. */
#include "state.h"

#include "store/codec/codec.h"
#include "store/format/content_hash.h"
#include "store/cuda/job.h"
#include "store/codec/huffman.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* A fault leaves a kernel by a jump: everything it will touch is touched before it allocates. */
static void touch_byte(uint64_t address, bool write)
{
    volatile unsigned char *at = (volatile unsigned char *)(uintptr_t)address;
    unsigned char byte = *at;
    if (write)
        *at = byte;
}

static void touch(uint64_t address, uint64_t bytes, bool write)
{
    for (uint64_t i = 0; i < bytes; i += 4096)
        touch_byte(address + i, write);
    if (bytes > 0)
        touch_byte(address + bytes - 1, write);
}

/* Sums are added to the result, as the kernels do: who does not clear it first is found out. */
static void result_add(struct cws_gpu_result *result, struct cws_hash128 sum, uint32_t status)
{
    result->digit[0] += sum.lo & UINT32_MAX;
    result->digit[1] += sum.lo >> 32;
    result->digit[2] += sum.hi & UINT32_MAX;
    result->digit[3] += sum.hi >> 32;
    if (result->status < status)
        result->status = status;
}

/* The code's lengths, as stored in a file, from the table made from them: each symbol is the first of some window. */
static void packed_lengths(const struct cws_gpu_table *table, uint8_t packed[128])
{
    uint8_t lengths[256] = {0};
    for (uint32_t w = 0; w < 1u << CWS_GPU_WINDOW; w++)
        lengths[table->entry[w] & 0xff] = table->entry[w] >> CWS_GPU_ENTRY_FIRST & 15;
    cws_huffman_pack(lengths, packed);
}

/* What a stream's thread decodes with, kept until it ends: ThreadSanitizer makes allocating and freeing megabytes
 * slow. */
struct workspace {
    struct cws_decode_scratch *scratch;
    struct cws_decode_table *table;
    uint8_t *stored, *decoded;
    size_t stored_bytes, decoded_bytes;
};

static pthread_key_t workspace_key;
static pthread_once_t workspace_once = PTHREAD_ONCE_INIT;

static void workspace_free(void *arg)
{
    struct workspace *w = arg;
    cws_decode_scratch_destroy(w->scratch);
    free(w->table);
    free(w->stored);
    free(w->decoded);
    free(w);
}

static void workspace_make_key(void)
{
    if (pthread_key_create(&workspace_key, workspace_free) != 0)
        abort();
}

static struct workspace *workspace_get(void)
{
    pthread_once(&workspace_once, workspace_make_key);
    struct workspace *w = pthread_getspecific(workspace_key);
    if (w)
        return w;
    w = calloc(1, sizeof *w);
    if (!w || cws_decode_scratch_create(&w->scratch) != 0 || pthread_setspecific(workspace_key, w) != 0)
        abort();
    w->table = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
    if (!w->table)
        abort();
    return w;
}

static void grow(uint8_t **buffer, size_t *have, size_t want)
{
    if (*have >= want)
        return;
    free(*buffer);
    *buffer = malloc(want);
    *have = want;
    if (!*buffer)
        abort();
}

/* Not the reference decoder: tests of paging decode by the gigabyte. */
static int decode_fast(struct cws_chunk_context *context, const uint8_t packed[128], const struct cws_gpu_job *job,
                       struct workspace *w)
{
    context->table = w->table;
    int rc = cws_decode_table_init(w->table, packed, NULL);
    if (rc != 0)
        return rc;
    return cws_chunk_decode(context, w->stored, job->stored_bytes, job->logical_bytes, 0, job->logical_bytes,
                            w->decoded, w->scratch, NULL);
}

static uint32_t decode_coded(const struct cws_gpu_job *job, struct workspace *w)
{
    struct cws_gpu_table table = *(const struct cws_gpu_table *)(uintptr_t)job->table;
    if (memcmp((const void *)(uintptr_t)job->stored, &job->head, sizeof job->head) != 0)
        return CWS_GPU_BAD_HEAD;
    uint8_t packed[128];
    packed_lengths(&table, packed);
    struct cws_chunk_context context = {
        .dtype = job->dtype, .codec = job->codec, .row_elems = job->row_elems, .first_elem = job->row_offset};
    grow(&w->stored, &w->stored_bytes, job->stored_bytes + CWS_STREAM_PAD);
    memcpy(w->stored, (const void *)(uintptr_t)job->stored, job->stored_bytes);
    memset(w->stored + job->stored_bytes, 0, CWS_STREAM_PAD);
    return decode_fast(&context, packed, job, w) == 0 ? CWS_GPU_OK : CWS_GPU_BAD_LANE;
}

static void decode_job(const struct cws_gpu_job *job, struct cws_gpu_result *result, const uint64_t key[2])
{
    touch(job->stored, job->stored_bytes, false);
    touch(job->dst, job->logical_bytes, true);
    touch((uintptr_t)result, sizeof *result, true);
    if (job->codec != CWS_CODEC_RAW)
        touch(job->table, sizeof(struct cws_gpu_table), false);
    struct workspace *w = workspace_get();
    grow(&w->decoded, &w->decoded_bytes, job->logical_bytes + 1);
    uint32_t status = CWS_GPU_OK;
    if (job->codec == CWS_CODEC_RAW)
        memcpy(w->decoded, (const void *)(uintptr_t)job->stored, job->logical_bytes);
    else
        status = decode_coded(job, w);
    struct cws_hash128 sum = {0, 0};
    if (status == CWS_GPU_OK) {
        memcpy((void *)(uintptr_t)job->dst, w->decoded, job->logical_bytes);
        cws_content_hash_add(&sum, key, w->decoded, job->logical_bytes, job->first_word * 16);
    }
    result_add(result, sum, status);
}

static void decode_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    (void)grid, (void)block;
    const struct cws_gpu_job *jobs = *(const struct cws_gpu_job **)params[0];
    struct cws_gpu_result *results = *(struct cws_gpu_result **)params[3];
    const uint64_t key[2] = {*(uint64_t *)params[4], *(uint64_t *)params[5]};
    for (uint32_t i = 0; i < *(uint32_t *)params[1]; i++) {
        struct cws_gpu_job job = jobs[i];
        decode_job(&job, &results[i], key);
    }
}

/* A kernel for one kind must not get another. */
static void check_kind(void **params, enum cws_codec_id codec)
{
    const struct cws_gpu_job *jobs = *(const struct cws_gpu_job **)params[0];
    for (uint32_t i = 0; i < *(uint32_t *)params[1]; i++)
        if (jobs[i].codec != codec || jobs[i].head.elem_bytes != 2)
            abort();
}

static void split2_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    check_kind(params, CWS_CODEC_SPLIT);
    decode_kernel(params, grid, block);
}

static void quant2_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    check_kind(params, CWS_CODEC_QUANT);
    decode_kernel(params, grid, block);
}

static void hash_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    (void)grid, (void)block;
    const struct cws_gpu_hash_job *jobs = *(const struct cws_gpu_hash_job **)params[0];
    struct cws_gpu_result *results = *(struct cws_gpu_result **)params[3];
    const uint64_t key[2] = {*(uint64_t *)params[4], *(uint64_t *)params[5]};
    for (uint32_t i = 0; i < *(uint32_t *)params[1]; i++) {
        struct cws_hash128 sum = {0, 0};
        cws_content_hash_add(&sum, key, (const void *)(uintptr_t)jobs[i].address, jobs[i].bytes,
                             jobs[i].first_word * 16);
        result_add(&results[i], sum, CWS_GPU_OK);
    }
}

#define PARAMS                                                                                                         \
    {                                                                                                                  \
        {0, 8}, {8, 4}, {12, 4}, {16, 8}, {24, 8}, { 32, 8 }                                                           \
    } /* jobs, count, units, results, key0, key1 */
static const struct standin_kernel KERNELS[] = {
    {"cws_gpu_decode_kernel", decode_kernel, 6, PARAMS},
    {"cws_gpu_decode_split2_kernel", split2_kernel, 6, PARAMS},
    {"cws_gpu_decode_quant2_kernel", quant2_kernel, 6, PARAMS},
    {"cws_gpu_hash_kernel", hash_kernel, 6, PARAMS},
};
const struct standin_image standin_gpu_image = {STANDIN_IMAGE_MAGIC, sizeof KERNELS / sizeof *KERNELS, KERNELS};
