/* use.h - uses: what the program's threads do with ranges, and how many of them wait. Strict mode: one use at a time.
 * Threads: said for each function. */
#ifndef CWS_GPU_USE_H
#define CWS_GPU_USE_H
#include "extent.h"

/* What a launch waited for. */
enum cws_gpu_wait { CWS_WAIT_WEIGHT, CWS_WAIT_FRESH, CWS_GPU_WAITS };

struct cws_gpu_uses {
    struct cws_lock slow; /* one launch at a time waits for memory */
    uint64_t begun;
    uint32_t waiting; /* launches that wait */
    uint32_t running; /* begun, not ended, not waiting */
    uint32_t stuck;   /* of these, whose thread waits for memory */
    /* since the manager was opened */
    uint64_t demanded; /* extents that had to be loaded for a launch */
    uint64_t stall_ns; /* that launches waited, for their turn, too */
    uint64_t waits[CWS_GPU_WAITS], wait_ns[CWS_GPU_WAITS];
    uint64_t weights_stalled_ns; /* of wait_ns for weights: waits at whose end the launch's stream had nothing to do */
};

struct cws_gpu_strict {
    struct cws_lock lock; /* from a use's begin to its end */
    bool due;             /* all that is mapped and not held is to be evicted */
    unsigned looks;       /* at what was freed, and is not known to be done, since then */
};

void cws_gpu_uses_init(struct cws_gpu_uses *uses, struct cws_gpu_strict *strict);

/* A launch waits for the extent, or not any more. The lock is held. */
void cws_gpu_demand_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool demand);
/* Uses that the calling thread has begun and not ended. While the thread waits for memory they count as stuck: nobody
 * can wait for what they hold. */
unsigned cws_gpu_uses_open(const struct cws_gpu *gpu);
/* The calling thread begins to wait for memory, or ends that. The lock is held. */
void cws_gpu_uses_stuck_locked(struct cws_gpu *gpu, bool stuck);

/* strict.c. Nothing happens where config.strict is not set. enter before a use begins; leave when it ended or could not
 * begin. The lock is not held. */
void cws_gpu_strict_enter(struct cws_gpu *gpu);
void cws_gpu_strict_leave(struct cws_gpu *gpu, CUstream stream, bool queued);
/* In the loader, with the lock. Whether anything moved. */
bool cws_gpu_strict_step_drops_lock(struct cws_gpu *gpu);

/* NULL, or what does not hold. The lock is held. */
const char *cws_gpu_uses_check(const struct cws_gpu *gpu);
#endif
