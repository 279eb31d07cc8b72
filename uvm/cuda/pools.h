/* pools.h - memory that pools of the driver hold for the program (cudaMallocAsync, graphs): it is part of the budget,
 * it grows in steps of the pool's own, and it shows only when the pools are asked. Threads: the caller of every
 * function holds the manager's lock. */
#ifndef CWS_GPU_POOLS_H
#define CWS_GPU_POOLS_H
#include "budget.h"

struct cws_gpu_pool {
    CUmemoryPool handle;
    uint64_t reserved, unused; /* as last asked */
    uint64_t slack;            /* what is unused, less what was allocated since */
    uint64_t step, largest;    /* the least it grew by; the largest allocation that it was asked for */
};

struct cws_gpu_pools {
    struct cws_gpu_core *core;
    struct cws_gpu_budget *budget;
    struct cws_gpu_pool pools[16]; /* the first: what was the device's current one at first */
    unsigned count;
    uint32_t age;   /* allocations since they were asked */
    uint64_t step;  /* the most that one is expected to grow at a time: by the budget, or as it did */
    uint64_t grown; /* the most that one grew at a time */
    /* when it is looked next whether pools have too much, and how long after that */
    uint64_t trim_at_ns, trim_wait_ns;
};

void cws_gpu_pools_init(struct cws_gpu_pools *p, struct cws_gpu_core *core, struct cws_gpu_budget *budget);
/* The budget is another one now. */
void cws_gpu_pools_budget_changed(struct cws_gpu_pools *p);
/* A pool that is to be counted and trimmed from now on, or not any more. */
void cws_gpu_pools_add(struct cws_gpu_pools *p, CUmemoryPool pool);
void cws_gpu_pools_remove(struct cws_gpu_pools *p, CUmemoryPool pool);

/* Asks all of them how much they have. */
void cws_gpu_pools_count(struct cws_gpu_pools *p);
/* Takes the bytes of an allocation out of what the pool (NULL: the first) has unused; asks it first where that is not
 * known well. False: it is expected to grow, by up to cws_gpu_pools_growth. */
bool cws_gpu_pools_take(struct cws_gpu_pools *p, CUmemoryPool pool, uint64_t bytes);
uint64_t cws_gpu_pools_growth(const struct cws_gpu_pools *p, uint64_t bytes, uint64_t *out_least);

/* In the loader. Every pool gives unused memory back to the driver but for `slack` bytes. */
void cws_gpu_pools_trim_drops_lock(struct cws_gpu_pools *p, uint64_t slack);
/* The same while weights are paged, as far and as often as it is worth it. */
void cws_gpu_pools_trim_slack_drops_lock(struct cws_gpu_pools *p);

/* NULL, or what does not hold. */
const char *cws_gpu_pools_check(const struct cws_gpu_pools *p);
#endif
