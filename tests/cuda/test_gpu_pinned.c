/* Description: pinned host memory is never more than CODEC_HOST_BUDGET, whatever is paged and however small it is, and
 * one that is too small gets a line. Every allocation and release of the manager is counted. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"
#include "tests/support/sanitized.h"
#include "store/base/memory_limit.h"

#include <pthread.h>

/* --- what is pinned ---------------------------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    struct {
        void *at;
        size_t bytes;
    } held[4096];
    size_t count, bytes, peak, calls;
} pinned = {.lock = PTHREAD_MUTEX_INITIALIZER};
static CUresult (*host_alloc)(void **memory, size_t bytes, unsigned flags);
static CUresult (*host_free)(void *memory);

static CUresult counting_alloc(void **memory, size_t bytes, unsigned flags)
{
    CUresult result = host_alloc(memory, bytes, flags);
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&pinned.lock);
    if (pinned.count == sizeof pinned.held / sizeof *pinned.held)
        abort();
    pinned.held[pinned.count].at = *memory;
    pinned.held[pinned.count++].bytes = bytes;
    pinned.bytes += bytes;
    pinned.peak = pinned.bytes > pinned.peak ? pinned.bytes : pinned.peak;
    pinned.calls++;
    pthread_mutex_unlock(&pinned.lock);
    return result;
}

static CUresult counting_free(void *memory)
{
    pthread_mutex_lock(&pinned.lock);
    for (size_t i = 0; i < pinned.count; i++) {
        if (pinned.held[i].at != memory)
            continue;
        pinned.bytes -= pinned.held[i].bytes;
        pinned.held[i] = pinned.held[--pinned.count];
        break;
    }
    pthread_mutex_unlock(&pinned.lock);
    return host_free(memory);
}

static struct fixture *open_counted(size_t host, uint64_t budget, bool prefetch)
{
    start_driver(256 * MIB, 1);
    host_alloc = driver.host_alloc;
    host_free = driver.host_free;
    driver.host_alloc = counting_alloc;
    driver.host_free = counting_free;
    pinned.peak = pinned.calls = 0;
    host_budget = host;
    struct fixture *f = open_gpu_on(0, budget, prefetch);
    host_budget = 64 * MIB;
    return f;
}

static void close_counted(struct fixture *f, size_t host)
{
    free_all(f);
    close_gpu(f);
    assert_int_equal(pinned.bytes, 0);
    if (pinned.peak > host)
        fail_msg("%zu KiB were pinned; the budget is %zu KiB", pinned.peak >> 10, host >> 10);
}

/* --- what pins ------------------------------------------------------------------------------------------- */

static const size_t budgets[] = {4 * MIB, 5 * MIB, 9 * MIB, 20 * MIB, 64 * MIB};
enum { BUDGETS = sizeof budgets / sizeof *budgets };

/* Weights come and go: parts are read again, of several loads at a time. */
static void test_weights(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 2 * BUDGETS; k += 1 + 2 * SANITIZED) {
        struct fixture *f = open_counted(budgets[k / 2], 24 * MIB, k % 2);
        bind_all(f);
        for (unsigned i = 0; i < 4 * TENSORS; i++)
            expect_right(f, i % TENSORS);
        assert_true(pinned.peak > MIB);
        close_counted(f, budgets[k / 2]);
    }
}

/* Memory that comes and goes is pinned once: rounds later nothing is pinned any more. */
static void test_memory_is_used_again(void **state)
{
    (void)state;
    struct fixture *f = open_counted(9 * MIB, 24 * MIB, false);
    bind_all(f);
    for (unsigned i = 0; i < 3 * TENSORS; i++)
        expect_right(f, i % TENSORS);
    size_t before = pinned.calls;
    uint64_t loads;
    struct cws_gpu_stats stats;
    cws_gpu_stats_get(f->gpu, &stats);
    loads = stats.loads;
    for (unsigned i = 0; i < 4 * TENSORS; i++)
        expect_right(f, i % TENSORS);
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.loads >= loads + TENSORS);
    if (pinned.calls - before > TENSORS)
        fail_msg("%zu allocations for %zu loads", pinned.calls - before, (size_t)(stats.loads - loads));
    close_counted(f, 9 * MIB);
}

/* Launches that name several weights at a time, in two orders: what one load has read another one waits for. */
static void test_many_at_a_time(void **state)
{
    (void)state;
    struct fixture *f = open_counted(4 * MIB, 40 * MIB, true);
    bind_all(f);
    for (unsigned round = 0; round < 6; round++) {
        for (unsigned at = 0; at + 4 <= TENSORS; at += 4) {
            CUdeviceptr named[4], to = f->scratch;
            uint64_t bytes = 4096;
            for (unsigned i = 0; i < 4; i++)
                named[i] = f->at[round % 2 ? at + 3 - i : at + i];
            void *params[] = {&to, &named[0], &bytes};
            assert_int_equal(launch(f, "sum", named, 4, params), 0);
        }
    }
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    close_counted(f, 4 * MIB);
}

/* Two allocations of the same weights in two orders, wanted by one launch: what one load needs next is what the other one
 * has asked for ahead. Neither waits for the other for ever. */
static void test_two_orders(void **state)
{
    (void)state;
    struct fixture *f = open_counted(4 * MIB, 36 * MIB, false);
    CUdeviceptr both[2];
    uint64_t bytes = 12 * MIB, sum, expected = 0;
    for (unsigned k = 0; k < 2; k++) {
        assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &both[k]), 0);
        for (unsigned i = 0; i < 4; i++) {
            const struct cws_tensor_info *t = cws_store_tensor(store, 3 * (k ? 3 - i : i)); /* of 3 MiB each */
            assert_true(cws_gpu_bind(f->gpu, both[k] + i * 3 * MIB, 3 * MIB, f->stream, store, t->begin));
        }
    }
    for (unsigned i = 0; i < 4; i++)
        expected += plain_sum(content(3 * i), 3 * MIB);
    bind_all(f);
    for (unsigned round = 0; round < 4; round++) {
        CUdeviceptr to = f->scratch;
        void *params[] = {&to, &both[0], &bytes};
        assert_int_equal(launch(f, "sum", both, 2, params), 0);
        for (unsigned k = 0; k < 2; k++) {
            assert_int_equal(sum_at(f, both[k], bytes, &sum), 0);
            assert_int_equal(sum, expected);
        }
        for (unsigned i = 0; i < TENSORS; i++) /* which drops both */
            expect_right(f, i);
    }
    for (unsigned k = 0; k < 2; k++)
        assert_int_equal(cws_gpu_free(f->gpu, both[k], f->stream, true), 0);
    close_counted(f, 4 * MIB);
}

/* A model that is loaded twice, from a file that was opened twice: its bytes are in host memory once. Those of a copy of
 * the file are not. */
static void bind_again(const char *path, bool shared)
{
    struct cws_store *other;
    struct cws_error err = {0};
    assert_int_equal(cws_store_open(path, CWS_IO_AUTO, &other, &err), 0);
    struct fixture *f = open_counted(64 * MIB, 40 * MIB, true);
    CUdeviceptr again[TENSORS];
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    size_t once = pinned.peak;
    for (unsigned i = 0; i < TENSORS; i++) {
        const struct cws_tensor_info *t = cws_store_tensor(other, i);
        assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &again[i]), 0);
        assert_true(cws_gpu_bind(f->gpu, again[i], tensor_bytes(i), f->stream, other, t->begin));
    }
    cws_store_close(other);
    for (unsigned i = 0; i < TENSORS; i++) {
        uint64_t sum;
        expect_right(f, i);
        assert_int_equal(sum_at(f, again[i], tensor_bytes(i), &sum), 0);
        assert_int_equal(sum, plain_sum(content(i), tensor_bytes(i)));
    }
    assert_int_equal(pinned.peak == once, shared);
    for (unsigned i = 0; i < TENSORS; i++)
        assert_int_equal(cws_gpu_free(f->gpu, again[i], f->stream, true), 0);
    close_counted(f, 64 * MIB);
}

static void test_opened_twice(void **state)
{
    (void)state;
    const char *copy = sample_path("copy.store");
    struct bytes file = sample_load(cws_store_path(store));
    sample_save(copy, file.data, file.size);
    free(file.data);
    bind_again(cws_store_path(store), true);
    bind_again(copy, false);
}

/* Weights that were written to are spilled as far as there is room, and what that leaves is enough for the others. */
static void test_written_weights(void **state)
{
    (void)state;
    for (unsigned k = 0; k < BUDGETS; k += 1 + 3 * SANITIZED) {
        struct fixture *f = open_counted(budgets[k], 24 * MIB, true);
        bind_all(f);
        for (unsigned i = 0; i < TENSORS; i += 4) {
            uint8_t byte = content(i)[100];
            assert_int_equal(copy_to(f, f->at[i] + 100, &byte, 1), 0);
        }
        for (unsigned i = 0; i < 3 * TENSORS; i++)
            expect_right(f, i % TENSORS);
        close_counted(f, budgets[k]);
    }
}

/* What is copied from ordinary memory is adopted as far as there is room. */
static void test_adopted(void **state)
{
    (void)state;
    for (unsigned k = 0; k < BUDGETS; k += 1 + 3 * SANITIZED) {
        adopt = true;
        struct fixture *f = open_counted(budgets[k], 24 * MIB, true);
        adopt = false;
        for (unsigned i = 0; i < TENSORS; i++) {
            const struct cws_tensor_info *t = cws_store_tensor(store, i);
            size_t bytes = tensor_bytes(i);
            assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &f->at[i]), 0);
            bool taken = i % 2 && cws_gpu_adopt_wants(f->gpu, f->at[i], bytes, f->stream, 64 * MIB) &&
                         cws_gpu_adopt(f->gpu, f->at[i], bytes, f->stream, content(i));
            if (!taken)
                assert_true(cws_gpu_bind(f->gpu, f->at[i], bytes, f->stream, store, t->begin));
        }
        for (unsigned i = 0; i < 3 * TENSORS; i++)
            expect_right(f, i % TENSORS);
        close_counted(f, budgets[k]);
    }
}

/* --- too little ---------------------------------------------------------------------------------------------- */

static void test_too_small(void **state)
{
    (void)state;
    start_driver(256 * MIB, 1);
    CUcontext context;
    struct cws_gpu *gpu;
    struct cws_error err = {0};
    assert_int_equal(driver.primary_retain(&context, 0), 0);
    assert_int_equal(driver.context_set(context), 0);
    struct cws_gpu_config config = {.driver = &driver,
                                    .budget_bytes = 64 * MIB,
                                    .host_budget_bytes = CWS_PINNED_LEAST - 1,
                                    .kernels = image_of_kernels,
                                    .say = say};
    assert_int_equal(cws_gpu_open(&config, 0, &gpu, &err), CWS_E_BUDGET);
    assert_null(gpu);
    assert_string_equal(err.message, "CODEC_HOST_BUDGET is 4095 KiB: paging to a GPU takes pinned host memory; give it "
                                     "at least 4 MiB");
    assert_int_equal(driver.primary_release(0), 0);
    expect_nothing_left();
}

/* A chunk that is larger than what is left for what comes and goes (none that is packed here is, so that is made less):
 * the launch fails, with a line that says so. */
static void test_chunk_is_too_large(void **state)
{
    (void)state;
    struct fixture *f = open_counted(4 * MIB, 64 * MIB, false);
    uint64_t sum;
    unsigned failed = 0;
    cws_gpu_lock(&f->gpu->core);
    f->gpu->sources.leave = 4096;
    cws_gpu_unlock(&f->gpu->core);
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++) {
        CUresult result = device_sum(f, i, &sum);
        failed += result == 304;
        assert_true(result == CUDA_SUCCESS || result == 304);
        if (result == CUDA_SUCCESS)
            assert_int_equal(sum, plain_sum(content(i), tensor_bytes(i)));
        else
            assert_non_null(strstr(last_line, "CODEC_HOST_BUDGET is too small: tensor \"w"));
    }
    assert_in_range(failed, TENSORS / 2, TENSORS - 1);
    close_counted(f, 4 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_memory_is_used_again),
        cmocka_unit_test(test_many_at_a_time),
        cmocka_unit_test(test_opened_twice),
        cmocka_unit_test(test_two_orders),
        cmocka_unit_test(test_written_weights),
        cmocka_unit_test(test_adopted),
        cmocka_unit_test(test_too_small),
        cmocka_unit_test(test_chunk_is_too_large),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
