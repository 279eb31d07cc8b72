/* context.c - cuInit, contexts, queries of pointers, and the reset. */
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STACK_DEPTH 16
#define DRIVER_VERSION 13000
struct standin_state standin = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
static size_t device_bytes_wanted;
static atomic_size_t others; /* bytes that other programs have */
static unsigned devices_wanted;
static _Thread_local struct {
    struct {
        CUcontext context;
        unsigned long number;
    } stack[STACK_DEPTH]; /* the last is current */
    unsigned depth;
} thread_contexts;

/* What has ended is current nowhere. */
static CUcontext current_locked(void)
{
    for (; thread_contexts.depth > 0; thread_contexts.depth--) {
        CUcontext context = thread_contexts.stack[thread_contexts.depth - 1].context;
        if (object_is_locked(OBJECT_CONTEXT, context) &&
            context->number == thread_contexts.stack[thread_contexts.depth - 1].number)
            return context;
    }
    return NULL;
}

bool context_current_locked(void) { return current_locked() != NULL; }
CUcontext context_handle_locked(void)
{
    CUcontext current = current_locked();
    return current ? current : standin.devices[0].primary;
}

CUcontext context_add_locked(struct device *device, bool primary)
{
    static unsigned long contexts;
    CUcontext context = take_memory(sizeof *context);
    context->device = device;
    context->primary = primary;
    context->number = ++contexts;
    object_add_locked(OBJECT_CONTEXT, context);
    context->legacy = stream_create_locked(context, CU_STREAM_DEFAULT);
    return context;
}

static bool has_context_locked(const struct device *device)
{
    CUcontext context;
    for (size_t i = 0; (context = object_index_locked(OBJECT_CONTEXT, i)) != NULL; i++)
        if (context->device == device)
            return true;
    return false;
}

void context_end_locked(CUcontext context)
{
    struct device *device = context->device;
    streams_end_locked(context);
    graphs_end_locked(context);
    modules_end_locked(context);
    object_remove_locked(OBJECT_CONTEXT, context);
    if (object_count_locked(OBJECT_CONTEXT) == 0)
        libraries_end_locked();
    if (!has_context_locked(device)) {
        heaps_end_locked(device);
        heaps_begin_locked(device);
    }
    if (context->primary) {
        device->primary = NULL;
        device->primary_retained = 0;
        standin.sticky = CUDA_SUCCESS;
    }
    streams_join_locked(context);
    free(context);
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
        unsigned count = devices_wanted ? devices_wanted : (unsigned)from_environment("STANDIN_DEVICES", 1);
        standin.device_count = count < 1 ? 1 : count > DEVICES_MAX ? DEVICES_MAX : count;
        memory_init_locked();
        fault_handler_install();
        devices_begin_locked();
        standin.initialised = true;
        standin.pid = getpid();
    }
    return unlock(CUDA_SUCCESS);
}

void standin_devices(unsigned count)
{
    lock();
    devices_wanted = count;
    unlock(0);
}

void standin_reset(size_t device_bytes)
{
    lock();
    streams_let_go_locked(NULL);
    while (object_any_locked(OBJECT_CONTEXT))
        context_end_locked(object_any_locked(OBJECT_CONTEXT));
    devices_end_locked();
    memory_reset_locked();
    calls_reset_locked();
    standin.sticky = CUDA_SUCCESS;
    standin.initialised = false;
    standin.delay_us = 0;
    standin.seed = 0;
    standin.pid = 0;
    device_bytes_wanted = device_bytes;
    devices_wanted = 0;
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

/* ---- Contexts. */
static CUresult context_push_locked(CUcontext context)
{
    current_locked(); /* drops what has ended */
    if (thread_contexts.depth == STACK_DEPTH)
        return CUDA_ERROR_OUT_OF_MEMORY;
    thread_contexts.stack[thread_contexts.depth].context = context;
    thread_contexts.stack[thread_contexts.depth++].number = context->number;
    return CUDA_SUCCESS;
}

API cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice ordinal)
{
    ENTER("cuCtxCreate_v2", 0, flags, ordinal);
    struct device *device = device_of(ordinal);
    if (!context || !device)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *context = context_add_locked(device, false);
    return unlock(context_push_locked(*context));
}

API cuCtxDestroy_v2(CUcontext context)
{
    ENTER("cuCtxDestroy_v2", CALL_AFTER_ERROR, U64(context), 0);
    lock();
    if (!object_is_locked(OBJECT_CONTEXT, context) || context->primary)
        return unlock(CUDA_ERROR_INVALID_CONTEXT);
    streams_wait_locked(context);
    context_end_locked(context);
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
    current_locked(); /* drops what has ended */
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
    lock();
    *device = device_ordinal(context_handle_locked()->device);
    return unlock(CUDA_SUCCESS);
}

void standin_others(size_t bytes) { atomic_store(&others, bytes); }

API cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    ENTER("cuMemGetInfo_v2", CALL_CONTEXT, 0, 0);
    if (!free_bytes || !total_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    size_t taken = context_handle_locked()->device->used + atomic_load(&others);
    *free_bytes = taken < standin.device_bytes ? standin.device_bytes - taken : 0;
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
    *pool = block && block->chunk->heap != &block->chunk->heap->device->plain ? block->chunk->heap : NULL;
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

/* Of this device; NULL: host memory. */
static CUcontext context_of_memory_locked(const struct device *device)
{
    CUcontext context = context_handle_locked();
    return !device || (context && context->device == device) ? context : device->primary;
}

static CUresult pointer_attribute_locked(void *out, CUpointer_attribute which, CUdeviceptr address)
{
    CUdeviceptr begin = address;
    size_t bytes = 0;
    CUmemoryPool pool = NULL;
    bool device = device_range_locked(address, &begin, &bytes, &pool);
    const struct device *owner = device ? mapping_at_locked(address)->piece->device : NULL;
    bool host = !device && host_pinned_locked((void *)(uintptr_t)address, 1);
    if (!device && !host)
        return CUDA_ERROR_INVALID_VALUE;
    switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)out = context_of_memory_locked(owner); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)out = device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)out = address; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (device)
            return CUDA_ERROR_INVALID_VALUE;
        *(void **)out = (void *)(uintptr_t)address;
        break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)out = begin; break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(bool *)out = false; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)out = owner ? device_ordinal(owner) : 0; break;
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
    if (!handle || !block ||
        block->chunk->heap != &block->chunk->heap->device->plain) /* neither pools nor cuMemMap can be exported so */
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
