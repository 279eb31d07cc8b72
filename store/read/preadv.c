/* preadv.c - the engine that reads with pread in a few threads: what remains where the kernel grants no ring. */
#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

enum { POOL_THREADS_MAX = 4 }; /* enough to keep a disk busy beside a decoder; more only switch */

struct cws_pool {
    pthread_mutex_t lock; /* protects the slots' states and everything below */
    pthread_cond_t work, done;
    struct cws_reader *reader;
    unsigned *queue; /* slots to read: a circle of slot_count entries */
    unsigned head, queued;
    bool stop;
    unsigned thread_count;
    pthread_t threads[POOL_THREADS_MAX];
};

static void *pool_main(void *arg)
{
    struct cws_pool *p = arg;
    struct cws_reader *r = p->reader;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->queued && !p->stop)
            pthread_cond_wait(&p->work, &p->lock);
        if (!p->queued)
            break;
        unsigned slot = p->queue[p->head];
        p->head = (p->head + 1) % r->slot_count;
        p->queued--;
        pthread_mutex_unlock(&p->lock);
        cws_reader_read_slot(r, &r->slots[slot]);
        pthread_mutex_lock(&p->lock);
        r->slots[slot].state = CWS_SLOT_DONE;
        pthread_cond_broadcast(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void pool_stop(struct cws_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->thread_count; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    free(p->queue);
    free(p);
}

int cws_pool_create(struct cws_reader *r)
{
    struct cws_pool *p = calloc(1, sizeof *p);
    unsigned *queue = calloc(r->slot_count, sizeof *queue);
    if (!p || !queue) {
        free(p);
        free(queue);
        return -ENOMEM;
    }
    p->queue = queue;
    p->reader = r;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);

    /* The program's signals are for the program's threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    unsigned wanted = r->slot_count < POOL_THREADS_MAX ? r->slot_count : POOL_THREADS_MAX;
    int code = 0;
    while (p->thread_count < wanted && !code) {
        code = pthread_create(&p->threads[p->thread_count], NULL, pool_main, p);
        p->thread_count += !code;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (p->thread_count == 0) {
        pool_stop(p);
        return -code;
    }
    r->pool = p;
    return 0;
}

static void pool_submit(struct cws_reader *r, unsigned slot)
{
    struct cws_pool *p = r->pool;
    pthread_mutex_lock(&p->lock);
    p->queue[(p->head + p->queued) % r->slot_count] = slot;
    p->queued++;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static void pool_wait(struct cws_reader *r, unsigned slot)
{
    struct cws_pool *p = r->pool;
    pthread_mutex_lock(&p->lock);
    while (r->slots[slot].state != CWS_SLOT_DONE)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void pool_after_fork(struct cws_reader *r)
{
    r->pool = NULL; /* its threads and the state of its lock stayed with the parent; the block is not worth a free()
                     * here */
}

static void pool_destroy(struct cws_reader *r) { pool_stop(r->pool); }

const struct cws_reader_engine cws_engine_preadv = {
    "preadv", "preadv+direct", pool_submit, pool_wait, pool_after_fork, pool_destroy,
};
