/* Memory that a launch named is there for what its thread queues next, which may reach it through pointers that the
 * first one wrote: a grouped matrix product, after the kernel that prepares its tables. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"

#include <pthread.h>

static struct cws_tuning tuning;

static struct fixture *begin(uint64_t settle_ns)
{
    struct fixture *f = open_gpu(256 * MIB, 20 * MIB, true);
    tuning = cws_tuning_default;
    tuning.settle_ns = settle_ns;
    cws_gpu_lock(&f->gpu->core);
    f->gpu->core.tuning = &tuning;
    cws_gpu_unlock(&f->gpu->core);
    bind_all(f);
    return f;
}

static bool is_there(struct fixture *f, unsigned i)
{
    cws_gpu_lock(&f->gpu->core);
    bool there = cws_extent_is_mapped(cws_gpu_range_at_locked(&f->gpu->ranges, f->at[i])->extents[0].state);
    cws_gpu_unlock(&f->gpu->core);
    return there;
}

/* In a thread of its own, on a stream of its own: goes through all the others, which do not fit beside one another. */
static void *use_others(void *arg)
{
    struct fixture other = *(struct fixture *)arg;
    driver.context_set(other.context);
    assert_int_equal(driver.stream_create(&other.stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(driver.mem_alloc(&other.scratch, 4096), 0);
    for (unsigned i = 0; i < 3 * TENSORS; i++)
        if (i % TENSORS)
            expect_right(&other, i % TENSORS);
    cws_gpu_stream_gone(other.gpu, other.stream);
    assert_int_equal(driver.stream_destroy(other.stream), 0);
    assert_int_equal(driver.mem_free(other.scratch), 0);
    return NULL;
}

static void others(struct fixture *f)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, use_others, f), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void test_it_is_there_for_the_next_launch(void **state)
{
    (void)state;
    struct fixture *f = begin(3600 * (uint64_t)1000000000);
    CUdeviceptr to = f->scratch;
    CUfunction sum;
    uint64_t bytes = tensor_bytes(0), seen = 0;
    void *params[] = {&to, &f->at[0], &bytes};
    assert_int_equal(launch(f, "sum", &f->at[0], 1, params), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    others(f);
    assert_true(is_there(f, 0));
    /* the next one names nothing */
    assert_int_equal(driver.module_function(&sum, f->kernels, "sum"), 0);
    assert_int_equal(driver.launch(sum, 1, 1, 1, 1, 1, 1, 0, f->stream, params, NULL), 0);
    cws_gpu_queued_other(f->gpu);
    assert_int_equal(driver.copy_out_async(&seen, to, 8, f->stream), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    assert_int_equal(seen, plain_sum(content(0), bytes));
    others(f);
    assert_false(is_there(f, 0));
    free_all(f);
    close_gpu(f);
}

/* The last one of a thread that launches something else, there or on another stream, is as any other. */
static void test_a_launch_that_names_something_comes_next(void **state)
{
    (void)state;
    struct fixture *f = begin(3600 * (uint64_t)1000000000), second;
    for (unsigned own = 0; own < 2; own++) {
        second = *f;
        if (own)
            assert_int_equal(driver.stream_create(&second.stream, CU_STREAM_NON_BLOCKING), 0);
        expect_right(f, 0);
        expect_right(&second, 1);
        others(f);
        assert_false(is_there(f, 0));
        cws_gpu_queued_other(f->gpu);
        if (own) {
            cws_gpu_stream_gone(f->gpu, second.stream);
            assert_int_equal(driver.stream_destroy(second.stream), 0);
        }
    }
    free_all(f);
    close_gpu(f);
}

/* The same on the thread's own stream, on which nobody else can see how far it has come. */
static void test_it_is_there_on_a_stream_of_the_thread(void **state)
{
    (void)state;
    struct fixture *f = begin(3600 * (uint64_t)1000000000);
    CUstream made = f->stream;
    f->stream = CU_STREAM_PER_THREAD;
    expect_right(f, 0);
    others(f);
    assert_true(is_there(f, 0));
    cws_gpu_queued_other(f->gpu);
    others(f);
    assert_false(is_there(f, 0));
    expect_right(f, 0);
    expect_right(f, 1); /* a launch that names something comes next, then one on another stream */
    others(f);
    assert_false(is_there(f, 0));
    expect_right(f, 0);
    f->stream = made;
    expect_right(f, 2);
    others(f);
    assert_false(is_there(f, 0));
    cws_gpu_queued_other(f->gpu);
    free_all(f);
    close_gpu(f);
}

/* Its thread does nothing more: it goes after a while. */
static void test_nobody_waits_for_ever(void **state)
{
    (void)state;
    struct fixture *f = begin(1000000);
    CUstream made = f->stream;
    for (unsigned own = 0; own < 2; own++) {
        f->stream = own ? CU_STREAM_PER_THREAD : made;
        expect_right(f, 0);
        others(f);
        assert_false(is_there(f, 0));
    }
    f->stream = made;
    free_all(f);
    close_gpu(f);
}

/* One thread, each of whose launches waits for the memory of the one before: nothing can come between. */
static void test_its_own_thread_waits_for_it(void **state)
{
    (void)state;
    struct fixture *f = begin(3600 * (uint64_t)1000000000);
    CUstream made = f->stream;
    for (unsigned i = 0; i < 4 * TENSORS; i++) {
        f->stream = i < 2 * TENSORS ? made : CU_STREAM_PER_THREAD;
        expect_right(f, i % TENSORS);
    }
    f->stream = made;
    free_all(f);
    close_gpu(f);
}

/* On a stream that captures nothing more can be marked: what ran there before is as any other. */
static void test_a_capture_comes_next(void **state)
{
    (void)state;
    typedef CUresult (*begin_capture)(CUstream, int);
    typedef CUresult (*end_capture)(CUstream, CUgraph *);
    begin_capture begins = (begin_capture)standin_resolve(NULL, "cuStreamBeginCapture_v2");
    end_capture ends = (end_capture)standin_resolve(NULL, "cuStreamEndCapture");
    CUresult (*destroy)(CUgraph) = (CUresult(*)(CUgraph))standin_resolve(NULL, "cuGraphDestroy");
    struct fixture *f = begin(1000000);
    CUgraph graph;
    expect_right(f, 0);
    cws_gpu_stream_captures(f->gpu, f->stream);
    assert_int_equal(begins(f->stream, CU_STREAM_CAPTURE_MODE_RELAXED), 0);
    others(f);
    assert_false(is_there(f, 0));
    assert_int_equal(ends(f->stream, &graph), 0);
    assert_int_equal(destroy(graph), 0);
    free_all(f);
    close_gpu(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_is_there_for_the_next_launch),
        cmocka_unit_test(test_a_launch_that_names_something_comes_next),
        cmocka_unit_test(test_it_is_there_on_a_stream_of_the_thread),
        cmocka_unit_test(test_nobody_waits_for_ever),
        cmocka_unit_test(test_its_own_thread_waits_for_it),
        cmocka_unit_test(test_a_capture_comes_next),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
