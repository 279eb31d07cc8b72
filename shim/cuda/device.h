/* device.h - whether paging is on, and the manager of each device.
 *
 * A device is managed from the first allocation of a program whose current context is the device's primary one. Other contexts pass
 * by, after one line. Threads: any, for every function. */
#ifndef CWS_SHIM_CUDA_DEVICE_H
#define CWS_SHIM_CUDA_DEVICE_H
#include "hooks.h"
#include "uvm/cuda/manager.h"
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

/* The stream that work goes to. */
static inline CUstream cws_cuda_stream(CUstream stream, CUstream own) { return stream ? stream : own; }

#endif
