/* capture.c - streams that capture a graph. Nothing runs on them, so nothing is made resident, recorded or waited
 * for. */
#include "capture.h"
#include "device.h"
#include "store/base/lock.h"

#include <pthread.h>

_Atomic unsigned cws_cuda_captures; /* begun and not ended */

/* Streams on which a capture began. */
static struct {
    CUstream stream;
    pthread_t thread; /* whose CU_STREAM_PER_THREAD it is */
} capturing[64];
enum { CAPTURING_MAX = sizeof capturing / sizeof *capturing };
static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_CUDA_CAPTURE);

static bool asks_capturing(CUstream stream)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    const struct cws_driver *d = cws_cuda_driver();
    /* For the legacy stream while another one captures this is an error: it does not capture itself. */
    return d->stream_capturing && d->stream_capturing(stream, &status) == CUDA_SUCCESS &&
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

bool cws_cuda_is_capturing_slow(CUstream stream) { return asks_capturing(stream); }

/* Before a stream captures, the manager marks its progress for the last time. */
static void announce(CUstream stream)
{
    CUresult ignored;
    struct cws_gpu *gpu = cws_cuda_manager(&ignored);
    if (gpu)
        cws_gpu_stream_captures(gpu, stream);
}

static void note(CUstream stream)
{
    cws_lock_take(&lock);
    /* if the table is full the count stays up for good: then each stream is asked */
    atomic_fetch_add(&cws_cuda_captures, 1);
    for (int i = 0; i < CAPTURING_MAX; i++) {
        if (!capturing[i].stream) {
            capturing[i].stream = stream;
            capturing[i].thread = pthread_self();
            break;
        }
    }
    cws_lock_drop(&lock);
}

/* `origin` does not capture any more. Others may have ended too, so their streams are asked. Another thread's
 * CU_STREAM_PER_THREAD cannot be asked from here. */
static void forget_ended(CUstream origin)
{
    cws_lock_take(&lock);
    for (int i = 0; i < CAPTURING_MAX; i++) {
        CUstream stream = capturing[i].stream;
        if (!stream || (stream == CU_STREAM_PER_THREAD && !pthread_equal(capturing[i].thread, pthread_self())))
            continue;
        if (stream != origin && asks_capturing(stream))
            continue;
        capturing[i].stream = NULL;
        atomic_fetch_sub(&cws_cuda_captures, 1);
    }
    cws_lock_drop(&lock);
}

#define BEGIN(call)                                                                                                    \
    do {                                                                                                               \
        CUstream order = cws_cuda_stream(stream, own);                                                                 \
        announce(order);                                                                                               \
        CUresult result = call;                                                                                        \
        if (result == CUDA_SUCCESS)                                                                                    \
            note(order);                                                                                               \
        return result;                                                                                                 \
    } while (0)

CUresult cws_do_cuStreamBeginCapture_v2(cws_fn_cuStreamBeginCapture_v2 real, CUstream own, CUstream stream,
                                        CUstreamCaptureMode mode)
{
    BEGIN(real(stream, mode));
}

CUresult cws_do_cuStreamBeginCapture(cws_fn_cuStreamBeginCapture real, CUstream own, CUstream stream)
{
    BEGIN(real(stream));
}

CUresult cws_do_cuStreamBeginCaptureToGraph(cws_fn_cuStreamBeginCaptureToGraph real, CUstream own, CUstream stream,
                                            CUgraph graph, const CUgraphNode *after, const void *edges, size_t count,
                                            CUstreamCaptureMode mode)
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
CUresult cws_do_cuStreamWaitEvent(cws_fn_cuStreamWaitEvent real, CUstream own, CUstream stream, CUevent event,
                                  unsigned flags)
{
    CUstream order = cws_cuda_stream(stream, own);
    if (!atomic_load_explicit(&cws_cuda_captures, memory_order_relaxed) || asks_capturing(order))
        return real(stream, event, flags);
    announce(order);
    return real(stream, event, flags);
}
