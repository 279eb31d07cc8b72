/* Memory that a program allocates and frees in each round beside weights that do not all fit: it is kept for the next
 * round, weights are not evicted for it again and again, and it ends when the program has no more use for it. */
#define GPU_TENSORS 18
#include "gpu_fixture.h"

/* A round of the program: each weight in turn, and after each some activations, which are freed at once. */
static void one_round(struct fixture *f, const size_t *sizes, unsigned count)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        CUdeviceptr at[4];
        for (unsigned k = 0; k < count; k++) {
            uint64_t bytes = sizes[k];
            uint32_t value = k;
            assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &at[k]), 0);
            void *params[] = {&at[k], &bytes, &value};
            assert_int_equal(launch(f, "fill", &at[k], 1, params), 0);
        }
        expect_right(f, i);
        for (unsigned k = 0; k < count; k++)
            assert_int_equal(cws_gpu_free(f->gpu, at[k], f->stream, true), 0);
    }
    const char *wrong = cws_gpu_check(f->gpu);
    if (wrong)
        fail_msg("%s", wrong);
}

static void rounds(struct fixture *f, unsigned n, const size_t *sizes, unsigned count, struct cws_gpu_stats *out)
{
    for (unsigned i = 0; i < n; i++)
        one_round(f, sizes, count);
    cws_gpu_settle(f->gpu);
    cws_gpu_stats_get(f->gpu, out);
}

static const size_t small[] = {3 * MIB, 2 * MIB, 5 * MIB}, large[] = {9 * MIB, 2 * MIB, 5 * MIB};

static void test_a_steady_program_takes_nothing_anew(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 48 * MIB, true);
    struct cws_gpu_stats before, after;
    bind_all(f);
    rounds(f, 6, small, 3, &before);
    rounds(f, 4, small, 3, &after);
    assert_true(after.loads > before.loads); /* it pages */
    assert_int_equal(after.fresh_waits, before.fresh_waits);
    assert_int_equal(after.stolen_bytes, before.stolen_bytes);
    assert_int_equal(after.frames_created, before.frames_created);
    assert_int_equal(after.frames_released, before.frames_released);
    assert_true(after.reserve_bytes >= 10 * MIB && after.reserve_bytes < 14 * MIB);
    free_all(f);
    close_gpu(f);
}

static void test_it_grows_and_ends(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 48 * MIB, true);
    struct cws_gpu_stats before, after;
    bind_all(f);
    rounds(f, 6, small, 3, &before);
    rounds(f, 6, large, 3, &before);
    assert_true(before.reserve_bytes >= 16 * MIB);
    rounds(f, 4, large, 3, &after);
    assert_int_equal(after.fresh_waits, before.fresh_waits);
    assert_int_equal(after.stolen_bytes, before.stolen_bytes);
    rounds(f, 6, NULL, 0, &before); /* what is not needed any more goes to weights */
    assert_int_equal(before.reserve_bytes, 0);
    assert_true(before.decoded_bytes >= after.decoded_bytes + 8 * MIB);
    free_all(f);
    close_gpu(f);
}

/* Nothing is left but what was freed a moment ago: a launch gets it, and does not fail. */
static void test_a_launch_takes_it_in_need(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 32 * MIB, true);
    struct cws_gpu_stats stats;
    CUdeviceptr at;
    uint64_t bytes = 20 * MIB;
    uint32_t value = 1;
    void *params[] = {&at, &bytes, &value};
    bind_all(f);
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &at), 0);
    assert_int_equal(launch(f, "fill", &at, 1, params), 0);
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    struct cws_gpu_use use; /* of weights of 16 MiB at a time */
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, f->at, 6, &use), 0);
    cws_gpu_end(f->gpu, &use, false);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.stolen_bytes, 20 * MIB);
    assert_int_equal(stats.reserve_bytes, 0);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    free_all(f);
    close_gpu(f);
}

/* Allocates, uses and frees so much on a stream. */
static CUdeviceptr once(struct fixture *f, uint64_t bytes, CUstream stream)
{
    struct cws_gpu_use use;
    CUdeviceptr at;
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, stream, &at), 0);
    assert_int_equal(cws_gpu_begin(f->gpu, stream, &at, 1, &use), 0);
    cws_gpu_end(f->gpu, &use, true);
    assert_int_equal(cws_gpu_free(f->gpu, at, stream, true), 0);
    return at;
}

/* What is of the class of what was freed gets its memory, or of the class below; what is larger or smaller does not. */
static void test_sizes_of_a_class_share_memory(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 192 * MIB, true);
    struct cws_gpu_stats before, after;
    CUdeviceptr at = once(f, 41 * MIB, f->stream); /* 36 to 40 MiB, 40 to 44 */
    cws_gpu_stats_get(f->gpu, &before);
    assert_true(once(f, 44 * MIB, f->stream) == at);
    assert_true(once(f, 42 * MIB, f->stream) == at);
    cws_gpu_stats_get(f->gpu, &after);
    assert_int_equal(after.frames_created, before.frames_created);
    assert_int_equal(after.reserve_bytes, 44 * MIB);
    assert_true(once(f, 45 * MIB, f->stream) != at);
    assert_true(once(f, 36 * MIB, f->stream) != at);
    assert_true(once(f, 40 * MIB, f->stream) == at);
    assert_null(cws_gpu_check(f->gpu));
    close_gpu(f);
}

/* Where its class does not fit, an allocation gets what it takes. */
static void test_what_just_fits_fits(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 140 * MIB, true);
    struct cws_gpu_stats stats;
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.staging_bytes, 10 * MIB);
    once(f, 130 * MIB, f->stream); /* its class: 136 MiB */
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.reserve_bytes, 130 * MIB);
    once(f, 130 * MIB, f->stream);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.frames_created, 1);
    close_gpu(f);
}

/* Memory freed on one stream is another one's only once its uses are done. */
static void test_two_streams(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 128 * MIB, true);
    CUstream other;
    assert_int_equal(driver.stream_create(&other, CU_STREAM_NON_BLOCKING), 0);
    standin_hold(f->stream);
    CUdeviceptr at = once(f, 8 * MIB, f->stream);
    CUdeviceptr theirs = once(f, 8 * MIB, other);
    assert_true(theirs != at);
    assert_true(once(f, 8 * MIB, f->stream) == at);
    standin_let_go(f->stream);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    CUdeviceptr theirs_too[3];
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(cws_gpu_alloc(f->gpu, 8 * MIB, other, &theirs_too[i]), 0);
        assert_int_equal(driver.stream_sync(f->stream), 0);
    }
    assert_true(theirs_too[0] == theirs);
    assert_true(theirs_too[1] == at || theirs_too[2] == at); /* once it is known that its uses are done */
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(cws_gpu_free(f->gpu, theirs_too[i], other, true), 0);
    assert_null(cws_gpu_check(f->gpu));
    assert_int_equal(driver.stream_destroy(other), 0);
    close_gpu(f);
}

/* In strict mode what was freed is not mapped any more when cws_gpu_free returns. */
static void test_strict_unmaps_what_was_freed(void **state)
{
    (void)state;
    strict = true;
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, true);
    strict = false;
    struct cws_gpu_stats stats;
    uint64_t bytes = 4 * MIB;
    uint32_t value = 3;
    CUdeviceptr at;
    void *params[] = {&at, &bytes, &value};
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &at), 0);
    assert_int_equal(launch(f, "fill", &at, 1, params), 0);
    size_t before = standin_leaks().mappings;
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    assert_int_equal(standin_leaks().mappings, before - 1); /* the frame's alias stays */
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.reserve_bytes, 0);
    assert_int_equal(stats.idle_bytes, 4 * MIB);
    close_gpu(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_steady_program_takes_nothing_anew),
                                       cmocka_unit_test(test_it_grows_and_ends),
                                       cmocka_unit_test(test_a_launch_takes_it_in_need),
                                       cmocka_unit_test(test_sizes_of_a_class_share_memory),
                                       cmocka_unit_test(test_what_just_fits_fits),
                                       cmocka_unit_test(test_two_streams),
                                       cmocka_unit_test(test_strict_unmaps_what_was_freed)};
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
