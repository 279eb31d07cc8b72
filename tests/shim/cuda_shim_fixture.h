/* cuda_shim_fixture.h - for programs that use the stand-in driver as libcuda.so.1 under the preloaded library: the
 * driver's functions as a program finds them, and a packed model with tensors that are paged. */
#ifndef CWS_CUDA_SHIM_FIXTURE_H
#define CWS_CUDA_SHIM_FIXTURE_H
#include "shim/cuda/types.h"
#include "tests/standin/standin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
enum { TENSORS = 24 };

/* CALL(result, name, (parameters)): found by dlsym, as a program does. */
#define FIXTURE_CALLS                                                                                                  \
    CALL(cuInit, (unsigned flags))                                                                                     \
    CALL(cuGetProcAddress, (const char *name, void **out, int version, unsigned long long flags))                      \
    CALL(cuGetProcAddress_v2, (const char *name, void **out, int version, unsigned long long flags, int *status))      \
    CALL(cuDevicePrimaryCtxRetain, (CUcontext * out, CUdevice device))                                                 \
    CALL(cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                                              \
    CALL(cuDevicePrimaryCtxReset_v2, (CUdevice device))                                                                \
    CALL(cuCtxSetCurrent, (CUcontext context))                                                                         \
    CALL(cuCtxSynchronize, (void))                                                                                     \
    CALL(cuModuleLoadData, (CUmodule * out, const void *image))                                                        \
    CALL(cuModuleUnload, (CUmodule module))                                                                            \
    CALL(cuModuleGetFunction, (CUfunction * out, CUmodule module, const char *name))                                   \
    CALL(cuLibraryLoadData,                                                                                            \
         (CUlibrary * out, const void *image, void *a, void *b, unsigned c, void *d, void *e, unsigned f))             \
    CALL(cuLibraryGetKernel, (CUkernel * out, CUlibrary library, const char *name))                                    \
    CALL(cuLibraryUnload, (CUlibrary library))                                                                         \
    CALL(cuStreamCreate, (CUstream * out, unsigned flags))                                                             \
    CALL(cuStreamDestroy_v2, (CUstream stream))                                                                        \
    CALL(cuStreamSynchronize, (CUstream stream))                                                                       \
    CALL(cuStreamBeginCapture_v2, (CUstream stream, CUstreamCaptureMode mode))                                         \
    CALL(cuStreamEndCapture, (CUstream stream, CUgraph * out))                                                         \
    CALL(cuStreamIsCapturing, (CUstream stream, CUstreamCaptureStatus * out))                                          \
    CALL(cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned flags))                                          \
    CALL(cuEventCreate, (CUevent * out, unsigned flags))                                                               \
    CALL(cuEventRecord, (CUevent event, CUstream stream))                                                              \
    CALL(cuEventDestroy_v2, (CUevent event))                                                                           \
    CALL(cuGraphInstantiateWithFlags, (CUgraphExec * out, CUgraph graph, unsigned long long flags))                    \
    CALL(cuGraphLaunch, (CUgraphExec exec, CUstream stream))                                                           \
    CALL(cuGraphExecDestroy, (CUgraphExec exec))                                                                       \
    CALL(cuGraphDestroy, (CUgraph graph))                                                                              \
    CALL(cuTensorMapReplaceAddress, (void *map, void *address))                                                        \
    CALL(cuTensorMapEncodeTiled,                                                                                       \
         (void *map, int type, unsigned rank, void *address, const uint64_t *dims, const uint64_t *strides,            \
          const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int fill))           \
    CALL(cuMemAlloc_v2, (CUdeviceptr * out, size_t bytes))                                                             \
    CALL(cuMemFree_v2, (CUdeviceptr address))                                                                          \
    CALL(cuMemAllocAsync, (CUdeviceptr * out, size_t bytes, CUstream stream))                                          \
    CALL(cuMemAllocAsync_ptsz, (CUdeviceptr * out, size_t bytes, CUstream stream))                                     \
    CALL(cuMemAllocFromPoolAsync, (CUdeviceptr * out, size_t bytes, CUmemoryPool pool, CUstream stream))               \
    CALL(cuMemFreeAsync, (CUdeviceptr address, CUstream stream))                                                       \
    CALL(cuMemPoolCreate, (CUmemoryPool * out, const CUmemPoolProps *props))                                           \
    CALL(cuMemPoolDestroy, (CUmemoryPool pool))                                                                        \
    CALL(cuMemPoolTrimTo, (CUmemoryPool pool, size_t keep))                                                            \
    CALL(cuDeviceGetDefaultMemPool, (CUmemoryPool * out, CUdevice device))                                             \
    CALL(cuMemGetInfo_v2, (size_t * free_bytes, size_t * total_bytes))                                                 \
    CALL(cuPointerGetAttribute, (void *data, CUpointer_attribute which, CUdeviceptr address))                          \
    CALL(cuPointerGetAttributes, (unsigned count, CUpointer_attribute *which, void **data, CUdeviceptr address))       \
    CALL(cuMemGetAddressRange_v2, (CUdeviceptr * base, size_t * bytes, CUdeviceptr address))                           \
    CALL(cuIpcGetMemHandle, (CUipcMemHandle * out, CUdeviceptr address))                                               \
    CALL(cuMemHostRegister_v2, (void *memory, size_t bytes, unsigned flags))                                           \
    CALL(cuMemcpy, (CUdeviceptr to, CUdeviceptr from, size_t bytes))                                                   \
    CALL(cuMemcpyHtoD_v2, (CUdeviceptr to, const void *from, size_t bytes))                                            \
    CALL(cuMemcpyDtoH_v2, (void *to, CUdeviceptr from, size_t bytes))                                                  \
    CALL(cuMemcpyDtoD_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes))                                            \
    CALL(cuMemcpyAsync, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                             \
    CALL(cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))                      \
    CALL(cuMemcpyDtoHAsync_v2, (void *to, CUdeviceptr from, size_t bytes, CUstream stream))                            \
    CALL(cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                      \
    CALL(cuMemcpyPeer, (CUdeviceptr to, CUcontext a, CUdeviceptr from, CUcontext b, size_t bytes))                     \
    CALL(cuMemcpyPeerAsync,                                                                                            \
         (CUdeviceptr to, CUcontext a, CUdeviceptr from, CUcontext b, size_t bytes, CUstream stream))                  \
    CALL(cuMemcpy2D_v2, (const CUDA_MEMCPY2D *copy))                                                                   \
    CALL(cuMemcpy2DUnaligned_v2, (const CUDA_MEMCPY2D *copy))                                                          \
    CALL(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D *copy, CUstream stream))                                             \
    CALL(cuMemcpy3D_v2, (const CUDA_MEMCPY3D *copy))                                                                   \
    CALL(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D *copy, CUstream stream))                                             \
    CALL(cuMemcpyBatchAsync,                                                                                           \
         (CUdeviceptr * to, CUdeviceptr * from, size_t * bytes, size_t count, CUmemcpyAttributes * a,                  \
          size_t * indices, size_t a_count, size_t * fail, CUstream stream))                                           \
    CALL(cuMemsetD8_v2, (CUdeviceptr to, unsigned char value, size_t count))                                           \
    CALL(cuMemsetD16_v2, (CUdeviceptr to, unsigned short value, size_t count))                                         \
    CALL(cuMemsetD32_v2, (CUdeviceptr to, unsigned value, size_t count))                                               \
    CALL(cuMemsetD8Async, (CUdeviceptr to, unsigned char value, size_t count, CUstream stream))                        \
    CALL(cuMemsetD16Async, (CUdeviceptr to, unsigned short value, size_t count, CUstream stream))                      \
    CALL(cuMemsetD32Async, (CUdeviceptr to, unsigned value, size_t count, CUstream stream))                            \
    CALL(cuMemsetD2D8_v2, (CUdeviceptr to, size_t pitch, unsigned char value, size_t width, size_t height))            \
    CALL(cuMemsetD2D32Async,                                                                                           \
         (CUdeviceptr to, size_t pitch, unsigned value, size_t width, size_t height, CUstream stream))                 \
    CALL(cuLaunchKernel, (CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,  \
                          unsigned shared, CUstream stream, void **params, void **extra))                              \
    CALL(cuLaunchKernel_ptsz, (CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,          \
                               unsigned bz, unsigned shared, CUstream stream, void **params, void **extra))            \
    CALL(cuLaunchKernelEx, (const CUlaunchConfig *config, CUfunction f, void **params, void **extra))                  \
    CALL(cuLaunchCooperativeKernel, (CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,    \
                                     unsigned bz, unsigned shared, CUstream stream, void **params))

struct fixture_calls {
#define CALL(name, parameters) CUresult(*name) parameters;
    FIXTURE_CALLS
#undef CALL
};
static struct fixture_calls cu;
static void *driver_handle;
static CUcontext context;
static CUmodule module;

#define OK(call) assert_int_equal(call, CUDA_SUCCESS)

static inline void fixture_open_driver(void)
{
    driver_handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver_handle) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
#define CALL(name, parameters) cu.name = (CUresult(*) parameters)dlsym(driver_handle, #name);
    FIXTURE_CALLS
#undef CALL
    if (cu.cuInit(0) || cu.cuDevicePrimaryCtxRetain(&context, 0) || cu.cuCtxSetCurrent(context) ||
        cu.cuModuleLoadData(&module, "standin:test")) {
        fprintf(stderr, "the stand-in driver does not start\n");
        exit(1);
    }
}

/* One number of codecllm_gpu_stats_json; of the first device. */
static inline unsigned long long stat_of(const char *name)
{
    size_t (*json)(char *, size_t) = (size_t(*)(char *, size_t))dlsym(RTLD_DEFAULT, "codecllm_gpu_stats_json");
    char text[4096], key[64];
    assert_non_null(json);
    assert_true(json(text, sizeof text) < sizeof text);
    snprintf(key, sizeof key, "\"%s\": ", name);
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : ~0ull;
}

static inline CUfunction kernel(const char *name)
{
    CUfunction f;
    OK(cu.cuModuleGetFunction(&f, module, name));
    return f;
}

__attribute__((no_sanitize("thread"))) static inline uint64_t sum_of(const uint8_t *from, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum += from[i];
    return sum;
}

/* --- the model --------------------------------------------------------------------------------------- */

static const char *model_path; /* packed */
static uint8_t *logical;       /* its plain bytes */
static size_t logical_bytes, tensor_begin[TENSORS];
static const uint8_t *view; /* the packed file, mapped */

static inline size_t tensor_bytes(unsigned i) { return i % 3 == 0 ? 3 * MIB : i % 3 == 1 ? 2 * MIB : MIB + 512; }
static inline const uint8_t *content(unsigned i) { return logical + tensor_begin[i]; }

static char model_header[8192]; /* JSON, padded */
static size_t model_header_bytes;

/* Where the tensors lie. */
static inline void fixture_layout(void)
{
    size_t begin = 0, len = (size_t)snprintf(model_header, sizeof model_header, "{");
    for (unsigned i = 0; i < TENSORS; i++) {
        len += (size_t)snprintf(model_header + len, sizeof model_header - len,
                                "%s\"w%02u\":{\"dtype\":\"BF16\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                                i ? "," : "", i, tensor_bytes(i) / 2, begin, begin + tensor_bytes(i));
        tensor_begin[i] = begin;
        begin += tensor_bytes(i);
    }
    len += (size_t)snprintf(model_header + len, sizeof model_header - len, "}");
    while (len % 8)
        model_header[len++] = ' ';
    for (unsigned i = 0; i < TENSORS; i++)
        tensor_begin[i] += 8 + len;
    model_header_bytes = len;
    logical_bytes = 8 + len + begin;
}

/* Packs it without the library, which would show the file as plain. */
static inline void fixture_model(void)
{
    static char plain[512], packed[512], command[2048];
    const char *dir = getenv("TMPDIR");
    snprintf(plain, sizeof plain, "%s/cuda_shim.%d.safetensors", dir ? dir : "/tmp", (int)getpid());
    snprintf(packed, sizeof packed, "%s/cuda_shim.%d.packed.safetensors", dir ? dir : "/tmp", (int)getpid());
    fixture_layout();
    logical = malloc(logical_bytes);
    assert_non_null(logical);
    uint64_t header = model_header_bytes, seed = 5;
    memcpy(logical, &header, 8);
    memcpy(logical + 8, model_header, model_header_bytes);
    for (size_t i = 8 + model_header_bytes; i + 1 < logical_bytes; i += 2) { /* bf16 of weights: few exponents */
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        logical[i] = (uint8_t)(seed >> 40);
        logical[i + 1] = (uint8_t)(0x3b + (seed >> 60 & 1) + (seed >> 56 & 0x80));
    }
    FILE *file = fopen(plain, "wb");
    assert_true(file && fwrite(logical, 1, logical_bytes, file) == logical_bytes && fclose(file) == 0);
    snprintf(command, sizeof command, "'%s/bin/codecllm' pack --quiet '%s' '%s'", CWS_BIN_DIR, plain, packed);
    /* The shell must not be preloaded either: a library with a sanitizer's runtime does not load into it. */
    char *preload = getenv("LD_PRELOAD"), *saved = preload ? strdup(preload) : NULL;
    unsetenv("LD_PRELOAD");
    assert_int_equal(system(command), 0);
    if (saved)
        setenv("LD_PRELOAD", saved, 1);
    free(saved);
    unlink(plain);
    model_path = packed;
}

static inline void fixture_map(void)
{
    int fd = open(model_path, O_RDONLY);
    assert_true(fd >= 0);
    view = mmap(NULL, logical_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(view != MAP_FAILED);
    close(fd);
}

#endif
