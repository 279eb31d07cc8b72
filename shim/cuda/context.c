/* context.c - hooks that tell how far streams have come: a stream is destroyed, a context is synchronized. */
#include "capture.h"
#include "small.h"

static void stream_gone(CUstream stream)
{
    unsigned count = atomic_load(&cws_cuda_device_count);
    if (stream)
        cws_cuda_small_stream_gone(stream);
    cws_cuda_capture_gone(stream);
    for (unsigned i = 0; stream && i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (gpu)
            cws_gpu_stream_gone(gpu, stream);
    }
}

CUresult cws_do_cuStreamDestroy_v2(cws_fn_cuStreamDestroy_v2 real, CUstream own, CUstream stream)
{
    (void)own;
    stream_gone(stream);
    return real(stream);
}

CUresult cws_do_cuStreamDestroy(cws_fn_cuStreamDestroy real, CUstream own, CUstream stream)
{
    (void)own;
    stream_gone(stream);
    return real(stream);
}

CUresult cws_do_cuCtxSynchronize(cws_fn_cuCtxSynchronize real, CUstream own)
{
    (void)own;
    CUresult result = real();
    struct cws_gpu *gpu = result == CUDA_SUCCESS ? cws_cuda_manager_if_open() : NULL;
    if (gpu)
        cws_gpu_synchronized(gpu);
    return result;
}

/* These are hooked only for their results: an error of a kernel shows here. */
CUresult cws_do_cuStreamSynchronize(cws_fn_cuStreamSynchronize real, CUstream own, CUstream stream)
{
    (void)own;
    return real(stream);
}

CUresult cws_do_cuStreamQuery(cws_fn_cuStreamQuery real, CUstream own, CUstream stream)
{
    (void)own;
    return real(stream);
}

CUresult cws_do_cuEventSynchronize(cws_fn_cuEventSynchronize real, CUstream own, CUevent event)
{
    (void)own;
    return real(event);
}

CUresult cws_do_cuEventQuery(cws_fn_cuEventQuery real, CUstream own, CUevent event)
{
    (void)own;
    return real(event);
}
