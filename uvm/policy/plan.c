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

/* Multiples of the golden ratio, modulo one: the nodes with the lowest ranks, however many, lie evenly over the order
 * in which nodes were added, as a walk mostly goes. A rank belongs to the node alone, so a plan for a little more room,
 * or after a use that nobody expected, is the old one and a node more or less. */
static uint32_t rank(const struct cws_order_node *n) { return n->id * 2654435769u; }

/* Who stays first. */
static int by_worth(const void *a, const void *b)
{
    const struct cws_order_node *one = *(struct cws_order_node *const *)a, *other = *(struct cws_order_node *const *)b;
    if (one->comes != other->comes)
        return one->comes > other->comes ? -1 : 1;
    if (one->bytes != other->bytes)
        return one->bytes < other->bytes ? -1 : 1;
    return rank(one) < rank(other) ? -1 : rank(one) > rank(other);
}

struct plan {
    struct cws_order *order;
    uint64_t room;
    struct cws_order_node **sorted; /* what comes, by worth */
    size_t count;
    uint64_t begin, places; /* of the window: a period, or the walk that there is */
};

static struct cws_order_node *node_at(const struct plan *p, uint64_t i)
{
    return p->order->window[(p->begin + i % p->places) % p->order->window_room].node;
}

/* Counts how often each node comes in a period. */
static void count_uses(const struct plan *p)
{
    for (size_t i = 0; i < p->count; i++)
        p->sorted[i]->comes = 0;
    for (uint64_t i = 0; i < p->places; i++)
        node_at(p, i)->comes++;
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

/* Quotas for the present keepers; their bytes. */
static uint64_t count_quotas(const struct plan *p)
{
    struct cws_order *o = p->order;
    uint64_t wide = o->tuning->order_quota_uses < p->places ? o->tuning->order_quota_uses : p->places, bytes = 0;
    uint32_t now[CWS_ORDER_SIZES] = {0}, streams[CWS_ORDER_SIZES] = {0};
    for (unsigned i = 0; i < o->size_count; i++)
        o->sizes[i].quota = 0;
    for (size_t i = 0; i < p->count; i++)
        if (p->sorted[i]->size && !p->sorted[i]->keeper)
            streams[p->sorted[i]->size - 1]++;
    for (uint64_t i = 0; i < p->places + wide; i++) {
        const struct cws_order_node *n = node_at(p, i), *left = i >= wide ? node_at(p, i - wide) : NULL;
        if (left && left->size && !left->keeper)
            now[left->size - 1]--;
        if (!n || !n->size || n->keeper)
            continue;
        uint32_t k = n->size - 1u;
        now[k]++;
        o->sizes[k].quota = now[k] > o->sizes[k].quota ? now[k] : o->sizes[k].quota;
    }
    for (unsigned i = 0; i < o->size_count; i++) {
        o->sizes[i].quota = o->sizes[i].quota < streams[i] ? o->sizes[i].quota : streams[i];
        bytes += o->sizes[i].quota * o->sizes[i].bytes;
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

static void keep_all(const struct plan *p)
{
    for (size_t i = 0; i < p->count; i++)
        p->sorted[i]->keeper = true;
    count_quotas(p);
}

void cws_order_plan(struct cws_order *o, uint64_t room)
{
    uint64_t period = cws_history_look(&o->history), begin = o->at + 1, walk = o->end - begin;
    struct plan p = {.order = o, .room = room, .begin = begin, .places = period && period < walk ? period : walk};
    for (struct cws_list *l = o->all.next; l != &o->all; l = l->next) { /* also those of a model that is not used */
        NODE_OF(l, all)->keeper = false;
        NODE_OF(l, all)->size = 0;
    }
    o->size_count = 0;
    p.sorted = p.places ? malloc(o->coming_count * sizeof *p.sorted) : NULL;
    if (!p.sorted)
        return;
    for (struct cws_list *l = o->coming.next; l != &o->coming; l = l->next)
        p.sorted[p.count++] = NODE_OF(l, coming);
    count_uses(&p);
    list_sizes(&p);
    qsort(p.sorted, p.count, sizeof *p.sorted, by_worth);
    if (o->coming_bytes <= room)
        keep_all(&p);
    else
        choose(&p);
    free(p.sorted);
    for (unsigned i = 0; i < o->size_count; i++)
        o->sizes[i].held = 0;
    for (struct cws_list *l = o->all.next; l != &o->all; l = l->next)
        count_held(o, NODE_OF(l, all), 1);
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
