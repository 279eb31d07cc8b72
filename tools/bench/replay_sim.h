/* replay_sim.h - the inside of the simulation of a paged program (replay_paging.h): the device's time, its memory, the
 * loader. All of a simulation is one struct sim. Whoever has the earliest clock goes on, the program's thread or the
 * loader; what the device has done follows from what both queued. */
#ifndef CWS_REPLAY_SIM_H
#define CWS_REPLAY_SIM_H
#include "uvm/policy/order.h"
#include "replay_paging.h"

#define SIM_GRANULE ((uint64_t)2 << 20)
enum { SIM_SLOTS = 8, SIM_LOADS = 12, SIM_DROPS = 31, SIM_BURDENS = 128, SIM_QUEUE = 4096 };

/* --- the device (replay_gpu.c) --- */

struct sim_burden { /* something of ours that runs and slows the program's kernels, in [begin, end) */
    double begin, end, slow;
};

struct sim_kernel {
    double ready, work; /* work: us of the device, alone */
};

struct sim_gpu {
    double now;                         /* kernels were followed until then */
    struct sim_kernel queue[SIM_QUEUE]; /* kernel k at k % SIM_QUEUE */
    uint64_t queued, done;              /* kernels */
    double left;                        /* of kernel `done`: work */
    struct sim_burden burdens[SIM_BURDENS];
    unsigned burden_count;
    double busy;
};

void sim_gpu_queue(struct sim_gpu *g, double at, double work);
void sim_gpu_burden(struct sim_gpu *g, double begin, double end, double slow);
void sim_gpu_advance(struct sim_gpu *g, double until);
/* When the first `count` kernels will be done, as far as that is known now. */
double sim_gpu_when(const struct sim_gpu *g, uint64_t count);
static inline bool sim_gpu_is_busy(const struct sim_gpu *g) { return g->done < g->queued; }

/* --- memory (replay_memory.c) --- */

struct sim_block { /* an allocation of the program */
    uint32_t granules;
    bool mapped;
};

struct sim_freed { /* memory of an allocation that was freed */
    uint32_t granules;
    uint64_t at; /* place in the order */
};

struct sim_memory {
    uint64_t budget, ring, other;
    uint64_t frames, granted;         /* bytes */
    uint64_t idle, fixed, kept, cold; /* of frames: bytes */
    struct sim_block *blocks;         /* of the program, by number */
    struct sim_freed *freed;          /* oldest first: [0, cold_count) cold, [cold_count, freed_count) kept */
    uint32_t freed_count, cold_count;
    uint32_t *idle_frames; /* granules of each, oldest first */
    uint32_t idle_count;
    uint32_t room; /* of both lists */
};

struct sim;
uint64_t sim_left(const struct sim_memory *m);
uint64_t sim_attainable(const struct sim_memory *m);
uint64_t sim_beside_reserve(const struct sim_memory *m);
uint32_t sim_granules(uint64_t bytes);
bool sim_frame_take(struct sim_memory *m, uint32_t granules); /* an idle one */
void sim_frame_put(struct sim_memory *m, uint32_t granules);
/* Gives the memory that lies idle longest back to the driver. The time that took, or 0: there is none. */
double sim_frame_release(struct sim *s);
double sim_frame_create(struct sim *s, uint32_t granules); /* out of bytes that are left */
void sim_alloc(struct sim_memory *m, uint32_t block, uint64_t bytes);
void sim_free(struct sim_memory *m, uint32_t block, uint64_t at);
void sim_block_mapped(struct sim_memory *m, uint32_t block);
void sim_age(struct sim *s);
bool sim_steal(struct sim *s, uint64_t bytes);

/* --- weights and the loader (replay_loader.c) --- */

enum sim_state { SIM_ABSENT, SIM_LOADING, SIM_RESIDENT, SIM_DROPPING };

struct sim_weight {
    struct cws_order_node node;
    uint64_t bytes, stored;
    uint32_t granules, batches, batches_sent, batches_done;
    enum sim_state state;
    bool demanded, for_launch;
    bool in_tier;       /* has its stored bytes on the device, or gets them with its next load over the link */
    double near_done;   /* LOADING from there: when it is decoded; else < 0 */
    uint64_t used_till; /* kernels that must be done */
};

struct sim_slot {
    struct sim_weight *weight;
    double done;
};

struct sim_drop {
    struct sim_weight *weight;
    double done;
    bool for_fresh;
};

struct sim_loader {
    double clock;
    bool asleep;        /* until something wakes it */
    bool interruptible; /* it waits until its clock is reached, or something wakes it */
    unsigned phase;     /* of a pass */
    bool moved, pending, unmet;
    double patience_us;
    unsigned patience_waits;
    uint64_t patience_at, wake_at;
    struct sim_weight *mapping; /* its load ends when the clock is reached */
    struct sim_weight *loads[SIM_LOADS];
    unsigned load_count;
    struct sim_slot slots[SIM_SLOTS];
    unsigned slot_count, slot_next, slot_oldest, slot_busy;
    uint64_t slot_bytes;
    struct sim_drop drops[SIM_DROPS];
    unsigned drop_head, drop_count;
    uint64_t drop_bytes;
    double copy_free, decode_free, hash_free, near_free; /* when the streams are */
    double victim_since;                                 /* a launch waits for a better victim since then; < 0: no */
    uint64_t victim_done;                                /* kernels that were done then */
};

/* One step of the loader, at its clock. */
void sim_loader_step(struct sim *s);
void sim_loader_wake(struct sim *s, double at);

/* --- weights that stay compressed on the device (replay_tier.c) --- */

/* At the end of a round. */
void sim_tier_round(struct sim *s);

/* --- the program's thread and all together (replay_run.c) --- */

enum sim_thread { SIM_RUNS, SIM_WAITS_WEIGHT, SIM_WAITS_MEMORY, SIM_WAITS_DEVICE };

struct sim_program {
    enum sim_thread state;
    double clock, since; /* since: it waits */
    size_t op;
    unsigned round;
    bool begun;       /* the weight of this operation was used, it is there */
    uint64_t kernels; /* WAITS_DEVICE: that must be done */
    struct sim_weight *weight;
    uint64_t memory; /* WAITS_MEMORY: bytes */
    bool granted;
    double host_scale, device_scale;
};

struct sim {
    const struct replay_paging *what;
    const struct replay_costs *costs;
    const struct cws_tuning *tuning;
    struct cws_order order;
    struct sim_weight *weights;
    uint32_t weight_count;
    struct sim_gpu gpu;
    struct sim_memory memory;
    struct sim_loader loader;
    struct sim_program program;
    uint64_t tier_most, tier_least;    /* of weights that may stream: more than the least */
    uint64_t tier_bytes;               /* for stored bytes on the device, of memory.other */
    double own_host_us, own_device_us; /* of a round with everything resident */
    double waited_us, stalled_us;      /* launches waited for weights; and the device had come to its end */
    struct replay_paged sum;           /* since the rounds that count began */
};

/* A call of the driver in the loader: counted, and it holds the program's thread up. Returns its time. */
double sim_call_of_loader(struct sim *s, double us, unsigned calls);
void sim_program_wake(struct sim *s, double at);
#endif
