/* Description: whatever is used, loaded, dropped and forgotten, in cycles and at random: the lists of the order of uses
 * hold exactly what they are for, in the order they promise. In a cycle what stays does not change with a little more
 * or less room, and a use out of order changes nothing, until it is a part of the order. */
#include "uvm/policy/order.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { NODES = 150, STEPS = 4000 };
#define MIB ((uint64_t)1 << 20)
#define NODE_OF(link, member)                                                                                          \
    ((const struct cws_order_node *)((const char *)(link)-offsetof(struct cws_order_node, member)))

static struct cws_order order;
static struct cws_order_node nodes[NODES];
static bool known[NODES];
static uint64_t seed;

static unsigned chance(unsigned n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % n;
}

static void add(unsigned i)
{
    nodes[i] = (struct cws_order_node){.bytes = (1 + i % 7) * 2 * MIB};
    cws_order_add(&order, &nodes[i]);
    known[i] = true;
}

/* What can be dropped, each once, best victim last. */
static void check_lines(void)
{
    uint32_t in = 0, listed = 0;
    for (unsigned i = 0; i < NODES; i++)
        in += known[i] && nodes[i].in;
    assert_int_equal(order.in_count, in);
    for (unsigned k = 0; k < 2; k++) {
        const struct cws_list *line = &order.lines[k];
        for (const struct cws_list *l = line->next; l != line; l = l->next) {
            const struct cws_order_node *n = NODE_OF(l, line);
            assert_ptr_equal(l->next->prev, l);
            assert_true(n->in && n->keeper == (k == 1));
            assert_true(l->prev == line || !order.ops->goes_before(&order, NODE_OF(l->prev, line), n));
            assert_true(++listed <= in);
        }
    }
    assert_int_equal(listed, in);
}

/* What is expected, each once, by its next place in the window. */
static void check_coming(void)
{
    uint32_t count = 0;
    uint64_t bytes = 0, last = order.at;
    for (const struct cws_list *l = order.coming.next; l != &order.coming; l = l->next, count++) {
        const struct cws_order_node *n = NODE_OF(l, coming);
        assert_ptr_equal(l->next->prev, l);
        assert_true(n->next_at > last && n->next_at < order.end);
        assert_ptr_equal(order.window[n->next_at % order.window_room].node, n);
        last = n->next_at;
        bytes += n->bytes;
    }
    assert_int_equal(count, order.coming_count);
    assert_int_equal(bytes, order.coming_bytes);
    for (uint64_t at = order.at + 1; at < order.end; at++) { /* the next place of each is its next one */
        const struct cws_order_place *p = &order.window[at % order.window_room];
        assert_true(p->node->next_at <= at);
        assert_true(p->again == UINT64_MAX ||
                    (p->again > at && order.window[p->again % order.window_room].node == p->node));
    }
    for (unsigned i = 0; i < NODES; i++) {
        bool none = known[i] && nodes[i].next_at == UINT64_MAX;
        assert_true(!known[i] || none == (nodes[i].coming.next == &nodes[i].coming));
    }
}

static bool may_go(void *arg, const struct cws_order_node *n)
{
    (void)arg;
    return n->in;
}

/* Rounds over the known nodes with so many of a hundred uses at random, or every other round over a half of them. */
static void run(enum cws_policy_id policy, unsigned random, bool halves)
{
    unsigned next = 0, round = 0;
    memset(known, 0, sizeof known);
    cws_order_init(&order, policy, &cws_tuning_default);
    for (unsigned i = 0; i < NODES; i++)
        if (i % 8)
            add(i);
    for (unsigned step = 0; step < STEPS; step++) {
        unsigned i = chance(100) < random ? chance(NODES) : next++ % NODES, which = chance(400);
        round += next % NODES == 0;
        if (which == 0 && known[i]) {
            cws_order_forget(&order, &nodes[i]);
            known[i] = false;
        } else if (which == 1 && !known[i]) {
            add(i);
        }
        if (!known[i] || (halves && round % 2 && i >= NODES / 2))
            continue;
        cws_order_use(&order, &nodes[i]);
        if (which % 4 == 0)
            cws_order_set_in(&order, &nodes[i], !nodes[i].in);
        if (which % 3)
            continue;
        cws_order_walk(&order, (50 + chance(3) * 100) * MIB);
        check_coming();
        check_lines();
        struct cws_order_node *victim = cws_order_victim(&order, 0, may_go, NULL, NULL);
        assert_true(!victim || victim->in);
        assert_true(victim || order.in_count == 0);
        if (victim && which % 2)
            cws_order_set_in(&order, victim, false);
    }
    for (unsigned i = 0; i < NODES; i++)
        if (known[i])
            cws_order_forget(&order, &nodes[i]);
    assert_int_equal(order.count, 0);
    assert_int_equal(order.in_count, 0);
    assert_int_equal(order.bytes, 0);
    cws_order_walk(&order, 100 * MIB);
    assert_null(cws_order_coming(&order, NULL));
    assert_null(cws_order_victim(&order, 0, may_go, NULL, NULL));
    cws_order_deinit(&order);
}

static void lists_hold_what_they_promise(void **state)
{
    (void)state;
    for (unsigned round = 1; round < 8; round++) {
        seed = round;
        for (enum cws_policy_id policy = CWS_POLICY_NEXT; policy <= CWS_POLICY_LRU; policy++) {
            run(policy, 0, false);
            run(policy, 3, false);
            run(policy, 0, true);
            run(policy, 50, false);
            run(policy, 100, false);
        }
    }
}

/* --- cycles ------------------------------------------------------------------------------------------ */

enum { CYCLE = 100, ROOM = 600 }; /* nodes, and MiB of their 800 */

static void begin_cycle(void)
{
    memset(known, 0, sizeof known);
    cws_order_init(&order, CWS_POLICY_NEXT, &cws_tuning_default);
    for (unsigned i = 0; i < CYCLE; i++)
        add(i);
}

static bool use(unsigned i)
{
    cws_order_walk(&order, ROOM * MIB);
    bool expected = cws_order_coming(&order, NULL) == &nodes[i];
    cws_order_use(&order, &nodes[i]);
    return expected;
}

/* How many of these uses were not the next expected ones. */
static unsigned surprises(unsigned from, unsigned to)
{
    unsigned n = 0;
    for (unsigned i = from; i < to; i++)
        n += !use(i);
    return n;
}

static uint64_t kept(bool *which)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < NODES; i++) {
        which[i] = known[i] && nodes[i].keeper;
        bytes += which[i] ? nodes[i].bytes : 0;
    }
    return bytes;
}

static void what_stays_hardly_depends_on_the_room(void **state)
{
    (void)state;
    bool before[NODES], after[NODES];
    begin_cycle();
    for (unsigned round = 0; round < 4; round++)
        surprises(0, CYCLE);
    uint64_t most = kept(before), bound = order.plan_most;
    unsigned bounds = 0;
    assert_in_range(most, ROOM / 2 * MIB, ROOM * MIB);
    for (unsigned less = 20; less < 200; less += 20) {
        cws_order_walk(&order, (ROOM - less) * MIB);
        uint64_t now = kept(after), changed = 0;
        /* the window grows by sizes that cannot all stay any more */
        assert_true(now <= most && now + (less + 50) * MIB >= most);
        for (unsigned i = 0; i < NODES; i++)
            changed += before[i] != after[i] ? nodes[i].bytes : 0;
        if (order.plan_most != bound) { /* another plan, of which there are few */
            bound = order.plan_most;
            most = kept(before) + less * MIB;
            bounds++;
            continue;
        }
        assert_true(changed <= less * MIB + most / 5); /* and what fills the gaps */
    }
    assert_in_range(bounds, 0, 1);
    unsigned run = 0, longest = 0; /* and it lies everywhere */
    for (unsigned i = 0; i < CYCLE; i++) {
        run = before[i] ? 0 : run + 1;
        longest = run > longest ? run : longest;
    }
    assert_in_range(longest, 1, 4);
    cws_order_deinit(&order);
}

static void a_stray_use_changes_nothing(void **state)
{
    (void)state;
    bool before[NODES], after[NODES];
    begin_cycle();
    for (unsigned round = 0; round < 4; round++)
        surprises(0, CYCLE);
    kept(before);
    unsigned strays = 0;
    for (unsigned round = 0; round < 6; round++) {
        for (unsigned i = 0; i < CYCLE; i++) {
            if (i % (7 + round) == 3 && strays++ < 1000) {
                unsigned stray = (i + 30 + 7 * round) % CYCLE;
                uint64_t at = order.at;
                cws_order_use(&order, &nodes[stray]);
                assert_int_equal(order.at, at);
                cws_order_set_in(&order, &nodes[stray], true);
            }
            assert_true(use(i));
            check_coming();
            check_lines();
            if (i % 5 == 0) /* what strayed a moment ago does not go for what comes */
                for (unsigned k = 0; k < CYCLE; k++)
                    cws_order_set_in(&order, &nodes[k], true);
            cws_order_walk(&order, ROOM * MIB);
            const struct cws_order_node *victim = cws_order_victim(&order, order.at + 1, may_go, NULL, NULL);
            for (unsigned k = 0; k < CWS_ORDER_STRAYED && victim; k++)
                assert_true(victim != order.strayed[k] || order.tick - victim->stray_tick > 50);
        }
    }
    uint64_t changed = 0;
    kept(after);
    for (unsigned i = 0; i < NODES; i++)
        changed += before[i] != after[i] ? nodes[i].bytes : 0;
    assert_true(changed <= (CWS_ORDER_STRAYED + 3) * 14 * MIB);
    cws_order_forget(&order, order.strayed[0]);
    for (unsigned k = 0; k < CWS_ORDER_STRAYED; k++)
        assert_true(!order.strayed[k] || order.strayed[k]->all.next != &order.strayed[k]->all);
    cws_order_deinit(&order);
}

/* The same one more in each round, at the same place; and something else altogether. */
static void what_comes_again_is_learned(void **state)
{
    (void)state;
    begin_cycle();
    for (unsigned i = CYCLE; i < CYCLE + 41; i++)
        add(i);
    for (unsigned round = 0; round < 4; round++)
        surprises(0, CYCLE);
    for (unsigned round = 0; round < 8; round++) {
        unsigned n = surprises(0, 40) + !use(CYCLE) + surprises(40, CYCLE);
        assert_true(n <= (round < 4 ? 3 : 0));
    }
    surprises(CYCLE + 1, CYCLE + 41);
    assert_true(surprises(CYCLE + 1, CYCLE + 41) <= 8);
    for (unsigned round = 0; round < 4; round++)
        surprises(CYCLE + 1, CYCLE + 41);
    assert_int_equal(surprises(CYCLE + 1, CYCLE + 41), 0);
    cws_order_deinit(&order);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_hold_what_they_promise),
        cmocka_unit_test(what_stays_hardly_depends_on_the_room),
        cmocka_unit_test(a_stray_use_changes_nothing),
        cmocka_unit_test(what_comes_again_is_learned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
