/* source.h - the interface of what a view gets its bytes from. The pager knows nothing of stores: store_source.c binds
 * one, tests bind patterns.
 *
 * A source is the bytes [0, bytes) cut into regions (tensors), in order, not overlapping; what no region covers belongs
 * to none. */
#ifndef CWS_SOURCE_H
#define CWS_SOURCE_H
#include "store/base/error.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CWS_NO_REGION UINT32_MAX

struct cws_source;

struct cws_source_ops {
    /* Writes bytes [begin, end) of the source to dst. `slot` < cws_pager_slots(): calls with the same slot never
     * overlap, calls with different ones may. Runs in workers and inside fault handlers: no malloc, no stdio, no lock
     * that a thread which touches a view may hold. 0, or a code with one line that names file, region and offset. */
    int (*fill)(struct cws_source *s, unsigned slot, uint64_t begin, uint64_t end, void *dst, struct cws_error *err);
    /* The region that holds byte `offset`, or CWS_NO_REGION. As restricted as fill; called with the pager lock held. */
    uint32_t (*region_at)(struct cws_source *s, uint64_t offset);
    /* [begin, end) of region i. */
    void (*region)(struct cws_source *s, uint32_t i, uint64_t *begin, uint64_t *end);
    /* Name of region i, for the trace; as long as the source lives. As restricted as fill; may be NULL. */
    const char *(*name)(struct cws_source *s, uint32_t i);
    /* I/O so far; may be NULL. */
    void (*counters)(struct cws_source *s, uint64_t *reads, uint64_t *read_bytes);
    /* In a forked child, before any fill there; async-signal-safe; may be NULL. */
    void (*after_fork)(struct cws_source *s);
    /* The last reference is gone. Normal context. */
    void (*destroy)(struct cws_source *s);
};

/* The owner fills ops, bytes, regions (and successor: `regions` entries of CWS_NO_REGION, or NULL for no learning) and
 * sets refs to 1. */
struct cws_source {
    const struct cws_source_ops *ops;
    uint64_t bytes;
    uint32_t regions;
    uint32_t *successor;  /* pager lock; [r]: the region that was needed after r, learned */
    uint32_t last_region; /* pager lock; of the last fault; the owner starts it at CWS_NO_REGION */
    atomic_uint refs;
};

static inline void cws_source_retain(struct cws_source *s) { atomic_fetch_add(&s->refs, 1); }
static inline void cws_source_release(struct cws_source *s)
{
    if (atomic_fetch_sub(&s->refs, 1) == 1)
        s->ops->destroy(s);
}

/* As cws_view_map (view.h), of any source; the view takes its own reference. The pager must be running. */
CWS_MUST_CHECK int cws_view_map_source(struct cws_source *s, void *hint, size_t length, int prot, int flags,
                                       uint64_t offset, void **out_addr, struct cws_error *err);
/* How many fills run at once at most; fixed from start to stop. */
unsigned cws_pager_slots(void);
#endif
