/* resize.h - another budget while the program runs, and sleep: all that can be dropped is dropped at once. Both are
 * asked for by any thread, and done by the loader.
 *
 * A smaller budget is in force at once for whoever wants memory; cws_gpu_budget.was has the old one until no more than
 * the new one is used. Where that does not come to be, the old one is in force again.
 * Sleep changes no budget. Nothing is loaded ahead until a use names a range, or cws_gpu_wake_up.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_RESIZE_H
#define CWS_GPU_RESIZE_H
#include "core.h"

enum cws_gpu_resize_stage {
    CWS_RESIZE_NONE,
    CWS_RESIZE_ASKED, /* a thread waits for a smaller budget: pools are trimmed, and it is looked whether it can be */
    CWS_RESIZE_SHRINKING, /* it is in force, and more is used than that */
    CWS_RESIZE_SLEEP,     /* a thread waits until all that can be dropped is */
};

struct cws_gpu_resize { /* resize.[ch] write its fields */
    bool taken;         /* a thread changes the budget or waits for sleep: others wait for their turn */
    enum cws_gpu_resize_stage stage;
    bool asleep;
    uint64_t to;                /* ASKED: the budget */
    uint64_t least;             /* of the last one that was refused: what would have done; 0: it was not */
    uint64_t bytes, progress;   /* what was used, and how far streams had come, when that was looked at last */
    uint64_t fell_ns, moved_ns; /* since when less did not come to be used, nor any stream came further */
};

/* In the loader. Whether something moved. */
bool cws_gpu_resize_step_drops_lock(struct cws_gpu *gpu);
static inline bool cws_gpu_resize_waits(const struct cws_gpu_resize *r) { return r->stage != CWS_RESIZE_NONE; }
/* A use names a range. */
static inline void cws_gpu_resize_use(struct cws_gpu_resize *r)
{
    if (r->asleep)
        r->asleep = false;
}

/* NULL, or what does not hold. */
const char *cws_gpu_resize_check(const struct cws_gpu *gpu);
#endif
