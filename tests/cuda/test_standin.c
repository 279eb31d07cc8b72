/* test_standin.c - the stand-in for the driver does what tests of the manager and of the shim rely on: memory that is
 * there or faults, streams that are really asynchronous, errors where a driver has them, failures on demand, a true
 * account of what is left. */
#include "tests/standin/standin.h"
#include "store/base/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#define MIB ((size_t)1 << 20)
#define GRANULE STANDIN_GRANULE
#define OK(call) assert_int_equal(call, CUDA_SUCCESS)
static struct cws_driver cu;
static CUcontext context;
static CUmodule module; /* of the test kernels; NULL until one is used */
static const CUmemAllocationProp ON_DEVICE = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                              .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
static const CUmemAccessDesc READ_WRITE = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
static const CUmemAccessDesc READ_ONLY = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READ};

/* Calls outside the driver's table, by name. */
#define CALL(name, ...) ((CUresult(*) __VA_ARGS__)standin_resolve(NULL, name))

static int setup(void **state)
{
    (void)state;
    struct cws_error err;
    standin_reset(64 * MIB);
    module = NULL;
    if (cws_driver_fill(&cu, standin_resolve, NULL, &err) != 0)
        return 1;
    return cu.init(0) || cu.primary_retain(&context, 0) || cu.context_set(context);
}

static int teardown(void **state)
{
    (void)state;
    standin_reset(0);
    return 0;
}

static void nothing_is_left(void)
{
    char text[256];
    OK(cu.primary_release(0));
    if (standin_leak_text(text, sizeof text) != 0)
        fail_msg("left: %s", text);
}

static CUfunction kernel(const char *name)
{
    CUfunction function;
    if (!module)
        OK(cu.module_load(&module, &standin_test_image));
    OK(cu.module_function(&function, module, name));
    return function;
}

static CUresult launch(const char *name, CUstream stream, void **params)
{
    return cu.launch(kernel(name), 1, 1, 1, 32, 1, 1, 0, stream, params, NULL);
}

static CUresult fill(CUdeviceptr to, uint64_t bytes, uint32_t value, CUstream stream)
{
    return launch("fill", stream, (void *[]){&to, &bytes, &value});
}

static CUresult copy(CUdeviceptr to, CUdeviceptr from, uint64_t bytes, CUstream stream)
{
    return launch("copy", stream, (void *[]){&to, &from, &bytes});
}

/* Address with a handle mapped; *handle may be NULL: released, so that unmapping frees it. */
static CUdeviceptr mapped(size_t bytes, CUmemGenericAllocationHandle *handle)
{
    CUdeviceptr at;
    CUmemGenericAllocationHandle own;
    OK(cu.reserve(&at, bytes, 0, 0, 0));
    OK(cu.create(&own, bytes, &ON_DEVICE, 0));
    OK(cu.map(at, bytes, 0, own, 0));
    OK(cu.set_access(at, bytes, &READ_WRITE, 1));
    if (handle)
        *handle = own;
    else
        OK(cu.release(own));
    return at;
}

static void unmapped(CUdeviceptr at, size_t bytes)
{
    OK(cu.unmap(at, bytes));
    OK(cu.unreserve(at, bytes));
}

static unsigned char byte_at(CUdeviceptr at) { return *(volatile unsigned char *)(uintptr_t)at; }

/* Time in which what should wait would run, if it did not wait. No test needs it to pass. */
static void nap(void) { nanosleep(&(struct timespec){0, 20000000}, NULL); }

/* ---- Memory. */
static void fresh_memory_is_poison_never_zero(void **state)
{
    (void)state;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr at = mapped(GRANULE, &handle), plain, pooled;
    void *host;
    OK(cu.mem_alloc(&plain, 100));
    OK(cu.mem_alloc_async(&pooled, 5000, NULL));
    OK(cu.host_alloc(&host, 64, 0));
    OK(cu.context_sync());
    for (int i = 0; i < 64; i++) {
        assert_int_equal(byte_at(at + (CUdeviceptr)i * 32768), STANDIN_POISON);
        assert_int_equal(byte_at(plain + (CUdeviceptr)i), STANDIN_POISON);
        assert_int_equal(byte_at(pooled + 70 * (CUdeviceptr)i), STANDIN_POISON);
        assert_int_equal(((unsigned char *)host)[i], STANDIN_POISON);
    }
    memset((void *)(uintptr_t)plain, 0, 100); /* and again after it was used */
    OK(cu.mem_free(plain));
    OK(cu.mem_alloc(&plain, 100));
    assert_int_equal(byte_at(plain), STANDIN_POISON);
    OK(cu.mem_free(plain));
    OK(cu.mem_free(pooled));
    OK(cu.host_free(host));
    OK(cu.release(handle));
    unmapped(at, GRANULE);
    nothing_is_left();
}

static void one_handle_at_two_addresses_shows_the_same_bytes(void **state)
{
    (void)state;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr a = mapped(2 * GRANULE, &handle), b;
    OK(cu.reserve(&b, GRANULE, 0, 0, 0));
    OK(cu.map(b, GRANULE, GRANULE, handle, 0)); /* its second half */
    OK(cu.set_access(b, GRANULE, &READ_ONLY, 1));
    OK(fill(a + GRANULE, 10, 7, NULL));
    OK(cu.context_sync());
    assert_int_equal(byte_at(b + 9), 7);
    assert_int_equal(byte_at(b + 10), STANDIN_POISON);
    assert_int_equal(standin_device_used(), 2 * GRANULE);
    OK(cu.release(handle));
    OK(cu.unmap(a, 2 * GRANULE));
    assert_int_equal(standin_device_used(), 2 * GRANULE); /* one mapping still holds it */
    assert_int_equal(byte_at(b), 7);
    OK(cu.unmap(b, GRANULE));
    assert_int_equal(standin_device_used(), 0);
    OK(cu.unreserve(a, 2 * GRANULE));
    OK(cu.unreserve(b, GRANULE));
    nothing_is_left();
}

static void wrong_vmm_calls_are_refused_and_change_nothing(void **state)
{
    (void)state;
    CUmemGenericAllocationHandle handle, other;
    CUdeviceptr at = mapped(2 * GRANULE, &handle), hole;
    OK(cu.create(&other, GRANULE, &ON_DEVICE, 0));
    OK(cu.reserve(&hole, 2 * GRANULE, 0, 0, 0));
    const CUresult bad = CUDA_ERROR_INVALID_VALUE;
    assert_int_equal(cu.create(&other, GRANULE + 4096, &ON_DEVICE, 0), bad);
    assert_int_equal(cu.create(&other, 0, &ON_DEVICE, 0), bad);
    assert_int_equal(cu.reserve(&hole, GRANULE / 2, 0, 0, 0), bad);
    assert_int_equal(cu.map(at, GRANULE, 0, other, 0), bad);       /* over a mapped range */
    assert_int_equal(cu.map(hole, 2 * GRANULE, 0, other, 0), bad); /* more than the handle has */
    assert_int_equal(cu.map(hole, GRANULE, GRANULE, other, 0), bad);
    assert_int_equal(cu.map(hole + 4096, GRANULE, 0, other, 0), bad);
    assert_int_equal(cu.map(hole + 2 * GRANULE, GRANULE, 0, other, 0), bad); /* outside any reservation */
    assert_int_equal(cu.unmap(at, GRANULE), bad);                            /* a part of a mapping */
    assert_int_equal(cu.unmap(hole, GRANULE), bad);
    assert_int_equal(cu.set_access(hole, GRANULE, &READ_WRITE, 1), bad);
    assert_int_equal(cu.set_access(at, GRANULE, &READ_WRITE, 1), bad);
    assert_int_equal(cu.unreserve(at, 2 * GRANULE), bad); /* still mapped */
    assert_int_equal(cu.unreserve(hole, GRANULE), bad);
    OK(cu.release(other));
    assert_int_equal(cu.release(other), bad); /* twice */
    assert_int_equal(cu.map(hole, GRANULE, 0, other, 0), bad);
    assert_int_equal(cu.mem_free(at), bad);
    OK(cu.unreserve(hole, 2 * GRANULE));
    assert_int_equal(cu.unreserve(hole, 2 * GRANULE), bad);
    assert_int_equal(standin_device_used(), 2 * GRANULE);
    OK(cu.release(handle));
    unmapped(at, 2 * GRANULE);
    nothing_is_left();
}

static void the_device_is_as_large_as_it_says(void **state)
{
    (void)state;
    size_t free_bytes, total;
    CUmemGenericAllocationHandle handles[2], more;
    CUdeviceptr plain;
    OK(cu.mem_info(&free_bytes, &total));
    assert_int_equal(total, 64 * MIB);
    assert_int_equal(free_bytes, 64 * MIB);
    OK(cu.create(&handles[0], 40 * MIB, &ON_DEVICE, 0));
    OK(cu.create(&handles[1], 22 * MIB, &ON_DEVICE, 0));
    assert_int_equal(cu.create(&more, 4 * MIB, &ON_DEVICE, 0), CUDA_ERROR_OUT_OF_MEMORY);
    assert_int_equal(cu.mem_alloc(&plain, 3 * MIB), CUDA_ERROR_OUT_OF_MEMORY);
    assert_int_equal(cu.mem_alloc_async(&plain, 3 * MIB, NULL), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cu.mem_alloc(&plain, MIB));
    assert_int_equal(cu.create(&more, GRANULE, &ON_DEVICE, 0), CUDA_ERROR_OUT_OF_MEMORY);
    CUmemAllocationProp on_host = ON_DEVICE;
    on_host.location.type = CU_MEM_LOCATION_TYPE_HOST;
    OK(cu.create(&more, GRANULE, &on_host, 0)); /* host memory is not the device's */
    OK(cu.release(more));
    OK(cu.mem_free(plain));
    OK(cu.create(&more, GRANULE, &ON_DEVICE, 0));
    OK(cu.mem_info(&free_bytes, &total));
    assert_int_equal(free_bytes, 0);
    OK(cu.release(more));
    OK(cu.release(handles[0]));
    OK(cu.release(handles[1]));
    assert_int_equal(standin_device_used(), 0);
    nothing_is_left();
}

/* ---- Faults. */
static void reach_and_fault(CUdeviceptr at)
{
    OK(fill(at, 16, 1, NULL));
    assert_int_equal(cu.context_sync(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

static void a_fault_is_sticky(void **state)
{
    (void)state;
    CUdeviceptr at = mapped(GRANULE, NULL), other = mapped(GRANULE, NULL), unused;
    CUmemGenericAllocationHandle handle;
    CUstream stream;
    OK(cu.stream_create(&stream, CU_STREAM_NON_BLOCKING));
    unmapped(at, GRANULE);
    CUfunction nothing = kernel("nothing");
    reach_and_fault(at);
    assert_int_equal(cu.launch(nothing, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.mem_alloc(&unused, 16), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.create(&handle, GRANULE, &ON_DEVICE, 0), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.stream_sync(stream), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.unmap(other, GRANULE), CUDA_ERROR_ILLEGAL_ADDRESS);
    const char *name;
    OK(cu.error_name(CUDA_ERROR_ILLEGAL_ADDRESS, &name));
    assert_string_equal(name, "CUDA_ERROR_ILLEGAL_ADDRESS");
    OK(CALL("cuDevicePrimaryCtxReset_v2", (CUdevice))(0)); /* the way out */
    OK(cu.unmap(other, GRANULE));
}

static void memory_without_access_faults(void **state)
{
    (void)state;
    CUdeviceptr at;
    CUmemGenericAllocationHandle handle;
    OK(cu.reserve(&at, GRANULE, 0, 0, 0));
    OK(cu.create(&handle, GRANULE, &ON_DEVICE, 0));
    OK(cu.map(at, GRANULE, 0, handle, 0));
    reach_and_fault(at);
}

static void writing_what_is_read_only_faults(void **state)
{
    (void)state;
    CUdeviceptr at = mapped(GRANULE, NULL), out = mapped(GRANULE, NULL);
    OK(cu.set_access(at, GRANULE, &READ_ONLY, 1));
    OK(copy(out, at, 100, NULL));
    OK(cu.context_sync());
    assert_int_equal(cu.set8_async(at, 0, 1, NULL), CUDA_ERROR_INVALID_VALUE);
    reach_and_fault(at);
}

static void a_pointer_in_device_memory_is_followed_and_faults(void **state)
{
    (void)state;
    CUdeviceptr a = mapped(GRANULE, NULL), b = mapped(GRANULE, NULL), table, out;
    OK(cu.mem_alloc(&table, 16));
    OK(cu.mem_alloc(&out, 16));
    const CUdeviceptr pointers[2] = {a, b};
    OK(cu.copy_in(table, pointers, sizeof pointers));
    uint64_t count = 2, bytes = 100, sums[2];
    OK(fill(a, 100, 1, NULL));
    OK(fill(b, 100, 2, NULL));
    OK(launch("gather", NULL, (void *[]){&out, &table, &count, &bytes}));
    OK(cu.copy_out(sums, out, sizeof sums));
    assert_int_equal(sums[0], 100);
    assert_int_equal(sums[1], 200);
    OK(cu.unmap(b, GRANULE));
    OK(launch("gather", NULL, (void *[]){&out, &table, &count, &bytes}));
    assert_int_equal(cu.context_sync(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

static void unmapping_does_not_wait_for_a_kernel(void **state)
{
    (void)state;
    CUdeviceptr at = mapped(GRANULE, NULL);
    kernel("fill");
    standin_hold(NULL);
    OK(fill(at, 16, 1, NULL));
    OK(cu.unmap(at, GRANULE)); /* returns, and the kernel finds nothing there */
    standin_let_go(NULL);
    assert_int_equal(cu.context_sync(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

static void a_copy_to_unmapped_memory_is_an_error_and_nothing_else(void **state)
{
    (void)state;
    CUdeviceptr at = mapped(GRANULE, NULL), hole;
    char bytes[16] = {0};
    OK(cu.reserve(&hole, GRANULE, 0, 0, 0));
    assert_int_equal(cu.copy_in(hole, bytes, 16), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.copy_out(bytes, hole, 16), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.copy_async(at, hole, 16, NULL), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.set8_async(hole, 0, 16, NULL), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.copy_in(at + GRANULE - 8, bytes, 16), CUDA_ERROR_INVALID_VALUE); /* over the end */
    OK(cu.copy_in(at, bytes, 16));
    OK(cu.context_sync());
    OK(cu.unreserve(hole, GRANULE));
    unmapped(at, GRANULE);
}

/* ---- Streams and events. */
static void two_streams(CUstream *blocking, CUstream *free_stream)
{
    OK(cu.stream_create(blocking, CU_STREAM_DEFAULT));
    OK(cu.stream_create(free_stream, CU_STREAM_NON_BLOCKING));
}

static void the_legacy_stream_orders_blocking_streams_only(void **state)
{
    (void)state;
    CUstream blocking, free_stream;
    CUdeviceptr at = mapped(GRANULE, NULL);
    two_streams(&blocking, &free_stream);
    kernel("fill");
    standin_hold(blocking);
    OK(fill(at, 8, 1, blocking));
    OK(copy(at + 8, at, 8, NULL));        /* waits for the first */
    OK(fill(at + 16, 8, 3, free_stream)); /* waits for nothing */
    OK(cu.stream_sync(free_stream));
    assert_int_equal(byte_at(at + 16), 3);
    assert_int_equal(cu.stream_query(blocking), CUDA_ERROR_NOT_READY);
    assert_int_equal(cu.stream_query(NULL), CUDA_ERROR_NOT_READY);
    OK(cu.stream_query(free_stream));
    nap();
    standin_let_go(blocking);
    OK(cu.stream_sync(NULL));
    assert_int_equal(byte_at(at), 1);
    assert_int_equal(byte_at(at + 8), 1);
    standin_hold(NULL);
    OK(fill(at, 8, 4, NULL));
    OK(copy(at + 24, at, 8, blocking)); /* and a blocking stream waits for the legacy stream */
    assert_int_equal(cu.stream_query(blocking), CUDA_ERROR_NOT_READY);
    nap();
    standin_let_go(NULL);
    OK(cu.stream_sync(blocking));
    assert_int_equal(byte_at(at + 24), 4);
    OK(cu.stream_destroy(blocking));
    OK(cu.stream_destroy(free_stream));
    assert_int_equal(cu.stream_sync(blocking), CUDA_ERROR_INVALID_HANDLE);
    unmapped(at, GRANULE);
}

static void an_event_orders_what_was_recorded(void **state)
{
    (void)state;
    CUstream a, b;
    CUevent event;
    CUdeviceptr at = mapped(GRANULE, NULL);
    OK(cu.stream_create(&a, CU_STREAM_NON_BLOCKING));
    OK(cu.stream_create(&b, CU_STREAM_NON_BLOCKING));
    OK(cu.event_create(&event, CU_EVENT_DISABLE_TIMING));
    OK(cu.event_query(event)); /* never recorded: done */
    OK(cu.stream_wait(b, event, 0));
    standin_hold(a);
    OK(fill(at, 8, 1, a));
    OK(cu.event_record(event, a));
    OK(fill(at, 8, 2, a));
    OK(cu.stream_wait(b, event, 0));
    OK(cu.event_record(event, b)); /* recorded again: what waits already waits for the first */
    OK(copy(at + 8, at, 8, b));
    assert_int_equal(cu.event_query(event), CUDA_ERROR_NOT_READY);
    nap();
    standin_hold_after(a, 2); /* the fill and the record, not the second fill */
    OK(cu.stream_sync(b));
    OK(cu.event_sync(event));
    OK(cu.event_query(event));
    assert_int_equal(byte_at(at + 8), 1);
    assert_int_equal(cu.stream_query(a), CUDA_ERROR_NOT_READY);
    standin_let_go(a);
    OK(cu.stream_sync(a));
    assert_int_equal(byte_at(at), 2);
    OK(cu.event_destroy(event));
    assert_int_equal(cu.event_record(event, a), CUDA_ERROR_INVALID_HANDLE);
    OK(cu.stream_destroy(a));
    OK(cu.stream_destroy(b));
    unmapped(at, GRANULE);
}

static void events_tell_time(void **state)
{
    (void)state;
    CUevent from, to, plain;
    float ms = -1;
    OK(cu.event_create(&from, CU_EVENT_DEFAULT));
    OK(cu.event_create(&to, CU_EVENT_DEFAULT));
    OK(cu.event_create(&plain, CU_EVENT_DISABLE_TIMING));
    OK(cu.event_record(from, NULL));
    assert_int_equal(cu.event_elapsed(&ms, from, to), CUDA_ERROR_INVALID_HANDLE); /* never recorded */
    standin_hold(NULL);
    OK(cu.event_record(to, NULL));
    assert_int_equal(cu.event_elapsed(&ms, from, to), CUDA_ERROR_NOT_READY);
    standin_let_go(NULL);
    OK(cu.event_sync(to));
    OK(cu.event_elapsed(&ms, from, to));
    assert_true(ms >= 0);
    OK(cu.event_record(plain, NULL));
    assert_int_equal(cu.event_elapsed(&ms, from, plain), CUDA_ERROR_INVALID_HANDLE);
    OK(cu.event_destroy(from));
    OK(cu.event_destroy(to));
    OK(cu.event_destroy(plain));
}

static void pageable_sources_are_consumed_and_pinned_ones_are_not(void **state)
{
    (void)state;
    CUstream stream;
    CUdeviceptr at = mapped(GRANULE, NULL);
    unsigned char pageable[64], *pinned;
    OK(cu.stream_create(&stream, CU_STREAM_NON_BLOCKING));
    OK(cu.host_alloc((void **)&pinned, 64, 0));
    memset(pageable, 1, 64);
    memset(pinned, 1, 64);
    standin_hold(stream);
    OK(cu.copy_in_async(at, pageable, 64, stream));
    OK(cu.copy_in_async(at + 64, pinned, 64, stream));
    memset(pageable, 2, 64);
    memset(pinned, 2, 64);
    standin_let_go(stream);
    OK(cu.stream_sync(stream));
    assert_int_equal(byte_at(at), 1);
    assert_int_equal(byte_at(at + 64), 2);
    OK(cu.copy_out_async(pageable, at + 64, 64, stream)); /* done when it returns */
    assert_int_equal(pageable[63], 2);
    standin_hold(stream);
    OK(cu.copy_out_async(pinned, at, 64, stream));
    assert_int_equal(pinned[0], 2);
    standin_let_go(stream);
    OK(cu.stream_sync(stream));
    assert_int_equal(pinned[0], 1);
    OK(cu.host_register(pageable, 64, 0)); /* memory of the program's own becomes pinned */
    assert_int_not_equal(cu.host_register(pageable + 32, 64, 0), CUDA_SUCCESS);
    standin_hold(stream);
    OK(cu.copy_in_async(at, pageable, 64, stream));
    memset(pageable, 9, 64);
    standin_let_go(stream);
    OK(cu.stream_sync(stream));
    assert_int_equal(byte_at(at), 9);
    OK(cu.host_unregister(pageable));
    assert_int_not_equal(cu.host_unregister(pageable), CUDA_SUCCESS);
    OK(cu.host_free(pinned));
    OK(cu.stream_destroy(stream));
    unmapped(at, GRANULE);
}

static void a_synchronous_copy_does_not_order_free_streams(void **state)
{
    (void)state;
    CUstream stream;
    CUdeviceptr at = mapped(GRANULE, NULL);
    unsigned char bytes[8] = {5};
    OK(cu.stream_create(&stream, CU_STREAM_NON_BLOCKING));
    OK(cu.context_sync());
    standin_hold(NULL);
    OK(cu.copy_in(at, bytes, 8)); /* staged: returns before the device has it */
    OK(cu.copy_async(at + 8, at, 8, stream));
    OK(cu.stream_sync(stream));
    assert_int_equal(byte_at(at + 8), STANDIN_POISON);
    standin_let_go(NULL);
    OK(cu.context_sync());
    assert_int_equal(byte_at(at), 5);
    OK(cu.stream_destroy(stream));
    unmapped(at, GRANULE);
}

static void destroying_a_busy_stream_lets_its_work_end(void **state)
{
    (void)state;
    CUstream stream;
    CUdeviceptr at = mapped(GRANULE, NULL);
    char text[128];
    OK(cu.stream_create(&stream, CU_STREAM_NON_BLOCKING));
    kernel("fill");
    standin_delay(3, 5000);
    for (unsigned i = 0; i < 20; i++)
        OK(fill(at + i, 1, i + 1, stream));
    assert_int_equal(standin_misuses(NULL, 0), 0);
    OK(cu.stream_destroy(stream));
    assert_int_equal(standin_misuses(text, sizeof text), 1);
    assert_non_null(strstr(text, "destroyed"));
    OK(cu.context_sync());
    assert_int_equal(byte_at(at + 19), 20);
    unmapped(at, GRANULE);
}

/* Two streams hand a value on from slot to slot, by events; delays show an order that is only lucky. */
static void events_hold_under_random_delays(void **state)
{
    (void)state;
    CUstream s[2];
    CUevent e[2];
    CUdeviceptr at = mapped(GRANULE, NULL);
    OK(fill(at, 8, 42, NULL));
    OK(cu.context_sync());
    for (int i = 0; i < 2; i++) {
        OK(cu.stream_create(&s[i], CU_STREAM_NON_BLOCKING));
        OK(cu.event_create(&e[i], CU_EVENT_DISABLE_TIMING));
    }
    standin_delay(11, 300);
    for (unsigned i = 0; i < 200; i++) {
        if (i > 0)
            OK(cu.stream_wait(s[i % 2], e[(i + 1) % 2], 0));
        OK(copy(at + 8 * (i + 1), at + 8 * i, 8, s[i % 2]));
        OK(cu.event_record(e[i % 2], s[i % 2]));
    }
    OK(cu.context_sync());
    for (unsigned i = 0; i <= 200; i++)
        assert_int_equal(byte_at(at + 8 * i), 42);
    for (int i = 0; i < 2; i++) {
        OK(cu.event_destroy(e[i]));
        OK(cu.stream_destroy(s[i]));
    }
    unmapped(at, GRANULE);
}

/* ---- Pools. */
static uint64_t pool_value(CUmemPool_attribute which)
{
    CUmemoryPool pool;
    uint64_t value = 0;
    OK(cu.device_pool(&pool, 0));
    OK(cu.pool_get(pool, which, &value));
    return value;
}

static void a_pool_keeps_what_is_freed_until_trimmed(void **state)
{
    (void)state;
    CUmemoryPool pool;
    CUdeviceptr a, b;
    OK(cu.device_pool(&pool, 0));
    OK(cu.pool_set(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &(uint64_t){UINT64_MAX}));
    OK(cu.mem_alloc_async(&a, 3 * MIB, NULL));
    OK(cu.mem_alloc_async(&b, 1000, NULL));
    assert_int_equal(pool_value(CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 3 * MIB + 1024);
    uint64_t reserved = pool_value(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
    assert_int_equal(reserved, standin_device_used());
    OK(cu.mem_free_async(a, NULL));
    OK(cu.mem_free_async(b, NULL));
    OK(cu.context_sync());
    assert_int_equal(pool_value(CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0);
    assert_int_equal(pool_value(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), reserved);
    assert_int_equal(cu.mem_free_async(a, NULL), CUDA_ERROR_INVALID_VALUE); /* twice */
    assert_int_equal(cu.mem_free(a), CUDA_ERROR_INVALID_VALUE);
    OK(cu.mem_alloc_async(&b, 3 * MIB, NULL)); /* reused */
    assert_int_equal(b, a);
    OK(cu.pool_trim(pool, 0));
    assert_int_equal(pool_value(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), 4 * MIB);
    OK(cu.mem_free_async(b, NULL));
    OK(cu.pool_set(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &(uint64_t){0}));
    OK(cu.stream_sync(NULL)); /* the default threshold: a wait gives everything back */
    assert_int_equal(pool_value(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), 0);
    assert_int_equal(standin_device_used(), 0);
    nothing_is_left();
}

static void a_free_takes_effect_in_stream_order(void **state)
{
    (void)state;
    CUstream stream, other;
    CUdeviceptr a, b, c;
    OK(cu.stream_create(&stream, CU_STREAM_NON_BLOCKING));
    OK(cu.stream_create(&other, CU_STREAM_NON_BLOCKING));
    OK(cu.mem_alloc_async(&a, 8 * MIB, stream));
    standin_hold(stream);
    OK(cu.mem_free_async(a, stream));
    OK(cu.mem_alloc_async(&b, 8 * MIB, other)); /* not done there: other memory */
    assert_int_not_equal(a, b);
    OK(cu.mem_alloc_async(&c, 8 * MIB, stream)); /* the same stream may have it at once */
    assert_int_equal(a, c);
    standin_let_go(stream);
    OK(cu.mem_free_async(b, other));
    OK(cu.mem_free_async(c, stream));
    OK(cu.context_sync());
    OK(cu.stream_destroy(stream));
    OK(cu.stream_destroy(other));
    nothing_is_left();
}

/* ---- Kernels. */
static void parameters_are_known_of_each_kind_by_its_own_query(void **state)
{
    (void)state;
    size_t offset, bytes;
    CUfunction function = kernel("add"), of_kernel;
    CUkernel kern;
    void *library;
    OK(cu.function_param(function, 2, &offset, &bytes));
    assert_int_equal(offset, 16);
    assert_int_equal(bytes, 4);
    assert_int_equal(cu.function_param(function, 3, &offset, &bytes), CUDA_ERROR_INVALID_VALUE);
    OK(CALL("cuLibraryLoadData", (void **, const void *, int *, void **, unsigned, int *, void **, unsigned))(
        &library, &standin_test_image, NULL, NULL, 0, NULL, NULL, 0));
    OK(CALL("cuLibraryGetKernel", (CUkernel *, void *, const char *))(&kern, library, "add"));
    assert_int_equal(cu.function_param((CUfunction)(void *)kern, 0, &offset, &bytes), CUDA_ERROR_INVALID_HANDLE);
    assert_int_equal(cu.kernel_param((CUkernel)(void *)function, 0, &offset, &bytes), CUDA_ERROR_INVALID_HANDLE);
    OK(cu.kernel_param(kern, 1, &offset, &bytes));
    assert_int_equal(offset, 8);
    OK(CALL("cuKernelGetFunction", (CUfunction *, CUkernel))(&of_kernel, kern));
    OK(cu.function_param(of_kernel, 1, &offset, &bytes));
    CUdeviceptr at = mapped(GRANULE, NULL);
    uint64_t words = 1;
    uint32_t one = 1;
    *(volatile uint32_t *)(uintptr_t)at = 5;
    void *params[] = {&at, &words, &one};
    OK(cu.launch((CUfunction)(void *)kern, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL)); /* as cudart does */
    struct {
        uint64_t to, words;
        uint32_t value;
    } packed = {at, 1, 10};
    size_t size = sizeof packed;
    void *extra[] = {(void *)1, &packed, (void *)2, &size, NULL};
    OK(cu.launch(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, extra));
    OK(cu.context_sync());
    assert_int_equal(*(volatile uint32_t *)(uintptr_t)at, 16);
    size = 8;
    assert_int_equal(cu.launch(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, extra), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.launch(function, 0, 1, 1, 1, 1, 1, 0, NULL, params, NULL), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.launch(function, 1, 1, 1, 2048, 1, 1, 0, NULL, params, NULL), CUDA_ERROR_INVALID_VALUE);
    OK(CALL("cuLibraryUnload", (void *))(library));
    assert_int_equal(cu.launch((CUfunction)(void *)kern, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL),
                     CUDA_ERROR_INVALID_HANDLE);
    unmapped(at, GRANULE);
}

static void images_of_others_are_refused(void **state)
{
    (void)state;
    CUmodule own;
    CUfunction function;
    assert_int_equal(cu.module_load(&own, "\177ELF no kernels here"), CUDA_ERROR_INVALID_IMAGE);
    OK(cu.module_load(&own, "standin:test"));
    assert_int_equal(cu.module_function(&function, own, "absent"), CUDA_ERROR_NOT_FOUND);
    OK(cu.module_unload(own));
    assert_int_equal(cu.module_unload(own), CUDA_ERROR_INVALID_VALUE);
}

/* ---- Capture. */
static void a_graph_runs_what_was_captured(void **state)
{
    (void)state;
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode nodes[4];
    size_t count = 4;
    CUdeviceptr at = mapped(GRANULE, NULL), scratch;
    uint64_t words = 4;
    uint32_t one = 1;
    int type = -1;
    OK(cu.stream_create(&stream, CU_STREAM_NON_BLOCKING));
    kernel("add");
    OK(cu.set8_async(at, 0, 16, stream));
    OK(cu.stream_sync(stream));
    OK(CALL("cuStreamBeginCapture_v2", (CUstream, int))(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    CUstreamCaptureStatus status;
    OK(cu.stream_capturing(stream, &status));
    assert_int_equal(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(launch("add", stream, (void *[]){&at, &words, &one}));
    OK(cu.mem_alloc_async(&scratch, 100, stream));
    OK(copy(scratch, at, 16, stream));
    OK(cu.mem_free_async(scratch, stream));
    CUmemGenericAllocationHandle handle;
    OK(cu.create(&handle, GRANULE, &ON_DEVICE, 0)); /* VMM calls are fine in a capture */
    OK(cu.release(handle));
    OK(CALL("cuStreamEndCapture", (CUstream, CUgraph *))(stream, &graph));
    assert_int_equal(*(volatile uint32_t *)(uintptr_t)at, 0); /* nothing has run */
    OK(CALL("cuGraphGetNodes", (CUgraph, CUgraphNode *, size_t *))(graph, nodes, &count));
    assert_int_equal(count, 4);
    OK(CALL("cuGraphNodeGetType", (CUgraphNode, int *))(nodes[0], &type));
    assert_int_equal(type, 0);
    struct {
        CUfunction function;
        unsigned grid[3], block[3], shared;
        void **params, **extra;
        CUkernel kernel;
        CUcontext context;
    } node;
    OK(CALL("cuGraphKernelNodeGetParams_v2", (CUgraphNode, void *))(nodes[0], &node));
    assert_ptr_equal(node.function, kernel("add"));
    assert_int_equal(*(CUdeviceptr *)node.params[0], at);
    assert_int_equal(CALL("cuGraphKernelNodeGetParams_v2", (CUgraphNode, void *))(nodes[1], &node),
                     CUDA_ERROR_INVALID_VALUE);
    OK(CALL("cuGraphInstantiateWithFlags", (CUgraphExec *, CUgraph, unsigned long long))(&exec, graph, 0));
    OK(CALL("cuGraphDestroy", (CUgraph))(graph));
    for (int i = 0; i < 3; i++)
        OK(CALL("cuGraphLaunch", (CUgraphExec, CUstream))(exec, stream));
    OK(cu.stream_sync(stream));
    assert_int_equal(*(volatile uint32_t *)(uintptr_t)at, 3);
    uint64_t reserved;
    OK(cu.device_graph_memory(0, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &reserved));
    assert_int_equal(reserved, GRANULE);
    OK(CALL("cuGraphExecDestroy", (CUgraphExec))(exec));
    OK(cu.device_graph_trim(0));
    OK(cu.device_graph_memory(0, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &reserved));
    assert_int_equal(reserved, 0);
    unmapped(at, GRANULE);
    nothing_is_left();
}

static void unsafe_calls_end_a_capture_but_not_in_relaxed_mode(void **state)
{
    (void)state;
    CUstream stream;
    CUgraph graph;
    CUdeviceptr at;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    OK(cu.stream_create(&stream, CU_STREAM_DEFAULT));
    OK(CALL("cuStreamBeginCapture_v2", (CUstream, int))(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cu.capture_mode(&mode));
    OK(cu.mem_alloc(&at, 100));
    OK(cu.capture_mode(&mode));
    assert_int_equal(mode, CU_STREAM_CAPTURE_MODE_RELAXED);
    assert_int_equal(cu.mem_alloc(&at, 100), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_int_equal(CALL("cuStreamEndCapture", (CUstream, CUgraph *))(stream, &graph), 901);
    OK(CALL("cuStreamBeginCapture_v2", (CUstream, int))(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cu.mem_alloc(&at, 100)); /* a relaxed capture forbids nobody */
    assert_int_equal(cu.event_record((CUevent)(void *)&at, NULL), CUDA_ERROR_INVALID_HANDLE);
    /* the legacy stream, a blocking one captures */
    assert_int_equal(fill(at, 8, 1, NULL), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    assert_int_equal(CALL("cuStreamEndCapture", (CUstream, CUgraph *))(stream, &graph), 901);
    OK(cu.stream_sync(stream));
}

/* ---- Queries. */
static void pointers_are_known(void **state)
{
    (void)state;
    CUdeviceptr at = mapped(2 * GRANULE, NULL), plain, begin;
    size_t bytes;
    unsigned type;
    unsigned char ipc[64];
    OK(cu.mem_alloc(&plain, 1000));
    OK(CALL("cuMemGetAddressRange_v2", (CUdeviceptr *, size_t *, CUdeviceptr))(&begin, &bytes, plain + 10));
    assert_int_equal(begin, plain);
    assert_int_equal(bytes, 1000);
    OK(CALL("cuPointerGetAttribute", (void *, int, CUdeviceptr))(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at + 5));
    assert_int_equal(type, CU_MEMORYTYPE_DEVICE);
    OK(CALL("cuIpcGetMemHandle", (void *, CUdeviceptr))(ipc, plain));
    assert_int_equal(CALL("cuIpcGetMemHandle", (void *, CUdeviceptr))(ipc, at), CUDA_ERROR_INVALID_VALUE);
    OK(cu.unmap(at, 2 * GRANULE));
    assert_int_equal(
        CALL("cuPointerGetAttribute", (void *, int, CUdeviceptr))(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at),
        CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(CALL("cuMemGetAddressRange_v2", (CUdeviceptr *, size_t *, CUdeviceptr))(&begin, &bytes, at),
                     CUDA_ERROR_NOT_FOUND);
}

static void rows_are_copied(void **state)
{
    (void)state;
    CUdeviceptr at = mapped(GRANULE, NULL);
    char from[3][8] = {"abcdefg", "hijklmn", "opqrstu"}, back[3][4];
    struct {
        size_t from_x, from_y;
        int from_type;
        const void *from_host;
        CUdeviceptr from_device;
        void *from_array;
        size_t from_pitch, to_x, to_y;
        int to_type;
        void *to_host;
        CUdeviceptr to_device;
        void *to_array;
        size_t to_pitch, width, height;
    } c = {.from_x = 2,
           .from_type = 1,
           .from_host = from,
           .from_pitch = 8,
           .to_type = 2,
           .to_device = at,
           .to_pitch = 512,
           .width = 4,
           .height = 3};
    OK(CALL("cuMemcpy2D_v2", (void *))(&c));
    OK(cu.context_sync());
    assert_memory_equal((void *)(uintptr_t)(at + 512), "jklm", 4);
    assert_int_equal(byte_at(at + 516), STANDIN_POISON);
    c.from_x = 0, c.from_type = 2, c.from_device = at, c.from_pitch = 512;
    c.to_type = 1, c.to_host = back, c.to_pitch = 4;
    OK(CALL("cuMemcpy2DAsync_v2", (void *, CUstream))(&c, NULL));
    assert_memory_equal(back, "cdefjklmqrst", 12);
    unmapped(at, GRANULE);
}

static void names_resolve_as_a_runtime_asks_for_them(void **state)
{
    (void)state;
    void *found = NULL;
    int status = -1;
    CUresult (*query)(const char *, void **, int, uint64_t, int *) = (CUresult(*)(
        const char *, void **, int, uint64_t, int *))standin_resolve(NULL, "cuGetProcAddress_v2");
    OK(query("cuMemFree", &found, 13000, 0, &status));
    assert_ptr_equal(found, standin_resolve(NULL, "cuMemFree_v2"));
    assert_int_equal(status, 0);
    OK(query("cuGetProcAddress", &found, 11030, 0, NULL));
    assert_ptr_equal(found, standin_resolve(NULL, "cuGetProcAddress"));
    OK(query("cuGetProcAddress", &found, 12000, 0, NULL));
    assert_ptr_equal(found, standin_resolve(NULL, "cuGetProcAddress_v2"));
    OK(query("cuMemcpyHtoDAsync", &found, 13000, 2, NULL));
    assert_ptr_equal(found, standin_resolve(NULL, "cuMemcpyHtoDAsync_v2_ptsz"));
    assert_int_equal(query("cuNoSuchCall", &found, 13000, 0, &status), CUDA_ERROR_NOT_FOUND);
    assert_int_equal(status, 1);
    assert_null(found);
}

static void a_variant_runs_the_call(void **state)
{
    (void)state;
    CUdeviceptr at = mapped(GRANULE, NULL);
    OK(CALL("cuMemsetD8Async_ptsz", (CUdeviceptr, unsigned char, size_t, CUstream))(at, 3, 8, NULL));
    OK(CALL("cuStreamSynchronize_ptsz", (CUstream))(CU_STREAM_PER_THREAD));
    OK(cu.context_sync());
    assert_int_equal(byte_at(at + 7), 3);
    unmapped(at, GRANULE);
}

/* ---- Failures, log, account. */
static void the_nth_call_fails_once(void **state)
{
    (void)state;
    CUdeviceptr at[5];
    unsigned long before = standin_calls("cuMemAlloc");
    standin_fail("cuMemAlloc", 3, CUDA_ERROR_OUT_OF_MEMORY);
    OK(cu.mem_alloc_async(&at[0], 16, NULL)); /* another call */
    for (int i = 0; i < 5; i++)
        assert_int_equal(cu.mem_alloc(&at[i], 16), i == 2 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS);
    assert_int_equal(standin_calls("cuMemAlloc") - before, 5);
    assert_false(standin_fail_pending());
    standin_fail(NULL, 2, CUDA_ERROR_UNKNOWN);
    OK(cu.mem_free(at[0]));
    assert_true(standin_fail_pending());
    assert_int_equal(cu.mem_free(at[1]), CUDA_ERROR_UNKNOWN);
    OK(cu.mem_free(at[1]));
    standin_fail("cuMemAllocAsync", 1, CUDA_ERROR_OUT_OF_MEMORY); /* does not name cuMemAlloc */
    OK(cu.mem_alloc(&at[0], 16));
    assert_true(standin_fail_pending());
    standin_fail_none();
    standin_fail("cuMemFree", 0, CUDA_ERROR_UNKNOWN);
    for (int i = 0; i < 3; i++)
        assert_int_equal(cu.mem_free(at[0]), CUDA_ERROR_UNKNOWN);
    standin_fail_none();
    OK(cu.mem_free(at[0]));
}

static void the_log_tells_the_order(void **state)
{
    (void)state;
    struct standin_entry log[8];
    standin_log_clear();
    CUdeviceptr at = mapped(GRANULE, NULL);
    assert_int_equal(standin_log(log, 8), 5);
    assert_string_equal(log[0].call, "cuMemAddressReserve");
    assert_string_equal(log[2].call, "cuMemMap");
    assert_int_equal(log[2].a, at);
    assert_int_equal(log[2].b, GRANULE);
    assert_string_equal(log[3].call, "cuMemSetAccess");
    unmapped(at, GRANULE);
}

static void what_is_left_is_told(void **state)
{
    (void)state;
    char text[256];
    CUstream stream;
    CUevent event;
    CUdeviceptr at = mapped(GRANULE, NULL), plain;
    OK(cu.stream_create(&stream, 0));
    OK(cu.event_create(&event, 0));
    OK(cu.mem_alloc(&plain, 1));
    assert_int_equal(standin_leak_text(text, sizeof text), 6);
    assert_string_equal(text, "mappings 1, reservations 1, allocations 1, streams 1, events 1, contexts 1");
    OK(cu.mem_free(plain));
    OK(cu.event_destroy(event));
    OK(cu.stream_destroy(stream));
    unmapped(at, GRANULE);
    nothing_is_left();
}

static void calls_need_cuinit_and_a_context(void **state)
{
    (void)state;
    CUdeviceptr at;
    CUstream stream;
    OK(cu.context_set(NULL));
    assert_int_equal(cu.mem_alloc(&at, 16), CUDA_ERROR_INVALID_CONTEXT);
    assert_int_equal(cu.stream_create(&stream, 0), CUDA_ERROR_INVALID_CONTEXT);
    standin_reset(0);
    assert_int_equal(cu.mem_alloc(&at, 16), CUDA_ERROR_NOT_INITIALIZED);
    int version = 0;
    OK(cu.driver_version(&version));
    assert_true(version >= 12040);
}

static void the_library_loads_by_name(void **state)
{
    (void)state;
    void *library = dlopen(STANDIN_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fail_msg("%s", dlerror());
    struct cws_driver theirs;
    struct cws_error err;
    void *(*resolve)(void *, const char *) = (void *(*)(void *, const char *))dlsym(library, "standin_resolve");
    assert_non_null(resolve);
    assert_int_equal(cws_driver_fill(&theirs, resolve, NULL, &err), 0);
    assert_ptr_equal(dlsym(library, "cuInit"), theirs.init);
    OK(theirs.init(0));
    int version = 0;
    OK(theirs.driver_version(&version));
    void (*reset)(size_t) = (void (*)(size_t))dlsym(library, "standin_reset");
    reset(0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(fresh_memory_is_poison_never_zero),
        T(one_handle_at_two_addresses_shows_the_same_bytes),
        T(wrong_vmm_calls_are_refused_and_change_nothing),
        T(the_device_is_as_large_as_it_says),
        T(a_fault_is_sticky),
        T(memory_without_access_faults),
        T(writing_what_is_read_only_faults),
        T(a_pointer_in_device_memory_is_followed_and_faults),
        T(unmapping_does_not_wait_for_a_kernel),
        T(a_copy_to_unmapped_memory_is_an_error_and_nothing_else),
        T(the_legacy_stream_orders_blocking_streams_only),
        T(an_event_orders_what_was_recorded),
        T(events_tell_time),
        T(pageable_sources_are_consumed_and_pinned_ones_are_not),
        T(a_synchronous_copy_does_not_order_free_streams),
        T(destroying_a_busy_stream_lets_its_work_end),
        T(events_hold_under_random_delays),
        T(a_pool_keeps_what_is_freed_until_trimmed),
        T(a_free_takes_effect_in_stream_order),
        T(parameters_are_known_of_each_kind_by_its_own_query),
        T(images_of_others_are_refused),
        T(a_graph_runs_what_was_captured),
        T(unsafe_calls_end_a_capture_but_not_in_relaxed_mode),
        T(pointers_are_known),
        T(rows_are_copied),
        T(names_resolve_as_a_runtime_asks_for_them),
        T(a_variant_runs_the_call),
        T(the_nth_call_fails_once),
        T(the_log_tells_the_order),
        T(what_is_left_is_told),
        T(calls_need_cuinit_and_a_context),
        T(the_library_loads_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
