/* guard.h - a section that nothing of the program enters or leaves: all signals are blocked and the thread cannot be
 * cancelled.
 *
 * Rule: a thread of the program that takes a lock of ours, or is between two steps that belong together, is inside a
 * guard. Then no signal handler of the program runs meanwhile (it might call us, or leave by siglongjmp), and
 * pthread_cancel waits, deferred and asynchronous. A guard is short, since Ctrl-C and timers wait for its end: what
 * takes long ends its guard now and then (cws_guard_is_wanted), and a call that may block for ever (reading from a
 * pipe) is made outside. SIGSEGV and SIGBUS are blocked, too, so memory that may fault (a view's, the program's) is
 * made present before it is touched.
 *
 * Not needed by threads that we make (their signals are blocked from the beginning) and by what only our own command
 * calls.
 * Threads: any, also in a signal handler, and between vfork and exec. Nothing is allocated, errno is kept. Two system
 * calls and four atomic operations; inside another guard, nothing. */
#ifndef CWS_GUARD_H
#define CWS_GUARD_H
#include <stdbool.h>
#include <stdint.h>

struct cws_guard {
    uint64_t mask; /* signals that were blocked before, as the kernel's bits */
    int state;     /* of cancellation */
    bool outermost;
};

struct cws_guard cws_guard_begin(void);
/* By the thread that began it; the innermost first. What waited (a handler, a cancellation) happens here, when the
 * outermost ends. */
void cws_guard_end(const struct cws_guard *g);
/* Does a signal wait for the end of this guard? False inside another one, whose owner decides. */
bool cws_guard_is_wanted(const struct cws_guard *g);

/* For the handler of a fault, which has blocked all signals itself and does its work on a stack that a cancellation
 * cannot unwind: guards that begin before `on` is false again do nothing. In between no cancellation point of the C
 * library may be called. */
void cws_guard_by_mask(bool on);

#endif
