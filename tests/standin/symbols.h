/* symbols.h - every call that the stand-in exports. STREAM: has a per-thread variant NAME_ptsz; LEGACY: NAME_ptds. */
/* clang-format off */
#ifndef STANDIN_SYMBOLS_H
#define STANDIN_SYMBOLS_H
#define STANDIN_PLAIN(X) \
    X(cuCtxCreate_v2) X(cuCtxDestroy_v2) X(cuCtxGetCurrent) X(cuCtxGetDevice) X(cuCtxPopCurrent_v2)                \
    X(cuCtxPushCurrent_v2) X(cuCtxSetCurrent) X(cuCtxSynchronize) X(cuDeviceGet) X(cuDeviceGetAttribute)           \
    X(cuDeviceGetCount) X(cuDeviceGetDefaultMemPool) X(cuDeviceGetGraphMemAttribute) X(cuDeviceGetMemPool)         \
    X(cuDeviceGetName) X(cuDeviceGetUuid_v2) X(cuDeviceGraphMemTrim) X(cuDevicePrimaryCtxGetState)                 \
    X(cuDevicePrimaryCtxRelease_v2) X(cuDevicePrimaryCtxReset_v2) X(cuDevicePrimaryCtxRetain)                      \
    X(cuDevicePrimaryCtxSetFlags_v2) X(cuDeviceSetMemPool) X(cuDeviceTotalMem_v2) X(cuDriverGetVersion)            \
    X(cuEventCreate) X(cuEventDestroy_v2) X(cuEventElapsedTime) X(cuEventQuery) X(cuEventSynchronize)              \
    X(cuFuncGetAttribute) X(cuFuncGetModule) X(cuFuncGetName) X(cuFuncGetParamInfo) X(cuFuncSetAttribute)          \
    X(cuGetErrorName) X(cuGetErrorString) X(cuGetProcAddress) X(cuGetProcAddress_v2) X(cuGraphCreate)              \
    X(cuGraphDestroy) X(cuGraphExecDestroy) X(cuGraphGetNodes) X(cuGraphInstantiateWithFlags)                      \
    X(cuGraphKernelNodeGetParams_v2) X(cuGraphMemAllocNodeGetParams) X(cuGraphMemFreeNodeGetParams) X(cuGraphMemcpyNodeGetParams) X(cuGraphMemsetNodeGetParams) X(cuGraphNodeGetType) X(cuInit) X(cuIpcGetMemHandle) X(cuKernelGetFunction)   \
    X(cuKernelGetName) X(cuKernelGetParamInfo) X(cuLibraryGetKernel) X(cuLibraryLoadData) X(cuLibraryUnload)       \
    X(cuMemAddressFree) X(cuMemAddressReserve) X(cuMemAllocHost_v2) X(cuMemAllocPitch_v2) X(cuMemAlloc_v2)         \
    X(cuMemCreate) X(cuMemFreeHost) X(cuMemFree_v2) X(cuMemGetAddressRange_v2) X(cuMemGetAllocationGranularity)    \
    X(cuMemGetAllocationPropertiesFromHandle) X(cuMemGetInfo_v2) X(cuMemHostAlloc)                                 \
    X(cuMemHostGetDevicePointer_v2) X(cuMemHostRegister_v2) X(cuMemHostUnregister) X(cuMemMap)                     \
    X(cuMemPoolCreate) X(cuMemPoolDestroy) X(cuMemPoolGetAttribute) X(cuMemPoolSetAttribute) X(cuMemPoolTrimTo)    \
    X(cuMemRelease) X(cuMemSetAccess) X(cuMemUnmap) X(cuModuleGetFunction) X(cuModuleLoadData)                     \
    X(cuModuleLoadDataEx) X(cuModuleLoadFatBinary) X(cuModuleUnload)                                               \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor) X(cuPointerGetAttribute) X(cuPointerGetAttributes)              \
    X(cuStreamCreate) X(cuStreamCreateWithPriority) X(cuStreamDestroy_v2) X(cuTensorMapEncodeTiled)       \
    X(cuTensorMapReplaceAddress) X(cuThreadExchangeStreamCaptureMode)
#define STANDIN_STREAM(X) \
    X(cuEventRecord) X(cuEventRecordWithFlags) X(cuGraphInstantiateWithParams) X(cuGraphLaunch)                    \
    X(cuLaunchCooperativeKernel) X(cuLaunchHostFunc) X(cuLaunchKernel) X(cuLaunchKernelEx) X(cuMemAllocAsync)      \
    X(cuMemAllocFromPoolAsync) X(cuMemFreeAsync) X(cuMemcpy2DAsync_v2) X(cuMemcpy3DAsync_v2)                       \
    X(cuMemcpy3DPeerAsync) X(cuMemcpyAsync) X(cuMemcpyBatchAsync) X(cuMemcpyDtoDAsync_v2)                          \
    X(cuMemcpyDtoHAsync_v2) X(cuMemcpyHtoDAsync_v2) X(cuMemcpyPeerAsync) X(cuMemsetD16Async)                       \
    X(cuMemsetD2D16Async) X(cuMemsetD2D32Async) X(cuMemsetD2D8Async) X(cuMemsetD32Async) X(cuMemsetD8Async)        \
    X(cuStreamBeginCapture_v2) X(cuStreamEndCapture) X(cuStreamGetCaptureInfo_v2) X(cuStreamGetCtx)                \
    X(cuStreamGetFlags) X(cuStreamGetPriority) X(cuStreamIsCapturing) X(cuStreamQuery) X(cuStreamSynchronize)      \
    X(cuStreamWaitEvent)
#define STANDIN_LEGACY(X) \
    X(cuMemcpy) X(cuMemcpy2DUnaligned_v2) X(cuMemcpy2D_v2) X(cuMemcpy3DPeer) X(cuMemcpy3D_v2) X(cuMemcpyDtoD_v2)   \
    X(cuMemcpyDtoH_v2) X(cuMemcpyHtoD_v2) X(cuMemcpyPeer) X(cuMemsetD16_v2) X(cuMemsetD2D16_v2)                    \
    X(cuMemsetD2D32_v2) X(cuMemsetD2D8_v2) X(cuMemsetD32_v2) X(cuMemsetD8_v2)
#endif
