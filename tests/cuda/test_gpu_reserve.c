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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_steady_program_takes_nothing_anew),
                                       cmocka_unit_test(test_it_grows_and_ends),
                                       cmocka_unit_test(test_a_launch_takes_it_in_need)};
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
