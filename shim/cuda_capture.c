/* cuda_capture.c - streams that capture: nothing runs on them, so nothing is made resident, recorded or waited for. */
#include "cuda_shim.h"

#include <pthread.h>

_Atomic unsigned cws_cuda_captures; /* begun and not ended */

/* Streams known to capture: those that began, and those that joined by waiting for one that did. */
static struct {
    CUstream stream;
    bool began;
    struct cws_gpu *gpu;
} capturing[64];
enum { CAPTURING_MAX = sizeof capturing / sizeof *capturing };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void note(CUstream stream, bool began)
{
    int free_slot = -1;
    bool known = false;
    struct cws_gpu *gpu = cws_cuda_manager_if_open();
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CAPTURING_MAX; i++) {
        if (capturing[i].stream == stream) {
            known = true;
            capturing[i].began |= began;
        } else if (!capturing[i].stream && free_slot < 0) {
            free_slot = i;
        }
    }
    if (!known && free_slot >= 0) {
        capturing[free_slot].stream = stream;
        capturing[free_slot].began = began;
        capturing[free_slot].gpu = gpu;
    }
    pthread_mutex_unlock(&lock);
    if (!known && free_slot >= 0 && gpu)
        cws_gpu_stream_capturing(gpu, stream, /* begins */ true);
}

static bool asks_capturing(CUstream stream)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    /* For the legacy stream while another one captures this is an error: it does not capture itself. */
    CUresult result = cws_cuda_driver()->stream_capturing
                          ? cws_cuda_driver()->stream_capturing(stream, &status)
                          : CUDA_ERROR_NOT_INITIALIZED;
    return result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

bool cws_cuda_is_capturing_slow(CUstream stream)
{
    if (!asks_capturing(stream))
        return false;
    note(stream, /* began */ false);
    return true;
}

/* A capture ended: so did it for all streams that had joined it. `origin` ends in any case. */
static void forget_ended(CUstream origin)
{
    for (int i = 0; i < CAPTURING_MAX; i++) {
        pthread_mutex_lock(&lock);
        CUstream stream = capturing[i].stream;
        bool began = capturing[i].began;
        struct cws_gpu *gpu = capturing[i].gpu;
        pthread_mutex_unlock(&lock);
        if (!stream || (stream != origin && asks_capturing(stream)))
            continue;
        pthread_mutex_lock(&lock);
        bool ours = capturing[i].stream == stream;
        if (ours)
            capturing[i].stream = NULL;
        pthread_mutex_unlock(&lock);
        if (!ours)
            continue;
        if (began)
            atomic_fetch_sub(&cws_cuda_captures, 1);
        if (gpu && cws_cuda_manager_if_open() == gpu)
            cws_gpu_stream_capturing(gpu, stream, /* begins */ false);
    }
}

static CUresult begun(CUresult result, CUstream stream)
{
    CUresult ignored;
    if (result == CUDA_SUCCESS) {
        cws_cuda_manager(&ignored); /* what is asked of the driver later is then there */
        atomic_fetch_add(&cws_cuda_captures, 1);
        note(stream, /* began */ true);
    }
    return result;
}

CUresult cws_do_cuStreamBeginCapture_v2(cws_fn_cuStreamBeginCapture_v2 real, CUstream own, CUstream stream, CUstreamCaptureMode mode)
{
    return begun(real(stream, mode), cws_cuda_stream(stream, own));
}

CUresult cws_do_cuStreamBeginCapture(cws_fn_cuStreamBeginCapture real, CUstream own, CUstream stream)
{
    return begun(real(stream), cws_cuda_stream(stream, own));
}

CUresult cws_do_cuStreamBeginCaptureToGraph(cws_fn_cuStreamBeginCaptureToGraph real, CUstream own, CUstream stream, CUgraph graph,
                                            const CUgraphNode *after, const void *edges, size_t count, CUstreamCaptureMode mode)
{
    return begun(real(stream, graph, after, edges, count, mode), cws_cuda_stream(stream, own));
}

CUresult cws_do_cuStreamEndCapture(cws_fn_cuStreamEndCapture real, CUstream own, CUstream stream, CUgraph *out)
{
    CUresult result = real(stream, out);
    forget_ended(cws_cuda_stream(stream, own));
    return result;
}

void cws_cuda_capture_gone(CUstream stream)
{
    if (atomic_load_explicit(&cws_cuda_captures, memory_order_relaxed))
        forget_ended(stream);
}
