/* guard.c - sections without signals and without cancellation, by raw system calls: the C library's own functions
 * keep some signals open, and the shim replaces others. */
#include "guard.h"
#include "sys.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

/* signals are blocked while it is set */
static __thread bool inside __attribute__((tls_model("initial-exec")));

/* Raw: the C library keeps its own signals open (one is how a thread is cancelled), and the shim replaces its
 * functions. */
static void set_mask(uint64_t mask, uint64_t *out_before)
{
    CWS_SYSCALL(SYS_rt_sigprocmask, SIG_SETMASK, &mask, out_before, sizeof mask);
}

struct cws_guard cws_guard_begin(void)
{
    struct cws_guard g = {.outermost = !inside};
    if (inside)
        return g;
    set_mask(~UINT64_C(0), &g.mask);
#ifdef CWS_TSAN /* whose own handler keeps signals for later: they are delivered here, before anything is locked */
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_BLOCK, &none, NULL);
#endif
    /* Behind the mask: a jump out of a handler would leave the thread without cancellation. The type stays as it is:
     * where it is asynchronous and a cancellation is on its way, the C library's cancellation points would wait, with a
     * deferred one, for the signal that is blocked. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &g.state);
    inside = true;
    return g;
}

static void open_mask(void *mask) { set_mask(*(const uint64_t *)mask, NULL); }

void cws_guard_end(const struct cws_guard *g)
{
    uint64_t mask = g->mask;
    int type;
    if (!g->outermost)
        return;
    inside = false;
    /* A thread that may be cancelled at any instruction ends in the second pthread_setcanceltype(), and its clean-up
     * handlers run with its own mask. (It could end in pthread_setcancelstate(), but is then joined with a result of
     * NULL by some C libraries.) */
    pthread_cleanup_push(open_mask, &mask);
    pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
    pthread_setcancelstate(g->state, NULL);
    pthread_setcanceltype(type, NULL);
    pthread_cleanup_pop(1);
}

bool cws_guard_is_wanted(const struct cws_guard *g)
{
    uint64_t pending = 0;
    if (!g->outermost)
        return false;
    CWS_SYSCALL(SYS_rt_sigpending, &pending, sizeof pending);
    return (pending & ~g->mask) != 0;
}

void cws_guard_by_mask(bool on) { inside = on; }
