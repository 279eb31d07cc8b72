/* The host side of the GPU decoders: tables that decode what the encoder wrote, jobs, batches. No GPU. */
#include "store/cuda/decoder.h"
#include "tests/store/codec_data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void packed_of(enum cws_mode mode, struct cws_plan *plan)
{
    uint8_t *data = data_normal(CWS_BF16, 64 * 1024, 0.02);
    assert_non_null(data);
    assert_int_equal(data_plan(plan, mode, CWS_BF16, data, 64, 1024), 0);
    free(data);
}

/* Each entry of both forms says what walking the code bit by bit says. */
static void tables_agree_with_the_code(void **state)
{
    (void)state;
    static struct cws_gpu_table t;
    for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q8; mode++) {
        struct cws_plan plan;
        packed_of((enum cws_mode)mode, &plan);
        assert_int_equal(cws_gpu_table_build(plan.packed, &t, NULL), 0);
        assert_int_equal(t.pairs, mode == CWS_MODE_LOSSLESS);
        double kraft[256] = {0};
        for (uint32_t w = 0; w < 1u << CWS_GPU_WINDOW; w++) {
            uint32_t e = t.entry[w], s = e & 0xff, first = e >> CWS_GPU_ENTRY_FIRST & 15,
                     bits = e >> CWS_GPU_ENTRY_BITS;
            assert_int_equal(first, plan.lengths[s]);
            kraft[s]++;
            uint32_t after = t.entry[w >> first], second = after >> CWS_GPU_ENTRY_FIRST & 15;
            bool fits = first + second <= CWS_GPU_WINDOW, alone = e >> CWS_GPU_ENTRY_ALONE & 1;
            assert_int_equal(bits, t.pairs && fits ? first + second : first);
            assert_int_equal(alone, t.pairs && !fits);
            if (t.pairs && fits)
                assert_int_equal(e >> CWS_GPU_ENTRY_SECOND & 0xff, after & 0xff);
        }
        for (unsigned s = 0; s < 256; s++) /* a word of n bits begins 2^(12-n) windows */
            assert_true(kraft[s] == (plan.lengths[s] ? ldexp(1, (int)CWS_GPU_WINDOW - plan.lengths[s]) : 0));
    }
}

static void refuses_an_incomplete_code(void **state)
{
    (void)state;
    static struct cws_gpu_table t;
    struct cws_plan plan;
    packed_of(CWS_MODE_LOSSLESS, &plan);
    for (unsigned i = 0; i < 128; i++)
        if (plan.packed[i] & 0xf) {
            plan.packed[i] &= 0xf0;
            break;
        }
    assert_int_equal(cws_gpu_table_build(plan.packed, &t, NULL), CWS_E_CORRUPT);
}

static void jobs_and_batches(void **state)
{
    (void)state;
    struct cws_encode_scratch *scratch;
    struct data_chunk c;
    uint8_t *data = data_normal(CWS_BF16, 20000, 0.02);
    assert_int_equal(cws_encode_scratch_create(&scratch), 0);
    data_plan(&c.plan, CWS_MODE_LOSSLESS, CWS_BF16, data, 1, 20000);
    c.plan.lane_symbols = 128;
    assert_int_equal(data_encode(&c, data, 0, 40000, scratch), 0);
    assert_int_equal(c.context.codec, CWS_CODEC_SPLIT);
    struct cws_gpu_chunk chunk = {.dtype = CWS_BF16,
                                  .codec = CWS_CODEC_SPLIT,
                                  .stored_bytes = (uint32_t)c.stored_bytes,
                                  .logical_bytes = 40000,
                                  .stored = 64,
                                  .dst = 4096,
                                  .table = 16};
    struct cws_gpu_job jobs[3];
    for (int i = 0; i < 2; i++)
        assert_int_equal(cws_gpu_job_init(&jobs[i], &chunk, c.stored, NULL), 0);
    assert_int_equal(jobs[0].tiles, 5); /* of 4096 elements */
    assert_int_equal(jobs[0].tile_shift, 1);
    assert_int_equal(jobs[0].streams_at + 4 * jobs[0].head.stream_words + CWS_STREAM_PAD, c.stored_bytes);
    struct cws_gpu_chunk raw = {.dtype = CWS_U8, .codec = CWS_CODEC_RAW, .stored_bytes = 16385, .logical_bytes = 16385};
    assert_int_equal(cws_gpu_job_init(&jobs[2], &raw, data, NULL), 0);
    struct cws_gpu_batch batch;
    assert_int_equal(cws_gpu_batch_plan(jobs, 3, &batch, NULL), 0);
    assert_int_equal(jobs[1].first_unit, 10);
    assert_int_equal(jobs[2].first_unit, 20);
    assert_int_equal(batch.units, 22);
    assert_int_equal(batch.tiles, 12);
    assert_int_equal(batch.kind, CWS_GPU_ANY);
    assert_int_equal(cws_gpu_batch_plan(jobs, 2, &batch, NULL), 0);
    assert_int_equal(batch.kind, CWS_GPU_SPLIT2);
    assert_int_equal(cws_gpu_batch_plan(jobs, 0, &batch, NULL), 0);
    assert_int_equal(batch.kind, CWS_GPU_ANY);

    c.stored[4] ^= 3; /* symbols per lane */
    assert_int_equal(cws_gpu_job_init(&jobs[0], &chunk, c.stored, NULL), CWS_E_CORRUPT);
    c.stored[4] ^= 3;
    chunk.dst += 8;
    assert_int_equal(cws_gpu_job_init(&jobs[0], &chunk, c.stored, NULL), CWS_E_BUG);
    chunk.codec = CWS_CODEC_ZSTD;
    assert_int_equal(cws_gpu_job_init(&jobs[0], &chunk, c.stored, NULL), CWS_E_UNSUPPORTED);
    raw.stored_bytes = 16384;
    assert_int_equal(cws_gpu_job_init(&jobs[0], &raw, data, NULL), CWS_E_CORRUPT);
    data_chunk_free(&c);
    cws_encode_scratch_destroy(scratch);
    free(data);
}

/* Digits as warps leave them, without carries. */
static void digits_make_a_hash(void **state)
{
    (void)state;
    struct cws_gpu_result r = {.digit = {UINT32_MAX + UINT64_C(1), UINT64_MAX, 7, UINT64_C(5) << 32 | UINT32_MAX}};
    unsigned __int128 want = 0;
    for (unsigned i = 4; i-- > 0;)
        want = (want << 32) + r.digit[i];
    struct cws_hash128 got = cws_gpu_result_hash(&r);
    assert_true(got.lo == (uint64_t)want && got.hi == (uint64_t)(want >> 64));
    for (unsigned round = 0; round < 1000; round++) {
        want = 0;
        for (unsigned i = 0; i < 4; i++)
            r.digit[i] = data_u64();
        for (unsigned i = 4; i-- > 0;)
            want = (want << 32) + r.digit[i];
        got = cws_gpu_result_hash(&r);
        assert_true(got.lo == (uint64_t)want && got.hi == (uint64_t)(want >> 64));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_agree_with_the_code),
        cmocka_unit_test(refuses_an_incomplete_code),
        cmocka_unit_test(jobs_and_batches),
        cmocka_unit_test(digits_make_a_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
