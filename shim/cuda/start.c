/* start.c - turns paging on the GPU on, connects its parts by callbacks, and makes calls fail in a forked child. */
#include "device.h"
#include "plain.h"
#include "shim/say.h"
#include "small.h"
#include "use.h"

#include <pthread.h>

static void forget(struct cws_gpu *gpu)
{
    cws_cuda_plain_forget_manager(gpu);
    cws_cuda_small_release(gpu);
    cws_cuda_small_forget_manager(gpu);
}

void cws_cuda_start(void)
{
    static const struct cws_cuda_parts parts = {.release = cws_cuda_small_release, .forget = forget};
    cws_cuda_set_parts(&parts);
    pthread_atfork(NULL, NULL, cws_cuda_fork_child);
    atomic_store(&cws_cuda_state, CWS_CUDA_ON);
}

CUresult cws_cuda_refuse_forked(void)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&said))
        cws_shim_say("a forked process cannot use the GPU of its parent: CUDA calls fail here (multiprocessing: use "
                     "the start method spawn)");
    return CUDA_ERROR_NOT_INITIALIZED;
}
