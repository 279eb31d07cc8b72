/* pace.c - how long the work between two uses takes, and with which plan rounds are shorter. */
#include "pace.h"

enum { RESTARTS = 5 };

static void end_round(struct cws_pace *p)
{
    uint64_t took = p->now - p->begun, waited = p->waited - p->begun_waited;
    if (!p->moving && took > 0) {
        p->rounds++;
        if (p->round == 0 || took < p->round) {
            p->round = took;
            p->round_waited = waited;
        }
    }
    p->moving = false;
}

uint64_t cws_pace_note(struct cws_pace *p, const struct cws_tuning *t, uint64_t at, uint64_t period)
{
    uint64_t used = p->now > p->stalled ? p->now - p->stalled : 0,
             took = p->used && used > p->used ? used - p->used : 0,
             most = (p->round ? p->round : p->by_uses) / t->order_pace_longest;
    p->used = used ? used : p->used;
    if (period && at >= p->begun_at + period) {
        end_round(p);
        p->begun_at = at;
        p->begun = p->now;
        p->begun_waited = p->waited;
    }
    return most && took > most ? most : took; /* else a pause of the program is taken for work */
}

static enum cws_pace_verdict judge(struct cws_pace *p, const struct cws_tuning *t)
{
    if (p->tries > 0 && p->round >= p->by_uses)
        return CWS_PACE_BY_USES;
    if (p->tries > 0)
        return p->tries < t->order_pace_tries ? CWS_PACE_BY_TIME : CWS_PACE_STAY;
    p->by_uses = p->round;
    return p->round_waited > p->round / t->order_pace_waits ? CWS_PACE_BY_TIME : CWS_PACE_STAY;
}

enum cws_pace_verdict cws_pace_judge(struct cws_pace *p, const struct cws_tuning *t)
{
    if (p->due == 0 || p->rounds < p->due || t->order_pace_tries == 0)
        return CWS_PACE_STAY;
    enum cws_pace_verdict verdict = judge(p, t);
    if (verdict == CWS_PACE_STAY)
        p->due = 0;
    return verdict;
}

void cws_pace_planned(struct cws_pace *p, const struct cws_tuning *t, enum cws_pace_verdict why, bool by_time,
                      uint64_t at)
{
    p->due = why == CWS_PACE_STAY ? t->order_pace_rounds << p->restarts : by_time ? t->order_pace_rounds : 0;
    p->restarts += by_time && p->tries == 0 && p->restarts < RESTARTS;
    p->tries = by_time ? p->tries + 1 : 0;
    p->rounds = p->round = p->round_waited = 0;
    p->moving = true;
    p->begun_at = at;
    p->begun = p->now;
    p->begun_waited = p->waited;
}
