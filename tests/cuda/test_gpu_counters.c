/* What the CUDA manager counts: pieces of memory and calls of the driver, the link, and what launches waited for. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"

#include <pthread.h>
#include <time.h>

static unsigned long calls_made(void)
{
    static const char *const names[] = {"cuMemCreate", "cuMemRelease", "cuMemMap", "cuMemUnmap", "cuMemSetAccess"};
    unsigned long calls = 0;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        calls += standin_calls(names[i]);
    return calls;
}

static void expect_counted(struct fixture *f, struct cws_gpu_stats *stats)
{
    cws_gpu_settle(f->gpu);
    cws_gpu_stats_get(f->gpu, stats);
    assert_int_equal(stats->vmm_calls, calls_made());
    assert_int_equal(stats->frames_created, standin_calls("cuMemCreate"));
    assert_int_equal(stats->frames_released, standin_calls("cuMemRelease"));
}

static void test_memory_is_counted(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, false);
    struct cws_gpu_stats first, later;
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    expect_counted(f, &first);
    assert_true(first.frames_created > 0 && first.frames_created < TENSORS);
    for (unsigned i = 0; i < 3 * TENSORS; i++)
        expect_right(f, i % TENSORS);
    expect_counted(f, &later);
    assert_true(later.vmm_calls > first.vmm_calls);
    assert_true(later.link_bytes > first.link_bytes);
    assert_true(later.link_ns > first.link_ns);
    free_all(f);
    close_gpu(f);
}

static void test_waits_have_causes(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, false);
    struct cws_gpu_stats stats;
    CUdeviceptr fresh;
    uint64_t bytes = 3 * MIB;
    uint32_t value = 5;
    void *params[] = {&fresh, &bytes, &value};
    bind_all(f);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.weight_waits + stats.fresh_waits + stats.staging_waits, 0);
    for (unsigned i = 0; i < 4; i++)
        expect_right(f, i);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.weight_waits, 4);
    assert_int_equal(stats.fresh_waits, 0);
    assert_true(stats.weight_wait_ns > 0 && stats.weight_wait_ns <= stats.stall_ns);
    assert_true(f->gpu->uses.weights_stalled_ns <= stats.weight_wait_ns);
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &fresh), 0);
    for (unsigned i = 0; i < 3; i++) /* it waits once: then it has memory */
        assert_int_equal(launch(f, "fill", &fresh, 1, params), 0);
    for (unsigned i = 0; i < 4; i++)
        expect_right(f, i);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.weight_waits, 4);
    assert_int_equal(stats.fresh_waits, 1);
    assert_true(stats.fresh_wait_ns > 0 && stats.fresh_wait_ns + stats.weight_wait_ns <= stats.stall_ns);
    assert_int_equal(cws_gpu_free(f->gpu, fresh, f->stream, true), 0);
    /* nothing else ran while these waited, which the stream tells unless its thread got no processor */
    for (unsigned i = 4; i < TENSORS && f->gpu->uses.weights_stalled_ns == 0; i++)
        expect_right(f, i);
    assert_true(f->gpu->uses.weights_stalled_ns > 0);
    free_all(f);
    close_gpu(f);
}

/* Lets the decodes go once something waits for a slot. */
static void *let_decodes_go(void *arg)
{
    struct fixture *f = arg;
    const struct timespec pause = {.tv_nsec = 1000000};
    struct cws_gpu_stats stats = {0};
    for (unsigned i = 0; i < 60000 && stats.staging_waits == 0; i++) {
        nanosleep(&pause, NULL);
        cws_gpu_stats_get(f->gpu, &stats);
    }
    standin_let_go(f->gpu->staging.decode_stream);
    return NULL;
}

static void test_staging_that_is_full(void **state)
{
    (void)state;
    staging_bytes = 4 * MIB;
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, false);
    staging_bytes = 8 * MIB;
    struct cws_gpu_stats stats;
    struct cws_gpu_use use;
    pthread_t thread;
    bind_all(f);
    standin_hold(f->gpu->staging.decode_stream);
    assert_int_equal(pthread_create(&thread, NULL, let_decodes_go, f), 0);
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, f->at, TENSORS, &use), 0);
    cws_gpu_end(f->gpu, &use, false);
    pthread_join(thread, NULL);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.staging_waits > 0);
    assert_true(stats.staging_wait_ns > 0 && stats.staging_wait_ns <= stats.stall_ns);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    free_all(f);
    close_gpu(f);
}

static void *fill_fresh(void *arg)
{
    struct fixture *f = arg;
    uint64_t bytes = 6 * MIB;
    uint32_t value = 5;
    void *params[] = {&f->at[0], &bytes, &value};
    driver.context_set(f->context);
    return (void *)(uintptr_t)launch(f, "fill", &f->at[0], 1, params);
}

/* A launch waits for memory of a fresh range, which counts as taken already: no weights are less than none. */
static void test_memory_that_is_waited_for(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, false);
    const struct timespec pause = {.tv_nsec = 200000};
    struct cws_gpu_stats stats;
    struct cws_gpu_use use;
    CUdeviceptr held;
    pthread_t thread;
    void *result;
    assert_int_equal(cws_gpu_alloc(f->gpu, 2 * MIB, f->stream, &held), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, 6 * MIB, f->stream, &f->at[0]), 0);
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &held, 1, &use), 0);
    cws_gpu_stats_get(f->gpu, &stats);
    size_t all = 34 * MIB - stats.used_bytes;
    assert_int_equal(cws_gpu_make_room(f->gpu, all), 0);
    assert_int_equal(pthread_create(&thread, NULL, fill_fresh, f), 0);
    for (stats.anonymous_bytes = 0; stats.anonymous_bytes != 8 * MIB; nanosleep(&pause, NULL))
        cws_gpu_stats_get(f->gpu, &stats);
    assert_int_equal(stats.decoded_bytes, 0);
    cws_gpu_room_used(f->gpu, all, 0);
    cws_gpu_end(f->gpu, &use, false);
    pthread_join(thread, &result);
    assert_int_equal((uintptr_t)result, 0);
    assert_int_equal(cws_gpu_free(f->gpu, held, f->stream, true), 0);
    assert_int_equal(cws_gpu_free(f->gpu, f->at[0], f->stream, true), 0);
    close_gpu(f);
}

struct answer {
    size_t left, total;
};
static struct answer ask(struct fixture *f, uint64_t opened_bytes)
{
    struct answer a;
    cws_gpu_mem_info(f->gpu, opened_bytes, &a.left, &a.total);
    return a;
}

/* Once a model is loaded, half of the budget is its weights', and what is free besides can be had. */
static void test_free_memory_can_be_planned_with(void **state)
{
    (void)state;
    uint64_t budget = 34 * MIB, all = 0, least = 1288490189; /* 1.2 GiB, which transformers subtracts */
    struct fixture *f = open_gpu(256 * MIB, budget, false);
    CUdeviceptr taken;
    for (unsigned i = 0; i < TENSORS; i++)
        all += tensor_bytes(i);
    struct answer empty = ask(f, 0), opened = ask(f, all);
    assert_true(empty.left > budget / 2 && empty.left < budget);
    assert_true(empty.total >= least && empty.total < least + MIB);
    assert_int_equal(opened.left, empty.left + all);
    assert_int_equal(ask(f, least).total, budget + least);
    bind_all(f);
    struct answer loaded = ask(f, 0), small_left = ask(f, all / 16), loading = ask(f, all / 2);
    assert_int_equal(loaded.left, empty.left - budget / 2);
    assert_int_equal(loaded.total, empty.total);
    assert_memory_equal(&small_left, &loaded, sizeof loaded);
    assert_int_equal(loading.left, empty.left + all / 2);
    assert_int_equal(cws_gpu_alloc(f->gpu, loaded.left / (2 * MIB) * 2 * MIB, f->stream, &taken), CUDA_SUCCESS);
    for (unsigned i = 0; i < 2 * TENSORS; i++)
        expect_right(f, i % TENSORS);
    assert_null(cws_gpu_check(f->gpu));
    assert_int_equal(cws_gpu_free(f->gpu, taken, f->stream, false), CUDA_SUCCESS);
    free_all(f);
    cws_gpu_settle(f->gpu);
    assert_int_equal(ask(f, 0).left, empty.left);
    close_gpu(f);
}

/* What cannot be dropped may leave nothing for a program to plan with; a small model keeps what it takes and no more. */
static void test_free_memory_is_never_below_nothing(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 200 * MIB, false);
    struct cws_gpu_stats stats;
    struct answer empty = ask(f, 0);
    bind_all(f);
    cws_gpu_stats_get(f->gpu, &stats);
    size_t bound = empty.left - ask(f, 0).left;
    assert_in_range(bound, stats.bound_bytes, 2 * stats.bound_bytes); /* whole pieces of memory */
    assert_int_equal(cws_gpu_make_room(f->gpu, 120 * MIB), CUDA_SUCCESS);
    cws_gpu_room_used(f->gpu, 120 * MIB, 120 * MIB);
    assert_in_range(ask(f, 0).left, 0, 80 * MIB - bound);
    cws_gpu_plain_freed(f->gpu, 120 * MIB);
    free_all(f);
    close_gpu(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory_is_counted),
                                       cmocka_unit_test(test_waits_have_causes),
                                       cmocka_unit_test(test_staging_that_is_full),
                                       cmocka_unit_test(test_memory_that_is_waited_for),
                                       cmocka_unit_test(test_free_memory_can_be_planned_with),
                                       cmocka_unit_test(test_free_memory_is_never_below_nothing)};
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
