/* capture.h - which streams of the program are capturing a CUDA graph. On them nothing may be loaded or waited for.
 * Threads: any. */
#ifndef CWS_SHIM_CUDA_CAPTURE_H
#define CWS_SHIM_CUDA_CAPTURE_H
#include "hooks.h"
#include <stdatomic.h>

/* True while some stream of the process captures; then is this one of them (capture.c)? */
extern _Atomic unsigned cws_cuda_captures;
bool cws_cuda_is_capturing_slow(CUstream stream);
void cws_cuda_capture_gone(CUstream stream); /* before it is destroyed */
static inline bool cws_cuda_is_capturing(CUstream stream)
{
    return CWS_UNLIKELY(atomic_load_explicit(&cws_cuda_captures, memory_order_relaxed)) &&
           cws_cuda_is_capturing_slow(stream);
}

#endif
