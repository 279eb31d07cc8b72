/* test_standin_gpu.c - the host versions of the decoding kernels, which tests of the manager run on: chunks of each
 * codec and of several dtypes in one batch decode to what was packed, with the hash; a chunk that is not valid says
 * so. */
#include "tests/store/codec_data.h"
#include "tests/standin/standin.h"
#include "store/format/content_hash.h"
#include "store/cuda/decoder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#define OK(call) assert_int_equal(call, 0)
#define CHUNKS 5
static struct cws_driver cu;
static const uint64_t KEY[2] = {0x1234567890abcdef, 0xfedcba0987654321};

struct packed { /* one tensor of one chunk */
    enum cws_dtype dtype;
    uint64_t rows, row;
    enum cws_mode mode;
    uint8_t *data, *stored, *expected;
    size_t bytes, stored_bytes;
    struct cws_plan plan;
    enum cws_codec_id codec;
};

static void pack(struct packed *p)
{
    struct cws_error err;
    struct cws_encode_scratch *scratch;
    p->bytes = p->rows * p->row * cws_dtype_unit(p->dtype);
    p->data = data_normal(p->dtype, p->rows * p->row, 0.02);
    cws_plan_begin(&p->plan, p->mode, p->dtype, (const uint64_t[]){p->rows, p->row}, 2);
    OK(cws_plan_sample(&p->plan, p->data, p->bytes, &err));
    uint64_t histogram[256] = {0};
    for (int again = p->plan.needs_count; again; again = cws_plan_finish(&p->plan, histogram)) {
        memset(histogram, 0, sizeof histogram);
        OK(cws_plan_count(&p->plan, p->data, p->bytes, 0, histogram));
    }
    p->stored = calloc(1, cws_chunk_bound(&p->plan, p->bytes) + CWS_STREAM_PAD);
    p->expected = malloc(p->bytes);
    OK(cws_encode_scratch_create(&scratch));
    OK(cws_chunk_encode(&p->plan, p->data, p->bytes, 0, p->stored, &p->stored_bytes, &p->codec, scratch, &err));
    cws_encode_scratch_destroy(scratch);
    struct cws_chunk_context context = {p->dtype, p->codec, NULL, p->plan.row_elems, 0};
    OK(cws_chunk_decode_ref(&context, p->plan.packed, p->stored, p->stored_bytes, p->bytes, p->expected, &err));
}

static CUdeviceptr upload(const void *data, size_t bytes)
{
    CUdeviceptr at;
    OK(cu.mem_alloc(&at, bytes + 16));
    OK(cu.copy_in(at, data, bytes));
    return at;
}

static void job_of(struct packed *p, struct cws_gpu_job *job)
{
    struct cws_error err;
    struct cws_gpu_table table;
    struct cws_gpu_chunk chunk = {.dtype = p->dtype,
                                  .codec = p->codec,
                                  .row_elems = p->plan.row_elems,
                                  .stored_bytes = (uint32_t)p->stored_bytes,
                                  .logical_bytes = (uint32_t)p->bytes};
    if (p->codec != CWS_CODEC_RAW) {
        OK(cws_gpu_table_build(p->plan.packed, &table, &err));
        chunk.table = upload(&table, sizeof table);
    }
    chunk.stored = upload(p->stored, p->stored_bytes);
    OK(cu.mem_alloc(&chunk.dst, p->bytes + 16));
    OK(cws_gpu_job_init(job, &chunk, p->stored, &err));
}

static void decode(struct cws_gpu_job *jobs, uint32_t count, struct cws_gpu_result *results)
{
    struct cws_error err;
    struct cws_gpu_decoder *decoder;
    struct cws_gpu_batch batch;
    OK(cws_gpu_decoder_create_from(&cu, &standin_gpu_image, 8, &decoder, &err));
    OK(cws_gpu_batch_plan(jobs, count, &batch, &err));
    memset(results, 0, count * sizeof *results);
    CUdeviceptr d_jobs = upload(jobs, count * sizeof *jobs), d_results = upload(results, count * sizeof *results);
    OK(cws_gpu_decode(decoder, NULL, d_jobs, &batch, d_results, KEY, &err));
    OK(cu.copy_out(results, d_results, count * sizeof *results));
    cws_gpu_decoder_destroy(decoder);
}

static int setup(void **state)
{
    (void)state;
    struct cws_error err;
    CUcontext context;
    standin_reset((size_t)64 << 20);
    return cws_driver_fill(&cu, standin_resolve, NULL, &err) || cu.init(0) || cu.primary_retain(&context, 0) ||
           cu.context_set(context);
}

static void chunks_of_all_kinds_decode_as_the_reference_does(void **state)
{
    (void)state;
    struct packed packed[CHUNKS] = {{.dtype = CWS_BF16, .rows = 61, .row = 515},
                                    {.dtype = CWS_F32, .rows = 33, .row = 129},
                                    {.dtype = CWS_BF16, .rows = 64, .row = 300, .mode = CWS_MODE_Q8},
                                    {.dtype = CWS_F8_E4M3, .rows = 40, .row = 333},
                                    {.dtype = CWS_F16, .rows = 1, .row = 7}};
    struct cws_gpu_job jobs[CHUNKS];
    struct cws_gpu_result results[CHUNKS];
    unsigned codecs = 0;
    for (int i = 0; i < CHUNKS; i++) {
        pack(&packed[i]);
        job_of(&packed[i], &jobs[i]);
        codecs |= 1u << packed[i].codec;
    }
    assert_int_equal(codecs, 1u << CWS_CODEC_RAW | 1u << CWS_CODEC_SPLIT | 1u << CWS_CODEC_QUANT);
    decode(jobs, CHUNKS, results);
    for (int i = 0; i < CHUNKS; i++) {
        struct cws_hash128 hash = {0, 0};
        cws_content_hash_add(&hash, KEY, packed[i].expected, packed[i].bytes, 0);
        assert_int_equal(results[i].status, CWS_GPU_OK);
        assert_memory_equal((void *)(uintptr_t)jobs[i].dst, packed[i].expected, packed[i].bytes);
        assert_int_equal(cws_gpu_result_hash(&results[i]).lo, hash.lo);
        assert_int_equal(cws_gpu_result_hash(&results[i]).hi, hash.hi);
        free(packed[i].data);
        free(packed[i].stored);
        free(packed[i].expected);
    }
    standin_reset(0);
}

static void a_changed_chunk_is_refused_alone(void **state)
{
    (void)state;
    struct packed packed[3];
    struct cws_gpu_job jobs[3];
    struct cws_gpu_result results[3];
    for (int i = 0; i < 3; i++) {
        packed[i] = (struct packed){.dtype = CWS_BF16, .rows = 16, .row = 1024};
        pack(&packed[i]);
        job_of(&packed[i], &jobs[i]);
        assert_int_equal(packed[i].codec, CWS_CODEC_SPLIT);
    }
    volatile uint8_t *head = (volatile uint8_t *)(uintptr_t)jobs[0].stored,
                     *directory = (volatile uint8_t *)(uintptr_t)jobs[2].stored;
    OK(cu.context_sync());
    head[0] ^= 1;
    for (unsigned i = 0; i < 4; i++)
        directory[jobs[2].directory_at + i] = 0xff;
    decode(jobs, 3, results);
    assert_int_equal(results[0].status, CWS_GPU_BAD_HEAD);
    assert_int_equal(results[1].status, CWS_GPU_OK);
    assert_int_not_equal(results[2].status, CWS_GPU_OK);
    assert_memory_equal((void *)(uintptr_t)jobs[1].dst, packed[1].data, packed[1].bytes);
    for (int i = 0; i < 3; i++) {
        free(packed[i].data);
        free(packed[i].stored);
        free(packed[i].expected);
    }
    standin_reset(0);
}

static void plain_memory_is_hashed(void **state)
{
    (void)state;
    struct cws_error err;
    struct cws_gpu_decoder *decoder;
    struct cws_gpu_batch batch;
    uint8_t bytes[1000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    struct cws_gpu_hash_job job = {.address = upload(bytes, sizeof bytes), .bytes = sizeof bytes, .first_word = 5};
    struct cws_gpu_result result = {0};
    struct cws_hash128 hash = {0, 0};
    cws_content_hash_add(&hash, KEY, bytes, sizeof bytes, 80);
    OK(cws_gpu_decoder_create_from(&cu, &standin_gpu_image, 8, &decoder, &err));
    OK(cws_gpu_hash_plan(&job, 1, &batch, &err));
    CUdeviceptr d_job = upload(&job, sizeof job), d_result = upload(&result, sizeof result);
    OK(cws_gpu_hash(decoder, NULL, d_job, &batch, d_result, KEY, &err));
    OK(cu.copy_out(&result, d_result, sizeof result));
    assert_int_equal(cws_gpu_result_hash(&result).lo, hash.lo);
    assert_int_equal(cws_gpu_result_hash(&result).hi, hash.hi);
    cws_gpu_decoder_destroy(decoder);
    standin_reset(0);
}

static void a_fatbin_loads_as_the_host_versions(void **state)
{
    (void)state;
    static const uint32_t fatbin[4] = {0xBA55ED50u, 1, 0, 0};
    struct cws_error err;
    struct cws_gpu_decoder *decoder;
    OK(cws_gpu_decoder_create_from(&cu, fatbin, 8, &decoder, &err));
    cws_gpu_decoder_destroy(decoder);
    standin_reset(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(chunks_of_all_kinds_decode_as_the_reference_does, setup),
        cmocka_unit_test_setup(a_changed_chunk_is_refused_alone, setup),
        cmocka_unit_test_setup(plain_memory_is_hashed, setup),
        cmocka_unit_test_setup(a_fatbin_loads_as_the_host_versions, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
