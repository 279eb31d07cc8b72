/* Description: every tuned number is found by its name, alone, and can be what it is said that it can be, and nothing
 * else; its default is among that. */
#include "uvm/policy/tuning.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void each_number_has_one_row(void **state)
{
    (void)state;
    struct cws_tuning_row row, other, found;
    size_t count = 0;
    for (; cws_tuning_row(count, &row); count++) {
        assert_int_equal(row.offset, count * sizeof(uint64_t)); /* in the order of the struct, none left out */
        assert_true(row.name[0] && row.meaning[0] && row.unit);
        assert_true(row.least <= row.fallback && row.fallback <= row.most && row.least < row.most);
        assert_int_equal(cws_tuning_get(&cws_tuning_default, &row), row.fallback);
        assert_true(cws_tuning_find(row.name, &found));
        assert_int_equal(found.offset, row.offset);
        for (size_t k = 0; k < count; k++) {
            assert_true(cws_tuning_row(k, &other));
            assert_string_not_equal(other.name, row.name);
        }
    }
    assert_int_equal(count * sizeof(uint64_t), sizeof(struct cws_tuning));
    assert_false(cws_tuning_row(SIZE_MAX, &row));
}

static void each_number_can_be_set_alone(void **state)
{
    (void)state;
    struct cws_tuning_row row;
    for (size_t i = 0; cws_tuning_row(i, &row); i++) {
        const uint64_t values[] = {row.least, row.most, row.fallback};
        struct cws_tuning t = cws_tuning_default;
        for (unsigned k = 0; k < 3; k++) {
            assert_true(cws_tuning_set(&t, row.name, values[k]));
            assert_int_equal(cws_tuning_get(&t, &row), values[k]);
            struct cws_tuning rest = t; /* the others are as they were */
            memcpy((char *)&rest + row.offset, (const char *)&cws_tuning_default + row.offset, sizeof(uint64_t));
            assert_memory_equal(&rest, &cws_tuning_default, sizeof rest);
        }
    }
    struct cws_tuning t = cws_tuning_default;
    assert_true(cws_tuning_set(&t, "order_tries", 7));
    assert_int_equal(t.order_tries, 7);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    static const char *const unknown[] = {"", "order", "order_trie", "order_tries ", "ORDER_TRIES", "tuning"};
    struct cws_tuning t = cws_tuning_default;
    struct cws_tuning_row row;
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_false(cws_tuning_find(unknown[i], &row));
        assert_false(cws_tuning_set(&t, unknown[i], 1));
    }
    for (size_t i = 0; cws_tuning_row(i, &row); i++) {
        assert_false(cws_tuning_set(&t, row.name, row.most + 1));
        assert_false(cws_tuning_set(&t, row.name, UINT64_MAX));
        if (row.least)
            assert_false(cws_tuning_set(&t, row.name, row.least - 1));
    }
    assert_memory_equal(&t, &cws_tuning_default, sizeof t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_number_has_one_row),
        cmocka_unit_test(each_number_can_be_set_alone),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
