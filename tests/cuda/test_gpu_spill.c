/* Content that no source gives back, under pressure: written weights and allocations of the program go to host memory
 * and come back to the bit, or stay, or fail loudly. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"

static uint8_t *expected[TENSORS];

/* Odd tensors: one bf16 is changed. Even ones: two rows of 256 bytes are swapped. */
static void edit(struct fixture *f, unsigned i)
{
    enum { ROW = 256 };
    size_t bytes = tensor_bytes(i), at = bytes / 2 / ROW * ROW;
    uint8_t row[ROW];
    expected[i] = malloc(bytes);
    memcpy(expected[i], content(i), bytes);
    if (i % 2) {
        expected[i][bytes - 2] ^= 1;
        assert_int_equal(copy_to(f, f->at[i] + bytes - 2, expected[i] + bytes - 2, 2), 0);
        return;
    }
    memcpy(row, expected[i], ROW);
    memcpy(expected[i], expected[i] + at, ROW);
    memcpy(expected[i] + at, row, ROW);
    assert_int_equal(copy_to(f, f->at[i], expected[i], ROW), 0);
    assert_int_equal(copy_to(f, f->at[i] + at, expected[i] + at, ROW), 0);
}

static void forget_expected(void)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        free(expected[i]);
        expected[i] = NULL;
    }
}

static void write_all(size_t host)
{
    host_budget = host;
    struct fixture *f = open_gpu(256 * MIB, 24 * MIB, true);
    host_budget = 64 * MIB;
    struct cws_gpu_stats stats;
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        edit(f, i);
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 0; i < TENSORS; i++) {
            expect_bytes(f, i, expected[i]);
            assert_null(cws_gpu_check(f->gpu));
        }
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.spills > TENSORS && stats.restores > TENSORS);
    assert_true(stats.spilled_bytes > 0 && stats.spilled_bytes <= stats.host_bytes);
    assert_true(stats.host_bytes <= host);
    assert_true(stats.peak_bytes <= 24 * MIB);
    forget_expected();
    free_all(f);
    close_gpu(f);
}

static void test_all_weights_were_written(void **state)
{
    (void)state;
    write_all(64 * MIB);
}

/* Host memory is full of compressed weights, and would be too small for them and what was written: what can be read
 * again goes. */
static void test_compressed_weights_give_way(void **state)
{
    (void)state;
    write_all(28 * MIB); /* which leaves an eighth to compressed bytes that come and go */
}

/* One of them, while the others are clean: these go first, and it is not copied for nothing. */
static void test_clean_weights_go_first(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    struct cws_gpu_stats stats;
    bind_all(f);
    edit(f, 3);
    edit(f, 4);
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            expect_bytes(f, i, expected[i] ? expected[i] : content(i));
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.spills, 0);
    assert_true(stats.drops > 0);
    forget_expected();
    free_all(f);
    close_gpu(f);
}

/* What a pool of the driver may take unasked stays free while written weights can go for it. */
static void test_the_margin_of_pools_is_left(void **state)
{
    (void)state;
    enum { BUDGET = 30 << 20, MARGIN = 4 << 20 };
    struct fixture *f = open_gpu(256 * MIB, BUDGET, true);
    static struct cws_tuning tuning;
    struct cws_gpu_stats stats;
    CUdeviceptr small;
    tuning = cws_tuning_default;
    tuning.pool_margin_share = BUDGET / MARGIN;
    tuning.victim_wait_ns = 1000000000;
    cws_gpu_lock(&f->gpu->core);
    f->gpu->core.tuning = &tuning;
    cws_gpu_unlock(&f->gpu->core);
    bind_all(f);
    assert_int_equal(driver.mem_alloc_async(&small, 4096, f->stream), 0);
    cws_gpu_pools_changed(f->gpu);
    for (unsigned i = 0; i < TENSORS; i++)
        edit(f, i);
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned i = 0; i < TENSORS; i++) {
            expect_bytes(f, i, expected[i]);
            cws_gpu_stats_get(f->gpu, &stats);
            if (stats.used_bytes > BUDGET - MARGIN)
                fail_msg("pass %u, tensor %u: %.1f MiB are used", pass, i, (double)stats.used_bytes / MIB);
        }
    assert_true(stats.spills > TENSORS / 2);
    assert_int_equal(driver.mem_free_async(small, f->stream), 0);
    forget_expected();
    free_all(f);
    close_gpu(f);
}

/* Allocations that were not used for long give way to a large one, also one of an odd size. */
static void test_old_allocations_go(void **state)
{
    (void)state;
    enum { MADE = 3, LONG = 1100 };
    static const size_t SIZES[MADE] = {3 * MIB, 5 * MIB + 1, 2 * MIB - 7};
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    struct cws_gpu_stats stats;
    CUdeviceptr made[MADE], large;
    uint8_t *bytes[MADE], *back = malloc(8 * MIB);
    uint64_t seed = 3;
    bind_all(f);
    for (unsigned k = 0; k < MADE; k++) {
        bytes[k] = malloc(SIZES[k] + 1);
        fill_weights(bytes[k], SIZES[k], &seed);
        assert_int_equal(cws_gpu_alloc(f->gpu, SIZES[k], f->stream, &made[k]), 0);
        assert_int_equal(copy_to(f, made[k], bytes[k], SIZES[k]), 0);
    }
    /* they are in use, as far as can be known */
    assert_int_equal(cws_gpu_alloc(f->gpu, 14 * MIB, f->stream, &large), CUDA_ERROR_OUT_OF_MEMORY);
    for (unsigned n = 0; n < LONG; n++) {
        struct cws_gpu_use use;
        assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &f->at[1], 1, &use), 0);
        cws_gpu_end(f->gpu, &use, true);
    }
    assert_int_equal(cws_gpu_alloc(f->gpu, 14 * MIB, f->stream, &large), 0);
    assert_int_equal(copy_to(f, large, bytes[0], SIZES[0]), 0);
    expect_right(f, 0);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.spills >= 1);
    assert_int_equal(cws_gpu_free(f->gpu, large, f->stream, true), 0);
    for (unsigned k = 0; k < MADE; k++) {
        assert_int_equal(copy_from(f, made[k], back, SIZES[k]), 0);
        assert_memory_equal(back, bytes[k], SIZES[k]);
        assert_int_equal(cws_gpu_free(f->gpu, made[k], f->stream, true), 0);
        free(bytes[k]);
    }
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.restores, stats.spills);
    free(back);
    free_all(f);
    close_gpu(f);
}

/* A spilled range is freed; its host memory goes with it. */
static void test_freed_while_spilled(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 24 * MIB, true);
    struct cws_gpu_stats stats;
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        edit(f, i);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.spilled_bytes > 0);
    free_all(f);
    cws_gpu_settle(f->gpu);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.spilled_bytes, 0);
    forget_expected();
    close_gpu(f);
}

/* The copy in host memory is not what it was: the launch fails, with a line; put right, it is used. */
static void test_a_changed_copy_is_refused(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 24 * MIB, true);
    uint8_t *back = malloc(3 * MIB), *copy = NULL;
    unsigned which = 0;
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        edit(f, i);
    cws_gpu_settle(f->gpu);
    cws_gpu_lock(&f->gpu->core);
    for (unsigned i = 0; i < TENSORS && !copy; i++) {
        const struct cws_gpu_extent *x = cws_gpu_range_at_locked(&f->gpu->ranges, f->at[i])->extents;
        copy = x->state == CWS_EXTENT_SPILLED ? x->spill.host : NULL;
        which = i;
    }
    assert_non_null(copy);
    copy[12345] ^= 4;
    cws_gpu_unlock(&f->gpu->core);
    assert_int_equal(copy_from(f, f->at[which], back, tensor_bytes(which)), 304);
    assert_non_null(strstr(last_line, "other bytes"));
    cws_gpu_lock(&f->gpu->core);
    copy[12345] ^= 4;
    cws_gpu_unlock(&f->gpu->core);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_bytes(f, i, expected[i]);
    free(back);
    forget_expected();
    free_all(f);
    close_gpu(f);
}

static unsigned long copies_out(void) { return standin_calls("cuMemcpyDtoHAsync"); }

/* Written once and read again and again: each is copied out once, and once more only after it was written to again. A
 * copy that was kept and is not right any more is made anew. */
static void test_copies_are_kept(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 24 * MIB, true);
    struct cws_gpu_stats before, after;
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        edit(f, i);
    for (unsigned i = 0; i < 2 * TENSORS; i++) /* now nearly all have been out */
        expect_bytes(f, i % TENSORS, expected[i % TENSORS]);
    cws_gpu_settle(f->gpu);
    cws_gpu_stats_get(f->gpu, &before);
    unsigned long copies = copies_out();
    for (unsigned i = 0; i < 3 * TENSORS; i++) {
        uint64_t sum;
        if (device_sum(f, i % TENSORS, &sum) != CUDA_SUCCESS)
            fail_msg("%s", last_line);
        assert_int_equal(sum, plain_sum(expected[i % TENSORS], tensor_bytes(i % TENSORS)));
    }
    cws_gpu_stats_get(f->gpu, &after);
    copies = copies_out() - copies;
    unsigned long spilled = after.spills - before.spills, restored = after.restores - before.restores,
                  results = spilled + restored + 3 * TENSORS;
    assert_true(spilled > TENSORS);
    assert_true(restored <= 3 * TENSORS - 6); /* what is needed last goes, so some stay */
    if (copies < results ||
        copies > results + 4) /* of hashes and sums; and what had stayed until now goes out for the first time */
        fail_msg("%lu copies, %lu spills, %lu restores", copies, spilled, restored);
    assert_null(cws_gpu_check(f->gpu));
    for (unsigned i = 0; i < TENSORS; i += 3) {
        expected[i][77] ^= 1;
        assert_int_equal(copy_to(f, f->at[i] + 77, expected[i] + 77, 1), 0);
    }
    for (unsigned i = 0; i < 3 * TENSORS; i++)
        expect_bytes(f, i % TENSORS, expected[i % TENSORS]);
    cws_gpu_settle(f->gpu);
    cws_gpu_lock(&f->gpu->core);
    for (unsigned i = 0, spoilt = 0; i < TENSORS; i++) { /* as a bad bit of memory would */
        const struct cws_gpu_extent *x = cws_gpu_range_at_locked(&f->gpu->ranges, f->at[i])->extents;
        if (cws_gpu_has_copy(x))
            ((uint8_t *)x->spill.host)[4321] ^= 1, spoilt++;
        assert_true(i + 1 < TENSORS || spoilt > 0);
    }
    cws_gpu_unlock(&f->gpu->core);
    for (unsigned i = 0; i < 3 * TENSORS; i++)
        expect_bytes(f, i % TENSORS, expected[i % TENSORS]);
    assert_null(cws_gpu_check(f->gpu));
    forget_expected();
    free_all(f);
    cws_gpu_settle(f->gpu);
    assert_null(cws_gpu_check(f->gpu));
    close_gpu(f);
}

/* Host memory is short: what was written stays, a launch that finds no room says so, and nothing is lost. */
static void test_host_memory_is_short(void **state)
{
    (void)state;
    host_budget = 6 * MIB;
    struct fixture *f = open_gpu(256 * MIB, 24 * MIB, true);
    host_budget = 64 * MIB;
    unsigned written = 0;
    bind_all(f);
    CUresult result = CUDA_SUCCESS;
    for (; written < TENSORS && result == CUDA_SUCCESS; written += result == CUDA_SUCCESS) {
        uint8_t byte = (uint8_t)(content(written)[0] ^ 1);
        result = copy_to(f, f->at[written], &byte, 1);
    }
    assert_int_equal(result, CUDA_ERROR_OUT_OF_MEMORY);
    assert_non_null(strstr(last_line, "least budget"));
    assert_true(written >= 2);
    for (unsigned i = 0; i < written; i++) {
        uint8_t *back = malloc(tensor_bytes(i));
        if (copy_from(f, f->at[i], back, tensor_bytes(i)) == CUDA_SUCCESS) {
            assert_int_equal(back[0], content(i)[0] ^ 1);
            assert_memory_equal(back + 1, content(i) + 1, tensor_bytes(i) - 1);
        }
        free(back);
    }
    free_all(f);
    close_gpu(f);
}

/* The N-th call fails while written weights go and come: an error and the right bytes later, or the right bytes. */
static void test_calls_fail(void **state)
{
    (void)state;
    static const char *const CALLS[] = {"cuMemHostAlloc", "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuLaunchKernel",
                                        "cuMemUnmap",     "cuMemMap",          "cuMemSetAccess",    "cuMemCreate"};
    uint8_t *back = malloc(3 * MIB);
    unsigned long spills = 0;
    for (size_t c = 0; c < sizeof CALLS / sizeof *CALLS; c++) {
        for (unsigned n = 1; n <= (SANITIZED ? 2 : 6); n *= 2 + n) {
            struct fixture *f = open_gpu(256 * MIB, 24 * MIB, false);
            struct cws_gpu_stats stats;
            bind_all(f);
            for (unsigned i = 0; i < TENSORS; i++)
                edit(f, i);
            standin_fail(CALLS[c], n, CUDA_ERROR_OUT_OF_MEMORY);
            unsigned errors = 0;
            for (unsigned i = 0; i < TENSORS; i++) {
                if (copy_from(f, f->at[i], back, tensor_bytes(i)) == CUDA_SUCCESS)
                    assert_memory_equal(back, expected[i], tensor_bytes(i));
                else
                    errors++;
            }
            standin_fail_none();
            assert_true(errors <= 2);
            assert_null(cws_gpu_check(f->gpu));
            for (unsigned i = 0; i < TENSORS; i++)
                expect_bytes(f, i, expected[i]);
            cws_gpu_stats_get(f->gpu, &stats);
            spills += stats.spills;
            forget_expected();
            free_all(f);
            cws_gpu_settle(f->gpu);
            cws_gpu_close(f->gpu);
            standin_reset(0);
            free(f);
        }
    }
    assert_true(spills > 100);
    free(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_weights_were_written),
        cmocka_unit_test(test_clean_weights_go_first),
        cmocka_unit_test(test_the_margin_of_pools_is_left),
        cmocka_unit_test(test_old_allocations_go),
        cmocka_unit_test(test_freed_while_spilled),
        cmocka_unit_test(test_host_memory_is_short),
        cmocka_unit_test(test_calls_fail),
        cmocka_unit_test(test_a_changed_copy_is_refused),
        cmocka_unit_test(test_compressed_weights_give_way),
        cmocka_unit_test(test_copies_are_kept),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
