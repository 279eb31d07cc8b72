/* cuda_shim.h - what the hooks of the CUDA driver share: whether paging is on, the manager of each device, uses, and the lists of
 * addresses that a call names.
 *
 *   resolve.c, dlsym.c   names to hooks        entry.c    entry points
 *   devices.c   managers, fork, exit, statistics    use.c      begin and end, and what is said when a call fails
 *   alloc.c, plain.c, small.c  allocations  query.c  what is answered about memory
 *   copy.c, copy_box.c, set.c  copies     launch.c, layout.c   kernels
 *   capture.c, graph.c   graphs                context.c  streams and contexts
 *
 * A device is managed from the first allocation of a program whose current context is the device's primary one. Other contexts pass
 * by, after one line. Threads: any, for every function. */
#ifndef CWS_SHIM_CUDA_SHIM_H
#define CWS_SHIM_CUDA_SHIM_H
#include "uvm/cuda/manager.h"
#include "hooks.h"
#include <stdatomic.h>

enum { CWS_CUDA_DEVICES = 16 };

enum cws_cuda_state {
    CWS_CUDA_OFF,     /* no budget: every call passes */
    CWS_CUDA_ON,
    CWS_CUDA_FORKED,  /* child of a process that had managers: every call fails, the first with a line */
};
extern _Atomic int cws_cuda_state;
static inline bool cws_cuda_is_on(void) { return atomic_load_explicit(&cws_cuda_state, memory_order_relaxed) != CWS_CUDA_OFF; }

/* From the shim's constructor, when CODEC_VRAM_BUDGET is set. */
void cws_cuda_start(void);

/* --- managers (devices.c) ------------------------------------------------------------------- */

struct cws_cuda_device {
    struct cws_gpu *_Atomic gpu; /* NULL: none, or not yet */
    CUcontext _Atomic context;   /* that this entry answers for; NULL: none any more */
    CUdevice ordinal;
    CUresult answer;             /* to an allocation, where there is no gpu */
};
/* For the Python package: an array of one object per managed device; as codecllm_stats_json (shim.h). */
size_t codecllm_gpu_stats_json(char *buf, size_t n);
extern struct cws_cuda_device cws_cuda_devices[CWS_CUDA_DEVICES];
extern _Atomic unsigned cws_cuda_device_count; /* entries in use; they keep their place */

/* The manager of the current context's device, opened now if need be. NULL: not managed, *out_result is what an allocation should answer:
 * CUDA_SUCCESS (pass it on), or an error (a line was said). */
struct cws_gpu *cws_cuda_manager(CUresult *out_result);
/* The same, if it is open. */
struct cws_gpu *cws_cuda_manager_if_open(void);
/* The table of the real driver. Only where a manager is open. */
const struct cws_driver *cws_cuda_driver(void);
/* The context is about to end; NULL: the primary one of the device. */
void cws_cuda_close(CUcontext context, CUdevice device);

/* Addresses that a manager ever gave out are in [low, high): one compare turns almost every word of a launch's parameters away. */
extern _Atomic CUdeviceptr cws_cuda_low, cws_cuda_high;
void cws_cuda_note_range(CUdeviceptr base, size_t bytes);
static inline bool cws_cuda_is_near(CUdeviceptr address)
{
    return CWS_UNLIKELY(address < atomic_load_explicit(&cws_cuda_high, memory_order_relaxed)) &&
           address >= atomic_load_explicit(&cws_cuda_low, memory_order_relaxed);
}
/* The manager whose arena holds the address; NULL: none. */
struct cws_gpu *cws_cuda_owner_slow(CUdeviceptr address);
static inline struct cws_gpu *cws_cuda_owner(CUdeviceptr address)
{
    return cws_cuda_is_near(address) ? cws_cuda_owner_slow(address) : NULL;
}

/* --- uses (use.c) --------------------------------------------------------------------------- */

struct cws_cuda_list { /* addresses of managed ranges that a call names */
    size_t count, room;
    bool everything; /* or: all there are */
    bool lost;       /* no memory to note one */
    CUdeviceptr *at; /* = few, or allocated */
    CUdeviceptr few[96];
};
static inline void cws_cuda_list_init(struct cws_cuda_list *list)
{
    list->count = 0;
    list->room = sizeof list->few / sizeof *list->few;
    list->everything = list->lost = false;
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
void cws_cuda_list_deinit(struct cws_cuda_list *list);

struct cws_cuda_use {
    unsigned count;
    CUstream order;
    struct {
        struct cws_gpu *gpu;
        struct cws_gpu_use use;
    } parts[CWS_CUDA_DEVICES];
};
/* cws_gpu_begin of every manager that the list names one of; nothing is held when it fails. */
CUresult cws_cuda_begin(CUstream stream, const struct cws_cuda_list *list, struct cws_cuda_use *use);
void cws_cuda_end(struct cws_cuda_use *use, bool queued); /* queued on a stream that captures counts as not */

/* The stream that work goes to. */
static inline CUstream cws_cuda_stream(CUstream stream, CUstream own) { return stream ? stream : own; }

/* Runs `call` (an expression) with one or two addresses in use. */
#define CWS_CUDA_AROUND(stream, first, second, call)                                                                        \
    (__extension__({                                                                                                        \
        CUdeviceptr first_ = (first), second_ = (second);                                                                   \
        CUstream order_ = (stream);                                                                                         \
        CUresult result_;                                                                                                   \
        if (!cws_cuda_is_near(first_) && !cws_cuda_is_near(second_)) {                                                      \
            result_ = (call);                                                                                               \
        } else {                                                                                                            \
            struct cws_cuda_list list_;                                                                                     \
            struct cws_cuda_use use_;                                                                                       \
            cws_cuda_list_init(&list_);                                                                                     \
            cws_cuda_list_add(&list_, first_);                                                                              \
            cws_cuda_list_add(&list_, second_);                                                                             \
            result_ = cws_cuda_begin(order_, &list_, &use_);                                                                \
            if (result_ == CUDA_SUCCESS) {                                                                                  \
                result_ = (call);                                                                                           \
                cws_cuda_end(&use_, result_ == CUDA_SUCCESS);                                                               \
            }                                                                                                               \
            cws_cuda_list_deinit(&list_);                                                                                   \
        }                                                                                                                   \
        result_;                                                                                                            \
    }))

/* A call answered `result`: says what an illegal address is likely to be. */
void cws_cuda_explain(CUresult result);
/* A forked child: the error for every call; the first one is said. */
CUresult cws_cuda_refuse_forked(void);
/* Are the `bytes` at from host memory that can be read here? */
bool cws_cuda_is_host(CUdeviceptr from);
/* A small copy is on its way to the device: the ranges that its content points to are pinned. */
void cws_cuda_scan_copy(const void *from, size_t bytes);
#define CWS_CUDA_SCAN_BYTES (64u << 10)

/* --- launches and graphs ------------------------------------------------------------------------- */

/* Adds the ranges that the parameters of a launch name (launch.c). */
void cws_cuda_scan_params(CUfunction function, void **params, void **extra, struct cws_cuda_list *list);
/* True while some stream of the process captures; then is this one of them (capture.c)? */
extern _Atomic unsigned cws_cuda_captures;
bool cws_cuda_is_capturing_slow(CUstream stream);
void cws_cuda_capture_gone(CUstream stream); /* before it is destroyed */
static inline bool cws_cuda_is_capturing(CUstream stream)
{
    return CWS_UNLIKELY(atomic_load_explicit(&cws_cuda_captures, memory_order_relaxed)) && cws_cuda_is_capturing_slow(stream);
}

/* --- small ordered allocations (small.c) --------------------------------------------------------- */

/* cuMemAllocAsync for 0 < bytes < CWS_GPU_RANGE_MIN on a stream that does not capture; order: what `stream` is. What an earlier allocation of
 * about this size left on this stream, or the driver's, which is `real`. */
CUresult cws_small_alloc(cws_fn_cuMemAllocAsync real, struct cws_gpu *gpu, CUdeviceptr *out, size_t bytes, CUstream stream, CUstream order);
enum cws_small_end {
    CWS_SMALL_NOT_OURS,    /* not known here, or not any more: the driver is to free it */
    CWS_SMALL_KEPT,        /* freed: there is nothing more to do */
    CWS_SMALL_FREED_TWICE, /* nothing happened */
};
/* It is freed in the order of a stream. current: the manager of the current context, where there is more than one, else NULL. */
enum cws_small_end cws_small_free(CUdeviceptr at, CUstream order, bool may_keep, const struct cws_gpu *current);
/* Before the stream is destroyed: what it freed goes back to the driver. */
void cws_small_stream_gone(CUstream stream);
/* The same for every stream of the manager's device, unless one captures. */
void cws_small_release(const struct cws_gpu *gpu);
/* The manager is about to close. */
void cws_small_forget_manager(const struct cws_gpu *gpu);

/* --- allocations that are the driver's own (plain.c) ------------------------------------------- */

/* Notes `bytes` under a key (an address, a handle). False: no memory. */
bool cws_plain_note(unsigned long long key, size_t bytes, struct cws_gpu *gpu);
/* Forgets it: its bytes and manager; 0: not known. */
size_t cws_plain_forget(unsigned long long key, struct cws_gpu **out_gpu);
/* The manager is about to close. */
void cws_plain_forget_manager(struct cws_gpu *gpu);

#endif
