/* context.c - cuInit, the device, contexts, queries of pointers, and the reset. */
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STACK_DEPTH 16
#define DRIVER_VERSION 13000
struct CUctx_st {
    bool primary;
};
struct standin_state standin = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
static struct CUctx_st *primary;
static unsigned primary_retained;
static size_t device_bytes_wanted;
static _Thread_local struct {
    CUcontext stack[STACK_DEPTH]; /* the last is current */
    unsigned depth, generation;
} thread_contexts;

static void contexts_refresh(void)
{
    if (thread_contexts.generation == standin.generation)
        return;
    thread_contexts.depth = 0;
    thread_contexts.generation = standin.generation;
}

static CUcontext current_locked(void)
{
    contexts_refresh();
    return thread_contexts.depth ? thread_contexts.stack[thread_contexts.depth - 1] : NULL;
}

bool context_current_locked(void) { return object_is_locked(OBJECT_CONTEXT, current_locked()); }
CUcontext context_handle_locked(void)
{
    CUcontext current = current_locked();
    return current ? current : primary;
}

/* What the first context makes. */
static void device_begin_locked(void)
{
    if (standin.legacy)
        return;
    standin.legacy = stream_create_locked(CU_STREAM_DEFAULT);
}

/* Everything of a context goes; memory made by cuMemCreate and its mappings stay. */
static void device_end_locked(void)
{
    streams_reset_locked();
    graphs_reset_locked();
    modules_reset_locked();
    heaps_reset_locked();
    streams_join_locked();
    standin.sticky = CUDA_SUCCESS;
}

static struct CUmemPoolHandle_st *pool_add_locked(void)
{
    struct CUmemPoolHandle_st *pool = take_memory(sizeof *pool);
    object_add_locked(OBJECT_POOL, pool);
    return pool;
}

static unsigned long from_environment(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoul(text, NULL, 0) : otherwise;
}

API cuInit(unsigned flags)
{
    ENTER("cuInit", 0, flags, 0);
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    if (!standin.initialised) {
        standin.device_bytes = device_bytes_wanted ? device_bytes_wanted
                                                   : from_environment("STANDIN_DEVICE_MB", 256) << 20;
        standin.device_bytes &= ~(STANDIN_GRANULE - 1);
        if (!standin.delay_us) {
            standin.delay_us = (unsigned)from_environment("STANDIN_DELAY_US", 0);
            standin.seed = (unsigned)from_environment("STANDIN_SEED", 1);
        }
        memory_init_locked();
        fault_handler_install();
        standin.default_pool = standin.current_pool = pool_add_locked();
        standin.initialised = true;
        standin.pid = getpid();
    }
    return unlock(CUDA_SUCCESS);
}

void standin_reset(size_t device_bytes)
{
    lock();
    device_end_locked();
    memory_reset_locked();
    calls_reset_locked();
    while (object_any_locked(OBJECT_CONTEXT)) {
        struct CUctx_st *context = object_any_locked(OBJECT_CONTEXT);
        object_remove_locked(OBJECT_CONTEXT, context);
        free(context);
    }
    primary = NULL;
    primary_retained = 0;
    standin.initialised = false;
    standin.delay_us = 0;
    standin.seed = 0;
    standin.pid = 0;
    device_bytes_wanted = device_bytes;
    unlock(0);
}

API cuDriverGetVersion(int *version)
{
    ENTER("cuDriverGetVersion", CALL_ANY_TIME, 0, 0);
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = DRIVER_VERSION;
    return CUDA_SUCCESS;
}

static const struct {
    CUresult error;
    const char *name, *text;
} ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult error_text(CUresult error, const char **out, bool name)
{
    *out = NULL;
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].error == error)
            *out = name ? ERRORS[i].name : ERRORS[i].text;
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuGetErrorName(CUresult error, const char **name)
{
    ENTER("cuGetErrorName", CALL_ANY_TIME, error, 0);
    return name ? error_text(error, name, true) : CUDA_ERROR_INVALID_VALUE;
}
API cuGetErrorString(CUresult error, const char **text)
{
    ENTER("cuGetErrorString", CALL_ANY_TIME, error, 0);
    return text ? error_text(error, text, false) : CUDA_ERROR_INVALID_VALUE;
}

/* ---- The device. */
API cuDeviceGetCount(int *count)
{
    ENTER("cuDeviceGetCount", CALL_AFTER_ERROR, 0, 0);
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = 1;
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER("cuDeviceGet", CALL_AFTER_ERROR, ordinal, 0);
    if (!device || ordinal != 0)
        return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE;
    *device = 0;
    return CUDA_SUCCESS;
}

API cuDeviceGetName(char *name, int room, CUdevice device)
{
    ENTER("cuDeviceGetName", CALL_AFTER_ERROR, device, room);
    if (!name || room <= 0 || device != 0)
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, (size_t)room, "Stand-in for a GPU");
    return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(unsigned char uuid[16], CUdevice device)
{
    ENTER("cuDeviceGetUuid_v2", CALL_AFTER_ERROR, device, 0);
    if (!uuid || device != 0)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(uuid, "standin device 0", 16);
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    ENTER("cuDeviceTotalMem_v2", CALL_AFTER_ERROR, device, 0);
    if (!bytes || device != 0)
        return CUDA_ERROR_INVALID_VALUE;
    *bytes = standin.device_bytes;
    return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device)
{
    ENTER("cuDeviceGetAttribute", CALL_AFTER_ERROR, which, device);
    static const int VALUES[][2] = {
        {1, 1024},
        {2, 1024},
        {3, 1024},
        {4, 64},
        {5, 2147483647},
        {6, 65535},
        {7, 65535},
        {8, 48 << 10},
        {10, 32},
        {12, 65536},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 4},
        {31, 1},
        {39, 2048},
        {40, 3},
        {41, 1},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
        {81, 228 << 10},
        {95, 1},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 227 << 10},
        {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
        {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
    };
    if (!value || which <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (device != 0)
        return CUDA_ERROR_INVALID_DEVICE;
    *value = 0;
    for (size_t i = 0; i < sizeof VALUES / sizeof *VALUES; i++)
        if (VALUES[i][0] == which)
            *value = VALUES[i][1];
    return CUDA_SUCCESS;
}

/* ---- Contexts. All share the one device's streams and memory. */
static struct CUctx_st *context_add_locked(bool is_primary)
{
    struct CUctx_st *context = take_memory(sizeof *context);
    context->primary = is_primary;
    object_add_locked(OBJECT_CONTEXT, context);
    device_begin_locked();
    return context;
}

API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    ENTER("cuDevicePrimaryCtxRetain", 0, device, 0);
    if (!context || device != 0)
        return context ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE;
    lock();
    if (!primary)
        primary = context_add_locked(true);
    primary_retained++;
    *context = primary;
    return unlock(CUDA_SUCCESS);
}

static void primary_end_locked(void)
{
    if (!primary)
        return;
    device_end_locked();
    standin.default_pool = standin.current_pool = pool_add_locked();
    object_remove_locked(OBJECT_CONTEXT, primary);
    free(primary);
    primary = NULL;
    primary_retained = 0;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    ENTER("cuDevicePrimaryCtxRelease_v2", CALL_AFTER_ERROR, device, 0);
    if (device != 0)
        return CUDA_ERROR_INVALID_DEVICE;
    lock();
    if (primary_retained == 0)
        return unlock(CUDA_ERROR_INVALID_CONTEXT);
    if (--primary_retained == 0)
        primary_end_locked();
    return unlock(CUDA_SUCCESS);
}

API cuDevicePrimaryCtxReset_v2(CUdevice device)
{
    ENTER("cuDevicePrimaryCtxReset_v2", CALL_AFTER_ERROR, device, 0);
    if (device != 0)
        return CUDA_ERROR_INVALID_DEVICE;
    lock();
    primary_end_locked();
    return unlock(CUDA_SUCCESS);
}

API cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active)
{
    ENTER("cuDevicePrimaryCtxGetState", CALL_AFTER_ERROR, device, 0);
    if (device != 0 || !flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *flags = 0;
    *active = primary != NULL;
    return unlock(CUDA_SUCCESS);
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags)
{
    ENTER("cuDevicePrimaryCtxSetFlags_v2", CALL_AFTER_ERROR, device, flags);
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult context_push_locked(CUcontext context)
{
    contexts_refresh();
    if (thread_contexts.depth == STACK_DEPTH)
        return CUDA_ERROR_OUT_OF_MEMORY;
    thread_contexts.stack[thread_contexts.depth++] = context;
    return CUDA_SUCCESS;
}

API cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device)
{
    ENTER("cuCtxCreate_v2", 0, flags, device);
    if (!context || device != 0)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *context = context_add_locked(false);
    return unlock(context_push_locked(*context));
}

API cuCtxDestroy_v2(CUcontext context)
{
    ENTER("cuCtxDestroy_v2", CALL_AFTER_ERROR, U64(context), 0);
    lock();
    if (!object_is_locked(OBJECT_CONTEXT, context) || context->primary)
        return unlock(CUDA_ERROR_INVALID_CONTEXT);
    streams_wait_locked();
    if (current_locked() == context)
        thread_contexts.depth--;
    object_remove_locked(OBJECT_CONTEXT, context);
    free(context);
    return unlock(CUDA_SUCCESS);
}

API cuCtxGetCurrent(CUcontext *context)
{
    ENTER("cuCtxGetCurrent", CALL_AFTER_ERROR, 0, 0);
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *context = current_locked();
    return unlock(CUDA_SUCCESS);
}

API cuCtxSetCurrent(CUcontext context)
{
    ENTER("cuCtxSetCurrent", CALL_AFTER_ERROR, U64(context), 0);
    lock();
    contexts_refresh();
    if (context && !object_is_locked(OBJECT_CONTEXT, context))
        return unlock(CUDA_ERROR_INVALID_CONTEXT);
    if (thread_contexts.depth > 0)
        thread_contexts.depth--;
    return unlock(context ? context_push_locked(context) : CUDA_SUCCESS);
}

API cuCtxPushCurrent_v2(CUcontext context)
{
    ENTER("cuCtxPushCurrent_v2", CALL_AFTER_ERROR, U64(context), 0);
    lock();
    bool good = object_is_locked(OBJECT_CONTEXT, context);
    return unlock(good ? context_push_locked(context) : CUDA_ERROR_INVALID_CONTEXT);
}

API cuCtxPopCurrent_v2(CUcontext *context)
{
    ENTER("cuCtxPopCurrent_v2", CALL_AFTER_ERROR, 0, 0);
    lock();
    CUcontext current = current_locked();
    if (!current)
        return unlock(CUDA_ERROR_INVALID_CONTEXT);
    thread_contexts.depth--;
    if (context)
        *context = current;
    return unlock(CUDA_SUCCESS);
}

API cuCtxGetDevice(CUdevice *device)
{
    ENTER("cuCtxGetDevice", CALL_CONTEXT | CALL_AFTER_ERROR, 0, 0);
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    *device = 0;
    return CUDA_SUCCESS;
}

API cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    ENTER("cuMemGetInfo_v2", CALL_CONTEXT, 0, 0);
    if (!free_bytes || !total_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *free_bytes = standin.device_bytes - standin.device_used;
    *total_bytes = standin.device_bytes;
    return unlock(CUDA_SUCCESS);
}

/* ---- Queries of pointers. */
static bool device_range_locked(CUdeviceptr address, CUdeviceptr *begin, size_t *bytes, CUmemoryPool *pool)
{
    struct mapping *mapping = mapping_at_locked(address);
    if (!mapping)
        return false;
    struct block *block = mapping->chunk ? block_at_locked(address) : NULL;
    if (mapping->chunk && !block)
        return false;
    *begin = block ? block->at : mapping->begin;
    *bytes = block ? block->asked : mapping->bytes;
    *pool = block && block->chunk->heap != &standin.plain ? block->chunk->heap : NULL;
    return true;
}

API cuMemGetAddressRange_v2(CUdeviceptr *begin, size_t *bytes, CUdeviceptr address)
{
    ENTER("cuMemGetAddressRange_v2", CALL_CONTEXT, address, 0);
    lock();
    CUdeviceptr at;
    size_t size;
    CUmemoryPool pool;
    if (!device_range_locked(address, &at, &size, &pool))
        return unlock(CUDA_ERROR_NOT_FOUND);
    if (begin)
        *begin = at;
    if (bytes)
        *bytes = size;
    return unlock(CUDA_SUCCESS);
}

static CUresult pointer_attribute_locked(void *out, CUpointer_attribute which, CUdeviceptr address)
{
    CUdeviceptr begin = address;
    size_t bytes = 0;
    CUmemoryPool pool = NULL;
    bool device = device_range_locked(address, &begin, &bytes, &pool);
    bool host = !device && host_pinned_locked((void *)(uintptr_t)address, 1);
    if (!device && !host)
        return CUDA_ERROR_INVALID_VALUE;
    switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)out = context_handle_locked(); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)out = device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)out = address; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (device)
            return CUDA_ERROR_INVALID_VALUE;
        *(void **)out = (void *)(uintptr_t)address;
        break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)out = begin; break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(bool *)out = false; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)out = 0; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)out = begin; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)out = bytes; break;
    case CU_POINTER_ATTRIBUTE_MAPPED: *(bool *)out = true; break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: *(CUmemoryPool *)out = pool; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

API cuPointerGetAttribute(void *out, CUpointer_attribute which, CUdeviceptr address)
{
    ENTER("cuPointerGetAttribute", CALL_CONTEXT, address, which);
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    return unlock(pointer_attribute_locked(out, which, address));
}

static size_t attribute_bytes(CUpointer_attribute which)
{
    return which == CU_POINTER_ATTRIBUTE_MEMORY_TYPE || which == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? 4
           : which == CU_POINTER_ATTRIBUTE_IS_MANAGED || which == CU_POINTER_ATTRIBUTE_MAPPED        ? 1
                                                                                                     : 8;
}

/* An attribute that the pointer does not have is zero, not an error. */
API cuPointerGetAttributes(unsigned count, CUpointer_attribute *which, void **out, CUdeviceptr address)
{
    ENTER("cuPointerGetAttributes", CALL_CONTEXT, address, count);
    if (count == 0 || !which || !out)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    for (unsigned i = 0; i < count; i++)
        if (pointer_attribute_locked(out[i], which[i], address) != CUDA_SUCCESS)
            memset(out[i], which[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? 0xFE : 0, attribute_bytes(which[i]));
    return unlock(CUDA_SUCCESS);
}

API cuIpcGetMemHandle(unsigned char handle[64], CUdeviceptr address)
{
    ENTER("cuIpcGetMemHandle", CALL_CONTEXT, address, 0);
    lock();
    struct block *block = block_at_locked(address);
    if (!handle || !block || block->chunk->heap != &standin.plain) /* neither pools nor cuMemMap can be exported so */
        return unlock(CUDA_ERROR_INVALID_VALUE);
    memset(handle, 0, 64);
    memcpy(handle, &block->at, sizeof block->at);
    return unlock(CUDA_SUCCESS);
}

/* ---- Calls by name. */
enum { QUERY_FOUND = 0, QUERY_NOT_FOUND = 1 };

API cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags, int *status)
{
    ENTER("cuGetProcAddress_v2", CALL_ANY_TIME, version, flags);
    if (!symbol || !out)
        return CUDA_ERROR_INVALID_VALUE;
    *out = proc_address(symbol, version, flags);
    if (status)
        *status = *out ? QUERY_FOUND : QUERY_NOT_FOUND;
    return *out ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API cuGetProcAddress(const char *symbol, void **out, int version, uint64_t flags)
{
    ENTER("cuGetProcAddress", CALL_ANY_TIME, version, flags);
    if (!symbol || !out)
        return CUDA_ERROR_INVALID_VALUE;
    *out = proc_address(symbol, version, flags);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
