/* Description: small ordered allocations under the preloaded library: what a stream frees it gets again without the
 * driver, whole and by nobody else; other streams, captures and plain frees do not; and all of it goes back when the
 * pool is trimmed or the stream ends. */
#include "cuda_shim_fixture.h"

#include <pthread.h>

enum { BLOCKS = 154 };
static CUstream stream;
static unsigned long (*calls)(const char *call);

static unsigned long allocations(void) { return calls("cuMemAllocAsync") + calls("cuMemAllocAsync_ptsz"); }
static unsigned long frees(void) { return calls("cuMemFreeAsync") + calls("cuMemFreeAsync_ptsz"); }

/* Up to just below the least size of a range. */
static size_t size_of(unsigned i)
{
    if (i < 130)
        return i < 40 ? 1 + 97 * i : (size_t)i * i * 11;
    size_t edge = (size_t)4096 << (i - 130) / 3;
    return edge < MIB ? edge - 1 + (i - 130) % 3 : MIB - 1;
}

static uint64_t pool_bytes(int attribute)
{
    CUmemoryPool pool;
    uint64_t bytes = 0;
    CUresult (*get)(CUmemoryPool, int, void *) = (CUresult(*)(CUmemoryPool, int, void *))dlsym(driver_handle,
                                                                                               "cuMemPoolGetAttribute");
    OK(cu.cuDeviceGetDefaultMemPool(&pool, 0));
    OK(get(pool, attribute, &bytes));
    return bytes;
}

static void trim(void)
{
    CUmemoryPool pool;
    CUresult (*trim_to)(CUmemoryPool, size_t) = (CUresult(*)(CUmemoryPool, size_t))dlsym(driver_handle,
                                                                                         "cuMemPoolTrimTo");
    OK(cu.cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cu.cuStreamSynchronize(stream));
    OK(trim_to(pool, 0));
}

static void alloc_all(CUdeviceptr *at, unsigned count, CUstream on)
{
    for (unsigned i = 0; i < count; i++)
        OK(cu.cuMemAllocAsync(&at[i], size_of(i), on));
}

/* Each has bytes of its own, all of those that were asked for. */
static void check_all(const CUdeviceptr *at, unsigned count, CUstream on)
{
    uint8_t *back = malloc(MIB);
    assert_non_null(back);
    for (unsigned i = 0; i < count; i++)
        OK(cu.cuMemsetD8Async(at[i], (unsigned char)(i * 7 + 1), size_of(i), on));
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(at[i] % 256, 0);
        OK(cu.cuMemcpyDtoHAsync_v2(back, at[i], size_of(i), on));
        OK(cu.cuStreamSynchronize(on));
        for (size_t k = 0; k<size_of(i); k += size_of(i)> 4096 ? 509 : 1)
            assert_int_equal(back[k], (unsigned char)(i * 7 + 1));
        assert_int_equal(back[size_of(i) - 1], (unsigned char)(i * 7 + 1));
    }
    free(back);
}

static void free_all(const CUdeviceptr *at, unsigned count, CUstream on)
{
    for (unsigned i = 0; i < count; i++)
        OK(cu.cuMemFreeAsync(at[i], on));
}

static void what_a_stream_frees_it_gets_again(void **state)
{
    (void)state;
    static CUdeviceptr at[BLOCKS];
    enum { FEW = 60 }; /* what is kept of them is little enough to be kept whole */
    alloc_all(at, FEW, stream);
    check_all(at, FEW, stream);
    free_all(at, FEW, stream);
    unsigned long allocated = allocations(), freed = frees();
    for (unsigned round = 0; round < 5; round++) {
        alloc_all(at, FEW, stream);
        check_all(at, FEW, stream);
        free_all(at, FEW, stream);
    }
    assert_int_equal(allocations(), allocated);
    assert_int_equal(frees(), freed);
    for (unsigned round = 0; round < 3; round++) { /* more than is kept: some of them */
        alloc_all(at, BLOCKS, stream);
        check_all(at, BLOCKS, stream);
        free_all(at, BLOCKS, stream);
    }
    assert_true(frees() > freed);
    assert_in_range(allocations() - allocated, BLOCKS - FEW, 3 * BLOCKS - 4 * FEW);
    OK(cu.cuStreamSynchronize(stream));
    assert_true(pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT) <= 9 * MIB);
    trim();
    assert_int_equal(pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0);
    assert_int_equal(pool_bytes(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), 0);
}

static void nobody_else_gets_it(void **state)
{
    (void)state;
    CUdeviceptr one, other, again;
    CUstream second;
    OK(cu.cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    OK(cu.cuMemAllocAsync(&one, 10000, stream));
    OK(cu.cuMemFreeAsync(one, stream));
    unsigned long before = allocations();
    /* another stream may still have to wait for what the first one queued */
    OK(cu.cuMemAllocAsync(&other, 10000, second));
    assert_true(other != one);
    assert_int_equal(allocations(), before + 1);
    OK(cu.cuMemAllocAsync(&again, 20000, stream)); /* nor what needs more */
    assert_true(again != one);
    OK(cu.cuMemFreeAsync(again, stream));
    OK(cu.cuMemAllocAsync(&again, 10001, stream));
    assert_true(again == one);
    OK(cu.cuMemFreeAsync(again, second)); /* it is the second one's from there on */
    OK(cu.cuMemAllocAsync(&again, 10000, stream));
    assert_true(again != one);
    OK(cu.cuMemFreeAsync(again, stream));
    OK(cu.cuMemAllocAsync(&again, 10000, second));
    assert_true(again == one);
    OK(cu.cuMemFreeAsync(again, second));
    OK(cu.cuMemFreeAsync(other, second));
    uint64_t used = pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
    OK(cu.cuStreamSynchronize(second));
    OK(cu.cuStreamDestroy_v2(second));
    OK(cu.cuCtxSynchronize());
    assert_true(pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT) <= used - 2 * 10000);
    trim();
}

/* The same handle, but in each thread another stream: there it is the driver's. */
static void streams_of_threads_are_the_drivers(void **state)
{
    (void)state;
    CUdeviceptr at;
    for (unsigned i = 0; i < 3; i++) {
        unsigned long allocated = allocations(), freed = frees();
        OK(cu.cuMemAllocAsync_ptsz(&at, 5000, NULL));
        OK(cu.cuMemFreeAsync(at, CU_STREAM_PER_THREAD));
        assert_int_equal(allocations(), allocated + 1);
        assert_int_equal(frees(), freed + 1);
    }
    CUdeviceptr legacy; /* two names of one stream */
    OK(cu.cuMemAllocAsync(&at, 5000, NULL));
    OK(cu.cuMemFreeAsync(at, CU_STREAM_LEGACY));
    OK(cu.cuMemAllocAsync(&legacy, 5000, NULL));
    assert_true(legacy == at);
    OK(cu.cuMemFreeAsync(legacy, NULL));
}

static void what_is_freed_twice_is_refused(void **state)
{
    (void)state;
    CUdeviceptr at;
    OK(cu.cuMemAllocAsync(&at, 700, stream));
    OK(cu.cuMemFreeAsync(at, stream));
    assert_int_equal(cu.cuMemFreeAsync(at, stream), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.cuMemFree_v2(at), CUDA_ERROR_INVALID_VALUE);
    OK(cu.cuMemAllocAsync(&at, 700, stream));
    OK(cu.cuMemFree_v2(at));
    assert_int_not_equal(cu.cuMemFreeAsync(at, stream), CUDA_SUCCESS);
    CUdeviceptr none = 0;
    assert_int_equal(cu.cuMemAllocAsync(&none, 0, stream), CUDA_ERROR_INVALID_VALUE);
}

static void captures_have_their_own(void **state)
{
    (void)state;
    CUdeviceptr at, inside, after;
    CUgraph graph;
    OK(cu.cuMemAllocAsync(&at, 3000, stream));
    OK(cu.cuMemFreeAsync(at, stream));
    OK(cu.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cu.cuMemAllocAsync(&inside, 3000, stream));
    assert_true(inside != at);
    OK(cu.cuMemFreeAsync(inside, stream));
    OK(cu.cuStreamEndCapture(stream, &graph));
    OK(cu.cuGraphDestroy(graph));
    OK(cu.cuMemAllocAsync(&after, 3000, stream));
    assert_true(after == at);
    OK(cu.cuMemFreeAsync(after, stream));
    trim();
}

static _Atomic bool failed;
static void *in_a_thread(void *arg)
{
    CUstream own;
    unsigned seed = (unsigned)(uintptr_t)arg;
    enum { LIVE = 40 };
    CUdeviceptr at[LIVE] = {0};
    if (cu.cuCtxSetCurrent(context) || cu.cuStreamCreate(&own, CU_STREAM_NON_BLOCKING))
        failed = true;
    for (unsigned i = 0; i < 4000 && !failed; i++) {
        seed = seed * 1664525 + 1013904223;
        unsigned k = (seed >> 16) % LIVE;
        if (at[k] && cu.cuMemFreeAsync(at[k], own))
            failed = true;
        at[k] = 0;
        if (seed >> 30 && (cu.cuMemAllocAsync(&at[k], 1 + (seed >> 8) % 60000, own) ||
                           cu.cuMemsetD8Async(at[k], (unsigned char)k, 1, own)))
            failed = true;
    }
    for (unsigned k = 0; k < LIVE; k++) {
        uint8_t back = 0;
        if (at[k] && (cu.cuMemcpyDtoHAsync_v2(&back, at[k], 1, own) || cu.cuStreamSynchronize(own) || back != k ||
                      cu.cuMemFreeAsync(at[k], own)))
            failed = true;
    }
    if (cu.cuStreamSynchronize(own) || cu.cuStreamDestroy_v2(own))
        failed = true;
    return NULL;
}

static void threads_and_more_streams_than_are_remembered(void **state)
{
    (void)state;
    enum { THREADS = 8, ROUNDS = 3 };
    pthread_t threads[THREADS];
    uint64_t before = pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (uintptr_t i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, in_a_thread, (void *)(i + 1)), 0);
        for (unsigned i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
    assert_false(failed);
    assert_true(pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT) <= before);
    enum { MANY = 40 };
    CUstream many[MANY];
    CUdeviceptr at;
    for (unsigned i = 0; i < MANY; i++) {
        OK(cu.cuStreamCreate(&many[i], CU_STREAM_NON_BLOCKING));
        OK(cu.cuMemAllocAsync(&at, 40000, many[i]));
        OK(cu.cuMemFreeAsync(at, many[i]));
    }
    for (unsigned i = 0; i < MANY; i++) {
        OK(cu.cuStreamSynchronize(many[i]));
        OK(cu.cuStreamDestroy_v2(many[i]));
    }
    OK(cu.cuCtxSynchronize());
    assert_true(pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT) <= before);
}

/* Weights fill the budget, and what is kept is needed for something else: it is given back. */
static void what_is_kept_gives_way(void **state)
{
    (void)state;
    static CUdeviceptr at[16];
    for (unsigned i = 0; i < 16; i++)
        OK(cu.cuMemAllocAsync(&at[i], 500 << 10, stream));
    free_all(at, 16, stream);
    assert_true(pool_bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT) >= 7 * MIB);
    OK(cu.cuStreamSynchronize(stream));
    CUdeviceptr large = 0, budget = stat_of("budget");
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t bytes = budget / MIB * MIB; bytes > budget / 4 && result;
         bytes -= MIB) /* the largest that the budget allows */
        result = cu.cuMemAllocAsync(&large, bytes, stream);
    OK(result);
    OK(cu.cuMemsetD8Async(large, 1, MIB, stream));
    OK(cu.cuMemFreeAsync(large, stream));
    OK(cu.cuStreamSynchronize(stream));
}

static void a_context_that_ends_takes_all_with_it(void **state)
{
    (void)state;
    CUdeviceptr at, again;
    OK(cu.cuMemAllocAsync(&at, 3000, stream));
    OK(cu.cuMemAllocAsync(&again, 3000, stream));
    OK(cu.cuMemFreeAsync(at, stream));
    OK(cu.cuDevicePrimaryCtxReset_v2(0));
    OK(cu.cuDevicePrimaryCtxRetain(&context, 0));
    OK(cu.cuCtxSetCurrent(context));
    OK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    unsigned long before = allocations();
    OK(cu.cuMemAllocAsync(&at, 3000, stream));
    assert_int_equal(allocations(), before + 1);
    OK(cu.cuMemFreeAsync(at, stream));
}

static int setup(void **state)
{
    (void)state;
    CUdeviceptr first;
    fixture_open_driver();
    calls = (unsigned long (*)(const char *))dlsym(driver_handle, "standin_calls");
    OK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CUresult result = cu.cuMemAllocAsync(&first, 4096, stream);
    if (result != CUDA_SUCCESS || stat_of("budget") == ~0ull) {
        fprintf(stderr, "no manager: built without kernels for the GPU\n");
        exit(77);
    }
    OK(cu.cuMemFreeAsync(first, stream));
    trim();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_stream_frees_it_gets_again),
        cmocka_unit_test(nobody_else_gets_it),
        cmocka_unit_test(streams_of_threads_are_the_drivers),
        cmocka_unit_test(what_is_freed_twice_is_refused),
        cmocka_unit_test(captures_have_their_own),
        cmocka_unit_test(threads_and_more_streams_than_are_remembered),
        cmocka_unit_test(what_is_kept_gives_way),
        cmocka_unit_test(a_context_that_ends_takes_all_with_it),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
