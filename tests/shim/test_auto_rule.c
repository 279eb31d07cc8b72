/* Description: with CODEC_VRAM_BUDGET=auto a budget gives way at once when other programs take the margin, grows back
 * slowly, and stays where nothing but small things change. */
#include "shim/cuda/auto_budget.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MIB ((uint64_t)1 << 20)
enum { TOTAL = 80000, MARGIN = 1600 }; /* MiB */

static struct cws_auto_rule rule_of(uint64_t min, uint64_t max)
{
    const struct cws_options options = {.budget_auto = true, .auto_min = min * MIB, .auto_max = max * MIB};
    return cws_auto_rule_of(&options, TOTAL * MIB);
}

/* In MiB. */
static uint64_t next(struct cws_auto_rule *r, uint64_t budget, uint64_t used, uint64_t free_mib)
{
    return cws_auto_next(r, budget * MIB, used * MIB, free_mib * MIB) / MIB;
}

static void it_begins_with_what_is_free(void **state)
{
    (void)state;
    struct cws_auto_rule any = rule_of(0, 0), range = rule_of(4000, 20000);
    assert_int_equal(cws_auto_first(&any, 50000 * MIB), (50000 - MARGIN) * MIB);
    assert_int_equal(cws_auto_first(&any, 100 * MIB), 0);
    assert_int_equal(cws_auto_first(&range, 50000 * MIB), 20000 * MIB);
    assert_int_equal(cws_auto_first(&range, 100 * MIB), 4000 * MIB);
    struct cws_auto_rule small = {.total = 8000 * MIB, .max = UINT64_MAX};
    assert_int_equal(cws_auto_first(&small, 1000 * MIB), (1000 - 256) * MIB);
}

static void it_gives_way_at_once(void **state)
{
    (void)state;
    struct cws_auto_rule any = rule_of(0, 0), range = rule_of(4000, 20000);
    assert_int_equal(next(&any, 30000, 30000, 700), 30000 - 900);
    assert_int_equal(next(&any, 30000, 10000, 15000), 25000 - MARGIN); /* what it does not use yet is gone */
    assert_int_equal(next(&any, 1000, 1000, 0), 0);
    assert_int_equal(next(&range, 5000, 5000, 0), 4000);
    assert_int_equal(next(&range, 4000, 4000, 0), 4000);
}

static void it_grows_back_slowly(void **state)
{
    (void)state;
    struct cws_auto_rule any = rule_of(0, 0);
    uint64_t budget = 10000, looks = 0;
    for (; budget != 45000 - MARGIN; looks++) {
        uint64_t then = next(&any, budget, budget, 45000 - budget);
        assert_in_range(then, budget, budget + TOTAL / 16);
        budget = then;
        if (looks > 200)
            break;
    }
    assert_int_equal(budget, 45000 - MARGIN);
    assert_int_equal(looks, 7 * 10); /* seven steps */
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(next(&any, budget, budget, 45000 - budget), budget);
}

static void a_look_with_less_begins_the_wait_anew(void **state)
{
    (void)state;
    struct cws_auto_rule any = rule_of(0, 0);
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(next(&any, 10000, 10000, i % 10 == 9 ? 2000 : 9000), 10000);
}

static void small_changes_change_nothing(void **state)
{
    (void)state;
    struct cws_auto_rule any = rule_of(0, 0);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(next(&any, 10000, 9000 + i * 10, 1000 - i * 10 + MARGIN + i * 37 % 1500 - 750), 10000);
}

static void the_range_ends_it(void **state)
{
    (void)state;
    struct cws_auto_rule range = rule_of(4000, 20000);
    for (unsigned i = 0; i < 30; i++)
        assert_int_equal(next(&range, 20000, 20000, 50000), 20000);
    uint64_t budget = 19500;
    for (unsigned i = 0; i < 10; i++)
        budget = next(&range, budget, budget, 50000);
    assert_int_equal(budget, 20000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_begins_with_what_is_free),  cmocka_unit_test(it_gives_way_at_once),
        cmocka_unit_test(it_grows_back_slowly),         cmocka_unit_test(a_look_with_less_begins_the_wait_anew),
        cmocka_unit_test(small_changes_change_nothing), cmocka_unit_test(the_range_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
