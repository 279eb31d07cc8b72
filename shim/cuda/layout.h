/* layout.h - where in a kernel's parameters a pointer may lie. Cached by function and looked up without a lock, because
 * each launch does it. Threads: any. */
#ifndef CWS_SHIM_CUDA_LAYOUT_H
#define CWS_SHIM_CUDA_LAYOUT_H
#include "use.h"

struct cws_cuda_layout {
    _Atomic uint32_t epoch; /* that it was last seen to be right in */
    /* false: the driver does not tell the parameters, so a launch may touch any range */
    bool known;
    CUresult error; /* that it told instead. Not CUDA_ERROR_INVALID_HANDLE: it is asked again at the next launch */
    /* of NCCL: the host writes what it is to do, with the pointers, into a queue that the kernel reads */
    bool queued;
    uint32_t count;
    struct {
        uint16_t param, at; /* word of 8 bytes at offset `at` of parameter `param` */
    } words[];
};

/* The layout of a kernel's parameters; never freed. `function`: the handle that a launch names, a CUfunction or a
 * CUkernel. NULL: no memory. */
const struct cws_cuda_layout *cws_cuda_layout_of(CUfunction function);
/* NULL: the driver does not tell it. The driver's string. */
const char *cws_cuda_kernel_name(CUfunction function);
/* A module or library was unloaded: its handles may come back as others'. */
void cws_cuda_layout_unloaded(void);

/* Adds the ranges that the parameters of a launch name (launch.c). */
void cws_cuda_scan_params(CUfunction function, void **params, void **extra, struct cws_cuda_list *list);

#endif
