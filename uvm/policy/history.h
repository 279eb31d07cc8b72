/* history.h - predicts the next use of the CUDA manager's ranges from past ones. If the last uses are the end of a long
 * stretch that occurred before, it is what came after that. If not, it is what came last time after the same two uses.
 *
 * A program that makes tokens repeats itself with one period, however its models and their rounds are nested. A long
 * stretch tells a draft model's fourth round from its first, which no fixed number of last uses does, and a single use
 * out of order does not end it. Short stretches are chance, as of routed experts: there what was used a moment ago
 * tells more.
 *
 * Nodes are the caller's, and are compared by address. Threads: the caller serialises. */
#ifndef CWS_HISTORY_H
#define CWS_HISTORY_H
#include "tuning.h"
#include <stdbool.h>
#include <stdint.h>

struct cws_order_node; /* has history_at, which belongs to this */

struct cws_history_use {
    struct cws_order_node *node;
    uint64_t before; /* index + 1 of the use of the same node before this; 0: none */
};

struct cws_history {
    const struct cws_tuning *tuning; /* history_ */
    struct cws_history_use *uses;    /* ring: index i at i % room */
    uint64_t room, begin, end;       /* indices [begin, end) are there */
    uint64_t match;                  /* index + 1 of the use that the last one is the repetition of; 0: none */
    uint64_t before_jump;            /* what match was, where the last use left some out; 0: it did not */
    uint32_t length;                 /* how far back they agree, up to a limit; less after uses out of order */
    bool sure;                       /* it was long, and some of it is left */
    bool surprised;                  /* the last use was not the one that was expected */
    bool due;                        /* a use was not the one that was expected: look for another stretch */
    bool holes;                      /* some nodes are NULL: forgotten since the last look */
};

void cws_history_init(struct cws_history *h, const struct cws_tuning *tuning);
/* It is then as it was after init. */
void cws_history_deinit(struct cws_history *h);

/* Remembers at least `uses` uses from now on, or history_uses_max. Without memory it stays as it is. */
void cws_history_reserve(struct cws_history *h, uint64_t uses);

/* n is used. O(1). */
void cws_history_push(struct cws_history *h, struct cws_order_node *n);

/* Is n what comes next, or one of the few after it? Only where there is a period. */
bool cws_history_expects(const struct cws_history *h, const struct cws_order_node *n);

/* n is no more. O(its uses), and O(all uses) in the next look. */
void cws_history_forget(struct cws_history *h, struct cws_order_node *n);

/* Finds the stretch anew where that is due. Returns the period, in uses, if there is a long one, else 0. */
uint64_t cws_history_look(struct cws_history *h);

/* The k-th use from now, from 1; after a period they repeat. Only where there is a period. */
struct cws_order_node *cws_history_next(const struct cws_history *h, uint64_t k);

/* Look before. What came last time after `before` (NULL: anything), n. NULL: nothing yet. */
struct cws_order_node *cws_history_after(const struct cws_history *h, const struct cws_order_node *before,
                                         const struct cws_order_node *n);
#endif
