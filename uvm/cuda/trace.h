/* trace.h - what CODEC_TRACE records of a device. Nothing happens where no trace runs. Functions that return bool
 * begin a span of the calling thread, for cws_trace_end. Threads: as their callers; those of batches and of the
 * device's clock in the loader. */
#ifndef CWS_GPU_TRACE_H
#define CWS_GPU_TRACE_H
#include "store/base/trace.h"
#include "extent.h"
#include "loader.h"

struct cws_gpu_trace {
    uint32_t lanes;          /* bit per load that has one */
    uint64_t weights, fixed; /* as last recorded */
    CUevent anchor;          /* recorded at anchor_ns */
    uint64_t anchor_ns;
    /* rounds of the order of uses: where the present one began, what it and the last one named */
    uint64_t round_tick, round_at, rounds, round_ranges, before_ranges, before_uses;
};

void cws_gpu_trace_open(struct cws_gpu *gpu); /* the streams are there */
void cws_gpu_trace_close(struct cws_gpu *gpu);
/* before the order hears of it */
void cws_gpu_trace_use_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_extent *x);
bool cws_gpu_trace_wait_slow_locked(const struct cws_gpu_use *use);
/* for a profiler */
void cws_gpu_wait_text_locked(const struct cws_gpu_use *use, char *out, size_t room, uint64_t *out_bytes);
bool cws_gpu_trace_extent_slow(const struct cws_gpu_extent *x, enum cws_trace_kind kind);
void cws_gpu_trace_memory_slow_locked(struct cws_gpu *gpu);
void cws_gpu_trace_load_begin_slow_locked(struct cws_gpu *gpu, struct cws_gpu_load *load);
void cws_gpu_trace_load_end_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_load *load);
void cws_gpu_trace_drop_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_drop *drop, bool kept);
void cws_gpu_trace_batch_slow(struct cws_gpu *gpu, const struct cws_gpu_load *load,
                              const struct cws_gpu_slot *slot); /* it is done */
/* in the loader, when it has nothing to do. True: the lock was dropped, look again */
bool cws_gpu_trace_idle_drops_lock(struct cws_gpu *gpu);
static inline void cws_gpu_trace_memory_locked(struct cws_gpu *gpu)
{
    if (cws_trace_is_on())
        cws_gpu_trace_memory_slow_locked(gpu);
}
#endif
