/* budget.h - the account of a device's memory: what the process has taken from the driver, what of it can be dropped,
 * and who waits for a part of it. Bytes only: it calls no driver.
 *
 * Invariant I4: used <= bytes, except after `pools` grew by itself by more than the margin. While room is made for a
 * smaller budget (resize.h) it is used <= was.
 * Threads: the caller of every function holds the manager's lock (core.h). */
#ifndef CWS_GPU_BUDGET_H
#define CWS_GPU_BUDGET_H
#include "core.h"

/* What a span of device memory, or of addresses, counts as. */
enum cws_gpu_class {
    CWS_CLASS_NONE,     /* it has no memory, or moves: loading, being dropped */
    CWS_CLASS_FIXED,    /* nothing can give its content back */
    CWS_CLASS_RESIDENT, /* weights, which can be dropped */
    CWS_CLASS_RESERVE,  /* the program freed it a short while ago, and will want as much again */
    CWS_CLASS_IDLE,     /* nobody needs its content, and nobody is expected to */
    CWS_GPU_CLASSES
};

struct cws_gpu_room { /* a thread waits until so many bytes are granted to it; on its stack */
    uint64_t bytes;
    bool to_pool;
    bool easy; /* refused rather than that anything but weights goes for it */
    bool granted, refused;
    struct cws_gpu_room *next;
};

struct cws_gpu_budget {
    struct cws_gpu_core *core;
    uint64_t bytes;                     /* the budget */
    uint64_t was;                       /* a larger one, while room is made for this one; else 0 */
    uint64_t frames;                    /* physical memory of ranges */
    uint64_t of_class[CWS_GPU_CLASSES]; /* of frames; not of CWS_CLASS_NONE */
    uint64_t granted;                   /* promised to somebody who has not taken it yet */
    uint64_t pool_granted;              /* of these, to pools */
    uint64_t ring;                      /* staging */
    uint64_t plain, pools;              /* the program's own allocations; pools and graphs of the driver */
    uint64_t expected;                  /* that the program will want soon, beside all that is counted here */
    uint64_t bound;                     /* spans of ranges with a source, resident or not */
    uint64_t peak;                      /* of what is used, without what only pools were granted */
    uint64_t least;                     /* the budget that would have held what was asked so far */
    struct cws_gpu_room *rooms;         /* the first is served first */
};

void cws_gpu_budget_init(struct cws_gpu_budget *b, struct cws_gpu_core *core, uint64_t bytes);

/* Another budget; was: the larger one that may still be used, or 0. By resize.c only. */
void cws_gpu_budget_set(struct cws_gpu_budget *b, uint64_t bytes, uint64_t was);

uint64_t cws_gpu_budget_used(const struct cws_gpu_budget *b);
uint64_t cws_gpu_budget_undroppable(const struct cws_gpu_budget *b);
/* Bytes that nobody uses. */
uint64_t cws_gpu_budget_left(const struct cws_gpu_budget *b);
/* Bytes that can be had without evicting anything or taking from the reserve: those left, and those of idle frames and
 * of ranges freed long ago, which are given up for them. The one answer to "is there memory for this?" */
uint64_t cws_gpu_budget_attainable(const struct cws_gpu_budget *b);
/* What is left free for pools of the driver, one of which may grow although what it has would do. Whoever wants memory
 * leaves it alone as long as weights can be dropped in its place. */
uint64_t cws_gpu_budget_margin(const struct cws_gpu_budget *b);
/* Left and attainable without the margin, and without what is expected: for weights that are loaded ahead of their
 * use. */
uint64_t cws_gpu_budget_left_ahead(const struct cws_gpu_budget *b);
uint64_t cws_gpu_budget_attainable_ahead(const struct cws_gpu_budget *b);
/* What weights may take: not less what is granted, for most of that is for loads in flight. The same beside the
 * reserve, what is expected and the margin: what they may count on. */
uint64_t cws_gpu_budget_for_weights(const struct cws_gpu_budget *b);
uint64_t cws_gpu_budget_beside_reserve(const struct cws_gpu_budget *b);
/* Bytes of weights, resident ones and those that come or go. */
uint64_t cws_gpu_budget_weights(const struct cws_gpu_budget *b);
static inline bool cws_gpu_budget_pages(const struct cws_gpu_budget *b) /* are some weights not resident? */
{
    return b->of_class[CWS_CLASS_RESIDENT] < b->bound;
}

/* The caller has seen that they are left. */
void cws_gpu_budget_grant(struct cws_gpu_budget *b, uint64_t bytes, bool to_pool);
/* The same as soon as the loader has made room, in turn; beside the margin, but for pools. False: they cannot be
 * had. */
bool cws_gpu_budget_grant_drops_lock(struct cws_gpu_budget *b, uint64_t bytes, bool to_pool);
/* The same for a pool, if no more than weights has to go for it. */
bool cws_gpu_budget_grant_easily_drops_lock(struct cws_gpu_budget *b, uint64_t bytes);
void cws_gpu_budget_ungrant(struct cws_gpu_budget *b, uint64_t bytes, bool to_pool);
/* In the loader: the first that waits gets what it waits for, or is refused. */
void cws_gpu_budget_serve(struct cws_gpu_budget *b, bool granted);

/* Granted bytes became a frame's; a frame's bytes went back to the driver. */
void cws_gpu_budget_frame_made(struct cws_gpu_budget *b, uint64_t bytes);
void cws_gpu_budget_frame_gone(struct cws_gpu_budget *b, uint64_t bytes);
void cws_gpu_budget_move(struct cws_gpu_budget *b, enum cws_gpu_class from, enum cws_gpu_class to, uint64_t bytes);
void cws_gpu_budget_bind(struct cws_gpu_budget *b, uint64_t bytes);
void cws_gpu_budget_unbind(struct cws_gpu_budget *b, uint64_t bytes);
/* The program took `taken` bytes of `granted` ones, or more; it gave some back. */
void cws_gpu_budget_plain_taken(struct cws_gpu_budget *b, uint64_t granted, uint64_t taken);
void cws_gpu_budget_plain_freed(struct cws_gpu_budget *b, uint64_t bytes);
/* Wakes the loader if they have outgrown the budget, or taken of the margin. */
void cws_gpu_budget_set_pools(struct cws_gpu_budget *b, uint64_t bytes);
void cws_gpu_budget_set_ring(struct cws_gpu_budget *b, uint64_t bytes);
void cws_gpu_budget_expect(struct cws_gpu_budget *b, uint64_t bytes);
void cws_gpu_budget_note_least(struct cws_gpu_budget *b, uint64_t bytes);

/* NULL, or what does not hold. */
const char *cws_gpu_budget_check(const struct cws_gpu_budget *b);
#endif
