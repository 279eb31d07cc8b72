/* Description: whatever is used, loaded, dropped and forgotten, in cycles and at random: the lists of the order of uses hold exactly what they are for, in the order they promise. */
#include "uvm/order.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { NODES = 150, STEPS = 4000 };
#define MIB ((uint64_t)1 << 20)
#define NODE_OF(link, member) ((const struct cws_order_node *)((const char *)(link) - offsetof(struct cws_order_node, member)))

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
        const struct cws_order_link *line = &order.lines[k];
        for (const struct cws_order_link *l = line->next; l != line; l = l->next) {
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
    for (const struct cws_order_link *l = order.coming.next; l != &order.coming; l = l->next, count++) {
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
        assert_true(p->again == UINT64_MAX || (p->again > at && order.window[p->again % order.window_room].node == p->node));
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
    cws_order_init(&order, policy);
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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lists_hold_what_they_promise)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
