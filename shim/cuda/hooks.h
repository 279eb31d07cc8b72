/* hooks.h - the replaced functions of the CUDA driver: entry points, bodies, pointers to the real ones.
 *
 * The program reaches an entry point cws_hook_NAME (exported as NAME) by dlsym, by cuGetProcAddress or by being linked
 * with -lcuda. The entry point (entry.c) calls the body cws_do_NAME, with the real function and the stream that NULL
 * stands for, or passes straight to the real function: when paging is off, and when the driver itself or a body called
 * it. Nothing here may be called from a signal handler. Threads: any. */
#ifndef CWS_SHIM_CUDA_HOOKS_H
#define CWS_SHIM_CUDA_HOOKS_H
#include "store/base/driver.h"
#include "types.h"
#include "shim/libc/hooks.h"
#include <stdbool.h>

#define CWS_BARE(...) __VA_ARGS__ /* (a, b) without its parentheses */

/* Types. A variant has the type of its symbol. */
#define CWS_CUDA(symbol, since, parameters, ...) typedef CUresult(*cws_fn_##symbol) parameters;
#define CWS_CUDA_S(symbol, variant, since, parameters, ...) CWS_CUDA(symbol, since, parameters)
#define CWS_CUDA_VOID(symbol, since) CWS_CUDA(symbol, since, (void))
#define CWS_CUDA_USED(symbol, parameters) CWS_CUDA(symbol, 0, parameters)
#include "hooks.def"
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED

/* Entry points. */
#define CWS_CUDA(symbol, since, parameters, ...) CWS_EXPORT CUresult cws_hook_##symbol parameters __asm__(#symbol);
#define CWS_CUDA_S(symbol, variant, since, parameters, ...)                                                            \
    CWS_CUDA(symbol, since, parameters)                                                                                \
    CWS_EXPORT CUresult cws_hook_##symbol##variant parameters __asm__(#symbol #variant);
#define CWS_CUDA_VOID(symbol, since) CWS_CUDA(symbol, since, (void))
#define CWS_CUDA_USED(symbol, parameters)
#include "hooks.def"
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED

/* Bodies. `own`: the stream that NULL, or a call without a stream, means. */
#define CWS_CUDA(symbol, since, parameters, ...)                                                                       \
    CUresult cws_do_##symbol(cws_fn_##symbol real, CUstream own, CWS_BARE parameters);
#define CWS_CUDA_S(symbol, variant, since, parameters, ...) CWS_CUDA(symbol, since, parameters)
#define CWS_CUDA_VOID(symbol, since) CUresult cws_do_##symbol(cws_fn_##symbol real, CUstream own);
#define CWS_CUDA_USED(symbol, parameters)
#include "hooks.def"
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED

/* The real functions. NULL until first needed. */
#define CWS_CUDA(symbol, since, parameters, ...) cws_fn_##symbol real_##symbol;
#define CWS_CUDA_S(symbol, variant, since, parameters, ...) cws_fn_##symbol real_##symbol, real_##symbol##variant;
#define CWS_CUDA_VOID(symbol, since) cws_fn_##symbol real_##symbol;
#define CWS_CUDA_USED(symbol, parameters) cws_fn_##symbol real_##symbol;
struct cws_cuda_real {
#include "hooks.def"
};
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED
extern struct cws_cuda_real cws_cuda_real;

#define CWS_CUDA(symbol, since, parameters, ...) CWS_CUDA_##symbol,
#define CWS_CUDA_S(symbol, variant, since, parameters, ...) CWS_CUDA_##symbol, CWS_CUDA_##symbol##variant,
#define CWS_CUDA_VOID(symbol, since) CWS_CUDA_##symbol,
#define CWS_CUDA_USED(symbol, parameters) CWS_CUDA_##symbol,
enum cws_cuda_index {
#include "hooks.def"
    CWS_CUDA_COUNT
};
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED

/* Fills in one entry and returns it; a function that returns CUDA_ERROR_NOT_FOUND where this driver has none. */
void *cws_cuda_find(enum cws_cuda_index which);
#define CWS_CUDA_REAL(symbol)                                                                                          \
    (__extension__({                                                                                                   \
        __typeof__(cws_cuda_real.real_##symbol) real_ = __atomic_load_n(&cws_cuda_real.real_##symbol,                  \
                                                                        __ATOMIC_RELAXED);                             \
        CWS_UNLIKELY(!real_) ? (__typeof__(real_))cws_cuda_find(CWS_CUDA_##symbol) : real_;                            \
    }))

/* The replacement for what the driver answered to cuGetProcAddress(name, version, flags), or `real` itself. */
void *cws_cuda_substitute(void *real, const char *name, int version, unsigned long long flags);
/* The address of a symbol in the driver, past the hooks; NULL: none. Fits cws_driver_fill. */
void *cws_cuda_symbol(void *arg, const char *symbol);
/* dlsym.c: the real dlsym (NULL until first needed), and the way to it. */
typedef void *(*cws_dlsym_function)(void *handle, const char *name);
extern cws_dlsym_function cws_real_dlsym __attribute__((visibility("hidden")));
__attribute__((visibility("hidden"))) cws_dlsym_function cws_find_dlsym(void);
/* The answer of our dlsym for a name of cu[A-Z]..., or NULL: the real dlsym is to answer. */
__attribute__((visibility("hidden"))) void *cws_cuda_dlsym(void *handle, const char *name);
/* Functions of the driver that are replaced, for CODEC_VERBOSE. */
unsigned cws_cuda_hook_count(void);

#endif
