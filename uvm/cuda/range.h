/* range.h - ranges: the allocations of the program, and the changes of state of their extents, with all that goes with
 * one. extent.h has the structs and the states.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_RANGE_H
#define CWS_GPU_RANGE_H
#include "extent.h"

void cws_gpu_ranges_init(struct cws_gpu_ranges *ranges);
/* bytes: of addresses. The lock is not held. */
CWS_MUST_CHECK int cws_gpu_ranges_open(struct cws_gpu_ranges *ranges, struct cws_gpu_core *core, uint64_t bytes,
                                       struct cws_error *err);
/* Ends all ranges, whoever uses them; their frames become idle. The threads of the manager have ended. */
void cws_gpu_ranges_close(struct cws_gpu *gpu);

/* The range that holds an address of the arena and was not freed, or NULL. */
struct cws_gpu_range *cws_gpu_range_at_locked(const struct cws_gpu_ranges *ranges, CUdeviceptr address);

void cws_gpu_extent_set_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, enum cws_extent_state to);
/* What a thread worked on without the lock is done: if the program freed it meanwhile, it ends, or, mapped, becomes
 * CACHED. Wakes all that wait for a change. */
void cws_gpu_extent_settle_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x);
/* It stays from its next use on, until it is freed. */
void cws_gpu_range_pin_locked(struct cws_gpu_range *r);
/* Somebody has the range in a list, so that it lives until that ends, though it may be freed. */
static inline void cws_gpu_range_name_locked(struct cws_gpu_range *r) { r->named++; }
void cws_gpu_range_unname_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);
/* An extent of a freed range that has no memory: nothing is left of it. The range may be gone then. */
void cws_gpu_extent_end_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x);

/* bind.c: what copies tell of the content of ranges. Pieces are bound instead of copied, or noted after they were
 * copied. */
/* The extent that [address, address + bytes) lies in, or NULL. */
struct cws_gpu_extent *cws_gpu_bind_around_locked(const struct cws_gpu *gpu, CUdeviceptr address, size_t bytes);
/* The extent that such a copy fills, or fills a part of, if that can be bound now; or NULL. One with memory loses it if
 * all of it is filled. */
struct cws_gpu_extent *cws_gpu_bind_target_drops_lock(struct cws_gpu *gpu, CUdeviceptr to, size_t bytes,
                                                      CUstream stream);
/* Binds the piece, and takes over its reference to its source. False: it is not bound, for want of memory. x: a
 * target. */
bool cws_gpu_bind_put_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, const struct cws_gpu_piece *piece);
/* A copy wrote the piece to x, or is about to; takes over its reference. An extent all of which was copied like this is
 * RESIDENT. In other states than ANONYMOUS nothing is noted. */
void cws_gpu_bind_note_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, const struct cws_gpu_piece *piece);

/* An extent of the program is RESIDENT: pieces that were found to be its content, and are its pieces now. was_bound: it
 * was bound before it was written to. */
void cws_gpu_bind_kept_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool was_bound);
/* An extent of the program, without memory by now, is BOUND to pieces that were found to be its content. was_bound: it
 * was bound before it was written to. */
void cws_gpu_bind_found_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool was_bound);

/* NULL, or what does not hold. */
const char *cws_gpu_ranges_check(const struct cws_gpu *gpu);
#endif
