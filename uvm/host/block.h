/* block.h - the state of one block: a word that is state, generation and lock at once. No I/O.
 *
 * FILLING, EVICTING and CHANGING are busy: exactly one thread, the one that made the transition, owns the block and its
 * pages; everybody else waits on the word. All other states belong to the pager lock. README.md has the diagram;
 * block_may() in block.c is the list.
 * Threads: the caller holds the pager lock, but cws_block_word and the wait. */
#ifndef CWS_BLOCK_H
#define CWS_BLOCK_H
#include "uvm/policy/policy.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum cws_block_state {
    CWS_ABSENT, /* No page is there. A touch faults. */
    /* busy: being decoded and published. `under` says what it was: ABSENT, or CLEAN or WRITTEN when pages are put
     * back. */
    CWS_FILLING,
    /* Every mapped page is there, equal to the source, and write-protected. In the policy unless held. */
    CWS_CLEAN,
    CWS_EVICTING, /* busy: its pages are being dropped. */
    CWS_WRITTEN,  /* Every mapped page is there; the program may have changed it. Never dropped. */
    CWS_FAILED,   /* Its source cannot be trusted: a touch raises SIGBUS, until it is unmapped. */
    CWS_GONE,     /* Unmapped. Final. */
    CWS_CHANGING, /* busy: munmap, mprotect or madvise works on its pages. `under` says what it was. */
};

#define CWS_BLOCK_STATE_MASK 0xfu
/* set: a thread faulted while the block was busy, and is to be woken when it no longer is */
#define CWS_BLOCK_PENDING 0x10u
#define CWS_BLOCK_GENERATION_ONE 0x100u

struct cws_view;

struct cws_block {
    _Atomic uint32_t word; /* state | PENDING | generation << 8; the generation counts fills */
    uint32_t holds;        /* a held block is not dropped */
    struct cws_view *view;
    struct cws_policy_node node; /* node.bytes: what it counts for in the accounts while CLEAN or WRITTEN */
    uint8_t under;
    bool prefetched; /* filled by readahead and not asked for since */
    bool seen;       /* was filled at least once; pager lock */
};

static inline enum cws_block_state cws_block_state(const struct cws_block *b)
{
    return (enum cws_block_state)(atomic_load_explicit(&b->word, memory_order_acquire) & CWS_BLOCK_STATE_MASK);
}
static inline bool cws_block_is_busy(enum cws_block_state s)
{
    return s == CWS_FILLING || s == CWS_EVICTING || s == CWS_CHANGING;
}
static inline uint32_t cws_block_generation(const struct cws_block *b)
{
    return atomic_load_explicit(&b->word, memory_order_relaxed) / CWS_BLOCK_GENERATION_ONE;
}

/* Makes a transition; aborts with a line when the diagram has none such. Leaving a busy state wakes the waiters and
 * returns whether PENDING was set (it is cleared): the caller then wakes the faulting threads. */
bool cws_block_set(struct cws_block *b, enum cws_block_state to);
/* A thread faulted on a busy block: sets CWS_BLOCK_PENDING. */
void cws_block_set_pending(struct cws_block *b);
const char *cws_block_state_name(enum cws_block_state s);
#endif
