/* sets.h - the largest sets of bound extents that one launch named. Room for the largest one is kept free of what
 * cannot be evicted, so that a shortage shows at an allocation and not at a launch. A set is forgotten when the first
 * of its extents ends or is written to. Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_SETS_H
#define CWS_GPU_SETS_H
#include "extent.h"

enum { CWS_GPU_SETS = 32 }; /* remembered; bits of cws_gpu_extent.sets */

struct cws_gpu_sets {
    const struct cws_gpu_ranges *ranges;
    uint64_t bytes[CWS_GPU_SETS]; /* 0: none */
    uint64_t largest, smallest;   /* of these; smallest 0: there is a place free */
};

/* A launch names these. `room`: bytes that it could have at most; a set that fails is not to be kept room for. */
void cws_gpu_sets_note(struct cws_gpu_sets *sets, struct cws_gpu_extent *const *extents, unsigned count, uint64_t room);
/* It ends, or was written to. */
void cws_gpu_sets_forget(struct cws_gpu_sets *sets, struct cws_gpu_extent *x);

/* NULL, or what does not hold. */
const char *cws_gpu_sets_check(const struct cws_gpu_sets *sets);
#endif
