/* A program that generates text walks over its weights again and again in the same order. What is needed last is dropped first.
 *
 * On a cyclic scan that rule alone keeps a prefix of the cycle and streams the rest in one stretch, in which the link is busy and before which
 * it is idle. So keepers are chosen: evenly over the cycle, as many bytes as fit beside the window through which the others stream. */
#include "order.h"

#include <stdlib.h>

#define SMALL_BYTES ((uint64_t)4 << 20) /* such a node costs as many calls as a large one */
#define WINDOW_BYTES_MIN ((uint64_t)32 << 20)

void cws_order_init(struct cws_order *o, enum cws_policy_id policy)
{
    *o = (struct cws_order){.ops = policy == CWS_POLICY_LRU ? &cws_order_lru : &cws_order_next, .walked_tick = UINT64_MAX};
    o->head.prev = o->head.next = &o->head;
}

void cws_order_deinit(struct cws_order *o)
{
    free(o->foreseen);
    o->foreseen = NULL;
    o->foreseen_count = o->foreseen_room = 0;
}

/* --- what was learned -------------------------------------------------------------------------------- */

static struct cws_order_node *after(const struct cws_order_node *before, const struct cws_order_node *n)
{
    for (unsigned i = 0; i < 2; i++)
        if (n->follow[i].after && n->follow[i].before == before)
            return n->follow[i].after;
    return n->follow[0].after;
}

void cws_order_add(struct cws_order *o, struct cws_order_node *n)
{
    n->id = o->next_id++;
    n->next = &o->head;
    n->prev = o->head.prev;
    n->prev->next = n;
    o->head.prev = n;
    o->count++;
    o->bytes += n->bytes;
}

void cws_order_use(struct cws_order *o, struct cws_order_node *n)
{
    struct cws_order_node *last = o->last;
    n->last_tick = ++o->tick;
    n->ahead = false;
    if (last == n)
        return;
    if (last && after(o->before_last, last) != n) {
        unsigned at = last->follow[0].before == o->before_last ? 0 : last->follow[1].before == o->before_last ? 1 : 2;
        if (at == 2) { /* the older of two contexts is forgotten */
            last->follow[1] = last->follow[0];
            at = 0;
        }
        last->follow[at].before = o->before_last;
        last->follow[at].after = n;
    }
    o->before_last = last;
    o->last = n;
}

void cws_order_forget(struct cws_order *o, struct cws_order_node *n)
{
    for (struct cws_order_node *other = o->head.next; other != &o->head; other = other->next)
        for (unsigned i = 0; i < 2; i++)
            if (other->follow[i].after == n || other->follow[i].before == n)
                other->follow[i].after = other->follow[i].before = NULL;
    n->follow[0].after = n->follow[1].after = NULL;
    n->keeper = false;
    n->prev->next = n->next;
    n->next->prev = n->prev;
    n->prev = n->next = NULL;
    o->count--;
    o->bytes -= n->bytes;
    if (o->last == n)
        o->last = NULL;
    if (o->before_last == n)
        o->before_last = NULL;
    o->foreseen_count = 0;
    o->walked_tick = UINT64_MAX;
    o->plan_due = true;
}

/* --- keepers ----------------------------------------------------------------------------------------- */

static void choose_keepers(struct cws_order *o, uint64_t room)
{
    uint64_t total = 0, largest = 0, small_bytes = 0;
    for (uint32_t i = 0; i < o->foreseen_count; i++) {
        uint64_t bytes = o->foreseen[i]->bytes;
        total += bytes;
        largest = bytes > largest ? bytes : largest;
        small_bytes += bytes <= SMALL_BYTES ? bytes : 0;
    }
    uint64_t window = largest + (room / 8 > WINDOW_BYTES_MIN ? room / 8 : WINDOW_BYTES_MIN);
    uint64_t keep = total <= room ? total : room > window ? room - window : 0;
    /* A small node gives back little: it stays, where that is cheap. */
    bool keep_small = small_bytes <= keep / 2;
    if (keep_small) {
        total -= small_bytes;
        keep -= small_bytes;
    }
    double rate = total ? (double)keep / (double)total : 0, credit = 0;
    uint32_t first = 0; /* wherever the walk stands now, the same nodes are chosen */
    for (uint32_t i = 0; i < o->foreseen_count; i++)
        first = o->foreseen[i]->id < o->foreseen[first]->id ? i : first;
    for (uint32_t i = 0; i < o->foreseen_count; i++) {
        struct cws_order_node *n = o->foreseen[(first + i) % o->foreseen_count];
        double bytes = (double)n->bytes;
        if (keep_small && n->bytes <= SMALL_BYTES) {
            n->keeper = true;
            continue;
        }
        credit += rate * bytes;
        n->keeper = credit >= bytes;
        credit -= n->keeper ? bytes : 0;
    }
    o->plan_room = room;
    o->plan_count = o->foreseen_count;
    o->plan_due = false;
}

static bool plan_is_stale(const struct cws_order *o, uint64_t room)
{
    uint64_t moved = room > o->plan_room ? room - o->plan_room : o->plan_room - room;
    return o->plan_due || o->foreseen_count != o->plan_count || moved > o->plan_room / 16;
}

/* --- the walk ---------------------------------------------------------------------------------------- */

static bool need_foreseen(struct cws_order *o)
{
    if (o->foreseen_room >= o->count)
        return true;
    uint32_t room = o->count * 2;
    struct cws_order_node **list = realloc(o->foreseen, room * sizeof(struct cws_order_node *));
    if (!list)
        return false;
    o->foreseen = list;
    o->foreseen_room = room;
    return true;
}

void cws_order_walk(struct cws_order *o, uint64_t room)
{
    if (o->walked_tick == o->tick || !need_foreseen(o))
        return;
    o->walked_tick = o->tick;
    o->walk++;
    o->foreseen_count = 0;
    const struct cws_order_node *before = o->before_last;
    struct cws_order_node *at = o->last;
    for (uint64_t step = 1; at && step <= 2 * (uint64_t)o->count + 8; step++) {
        struct cws_order_node *next = after(before, at);
        if (!next)
            break;
        if (next->walk != o->walk) {
            next->walk = o->walk;
            next->next_at = step;
            o->foreseen[o->foreseen_count++] = next;
        }
        before = at;
        at = next;
    }
    /* A plan needs a whole cycle: the walk came back to where it stands, and met nearly all there is. (One use out of order can make a short circuit.) */
    uint64_t met = 0;
    for (uint32_t i = 0; i < o->foreseen_count; i++)
        met += o->foreseen[i]->bytes;
    bool cycle = o->last && o->last->walk == o->walk && met >= o->bytes / 8 * 7;
    if (cycle && o->ops->has_keepers && plan_is_stale(o, room))
        choose_keepers(o, room);
}

/* --- victims ----------------------------------------------------------------------------------------- */

static uint64_t next_use(const struct cws_order *o, const struct cws_order_node *n)
{
    return n->walk == o->walk ? n->next_at : UINT64_MAX;
}

/* Named by one of the last few launches: the next one may well name it, too (two kernels of one product), and the order that is learned does not
 * count such repetitions. */
static bool is_recent(const struct cws_order *o, const struct cws_order_node *n)
{
    enum { RECENT = 4 };
    return n->last_tick && o->tick - n->last_tick < RECENT;
}

static bool next_goes_before(const struct cws_order *o, const struct cws_order_node *a, const struct cws_order_node *b)
{
    if (a->keeper != b->keeper)
        return !a->keeper;
    uint64_t next_a = next_use(o, a), next_b = next_use(o, b);
    return next_a != next_b ? next_a > next_b : a->last_tick < b->last_tick;
}

/* The program runs ahead of the device, so what should go is often still in use. To wait for it costs less than to take what is needed soon and load
 * that again. */
static bool next_is_nearly_as_good(const struct cws_order *o, const struct cws_order_node *b, const struct cws_order_node *a)
{
    return b->keeper == a->keeper && next_use(o, b) >= next_use(o, a) / 4 * 3;
}

static bool lru_goes_before(const struct cws_order *o, const struct cws_order_node *a, const struct cws_order_node *b)
{
    (void)o;
    return a->last_tick < b->last_tick;
}

static bool lru_is_nearly_as_good(const struct cws_order *o, const struct cws_order_node *b, const struct cws_order_node *a)
{
    (void)o, (void)b, (void)a;
    return true;
}

const struct cws_order_ops cws_order_next = {"next", true, next_goes_before, next_is_nearly_as_good};
const struct cws_order_ops cws_order_lru = {"lru", false, lru_goes_before, lru_is_nearly_as_good};

static bool goes_before(const struct cws_order *o, const struct cws_order_node *a, const struct cws_order_node *b)
{
    if (is_recent(o, a) != is_recent(o, b))
        return !is_recent(o, a);
    return o->ops->goes_before(o, a, b);
}

/* May it be dropped for a node that is needed after `until` uses? */
static bool is_fair_price(const struct cws_order *o, const struct cws_order_node *n, uint64_t until)
{
    return until == 0 || (next_use(o, n) > until && !is_recent(o, n) && !n->ahead && !n->keeper);
}

struct cws_order_node *cws_order_victim(const struct cws_order *o, uint64_t until, bool (*may_go)(void *arg, const struct cws_order_node *n),
                                        bool (*is_done)(void *arg, struct cws_order_node *n), void *arg)
{
    struct cws_order_node *best = NULL, *done = NULL;
    for (struct cws_order_node *n = o->head.next; n != &o->head; n = n->next) {
        if (!may_go(arg, n) || !is_fair_price(o, n, until))
            continue;
        if (!best || goes_before(o, n, best))
            best = n;
        if (is_done && (!done || goes_before(o, n, done)) && is_done(arg, n))
            done = n;
    }
    if (!is_done)
        return best;
    return done && (done == best || o->ops->is_nearly_as_good(o, done, best)) ? done : NULL;
}
