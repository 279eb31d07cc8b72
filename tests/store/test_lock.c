/* Locks, their ranks and conditions (store/base/lock.h). */
#include "store/base/lock.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { THREADS = 4, ROUNDS = 2000 };

static struct cws_lock outer = CWS_LOCK_OF(CWS_RANK_GPU_SLOW), inner = CWS_LOCK_OF(CWS_RANK_GPU);
static struct cws_cond changed;
static unsigned turn, turns[THREADS];

/* Each in turn, which needs every wake-up to reach the one whose turn it is. */
static void *take_turns(void *arg)
{
    unsigned self = (unsigned)(uintptr_t)arg;
    for (unsigned i = 0; i < ROUNDS; i++) {
        cws_lock_take(&inner);
        while (turn % THREADS != self)
            cws_cond_wait_drops_lock(&changed, &inner);
        turn++;
        turns[self]++;
        cws_cond_broadcast(&changed);
        cws_lock_drop(&inner);
    }
    return NULL;
}

static void test_every_wake_up_arrives(void **state)
{
    pthread_t threads[THREADS];
    (void)state;
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_turns, (void *)(uintptr_t)i), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(turn, THREADS * ROUNDS);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(turns[i], ROUNDS);
    assert_int_equal(changed.waiting, 0);
}

static void test_a_wait_ends_by_itself(void **state)
{
    (void)state;
    cws_lock_take(&inner);
    cws_cond_wait_ns_drops_lock(&changed, &inner, 1000000);
    assert_int_equal(changed.waiting, 0);
    cws_lock_drop(&inner);
}

#ifdef CWS_INJECT
static void in_rank(void)
{
    cws_lock_take(&outer);
    cws_lock_take(&inner);
    cws_lock_drop(&outer); /* they may be dropped in any order */
    cws_lock_drop(&inner);
    cws_lock_take(&outer);
}
static void strict_of_two(void)
{
    struct cws_lock one = CWS_LOCK_OF(CWS_RANK_GPU_STRICT), other = CWS_LOCK_OF(CWS_RANK_GPU_STRICT);
    cws_lock_take(&one);
    cws_lock_take(&other);
    cws_lock_take(&inner);
}
static void out_of_rank(void)
{
    cws_lock_take(&inner);
    cws_lock_take(&outer);
}
static void twice(void)
{
    cws_lock_take(&inner);
    cws_lock_take(&inner);
}

static int signal_of(void (*run)(void))
{
    pid_t child = fork();
    int status;
    if (child == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        close(2);
        signal(SIGABRT, SIG_DFL);
        run();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void test_a_lock_out_of_rank_aborts(void **state)
{
    (void)state;
    assert_int_equal(signal_of(in_rank), 0);
    assert_int_equal(signal_of(strict_of_two), 0);
    assert_int_equal(signal_of(out_of_rank), SIGABRT);
    assert_int_equal(signal_of(twice), SIGABRT);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_wake_up_arrives),
        cmocka_unit_test(test_a_wait_ends_by_itself),
#ifdef CWS_INJECT
        cmocka_unit_test(test_a_lock_out_of_rank_aborts),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
