/* replay_loader.c - the loader of a simulation: passes of the kinds of steps that uvm/cuda/loader.c, load.c and drop.c
 * make, in their order, each with the time that it takes. */
#include "replay_sim.h"
#include "uvm/policy/plan.h"

#include <math.h>

enum { PHASE_DROPS, PHASE_LOADS, PHASE_STEP, PHASE_ISSUE, PHASE_END };

static struct sim_weight *weight_of(const struct cws_order_node *n)
{
    return (struct sim_weight *)((const char *)n - offsetof(struct sim_weight, node));
}
static uint64_t span(const struct sim_weight *w) { return w->granules * SIM_GRANULE; }
static double microseconds(double bytes, double gbps) { return bytes / gbps / 1e3; }

static void spend(struct sim *s, double us) { s->loader.clock += us; }
static void call(struct sim *s, double us, unsigned calls) { spend(s, sim_call_of_loader(s, us, calls)); }

/* --- victims ------------------------------------------------------------------------------------------------ */

enum { SPARE = UINT32_MAX }; /* a size: any, of which more have memory than the plan wants */

struct choice {
    const struct sim *sim;
    uint32_t granules; /* 0: any size */
};

static bool may_go(void *arg, const struct cws_order_node *n)
{
    const struct choice *c = arg;
    const struct sim_weight *w = weight_of(n);
    if (w->state != SIM_RESIDENT || w == c->sim->program.weight)
        return false;
    return c->granules == SPARE ? cws_order_is_spare(&c->sim->order, n)
                                : !c->granules || (w->granules == c->granules && !n->keeper);
}

static bool is_done(void *arg, struct cws_order_node *n)
{
    return weight_of(n)->used_till <= ((const struct choice *)arg)->sim->gpu.done;
}

static bool may_go_now(void *arg, const struct cws_order_node *n)
{
    return may_go(arg, n) && weight_of(n)->used_till <= ((const struct choice *)arg)->sim->gpu.done;
}

static bool has_waited(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    l->victim_since = l->victim_since < 0 || l->victim_done != s->gpu.done ? l->clock : l->victim_since;
    l->victim_done = s->gpu.done;
    return l->clock - l->victim_since > (double)s->tuning->victim_wait_ns / 1e3;
}

static struct sim_weight *victim(struct sim *s, uint64_t until, uint32_t granules, bool must_be_done)
{
    struct choice c = {s, granules};
    cws_order_walk(&s->order, sim_beside_reserve(&s->memory));
    struct cws_order_node *n = cws_order_victim(&s->order, until, may_go, must_be_done ? is_done : NULL, &c);
    if (!n && must_be_done && until == 0 && has_waited(s))
        n = cws_order_victim(&s->order, until, may_go_now, NULL, &c);
    if (n && must_be_done)
        s->loader.victim_since = -1;
    return n ? weight_of(n) : NULL;
}

/* --- drops ---------------------------------------------------------------------------------------------------- */

/* Runs on the device beside the program's kernels, from `at`, `alone` us by itself. Returns its end. */
static double run_beside(struct sim *s, double at, double alone)
{
    const struct replay_costs *c = s->costs;
    double us = alone * (sim_gpu_is_busy(&s->gpu) ? c->crowded : 1);
    if (us > 0)
        sim_gpu_burden(&s->gpu, at, at + us, c->slow_decode * alone / us);
    return at + us;
}

static bool drop(struct sim *s, struct sim_weight *w, bool for_fresh)
{
    struct sim_loader *l = &s->loader;
    const struct replay_costs *c = s->costs;
    if (l->drop_count == SIM_DROPS)
        return false;
    cws_order_set_in(&s->order, &w->node, false);
    w->state = SIM_DROPPING;
    call(s, c->unmap_us, 1);
    spend(s, c->drop_us);
    l->hash_free = run_beside(s, fmax(l->hash_free, l->clock),
                              c->hash_us + microseconds((double)w->bytes, c->hash_gbps));
    l->drops[(l->drop_head + l->drop_count++) % SIM_DROPS] = (struct sim_drop){w, l->hash_free, for_fresh};
    l->drop_bytes += span(w);
    s->sum.fresh_evictions += for_fresh;
    return true;
}

static unsigned drops_of(const struct sim_loader *l, uint32_t granules)
{
    unsigned count = 0;
    for (unsigned i = 0; i < l->drop_count; i++)
        count += l->drops[(l->drop_head + i) % SIM_DROPS].weight->granules == granules;
    return count;
}

static void reap_drops(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    while (l->drop_count && l->drops[l->drop_head].done <= l->clock) {
        struct sim_weight *w = l->drops[l->drop_head].weight;
        l->drop_head = (l->drop_head + 1) % SIM_DROPS;
        l->drop_count--;
        l->drop_bytes -= span(w);
        w->state = SIM_ABSENT;
        cws_order_set_held(&s->order, &w->node, false);
        sim_frame_put(&s->memory, w->granules);
        spend(s, s->costs->reap_us);
        l->moved = true;
    }
}

/* --- loads ---------------------------------------------------------------------------------------------------- */

static void load(struct sim *s, struct sim_weight *w, bool for_launch)
{
    struct sim_loader *l = &s->loader;
    w->state = SIM_LOADING;
    cws_order_set_held(&s->order, &w->node, true);
    w->for_launch = for_launch;
    w->node.ahead = !for_launch;
    w->batches_sent = w->batches_done = 0;
    w->near_done = -1;
    l->loads[l->load_count++] = w;
    s->sum.loads++;
    s->sum.demanded += for_launch;
}

static unsigned loads_most(const struct sim *s)
{
    return s->tuning->load_most < SIM_LOADS ? (unsigned)s->tuning->load_most : SIM_LOADS;
}

/* Mapped, and the program may go on. */
static void land(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    struct sim_weight *w = l->mapping;
    l->mapping = NULL;
    w->state = SIM_RESIDENT;
    w->node.near |= w->in_tier; /* its stored bytes were in staging */
    cws_order_set_in(&s->order, &w->node, true);
    if (s->program.state == SIM_WAITS_WEIGHT && s->program.weight == w)
        sim_program_wake(s, l->clock);
}

/* Batches that are done; then the first load that is, to be mapped. False: none is. */
static bool reap_loads(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    while (l->slot_busy && l->slots[l->slot_oldest].done <= l->clock) {
        l->slots[l->slot_oldest].weight->batches_done++;
        l->slot_oldest = (l->slot_oldest + 1) % l->slot_count;
        l->slot_busy--;
        spend(s, s->costs->reap_us);
        l->moved = true;
    }
    for (unsigned i = 0; i < l->load_count; i++) {
        const struct sim_weight *w = l->loads[i];
        if (w->near_done >= 0 ? w->near_done > l->clock : w->batches_done < w->batches)
            continue;
        l->mapping = l->loads[i];
        l->loads[i] = l->loads[--l->load_count];
        call(s, s->costs->map_us + s->costs->access_us, 2);
        l->moved = true;
        return true;
    }
    return false;
}

static void send(struct sim *s, struct sim_weight *w)
{
    struct sim_loader *l = &s->loader;
    const struct replay_costs *c = s->costs;
    uint64_t begin = w->batches_sent++ * l->slot_bytes, end = begin + l->slot_bytes;
    double bytes = (double)((end < w->stored ? end : w->stored) - begin);
    spend(s, c->send_us);
    double from = fmax(l->clock, l->copy_free + c->copy_gap_us);
    s->sum.link_gaps += from > l->copy_free + c->copy_gap_us;
    l->copy_free = from + c->copy_us + microseconds(bytes, c->link_gbps * c->link_share);
    sim_gpu_burden(&s->gpu, from, l->copy_free, c->slow_copy);
    l->decode_free = run_beside(s, fmax(l->copy_free, l->decode_free),
                                c->decode_us + microseconds(bytes / c->stored_share, c->decode_gbps));
    l->slots[l->slot_next] = (struct sim_slot){w, l->decode_free};
    l->slot_next = (l->slot_next + 1) % l->slot_count;
    l->slot_busy++;
    s->sum.link_bytes += bytes;
    s->sum.link_busy_ms += (l->copy_free - from) / 1e3;
}

/* From the device's own memory: a job for all of it, on a stream of its own. */
static void send_near(struct sim *s, struct sim_weight *w)
{
    struct sim_loader *l = &s->loader;
    const struct replay_costs *c = s->costs;
    w->batches_sent = w->batches;
    spend(s, c->send_us);
    w->near_done = l->near_free = run_beside(s, fmax(l->clock, l->near_free),
                                             c->decode_us + microseconds((double)w->bytes, c->decode_gbps));
    s->sum.near++;
    l->moved = true;
}

static void issue(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    for (unsigned pass = 0; pass < 2; pass++) { /* what a launch waits for goes first */
        for (unsigned i = 0; i < l->load_count; i++) {
            struct sim_weight *w = l->loads[i];
            if ((w->for_launch || w->demanded) != (pass == 0))
                continue;
            if (w->node.near && w->batches_sent == 0)
                send_near(s, w);
            while (w->batches_sent < w->batches && l->slot_busy < l->slot_count) {
                send(s, w);
                l->moved = true;
            }
        }
    }
}

/* --- memory for weights --------------------------------------------------------------------------------------- */

struct wants { /* weights that want memory, in the order in which they get it */
    unsigned count;
    uint32_t granules[16];
    uint64_t bytes;
};

static void add_want(struct wants *w, const struct sim_weight *x)
{
    if (w->count < 16)
        w->granules[w->count] = x->granules;
    w->count++;
    w->bytes += span(x);
}

static void remove_want(struct wants *w, const struct sim_weight *x)
{
    w->count--;
    w->bytes -= span(x);
}

static bool is_coming(const struct sim *s, const struct wants *w, const struct sim_weight *x)
{
    unsigned wanted = 0;
    for (unsigned i = 0; i < w->count && i < 16; i++)
        wanted += w->granules[i] == x->granules;
    return drops_of(&s->loader, x->granules) >= wanted;
}

/* Gives idle memory back until there are so many bytes. */
static bool release_idle(struct sim *s, uint64_t bytes)
{
    bool any = false;
    while (sim_left(&s->memory) < bytes) {
        double us = sim_frame_release(s);
        if (us == 0)
            break;
        call(s, us, 0);
        any = true;
    }
    return any;
}

static bool find_frame(struct sim *s, uint32_t granules)
{
    uint64_t bytes = granules * SIM_GRANULE;
    if (sim_attainable(&s->memory) < bytes)
        return false;
    release_idle(s, bytes);
    if (sim_left(&s->memory) < bytes)
        return false;
    call(s, sim_frame_create(s, granules), 0);
    sim_frame_put(&s->memory, granules);
    return true;
}

enum supply { SUPPLY_MOVED, SUPPLY_COMES, SUPPLY_FULL, SUPPLY_NONE };

static enum supply dropped(struct sim *s, struct sim_weight *w)
{
    return drop(s, w, false) ? SUPPLY_MOVED : SUPPLY_COMES;
}

static enum supply supply(struct sim *s, struct sim_weight *x, uint64_t until, const struct wants *w)
{
    struct sim_memory *m = &s->memory;
    struct sim_weight *v;
    if (sim_left(m) >= span(x))
        return find_frame(s, x->granules) ? SUPPLY_MOVED : SUPPLY_NONE;
    if (is_coming(s, w, x))
        return SUPPLY_COMES;
    if ((v = victim(s, until, x->granules, true)))
        return dropped(s, v);
    if ((until || !has_waited(s)) && victim(s, until, x->granules, false))
        return SUPPLY_COMES; /* once its uses are done */
    if (until && !cws_order_may_grow(&s->order, &x->node))
        return SUPPLY_FULL;
    if (sim_attainable(m) >= w->bytes)
        return find_frame(s, x->granules) ? SUPPLY_MOVED : SUPPLY_NONE;
    if (sim_attainable(m) + s->loader.drop_bytes >= w->bytes)
        return SUPPLY_COMES;
    v = victim(s, until, SPARE, true);
    if (!v && (until == 0 || x->node.keeper))
        v = victim(s, until, 0, true);
    return v ? dropped(s, v) : SUPPLY_NONE;
}

/* Evicts something if `have`, the bytes that come anyhow, is less than `need`; takes from the reserve at last. */
static bool drop_for(struct sim *s, uint64_t have, uint64_t need, bool for_fresh)
{
    if (have >= need)
        return false;
    struct sim_weight *v = victim(s, 0, 0, true);
    if (v)
        return drop(s, v, for_fresh);
    if (s->loader.drop_count || s->loader.load_count || victim(s, 0, 0, false))
        return false;
    return sim_steal(s, need - have);
}

/* --- steps ------------------------------------------------------------------------------------------------------ */

/* Memory that the program waits for. */
static bool serve_room(struct sim *s)
{
    struct sim_program *p = &s->program;
    struct sim_memory *m = &s->memory;
    if (p->state != SIM_WAITS_MEMORY || p->granted)
        return false;
    bool moved = release_idle(s, p->memory);
    if (sim_left(m) < p->memory)
        moved |= drop_for(s, sim_left(m) + s->loader.drop_bytes, p->memory, true);
    if (sim_left(m) < p->memory)
        return moved;
    m->granted += p->memory;
    p->granted = true;
    sim_program_wake(s, s->loader.clock);
    return true;
}

/* A weight that a launch waits for. */
static bool serve_demand(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    struct sim_weight *x = s->program.state == SIM_WAITS_WEIGHT ? s->program.weight : NULL;
    struct wants wants = {0};
    if (!x || x->state != SIM_ABSENT) {
        l->victim_since = x ? l->victim_since : -1;
        return false;
    }
    l->unmet = true;
    if (l->load_count == loads_most(s))
        return false;
    if (sim_frame_take(&s->memory, x->granules)) {
        load(s, x, true);
        return true;
    }
    add_want(&wants, x);
    enum supply way = supply(s, x, 0, &wants);
    if (way != SUPPLY_NONE)
        return way == SUPPLY_MOVED;
    return drop_for(s, sim_attainable(&s->memory) + l->drop_bytes, wants.bytes, false);
}

static bool serve_ahead(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    const struct cws_tuning *t = s->tuning;
    struct wants wants = {0};
    bool full = false;
    cws_order_walk(&s->order, sim_beside_reserve(&s->memory));
    const struct cws_order_node *n = NULL;
    for (uint64_t looked = 0;
         wants.count < t->load_ahead && looked < t->load_look_at && l->load_count + t->load_spare < loads_most(s);
         looked++) {
        n = cws_order_coming(&s->order, n);
        if (!n)
            break;
        struct sim_weight *x = weight_of(n);
        if (x->state != SIM_ABSENT || !cws_order_is_sure(&s->order, n))
            continue;
        if (n->near && n->next_at > s->order.at + t->tier_ahead_uses) /* soon enough later, and the link has work */
            continue;
        if (sim_frame_take(&s->memory, x->granules)) {
            load(s, x, false);
            return true;
        }
        add_want(&wants, x);
        enum supply way = supply(s, x, n->next_at, &wants);
        if (way == SUPPLY_MOVED)
            return true;
        if (way == SUPPLY_NONE)
            break;                /* and none for what is needed later */
        if (way == SUPPLY_FULL) { /* what comes later may be of another size */
            remove_want(&wants, x);
            full = true;
        }
    }
    l->pending = wants.count > 0 || full;
    return false;
}

/* The tier has grown into what frames had: memory is given back until all fits again. */
static bool shrink(struct sim *s)
{
    const struct sim_memory *m = &s->memory;
    if (m->frames + m->granted + m->ring + m->other <= m->budget)
        return false;
    double us = sim_frame_release(s);
    if (us > 0) {
        call(s, us, 0);
        return true;
    }
    struct sim_weight *v = s->loader.drop_count ? NULL : victim(s, 0, 0, true);
    return v && drop(s, v, false);
}

static bool step(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    if (shrink(s))
        return true;
    sim_age(s);
    l->pending = l->unmet = false;
    bool moved = serve_room(s);
    moved |= serve_demand(s);
    if ((s->program.state != SIM_WAITS_MEMORY || s->program.granted) && !l->unmet)
        moved |= serve_ahead(s);
    return moved;
}

static bool near_runs(const struct sim_loader *l)
{
    for (unsigned i = 0; i < l->load_count; i++)
        if (l->loads[i]->near_done >= 0)
            return true;
    return false;
}

/* --- waiting ------------------------------------------------------------------------------------------------------ */

/* Asks for what runs on the device at growing intervals, until one of ours is done. */
static void wait_for_device(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    const struct cws_tuning *t = s->tuning;
    double ready = INFINITY, begin = l->clock;
    if (l->slot_busy)
        ready = l->slots[l->slot_oldest].done;
    for (unsigned i = 0; i < l->load_count; i++)
        if (l->loads[i]->near_done >= 0)
            ready = fmin(ready, l->loads[i]->near_done);
    if (l->drop_count)
        ready = fmin(ready, l->drops[l->drop_head].done);
    for (double us = (double)t->wait_first_ns / 1e3;
         l->clock < ready && l->clock - begin < (double)t->wait_together_ns / 1e3;
         us = us < (double)t->wait_most_ns / 1e3 ? us * 1.5 : us)
        l->clock += us;
}

static void be_patient(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    const struct cws_tuning *t = s->tuning;
    bool waited_for = s->program.state == SIM_WAITS_MEMORY || s->program.state == SIM_WAITS_WEIGHT;
    l->interruptible = true;
    if (l->slot_busy || l->drop_count || near_runs(l)) {
        wait_for_device(s);
        return;
    }
    l->patience_waits = s->order.at == l->patience_at ? l->patience_waits + 1 : 0;
    l->patience_at = s->order.at;
    if (waited_for || (l->pending && l->patience_waits < t->patience_waits)) {
        double first = (double)t->patience_first_ns / 1e3, most = (double)t->patience_most_ns / 1e3;
        l->patience_us = l->patience_us == 0 ? first : fmin(most, l->patience_us * 1.5);
        l->clock += l->patience_us;
        return;
    }
    l->asleep = true;
    l->wake_at = s->order.at + (l->pending ? 1 : t->wake_uses);
    l->patience_waits = 0;
}

void sim_loader_wake(struct sim *s, double at)
{
    struct sim_loader *l = &s->loader;
    at += s->costs->wake_us;
    if (l->asleep)
        l->clock = fmax(l->clock, at);
    else if (l->interruptible)
        l->clock = fmin(l->clock, at);
    l->asleep = l->interruptible = false;
    l->wake_at = UINT64_MAX;
}

void sim_loader_step(struct sim *s)
{
    struct sim_loader *l = &s->loader;
    l->interruptible = false;
    if (l->mapping)
        land(s);
    switch (l->phase) {
    case PHASE_DROPS:
        l->moved = false;
        reap_drops(s);
        l->phase++;
        break;
    case PHASE_LOADS:
        if (!reap_loads(s))
            l->phase++;
        break;
    case PHASE_STEP:
        spend(s, s->costs->step_us);
        l->moved |= step(s);
        l->phase++;
        break;
    case PHASE_ISSUE:
        issue(s);
        l->phase++;
        break;
    default:
        l->phase = PHASE_DROPS;
        if (l->moved)
            l->patience_us = 0;
        else
            be_patient(s);
    }
}
