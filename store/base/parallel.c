/* parallel.c - a loop whose items are handed out to several threads. */
#include "parallel.h"
#include "os.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

enum { JOBS_MAX = 256 };

struct loop {
    int (*item)(void *arg, unsigned thread, uint64_t i);
    void (*on_stop)(void *arg);
    void *arg;
    uint64_t count;
    _Atomic uint64_t next;
    atomic_int result; /* the first non-zero one */
};

struct worker {
    struct loop *loop;
    unsigned thread;
    pthread_t id;
};

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct loop *l = w->loop;
    while (atomic_load_explicit(&l->result, memory_order_relaxed) == 0) {
        uint64_t i = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed);
        if (i >= l->count)
            break;
        int code = l->item(l->arg, w->thread, i), none = 0;
        if (code && atomic_compare_exchange_strong(&l->result, &none, code) && l->on_stop)
            l->on_stop(l->arg);
    }
    return NULL;
}

int cws_parallel(unsigned jobs, uint64_t count, int (*item)(void *arg, unsigned thread, uint64_t i),
                 void (*on_stop)(void *arg), void *arg)
{
    struct loop loop = {.item = item, .on_stop = on_stop, .arg = arg, .count = count};
    struct worker workers[JOBS_MAX];
    unsigned started = 0, wanted = cws_parallel_jobs(jobs);
    if (count < wanted)
        wanted = count ? (unsigned)count : 1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started + 1 < wanted) {
        struct worker *w = &workers[started];
        *w = (struct worker){.loop = &loop, .thread = started + 1};
        if (pthread_create(&w->id, NULL, worker_main, w))
            break;
        started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    struct worker self = {.loop = &loop, .thread = 0};
    worker_main(&self);
    for (unsigned i = 0; i < started; i++)
        pthread_join(workers[i].id, NULL);
    return atomic_load(&loop.result);
}

unsigned cws_parallel_jobs(unsigned jobs)
{
    if (jobs == 0)
        jobs = cws_os_cpu_count();
    return jobs < JOBS_MAX ? jobs : JOBS_MAX;
}
