/* lock.h - locks with ranks, conditions and futex waits, for the managers of memory and for the shim: usable in a
 * signal handler and across fork. No allocation.
 *
 * Locks are taken in rising rank; builds with CWS_INJECT, which the tests are, abort with a line where one is not.
 * Two locks of one rank are never held together, but for GPU_STRICT.
 * A function that may drop a lock that its caller holds has a name that ends in `_drops_lock`. */
#ifndef CWS_LOCK_H
#define CWS_LOCK_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum cws_rank {
    /* One, in shim/budget.c. One change of the budget at a time. Inside: all that a manager or the pager does for it.
     * Free in the child of fork. */
    CWS_RANK_BUDGET,
    /* One, in shim/cuda/devices.c. The list of devices, while a manager is opened or closed. Inside: any call of the
     * driver, dlopen, threads that start and end, what a manager does. Never inside: the program's code. Never taken
     * inside a use, nor by a thread that a manager waits for when it closes. */
    CWS_RANK_CUDA_OPEN,
    /* One per GPU, in strict mode: one use of the device at a time. Inside: everything of a use, a launch, too. */
    CWS_RANK_GPU_STRICT,
    /* One per GPU: one launch at a time waits for memory. Inside: waiting for the loader. */
    CWS_RANK_GPU_SLOW,
    /* One per GPU: all that its manager knows (uvm/cuda/core.h). Inside: malloc, short calls of the driver. Never
     * inside: mapping, copies, launches, waits for the device. */
    CWS_RANK_GPU,

    /* None of GPU and CUDA, above and below, is taken inside a guard: a handler of the program may interrupt who holds
     * one. What the handler can come to in the shim has a higher rank, since its own calls of the driver pass. */

    /* One, in shim/cuda/layout.c. Writers of the table of parameter layouts. Inside: malloc, questions to the driver,
     * which may load a module first. */
    CWS_RANK_CUDA_LAYOUT,
    /* One, in shim/cuda/capture.c. The streams that capture, and changes of their count. Inside: short questions to
     * the driver. */
    CWS_RANK_CUDA_CAPTURE,
    /* One, in shim/cuda/content.c. The stores whose tensors are looked for by content. Inside: malloc, the list of open
     * stores (STORES). Never inside: reads of a store. */
    CWS_RANK_CUDA_CONTENT,
    /* One, in uvm/cuda/file.c. The last ordinary file that a copy came from. Inside: malloc, opening a file and reading
     * its header. */
    CWS_RANK_CUDA_FILE,
    /* One, in shim/cuda/alloc.c. The pools that the program made. Nothing is called inside. */
    CWS_RANK_CUDA_POOLS,
    /* One, in shim/cuda/plain.c. The sizes of plain allocations. Inside: malloc. */
    CWS_RANK_CUDA_PLAIN,
    /* One, in shim/cuda/small.c. The kept blocks and their streams. Inside: malloc. Never inside: calls of the driver,
     * whose locks a manager's thread may hold for long, and that thread takes this one (cws_gpu_config.release). */
    CWS_RANK_CUDA_SMALL,
    /* One, in shim/cuda/graph.c. What each executable graph names. Inside: malloc. */
    CWS_RANK_CUDA_GRAPH,
    /* One, in shim/libc/paging.c: one thread starts the pager. Inside: all that its start does, threads, system calls,
     * our signal handler's installation. */
    CWS_RANK_PAGER_START,
    /* One, in the pager. Serialises what changes the set of views or their pages: map, munmap, protect, advise,
     * fork, start, stop. Inside: system calls, malloc, source retain and release, waiting for busy blocks. Never
     * inside: a fault handler, a worker, hold. */
    CWS_RANK_VIEWS,
    /* One, in the pager. Protects block states, holds, accounts, policy, streams, queue, slots, page attributes.
     * Inside: short ioctls and the wake-ups. Never inside: malloc, reads, decoding, dropping memory.
     * Who holds this one or VIEWS never touches view memory, and is inside a guard (store/base/guard.h) or is a thread
     * of ours. */
    CWS_RANK_PAGER,
    /* One, in shim/libc/file_table.c. Writing its slots and pages and the list of files, taking a reference. Nothing is
     * called inside. A thread that forks takes it behind VIEWS and PAGER and holds it in both processes until fork is
     * over. Inside a guard. */
    CWS_RANK_FILES,
    /* One, in shim/libc/stores.c. The list of open stores and what is known of files. Inside: malloc, references to a
     * store (cws_stores_each). Never inside: input and output. Held across fork as FILES, behind it. Inside a guard. */
    CWS_RANK_STORES,
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
