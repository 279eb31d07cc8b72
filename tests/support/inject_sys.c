#include "inject_sys.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFDIO_POISON
#define UFFDIO_POISON                                                                                                  \
    _IOWR(                                                                                                             \
        UFFDIO, 0x08, struct {                                                                                         \
            struct uffdio_range range;                                                                                 \
            uint64_t mode;                                                                                             \
            int64_t updated;                                                                                           \
        })
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

enum { PAGE = 4096 };

/* Shared with forked children: one count for the whole life. */
static struct plan {
    atomic_int armed;
    atomic_uint first_hit, hits_wanted, seen, fired;
} at_start, *plan = &at_start;
static atomic_long live;

void *__real_mmap(void *p, size_t n, int prot, int flags, int fd, off_t at);

__attribute__((constructor)) static void share(void)
{
    void *p = __real_mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED)
        plan = p;
}

static const char *const names[SYS_KIND_COUNT] = {
    "none",       "alloc",     "mmap",      "munmap",     "mremap",    "mprotect",   "madvise",         "locked",
    "open",       "api",       "register",  "copy-again", "copy-part", "copy-nomem", "copy-nomem-part", "copy-exist",
    "copy-noent", "copy-srch", "wp-again",  "wp-nomem",   "wp-noent",  "wake",       "poison",          "epoll-ctl",
    "epoll-intr", "epoll-bad", "read-intr", "read-io",    "pread",     "write",      "futex",           "thread",
    "sigaction",
};
const char *sys_kind_name(enum sys_kind kind) { return names[kind]; }

void sys_inject_arm(enum sys_kind kind, unsigned nth, unsigned times)
{
    atomic_store(&plan->armed, SYS_KIND_NONE);
    atomic_store(&plan->first_hit, nth);
    atomic_store(&plan->hits_wanted, times);
    atomic_store(&plan->seen, 0);
    atomic_store(&plan->fired, 0);
    atomic_store(&plan->armed, kind);
}
bool sys_inject_fired(void) { return atomic_load(&plan->fired) != 0; }
bool sys_inject_disarm(void)
{
    atomic_store(&plan->armed, SYS_KIND_NONE);
    return sys_inject_fired();
}
long sys_live_blocks(void) { return atomic_load(&live); }

static bool hit(enum sys_kind kind)
{
    if (atomic_load(&plan->armed) != (int)kind)
        return false;
    unsigned n = atomic_fetch_add(&plan->seen, 1) + 1, first = atomic_load(&plan->first_hit);
    if (n < first || n - first >= atomic_load(&plan->hits_wanted))
        return false;
    atomic_fetch_add(&plan->fired, 1);
    return true;
}

#define WRAP(result, name, ...)                                                                                        \
    result __real_##name(__VA_ARGS__);                                                                                 \
    result __wrap_##name(__VA_ARGS__);                                                                                 \
    result __wrap_##name(__VA_ARGS__)

/* --- memory ------------------------------------------------------------------------------------------ */

static void *counted(void *p)
{
    atomic_fetch_add(&live, p != NULL);
    return p;
}
WRAP(void *, malloc, size_t n) { return hit(SYS_KIND_ALLOC) ? NULL : counted(__real_malloc(n)); }
WRAP(void *, calloc, size_t n, size_t m) { return hit(SYS_KIND_ALLOC) ? NULL : counted(__real_calloc(n, m)); }
WRAP(void *, aligned_alloc, size_t a, size_t n)
{
    return hit(SYS_KIND_ALLOC) ? NULL : counted(__real_aligned_alloc(a, n));
}
WRAP(void *, realloc, void *p, size_t n)
{
    if (hit(SYS_KIND_ALLOC))
        return NULL;
    void *q = __real_realloc(p, n);
    return p ? q : counted(q);
}
WRAP(void, free, void *p)
{
    atomic_fetch_sub(&live, p != NULL);
    __real_free(p);
}

/* --- calls that go through the C library -------------------------------------------------------------- */

static bool fails(enum sys_kind kind, int code)
{
    if (!hit(kind))
        return false;
    errno = code;
    return true;
}
WRAP(void *, mmap, void *p, size_t n, int prot, int flags, int fd, off_t at)
{
    return fails(SYS_KIND_MMAP, ENOMEM) ? MAP_FAILED : __real_mmap(p, n, prot, flags, fd, at);
}
WRAP(int, memfd_create, const char *name, unsigned flags)
{
    return fails(SYS_KIND_OPEN, EMFILE) ? -1 : __real_memfd_create(name, flags);
}
WRAP(int, epoll_create1, int flags) { return fails(SYS_KIND_OPEN, EMFILE) ? -1 : __real_epoll_create1(flags); }
WRAP(int, eventfd, unsigned n, int flags) { return fails(SYS_KIND_OPEN, EMFILE) ? -1 : __real_eventfd(n, flags); }
WRAP(int, epoll_ctl, int fd, int op, int other, struct epoll_event *event)
{
    return fails(SYS_KIND_EPOLL_CTL, ENOSPC) ? -1 : __real_epoll_ctl(fd, op, other, event);
}
WRAP(int, pthread_create, pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg)
{
    return hit(SYS_KIND_THREAD) ? EAGAIN : __real_pthread_create(t, a, f, arg);
}
WRAP(int, pthread_atfork, void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    return hit(SYS_KIND_THREAD) ? ENOMEM : __real_pthread_atfork(prepare, parent, child);
}
WRAP(int, sigaction, int signo, const struct sigaction *now, struct sigaction *before)
{
    return fails(SYS_KIND_SIGACTION, EINVAL) ? -1 : __real_sigaction(signo, now, before);
}

/* --- raw calls ---------------------------------------------------------------------------------------- */

long __real_syscall(long nr, ...);

static int ioctl_copy_code(long fd, struct uffdio_copy *copy)
{
    if (fails(SYS_KIND_COPY_PART, EAGAIN) || fails(SYS_KIND_COPY_NOMEM_PART, EAGAIN)) {
        uint64_t len = copy->len;
        copy->len = PAGE;
        long rc = __real_syscall(SYS_ioctl, fd, UFFDIO_COPY, copy);
        copy->len = len;
        if (atomic_load(&plan->armed) == SYS_KIND_COPY_NOMEM_PART &&
            atomic_load(&plan->fired) == 1) { /* the next one fails, as when memory ran out in the middle */
            atomic_store(&plan->first_hit, atomic_load(&plan->seen) + 1);
            atomic_store(&plan->armed, SYS_KIND_COPY_NOMEM);
        }
        return rc < 0 ? errno : EAGAIN;
    }
    int code = hit(SYS_KIND_COPY_AGAIN)   ? EAGAIN
               : hit(SYS_KIND_COPY_NOMEM) ? ENOMEM
               : hit(SYS_KIND_COPY_EXIST) ? EEXIST
               : hit(SYS_KIND_COPY_NOENT) ? ENOENT
               : hit(SYS_KIND_COPY_SRCH)  ? ESRCH
                                          : 0;
    if (code)
        copy->copy = -code;
    return code;
}

static int ioctl_code(long fd, unsigned long request, void *arg)
{
    switch (request) {
    case USERFAULTFD_IOC_NEW: return hit(SYS_KIND_OPEN) ? EMFILE : 0;
    case UFFDIO_API: return hit(SYS_KIND_API) ? EINVAL : 0;
    case UFFDIO_REGISTER: return hit(SYS_KIND_REGISTER) ? ENOMEM : 0;
    case UFFDIO_COPY: return ioctl_copy_code(fd, arg);
    case UFFDIO_WRITEPROTECT:
        return hit(SYS_KIND_PROTECT_AGAIN)   ? EAGAIN
               : hit(SYS_KIND_PROTECT_NOMEM) ? ENOMEM
               : hit(SYS_KIND_PROTECT_NOENT) ? ENOENT
                                             : 0;
    case UFFDIO_WAKE: return hit(SYS_KIND_WAKE) ? EINVAL : 0;
    case UFFDIO_POISON: return hit(SYS_KIND_POISON) ? ENOMEM : 0;
    default: return 0;
    }
}

static int call_code(long nr, const long *a)
{
    switch (nr) {
    case SYS_mmap: return hit(SYS_KIND_MMAP) ? ENOMEM : 0;
    case SYS_munmap: return hit(SYS_KIND_MUNMAP) ? ENOMEM : 0;
    case SYS_mremap: return hit(SYS_KIND_MREMAP) ? ENOMEM : 0;
    case SYS_mprotect: return hit(SYS_KIND_MPROTECT) ? ENOMEM : 0;
    case SYS_madvise:
        if ((a[2] == MADV_DONTNEED || a[2] == MADV_DONTNEED_LOCKED) && hit(SYS_KIND_LOCKED))
            return EINVAL;
        return hit(SYS_KIND_MADVISE) ? ENOMEM : 0;
    case SYS_openat:
    case SYS_userfaultfd: return hit(SYS_KIND_OPEN) ? EMFILE : 0;
    case SYS_epoll_ctl: return hit(SYS_KIND_EPOLL_CTL) ? ENOSPC : 0;
    case SYS_epoll_pwait: return hit(SYS_KIND_EPOLL_INTR) ? EINTR : hit(SYS_KIND_EPOLL_BAD) ? EBADF : 0;
    case SYS_read: return hit(SYS_KIND_READ_INTR) ? EINTR : hit(SYS_KIND_READ_IO) ? EIO : 0;
    case SYS_pread64: return hit(SYS_KIND_PREAD) ? EIO : 0;
    case SYS_write: return (int)a[0] != 2 && hit(SYS_KIND_WRITE) ? EAGAIN : 0;
    case SYS_futex: return ((int)a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT && hit(SYS_KIND_FUTEX) ? EINTR : 0;
    case SYS_ioctl: return ioctl_code(a[0], (unsigned long)a[1], (void *)a[2]);
    default: return 0;
    }
}

/* How many arguments a call of uvm/ and store/ takes: there is nothing to be read behind the last one. */
static int argument_count(long nr)
{
    switch (nr) {
    case SYS_gettid: return 0;
    case SYS_close:
    case SYS_userfaultfd: return 1;
    case SYS_munmap:
    case SYS_nanosleep:
    case SYS_fstat: return 2;
    case SYS_epoll_ctl:
    case SYS_rt_sigprocmask:
    case SYS_openat:
    case SYS_pread64:
    case SYS_newfstatat: return 4;
    case SYS_mremap: return 5;
    case SYS_mmap:
    case SYS_futex:
    case SYS_epoll_pwait: return 6;
    default: return 3;
    }
}

long __wrap_syscall(long nr, ...);
long __wrap_syscall(long nr, ...)
{
    long a[6] = {0};
    va_list args;
    va_start(args, nr);
    for (int i = 0; i < argument_count(nr); i++)
        a[i] = va_arg(args, long);
    va_end(args);
    int code = call_code(nr, a);
    if (code) {
        errno = code;
        return -1;
    }
    return __real_syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}
