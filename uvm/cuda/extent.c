/* extent.c - the states of an extent: which changes are legal, and what an extent counts as in each. */
#include "extent.h"

#include <stdio.h>
#include <stdlib.h>

#define BIT(s) (1u << CWS_EXTENT_##s)

/* from -> to, with the function that does it. */
static const uint32_t may[CWS_EXTENT_STATES] = {
    [CWS_EXTENT_RESERVED] = BIT(BOUND) | BIT(PARTIAL)      /* bind.c cws_gpu_bind_put_locked */
                            | BIT(MAKING),                 /* use.c make_drops_lock */
    [CWS_EXTENT_PARTIAL] = BIT(BOUND)                      /* bind.c cws_gpu_bind_put_locked */
                           | BIT(LOADING)                  /* load.c cws_gpu_load_start_locked */
                           | BIT(RESERVED),                /* range.c cws_gpu_extent_end_locked: freed */
    [CWS_EXTENT_BOUND] = BIT(LOADING)                      /* load.c cws_gpu_load_start_locked */
                         | BIT(RESERVED),                  /* range.c cws_gpu_extent_end_locked: freed */
    [CWS_EXTENT_LOADING] = BIT(RESIDENT)                   /* load.c finish_drops_lock */
                           | BIT(ANONYMOUS)                /* the same: a part has no source */
                           | BIT(BOUND) | BIT(PARTIAL),    /* the same: it failed, or was freed */
    [CWS_EXTENT_RESIDENT] = BIT(DROPPING)                  /* drop.c cws_gpu_drop_start_drops_lock */
                            | BIT(DIRTY)                   /* adopt.c cws_gpu_adopt_give_locked */
                            | BIT(CACHED),                 /* range.c cache_locked: freed */
    [CWS_EXTENT_DROPPING] = BIT(BOUND)                     /* drop.c finish_drops_lock */
                            | BIT(DIRTY),                  /* the same: it was written, or cannot be hashed */
    [CWS_EXTENT_MAKING] = BIT(ANONYMOUS)                   /* use.c make_drops_lock */
                          | BIT(RESERVED),                 /* the same: there is no memory */
    [CWS_EXTENT_UNMAKING] = BIT(RESERVED)                  /* bind.c unmap_drops_lock, reserve.c */
                            | BIT(ANONYMOUS),              /* the same: it could not be unmapped */
    [CWS_EXTENT_ANONYMOUS] = BIT(SPILLING)                 /* spill.c spill_drops_lock */
                             | BIT(PROVING)                /* prove.c prove_drops_lock */
                             | BIT(LOOKING)                /* look.c look_drops_lock */
                             | BIT(RESIDENT)               /* bind.c cws_gpu_bind_note_locked: all was copied */
                             | BIT(UNMAKING)               /* bind.c unmap_drops_lock */
                             | BIT(CACHED),                /* range.c cache_locked: freed */
    [CWS_EXTENT_DIRTY] = BIT(SPILLING)                     /* spill.c spill_drops_lock */
                         | BIT(PROVING)                    /* prove.c prove_drops_lock */
                         | BIT(LOOKING)                    /* look.c look_drops_lock */
                         | BIT(CACHED),                    /* range.c cache_locked: freed */
    [CWS_EXTENT_CACHED] = BIT(ANONYMOUS)                   /* reserve.c cws_gpu_reserve_take_locked */
                          | BIT(COLD),                     /* reserve.c cool_locked */
    [CWS_EXTENT_COLD] = BIT(ANONYMOUS)                     /* reserve.c cws_gpu_reserve_take_locked */
                        | BIT(UNMAKING),                   /* reserve.c cws_gpu_reserve_unmap_drops_lock */
    [CWS_EXTENT_SPILLING] = BIT(SPILLED)                   /* spill.c spill_drops_lock */
                            | BIT(BOUND)                   /* bind.c cws_gpu_bind_found_locked */
                            | BIT(ANONYMOUS) | BIT(DIRTY), /* the same: it failed */
    [CWS_EXTENT_SPILLED] = BIT(RESTORING)                  /* spill.c cws_gpu_spill_restore_drops_lock */
                           | BIT(RESERVED),                /* range.c cws_gpu_extent_end_locked: freed */
    [CWS_EXTENT_RESTORING] = BIT(ANONYMOUS) | BIT(DIRTY)   /* spill.c cws_gpu_spill_restore_drops_lock */
                             | BIT(SPILLED),               /* the same: it failed */
    [CWS_EXTENT_PROVING] = BIT(BOUND)                      /* bind.c cws_gpu_bind_found_locked */
                           | BIT(ANONYMOUS) | BIT(DIRTY),  /* prove.c prove_drops_lock: it is no tensors */
    [CWS_EXTENT_LOOKING] = BIT(RESIDENT)                   /* bind.c cws_gpu_bind_kept_locked */
                           | BIT(ANONYMOUS) | BIT(DIRTY),  /* look.c look_drops_lock: it is no weights */
};

static const char *const names[CWS_EXTENT_STATES] = {
    "RESERVED", "PARTIAL", "BOUND", "LOADING",  "RESIDENT", "DROPPING",  "MAKING",  "UNMAKING", "ANONYMOUS",
    "DIRTY",    "CACHED",  "COLD",  "SPILLING", "SPILLED",  "RESTORING", "PROVING", "LOOKING"};

const char *cws_extent_state_name(enum cws_extent_state s) { return s < CWS_EXTENT_STATES ? names[s] : "?"; }

bool cws_extent_may(enum cws_extent_state from, enum cws_extent_state to) { return may[from] >> to & 1; }

void cws_extent_go(struct cws_gpu_extent *x, enum cws_extent_state to)
{
    if (!cws_extent_may(x->state, to)) {
        fprintf(stderr, "codecllm: bug: device memory at %#llx went from %s to %s\n", x->base,
                cws_extent_state_name(x->state), cws_extent_state_name(to));
        abort();
    }
    x->state = to;
}

enum cws_gpu_class cws_extent_class(enum cws_extent_state s)
{
    switch (s) {
    case CWS_EXTENT_MAKING:
    case CWS_EXTENT_UNMAKING:
    case CWS_EXTENT_ANONYMOUS:
    case CWS_EXTENT_DIRTY:
    case CWS_EXTENT_SPILLING:
    case CWS_EXTENT_RESTORING:
    case CWS_EXTENT_PROVING:
    case CWS_EXTENT_LOOKING: return CWS_CLASS_FIXED;
    case CWS_EXTENT_RESIDENT: return CWS_CLASS_RESIDENT;
    case CWS_EXTENT_CACHED: return CWS_CLASS_RESERVE;
    case CWS_EXTENT_COLD: return CWS_CLASS_IDLE;
    default: return CWS_CLASS_NONE;
    }
}

struct cws_gpu_extent *cws_gpu_extent_next(const struct cws_gpu_ranges *ranges, const struct cws_gpu_extent *x)
{
    const struct cws_list *l = ranges->all.next;
    if (x) {
        struct cws_gpu_range *r = x->range;
        size_t i = (size_t)(x - r->extents) + 1;
        if (i < r->extent_count)
            return &r->extents[i];
        l = r->link.next;
    }
    return l == &ranges->all ? NULL : CWS_LIST_OF(l, struct cws_gpu_range, link)->extents;
}
