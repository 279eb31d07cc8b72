/* Plans by time: what streams is spread over the time of a round, not over its uses; such a plan stays where rounds are
 * shorter with it, and is not tried where launches do not wait or nobody tells of time. What comes more often
 * stays. */
#include "uvm/policy/plan.h"
#include "uvm/policy/tuning.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MIB ((uint64_t)1 << 20)
#define ROOM (800 * MIB) /* of 1200 */
enum { NODES = 120, SLOW = 9000, FAST = 1000, TRIAL = 24 /* rounds in which all is decided */ };

static struct cws_order order;
static struct cws_order_node nodes[NODES];
static struct cws_tuning tuning;
static struct {
    uint64_t now, waited, stalled;
    uint64_t by_uses, by_time; /* waits at each use, under such a plan */
    uint64_t changes;          /* nodes that became keepers, or ceased to be */
} program;

static void begin(void)
{
    memset(nodes, 0, sizeof nodes);
    memset(&program, 0, sizeof program);
    program.now = 1;
    tuning = cws_tuning_default;
    cws_order_init(&order, CWS_POLICY_NEXT, &tuning);
    for (unsigned i = 0; i < NODES; i++) {
        nodes[i].bytes = 10 * MIB;
        cws_order_add(&order, &nodes[i]);
    }
}

static unsigned keepers(bool *is)
{
    unsigned count = 0;
    for (unsigned i = 0; i < NODES; i++) {
        program.changes += is[i] != nodes[i].keeper;
        count += is[i] = nodes[i].keeper;
    }
    return count;
}

/* The first third of the uses has much work. */
static void use(unsigned i, uint64_t room)
{
    static bool are[NODES];
    uint64_t wait = order.pace.tries ? program.by_time : program.by_uses;
    cws_order_tell(&order, program.now, program.waited, program.stalled);
    cws_order_use(&order, &nodes[i]);
    cws_order_walk(&order, room);
    assert_null(cws_order_plan_check(&order));
    program.now += (i < NODES / 3 ? SLOW : FAST) + wait;
    program.waited += wait;
    program.stalled += wait;
    keepers(are);
}

static void rounds(unsigned n, uint64_t room)
{
    for (unsigned i = 0; i < n * NODES; i++)
        use(i % NODES, room);
}

static unsigned streams(unsigned from, unsigned to)
{
    unsigned count = 0;
    for (unsigned i = from; i < to; i++)
        count += !nodes[i].keeper;
    return count;
}

static void test_streams_follow_the_time(void **state)
{
    (void)state;
    begin();
    program.by_uses = 2000;
    program.by_time = 500;
    rounds(4, ROOM);
    assert_in_range(streams(0, NODES / 3), streams(0, NODES) / 4, streams(0, NODES) / 2); /* evenly over uses */
    rounds(TRIAL, ROOM);
    assert_true(order.pace.tries > 0);
    /* 9 of 11 parts of the time; as many as there are */
    assert_true(streams(0, NODES / 3) > 3 * streams(NODES / 3, NODES));
    assert_true(streams(NODES / 3, NODES) > 0);
    uint64_t bytes = tuning.order_in_flight_bytes, kept = NODES - streams(0, NODES);
    for (unsigned i = 0; i < order.size_count; i++)
        bytes += order.sizes[i].quota * order.sizes[i].bytes;
    assert_in_range(bytes + kept * 10 * MIB, ROOM - 20 * MIB, ROOM);
    program.changes = 0;
    rounds(TRIAL, ROOM);
    assert_int_equal(program.changes, 0); /* it is settled */
    cws_order_deinit(&order);
}

/* Not shorter: the plan by uses comes back as it was, for good. */
static void test_the_better_plan_stays(void **state)
{
    (void)state;
    begin();
    program.by_uses = program.by_time = 2000;
    rounds(4, ROOM);
    bool before[NODES] = {false};
    keepers(before);
    program.changes = 0;
    rounds(TRIAL, ROOM);
    assert_true(program.changes > 0); /* it was tried */
    program.changes = 0;
    keepers(before);
    assert_int_equal(program.changes, 0);
    rounds(TRIAL, ROOM);
    assert_int_equal(program.changes, 0);
    cws_order_deinit(&order);
}

static void test_where_it_is_not_tried(void **state)
{
    (void)state;
    begin(); /* launches wait for little */
    program.by_uses = 100;
    rounds(4, ROOM);
    program.changes = 0;
    rounds(TRIAL, ROOM);
    assert_int_equal(program.changes, 0);
    cws_order_deinit(&order);

    begin(); /* it is switched off */
    tuning.order_pace_tries = 0;
    program.by_uses = 2000;
    rounds(TRIAL, ROOM);
    assert_int_equal(order.pace.tries, 0);
    cws_order_deinit(&order);

    begin(); /* nobody tells */
    for (unsigned i = 0; i < TRIAL * NODES; i++) {
        cws_order_use(&order, &nodes[i % NODES]);
        cws_order_walk(&order, ROOM);
    }
    assert_true(order.pace.tries == 0 && order.pace.rounds == 0);
    cws_order_deinit(&order);
}

/* What comes more than once, at a distance, stays. */
static void test_one_comes_twice(void **state)
{
    (void)state;
    begin();
    program.by_uses = 2000;
    program.by_time = 500;
    for (unsigned i = 0; i < TRIAL * NODES; i++) {
        use(i % NODES, ROOM);
        if (i % NODES == 80)
            use(7, ROOM);
    }
    assert_true(order.pace.tries > 0);
    assert_true(nodes[7].keeper);
    assert_true(streams(0, NODES / 3) > 3 * streams(NODES / 3, NODES));
    cws_order_deinit(&order);
}

/* As the products of a real program name their weights: twice, around a workspace that all of them share; and a table
 * in every block. As much streams as if each weight were named once, in the same parts of the round. */
static void test_what_is_named_again_and_again(void **state)
{
    (void)state;
    enum { WORKSPACE = NODES - 1, TABLE = NODES - 2, WEIGHTS = NODES - 2 };
    unsigned early[2], late[2], quotas[2];
    for (unsigned again = 0; again < 2; again++) {
        begin();
        program.by_uses = 2000;
        program.by_time = 500;
        for (unsigned i = 0; i < TRIAL * WEIGHTS; i++) {
            use(i % WEIGHTS, ROOM);
            if (again) {
                use(WORKSPACE, ROOM);
                use(i % WEIGHTS, ROOM);
            }
            if (again && i % WEIGHTS % 13 == 0)
                use(TABLE, ROOM);
        }
        assert_true(order.pace.tries > 0);
        assert_true(!again || (nodes[WORKSPACE].keeper && nodes[TABLE].keeper));
        early[again] = streams(0, NODES / 3);
        late[again] = streams(NODES / 3, WEIGHTS);
        quotas[again] = order.sizes[0].quota;
        cws_order_deinit(&order);
    }
    /* two that stay need room, and the times between uses are other ones */
    assert_in_range(early[1], early[0] - 4, early[0] + 4);
    assert_in_range(late[1], late[0] - 4, late[0] + 4);
    assert_in_range(quotas[1], quotas[0] - 1, quotas[0] + 1);
}

/* Few weights, which take turns so fast that none is left alone for long: there is nothing to spread. */
static void test_none_is_left_alone(void **state)
{
    (void)state;
    static const unsigned turns[] = {0, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1, 2, 0, 2, 1, 2,
                                     1, 2, 0, 2, 0, 2, 1, 2, 0, 2, 0, 2, 0, 1, 0, 1};
    begin();
    program.by_uses = program.by_time = 2000;
    for (unsigned i = 0; i < 32 * TRIAL; i++)
        use(turns[i % 32], 25 * MIB);
    assert_true(order.periodic && order.plan_period == 32);
    cws_order_deinit(&order);
}

/* Each plan for another room waits longer for its trial, so that a room that moves sees none. */
static void test_a_room_that_moves(void **state)
{
    (void)state;
    begin();
    program.by_uses = 2000;
    program.by_time = 500;
    unsigned trials = 0;
    for (unsigned i = 0; i < 30; i++) {
        rounds(8, i % 2 ? ROOM : ROOM + 100 * MIB);
        trials += order.pace.tries > 0;
    }
    assert_in_range(trials, 1, 3);
    rounds(100, ROOM); /* it stands */
    assert_true(order.pace.tries > 0);
    cws_order_deinit(&order);
}

/* A pause of the program is no work of the node before it. */
static void test_a_pause(void **state)
{
    (void)state;
    begin();
    program.by_uses = 2000;
    program.by_time = 500;
    rounds(TRIAL, ROOM);
    uint64_t round = order.pace.round;
    program.now += 1000 * round;
    rounds(1, ROOM);
    for (unsigned i = 0; i < NODES; i++)
        assert_true(nodes[i].pace <= round / tuning.order_pace_longest);
    assert_int_equal(order.pace.round, round);
    cws_order_deinit(&order);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_streams_follow_the_time),
                                       cmocka_unit_test(test_the_better_plan_stays),
                                       cmocka_unit_test(test_where_it_is_not_tried),
                                       cmocka_unit_test(test_one_comes_twice),
                                       cmocka_unit_test(test_what_is_named_again_and_again),
                                       cmocka_unit_test(test_none_is_left_alone),
                                       cmocka_unit_test(test_a_room_that_moves),
                                       cmocka_unit_test(test_a_pause)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
