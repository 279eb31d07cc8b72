/* resolve.c - from names and addresses of the driver's functions to our hooks, and to the real functions. */
#include "hooks.h"
#include "state.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

_Atomic int cws_cuda_state; /* here, since names are resolved to hooks only where it is on */
struct cws_cuda_real cws_cuda_real;

static void *real_dlsym(void *handle, const char *name)
{
    cws_dlsym_function call = __atomic_load_n(&cws_real_dlsym, __ATOMIC_RELAXED);
    return (call ? call : cws_find_dlsym())(handle, name);
}

/* In the order of enum cws_cuda_index. hook NULL: used, not replaced. */
static const struct row {
    const char *symbol;
    void *hook;
    int since;
    bool per_thread;
} rows[CWS_CUDA_COUNT] = {
#define CWS_CUDA(symbol, since, parameters, ...) {#symbol, (void *)cws_hook_##symbol, since, false},
#define CWS_CUDA_S(symbol, variant, since, parameters, ...)                                                            \
    CWS_CUDA(symbol, since, parameters){#symbol #variant, (void *)cws_hook_##symbol##variant, since, true},
#define CWS_CUDA_VOID(symbol, since) CWS_CUDA(symbol, since, (void))
#define CWS_CUDA_USED(symbol, parameters) {#symbol, NULL, 0, false},
#include "hooks.def"
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED
};
_Static_assert(sizeof(struct cws_cuda_real) == CWS_CUDA_COUNT * sizeof(void *), "one pointer per symbol");

static CUresult absent(void) { return CUDA_ERROR_NOT_FOUND; }

/* The driver: as the program has loaded it. Never unloaded: hooks are called through kept addresses. */
static void *driver_library(void)
{
    static void *library;
    void *found = __atomic_load_n(&library, __ATOMIC_ACQUIRE);
    if (found)
        return found;
    found = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (!found)
        found = dlopen("libcuda.so.1", RTLD_LAZY);
    if (found)
        __atomic_store_n(&library, found, __ATOMIC_RELEASE);
    return found;
}

void *cws_cuda_symbol(void *arg, const char *symbol)
{
    (void)arg;
    void *library = driver_library();
    return library ? real_dlsym(library, symbol) : NULL;
}

void *cws_cuda_find(enum cws_cuda_index which)
{
    int saved = errno;
    void **slot = (void **)&cws_cuda_real + which;
    void *found = cws_cuda_symbol(NULL, rows[which].symbol);
    if (!found || found == rows[which].hook)
        found = (void *)absent;
    __atomic_store_n(slot, found, __ATOMIC_RELAXED);
    errno = saved;
    return found;
}

unsigned cws_cuda_hook_count(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < CWS_CUDA_COUNT; i++)
        count += rows[i].hook && ((void **)&cws_cuda_real)[i] && ((void **)&cws_cuda_real)[i] != (void *)absent;
    return count;
}

static bool answers_are_exports;

static void find_all(void)
{
    void *answer = NULL;
    for (unsigned i = 0; i < CWS_CUDA_COUNT; i++)
        cws_cuda_find((enum cws_cuda_index)i);
    CWS_CUDA_REAL(cuGetProcAddress_v2)("cuLaunchKernel", &answer, 12000, 0, NULL);
    answers_are_exports = answer == (void *)CWS_CUDA_REAL(cuLaunchKernel);
}

/* --- dlsym ------------------------------------------------------------------------------------- */

__attribute__((used)) void *cws_cuda_dlsym(void *handle, const char *name)
{
    if (!cws_cuda_is_on())
        return NULL;
    for (unsigned i = 0; i < CWS_CUDA_COUNT; i++) {
        if (!rows[i].hook || strcmp(rows[i].symbol, name) != 0)
            continue;
        /* Looked up in the global scope, this library's own export would be found whether there is a driver or not. */
        void *found = real_dlsym(handle == RTLD_DEFAULT ? RTLD_NEXT : handle, name);
        if (found == rows[i].hook || !found)
            found = handle == RTLD_DEFAULT || handle == RTLD_NEXT || found ? cws_cuda_symbol(NULL, name) : NULL;
        return found ? rows[i].hook : NULL;
    }
    return NULL;
}

/* --- cuGetProcAddress -------------------------------------------------------------------------- */

/* "cuMemcpyHtoD_v2_ptds" is a symbol of "cuMemcpyHtoD". */
static bool is_symbol_of(const char *symbol, const char *name)
{
    size_t len = strlen(name);
    if (strncmp(symbol, name, len) != 0)
        return false;
    const char *rest = symbol + len;
    if (rest[0] == '_' && rest[1] == 'v' && rest[2] >= '0' && rest[2] <= '9')
        rest += 3;
    return !*rest || strcmp(rest, "_ptsz") == 0 || strcmp(rest, "_ptds") == 0;
}

/* Drivers so far answer with the address of the exported symbol, which says exactly what the function is: an address
 * that is none of ours is then a version with other parameters. For a driver that does not do so, the name has to
 * do. */
void *cws_cuda_substitute(void *real, const char *name, int version, unsigned long long flags)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    bool per_thread = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    const struct row *best = NULL;
    pthread_once(&once, find_all);
    for (unsigned i = 0; i < CWS_CUDA_COUNT; i++) {
        if (!rows[i].hook || ((void **)&cws_cuda_real)[i] != real)
            continue;
        if (!best || rows[i].per_thread == per_thread)
            best = &rows[i];
    }
    if (best || answers_are_exports)
        return best ? best->hook : real;
    for (unsigned i = 0; i < CWS_CUDA_COUNT; i++) {
        if (!rows[i].hook || rows[i].since > version || !is_symbol_of(rows[i].symbol, name))
            continue;
        bool better = !best || rows[i].since > best->since;
        if (better || (rows[i].since == best->since && rows[i].per_thread == per_thread))
            best = &rows[i];
    }
    return best ? best->hook : real;
}

CUresult cws_do_cuGetProcAddress(cws_fn_cuGetProcAddress real, CUstream own, const char *name, void **out, int version,
                                 unsigned long long flags)
{
    (void)own;
    CUresult result = real(name, out, version, flags);
    if (result == CUDA_SUCCESS && name && out && *out)
        *out = cws_cuda_substitute(*out, name, version, flags);
    return result;
}

CUresult cws_do_cuGetProcAddress_v2(cws_fn_cuGetProcAddress_v2 real, CUstream own, const char *name, void **out,
                                    int version, unsigned long long flags, int *status)
{
    (void)own;
    CUresult result = real(name, out, version, flags, status);
    if (result == CUDA_SUCCESS && name && out && *out)
        *out = cws_cuda_substitute(*out, name, version, flags);
    return result;
}
