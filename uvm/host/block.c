/* block.c - the state word of a block: which transitions are legal, and waiting until a block is not busy. */
#include "block.h"

#include "store/base/lock.h"
#include "store/base/sys.h"

#include <stdio.h>
#include <stdlib.h>

#define BIT(s) (1u << (s))

/* from -> to, with the function that does it. */
static const uint32_t block_may[] = {
    [CWS_ABSENT] = BIT(CWS_FILLING)                                     /* fill.c claim */
                   | BIT(CWS_CHANGING),                                 /* view.c claim_range */
    [CWS_FILLING] = BIT(CWS_CLEAN) | BIT(CWS_WRITTEN) | BIT(CWS_FAILED) /* fill.c commit */
                    | BIT(CWS_ABSENT),                                  /* a guess that found no room or failed */
    [CWS_CLEAN] = BIT(CWS_EVICTING)                                     /* budget.c evict */
                  | BIT(CWS_WRITTEN)                                    /* fill.c make_written */
                  | BIT(CWS_FILLING)                                    /* fill.c refill */
                  | BIT(CWS_CHANGING),                                  /* view.c claim_range */
    [CWS_EVICTING] = BIT(CWS_ABSENT)                                    /* budget.c evict */
                     | BIT(CWS_CLEAN),                                  /* its pages could not be dropped */
    [CWS_WRITTEN] = BIT(CWS_FILLING)                                    /* fill.c refill */
                    | BIT(CWS_CHANGING),                                /* view.c claim_range */
    [CWS_FAILED] = BIT(CWS_CHANGING),                                   /* view.c claim_range */
    [CWS_GONE] = 0,
    /* view.c */
    [CWS_CHANGING] = BIT(CWS_ABSENT) | BIT(CWS_CLEAN) | BIT(CWS_WRITTEN) | BIT(CWS_FAILED) | BIT(CWS_GONE),
};

const char *cws_block_state_name(enum cws_block_state s)
{
    static const char *const names[] = {"ABSENT",  "FILLING", "CLEAN", "EVICTING",
                                        "WRITTEN", "FAILED",  "GONE",  "CHANGING"};
    return s < sizeof names / sizeof *names ? names[s] : "?";
}

static void illegal(const struct cws_block *b, enum cws_block_state from, enum cws_block_state to)
{
    char line[160];
    int n = snprintf(line, sizeof line, "codecllm: bug: block %p went from %s to %s\n", (const void *)b,
                     cws_block_state_name(from), cws_block_state_name(to));
    cws_sys_write(2, line, (size_t)n);
    abort();
}

bool cws_block_set(struct cws_block *b, enum cws_block_state to)
{
    uint32_t old = atomic_load_explicit(&b->word, memory_order_relaxed);
    enum cws_block_state from = (enum cws_block_state)(old & CWS_BLOCK_STATE_MASK);
    if (!(block_may[from] & BIT(to)))
        illegal(b, from, to);
    uint32_t next = (old & ~(CWS_BLOCK_STATE_MASK | CWS_BLOCK_PENDING)) | to;
    if (to == CWS_FILLING)
        next += CWS_BLOCK_GENERATION_ONE;
    if (cws_block_is_busy(to))
        b->under = (uint8_t)from;
    atomic_store_explicit(&b->word, next, memory_order_release);
    if (cws_block_is_busy(from))
        cws_wake(&b->word);
    return (old & CWS_BLOCK_PENDING) != 0;
}

void cws_block_set_pending(struct cws_block *b)
{
    atomic_fetch_or_explicit(&b->word, CWS_BLOCK_PENDING, memory_order_relaxed);
}
