/* extent.h - allocations of the program and their parts: what a range and an extent are, the states of an extent and
 * which changes between them are legal.
 *
 * A range is one allocation. An extent is a part of it that begins and ends at granules: it has a state, a frame of its
 * own, a place in the order of uses, and is loaded and dropped as a whole. A range has one extent for now.
 *
 *   RESERVED ---bind---> BOUND --load--> LOADING --> RESIDENT --drop--> DROPPING --> BOUND
 *      |  `-bind a part-> PARTIAL --load--> LOADING --> ANONYMOUS            `--(was written)--> DIRTY
 *      |                 `--bind the rest--> BOUND
 *      `--first use--> MAKING --> ANONYMOUS --the rest was copied--> RESIDENT
 *   ANONYMOUS, DIRTY --spill--> SPILLING --> SPILLED (host memory has it) --> RESTORING --> as before
 *                                  `--(it is adopted: adopt.h)--> BOUND
 *   RESIDENT --(host memory of what was adopted is needed)--> DIRTY
 *   ANONYMOUS, DIRTY --memory is short--> PROVING --it is tensors--> BOUND, or as before
 *   ANONYMOUS, DIRTY --the loader rests--> LOOKING --it is weights (look.h)--> RESIDENT, or as before
 *   ANONYMOUS --bind--> UNMAKING --> RESERVED
 *   RESIDENT, ANONYMOUS, DIRTY --the program frees it--> CACHED --a while later--> COLD --> UNMAKING --> RESERVED
 *                                                          `------`--the next allocation of this size--> ANONYMOUS
 *
 * LOADING, DROPPING, MAKING, UNMAKING, SPILLING, RESTORING, PROVING and LOOKING belong to the thread that made the
 * change, which works on the extent without the lock.
 *
 * Invariants (cws_gpu_check)
 *   I1  An extent is mapped exactly in RESIDENT, ANONYMOUS, DIRTY, CACHED and COLD.
 *   I3  An extent is dropped only with no holds, and after all of its uses are done on their streams.
 *   I5  RESIDENT: the frame's content equalled its pieces (pieces.h) when it was mapped, or when they were copied
 *       there. BOUND and PARTIAL: nothing but the sources has the content.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_EXTENT_H
#define CWS_GPU_EXTENT_H
#include "store/base/list.h"
#include "store/format/content_hash.h"
#include "uvm/policy/order.h"
#include "arena.h"
#include "frames.h"
#include "pieces.h"
#include "streams.h"

enum cws_extent_state {
    CWS_EXTENT_RESERVED,
    CWS_EXTENT_PARTIAL,
    CWS_EXTENT_BOUND,
    CWS_EXTENT_LOADING,
    CWS_EXTENT_RESIDENT,
    CWS_EXTENT_DROPPING,
    CWS_EXTENT_MAKING,
    CWS_EXTENT_UNMAKING,
    CWS_EXTENT_ANONYMOUS,
    CWS_EXTENT_DIRTY,
    CWS_EXTENT_CACHED,
    CWS_EXTENT_COLD,
    CWS_EXTENT_SPILLING,
    CWS_EXTENT_SPILLED,
    CWS_EXTENT_RESTORING,
    CWS_EXTENT_PROVING,
    CWS_EXTENT_LOOKING,
    CWS_EXTENT_STATES
};

/* Of an extent whose content host memory has, or had when it was last spilled. Belongs to spill.c. */
struct cws_gpu_spill {
    void *host; /* pinned, accounted as the extent's span; NULL: none. Only SPILLED needs it: else it is a copy */
    struct cws_hash128 hash;
    enum cws_extent_state from; /* what it was before: ANONYMOUS or DIRTY */
    uint64_t failed;            /* extent.used + 1 when spilling it failed; not tried again before its next use */
};

/* What is known of adopting an extent's content from the device. Belongs to adopt.c. */
struct cws_gpu_adoptable {
    bool brought;   /* a copy from ordinary memory filled it when it was new: it is a weight, as far as can be known */
    bool own;       /* it is none: a kernel wrote it, or the copy was not the last */
    uint32_t count; /* times that it was adopted, since it was last left alone */
    uint64_t until; /* place in the order before which it is left alone: it changed too often */
};

/* Of an extent that was looked at by prove.c, in vain. */
struct cws_gpu_proof {
    uint64_t failed; /* extent.used + 1 then; not looked at again before its next use */
    uint32_t times;
};

/* Of an extent that look.c may look at, or has. */
struct cws_gpu_look {
    uint64_t made, made_at; /* uses begun, and place in the order, when the program allocated it */
    bool early;             /* that was while it loaded weights, or it was filled with one in part */
    uint64_t used;          /* extent.used + 1 at the last look; not looked at again before its next use */
    uint32_t times;         /* in vain */
    bool hashed;
    struct cws_hash128 hash; /* of its content then */
};

struct cws_gpu_extent { /* the names in [] are of those that write a field, beside who makes the range */
    struct cws_gpu_range *range;
    CUdeviceptr base;
    size_t bytes; /* of the allocation that lie in it */
    /* of its memory: what a weight takes and no more, or, for what has no source, its size class where there is room
     * [range.c; bind.c; adopt.c] */
    uint32_t granules;
    enum cws_extent_state state;  /* [extent.c] */
    uint32_t holds;               /* uses that keep its memory where it is [use.c] */
    struct cws_gpu_frame *frame;  /* [who the state says that it belongs to] */
    struct cws_gpu_pieces pieces; /* [bind.c, range.c as it ends] */
    struct cws_gpu_users users;   /* [streams.c] */
    uint64_t used;                /* uses begun at its last one [use.c] */
    uint32_t sets;                /* bit per remembered set that it is part of [sets.c] */
    CUresult failed;              /* of the last load that was demanded [loader; use.c as it demands one] */
    struct cws_gpu_spill spill;
    struct cws_gpu_adoptable adoptable;
    struct cws_gpu_proof proof;  /* [prove.c] */
    struct cws_gpu_look look;    /* [look.c] */
    struct cws_list wanted;      /* cws_gpu_ranges.wanted: a launch waits for it [use.c] */
    CUstream stream;             /* that it was allocated for, or freed on [range.c] */
    struct cws_list cached;      /* cws_gpu_reserve.cached or .cold, when CACHED or COLD [reserve.c] */
    struct cws_list freed_link;  /* and one of cws_gpu_reserve.freed [reserve.c] */
    uint64_t freed_at;           /* CACHED: place in the order of uses when it was freed [range.c] */
    struct cws_order_node order; /* in the order of uses while it is bound */
};

struct cws_gpu_range { /* range.[ch] write its fields */
    CUdeviceptr base;
    size_t bytes;      /* as asked for */
    uint32_t granules; /* of its addresses: those of its size class */
    uint32_t named;    /* uses that have it in their list, and others: it lives until they end */
    /* The program freed it: its addresses name nothing. Set by cws_gpu_free, until the memory is allocated again; a
     * thread that owns an extent meanwhile ends it as its work is done, or caches it. */
    bool freed;
    /* It stays: kernels reach it by pointers that nobody sees, or a stream that used it cannot be followed. Until it is
     * freed. */
    bool pinned;
    struct cws_list link; /* cws_gpu_ranges.all */
    uint32_t extent_count;
    struct cws_gpu_extent extents[];
};

struct cws_gpu_ranges {
    struct cws_gpu_arena arena;
    struct cws_gpu_extent **by_granule; /* of the arena; NULL: no range */
    struct cws_list all;
    uint32_t count;
    struct cws_list wanted; /* extents that launches wait for, first come first */
};

/* For so many bytes, at most 2^52. */
static inline uint32_t cws_gpu_granules_of(uint64_t bytes)
{
    return (uint32_t)((bytes + CWS_GPU_GRANULE - 1) / CWS_GPU_GRANULE);
}
static inline uint64_t cws_gpu_span(const struct cws_gpu_extent *x) { return (uint64_t)x->granules * CWS_GPU_GRANULE; }

/* Has each byte of it a source? It is paged then, until the program writes to it. */
static inline bool cws_gpu_is_bound(const struct cws_gpu_extent *x)
{
    return x->pieces.count && x->pieces.covered == x->bytes;
}

/* Did a copy bring its content, and nobody has changed it since, as far as is known? */
static inline bool cws_gpu_is_brought(const struct cws_gpu_extent *x)
{
    bool anonymous = x->state == CWS_EXTENT_ANONYMOUS || (x->state == CWS_EXTENT_LOOKING && !cws_gpu_is_bound(x));
    return anonymous && x->adoptable.brought && !x->adoptable.own;
}

/* Did the program free it, and its memory is still there? */
static inline bool cws_extent_is_freed(enum cws_extent_state s)
{
    return s == CWS_EXTENT_CACHED || s == CWS_EXTENT_COLD;
}
static inline bool cws_extent_is_mapped(enum cws_extent_state s)
{
    return s == CWS_EXTENT_RESIDENT || s == CWS_EXTENT_ANONYMOUS || s == CWS_EXTENT_DIRTY || cws_extent_is_freed(s);
}
/* Does a thread work on it without the lock, which ends it where the program has freed it? */
static inline bool cws_extent_has_owner(enum cws_extent_state s)
{
    return s == CWS_EXTENT_LOADING || s == CWS_EXTENT_DROPPING || s == CWS_EXTENT_SPILLING ||
           s == CWS_EXTENT_RESTORING || s == CWS_EXTENT_PROVING || s == CWS_EXTENT_LOOKING;
}
/* Has it memory, or is it getting some, whose content the program alone has? */
static inline bool cws_extent_is_programs(enum cws_extent_state s)
{
    return s == CWS_EXTENT_MAKING || s == CWS_EXTENT_ANONYMOUS || s == CWS_EXTENT_DIRTY || s == CWS_EXTENT_SPILLING ||
           s == CWS_EXTENT_RESTORING || s == CWS_EXTENT_PROVING || s == CWS_EXTENT_LOOKING;
}
/* Has it memory with a weight that can be dropped, or is it getting it or giving it back? */
static inline bool cws_extent_holds_weight(enum cws_extent_state s)
{
    return s == CWS_EXTENT_LOADING || s == CWS_EXTENT_RESIDENT || s == CWS_EXTENT_DROPPING;
}
/* Is its content elsewhere, and no thread works on it? */
static inline bool cws_extent_rests(enum cws_extent_state s)
{
    return s == CWS_EXTENT_BOUND || s == CWS_EXTENT_PARTIAL || s == CWS_EXTENT_SPILLED;
}
/* Does its content lie elsewhere, so that a launch has to wait for it? */
static inline bool cws_extent_is_away(enum cws_extent_state s)
{
    return cws_extent_rests(s) || cws_extent_has_owner(s);
}
static inline bool cws_gpu_is_demanded(const struct cws_gpu_extent *x) { return !cws_list_is_empty(&x->wanted); }
/* Host memory has a copy of what is on the device, which is right as long as nobody writes to the extent. */
static inline bool cws_gpu_has_copy(const struct cws_gpu_extent *x)
{
    return x->spill.host && x->state != CWS_EXTENT_SPILLED && x->state != CWS_EXTENT_RESTORING;
}

enum cws_gpu_class cws_extent_class(enum cws_extent_state s);
const char *cws_extent_state_name(enum cws_extent_state s);
bool cws_extent_may(enum cws_extent_state from, enum cws_extent_state to);
/* The change of state itself: aborts with a line where the table in extent.c has none such. Called by
 * cws_gpu_extent_set_locked (range.h), which keeps accounts and lists right, only. */
void cws_extent_go(struct cws_gpu_extent *x, enum cws_extent_state to);

/* Each extent of each range, in the order of allocation; NULL: the first, or none is left. */
struct cws_gpu_extent *cws_gpu_extent_next(const struct cws_gpu_ranges *ranges, const struct cws_gpu_extent *x);
#endif
