/* lock.h - the pager's locks, and futex waits for all: usable in a signal handler and across fork. No allocation.
 *
 * Rule: a thread that holds a lock never touches view memory, never allocates unless the rank says so, and is inside a
 * guard (store/base/guard.h), or is a thread of ours. Locks are taken in rising rank; builds with CWS_INJECT check it
 * at each lock. */
#ifndef CWS_LOCK_H
#define CWS_LOCK_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum cws_rank {
    /* One, in the pager. Serialises what changes the set of views or their pages: map, munmap, protect, advise,
     * fork, start, stop. Inside: system calls, malloc, source retain and release, waiting for busy blocks. Never
     * inside: a fault handler, a worker, hold. */
    CWS_RANK_VIEWS,
    /* One, in the pager. Protects block states, holds, accounts, policy, streams, queue, slots, page attributes.
     * Inside: short ioctls and the wake-ups. Never inside: malloc, reads, decoding, dropping memory. */
    CWS_RANK_PAGER,
    CWS_RANK_COUNT
};

struct cws_lock {
    _Atomic uint32_t word; /* 0 free, 1 held, 2 held and waited for */
    enum cws_rank rank;
};

void cws_lock_take(struct cws_lock *l);
void cws_lock_drop(struct cws_lock *l);
/* In a forked child: the lock is free, whoever held it in the parent. */
void cws_lock_reset(struct cws_lock *l);

/* Sleeps while *word is `seen`; may return early. */
void cws_wait(_Atomic uint32_t *word, uint32_t seen);
/* The same for at most `ms` milliseconds. */
void cws_wait_ms(_Atomic uint32_t *word, uint32_t seen, unsigned ms);
void cws_wake(_Atomic uint32_t *word);
#endif
