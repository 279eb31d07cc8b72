/* fork.c - views across fork(): the child must read the right bytes or crash, never zeros. README.md, "fork", tells the
 * whole story.
 *
 * prepare  nothing becomes busy any more, and what is busy ends; the pager lock is then held across the fork, so the
 *          child inherits sound states. View memory of the userfault rungs, which a raw fork does not inherit, is made
 *          inheritable.
 * parent   undoes it.
 * child    has no workers, and its pages no longer fault to anybody: absent blocks are made PROT_NONE and clean ones
 *          read-only before any code of the program runs, and the sigsegv rung takes over. */
#include "pager.h"
#include "signal_stack.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

static int advise_all(int advice)
{
    int code = 0;
    struct cws_view *v;
    size_t from, to;
    int prot;
    for (uint32_t slot = 0; (v = cws_index_next_locked(&slot)) != NULL;)
        for (size_t at = 0; cws_page_run(v, at, v->bytes, &from, &to, &prot); at = to)
            code = cws_sys_madvise(v->base + from, to - from, advice) ? -1 : code;
    return code;
}

void cws_view_fork_prepare(void)
{
    struct cws_pager *p = &cws_pager;
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&p->views_lock);
    cws_lock_take(&p->lock);
    p->fork_guard = guard;
    if (!p->running)
        return;
    atomic_store(&p->forking, 1);
    for (uint32_t busy; (busy = atomic_load(&p->busy)) != 0;) {
        cws_lock_drop(&p->lock);
        cws_wait(&p->busy, busy);
        cws_lock_take(&p->lock);
    }
    if (p->rung->userfault)
        /* a child that did not get all of it ends with a line when it takes over */
        (void)advise_all(MADV_DOFORK);
}

static void reopen(void)
{
    struct cws_pager *p = &cws_pager;
    struct cws_guard guard = p->fork_guard;
    atomic_store(&p->forking, 0);
    cws_wake(&p->forking);
    cws_lock_drop(&p->lock);
    cws_lock_drop(&p->views_lock);
    cws_guard_end(&guard);
}

void cws_view_fork_parent(void)
{
    struct cws_pager *p = &cws_pager;
    /* Twice: a child made by a raw clone would read zeros where it fails. */
    if (p->running && p->rung->userfault && advise_all(MADV_DONTFORK) && advise_all(MADV_DONTFORK))
        cws_die("views cannot be hidden from children that are made past fork() (MADV_DONTFORK failed)");
    reopen();
}

/* --- the child --------------------------------------------------------------------------------------- */

static void must(long rc)
{
    if (rc < 0 && rc > -4096)
        cws_die("a forked child could not take over the views (errno %d; vm.max_map_count too small?)", (int)-rc);
}

static void protect_block(struct cws_view *v, size_t begin, size_t end, enum cws_block_state state)
{
    size_t from, to;
    int prot;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to) {
        if (state == CWS_ABSENT)
            prot = PROT_NONE;
        else if (state == CWS_CLEAN)
            prot &= ~PROT_WRITE;
        must(cws_sys_mprotect(v->base + from, to - from, prot));
    }
}

/* Pages that somebody dropped by a raw madvise would read as zeros now. Without a pagemap to tell, all may be
 * missing. */
static bool lacks_pages(const struct cws_view *v, size_t begin, size_t end)
{
    size_t from, to;
    int prot;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to)
        if (cws_pages_present(v->base + from, (to - from) / CWS_PAGE_BYTES) != CWS_PAGE_THERE)
            return true;
    return false;
}

static bool is_zero(const uint8_t *page) { return page[0] == 0 && memcmp(page, page + 1, CWS_PAGE_BYTES - 1) == 0; }

/* Puts single pages back into a block that the program has written to. Nobody else runs. */
static void mend_written(struct cws_view *v, uint32_t block)
{
    struct cws_pager *p = &cws_pager;
    struct cws_error err = {0};
    size_t begin = cws_block_begin(v, block), end = cws_block_end(v, block);
    uint64_t stop = v->offset + end < v->source->bytes ? v->offset + end : v->source->bytes;
    must(cws_slot_need(0, end - begin));
    uint8_t *bytes = p->slots[0].staging;
    memset(bytes, 0, end - begin);
    if (stop > v->offset + begin && v->source->ops->fill(v->source, 0, v->offset + begin, stop, bytes, &err))
        cws_die("%s", err.message);
    for (size_t at = begin; at < end; at += CWS_PAGE_BYTES) {
        unsigned attr = cws_page_attr(v, at);
        enum cws_page_presence presence = cws_page_present(v->base + at);
        if (!(attr & CWS_ATTR_MAPPED) || presence == CWS_PAGE_THERE)
            continue;
        must(cws_sys_mprotect(v->base + at, CWS_PAGE_BYTES, PROT_READ | PROT_WRITE));
        if (presence == CWS_PAGE_ABSENT)
            memcpy(v->base + at, bytes + (at - begin), CWS_PAGE_BYTES);
        else if (is_zero(v->base + at)) /* what an absent page reads as, and what the program may have written */
            cws_die("a forked child cannot tell which pages of a view are there (/proc/self/pagemap cannot be read)");
        must(cws_sys_mprotect(v->base + at, CWS_PAGE_BYTES, (int)(attr & CWS_ATTR_PROT)));
    }
}

static void adopt_block_locked(struct cws_view *v, uint32_t block)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    size_t begin = cws_block_begin(v, block), end = cws_block_end(v, block);
    enum cws_block_state state = cws_block_state(b);
    if (state == CWS_FAILED) {
        cws_rung_map_hole(v, begin, end);
        return;
    }
    if (state == CWS_CLEAN && lacks_pages(v, begin, end)) {
        cws_policy_remove(&p->policy, &b->node);
        cws_block_set(b, CWS_EVICTING);
        cws_block_set(b, CWS_ABSENT);
        p->resident -= b->node.bytes;
        b->holds = 0;
        must(cws_rung_sigsegv.drop(v, begin, end));
        return;
    }
    if (state == CWS_WRITTEN && lacks_pages(v, begin, end))
        mend_written(v, block);
    if (state != CWS_GONE)
        protect_block(v, begin, end, state);
}

static void adopt_view_locked(struct cws_view *v)
{
    v->uffd = -1;
    v->channel = NULL;
    for (uint32_t block = 0; block < v->block_count;) {
        uint32_t next = block + 1;
        if (cws_block_state(&v->blocks[block]) != CWS_ABSENT) {
            adopt_block_locked(v, block);
        } else { /* one call for a stretch of absent blocks */
            while (next < v->block_count && cws_block_state(&v->blocks[next]) == CWS_ABSENT)
                next++;
            protect_block(v, cws_block_begin(v, block), cws_block_end(v, next - 1), CWS_ABSENT);
        }
        block = next;
    }
}

void cws_view_fork_child(void)
{
    struct cws_pager *p = &cws_pager;
    struct cws_view *v;
    cws_signal_stacks_reset();
    if (!p->running) {
        reopen();
        return;
    }
    /* Workers and descriptors are the parent's. Staging may be in the middle of nothing: all is quiet. */
    p->child = true;
    p->worker_count = 0;
    p->slots_taken = 0;
    p->queue_head = p->queue_tail = 0;
    int *const fds[] = {&p->epoll_fd, &p->kick_fd, &p->pagemap_fd, &p->statm_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0)
            cws_os_close(*fds[i]);
        *fds[i] = -1;
    }
    p->pagemap_fd = cws_own_fd_note(cws_os_openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY, 0));
    p->statm_fd = cws_own_fd_note(cws_os_openat(AT_FDCWD, "/proc/self/statm", O_RDONLY, 0));
    for (uint32_t slot = 0; (v = cws_index_next_locked(&slot)) != NULL;) {
        atomic_store(&v->users, 0);
        if (v->source->ops->after_fork)
            v->source->ops->after_fork(v->source);
    }
    if (p->rung->userfault) {
        cws_channels_after_fork();
        for (uint32_t slot = 0; (v = cws_index_next_locked(&slot)) != NULL;)
            adopt_view_locked(v);
        p->rung = &cws_rung_sigsegv;
    }
    if (p->rung->needs_signal)
        must(cws_signal_install());
    reopen();
}

int cws_fork_register(void)
{
    static bool registered; /* views lock */
    int code = registered ? 0 : pthread_atfork(cws_view_fork_prepare, cws_view_fork_parent, cws_view_fork_child);
    registered = code == 0;
    return -code;
}
