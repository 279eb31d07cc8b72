/* loader.h - the loader thread and its three sequences: loading an extent, dropping one, spilling one. All that is
 * written here is written by that thread, with the manager's lock held.
 * Threads: the loader, with the lock, unless a function says otherwise. Steps return whether anything moved. */
#ifndef CWS_GPU_LOADER_H
#define CWS_GPU_LOADER_H
#include "extent.h"
#include "staging.h"
#include <pthread.h>

enum {
    CWS_GPU_LOADS = 12,                 /* in flight */
    CWS_GPU_DROPS = CWS_GPU_CHECKS - 1, /* in flight; the last check is for what is spilled */
};

struct cws_gpu_load { /* an extent that is being loaded, piece after piece */
    struct cws_gpu_extent *extent;
    /* of the parts of its pieces: those before `ended` have arrived, those before `needed` are needed, and those before
     * `begun` were asked for; asked: how many of these have not arrived */
    struct cws_gpu_place ended, needed, begun;
    unsigned asked;
    uint32_t piece;         /* to be issued: of that piece */
    uint64_t next_chunk;    /* this chunk, counted from its first */
    uint64_t chunks_done;   /* of the part `ended` */
    unsigned slots_pending; /* under way */
    bool for_launch, failed;
    uint32_t lane; /* of the trace, + 1; 0: none */
    uint64_t begin_ns;
};

struct cws_gpu_loads { /* load.c */
    unsigned count;
    struct cws_gpu_load at[CWS_GPU_LOADS];
    struct cws_gpu_load *of_slot[CWS_GPU_SLOTS]; /* of each slot that is under way */
    uint32_t piece_of_slot[CWS_GPU_SLOTS];       /* and the piece */
    uint64_t no_slot_ns; /* what a launch waits for could be sent, and there is no slot; 0: no */
    /* since the manager was opened */
    uint64_t begun, ahead, bytes;
    uint64_t slot_waits, slot_wait_ns; /* for staging */
};

struct cws_gpu_drop { /* an extent that is being evicted */
    struct cws_gpu_extent *extent;
    uint32_t checked;  /* pieces, whose hashes were right; those after them are being hashed */
    uint64_t begin_ns; /* for the trace; 0: it does not run */
};

struct cws_gpu_drops {                     /* drop.c */
    struct cws_gpu_drop at[CWS_GPU_DROPS]; /* in order: [head, head + count); the check of each has its index */
    unsigned head, count;
    uint64_t bytes;   /* of these */
    uint64_t dropped; /* since the manager was opened */
};

struct cws_gpu_spills { /* spill.c: counts since the manager was opened */
    uint64_t out, in;
};

struct cws_gpu_loader { /* loader.c */
    pthread_t thread;
    bool started;
    bool starved;                              /* it finds no extent to evict: the end of a use wakes it */
    uint64_t margin_since_ns, margin_progress; /* since when somebody waits, with the streams at a stand; 0: nobody */
    uint32_t refusals; /* times in a row that the driver gave no memory though the budget had room */
};

/* loader.c. The lock is not held. */
CWS_MUST_CHECK int cws_gpu_loader_start(struct cws_gpu *gpu, struct cws_error *err);
void cws_gpu_loader_join(struct cws_gpu *gpu); /* the core was stopped */

/* All pools give back what they do not use, and the owner of the manager what it keeps unused in them. In the loader,
 * with the lock. */
void cws_gpu_loader_trim_drops_lock(struct cws_gpu *gpu);

/* load.c */
struct cws_gpu_batch_of { /* chunks of a piece that are to be decoded */
    const struct cws_gpu_piece *piece;
    uint64_t next_chunk;              /* the first of them, counted from the piece's first */
    CUdeviceptr to;                   /* where it is to be */
    uint64_t bytes_most, chunks_most; /* room there; chunks_most: at most CWS_GPU_SLOT_CHUNKS */
};
/* Fills the slot's jobs with as many of these chunks as it has room for, of one part, and says what is to be sent; the
 * part's bytes are in host memory. Without the lock. */
CWS_MUST_CHECK int cws_gpu_slot_plan(const struct cws_gpu *gpu, struct cws_gpu_slot *slot,
                                     const struct cws_gpu_batch_of *of, struct cws_gpu_send *send,
                                     struct cws_error *err);
bool cws_gpu_load_start_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, struct cws_gpu_frame *frame,
                               bool for_launch);
bool cws_gpu_loads_issue_drops_lock(struct cws_gpu *gpu);
bool cws_gpu_loads_reap_drops_lock(struct cws_gpu *gpu);
unsigned cws_gpu_loads_most(const struct cws_gpu *gpu); /* that may be in flight */
void cws_gpu_loads_fail_locked(struct cws_gpu *gpu);    /* all of them, silently: the manager closes */
/* Is the oldest batch done? In the loader, without the lock. */
bool cws_gpu_load_is_ready(const struct cws_gpu *gpu);
const char *cws_gpu_loads_check(const struct cws_gpu *gpu); /* NULL, or what does not hold */

/* drop.c */
/* The caller has made sure that nobody holds the extent and that its uses are done. False: too many are in flight. */
bool cws_gpu_drop_start_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x);
bool cws_gpu_drops_reap_drops_lock(struct cws_gpu *gpu);
unsigned cws_gpu_drops_of(const struct cws_gpu_drops *drops, uint32_t granules); /* of that size, in flight */
bool cws_gpu_drop_is_ready(const struct cws_gpu *gpu);                           /* the oldest; as for loads */
const char *cws_gpu_drops_check(const struct cws_gpu *gpu);

/* spill.c */
/* The copy that was kept of an extent, the caller's now, counted as its span; NULL: there is none. */
void *cws_gpu_spill_take_copy_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x);
/* The hash of an extent's bytes through its frame's alias, and a copy of them: into `out`, or from `in` before. Waits
 * for it. In the loader, which owns the extent, without the lock. */
CUresult cws_gpu_move_and_hash(struct cws_gpu *gpu, const struct cws_gpu_extent *x, void *out, const void *in,
                               struct cws_hash128 *hash);
/* Bytes of what could be spilled; looks through all extents. Any thread. */
uint64_t cws_gpu_spillable_locked(const struct cws_gpu *gpu);
/* Spills the extent that is needed last, as far as that is known. False: none can be spilled now. One may be later,
 * when its uses are done or fetchers have made room in host memory. */
bool cws_gpu_spill_one_drops_lock(struct cws_gpu *gpu);
void cws_gpu_spill_restore_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x, struct cws_gpu_frame *frame);
/* Its host memory is not needed any more. Any thread. */
void cws_gpu_spill_forget_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x);
const char *cws_gpu_spills_check(const struct cws_gpu *gpu);
#endif
