/* The plan of a round: small nodes stay first, each size has memory for what streams of it nearby and no more, and the
 * plan's bytes fit the room. */
#include "uvm/policy/plan.h"
#include "uvm/policy/tuning.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MIB ((uint64_t)1 << 20)
enum { BLOCKS = 20, EACH = 6, NODES = BLOCKS * EACH };
/* Of a block: what a layer's matrices are like. */
static const uint64_t of_block[EACH] = {8, 8, 2, 20, 20, 20};

static struct cws_order order;
static struct cws_order_node nodes[NODES];
static struct cws_tuning tuning;

static void begin(void)
{
    memset(nodes, 0, sizeof nodes);
    tuning = cws_tuning_default;
    cws_order_init(&order, CWS_POLICY_NEXT, &tuning);
    for (unsigned i = 0; i < NODES; i++) {
        nodes[i].bytes = of_block[i % EACH] * MIB;
        cws_order_add(&order, &nodes[i]);
    }
}

static void rounds(unsigned n, uint64_t room)
{
    for (unsigned i = 0; i < n * NODES; i++) {
        cws_order_use(&order, &nodes[i % NODES]);
        cws_order_walk(&order, room);
        assert_null(cws_order_plan_check(&order));
    }
}

static const struct cws_order_size *size_of(uint64_t mib)
{
    for (unsigned i = 0; i < order.size_count; i++)
        if (order.sizes[i].bytes == mib * MIB)
            return &order.sizes[i];
    fail_msg("no size of %d MiB", (int)mib);
    return NULL;
}

static unsigned keepers_of(uint64_t mib)
{
    unsigned count = 0;
    for (unsigned i = 0; i < NODES; i++)
        count += nodes[i].keeper && nodes[i].bytes == mib * MIB;
    return count;
}

/* The most nodes of a size that stream within some consecutive uses, counted the long way. */
static unsigned most_nearby(uint64_t mib, unsigned uses)
{
    unsigned most = 0;
    for (unsigned i = 0; i < NODES; i++) {
        unsigned count = 0;
        for (unsigned k = 0; k < uses; k++) {
            const struct cws_order_node *n = &nodes[(i + k) % NODES];
            count += !n->keeper && n->bytes == mib * MIB;
        }
        most = count > most ? count : most;
    }
    return most;
}

static void test_small_ones_stay_and_sizes_have_quotas(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {2, 8, 20};
    begin();
    rounds(4, 800 * MIB); /* of 1560 */
    assert_int_equal(keepers_of(2), BLOCKS);
    assert_int_equal(keepers_of(8), 2 * BLOCKS);
    assert_in_range(keepers_of(20), 10, 3 * BLOCKS - 1);
    uint64_t bytes = tuning.order_in_flight_bytes;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(size_of(sizes[i])->quota, most_nearby(sizes[i], (unsigned)tuning.order_quota_uses));
        bytes += (keepers_of(sizes[i]) + size_of(sizes[i])->quota) * sizes[i] * MIB;
    }
    assert_in_range(bytes, 800 * MIB - 20 * MIB, 800 * MIB);
    cws_order_deinit(&order);
}

/* Memory moves from a size that has more than its quota to one that has less, and then not any more. */
static void test_memory_moves_between_sizes_once(void **state)
{
    (void)state;
    begin();
    rounds(4, 300 * MIB); /* small ones stream, too */
    const struct cws_order_size *large = size_of(20), *small = size_of(8);
    assert_true(large->quota >= 2 && small->quota >= 1);
    struct cws_order_node *larges[NODES], *smalls[NODES];
    unsigned large_count = 0, small_count = 0;
    for (unsigned i = 0; i < NODES; i++) {
        if (!nodes[i].keeper && nodes[i].bytes == 20 * MIB)
            larges[large_count++] = &nodes[i];
        if (!nodes[i].keeper && nodes[i].bytes == 8 * MIB)
            smalls[small_count++] = &nodes[i];
    }
    for (unsigned i = 0; i < large->quota; i++) {
        assert_true(cws_order_may_grow(&order, larges[large->quota]));
        assert_false(cws_order_is_spare(&order, larges[0]));
        cws_order_set_held(&order, larges[i], true);
    }
    assert_false(cws_order_may_grow(&order, larges[large->quota])); /* at its quota: it takes no other size's */
    assert_false(cws_order_is_spare(&order, larges[0]));            /* and gives none */
    cws_order_set_held(&order, larges[large->quota], true);
    assert_true(cws_order_is_spare(&order, larges[0])); /* one more than that: a small one may have it */
    assert_true(cws_order_may_grow(&order, smalls[0]));
    cws_order_set_held(&order, larges[0], false);
    assert_false(cws_order_is_spare(&order, larges[1]));
    assert_null(cws_order_plan_check(&order));
    cws_order_forget(&order, larges[1]); /* it ends with its memory */
    assert_null(cws_order_plan_check(&order));
    assert_true(cws_order_may_grow(&order, larges[0]));
    cws_order_deinit(&order);
}

/* A keeper may have any memory, and is nobody's spare. */
static void test_keepers(void **state)
{
    (void)state;
    begin();
    rounds(4, 800 * MIB);
    for (unsigned i = 0; i < NODES; i++) {
        cws_order_set_held(&order, &nodes[i], true);
        assert_true(!nodes[i].keeper || cws_order_may_grow(&order, &nodes[i]));
        assert_true(!nodes[i].keeper || !cws_order_is_spare(&order, &nodes[i]));
    }
    cws_order_deinit(&order);
}

/* All fits: all stay. Nearly nothing does: whoever comes takes what there is. */
static void test_ends(void **state)
{
    (void)state;
    begin();
    rounds(4, 1560 * MIB);
    assert_int_equal(keepers_of(2) + keepers_of(8) + keepers_of(20), NODES);
    cws_order_deinit(&order);
    begin();
    rounds(4, 40 * MIB);
    assert_int_equal(keepers_of(2) + keepers_of(8) + keepers_of(20), 0);
    assert_int_equal(order.size_count, 0);
    for (unsigned i = 0; i < NODES; i++)
        assert_true(cws_order_may_grow(&order, &nodes[i]) && cws_order_is_spare(&order, &nodes[i]));
    cws_order_deinit(&order);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_small_ones_stay_and_sizes_have_quotas),
                                       cmocka_unit_test(test_memory_moves_between_sizes_once),
                                       cmocka_unit_test(test_keepers), cmocka_unit_test(test_ends)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
