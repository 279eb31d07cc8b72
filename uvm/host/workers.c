/* workers.c - the worker threads of the userfaultfd rungs. Each waits for fault messages of all views and serves what
 * it reads itself, so a fault costs one thread switch, not two. When no message waits it decodes ahead. A worker never
 * touches view memory, never allocates, and takes no lock but the pager's. */
#include "pager.h"

#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#define KICK_EVENT UINT64_MAX

static void serve_again_locked(struct cws_view *v, uint32_t block, size_t at)
{
    /* Stale, or the pages were dropped behind our back (a raw madvise): then they are put back. */
    size_t begin = cws_block_begin(v, block), end = cws_block_end(v, block);
    if (cws_page_present(v->base + at) == CWS_PAGE_THERE) {
        cws_pager.rung->wake(v, begin, end);
        return;
    }
    cws_lock_drop(&cws_pager.lock);
    cws_refill(v, block, begin, end, /* replace */ false, NULL);
    cws_lock_take(&cws_pager.lock);
}

void cws_workers_serve(struct cws_view *v, size_t at, bool write, bool protect)
{
    struct cws_pager *p = &cws_pager;
    uint32_t block = cws_block_of(v, at);
    struct cws_block *b = &v->blocks[block];
    cws_phase(CWS_PHASE_EVENT, v, block);
    cws_lock_take(&p->lock);
    switch (cws_block_state(b)) {
    case CWS_ABSENT:
        cws_lock_drop(&p->lock);
        /* A failure is printed and poisons the block there. */
        cws_fill(v, block, write ? CWS_FILL_WRITE_FAULT : CWS_FILL_FAULT, NULL);
        cws_lock_take(&p->lock);
        break;
    case CWS_FILLING:
    case CWS_EVICTING:
    case CWS_CHANGING: cws_block_set_pending(b); break;
    case CWS_CLEAN:
        if (protect)
            cws_make_written_locked(v, block);
        else
            serve_again_locked(v, block, at);
        break;
    case CWS_WRITTEN:
        if (protect)
            p->rung->allow_write(v, cws_block_begin(v, block), cws_block_end(v, block));
        else
            serve_again_locked(v, block, at);
        break;
    case CWS_FAILED: /* a raw madvise takes the poison away, too */
        p->rung->poison(v, at / CWS_PAGE_BYTES * CWS_PAGE_BYTES, at / CWS_PAGE_BYTES * CWS_PAGE_BYTES + CWS_PAGE_BYTES);
        break;
    case CWS_GONE: p->rung->wake(v, cws_block_begin(v, block), cws_block_end(v, block)); break;
    }
    /* What the block became while the fill looked elsewhere needs no more: the faulting thread tries again when it is
     * woken. */
    cws_lock_drop(&p->lock);
}

static void serve_fault(const struct cws_channel *c, uintptr_t at, uint64_t flags)
{
    struct cws_pager *p = &cws_pager;
    struct cws_piece piece;
    cws_lock_take(&p->lock);
    bool found = cws_index_find_locked((const void *)at, 1, &piece) && piece.view->uffd == c->fd;
    if (found)
        cws_view_use_locked(piece.view);
    cws_lock_drop(&p->lock);
    if (!found) { /* it is not mapped yet, or was unmapped meanwhile: who faulted tries again, and finds out */
        struct uffdio_range range = {at / CWS_PAGE_BYTES * CWS_PAGE_BYTES, CWS_PAGE_BYTES};
        cws_os_ioctl(c->fd, UFFDIO_WAKE, &range);
        return;
    }
    cws_workers_serve(piece.view, piece.from, flags & UFFD_PAGEFAULT_FLAG_WRITE, flags & UFFD_PAGEFAULT_FLAG_WP);
    cws_lock_take(&p->lock);
    cws_view_unuse_locked(piece.view);
    cws_lock_drop(&p->lock);
}

static void serve_event(uint64_t event)
{
    struct cws_pager *p = &cws_pager;
    struct uffd_msg message;
    cws_lock_take(&p->lock);
    struct cws_channel *c = cws_channel_use_locked(event);
    cws_lock_drop(&p->lock);
    if (!c)
        return;
    long n = cws_sys_read(c->fd, &message, sizeof message);
    if (n == (long)sizeof message && message.event == UFFD_EVENT_PAGEFAULT)
        serve_fault(c, (uintptr_t)message.arg.pagefault.address, message.arg.pagefault.flags);
    else if (n != -EAGAIN && n != -EINTR) /* EAGAIN: another worker was faster */
        cws_die("reading fault messages failed (result %ld): threads that touch a view would wait for ever", n);
    cws_lock_take(&p->lock);
    cws_channel_unuse_locked(c);
    cws_lock_drop(&p->lock);
}

/* Takes one guess from the queue. False: it was empty. */
static bool decode_ahead(void)
{
    struct cws_pager *p = &cws_pager;
    cws_lock_take(&p->lock);
    if (p->queue_head == p->queue_tail) {
        cws_lock_drop(&p->lock);
        return false;
    }
    struct cws_ahead a = p->queue[p->queue_head++ % CWS_QUEUE_ENTRIES];
    struct cws_view *v = cws_index_slot_locked(a.view_slot, a.view_generation);
    if (v)
        cws_view_use_locked(v);
    cws_lock_drop(&p->lock);
    if (!v)
        return true;
    cws_fill(v, a.block, CWS_FILL_AHEAD, NULL);
    cws_lock_take(&p->lock);
    cws_view_unuse_locked(v);
    cws_lock_drop(&p->lock);
    return true;
}

/* while nothing is decoded the memory outside of views is looked at, as long as that may tell something */
enum { LOOK_MS = 500 };

static void *worker(void *arg)
{
    struct cws_pager *p = &cws_pager;
    bool more = false;
    (void)arg;
    prctl(PR_SET_NAME, "codecllm-worker");
    while (!atomic_load(&p->stop)) {
        struct epoll_event event;
        long n = CWS_SYSCALL(SYS_epoll_pwait, p->epoll_fd, &event, 1,
                             more                              ? 0
                             : atomic_load(&p->outside.active) ? LOOK_MS
                                                               : -1,
                             (void *)0, (size_t)8);
        if (n < 0 && n != -EINTR)
            cws_die("waiting for fault messages failed (errno %ld)", -n);
        if (n == 1 && event.data.u64 == KICK_EVENT) {
            uint64_t ignored;
            /* one of the kicks, or another worker took it */
            cws_sys_read(p->kick_fd, &ignored, sizeof ignored);
            more = true;
        } else if (n == 1) {
            serve_event(event.data.u64);
            more = true;
        }
        if (n == 0 && !more)
            cws_outside_look();
        if (n != 1 || event.data.u64 == KICK_EVENT)
            more = decode_ahead();
    }
    return NULL;
}

void cws_workers_kick(unsigned jobs)
{
    uint64_t n = jobs;
    if (cws_pager.kick_fd >= 0)
        cws_sys_write(cws_pager.kick_fd, &n, sizeof n);
}

int cws_workers_watch(int fd, uint64_t event)
{
    struct epoll_event what = {.events = EPOLLIN, .data.u64 = event};
    return (int)CWS_SYSCALL(SYS_epoll_ctl, cws_pager.epoll_fd, EPOLL_CTL_ADD, fd, &what);
}

int cws_workers_start(struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    p->epoll_fd = cws_own_fd_note(epoll_create1(EPOLL_CLOEXEC));
    p->kick_fd = cws_own_fd_note(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = KICK_EVENT};
    if (p->epoll_fd < 0 || p->kick_fd < 0 || epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->kick_fd, &event) != 0)
        return cws_fail_errno(err, errno, "the pager's workers need an epoll and an eventfd descriptor");
    atomic_store(&p->stop, false);
    for (unsigned i = 0; i < p->slot_count; i++) { /* signals are blocked here, and so in the workers */
        int code = pthread_create(&p->workers[i], NULL, worker, NULL);
        if (code)
            return cws_fail_errno(err, code, "the pager's workers could not be started");
        p->worker_count++;
    }
    return 0;
}

void cws_workers_stop(void)
{
    struct cws_pager *p = &cws_pager;
    atomic_store(&p->stop, true);
    for (unsigned i = 0; i < p->worker_count; i++) {
        cws_workers_kick(p->worker_count); /* a kick may have been eaten by one that has not seen `stop` */
    }
    for (unsigned i = 0; i < p->worker_count; i++)
        pthread_join(p->workers[i], NULL);
    p->worker_count = 0;
    if (p->epoll_fd >= 0)
        cws_os_close(p->epoll_fd);
    if (p->kick_fd >= 0)
        cws_os_close(p->kick_fd);
    p->epoll_fd = p->kick_fd = -1;
}
