/* The CUDA manager against the stand-in driver: binding, loading, dropping, budget, writes, frees, failures. */
#include "gpu_fixture.h"

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

/* A small weight comes first. The line names what all the others need, too, and the staging of such a budget: it is
 * followed once, and is not more than it takes. */
static void test_the_named_budget_works(void **state)
{
    (void)state;
    for (unsigned own = 0; own < 2; own++) {
        staging_bytes = own ? 8 * MIB : 0;
        uint64_t budget = own ? 20 * MIB : 16 * MIB, named = 0;
        for (unsigned attempt = 0; attempt < 3; attempt++) {
            struct fixture *f = open_gpu(256 * MIB, attempt == 2 ? named - MIB : budget, false);
            CUdeviceptr other = 0; /* what else the program has */
            bind_all(f);
            assert_int_equal(driver.mem_alloc(&other, 9 * MIB), 0);
            assert_int_equal(cws_gpu_make_room(f->gpu, 9 * MIB), 0);
            cws_gpu_room_used(f->gpu, 9 * MIB, 9 * MIB);
            unsigned failed = 0;
            uint64_t sum;
            for (unsigned i = 0; i < TENSORS; i++)
                failed += device_sum(f, (i + 2) % TENSORS, &sum) != CUDA_SUCCESS;
            assert_int_equal(failed != 0, attempt != 1);
            if (attempt == 0) {
                const char *number = strstr(last_line, "least budget that would have done is ");
                assert_non_null(number);
                budget = named = strtoull(number + 37, NULL, 10) * MIB;
            }
            free_all(f);
            cws_gpu_plain_freed(f->gpu, 9 * MIB);
            assert_int_equal(driver.mem_free(other), 0);
            close_gpu(f);
        }
    }
    staging_bytes = 8 * MIB;
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
    assert_int_equal(cws_store_open(path, CWS_IO_AUTO, &broken, &err), 0);
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
    static const char *const CALLS[] = {"cuMemCreate",       "cuMemMap",      "cuMemSetAccess", "cuMemHostAlloc",
                                        "cuMemcpyHtoDAsync", "cuEventRecord", "cuLaunchKernel", "cuMemUnmap"};
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
        cmocka_unit_test(test_the_named_budget_works),
        cmocka_unit_test(test_activations_push_weights_out),
        cmocka_unit_test(test_a_corrupt_tensor_is_named),
        cmocka_unit_test(test_every_call_fails_once),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
