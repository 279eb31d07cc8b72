/* entry.c - the functions of the CUDA driver as the program calls them: each passes the call to its hook's body, or
 * straight to the driver. */
#include "use.h"

#include <pthread.h>

/* Set while a body runs on this thread: a call that the real driver makes to one of its own exports is not the
 * program's. */
static __thread bool inside __attribute__((tls_model("initial-exec")));
static __thread int cancel_state __attribute__((tls_model("initial-exec"))); /* the program's, meanwhile */

/* The common way in. False: pass the call on, or answer *result where `forked`. Inside, the thread is not cancelled: a
 * launch that waits for memory would leave the manager locked. What waited happens at the next cancellation point
 * behind the call (at once, where the thread asked for that). */
static inline bool enter(bool *forked)
{
    int state = atomic_load_explicit(&cws_cuda_state, memory_order_acquire);
    *forked = CWS_UNLIKELY(state == CWS_CUDA_FORKED);
    if (CWS_UNLIKELY(state == CWS_CUDA_OFF || inside))
        return false;
    inside = true;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    return true;
}

static inline CUresult leave(CUresult result)
{
    inside = false;
    if (CWS_UNLIKELY(result == CUDA_ERROR_ILLEGAL_ADDRESS))
        cws_cuda_explain(result);
    pthread_setcancelstate(cancel_state, NULL);
    return result;
}

#define ENTRY(name, type, parameters, pass, call)                                                                      \
    CUresult cws_hook_##name parameters                                                                                \
    {                                                                                                                  \
        bool forked;                                                                                                   \
        cws_fn_##type real = CWS_CUDA_REAL(name);                                                                      \
        if (!enter(&forked))                                                                                           \
            return pass;                                                                                               \
        CUresult result_ = forked ? cws_cuda_refuse_forked() : call;                                                   \
        return leave(result_);                                                                                         \
    }

#define CWS_CUDA(symbol, since, parameters, ...)                                                                       \
    ENTRY(symbol, symbol, parameters, real(__VA_ARGS__), cws_do_##symbol(real, CU_STREAM_LEGACY, __VA_ARGS__))
#define CWS_CUDA_S(symbol, variant, since, parameters, ...)                                                            \
    CWS_CUDA(symbol, since, parameters, __VA_ARGS__)                                                                   \
    ENTRY(symbol##variant, symbol, parameters, real(__VA_ARGS__),                                                      \
          cws_do_##symbol(real, CU_STREAM_PER_THREAD, __VA_ARGS__))
#define CWS_CUDA_VOID(symbol, since) ENTRY(symbol, symbol, (void), real(), cws_do_##symbol(real, CU_STREAM_LEGACY))
#define CWS_CUDA_USED(symbol, parameters)
#include "hooks.def"
