/* nvtx.h - ranges in a profiler's time line (Nsight Systems and others) around launches that wait for weights, in the
 * domain "codecllm".
 *
 * NVTX has no library any more: a profiler names one of its own in NVTX_INJECTION64_PATH, and whoever has ranges to
 * tell loads it and lets it fill in functions. This does the same, so nothing has to be there to build or to run;
 * without the variable it costs a branch. Faults of the host pager are not told: a profiler may allocate, and the
 * thread that faults may hold the allocator's lock (CODEC_TRACE has them).
 * Threads: any, after cws_nvtx_start. Not from signal handlers. */
#ifndef CWS_NVTX_H
#define CWS_NVTX_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

extern _Atomic bool cws_nvtx_attached; /* read it by cws_nvtx_is_on */
static inline bool cws_nvtx_is_on(void)
{
    return __builtin_expect(atomic_load_explicit(&cws_nvtx_attached, memory_order_relaxed), false);
}

/* Looks for a profiler, once; later calls do nothing. A library that cannot be used is left alone, as NVTX itself
 * does. */
void cws_nvtx_start(void);
/* A range of this thread; they nest. The text is copied. True: it has begun, and wants its pop. */
bool cws_nvtx_push(const char *text, uint64_t bytes);
void cws_nvtx_pop(void);
#endif
