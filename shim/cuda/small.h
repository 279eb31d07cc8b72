/* small.h - the cache of freed stream-ordered allocations that are too small to be paged. Threads: any. */
#ifndef CWS_SHIM_CUDA_SMALL_H
#define CWS_SHIM_CUDA_SMALL_H
#include "device.h"

/* cuMemAllocAsync for 0 < bytes < CWS_GPU_RANGE_MIN on a stream that does not capture; order: what `stream` is. What an
 * earlier allocation of about this size left on this stream, or the driver's, which is `real`. */
CUresult cws_cuda_small_alloc(cws_fn_cuMemAllocAsync real, struct cws_gpu *gpu, CUdeviceptr *out, size_t bytes,
                              CUstream stream, CUstream order);
enum cws_cuda_small_end {
    CWS_CUDA_SMALL_NOT_OURS,    /* not known here, or not any more: the driver is to free it */
    CWS_CUDA_SMALL_KEPT,        /* freed: there is nothing more to do */
    CWS_CUDA_SMALL_FREED_TWICE, /* nothing happened */
};
/* Frees a block in the order of a stream. current: the manager of the current context where there are several, else
 * NULL. */
enum cws_cuda_small_end cws_cuda_small_free(CUdeviceptr at, CUstream order, bool may_keep,
                                            const struct cws_gpu *current);
/* Before a stream is destroyed: gives the blocks that it freed back to the driver. */
void cws_cuda_small_stream_gone(CUstream stream);
/* The same for every stream of the manager's device, unless one captures. */
void cws_cuda_small_release(const struct cws_gpu *gpu);
/* The manager is about to close. */
void cws_cuda_small_forget_manager(struct cws_gpu *gpu);

#endif
