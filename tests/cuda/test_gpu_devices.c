/* Two devices, a manager on each: ranges of the first one are used on streams of the second one's context. Each stream
 * is followed, in its own context, whatever is current in the thread that follows it. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"

#define OK(call) assert_int_equal(call, CUDA_SUCCESS)
#define BUDGET (34 * MIB)

static struct fixture *first, *second; /* on device 0 and on device 1 */

static int open_both(void **state)
{
    (void)state;
    start_driver(256 * MIB, 2);
    first = open_gpu_on(0, BUDGET, false);
    second = open_gpu_on(1, BUDGET, false);
    OK(driver.context_set(first->context));
    bind_all(first);
    return 0;
}

/* Also after a test that failed, and left streams held. Nothing runs any more before a manager closes: each waits for
 * its own context only. */
static int close_both(void **state)
{
    (void)state;
    struct fixture *both[] = {first, second};
    for (unsigned i = 0; i < 2; i++) {
        OK(driver.context_set(both[i]->context));
        standin_let_go(NULL);
        standin_let_go(CU_STREAM_PER_THREAD);
        standin_let_go(both[i]->stream);
        OK(driver.context_sync());
    }
    for (unsigned i = 0; i < 2; i++) {
        OK(driver.context_set(both[i]->context));
        if (i == 0)
            free_all(first);
        close_gpu_on(both[i]);
    }
    expect_nothing_left();
    return 0;
}

static CUcontext current(void)
{
    CUcontext context = NULL;
    OK(driver.context_get(&context));
    return context;
}

/* A stream as one says it while this one's context is current. */
struct stream {
    struct fixture *in;
    CUstream handle;
};

static void hold(struct stream s, bool held)
{
    OK(driver.context_set(s.in->context));
    if (held)
        standin_hold(s.handle);
    else
        standin_let_go(s.handle);
    OK(driver.context_set(first->context));
}

static CUdeviceptr sum_of(unsigned i) { return first->scratch + 64 + 8 * i; }

/* A kernel of the stream's context sums range i of the first device up. */
static void use(struct stream s, unsigned i)
{
    CUfunction function;
    struct cws_gpu_use named;
    CUdeviceptr to = sum_of(i);
    uint64_t bytes = tensor_bytes(i);
    void *params[] = {&to, &first->at[i], &bytes};
    OK(driver.context_set(s.in->context));
    OK(driver.module_function(&function, s.in->kernels, "sum"));
    OK(cws_gpu_begin(first->gpu, s.handle, &first->at[i], 1, &named));
    OK(driver.launch(function, 1, 1, 1, 1, 1, 1, 0, s.handle, params, NULL));
    cws_gpu_end(first->gpu, &named, true);
    assert_ptr_equal(current(), s.in->context);
    OK(driver.context_set(first->context));
}

static void expect_sum(unsigned i)
{
    uint64_t sum = 0;
    OK(driver.copy_out_async(&sum, sum_of(i), 8, first->stream));
    OK(driver.stream_sync(first->stream));
    assert_int_equal(sum, plain_sum(content(i), tensor_bytes(i)));
}

static bool is_resident(unsigned i)
{
    cws_gpu_lock(&first->gpu->core);
    const struct cws_gpu_range *r = cws_gpu_range_at_locked(&first->gpu->ranges, first->at[i]);
    bool resident = r->extents[0].state == CWS_EXTENT_RESIDENT;
    cws_gpu_unlock(&first->gpu->core);
    return resident;
}

/* Uses all ranges but the first `kept`, with which they do not fit the budget. */
static void need_memory(unsigned kept)
{
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = kept; i < TENSORS; i++)
            expect_right(first, i);
    cws_gpu_settle(first->gpu);
}

static void expect_dropped(unsigned i, unsigned kept)
{
    for (unsigned pass = 0; pass < 10 && is_resident(i); pass++)
        need_memory(kept);
    if (is_resident(i))
        fail_msg("range %u is never dropped", i);
}

/* --- tests ------------------------------------------------------------------------------------------- */

/* One use on each is too few for a launch to put a mark behind it: the loader does that, whose context is the first. */
static void test_each_stream_is_followed(void **state)
{
    (void)state;
    const struct stream streams[] = {{second, second->stream}, {second, NULL}, {first, NULL}};
    enum { STREAMS = sizeof streams / sizeof *streams };
    for (unsigned i = 0; i < STREAMS; i++) {
        expect_right(first, i);
        hold(streams[i], true);
    }
    unsigned long records = standin_calls("cuEventRecord");
    for (unsigned i = 0; i < STREAMS; i++)
        use(streams[i], i);
    assert_int_equal(standin_calls("cuEventRecord"), records);
    need_memory(STREAMS);
    for (unsigned i = 0; i < STREAMS; i++) {
        for (unsigned k = 0; k < STREAMS; k++)
            assert_int_equal(is_resident(k), k >= i);
        hold(streams[i], false);
        expect_dropped(i, STREAMS);
        expect_sum(i);
    }
}

/* A thread has a stream of its own in each context; only the thread itself can record on it. */
static void test_own_streams_of_a_thread_are_followed(void **state)
{
    (void)state;
    const struct stream streams[] = {{second, CU_STREAM_PER_THREAD}, {first, CU_STREAM_PER_THREAD}};
    for (unsigned held = 0; held < 2; held++) {
        hold(streams[held], true);
        for (unsigned i = 0; i < 2; i++)
            use(streams[i], i);
        expect_dropped(!held, 2);
        assert_true(is_resident(held));
        hold(streams[held], false);
        expect_dropped(held, 2);
        for (unsigned i = 0; i < 2; i++)
            expect_sum(i);
    }
}

/* So many uses that launches put marks behind them, from a thread in whose context the stream is not. */
static void test_a_launch_marks_from_elsewhere(void **state)
{
    (void)state;
    enum { USES = 50 };
    struct cws_gpu_use named;
    expect_right(first, 0);
    unsigned long records = standin_calls("cuEventRecord");
    hold((struct stream){second, second->stream}, true);
    for (unsigned i = 0; i < USES; i++) {
        OK(cws_gpu_begin(first->gpu, second->stream, &first->at[0], 1, &named));
        cws_gpu_end(first->gpu, &named, true);
        assert_ptr_equal(current(), first->context);
    }
    assert_int_equal(standin_calls("cuEventRecord"), records + USES / first->gpu->core.tuning->mark_every);
    need_memory(1);
    assert_true(is_resident(0));
    hold((struct stream){second, second->stream}, false);
    expect_dropped(0, 1);
}

/* Work of the second context behind which its own calls wait, as they do without a manager. */
static void test_the_program_waits_in_the_other_context(void **state)
{
    (void)state;
    const struct stream made = {second, second->stream}, legacy = {second, NULL};
    CUevent event;
    OK(driver.context_set(second->context));
    OK(driver.event_create(&event, CU_EVENT_DISABLE_TIMING));
    use(made, 0);
    use(legacy, 1);
    OK(driver.context_set(second->context));
    OK(driver.context_sync());
    OK(driver.stream_query(made.handle));
    OK(driver.stream_query(legacy.handle));
    cws_gpu_synchronized(first->gpu);
    cws_gpu_synchronized(second->gpu);
    use(made, 2);
    OK(driver.event_record(event, made.handle)); /* the first context is current */
    OK(driver.stream_wait(first->stream, event, 0));
    for (unsigned i = 0; i < 3; i++) {
        expect_sum(i);
        expect_dropped(i, 3);
    }
    OK(driver.event_destroy(event));
}

static void use_and_end(struct fixture *in)
{
    struct stream ends = {.in = in};
    OK(driver.context_set(in->context));
    OK(driver.stream_create(&ends.handle, CU_STREAM_NON_BLOCKING));
    use(ends, 0);
    unsigned long waits = standin_calls("cuStreamSynchronize");
    cws_gpu_stream_gone(first->gpu, ends.handle);
    assert_int_equal(standin_calls("cuStreamSynchronize"), waits); /* which it does where no mark can be put */
    assert_ptr_equal(current(), first->context);
    OK(driver.stream_sync(ends.handle));
    OK(driver.stream_destroy(ends.handle));
    expect_dropped(0, 1);
    expect_sum(0);
}

/* A stream is destroyed by a thread in whose context it is not, and its last uses have no mark yet. The next one has
 * its place, but none of its events, which are of another context. */
static void test_streams_of_both_contexts_end(void **state)
{
    (void)state;
    struct fixture *const in[] = {second, first, second};
    for (unsigned i = 0; i < 3; i++)
        use_and_end(in[i]);
}

/* A context ends with its streams, which nobody destroys one by one: what was used on them is not in use any more. */
static void test_a_context_ends(void **state)
{
    (void)state;
    struct stream s = {second, NULL};
    expect_right(first, 0);
    OK(driver.context_set(second->context));
    OK(driver.stream_create(&s.handle, CU_STREAM_NON_BLOCKING));
    use(s, 0);
    OK(driver.context_set(second->context));
    OK(driver.context_sync());
    OK(driver.stream_destroy(s.handle)); /* as the end of the context does; the manager is not told of the stream */
    OK(driver.context_set(first->context));
    cws_gpu_context_gone(first->gpu, second->context);
    need_memory(1);
    expect_dropped(0, 1);
    expect_sum(0);
}

/* What was freed in the order of the second context's NULL stream is that one's to have again, not the first one's. */
static void test_a_free_is_in_the_order_of_its_context(void **state)
{
    (void)state;
    const struct stream legacy = {second, NULL};
    struct cws_gpu_use named;
    CUdeviceptr at, other, again;
    OK(cws_gpu_alloc(first->gpu, 6 * MIB, NULL, &at));
    hold(legacy, true);
    OK(driver.context_set(second->context));
    OK(cws_gpu_begin(first->gpu, NULL, &at, 1, &named));
    OK(driver.set8_async(at, 1, 6 * MIB, NULL));
    cws_gpu_end(first->gpu, &named, true);
    OK(cws_gpu_free(first->gpu, at, NULL, true));
    OK(driver.context_set(first->context));
    OK(cws_gpu_alloc(first->gpu, 6 * MIB, NULL, &other));
    assert_int_not_equal(other, at);
    OK(driver.context_set(second->context));
    OK(cws_gpu_alloc(first->gpu, 6 * MIB, NULL, &again));
    assert_int_equal(again, at);
    hold(legacy, false);
    OK(cws_gpu_free(first->gpu, other, NULL, true));
    OK(cws_gpu_free(first->gpu, again, NULL, true));
}

/* Each manager pages within its own device. */
static void test_both_devices_page(void **state)
{
    (void)state;
    struct fixture *both[] = {first, second};
    struct cws_gpu_stats stats;
    OK(driver.context_set(second->context));
    bind_all(second);
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 0; i < TENSORS; i++) {
            for (unsigned k = 0; k < 2; k++) {
                OK(driver.context_set(both[k]->context));
                expect_right(both[k], i);
            }
            use((struct stream){second, second->stream}, i);
        }
    for (unsigned k = 0; k < 2; k++) {
        size_t left, total;
        OK(driver.context_set(both[k]->context));
        OK(driver.mem_info(&left, &total));
        cws_gpu_stats_get(both[k]->gpu, &stats);
        assert_null(cws_gpu_check(both[k]->gpu));
        assert_true(stats.drops > 0);
        assert_true(stats.peak_bytes <= BUDGET);
        assert_in_range(total - left, stats.used_bytes, stats.used_bytes + 8 * MIB); /* and the test's own */
    }
    free_all(second);
}

#define T(name) cmocka_unit_test_setup_teardown(name, open_both, close_both)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_each_stream_is_followed),
        T(test_own_streams_of_a_thread_are_followed),
        T(test_a_launch_marks_from_elsewhere),
        T(test_the_program_waits_in_the_other_context),
        T(test_streams_of_both_contexts_end),
        T(test_a_context_ends),
        T(test_a_free_is_in_the_order_of_its_context),
        T(test_both_devices_page),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
