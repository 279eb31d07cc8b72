/* look.h - weights among what the program made on the device: what kernels put together of tensors (prove.h), and what
 * they wrote and nobody changes (adopt.h). Where memory is short these are found as it is taken from them. Before that,
 * while the loader has nothing else to do, it looks at one after the other. What it recognizes keeps its memory, and is
 * foreseen, dropped and loaded like any weight from then on: a program need not run out of memory first.
 *
 * Looked at is what the program allocated while it loads weights, and what has outlived some rounds: no activations. It
 * stays mapped meanwhile; a launch that names it waits. Kernels may write to it by pointers that nobody sees: whether
 * one did is seen by its hash, unmapped, when it is to be dropped (drop.c).
 *   - It is tensors of a store: proven as for prove.h.
 *   - Its hash is what it was at the last look, and it was used since; or a copy brought it: it gets a copy in pinned
 *     memory, where the host budget has room.
 * What was looked at in vain so often is left alone for 2^n launches after its last use.
 *
 * Nothing is looked at while the budget is certain to hold all.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_LOOK_H
#define CWS_GPU_LOOK_H
#include <stdbool.h>
#include <stdint.h>

struct cws_gpu;
struct cws_gpu_extent;

struct cws_gpu_looks {
    uint64_t filled;      /* 1 + uses begun when a copy of weights last filled memory; 0: none did */
    uint64_t next;        /* uses begun before which there is no search */
    uint64_t step;        /* uses from one to the next while they find nothing */
    uint64_t searched_ns; /* the last that found nothing */
    uint64_t wakes;       /* uses begun before which none wakes the loader */
    uint64_t due_ns;      /* when loads ahead stop for one; 0: nothing is to be looked at, as far as is known */
    uint64_t found;       /* since the manager was opened: extents that were recognized */
};

/* A copy of weights fills memory, that of the extent where it is not NULL: the program loads. */
void cws_gpu_look_filled_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x);
/* The extent is another allocation's now. */
void cws_gpu_look_made_locked(const struct cws_gpu *gpu, struct cws_gpu_extent *x);

/* A launch began: wakes the loader where it is time for a search. */
void cws_gpu_look_used_locked(struct cws_gpu *gpu);

/* In the loader. Should loads ahead stop, so that it comes to rest? */
bool cws_gpu_look_is_due_locked(struct cws_gpu *gpu);
/* In the loader, which rests. Looks at one extent, and waits for that. False: there is none. */
bool cws_gpu_look_drops_lock(struct cws_gpu *gpu);
#endif
