/* Description: the budget changes while the program runs: a smaller one is met before the call returns or is refused
 * with what would do, a larger one is used, and what is read stays right. Sleep drops all that can be dropped. */
#define GPU_TENSORS 12 /* 32 MiB in granules */
#include "gpu_fixture.h"
#include "uvm/cuda/gpu.h"

#include <pthread.h>

static struct cws_gpu_stats now(struct fixture *f)
{
    struct cws_gpu_stats stats;
    cws_gpu_stats_get(f->gpu, &stats);
    const char *wrong = cws_gpu_check(f->gpu);
    if (wrong)
        fail_msg("%s", wrong);
    return stats;
}

static void set(struct fixture *f, uint64_t bytes)
{
    struct cws_error err = {0};
    if (cws_gpu_set_budget(f->gpu, bytes, &err))
        fail_msg("%s", err.message);
    struct cws_gpu_stats stats = now(f);
    assert_int_equal(stats.budget_bytes, bytes);
    assert_true(stats.used_bytes <= bytes);
}

/* MiB that the line names as the least that would do. */
static uint64_t refused(struct fixture *f, uint64_t bytes)
{
    struct cws_error err = {0};
    uint64_t before = now(f).budget_bytes;
    assert_int_equal(cws_gpu_set_budget(f->gpu, bytes, &err), CWS_E_BUDGET);
    assert_int_equal(now(f).budget_bytes, before);
    const char *at = strstr(err.message, "the least that is sure to do now is ");
    assert_non_null(at);
    return strtoull(at + strlen("the least that is sure to do now is "), NULL, 10);
}

static void read_all(struct fixture *f)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        expect_right(f, i);
        assert_true(now(f).used_bytes <= now(f).budget_bytes);
    }
}

static void take(struct fixture *f, size_t bytes, CUdeviceptr *out)
{
    uint64_t count = bytes;
    uint32_t value = 7;
    void *params[] = {out, &count, &value};
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, out), 0);
    assert_int_equal(launch(f, "fill", out, 1, params), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
}

static void short_waits(struct fixture *f)
{
    static struct cws_tuning tuning;
    tuning = cws_tuning_default;
    tuning.victim_wait_ns = 50000;
    cws_gpu_lock(&f->gpu->core);
    f->gpu->core.tuning = &tuning;
    cws_gpu_unlock(&f->gpu->core);
}

static void test_weights_give_way(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 96 * MIB, true);
    const size_t others = standin_device_used() - now(f).used_bytes;
    bind_all(f);
    read_all(f);
    assert_int_equal(now(f).decoded_bytes, 32 * MIB);
    const uint64_t ring = now(f).staging_bytes;
    for (uint64_t bytes = ring + 28 * MIB; bytes >= 2 * ring; bytes -= 9 * MIB) { /* staging is half of it at most */
        set(f, bytes);
        assert_true(standin_device_used() <= bytes + others); /* the driver has it, not only the account */
        assert_true(now(f).decoded_bytes <= bytes - ring);
        read_all(f);
    }
    free_all(f);
    close_gpu(f);
}

static void test_a_larger_one_is_used(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 24 * MIB, true);
    bind_all(f);
    read_all(f);
    read_all(f);
    assert_true(now(f).decoded_bytes < 16 * MIB);
    set(f, 64 * MIB);
    read_all(f);
    read_all(f);
    uint64_t drops = now(f).drops;
    assert_int_equal(now(f).decoded_bytes, 32 * MIB);
    read_all(f);
    assert_int_equal(now(f).drops, drops); /* all of them stay */
    free_all(f);
    close_gpu(f);
}

static void test_what_cannot_be_met_is_refused(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 96 * MIB, true);
    CUdeviceptr at;
    bind_all(f);
    read_all(f);
    take(f, 24 * MIB, &at);
    const uint64_t ring = now(f).staging_bytes, least = 24 * MIB + ring + 4 * MIB; /* it, staging, the largest weight */
    assert_int_equal(refused(f, 8 * MIB), least / MIB);
    assert_int_equal(now(f).decoded_bytes, 32 * MIB); /* nothing was dropped for it */
    assert_int_equal(refused(f, least - 1), least / MIB);
    set(f, least);
    read_all(f);
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    assert_int_equal(refused(f, 2 * ring - 1), 2 * ring / MIB);
    assert_int_equal(refused(f, 0), 2 * ring / MIB);
    set(f, 2 * ring);
    read_all(f);
    free_all(f);
    close_gpu(f);
}

static void test_written_weights_go_to_the_host(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 96 * MIB, false);
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++) {
        uint64_t words = 16;
        uint32_t value = i + 1;
        void *params[] = {&f->at[i], &words, &value};
        assert_int_equal(launch(f, "add", &f->at[i], 1, params), 0);
    }
    assert_int_equal(driver.stream_sync(f->stream), 0);
    set(f, 24 * MIB);
    assert_true(now(f).spilled_bytes > 0);
    for (unsigned i = 0; i < TENSORS; i++) {
        uint64_t sum = 0, plus = 0;
        assert_int_equal(device_sum(f, i, &sum), 0);
        for (unsigned k = 0; k < 16; k++) {
            uint32_t word;
            memcpy(&word, content(i) + 4 * k, 4);
            uint32_t more = word + i + 1;
            plus += plain_sum((const uint8_t *)&more, 4) - plain_sum((const uint8_t *)&word, 4);
        }
        assert_int_equal(sum, plain_sum(content(i), tensor_bytes(i)) + plus);
    }
    free_all(f);
    close_gpu(f);
}

/* What runs on the device stays. That is waited for, but not for ever: then the old budget stays. */
static void test_what_is_in_use_stays(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 96 * MIB, false);
    uint64_t bytes = 64;
    bind_all(f);
    read_all(f);
    short_waits(f);
    standin_hold(f->stream);
    for (unsigned i = 0; i < TENSORS; i++) {
        void *params[] = {&f->scratch, &f->at[i], &bytes};
        assert_int_equal(launch(f, "sum", &f->at[i], 1, params), 0);
    }
    assert_int_equal(refused(f, 24 * MIB) * MIB, 32 * MIB + now(f).staging_bytes);
    assert_int_equal(now(f).decoded_bytes, 32 * MIB);
    cws_gpu_sleep(f->gpu); /* drops what it can, which is nothing */
    assert_int_equal(now(f).decoded_bytes, 32 * MIB);
    standin_let_go(f->stream);
    set(f, 24 * MIB);
    read_all(f);
    free_all(f);
    close_gpu(f);
}

static void *set_in_thread(void *arg)
{
    set(arg, 24 * MIB); /* without a context */
    return NULL;
}

static void test_it_waits_for_what_is_in_use(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 96 * MIB, false);
    uint64_t bytes = 64;
    pthread_t thread;
    bool shrinking = false;
    bind_all(f);
    read_all(f);
    standin_hold(f->stream);
    for (unsigned i = 0; i < TENSORS; i++) {
        void *params[] = {&f->scratch, &f->at[i], &bytes};
        assert_int_equal(launch(f, "sum", &f->at[i], 1, params), 0);
    }
    assert_int_equal(pthread_create(&thread, NULL, set_in_thread, f), 0);
    while (!shrinking) {
        cws_gpu_lock(&f->gpu->core);
        shrinking = f->gpu->budget.was != 0;
        cws_gpu_unlock(&f->gpu->core);
    }
    assert_int_equal(now(f).budget_bytes, 24 * MIB); /* nobody gets more from now on */
    standin_let_go(f->stream);
    pthread_join(thread, NULL);
    read_all(f);
    free_all(f);
    close_gpu(f);
}

static void test_pools_are_trimmed(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 128 * MIB, false);
    CUmemoryPool pool;
    CUdeviceptr at;
    size_t room;
    assert_int_equal(driver.device_pool(&pool, 0), 0);
    uint64_t keep = UINT64_MAX;
    assert_int_equal(driver.pool_set(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep), 0);
    assert_int_equal(cws_gpu_pool_room(f->gpu, NULL, 64 * MIB, &room), 0);
    assert_int_equal(driver.mem_alloc_async(&at, 64 * MIB, f->stream), 0);
    cws_gpu_pool_used(f->gpu, room);
    assert_true(now(f).other_bytes >= 64 * MIB);
    assert_true(refused(f, 48 * MIB) >= 64);
    assert_int_equal(driver.mem_free_async(at, f->stream), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    assert_true(now(f).other_bytes >= 64 * MIB); /* it keeps it */
    set(f, 48 * MIB);
    assert_int_equal(now(f).other_bytes, 0);
    close_gpu(f);
}

/* Memory that the program freed a moment ago. */
static void test_the_reserve_goes(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 96 * MIB, true);
    CUdeviceptr at[4];
    bind_all(f);
    read_all(f);
    for (unsigned i = 0; i < 4; i++)
        take(f, 8 * MIB, &at[i]);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(cws_gpu_free(f->gpu, at[i], f->stream, true), 0);
    assert_true(now(f).reserve_bytes >= 32 * MIB);
    set(f, 24 * MIB);
    assert_true(standin_device_used() <= 25 * MIB);
    read_all(f);
    free_all(f);
    close_gpu(f);
}

static void test_sleep_and_wake(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    CUdeviceptr kept, freed;
    bind_all(f);
    size_t before = standin_device_used();
    take(f, 4 * MIB, &kept);
    take(f, 2 * MIB, &freed);
    for (unsigned round = 0; round < 3; round++)
        read_all(f);
    assert_int_equal(cws_gpu_free(f->gpu, freed, f->stream, true), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    cws_gpu_sleep(f->gpu);
    struct cws_gpu_stats stats = now(f);
    assert_int_equal(stats.decoded_bytes + stats.reserve_bytes + stats.idle_bytes, 0);
    assert_int_equal(stats.anonymous_bytes, 4 * MIB);
    assert_int_equal(stats.budget_bytes, 40 * MIB);
    assert_int_equal(standin_device_used(), before + 4 * MIB);
    cws_gpu_settle(f->gpu);
    assert_int_equal(now(f).loads, stats.loads); /* nothing comes by itself */
    cws_gpu_wake_up(f->gpu);
    uint64_t prefetched = now(f).prefetched;
    for (unsigned round = 0; round < 2; round++)
        read_all(f);
    assert_true(now(f).prefetched > prefetched);
    cws_gpu_sleep(f->gpu); /* a use wakes it, too */
    cws_gpu_sleep(f->gpu);
    read_all(f);
    assert_int_equal(cws_gpu_free(f->gpu, kept, f->stream, true), 0);
    free_all(f);
    close_gpu(f);
}

static void test_pinned_weights_stay(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 96 * MIB, true);
    bind_all(f);
    for (unsigned i = 0; i < 10; i++)
        cws_gpu_pin(f->gpu, f->at[i]);
    read_all(f);
    cws_gpu_sleep(f->gpu);
    assert_int_equal(now(f).decoded_bytes, 28 * MIB);
    assert_int_equal(refused(f, 24 * MIB) * MIB, 28 * MIB + now(f).staging_bytes);
    set(f, 44 * MIB);
    read_all(f);
    free_all(f);
    close_gpu(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_give_way),
        cmocka_unit_test(test_a_larger_one_is_used),
        cmocka_unit_test(test_what_cannot_be_met_is_refused),
        cmocka_unit_test(test_written_weights_go_to_the_host),
        cmocka_unit_test(test_what_is_in_use_stays),
        cmocka_unit_test(test_it_waits_for_what_is_in_use),
        cmocka_unit_test(test_pools_are_trimmed),
        cmocka_unit_test(test_the_reserve_goes),
        cmocka_unit_test(test_sleep_and_wake),
        cmocka_unit_test(test_pinned_weights_stay),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
