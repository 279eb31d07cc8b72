/* The stand-in driver with two devices: what belongs to which device and to which context. */
#include "tests/standin/standin.h"
#include "store/base/driver.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define MIB ((size_t)1 << 20)
#define GRANULE STANDIN_GRANULE
#define OK(call) assert_int_equal(call, CUDA_SUCCESS)
#define CALL(name, ...) ((CUresult(*) __VA_ARGS__)standin_resolve(NULL, name))
static struct cws_driver cu;
static CUcontext context[2];
static CUstream stream[2]; /* one of each context */
static CUevent event[2];

static CUmemAllocationProp on_device(int device)
{
    return (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};
}

static int setup(void **state)
{
    (void)state;
    struct cws_error err;
    standin_reset(64 * MIB);
    standin_devices(2);
    int wrong = cws_driver_fill(&cu, standin_resolve, NULL, &err) || cu.init(0);
    for (int i = 0; i < 2 && !wrong; i++)
        wrong = cu.primary_retain(&context[i], i) || cu.context_set(context[i]) ||
                cu.stream_create(&stream[i], CU_STREAM_NON_BLOCKING) || cu.event_create(&event[i], CU_EVENT_DEFAULT);
    return wrong || cu.context_set(context[0]);
}

static int teardown(void **state)
{
    (void)state;
    standin_reset(0);
    return 0;
}

static unsigned char byte_at(CUdeviceptr at) { return *(volatile unsigned char *)(uintptr_t)at; }

/* Time in which what should wait would run, if it did not wait. */
static void nap(void) { nanosleep(&(struct timespec){0, 20000000}, NULL); }

static size_t free_bytes(void)
{
    size_t left, total;
    OK(cu.mem_info(&left, &total));
    assert_int_equal(total, 64 * MIB);
    return left;
}

/* ---- Devices and contexts. */
static int device_count(void)
{
    int count = 0;
    OK(CALL("cuDeviceGetCount", (int *))(&count));
    return count;
}

static void there_is_one_device_unless_more_are_asked_for(void **state)
{
    (void)state;
    CUdevice device = -1;
    assert_int_equal(device_count(), 2);
    OK(cu.device_get(&device, 1));
    assert_int_equal(device, 1);
    assert_int_equal(cu.device_get(&device, 2), CUDA_ERROR_INVALID_DEVICE);
    assert_int_equal(cu.device_get(&device, -1), CUDA_ERROR_INVALID_DEVICE);
    standin_reset(64 * MIB); /* which forgets it */
    OK(cu.init(0));
    assert_int_equal(device_count(), 1);
    assert_int_equal(cu.device_get(&device, 1), CUDA_ERROR_INVALID_DEVICE);
    assert_int_equal(cu.primary_retain(&context[1], 1), CUDA_ERROR_INVALID_DEVICE);
    standin_reset(64 * MIB);
    setenv("STANDIN_DEVICES", "2", 1);
    OK(cu.init(0));
    unsetenv("STANDIN_DEVICES");
    assert_int_equal(device_count(), 2);
}

static void devices_tell_themselves_apart(void **state)
{
    (void)state;
    unsigned char uuid[2][16];
    for (int i = 0; i < 2; i++) {
        size_t bytes = 0;
        OK(cu.device_total(&bytes, i));
        assert_int_equal(bytes, 64 * MIB);
        OK(CALL("cuDeviceGetUuid_v2", (unsigned char *, CUdevice))(uuid[i], i));
    }
    assert_memory_equal(uuid[0], "standin device 0", 16);
    assert_memory_equal(uuid[1], "standin device 1", 16);
    size_t bytes;
    int value;
    assert_int_equal(cu.device_total(&bytes, 2), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.device_attribute(&value, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 2),
                     CUDA_ERROR_INVALID_DEVICE);
}

static void *current_of_a_thread(void *arg)
{
    CUcontext *out = arg;
    cu.context_get(&out[0]);
    cu.context_set(context[1]);
    cu.context_get(&out[1]);
    return NULL;
}

static void a_thread_has_a_context_of_a_device(void **state)
{
    (void)state;
    CUdevice device = -1;
    CUcontext now, others[2] = {context[0], NULL};
    pthread_t thread;
    assert_ptr_not_equal(context[0], context[1]);
    for (int i = 1; i >= 0; i--) {
        OK(cu.context_set(context[i]));
        OK(cu.context_device(&device));
        assert_int_equal(device, i);
    }
    OK(CALL("cuCtxPushCurrent_v2", (CUcontext))(context[1]));
    OK(cu.context_device(&device));
    assert_int_equal(device, 1);
    OK(CALL("cuCtxPopCurrent_v2", (CUcontext *))(&now));
    assert_ptr_equal(now, context[1]);
    assert_int_equal(pthread_create(&thread, NULL, current_of_a_thread, others), 0);
    pthread_join(thread, NULL);
    assert_null(others[0]);
    assert_ptr_equal(others[1], context[1]);
    OK(cu.context_get(&now));
    assert_ptr_equal(now, context[0]);
}

static int is_active(CUdevice device)
{
    unsigned flags;
    int active = -1;
    OK(CALL("cuDevicePrimaryCtxGetState", (CUdevice, unsigned *, int *))(device, &flags, &active));
    return active;
}

/* What was recorded and waited for across the two is done, or goes on. */
static void the_end_of_one_context_is_not_the_others(void **state)
{
    (void)state;
    CUcontext again, now;
    CUdeviceptr at[2];
    for (int i = 0; i < 2; i++) {
        OK(cu.context_set(context[i]));
        OK(cu.mem_alloc(&at[i], MIB));
    }
    standin_hold(stream[0]);
    OK(cu.stream_wait(stream[0], event[1], 0));
    OK(cu.event_record(event[1], stream[1]));
    OK(cu.stream_wait(stream[0], event[1], 0));
    OK(cu.set8_async(at[0], 7, 8, stream[0]));
    OK(CALL("cuCtxPushCurrent_v2", (CUcontext))(context[0]));
    OK(cu.primary_retain(&again, 1));
    assert_ptr_equal(again, context[1]);
    OK(cu.primary_release(1));
    assert_int_equal(is_active(1), 1);
    OK(cu.primary_release(1));
    assert_int_equal(is_active(1), 0);
    assert_int_equal(is_active(0), 1);
    assert_int_equal(cu.primary_release(1), CUDA_ERROR_INVALID_CONTEXT);
    assert_int_equal(cu.stream_query(stream[1]), CUDA_ERROR_INVALID_HANDLE);
    assert_int_equal(cu.event_query(event[1]), CUDA_ERROR_INVALID_HANDLE);
    assert_int_equal(cu.context_set(context[1]), CUDA_ERROR_INVALID_CONTEXT);
    standin_let_go(stream[0]);
    OK(cu.stream_sync(stream[0]));
    assert_int_equal(byte_at(at[0] + 7), 7);
    assert_int_equal(standin_device_used(), GRANULE); /* that of the first */
    OK(CALL("cuCtxPopCurrent_v2", (CUcontext *))(&now));
    OK(cu.context_get(&now));
    assert_null(now); /* the one below has ended */
    OK(cu.primary_retain(&again, 1));
    OK(cu.context_set(again));
    assert_int_equal(free_bytes(), 64 * MIB);
    OK(cu.context_set(context[0]));
    assert_int_equal(free_bytes(), 62 * MIB);
}

/* ---- Streams. */
static void expect_context(CUstream handle, CUcontext expected)
{
    CUcontext found = NULL;
    OK(cu.stream_context(handle, &found));
    assert_ptr_equal(found, expected);
}

static void a_stream_knows_its_context(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        OK(cu.context_set(context[i]));
        expect_context(stream[0], context[0]);
        expect_context(stream[1], context[1]);
        expect_context(NULL, context[i]);
        expect_context(CU_STREAM_LEGACY, context[i]);
        expect_context(CU_STREAM_PER_THREAD, context[i]);
    }
    for (int i = 0; i < 2; i++) { /* a handle works wherever the thread is */
        OK(cu.context_set(context[!i]));
        OK(cu.stream_query(stream[i]));
        OK(cu.stream_sync(stream[i]));
    }
}

/* Whether work on this stream of the first context is seen there, and not in the second. */
static void expect_own(CUstream handle)
{
    CUdeviceptr at;
    OK(cu.context_set(context[0]));
    OK(cu.mem_alloc(&at, 16));
    standin_hold(handle);
    OK(cu.set8_async(at, 1, 8, handle));
    OK(cu.context_set(context[1]));
    OK(cu.stream_query(handle));
    OK(cu.set8_async(at + 8, 2, 8, handle));
    OK(cu.stream_sync(handle));
    assert_int_equal(byte_at(at + 8), 2);
    assert_int_equal(byte_at(at), STANDIN_POISON);
    OK(cu.context_set(context[0]));
    assert_int_equal(cu.stream_query(handle), CUDA_ERROR_NOT_READY);
    standin_let_go(handle);
    OK(cu.stream_sync(handle));
    assert_int_equal(byte_at(at), 1);
    OK(cu.mem_free(at));
}

static void each_context_has_its_own_default_streams(void **state)
{
    (void)state;
    expect_own(NULL);
    expect_own(CU_STREAM_LEGACY);
    expect_own(CU_STREAM_PER_THREAD);
}

static void a_legacy_stream_orders_its_context_only(void **state)
{
    (void)state;
    CUstream blocking[2];
    CUdeviceptr at;
    OK(cu.mem_alloc(&at, 64));
    for (int i = 0; i < 2; i++) {
        OK(cu.context_set(context[i]));
        OK(cu.stream_create(&blocking[i], CU_STREAM_DEFAULT));
    }
    OK(cu.context_set(context[0]));
    standin_hold(NULL);
    OK(cu.set8_async(at, 1, 8, NULL));
    OK(cu.set8_async(at + 8, 1, 8, blocking[0]));
    OK(cu.set8_async(at + 16, 1, 8, blocking[1]));
    OK(cu.stream_sync(blocking[1]));
    assert_int_equal(byte_at(at + 16), 1);
    assert_int_equal(cu.stream_query(blocking[0]), CUDA_ERROR_NOT_READY);
    OK(cu.context_set(context[1]));
    OK(cu.stream_query(NULL));
    OK(cu.context_sync()); /* waits for none of the first */
    OK(cu.context_set(context[0]));
    nap();
    assert_int_equal(byte_at(at + 8), STANDIN_POISON);
    standin_let_go(NULL);
    OK(cu.context_sync());
    assert_int_equal(byte_at(at + 8), 1);
}

/* ---- Events. */
static void an_event_is_recorded_in_its_own_context(void **state)
{
    (void)state;
    for (int now = 0; now < 2; now++) { /* what is current names the default streams and nothing else */
        OK(cu.context_set(context[now]));
        for (int i = 0; i < 2; i++) {
            const CUstream defaults[] = {NULL, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD};
            OK(cu.event_record(event[i], stream[i]));
            assert_int_equal(cu.event_record(event[i], stream[!i]), CUDA_ERROR_INVALID_HANDLE);
            for (int k = 0; k < 3; k++)
                assert_int_equal(cu.event_record(event[i], defaults[k]),
                                 now == i ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE);
        }
    }
}

static void events_are_waited_for_and_asked_anywhere(void **state)
{
    (void)state;
    CUdeviceptr at;
    OK(cu.mem_alloc(&at, 16));
    standin_hold(stream[1]);
    OK(cu.set8_async(at, 3, 8, stream[1]));
    OK(cu.event_record(event[1], stream[1])); /* the first context is current */
    assert_int_equal(cu.event_query(event[1]), CUDA_ERROR_NOT_READY);
    OK(cu.stream_wait(stream[0], event[1], 0));
    OK(cu.copy_async(at + 8, at, 8, stream[0]));
    nap();
    assert_int_equal(cu.stream_query(stream[0]), CUDA_ERROR_NOT_READY);
    assert_int_equal(byte_at(at + 8), STANDIN_POISON);
    standin_let_go(stream[1]);
    OK(cu.event_sync(event[1]));
    OK(cu.event_query(event[1]));
    OK(cu.stream_sync(stream[0]));
    assert_int_equal(byte_at(at + 8), 3);
}

static void time_is_told_within_a_device(void **state)
{
    (void)state;
    CUevent other;
    float ms;
    OK(cu.event_create(&other, CU_EVENT_DEFAULT));
    OK(cu.event_record(other, stream[0]));
    for (int i = 0; i < 2; i++) {
        OK(cu.event_record(event[i], stream[i]));
        OK(cu.event_sync(event[i]));
    }
    OK(cu.context_set(context[1]));
    OK(cu.event_elapsed(&ms, other, event[0]));
    assert_int_equal(cu.event_elapsed(&ms, other, event[1]), CUDA_ERROR_INVALID_HANDLE);
}

/* ---- More than one context of a device. */
static void contexts_of_one_device_share_memory_only(void **state)
{
    (void)state;
    CUcontext made;
    CUstream own;
    CUevent its;
    CUdeviceptr at;
    OK(CALL("cuCtxCreate_v2", (CUcontext *, unsigned, CUdevice))(&made, 0, 1));
    OK(cu.stream_create(&own, CU_STREAM_NON_BLOCKING)); /* it is current */
    OK(cu.event_create(&its, CU_EVENT_DEFAULT));
    assert_int_equal(cu.event_record(its, stream[1]), CUDA_ERROR_INVALID_HANDLE);
    assert_int_equal(cu.event_record(event[1], own), CUDA_ERROR_INVALID_HANDLE);
    OK(cu.event_record(its, own));
    OK(cu.event_record(its, NULL));
    OK(cu.mem_alloc(&at, MIB));
    OK(cu.event_record(event[1], stream[1]));
    OK(cu.context_sync());
    OK(cu.event_sync(event[1]));
    float ms;
    OK(cu.event_elapsed(&ms, its, event[1]));
    OK(CALL("cuCtxDestroy_v2", (CUcontext))(made));
    assert_int_equal(cu.stream_query(own), CUDA_ERROR_INVALID_HANDLE);
    assert_int_equal(cu.event_query(its), CUDA_ERROR_INVALID_HANDLE);
    OK(cu.stream_query(stream[1]));
    CUcontext now;
    OK(cu.context_get(&now));
    assert_ptr_equal(now, context[0]);
    OK(cu.context_set(context[1]));
    OK(cu.set8_async(at, 0, MIB, NULL));
    OK(cu.mem_free(at));
    assert_int_equal(free_bytes(), 64 * MIB);
}

/* ---- Memory. */
static void memory_is_taken_from_its_device(void **state)
{
    (void)state;
    CUmemGenericAllocationHandle all, more;
    CUdeviceptr at, pooled;
    const CUmemAllocationProp prop[] = {on_device(0), on_device(1), on_device(2)};
    OK(cu.create(&all, 64 * MIB, &prop[0], 0));
    assert_int_equal(free_bytes(), 0);
    assert_int_equal(cu.create(&more, GRANULE, &prop[0], 0), CUDA_ERROR_OUT_OF_MEMORY);
    assert_int_equal(cu.create(&more, GRANULE, &prop[2], 0), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.mem_alloc(&at, 16), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cu.create(&more, GRANULE, &prop[1], 0)); /* whatever is current */
    OK(cu.mem_alloc_async(&pooled, 16, stream[1]));
    OK(cu.context_set(context[1]));
    assert_int_equal(free_bytes(), 60 * MIB);
    OK(cu.mem_alloc(&at, 3 * MIB));
    assert_int_equal(free_bytes(), 56 * MIB);
    assert_int_equal(cu.mem_alloc_async(&at, 16, stream[0]), CUDA_ERROR_OUT_OF_MEMORY);
    assert_int_equal(standin_device_used(), 72 * MIB);
    OK(cu.release(all));
    OK(cu.mem_alloc_async(&at, 16, stream[0]));
    assert_int_equal(free_bytes(), 56 * MIB);
    OK(cu.context_set(context[0]));
    assert_int_equal(free_bytes(), 62 * MIB);
}

static void pools_belong_to_a_device(void **state)
{
    (void)state;
    struct {
        int type, handle_types;
        CUmemLocation location;
        char rest[80];
    } props = {CU_MEM_ALLOCATION_TYPE_PINNED, 0, {CU_MEM_LOCATION_TYPE_DEVICE, 1}, {0}};
    CUmemoryPool pool, usual[2], now;
    CUdeviceptr at;
    uint64_t used = 0;
    for (int i = 0; i < 2; i++) {
        OK(cu.device_default_pool(&usual[i], i));
        OK(cu.device_pool(&now, i));
        assert_ptr_equal(now, usual[i]);
    }
    assert_ptr_not_equal(usual[0], usual[1]);
    OK(CALL("cuMemPoolCreate", (CUmemoryPool *, const void *))(&pool, &props));
    CUresult (*set)(CUdevice, CUmemoryPool) = CALL("cuDeviceSetMemPool", (CUdevice, CUmemoryPool));
    assert_int_equal(set(0, pool), CUDA_ERROR_INVALID_VALUE);
    OK(set(1, pool));
    OK(cu.mem_alloc_async(&at, MIB, stream[1])); /* the stream's device, not the current one */
    OK(cu.pool_get(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    assert_int_equal(used, MIB);
    OK(cu.mem_alloc_async(&at, MIB, NULL));
    OK(cu.pool_get(usual[0], CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    assert_int_equal(used, MIB);
    OK(cu.mem_alloc_pool(&at, MIB, pool, stream[0])); /* a pool is named with any stream */
    OK(cu.pool_get(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    assert_int_equal(used, 2 * MIB);
}

static void a_pointer_tells_its_device(void **state)
{
    (void)state;
    CUresult (*ask)(void *, int, CUdeviceptr) = CALL("cuPointerGetAttribute", (void *, int, CUdeviceptr));
    CUdeviceptr at[2];
    for (int i = 0; i < 2; i++) {
        OK(cu.context_set(context[i]));
        OK(cu.mem_alloc(&at[i], 16));
    }
    for (int i = 0; i < 2; i++) {
        int ordinal = -1;
        CUcontext own = NULL;
        OK(ask(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at[i]));
        OK(ask(&own, CU_POINTER_ATTRIBUTE_CONTEXT, at[i]));
        assert_int_equal(ordinal, i);
        assert_ptr_equal(own, context[i]);
    }
}

static void access_is_given_by_device(void **state)
{
    (void)state;
    const CUmemAllocationProp prop = on_device(0);
    CUmemGenericAllocationHandle handle;
    CUdeviceptr at;
    CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 2}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    OK(cu.reserve(&at, GRANULE, 0, 0, 0));
    OK(cu.create(&handle, GRANULE, &prop, 0));
    OK(cu.map(at, GRANULE, 0, handle, 0));
    assert_int_equal(cu.set_access(at, GRANULE, &access, 1), CUDA_ERROR_INVALID_DEVICE);
    assert_int_equal(cu.set8_async(at, 1, 8, stream[0]), CUDA_ERROR_INVALID_VALUE);
    for (access.location.id = 0; access.location.id < 2; access.location.id++)
        OK(cu.set_access(at, GRANULE, &access, 1));
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
    access.location.id = 1;
    OK(cu.set_access(at, GRANULE, &access, 1)); /* the first one keeps its own */
    OK(cu.set8_async(at, 1, 8, stream[0]));
    OK(cu.stream_sync(stream[0]));
    assert_int_equal(byte_at(at), 1);
    access.location.id = 0;
    OK(cu.set_access(at, GRANULE, &access, 1));
    assert_int_equal(cu.set8_async(at, 1, 8, stream[0]), CUDA_ERROR_INVALID_VALUE);
    OK(cu.unmap(at, GRANULE));
    OK(cu.unreserve(at, GRANULE));
    OK(cu.release(handle));
}

/* ---- Kernels and graphs. */
static void a_kernel_runs_in_the_context_of_its_module(void **state)
{
    (void)state;
    CUmodule module[2];
    CUfunction nothing[2];
    for (int i = 0; i < 2; i++) {
        OK(cu.context_set(context[i]));
        OK(cu.module_load(&module[i], &standin_test_image));
        OK(cu.module_function(&nothing[i], module[i], "nothing"));
    }
    for (int i = 0; i < 2; i++) {
        OK(cu.launch(nothing[i], 1, 1, 1, 1, 1, 1, 0, stream[i], NULL, NULL));
        assert_int_equal(cu.launch(nothing[i], 1, 1, 1, 1, 1, 1, 0, stream[!i], NULL, NULL), CUDA_ERROR_INVALID_HANDLE);
    }
    OK(cu.launch(nothing[1], 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL)); /* the second is current */
    assert_int_equal(cu.launch(nothing[0], 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_HANDLE);
    OK(cu.context_set(context[0]));
    OK(cu.primary_release(1)); /* and with it its module */
    OK(cu.launch(nothing[0], 1, 1, 1, 1, 1, 1, 0, stream[0], NULL, NULL));
    assert_int_equal(cu.launch(nothing[1], 1, 1, 1, 1, 1, 1, 0, stream[0], NULL, NULL), CUDA_ERROR_INVALID_HANDLE);
}

/* A library belongs to no context: its kernels run on any stream. */
static void a_kernel_of_a_library_runs_anywhere(void **state)
{
    (void)state;
    void *library;
    CUkernel kernel;
    OK(CALL("cuLibraryLoadData", (void **, const void *, int *, void **, unsigned, int *, void **, unsigned))(
        &library, &standin_test_image, NULL, NULL, 0, NULL, NULL, 0));
    OK(CALL("cuLibraryGetKernel", (CUkernel *, void *, const char *))(&kernel, library, "nothing"));
    for (int i = 0; i < 2; i++)
        OK(cu.launch((CUfunction)(void *)kernel, 1, 1, 1, 1, 1, 1, 0, stream[i], NULL, NULL));
    OK(cu.primary_release(1));
    OK(cu.launch((CUfunction)(void *)kernel, 1, 1, 1, 1, 1, 1, 0, stream[0], NULL, NULL));
    OK(cu.context_sync());
}

static void a_capture_concerns_the_legacy_stream_of_its_context(void **state)
{
    (void)state;
    CUstream blocking;
    CUdeviceptr at, scratch;
    CUgraph graph;
    CUgraphExec exec;
    uint64_t used = 0;
    OK(cu.mem_alloc(&at, 16));
    OK(cu.context_set(context[1]));
    OK(cu.stream_create(&blocking, CU_STREAM_DEFAULT));
    OK(CALL("cuStreamBeginCapture_v2", (CUstream, int))(blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cu.context_set(context[0]));
    OK(cu.set8_async(at, 1, 8, NULL));
    OK(cu.mem_alloc_async(&scratch, 100, blocking)); /* of the second device */
    OK(cu.set8_async(scratch, 1, 8, blocking));
    OK(CALL("cuStreamEndCapture", (CUstream, CUgraph *))(blocking, &graph));
    OK(cu.device_graph_memory(1, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &used));
    assert_int_equal(used, 0); /* until it is launched */
    OK(cu.device_graph_memory(0, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &used));
    assert_int_equal(used, 0);
    OK(CALL("cuGraphInstantiateWithFlags", (CUgraphExec *, CUgraph, unsigned long long))(&exec, graph, 0));
    OK(CALL("cuGraphLaunch", (CUgraphExec, CUstream))(exec, blocking));
    OK(cu.stream_sync(blocking));
    OK(cu.device_graph_memory(1, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &used));
    assert_int_equal(used, GRANULE);
    assert_int_equal(byte_at(scratch), 1);
    OK(CALL("cuStreamBeginCapture_v2", (CUstream, int))(stream[0], CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cu.primary_release(1)); /* its graphs end, not this capture */
    assert_int_equal(CALL("cuGraphDestroy", (CUgraph))(graph), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(CALL("cuGraphExecDestroy", (CUgraphExec))(exec), CUDA_ERROR_INVALID_VALUE);
    OK(CALL("cuStreamEndCapture", (CUstream, CUgraph *))(stream[0], &graph));
    OK(CALL("cuGraphDestroy", (CUgraph))(graph));
}

static void what_is_left_of_both_is_told(void **state)
{
    (void)state;
    char text[256];
    CUdeviceptr at;
    OK(cu.context_set(context[1]));
    OK(cu.mem_alloc(&at, 16));
    OK(cu.mem_alloc_async(&at, 16, NULL));
    assert_int_equal(standin_leak_text(text, sizeof text), 8);
    assert_string_equal(text, "allocations 2, streams 2, events 2, contexts 2");
    OK(cu.primary_release(1));
    standin_leak_text(text, sizeof text);
    assert_string_equal(text, "streams 1, events 1, contexts 1");
    OK(cu.primary_release(0));
    assert_int_equal(standin_leak_count(), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(there_is_one_device_unless_more_are_asked_for),
        T(devices_tell_themselves_apart),
        T(a_thread_has_a_context_of_a_device),
        T(the_end_of_one_context_is_not_the_others),
        T(a_stream_knows_its_context),
        T(each_context_has_its_own_default_streams),
        T(a_legacy_stream_orders_its_context_only),
        T(an_event_is_recorded_in_its_own_context),
        T(events_are_waited_for_and_asked_anywhere),
        T(time_is_told_within_a_device),
        T(contexts_of_one_device_share_memory_only),
        T(memory_is_taken_from_its_device),
        T(pools_belong_to_a_device),
        T(a_pointer_tells_its_device),
        T(access_is_given_by_device),
        T(a_kernel_runs_in_the_context_of_its_module),
        T(a_kernel_of_a_library_runs_anywhere),
        T(a_capture_concerns_the_legacy_stream_of_its_context),
        T(what_is_left_of_both_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
