/* replay_device.c - simulates the CUDA manager: its policy as it is (uvm/policy/order.h), or Belady's rule in its
 * place, in a model of everything around it. That is a launching thread that runs ahead, a device that works in order,
 * one link, and the loader of uvm/cuda/loader.c, whose limits and choices this follows. Times are in microseconds. */
#include "uvm/policy/order.h"
#include "replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GRANULE ((uint64_t)2 << 20)

enum state { ABSENT, WAITING, COPYING, ARRIVING, RESIDENT, LEAVING };

struct range {
    struct cws_order_node node;
    uint64_t bytes;
    enum state state;
    double at;        /* COPYING, ARRIVING, LEAVING: when that is over */
    double used_till; /* on the device */
    uint64_t queued;  /* WAITING: its turn */
    size_t next_use;  /* BELADY: place of its next use in the trace; SIZE_MAX: none */
};

struct device {
    const struct replay_trace *trace;
    const struct replay_machine *m;
    const struct cws_tuning *tuning;
    struct cws_order order;
    struct range *ranges;
    uint64_t room, free, leaving, turn;
    unsigned loading;
    bool link_busy;
    double now, loader_free, decoder_free;
    struct range *demanded;
    double loaded_bytes;
    size_t place; /* of the use in the trace */
    /* BELADY: of each place, the next one with the same range; NULL: the order is learned */
    size_t *again;
};

static struct range *range_of(const struct cws_order_node *n)
{
    return (struct range *)((const char *)n - offsetof(struct range, node));
}
static double microseconds(double bytes, double gbps) { return bytes / gbps / 1e3; }

static bool may_go(void *arg, const struct cws_order_node *n)
{
    const struct device *d = arg;
    return range_of(n)->state == RESIDENT && range_of(n) != d->demanded;
}
static bool is_done(void *arg, struct cws_order_node *n)
{
    return range_of(n)->used_till <= ((const struct device *)arg)->now;
}

/* --- the loader ----------------------------------------------------------------------------------------- */

static void start_load(struct device *d, struct range *r)
{
    d->free -= r->node.bytes;
    d->loading++;
    d->loaded_bytes += (double)r->bytes;
    r->state = WAITING;
    r->queued = d->turn++;
    r->node.ahead = r != d->demanded;
}

static double on_loader(struct device *d, double us)
{
    d->loader_free = fmax(d->loader_free, d->now) + us;
    return d->loader_free;
}

/* --- the order: learned, or known --- */

/* What comes after r (NULL: first) and has not come before it, or NULL. */
static struct range *coming(const struct device *d, const struct range *r)
{
    if (!d->again) {
        const struct cws_order_node *n = cws_order_coming(&d->order, r ? &r->node : NULL);
        return n ? range_of(n) : NULL;
    }
    for (size_t i = r ? r->next_use + 1 : d->place + 1; i < d->trace->use_count; i++)
        if (d->ranges[d->trace->uses[i]].next_use == i)
            return &d->ranges[d->trace->uses[i]];
    return NULL;
}

static uint64_t next_use(const struct device *d, const struct range *r)
{
    return d->again ? r->next_use : r->node.next_at;
}

/* Belady's rule: what is needed last. While the device still reads that, what is needed nearly as late. */
static struct range *needed_last(struct device *d, uint64_t until)
{
    struct range *last = NULL, *done = NULL;
    for (size_t i = 0; i < d->trace->item_count; i++) {
        struct range *r = &d->ranges[i];
        if (!may_go(d, &r->node) || (until && (r->next_use <= until || r->node.ahead)))
            continue;
        last = !last || r->next_use > last->next_use ? r : last;
        if (is_done(d, &r->node))
            done = !done || r->next_use > done->next_use ? r : done;
    }
    return done && (done->next_use - d->place) / 3 >= (last->next_use - d->place) / 4 ? done : NULL;
}

static struct range *victim(struct device *d, uint64_t until)
{
    if (d->again)
        return needed_last(d, until);
    struct cws_order_node *n = cws_order_victim(&d->order, until, may_go, is_done, d);
    return n ? range_of(n) : NULL;
}

static bool drop_one(struct device *d, uint64_t until)
{
    cws_order_walk(&d->order, d->room);
    struct range *r = victim(d, until);
    if (!r)
        return false;
    cws_order_set_in(&d->order, &r->node, false);
    r->state = LEAVING;
    r->at = on_loader(d, d->m->drop_us);
    d->leaving += r->node.bytes;
    return true;
}

static bool serve_demand(struct device *d)
{
    struct range *r = d->demanded;
    if (!r || r->state != ABSENT)
        return false;
    if (d->free >= r->node.bytes && d->loading < d->tuning->load_most) {
        start_load(d, r);
        return true;
    }
    return d->free + d->leaving < r->node.bytes && drop_one(d, 0);
}

static bool serve_ahead(struct device *d)
{
    const struct cws_tuning *t = d->tuning;
    uint64_t wanted = 0, seen = 0;
    if (d->demanded && d->demanded->state == ABSENT)
        return false;
    cws_order_walk(&d->order, d->room);
    struct range *r = NULL;
    for (uint64_t looked = 0;
         seen < t->load_ahead && looked < t->load_look_at && d->loading + t->load_spare < t->load_most; looked++) {
        r = coming(d, r);
        if (!r)
            break;
        if (r->state != ABSENT || !(d->again || cws_order_is_sure(&d->order, &r->node)))
            continue;
        seen++;
        wanted += r->node.bytes;
        if (d->free >= wanted) {
            start_load(d, r);
            return true;
        }
        if (d->free + d->leaving < wanted)
            return drop_one(d, next_use(d, r)); /* if there is none for this, then none for what is needed later */
    }
    return false;
}

static void start_copy(struct device *d)
{
    struct range *next = NULL;
    for (size_t i = 0; i < d->trace->item_count && !d->link_busy; i++) {
        struct range *r = &d->ranges[i];
        if (r->state == WAITING && (!next || r == d->demanded || (next != d->demanded && r->queued < next->queued)))
            next = r;
    }
    if (!next)
        return;
    d->link_busy = true;
    next->state = COPYING;
    next->at = d->now + microseconds((double)next->bytes / d->m->ratio, d->m->link_gbps);
}

/* --- time ------------------------------------------------------------------------------------------------- */

static void finish_step(struct device *d, struct range *r)
{
    if (r->state == COPYING) {
        d->link_busy = false;
        d->decoder_free = fmax(d->decoder_free, d->now) + microseconds((double)r->bytes, d->m->decode_gbps);
        r->state = ARRIVING;
        r->at = fmax(d->decoder_free, on_loader(d, d->m->map_us));
    } else if (r->state == ARRIVING) {
        d->loading--;
        r->state = RESIDENT;
        cws_order_set_in(&d->order, &r->node, true);
    } else {
        d->free += r->node.bytes;
        d->leaving -= r->node.bytes;
        r->state = ABSENT;
    }
}

/* The next moment at which something changes by itself, or INFINITY. */
static double next_event(const struct device *d, struct range **out)
{
    double best = INFINITY;
    *out = NULL;
    for (size_t i = 0; i < d->trace->item_count; i++) {
        struct range *r = &d->ranges[i];
        if ((r->state == COPYING || r->state == ARRIVING || r->state == LEAVING) && r->at < best) {
            best = r->at;
            *out = r;
        }
        if (r->state == RESIDENT && r->used_till > d->now && r->used_till < best) { /* may be dropped then */
            best = r->used_till;
            *out = NULL;
        }
    }
    return best;
}

/* Lets the loader work until `till`, or until the demanded range is there. False: it never will. */
static bool run(struct device *d, double till)
{
    for (;;) {
        struct range *r;
        while (serve_demand(d) || serve_ahead(d)) {
        }
        start_copy(d);
        if (d->demanded && d->demanded->state == RESIDENT)
            return true;
        double at = next_event(d, &r);
        if (at > till || at == INFINITY) {
            d->now = fmax(d->now, till == INFINITY ? d->now : till);
            return !d->demanded || at != INFINITY;
        }
        d->now = fmax(d->now, at);
        if (r)
            finish_step(d, r);
    }
}

/* --- the program ------------------------------------------------------------------------------------------- */

struct clocks {
    double host, device, busy;
};

static int use(struct device *d, struct range *r, struct clocks *c, struct replay_result *out, struct cws_error *err)
{
    c->host += d->m->launch_us;
    if (!run(d, c->host))
        return cws_fail(err, CWS_E_BUG, "the loader stands still");
    cws_order_use(&d->order, &r->node);
    if (d->again)
        r->next_use = d->again[d->place];
    out->uses++;
    out->uses_bytes += (double)r->bytes;
    out->hits += r->state == RESIDENT;
    if (r->state != RESIDENT) {
        d->demanded = r;
        if (!run(d, INFINITY))
            return cws_fail(err, CWS_E_BUDGET, "%s does not fit the room of %.0f MiB beside what is in use",
                            d->trace->items[r - d->ranges].name, (double)d->room / (1 << 20));
        d->demanded = NULL;
        r->node.ahead = false;
        c->host = fmax(c->host, d->now);
    }
    double work = d->m->use_us + microseconds((double)r->bytes, d->m->memory_gbps);
    c->device = fmax(c->device, c->host) + work;
    c->busy += work;
    r->used_till = c->device;
    return 0;
}

/* Of each place in the trace the next one with the same range, and the first one of each range. False: out of
 * memory. */
static bool know_all(struct device *d)
{
    d->again = malloc((d->trace->use_count + 1) * sizeof *d->again);
    if (!d->again)
        return false;
    for (size_t i = 0; i < d->trace->item_count; i++)
        d->ranges[i].next_use = SIZE_MAX;
    for (size_t i = d->trace->use_count; i-- > 0;) {
        struct range *r = &d->ranges[d->trace->uses[i]];
        d->again[i] = r->next_use;
        r->next_use = i;
    }
    return true;
}

static int replay(struct device *d, struct replay_window window, struct replay_result *out, struct cws_error *err)
{
    const struct replay_trace *t = d->trace;
    struct clocks c = {0}, begin = {0};
    int code = 0;
    for (size_t round = 0; round < window.to && !code; round++) {
        if (round == window.from) {
            begin = c;
            d->loaded_bytes = 0;
            *out = (struct replay_result){.rounds = window.to - window.from};
        }
        for (; d->place < t->rounds[round] && !code; d->place++)
            code = use(d, &d->ranges[t->uses[d->place]], &c, out, err);
        c.host = fmax(c.host, c.device); /* the program looks at what came out */
    }
    out->loaded_bytes = d->loaded_bytes;
    out->seconds = (c.device - begin.device) / 1e6;
    out->busy_seconds = (c.busy - begin.busy) / 1e6;
    return code;
}

int replay_device(const struct replay_trace *t, const struct replay_machine *m, const struct cws_tuning *tuning,
                  enum replay_rule rule, uint64_t room, struct replay_window window, struct replay_result *out,
                  struct cws_error *err)
{
    struct device d = {.trace = t, .m = m, .tuning = tuning, .room = room, .free = room};
    *out = (struct replay_result){0};
    d.ranges = calloc(t->item_count, sizeof *d.ranges);
    if (!d.ranges || (rule == REPLAY_BELADY && !know_all(&d))) {
        free(d.ranges);
        return cws_fail(err, -12, "out of memory");
    }
    cws_order_init(&d.order, rule == REPLAY_LRU ? CWS_POLICY_LRU : CWS_POLICY_NEXT, tuning);
    for (size_t i = 0; i < t->item_count; i++) {
        d.ranges[i].bytes = t->items[i].bytes;
        d.ranges[i].node.bytes = (t->items[i].bytes + GRANULE - 1) / GRANULE * GRANULE;
        cws_order_add(&d.order, &d.ranges[i].node);
    }
    int code = replay(&d, window, out, err);
    cws_order_deinit(&d.order);
    free(d.ranges);
    free(d.again);
    return code;
}
