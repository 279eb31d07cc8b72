/* Description: with CODEC_VRAM_BUDGET=auto:16M-64M the budget of a GPU begins with what is free inside the range, and
 * gives way when other programs take memory there; what is read stays right. A budget that is set ends it. */
#include "cuda_weights.h"
#include "ask_budget.h"

#include <time.h>

static void read_all(void)
{
    for (unsigned i = 0; i < TENSORS; i++)
        read_one(i);
}

static void others_take(size_t bytes)
{
    void (*others)(size_t) = (void (*)(size_t))dlsym(driver_handle, "standin_others");
    assert_non_null(others);
    others(bytes);
}

static void it_gives_way(void **state)
{
    (void)state;
    const struct timespec moment = {.tv_nsec = 10000000};
    assert_int_equal(stat_of("budget"), 64 * MIB);
    read_all();
    others_take((512 - 150) * MIB); /* 256 MiB are to stay free */
    while (stat_of("budget") == 64 * MIB)
        nanosleep(&moment, NULL);
    assert_true(stat_of("budget") < 40 * MIB && stat_of("budget") >= 16 * MIB);
    read_all();
    assert_true(stat_of("used") <= stat_of("budget"));
    assert_true(call_set("auto") < 0);
    assert_int_equal(call_set("60M"), 0); /* from now on it is what was said */
    assert_int_equal(stat_of("budget"), 60 * MIB);
    read_all();
    assert_int_equal(stat_of("budget"), 60 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_gives_way)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
