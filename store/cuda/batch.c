/* batch.c - the jobs of a batch, made from the heads of chunks, and how a launch is divided among them. */
#include "store/codec/check.h"
#include "decoder.h"

#include <string.h>

#define UNITS_MAX (UINT32_C(1) << 31)
#define ROW_MAX (UINT64_C(1) << 30) /* above any chunk's elements, so that sums fit u32 */
#define UNIT_SYMBOLS 64u            /* of a lane: a unit is the smallest tile */

const char *cws_gpu_status_text(uint32_t status)
{
    switch ((enum cws_gpu_status)status) {
    case CWS_GPU_OK: return "decoded";
    case CWS_GPU_BAD_LANE: return "a lane does not hold exactly its symbols";
    case CWS_GPU_BAD_SCALE: return "a scale is not a normal number";
    case CWS_GPU_BAD_PADDING: return "padding is not zero";
    case CWS_GPU_BAD_DIRECTORY: return "the directory's tiles do not follow each other";
    case CWS_GPU_BAD_HEAD: return "the head in device memory is not the chunk's";
    }
    return "unknown status";
}

static void set_rows(struct cws_gpu_job *job, uint64_t row_elems, uint64_t first_elem)
{
    uint64_t offset = first_elem % row_elems, left = row_elems - offset;
    if (row_elems > ROW_MAX) {
        offset = left < ROW_MAX ? ROW_MAX - left : 0;
        row_elems = ROW_MAX;
    }
    job->row_elems = (uint32_t)row_elems;
    job->row_offset = (uint32_t)offset;
}

static int init_coded(struct cws_gpu_job *job, const struct cws_gpu_chunk *chunk, const void *stored,
                      struct cws_error *err)
{
    struct cws_coded c;
    struct cws_chunk_context ctx = {
        .dtype = chunk->dtype,
        .codec = chunk->codec,
        .row_elems = chunk->row_elems,
        .first_elem = chunk->first_byte / (cws_dtype_unit(chunk->dtype) ? cws_dtype_unit(chunk->dtype) : 1),
    };
    int rc = cws_coded_layout(&ctx, stored, chunk->stored_bytes, chunk->logical_bytes, &c, err);
    if (rc != 0)
        return rc;
    const uint8_t *base = stored;
    job->head = c.head;
    job->tiles = c.head.tile_count;
    job->directory_at = (uint32_t)(c.first_word - base);
    job->streams_at = (uint32_t)(c.streams - base);
    while ((UNIT_SYMBOLS << job->tile_shift) < c.head.lane_symbols)
        job->tile_shift++;
    if (chunk->codec == CWS_CODEC_QUANT) {
        job->scales_at = (uint32_t)(c.scales - base);
        job->scale_bytes = (uint32_t)c.scale_bytes;
        set_rows(job, ctx.row_elems, ctx.first_elem);
    }
    return 0;
}

int cws_gpu_job_init(struct cws_gpu_job *job, const struct cws_gpu_chunk *chunk, const void *stored_host,
                     struct cws_error *err)
{
    memset(job, 0, sizeof *job);
    bool coded = chunk->codec == CWS_CODEC_SPLIT || chunk->codec == CWS_CODEC_QUANT;
    if (!coded && chunk->codec != CWS_CODEC_RAW)
        return cws_fail(err, CWS_E_UNSUPPORTED, "chunk: codec %d is not decoded on a GPU", (int)chunk->codec);
    if (chunk->stored % 16 != 0 || chunk->dst % 16 != 0 || chunk->first_byte % 16 != 0 || chunk->table % 16 != 0 ||
        (coded && chunk->table == 0))
        return cws_fail(err, CWS_E_BUG, "chunk: addresses 0x%llx and 0x%llx, table 0x%llx, place %llu", chunk->stored,
                        chunk->dst, chunk->table, (unsigned long long)chunk->first_byte);
    job->stored = chunk->stored;
    job->dst = chunk->dst;
    job->table = coded ? chunk->table : 0;
    job->first_word = chunk->first_byte / 16;
    job->stored_bytes = chunk->stored_bytes;
    job->logical_bytes = chunk->logical_bytes;
    job->codec = (uint8_t)chunk->codec;
    job->dtype = (uint8_t)chunk->dtype;
    if (coded)
        return init_coded(job, chunk, stored_host, err);
    if (chunk->stored_bytes != chunk->logical_bytes)
        return cws_fail(err, CWS_E_CORRUPT, "chunk: raw, but %u bytes stored for %u", chunk->stored_bytes,
                        chunk->logical_bytes);
    if (chunk->logical_bytes > CWS_CHUNK_BYTES_MAX)
        return cws_fail(err, CWS_E_CORRUPT, "chunk: %u bytes; %u is the most", chunk->logical_bytes,
                        CWS_CHUNK_BYTES_MAX);
    job->tiles = (chunk->logical_bytes + CWS_GPU_RAW_TILE - 1) / CWS_GPU_RAW_TILE;
    return 0;
}

static int too_many(struct cws_error *err)
{
    return cws_fail(err, CWS_E_RANGE, "a batch for the GPU is too large; split it");
}

static enum cws_gpu_kind kind_of(const struct cws_gpu_job *job)
{
    if (job->head.elem_bytes != 2)
        return CWS_GPU_ANY;
    return job->codec == CWS_CODEC_SPLIT   ? CWS_GPU_SPLIT2
           : job->codec == CWS_CODEC_QUANT ? CWS_GPU_QUANT2
                                           : CWS_GPU_ANY;
}

struct cws_hash128 cws_gpu_result_hash(const struct cws_gpu_result *r)
{
    uint64_t carry = 0, digit[4];
    for (unsigned i = 0; i < 4; i++) { /* modulo 2^128 */
        uint64_t low = (r->digit[i] & UINT32_MAX) + (carry & UINT32_MAX);
        digit[i] = low & UINT32_MAX;
        carry = (r->digit[i] >> 32) + (carry >> 32) + (low >> 32);
    }
    return (struct cws_hash128){digit[0] | digit[1] << 32, digit[2] | digit[3] << 32};
}

int cws_gpu_batch_plan(struct cws_gpu_job *jobs, uint32_t count, struct cws_gpu_batch *out, struct cws_error *err)
{
    uint64_t units = 0, tiles = 0;
    enum cws_gpu_kind kind = count ? kind_of(&jobs[0]) : CWS_GPU_ANY;
    for (uint32_t i = 0; i < count; i++) {
        kind = kind_of(&jobs[i]) == kind ? kind : CWS_GPU_ANY;
        jobs[i].first_unit = (uint32_t)units;
        units += (uint64_t)jobs[i].tiles << jobs[i].tile_shift;
        tiles += jobs[i].tiles;
        if (units > UNITS_MAX)
            return too_many(err);
    }
    *out = (struct cws_gpu_batch){count, (uint32_t)units, (uint32_t)tiles, kind};
    return 0;
}

int cws_gpu_hash_plan(struct cws_gpu_hash_job *jobs, uint32_t count, struct cws_gpu_batch *out, struct cws_error *err)
{
    uint64_t units = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (jobs[i].address % 16 != 0)
            return cws_fail(err, CWS_E_BUG, "hash of memory at 0x%llx: no multiple of 16",
                            (unsigned long long)jobs[i].address);
        if (jobs[i].bytes / CWS_GPU_RAW_TILE >= UNITS_MAX)
            return too_many(err);
        jobs[i].first_unit = (uint32_t)units;
        units += (jobs[i].bytes + CWS_GPU_RAW_TILE - 1) / CWS_GPU_RAW_TILE;
        if (units > UNITS_MAX)
            return too_many(err);
    }
    *out = (struct cws_gpu_batch){count, (uint32_t)units, (uint32_t)units, CWS_GPU_ANY};
    return 0;
}
