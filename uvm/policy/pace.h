/* pace.h - the part of an order that knows of time: how long the work between two uses takes, and with which of two
 * plans rounds are shorter.
 *
 * It has no clock: the caller tells what its own says at a use, for how long until then launches waited for nodes, and
 * the sum of those waits at whose end the device had nothing to do (stalls). Time less stalls is that of the work,
 * nearly so whichever plan was in force as it was measured: a device that has work left waited for nothing.
 *
 * A plan is made by uses first. Where launches wait for more than a share of a round, plans by time take its place, a
 * few one after the other, each knowing the pace better, as long as rounds are shorter than by uses; else the one by
 * uses comes back, for good. A plan for another reason (room, nodes, the period) begins anew, each time more patiently,
 * so that a room that moves often sees plans by uses alone.
 * Threads: the caller of order.h serialises. */
#ifndef CWS_ORDER_PACE_H
#define CWS_ORDER_PACE_H
#include "tuning.h"
#include <stdbool.h>
#include <stdint.h>

struct cws_pace {
    uint64_t now, waited, stalled;          /* told last, in ns; 0: never */
    uint64_t used;                          /* now - stalled at the last use; 0: there was none */
    uint64_t begun_at, begun, begun_waited; /* the present round: its place, and what was told there */
    /* of the present plan: its rounds that ended, without the one in which nodes moved for it; the shortest of them */
    uint64_t rounds, round, round_waited;
    uint64_t due;      /* rounds after which it is judged; 0: it is settled */
    uint64_t by_uses;  /* the shortest round of the plan by uses */
    uint32_t tries;    /* plans by time since then */
    uint32_t restarts; /* trials that were begun, up to a limit: each doubles the patience for the next */
    bool moving;       /* the present round is the one in which nodes move */
};

/* Before a use at place `at`: the work since the last one, for the pace of that node. `period`: 0: no rounds. */
uint64_t cws_pace_note(struct cws_pace *p, const struct cws_tuning *t, uint64_t at, uint64_t period);

enum cws_pace_verdict { CWS_PACE_STAY, CWS_PACE_BY_USES, CWS_PACE_BY_TIME };
/* What the present plan is to be replaced by, for the sake of time. */
enum cws_pace_verdict cws_pace_judge(struct cws_pace *p, const struct cws_tuning *t);
/* A plan was made at place `at`, because of what cws_pace_judge said, or (STAY) for another reason. by_time: so it
 * was made; else by uses. */
void cws_pace_planned(struct cws_pace *p, const struct cws_tuning *t, enum cws_pace_verdict why, bool by_time,
                      uint64_t at);
#endif
