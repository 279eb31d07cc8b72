/* hook_signal.c - chaining SIGSEGV and SIGBUS. While our handler is installed, the program's action is kept here: sigaction
 * shows it its own, and a fault that is not a view's is passed to it as the kernel would have. */
#include "hook_signal.h"
#include "../uvm/view.h"
#include "hooks.h"
#include "shim.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { CHAINED = 2 };
static const int signals[CHAINED] = {SIGSEGV, SIGBUS};

/* Read in our handler, which may interrupt a writer: a version that is odd while it is written tells. */
static struct {
    atomic_uint version;
    struct sigaction action;
} chain[CHAINED];
static atomic_bool installed;
static atomic_flag writing = ATOMIC_FLAG_INIT;

static int index_of(int signo) { return signo == SIGSEGV ? 0 : signo == SIGBUS ? 1 : -1; }

/* Writers: one at a time, with every signal blocked, so that none waits for a thread it has interrupted. */
static void write_begin(sigset_t *saved)
{
    sigset_t all;
    sigfillset(&all);
    CWS_REAL(pthread_sigmask)(SIG_BLOCK, &all, saved);
    while (atomic_flag_test_and_set_explicit(&writing, memory_order_acquire))
        ;
}

static void write_end(const sigset_t *saved)
{
    atomic_flag_clear_explicit(&writing, memory_order_release);
    CWS_REAL(pthread_sigmask)(SIG_SETMASK, saved, NULL);
}

static void set_action(int which, const struct sigaction *action)
{
    atomic_fetch_add_explicit(&chain[which].version, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    chain[which].action = *action;
    atomic_fetch_add_explicit(&chain[which].version, 1, memory_order_release);
}

static struct sigaction get_action(int which)
{
    struct sigaction action;
    unsigned before, after;
    do {
        before = atomic_load_explicit(&chain[which].version, memory_order_acquire);
        action = chain[which].action;
        atomic_thread_fence(memory_order_acquire);
        after = atomic_load_explicit(&chain[which].version, memory_order_relaxed);
    } while (before != after || (before & 1));
    return action;
}

/* --- passing a signal on ----------------------------------------------------------------------- */

/* The default action: the instruction faults again and the process ends as it would have without us. A signal that
 * someone sent does not come again by itself. */
static void take_default(int signo, const siginfo_t *info)
{
    struct sigaction dead = {.sa_handler = SIG_DFL};
    CWS_REAL(sigaction)(signo, &dead, NULL);
    if (info->si_code <= 0)
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signo);
}

static void pass_on(int signo, siginfo_t *info, void *context)
{
    int which = index_of(signo);
    struct sigaction action = get_action(which);
    if (action.sa_handler == SIG_DFL || (action.sa_handler == SIG_IGN && info->si_code > 0)) {
        take_default(signo, info); /* a fault cannot be ignored */
        return;
    }
    if (action.sa_handler == SIG_IGN)
        return;
    if (action.sa_flags & SA_RESETHAND) {
        sigset_t saved;
        struct sigaction reset = {.sa_handler = SIG_DFL};
        write_begin(&saved);
        set_action(which, &reset);
        write_end(&saved);
    }
    /* Ours runs with every signal blocked; the program's with what was blocked before and what it asked for. */
    sigset_t mask;
    sigorset(&mask, &((ucontext_t *)context)->uc_sigmask, &action.sa_mask);
    if (!(action.sa_flags & (int)SA_NODEFER))
        sigaddset(&mask, signo);
    CWS_REAL(pthread_sigmask)(SIG_SETMASK, &mask, NULL);
    if (action.sa_flags & SA_SIGINFO)
        action.sa_sigaction(signo, info, context);
    else
        action.sa_handler(signo);
}

static void handler(int signo, siginfo_t *info, void *context)
{
    int saved = errno;
    if (!(info->si_code > 0 && cws_view_signal(signo, info, context)))
        pass_on(signo, info, context);
    errno = saved;
}

void cws_signal_unblock(void)
{
    sigset_t ours;
    int saved = errno;
    sigemptyset(&ours);
    for (int i = 0; i < CHAINED; i++)
        sigaddset(&ours, signals[i]);
    if (atomic_load_explicit(&installed, memory_order_relaxed))
        CWS_REAL(pthread_sigmask)(SIG_UNBLOCK, &ours, NULL);
    errno = saved;
}

void cws_signal_refresh(void)
{
    sigset_t saved;
    int saved_errno = errno;
    if (atomic_load_explicit(&installed, memory_order_acquire) || !cws_view_needs_signal())
        return;
    write_begin(&saved);
    if (!atomic_load_explicit(&installed, memory_order_relaxed)) {
        struct sigaction ours = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigfillset(&ours.sa_mask);
        struct sigaction program;
        for (int i = 0; i < CHAINED; i++) {
            if (CWS_REAL(sigaction)(signals[i], NULL, &program) == 0)
                set_action(i, &program); /* before ours can run */
            CWS_REAL(sigaction)(signals[i], &ours, NULL);
        }
        atomic_store_explicit(&installed, true, memory_order_release);
    }
    write_end(&saved);
    errno = saved_errno;
}

/* --- what the program asks for ----------------------------------------------------------------- */

int cws_hook_sigaction(int signo, const struct sigaction *action, struct sigaction *previous)
{
    sigset_t saved;
    int which = index_of(signo);
    if (which < 0 || !cws_shim_pager_started())
        return CWS_REAL(sigaction)(signo, action, previous);
    int result = 0;
    struct sigaction before;
    write_begin(&saved); /* not between our look at `installed` and what follows from it */
    if (!atomic_load_explicit(&installed, memory_order_relaxed)) {
        result = CWS_REAL(sigaction)(signo, action, previous);
    } else {
        before = chain[which].action;
        if (action)
            set_action(which, action);
        if (previous)
            *previous = before;
    }
    write_end(&saved);
    return result;
}
CWS_SAME(__sigaction, sigaction);

static cws_signal_handler set_handler(int signo, cws_signal_handler handler_, int flags)
{
    struct sigaction action = {.sa_handler = handler_, .sa_flags = flags}, before;
    return cws_hook_sigaction(signo, &action, &before) == 0 ? before.sa_handler : SIG_ERR;
}

static bool is_chained(int signo, cws_signal_handler handler_)
{
    return index_of(signo) >= 0 && handler_ != SIG_ERR && atomic_load_explicit(&installed, memory_order_relaxed);
}

cws_signal_handler cws_hook_signal(int signo, cws_signal_handler handler_)
{
    return is_chained(signo, handler_) ? set_handler(signo, handler_, SA_RESTART) : CWS_REAL(signal)(signo, handler_);
}
CWS_SAME(bsd_signal, signal);
CWS_SAME(ssignal, signal);

cws_signal_handler cws_hook_sysv_signal(int signo, cws_signal_handler handler_)
{
    return is_chained(signo, handler_) ? set_handler(signo, handler_, (int)(SA_RESETHAND | SA_NODEFER))
                                       : CWS_REAL(sysv_signal)(signo, handler_);
}
CWS_SAME(__sysv_signal, sysv_signal);

cws_signal_handler cws_hook_sigset(int signo, cws_signal_handler handler_)
{
    if (!is_chained(signo, handler_))
        return CWS_REAL(sigset)(signo, handler_);
    struct sigaction before = get_action(index_of(signo)); /* blocking it (SIG_HOLD) would stop the pager: not done */
    return handler_ == SIG_HOLD ? before.sa_handler : set_handler(signo, handler_, 0);
}

/* --- the mask: a fault whose signal is blocked ends the process, so these two stay open while we need them ---------- */

static const sigset_t *opened(int how, const sigset_t *set, sigset_t *copy)
{
    if (!set || how == SIG_UNBLOCK || !CWS_UNLIKELY(atomic_load_explicit(&installed, memory_order_relaxed)))
        return set;
    *copy = *set;
    for (int i = 0; i < CHAINED; i++)
        sigdelset(copy, signals[i]);
    return copy;
}

int cws_hook_sigprocmask(int how, const sigset_t *set, sigset_t *previous)
{
    sigset_t copy;
    return CWS_REAL(sigprocmask)(how, opened(how, set, &copy), previous);
}

int cws_hook_pthread_sigmask(int how, const sigset_t *set, sigset_t *previous)
{
    sigset_t copy;
    return CWS_REAL(pthread_sigmask)(how, opened(how, set, &copy), previous);
}

/* The same of older times: a mask is the first 31 signals as bits. */
static int opened_bits(int mask)
{
    if (!CWS_UNLIKELY(atomic_load_explicit(&installed, memory_order_relaxed)))
        return mask;
    return (int)((unsigned)mask & ~(1U << (SIGSEGV - 1) | 1U << (SIGBUS - 1)));
}

int cws_hook_sigblock(int mask) { return CWS_REAL(sigblock)(opened_bits(mask)); }
int cws_hook_sigsetmask(int mask) { return CWS_REAL(sigsetmask)(opened_bits(mask)); }
int cws_hook_sighold(int signo) { return is_chained(signo, SIG_DFL) ? 0 : CWS_REAL(sighold)(signo); }

int cws_hook_sigignore(int signo)
{
    if (!is_chained(signo, SIG_IGN))
        return CWS_REAL(sigignore)(signo);
    return set_handler(signo, SIG_IGN, 0) == SIG_ERR ? -1 : 0;
}
