/* replay_program.h - made-up programs for the simulation of a paged program (replay_paging.h): what their launching
 * thread does in a round, which is a token, a denoising step or a prefill. Weights are used, and activations are
 * allocated and freed in between, as PyTorch does it in eager mode.
 * Threads: one. */
#ifndef CWS_REPLAY_PROGRAM_H
#define CWS_REPLAY_PROGRAM_H
#include "replay.h"

#define REPLAY_NONE UINT32_MAX

enum replay_op_kind { REPLAY_ALLOC, REPLAY_FREE, REPLAY_LAUNCH };

struct replay_op {
    enum replay_op_kind kind;
    uint32_t block;  /* ALLOC, FREE: which; LAUNCH: that its kernel writes first; REPLAY_NONE: none */
    uint32_t weight; /* LAUNCH: index of weights.items; REPLAY_NONE: none */
    uint64_t bytes;  /* ALLOC: its size; LAUNCH: that the kernel reads and writes in device memory */
    double flops;    /* LAUNCH */
};

struct replay_program {
    const char *name;
    bool host_bound; /* a plain round takes as long as its launching thread, not as its kernels */
    /* Of a round with everything resident, where nothing else is said: kernels; the launching thread alone. 0: as the
     * costs say. It takes as long as the longer one. */
    double kernels_ms, host_ms;
    struct replay_trace weights; /* items only */
    uint32_t workspace;          /* index of what each product names before its weight; REPLAY_NONE: none */
    struct replay_op *ops;       /* of a round */
    size_t op_count, op_room;
    uint32_t block_count;
};

/* The built-in ones: "tinyllama" and "8b" (a token at batch 1), "flux" (a denoising step), "prefill" (of 8b, 4 x 2048
 * tokens). NULL behind the last name. */
extern const char *const replay_programs[];
/* False: there is none of that name. */
CWS_MUST_CHECK bool replay_program_make(struct replay_program *p, const char *name);
void replay_program_free(struct replay_program *p);
#endif
