/* use.h - holding the ranges that a call of the driver names while the call is made, and the line about one that
 * failed. Threads: any. */
#ifndef CWS_SHIM_CUDA_USE_H
#define CWS_SHIM_CUDA_USE_H
#include "device.h"

struct cws_cuda_list { /* addresses of managed ranges that a call names */
    size_t count, room;
    bool everything; /* or: all there are */
    CUresult why;    /* everything: what the driver answered instead of telling a kernel's parameters */
    bool recent;     /* and: what launches named just now, whose pointers may lie where nobody sees them */
    bool lost;       /* no memory to note one */
    CUdeviceptr *at; /* = few, or allocated */
    CUdeviceptr few[96];
};
static inline void cws_cuda_list_init(struct cws_cuda_list *list)
{
    list->count = 0;
    list->room = sizeof list->few / sizeof *list->few;
    list->everything = list->recent = list->lost = false;
    list->why = CUDA_ERROR_INVALID_HANDLE;
    list->at = list->few;
}
void cws_cuda_list_add_near(struct cws_cuda_list *list, CUdeviceptr address);
static inline void cws_cuda_list_add(struct cws_cuda_list *list, CUdeviceptr address)
{
    if (cws_cuda_is_near(address))
        cws_cuda_list_add_near(list, address);
}
void cws_cuda_list_add_all(struct cws_cuda_list *list, const struct cws_cuda_list *other);
/* Every range there is. */
void cws_cuda_list_add_everything(struct cws_cuda_list *list);
/* What the last launches named, and what was allocated meanwhile, as far as it has memory or never had any. */
void cws_cuda_list_add_recent(struct cws_cuda_list *list);
void cws_cuda_list_deinit(struct cws_cuda_list *list);

struct cws_cuda_use {
    unsigned count;
    CUstream order;
    struct {
        struct cws_gpu *gpu;
        struct cws_gpu_use use;
    } parts[CWS_CUDA_DEVICES];
};
/* Begins a use on every manager that has an address of the list. If it fails nothing is held. */
CUresult cws_cuda_begin(CUstream stream, const struct cws_cuda_list *list, struct cws_cuda_use *use);
/* queued on a stream that captures counts as not */
void cws_cuda_end(struct cws_cuda_use *use, bool queued);

/* Runs `call` (an expression) with one or two addresses in use. */
#define CWS_CUDA_AROUND(stream, first, second, call)                                                                   \
    (__extension__({                                                                                                   \
        CUdeviceptr first_ = (first), second_ = (second);                                                              \
        CUstream order_ = (stream);                                                                                    \
        CUresult result_;                                                                                              \
        if (!cws_cuda_is_near(first_) && !cws_cuda_is_near(second_)) {                                                 \
            result_ = (call);                                                                                          \
        } else {                                                                                                       \
            struct cws_cuda_list list_;                                                                                \
            struct cws_cuda_use use_;                                                                                  \
            cws_cuda_list_init(&list_);                                                                                \
            cws_cuda_list_add(&list_, first_);                                                                         \
            cws_cuda_list_add(&list_, second_);                                                                        \
            result_ = cws_cuda_begin(order_, &list_, &use_);                                                           \
            if (result_ == CUDA_SUCCESS) {                                                                             \
                result_ = (call);                                                                                      \
                cws_cuda_end(&use_, result_ == CUDA_SUCCESS);                                                          \
            }                                                                                                          \
            cws_cuda_list_deinit(&list_);                                                                              \
        }                                                                                                              \
        result_;                                                                                                       \
    }))

/* After a call that answered `result`: if that is an illegal address, writes a line with its likely cause. */
void cws_cuda_explain(CUresult result);
/* The error for every call in a forked child. Writes a line for the first one. */
CUresult cws_cuda_refuse_forked(void);
/* Are the `bytes` at from host memory that can be read here? */
bool cws_cuda_is_host(CUdeviceptr from);
/* Before a small copy to the device: pins the ranges that its content points to. */
void cws_cuda_scan_copy(const void *from, size_t bytes);
#define CWS_CUDA_SCAN_BYTES (64u << 10)

#endif
