/* Description: the policies that page, replayed on scans with the sizes of real models: the default is near the optimum
 * on a cyclic scan, LRU has no hit there, nothing beats the bound, nor Belady's rule in the same machine the default;
 * routed experts are not guessed; a recorded trace is read back, whole or cut short. Tuned numbers have an effect, may
 * be all that they are said to be, and are read from the command line, or refused with one line. */
#include "tests/support/sample_model.h"
#include "store/base/trace.h"
#include "tools/bench/replay.h"
#include "replay_tool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GRANULE ((uint64_t)2 << 20)
#define GIB ((uint64_t)1 << 30)
static const struct replay_machine machine = {.link_gbps = 55.5,
                                              .decode_gbps = 1200,
                                              .memory_gbps = 3500,
                                              .use_us = 75,
                                              .launch_us = 5,
                                              .map_us = 35,
                                              .drop_us = 45,
                                              .ratio = 1.5,
                                              .host_gbps = 2};

static struct replay_trace scan(const struct replay_shape *shape, unsigned rounds)
{
    struct replay_trace t = {0};
    uint64_t seed = 7;
    unsigned char chosen[128] = {0};
    size_t first = replay_add_model(&t, shape, "");
    for (unsigned i = 0; i < rounds; i++) {
        replay_add_pass(&t, shape, first, &seed, chosen);
        replay_end_round(&t);
    }
    return t;
}

static double hits(const struct replay_result *r) { return 1 - r->loaded_bytes / r->uses_bytes; }

static struct replay_result device(const struct replay_trace *t, enum replay_rule rule, uint64_t room)
{
    struct replay_result r;
    struct cws_error err = {0};
    if (replay_device(t, &machine, &cws_tuning_default, rule, room,
                      (struct replay_window){t->round_count / 2, t->round_count - 1}, &r, &err))
        fail_msg("%s", err.message);
    return r;
}

static void shapes_have_the_sizes_of_the_models(void **state)
{
    (void)state;
    static const struct {
        const struct replay_shape *shape;
        size_t ranges;
        uint64_t bytes;
    } rows[] = {{&replay_tinyllama, 156, 2199912448},
                {&replay_llama8b, 226, 16059990016},
                {&replay_mixtral, 2 + 32 * (4 + 24), 93402955776}};
    for (unsigned i = 0; i < 3; i++) {
        struct replay_trace t = scan(rows[i].shape, 1);
        uint64_t bytes = 0;
        for (size_t k = 0; k < t.item_count; k++)
            bytes += t.items[k].bytes;
        assert_int_equal(t.item_count, rows[i].ranges);
        assert_int_equal(bytes, rows[i].bytes);
        replay_free(&t);
    }
}

static void the_default_is_near_the_optimum_on_a_cyclic_scan(void **state)
{
    (void)state;
    static const struct {
        const struct replay_shape *shape;
        double gib, points;
    } rows[] = {{&replay_tinyllama, 1.64, 0.055}, {&replay_tinyllama, 1.04, 0.065}, {&replay_tinyllama, 0.54, 0.065},
                {&replay_llama8b, 12, 0.025},     {&replay_llama8b, 8, 0.025},      {&replay_llama8b, 4, 0.032},
                {&replay_llama8b, 3, 0.025}};
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct replay_trace t = scan(rows[i].shape, 16);
        const struct replay_window window = {t.round_count / 2, t.round_count - 1};
        uint64_t room = (uint64_t)(rows[i].gib * (double)GIB) / GRANULE * GRANULE;
        struct replay_result bound, belady, next = device(&t, REPLAY_NEXT, room), lru = device(&t, REPLAY_LRU, room);
        replay_bound(&t, &machine, room, GRANULE, window, &bound);
        replay_belady(&t, &machine, room, GRANULE, window, &belady);
        assert_true(hits(&bound) >= hits(&belady) && hits(&belady) <= 1);
        if (hits(&next) < hits(&belady) - rows[i].points || hits(&next) > hits(&bound))
            fail_msg("%s, %.2f GiB: next %.3f, belady %.3f, bound %.3f", rows[i].shape->name, rows[i].gib, hits(&next),
                     hits(&belady), hits(&bound));
        /* Belady's rule in the same machine */
        struct replay_result timed = device(&t, REPLAY_BELADY, room);
        assert_true(hits(&timed) <= hits(&bound) && hits(&timed) > hits(&lru));
        if (hits(&next) < hits(&timed) - 0.02 || next.seconds > timed.seconds * 1.02)
            fail_msg("%s, %.2f GiB: next %.3f in %.4f s, belady in the same machine %.3f in %.4f s",
                     rows[i].shape->name, rows[i].gib, hits(&next), next.seconds, hits(&timed), timed.seconds);
        assert_true(hits(&lru) < 0.01);
        assert_true(next.seconds >= bound.seconds * 0.999 && next.seconds < bound.seconds * 1.13);
        assert_true(lru.seconds > 1.2 * next.seconds);
        replay_free(&t);
    }
}

/* Four tokens of a small model, one of a large one, again and again. */
static struct replay_trace draft_and_target(unsigned rounds)
{
    struct replay_trace t = {0};
    uint64_t seed = 7;
    unsigned char chosen[128] = {0};
    size_t draft = replay_add_model(&t, &replay_tinyllama, "draft."),
           target = replay_add_model(&t, &replay_llama8b, "");
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned i = 0; i < 4; i++)
            replay_add_pass(&t, &replay_tinyllama, draft, &seed, chosen);
        replay_add_pass(&t, &replay_llama8b, target, &seed, chosen);
        replay_end_round(&t);
    }
    return t;
}

/* What the small one uses stays, and what comes after its fourth token is known. */
static void a_draft_model_stays_beside_its_target(void **state)
{
    (void)state;
    enum { ROUNDS = 12 };
    static const uint64_t gib[] = {8, 6, 4};
    struct replay_trace t = draft_and_target(ROUNDS);
    for (unsigned i = 0; i < 3; i++) {
        struct replay_result belady, next = device(&t, REPLAY_NEXT, gib[i] * GIB),
                                     lru = device(&t, REPLAY_LRU, gib[i] * GIB);
        replay_belady(&t, &machine, gib[i] * GIB, GRANULE, (struct replay_window){ROUNDS / 2, ROUNDS - 1}, &belady);
        if (hits(&next) < hits(&belady) - 0.02)
            fail_msg("%d GiB: next %.3f, belady %.3f", (int)gib[i], hits(&next), hits(&belady));
        assert_true(lru.seconds > next.seconds);
    }
    replay_free(&t);
}

/* One model, then another one: what stayed of the first gives way, though it comes to an eighth of all and more. */
static void a_model_that_is_not_used_any_more_gives_way(void **state)
{
    (void)state;
    enum { ROUNDS = 24 };
    struct replay_trace t = {0};
    uint64_t seed = 7;
    unsigned char chosen[128] = {0};
    size_t large = replay_add_model(&t, &replay_llama8b, "large."), small = replay_add_model(&t, &replay_tinyllama, "");
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (round < ROUNDS / 3)
            replay_add_pass(&t, &replay_llama8b, large, &seed, chosen);
        else
            replay_add_pass(&t, &replay_tinyllama, small, &seed, chosen);
        replay_end_round(&t);
    }
    for (unsigned i = 0; i < 2; i++) {
        uint64_t room = i ? 3 * GIB / 2 : 3 * GIB;
        struct replay_result belady, next = device(&t, REPLAY_NEXT, room);
        replay_belady(&t, &machine, room, GRANULE, (struct replay_window){ROUNDS / 2, ROUNDS - 1}, &belady);
        if (hits(&next) < hits(&belady) - 0.05)
            fail_msg("%.1f GiB: next %.3f, belady %.3f", (double)room / GIB, hits(&next), hits(&belady));
    }
    replay_free(&t);
}

static void all_that_fits_stays(void **state)
{
    (void)state;
    struct replay_trace t = scan(&replay_tinyllama, 12);
    for (unsigned id = 0; id < 2; id++) {
        struct replay_result r = device(&t, id ? REPLAY_LRU : REPLAY_NEXT, 3 * GIB);
        assert_true(r.loaded_bytes == 0);
        assert_int_equal(r.hits, r.uses);
        assert_true(r.seconds < r.busy_seconds * 1.01);
    }
    replay_free(&t);
}

static void what_cannot_fit_is_an_error(void **state)
{
    (void)state;
    struct replay_trace t = scan(&replay_llama8b, 4);
    struct replay_result r;
    struct cws_error err = {0};
    assert_int_equal(
        replay_device(&t, &machine, &cws_tuning_default, REPLAY_NEXT, GIB / 2, (struct replay_window){2, 3}, &r, &err),
        CWS_E_BUDGET);
    assert_non_null(strstr(err.message, "embed"));
    replay_free(&t);
}

static void routed_experts_are_not_guessed(void **state)
{
    (void)state;
    struct replay_trace t = scan(&replay_mixtral, 60);
    struct replay_result r = device(&t, REPLAY_NEXT, 24 * GIB), bound;
    replay_bound(&t, &machine, 24 * GIB, GRANULE, (struct replay_window){30, 59}, &bound);
    struct replay_result known = device(&t, REPLAY_BELADY, 24 * GIB);
    /* what routing would be worth if it were known */
    assert_true(hits(&known) > hits(&r) + 0.1 && hits(&known) <= hits(&bound));
    assert_true(hits(&r) > 0.3);
    assert_true(hits(&r) < hits(&bound));
    replay_free(&t);
}

static void the_host_pager_keeps_a_part_of_a_scan(void **state)
{
    (void)state;
    struct replay_trace t = scan(&replay_tinyllama, 12);
    struct replay_result next, lru;
    struct cws_error err;
    const struct replay_window window = {6, 11};
    assert_int_equal(replay_host(&t, &machine, &cws_tuning_default, CWS_POLICY_NEXT, GIB, 1 << 20, window, &next, &err),
                     0);
    assert_int_equal(replay_host(&t, &machine, &cws_tuning_default, CWS_POLICY_LRU, GIB, 1 << 20, window, &lru, &err),
                     0);
    assert_true(hits(&next) > 0.46 && hits(&next) < 0.5);
    assert_true(hits(&lru) < 0.001);
    replay_free(&t);
}

static void say(const char *line) { fail_msg("%s", line); }

static void a_recorded_trace_is_read_back(void **state)
{
    (void)state;
    const char *path = sample_path("use.json");
    struct cws_error err;
    struct replay_trace t = {0};
    assert_int_equal(cws_trace_start(path, say, &err), 0);
    for (unsigned round = 0; round < 5; round++) {
        for (unsigned i = 0; i < 10; i++) {
            char name[16];
            snprintf(name, sizeof name, "w\"%u", i);
            CWS_TRACE_MARK(.kind = CWS_TRACE_USE, .tensor = name, .bytes = 1000 + i, .index = i);
        }
        CWS_TRACE_MARK(.kind = CWS_TRACE_CYCLE, .index = round);
    }
    cws_trace_stop();
    assert_int_equal(replay_load(&t, path, &err), 0);
    assert_int_equal(t.use_count, 50);
    assert_int_equal(t.round_count, 5);
    assert_int_equal(t.item_count, 10);
    assert_string_equal(t.items[3].name, "w\"3");
    assert_int_equal(t.items[3].bytes, 1003);
    for (size_t i = 0; i < 50; i++)
        assert_int_equal(t.uses[i], i % 10);
    replay_free(&t);
    struct bytes text = sample_load(path); /* as after kill -9, and worse */
    for (size_t cut = text.size - 3; cut > text.size - 40; cut--) {
        sample_save(path, text.data, cut);
        assert_int_equal(replay_load(&t, path, &err), 0);
        assert_int_equal(t.use_count, 50);
        replay_free(&t);
    }
    free(text.data);
    sample_save(path, "[\n{}\n]\n", 7);
    assert_int_equal(replay_load(&t, path, &err), CWS_E_INPUT);
    sample_save(path, "nonsense", 8);
    assert_int_equal(replay_load(&t, path, &err), CWS_E_INPUT);
    replay_free(&t);
}

/* --- tuned numbers --- */

static struct replay_result with(const struct replay_trace *t, const char *setting, uint64_t room, bool host)
{
    struct cws_tuning tuning = cws_tuning_default;
    struct replay_result r;
    struct cws_error err = {0};
    const struct replay_window window = {t->round_count / 2, t->round_count - 1};
    if (setting && replay_set(&tuning, setting, &err))
        fail_msg("%s", err.message);
    if (host ? replay_host(t, &machine, &tuning, CWS_POLICY_NEXT, room, 1 << 20, window, &r, &err)
             : replay_device(t, &machine, &tuning, REPLAY_NEXT, room, window, &r, &err))
        fail_msg("%s", err.message);
    return r;
}

static void a_number_has_an_effect(void **state)
{
    (void)state;
    struct replay_trace t = scan(&replay_tinyllama, 16);
    struct replay_result usual = with(&t, NULL, GIB, false), r = with(&t, "order_in_flight_bytes=32M", GIB, false);
    assert_true(r.loaded_bytes == usual.loaded_bytes && r.seconds == usual.seconds); /* the default */
    r = with(&t, "order_in_flight_bytes=256M", GIB, false);
    assert_true(hits(&r) < hits(&usual) - 0.05);
    r = with(&t, "load_ahead=0", GIB, false);
    assert_true(r.seconds > 1.2 * usual.seconds);
    r = with(&t, "load_most=1", GIB, false); /* none for what no launch waits for */
    assert_true(r.seconds > 1.2 * usual.seconds);
    usual = with(&t, NULL, GIB, true);
    r = with(&t, "views_window_most=512", GIB, true);
    assert_true(hits(&r) < hits(&usual) - 0.1);
    replay_free(&t);
    t = draft_and_target(8);
    usual = with(&t, NULL, 6 * GIB, false);
    r = with(&t, "order_quota_uses=64", 6 * GIB, false);
    assert_true(hits(&r) < hits(&usual) - 0.05);
    r = with(&t, "history_uses_max=64", 6 * GIB, false); /* nothing is ever a repetition */
    assert_true(hits(&r) < hits(&usual));
    replay_free(&t);
}

/* No number, at either end of what it may be, breaks anything; something may not fit any more. */
static void numbers_may_be_all_that_they_are_said_to_be(void **state)
{
    (void)state;
    struct replay_trace traces[2] = {scan(&replay_tinyllama, 8), scan(&replay_mixtral, 4)};
    static const uint64_t rooms[2] = {GIB, 24 * GIB};
    struct cws_tuning_row row;
    struct cws_error err = {0};
    for (size_t i = 0; cws_tuning_row(i, &row); i++) {
        for (unsigned k = 0; k < 4 && replay_has(&row); k++) {
            const struct replay_trace *t = &traces[k / 2];
            const struct replay_window window = {t->round_count / 2, t->round_count - 1};
            struct cws_tuning tuning = cws_tuning_default;
            struct replay_result r;
            assert_true(cws_tuning_set(&tuning, row.name, k % 2 ? row.most : row.least));
            int code = replay_is_of_views(&row)
                           ? replay_host(t, &machine, &tuning, CWS_POLICY_NEXT, rooms[k / 2], 1 << 20, window, &r, &err)
                           : replay_device(t, &machine, &tuning, REPLAY_NEXT, rooms[k / 2], window, &r, &err);
            if (code && code != CWS_E_BUDGET)
                fail_msg("%s, %s: %s", row.name, k % 2 ? "most" : "least", err.message);
        }
    }
    replay_free(&traces[0]);
    replay_free(&traces[1]);
}

static const char *const bad_settings[] = {
    "",
    "order_tries",
    "=4",
    "no_such_number=4",
    "order_trie=4",
    "order_tries_and_a_name_that_is_longer_than_any_of_them_could_ever_come_to_be=4",
    "order_tries=",
    "order_tries=-1",
    "order_tries=1.5",
    "order_tries=4K",
    "order_tries=four",
    "order_tries=1025",
    "order_tries=99999999999999999999999",
    "order_in_flight_bytes=1T",
    "order_in_flight_bytes=32X",
    "history_sure=0",
    "wait_first_ns=20000", /* the manager's: nothing here reads it */
};
static const char *const bad_sweeps[] = {
    "order_tries=4",
    "order_tries=1,2,",
    "order_tries=1,,2",
    "order_tries=1,1025",
    "order_tries=0:8",
    "order_tries=0:8:",
    "order_tries=0:8:1",
    "order_tries=0:8:65",
    "order_tries=8:0:3",
    "order_tries=0:8:3:1",
    "order_tries=0:1025:3",
    "order_tries=:8:3",
    "order_tries=1,2:8:3",
    "no_such_number=1,2",
    ("order_tries=0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,"
     "0,"
     "1,2,3,4,5,6,7,8,9,0,1,2,3,4"),
};

static void numbers_are_read_or_refused(void **state)
{
    (void)state;
    struct cws_tuning tuning = cws_tuning_default;
    struct replay_sweep s;
    struct cws_error err;
    assert_int_equal(replay_set(&tuning, "order_in_flight_bytes=8M", &err), 0);
    assert_int_equal(tuning.order_in_flight_bytes, 8 << 20);
    assert_int_equal(replay_set(&tuning, "order_in_flight_bytes=0", &err), 0);
    assert_int_equal(tuning.order_in_flight_bytes, 0);
    tuning = cws_tuning_default;
    for (size_t i = 0; i < sizeof bad_settings / sizeof *bad_settings; i++) {
        err = (struct cws_error){0};
        if (replay_set(&tuning, bad_settings[i], &err) != CWS_E_USAGE || !err.message[0])
            fail_msg("%s: taken", bad_settings[i]);
        assert_memory_equal(&tuning, &cws_tuning_default, sizeof tuning);
    }
    assert_int_equal(replay_sweep_of(&s, "order_in_flight_bytes=16M:64M:4", &err), 0);
    assert_int_equal(s.count, 4);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(s.values[i], (i + 1) * (16 << 20));
    assert_string_equal(replay_value(&s.row, s.values[1]).text, "32M");
    assert_int_equal(replay_sweep_of(&s, "order_tries=9,0,4", &err), 0);
    assert_int_equal(s.count, 3);
    assert_true(s.values[0] == 9 && s.values[1] == 0 && s.values[2] == 4);
    assert_int_equal(replay_sweep_of(&s, "order_tries=0:2:64", &err), 0); /* each value once */
    assert_int_equal(s.count, 3);
    for (size_t i = 0; i < sizeof bad_sweeps / sizeof *bad_sweeps; i++) {
        err = (struct cws_error){0};
        if (replay_sweep_of(&s, bad_sweeps[i], &err) != CWS_E_USAGE || !err.message[0] || s.count)
            fail_msg("%s: taken", bad_sweeps[i]);
    }
}

static unsigned lines_with(const char *text, const char *what)
{
    unsigned n = 0;
    for (const char *end; *text; text = end + (*end == '\n')) {
        end = text + strcspn(text, "\n");
        const char *at = strstr(text, what);
        n += at && at < end;
    }
    return n;
}

static void the_tool_takes_numbers(void **state)
{
    (void)state;
    static char plain[1 << 15], text[1 << 15], arguments[512];
    static const char run[] = "--rounds 8 --budget 600M tinyllama";
    struct cws_tuning_row row;
    assert_int_equal(tool(run, plain, sizeof plain), 0);
    snprintf(arguments, sizeof arguments, "--set order_tries=4 --set load_ahead=6 %s", run);
    assert_int_equal(tool(arguments, text, sizeof text), 0);
    assert_string_equal(text, plain);
    snprintf(arguments, sizeof arguments, "--set order_in_flight_bytes=0 %s", run);
    assert_int_equal(tool(arguments, text, sizeof text), 0);
    assert_string_not_equal(text, plain);
    snprintf(arguments, sizeof arguments, "--sweep order_in_flight_bytes=16M:48M:3 %s", run);
    assert_int_equal(tool(arguments, text, sizeof text), 0);
    assert_int_equal(lines_with(text, "tinyllama"), 3);
    assert_int_equal(lines_with(text, "default"), 1);
    snprintf(arguments, sizeof arguments, "--sweep views_rotate=8,64 %s", run);
    assert_int_equal(tool(arguments, text, sizeof text), 0);
    assert_int_equal(lines_with(text, "tinyllama"), 2);
    assert_int_equal(tool("--tuning", text, sizeof text), 0);
    for (size_t i = 0; cws_tuning_row(i, &row); i++)
        assert_non_null(strstr(text, row.name));
    for (unsigned sweep = 0; sweep < 2; sweep++) {
        size_t count = sweep ? sizeof bad_sweeps / sizeof *bad_sweeps : sizeof bad_settings / sizeof *bad_settings;
        for (size_t i = 0; i < count; i++) {
            const char *bad = sweep ? bad_sweeps[i] : bad_settings[i];
            snprintf(arguments, sizeof arguments, "%s '%s' %s", sweep ? "--sweep" : "--set", bad, run);
            if (tool(arguments, text, sizeof text) != 2 || lines_with(text, "") != 1 ||
                lines_with(text, "codecllm: ") != 1)
                fail_msg("%s: %s", arguments, text);
        }
    }
    assert_int_equal(tool("--sweep order_tries=1,2 --sweep load_ahead=1,2", text, sizeof text), 2);
    assert_int_equal(lines_with(text, ""), 1);
    assert_int_equal(tool("--set", text, sizeof text), 2);
    assert_int_equal(lines_with(text, ""), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_have_the_sizes_of_the_models),
        cmocka_unit_test(the_default_is_near_the_optimum_on_a_cyclic_scan),
        cmocka_unit_test(a_draft_model_stays_beside_its_target),
        cmocka_unit_test(a_model_that_is_not_used_any_more_gives_way),
        cmocka_unit_test(all_that_fits_stays),
        cmocka_unit_test(what_cannot_fit_is_an_error),
        cmocka_unit_test(routed_experts_are_not_guessed),
        cmocka_unit_test(the_host_pager_keeps_a_part_of_a_scan),
        cmocka_unit_test(a_recorded_trace_is_read_back),
        cmocka_unit_test(a_number_has_an_effect),
        cmocka_unit_test(numbers_may_be_all_that_they_are_said_to_be),
        cmocka_unit_test(numbers_are_read_or_refused),
        cmocka_unit_test(the_tool_takes_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
