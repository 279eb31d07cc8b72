/* reserve.h - the reserve: memory that the program freed, mapped still, for its next allocations. What a program
 * allocates in a round it allocates in the next one, so for two rounds of the order this memory (CACHED) is neither
 * taken for weights nor counted on by keepers; then it is COLD, and goes to whoever wants memory.
 *
 * How much is held is learned by place in the round (the profile): what the program had at most from here to a few uses
 * ahead in the last two rounds, and some more, since sizes that take turns share no memory. So a decoder between
 * denoising steps leaves its memory to the steps, and before it comes again memory is made free for it.
 *
 * An allocation finds what was freed last in its size class on its stream, or on any once its uses are done, in O(1).
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_RESERVE_H
#define CWS_GPU_RESERVE_H
#include "extent.h"

enum {
    CWS_RESERVE_STREAMS = 4, /* lists per class: streams are spread over them */
    CWS_RESERVE_LOOKS = 4,   /* at extents of a list */
    CWS_RESERVE_PLACES = 64, /* of a round, each with its peak */
    CWS_RESERVE_KEPT = 3 * CWS_RESERVE_PLACES,
};

/* What the program's own memory came to, place by place, in the last rounds: its peak and its least. */
struct cws_gpu_reserve_profile {
    uint64_t most[CWS_RESERVE_KEPT], least[CWS_RESERVE_KEPT]; /* place p at p % CWS_RESERVE_KEPT */
    uint64_t round;   /* uses of a round, for which the places are; 0: nothing was told yet */
    bool known;       /* the order has rounds; else so many uses count as one */
    uint64_t wide;    /* uses of a place */
    uint64_t begin;   /* the use that place 0 begins with */
    uint64_t seen_at; /* the use at which the order had such rounds last */
    uint64_t place;   /* now: the last one */
    uint64_t now;     /* bytes now */
};

struct cws_gpu_reserve {
    struct cws_list cached; /* extents that are CACHED, oldest first */
    struct cws_list cold;   /* extents that are COLD, oldest first */
    /* both, by size class and stream: what is COLD, then what is CACHED, what was freed last at the end */
    struct cws_list freed[CWS_SIZE_CLASSES][CWS_RESERVE_STREAMS];
    struct cws_gpu_reserve_profile profile;
    uint64_t stolen; /* bytes that were taken for something else, since the manager was opened */
};

void cws_gpu_reserve_init(struct cws_gpu_reserve *reserve);

/* An extent becomes CACHED or COLD, or is so no more. By cws_gpu_extent_set_locked only. */
void cws_gpu_reserve_enter(struct cws_gpu_reserve *reserve, struct cws_gpu_extent *x, bool cold);
void cws_gpu_reserve_leave(struct cws_gpu_extent *x);
/* An extent of a freed range with at least this memory, ANONYMOUS now, whose last uses come before new ones on the
 * stream; or NULL. */
struct cws_gpu_extent *cws_gpu_reserve_take_locked(struct cws_gpu *gpu, uint32_t granules, CUstream stream);
/* The program's own memory has grown by this extent, or is less by it. By cws_gpu_extent_set_locked only. */
void cws_gpu_reserve_note_locked(struct cws_gpu *gpu, const struct cws_gpu_extent *x, bool has);
/* What was freed long ago, or is more than the program has need of here, leaves the reserve; what it will have need of
 * soon, and has not, is expected (budget.h). In strict mode nothing stays, so
 * that what uses freed memory faults. */
void cws_gpu_reserve_age_locked(struct cws_gpu *gpu);
/* Takes from the reserve, the oldest first, until `bytes` more can be had. Whether there was any. */
bool cws_gpu_reserve_steal_locked(struct cws_gpu *gpu, uint64_t bytes);
/* All but the newest `keep` bytes leave it, and where that is 0 what rounds had need of is forgotten. Of what is COLD
 * the driver gets the frames whose uses are done. False: those of others are not. */
bool cws_gpu_reserve_trim_drops_lock(struct cws_gpu *gpu, uint64_t keep);
/* Makes `bytes` free by giving up idle frames and then COLD extents whose uses are done. Whether anything was given
 * up. */
bool cws_gpu_release_idle_drops_lock(struct cws_gpu *gpu, uint64_t bytes);
/* Unmaps a COLD extent whose uses are done; its memory becomes idle. How many granules; 0: there is none. */
uint32_t cws_gpu_reserve_unmap_drops_lock(struct cws_gpu *gpu);

/* NULL, or what does not hold. */
const char *cws_gpu_reserve_check(const struct cws_gpu *gpu);
#endif
