/* state.h - whether paging on the GPU is on in this process: the one word that every hook of the driver reads first.
 * Threads: any. */
#ifndef CWS_SHIM_CUDA_STATE_H
#define CWS_SHIM_CUDA_STATE_H
#include <stdatomic.h>
#include <stdbool.h>

enum cws_cuda_state {
    CWS_CUDA_OFF, /* no budget: every call passes */
    CWS_CUDA_ON,
    CWS_CUDA_FORKED, /* child of a process that had managers: every call fails, the first with a line */
};
extern _Atomic int cws_cuda_state;
static inline bool cws_cuda_is_on(void)
{
    return atomic_load_explicit(&cws_cuda_state, memory_order_relaxed) != CWS_CUDA_OFF;
}

/* From the shim's constructor, when CODEC_VRAM_BUDGET is set (start.c). */
void cws_cuda_start(void);

#endif
