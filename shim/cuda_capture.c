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

static bool asks_capturing(CUstream stream)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    const struct cws_driver *d = cws_cuda_driver();
    /* For the legacy stream while another one captures this is an error: it does not capture itself. */
    return d->stream_capturing && d->stream_capturing(stream, &status) == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

bool cws_cuda_is_capturing_slow(CUstream stream) { return asks_capturing(stream); }

/* --- telling the manager --------------------------------------------------------------------------------- */

/* The manager marks the stream's progress a last time: before the stream captures. */
static struct cws_gpu *announce(CUstream stream)
{
    CUresult ignored;
    struct cws_gpu *gpu = cws_cuda_manager(&ignored);
    if (gpu)
        cws_gpu_stream_capturing(gpu, stream, /* begins */ true);
    return gpu;
}

static void note(CUstream stream, bool began, struct cws_gpu *gpu)
{
    if (began)
        atomic_fetch_add(&cws_cuda_captures, 1);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CAPTURING_MAX; i++) {
        if (!capturing[i].stream) {
            capturing[i].stream = stream;
            capturing[i].began = began;
            capturing[i].gpu = gpu;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

/* A capture ended: so did it for all streams that had joined it. `origin` ends in any case. */
static void forget_ended(CUstream origin)
{
    for (int i = 0; i < CAPTURING_MAX; i++) {
        pthread_mutex_lock(&lock);
        CUstream stream = capturing[i].stream;
        pthread_mutex_unlock(&lock);
        if (!stream || (stream != origin && asks_capturing(stream)))
            continue;
        pthread_mutex_lock(&lock);
        bool ours = capturing[i].stream == stream, began = capturing[i].began;
        struct cws_gpu *gpu = capturing[i].gpu;
        if (ours)
            capturing[i].stream = NULL;
        pthread_mutex_unlock(&lock);
        if (ours && began)
            atomic_fetch_sub(&cws_cuda_captures, 1);
        if (ours && gpu && cws_cuda_manager_if_open() == gpu)
            cws_gpu_stream_capturing(gpu, stream, /* begins */ false);
    }
}

#define BEGIN(call)                                                                                                          \
    do {                                                                                                                     \
        CUstream order = cws_cuda_stream(stream, own);                                                                       \
        struct cws_gpu *gpu = announce(order);                                                                               \
        CUresult result = call;                                                                                              \
        if (result == CUDA_SUCCESS)                                                                                          \
            note(order, /* began */ true, gpu);                                                                              \
        else if (gpu)                                                                                                        \
            cws_gpu_stream_capturing(gpu, order, /* begins */ false);                                                        \
        return result;                                                                                                       \
    } while (0)

CUresult cws_do_cuStreamBeginCapture_v2(cws_fn_cuStreamBeginCapture_v2 real, CUstream own, CUstream stream, CUstreamCaptureMode mode)
{
    BEGIN(real(stream, mode));
}

CUresult cws_do_cuStreamBeginCapture(cws_fn_cuStreamBeginCapture real, CUstream own, CUstream stream)
{
    BEGIN(real(stream));
}

CUresult cws_do_cuStreamBeginCaptureToGraph(cws_fn_cuStreamBeginCaptureToGraph real, CUstream own, CUstream stream, CUgraph graph,
                                            const CUgraphNode *after, const void *edges, size_t count, CUstreamCaptureMode mode)
{
    BEGIN(real(stream, graph, after, edges, count, mode));
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

/* A stream that waits for one that captures joins its capture. */
CUresult cws_do_cuStreamWaitEvent(cws_fn_cuStreamWaitEvent real, CUstream own, CUstream stream, CUevent event, unsigned flags)
{
    CUstream order = cws_cuda_stream(stream, own);
    if (!atomic_load_explicit(&cws_cuda_captures, memory_order_relaxed) || asks_capturing(order))
        return real(stream, event, flags);
    struct cws_gpu *gpu = announce(order);
    CUresult result = real(stream, event, flags);
    if (asks_capturing(order))
        note(order, /* began */ false, gpu);
    else if (gpu)
        cws_gpu_stream_capturing(gpu, order, /* begins */ false);
    return result;
}
