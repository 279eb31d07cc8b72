/* Description: what is packed comes back: exactly for lossless, as the reference says for q8 and q6; all encoders give
 * the same bytes, all decoders the same bytes for every range. */
#include "codec_data.h"
#include "store/format/checksum.h"
#include "store/codec/encode.h"
#include "store/codec/decode_table.h"
#include "tests/support/sanitized.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

static struct cws_decode_scratch *decode_scratch;
static struct cws_encode_scratch *encode_scratch;
static const size_t sizes[] = {1,    2,    7,    8,    9,    31,   32,    33,    255,   256,  257,
                               4095, 4096, 4097, 8191, 8192, 8193, 16383, 16384, 16385, 40000};
#define SIZES (sizeof sizes / sizeof *sizes)
static const enum cws_dtype floats[] = {CWS_BF16,    CWS_F16,     CWS_F32,         CWS_F64,
                                        CWS_F8_E4M3, CWS_F8_E5M2, CWS_F8_E4M3FNUZ, CWS_F8_E8M0};

static int setup(void **state)
{
    (void)state;
    printf("seed %llu\n", (unsigned long long)data_state);
    return cws_decode_scratch_create(&decode_scratch) || cws_encode_scratch_create(&encode_scratch);
}

static int teardown(void **state)
{
    (void)state;
    cws_decode_scratch_destroy(decode_scratch);
    cws_encode_scratch_destroy(encode_scratch);
    return 0;
}

/* Decodes with the oracle and with every decoder, whole and in ranges; returns the bytes. */
static uint8_t *decode_all_ways(const struct data_chunk *c, size_t bytes, unsigned ranges)
{
    struct cws_error err = {0};
    uint8_t *want = malloc(bytes + 1), *got = malloc(bytes + 2);
    if (cws_chunk_decode_ref(&c->context, c->plan.packed, c->stored, c->stored_bytes, bytes, want, &err) != 0)
        fail_msg("reference: %s", err.message);
    for (unsigned d = 0; cws_decoder_name(d); d++) {
        assert_int_equal(cws_decoder_force(cws_decoder_name(d)), 0);
        memset(got, 0xa5, bytes + 2);
        if (cws_chunk_decode(&c->context, c->stored, c->stored_bytes, bytes, 0, bytes, got + 1, decode_scratch, &err) !=
            0)
            fail_msg("%s: %s", cws_decoder_name(d), err.message);
        assert_memory_equal(got + 1, want, bytes);
        assert_true(got[0] == 0xa5 && got[bytes + 1] == 0xa5);
        for (unsigned r = 0; r < ranges; r++) {
            size_t begin = data_u64() % (bytes + 1), end = begin + data_u64() % (bytes - begin + 1);
            memset(got, 0xa5, bytes + 2);
            if (cws_chunk_decode(&c->context, c->stored, c->stored_bytes, bytes, begin, end, got + 1, decode_scratch,
                                 &err))
                fail_msg("%s %zu..%zu: %s", cws_decoder_name(d), begin, end, err.message);
            assert_memory_equal(got + 1, want + begin, end - begin);
            assert_true(got[0] == 0xa5 && got[end - begin + 1] == 0xa5);
        }
    }
    assert_int_equal(cws_decoder_force(NULL), 0);
    free(got);
    return want;
}

/* Packs a tensor, compares all encoders and decoders; returns what it decodes to and which codec it got. */
static uint8_t *there_and_back(enum cws_mode mode, enum cws_dtype dtype, const uint8_t *data, size_t rows, size_t cols,
                               unsigned ranges, struct cws_plan *out_plan)
{
    struct data_chunk c = {0};
    size_t bytes = rows * cols * cws_dtype_unit(dtype);
    uint8_t *decoded = malloc(bytes + 1);
    assert_int_equal(data_plan(&c.plan, mode, dtype, data, rows, cols), 0);
    for (size_t at = 0; at < bytes; at += c.plan.chunk_bytes) {
        size_t n = bytes - at < c.plan.chunk_bytes ? bytes - at : c.plan.chunk_bytes;
        struct data_chunk other = {.plan = c.plan};
        assert_int_equal(data_encode(&c, data, at, n, encode_scratch), 0);
        assert_true(c.stored_bytes <= n);
        for (unsigned e = 1; cws_encoder_name(e); e++) {
            assert_int_equal(cws_encoder_force(cws_encoder_name(e)), 0);
            assert_int_equal(data_encode(&other, data, at, n, encode_scratch), 0);
            assert_int_equal(other.stored_bytes, c.stored_bytes);
            assert_memory_equal(other.stored, c.stored, c.stored_bytes);
            data_chunk_free(&other);
            other.plan = c.plan;
        }
        assert_int_equal(cws_encoder_force(NULL), 0);
        uint8_t *part = decode_all_ways(&c, n, ranges);
        memcpy(decoded + at, part, n);
        free(part);
        struct cws_plan keep = c.plan;
        data_chunk_free(&c);
        c.plan = keep;
    }
    if (out_plan)
        *out_plan = c.plan;
    return decoded;
}

static void lossless_is_exact_at_all_sizes(void **state)
{
    (void)state;
    for (size_t d = 0; d < sizeof floats / sizeof *floats; d++)
        for (size_t s = 0; s < SIZES; s++) {
            uint8_t *data = data_normal(floats[d], sizes[s], 0.02);
            struct cws_plan plan;
            uint8_t *back = there_and_back(CWS_MODE_LOSSLESS, floats[d], data, sizes[s], 1, 3, &plan);
            assert_memory_equal(back, data, sizes[s] * cws_dtype_unit(floats[d]));
            if (sizes[s] >= 8191)
                assert_int_equal(plan.codec, CWS_CODEC_SPLIT);
            free(back);
            free(data);
        }
}

static void every_range_start_and_end(void **state)
{
    (void)state;
    enum { ELEMS = 8192 + 300 };
    struct data_chunk c = {0};
    uint8_t *data = data_normal(CWS_BF16, ELEMS, 0.02), out[2 * ELEMS];
    assert_int_equal(data_plan(&c.plan, CWS_MODE_LOSSLESS, CWS_BF16, data, ELEMS, 1), 0);
    assert_int_equal(data_encode(&c, data, 0, 2 * ELEMS, encode_scratch), 0);
    for (size_t begin = 0; begin <= 2 * ELEMS; begin += 37) {
        size_t end = begin + (begin * 7919) % (2 * ELEMS - begin + 1);
        assert_int_equal(
            cws_chunk_decode(&c.context, c.stored, c.stored_bytes, 2 * ELEMS, begin, end, out, decode_scratch, NULL),
            0);
        assert_memory_equal(out, data + begin, end - begin);
    }
    data_chunk_free(&c);
    free(data);
}

static void all_bit_patterns_survive(void **state)
{
    (void)state;
    enum { ELEMS = 65536 * 2 };
    uint16_t *data = malloc(2 * ELEMS);
    for (unsigned i = 0; i < ELEMS;
         i++) /* every pattern once: NaN payloads, infinities, -0, subnormals; then weights */
        data[i] = i < 65536 ? (uint16_t)i : (uint16_t)data_float(0.02 * data_gauss(), 8, 7);
    for (unsigned d = 0; d < 2; d++) {
        enum cws_dtype dtype = d ? CWS_F16 : CWS_BF16;
        uint8_t *back = there_and_back(CWS_MODE_LOSSLESS, dtype, (uint8_t *)data, ELEMS, 1, 1, NULL);
        assert_memory_equal(back, data, 2 * ELEMS);
        free(back);
    }
    free(data);
}

static void upcast_floats_drop_their_constant_planes(void **state)
{
    (void)state;
    enum { ELEMS = 20000 };
    uint32_t *data = malloc(4 * ELEMS);
    struct data_chunk c = {0};
    struct cws_coded_head head;
    for (unsigned i = 0; i < ELEMS; i++)
        data[i] = (uint32_t)data_float(0.02 * data_gauss(), 8, 7) << 16;
    assert_int_equal(data_plan(&c.plan, CWS_MODE_LOSSLESS, CWS_F32, (uint8_t *)data, ELEMS, 1), 0);
    c.plan.codec = CWS_CODEC_SPLIT; /* whatever zstd thinks of them */
    uint64_t histogram[256] = {0};
    assert_int_equal(cws_plan_count(&c.plan, data, 4 * ELEMS, 0, histogram), 0);
    assert_int_equal(cws_plan_finish(&c.plan, histogram), 0);
    assert_int_equal(data_encode(&c, (uint8_t *)data, 0, 4 * ELEMS, encode_scratch), 0);
    memcpy(&head, c.stored, sizeof head);
    assert_int_equal(head.const_planes, 3);
    uint8_t *back = decode_all_ways(&c, 4 * ELEMS, 5);
    assert_memory_equal(back, data, 4 * ELEMS);
    assert_true(c.stored_bytes < ELEMS * 11 / 8);
    free(back);
    data_chunk_free(&c);
    free(data);
}

static void other_dtypes_and_noise_never_grow(void **state)
{
    (void)state;
    static const enum cws_dtype dtypes[] = {CWS_BOOL, CWS_U8, CWS_I8, CWS_I32, CWS_I64, CWS_BF16, CWS_F32, CWS_F8_E4M3};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (unsigned kind = 0; kind < 3; kind++) {
            size_t elems = 30011, bytes = elems * cws_dtype_unit(dtypes[d]);
            struct cws_plan plan;
            uint8_t *data = malloc(bytes);
            for (size_t i = 0; i < bytes; i++)
                data[i] = kind == 0 ? (uint8_t)data_u64() : kind == 1 ? 0 : (uint8_t)(i / 64 % 7);
            uint8_t *back = there_and_back(CWS_MODE_LOSSLESS, dtypes[d], data, elems, 1, 3, &plan);
            assert_memory_equal(back, data, bytes);
            if (kind == 0 && dtypes[d] != CWS_BF16)
                assert_int_equal(plan.codec, CWS_CODEC_RAW);
            if (kind != 0)
                assert_int_not_equal(plan.codec, CWS_CODEC_RAW);
            free(back);
            free(data);
        }
}

static void one_symbol_and_steep_codes(void **state)
{
    (void)state;
    enum { ELEMS = 12000 };
    uint16_t *data = malloc(2 * ELEMS);
    for (unsigned kind = 0; kind < 3; kind++) {
        for (unsigned i = 0; i < ELEMS; i++) {
            /* one exponent; geometric; geometric with every exponent present: codes of 11 bits */
            unsigned e = 120;
            if (kind > 0)
                e -= (unsigned)__builtin_ctzll(data_u64() | UINT64_C(1) << 40);
            if (kind == 2 && i < 256)
                e = i;
            data[i] = (uint16_t)(e << 7 | (data_u64() & 0x807f));
        }
        uint8_t *back = there_and_back(CWS_MODE_LOSSLESS, CWS_BF16, (uint8_t *)data, ELEMS, 1, 5, NULL);
        assert_memory_equal(back, data, 2 * ELEMS);
        free(back);
    }
    free(data);
}

/* Rows of very different length in bits: the first half of the lanes has short codes only. */
static void uneven_lanes_need_wide_excesses(void **state)
{
    (void)state;
    enum { ELEMS = 8192 * 2 };
    uint16_t *data = malloc(2 * ELEMS);
    struct data_chunk c = {0};
    struct cws_coded_head head;
    for (unsigned i = 0; i < ELEMS; i++) {
        unsigned e = i / 8 % 32 < 16 ? 120 : 60 + (unsigned)(data_u64() % 50);
        data[i] = (uint16_t)(e << 7 | (data_u64() & 0x807f));
    }
    assert_int_equal(data_plan(&c.plan, CWS_MODE_LOSSLESS, CWS_BF16, (uint8_t *)data, ELEMS, 1), 0);
    assert_int_equal(data_encode(&c, (uint8_t *)data, 0, 2 * ELEMS, encode_scratch), 0);
    memcpy(&head, c.stored, sizeof head);
    assert_int_equal(head.flags, CWS_CODED_WIDE);
    uint8_t *back = decode_all_ways(&c, 2 * ELEMS, 5);
    assert_memory_equal(back, data, 2 * ELEMS);
    free(back);
    data_chunk_free(&c);
    free(data);
}

/* Tables take several forms; each must have been met. Geometric symbols, one of them more often than the rest. */
static void every_form_of_table(void **state)
{
    (void)state;
    static const double ratios[] = {0.4, 0.5, 0.7, 0.8, 0.9, 0.93, 0.95, 0.97, 0.98};
    static const double often[] = {0, 0.13, 0.3};
    enum { ELEMS = 3 * 8192 + 300 };
    uint16_t *data = malloc(2 * ELEMS);
    unsigned met = 0;
    for (unsigned i = 0; i < 27; i++) {
        struct data_chunk c = {0};
        for (unsigned k = 0; k < ELEMS; k++) {
            double u = (double)(data_u64() >> 11) * 0x1p-53, v = (double)(data_u64() >> 11) * 0x1p-53;
            unsigned e = v < often[i % 3] ? 7 : (unsigned)(log(u + 1e-9) / log(ratios[i / 3]));
            data[k] = (uint16_t)((e < 255 ? e : 255) << 7 | (data_u64() & 0x807f));
        }
        assert_int_equal(data_plan(&c.plan, CWS_MODE_LOSSLESS, CWS_BF16, (uint8_t *)data, ELEMS, 1), 0);
        assert_int_equal(data_encode(&c, (uint8_t *)data, 0, 2 * ELEMS, encode_scratch), 0);
        if (c.context.codec == CWS_CODEC_SPLIT) {
            const struct cws_vector_table *v = &c.context.table->vector;
            unsigned form = v->direct ? 0 : v->lasts <= 5 ? 1 : v->lasts <= 7 ? 2 : 3;
            met |= 1u << (2 * form + v->short_words) | 1u << (8 + c.context.table->single);
        }
        uint8_t *back = decode_all_ways(&c, 2 * ELEMS, 5);
        assert_memory_equal(back, data, 2 * ELEMS);
        free(back);
        data_chunk_free(&c);
    }
    print_message("forms 0x%x\n", met);
    assert_int_equal(met & ~8u, 0x3f6); /* few lengths and short words: nearly always a direct table */
    free(data);
}

static double to_double(enum cws_dtype dtype, const uint8_t *p)
{
    uint16_t h;
    uint32_t v;
    float f;
    memcpy(&h, p, 2);
    if (dtype == CWS_F16) {
        int e = h >> 10 & 31, m = h & 1023;
        double x = e ? ldexp(m + 1024, e - 25) : ldexp(m, -24);
        return h & 0x8000 ? -x : x;
    }
    v = (uint32_t)h << 16;
    if (dtype == CWS_F32)
        memcpy(&v, p, 4);
    memcpy(&f, &v, 4);
    return f;
}

static void quantised_error_is_bounded(void **state)
{
    (void)state;
    static const enum cws_dtype dtypes[] = {CWS_BF16, CWS_F16, CWS_F32};
    static const size_t shapes[][2] = {{64, 256}, {37, 333}, {3, 70000}, {1000, 33}};
    for (unsigned mode = CWS_MODE_Q8; mode <= CWS_MODE_Q6; mode++)
        for (unsigned d = 0; d < 3; d++)
            for (unsigned s = 0; s < 4; s++) {
                size_t rows = shapes[s][0], cols = shapes[s][1], elems = rows * cols;
                unsigned bytes = cws_dtype_unit(dtypes[d]);
                struct cws_plan plan;
                uint8_t *data = data_normal(dtypes[d], elems, 0.02);
                memset(data + 5 % rows * cols * bytes, 0, cols * bytes); /* a row of zeros */
                uint8_t *back = there_and_back((enum cws_mode)mode, dtypes[d], data, rows, cols, 3, &plan);
                assert_int_equal(plan.codec, CWS_CODEC_QUANT);
                double error = 0, norm = 0;
                for (size_t i = 0; i < elems; i++) {
                    double x = to_double(dtypes[d], data + i * bytes), y = to_double(dtypes[d], back + i * bytes);
                    error += (x - y) * (x - y);
                    norm += x * x;
                    if (x == 0 && i / cols == 5 % rows)
                        assert_true(y == 0);
                }
                double relative = sqrt(error / norm);
                if (relative > (mode == CWS_MODE_Q8 ? 0.013 : 0.035))
                    fail_msg("mode %u dtype %u shape %u: relative error %f", mode, d, s, relative);
                free(back);
                free(data);
            }
}

static void q6_fits_six_bits(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{256, 256}, {512, 688}, {64, 64}, {2048, 300}};
    for (unsigned s = 0; s < 4; s++) {
        size_t rows = shapes[s][0], cols = shapes[s][1], bytes = 2 * rows * cols,
               total = 128 + sizeof(struct cws_tensor_record);
        uint8_t *data = data_normal(CWS_BF16, rows * cols, 0.5);
        struct data_chunk c = {0};
        assert_int_equal(data_plan(&c.plan, CWS_MODE_Q6, CWS_BF16, data, rows, cols), 0);
        struct cws_plan plan = c.plan;
        for (size_t at = 0; at < bytes; at += plan.chunk_bytes) {
            c.plan = plan;
            assert_int_equal(data_encode(&c, data, at, bytes - at < plan.chunk_bytes ? bytes - at : plan.chunk_bytes,
                                         encode_scratch),
                             0);
            total += (c.stored_bytes + 63) / 64 * 64 + sizeof(struct cws_chunk_record);
            data_chunk_free(&c);
        }
        double bits = 8.0 * (double)total / (double)(rows * cols);
        if (bits > 6.0 || bits < 5.5)
            fail_msg("%zu x %zu: %f bits per weight", rows, cols, bits);
        free(data);
    }
}

static void what_cannot_be_quantised_stays_lossless(void **state)
{
    (void)state;
    /* infinities, a NaN, the largest finite */
    static const uint16_t poison[] = {0x7f80, 0xff80, 0x7fc1, 0x7f7f};
    uint64_t small[2] = {64, 32};
    struct cws_plan plan;
    for (unsigned k = 0; k < 4; k++) {
        uint8_t *data = data_normal(CWS_BF16, 128 * 2048, 0.02);
        memcpy(data + 2 * (100 * 2048 + 77), &poison[k], 2);
        uint8_t *back = there_and_back(CWS_MODE_Q8, CWS_BF16, data, 128, 2048, 1, &plan);
        assert_int_equal(plan.codec, CWS_CODEC_SPLIT);
        assert_memory_equal(back, data, 2 * 128 * 2048);
        free(back);
        free(data);
    }
    cws_plan_begin(&plan, CWS_MODE_Q8, CWS_BF16, small, 2);
    assert_int_equal(plan.codec, CWS_CODEC_SPLIT);
    small[0] = 8192;
    cws_plan_begin(&plan, CWS_MODE_Q8, CWS_BF16, small, 1);
    assert_int_equal(plan.codec, CWS_CODEC_SPLIT);
    cws_plan_begin(&plan, CWS_MODE_Q8, CWS_I32, small, 2);
    assert_int_equal(plan.codec, CWS_CODEC_ZSTD);
}

/* One symbol all along fills the counters of vectors as fast as can be. */
static void every_encoder_counts_the_same(void **state)
{
    (void)state;
    enum { ELEMS = 30000 };
    static const uint64_t shape[1] = {ELEMS};
    uint16_t *data = malloc(2 * (size_t)ELEMS);
    assert_non_null(data);
    for (unsigned strange = 0; strange < 2; strange++)
        for (unsigned e = 0; cws_encoder_name(e); e++) {
            struct cws_plan plan;
            uint64_t histogram[256] = {0};
            for (unsigned i = 0; i < ELEMS; i++)
                data[i] = (uint16_t)((strange && i % 1000 == 999 ? 9 : 120) << 7 | (data_u64() & 0x807f));
            assert_int_equal(cws_encoder_force(cws_encoder_name(e)), 0);
            cws_plan_begin(&plan, CWS_MODE_LOSSLESS, CWS_BF16, shape, 1);
            assert_false(plan.counts_part);
            assert_int_equal(cws_plan_count(&plan, data, 2 * (size_t)ELEMS, 0, histogram), 0);
            assert_int_equal(histogram[9], strange ? ELEMS / 1000 : 0);
            assert_int_equal(histogram[120], ELEMS - histogram[9]);
        }
    assert_int_equal(cws_encoder_force(NULL), 0);
    free(data);
}

static void an_uncounted_symbol_is_an_error(void **state)
{
    (void)state;
    struct data_chunk c = {0};
    uint8_t *data = data_normal(CWS_BF16, 8192, 0.02);
    assert_int_equal(data_plan(&c.plan, CWS_MODE_LOSSLESS, CWS_BF16, data, 8192, 1), 0);
    data[2 * 5000 + 1] = 0x7e; /* an exponent that no weight has */
    for (unsigned e = 0; cws_encoder_name(e); e++) {
        assert_int_equal(cws_encoder_force(cws_encoder_name(e)), 0);
        assert_int_equal(data_encode(&c, data, 0, 2 * 8192, encode_scratch), CWS_E_BUG);
    }
    assert_int_equal(cws_encoder_force(NULL), 0);
    free(data);
}

/* Of a large tensor a part is counted: its neighbours and zeros have codes, and a chunk with a stranger is stored as it
 * is. */
static void a_large_tensor_may_hold_what_was_not_counted(void **state)
{
    (void)state;
    enum { CHUNK = CWS_CHUNK_BYTES / 2, CHUNKS = 20, ELEMS = CHUNK * CHUNKS };
    uint16_t *data = malloc(2 * (size_t)ELEMS);
    struct data_chunk c = {0};
    for (size_t i = 0; i < ELEMS; i++) /* 16 exponents, the least rare */
        data[i] = (uint16_t)((119 - (unsigned)__builtin_ctzll(data_u64() | 1 << 15)) << 7 | (data_u64() & 0x807f));
    data[3 * CHUNK + 5] = (103 - 6) << 7;
    data[3 * CHUNK + 6] = 0x8000;
    data[7 * CHUNK + 5] = 254 << 7;
    data[11 * CHUNK + 5] = 30 << 7;
    assert_int_equal(data_plan(&c.plan, CWS_MODE_LOSSLESS, CWS_BF16, (uint8_t *)data, ELEMS, 1), 0);
    assert_int_equal(c.plan.codec, CWS_CODEC_SPLIT);
    assert_true(c.plan.counts_part);
    for (unsigned e = 0; cws_encoder_name(e); e++)
        for (unsigned k = 0; k < CHUNKS; k++) {
            struct data_chunk one = {.plan = c.plan};
            assert_int_equal(cws_encoder_force(cws_encoder_name(e)), 0);
            assert_int_equal(data_encode(&one, (uint8_t *)data, 2 * (size_t)CHUNK * k, 2 * CHUNK, encode_scratch), 0);
            assert_int_equal(one.context.codec, k == 7 || k == 11 ? CWS_CODEC_RAW : CWS_CODEC_SPLIT);
            data_chunk_free(&one);
        }
    assert_int_equal(cws_encoder_force(NULL), 0);
    uint8_t *back = there_and_back(CWS_MODE_LOSSLESS, CWS_BF16, (uint8_t *)data, ELEMS, 1, 0, NULL);
    assert_memory_equal(back, data, 2 * (size_t)ELEMS);
    free(back);
    free(data);
}

/* A stranger anywhere in a tensor of middle size has a code, though most of it is not counted; strangers so far apart
 * that the symbols between them are many have it all counted. */
static void a_middle_tensor_has_codes_for_all_it_holds(void **state)
{
    (void)state;
    enum { ELEMS = 200 * 1000 };
    uint16_t *data = malloc(2 * ELEMS);
    for (unsigned kind = 0; kind < 4; kind++)
        for (size_t at = 0; at < ELEMS; at += SANITIZED ? 49999 : 9973) {
            struct cws_plan plan;
            for (size_t i = 0; i < ELEMS; i++)
                data[i] = (uint16_t)((119 - (unsigned)__builtin_ctzll(data_u64() | 1 << 9)) << 7 |
                                     (data_u64() & 0x807f));
            data[at] = kind == 0 ? 127 << 7 : kind == 1 ? 105 << 7 : kind == 2 ? 0x8000 : 254 << 7;
            assert_int_equal(data_plan(&plan, CWS_MODE_LOSSLESS, CWS_BF16, (uint8_t *)data, ELEMS, 1), 0);
            assert_int_equal(plan.codec, CWS_CODEC_SPLIT);
            assert_int_equal(plan.counts_range, kind < 3);
            assert_int_equal(plan.lengths[130] != 0, 0);
            for (size_t i = 0; i < ELEMS; i++)
                assert_true(plan.lengths[data[i] >> 7 & 0xff] != 0);
            uint8_t *back = there_and_back(CWS_MODE_LOSSLESS, CWS_BF16, (uint8_t *)data, ELEMS, 1, 0, NULL);
            assert_memory_equal(back, data, 2 * ELEMS);
            free(back);
        }
    free(data);
}

static void encoders_find_the_same_range(void **state)
{
    (void)state;
    uint16_t data[300];
    for (unsigned trial = 0; trial < 3000; trial++) {
        unsigned low = (unsigned)(data_u64() % 256), high = low + (unsigned)(data_u64() % (256 - low));
        size_t count = data_u64() % 300;
        unsigned least = 255, most = 0;
        for (size_t i = 0; i < count; i++) {
            unsigned s = data_u64() % 5 == 0 ? 0 : low + (unsigned)(data_u64() % (high - low + 1));
            data[i] = (uint16_t)(s << 7 | (data_u64() & 0x807f));
            least = s > 0 && s < least ? s : least;
            most = s > most ? s : most;
        }
        for (unsigned e = 0; cws_encoder_name(e); e++) {
            uint8_t got_least, got_most;
            assert_int_equal(cws_encoder_force(cws_encoder_name(e)), 0);
            cws_encoder()->range2((const uint8_t *)data, count, &got_least, &got_most);
            assert_int_equal(got_least, least);
            assert_int_equal(got_most, most);
        }
        assert_int_equal(cws_encoder_force(NULL), 0);
    }
}

static void encoders_count_alike(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < 6; kind++) {
        uint8_t *data = data_normal(CWS_BF16, 100001, kind % 3 == 1 ? 1e-30 : 0.02);
        uint64_t first[256] = {0}, other[256];
        uint64_t shape[1] = {100001};
        struct cws_plan plan;
        for (size_t i = 0; kind % 3 == 2 && i < 200002; i++)
            data[i] = (uint8_t)data_u64();
        cws_plan_begin(&plan, CWS_MODE_LOSSLESS, CWS_BF16, shape, 1);
        assert_true(plan.counts_part && plan.counts_range);
        plan.counts_part = plan.counts_range = kind >= 3;
        for (unsigned e = 0; cws_encoder_name(e); e++) {
            memset(other, 0, sizeof other);
            assert_int_equal(cws_encoder_force(cws_encoder_name(e)), 0);
            assert_int_equal(cws_plan_count(&plan, data, 200002, 0, e ? other : first), 0);
            if (e)
                assert_memory_equal(first, other, sizeof first);
        }
        uint64_t sum = 0;
        for (unsigned s = 0; s < 256; s++)
            sum += first[s];
        if (kind < 3)
            assert_int_equal(sum, 100001);
        else
            assert_true(sum > 100001 / 10 && sum < 100001 / 6);
        assert_int_equal(cws_encoder_force(NULL), 0);
        free(data);
    }
}

/* Many short lanes keep a GPU busy; a small tensor would pay for them in bits. */
static void lanes_are_short_in_large_tensors(void **state)
{
    (void)state;
    static const uint64_t rows[] = {1023, 1024, 8191, 8192};
    static const unsigned lanes[][4] = {{256, 128, 128, 128}, {1024, 512, 512, 128}, {1024, 512, 512, 256}};
    for (unsigned mode = 0; mode < 3; mode++)
        for (unsigned i = 0; i < 4; i++) {
            struct cws_plan plan;
            const uint64_t shape[] = {rows[i], 1024};
            cws_plan_begin(&plan, (enum cws_mode)mode, CWS_BF16, shape, 2);
            assert_int_equal(plan.lane_symbols, lanes[mode][i]);
        }
    uint8_t *data = data_normal(CWS_BF16, 1025 * 1024, 0.02);
    for (unsigned mode = 0; mode < 3; mode++) {
        struct cws_plan plan;
        uint8_t *back = there_and_back((enum cws_mode)mode, CWS_BF16, data, 1025, 1024, 1, &plan);
        assert_int_equal(plan.lane_symbols, lanes[mode][1]);
        if (mode == CWS_MODE_LOSSLESS)
            assert_memory_equal(back, data, 2 * 1025 * 1024);
        free(back);
    }
    free(data);
}

static void checksums_agree(void **state)
{
    (void)state;
    uint8_t *data = malloc(70000);
    for (size_t i = 0; i < 70000; i++)
        data[i] = (uint8_t)data_u64();
    for (size_t bytes = 0; bytes < 70000; bytes += bytes / 8 + 1) {
        uint64_t seed = data_u64(), want = cws_checksum_portable(data + 1, bytes, seed);
        assert_true(cws_checksum(data + 1, bytes, seed) == want);
        if (bytes > 0) {
            data[1 + data_u64() % bytes] ^= 1;
            assert_true(cws_checksum(data + 1, bytes, seed) != want);
        }
    }
    free(data);
}

static void names_and_sizes(void **state)
{
    (void)state;
    enum cws_dtype back;
    for (unsigned d = 0; d < CWS_OTHER; d++) {
        enum cws_dtype dtype = (enum cws_dtype)d;
        const char *name = cws_dtype_name(dtype);
        uint64_t bytes;
        assert_int_equal(cws_dtype_parse(name, strlen(name), &back), 0);
        assert_int_equal(back, d);
        assert_int_equal(d, cws_dtype_code(dtype)); /* pinned: they are in files */
        assert_true(cws_dtype_unit(dtype) >= 1);
        assert_true(cws_dtype_size(dtype, 8, &bytes) && bytes == cws_dtype_bits(dtype) &&
                    bytes % cws_dtype_unit(dtype) == 0);
        assert_true(cws_dtype_size(dtype, 0, &bytes) && bytes == 0);
        assert_int_equal(cws_dtype_bits(dtype) % 8 == 0, cws_dtype_size(dtype, 1, &bytes));
        assert_int_equal(cws_dtype_bits(dtype) < 64, cws_dtype_size(dtype, UINT64_C(1) << 61, &bytes));
        assert_int_equal(cws_dtype_bits(dtype) == 8, cws_dtype_size(dtype, UINT64_MAX, &bytes));
    }
    assert_int_equal(21, CWS_C64);
    static const char *const unknown[] = {"BF1", "BF161", "u8", "I4", "_", "F4_E2M1X2_of_thirty_one_letters"};
    for (unsigned i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        uint64_t bytes;
        assert_int_equal(cws_dtype_parse(unknown[i], strlen(unknown[i]), &back), 0);
        assert_int_equal(CWS_OTHER, back);
        assert_false(cws_dtype_size(back, 1, &bytes));
    }
    static const char *const no_names[] = {"", "F 4", "F4\"", "\x1b[31m", "\u00e9", "F4_E2M1X2_of_thirty_two_letters_"};
    for (unsigned i = 0; i < sizeof no_names / sizeof *no_names; i++)
        assert_int_equal(CWS_E_INPUT, cws_dtype_parse(no_names[i], strlen(no_names[i]), &back));
    assert_int_equal(255, cws_dtype_code(CWS_OTHER));
    assert_int_equal(cws_decoder_force("abacus"), CWS_E_UNSUPPORTED);
    assert_int_equal(cws_encoder_force("abacus"), CWS_E_UNSUPPORTED);
    unsigned decoders = 0;
    while (cws_decoder_name(decoders))
        decoders++;
    assert_in_range(decoders, 1, 3);
    assert_string_equal(cws_decoder_name(decoders - 1), "portable");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lossless_is_exact_at_all_sizes),
        cmocka_unit_test(every_range_start_and_end),
        cmocka_unit_test(all_bit_patterns_survive),
        cmocka_unit_test(upcast_floats_drop_their_constant_planes),
        cmocka_unit_test(other_dtypes_and_noise_never_grow),
        cmocka_unit_test(one_symbol_and_steep_codes),
        cmocka_unit_test(uneven_lanes_need_wide_excesses),
        cmocka_unit_test(every_form_of_table),
        cmocka_unit_test(quantised_error_is_bounded),
        cmocka_unit_test(q6_fits_six_bits),
        cmocka_unit_test(what_cannot_be_quantised_stays_lossless),
        cmocka_unit_test(every_encoder_counts_the_same),
        cmocka_unit_test(an_uncounted_symbol_is_an_error),
        cmocka_unit_test(a_large_tensor_may_hold_what_was_not_counted),
        cmocka_unit_test(a_middle_tensor_has_codes_for_all_it_holds),
        cmocka_unit_test(encoders_find_the_same_range),
        cmocka_unit_test(encoders_count_alike),
        cmocka_unit_test(lanes_are_short_in_large_tensors),
        cmocka_unit_test(checksums_agree),
        cmocka_unit_test(names_and_sizes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
