/* codec_data.h - tensors and packed chunks for the codec's tests; everything from a fixed seed. */
#ifndef CWS_TESTS_CODEC_DATA_H
#define CWS_TESTS_CODEC_DATA_H
#include "store/codec/codec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t data_state = 1;

static inline uint64_t data_u64(void)
{
    uint64_t z = data_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline double data_gauss(void)
{
    double u = ((double)(data_u64() >> 11) + 0.5) * 0x1p-53, v = ((double)(data_u64() >> 11) + 0.5) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* A small float by truncation: 1 sign bit, `exponent` and `mantissa` bits; too small becomes zero. */
static inline uint64_t data_float(double x, unsigned exponent, unsigned mantissa)
{
    int e;
    uint64_t sign = x < 0 ? UINT64_C(1) << (exponent + mantissa) : 0;
    double m = frexp(fabs(x), &e);
    int biased = e - 1 + (1 << (exponent - 1)) - 1;
    if (m == 0 || biased <= 0)
        return sign;
    return sign | (uint64_t)biased << mantissa |
           ((uint64_t)ldexp(2 * m, (int)mantissa) & ((UINT64_C(1) << mantissa) - 1));
}

static inline uint64_t data_elem(enum cws_dtype dtype, double x)
{
    uint64_t v;
    float f = (float)x;
    uint32_t f32;
    switch (dtype) {
    case CWS_F64: memcpy(&v, &x, 8); return v;
    case CWS_F32: memcpy(&f32, &f, 4); return f32;
    case CWS_BF16: return data_float(x, 8, 7);
    case CWS_F16: return data_float(x, 5, 10);
    case CWS_F8_E4M3: return data_float(x, 4, 3);
    case CWS_F8_E5M2: return data_float(x, 5, 2);
    case CWS_F8_E4M3FNUZ: return data_float(x, 4, 3);
    case CWS_F8_E8M0: return data_float(fabs(x), 8, 0);
    default: return (uint64_t)(int64_t)(x * 1000);
    }
}

/* `elems` elements of N(0, sigma^2); the caller frees. */
static inline uint8_t *data_normal(enum cws_dtype dtype, size_t elems, double sigma)
{
    unsigned bytes = cws_dtype_unit(dtype);
    uint8_t *data = malloc(elems * bytes + 1);
    for (size_t i = 0; data && i < elems; i++) {
        uint64_t v = data_elem(dtype, sigma * data_gauss());
        memcpy(data + i * bytes, &v, bytes);
    }
    return data;
}

struct data_chunk { /* one packed chunk of a tensor that is one chunk */
    struct cws_plan plan;
    struct cws_decode_table *table;
    struct cws_chunk_context context;
    /* exactly stored_bytes + CWS_STREAM_PAD bytes, the last ones 0xee: over-reads show under ASan */
    uint8_t *stored;
    size_t stored_bytes;
};

/* Plans as the writer does, over the whole of the data. 0, or what failed. */
static inline int data_plan(struct cws_plan *p, enum cws_mode mode, enum cws_dtype dtype, const uint8_t *data,
                            size_t rows, size_t cols)
{
    uint64_t shape[2] = {rows, cols}, histogram[256];
    size_t bytes = rows * cols * cws_dtype_unit(dtype), sample = bytes < (1u << 20) ? bytes : 1u << 20;
    cws_plan_begin(p, mode, dtype, shape, 2);
    if (cws_plan_sample(p, data, sample, NULL) != 0)
        return -1;
    for (;;) {
        int refused = 0;
        memset(histogram, 0, sizeof histogram);
        for (size_t at = 0; p->needs_count && at < bytes && !refused; at += p->chunk_bytes)
            refused = cws_plan_count(p, data + at, bytes - at < p->chunk_bytes ? bytes - at : p->chunk_bytes,
                                     at / p->elem_bytes, histogram);
        if (refused) {
            cws_plan_refuse_quant(p);
            if (cws_plan_sample(p, data, sample, NULL) != 0)
                return -1;
        } else if (!p->needs_count || cws_plan_finish(p, histogram) == 0) {
            return 0;
        }
    }
}

static inline void data_chunk_free(struct data_chunk *c)
{
    free(c->table);
    free(c->stored);
    memset(c, 0, sizeof *c);
}

/* Encodes bytes [at, at + bytes) of the tensor under c->plan. */
static inline int data_encode(struct data_chunk *c, const uint8_t *data, size_t at, size_t bytes,
                              struct cws_encode_scratch *scratch)
{
    size_t bound = cws_chunk_bound(&c->plan, bytes);
    uint8_t *room = malloc(bound);
    enum cws_codec_id codec;
    c->table = NULL;
    c->stored = NULL;
    int rc = room ? cws_chunk_encode(&c->plan, data + at, bytes, at / c->plan.elem_bytes, room, &c->stored_bytes,
                                     &codec, scratch, NULL)
                  : -1;
    if (rc == 0) {
        c->stored = malloc(c->stored_bytes + CWS_STREAM_PAD);
        memcpy(c->stored, room, c->stored_bytes);
        memset(c->stored + c->stored_bytes, 0xee, CWS_STREAM_PAD);
        if (codec == CWS_CODEC_SPLIT || codec == CWS_CODEC_QUANT) {
            c->table = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
            rc = cws_decode_table_init(c->table, c->plan.packed, NULL);
        }
        c->context = (struct cws_chunk_context){c->plan.dtype, codec, c->table, c->plan.row_elems,
                                                at / c->plan.elem_bytes};
    }
    free(room);
    return rc;
}

#endif
