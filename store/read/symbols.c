/* symbols.c - the symbols that a tensor is coded with, counted for their entropy. */
#include "symbols.h"
#include "store/codec/check.h"
#include "store/codec/huffman.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is needed while a tensor is walked chunk by chunk. */
struct walk {
    const struct cws_store *store;
    const struct cws_tensor_info *tensor;
    struct cws_store_cursor *cursor;
    uint8_t *decoded, *stored;
    uint64_t first_elem; /* of the chunk at work */
};

static void count_split(const struct walk *w, size_t bytes, struct cws_symbols *out)
{
    size_t step = cws_dtype_unit(w->tensor->dtype);
    const uint8_t *top = w->decoded + step - 1;
    if (step == 1) {
        for (size_t i = 0; i < bytes; i++)
            out->count[w->decoded[i]]++;
        return;
    }
    for (size_t i = 0; i < bytes; i += step) /* the top 16 bits rotated left by one: the sign leaves the top byte */
        out->count[(uint8_t)(top[i] << 1 | top[(ptrdiff_t)i - 1] >> 7)]++;
}

static float float_at(const uint8_t *p, enum cws_dtype dtype)
{
    uint32_t bits = 0;
    float value;
    if (dtype == CWS_F16) {
        uint16_t half = cws_load16(p);
        int exponent = half >> 10 & 31;
        value = exponent ? ldexpf((float)(0x400 | (half & 0x3ff)), exponent - 25) : ldexpf((float)(half & 0x3ff), -24);
        return half >> 15 ? -value : value;
    }
    bits = dtype == CWS_BF16 ? (uint32_t)cws_load16(p) << 16 : cws_load32(p);
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A code times its scale was rounded to the dtype; with codes of 7 bits the nearest code to value/scale is the one. */
static int count_quant(const struct walk *w, const struct cws_chunk_record *chunk, struct cws_symbols *out,
                       struct cws_error *err)
{
    const struct cws_tensor_info *t = w->tensor;
    struct cws_chunk_context context = {
        .dtype = t->dtype, .codec = CWS_CODEC_QUANT, .row_elems = t->record->row_elems, .first_elem = w->first_elem};
    struct cws_coded coded;
    size_t step = cws_dtype_unit(t->dtype);
    int rc = cws_store_fetch(w->cursor, t, (uint64_t)(chunk - t->chunks), 1, w->stored, err);
    if (!rc)
        rc = cws_coded_check(&context, w->stored, chunk->stored_bytes, chunk->logical_bytes, &coded, err);
    if (rc)
        return rc;
    uint64_t first_row = w->first_elem / context.row_elems;
    for (size_t i = 0; i < chunk->logical_bytes / step; i++) {
        uint64_t row = (w->first_elem + i) / context.row_elems - first_row;
        uint32_t bits = cws_coded_scale(&coded, row) << CWS_SCALE_SHIFT;
        float scale;
        memcpy(&scale, &bits, sizeof scale);
        out->count[(uint8_t)(lrintf(float_at(w->decoded + i * step, t->dtype) / scale) + 128)]++;
    }
    return 0;
}

static int count_chunks(struct walk *w, struct cws_symbols *out, struct cws_error *err)
{
    uint64_t at = w->tensor->begin;
    size_t step = cws_dtype_unit(w->tensor->dtype);
    for (uint64_t i = 0; i < w->tensor->record->chunk_count; i++) {
        const struct cws_chunk_record *chunk = &w->tensor->chunks[i];
        int rc = cws_store_read(w->cursor, at, at + chunk->logical_bytes, w->decoded, err);
        if (!rc && chunk->codec == CWS_CODEC_SPLIT)
            count_split(w, chunk->logical_bytes, out);
        else if (!rc && chunk->codec == CWS_CODEC_QUANT)
            rc = count_quant(w, chunk, out, err);
        if (rc)
            return rc;
        at += chunk->logical_bytes;
        w->first_elem += chunk->logical_bytes / step;
    }
    return 0;
}

static void summarise(struct cws_symbols *out)
{
    for (unsigned s = 0; s < 256; s++)
        out->total += out->count[s];
    for (unsigned s = 0; s < 256 && out->total; s++)
        out->mean_bits += (double)out->count[s] * out->length[s] / (double)out->total;
    out->entropy_bits = out->total ? cws_entropy_bits(out->count) : 0;
}

int cws_symbols_count(const struct cws_store *store, const struct cws_tensor_info *tensor, struct cws_symbols *out,
                      struct cws_error *err)
{
    struct walk w = {.store = store, .tensor = tensor};
    size_t decoded_max = 16, stored_max = 16;
    *out = (struct cws_symbols){0};
    if (tensor->record->codec != CWS_CODEC_SPLIT && tensor->record->codec != CWS_CODEC_QUANT)
        return cws_fail(err, CWS_E_UNSUPPORTED, "%s: the tensor's codec has no symbols", cws_store_path(store));
    for (uint64_t i = 0; i < tensor->record->chunk_count; i++) {
        if (tensor->chunks[i].logical_bytes > decoded_max)
            decoded_max = tensor->chunks[i].logical_bytes;
        if (tensor->chunks[i].stored_bytes > stored_max)
            stored_max = tensor->chunks[i].stored_bytes;
    }
    int rc = cws_store_cursor_create(store, 4, &w.cursor, err);
    w.decoded = malloc(decoded_max);
    w.stored = malloc(stored_max);
    if (!rc && (!w.decoded || !w.stored))
        rc = cws_fail(err, -ENOMEM, "%s: out of memory", cws_store_path(store));
    if (!rc) /* scales and code lengths are not part of the logical bytes */
        rc = cws_huffman_unpack(cws_store_table(store, tensor), out->length, err);
    if (!rc)
        rc = count_chunks(&w, out, err);
    if (!rc)
        summarise(out);
    free(w.decoded);
    free(w.stored);
    cws_store_cursor_destroy(w.cursor);
    return rc;
}
