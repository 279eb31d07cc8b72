/* replay_paging.h - simulates a program that is paged by the CUDA manager: the time of a round at a budget, and what it
 * was spent on. The policy is the real one (uvm/policy/order.h); around it everything that costs time is modelled:
 *
 *   the program's thread   launches ahead of the device, allocates and frees, waits for weights and for memory
 *   the loader             one thing after the other, as in uvm/cuda/loader.c: its calls to the driver take time, and
 *                          what the device has done it learns by asking
 *   the device             kernels of the program in order; copies, decodes and hashes each on a stream of their own,
 *                          which slow the program's kernels while they run
 *   memory                 frames that have a size, and the reserve for activations, as in uvm/cuda/frames.c, reserve.c
 *
 * replay.h has the simpler model, in which policies are compared with the optimum.
 * Times are in microseconds. Threads: one. */
#ifndef CWS_REPLAY_PAGING_H
#define CWS_REPLAY_PAGING_H
#include "replay_program.h"

/* What things cost; replay_costs.c has the default of each, and where it is from. Each field has a row there. */
struct replay_costs {
    /* the link and the device */
    double link_gbps, link_share, copy_us, copy_gap_us;
    double stored_share;                  /* of a weight's bytes: what is copied */
    double decode_us, decode_gbps;        /* of a batch: to begin, and its decoded bytes */
    double hash_us, hash_gbps;            /* likewise */
    double crowded;                       /* times as long beside the program's kernels */
    double slow_decode, slow_copy;        /* of the program's kernels: share of their speed lost meanwhile */
    double flops, memory_gbps, kernel_us; /* of kernels, before a round is scaled to what it takes */
    /* the driver's calls */
    double create_us, release_us, release_us_mib, map_us, access_us, unmap_us;
    double lock_share; /* of these, in the loader: what the program's thread waits for them */
    /* the loader */
    double send_us, drop_us, reap_us, step_us, wake_us;
    /* the program's thread */
    double launch_us, use_us, alloc_us, sync_us;
    double queue_launches; /* that may be ahead of the device */
};

/* One cost. All strings are static. */
struct replay_cost_row {
    const char *name, *unit, *meaning;
    double fallback;
    size_t offset;
};
extern const struct replay_costs replay_costs_default;
bool replay_cost_row(size_t i, struct replay_cost_row *out);
double replay_cost_get(const struct replay_costs *c, const struct replay_cost_row *row);
/* "NAME=VALUE". 0, or CWS_E_USAGE with a line, and nothing is set. */
CWS_MUST_CHECK int replay_cost_set(struct replay_costs *c, const char *text, struct cws_error *err);

struct replay_paging {
    const struct replay_program *program;
    const struct replay_costs *costs;
    const struct cws_tuning *tuning;
    uint64_t budget, other;     /* other: of it, for what is no range */
    double kernels_ms, host_ms; /* of a round with everything resident; 0: the program's own */
    unsigned rounds;            /* the second half is counted */
    bool tier;                  /* weights may stay compressed on the device (uvm/policy/tier.h) */
};

struct replay_paged { /* of a round, the mean of those that count */
    double ms, plain_ms;
    double loads, demanded; /* demanded: a launch had to wait for its begin */
    double link_bytes, link_busy_ms, link_gaps;
    double weight_wait_ms, fresh_wait_ms, host_ms;
    double frames_made, calls, steals;
    double fresh_evictions; /* weights that went for memory of activations */
    double reserve_bytes;   /* memory of activations, in use and kept */
    double kernels_ms;      /* of the device, as slowed */
    double tier_bytes;      /* of weights that stay compressed on the device, at the end */
    double near;            /* loads from there */
};

/* 0, or CWS_E_BUDGET: it does not fit. */
CWS_MUST_CHECK int replay_page(const struct replay_paging *what, struct replay_paged *out, struct cws_error *err);
#endif
