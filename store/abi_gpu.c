/* abi_gpu.c - the GPU's part of abi.h. The driver's table, and a decoder for each context, are made when they are
 * first needed. */
#include "abi.h"
#include "store/cuda/tensor.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum { CONTEXTS_MAX = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects all below */
static struct cws_driver driver;
static bool driver_loaded;
static struct {
    CUcontext context;
    struct cws_gpu_decoder *decoder;
} decoders[CONTEXTS_MAX];
static unsigned decoder_count;

/* The decoder of the current context. It stays for good: contexts of frameworks do. */
static int find_decoder_locked(struct cws_gpu_decoder **out, struct cws_error *err)
{
    CUcontext context = NULL;
    int code = driver_loaded ? 0 : cws_driver_load(&driver, err);
    if (code)
        return code;
    driver_loaded = true;
    CUresult r = driver.context_get(&context);
    if (r != CUDA_SUCCESS)
        return cws_driver_fail(&driver, err, r, "the current context");
    if (!context)
        return cws_fail(err, CWS_E_USAGE, "no CUDA context is current in this thread");
    for (unsigned i = 0; i < decoder_count; i++) {
        if (decoders[i].context == context) {
            *out = decoders[i].decoder;
            return 0;
        }
    }
    if (decoder_count == CONTEXTS_MAX)
        return cws_fail(err, CWS_E_UNSUPPORTED, "more than %d CUDA contexts in one process", CONTEXTS_MAX);
    code = cws_gpu_decoder_create(&driver, NULL, out, err);
    if (code)
        return code;
    decoders[decoder_count].context = context;
    decoders[decoder_count++].decoder = *out;
    return 0;
}

int codecllm_gpu_create(const void *data, uint64_t bytes, struct cws_gpu_tensor **out, struct cws_error *err)
{
    struct cws_store *s;
    *out = NULL;
    int code = cws_store_open_memory(data, bytes, "compressed tensor", &s, err);
    if (code)
        return code;
    code = cws_gpu_tensor_create(s, out, err);
    cws_store_close(s);
    return code;
}

void codecllm_gpu_destroy(struct cws_gpu_tensor *t) { cws_gpu_tensor_destroy(t); }

uint64_t codecllm_gpu_scratch(const struct cws_gpu_tensor *t) { return cws_gpu_tensor_scratch_bytes(t); }

int codecllm_gpu_decode(const struct cws_gpu_tensor *t, uint64_t packed, uint64_t scratch, uint64_t dst, void *stream,
                        struct cws_error *err)
{
    struct cws_gpu_decoder *decoder = NULL;
    pthread_mutex_lock(&lock);
    int code = find_decoder_locked(&decoder, err);
    pthread_mutex_unlock(&lock);
    return code ? code : cws_gpu_tensor_decode(t, &driver, decoder, (CUstream)stream, packed, scratch, dst, err);
}
