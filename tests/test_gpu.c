/* The CUDA manager against the stand-in driver: binding, loading, dropping, budget, writes, frees, failures. */
#include "../store/gpu/gpu_decode.h"
#include "../store/writer.h"
#include "../uvm/gpu.h"
#include "sample_model.h"
#include "standin/standin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TENSORS = 12 };
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 }; /* a tenth of the speed */
#else
enum { SANITIZED = 0 };
#endif
#define MIB ((size_t)1 << 20)

static struct cws_driver driver;
static struct cws_store *store;
static struct bytes plain; /* the logical file */
static char last_line[1024];

static void say(const char *line) { snprintf(last_line, sizeof last_line, "%s", line); }

static size_t tensor_bytes(unsigned i) { return i % 3 == 0 ? 3 * MIB : i % 3 == 1 ? 2 * MIB : MIB + 512; }

/* bf16 weights, near enough to normal ones. */
static void fill_weights(uint8_t *to, size_t bytes, uint64_t *seed)
{
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        uint64_t r = sample_random(seed);
        float f = (float)((double)(r & 0xffff) + (double)(r >> 16 & 0xffff) - 65536.0) / 3e6f;
        uint32_t v;
        memcpy(&v, &f, 4);
        to[i] = (uint8_t)(v >> 16);
        to[i + 1] = (uint8_t)(v >> 24);
    }
}

static void make_store(void)
{
    char json[4096];
    size_t at = 0, len = (size_t)snprintf(json, sizeof json, "{");
    uint64_t seed = 7;
    for (unsigned i = 0; i < TENSORS; i++) {
        len += (size_t)snprintf(json + len, sizeof json - len, "%s\"w%02u\":{\"dtype\":\"BF16\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}", i ? "," : "", i,
                                tensor_bytes(i) / 2, at, at + tensor_bytes(i));
        at += tensor_bytes(i);
    }
    snprintf(json + len, sizeof json - len, "}");
    uint8_t *data = malloc(at);
    fill_weights(data, at, &seed);
    plain = sample_file(json, 1, data, at);
    free(data);
    const char *in = sample_path("gpu.safetensors"), *out = sample_path("gpu.store");
    struct cws_pack_options options = {0};
    struct cws_error err = {0};
    sample_save(in, plain.data, plain.size);
    if (cws_pack_file(in, out, &options, NULL, &err) || cws_store_open(out, &store, &err)) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
}

static int group_setup(void **state)
{
    (void)state;
    make_store();
    return 0;
}
static int group_teardown(void **state)
{
    (void)state;
    cws_store_close(store);
    free(plain.data);
    return 0;
}

struct fixture {
    struct cws_gpu *gpu;
    CUcontext context;
    CUmodule kernels;
    CUstream stream;
    CUdeviceptr at[TENSORS], scratch;
};

static const uint32_t image_of_kernels[16] = {0xba55ed50}; /* a fatbin: the stand-in has kernels of its own for it */

static struct fixture *open_gpu(size_t device_bytes, uint64_t budget, bool prefetch)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct cws_error err = {0};
    standin_reset(device_bytes);
    assert_int_equal(cws_driver_fill(&driver, standin_resolve, NULL, &err), 0);
    assert_int_equal(driver.init(0), 0);
    assert_int_equal(driver.primary_retain(&f->context, 0), 0);
    assert_int_equal(driver.context_set(f->context), 0);
    struct cws_gpu_config config = {.driver = &driver, .budget_bytes = budget, .host_budget_bytes = 64 * MIB, .policy = CWS_POLICY_NEXT,
                                    .prefetch = prefetch, .ring_bytes = 8 * MIB, .kernels = image_of_kernels, .say = say};
    last_line[0] = '\0';
    if (cws_gpu_open(&config, 0, &f->gpu, &err))
        fail_msg("%s", err.message);
    assert_int_equal(driver.module_load(&f->kernels, &standin_test_image), 0);
    assert_int_equal(driver.stream_create(&f->stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(driver.mem_alloc(&f->scratch, 4096), 0);
    return f;
}

static void close_gpu(struct fixture *f)
{
    assert_null(cws_gpu_check(f->gpu));
    cws_gpu_close(f->gpu);
    assert_int_equal(driver.stream_destroy(f->stream), 0);
    assert_int_equal(driver.mem_free(f->scratch), 0);
    assert_int_equal(driver.module_unload(f->kernels), 0);
    assert_int_equal(driver.primary_release(0), 0);
    char text[256];
    if (standin_leak_text(text, sizeof text))
        fail_msg("left behind: %s", text);
    free(f);
}

static const uint8_t *content(unsigned i) { return plain.data + cws_store_tensor(store, i)->begin; }

static void bind_all(struct fixture *f)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &f->at[i]), 0);
        assert_true(cws_gpu_bind(f->gpu, f->at[i], tensor_bytes(i), f->stream, store, cws_store_tensor(store, i)->begin));
    }
}

static CUresult launch(struct fixture *f, const char *name, CUdeviceptr *named, size_t count, void **params)
{
    CUfunction function;
    struct cws_gpu_use use;
    assert_int_equal(driver.module_function(&function, f->kernels, name), 0);
    CUresult result = cws_gpu_begin(f->gpu, f->stream, named, count, &use);
    if (result != CUDA_SUCCESS)
        return result;
    result = driver.launch(function, 1, 1, 1, 1, 1, 1, 0, f->stream, params, NULL);
    cws_gpu_end(f->gpu, &use, result == CUDA_SUCCESS);
    return result;
}

static uint64_t plain_sum(const uint8_t *from, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum += from[i];
    return sum;
}

/* What a kernel sees of tensor i. */
static CUresult device_sum(struct fixture *f, unsigned i, uint64_t *out)
{
    CUdeviceptr to = f->scratch, from = f->at[i];
    uint64_t bytes = tensor_bytes(i);
    void *params[] = {&to, &from, &bytes};
    CUresult result = launch(f, "sum", &from, 1, params);
    if (result == CUDA_SUCCESS)
        result = driver.stream_sync(f->stream);
    return result == CUDA_SUCCESS ? driver.copy_out(out, f->scratch, 8) : result;
}

static void expect_right(struct fixture *f, unsigned i)
{
    uint64_t sum = 0;
    CUresult result = device_sum(f, i, &sum);
    if (result != CUDA_SUCCESS)
        fail_msg("tensor %u: error %d: %s", i, result, last_line);
    assert_int_equal(sum, plain_sum(content(i), tensor_bytes(i)));
}

static void expect_bytes(struct fixture *f, unsigned i, const uint8_t *expected)
{
    struct cws_gpu_use use;
    uint8_t *copy = malloc(tensor_bytes(i));
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &f->at[i], 1, &use), 0);
    assert_int_equal(driver.copy_out_async(copy, f->at[i], tensor_bytes(i), f->stream), 0);
    cws_gpu_end(f->gpu, &use, true);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    assert_memory_equal(copy, expected, tensor_bytes(i));
    free(copy);
}

static void free_all(struct fixture *f)
{
    for (unsigned i = 0; i < TENSORS; i++)
        assert_int_equal(cws_gpu_free(f->gpu, f->at[i], f->stream, true), 0);
}

/* --- tests ------------------------------------------------------------------------------------------- */

static void test_everything_fits(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 128 * MIB, true);
    struct cws_gpu_stats stats;
    bind_all(f);
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            expect_right(f, i);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.loads, TENSORS);
    assert_int_equal(stats.drops, 0);
    free_all(f);
    close_gpu(f);
}

static void paged(bool prefetch, uint64_t budget)
{
    struct fixture *f = open_gpu(256 * MIB, budget, prefetch);
    struct cws_gpu_stats stats;
    bind_all(f);
    for (unsigned pass = 0; pass < (SANITIZED ? 3 : 6); pass++)
        for (unsigned i = 0; i < TENSORS; i++) {
            expect_right(f, i);
            const char *wrong = cws_gpu_check(f->gpu);
            if (wrong)
                fail_msg("%s", wrong);
        }
    for (unsigned i = 0; i < TENSORS; i++)
        expect_bytes(f, i, content(i));
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.drops > 0);
    assert_true(stats.peak_bytes <= budget);
    assert_int_equal(stats.dirty_bytes, 0);
    assert_true(prefetch ? stats.prefetched > 0 : stats.prefetched == 0);
    assert_true(standin_device_used() <= budget + 8 * MIB); /* and the test's own, and the kernels' */
    free_all(f);
    close_gpu(f);
}
static void test_paged(void **state) { (void)state, paged(false, 34 * MIB); }
static void test_prefetched(void **state) { (void)state, paged(true, 34 * MIB); }
static void test_least_budget(void **state) { (void)state, paged(true, 20 * MIB); }

static void test_written_weights_are_kept(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    bind_all(f);
    uint8_t *expected = malloc(tensor_bytes(4));
    memcpy(expected, content(4), tensor_bytes(4));
    uint64_t words = 1;
    uint32_t value = 0x100;
    CUdeviceptr at = f->at[4] + 4096;
    void *params[] = {&at, &words, &value};
    assert_int_equal(launch(f, "add", &at, 1, params), 0);
    uint32_t word;
    memcpy(&word, expected + 4096, 4);
    word += value;
    memcpy(expected + 4096, &word, 4);
    for (unsigned pass = 0; pass < 4; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            if (i != 4)
                expect_right(f, i);
    struct cws_gpu_stats stats;
    cws_gpu_settle(f->gpu);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.dirty_bytes, 2 * MIB);
    expect_bytes(f, 4, expected);
    free(expected);
    free_all(f);
    close_gpu(f);
}

/* A pointer that nobody named: what is not there must not be read as something else. */
static void test_a_miss_is_loud(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, false);
    bind_all(f);
    expect_right(f, 0);
    CUdeviceptr to = f->scratch, from = f->at[5];
    uint64_t bytes = 64;
    void *params[] = {&to, &from, &bytes};
    assert_int_equal(launch(f, "sum", NULL, 0, params), 0);
    assert_int_equal(driver.stream_sync(f->stream), CUDA_ERROR_ILLEGAL_ADDRESS);
    cws_gpu_close(f->gpu);
    free(f);
}

static void test_budget_too_small_for_a_launch(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 20 * MIB, true);
    bind_all(f);
    CUdeviceptr to = f->scratch;
    uint64_t bytes = 8;
    void *params[] = {&to, &f->at[0], &bytes};
    assert_int_equal(launch(f, "sum", f->at, TENSORS, params), CUDA_ERROR_OUT_OF_MEMORY);
    assert_non_null(strstr(last_line, "least budget"));
    expect_right(f, 1); /* and nothing is lost */
    free_all(f);
    close_gpu(f);
}

static void test_activations_push_weights_out(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 48 * MIB, true);
    CUdeviceptr more[6];
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    for (unsigned k = 0; k < 6; k++) {
        uint64_t bytes = 3 * MIB;
        uint32_t value = k;
        assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &more[k]), 0);
        void *params[] = {&more[k], &bytes, &value};
        assert_int_equal(launch(f, "fill", &more[k], 1, params), 0);
    }
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    CUdeviceptr too_much;
    assert_int_equal(cws_gpu_alloc(f->gpu, 32 * MIB, f->stream, &too_much), CUDA_ERROR_OUT_OF_MEMORY);
    for (unsigned k = 0; k < 6; k++)
        assert_int_equal(cws_gpu_free(f->gpu, more[k], f->stream, true), 0);
    /* Freed memory comes back without a call to the driver. */
    unsigned long calls = standin_calls("cuMemMap");
    for (unsigned k = 0; k < 100; k++) {
        uint64_t bytes = 3 * MIB;
        uint32_t value = k;
        assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &more[0]), 0);
        void *params[] = {&more[0], &bytes, &value};
        assert_int_equal(launch(f, "fill", &more[0], 1, params), 0);
        assert_int_equal(cws_gpu_free(f->gpu, more[0], f->stream, true), 0);
    }
    assert_true(standin_calls("cuMemMap") - calls < 20);
    free_all(f);
    close_gpu(f);
}

static void test_a_corrupt_tensor_is_named(void **state)
{
    (void)state;
    const char *path = sample_path("broken.store");
    struct bytes file = sample_load(cws_store_path(store));
    struct cws_store *broken;
    struct cws_error err = {0};
    file.data[cws_store_tensor(store, 3)->chunks[1].offset + 100] ^= 1;
    sample_save(path, file.data, file.size);
    free(file.data);
    assert_int_equal(cws_store_open(path, &broken, &err), 0);
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, true);
    assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(3), f->stream, &f->at[3]), 0);
    assert_true(cws_gpu_bind(f->gpu, f->at[3], tensor_bytes(3), f->stream, broken, cws_store_tensor(broken, 3)->begin));
    uint64_t sum;
    assert_int_equal(device_sum(f, 3, &sum), 304);
    assert_non_null(strstr(last_line, "w03"));
    assert_non_null(strstr(last_line, "broken.store"));
    assert_int_equal(cws_gpu_free(f->gpu, f->at[3], f->stream, false), 0);
    close_gpu(f);
    cws_store_close(broken);
}

/* The N-th call fails, for every N: an error or the right bytes, never others, and nothing is lost. */
static void test_every_call_fails_once(void **state)
{
    (void)state;
    static const char *const CALLS[] = {"cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuEventRecord", "cuLaunchKernel", "cuMemUnmap"};
    for (size_t c = 0; c < sizeof CALLS / sizeof *CALLS; c++) {
        for (unsigned n = 1; n <= (SANITIZED ? 4 : 16); n *= SANITIZED ? 4 : 2) { /* further calls are like these */
            struct fixture *f = open_gpu(256 * MIB, 34 * MIB, n % 2);
            bind_all(f);
            standin_fail(CALLS[c], n, CUDA_ERROR_OUT_OF_MEMORY);
            unsigned errors = 0;
            for (unsigned i = 0; i < TENSORS; i++) {
                uint64_t sum = 0;
                if (device_sum(f, i, &sum) == CUDA_SUCCESS)
                    assert_int_equal(sum, plain_sum(content(i), tensor_bytes(i)));
                else
                    errors++;
            }
            assert_true(errors <= 3);
            standin_fail_none();
            free_all(f);
            cws_gpu_settle(f->gpu);
            cws_gpu_close(f->gpu);
            standin_reset(0);
            free(f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_fits),
        cmocka_unit_test(test_paged),
        cmocka_unit_test(test_prefetched),
        cmocka_unit_test(test_least_budget),
        cmocka_unit_test(test_written_weights_are_kept),
        cmocka_unit_test(test_a_miss_is_loud),
        cmocka_unit_test(test_budget_too_small_for_a_launch),
        cmocka_unit_test(test_activations_push_weights_out),
        cmocka_unit_test(test_a_corrupt_tensor_is_named),
        cmocka_unit_test(test_every_call_fails_once),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
