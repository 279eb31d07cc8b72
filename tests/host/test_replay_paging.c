/* Description: the simulation of a paged program (tools/bench/replay_paging.h): measured times of steps and tokens come
 * out, a steady round loads what does not fit and evicts nothing for activations, more budget and a faster link never
 * cost much, nothing depends on chance; its device, its memory and its costs, each alone; replay_policy prints it. */
#include "tools/bench/replay_sim.h"
#include "replay_tool.h"
#include "tests/support/sanitized.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define OTHER (80 * MIB)
enum { ROUNDS = 32 }; /* of which half counts: what stays is decided before */

struct replayed {
    const char *program;
    double kernels_ms, host_ms; /* 0: its own */
    uint64_t budget;
};

static double weight_bytes(const struct replay_program *p)
{
    double bytes = 0;
    for (size_t i = 0; i < p->weights.item_count; i++)
        bytes += (double)p->weights.items[i].bytes;
    return bytes;
}

static struct replay_paged page_with(const struct replayed *what, const struct replay_costs *costs,
                                     const struct cws_tuning *tuning, bool tier)
{
    struct replay_program program;
    struct replay_paged r;
    struct cws_error err = {0};
    assert_true(replay_program_make(&program, what->program));
    const struct replay_paging p = {.program = &program,
                                    .costs = costs,
                                    .tuning = tuning,
                                    .budget = what->budget,
                                    .other = OTHER,
                                    .kernels_ms = what->kernels_ms,
                                    .host_ms = what->host_ms,
                                    .rounds = ROUNDS,
                                    .tier = tier};
    if (replay_page(&p, &r, &err))
        fail_msg("%s", err.message);
    replay_program_free(&program);
    return r;
}

static struct replay_paged page_tuned(const struct replayed *what, const struct replay_costs *costs,
                                      const struct cws_tuning *tuning)
{
    return page_with(what, costs, tuning, false);
}

static struct replay_paged page(const struct replayed *what, const struct replay_costs *costs)
{
    return page_tuned(what, costs, &cws_tuning_default);
}

/* --- the whole --- */

static void programs_have_the_sizes_of_the_models(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double bytes;
    } rows[] = {{"tinyllama", 2.2e9}, {"8b", 16.06e9}, {"flux", 23.7e9}, {"prefill", 16.06e9}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct replay_program p;
        assert_true(replay_program_make(&p, rows[i].name));
        assert_string_equal(replay_programs[i], rows[i].name);
        assert_true(fabs(weight_bytes(&p) / rows[i].bytes - 1) < 0.001);
        bool *live = calloc(p.block_count + 1, sizeof *live);
        assert_non_null(live);
        for (size_t k = 0; k < p.op_count; k++) { /* what is allocated is used and freed, in one round */
            const struct replay_op *op = &p.ops[k];
            assert_true(op->block == REPLAY_NONE || op->block < p.block_count);
            assert_true(op->weight == REPLAY_NONE || op->weight < p.weights.item_count);
            if (op->block != REPLAY_NONE)
                assert_int_equal(live[op->block], op->kind != REPLAY_ALLOC);
            if (op->kind != REPLAY_LAUNCH)
                live[op->block] = op->kind == REPLAY_ALLOC;
        }
        for (uint32_t k = 0; k < p.block_count; k++)
            assert_false(live[k]);
        free(live);
        replay_program_free(&p);
    }
    assert_null(replay_programs[sizeof rows / sizeof *rows]);
    struct replay_program none;
    assert_false(replay_program_make(&none, "none"));
}

/* docs/benchmarks/2026-11-27.md; NVIDIA H200. */
static void measured_times_come_out(void **state)
{
    (void)state;
    static const struct {
        struct replayed what;
        double ms, link_gb; /* 0: not measured */
    } rows[] = {
        {{"flux", 173, 0, 12 * GIB}, 223, 0},
        {{"flux", 173, 0, 8 * GIB}, 253, 0},
        {{"flux", 173, 0, 6 * GIB}, 277, 0},
        {{"flux", 168, 0, 6 * GIB}, 271.2, 0},
        {{"flux", 168, 0, 4 * GIB}, 312.2, 0},
        {{"flux", 184, 0, 5 * GIB}, 298.8, 0},
        {{"flux", 184, 0, 3 * GIB}, 328.3, 0},
        {{"flux", 173, 202, 12 * GIB}, 259.1, 8.30}, /* the launching thread of that day was slow */
        {{"flux", 173, 202, 8 * GIB}, 266.3, 11.30},
        {{"flux", 173, 202, 6 * GIB}, 284.1, 12.75},
        {{"tinyllama", 0, 24, 1700 * MIB}, 24 * 1.06, 0},
        {{"tinyllama", 0, 24, 1100 * MIB}, 24 * 1.18, 0},
        {{"tinyllama", 0, 24, 600 * MIB}, 24 * 1.31, 0},
    };
    for (size_t i = SANITIZED; i < sizeof rows / sizeof *rows; i += 1 + 4 * SANITIZED) {
        struct replay_paged r = page(&rows[i].what, &replay_costs_default);
        if (fabs(r.ms / rows[i].ms - 1) > 0.15)
            fail_msg("%s, %.0f MiB: %.1f ms, measured %.1f", rows[i].what.program,
                     (double)rows[i].what.budget / (double)MIB, r.ms, rows[i].ms);
        if (rows[i].link_gb > 0 && fabs(r.link_bytes / 1e9 / rows[i].link_gb - 1) > 0.05)
            fail_msg("%s, %.0f MiB: %.2f GB over the link, measured %.2f", rows[i].what.program,
                     (double)rows[i].what.budget / (double)MIB, r.link_bytes / 1e9, rows[i].link_gb);
    }
}

static void what_fits_takes_as_long_as_without(void **state)
{
    (void)state;
    for (const char *const *name = replay_programs; *name; name++) {
        struct replay_paged r = page(&(struct replayed){*name, 0, 0, 32 * GIB}, &replay_costs_default);
        assert_true(r.loads == 0 && r.link_bytes == 0 && r.calls == 0);
        assert_true(r.ms > 0.99 * r.plain_ms && r.ms < 1.02 * r.plain_ms);
    }
}

/* A steady round loads what does not fit beside activations, not much more, and takes no weight's memory for them. */
static void a_steady_round_loads_what_does_not_fit(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double gib[4], most;
    } rows[] = {{"flux", {12, 8, 6, 4}, 1.1}, {"prefill", {12, 8, 6}, 1.2}, {"8b", {8, 4, 3}, 1.1}};
    struct replay_program p;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_true(replay_program_make(&p, rows[i].name));
        for (size_t k = SANITIZED; k < 4 && rows[i].gib[k] > 0; k += 1 + 2 * SANITIZED) {
            uint64_t budget = (uint64_t)(rows[i].gib[k] * (double)GIB);
            struct replay_paged r = page(&(struct replayed){rows[i].name, 0, 0, budget}, &replay_costs_default);
            double room = (double)budget - (double)(OTHER + 64 * MIB) - r.reserve_bytes,
                   least = (weight_bytes(&p) - room) * replay_costs_default.stored_share;
            if (r.link_bytes < least || r.link_bytes > rows[i].most * least)
                fail_msg("%s, %.0f GiB: %.2f GB over the link, %.2f do not fit", rows[i].name, rows[i].gib[k],
                         r.link_bytes / 1e9, least / 1e9);
            assert_true(r.fresh_evictions == 0 && r.steals == 0 && r.fresh_wait_ms == 0);
            assert_true(r.frames_made == 0); /* each size has its quota */
            assert_true(r.link_busy_ms <= r.ms && r.ms >= r.plain_ms);
        }
        replay_program_free(&p);
    }
}

static void more_of_anything_never_costs_much(void **state)
{
    (void)state;
    for (const char *const *name = replay_programs; *name; name++) {
        bool small = strcmp(*name, "tinyllama") == 0;
        double before = INFINITY;
        for (uint64_t gib = 6; gib <= (SANITIZED ? 8 : 14); gib += 2) {
            uint64_t budget = small ? gib * GIB / 8 : gib * GIB;
            struct replay_paged r = page(&(struct replayed){*name, 0, 0, budget}, &replay_costs_default);
            struct replay_costs fast = replay_costs_default;
            fast.link_gbps *= 2;
            struct replay_paged faster = page(&(struct replayed){*name, 0, 0, budget}, &fast);
            if (r.ms > 1.03 * before || faster.ms > 1.01 * r.ms)
                fail_msg("%s, %d: %.1f ms, with less %.1f, with twice the link %.1f", *name, (int)gib, r.ms, before,
                         faster.ms);
            before = r.ms;
        }
    }
}

/* Plans by time (uvm/policy/pace.h) cost nothing where they gain nothing, and gain where the link rests in a part of a
 * step and is behind in another. */
static void plans_by_time_gain(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t mib;
        double most; /* of the time with plans by uses alone */
    } rows[] = {{"flux", 13312, 0.97}, {"flux", 12288, 0.95},    {"flux", 11264, 1.01},  {"flux", 10240, 0.95},
                {"flux", 9216, 0.95},  {"flux", 8192, 1.03},     {"flux", 6144, 1.01},   {"8b", 8192, 1.01},
                {"8b", 3072, 1.01},    {"tinyllama", 600, 1.01}, {"prefill", 8192, 1.01}};
    struct cws_tuning by_uses = cws_tuning_default;
    by_uses.order_pace_tries = 0;
    for (size_t i = SANITIZED; i < sizeof rows / sizeof *rows; i += 1 + 4 * SANITIZED) {
        const struct replayed what = {rows[i].name, 0, 0, rows[i].mib * MIB};
        double ms = page(&what, &replay_costs_default).ms,
               before = page_tuned(&what, &replay_costs_default, &by_uses).ms;
        if (ms > rows[i].most * before)
            fail_msg("%s, %d MiB: %.1f ms, by uses %.1f", rows[i].name, (int)rows[i].mib, ms, before);
    }
}

/* Weights that stay compressed on the device: never a loss beyond chance, and a gain where the link is what a round
 * waits for. The bounds are a little below what the model gives. */
static void compressed_on_the_device_gains(void **state)
{
    (void)state;
    static const struct {
        struct replayed what;
        double link_gbps, gain;
    } rows[] = {
        {{"8b", 0, 31, 12 * GIB}, 54, 1.4},           {{"8b", 0, 31, 9 * GIB}, 54, 1.5},
        {{"8b", 0, 31, 6 * GIB}, 54, 1.15},           {{"8b", 0, 31, 4 * GIB}, 54, 0.99},
        {{"8b", 0, 31, 12 * GIB}, 25, 2.8},           {{"flux", 171, 145, 8 * GIB}, 54, 0.99},
        {{"tinyllama", 0, 24, 1100 * MIB}, 54, 0.99},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i += 1 + 3 * SANITIZED) {
        struct replay_costs costs = replay_costs_default;
        costs.link_gbps = rows[i].link_gbps;
        struct replay_paged off = page(&rows[i].what, &costs),
                            on = page_with(&rows[i].what, &costs, &cws_tuning_default, true);
        if (off.ms / on.ms < rows[i].gain)
            fail_msg("%s, %.0f MiB: %.1f ms, %.1f with it", rows[i].what.program,
                     (double)rows[i].what.budget / (double)MIB, off.ms, on.ms);
        assert_true((rows[i].gain > 1) == (on.tier_bytes > 0));
        assert_true(on.tier_bytes <= (double)rows[i].what.budget && (on.tier_bytes > 0) == (on.near > 0));
    }
}

/* What may stay decoded whatever is planned is all of the model, or nothing of it; or no round is known yet. */
static void the_bounds_of_what_is_compressed_may_be_extreme(void **state)
{
    (void)state;
    const struct replayed what = {"8b", 0, 31, 9 * GIB};
    static const uint64_t shares[] = {1, 65536};
    for (size_t i = 0; i < 2; i++) {
        struct cws_tuning tuning = cws_tuning_default;
        tuning.tier_small_share = shares[i];
        struct replay_paged r = page_with(&what, &replay_costs_default, &tuning, true);
        assert_true((i == 0) == (r.tier_bytes == 0));
    }
    char text[4096];
    assert_int_equal(tool("--device --tier --program 8b --budget 9G --rounds 8", text, sizeof text), 0);
}

static void nothing_depends_on_chance(void **state)
{
    (void)state;
    const struct replayed what = {"flux", 0, 0, 8 * GIB};
    struct replay_paged a = page(&what, &replay_costs_default), b = page(&what, &replay_costs_default);
    assert_memory_equal(&a, &b, sizeof a);
}

static void what_cannot_fit_is_an_error(void **state)
{
    (void)state;
    struct replay_program program;
    struct replay_paged r;
    struct cws_error err = {0};
    assert_true(replay_program_make(&program, "8b"));
    const struct replay_paging p = {
        .program = &program, .costs = &replay_costs_default, .tuning = &cws_tuning_default, .budget = GIB, .rounds = 4};
    assert_int_equal(replay_page(&p, &r, &err), CWS_E_BUDGET);
    assert_non_null(strstr(err.message, "8b does not fit 1024 MiB"));
    replay_program_free(&program);
}

/* --- the device --- */

static void kernels_wait_and_are_slowed(void **state)
{
    (void)state;
    struct sim_gpu *g = calloc(1, sizeof *g);
    assert_non_null(g);
    sim_gpu_queue(g, 10, 100); /* from 10 to 110 */
    sim_gpu_queue(g, 20, 50);  /* to 160 */
    assert_true(sim_gpu_when(g, 1) == 110 && sim_gpu_when(g, 2) == 160);
    sim_gpu_advance(g, 60);
    assert_int_equal(g->done, 0);
    sim_gpu_burden(g, 80, 100, 0.5); /* takes 10 from it */
    assert_true(fabs(sim_gpu_when(g, 1) - 120) < 1e-6 && fabs(sim_gpu_when(g, 2) - 170) < 1e-6);
    sim_gpu_burden(g, 130, 140, 1); /* never all of it */
    assert_true(sim_gpu_when(g, 2) > 179 && sim_gpu_when(g, 2) < 180);
    sim_gpu_advance(g, 121);
    assert_int_equal(g->done, 1);
    assert_true(sim_gpu_is_busy(g));
    sim_gpu_advance(g, 500);
    assert_int_equal(g->done, 2);
    assert_false(sim_gpu_is_busy(g));
    assert_true(g->busy > 169 && g->busy < 170);
    sim_gpu_queue(g, 600, 5); /* it was idle */
    assert_true(sim_gpu_when(g, 3) == 605);
    free(g);
}

/* --- memory --- */

static void memory_of_activations_is_kept_for_two_rounds(void **state)
{
    (void)state;
    struct sim *s = calloc(1, sizeof *s);
    struct sim_block blocks[4] = {{0}};
    struct sim_freed freed[8];
    uint32_t idle[8];
    assert_non_null(s);
    struct sim_memory *m = &s->memory;
    s->costs = &replay_costs_default;
    s->tuning = &cws_tuning_default;
    cws_order_init(&s->order, CWS_POLICY_NEXT, s->tuning);
    *m = (struct sim_memory){.budget = 100 * MIB, .blocks = blocks, .freed = freed, .idle_frames = idle};
    sim_alloc(m, 0, 9 * MIB);
    assert_false(blocks[0].mapped);
    assert_int_equal(blocks[0].granules, 5);
    sim_frame_create(s, 5);
    sim_block_mapped(m, 0);
    assert_int_equal(sim_left(m), 90 * MIB);
    sim_free(m, 0, 0);
    assert_int_equal(m->kept, 10 * MIB);
    assert_int_equal(sim_attainable(m), 90 * MIB); /* what is kept is not idle */
    assert_int_equal(sim_beside_reserve(m), 90 * MIB);
    sim_alloc(m, 1, 12 * MIB);
    assert_false(blocks[1].mapped); /* another size */
    sim_alloc(m, 2, 10 * MIB);
    assert_true(blocks[2].mapped && m->kept == 0 && m->fixed == 10 * MIB);
    sim_free(m, 2, 0);
    s->order.at = cws_tuning_default.reserve_uses;
    sim_age(s);
    assert_int_equal(m->cold, 0);
    s->order.at++;
    sim_age(s);
    assert_true(m->cold == 10 * MIB && m->kept == 0 && sim_attainable(m) == 100 * MIB);
    assert_true(sim_frame_release(s) > 0);
    assert_true(m->frames == 0 && m->cold == 0 && sim_frame_release(s) == 0);
    sim_frame_create(s, 5); /* one more, which is stolen */
    sim_block_mapped(m, 0);
    sim_free(m, 0, s->order.at);
    assert_true(sim_steal(s, MIB) && m->cold == 10 * MIB && !sim_steal(s, MIB));
    cws_order_deinit(&s->order);
    free(s);
}

static void an_idle_frame_is_for_its_size(void **state)
{
    (void)state;
    uint32_t idle[4];
    struct sim_memory m = {.budget = 100 * MIB, .frames = 30 * MIB, .idle_frames = idle};
    sim_frame_put(&m, 5);
    sim_frame_put(&m, 10);
    assert_false(sim_frame_take(&m, 7));
    assert_true(sim_frame_take(&m, 5) && !sim_frame_take(&m, 5));
    assert_int_equal(m.idle, 20 * MIB);
    assert_int_equal(sim_attainable(&m), 90 * MIB);
}

/* --- costs, and the tool --- */

static void costs_are_read_or_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "link_gbps",
                                      "=1",
                                      "no_such=1",
                                      "link_gbp=1",
                                      "link_gbps=",
                                      "link_gbps=fast",
                                      "link_gbps=-1",
                                      "link_gbps=nan",
                                      "link_gbps=1e9",
                                      "link_gbps=5G"};
    struct replay_costs c = replay_costs_default;
    struct replay_cost_row row;
    struct cws_error err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (replay_cost_set(&c, bad[i], &err) != CWS_E_USAGE)
            fail_msg("%s: taken", bad[i]);
        assert_memory_equal(&c, &replay_costs_default, sizeof c);
    }
    for (size_t i = 0; replay_cost_row(i, &row); i++) {
        char text[64];
        assert_true(replay_cost_get(&c, &row) == row.fallback);
        snprintf(text, sizeof text, "%s=2.5", row.name);
        assert_int_equal(replay_cost_set(&c, text, &err), 0);
        assert_true(replay_cost_get(&c, &row) == 2.5);
    }
}

static unsigned lines_with(const char *text, const char *what)
{
    unsigned n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what))
        n += at == text || at[-1] == '\n';
    return n;
}

static void the_tool_prints_rounds(void **state)
{
    (void)state;
    static char text[1 << 14], other[1 << 14];
    assert_int_equal(tool("--device --program flux --budget 8G,6G --budget 12G", text, sizeof text), 0);
    assert_int_equal(lines_with(text, "flux "), 3);
    assert_int_equal(tool("--device --program flux --budget 8G,6G,12G --plain-ms 173 --link 54", other, sizeof other),
                     0);
    assert_string_equal(text, other); /* the defaults */
    assert_int_equal(tool("--device --program flux --budget 8G,6G,12G --cost link_gbps=27", other, sizeof other), 0);
    assert_string_not_equal(text, other);
    assert_int_equal(tool("--device", text, sizeof text), 0);
    for (const char *const *name = replay_programs; *name; name++)
        assert_true(lines_with(text, *name) >= 2);
    assert_int_equal(
        tool("--device --program tinyllama --budget 600M --sweep order_in_flight_bytes=16M,32M", text, sizeof text), 0);
    assert_int_equal(lines_with(text, "tinyllama "), 2);
    assert_int_equal(tool("--costs", text, sizeof text), 0);
    assert_int_equal(lines_with(text, "lock_share "), 1);
    assert_int_equal(tool("--device --program 8b --budget 9G --plain-ms 31 --tier", text, sizeof text), 0);
    assert_non_null(strstr(text, "tier MB"));
    const char *row = strstr(text, "\n8b");
    assert_non_null(row);
    assert_non_null(strstr(row + 1, "\n8b")); /* with it and without */
    assert_int_equal(tool("--device --program nothing", text, sizeof text), 2);
    assert_int_equal(tool("--device --cost nothing=1", text, sizeof text), 2);
    assert_int_equal(lines_with(text, "codecllm: --cost "), 1);
    assert_int_equal(tool("--device --budget 8G,x", text, sizeof text), 2);
    assert_int_equal(tool("--device --program 8b --budget 1G", text, sizeof text), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(programs_have_the_sizes_of_the_models),
        cmocka_unit_test(measured_times_come_out),
        cmocka_unit_test(what_fits_takes_as_long_as_without),
        cmocka_unit_test(a_steady_round_loads_what_does_not_fit),
        cmocka_unit_test(more_of_anything_never_costs_much),
        cmocka_unit_test(plans_by_time_gain),
        cmocka_unit_test(compressed_on_the_device_gains),
        cmocka_unit_test(the_bounds_of_what_is_compressed_may_be_extreme),
        cmocka_unit_test(nothing_depends_on_chance),
        cmocka_unit_test(what_cannot_fit_is_an_error),
        cmocka_unit_test(kernels_wait_and_are_slowed),
        cmocka_unit_test(memory_of_activations_is_kept_for_two_rounds),
        cmocka_unit_test(an_idle_frame_is_for_its_size),
        cmocka_unit_test(costs_are_read_or_refused),
        cmocka_unit_test(the_tool_prints_rounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
