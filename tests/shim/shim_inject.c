#include "shim_inject.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int armed;
static atomic_uint wanted, seen;
static atomic_bool fired, fired_by_shim;
static atomic_long live;

void shim_inject_arm(enum shim_inject_kind kind, unsigned nth)
{
    atomic_store(&armed, SHIM_INJECT_NONE);
    atomic_store(&wanted, nth);
    atomic_store(&seen, 0);
    atomic_store(&fired, false);
    atomic_store(&fired_by_shim, false);
    atomic_store(&armed, (int)kind);
}

bool shim_inject_disarm(bool *out_by_shim)
{
    atomic_store(&armed, SHIM_INJECT_NONE);
    *out_by_shim = atomic_load(&fired_by_shim);
    return atomic_load(&fired);
}

static bool is_sanitized; /* found out before anything fails: a dlsym that finds nothing allocates */
__attribute__((constructor)) static void start(void) { is_sanitized = dlsym(RTLD_DEFAULT, "__asan_init") != NULL; }

/* AddressSanitizer's strdup and the like allocate behind our back. */
long shim_inject_live_blocks(void) { return is_sanitized ? 0 : atomic_load(&live); }

static bool is_shim(const void *caller)
{
    Dl_info where;
    return dladdr(caller, &where) && where.dli_fname && strstr(where.dli_fname, "libcodecshim");
}

static bool hit(enum shim_inject_kind kind, unsigned times, const void *caller)
{
    if (atomic_load_explicit(&armed, memory_order_relaxed) != (int)kind)
        return false;
    if (kind == SHIM_INJECT_ALLOC && !is_shim(caller) && is_sanitized)
        return false; /* it ends the process when it cannot start a thread */
    unsigned n = atomic_fetch_add(&seen, 1) + 1, first = atomic_load(&wanted);
    if (n < first || n - first >= times)
        return false;
    atomic_store(&fired, true);
    if (is_shim(caller))
        atomic_store(&fired_by_shim, true);
    return true;
}

static bool fails(enum shim_inject_kind kind, unsigned times, int code, const void *caller)
{
    if (!hit(kind, times, caller))
        return false;
    errno = code;
    return true;
}

static size_t shortened(size_t bytes, const void *caller)
{
    return bytes > 1 && hit(SHIM_INJECT_SHORT, ~0u, caller) ? bytes > 3000 ? bytes - 1500 : bytes / 2 : bytes;
}

#define CALLER __builtin_return_address(0)
/* The next definition of a name: the C library's, or a sanitizer's. */
#define NEXT(name)                                                                                                     \
    (__extension__({                                                                                                   \
        static __typeof__(name) *next_;                                                                                \
        __typeof__(name) *found_ = __atomic_load_n(&next_, __ATOMIC_RELAXED);                                          \
        if (!found_)                                                                                                   \
            __atomic_store_n(&next_, found_ = (__typeof__(name) *)dlsym(RTLD_NEXT, #name), __ATOMIC_RELAXED);          \
        found_;                                                                                                        \
    }))

/* --- memory ------------------------------------------------------------------------------------------ */

static void *counted(void *p)
{
    atomic_fetch_add_explicit(&live, p != NULL, memory_order_relaxed);
    return p;
}

void *malloc(size_t n) { return fails(SHIM_INJECT_ALLOC, 1, ENOMEM, CALLER) ? NULL : counted(NEXT(malloc)(n)); }
void *calloc(size_t n, size_t m)
{
    return fails(SHIM_INJECT_ALLOC, 1, ENOMEM, CALLER) ? NULL : counted(NEXT(calloc)(n, m));
}

void *aligned_alloc(size_t a, size_t n)
{
    return fails(SHIM_INJECT_ALLOC, 1, ENOMEM, CALLER) ? NULL : counted(NEXT(aligned_alloc)(a, n));
}

void *realloc(void *p, size_t n)
{
    if (fails(SHIM_INJECT_ALLOC, 1, ENOMEM, CALLER))
        return NULL;
    void *q = NEXT(realloc)(p, n);
    return p ? q : counted(q);
}

void free(void *p)
{
    static void (*_Atomic next)(void *);
    static atomic_flag looked = ATOMIC_FLAG_INIT;
    if (!next && atomic_flag_test_and_set(&looked))
        return; /* dlsym frees the message of one that failed before it looks for anything: that message stays */
    if (!next)
        next = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    atomic_fetch_sub_explicit(&live, p != NULL, memory_order_relaxed);
    next(p);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    return fails(SHIM_INJECT_MAP, 1, ENOMEM, CALLER) ? MAP_FAILED : NEXT(mmap)(at, n, prot, flags, fd, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg)
{
    return hit(SHIM_INJECT_THREAD, 1, CALLER) ? EAGAIN : NEXT(pthread_create)(thread, attributes, run, arg);
}

/* --- files --------------------------------------------------------------------------------------------- */

#define ONE_ARGUMENT(type, last)                                                                                       \
    va_list arguments;                                                                                                 \
    va_start(arguments, last);                                                                                         \
    type argument = va_arg(arguments, type); /* of no use where there is none, and of no harm */                       \
    va_end(arguments)

int open(const char *path, int flags, ...)
{
    ONE_ARGUMENT(int, flags);
    return fails(SHIM_INJECT_OPEN, 1, EMFILE, CALLER) ? -1 : NEXT(open)(path, flags, argument);
}

int openat(int dir, const char *path, int flags, ...)
{
    ONE_ARGUMENT(int, flags);
    return fails(SHIM_INJECT_OPEN, 1, EMFILE, CALLER) ? -1 : NEXT(openat)(dir, path, flags, argument);
}

static bool opens(int command) { return command == F_DUPFD || command == F_DUPFD_CLOEXEC; }

int fcntl(int fd, int command, ...)
{
    ONE_ARGUMENT(void *, command);
    return opens(command) && fails(SHIM_INJECT_OPEN, 1, EMFILE, CALLER) ? -1 : NEXT(fcntl)(fd, command, argument);
}

int dup(int fd) { return fails(SHIM_INJECT_OPEN, 1, EMFILE, CALLER) ? -1 : NEXT(dup)(fd); }
int dup2(int from, int to) { return fails(SHIM_INJECT_OPEN, 1, EMFILE, CALLER) ? -1 : NEXT(dup2)(from, to); }

int stat(const char *path, struct stat *out)
{
    return fails(SHIM_INJECT_STAT, 1, EIO, CALLER) ? -1 : NEXT(stat)(path, out);
}
int lstat(const char *path, struct stat *out)
{
    return fails(SHIM_INJECT_STAT, 1, EIO, CALLER) ? -1 : NEXT(lstat)(path, out);
}
int fstat(int fd, struct stat *out) { return fails(SHIM_INJECT_STAT, 1, EIO, CALLER) ? -1 : NEXT(fstat)(fd, out); }

int fstatat(int dir, const char *path, struct stat *out, int flags)
{
    return fails(SHIM_INJECT_STAT, 1, EIO, CALLER) ? -1 : NEXT(fstatat)(dir, path, out, flags);
}

int statx(int dir, const char *path, int flags, unsigned mask, struct statx *out)
{
    return fails(SHIM_INJECT_STAT, 1, EIO, CALLER) ? -1 : NEXT(statx)(dir, path, flags, mask, out);
}

off_t lseek(int fd, off_t offset, int whence)
{
    return fails(SHIM_INJECT_SEEK, 1, EIO, CALLER) ? -1 : NEXT(lseek)(fd, offset, whence);
}

ssize_t read(int fd, void *data, size_t bytes)
{
    return fails(SHIM_INJECT_READ, 1, EIO, CALLER) ? -1 : NEXT(read)(fd, data, shortened(bytes, CALLER));
}

ssize_t pread(int fd, void *data, size_t bytes, off_t offset)
{
    if (fails(SHIM_INJECT_READ, 1, EIO, CALLER) || fails(SHIM_INJECT_INTR, 2, EINTR, CALLER))
        return -1;
    return NEXT(pread)(fd, data, shortened(bytes, CALLER), offset);
}

ssize_t readlink(const char *path, char *to, size_t bytes)
{
    return fails(SHIM_INJECT_LINK, 1, EIO, CALLER) ? -1 : NEXT(readlink)(path, to, bytes);
}

int rename(const char *from, const char *to)
{
    return fails(SHIM_INJECT_LINK, 1, EIO, CALLER) ? -1 : NEXT(rename)(from, to);
}
int fchmod(int fd, mode_t mode) { return fails(SHIM_INJECT_LINK, 1, EIO, CALLER) ? -1 : NEXT(fchmod)(fd, mode); }
int fchown(int fd, uid_t owner, gid_t group)
{
    return fails(SHIM_INJECT_LINK, 1, EIO, CALLER) ? -1 : NEXT(fchown)(fd, owner, group);
}

int faccessat(int dir, const char *path, int mode, int flags)
{
    return fails(SHIM_INJECT_LINK, 1, EIO, CALLER) ? -1 : NEXT(faccessat)(dir, path, mode, flags);
}

/* --- direct system calls -------------------------------------------------------------------------------- */

static bool direct_fails(long number, const long a[6], const void *caller)
{
    switch (number) {
    case SYS_openat: return fails(SHIM_INJECT_OPEN, 1, EMFILE, caller);
    case SYS_fcntl: return opens((int)a[1]) && fails(SHIM_INJECT_OPEN, 1, EMFILE, caller);
    case SYS_fstat:
    case SYS_newfstatat: return fails(SHIM_INJECT_STAT, 1, EIO, caller);
    case SYS_pread64: return fails(SHIM_INJECT_READ, 1, EIO, caller) || fails(SHIM_INJECT_INTR, 2, EINTR, caller);
    case SYS_mmap: /* pages of a view that are replaced (uvm/) have a test of their own: test_pager_inject */
        return !(a[3] & MAP_FIXED) && fails(SHIM_INJECT_MAP, 1, ENOMEM, caller);
    default: return false;
    }
}

long syscall(long number, ...)
{
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (direct_fails(number, a, CALLER))
        return -1;
    if (number == SYS_pread64)
        a[2] = (long)shortened((size_t)a[2], CALLER);
    return NEXT(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
