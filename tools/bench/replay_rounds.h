/* replay_rounds.h - replay_policy --device: prints what a round of the built-in programs takes at some budgets.
 * Threads: one. */
#ifndef CWS_REPLAY_ROUNDS_H
#define CWS_REPLAY_ROUNDS_H
#include "replay_paging.h"

struct replay_rounds {
    const char *program; /* NULL: all */
    const uint64_t *budgets;
    unsigned budget_count; /* 0: a few for each program */
    uint64_t other;
    double plain_ms, host_ms; /* 0: the program's own */
    unsigned rounds;          /* 0: 16 */
    struct replay_costs costs;
    const struct cws_tuning *tuning;
    const struct replay_sweep *sweep; /* count 0: none */
    bool tier;                        /* each row once more with weights that stay compressed on the device */
};

/* The exit status: 1 where something does not fit, 2 where there is no such program; with a line. */
int replay_rounds_print(const struct replay_rounds *what);
/* Lists costs, what they are by default and what they mean. */
int replay_costs_print(void);
#endif
