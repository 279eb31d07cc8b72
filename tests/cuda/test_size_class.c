/* Size classes: each size has one, which is not much larger, and what is larger has no smaller one. */
#include "uvm/cuda/size_class.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void expect_class(uint32_t g)
{
    uint32_t wide = cws_size_class_round(g);
    unsigned class = cws_size_class(g);
    assert_true(class < CWS_SIZE_CLASSES);
    assert_true(wide >= g && wide - g <= (g <= 16 ? 0 : g <= 128 ? g / 8 : g / 32));
    assert_int_equal(cws_size_class_round(wide), wide);
    assert_int_equal(cws_size_class(wide), class); /* the largest of its class, and the next one begins behind it */
    if (wide < 1u << 31)
        assert_int_equal(cws_size_class(wide + 1), class + 1);
}

static void test_sizes(void **state)
{
    (void)state;
    assert_int_equal(cws_size_class(1), 0);
    for (uint32_t g = 1; g <= 100000; g++)
        expect_class(g);
    for (unsigned k = 17; k < 31; k++)
        for (int off = -2; off <= 2; off++) {
            expect_class((1u << k) + (uint32_t)off);
            expect_class(3u * (1u << (k - 1)) + (uint32_t)off);
        }
    expect_class(1u << 31);
    assert_int_equal(cws_size_class(1u << 31), CWS_SIZE_CLASSES - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
