/* What uvm/cuda/manager.h promises about streams, threads and the budget, where it is easily broken. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"
#include "tests/support/hang.h"

#include <pthread.h>
#include <semaphore.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- streams of threads ---------------------------------------------------------------------------- */

struct own_stream { /* a thread that queues one kernel on its own stream and leaves it there */
    struct fixture *f;
    CUdeviceptr to;
    pthread_barrier_t queued, go_on;
    CUresult result;
};

static void *queue_and_wait(void *arg)
{
    struct own_stream *o = arg;
    CUfunction function;
    struct cws_gpu_use use;
    CUdeviceptr from = o->f->at[0];
    uint64_t bytes = tensor_bytes(0);
    void *params[] = {&o->to, &from, &bytes};
    driver.context_set(o->f->context);
    standin_hold(CU_STREAM_PER_THREAD);
    o->result = cws_gpu_begin(o->f->gpu, CU_STREAM_PER_THREAD, &from, 1, &use);
    if (o->result == CUDA_SUCCESS)
        o->result = driver.module_function(&function, o->f->kernels, "sum");
    if (o->result == CUDA_SUCCESS) {
        o->result = driver.launch(function, 1, 1, 1, 1, 1, 1, 0, CU_STREAM_PER_THREAD, params, NULL);
        cws_gpu_end(o->f->gpu, &use, true);
    }
    pthread_barrier_wait(&o->queued);
    pthread_barrier_wait(&o->go_on);
    standin_let_go(CU_STREAM_PER_THREAD);
    if (o->result == CUDA_SUCCESS)
        o->result = driver.stream_sync(CU_STREAM_PER_THREAD);
    return NULL;
}

/* A kernel of another thread's own stream still runs; this thread's own stream goes far ahead of it and needs
 * memory. */
static void test_own_streams_are_told_apart(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    struct own_stream o = {.f = f};
    pthread_t thread;
    uint64_t sum;
    bind_all(f);
    assert_int_equal(driver.mem_alloc(&o.to, 64), 0);
    pthread_barrier_init(&o.queued, NULL, 2);
    pthread_barrier_init(&o.go_on, NULL, 2);
    assert_int_equal(pthread_create(&thread, NULL, queue_and_wait, &o), 0);
    pthread_barrier_wait(&o.queued);
    CUstream made = f->stream;
    f->stream = CU_STREAM_PER_THREAD;
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 1; i < TENSORS; i++)
            expect_right(f, i);
    f->stream = made;
    pthread_barrier_wait(&o.go_on);
    pthread_join(thread, NULL);
    assert_int_equal(o.result, 0);
    assert_int_equal(driver.copy_out(&sum, o.to, 8), 0);
    assert_int_equal(sum, plain_sum(content(0), tensor_bytes(0)));
    pthread_barrier_destroy(&o.queued);
    pthread_barrier_destroy(&o.go_on);
    assert_int_equal(driver.mem_free(o.to), 0);
    free_all(f);
    close_gpu(f);
}

/* Threads come and go, each with a stream of its own: their places are used again. */
static void *use_once(void *arg)
{
    struct own_stream *o = arg;
    struct cws_gpu_use use;
    driver.context_set(o->f->context);
    o->result = cws_gpu_begin(o->f->gpu, CU_STREAM_PER_THREAD, &o->f->at[1], 1, &use);
    if (o->result == CUDA_SUCCESS)
        cws_gpu_end(o->f->gpu, &use, true);
    return NULL;
}

static void test_many_threads(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    struct own_stream o = {.f = f};
    struct cws_gpu_stats stats;
    bind_all(f);
    for (unsigned i = 0; i < 300; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, use_once, &o), 0);
        pthread_join(thread, NULL);
        assert_int_equal(o.result, 0);
    }
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 2; i < TENSORS; i++)
            expect_right(f, i);
    cws_gpu_settle(f->gpu);
    uint64_t loads;
    cws_gpu_stats_get(f->gpu, &stats);
    loads = stats.loads;
    expect_right(f, 1); /* it was not kept for ever: it went, and comes again */
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.loads > loads || stats.prefetched > 0);
    free_all(f);
    close_gpu(f);
}

/* --- capture --------------------------------------------------------------------------------------- */

/* Nobody told the manager: it records nothing on the stream all the same, which would make the event a part of the
 * graph. */
static void test_a_capture_is_left_alone(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 128 * MIB, true);
    CUresult (*begin)(CUstream, CUstreamCaptureMode) = (__typeof__(begin))standin_resolve(NULL,
                                                                                          "cuStreamBeginCapture_v2");
    CUresult (*end)(CUstream, CUgraph *) = (__typeof__(end))standin_resolve(NULL, "cuStreamEndCapture");
    CUresult (*destroy)(CUgraph) = (__typeof__(destroy))standin_resolve(NULL, "cuGraphDestroy");
    CUgraph graph;
    bind_all(f);
    expect_right(f, 0);
    assert_int_equal(begin(f->stream, CU_STREAM_CAPTURE_MODE_GLOBAL), 0);
    unsigned long records = standin_calls("cuEventRecord");
    for (unsigned i = 0; i < 64; i++) {
        struct cws_gpu_use use;
        assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &f->at[0], 1, &use), 0);
        cws_gpu_end(f->gpu, &use, true);
    }
    assert_int_equal(standin_calls("cuEventRecord"), records);
    assert_int_equal(end(f->stream, &graph), 0);
    assert_int_equal(destroy(graph), 0);
    expect_right(f, 0);
    free_all(f);
    close_gpu(f);
}

/* --- sets ------------------------------------------------------------------------------------------ */

/* A launch named everything; when that model is freed, room is no longer kept for it. */
static void test_a_freed_set_is_forgotten(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 48 * MIB, true);
    CUdeviceptr to = f->scratch, more;
    uint64_t bytes = 8;
    void *params[] = {&to, &f->at[0], &bytes};
    bind_all(f);
    expect_right(f, 0);
    assert_int_equal(launch(f, "sum", f->at, TENSORS, params), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, 20 * MIB, f->stream, &more), CUDA_ERROR_OUT_OF_MEMORY);
    for (unsigned i = 1; i < TENSORS; i++)
        assert_int_equal(cws_gpu_free(f->gpu, f->at[i], f->stream, true), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, 20 * MIB, f->stream, &more), 0);
    assert_int_equal(cws_gpu_free(f->gpu, more, f->stream, true), 0);
    for (unsigned i = 1; i < TENSORS; i++) {
        assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &f->at[i]), 0);
        assert_true(
            cws_gpu_bind(f->gpu, f->at[i], tensor_bytes(i), f->stream, store, cws_store_tensor(store, i)->begin));
        expect_right(f, i);
    }
    free_all(f);
    close_gpu(f);
}

/* --- uses inside uses -------------------------------------------------------------------------------- */

static void test_a_use_inside_a_use(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    struct cws_gpu_use uses[TENSORS];
    unsigned begun = 0;
    CUresult result = CUDA_SUCCESS;
    bind_all(f);
    while (begun < TENSORS && result == CUDA_SUCCESS) {
        result = cws_gpu_begin(f->gpu, f->stream, &f->at[begun], 1, &uses[begun]);
        begun += result == CUDA_SUCCESS;
    }
    /* not all of them fit, and nothing waits for ever */
    assert_int_equal(result, CUDA_ERROR_OUT_OF_MEMORY);
    assert_true(begun > 1);
    assert_non_null(strstr(last_line, "calls around it"));
    assert_int_equal(cws_gpu_make_room(f->gpu, 20 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
    while (begun > 0)
        cws_gpu_end(f->gpu, &uses[--begun], true);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    free_all(f);
    close_gpu(f);
}

struct holder {
    struct fixture *f;
    unsigned first, second;
    pthread_barrier_t *both;
    CUresult result;
};

static void *hold_two(void *arg)
{
    struct holder *h = arg;
    struct cws_gpu_use outer, inner;
    driver.context_set(h->f->context);
    CUresult result = cws_gpu_begin(h->f->gpu, h->f->stream, &h->f->at[h->first], 1, &outer);
    pthread_barrier_wait(h->both);
    if (result == CUDA_SUCCESS) {
        h->result = cws_gpu_begin(h->f->gpu, h->f->stream, &h->f->at[h->second], 4, &inner);
        if (h->result == CUDA_SUCCESS)
            cws_gpu_end(h->f->gpu, &inner, true);
        cws_gpu_end(h->f->gpu, &outer, true);
    }
    return NULL;
}

/* Two threads hold something and want more than is left: both end, at least one gets what it wants. */
static void test_two_that_hold(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 24 * MIB, false);
    pthread_barrier_t both;
    struct holder h[2] = {{.f = f, .first = 0, .second = 3, .both = &both, .result = CUDA_ERROR_UNKNOWN},
                          {.f = f, .first = 2, .second = 7, .both = &both, .result = CUDA_ERROR_UNKNOWN}};
    pthread_t threads[2];
    bind_all(f);
    for (unsigned pass = 0; pass < 10; pass++) {
        pthread_barrier_init(&both, NULL, 2);
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, hold_two, &h[i]), 0);
        for (unsigned i = 0; i < 2; i++) {
            pthread_join(threads[i], NULL);
            assert_true(h[i].result == CUDA_SUCCESS || h[i].result == CUDA_ERROR_OUT_OF_MEMORY);
        }
        pthread_barrier_destroy(&both);
    }
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    free_all(f);
    close_gpu(f);
}

/* --- memory that is the driver's own --------------------------------------------------------------- */

/* Small allocations by the hundred while weights fill the rest: at no moment is more taken than the budget. */
static void test_small_allocations_are_counted_before(void **state)
{
    (void)state;
    enum { SMALL = 700, BYTES = 48 << 10 };
    static CUdeviceptr small[SMALL];
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct cws_gpu_stats stats;
    size_t before = standin_device_used(), count = 0;
    cws_gpu_stats_get(f->gpu, &stats);
    size_t own = before - stats.used_bytes; /* the test's own */
    bind_all(f);
    for (CUresult result = CUDA_SUCCESS; count < SMALL && result == CUDA_SUCCESS; count += result == CUDA_SUCCESS) {
        size_t room;
        expect_right(f, (unsigned)count % TENSORS);
        result = cws_gpu_pool_room(f->gpu, NULL, BYTES, &room);
        if (result != CUDA_SUCCESS)
            break;
        assert_int_equal(driver.mem_alloc_async(&small[count], BYTES, f->stream), 0);
        cws_gpu_pool_used(f->gpu, room);
        if (standin_device_used() > own + 40 * MIB)
            fail_msg("%zu bytes above the budget after %zu allocations", standin_device_used() - own - 40 * MIB,
                     count + 1);
    }
    assert_true(count > 300 && count < SMALL);
    assert_non_null(strstr(last_line, "does not fit CODEC_VRAM_BUDGET"));
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.peak_bytes <= 40 * MIB);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(driver.mem_free_async(small[i], f->stream), 0);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    free_all(f);
    close_gpu(f);
}

/* A pool grew past what was made room for: weights go until the budget holds again. */
static void test_what_grew_by_itself_is_made_up_for(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct cws_gpu_stats stats;
    CUdeviceptr big;
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    cws_gpu_settle(f->gpu);
    assert_int_equal(driver.mem_alloc_async(&big, 14 * MIB, f->stream), 0);
    cws_gpu_pools_changed(f->gpu);
    for (unsigned wait = 0; wait < 2000; wait++) {
        cws_gpu_settle(f->gpu);
        cws_gpu_stats_get(f->gpu, &stats);
        if (stats.used_bytes <= 40 * MIB)
            break;
    }
    assert_true(stats.other_bytes >= 14 * MIB);
    assert_true(stats.used_bytes <= 40 * MIB);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    assert_int_equal(driver.mem_free_async(big, f->stream), 0);
    free_all(f);
    close_gpu(f);
}

/* A pool that keeps all that it ever had: while weights are paged, what it does not use goes to them. */
static void test_what_a_pool_does_not_use_is_given_back(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 60 * MIB, true);
    struct cws_gpu_stats stats;
    CUmemoryPool pool;
    CUdeviceptr big;
    uint64_t everything = UINT64_MAX;
    size_t room;
    CUresult (*set)(CUmemoryPool, int,
                    void *) = (CUresult(*)(CUmemoryPool, int, void *))standin_resolve(NULL, "cuMemPoolSetAttribute");
    assert_int_equal(driver.device_pool(&pool, 0), 0);
    assert_int_equal(set(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &everything), 0);
    assert_int_equal(cws_gpu_pool_room(f->gpu, NULL, 30 * MIB, &room), 0);
    assert_int_equal(driver.mem_alloc_async(&big, 30 * MIB, f->stream), 0);
    cws_gpu_pool_used(f->gpu, room);
    assert_int_equal(driver.mem_free_async(big, f->stream), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.other_bytes >= 30 * MIB);
    bind_all(f);
    for (unsigned round = 0; round < 500 && stats.other_bytes >= 24 * MIB; round++) {
        for (unsigned i = 0; i < TENSORS; i++)
            expect_right(f, i);
        cws_gpu_stats_get(f->gpu, &stats);
        assert_true(stats.used_bytes <= 60 * MIB);
    }
    assert_true(stats.other_bytes < 24 * MIB);
    free_all(f);
    close_gpu(f);
}

/* --- stray words -------------------------------------------------------------------------------------- */

static struct {
    CUresult (*real)(CUdeviceptr, size_t);
    CUdeviceptr at;
    sem_t begun;
} slow_unmap;

static CUresult unmap_slowly(CUdeviceptr at, size_t bytes)
{
    if (at == slow_unmap.at) {
        const struct timespec pause = {.tv_nsec = 30000000};
        sem_post(&slow_unmap.begun);
        nanosleep(&pause, NULL);
    }
    return slow_unmap.real(at, bytes);
}

static void *make_room(void *arg)
{
    struct fixture *f = arg;
    driver.context_set(f->context);
    return (void *)(uintptr_t)cws_gpu_make_room(f->gpu, 21 * MIB);
}

struct late { /* lets the stream go when that takes too long */
    CUstream stream;
    sem_t done;
    bool was_needed;
};

static void *let_go_later(void *arg)
{
    struct late *late = arg;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SANITIZED ? 20 : 5;
    late->was_needed = sem_timedwait(&late->done, &until) != 0;
    standin_let_go(late->stream);
    return NULL;
}

/* Decodes, and copies to the device, take as long as they like: what is dropped meanwhile is hashed, and its memory
 * given on. */
static void test_a_drop_waits_for_no_load(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, false);
    bind_all(f);
    for (unsigned i = 0; i < 8; i++)
        expect_right(f, i);
    cws_gpu_settle(f->gpu);
    const CUstream streams[] = {f->gpu->staging.decode_stream, f->gpu->staging.copy_stream};
    for (unsigned i = 0; i < 2; i++) {
        struct late late = {.stream = streams[i]};
        struct cws_gpu_stats before, after;
        pthread_t thread;
        CUdeviceptr fresh;
        uint64_t bytes = 64;
        uint32_t value = 7;
        sem_init(&late.done, 0, 0);
        standin_hold(late.stream);
        assert_int_equal(pthread_create(&thread, NULL, let_go_later, &late), 0);
        cws_gpu_stats_get(f->gpu, &before);
        /* more than there is room for without a drop, and of a size that no freed memory has */
        assert_int_equal(cws_gpu_alloc(f->gpu, (8 + 2 * i) * MIB, f->stream, &fresh), 0);
        void *params[] = {&fresh, &bytes, &value};
        assert_int_equal(launch(f, "fill", &fresh, 1, params), 0);
        assert_int_equal(driver.stream_sync(f->stream), 0);
        sem_post(&late.done);
        pthread_join(thread, NULL);
        sem_destroy(&late.done);
        cws_gpu_stats_get(f->gpu, &after);
        assert_true(after.drops > before.drops);
        assert_false(late.was_needed);
        assert_int_equal(cws_gpu_free(f->gpu, fresh, f->stream, false), 0);
        for (unsigned k = 0; k < 8; k++)
            expect_right(f, k);
        cws_gpu_settle(f->gpu);
    }
    free_all(f);
    close_gpu(f);
}

/* A word that nobody reads names memory that was freed, while that is given up for something else. */
static void test_a_stray_word_names_what_goes(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    struct cws_gpu_use use;
    pthread_t thread;
    CUdeviceptr at, next;
    void *result;
    assert_int_equal(cws_gpu_alloc(f->gpu, 2 * MIB, f->stream, &at), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, 2 * MIB, f->stream, &next), 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(cws_gpu_begin(f->gpu, f->stream, i ? &next : &at, 1, &use), 0);
        cws_gpu_end(f->gpu, &use, true);
    }
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    slow_unmap.real = driver.unmap;
    slow_unmap.at = at;
    assert_int_equal(sem_init(&slow_unmap.begun, 0, 0), 0);
    driver.unmap = unmap_slowly; /* the manager has this table */
    assert_int_equal(pthread_create(&thread, NULL, make_room, f), 0);
    sem_wait(&slow_unmap.begun);
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &at, 1, &use), 0);
    assert_int_equal(use.count, 0);
    cws_gpu_end(f->gpu, &use, true);
    pthread_join(thread, &result);
    assert_int_equal((uintptr_t)result, CUDA_SUCCESS);
    cws_gpu_room_used(f->gpu, 21 * MIB, 0);
    sem_destroy(&slow_unmap.begun);
    assert_int_equal(cws_gpu_free(f->gpu, next, f->stream, true), 0);
    close_gpu(f);
}

struct waiter {
    struct fixture *f;
    CUstream stream;
    CUdeviceptr named;
    CUresult result;
};

static void *use_and_end(void *arg)
{
    struct waiter *w = arg;
    struct cws_gpu_use use;
    driver.context_set(w->f->context);
    w->result = cws_gpu_begin(w->f->gpu, w->stream, &w->named, 1, &use);
    if (w->result == CUDA_SUCCESS)
        cws_gpu_end(w->f->gpu, &use, true);
    return NULL;
}

static void wait_until_named(struct cws_gpu *gpu, CUdeviceptr at)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (bool named = false; !named;) {
        nanosleep(&pause, NULL);
        cws_gpu_lock(&gpu->core);
        named = cws_gpu_range_at_locked(&gpu->ranges, at)->named > 0;
        cws_gpu_unlock(&gpu->core);
    }
}

/* What one thread frees, another's launch waits for, because a word that nobody reads names it: both get what they ask
 * for. */
static void test_a_stray_word_waits_for_what_is_freed(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, false);
    struct waiter real = {.f = f}, stray = {.f = f};
    struct cws_gpu_stats stats;
    pthread_t first, second;
    uint64_t bytes = 512, span;
    unsigned in_use = 0;
    CUdeviceptr again;
    bind_all(f);
    standin_hold(f->stream);
    for (;; in_use++) {
        void *params[] = {&f->scratch, &f->at[in_use], &bytes};
        span = (tensor_bytes(in_use) + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
        cws_gpu_stats_get(f->gpu, &stats);
        if (stats.used_bytes + span > 34 * MIB)
            break;
        assert_int_equal(launch(f, "sum", &f->at[in_use], 1, params), 0);
    }
    assert_in_range(in_use, 4, TENSORS - 2);
    real.named = f->at[in_use];
    stray.named = f->at[TENSORS - 1];
    assert_int_equal(driver.stream_create(&real.stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(driver.stream_create(&stray.stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(pthread_create(&first, NULL, use_and_end, &real), 0);
    wait_until_named(f->gpu, real.named);
    assert_int_equal(pthread_create(&second, NULL, use_and_end, &stray), 0);
    wait_until_named(f->gpu, stray.named);
    assert_int_equal(cws_gpu_free(f->gpu, f->at[TENSORS - 1], f->stream, true), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(TENSORS - 1), f->stream, &again), 0);
    assert_int_not_equal(again, f->at[TENSORS - 1]); /* somebody still names that */
    /* what the loader looks for memory for */
    assert_int_equal(cws_gpu_free(f->gpu, f->at[in_use], f->stream, true), 0);
    standin_let_go(f->stream);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    assert_int_equal(real.result, 0);
    assert_int_equal(stray.result, 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    assert_int_equal(cws_gpu_free(f->gpu, again, f->stream, true), 0);
    for (unsigned i = 0; i < TENSORS - 1; i++)
        if (i != in_use)
            assert_int_equal(cws_gpu_free(f->gpu, f->at[i], f->stream, true), 0);
    cws_gpu_stream_gone(f->gpu, real.stream);
    cws_gpu_stream_gone(f->gpu, stray.stream);
    assert_int_equal(driver.stream_destroy(real.stream), 0);
    assert_int_equal(driver.stream_destroy(stray.stream), 0);
    close_gpu(f);
}

/* --- strict ------------------------------------------------------------------------------------------- */

/* Nothing stays mapped behind a use. A forked child, which has no loader, is refused at once, also while a use is
 * open. */
static void test_strict(void **state)
{
    (void)state;
    strict = true;
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, true);
    strict = false;
    struct cws_gpu_stats stats;
    struct cws_gpu_use use, refused;
    int status;
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++) {
        expect_right(f, i);
        cws_gpu_stats_get(f->gpu, &stats);
        assert_int_equal(stats.decoded_bytes, 0);
    }
    assert_int_equal(stats.loads, TENSORS);
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &f->at[0], 1, &use), 0);
    pid_t child = fork();
    if (child == 0) {
        alarm(HANG_SECONDS);
        cws_gpu_fork_child(f->gpu);
        _exit(cws_gpu_begin(f->gpu, f->stream, &f->at[1], 1, &refused) == CUDA_ERROR_NOT_INITIALIZED ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    cws_gpu_end(f->gpu, &use, true);
    free_all(f);
    close_gpu(f);
}

static void *let_go_soon(void *stream)
{
    usleep(50000);
    standin_let_go(stream);
    return NULL;
}

/* A use inside of another one goes to another stream, and the outer one queues nothing: the inner one is waited for
 * before its weight is unmapped. */
static void test_strict_waits_for_a_use_inside_a_use(void **state)
{
    (void)state;
    strict = true;
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, true);
    strict = false;
    struct cws_gpu_use outer, inner;
    CUstream stream;
    CUfunction function;
    pthread_t thread;
    uint64_t bytes = tensor_bytes(1), sum = 0;
    void *params[] = {&f->scratch, &f->at[1], &bytes};
    assert_int_equal(driver.stream_create(&stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(driver.module_function(&function, f->kernels, "sum"), 0);
    bind_all(f);
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &f->at[0], 1, &outer), 0);
    standin_hold(stream);
    assert_int_equal(cws_gpu_begin(f->gpu, stream, &f->at[1], 1, &inner), 0);
    assert_int_equal(driver.launch(function, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, let_go_soon, stream), 0);
    cws_gpu_end(f->gpu, &inner, true);
    cws_gpu_end(f->gpu, &outer, false);
    pthread_join(thread, NULL);
    assert_int_equal(driver.stream_sync(stream), 0);
    assert_int_equal(driver.copy_out(&sum, f->scratch, 8), 0);
    assert_int_equal(sum, plain_sum(content(1), bytes));
    free_all(f);
    cws_gpu_stream_gone(f->gpu, stream);
    assert_int_equal(driver.stream_destroy(stream), 0);
    close_gpu(f);
}

/* --- pinned ------------------------------------------------------------------------------------------- */

/* Kernels reach it by pointers that nobody sees: a copy into it that could bind it does not take its memory away. */
static void test_pinned_memory_stays_mapped(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, true);
    const struct cws_tensor_info *t = cws_store_tensor(store, 0);
    CUfunction function;
    CUdeviceptr at;
    uint64_t bytes = tensor_bytes(0), sum = 0;
    uint32_t value = 3;
    void *fill[] = {&at, &bytes, &value}, *look[] = {&f->scratch, &at, &bytes};
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &at), 0);
    assert_int_equal(launch(f, "fill", &at, 1, fill), 0);
    cws_gpu_pin(f->gpu, at);
    assert_false(cws_gpu_bind(f->gpu, at, bytes, f->stream, store, t->begin));
    assert_int_equal(driver.module_function(&function, f->kernels, "sum"), 0);
    assert_int_equal(driver.launch(function, 1, 1, 1, 1, 1, 1, 0, f->stream, look, NULL), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    assert_int_equal(driver.copy_out(&sum, f->scratch, 8), 0);
    assert_int_equal(sum, value * bytes);
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    /* the next one has the same memory, and is not pinned */
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &at), 0);
    assert_true(cws_gpu_bind(f->gpu, at, bytes, f->stream, store, t->begin));
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    close_gpu(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strict),
        cmocka_unit_test(test_strict_waits_for_a_use_inside_a_use),
        cmocka_unit_test(test_pinned_memory_stays_mapped),
        cmocka_unit_test(test_own_streams_are_told_apart),
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_a_capture_is_left_alone),
        cmocka_unit_test(test_a_freed_set_is_forgotten),
        cmocka_unit_test(test_a_use_inside_a_use),
        cmocka_unit_test(test_two_that_hold),
        cmocka_unit_test(test_small_allocations_are_counted_before),
        cmocka_unit_test(test_what_grew_by_itself_is_made_up_for),
        cmocka_unit_test(test_what_a_pool_does_not_use_is_given_back),
        cmocka_unit_test(test_a_drop_waits_for_no_load),
        cmocka_unit_test(test_a_stray_word_names_what_goes),
        cmocka_unit_test(test_a_stray_word_waits_for_what_is_freed),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
