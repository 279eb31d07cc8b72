/* Description: races at named points of a block's life, a pager that dies, lock ranks, illegal transitions, every
 * rung's probe, counters. */
#include "pattern_source.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* --- a gate: stops the first thread that comes to a phase of a block until it is opened ----------------- */

static struct {
    _Atomic uint32_t phase, block;
    _Atomic bool armed;
    _Atomic uint32_t reached, opened;
} gate;

static void gate_hook(enum cws_phase phase, struct cws_view *v, uint32_t block)
{
    (void)v;
    if ((uint32_t)phase != gate.phase || block != gate.block || !atomic_exchange(&gate.armed, false))
        return;
    atomic_store(&gate.reached, 1);
    cws_wake(&gate.reached);
    while (!atomic_load(&gate.opened))
        cws_wait(&gate.opened, 0);
}
static void gate_arm(enum cws_phase phase, uint32_t block)
{
    gate.phase = phase;
    gate.block = block;
    atomic_store(&gate.reached, 0);
    atomic_store(&gate.opened, 0);
    atomic_store(&gate.armed, true);
    atomic_store(&cws_phase_hook, gate_hook);
}
static void gate_wait(void)
{
    while (!atomic_load(&gate.reached))
        cws_wait(&gate.reached, 0);
}
static void gate_open(void)
{
    atomic_store(&gate.opened, 1);
    cws_wake(&gate.opened);
}

struct act {
    struct pattern *p;
    uint8_t *at;
    size_t offset, len;
    bool write;
    _Atomic uint32_t done;
    _Atomic long wrong;
};

static void *reader(void *arg)
{
    struct act *a = arg;
    if (a->write)
        *(volatile uint8_t *)(a->at + a->offset) = 0x77;
    else
        atomic_store(&a->wrong, pattern_differs(a->p, a->at + a->offset, a->len, a->offset) + 1);
    atomic_store(&a->done, 1);
    cws_wake(&a->done);
    return NULL;
}
static void *unmapper(void *arg)
{
    struct act *a = arg;
    atomic_store(&a->wrong, cws_view_munmap(a->at + a->offset, a->len));
    atomic_store(&a->done, 1);
    return NULL;
}
static void *forgetter(void *arg)
{
    struct act *a = arg;
    atomic_store(&a->wrong, cws_view_advise(a->at + a->offset, a->len, MADV_DONTNEED));
    atomic_store(&a->done, 1);
    return NULL;
}
static void pause_ms(unsigned ms)
{
    struct timespec t = {.tv_nsec = (long)ms * 1000000};
    nanosleep(&t, NULL);
}

/* Someone is stopped in the middle of filling a block while another thread unmaps it: the unmap waits, and nothing of
 * the fill is seen in what is mapped there next. */
static void an_unmap_waits_for_the_fill_in_its_way(void **state)
{
    (void)state;
    static const enum cws_phase phases[] = {CWS_PHASE_RESERVED, CWS_PHASE_DECODED, CWS_PHASE_PUBLISHED};
    if (rung_is("eager"))
        skip();
    for (size_t i = 0; i < 3; i++) {
        start_pager(MIB);
        struct pattern *p = pattern_new(2 * MIB, 0);
        uint8_t *at = map_view(p, 2 * MIB, PROT_READ | PROT_WRITE, 0);
        struct act hold = {.p = p, .at = at, .offset = 3 * 64 * KIB, .len = PAGE},
                   cut = {.at = at, .offset = 3 * 64 * KIB + PAGE, .len = 60 * KIB};
        pthread_t filler, cutter;
        gate_arm(phases[i], 3);
        pthread_create(&filler, NULL, reader, &hold);
        gate_wait();
        pthread_create(&cutter, NULL, unmapper, &cut);
        pause_ms(30);
        assert_int_equal(atomic_load(&cut.done), 0);
        gate_open();
        pthread_join(filler, NULL);
        pthread_join(cutter, NULL);
        assert_int_equal(atomic_load(&hold.wrong), 0);
        assert_int_equal(atomic_load(&cut.wrong), 0);
        uint8_t *other = mmap(at + cut.offset, cut.len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
                              -1, 0);
        assert_ptr_equal(other, at + cut.offset);
        for (size_t n = 0; n < cut.len; n++)
            assert_int_equal(other[n], 0);
        assert_int_equal(pattern_differs(p, at, cut.offset, 0), -1);
        unmap_view(at, 2 * MIB);
        pattern_free(p);
        stop_pager();
    }
}

/* A block is being dropped while it is written to and read: no write is lost, no reader sees zeros. */
static void a_touch_during_eviction_is_served_after_it(void **state)
{
    (void)state;
    static const enum cws_phase phases[] = {CWS_PHASE_EVICTING, CWS_PHASE_DROPPED};
    if (rung_is("eager"))
        skip();
    for (int n = 0; n < 4; n++) {
        start_pager_with((struct cws_options){.active = true, .budget_bytes = MIB, .policy = CWS_POLICY_LRU});
        struct pattern *p = pattern_new(4 * MIB, 0);
        uint8_t *at = map_view(p, 4 * MIB, PROT_READ | PROT_WRITE, 0);
        struct act touch = {.p = p, .at = at, .offset = PAGE, .len = PAGE, .write = n & 1};
        struct act press = {.p = p, .at = at, .offset = MIB, .len = MIB};
        pthread_t toucher, presser;
        assert_int_equal(pattern_differs(p, at, MIB, 0), -1);
        gate_arm(phases[n / 2], 0); /* lru: the first one goes */
        pthread_create(&presser, NULL, reader, &press);
        gate_wait();
        pthread_create(&toucher, NULL, reader, &touch);
        pause_ms(30);
        if (phases[n / 2] == CWS_PHASE_DROPPED || touch.write)
            assert_int_equal(atomic_load(&touch.done), 0);
        gate_open();
        pthread_join(toucher, NULL);
        pthread_join(presser, NULL);
        assert_int_equal(atomic_load(&touch.wrong), 0);
        assert_int_equal(atomic_load(&press.wrong), 0);
        assert_int_equal(pattern_differs(p, at + 2 * MIB, 2 * MIB, 2 * MIB), -1);
        if (touch.write)
            assert_int_equal(at[PAGE], 0x77);
        assert_int_equal(pattern_differs(p, at + 4097, 60 * KIB, 4097), -1);
        unmap_view(at, 4 * MIB);
        pattern_free(p);
        stop_pager();
    }
}

static void advice_waits_for_the_fill_in_its_way(void **state)
{
    (void)state;
    if (rung_is("eager"))
        skip();
    start_pager(MIB);
    struct pattern *p = pattern_new(MIB, 0);
    uint8_t *at = map_view(p, MIB, PROT_READ | PROT_WRITE, 0);
    struct act fill = {.p = p, .at = at, .offset = 0, .len = 64 * KIB}, drop = {.at = at, .offset = 0, .len = MIB};
    pthread_t filler, dropper;
    gate_arm(CWS_PHASE_DECODED, 0);
    pthread_create(&filler, NULL, reader, &fill);
    gate_wait();
    pthread_create(&dropper, NULL, forgetter, &drop);
    pause_ms(20);
    assert_int_equal(atomic_load(&drop.done), 0);
    gate_open();
    pthread_join(filler, NULL);
    pthread_join(dropper, NULL);
    assert_int_equal(atomic_load(&fill.wrong), 0);
    assert_int_equal(pattern_differs(p, at, MIB, 0), -1);
    unmap_view(at, MIB);
    pattern_free(p);
    stop_pager();
}

/* A fork that comes while a block is being filled waits for it; the child is right. */
static void *forker(void *arg)
{
    struct act *a = arg;
    pid_t pid = fork();
    if (pid == 0)
        _exit(pattern_differs(a->p, a->at, a->len, 0) == -1 ? 0 : 1);
    int status = -1;
    waitpid(pid, &status, 0);
    atomic_store(&a->wrong, status);
    atomic_store(&a->done, 1);
    return NULL;
}

static void a_fork_waits_for_the_fill_in_its_way(void **state)
{
    (void)state;
    if (rung_is("eager"))
        skip();
    start_pager(MIB);
    struct pattern *p = pattern_new(MIB, 0);
    uint8_t *at = map_view(p, MIB, PROT_READ | PROT_WRITE, 0);
    struct act fill = {.p = p, .at = at, .offset = 0, .len = 64 * KIB}, child = {.p = p, .at = at, .len = MIB};
    pthread_t filler, forking;
    gate_arm(CWS_PHASE_DECODED, 0);
    pthread_create(&filler, NULL, reader, &fill);
    gate_wait();
    fflush(NULL);
    pthread_create(&forking, NULL, forker, &child);
    pause_ms(30);
    assert_int_equal(atomic_load(&child.done), 0);
    gate_open();
    pthread_join(filler, NULL);
    pthread_join(forking, NULL);
    assert_int_equal(atomic_load(&fill.wrong), 0);
    assert_int_equal(atomic_load(&child.wrong), 0);
    unmap_view(at, MIB);
    pattern_free(p);
    stop_pager();
}

/* --- the pager dies ---------------------------------------------------------------------------------- */

static void die_hook(enum cws_phase phase, struct cws_view *v, uint32_t block)
{
    (void)v;
    if (phase == CWS_PHASE_DECODED && block == 2)
        cws_die("injected: the handler is broken");
}

static void touch_with_a_dying_handler(void *arg)
{
    struct pattern *p = arg;
    signal(SIGABRT, SIG_DFL);
    start_pager(MIB);
    uint8_t *at = map_view(p, MIB, PROT_READ, 0);
    (void)*(volatile uint8_t *)at;
    atomic_store(&cws_phase_hook, die_hook);
    volatile uint8_t seen = at[2 * 64 * KIB];
    _exit(seen == 0 ? 5 : 6); /* reached: the reader got something */
}

static void a_dying_handler_ends_the_process_with_a_line(void **state)
{
    (void)state;
    char text[1000];
    if (rung_is("eager"))
        skip();
    struct pattern *p = pattern_new(MIB, 0);
    int status = in_child(touch_with_a_dying_handler, p, text, sizeof text);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, "codecllm: injected: the handler is broken\n"));
    pattern_free(p);
}

/* --- our own checks work ----------------------------------------------------------------------------- */

static void take_out_of_rank(void *arg)
{
    (void)arg;
    signal(SIGABRT, SIG_DFL);
    cws_lock_take(&cws_pager.lock);
    cws_lock_take(&cws_pager.views_lock);
}
static void make_an_illegal_transition(void *arg)
{
    struct cws_block b = {0};
    (void)arg;
    signal(SIGABRT, SIG_DFL);
    cws_block_set(&b, CWS_CLEAN);
}

static void broken_rules_are_reported(void **state)
{
    (void)state;
    char text[1000];
    int status = in_child(take_out_of_rank, NULL, text, sizeof text);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(text, "out of rank"));
    status = in_child(make_an_illegal_transition, NULL, text, sizeof text);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(text, "from ABSENT to CLEAN"));
}

static void a_fill_raises_the_generation(void **state)
{
    (void)state;
    struct cws_block b = {0};
    assert_false(cws_block_set(&b, CWS_FILLING));
    assert_int_equal(cws_block_generation(&b), 1);
    cws_block_set_pending(&b);
    assert_true(cws_block_set(&b, CWS_CLEAN));
    assert_false(cws_block_set(&b, CWS_EVICTING));
    assert_false(cws_block_set(&b, CWS_ABSENT));
    assert_false(cws_block_set(&b, CWS_FILLING));
    assert_int_equal(cws_block_generation(&b), 2);
}

static void unknown_rungs_are_refused(void **state)
{
    (void)state;
    struct cws_error err = {0};
    assert_int_equal(cws_pager_probe("swap", &err), CWS_E_USAGE);
    assert_non_null(strstr(err.message, "uffd-dev"));
    assert_int_equal(cws_pager_probe(rung_under_test(), &err), 0);
}

/* Sequential reading is decoded ahead, also into the tensor that followed last time; CODEC_PREFETCH=0 is silent. */
static void readahead_saves_faults(void **state)
{
    (void)state;
    if (rung_is("eager"))
        skip();
    uint64_t faults[2], ahead[2];
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        start_pager_with((struct cws_options){.active = true, .budget_bytes = 8 * MIB, .prefetch = prefetch});
        struct pattern *p = pattern_new(6 * MIB, MIB);
        uint8_t *at = map_view(p, 6 * MIB, PROT_READ, 0);
        for (size_t i = 0; i < 6 * MIB; i += 256 * KIB) {
            assert_int_equal(at[i], pattern_byte(p, i));
            pause_ms(2); /* the program computes */
        }
        struct cws_pager_stats stats;
        cws_pager_stats_get(&stats);
        faults[prefetch] = stats.faults;
        ahead[prefetch] = stats.prefetched_blocks;
        unmap_view(at, 6 * MIB);
        pattern_free(p);
        stop_pager();
    }
    printf("# faults without readahead %llu, with %llu (%llu blocks ahead)\n", (unsigned long long)faults[0],
           (unsigned long long)faults[1], (unsigned long long)ahead[1]);
    assert_int_equal(ahead[0], 0);
    assert_true(ahead[1] > 0);
    assert_true(faults[1] * 3 < faults[0] * 2);
}

static int clear_hook(void **state)
{
    (void)state;
    atomic_store(&cws_phase_hook, NULL);
    return 0;
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test_teardown(an_unmap_waits_for_the_fill_in_its_way, clear_hook),
        cmocka_unit_test_teardown(a_touch_during_eviction_is_served_after_it, clear_hook),
        cmocka_unit_test_teardown(advice_waits_for_the_fill_in_its_way, clear_hook),
        cmocka_unit_test_teardown(a_fork_waits_for_the_fill_in_its_way, clear_hook),
        cmocka_unit_test(a_dying_handler_ends_the_process_with_a_line),
        cmocka_unit_test(broken_rules_are_reported),
        cmocka_unit_test(a_fill_raises_the_generation),
        cmocka_unit_test(unknown_rungs_are_refused),
        cmocka_unit_test(readahead_saves_faults),
    };
    return cmocka_run_group_tests_name("pager", list, NULL, NULL);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
