/* own_fd.c - the set of descriptors that belong to this library, and the numbers that they get. */
#include "own_fd.h"
#include "guard.h"
#include "sys.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

/* A set bit means: the descriptor is open and ours. A cleared bit means that the program may do what it likes. */
static _Atomic uint64_t marks[CWS_OWN_FD_MAX / 64];
static _Atomic int marked; /* lower bound test for the common case: nothing is ours */

int cws_own_fd_note(int fd)
{
    if (fd >= 0 && fd < CWS_OWN_FD_MAX) {
        uint64_t bit = UINT64_C(1) << (fd % 64);
        if (!(atomic_fetch_or(&marks[fd / 64], bit) & bit))
            atomic_fetch_add(&marked, 1);
    }
    return fd;
}

void cws_own_fd_forget(int fd)
{
    if (fd >= 0 && fd < CWS_OWN_FD_MAX) {
        uint64_t bit = UINT64_C(1) << (fd % 64);
        if (atomic_fetch_and(&marks[fd / 64], ~bit) & bit)
            atomic_fetch_sub(&marked, 1);
    }
}

bool cws_own_fd_is(int fd)
{
    if (atomic_load_explicit(&marked, memory_order_relaxed) == 0 || fd < 0 || fd >= CWS_OWN_FD_MAX)
        return false;
    return atomic_load(&marks[fd / 64]) >> (fd % 64) & 1;
}

int cws_own_fd_next(int first)
{
    if (atomic_load_explicit(&marked, memory_order_relaxed) == 0 || first >= CWS_OWN_FD_MAX)
        return -1;
    if (first < 0)
        first = 0;
    uint64_t word = atomic_load(&marks[first / 64]) & (UINT64_MAX << (first % 64));
    for (int i = first / 64;;) {
        if (word)
            return i * 64 + __builtin_ctzll(word);
        if (++i == CWS_OWN_FD_MAX / 64)
            return -1;
        word = atomic_load(&marks[i]);
    }
}

/* --- above the soft limit ---------------------------------------------------------------------------- */

static atomic_flag raised = ATOMIC_FLAG_INIT;
static struct rlimit before;    /* of who has raised */
static struct cws_guard holder; /* the same one's: a jump in between would leave the limit raised */

static int limit_call(const struct rlimit *set, struct rlimit *get)
{
    return (int)CWS_SYSCALL(SYS_prlimit64, 0, RLIMIT_NOFILE, set, get);
}

bool cws_own_fd_raise(void)
{
    enum { TRIES = 1000 };
    struct cws_guard guard = cws_guard_begin();
    /* Bounded: in a child, a thread that is not there may have raised it. */
    for (unsigned i = 0; atomic_flag_test_and_set_explicit(&raised, memory_order_acquire); i++) {
        if (i == TRIES) {
            cws_guard_end(&guard);
            return false;
        }
        sched_yield();
    }
    if (limit_call(NULL, &before) == 0 && before.rlim_cur < before.rlim_max) {
        struct rlimit all = {before.rlim_max, before.rlim_max};
        if (limit_call(&all, NULL) == 0) {
            holder = guard;
            return true;
        }
    }
    atomic_flag_clear_explicit(&raised, memory_order_release);
    cws_guard_end(&guard);
    return false;
}

void cws_own_fd_lower(void)
{
    struct cws_guard guard = holder;
    limit_call(&before, NULL); /* the hard limit is as it was: this is allowed */
    atomic_flag_clear_explicit(&raised, memory_order_release);
    cws_guard_end(&guard);
}

/* Is it time to move fd up? Not where a descriptor above the limit could not be guarded any more. */
static bool is_crowded(int fd)
{
    struct rlimit now;
    int ours = atomic_load_explicit(&marked, memory_order_relaxed);
    if (limit_call(NULL, &now) != 0 || now.rlim_cur >= now.rlim_max || now.rlim_cur > CWS_OWN_FD_MAX / 2)
        return false;
    return (rlim_t)fd < now.rlim_cur && (rlim_t)ours >= now.rlim_cur / 8;
}

int cws_own_fd_keep(int fd)
{
    if (fd >= 0 && is_crowded(fd) && cws_own_fd_raise()) {
        int high = (int)CWS_SYSCALL(SYS_fcntl, fd, F_DUPFD_CLOEXEC, (int)before.rlim_cur);
        cws_own_fd_lower();
        if (high >= 0) {
            CWS_SYSCALL(SYS_close, fd);
            fd = high;
        }
    }
    return cws_own_fd_note(fd);
}
