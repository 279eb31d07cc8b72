/* plan.c - plans a round: who stays, and how many of each size stream at a time. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

#define NODE_OF(link, member) CWS_LIST_OF(link, struct cws_order_node, member)

enum { ROUNDS = 4 }; /* of choosing keepers and counting quotas, each for the other */

static struct cws_order_size *size_of(struct cws_order *o, const struct cws_order_node *n)
{
    return n->size ? &o->sizes[n->size - 1] : NULL;
}

/* --- who has memory ---------------------------------------------------------------------------------- */

static void count_held(struct cws_order *o, const struct cws_order_node *n, int change)
{
    struct cws_order_size *size = size_of(o, n);
    if (size && n->held && !n->keeper)
        size->held += (uint32_t)change;
}

void cws_order_set_held(struct cws_order *o, struct cws_order_node *n, bool held)
{
    count_held(o, n, -1);
    n->held = held;
    count_held(o, n, 1);
}

void cws_order_plan_forget(struct cws_order *o, struct cws_order_node *n)
{
    count_held(o, n, -1);
    n->held = n->keeper = false;
    n->size = 0;
}

bool cws_order_may_grow(const struct cws_order *o, const struct cws_order_node *n)
{
    return !n->size || n->keeper || o->sizes[n->size - 1].held < o->sizes[n->size - 1].quota;
}

bool cws_order_is_spare(const struct cws_order *o, const struct cws_order_node *n)
{
    return !n->size || (!n->keeper && o->sizes[n->size - 1].held > o->sizes[n->size - 1].quota);
}

/* --- a plan in the making ------------------------------------------------------------------------------ */

/* Who stays first. */
static int by_worth(const void *a, const void *b)
{
    const struct cws_order_node *one = *(struct cws_order_node *const *)a, *other = *(struct cws_order_node *const *)b;
    if (one->comes != other->comes)
        return one->comes > other->comes ? -1 : 1;
    if (one->near != other->near)
        return one->near ? 1 : -1;
    if (one->bytes != other->bytes)
        return one->bytes < other->bytes ? -1 : 1;
    return cws_order_rank(one) < cws_order_rank(other) ? -1 : cws_order_rank(one) > cws_order_rank(other);
}

/* Uses of a node that follow one another with few others in between: the kernels of a product name its weight again and
 * again, and memory that all of them work in. To memory they are one. */
struct visit {
    struct cws_order_node *node;
    uint64_t pace; /* until the next visit of any */
};

struct plan {
    struct cws_order *order;
    uint64_t room;
    struct cws_order_node **sorted; /* what comes, by worth */
    size_t count;
    struct visit *visits;
    uint64_t places; /* of them: of a period, or of the walk that there is */
};

static struct cws_order_node *node_at(const struct plan *p, uint64_t i) { return p->visits[i % p->places].node; }

/* Lists the visits in so many uses of the window, as if they were repeated, and counts those of each node. What is
 * never left alone for long is in no list, and comes more often than anything else. */
static void list_visits(struct plan *p, uint64_t uses)
{
    struct cws_order *o = p->order;
    uint64_t begin = o->at + 1, most = o->tuning->order_visit_uses < uses / 4 ? o->tuning->order_visit_uses : uses / 4;
    for (uint64_t i = 0; i < uses; i++) {
        struct cws_order_node *n = o->window[(begin + i) % o->window_room].node;
        n->comes = UINT32_MAX;
        n->seen = i;
    }
    for (uint64_t i = 0; i < uses; i++) {
        struct cws_order_node *n = o->window[(begin + i) % o->window_room].node;
        uint64_t since = i > n->seen ? i - n->seen : i + uses - n->seen;
        n->seen = i;
        if (since > most) {
            n->comes = n->comes == UINT32_MAX ? 1 : n->comes + 1;
            p->visits[p->places++] = (struct visit){n, 0};
        }
        if (p->places)
            p->visits[p->places - 1].pace += n->pace;
    }
}

/* The sizes of what comes, the largest first; a node beyond the last of them has none. */
static void list_sizes(const struct plan *p)
{
    struct cws_order *o = p->order;
    o->size_count = 0;
    memset(o->sizes, 0, sizeof o->sizes);
    for (uint64_t below = UINT64_MAX; o->size_count < CWS_ORDER_SIZES; o->size_count++) {
        uint64_t next = 0;
        for (size_t i = 0; i < p->count; i++)
            if (p->sorted[i]->bytes < below && p->sorted[i]->bytes > next)
                next = p->sorted[i]->bytes;
        if (!next)
            break;
        o->sizes[o->size_count].bytes = below = next;
    }
    for (size_t i = 0; i < p->count; i++) {
        p->sorted[i]->size = 0;
        for (unsigned k = 0; k < o->size_count; k++)
            if (o->sizes[k].bytes == p->sorted[i]->bytes)
                p->sorted[i]->size = (uint8_t)(k + 1);
    }
}

/* A node that comes or goes: how many of its size stream in the stretch of uses that is looked at. */
static void count_streaming(const struct cws_order_node *n, int change, bool apart, uint32_t now[2][CWS_ORDER_SIZES])
{
    if (n && n->size && !n->keeper)
        now[apart && n->near][n->size - 1] += (uint32_t)change;
}

/* Quotas for the present keepers; their bytes. */
static uint64_t count_quotas(const struct plan *p)
{
    struct cws_order *o = p->order;
    uint64_t wide = o->tuning->order_quota_uses < p->places ? o->tuning->order_quota_uses : p->places, bytes = 0;
    uint32_t now[2][CWS_ORDER_SIZES] = {{0}}, most[2][CWS_ORDER_SIZES] = {{0}}, streams[2][CWS_ORDER_SIZES] = {{0}};
    for (size_t i = 0; i < p->count; i++)
        count_streaming(p->sorted[i], 1, o->near_apart, streams);
    for (uint64_t i = 0; i < p->places + wide; i++) {
        const struct cws_order_node *n = node_at(p, i);
        if (i >= wide)
            count_streaming(node_at(p, i - wide), -1, o->near_apart, now);
        count_streaming(n, 1, o->near_apart, now);
        for (unsigned near = 0; near < 2 && n && n->size; near++)
            if (now[near][n->size - 1] > most[near][n->size - 1])
                most[near][n->size - 1] = now[near][n->size - 1];
    }
    for (unsigned k = 0; k < o->size_count; k++) {
        o->sizes[k].quota = 0;
        for (unsigned near = 0; near < 2; near++)
            o->sizes[k].quota += most[near][k] < streams[near][k] ? most[near][k] : streams[near][k];
        bytes += o->sizes[k].quota * o->sizes[k].bytes;
    }
    return bytes;
}

/* Keepers and quotas where everything larger than `most` stays; the bytes of keepers. What streams needs its quotas,
 * and room for those whose memory is not free yet: an eviction takes a while. With less launches wait for memory, with
 * more there are fewer hits. 0: there is no room for that. */
static uint64_t try_plan(const struct plan *p, uint64_t most)
{
    uint64_t kept = 0, in_flight = p->order->tuning->order_in_flight_bytes;
    for (size_t i = 0; i < p->count; i++) {
        p->sorted[i]->keeper = p->sorted[i]->bytes > most;
        kept += p->sorted[i]->keeper ? p->sorted[i]->bytes : 0;
    }
    uint64_t quotas = count_quotas(p);
    if (kept + quotas + in_flight > p->room)
        return 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < p->count; i++) {
            if (p->sorted[i]->keeper || kept + p->sorted[i]->bytes + quotas + in_flight > p->room)
                continue;
            p->sorted[i]->keeper = true;
            kept += p->sorted[i]->bytes;
        }
        quotas = count_quotas(p);
    }
    return kept;
}

/* Tries what the largest sizes give: a model's few large tensors would need a window of their size. The bound of the
 * last plan is not left for a little, because all that lies between the two would be loaded. */
static void choose(const struct plan *p)
{
    struct cws_order *o = p->order;
    uint64_t best = 0, most = UINT64_MAX;
    for (uint64_t i = 0; i <= o->tuning->order_tries && i <= o->size_count; i++) {
        uint64_t bound = i == 0 ? UINT64_MAX : o->sizes[i - 1].bytes, kept = try_plan(p, bound);
        kept += bound == o->plan_most ? kept / o->tuning->order_better_share : 0;
        if (kept > best) {
            best = kept;
            most = bound;
        }
    }
    o->plan_most = most;
    if (try_plan(p, most) == 0) { /* too little room for any: whoever comes takes what there is */
        for (size_t i = 0; i < p->count; i++) {
            p->sorted[i]->keeper = false;
            p->sorted[i]->size = 0;
        }
        p->order->size_count = 0;
    }
}

/* --- by time -------------------------------------------------------------------------------------------- */

/* What streams is loaded once a round, and is spread over the round's time. */
struct spread {
    const struct plan *plan;
    uint64_t first; /* the place of the node that was added first: all is counted from there, whenever it is planned */
    double *times;  /* before each place from there; the last one is the round's */
    uint64_t most, small; /* what is larger stays, and what is no larger than that; and what comes more than once */
};

static const struct visit *visit_from_first(const struct spread *s, uint64_t i)
{
    return &s->plan->visits[(s->first + i) % s->plan->places];
}

/* Averaged over a stretch of the round around each place: a launch that waited says little of its own work. */
static bool make_times(struct spread *s)
{
    const struct plan *p = s->plan;
    if (!p->places) /* nothing is ever left alone for long */
        return false;
    uint64_t wide = p->places / p->order->tuning->order_pace_places + 1, back = p->places - wide / 2 % p->places;
    double sum = 0;
    s->times = malloc((p->places + 1) * sizeof *s->times);
    if (!s->times)
        return false;
    for (uint64_t i = 1; i < p->places; i++)
        s->first = node_at(p, i)->id < node_at(p, s->first)->id ? i : s->first;
    for (uint64_t i = 0; i < wide; i++)
        sum += (double)visit_from_first(s, i + back)->pace;
    s->times[0] = 0;
    for (uint64_t i = 0; i < p->places; i++) {
        s->times[i + 1] = s->times[i] + sum / (double)wide;
        sum += (double)visit_from_first(s, i + back + wide)->pace - (double)visit_from_first(s, i + back)->pace;
    }
    return s->times[p->places] > 0;
}

/* Keepers and quotas where `rate` bytes of each unit of time stream. False: there is no room for that. */
static bool try_rate(const struct spread *s, double rate)
{
    const struct plan *p = s->plan;
    uint64_t kept = 0;
    double may = 0;
    for (size_t i = 0; i < p->count; i++)
        if (p->sorted[i]->comes > 1) {
            p->sorted[i]->keeper = true;
            kept += p->sorted[i]->bytes;
        }
    for (uint64_t i = 0; i < p->places; i++) {
        struct cws_order_node *n = visit_from_first(s, i)->node;
        may += (s->times[i + 1] - s->times[i]) * rate;
        if (n->comes > 1)
            continue;
        n->keeper = n->bytes > s->most || n->bytes <= s->small || (!n->near && may < (double)n->bytes / 2);
        if (n->keeper)
            kept += n->bytes;
        else if (!n->near)
            may -= (double)n->bytes;
    }
    return kept + count_quotas(p) + p->order->tuning->order_in_flight_bytes <= p->room;
}

/* The least rate for which there is room; 0: there is none. */
static double least_rate(const struct spread *s)
{
    enum { STEPS = 20 };
    double low = 0, high = 4 * (double)s->plan->order->coming_bytes / s->times[s->plan->places];
    if (!try_rate(s, high))
        return 0;
    for (unsigned i = 0; i < STEPS; i++) {
        double middle = (low + high) / 2;
        *(try_rate(s, middle) ? &high : &low) = middle;
    }
    return high;
}

/* The bound for what streams with which the link has least to do at a time. Returns that rate; 0: there is none. */
static double find_most(struct spread *s)
{
    const struct cws_order *o = s->plan->order;
    double best = 0;
    uint64_t most = UINT64_MAX;
    for (uint64_t i = 0; i <= o->tuning->order_tries && i <= o->size_count; i++) {
        s->most = i == 0 ? UINT64_MAX : o->sizes[i - 1].bytes;
        double rate = least_rate(s);
        if (rate > 0 && (best == 0 || rate < best)) {
            best = rate;
            most = s->most;
        }
    }
    s->most = most;
    return best;
}

/* Of small nodes as many sizes stay as make the rate, `best` without them, but little more: each of their loads has its
 * calls. Returns the rate with them. */
static double find_small(struct spread *s, double best)
{
    const struct cws_order *o = s->plan->order;
    double may = best * (1 + 1 / (double)o->tuning->order_pace_slack), found = best;
    uint64_t small = 0;
    unsigned from = 0, to = o->size_count; /* the first size, of those from here, for which it is little */
    while (from < to) {
        unsigned middle = (from + to) / 2;
        s->small = o->sizes[middle].bytes;
        double rate = s->small < s->most ? least_rate(s) : 0;
        if (rate > 0 && rate <= may) {
            small = s->small;
            found = rate;
            to = middle;
        } else {
            from = middle + 1;
        }
    }
    s->small = small;
    return found;
}

/* False: it cannot be planned so. */
static bool choose_by_time(const struct plan *p)
{
    struct spread s = {.plan = p};
    if (!p->order->periodic || !make_times(&s)) {
        free(s.times);
        return false;
    }
    double rate = find_most(&s);
    if (rate > 0)
        try_rate(&s, find_small(&s, rate));
    free(s.times);
    return rate > 0;
}

static void keep_all(const struct plan *p)
{
    for (size_t i = 0; i < p->count; i++)
        p->sorted[i]->keeper = true;
    count_quotas(p);
}

bool cws_order_plan(struct cws_order *o, uint64_t room, bool by_time)
{
    uint64_t period = cws_history_look(&o->history), walk = o->end - (o->at + 1),
             uses = period && period < walk ? period : walk;
    struct plan p = {.order = o, .room = room};
    for (struct cws_list *l = o->all.next; l != &o->all; l = l->next) { /* also those of a model that is not used */
        NODE_OF(l, all)->keeper = false;
        NODE_OF(l, all)->size = 0;
    }
    o->size_count = 0;
    p.sorted = uses ? malloc(o->coming_count * sizeof *p.sorted) : NULL;
    p.visits = uses ? malloc(uses * sizeof *p.visits) : NULL;
    if (!p.sorted || !p.visits) {
        free(p.sorted);
        free(p.visits);
        return false;
    }
    for (struct cws_list *l = o->coming.next; l != &o->coming; l = l->next) {
        p.sorted[p.count] = NODE_OF(l, coming);
        p.sorted[p.count++]->comes = 0;
    }
    list_visits(&p, uses);
    list_sizes(&p);
    qsort(p.sorted, p.count, sizeof *p.sorted, by_worth);
    by_time = by_time && o->coming_bytes > room && choose_by_time(&p);
    if (o->coming_bytes <= room)
        keep_all(&p);
    else if (!by_time)
        choose(&p);
    free(p.sorted);
    free(p.visits);
    for (unsigned i = 0; i < o->size_count; i++)
        o->sizes[i].held = 0;
    for (struct cws_list *l = o->all.next; l != &o->all; l = l->next)
        count_held(o, NODE_OF(l, all), 1);
    return by_time;
}

const char *cws_order_plan_check(const struct cws_order *o)
{
    uint32_t held[CWS_ORDER_SIZES] = {0};
    for (const struct cws_list *l = o->all.next; l != &o->all; l = l->next) {
        const struct cws_order_node *n = NODE_OF(l, all);
        if (n->size > o->size_count || (n->size && o->sizes[n->size - 1].bytes != n->bytes))
            return "plan: a node has the size of another one";
        if (n->size && n->held && !n->keeper)
            held[n->size - 1]++;
    }
    for (unsigned i = 0; i < o->size_count; i++)
        if (held[i] != o->sizes[i].held)
            return "plan: what has memory is miscounted";
    return NULL;
}
