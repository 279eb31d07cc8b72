/* compile.h - the decoding kernels, compiled on the user's machine. A build without nvcc, or one whose kernels the
 * driver or the device does not take, gets them from NVRTC, the compiler library that comes with every PyTorch for
 * CUDA; the result is kept in $XDG_CACHE_HOME/codecllm (else ~/.cache/codecllm), so that only the first program on a
 * machine waits for it (a few seconds). A directory that another user owns or can write to is not used.
 * Threads: any. Nothing here makes a driver call. */
#ifndef CWS_GPU_COMPILE_H
#define CWS_GPU_COMPILE_H
#include "store/base/error.h"
#include <stdbool.h>
#include <stddef.h>

/* The first compute capability that the kernels run on. */
#define CWS_GPU_MAJOR_MIN 7
#define CWS_GPU_MINOR_MIN 5

struct cws_gpu_target {
    int major, minor;   /* compute capability of the device */
    int driver_version; /* cuDriverGetVersion: 12040 for 12.4. A compiler of a later major version is passed over; 0:
                           * none is */
    bool ptx;           /* PTX also where the device's own code could be made: to run there what other devices would */
};

/* An image for cuModuleLoadData, compiled now; free() it. CWS_E_UNSUPPORTED: no NVRTC was found (the line says where to
 * get one), or none that knows the device; CWS_E_BUG: it refused the kernels; -ENOMEM. */
CWS_MUST_CHECK int cws_gpu_compile(const struct cws_gpu_target *target, void **image, size_t *bytes,
                                   struct cws_error *err);

/* The image that cws_gpu_cache_write() kept for this target and these kernels, whole and unchanged; NULL: there is none
 * that this user alone can have written. free() it. */
void *cws_gpu_cache_read(const struct cws_gpu_target *target, size_t *bytes);
/* Keeps an image. What cannot be written is not kept; nothing depends on it. */
void cws_gpu_cache_write(const struct cws_gpu_target *target, const void *image, size_t bytes);

/* For `codecllm doctor`: path of the NVRTC that would be used, and its version as 1000 * major + minor. As
 * cws_gpu_compile. */
CWS_MUST_CHECK int cws_gpu_compiler_find(const struct cws_gpu_target *target, char path[1024], int *version,
                                         struct cws_error *err);

/* The sources, for the two files that compile and that keep: text[i] has the name name[i] in #include lines, the first
 * is the program. */
#define CWS_GPU_SOURCES 7
struct cws_gpu_sources {
    const char *name[CWS_GPU_SOURCES], *text[CWS_GPU_SOURCES];
};
extern const struct cws_gpu_sources cws_gpu_sources;
#endif
