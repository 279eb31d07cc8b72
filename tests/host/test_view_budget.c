/* Description: on every rung the budget of views changes while they are used: a smaller one is met before the call
 * returns or is refused, a larger one is used, and every byte stays right. Sleep drops all that nobody holds. */
#include "pattern_source.h"

#include <pthread.h>
#include <unistd.h>
#include <stdatomic.h>

static struct cws_pager_stats now(void)
{
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    return stats;
}

/* What a thread has seen is counted a moment later. */
static void expect_resident(uint64_t bytes)
{
    for (unsigned i = 0; i < 100000 && now().resident_bytes != bytes; i++)
        usleep(1000);
    assert_int_equal(now().resident_bytes, bytes);
}

static void set(uint64_t bytes)
{
    struct cws_error err = {0};
    if (cws_pager_set_budget(bytes, &err))
        fail_msg("%s", err.message);
    assert_int_equal(now().budget_bytes, bytes);
    assert_true(now().resident_bytes <= bytes);
}

static void refused(uint64_t bytes, const char *why)
{
    struct cws_error err = {0};
    uint64_t before = now().budget_bytes;
    assert_int_equal(cws_pager_set_budget(bytes, &err), CWS_E_BUDGET);
    if (!strstr(err.message, why))
        fail_msg("%s", err.message);
    assert_int_equal(now().budget_bytes, before);
}

static void it_shrinks_and_grows(void **state)
{
    (void)state;
    const size_t bytes = 8 * MIB;
    if (rung_is("eager"))
        skip();
    start_pager(10 * MIB); /* so that the least is 4 MiB */
    struct pattern *p = pattern_new(bytes, MIB);
    uint8_t *at = map_view(p, bytes, PROT_READ, 0);
    uint64_t least = 16 * now().block_bytes;
    assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
    expect_resident(bytes);
    refused(least - 1, "the least is ");
    refused(0, "the least is ");
    expect_resident(bytes);
    for (uint64_t budget = bytes - MIB; budget >= least; budget -= MIB) {
        set(budget);
        assert_true(smaps_rss(at, bytes) <= budget);
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
        assert_true(now().resident_bytes <= budget);
    }
    set(9 * MIB);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
    uint64_t evictions = now().evictions;
    assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
    assert_int_equal(now().evictions, evictions); /* all of it stays */
    expect_resident(bytes);
    unmap_view(at, bytes);
    pattern_free(p);
    stop_pager();
}

/* A worker may be at a guess that it took before; once it is done nothing comes any more. */
static void sleep_to(uint64_t resident)
{
    for (unsigned i = 0; i < 1000; i++) {
        cws_pager_sleep();
        if (now().resident_bytes == resident)
            break;
        usleep(1000);
    }
    assert_int_equal(now().resident_bytes, resident);
}

static void sleep_leaves_what_is_held_and_what_was_written(void **state)
{
    (void)state;
    const size_t bytes = 4 * MIB;
    struct cws_error err = {0};
    if (rung_is("eager"))
        skip();
    cws_pager_sleep(); /* nothing runs */
    start_pager(8 * MIB);
    struct pattern *p = pattern_new(bytes, MIB);
    uint8_t *at = map_view(p, bytes, PROT_READ | PROT_WRITE, 0);
    assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
    at[0] ^= 0xff;
    assert_int_equal(cws_view_hold(at + MIB, MIB, false, &err), 0);
    sleep_to(MIB);
    assert_true(smaps_rss(at, bytes) <= MIB + now().written_bytes);
    assert_int_equal(now().budget_bytes, 8 * MIB);
    cws_view_unhold(at + MIB, MIB);
    sleep_to(0);
    at[0] ^= 0xff;
    assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
    unmap_view(at, bytes);
    pattern_free(p);
    stop_pager();
}

static void where_there_is_none_it_is_refused(void **state)
{
    (void)state;
    struct cws_error err = {0};
    assert_int_equal(cws_pager_set_budget(64 * MIB, &err), CWS_E_BUSY);
    if (!rung_is("eager"))
        return;
    start_pager(8 * MIB);
    assert_int_equal(cws_pager_set_budget(64 * MIB, &err), CWS_E_UNSUPPORTED);
    cws_pager_sleep();
    stop_pager();
}

struct reader {
    struct pattern *p;
    const uint8_t *at;
    size_t bytes;
    atomic_bool stop;
    atomic_long wrong;
};

/* A file of more blocks than may be in memory at a time, never touched. */
static void blocks_for_a_small_budget_limit_a_large_one(void **state)
{
    (void)state;
    struct cws_error err = {0};
    if (rung_is("eager"))
        skip();
    start_pager(1 << 20);
    const uint64_t most = 16384 * now().block_bytes;
    struct pattern *p = pattern_new(most + MIB, MIB);
    uint8_t *at = map_view(p, most + MIB, PROT_READ, 0);
    refused(most + 1, "the most is ");
    set(most);
    assert_int_equal(pattern_differs(p, at + most, MIB, most), -1);
    unmap_view(at, most + MIB);
    assert_int_equal(cws_pager_set_budget(most + 1, &err), 0);
    pattern_free(p);
    stop_pager();
}

static void *read_on(void *arg)
{
    struct reader *r = arg;
    while (!atomic_load(&r->stop))
        if (pattern_differs(r->p, r->at, r->bytes, 0) >= 0)
            atomic_fetch_add(&r->wrong, 1);
    return NULL;
}

static void threads_read_on_meanwhile(void **state)
{
    (void)state;
    const size_t bytes = 6 * MIB;
    pthread_t threads[3];
    if (rung_is("eager"))
        skip();
    start_pager(8 * MIB);
    struct pattern *p = pattern_new(bytes, MIB);
    struct reader r = {.p = p, .at = map_view(p, bytes, PROT_READ, 0), .bytes = bytes};
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &r), 0);
    for (unsigned i = 0; i < 30; i++) {
        set((i % 3 ? 4 : 8) * MIB);
        if (i % 4 == 0)
            cws_pager_sleep();
    }
    atomic_store(&r.stop, true);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&r.wrong), 0);
    unmap_view((void *)r.at, bytes);
    pattern_free(p);
    stop_pager();
}

static int tests(void)
{
    const struct CMUnitTest all[] = {
        cmocka_unit_test(it_shrinks_and_grows),
        cmocka_unit_test(sleep_leaves_what_is_held_and_what_was_written),
        cmocka_unit_test(blocks_for_a_small_budget_limit_a_large_one),
        cmocka_unit_test(where_there_is_none_it_is_refused),
        cmocka_unit_test(threads_read_on_meanwhile),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
