/* replay_run.c - a simulation of a paged program: its launching thread, and whose turn it is. */
#include "replay_sim.h"

#include <math.h>
#include <stdlib.h>

#define ENDLESS 1e7 /* us without a step of the program: it waits for what cannot come */

double sim_call_of_loader(struct sim *s, double us, unsigned calls)
{
    s->sum.calls += calls;
    if (s->program.state == SIM_RUNS)
        s->program.clock += us * s->costs->lock_share;
    return us;
}

/* --- the program's thread ------------------------------------------------------------------------------------ */

static void wait_for(struct sim *s, enum sim_thread what)
{
    s->program.state = what;
    s->program.since = s->program.clock;
    if (what != SIM_WAITS_DEVICE)
        sim_loader_wake(s, s->program.clock);
}

void sim_program_wake(struct sim *s, double at)
{
    struct sim_program *p = &s->program;
    double waited = fmax(0, at + s->costs->wake_us - p->since) / 1e3;
    bool weight = p->state == SIM_WAITS_WEIGHT;
    *(weight ? &s->sum.weight_wait_ms : &s->sum.fresh_wait_ms) += waited;
    p->clock = fmax(p->clock, at + s->costs->wake_us);
    s->waited_us += weight ? waited * 1e3 : 0;
    s->stalled_us += weight && !sim_gpu_is_busy(&s->gpu) ? waited * 1e3 : 0;
    p->state = SIM_RUNS;
}

static double device_us(const struct sim *s, const struct replay_op *op)
{
    const struct replay_costs *c = s->costs;
    return fmax(c->kernel_us, fmax(op->flops / c->flops / 1e6, (double)op->bytes / c->memory_gbps / 1e3));
}

static double host_us(const struct sim *s, const struct replay_op *op)
{
    if (op->kind != REPLAY_LAUNCH)
        return s->costs->alloc_us;
    return s->costs->launch_us + (op->weight == REPLAY_NONE ? 0 : s->costs->use_us);
}

/* Its weight is named, and the workspace of products, which is small and stays. False: the weight has to be waited
 * for. */
static bool use_weight(struct sim *s, uint32_t index)
{
    struct sim_program *p = &s->program;
    uint32_t workspace = s->what->program->workspace;
    struct sim_weight *w = &s->weights[index];
    if (!p->begun) {
        p->begun = true;
        p->weight = w;
        cws_order_tell(&s->order, (uint64_t)(p->clock * 1e3), (uint64_t)(s->waited_us * 1e3),
                       (uint64_t)(s->stalled_us * 1e3));
        if (workspace != REPLAY_NONE)
            cws_order_use(&s->order, &s->weights[workspace].node);
        cws_order_use(&s->order, &w->node);
        if (s->order.at >= s->loader.wake_at)
            sim_loader_wake(s, p->clock);
    }
    w->demanded = w->state != SIM_RESIDENT;
    if (w->demanded)
        wait_for(s, SIM_WAITS_WEIGHT);
    w->node.ahead &= w->demanded;
    return !w->demanded;
}

/* Memory for what a launch writes first. False: it has to be waited for. */
static bool make_block(struct sim *s, uint32_t block)
{
    struct sim_program *p = &s->program;
    struct sim_memory *m = &s->memory;
    const struct replay_costs *c = s->costs;
    uint32_t granules = m->blocks[block].granules;
    double begin = p->clock;
    if (!p->granted && sim_frame_take(m, granules)) {
        p->clock += c->map_us + c->access_us;
    } else {
        p->memory = granules * SIM_GRANULE;
        if (!p->granted && sim_left(m) < p->memory) {
            wait_for(s, SIM_WAITS_MEMORY);
            return false;
        }
        m->granted -= p->granted ? p->memory : 0;
        p->granted = false;
        p->clock += sim_frame_create(s, granules) + c->map_us + c->access_us;
    }
    s->sum.calls += 2;
    s->sum.fresh_wait_ms += (p->clock - begin) / 1e3;
    sim_block_mapped(m, block);
    return true;
}

static void launch(struct sim *s, const struct replay_op *op)
{
    struct sim_program *p = &s->program;
    if (s->gpu.queued - s->gpu.done >= (uint64_t)s->costs->queue_launches) {
        p->kernels = s->gpu.queued - (uint64_t)s->costs->queue_launches + 1;
        wait_for(s, SIM_WAITS_DEVICE);
        return;
    }
    if (op->weight != REPLAY_NONE && !use_weight(s, op->weight))
        return;
    if (op->block != REPLAY_NONE && !s->memory.blocks[op->block].mapped && !make_block(s, op->block))
        return;
    sim_gpu_queue(&s->gpu, p->clock, device_us(s, op) * p->device_scale);
    if (op->weight != REPLAY_NONE)
        s->weights[op->weight].used_till = s->gpu.queued;
    p->clock += host_us(s, op) * p->host_scale;
    p->weight = NULL;
    p->begun = false;
    p->op++;
}

static void begin_counting(struct sim *s)
{
    s->sum = (struct replay_paged){.kernels_ms = -s->gpu.busy / 1e3, .ms = -s->program.clock / 1e3};
}

/* The round's kernels are done, and the program has seen it. */
static void end_round(struct sim *s)
{
    struct sim_program *p = &s->program;
    p->op = 0;
    if (++p->round == s->what->rounds / 2)
        begin_counting(s);
    if (s->what->tier)
        sim_tier_round(s);
    sim_loader_wake(s, p->clock);
}

static void program_step(struct sim *s)
{
    struct sim_program *p = &s->program;
    const struct replay_program *program = s->what->program;
    if (p->state == SIM_WAITS_DEVICE) { /* and its clock says when that ended */
        p->state = SIM_RUNS;
        if (p->op == program->op_count)
            end_round(s);
        return;
    }
    if (p->op == program->op_count) {
        p->kernels = s->gpu.queued;
        wait_for(s, SIM_WAITS_DEVICE);
        return;
    }
    const struct replay_op *op = &program->ops[p->op];
    if (op->kind == REPLAY_LAUNCH) {
        launch(s, op);
        return;
    }
    if (op->kind == REPLAY_ALLOC)
        sim_alloc(&s->memory, op->block, op->bytes);
    else
        sim_free(&s->memory, op->block, s->order.at);
    s->sum.reserve_bytes = fmax(s->sum.reserve_bytes, (double)(s->memory.fixed + s->memory.kept));
    p->clock += host_us(s, op) * p->host_scale;
    p->op++;
}

/* --- whose turn it is ---------------------------------------------------------------------------------------- */

/* When the program's thread goes on; INFINITY: the loader has to do something first. */
static double program_at(const struct sim *s)
{
    const struct sim_program *p = &s->program;
    if (p->state == SIM_RUNS)
        return p->clock;
    if (p->state == SIM_WAITS_DEVICE)
        return fmax(p->clock, sim_gpu_when(&s->gpu, p->kernels) + s->costs->sync_us);
    return INFINITY;
}

static int run(struct sim *s, struct cws_error *err)
{
    struct sim_program *p = &s->program;
    double progress = 0;
    while (p->round < s->what->rounds) {
        double at = program_at(s);
        bool loader = !s->loader.asleep && s->loader.clock < at;
        if (!loader && at == INFINITY)
            return cws_fail(err, CWS_E_BUG, "the loader sleeps while the program waits");
        sim_gpu_advance(&s->gpu, loader ? s->loader.clock : at);
        if (!loader) {
            p->clock = progress = at;
            program_step(s);
        } else if (s->loader.clock > progress + ENDLESS) {
            return cws_fail(err, CWS_E_BUDGET, "%s does not fit %.0f MiB", s->what->program->name,
                            (double)s->what->budget / (1 << 20));
        } else {
            sim_loader_step(s);
        }
    }
    return 0;
}

/* --- all ------------------------------------------------------------------------------------------------------ */

static void set_up_staging(struct sim *s)
{
    enum { SLOTS_LEAST = 4 };
    const uint64_t slot_most = (uint64_t)16 << 20, ring_most = (uint64_t)64 << 20, slot_least = (uint64_t)1 << 20;
    struct sim_loader *l = &s->loader;
    uint64_t part = s->what->budget / s->tuning->staging_share, ring = part < ring_most ? part : ring_most,
             slots = ring / slot_most;
    l->slot_count = slots < SLOTS_LEAST ? SLOTS_LEAST : slots < SIM_SLOTS ? (unsigned)slots : SIM_SLOTS;
    uint64_t slot = ring / l->slot_count;
    l->slot_bytes = slot > slot_most ? slot_most : slot < slot_least ? slot_least : slot;
    s->memory.ring = (l->slot_count * l->slot_bytes + SIM_GRANULE - 1) / SIM_GRANULE * SIM_GRANULE;
    l->victim_since = -1;
    l->wake_at = UINT64_MAX;
}

static void set_up_weights(struct sim *s)
{
    const struct replay_trace *t = &s->what->program->weights;
    s->weight_count = (uint32_t)t->item_count;
    for (uint32_t i = 0; i < s->weight_count; i++) {
        struct sim_weight *w = &s->weights[i];
        w->bytes = t->items[i].bytes;
        w->stored = (uint64_t)((double)w->bytes * s->costs->stored_share);
        w->granules = sim_granules(w->bytes);
        w->batches = (uint32_t)((w->stored + s->loader.slot_bytes - 1) / s->loader.slot_bytes);
        w->node.bytes = w->granules * SIM_GRANULE;
        cws_order_add(&s->order, &w->node);
    }
}

static double scale_of(double wanted_ms, double own_ms, double us)
{
    double ms = wanted_ms > 0 ? wanted_ms : own_ms;
    return ms > 0 && us > 0 ? ms * 1e3 / us : 1;
}

/* What a round takes with everything resident is known; its parts are scaled to that. Returns its time. */
static double scale(struct sim *s)
{
    const struct replay_program *p = s->what->program;
    double host = 0, device = 0;
    for (size_t i = 0; i < p->op_count; i++) {
        host += host_us(s, &p->ops[i]);
        device += p->ops[i].kind == REPLAY_LAUNCH ? device_us(s, &p->ops[i]) : 0;
    }
    s->program.host_scale = scale_of(s->what->host_ms, p->host_ms, host);
    s->program.device_scale = scale_of(s->what->kernels_ms, p->kernels_ms, device);
    s->own_host_us = host * s->program.host_scale;
    s->own_device_us = device * s->program.device_scale;
    return fmax(s->own_host_us, s->own_device_us) / 1e3;
}

static bool set_up(struct sim *s)
{
    const struct replay_program *p = s->what->program;
    s->memory.room = p->block_count + (uint32_t)(s->what->budget / SIM_GRANULE) + 1;
    s->weights = calloc(p->weights.item_count + 1, sizeof *s->weights);
    s->memory.blocks = calloc(p->block_count + 1, sizeof *s->memory.blocks);
    s->memory.freed = calloc(s->memory.room, sizeof *s->memory.freed);
    s->memory.idle_frames = calloc(s->memory.room, sizeof *s->memory.idle_frames);
    if (!s->weights || !s->memory.blocks || !s->memory.freed || !s->memory.idle_frames)
        return false;
    s->memory.budget = s->what->budget;
    s->memory.other = s->what->other;
    set_up_staging(s);
    set_up_weights(s);
    return true;
}

static void tell(const struct sim *s, double plain_ms, struct replay_paged *out)
{
    double rounds = s->what->rounds - s->what->rounds / 2;
    *out = s->sum;
    out->ms += s->program.clock / 1e3;
    out->kernels_ms += s->gpu.busy / 1e3;
    double *const each[] = {&out->ms,           &out->loads,     &out->demanded,       &out->link_bytes,
                            &out->link_busy_ms, &out->link_gaps, &out->weight_wait_ms, &out->fresh_wait_ms,
                            &out->frames_made,  &out->calls,     &out->steals,         &out->fresh_evictions,
                            &out->kernels_ms,   &out->near};
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        *each[i] /= rounds;
    out->plain_ms = plain_ms;
    out->tier_bytes = (double)s->tier_bytes;
}

int replay_page(const struct replay_paging *what, struct replay_paged *out, struct cws_error *err)
{
    struct sim *s = calloc(1, sizeof *s);
    int code = s ? 0 : cws_fail(err, -12, "out of memory");
    *out = (struct replay_paged){0};
    if (s) {
        s->what = what;
        s->costs = what->costs;
        s->tuning = what->tuning;
        cws_order_init(&s->order, CWS_POLICY_NEXT, what->tuning);
        code = set_up(s) ? 0 : cws_fail(err, -12, "out of memory");
        if (!code) {
            double plain_ms = scale(s);
            code = run(s, err);
            tell(s, plain_ms, out);
        }
        cws_order_deinit(&s->order);
        free(s->weights);
        free(s->memory.blocks);
        free(s->memory.freed);
        free(s->memory.idle_frames);
        free(s);
    }
    return code;
}
