/* lock.c - the futex lock and its conditions, and the check of lock ranks in builds with CWS_INJECT. */
#include "lock.h"
#include "sys.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <time.h>

enum { SPINS = 400 }; /* about 20 us on a processor of today, 5 on an older one */

#ifdef CWS_INJECT
_Static_assert(CWS_RANK_COUNT <= 32, "a bit each");
/* Bit r: this thread holds a lock of rank r. A handler that interrupts a change of it leaves it as it found it. */
static __thread uint32_t held __attribute__((tls_model("initial-exec")));

static void rank_enter(enum cws_rank rank)
{
    static const char line[] = "codecllm: bug: a lock was taken out of rank (store/base/lock.h)\n";
    /* Of strict locks a thread may hold those of several GPUs: a use of one inside a use of another. */
    if (held >> (rank == CWS_RANK_GPU_STRICT ? rank + 1 : rank)) {
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

static void wait_ns(_Atomic uint32_t *word, uint32_t seen, uint64_t ns)
{
    struct timespec limit = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    CWS_SYSCALL(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &limit, (void *)0, 0);
}

void cws_wait_ms(_Atomic uint32_t *word, uint32_t seen, unsigned ms) { wait_ns(word, seen, (uint64_t)ms * 1000000u); }

void cws_wake(_Atomic uint32_t *word)
{
    CWS_SYSCALL(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, (void *)0, (void *)0, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Most locks are dropped again sooner than a thread is put to sleep and woken. */
static bool take_soon(struct cws_lock *l)
{
    for (unsigned i = 0; i < SPINS; i++) {
        uint32_t expected = 0;
        if (atomic_load_explicit(&l->word, memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong_explicit(&l->word, &expected, 1, memory_order_acquire, memory_order_relaxed))
            return true;
        relax();
    }
    return false;
}

void cws_lock_take(struct cws_lock *l)
{
    uint32_t expected = 0;
    rank_enter(l->rank);
    if (atomic_compare_exchange_strong_explicit(&l->word, &expected, 1, memory_order_acquire, memory_order_relaxed) ||
        take_soon(l))
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

/* --- conditions ------------------------------------------------------------------------------------ */

static uint32_t leave_to_wait(struct cws_cond *c, struct cws_lock *l)
{
    uint32_t seen = atomic_load_explicit(&c->word, memory_order_relaxed);
    c->waiting++;
    cws_lock_drop(l);
    return seen;
}

static void come_back(struct cws_cond *c, struct cws_lock *l)
{
    cws_lock_take(l);
    c->waiting--;
}

void cws_cond_wait_drops_lock(struct cws_cond *c, struct cws_lock *l)
{
    cws_wait(&c->word, leave_to_wait(c, l));
    come_back(c, l);
}

void cws_cond_wait_ns_drops_lock(struct cws_cond *c, struct cws_lock *l, uint64_t ns)
{
    wait_ns(&c->word, leave_to_wait(c, l), ns);
    come_back(c, l);
}

static void wake(struct cws_cond *c, int threads)
{
    if (c->waiting == 0)
        return;
    atomic_fetch_add_explicit(&c->word, 1, memory_order_relaxed);
    CWS_SYSCALL(SYS_futex, &c->word, FUTEX_WAKE_PRIVATE, threads, (void *)0, (void *)0, 0);
}

void cws_cond_signal(struct cws_cond *c) { wake(c, 1); }
void cws_cond_broadcast(struct cws_cond *c) { wake(c, INT32_MAX); }
