/* Description: a forked child reads the right bytes or crashes, never zeros; what it writes stays its own; the parent
 * goes on. On every rung. */
#include "pattern_source.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int wait_for(pid_t pid)
{
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

/* In the child: no assertions, exit codes. */
static void check_child(struct pattern *p, uint8_t *at, size_t bytes, size_t written)
{
    for (size_t i = 0; i < written; i += PAGE)
        if (at[i] != 0xA5)
            _exit(2);
    if (pattern_differs(p, at + written, bytes - written, written) != -1)
        _exit(3);
}

static void a_child_reads_and_writes_for_itself(void **state)
{
    (void)state;
    const size_t bytes = 6 * MIB, written = 300 * KIB / PAGE * PAGE;
    start_pager(2 * MIB);
    struct pattern *p = pattern_new(bytes, MIB);
    uint8_t *at = map_view(p, bytes, PROT_READ | PROT_WRITE, 0);
    for (size_t i = 0; i < written; i += PAGE)
        memset(at + i, 0xA5, PAGE);
    /* some blocks are clean, some absent, some written */
    assert_int_equal(pattern_differs(p, at + MIB, MIB, MIB), -1);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        check_child(p, at, bytes, written);
        memset(at + 3 * MIB, 0x11, 100000);
        memset(at, 0x22, PAGE);
        check_child(p, at + PAGE, MIB, 0);
        _exit(9);
    }
    /* check_child of a shifted range must fail: the test can tell right from wrong. */
    assert_int_equal(wait_for(pid), 3 << 8);
    pid = fork();
    if (pid == 0) {
        check_child(p, at, bytes, written);
        memset(at + 3 * MIB, 0x11, 100000);
        at[0] = 0x22;
        for (size_t i = 4 * MIB; i < bytes; i += PAGE) /* pressure in the child */
            if (at[i] != pattern_byte(p, i))
                _exit(4);
        for (size_t i = 0; i < 100000; i++)
            if (at[3 * MIB + i] != 0x11)
                _exit(5);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            if (at[3 * MIB] != 0x11 || at[0] != 0x22 || pattern_differs(p, at + 4 * MIB, 2 * MIB, 4 * MIB) != -1)
                _exit(6);
            at[3 * MIB] = 0x33;
            _exit(0);
        }
        int status;
        if (waitpid(grandchild, &status, 0) != grandchild || status != 0)
            _exit(7);
        if (at[3 * MIB] != 0x11)
            _exit(8);
        void *fresh = NULL; /* new views work in a child too */
        if (cws_view_map_source(&p->base, NULL, MIB, PROT_READ | PROT_WRITE, 0, MIB, &fresh, NULL) ||
            pattern_differs(p, fresh, MIB, MIB) != -1)
            _exit(11);
        if (cws_view_munmap(at, bytes) != 0 || cws_view_overlaps(at, bytes))
            _exit(10);
        _exit(0);
    }
    assert_int_equal(wait_for(pid), 0);
    assert_int_equal(at[0], 0xA5);
    assert_int_equal(pattern_differs(p, at + written, bytes - written, written), -1);
    unmap_view(at, bytes);
    pattern_free(p);
    stop_pager();
}

static void holes_protections_and_failed_blocks_are_inherited(void **state)
{
    (void)state;
    start_pager(2 * MIB);
    struct pattern *p = pattern_new(4 * MIB, MIB);
    atomic_store(&p->corrupt_begin, 3 * MIB);
    atomic_store(&p->corrupt_end, 3 * MIB + 1);
    uint8_t *at = map_view(p, 4 * MIB, PROT_READ | PROT_WRITE, 0);
    at[5 * PAGE] = 1;
    assert_int_equal(cws_view_hold(at + 3 * MIB, 1, false, NULL), CWS_E_CORRUPT);
    assert_int_equal(cws_view_protect(at + PAGE, PAGE, PROT_NONE), 0);
    assert_int_equal(cws_view_protect(at + 2 * MIB, PAGE, PROT_READ), 0);
    unmap_view(at + 2 * PAGE, PAGE);
    const struct {
        size_t offset;
        bool write;
        int signal;
    } cases[] = {
        {0, true, 0},
        {PAGE, false, SIGSEGV},
        {2 * PAGE, false, SIGSEGV},
        {2 * MIB, false, 0},
        {2 * MIB, true, SIGSEGV},
        {2 * MIB + PAGE, true, 0},
        {3 * MIB, false, SIGBUS},
        {5 * PAGE, false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fflush(NULL);
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        if (cws_view_needs_signal())
            assert_int_equal(cws_signal_install(), 0);
        pid_t pid = fork();
        if (pid == 0) {
            volatile uint8_t *byte = at + cases[i].offset;
            uint8_t value = *byte;
            if (cases[i].offset != 5 * PAGE && value != pattern_byte(p, cases[i].offset))
                _exit(1);
            if (cases[i].offset == 5 * PAGE && value != 1)
                _exit(2);
            if (cases[i].write)
                *byte = 3;
            _exit(0);
        }
        int status = wait_for(pid), expected = cases[i].signal;
        if ((WIFSIGNALED(status) ? WTERMSIG(status) : 0) != expected || (!expected && status))
            fail_msg("case %zu: status %#x, expected signal %d", i, (unsigned)status, expected);
    }
    unmap_view(at, 4 * MIB);
    pattern_free(p);
    stop_pager();
}

struct toucher {
    struct pattern *p;
    uint8_t *at;
    size_t bytes;
    _Atomic bool stop;
    _Atomic long wrong;
    uint64_t seed;
};

static void *touch_and_write(void *arg)
{
    struct toucher *t = arg;
    uint64_t seed = t->seed;
    while (!atomic_load(&t->stop)) {
        size_t offset = next_random(&seed) % (t->bytes - 64);
        if (pattern_differs(t->p, t->at + offset, 64, offset) != -1)
            atomic_fetch_add(&t->wrong, 1);
        sched_yield();
    }
    return NULL;
}

static void forking_while_threads_fault(void **state)
{
    (void)state;
    enum { THREADS = 3, FORKS = 25 };
    const size_t bytes = 4 * MIB;
    start_pager(MIB);
    struct pattern *p = pattern_new(bytes, MIB);
    uint8_t *at = map_view(p, bytes, PROT_READ | PROT_WRITE, 0);
    struct toucher t = {.p = p, .at = at, .bytes = bytes, .seed = 17};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, touch_and_write, &t), 0);
    fflush(NULL);
    for (int i = 0; i < FORKS; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            uint64_t seed = (uint64_t)i * 77 + 1;
            for (int n = 0; n < 60; n++) {
                size_t offset = next_random(&seed) % (bytes - 64);
                if (pattern_differs(p, at + offset, 64, offset) != -1)
                    _exit(3);
                at[offset / PAGE * PAGE] ^= 0; /* a write that changes nothing */
            }
            _exit(0);
        }
        assert_int_equal(wait_for(pid), 0);
    }
    atomic_store(&t.stop, true);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&t.wrong), 0);
    assert_int_equal(pattern_differs(p, at, bytes, 0), -1);
    unmap_view(at, bytes);
    pattern_free(p);
    stop_pager();
}

static void spawning_and_vfork_do_not_disturb_the_views(void **state)
{
    (void)state;
    start_pager(MIB);
    struct pattern *p = pattern_new(4 * MIB, MIB);
    uint8_t *at = map_view(p, 4 * MIB, PROT_READ | PROT_WRITE, 0);
    at[7] = 1;
    for (int i = 0; i < 5; i++) {
        pid_t pid;
        char *argv[] = {"true", NULL};
        assert_int_equal(posix_spawnp(&pid, "true", NULL, NULL, argv, environ), 0);
        assert_int_equal(pattern_differs(p, at + MIB, 3 * MIB, MIB), -1);
        assert_int_equal(wait_for(pid), 0);
    }
    assert_int_equal(at[7], 1);
    unmap_view(at, 4 * MIB);
    pattern_free(p);
    stop_pager();
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test(a_child_reads_and_writes_for_itself),
        cmocka_unit_test(holes_protections_and_failed_blocks_are_inherited),
        cmocka_unit_test(forking_while_threads_fault),
        cmocka_unit_test(spawning_and_vfork_do_not_disturb_the_views),
    };
    return cmocka_run_group_tests_name("view_fork", list, NULL, NULL);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
