/* device.h - finds or opens the manager of the GPU that a call of the program is for.
 *
 * A device is managed from the first allocation of a program whose current context is the device's primary one. Other
 * contexts pass by, after one line. Threads: any, for every function. */
#ifndef CWS_SHIM_CUDA_DEVICE_H
#define CWS_SHIM_CUDA_DEVICE_H
#include "hooks.h"
#include "state.h"
#include "uvm/cuda/manager.h"
#include <stdatomic.h>

enum { CWS_CUDA_DEVICES = 16 };

struct cws_cuda_device {
    struct cws_gpu *_Atomic gpu; /* NULL: none, or not yet */
    CUcontext _Atomic context;   /* that this entry answers for; NULL: none any more */
    CUdevice ordinal;
    CUresult answer; /* to an allocation, where there is no gpu */
};
extern struct cws_cuda_device cws_cuda_devices[CWS_CUDA_DEVICES];
extern _Atomic unsigned cws_cuda_device_count; /* entries in use; they keep their place */

/* Callbacks for what other files keep for a manager; set before the first one opens. */
struct cws_cuda_parts {
    void (*release)(const struct cws_gpu *gpu); /* memory is short: as cws_gpu_config.release */
    void (*forget)(struct cws_gpu *gpu);        /* it is about to close; its context is current */
};
/* counters.c: what CODEC_STATS prints, and, for the Python package, an array of one object per managed device; as
 * codecllm_stats_json (shim/libc/paging.h). */
void cws_cuda_say_counters(void);
size_t codecllm_gpu_stats_json(char *buf, size_t n);
/* In the child of fork(): its managers are the parent's. */
void cws_cuda_fork_child(void);
void cws_cuda_set_parts(const struct cws_cuda_parts *parts);

/* The manager of the current context's device, opened now if need be. NULL: not managed, *out_result is what an
 * allocation should answer: CUDA_SUCCESS (pass it on), or an error (a line was said). */
struct cws_gpu *cws_cuda_manager(CUresult *out_result);
/* The same, if it is open. */
struct cws_gpu *cws_cuda_manager_if_open(void);
/* Until the other one is called no manager opens or closes, and calls that would do so wait. Not inside a use. */
void cws_cuda_devices_hold(void);
void cws_cuda_devices_let(void);
/* Does the process end, so that the driver may be gone? */
bool cws_cuda_is_exiting(void);
/* The table of the real driver. Only where a manager is open. */
const struct cws_driver *cws_cuda_driver(void);
/* The context is about to end; NULL: the primary one of the device. */
void cws_cuda_close(CUcontext context, CUdevice device);

/* Addresses that a manager ever gave out are in [low, high): one compare turns almost every word of a launch's
 * parameters away. */
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

/* The stream that work goes to. */
static inline CUstream cws_cuda_stream(CUstream stream, CUstream own) { return stream ? stream : own; }

#endif
