/* parallel.h - one loop over independent items with several threads. */
#ifndef CWS_PARALLEL_H
#define CWS_PARALLEL_H
#include <stdint.h>

/* Calls item(arg, thread, i) for every i in [0, count), i handed out in rising order; thread < jobs tells the threads
 * apart, the caller's own is one of them. A non-zero result stops the loop: no item is started after it, and the first
 * such result is returned. on_stop (may be NULL) is called once then, to wake items that wait for others.
 * Threads that cannot be started are done without. The threads block all signals. */
int cws_parallel(unsigned jobs, uint64_t count, int (*item)(void *arg, unsigned thread, uint64_t i),
                 void (*on_stop)(void *arg), void *arg);

/* jobs, or for 0 the CPUs this process may use; at most 256. */
unsigned cws_parallel_jobs(unsigned jobs);

#endif
