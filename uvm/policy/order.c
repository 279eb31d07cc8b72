/* order.c - the replacement policies of the CUDA manager: keeps the order of the uses to come, and picks what to load
 * and what to evict. A program that generates text walks over its weights again and again. What is needed last is
 * evicted first.
 *
 * On a cyclic scan that rule alone keeps a prefix of the cycle and streams the rest in one stretch, in which the link
 * is busy and before which it is idle. So keepers are chosen: what comes most often in a period first, else evenly over
 * it, as many bytes as fit beside the window through which the others stream (plan.h); over its uses, or over its time
 * where rounds are shorter so (pace.h). */
#include "plan.h"

#include <stdlib.h>

#define NODE_OF(link, member) CWS_LIST_OF(link, struct cws_order_node, member)

void cws_order_init(struct cws_order *o, enum cws_policy_id policy, const struct cws_tuning *tuning)
{
    *o = (struct cws_order){.ops = policy == CWS_POLICY_LRU ? &cws_order_lru : &cws_order_next, .tuning = tuning};
    cws_history_init(&o->history, tuning);
    cws_list_init(&o->all);
    cws_list_init(&o->coming);
    cws_list_init(&o->lines[0]);
    cws_list_init(&o->lines[1]);
}

void cws_order_deinit(struct cws_order *o)
{
    cws_history_deinit(&o->history);
    free(o->window);
    o->window = NULL;
    o->window_room = 0;
    o->foreseen = false;
}

/* --- lines ------------------------------------------------------------------------------------------- */

/* Best victim last. What changes its place goes to one of the ends nearly always. */
static void line_insert(struct cws_order *o, struct cws_order_node *n)
{
    struct cws_list *line = &o->lines[n->keeper], *at = line;
    if (line->next != line && !o->ops->goes_before(o, n, NODE_OF(line->next, line)))
        at = line->next;
    else
        while (at->prev != line && !o->ops->goes_before(o, n, NODE_OF(at->prev, line)))
            at = at->prev;
    cws_list_add_before(at, &n->line);
}

static void line_update(struct cws_order *o, struct cws_order_node *n)
{
    cws_list_remove(&n->line);
    if (n->in && o->foreseen) /* else all lines are made anew */
        line_insert(o, n);
}

/* Not O(count): of a model's thousands of experts few are in, and they were used lately. */
static void lines_make(struct cws_order *o)
{
    uint32_t left = o->in_count;
    for (unsigned i = 0; i < 2; i++)
        while (o->lines[i].next != &o->lines[i])
            cws_list_remove(o->lines[i].next);
    if (o->ops->by_next_use)
        for (struct cws_list *l = o->coming.next; l != &o->coming; l = l->next)
            if (NODE_OF(l, coming)->in)
                cws_list_add_before(&o->lines[NODE_OF(l, coming)->keeper], &NODE_OF(l, coming)->line);
    for (struct cws_list *l = o->all.prev; left && l != &o->all; l = l->prev) { /* and the others by age */
        struct cws_order_node *n = NODE_OF(l, all);
        left -= n->in;
        if (n->in && (!o->ops->by_next_use || n->next_at == UINT64_MAX))
            cws_list_add_before(&o->lines[n->keeper], &n->line);
    }
}

void cws_order_set_in(struct cws_order *o, struct cws_order_node *n, bool in)
{
    o->in_count += (uint32_t)in - (uint32_t)n->in;
    n->in = in;
    line_update(o, n);
}

/* --- nodes ------------------------------------------------------------------------------------------- */

void cws_order_add(struct cws_order *o, struct cws_order_node *n)
{
    n->id = o->next_id++;
    n->next_at = UINT64_MAX;
    cws_list_init(&n->coming);
    cws_list_init(&n->line);
    cws_list_add_before(&o->all, &n->all);
    o->count++;
    o->bytes += n->bytes;
    o->foreseen = false;
}

void cws_order_forget(struct cws_order *o, struct cws_order_node *n)
{
    cws_history_forget(&o->history, n);
    o->in_count -= n->in;
    cws_order_plan_forget(o, n);
    n->in = false;
    cws_list_remove(&n->all);
    cws_list_remove(&n->coming);
    cws_list_remove(&n->line);
    o->count--;
    o->bytes -= n->bytes;
    if (o->last == n)
        o->last = NULL;
    if (o->before_last == n)
        o->before_last = NULL;
    o->stray_count = 0;
    for (unsigned i = 0; i < CWS_ORDER_STRAYS; i++)
        o->strays[i] = NULL;
    for (unsigned i = 0; i < CWS_ORDER_STRAYED; i++)
        if (o->strayed[i] == n)
            o->strayed[i] = NULL;
    o->foreseen = false;
    o->plan_due = true;
}

void cws_order_plan_again(struct cws_order *o) { o->plan_due = true; }

/* --- the window -------------------------------------------------------------------------------------- */

static void come(struct cws_order *o, struct cws_order_node *n, uint64_t place)
{
    struct cws_list *at = &o->coming;
    while (at->prev != &o->coming && NODE_OF(at->prev, coming)->next_at > place)
        at = at->prev;
    n->next_at = place;
    cws_list_add_before(at, &n->coming);
    o->coming_count++;
    o->coming_bytes += n->bytes;
}

/* Uses that the window foresees: a period, or some walks over all nodes if they are not too many for that. */
static uint64_t reach(const struct cws_order *o, uint64_t period)
{
    const struct cws_tuning *t = o->tuning;
    uint64_t walks = t->order_reach_walks * o->count;
    walks = walks < t->order_reach_most ? walks : t->order_reach_most;
    return (period > walks ? period : walks) + t->order_reach_more;
}

static void extend(struct cws_order *o)
{
    uint64_t period = cws_history_look(&o->history);
    while (o->ahead_last && o->end - o->at <= reach(o, period)) {
        struct cws_order_node *n = period ? cws_history_next(&o->history, o->end - o->at)
                                          : cws_history_after(&o->history, o->ahead_before, o->ahead_last);
        if (!n)
            break;
        uint64_t place = o->end++;
        o->window[place % o->window_room] = (struct cws_order_place){n, UINT64_MAX};
        if (n->next_at == UINT64_MAX) {
            come(o, n, place);
            line_update(o, n);
        } else {
            o->window[n->last_at % o->window_room].again = place;
        }
        n->last_at = place;
        o->ahead_before = o->ahead_last;
        o->ahead_last = n;
    }
}

/* Does it come again at a distance that was seen before? Two are known, for what is used in every round of a draft
 * model and again after the target's. */
static void learn_gap(const struct cws_tuning *t, struct cws_order_node *n, uint64_t gap)
{
    for (unsigned i = 0; i < 2; i++) {
        uint64_t off = gap > n->gaps[i] ? gap - n->gaps[i] : n->gaps[i] - gap;
        if (n->gaps[i] && off <= gap / t->order_gap_share) {
            n->doubt -= n->doubt > 0;
            return;
        }
    }
    if (n->gaps[1]) {
        uint64_t doubt = n->doubt + t->order_surprise;
        n->doubt = (uint8_t)(doubt < t->order_doubt_max ? doubt : t->order_doubt_max);
    }
    n->gaps[1] = n->gaps[0];
    n->gaps[0] = gap;
}

/* Do they differ by no more than a share of b? */
static bool nearly(uint64_t a, uint64_t b, uint64_t share) { return (a > b ? a - b : b - a) <= b / share; }

/* A use in the middle of a repetition that has no place there, as when a kernel's parameters hold what the stack had
 * before: the order goes on without it. Not so if others like it follow (the program does something else), or if it
 * comes a period after the last one (the program does something more). */
static bool is_stray(struct cws_order *o, const struct cws_order_node *n)
{
    uint64_t period = cws_history_look(&o->history);
    return period && !cws_history_expects(&o->history, n) &&
           !(n->stray_at && nearly(o->at + 1 - n->stray_at, period, o->tuning->order_stray_share));
}

static void note_stray(struct cws_order *o, struct cws_order_node *n)
{
    o->strays[o->stray_count++] = n;
    n->stray_at = o->at + 1;
    n->stray_tick = o->tick;
    bool known = false;
    for (unsigned i = 0; i < CWS_ORDER_STRAYED; i++)
        known |= o->strayed[i] == n;
    if (!known)
        o->strayed[o->strayed_next++ % CWS_ORDER_STRAYED] = n;
    line_update(o, n);
}

/* Did n stray lately? Then it may well do so again: a stack that holds an address holds it for a while. */
static bool has_strayed(const struct cws_order *o, const struct cws_order_node *n)
{
    for (unsigned i = 0; i < CWS_ORDER_STRAYED; i++)
        if (n == o->strayed[i])
            return o->tick - n->stray_tick < o->tuning->order_stays;
    return false;
}

/* The room that such nodes take, beside keepers and the window. */
static uint64_t strayed_bytes(const struct cws_order *o)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < CWS_ORDER_STRAYED; i++) {
        const struct cws_order_node *n = o->strayed[i];
        bytes += n && n->in && !n->keeper && has_strayed(o, n) ? n->bytes : 0;
    }
    return bytes;
}

/* Before the next use: the work since the last one. */
static void note_pace(struct cws_order *o)
{
    uint64_t took = cws_pace_note(&o->pace, o->tuning, o->at, o->periodic ? o->plan_period : 0);
    if (o->last)
        o->last->pace = o->last->pace ? (o->last->pace + took + 1) / 2 : took;
}

static void note_use(struct cws_order *o, struct cws_order_node *n)
{
    const struct cws_order_place place = o->window_room ? o->window[(o->at + 1) % o->window_room]
                                                        : (struct cws_order_place){0};
    bool expected = o->foreseen && o->at + 1 < o->end && place.node == n;
    cws_history_reserve(&o->history, o->tuning->history_walks * o->count + o->tuning->history_uses_more);
    cws_history_push(&o->history, n);
    note_pace(o);
    o->before_last = o->last;
    o->last = n;
    o->at++;
    o->foreseen = expected && (cws_history_look(&o->history) != 0) == o->periodic;
    if (!o->foreseen)
        return;
    cws_list_remove(&n->coming);
    o->coming_count--;
    o->coming_bytes -= n->bytes;
    n->next_at = UINT64_MAX;
    if (place.again != UINT64_MAX)
        come(o, n, place.again);
    extend(o);
    line_update(o, n);
}

void cws_order_use(struct cws_order *o, struct cws_order_node *n)
{
    uint64_t before = n->last_tick;
    n->last_tick = ++o->tick;
    n->ahead = false;
    if (o->last == n)
        return;
    cws_list_remove(&n->all);
    cws_list_add_before(&o->all, &n->all);
    bool stray = is_stray(o, n);
    if (stray && o->stray_count < CWS_ORDER_STRAYS) {
        note_stray(o, n);
        return;
    }
    if (before)
        learn_gap(o->tuning, n, o->tick - before);
    for (unsigned i = 0; i < CWS_ORDER_STRAYS; i++) {
        if (stray && o->strays[i]) /* it was no exception */
            note_use(o, o->strays[i]);
        o->strays[i] = NULL;
    }
    o->stray_count = 0;
    note_use(o, n);
}

static bool need_window(struct cws_order *o)
{
    uint64_t wanted = reach(o, cws_history_look(&o->history)) + 8;
    if (o->window_room >= wanted)
        return true;
    struct cws_order_place *window = malloc(2 * wanted * sizeof *window);
    if (!window)
        return false;
    free(o->window);
    o->window = window;
    o->window_room = 2 * wanted;
    return true;
}

static void foresee(struct cws_order *o)
{
    while (o->coming.next != &o->coming) {
        NODE_OF(o->coming.next, coming)->next_at = UINT64_MAX;
        cws_list_remove(o->coming.next);
    }
    o->coming_count = 0;
    o->coming_bytes = 0;
    o->end = o->at + 1;
    o->ahead_before = o->before_last;
    o->ahead_last = o->last;
    o->periodic = cws_history_look(&o->history) != 0;
    if (need_window(o))
        extend(o);
    lines_make(o);
    o->foreseen = true;
}

/* --- the plan ---------------------------------------------------------------------------------------- */

static void plan(struct cws_order *o, uint64_t room, enum cws_pace_verdict why)
{
    bool by_time = cws_order_plan(o, room, why == CWS_PACE_BY_TIME);
    o->plan_room = room;
    o->plan_count = o->coming_count;
    o->plan_period = cws_history_look(&o->history);
    o->plan_due = false;
    cws_pace_planned(&o->pace, o->tuning, why, by_time, o->at);
    lines_make(o);
}

static bool plan_is_stale(const struct cws_order *o, uint64_t room, uint64_t period)
{
    uint64_t share = o->tuning->order_plan_share;
    return o->plan_due || o->coming_count != o->plan_count || !nearly(room, o->plan_room, share) ||
           (period && !nearly(period, o->plan_period, share));
}

void cws_order_walk(struct cws_order *o, uint64_t room)
{
    uint64_t strayed = strayed_bytes(o);
    room -= strayed < room ? strayed : room;
    if (!o->foreseen)
        foresee(o);
    /* A plan needs a whole cycle: the walk came back to where it stands, and is a repetition or met nearly all there
     * is. (Else one use out of order can make a short circuit.) */
    bool cycle = o->last && o->last->next_at != UINT64_MAX &&
                 (o->periodic || o->coming_bytes >= o->bytes / 8 * o->tuning->order_cycle_eighths);
    if (!cycle || !o->ops->has_keepers)
        return;
    enum cws_pace_verdict verdict = CWS_PACE_STAY;
    if (plan_is_stale(o, room, cws_history_look(&o->history)) ||
        (verdict = cws_pace_judge(&o->pace, o->tuning)) != CWS_PACE_STAY)
        plan(o, room, verdict);
}

uint64_t cws_order_period(struct cws_order *o) { return cws_history_look(&o->history); }

struct cws_order_node *cws_order_coming(const struct cws_order *o, const struct cws_order_node *n)
{
    const struct cws_list *next = n ? n->coming.next : o->coming.next;
    return next == &o->coming || !o->foreseen ? NULL : NODE_OF(next, coming);
}

/* --- victims ----------------------------------------------------------------------------------------- */

/* Uses until the next one. */
static uint64_t distance(const struct cws_order *o, const struct cws_order_node *n)
{
    return n->next_at == UINT64_MAX ? UINT64_MAX : n->next_at - o->at;
}

/* The next launch may well name it again (two kernels of one product), and the order that is learned does not count
 * such repetitions. What comes again after others is in the order, if that foresees it at all. */
static bool is_recent(const struct cws_order *o, const struct cws_order_node *n)
{
    if (n->stray_at && has_strayed(o, n))
        return true;
    return n == o->last || (n == o->before_last && n->next_at == UINT64_MAX);
}

static bool next_goes_before(const struct cws_order *o, const struct cws_order_node *a, const struct cws_order_node *b)
{
    (void)o;
    return a->next_at != b->next_at ? a->next_at > b->next_at : a->last_tick < b->last_tick;
}

/* The program runs ahead of the device, so what should go is often still in use. To wait for it costs less than to take
 * what is needed soon and load that again. */
static bool next_is_nearly_as_good(const struct cws_order *o, const struct cws_order_node *b,
                                   const struct cws_order_node *a)
{
    return b->keeper == a->keeper && distance(o, b) >= distance(o, a) / 4 * o->tuning->order_nearly_quarters;
}

static bool lru_goes_before(const struct cws_order *o, const struct cws_order_node *a, const struct cws_order_node *b)
{
    (void)o;
    return a->last_tick < b->last_tick;
}

static bool lru_is_nearly_as_good(const struct cws_order *o, const struct cws_order_node *b,
                                  const struct cws_order_node *a)
{
    (void)o, (void)b, (void)a;
    return true;
}

const struct cws_order_ops cws_order_next = {"next", true, true, next_goes_before, next_is_nearly_as_good};
const struct cws_order_ops cws_order_lru = {"lru", false, false, lru_goes_before, lru_is_nearly_as_good};

/* May n be evicted for a node whose next use is at `until`? */
static bool is_fair_price(const struct cws_order_node *n, uint64_t until)
{
    return until == 0 || (n->next_at > until && !n->ahead);
}

struct cws_order_node *cws_order_victim(const struct cws_order *o, uint64_t until,
                                        bool (*may_go)(void *arg, const struct cws_order_node *n),
                                        bool (*is_done)(void *arg, struct cws_order_node *n), void *arg)
{
    const struct cws_order_node *best = NULL;
    uint64_t looked = 0; /* those that are still in use */
    /* others, keepers; then those of the last few launches */
    for (unsigned pass = 0; pass < (until == 0 ? 4 : 1); pass++) {
        const struct cws_list *line = &o->lines[pass % 2];
        for (const struct cws_list *l = line->prev; l != line; l = l->prev) {
            struct cws_order_node *n = NODE_OF(l, line);
            if (is_recent(o, n) != (pass >= 2) || !is_fair_price(n, until) || !may_go(arg, n))
                continue;
            if (!is_done || is_done(arg, n))
                return !best || o->ops->is_nearly_as_good(o, n, best) ? n : NULL;
            best = best ? best : n;
            if (++looked == o->tuning->order_look_at || !o->ops->is_nearly_as_good(o, n, best))
                return NULL;
        }
    }
    return NULL;
}
