/* copy.h - a copy of one run of bytes between host and device, whichever call of the driver makes it. Threads: any. */
#ifndef CWS_SHIM_CUDA_COPY_H
#define CWS_SHIM_CUDA_COPY_H
#include "use.h"

struct cws_cuda_copy {
    /* copies [at, at + bytes) of it */
    CUresult (*call)(const struct cws_cuda_copy *c, size_t at, size_t bytes);
    CUdeviceptr to, from; /* device or host addresses; 0: neither, an array */
    size_t bytes;
    CUstream order; /* the stream it runs on */
    bool from_host; /* surely; else it is found out */
    /* for call: */
    void *real;
    CUarray array;
    size_t offset;
    CUcontext to_context, from_context;
    CUstream stream;
};

/* Binds it, or does it with its ranges held, host memory of views held piece by piece, and pointers in its content
 * seen. */
CUresult cws_cuda_copy_run(const struct cws_cuda_copy *c);

/* Does CODEC_PIN, a list of globs, name the tensor? */
bool cws_cuda_is_pinned(const char *name);

/* For copies of other shapes: runs `call` with the view memory [addr, addr + bytes) held; bytes <=
 * cws_view_hold_max(). */
CUresult cws_cuda_with_view(const void *addr, size_t bytes, bool for_write, CUresult (*call)(void *arg), void *arg);

#endif
