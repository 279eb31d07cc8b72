/* gpu.h - the manager of a device as a whole, for the files that work across its modules. Each module is a struct with
 * a header of its own, whose fields no other one writes; README.md lists them.
 *
 * Locks, in this order: strict.lock (use.h), uses.slow (use.h), core.lock (core.h), which protects all of this.
 * Suffixes: _locked: the caller holds core.lock. _drops_lock: that, too, and it may be dropped inside; the caller looks
 * again at all that it saw before. Only the loader thread loads and drops; memory for fresh extents is mapped by the
 * thread that needs it. */
#ifndef CWS_GPU_GPU_H
#define CWS_GPU_GPU_H
#include "adopt.h"
#include "budget.h"
#include "core.h"
#include "frames.h"
#include "loader.h"
#include "look.h"
#include "manager.h"
#include "order_use.h"
#include "pools.h"
#include "prove.h"
#include "range.h"
#include "reserve.h"
#include "resize.h"
#include "sets.h"
#include "sources.h"
#include "staging.h"
#include "streams.h"
#include "trace.h"
#include "use.h"

struct cws_gpu {
    struct cws_gpu_config config;
    struct cws_gpu_core core;
    struct cws_gpu_budget budget;
    struct cws_gpu_pools pools;
    struct cws_gpu_frames frames;
    struct cws_gpu_streams streams;
    struct cws_gpu_sources sources;
    struct cws_gpu_staging staging;
    struct cws_gpu_ranges ranges;
    struct cws_gpu_reserve reserve;
    struct cws_gpu_sets sets;
    struct cws_gpu_order order;
    struct cws_gpu_uses uses;
    struct cws_gpu_strict strict;
    struct cws_gpu_loads loads;
    struct cws_gpu_drops drops;
    struct cws_gpu_spills spills;
    struct cws_gpu_adopts adopts;
    struct cws_gpu_proofs proofs;
    struct cws_gpu_looks looks;
    struct cws_gpu_loader loader;
    struct cws_gpu_resize resize;
    struct cws_gpu_trace trace;
};

/* room.c */
/* Room for bytes that the program takes outside of ranges, granted; to_pool: for a pool that grows. */
CUresult cws_gpu_room_make_drops_lock(struct cws_gpu *gpu, uint64_t bytes, bool to_pool);
/* For the line that says that the budget is too small for something: the least that would do, as far as can be known.
 * `need`: for that itself; `fresh` of it: new bytes that cannot be dropped later. Beside those there must be room for
 * what launches will name: the largest set that one did, or the largest weight. */
uint64_t cws_gpu_room_least_locked(struct cws_gpu *gpu, uint64_t need, uint64_t fresh);
/* Would `need` bytes that cannot be dropped fit, if what can be spilled were? */
bool cws_gpu_room_fits_locked(const struct cws_gpu *gpu, uint64_t need);
#endif
