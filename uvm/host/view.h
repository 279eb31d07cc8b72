/* view.h - a view: the logical file of a store as memory, filled when touched, inside a budget.
 *
 * One process-wide pager (cws_pager_start) owns budget, policy, worker threads and counters. A view is a
 * page-aligned private mapping; it is cut into blocks (page-aligned, same size for all views of the process). The unit
 * of fault, dirtiness and eviction is a block; a block has one state, one lock and one generation (block.h). README.md
 * in this folder has states, lock ranks, rungs and the eviction essay.
 *
 * Rungs, best first; the first that works is used (cws_pager_rung), CODEC_PAGER forces one:
 *   uffd-dev   /dev/userfaultfd                     uffd    userfaultfd(2)
 *   uffd-user  userfaultfd(2), USER_MODE_ONLY       sigsegv PROT_NONE and a SIGSEGV handler
 *   eager      decoded when mapped (no budget; says so once)
 * Threads: every function is callable from any thread unless it says otherwise. None may be called from a signal
 * handler but cws_view_signal. */
#ifndef CWS_VIEW_H
#define CWS_VIEW_H
#include "store/base/error.h"
#include "store/base/options.h"
#include "store/read/store.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cws_view;

/* Starts the pager if it is not running. Without a budget (options->active false) the budget is unlimited.
 * CWS_E_BUDGET: below the least budget (line names it). CWS_E_UNSUPPORTED: the forced rung does not work here. */
CWS_MUST_CHECK int cws_pager_start(const struct cws_options *options, struct cws_error *err);
/* Starts the trace that the options ask for, if it is not running; what goes wrong is said. The pager does it when it
 * starts. */
void cws_pager_trace_start(const struct cws_options *options);
const char *cws_pager_rung(void); /* name of the active rung; "none" before start */
/* Tries one rung on this machine without starting the pager: 0, or the code with the reason in err. For doctor,
 * tests. */
int cws_pager_probe(const char *rung, struct cws_error *err);
uint64_t cws_pager_block_bytes(void);
uint64_t cws_pager_least_budget(void);
/* Another budget for the views of this process, in bytes, larger or smaller; any thread, but none that holds a view.
 * For a smaller one clean blocks are dropped at once; when this returns no more than it is in memory. Blocks keep the
 * size that they got for the budget that was in force when the pager started, so 16 of these are the least, and 16384
 * of a mapped file that has more the most. Written blocks are not counted, as ever.
 * CWS_E_BUDGET, and the old budget stays: less or more than that, or calls that are under way hold more, and did so for
 * 2 s. CWS_E_BUSY: the pager does not run. CWS_E_UNSUPPORTED: on the eager rung, where there is no budget. */
CWS_MUST_CHECK int cws_pager_set_budget(uint64_t bytes, struct cws_error *err);
/* Drops every clean block that nobody holds. They come back as they are touched. The budget stays. Not on the eager
 * rung; where the pager does not run there is nothing to do. Threads as above. */
void cws_pager_sleep(void);
/* Stops workers and frees the pager; no view may be left (CWS_E_BUSY). For tests; restart is allowed after it. */
CWS_MUST_CHECK int cws_pager_stop(void);

struct cws_pager_stats {
    uint64_t budget_bytes, block_bytes;
    uint64_t faults, write_faults;
    uint64_t decoded_bytes; /* bytes installed into views */
    uint64_t evictions, prefetched_blocks;
    uint64_t resident_bytes;    /* clean blocks now */
    uint64_t peak_bytes;        /* most clean bytes (resident and in flight) at any time */
    uint64_t written_bytes;     /* blocks the program wrote to; never dropped */
    uint64_t reads, read_bytes; /* I/O of all stores */
    uint64_t views, errors;     /* views now; blocks that could not be decoded */
    uint64_t mapped_bytes;      /* logical bytes of all views now */
    /* anonymous memory of the process that is no view's: no budget bounds it; 0: not known */
    uint64_t outside_bytes;
    /* about so many bytes of weights that were read have a copy there (outside.c); 0 on the eager rung */
    uint64_t copied_bytes;
};
/* From now on nothing is said about weights that are copied out of views: the program loads them to a device, whose
 * manager counts them. */
void cws_pager_copies_are_elsewhere(void);
void cws_pager_stats_get(struct cws_pager_stats *out);

/* Maps logical bytes [offset, offset + length) of the store as a private mapping. The pager must be running.
 *   offset  multiple of the page size; length > 0; bytes past the logical end inside the last page read as zero,
 *           whole pages past it are refused (CWS_E_RANGE)
 *   prot    PROT_READ or PROT_READ|PROT_WRITE (others: CWS_E_UNSUPPORTED)
 *   hint, flags   as mmap's addr and MAP_FIXED / MAP_FIXED_NOREPLACE; other flags ignored
 * The view takes a reference on the store (retain/release inside; the store stays open until its last view ends). */
CWS_MUST_CHECK int cws_view_map(struct cws_store *store, void *hint, size_t length, int prot, int flags,
                                uint64_t offset, void **out_addr, struct cws_error *err);

/* Does [addr, addr+len) touch a view? Lock-free when the process has no view or the range is outside of all of them:
 * this is what every hooked call asks first. Safe in a signal handler. */
bool cws_view_overlaps(const void *addr, size_t len);
/* Is there any view? */
bool cws_view_any(void);

/* Is [addr, addr+len) all of one view of a store, and did nobody write to a block of it so far? Then *out_store, with a
 * reference for the caller (cws_store_close), and the logical offset of addr in it. Waits for nobody; a write that is
 * under way at the same time is the caller's race. */
bool cws_view_locate(const void *addr, size_t len, struct cws_store **out_store, uint64_t *out_offset);

/* munmap / mprotect / madvise / mremap on ranges that touch views. They do the whole call, also for the parts of the
 * range that are no view, and return 0 or -errno with the meaning of the system call.
 *   munmap    any page range; blocks that end are forgotten, their bytes leave the budget
 *   protect   PROT_NONE, PROT_READ, PROT_READ|PROT_WRITE at page granularity; PROT_EXEC -EACCES
 *   advise    MADV_DONTNEED: the original bytes come back at the next touch (as for a private file mapping);
 *             MADV_WILLNEED: prefetch, best effort; MADV_DONTFORK/DOFORK/HUGEPAGE...: accepted, no effect
 *   remap     shrinking in place works; growing or moving is -ENOMEM (nothing changed) */
int cws_view_munmap(void *addr, size_t len);
/* As munmap, for a range that the caller is about to map something over (MAP_FIXED): until then it is PROT_NONE, so
 * that no other thread's memory comes to lie in it. What is then not used, the caller unmaps. */
int cws_view_reserve(void *addr, size_t len);
int cws_view_protect(void *addr, size_t len, int prot);
int cws_view_advise(void *addr, size_t len, int advice);
int cws_view_remap(void *addr, size_t old_len, size_t new_len, int flags, void **out_addr);

/* mlockall and munlockall, done by `call` (the C library's, which sets errno). Memory of views is never locked, or it
 * would stay present past every budget. CWS_E_BUDGET: MCL_CURRENT while there is a view; nothing was called. After
 * MCL_FUTURE views begin unlocked. Else 0 or -errno. */
CWS_MUST_CHECK int cws_view_lock_all(int flags, int (*call)(int flags));
CWS_MUST_CHECK int cws_view_unlock_all(int (*call)(void));
/* After mlockall(MCL_FUTURE): unlocks a range that was reserved for what is about to be mapped there, so that it is not
 * counted twice. Else nothing. */
void cws_view_unlock(void *addr, size_t len);

/* Makes the view pages of [addr, addr+len) present and keeps them so until the matching unhold: for calls that hand
 * memory to the kernel. A range that does not touch a view is a no-op. for_write: the pages also become writable (the
 * blocks count as written). Holds whole blocks; callers keep pieces at or below cws_view_hold_max(). Pages that are no
 * view's are not looked at: the kernel says EFAULT itself. Returns 0; -EFAULT (a view page's protection forbids it); a
 * decode error's code (line in err; already printed once). */
CWS_MUST_CHECK int cws_view_hold(const void *addr, size_t len, bool for_write, struct cws_error *err);
void cws_view_unhold(const void *addr, size_t len);
size_t cws_view_hold_max(void);

/* For a SIGSEGV or SIGBUS handler: true if the fault was a view's and has been served, so the instruction may run
 * again.
 * False: not ours, or ours and hopeless (the line was written); chain to the previous handler or the default action. */
bool cws_view_signal(int signo, void *siginfo, void *ucontext);
/* Replaces what the pager calls when SIGSEGV has to reach cws_view_signal (at start on the sigsegv rung, in a forked
 * child): `install` returns 0 or -errno and must be async-signal-safe. The default sets its own handler and chains to
 * the one before; NULL restores it. A handler is installed with all signals in sa_mask, begins with CWS_SIGNAL_ENTRY
 * (signal_stack.h), and takes little of the stack, which is the program's; cws_view_signal works on one of ours. */
void cws_view_signal_installer(int (*install)(void));
/* True when the active rung needs cws_view_signal to be called for SIGSEGV (the sigsegv rung, and any forked child). */
bool cws_view_needs_signal(void);

/* Fork protocol (the shim or the pager's own pthread_atfork calls these; see README.md "fork"). */
void cws_view_fork_prepare(void);
void cws_view_fork_parent(void);
void cws_view_fork_child(void);
#endif
