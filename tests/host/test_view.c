/* Description: on every rung a view shows the right bytes, keeps the budget, keeps what was written, and reports what
 * cannot be decoded as SIGBUS with one line. */
#include "pattern_source.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void every_byte_is_right_at_random_offsets(void **state)
{
    (void)state;
    uint64_t seed = 42;
    const size_t bytes = 9 * MIB + 123;
    start_pager(2 * MIB);
    struct pattern *p = pattern_new(bytes, 700 * KIB + 13);
    uint8_t *at = map_view(p, bytes, PROT_READ, 0);
    for (int i = 0; i < 3000; i++) {
        size_t len = next_random(&seed) % 64 + 1, offset = next_random(&seed) % (bytes - len);
        assert_int_equal(pattern_differs(p, at + offset, len, offset), -1);
    }
    assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
    for (size_t i = bytes; i % PAGE; i++) /* the rest of the last page */
        assert_int_equal(at[i], 0);
    unmap_view(at, bytes);
    pattern_free(p);
    stop_pager();
}

static void views_may_begin_anywhere_and_share_a_source(void **state)
{
    (void)state;
    const size_t bytes = 3 * MIB;
    start_pager(MIB);
    struct pattern *p = pattern_new(bytes, MIB);
    uint8_t *a = map_view(p, bytes, PROT_READ, 0), *b = map_view(p, MIB, PROT_READ | PROT_WRITE, MIB + PAGE),
            *c = map_view(p, 5, PROT_READ, 2 * PAGE);
    assert_int_equal(pattern_differs(p, a, bytes, 0), -1);
    assert_int_equal(pattern_differs(p, b, MIB, MIB + PAGE), -1);
    b[77] ^= 0xff; /* private */
    assert_int_equal(pattern_differs(p, a, bytes, 0), -1);
    assert_int_equal(pattern_differs(p, c, PAGE, 2 * PAGE), -1);
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    assert_int_equal(stats.views, 3);
    unmap_view(a, bytes);
    assert_int_equal(b[77], (uint8_t)(pattern_byte(p, MIB + PAGE + 77) ^ 0xff));
    unmap_view(b, MIB);
    unmap_view(c, 5);
    cws_pager_stats_get(&stats);
    assert_int_equal(stats.views, 0);
    assert_int_equal(stats.resident_bytes, 0);
    assert_int_equal(stats.written_bytes, 0);
    pattern_free(p);
    stop_pager();
}

static void bad_requests_are_refused_and_change_nothing(void **state)
{
    (void)state;
    void *at;
    struct cws_error err = {0};
    struct cws_options small = {
        .active = true, .budget_bytes = cws_pager_least_budget() - 1, .pager = rung_under_test()};
    assert_int_equal(cws_pager_start(&small, &err), CWS_E_BUDGET);
    assert_non_null(strstr(err.message, "1048576"));
    assert_string_equal(cws_pager_rung(), "none");
    start_pager(MIB);
    struct pattern *p = pattern_new(2 * PAGE + 1808, 0);
    assert_int_equal(cws_view_map_source(&p->base, NULL, 10, PROT_READ | PROT_EXEC, 0, 0, &at, &err),
                     CWS_E_UNSUPPORTED);
    assert_int_equal(cws_view_map_source(&p->base, NULL, 10, PROT_NONE, 0, 0, &at, &err), CWS_E_UNSUPPORTED);
    assert_int_equal(cws_view_map_source(&p->base, NULL, 10, PROT_READ, 0, 1, &at, &err), CWS_E_USAGE);
    assert_int_equal(cws_view_map_source(&p->base, NULL, 0, PROT_READ, 0, 0, &at, &err), CWS_E_USAGE);
    assert_int_equal(cws_view_map_source(&p->base, NULL, 3 * PAGE + 1, PROT_READ, 0, 0, &at, &err), CWS_E_RANGE);
    assert_int_equal(cws_view_map_source(&p->base, NULL, 1, PROT_READ, 0, 3 * PAGE, &at, &err), CWS_E_RANGE);
    assert_int_equal(cws_view_map_source(&p->base, NULL, SIZE_MAX, PROT_READ, 0, 0, &at, &err), CWS_E_RANGE);
    uint8_t *last = map_view(p, PAGE, PROT_READ, 2 * PAGE);
    assert_int_equal(cws_pager_stop(), CWS_E_BUSY);
    assert_int_equal(pattern_differs(p, last, 1808, 2 * PAGE), -1);
    assert_int_equal(last[PAGE - 1], 0);
    unmap_view(last, PAGE);
    pattern_free(p);
    stop_pager();
}

/* --- budget ------------------------------------------------------------------------------------------ */

static void the_budget_is_kept_by_our_count_and_by_the_kernels(void **state)
{
    (void)state;
    const size_t bytes = 16 * MIB, budget = 2 * MIB;
    if (rung_is("eager"))
        skip();
    start_pager(budget);
    struct pattern *p = pattern_new(bytes, MIB);
    uint8_t *a = map_view(p, bytes, PROT_READ, 0), *b = map_view(p, bytes, PROT_READ | PROT_WRITE, 0);
    uint64_t worst = 0, moved = 0, seed = 7;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t at = 0; at < bytes; at += 64 * KIB) {
            assert_int_equal(pattern_differs(p, a + at, PAGE, at), -1);
            size_t other = next_random(&seed) % (bytes - PAGE);
            assert_int_equal(pattern_differs(p, b + other, PAGE, other), -1);
            if (at % MIB == 0) {
                uint64_t moving = smaps_rss(a, bytes) + smaps_rss(b, bytes);
                moved = moving > moved ? moving : moved;
                /* stands still: nothing is being filled or dropped, so that the sample is a snapshot */
                cws_view_fork_prepare();
                uint64_t rss = smaps_rss(a, bytes) + smaps_rss(b, bytes);
                cws_view_fork_parent();
                worst = rss > worst ? rss : worst;
            }
        }
    }
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    printf("# budget %zu, peak by our count %llu, worst smaps snapshot %llu (%llu while blocks move), evictions %llu\n",
           budget, (unsigned long long)stats.peak_bytes, (unsigned long long)worst, (unsigned long long)moved,
           (unsigned long long)stats.evictions);
    assert_true(stats.peak_bytes <= budget);
    assert_true(stats.peak_bytes > budget / 2);
    assert_true(worst <= budget && worst > budget / 4);
    /* reading smaps takes time: a block that moves meanwhile is seen twice */
    assert_true(moved <= 2 * budget);
    assert_true(stats.evictions > bytes / stats.block_bytes / 2);
    unmap_view(a, bytes);
    unmap_view(b, bytes);
    pattern_free(p);
    stop_pager();
}

static void written_bytes_survive_eviction_pressure(void **state)
{
    (void)state;
    const size_t bytes = 12 * MIB;
    uint64_t seed = 99;
    start_pager(MIB);
    struct pattern *p = pattern_new(bytes, MIB);
    uint8_t *at = map_view(p, bytes, PROT_READ | PROT_WRITE, 0), *shadow = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        shadow[i] = pattern_byte(p, i);
    for (int i = 0; i < 400; i++) {
        size_t offset = next_random(&seed) % (2 * MIB);
        if (i & 1)
            assert_int_equal(at[offset], shadow[offset]); /* half of the writes hit a block that is clean */
        at[offset] = shadow[offset] = (uint8_t)seed;
        size_t other = 2 * MIB + next_random(&seed) % (10 * MIB);
        assert_int_equal(at[other], shadow[other]);
    }
    assert_memory_equal(at, shadow, bytes);
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    if (!rung_is("eager")) {
        assert_true(stats.written_bytes >= 2 * MIB && stats.written_bytes <= 2 * MIB + stats.block_bytes);
        assert_int_equal(stats.write_faults, stats.written_bytes / stats.block_bytes);
        assert_true(stats.peak_bytes <= MIB);
    }
    free(shadow);
    unmap_view(at, bytes);
    pattern_free(p);
    stop_pager();
}

static void write_far_past_the_budget(void *arg)
{
    struct pattern *p = arg;
    start_pager(MIB);
    uint8_t *at = map_view(p, 4 * MIB, PROT_READ | PROT_WRITE, 0);
    for (size_t i = 0; i < 4 * MIB; i += PAGE)
        at[i] = 1;
    for (size_t i = 0; i < 4 * MIB; i += PAGE)
        if (at[i] != 1 || at[i + 1] != pattern_byte(p, i + 1))
            _exit(3);
}

static void writing_past_the_budget_is_warned_about_once(void **state)
{
    (void)state;
    char text[4096];
    if (rung_is("eager"))
        skip();
    struct pattern *p = pattern_new(4 * MIB, MIB);
    assert_int_equal(in_child(write_far_past_the_budget, p, text, sizeof text), 0);
    char *line = strstr(text, "the program has written to");
    assert_non_null(line);
    assert_null(strstr(line + 1, "the program has written to"));
    pattern_free(p);
}

/* --- threads ----------------------------------------------------------------------------------------- */

struct reader {
    struct pattern *p;
    uint8_t *at;
    size_t bytes;
    pthread_barrier_t *start;
    long wrong;
};

static void *read_all(void *arg)
{
    struct reader *r = arg;
    pthread_barrier_wait(r->start);
    r->wrong = pattern_differs(r->p, r->at, r->bytes, 0);
    return NULL;
}

static void threads_on_one_block_decode_it_once(void **state)
{
    (void)state;
    enum { THREADS = 6 };
    start_pager(4 * MIB);
    struct pattern *p = pattern_new(64 * KIB, 0);
    p->delay_us = 20000;
    uint8_t *at = map_view(p, 64 * KIB, PROT_READ, 0);
    pthread_barrier_t start;
    pthread_t threads[THREADS];
    struct reader readers[THREADS];
    pthread_barrier_init(&start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        readers[i] = (struct reader){p, at, 64 * KIB, &start, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, read_all, &readers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].wrong, -1);
    }
    assert_int_equal(atomic_load(&p->fills), 1);
    pthread_barrier_destroy(&start);
    unmap_view(at, 64 * KIB);
    pattern_free(p);
    stop_pager();
}

static void threads_under_pressure_make_progress(void **state)
{
    (void)state;
    enum { THREADS = 8 };
    start_pager(MIB); /* sixteen blocks for eight threads that each scan everything */
    struct pattern *p = pattern_new(6 * MIB, MIB);
    uint8_t *at = map_view(p, 6 * MIB, PROT_READ, 0);
    pthread_barrier_t start;
    pthread_t threads[THREADS];
    struct reader readers[THREADS];
    pthread_barrier_init(&start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        readers[i] = (struct reader){p, at, 6 * MIB, &start, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, read_all, &readers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].wrong, -1);
    }
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    if (!rung_is("eager"))
        assert_true(stats.peak_bytes <= MIB);
    pthread_barrier_destroy(&start);
    unmap_view(at, 6 * MIB);
    pattern_free(p);
    stop_pager();
}

/* --- failures ---------------------------------------------------------------------------------------- */

struct touch {
    struct pattern *p;
    size_t offset;
    bool write;
};

static void touch_it(void *arg)
{
    struct touch *t = arg;
    signal(SIGBUS, SIG_DFL); /* the test library's would not end the process */
    signal(SIGSEGV, SIG_DFL);
    start_pager(MIB);
    volatile uint8_t *at = map_view(t->p, 4 * MIB, PROT_READ | PROT_WRITE, 0);
    if (pattern_differs(t->p, (uint8_t *)at, MIB, 0) != -1) /* what is sound is served */
        _exit(3);
    if (t->write)
        at[t->offset] = 1;
    else
        (void)at[t->offset];
    _exit(4);
}

static void a_block_that_cannot_be_decoded_raises_sigbus_and_one_line(void **state)
{
    (void)state;
    char text[8192];
    for (int write = 0; write < 2; write++) {
        struct pattern *p = pattern_new(4 * MIB, MIB);
        atomic_store(&p->corrupt_begin, 2 * MIB + 5);
        atomic_store(&p->corrupt_end, 2 * MIB + 6);
        struct touch t = {p, 2 * MIB + 100, write};
        int status = in_child(touch_it, &t, text, sizeof text);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGBUS)
            fail_msg("status %#x, stderr: %s", (unsigned)status, text);
        char *line = strstr(text, "pattern.store: tensor \"t2\": the stored bytes fail their checksum");
        assert_non_null(line);
        assert_null(strstr(line + 1, "pattern.store:"));
        pattern_free(p);
    }
}

static void store_to_read_only(void *arg)
{
    signal(SIGSEGV, SIG_DFL);
    start_pager(MIB);
    volatile uint8_t *at = map_view(arg, MIB, PROT_READ, 0);
    (void)at[5];
    at[5] = 1;
    _exit(4);
}

static void writing_to_a_read_only_view_is_a_plain_segmentation_fault(void **state)
{
    (void)state;
    char text[4096];
    struct pattern *p = pattern_new(4 * MIB, MIB);
    int status = in_child(store_to_read_only, p, text, sizeof text);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSEGV);
    pattern_free(p);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test(every_byte_is_right_at_random_offsets),
        cmocka_unit_test(views_may_begin_anywhere_and_share_a_source),
        cmocka_unit_test(bad_requests_are_refused_and_change_nothing),
        cmocka_unit_test(the_budget_is_kept_by_our_count_and_by_the_kernels),
        cmocka_unit_test(written_bytes_survive_eviction_pressure),
        cmocka_unit_test(writing_past_the_budget_is_warned_about_once),
        cmocka_unit_test(threads_on_one_block_decode_it_once),
        cmocka_unit_test(threads_under_pressure_make_progress),
        cmocka_unit_test(a_block_that_cannot_be_decoded_raises_sigbus_and_one_line),
        cmocka_unit_test(writing_to_a_read_only_view_is_a_plain_segmentation_fault),
    };
    return cmocka_run_group_tests_name("view", list, NULL, NULL);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
