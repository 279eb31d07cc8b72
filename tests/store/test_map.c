/* Description: the hash map holds what was put and not removed, whatever the order, and the same as a plain array does;
 * no memory leaves it as it was. */
#include "store/base/map.h"
#include "tests/support/inject.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

struct pair {
    uint64_t a, b;
};

static void an_empty_map_has_no_key(void **state)
{
    (void)state;
    struct cws_map m = CWS_MAP_OF(struct pair);
    assert_null(cws_map_find(&m, 0));
    assert_null(cws_map_find(&m, 7));
    assert_false(cws_map_remove(&m, 7));
    assert_null(cws_map_put(&m, 0));
    cws_map_deinit(&m);
}

static void a_new_value_is_zero_and_an_old_one_stays(void **state)
{
    (void)state;
    struct cws_map m = CWS_MAP_OF(struct pair);
    struct pair *p = cws_map_put(&m, 7);
    assert_non_null(p);
    assert_true(p->a == 0 && p->b == 0);
    p->b = 3;
    assert_ptr_equal(cws_map_put(&m, 7), p);
    assert_true(p->b == 3);
    assert_int_equal(m.count, 1);
    assert_true(cws_map_remove(&m, 7));
    assert_false(cws_map_remove(&m, 7));
    p = cws_map_put(&m, 7);
    assert_non_null(p);
    assert_true(p->b == 0);
    cws_map_deinit(&m);
    assert_int_equal(m.count, 0);
    assert_null(cws_map_find(&m, 7));
}

enum { KEYS = 700, STEPS = 200000 };
static uint64_t shadow[KEYS]; /* value of each key, 0: not there */

static bool is_odd(uint64_t key, void *value, void *arg)
{
    uint64_t *asked = arg;
    ++*asked;
    return key && *(uint64_t *)value % 2;
}

/* Keys that lie close together and far apart, as addresses and handles do. */
static uint64_t key_of(unsigned i)
{
    return i % 3 == 0 ? (uint64_t)i + 1 : i % 3 == 1 ? (uint64_t)(i + 1) << 21 : ~(uint64_t)i << 7;
}

static void check(const struct cws_map *m)
{
    size_t count = 0;
    for (unsigned i = 0; i < KEYS; i++) {
        const uint64_t *value = cws_map_find(m, key_of(i));
        assert_true(value ? *value == shadow[i] && shadow[i] : !shadow[i]);
        count += shadow[i] != 0;
    }
    assert_int_equal(m->count, count);
}

static void random_steps_as_in_an_array(void **state)
{
    (void)state;
    struct cws_map m = CWS_MAP_OF(uint64_t);
    uint64_t random = 42, asked = 0;
    memset(shadow, 0, sizeof shadow);
    for (unsigned step = 0; step < STEPS; step++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        unsigned i = (unsigned)(random >> 33) % KEYS;
        if (random >> 63) {
            uint64_t *value = cws_map_put(&m, key_of(i));
            assert_non_null(value);
            assert_true(*value == shadow[i]);
            *value = shadow[i] = step + 1;
        } else {
            assert_int_equal(cws_map_remove(&m, key_of(i)), shadow[i] != 0);
            shadow[i] = 0;
        }
        if (step % 10000 == 9999) {
            cws_map_remove_if(&m, is_odd, &asked);
            for (unsigned k = 0; k < KEYS; k++)
                shadow[k] = shadow[k] % 2 ? 0 : shadow[k];
            check(&m);
        }
    }
    assert_true(asked > 0);
    check(&m);
    cws_map_deinit(&m);
}

static void no_memory_leaves_it_as_it_was(void **state)
{
    (void)state;
    struct cws_map m = CWS_MAP_OF(uint64_t);
    inject_arm(INJECT_ALLOC, 1);
    assert_null(cws_map_put(&m, 1));
    inject_disarm();
    unsigned refused = 0;
    memset(shadow, 0, sizeof shadow);
    for (unsigned i = 0; i < KEYS; i++) {
        inject_arm(INJECT_ALLOC, 1);
        uint64_t *value = cws_map_put(&m, key_of(i));
        inject_disarm();
        if (!value) {
            refused++;
            check(&m);
            value = cws_map_put(&m, key_of(i));
        }
        assert_non_null(value);
        *value = shadow[i] = i + 1;
    }
    assert_true(refused >= 4);
    check(&m);
    cws_map_deinit(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_map_has_no_key),
        cmocka_unit_test(a_new_value_is_zero_and_an_old_one_stays),
        cmocka_unit_test(random_steps_as_in_an_array),
        cmocka_unit_test(no_memory_leaves_it_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
