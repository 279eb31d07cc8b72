/* staging.h - staging memory and the streams of the loader: slots, each for a batch of compressed chunks on its way to
 * a frame, and checks, each for the hash of what lies in a frame. Slots are a ring: taken in turn, and done in turn.
 * The copy of one batch runs beside the decoding of the one before.
 *
 * Threads: the loader's alone, but for open and close, and for the numbers that are read under the manager's lock. */
#ifndef CWS_GPU_STAGING_H
#define CWS_GPU_STAGING_H
#include "store/cuda/decoder.h"
#include "budget.h"

enum {
    CWS_GPU_SLOTS = 8,         /* batches of chunks in flight, at most */
    CWS_GPU_SLOT_CHUNKS = 128, /* chunks of a batch */
    CWS_GPU_CHECKS = 33,       /* hashes in flight: those of evictions, and one of what is spilled */
    CWS_GPU_CHECK_JOBS = 48,   /* pieces of memory that one of them hashes */
};

/* Moments of a batch by the device's clock. Those of the copy are always taken, the others where a trace runs. */
enum cws_gpu_moment { CWS_MOMENT_COPY, CWS_MOMENT_COPIED, CWS_MOMENT_DECODE, CWS_MOMENT_DECODED, CWS_GPU_MOMENTS };

struct cws_gpu_slot {   /* one batch: staging in device memory and its control block in pinned host memory */
    CUdeviceptr device; /* slot_bytes of stored bytes, then the control block */
    CUdeviceptr device_table, device_jobs, device_results;
    struct cws_gpu_table *table; /* pinned: table, results and jobs follow each other as on the device */
    struct cws_gpu_job *jobs;
    struct cws_gpu_result *results;
    CUevent copied, done;
    uint64_t first_chunk, chunks;
    CUevent moments[CWS_GPU_MOMENTS]; /* NULL: not taken */
    uint32_t timed;                   /* bit per moment that was recorded */
};

struct cws_gpu_check { /* the hashes of pieces of device memory */
    CUdeviceptr device_results;
    struct cws_gpu_hash_job *jobs;  /* pinned, which a kernel reads at the same address */
    struct cws_gpu_result *results; /* pinned */
    CUevent done;
};

struct cws_gpu_staging {
    struct cws_gpu_core *core;
    struct cws_gpu_decoder *decoder;
    CUstream copy_stream, decode_stream, check_stream;
    uint8_t *control; /* pinned */
    CUdeviceptr ring;
    uint64_t slot_bytes;
    unsigned slot_count;
    struct cws_gpu_slot slots[CWS_GPU_SLOTS];
    unsigned next, oldest, busy; /* slots are taken and done in turn */
    struct cws_gpu_check checks[CWS_GPU_CHECKS];
    uint64_t link_bytes, link_ns; /* copied since the manager was opened; the time that took, by the device's clock */
};

/* Bytes of device memory that staging takes of such a budget; ring_bytes: as in cws_gpu_config. */
uint64_t cws_gpu_staging_bytes(const struct cws_gpu_core *core, uint64_t ring_bytes, uint64_t budget);

/* Takes its memory out of the budget. The context is current; kernels as in cws_gpu_config. */
CWS_MUST_CHECK int cws_gpu_staging_open(struct cws_gpu_staging *st, struct cws_gpu_core *core,
                                        struct cws_gpu_budget *budget, const struct cws_gpu_config *config,
                                        struct cws_error *err);
/* Pinned host memory that it has. */
uint64_t cws_gpu_staging_host_bytes(const struct cws_gpu_staging *st);
void cws_gpu_staging_close(struct cws_gpu_staging *st); /* zeroed, or open failed: what there is */
/* Trace: the other moments are taken, too, or not any more. False: the driver gave no events. */
bool cws_gpu_staging_time_all(struct cws_gpu_staging *st, bool all);

/* The slot for the next batch, or NULL: all are under way. */
struct cws_gpu_slot *cws_gpu_slot_free(struct cws_gpu_staging *st);
/* What a slot has to be sent: stored bytes at `host`, its jobs, `table` or NULL. Asynchronous. Where this fails a part
 * may be under way: cws_gpu_slot_wait. Without the lock. */
struct cws_gpu_send {
    const uint8_t *host;
    uint64_t bytes;
    const struct cws_gpu_table *table;
    const uint64_t *key; /* of the hash of what the jobs decode to */
    struct cws_gpu_batch batch;
};
CWS_MUST_CHECK int cws_gpu_slot_send(struct cws_gpu_staging *st, struct cws_gpu_slot *slot,
                                     const struct cws_gpu_send *send, struct cws_error *err);
/* Waits for all that was sent. Without the lock. */
CUresult cws_gpu_slot_wait(struct cws_gpu_staging *st);
/* It was sent: the next slot is another one. */
void cws_gpu_slot_sent(struct cws_gpu_staging *st, const struct cws_gpu_send *send);
/* The oldest batch: CUDA_ERROR_NOT_READY, or what came of it. *out: its slot; NULL: nothing is under way. */
CUresult cws_gpu_slot_oldest(struct cws_gpu_staging *st, struct cws_gpu_slot **out);
/* It was looked at, and is free. */
void cws_gpu_slot_done(struct cws_gpu_staging *st);

/* Hashes of memory of the device, `count` of check->jobs into check->results, under `key`: asynchronous, on
 * check_stream. Without the lock. */
CUresult cws_gpu_check_start(struct cws_gpu_staging *st, struct cws_gpu_check *check, uint32_t count,
                             const uint64_t key[2]);

/* NULL, or what does not hold. */
const char *cws_gpu_staging_check(const struct cws_gpu_staging *st);
#endif
