/* signal.c - SIGSEGV on the memory of a view: how the sigsegv rung, and every forked child, catches faults. The
 * faulting thread does the work itself, on a stack of ours. */
#include "pager.h"
#include "signal_stack.h"

#include <signal.h>
#include <string.h>
#include <ucontext.h>

enum { STALE_MAX = 1000, REPAIRS_MAX = 4 };

static int install_own(void);
static int (*_Atomic installer)(void) = install_own;

void cws_view_signal_installer(int (*install)(void)) { atomic_store(&installer, install ? install : install_own); }
int cws_signal_install(void)
{
    int code = cws_signal_stacks_make();
    return code ? code : atomic_load(&installer)();
}

/* Did the instruction write? `guess` where the machine does not say. */
static bool fault_was_write(const void *ucontext, bool guess)
{
#if defined(__x86_64__)
    (void)guess;
    return (((const ucontext_t *)ucontext)->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#elif defined(__aarch64__)
    /* The syndrome register is in a record of the frame. */
    const struct {
        uint32_t magic, size;
    } *record = (const void *)((const ucontext_t *)ucontext)->uc_mcontext.__reserved;
    for (; record->magic && record->size; record = (const void *)((const uint8_t *)record + record->size)) {
        if (record->magic == 0x45535201) {
            uint64_t syndrome;
            memcpy(&syndrome, (const uint8_t *)record + 8, sizeof syndrome);
            return (syndrome >> 6) & 1;
        }
    }
    return guess;
#else
    (void)ucontext;
    return guess;
#endif
}

/* How often in a row this thread faulted at the same address although the page was as it should be. */
static __thread struct {
    const void *addr;
    unsigned times, repairs;
} useless __attribute__((tls_model("initial-exec")));

/* The page is as it should be: somebody else served it a moment ago. If that goes on, something outside has changed the
 * mapping: it is put right, and when that does not help the fault is handed on rather than served for ever. */
static bool stale_locked(struct cws_view *v, size_t at, int prot, enum cws_block_state state)
{
    if (useless.addr != v->base + at) {
        useless.addr = v->base + at;
        useless.times = useless.repairs = 0;
    }
    if (++useless.times < STALE_MAX)
        return true;
    useless.times = 0;
    at = at / CWS_PAGE_BYTES * CWS_PAGE_BYTES;
    return ++useless.repairs < REPAIRS_MAX && cws_pager.rung->protect(v, at, at + CWS_PAGE_BYTES, prot, state) == 0;
}

/* The lock is held and the view is used; may drop the lock. True: try the instruction again. */
static bool serve_locked(struct cws_view *v, size_t at, const void *ucontext)
{
    struct cws_pager *p = &cws_pager;
    uint32_t block = cws_block_of(v, at);
    struct cws_block *b = &v->blocks[block];
    enum cws_block_state state = cws_block_state(b);
    if (cws_block_is_busy(state)) {
        useless.addr = NULL;
        cws_busy_wait_locked(b);
        return true;
    }
    unsigned attr = cws_page_attr(v, at);
    if (v->unmapped || !(attr & CWS_ATTR_MAPPED) || state == CWS_GONE)
        return true; /* unmapped meanwhile: the next try shows what is there now */
    /* Where a read would not have faulted it was a write, or a read that somebody served meanwhile: that may be done
     * again, a refusal ends the program. */
    bool write = fault_was_write(ucontext, state != CWS_ABSENT && (attr & PROT_WRITE));
    if (!(attr & (write ? PROT_WRITE : PROT_READ)) || state == CWS_FAILED)
        return false;
    if (state == CWS_ABSENT) {
        useless.addr = NULL;
        cws_lock_drop(&p->lock);
        /* When it fails the line was written and the next try is SIGBUS. */
        cws_fill(v, block, write ? CWS_FILL_WRITE_FAULT : CWS_FILL_FAULT, NULL);
        cws_lock_take(&p->lock);
        return true;
    }
    if (state == CWS_CLEAN && write) {
        useless.addr = NULL;
        cws_busy_wait_locked(b);
        if (cws_block_state(b) == CWS_CLEAN)
            cws_make_written_locked(v, block);
        return true;
    }
    return stale_locked(v, at, (int)(attr & CWS_ATTR_PROT), state);
}

struct fault {
    const siginfo_t *info;
    const void *ucontext;
    bool again;
};

/* On a stack of ours, with all signals blocked. */
static void serve(void *arg)
{
    struct fault *f = arg;
    struct cws_pager *p = &cws_pager;
    int saved_errno = errno;
    f->again = true; /* the view has gone meanwhile: see what is there now */
    cws_guard_by_mask(true);
    cws_lock_take(&p->lock);
    struct cws_piece piece;
    if (cws_index_find_locked(f->info->si_addr, 1, &piece)) {
        cws_view_use_locked(piece.view);
        f->again = serve_locked(piece.view, piece.from, f->ucontext);
        cws_view_unuse_locked(piece.view);
    }
    cws_lock_drop(&p->lock);
    cws_guard_by_mask(false);
    errno = saved_errno;
}

CWS_ON_PROGRAM_STACK bool cws_view_signal(int signo, void *siginfo, void *ucontext)
{
    const siginfo_t *info = siginfo;
    /* SIGBUS is a failed block or nobody's; a signal sent by kill() has no address. */
    if (signo != SIGSEGV || info->si_code <= 0 || !cws_view_needs_signal() || !cws_view_overlaps(info->si_addr, 1))
        return false;
    struct fault f = {.info = info, .ucontext = ucontext};
    struct cws_signal_mask mask = cws_signals_block();
    cws_signal_stack_call(serve, &f);
    cws_signals_restore(mask);
    return f.again;
}

/* --- our own handler, where no shim brings one ------------------------------------------------------- */

static struct sigaction previous;

CWS_ON_PROGRAM_STACK static struct cws_signal_next next_of_previous(int signo, const siginfo_t *info,
                                                                    const void *ucontext)
{
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN)
        return cws_signal_next_of(&previous, signo, ucontext);
    /* The instruction runs again and the process ends as it would have. */
    struct sigaction fallback = {.sa_handler = SIG_DFL};
    sigaction(signo, &fallback, NULL);
    if (info->si_code <= 0)
        raise(signo); /* was sent by kill() and would not come again */
    return (struct cws_signal_next){0};
}

CWS_SIGNAL_ENTRY(cws_own_segv_entry, cws_own_segv);

CWS_ON_PROGRAM_STACK void cws_own_segv(int signo, siginfo_t *info, void *ucontext)
{
    if (cws_view_signal(signo, info, ucontext))
        return;
    struct cws_signal_next next = next_of_previous(signo, info, ucontext);
    if (!next.handler)
        return;
    cws_signals_restore((struct cws_signal_mask){next.mask});
    next.handler(signo, info, ucontext);
}

/* On the stack that the handler before it asked for. */
static int install_own(void)
{
    struct sigaction now, ours = {.sa_sigaction = cws_own_segv_entry, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&ours.sa_mask);
    if (sigaction(SIGSEGV, NULL, &now) != 0)
        return -errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == cws_own_segv_entry)
        return 0;
    previous = now;
    if (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN || (now.sa_flags & SA_ONSTACK))
        ours.sa_flags |= SA_ONSTACK;
    return sigaction(SIGSEGV, &ours, NULL) == 0 ? 0 : -errno;
}
