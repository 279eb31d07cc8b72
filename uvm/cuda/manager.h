/* manager.h - the residency manager over a CUDA device: allocations of the program whose content lies in a store are
 * decoded into device memory before a kernel that names them is launched, and dropped again so that the process stays
 * inside a budget.
 *
 * Who calls: the shim, from the hooks of the driver's functions, with the program's context current. The manager calls
 * the driver only through its table. extent.h has the states and the invariants, core.h and gpu.h the locks.
 *
 *   range    one allocation made here: reserved address space in 2 MiB steps, out of one arena per device
 *   binding  "these bytes of this range are those of that tensor of that store, or of these chunks of it"; a range that
 *            is bound as a whole is paged
 *   use      a range is named by a launch or a copy: between cws_gpu_begin and cws_gpu_end it is mapped and held;
 *            after that the stream's progress tells when it may be unmapped
 *
 * Threads: all functions may be called from any thread, none from a signal handler or a forked child (see
 * cws_gpu_fork_child).
 * Results are CUresult values to hand to the program, unless a function says otherwise; where one is not CUDA_SUCCESS
 * for a reason of ours, one line was given to config.say first. */
#ifndef CWS_GPU_H
#define CWS_GPU_H
#include "store/base/driver.h"
#include "store/base/options.h"
#include "store/read/store.h"
#include <stdbool.h>

struct cws_gpu;

#define CWS_GPU_RANGE_MIN (1u << 20) /* bytes: smaller allocations are the driver's own */
#define CWS_GPU_GRANULE (2u << 20)   /* bytes: of address space and of physical memory */
#define CWS_GPU_USE_FEW 64u          /* extents of one launch that need no memory; graphs name more */

struct cws_gpu_config {
    const struct cws_driver *driver; /* the real functions; outlives the manager */
    /* of device memory, for all that the process takes from the driver but its context */
    uint64_t budget_bytes;
    /* of pinned host memory for compressed bytes, and before them for what is spilled; 0:
     * cws_memory_limit_pinned; CWS_PINNED_LEAST at least (memory_limit.h) */
    uint64_t host_budget_bytes;
    enum cws_policy_id policy;
    bool prefetch;
    /* strict mode: one use at a time, each waited for, nothing prefetched. Only weights that the use names, pinned ones
     * and written ones are mapped while it runs, so kernels that reach others through hidden pointers fault */
    bool strict;
    /* what the program copies to the device from ordinary memory is paged, too, where the budget may not hold all */
    bool adopt;
    /* staging in device memory; 0: 64 MiB, or less where the budget is small */
    uint64_t ring_bytes;
    /* image of the decoding kernels; NULL: cws_gpu_decoder_create's choice (store/cuda/decoder.h) */
    const void *kernels;
    /* before pools are trimmed, from a thread of the manager's: the owner gives back pool memory that it keeps
     * unused; NULL: nobody keeps any */
    void (*release)(const struct cws_gpu *gpu);
    /* does the user want a tensor of this name to stay on the device (CODEC_PIN)? NULL: none. With the lock held */
    bool (*pins)(const char *tensor);
    void (*say)(const char *line); /* one line for the user; any thread */
};

/* The manager of `device`, whose context must be current and outlive it. Starts its threads. 0 or an error code (line
 * in err). */
CWS_MUST_CHECK int cws_gpu_open(const struct cws_gpu_config *config, CUdevice device, struct cws_gpu **out,
                                struct cws_error *err);
/* Stops the threads and gives everything back to the driver. The program must not use its ranges any more. NULL is
 * fine. */
void cws_gpu_close(struct cws_gpu *gpu);
/* In a forked child, where the context does not work: disables the manager without a call to the driver. */
void cws_gpu_fork_child(struct cws_gpu *gpu);

/* --- allocations ------------------------------------------------------------------------------- */

/* A range of `bytes` bytes (> 0) in the order of `stream`. CUDA_ERROR_OUT_OF_MEMORY, and nothing changed: what cannot
 * be dropped, the request and the largest set that a launch has named do not fit the budget together; the line names
 * the least budget that would do. No memory lies behind it until it is used or bound. */
CUresult cws_gpu_alloc(struct cws_gpu *gpu, size_t bytes, CUstream stream, CUdeviceptr *out);
/* The same while `expected` bytes of weights are about to be loaded: a request of more than half of the budget, and of
 * no more than these, is not refused. Loaders make and free one without using it, to warm their allocator up; a launch
 * that names it fails as one that needs too much. */
CUresult cws_gpu_alloc_loading(struct cws_gpu *gpu, size_t bytes, uint64_t expected, CUstream stream, CUdeviceptr *out);
/* Frees a range by its first address. in_order: as cuMemFreeAsync, what is queued on `stream` may still use it; else as
 * cuMemFree. CUDA_ERROR_INVALID_VALUE: no range begins there. */
CUresult cws_gpu_free(struct cws_gpu *gpu, CUdeviceptr address, CUstream stream, bool in_order);

/* Is this an address of the arena? Freed and unused ones are, too. Every hook asks this first. */
bool cws_gpu_owns(const struct cws_gpu *gpu, CUdeviceptr address);
/* The range that `address` lies in: its first address and its size as asked for. False: none. */
bool cws_gpu_extent(struct cws_gpu *gpu, CUdeviceptr address, CUdeviceptr *out_base, size_t *out_bytes);

/* The program is about to take `bytes` of device memory from the driver itself, outside of ranges (cuMemAlloc, an
 * array): makes room and keeps it until cws_gpu_room_used, which is due where this succeeds. CUDA_ERROR_OUT_OF_MEMORY
 * as for cws_gpu_alloc. */
CUresult cws_gpu_make_room(struct cws_gpu *gpu, size_t bytes);
/* After cws_gpu_room: the program has taken `taken` bytes. 0: its call failed. More than it asked room for is counted,
 * too. */
void cws_gpu_room_used(struct cws_gpu *gpu, size_t bytes, size_t taken);
/* The program gave such memory back to the driver. */
void cws_gpu_plain_freed(struct cws_gpu *gpu, size_t bytes);
/* The same for memory from a pool (NULL: the device's current one), which grows in steps of its own: the pools are
 * asked, before where the allocation may not fit what they have, and after where one was to grow. *room is for
 * cws_gpu_pool_used, which is due in any case where this succeeds. */
CUresult cws_gpu_pool_room(struct cws_gpu *gpu, CUmemoryPool pool, size_t bytes, size_t *room);
void cws_gpu_pool_used(struct cws_gpu *gpu, size_t room);
/* A graph is about to be launched for the first time whose nodes allocate so many bytes, in steps of the driver's own.
 * Makes room for them, if that can be done; returns what was granted. cws_gpu_graph_ran is due, with that. */
size_t cws_gpu_graph_room(struct cws_gpu *gpu, size_t bytes);
void cws_gpu_graph_ran(struct cws_gpu *gpu, size_t room);
/* The program asks for cuMemPoolTrimTo on a pool whose allocations are ranges (torch.cuda.empty_cache()): memory of
 * freed ranges is not kept for the next allocations, but for `keep` bytes of it, and goes back to the driver as far as
 * its uses are done; for these it waits a few milliseconds at most. */
void cws_gpu_trim(struct cws_gpu *gpu, size_t keep);
/* A pool may have given memory back to the driver: the manager asks how much it has. */
void cws_gpu_pools_changed(struct cws_gpu *gpu);
/* A memory pool that the process allocates from, to be counted and trimmed; the device's current pool is known from the
 * start. */
void cws_gpu_pool_seen(struct cws_gpu *gpu, CUmemoryPool pool);
void cws_gpu_pool_gone(struct cws_gpu *gpu, CUmemoryPool pool);

/* --- uses ------------------------------------------------------------------------------------- */

struct cws_gpu_use { /* caller's storage; private */
    CUstream stream;
    unsigned count, room;
    struct cws_gpu_extent **extents; /* = few, or allocated */
    struct cws_gpu_extent *few[CWS_GPU_USE_FEW];
};

/* Makes every range that contains one of the addresses ready for work that is about to be queued on `stream`, and holds
 * it. Addresses outside the arena, or in no range, are passed over. Bound ranges are loaded (this may block), fresh
 * ones get memory (undefined content). Errors, nothing held then: CUDA_ERROR_OUT_OF_MEMORY (the ranges do not fit the
 * budget together), CUDA_ERROR_OPERATING_SYSTEM = 304 (a tensor cannot be read; the line names it). A use that is begun
 * inside another one of the same thread is fine while both fit; where they do not it fails with
 * CUDA_ERROR_OUT_OF_MEMORY and a line, and so it does where several threads each hold what another one waits for.
 * Call cws_gpu_end, in the same thread, with the same use after the work was queued (or was not), always. */
CUresult cws_gpu_begin(struct cws_gpu *gpu, CUstream stream, const CUdeviceptr *addresses, size_t count,
                       struct cws_gpu_use *use);
void cws_gpu_end(struct cws_gpu *gpu, struct cws_gpu_use *use, bool queued);
/* The calling thread has queued something that names nothing here, behind its last use (streams.h). */
void cws_gpu_queued_other(struct cws_gpu *gpu);

/* A host-to-device copy is about to be queued: [source, source + bytes) to [to, to + bytes), to in the arena. `store`
 * and `offset` say which logical bytes of which store the source is known to equal (the caller has checked that nobody
 * wrote to them; the manager takes its own reference).
 * True: these bytes of the range are bound, do not copy. False: nothing changed, do the copy as any other use, and
 * tell cws_gpu_copied. Bound are a whole tensor or chunks of one, at a multiple of 16 bytes in a range that has no
 * memory, or all of a range that has. A range that is used before all of it is bound is the program's. */
bool cws_gpu_bind(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_store *store,
                  uint64_t offset);
/* Could it be of use to know where the bytes of such a copy come from? Not where the range is bound already, as a
 * buffer is into which a program copies weights again and again: that is written to like any other. */
bool cws_gpu_may_bind(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes);

/* A copy that cws_gpu_bind refused was queued: once all of a range was copied like this, it is paged, too. What the
 * program writes there meanwhile is found out before anything is dropped. */
void cws_gpu_copied(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, struct cws_store *store, uint64_t offset);

/* A copy from one range to another is about to be queued. True: the target is bound to what the source is, do not copy;
 * nobody had used the source since it was bound, or dropped. False: copy, and tell cws_gpu_carried. */
bool cws_gpu_carry(struct cws_gpu *gpu, CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
void cws_gpu_carried(struct cws_gpu *gpu, CUdeviceptr to, CUdeviceptr from, size_t bytes);

/* cws_gpu_bind for an ordinary file (file.h), whose tensor at `offset` the source is; `now`: these bytes as they are,
 * read here. Whether they can be bound is seen only after they were read: ask for large ones (CWS_GPU_RANGE_MIN). */
struct cws_gpu_file;
bool cws_gpu_bind_file(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, struct cws_gpu_file *file,
                       uint64_t offset, const void *now);

/* The same for ordinary host memory (adopt.h): the range gets a copy of its own of these bytes, in pinned memory inside
 * the host budget. Only where the budget may not hold all that the program brings, config.adopt is set, and the copy
 * fills CWS_GPU_RANGE_MIN bytes or more of a new range.
 *   expected   logical bytes of opened stores that are not bound yet
 * `wants` is cheap: is it worth making sure that the bytes at `from` are those that the copy would bring? Then the
 * caller may change them as soon as cws_gpu_adopt returns. */
bool cws_gpu_adopt_wants(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, uint64_t expected);
bool cws_gpu_adopt(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes, CUstream stream, const void *from);

/* Tells the first address of each range that one of the last launches named, or that was allocated meanwhile, and whose
 * memory is there or was never asked for: for a kernel that gets pointers in a way that nobody sees. `each` is called
 * under the manager's lock. */
void cws_gpu_recent(struct cws_gpu *gpu, void (*each)(void *arg, CUdeviceptr address), void *arg);

/* Streams: what the program does with them. Legacy and NULL are the same stream; CU_STREAM_PER_THREAD is another one in
 * each thread that names it, here as in cws_gpu_begin and the others: the calling thread's. (The `_ptsz` functions of
 * the driver mean that by NULL.) */
void cws_gpu_stream_gone(struct cws_gpu *gpu, CUstream stream); /* before cuStreamDestroy */
/* The stream is about to capture, or to join a capture. Not needed for what is right: nothing is recorded on a stream
 * that captures, and a use that was noted on it counts as running until the capture ends and the stream is used again.
 * Called before, it tells the manager early that the uses until now are done. */
void cws_gpu_stream_captures(struct cws_gpu *gpu, CUstream stream);
/* A context of the program is about to end, another one than the manager's, with its streams and events; all its work
 * is done. Before the driver ends it. */
void cws_gpu_context_gone(struct cws_gpu *gpu, CUcontext context);
/* cuCtxSynchronize returned: all work that was queued before is done. Cheap, and spares the manager questions to the
 * driver. */
void cws_gpu_synchronized(struct cws_gpu *gpu);

/* Keeps the range that contains `address` resident from its next use on: for ranges that kernels reach by hidden
 * pointers. */
void cws_gpu_pin(struct cws_gpu *gpu, CUdeviceptr address);

/* --- the budget while the program runs ------------------------------------------------------------- */

/* Another budget, in bytes, as config.budget_bytes; larger or smaller, at any time. A larger one is in force when this
 * returns. For a smaller one weights give way at once, idle memory and the reserve go back to the driver, pools are
 * trimmed, and what may be spilled is, as when memory is short; when this returns no more than it is used. It blocks
 * until then: for uses that run on the device, but no longer than about 2 s in which no stream comes further, or 10 s
 * in which no less comes to be used.
 * CWS_E_BUDGET, and the old budget stays (what was dropped on the way is loaded again): it cannot be met now, or the
 * launches that the program makes would fail with it: what cannot be dropped and the largest set of weights that a
 * launch has named do not fit, or staging would take more than half of it. The line says what takes how much, and the
 * least that is sure to do now. CWS_E_BUSY: in a forked child.
 * Staging keeps the size that it was opened with; all else follows the new budget. One call at a time: others wait.
 * Any thread but one of the manager's, with or without a context; the caller's last launch counts as settled (what it
 * queues later reaches only what it names). */
CWS_MUST_CHECK int cws_gpu_set_budget(struct cws_gpu *gpu, uint64_t bytes, struct cws_error *err);
/* The least budget that cws_gpu_set_budget is sure to take now, in bytes. Any thread. */
uint64_t cws_gpu_least_budget(struct cws_gpu *gpu);
/* Drops all that can be dropped now: weights, bound and adopted; idle memory and the reserve go back to the driver, and
 * pools are trimmed. Staging, written weights, activations and what is pinned stay, and so does the budget. Waits for
 * uses that run on the device, 1 s at most in which nothing moves. From then on nothing is loaded ahead of its use,
 * until a launch or a copy names a range, or cws_gpu_wake_up; then weights come back as they are needed. A use that
 * begins meanwhile ends it. Threads as above. */
void cws_gpu_sleep(struct cws_gpu *gpu);
/* Ends that: what is expected next may be loaded ahead. Does not block. Any thread. */
void cws_gpu_wake_up(struct cws_gpu *gpu);

/* --- what is said to the program and the user ------------------------------------------------------ */

/* What cuMemGetInfo answers, for programs that calculate with it (docs/limits.md).
 *   opened_bytes  logical bytes of opened stores that are not bound yet
 * While these are more than a small part of what is bound, the program loads: total = budget + opened_bytes, free = the
 * budget that is not taken by memory which cannot be evicted + opened_bytes. It plans with what is free, and weights
 * will take only what the budget gives.
 * Else: total = budget, free = the budget less what cannot be evicted and less what weights are to have: all that are
 * bound, half of the budget at most, or the largest set that a launch named where that is more.
 * total is CWS_GPU_TOTAL_MIN at least. */
#define CWS_GPU_TOTAL_MIN ((uint64_t)1229 << 20) /* transformers subtracts 1.2 GiB from it */
void cws_gpu_mem_info(struct cws_gpu *gpu, uint64_t opened_bytes, size_t *free_bytes, size_t *total_bytes);

struct cws_gpu_stats { /* bytes now, unless it says otherwise */
    uint64_t budget_bytes, used_bytes, peak_bytes;
    uint64_t decoded_bytes;   /* frames of bound ranges */
    uint64_t anonymous_bytes; /* frames of ranges that nothing can give back, written ones included */
    uint64_t dirty_bytes;     /* of these, once bound and then written by the program */
    uint64_t spilled_bytes;   /* content of ranges that only host memory has; counted in host_bytes, too */
    uint64_t reserve_bytes;   /* frames of what the program freed a short while ago: for its next allocations */
    uint64_t idle_bytes;      /* other frames that nobody needs */
    uint64_t staging_bytes;   /* the ring */
    uint64_t other_bytes;     /* pools, graphs, plain allocations */
    uint64_t bound_bytes;     /* logical bytes of ranges that are bound to stores and files, resident or not */
    uint64_t adopted_bytes;   /* of those that were adopted; host memory has them, too, counted in host_bytes */
    /* pinned host memory: compressed bytes, what is adopted or spilled, copies of it that are kept */
    uint64_t host_bytes;
    uint64_t ranges, loads, prefetched, demand, drops, spills, restores; /* counts since open */
    uint64_t loaded_bytes;                                               /* decoded, since open */
    uint64_t link_bytes; /* copied host to device by the manager, since open */
    uint64_t link_ns;    /* time that took, by the device's clock: the link was busy */
    uint64_t stall_ns;   /* time launches waited, for their turn, too, since open */
    /* since open: how often, and how long, launches waited for weights to be loaded and for memory of fresh ranges, and
     * what a launch needed waited for staging */
    uint64_t weight_waits, weight_wait_ns, fresh_waits, fresh_wait_ns, staging_waits, staging_wait_ns;
    /* since open: pieces of physical memory taken from the driver and given back; calls of the driver for that and to
     * map them */
    uint64_t frames_created, frames_released, vmm_calls;
    uint64_t proven;             /* since open: ranges whose content was found to be that of weights */
    uint64_t stolen_bytes;       /* since open: of the reserve, taken for something else */
    uint64_t least_budget_bytes; /* that would have held what was asked so far */
};
void cws_gpu_stats_get(struct cws_gpu *gpu, struct cws_gpu_stats *out);

/* Recomputes the invariants under the lock, module by module; NULL, or what does not hold (static text). For tests and
 * debug builds. */
const char *cws_gpu_check(struct cws_gpu *gpu);
/* Waits until nothing is being loaded or dropped. For tests. */
void cws_gpu_settle(struct cws_gpu *gpu);

#endif
