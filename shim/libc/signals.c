/* signals.c - our SIGSEGV and SIGBUS handler before the program's. While ours is installed, the program's action is
 * kept here: sigaction shows it its own, and a fault that is not a view's is passed to it as the kernel would have. */
#include "signals.h"
#include "uvm/host/signal_stack.h"
#include "store/base/sys.h"
#include "uvm/host/view.h"
#include "hooks.h"
#include "shim/state.h"

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

/* Bit signo - 1: the program's action for that other signal has signals[i] in its mask, which the kernel was not
 * told. */
static _Atomic uint64_t masked[CHAINED];

void cws_hook_signal_entry(int signo, siginfo_t *info, void *context) __attribute__((visibility("hidden")));

static int index_of(int signo) { return signo == SIGSEGV ? 0 : signo == SIGBUS ? 1 : -1; }

/* Writers: one at a time, with every signal blocked, also that of a cancellation, so that none waits for a thread it
 * has interrupted. */
static struct cws_signal_mask write_begin(void)
{
    struct cws_signal_mask saved = cws_signals_block();
    while (atomic_flag_test_and_set_explicit(&writing, memory_order_acquire))
        ;
    return saved;
}

static void write_end(struct cws_signal_mask saved)
{
    atomic_flag_clear_explicit(&writing, memory_order_release); /* saved is a copy: the next writer may be here */
    cws_signals_restore(saved);
}

static struct cws_signal_mask fork_mask; /* of the thread that forks; the writer's */

void cws_signals_fork_prepare(void)
{
    struct cws_signal_mask saved = write_begin();
    fork_mask = saved;
}

void cws_signals_fork_done(void) { write_end(fork_mask); }

static void set_action(int which, const struct sigaction *action)
{
    atomic_fetch_add_explicit(&chain[which].version, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    chain[which].action = *action;
    atomic_fetch_add_explicit(&chain[which].version, 1, memory_order_release);
}

CWS_ON_PROGRAM_STACK static void get_action(int which, struct sigaction *out)
{
    unsigned before, after;
    do {
        before = atomic_load_explicit(&chain[which].version, memory_order_acquire);
        *out = chain[which].action;
        atomic_thread_fence(memory_order_acquire);
        after = atomic_load_explicit(&chain[which].version, memory_order_relaxed);
    } while (before != after || (before & 1));
}

/* --- the masks of other signals' handlers: a fault whose signal is blocked ends the process ----------- */

enum { SIGNALS = 64 };

static bool is_masked(int i, int signo) { return atomic_load(&masked[i]) >> (signo - 1) & 1; }

/* The writer. Takes ours out of the action's mask; *out_masked: bit per signal of ours that was in it. */
static void open_mask(struct sigaction *action, unsigned *out_masked)
{
    *out_masked = 0;
    for (int i = 0; i < CHAINED; i++) {
        if (sigismember(&action->sa_mask, signals[i]) == 1)
            *out_masked |= 1u << i;
        sigdelset(&action->sa_mask, signals[i]);
    }
}

static void note_mask(int signo, unsigned which)
{
    for (int i = 0; i < CHAINED; i++) {
        if (which >> i & 1)
            atomic_fetch_or(&masked[i], UINT64_C(1) << (signo - 1));
        else
            atomic_fetch_and(&masked[i], ~(UINT64_C(1) << (signo - 1)));
    }
}

/* The writer, when ours is installed: what the program set before. */
static void open_masks(void)
{
    for (int signo = 1; signo <= SIGNALS; signo++) {
        struct sigaction action;
        unsigned which;
        if (index_of(signo) >= 0 || CWS_REAL(sigaction)(signo, NULL, &action) != 0 || action.sa_handler == SIG_DFL ||
            action.sa_handler == SIG_IGN)
            continue;
        open_mask(&action, &which);
        if (which && CWS_REAL(sigaction)(signo, &action, NULL) == 0)
            note_mask(signo, which);
    }
}

/* sigaction for a signal that is not chained: the program sees the mask that it gave. */
static int set_other(int signo, const struct sigaction *action, struct sigaction *previous)
{
    struct cws_signal_mask saved = write_begin();
    bool ours = atomic_load_explicit(&installed, memory_order_relaxed) && signo >= 1 && signo <= SIGNALS;
    struct sigaction copy;
    unsigned before = 0, which = 0;
    for (int i = 0; ours && i < CHAINED; i++)
        before |= is_masked(i, signo) ? 1u << i : 0;
    if (ours && action) {
        copy = *action;
        open_mask(&copy, &which);
        action = &copy;
    }
    int result = CWS_REAL(sigaction)(signo, action, previous);
    for (int i = 0; result == 0 && previous && i < CHAINED; i++)
        if (before >> i & 1)
            sigaddset(&previous->sa_mask, signals[i]);
    if (ours && result == 0 && action)
        note_mask(signo, which);
    write_end(saved);
    return result;
}

/* signal() and its relatives have set an action with an empty mask. */
static cws_signal_handler without_mask(int signo, cws_signal_handler result)
{
    if (result != SIG_ERR && signo >= 1 && signo <= SIGNALS)
        note_mask(signo, 0);
    return result;
}

/* --- ours ---------------------------------------------------------------------------------------- */

/* The kernel is to choose the stack, and to go on with interrupted calls, as the program asks. Where it does not ask,
 * faults of views get the alternate stack, since the other one may be full. */
static int flags_for(const struct sigaction *program)
{
    int flags = program->sa_flags & (SA_ONSTACK | SA_RESTART);
    return program->sa_handler == SIG_DFL || program->sa_handler == SIG_IGN ? flags | SA_ONSTACK : flags;
}

static bool needs_other_flags(const struct sigaction *now, const struct sigaction *before)
{
    return flags_for(now) != flags_for(before);
}

static int install_ours(int which, const struct sigaction *program)
{
    struct sigaction ours = {.sa_sigaction = cws_hook_signal_entry, .sa_flags = SA_SIGINFO | flags_for(program)};
    sigfillset(&ours.sa_mask);
    return CWS_REAL(sigaction)(signals[which], &ours, NULL);
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

struct reset {
    int which;
    struct sigaction action;
};

static void reset_action(void *arg)
{
    struct reset *r = arg;
    struct sigaction none = {.sa_handler = SIG_DFL};
    struct cws_signal_mask saved = write_begin();
    set_action(r->which, &none);
    if (needs_other_flags(&none, &r->action))
        (void)install_ours(r->which, &none);
    write_end(saved);
}

/* What the kernel would have done but for us; what it does by itself once the signal comes again is {0}. */
CWS_ON_PROGRAM_STACK static struct cws_signal_next next_of(int signo, const siginfo_t *info, const void *context)
{
    struct reset r = {.which = index_of(signo)};
    get_action(r.which, &r.action);
    if (r.action.sa_handler == SIG_DFL || (r.action.sa_handler == SIG_IGN && info->si_code > 0)) {
        take_default(signo, info); /* a fault cannot be ignored */
        return (struct cws_signal_next){0};
    }
    if (r.action.sa_handler == SIG_IGN)
        return (struct cws_signal_next){0};
    if (r.action.sa_flags & (int)SA_RESETHAND)
        cws_signal_stack_call(reset_action, &r);
    return cws_signal_next_of(&r.action, signo, context);
}

/* The program's handler runs where the kernel has put the frame, which is the stack that its action asks for
 * (install_ours), with nothing of ours on it but this function's frame, if that. Ours runs with every signal blocked;
 * the program's with what was blocked before and what it asked for. */
CWS_SIGNAL_ENTRY(cws_hook_signal_entry, cws_hook_signal_arrived);

CWS_ON_PROGRAM_STACK void cws_hook_signal_arrived(int signo, siginfo_t *info, void *context)
{
    if (cws_view_signal(signo, info, context))
        return;
    struct cws_signal_next next = next_of(signo, info, context);
    if (!next.handler)
        return;
    cws_signals_restore((struct cws_signal_mask){next.mask});
    next.handler(signo, info, context);
}

void cws_signals_unblock(void)
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

void cws_signals_refresh(void)
{
    int saved_errno = errno;
    if (atomic_load_explicit(&installed, memory_order_acquire) || !cws_view_needs_signal())
        return;
    struct cws_signal_mask saved = write_begin();
    if (!atomic_load_explicit(&installed, memory_order_relaxed)) {
        for (int i = 0; i < CHAINED; i++) {
            struct sigaction program = {.sa_handler = SIG_DFL};
            if (CWS_REAL(sigaction)(signals[i], NULL, &program) == 0)
                set_action(i, &program); /* before ours can run */
            (void)install_ours(i, &program);
        }
        open_masks();
        atomic_store_explicit(&installed, true, memory_order_release);
    }
    write_end(saved);
    errno = saved_errno;
}

/* --- what the program asks for ----------------------------------------------------------------- */

int cws_hook_sigaction(int signo, const struct sigaction *action, struct sigaction *previous)
{
    int which = index_of(signo);
    if (!cws_shim_pager_started())
        return CWS_REAL(sigaction)(signo, action, previous);
    if (which < 0)
        return set_other(signo, action, previous);
    int result = 0;
    struct sigaction before;
    /* not between our look at `installed` and what follows from it */
    struct cws_signal_mask saved = write_begin();
    if (!atomic_load_explicit(&installed, memory_order_relaxed)) {
        result = CWS_REAL(sigaction)(signo, action, previous);
    } else {
        before = chain[which].action;
        if (action)
            set_action(which, action);
        if (action && needs_other_flags(action, &before))
            result = install_ours(which, action);
        if (previous)
            *previous = before;
    }
    write_end(saved);
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
    return is_chained(signo, handler_) ? set_handler(signo, handler_, SA_RESTART)
                                       : without_mask(signo, CWS_REAL(signal)(signo, handler_));
}
CWS_SAME(bsd_signal, signal);
CWS_SAME(ssignal, signal);

cws_signal_handler cws_hook_sysv_signal(int signo, cws_signal_handler handler_)
{
    return is_chained(signo, handler_) ? set_handler(signo, handler_, (int)(SA_RESETHAND | SA_NODEFER))
                                       : without_mask(signo, CWS_REAL(sysv_signal)(signo, handler_));
}
CWS_SAME(__sysv_signal, sysv_signal);

cws_signal_handler cws_hook_sigset(int signo, cws_signal_handler handler_)
{
    if (!is_chained(signo, handler_))
        return without_mask(signo, CWS_REAL(sigset)(signo, handler_));
    struct sigaction before;
    get_action(index_of(signo), &before); /* blocking it (SIG_HOLD) would stop the pager: not done */
    return handler_ == SIG_HOLD ? before.sa_handler : set_handler(signo, handler_, 0);
}

/* --- the mask: a fault whose signal is blocked ends the process, so these two stay open while we need them --- */

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
