/* Description: what comes next is foreseen from the past: in a cycle, in rounds of rounds, after uses that are out of
 * order, left out or forgotten; nothing is made up for what was never seen, and a change is learned within a few
 * uses. */
#include "uvm/policy/order.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { NODES = 1200 };
static struct cws_history history;
static struct cws_order_node nodes[NODES];
static struct cws_order_node *last, *before_last;

static void begin(uint64_t remembered)
{
    cws_history_deinit(&history);
    cws_history_init(&history, &cws_tuning_default);
    memset(nodes, 0, sizeof nodes);
    last = before_last = NULL;
    cws_history_reserve(&history, remembered);
}

static struct cws_order_node *expected(void)
{
    if (cws_history_look(&history))
        return cws_history_next(&history, 1);
    return last ? cws_history_after(&history, before_last, last) : NULL;
}

/* One use: was it foreseen? */
static bool use(unsigned i)
{
    bool foreseen = expected() == &nodes[i];
    cws_history_push(&history, &nodes[i]);
    before_last = last;
    last = &nodes[i];
    return foreseen;
}

/* Uses from, from + 1 ... before to; how many were not foreseen. */
static unsigned surprises(unsigned from, unsigned to)
{
    unsigned n = 0;
    for (unsigned i = from; i < to; i++)
        n += !use(i);
    return n;
}

static void a_cycle_is_known_from_its_second_round(void **state)
{
    (void)state;
    begin(1000);
    assert_int_equal(surprises(0, 100), 100);
    assert_true(surprises(0, 100) <= 2);
    for (unsigned round = 0; round < 50; round++)
        assert_int_equal(surprises(0, 100), 0);
    assert_int_equal(cws_history_look(&history), 100);
    for (unsigned k = 1; k < 350; k++)
        assert_ptr_equal(cws_history_next(&history, k), &nodes[(k - 1) % 100]);
}

/* Four rounds of a draft, one of its target. */
static unsigned draft_and_target(void)
{
    unsigned n = 0;
    for (unsigned draft = 0; draft < 4; draft++)
        n += surprises(0, 40);
    return n + surprises(40, 100);
}

static void rounds_of_rounds_are_told_apart(void **state)
{
    (void)state;
    begin(2000);
    for (unsigned round = 0; round < 3; round++)
        draft_and_target();
    for (unsigned round = 0; round < 30; round++)
        assert_int_equal(draft_and_target(), 0);
    assert_int_equal(cws_history_look(&history), 220);
}

static void a_use_out_of_order_costs_itself(void **state)
{
    (void)state;
    begin(1000);
    for (unsigned round = 0; round < 4; round++)
        surprises(0, 100);
    /* halves: itself, again when it does not come a round later, and seldom something else */
    enum { ROUNDS = 20, EACH = 5 };
    unsigned more = 0, left_out = 0;
    for (unsigned round = 0; round < ROUNDS; round++) { /* one more, each time elsewhere and another one */
        unsigned at = (round * 37 + 11) % 90;
        more += surprises(0, at) + !use((at + 50) % 100) + surprises(at, 100);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned at = (round * 37 + 11) % 90;
        left_out += surprises(0, at) + surprises(at + 1, 100);
    }
    assert_in_range(more, ROUNDS, ROUNDS * EACH / 2);
    assert_in_range(left_out, ROUNDS, ROUNDS * EACH / 2);
}

/* Something that is due a little later comes now, and then what was due: nothing was left out. */
static void a_use_out_of_order_is_not_taken_for_a_jump(void **state)
{
    (void)state;
    begin(1000);
    for (unsigned round = 0; round < 4; round++)
        surprises(0, 100);
    for (unsigned at = 10; at < 80; at += 20) {
        assert_int_equal(surprises(at == 10 ? 0 : at - 20, at), 0);
        assert_false(use(at + 5));
        assert_true(cws_history_expects(&history, &nodes[at]));
        assert_false(cws_history_expects(&history, &nodes[at + 40]));
        use(at);
        assert_int_equal(surprises(at + 1, at + 5), 0);
        at += 5;
        assert_int_equal(surprises(at, at + 15), 0);
        at += 15;
    }
}

static void another_cycle_is_learned(void **state)
{
    (void)state;
    begin(1000);
    for (unsigned round = 0; round < 10; round++)
        surprises(0, 100);
    assert_int_equal(surprises(200, 260), 60);
    assert_true(surprises(200, 260) <= 8);
    assert_true(surprises(200, 260) <= 1);
    assert_int_equal(surprises(200, 260), 0);
    unsigned n = 0; /* the first one is still known, and that the other came after it once */
    for (unsigned round = 0; round < 4; round++)
        n += surprises(0, 100);
    assert_in_range(n, 1, 12);
    assert_int_equal(surprises(0, 100), 0);
}

static void what_is_forgotten_is_not_expected(void **state)
{
    (void)state;
    begin(1000);
    for (unsigned round = 0; round < 5; round++)
        surprises(0, 60);
    for (unsigned i = 20; i < 30; i++)
        cws_history_forget(&history, &nodes[i]);
    last = &nodes[59];
    before_last = &nodes[58];
    assert_true(surprises(0, 20) <= 1);
    assert_true(surprises(30, 60) <= 1);
    for (unsigned round = 0; round < 30; round++) {
        assert_int_equal(surprises(0, 20), 0);
        assert_int_equal(surprises(30, 60), 0);
    }
    for (unsigned k = 1; k < 200; k++)
        assert_true(cws_history_next(&history, k) < &nodes[20] || cws_history_next(&history, k) >= &nodes[30]);
    for (unsigned i = 0; i < 60; i++)
        cws_history_forget(&history, &nodes[i]);
    assert_int_equal(cws_history_look(&history), 0);
    assert_int_equal(history.end, history.begin);
    assert_false(history.holes);
    last = before_last = NULL;
    assert_int_equal(surprises(0, 60), 60);
}

/* What lies in the ring before the first use, here more of the same, is not the past. */
static void the_past_begins_with_the_first_use(void **state)
{
    (void)state;
    begin(100);
    for (uint64_t i = 0; i < history.room; i++)
        history.uses[i].node = &nodes[i % 2];
    for (unsigned i = 0; i < 4; i++)
        use(i % 2);
    assert_int_equal(cws_history_look(&history), 0);
}

/* Anything goes: growth, forgetting and a ring that goes round, against the plain list of all uses. */
static void any_uses(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (unsigned round = 0; round < 200; round++) {
        begin(0);
        static unsigned uses[6000];
        unsigned count = 0, known = 0, kinds = 2 + (unsigned)(round * 7 % 60), room = 0;
        for (unsigned n = 0; n < 4000; n++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            unsigned chance = (unsigned)(seed >> 40);
            if (chance % 500 == 0 || n == 0)
                cws_history_reserve(&history, room += 1 + chance / 500 % 200);
            if (chance % 300 == 1 && count) {
                unsigned gone = uses[chance / 300 % count], to = 0, left = known;
                cws_history_forget(&history, &nodes[gone]);
                for (unsigned i = 0; i < count; i++) {
                    if (uses[i] != gone)
                        uses[to++] = uses[i];
                    else if (i + known >= count)
                        left--;
                }
                known = left;
                cws_history_look(&history);
                count = to;
                last = before_last = NULL;
            }
            unsigned i = chance % 5 ? n % kinds : chance / 5 % kinds;
            uint64_t end = history.end;
            use(i);
            if (history.end == end) { /* the one before was taken back */
                count--;
                known--;
            }
            uses[count++] = i;
            known += known < history.room;
            assert_true(history.room >= room);
            assert_int_equal(history.end - history.begin, known);
            for (uint64_t k = 1; k <= known && (n % 64 == 0 || k < 3); k++)
                assert_ptr_equal(history.uses[(history.end - k) % history.room].node, &nodes[uses[count - k]]);
            struct cws_order_node *next = expected();
            assert_true(!next || (next >= nodes && next < nodes + kinds));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cycle_is_known_from_its_second_round),
        cmocka_unit_test(rounds_of_rounds_are_told_apart),
        cmocka_unit_test(a_use_out_of_order_costs_itself),
        cmocka_unit_test(a_use_out_of_order_is_not_taken_for_a_jump),
        cmocka_unit_test(another_cycle_is_learned),
        cmocka_unit_test(what_is_forgotten_is_not_expected),
        cmocka_unit_test(the_past_begins_with_the_first_use),
        cmocka_unit_test(any_uses),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cws_history_deinit(&history);
    return failed;
}
