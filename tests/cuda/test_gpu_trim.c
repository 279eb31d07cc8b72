/* Description: the program trims its pool: memory that it freed goes back to the driver, weights get the room, and what
 * is in use or is to be kept stays. */
#define GPU_TENSORS 18
#include "gpu_fixture.h"

static void take(struct fixture *f, size_t bytes, uint32_t value, CUdeviceptr *out)
{
    uint64_t count = bytes;
    void *params[] = {out, &count, &value};
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, out), 0);
    assert_int_equal(launch(f, "fill", out, 1, params), 0);
}

static void give(struct fixture *f, CUdeviceptr at) { assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0); }

/* Waits for the program's stream first, as torch.cuda.empty_cache() does. On a busy machine the mark behind its uses may
 * come through later than the manager waits for it. */
static struct cws_gpu_stats trim(struct fixture *f, size_t keep)
{
    struct cws_gpu_stats stats;
    assert_int_equal(driver.stream_sync(f->stream), 0);
    for (unsigned i = 0; i < 200; i++) {
        cws_gpu_trim(f->gpu, keep);
        cws_gpu_stats_get(f->gpu, &stats);
        if (stats.reserve_bytes + stats.idle_bytes <= keep)
            break;
    }
    assert_null(cws_gpu_check(f->gpu));
    return stats;
}

static void test_all_goes_back_at_once(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 128 * MIB, true);
    CUdeviceptr at[3];
    size_t before = standin_device_used();
    for (unsigned i = 0; i < 3; i++)
        take(f, (i + 1) * 5 * MIB, i, &at[i]);
    assert_true(standin_device_used() >= before + 30 * MIB);
    give(f, at[0]);
    give(f, at[2]);
    struct cws_gpu_stats stats = trim(f, 0);
    assert_int_equal(stats.reserve_bytes + stats.idle_bytes, 0);
    assert_int_equal(stats.anonymous_bytes, 10 * MIB);
    assert_int_equal(standin_device_used(), before + 10 * MIB);
    assert_int_equal(stats.stolen_bytes, 0); /* nobody had to take it */
    give(f, at[1]);
    assert_int_equal(trim(f, 0).anonymous_bytes, 0);
    assert_int_equal(standin_device_used(), before);
    close_gpu(f);
}

static void test_what_is_to_be_kept_is_kept(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 128 * MIB, true);
    CUdeviceptr at[4], again;
    for (unsigned i = 0; i < 4; i++)
        take(f, 4 * MIB, i, &at[i]);
    for (unsigned i = 0; i < 4; i++)
        give(f, at[i]);
    assert_int_equal(trim(f, SIZE_MAX).reserve_bytes, 16 * MIB);
    assert_int_equal(trim(f, 9 * MIB).reserve_bytes, 8 * MIB);
    assert_int_equal(cws_gpu_alloc(f->gpu, 4 * MIB, f->stream, &again), 0);
    assert_true(again == at[2] || again == at[3]); /* what was freed last */
    give(f, again);
    assert_int_equal(trim(f, 0).reserve_bytes, 0);
    close_gpu(f);
}

/* A stream that has not come so far: its memory stays until it has. */
static void test_what_is_in_use_goes_later(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 128 * MIB, true);
    struct cws_gpu_stats stats;
    CUdeviceptr at;
    standin_hold(f->stream);
    take(f, 6 * MIB, 1, &at);
    give(f, at);
    cws_gpu_trim(f->gpu, 0);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.reserve_bytes, 0);
    assert_int_equal(stats.idle_bytes, 6 * MIB); /* for whoever wants memory */
    standin_let_go(f->stream);
    assert_int_equal(trim(f, 0).idle_bytes, 0);
    close_gpu(f);
}

/* Activations as large as half of the budget, trimmed away: weights are loaded into their place at once, and go for
 * them in the next round. The budget holds, and what is read is right. */
static void test_weights_get_the_room(void **state)
{
    (void)state;
    const uint64_t budget = 48 * MIB;
    struct fixture *f = open_gpu(256 * MIB, budget, true);
    struct cws_gpu_stats stats;
    CUdeviceptr at;
    bind_all(f);
    for (unsigned round = 0; round < 6; round++) {
        for (unsigned i = 0; i < TENSORS; i++)
            expect_right(f, i);
        take(f, 24 * MIB, round, &at);
        give(f, at);
        stats = trim(f, 0);
        assert_int_equal(stats.reserve_bytes, 0);
        assert_true(stats.used_bytes <= budget);
    }
    cws_gpu_settle(f->gpu);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    cws_gpu_settle(f->gpu);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.decoded_bytes > 24 * MIB);
    assert_true(stats.peak_bytes <= budget);
    free_all(f);
    close_gpu(f);
}

/* Weights that were freed go as all else, and so does memory while weights are loaded ahead. */
static void test_freed_weights_go(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 48 * MIB, true);
    size_t before = standin_device_used();
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    free_all(f);
    cws_gpu_settle(f->gpu);
    struct cws_gpu_stats stats = trim(f, 0);
    assert_int_equal(stats.decoded_bytes + stats.reserve_bytes, 0);
    assert_true(standin_device_used() <= before + stats.idle_bytes);
    close_gpu(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_goes_back_at_once),     cmocka_unit_test(test_what_is_to_be_kept_is_kept),
        cmocka_unit_test(test_what_is_in_use_goes_later), cmocka_unit_test(test_weights_get_the_room),
        cmocka_unit_test(test_freed_weights_go),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
