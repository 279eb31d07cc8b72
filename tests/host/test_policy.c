/* Description: on a cyclic scan that does not fit, `next` keeps nearly all that can be kept and spreads it evenly, lru
 * keeps nothing; both stay right on any other pattern. */
#include "uvm/policy/policy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N_MAX = 4000 };
static struct cws_policy policy;
static struct cws_policy_node nodes[N_MAX];
static unsigned resident;

static void begin(enum cws_policy_id id, unsigned blocks, unsigned room)
{
    memset(nodes, 0, sizeof nodes);
    cws_policy_init(&policy, id, room, 1, &cws_tuning_default);
    policy.total_bytes = blocks;
    for (unsigned i = 0; i < blocks; i++)
        nodes[i].bytes = 1;
    resident = 0;
}

/* One touch, as the pager would do it: true if it was a hit. */
static bool touch(unsigned i)
{
    if (nodes[i].place != CWS_PLACE_OUT)
        return true; /* invisible: no call */
    while (resident + 1 > policy.budget_bytes) {
        struct cws_policy_node *victim = policy.ops->pick_victim(&policy, false);
        assert_non_null(victim);
        cws_policy_remove(&policy, victim);
        victim->keeper = false;
        resident--;
    }
    resident++;
    policy.ops->on_fill(&policy, &nodes[i], false);
    return false;
}

static double cyclic_hit_rate(enum cws_policy_id id, unsigned blocks, unsigned room, unsigned passes)
{
    unsigned hits = 0;
    begin(id, blocks, room);
    for (unsigned pass = 0; pass < passes; pass++)
        for (unsigned i = 0; i < blocks; i++)
            hits += touch(i) && pass >= passes / 2;
    assert_true(cws_policy_check(&policy));
    assert_true(resident <= room);
    return (double)hits / ((double)blocks * (passes - passes / 2));
}

static void a_cyclic_scan_hits_what_is_kept(void **state)
{
    (void)state;
    static const struct {
        unsigned blocks, room;
    } cases[] = {{80, 40}, {80, 20}, {80, 60}, {80, 72}, {1000, 500}, {4000, 128}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned n = cases[i].blocks, k = cases[i].room;
        double lru = cyclic_hit_rate(CWS_POLICY_LRU, n, k, 200);
        double next = cyclic_hit_rate(CWS_POLICY_NEXT, n, k, 200);
        double bound = (double)(k - policy.window_bytes) / n;
        printf("# N=%u k=%u window=%u: next %.4f, (k - window)/N %.4f, best possible %.4f, lru %.4f\n", n, k,
               (unsigned)policy.window_bytes, next, bound, (double)(k - 1) / (n - 1), lru);
        assert_true(lru == 0);
        assert_true(next >= bound - 0.02 && next >= bound * 0.95);
    }
}

static void what_is_kept_is_spread_over_the_cycle(void **state)
{
    (void)state;
    const unsigned n = 80, k = 40;
    cyclic_hit_rate(CWS_POLICY_NEXT, n, k, 50);
    /* The longest run of misses tells how long a program waits at a time: a kept prefix would make it N - k = 44
     * blocks. */
    unsigned run = 0, longest = 0, kept[4] = {0};
    for (unsigned i = 0; i < 2 * n; i++) {
        run = nodes[i % n].place == CWS_PLACE_KEPT ? 0 : run + 1;
        longest = run > longest ? run : longest;
        if (i < n)
            kept[i * 4 / n] += nodes[i].place == CWS_PLACE_KEPT;
    }
    printf("# longest run without a keeper %u; keepers per quarter %u %u %u %u\n", longest, kept[0], kept[1], kept[2],
           kept[3]);
    assert_true(longest <= 12);
    unsigned share = (kept[0] + kept[1] + kept[2] + kept[3]) / 4;
    assert_true(share >= 5);
    for (unsigned q = 0; q < 4; q++)
        assert_true(kept[q] * 5 >= share * 3 && kept[q] * 4 <= share * 7);
}

static void an_order_unlike_the_files_is_spread_too(void **state)
{
    (void)state;
    const unsigned n = 96, k = 48, stride = 37;
    unsigned hits = 0, longest = 0, run = 0;
    begin(CWS_POLICY_NEXT, n, k);
    for (unsigned step = 0; step < 100 * n; step++) {
        bool hit = touch(step * stride % n);
        hits += hit && step >= 50 * n;
        run = hit ? 0 : run + 1;
        longest = step >= 99 * n && run > longest ? run : longest;
    }
    assert_true((double)hits / (50.0 * n) >= (double)(k - policy.window_bytes) / n - 0.02);
    assert_true(longest <= 12);
}

static void a_part_that_is_never_touched_costs_nothing(void **state)
{
    (void)state;
    const unsigned blocks = 800, walked = 80, k = 40; /* e.g. a second view of the same file */
    unsigned hits = 0;
    begin(CWS_POLICY_NEXT, blocks, k);
    for (unsigned step = 0; step < 100 * walked; step++)
        hits += touch(step % walked) && step >= 50 * walked;
    assert_true((double)hits / (50.0 * walked) >= (double)(k - policy.window_bytes) / walked - 0.02);
}

static void keepers_that_nobody_uses_are_found_out(void **state)
{
    (void)state;
    const unsigned n = 80, k = 40;
    unsigned hits = 0;
    begin(CWS_POLICY_NEXT, 2 * n, k);
    for (unsigned step = 0; step < 20 * n; step++)
        touch(step % n);
    unsigned passes = 160; /* the program turns to the other half for good */
    for (unsigned step = 0; step < passes * n; step++)
        hits += touch(n + step % n) && step >= (passes - 10) * n;
    assert_true((double)hits / (10.0 * n) >= (double)(k - policy.window_bytes) / n - 0.05);
}

static void random_use_keeps_the_accounts(void **state)
{
    (void)state;
    static const enum cws_policy_id ids[] = {CWS_POLICY_NEXT, CWS_POLICY_LRU};
    uint64_t x = 88172645463325252u;
    for (unsigned which = 0; which < 2; which++) {
        begin(ids[which], 300, 50);
        unsigned hits = 0;
        for (unsigned step = 0; step < 30000; step++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            unsigned i = (unsigned)(x >> 33) % 300;
            hits += touch(i);
            if (x % 7 == 0 && nodes[i].place != CWS_PLACE_OUT) { /* held for a moment */
                cws_policy_remove(&policy, &nodes[i]);
                cws_policy_restore(&policy, &nodes[i]);
            }
            if (x % 11 == 0)
                policy.ops->on_fault(&policy, &nodes[i]);
            if (x % 13 == 0 && nodes[i].place != CWS_PLACE_OUT) { /* written: never comes back */
                cws_policy_remove(&policy, &nodes[i]);
                resident--;
            }
            struct cws_policy_node *guess = policy.ops->pick_victim(&policy, true);
            assert_true(!guess || guess->place == CWS_PLACE_WINDOW); /* readahead never costs a keeper */
            if (step % 1000 == 0)
                assert_true(cws_policy_check(&policy));
            assert_true(policy.window.bytes + policy.kept.bytes == resident && resident <= 50);
        }
        for (unsigned i = 0; i < 300; i++)
            cws_policy_forget(&policy, &nodes[i]);
        assert_true(policy.seen_bytes == 0 && policy.window.bytes == 0 && policy.kept.bytes == 0);
        assert_true(hits > 2500); /* 50 of 300 */
    }
}

int main(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test(a_cyclic_scan_hits_what_is_kept),
        cmocka_unit_test(what_is_kept_is_spread_over_the_cycle),
        cmocka_unit_test(an_order_unlike_the_files_is_spread_too),
        cmocka_unit_test(a_part_that_is_never_touched_costs_nothing),
        cmocka_unit_test(keepers_that_nobody_uses_are_found_out),
        cmocka_unit_test(random_use_keeps_the_accounts),
    };
    return cmocka_run_group_tests_name("policy", list, NULL, NULL);
}
