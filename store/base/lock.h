/* lock.h - locks with ranks, conditions and futex waits, for the managers of memory and for the shim: usable in a
 * signal handler and across fork. No allocation.
 *
 * Locks are taken in rising rank; builds with CWS_INJECT, which the tests are, abort with a line where one is not.
 * Two locks of one rank are never held together.
 * A function that may drop a lock that its caller holds has a name that ends in `_drops_lock`. */
#ifndef CWS_LOCK_H
#define CWS_LOCK_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum cws_rank {
    /* One per GPU, in strict mode: one use of the device at a time. Inside: everything of a use, a launch, too. */
    CWS_RANK_GPU_STRICT,
    /* One per GPU: one launch at a time waits for memory. Inside: waiting for the loader. */
    CWS_RANK_GPU_SLOW,
    /* One per GPU: all that its manager knows (uvm/cuda/core.h). Inside: malloc, short calls of the driver. Never
     * inside: mapping, copies, launches, waits for the device. */
    CWS_RANK_GPU,
    /* One, in the pager. Serialises what changes the set of views or their pages: map, munmap, protect, advise,
     * fork, start, stop. Inside: system calls, malloc, source retain and release, waiting for busy blocks. Never
     * inside: a fault handler, a worker, hold. */
    CWS_RANK_VIEWS,
    /* One, in the pager. Protects block states, holds, accounts, policy, streams, queue, slots, page attributes.
     * Inside: short ioctls and the wake-ups. Never inside: malloc, reads, decoding, dropping memory.
     * Who holds this one or VIEWS never touches view memory, and is inside a guard (store/base/guard.h) or is a thread
     * of ours. */
    CWS_RANK_PAGER,
    CWS_RANK_COUNT
};

struct cws_lock {          /* CWS_LOCK_OF(rank) */
    _Atomic uint32_t word; /* 0 free, 1 held, 2 held and waited for */
    enum cws_rank rank;
};
#define CWS_LOCK_OF(r)                                                                                                 \
    {                                                                                                                  \
        .word = 0, .rank = (r)                                                                                         \
    }

void cws_lock_take(struct cws_lock *l);
void cws_lock_drop(struct cws_lock *l);
/* In a forked child: the lock is free, whoever held it in the parent. */
void cws_lock_reset(struct cws_lock *l);

/* Something that threads wait for, each with one lock that protects what they look at. Zero-initialised. Waits may end
 * early: look again. Wake with the lock held. */
struct cws_cond {
    _Atomic uint32_t word; /* moves on at each wake-up */
    uint32_t waiting;      /* the lock protects it */
};
void cws_cond_wait_drops_lock(struct cws_cond *c, struct cws_lock *l);
/* The same for at most `ns` nanoseconds. */
void cws_cond_wait_ns_drops_lock(struct cws_cond *c, struct cws_lock *l, uint64_t ns);
void cws_cond_signal(struct cws_cond *c); /* one */
void cws_cond_broadcast(struct cws_cond *c);

/* Sleeps while *word is `seen`; may return early. */
void cws_wait(_Atomic uint32_t *word, uint32_t seen);
/* The same for at most `ms` milliseconds. */
void cws_wait_ms(_Atomic uint32_t *word, uint32_t seen, unsigned ms);
void cws_wake(_Atomic uint32_t *word);
#endif
