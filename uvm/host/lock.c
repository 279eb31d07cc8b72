/* lock.c - the futex lock, and the check of lock ranks in builds with CWS_INJECT. */
#include "lock.h"

#include "store/base/sys.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <time.h>

#ifdef CWS_INJECT
/* Bit r: this thread holds a lock of rank r. Signals are blocked while a bit is set, so a handler never sees one. */
static __thread uint32_t held __attribute__((tls_model("initial-exec")));

static void rank_enter(enum cws_rank rank)
{
    static const char line[] = "codecllm: bug: a lock was taken out of rank (uvm/host/lock.h)\n";
    if (held >> rank) {
        cws_sys_write(2, line, sizeof line - 1);
        abort();
    }
    held |= 1u << rank;
}
static void rank_leave(enum cws_rank rank) { held &= ~(1u << rank); }
#else
static void rank_enter(enum cws_rank rank) { (void)rank; }
static void rank_leave(enum cws_rank rank) { (void)rank; }
#endif

void cws_wait(_Atomic uint32_t *word, uint32_t seen)
{
    CWS_SYSCALL(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, (void *)0, (void *)0, 0);
}

void cws_wait_ms(_Atomic uint32_t *word, uint32_t seen, unsigned ms)
{
    struct timespec limit = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    CWS_SYSCALL(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &limit, (void *)0, 0);
}

void cws_wake(_Atomic uint32_t *word)
{
    CWS_SYSCALL(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, (void *)0, (void *)0, 0);
}

void cws_lock_take(struct cws_lock *l)
{
    uint32_t expected = 0;
    rank_enter(l->rank);
    if (atomic_compare_exchange_strong_explicit(&l->word, &expected, 1, memory_order_acquire, memory_order_relaxed))
        return;
    while (atomic_exchange_explicit(&l->word, 2, memory_order_acquire) != 0)
        cws_wait(&l->word, 2);
}

void cws_lock_drop(struct cws_lock *l)
{
    rank_leave(l->rank);
    if (atomic_exchange_explicit(&l->word, 0, memory_order_release) == 2)
        CWS_SYSCALL(SYS_futex, &l->word, FUTEX_WAKE_PRIVATE, 1, (void *)0, (void *)0, 0);
}

void cws_lock_reset(struct cws_lock *l)
{
    rank_leave(l->rank);
    atomic_store(&l->word, 0);
}
