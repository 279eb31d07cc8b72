/* driver.h - every call that this project makes to the CUDA driver goes through one table of function pointers, so that
 * the real driver and the one that the tests stand in for it are exchangeable, and the shim's own calls pass by its
 * hooks.
 * Threads: a table is immutable once filled. */
#ifndef CWS_DRIVER_H
#define CWS_DRIVER_H
#include "cuda_abi.h"
#include "error.h"
#include <stdbool.h>

/* CWS_DRIVER_CALL(member, "symbol of libcuda.so.1", (parameters)). Driver 12.4 has all of them. */
#define CWS_DRIVER_CALLS                                                                                               \
    CWS_DRIVER_CALL(init, "cuInit", (unsigned flags))                                                                  \
    CWS_DRIVER_CALL(driver_version, "cuDriverGetVersion", (int *version))                                              \
    CWS_DRIVER_CALL(error_name, "cuGetErrorName", (CUresult error, const char **name))                                 \
    CWS_DRIVER_CALL(device_get, "cuDeviceGet", (CUdevice * device, int ordinal))                                       \
    CWS_DRIVER_CALL(device_attribute, "cuDeviceGetAttribute", (int *value, CUdevice_attribute which, CUdevice device)) \
    CWS_DRIVER_CALL(device_total, "cuDeviceTotalMem_v2", (size_t * bytes, CUdevice device))                            \
    CWS_DRIVER_CALL(device_pool, "cuDeviceGetMemPool", (CUmemoryPool * pool, CUdevice device))                         \
    CWS_DRIVER_CALL(device_default_pool, "cuDeviceGetDefaultMemPool", (CUmemoryPool * pool, CUdevice device))          \
    CWS_DRIVER_CALL(device_graph_memory, "cuDeviceGetGraphMemAttribute",                                               \
                    (CUdevice device, CUgraphMem_attribute which, void *value))                                        \
    CWS_DRIVER_CALL(device_graph_trim, "cuDeviceGraphMemTrim", (CUdevice device))                                      \
    CWS_DRIVER_CALL(primary_retain, "cuDevicePrimaryCtxRetain", (CUcontext * context, CUdevice device))                \
    CWS_DRIVER_CALL(primary_release, "cuDevicePrimaryCtxRelease_v2", (CUdevice device))                                \
    CWS_DRIVER_CALL(context_get, "cuCtxGetCurrent", (CUcontext * context))                                             \
    CWS_DRIVER_CALL(context_set, "cuCtxSetCurrent", (CUcontext context))                                               \
    CWS_DRIVER_CALL(context_device, "cuCtxGetDevice", (CUdevice * device))                                             \
    CWS_DRIVER_CALL(context_sync, "cuCtxSynchronize", (void))                                                          \
    CWS_DRIVER_CALL(module_load, "cuModuleLoadData", (CUmodule * module, const void *image))                           \
    CWS_DRIVER_CALL(module_unload, "cuModuleUnload", (CUmodule module))                                                \
    CWS_DRIVER_CALL(module_function, "cuModuleGetFunction",                                                            \
                    (CUfunction * function, CUmodule module, const char *name))                                        \
    CWS_DRIVER_CALL(function_set, "cuFuncSetAttribute", (CUfunction function, CUfunction_attribute which, int value))  \
    CWS_DRIVER_CALL(function_param, "cuFuncGetParamInfo",                                                              \
                    (CUfunction function, size_t index, size_t * offset, size_t * bytes))                              \
    CWS_DRIVER_CALL(kernel_param, "cuKernelGetParamInfo",                                                              \
                    (CUkernel kernel, size_t index, size_t * offset, size_t * bytes))                                  \
    CWS_DRIVER_CALL(occupancy, "cuOccupancyMaxActiveBlocksPerMultiprocessor",                                          \
                    (int *blocks, CUfunction function, int block_threads, size_t dynamic_shared_bytes))                \
    CWS_DRIVER_CALL(launch, "cuLaunchKernel",                                                                          \
                    (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,         \
                     unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **params,        \
                     void **extra))                                                                                    \
    CWS_DRIVER_CALL(mem_info, "cuMemGetInfo_v2", (size_t * free_bytes, size_t * total_bytes))                          \
    CWS_DRIVER_CALL(mem_alloc, "cuMemAlloc_v2", (CUdeviceptr * address, size_t bytes))                                 \
    CWS_DRIVER_CALL(mem_free, "cuMemFree_v2", (CUdeviceptr address))                                                   \
    CWS_DRIVER_CALL(mem_alloc_async, "cuMemAllocAsync", (CUdeviceptr * address, size_t bytes, CUstream stream))        \
    CWS_DRIVER_CALL(mem_alloc_pool, "cuMemAllocFromPoolAsync",                                                         \
                    (CUdeviceptr * address, size_t bytes, CUmemoryPool pool, CUstream stream))                         \
    CWS_DRIVER_CALL(mem_free_async, "cuMemFreeAsync", (CUdeviceptr address, CUstream stream))                          \
    CWS_DRIVER_CALL(host_alloc, "cuMemHostAlloc", (void **memory, size_t bytes, unsigned flags))                       \
    CWS_DRIVER_CALL(host_free, "cuMemFreeHost", (void *memory))                                                        \
    CWS_DRIVER_CALL(host_register, "cuMemHostRegister_v2", (void *memory, size_t bytes, unsigned flags))               \
    CWS_DRIVER_CALL(host_unregister, "cuMemHostUnregister", (void *memory))                                            \
    CWS_DRIVER_CALL(host_device_address, "cuMemHostGetDevicePointer_v2",                                               \
                    (CUdeviceptr * address, void *memory, unsigned flags))                                             \
    CWS_DRIVER_CALL(copy_in, "cuMemcpyHtoD_v2", (CUdeviceptr to, const void *from, size_t bytes))                      \
    CWS_DRIVER_CALL(copy_out, "cuMemcpyDtoH_v2", (void *to, CUdeviceptr from, size_t bytes))                           \
    CWS_DRIVER_CALL(copy_in_async, "cuMemcpyHtoDAsync_v2",                                                             \
                    (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))                                 \
    CWS_DRIVER_CALL(copy_out_async, "cuMemcpyDtoHAsync_v2",                                                            \
                    (void *to, CUdeviceptr from, size_t bytes, CUstream stream))                                       \
    CWS_DRIVER_CALL(copy_async, "cuMemcpyDtoDAsync_v2",                                                                \
                    (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                                 \
    CWS_DRIVER_CALL(set8_async, "cuMemsetD8Async",                                                                     \
                    (CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream))                              \
    CWS_DRIVER_CALL(granularity, "cuMemGetAllocationGranularity",                                                      \
                    (size_t * bytes, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags which))         \
    CWS_DRIVER_CALL(                                                                                                   \
        reserve, "cuMemAddressReserve",                                                                                \
        (CUdeviceptr * address, size_t bytes, size_t alignment, CUdeviceptr hint, unsigned long long flags))           \
    CWS_DRIVER_CALL(unreserve, "cuMemAddressFree", (CUdeviceptr address, size_t bytes))                                \
    CWS_DRIVER_CALL(create, "cuMemCreate",                                                                             \
                    (CUmemGenericAllocationHandle * handle, size_t bytes, const CUmemAllocationProp *prop,             \
                     unsigned long long flags))                                                                        \
    CWS_DRIVER_CALL(release, "cuMemRelease", (CUmemGenericAllocationHandle handle))                                    \
    CWS_DRIVER_CALL(map, "cuMemMap",                                                                                   \
                    (CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,            \
                     unsigned long long flags))                                                                        \
    CWS_DRIVER_CALL(unmap, "cuMemUnmap", (CUdeviceptr address, size_t bytes))                                          \
    CWS_DRIVER_CALL(set_access, "cuMemSetAccess",                                                                      \
                    (CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count))                  \
    CWS_DRIVER_CALL(pool_get, "cuMemPoolGetAttribute", (CUmemoryPool pool, CUmemPool_attribute which, void *value))    \
    CWS_DRIVER_CALL(pool_set, "cuMemPoolSetAttribute", (CUmemoryPool pool, CUmemPool_attribute which, void *value))    \
    CWS_DRIVER_CALL(pool_trim, "cuMemPoolTrimTo", (CUmemoryPool pool, size_t keep_bytes))                              \
    CWS_DRIVER_CALL(stream_create, "cuStreamCreate", (CUstream * stream, unsigned flags))                              \
    CWS_DRIVER_CALL(stream_destroy, "cuStreamDestroy_v2", (CUstream stream))                                           \
    CWS_DRIVER_CALL(stream_sync, "cuStreamSynchronize", (CUstream stream))                                             \
    CWS_DRIVER_CALL(stream_query, "cuStreamQuery", (CUstream stream))                                                  \
    CWS_DRIVER_CALL(stream_wait, "cuStreamWaitEvent", (CUstream stream, CUevent event, unsigned flags))                \
    CWS_DRIVER_CALL(stream_context, "cuStreamGetCtx", (CUstream stream, CUcontext * context))                          \
    CWS_DRIVER_CALL(stream_capturing, "cuStreamIsCapturing", (CUstream stream, CUstreamCaptureStatus * status))        \
    CWS_DRIVER_CALL(capture_mode, "cuThreadExchangeStreamCaptureMode", (CUstreamCaptureMode * mode))                   \
    CWS_DRIVER_CALL(event_create, "cuEventCreate", (CUevent * event, unsigned flags))                                  \
    CWS_DRIVER_CALL(event_destroy, "cuEventDestroy_v2", (CUevent event))                                               \
    CWS_DRIVER_CALL(event_record, "cuEventRecord", (CUevent event, CUstream stream))                                   \
    CWS_DRIVER_CALL(event_query, "cuEventQuery", (CUevent event))                                                      \
    CWS_DRIVER_CALL(event_sync, "cuEventSynchronize", (CUevent event))                                                 \
    CWS_DRIVER_CALL(event_elapsed, "cuEventElapsedTime", (float *milliseconds, CUevent from, CUevent to))

struct cws_driver {
#define CWS_DRIVER_CALL(member, symbol, parameters) CUresult(*member) parameters;
    CWS_DRIVER_CALLS
#undef CWS_DRIVER_CALL
};

/* Fills *out by calling resolve(arg, symbol) for each call; NULL: not there. 0, or CWS_E_UNSUPPORTED naming the first
 * missing symbol. */
CWS_MUST_CHECK int cws_driver_fill(struct cws_driver *out, void *(*resolve)(void *arg, const char *symbol), void *arg,
                                   struct cws_error *err);

/* Loads libcuda.so.1 (never unloaded) and fills *out. CWS_E_UNSUPPORTED: no driver, or one older than 12.4. Does not
 * call cuInit. */
CWS_MUST_CHECK int cws_driver_load(struct cws_driver *out, struct cws_error *err);

/* Between these two the calling thread, which may be the program's, can ask and wait for what does not belong to a
 * capture: where some stream captures in a mode that forbids it to this thread, as it is forbidden to every thread by
 * the usual mode, that would end the capture. Returns the mode to be restored. */
CUstreamCaptureMode cws_driver_relax(const struct cws_driver *driver, bool *exchanged);
void cws_driver_restore(const struct cws_driver *driver, CUstreamCaptureMode mode, bool exchanged);
/* Waits so for what is queued on a stream that is not capturing. */
CUresult cws_driver_wait(const struct cws_driver *driver, CUstream stream);

/* Records a driver error: "WHAT: CUDA_ERROR_...". Returns the code, -20000 - error. `driver` may be NULL. */
int cws_driver_fail(const struct cws_driver *driver, struct cws_error *err, CUresult error, const char *what);

#endif
