#include "inject.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>

static atomic_int armed;
static atomic_uint wanted, seen, fired;

void inject_arm(enum inject_kind kind, unsigned nth)
{
    atomic_store(&armed, INJECT_NONE);
    atomic_store(&wanted, nth);
    atomic_store(&seen, 0);
    atomic_store(&fired, 0);
    atomic_store(&armed, kind);
}

int inject_disarm(void)
{
    atomic_store(&armed, INJECT_NONE);
    return atomic_load(&fired) != 0;
}

static bool hit_times(enum inject_kind kind, unsigned times)
{
    if (atomic_load(&armed) != (int)kind)
        return false;
    unsigned n = atomic_fetch_add(&seen, 1) + 1, first = atomic_load(&wanted);
    if (n < first || n - first >= times)
        return false;
    atomic_store(&fired, 1);
    return true;
}

static bool hit(enum inject_kind kind) { return hit_times(kind, 1); }

#define WRAP(result, name, ...)                                                                                        \
    result __real_##name(__VA_ARGS__);                                                                                 \
    result __wrap_##name(__VA_ARGS__);                                                                                 \
    result __wrap_##name(__VA_ARGS__)

static bool no_memory(void)
{
    if (!hit(INJECT_ALLOC))
        return false;
    errno = ENOMEM; /* as the real ones do: a parser that has no other word for it is understood by that */
    return true;
}

WRAP(void *, malloc, size_t n) { return no_memory() ? NULL : __real_malloc(n); }

WRAP(void *, calloc, size_t n, size_t m) { return no_memory() ? NULL : __real_calloc(n, m); }

WRAP(void *, realloc, void *p, size_t n) { return no_memory() ? NULL : __real_realloc(p, n); }

WRAP(void *, aligned_alloc, size_t a, size_t n) { return no_memory() ? NULL : __real_aligned_alloc(a, n); }

WRAP(void *, mmap, void *p, size_t n, int prot, int flags, int fd, off_t at)
{
    return no_memory() ? MAP_FAILED : __real_mmap(p, n, prot, flags, fd, at);
}

WRAP(int, pthread_create, pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg)
{
    return hit(INJECT_ALLOC) ? EAGAIN : __real_pthread_create(t, a, f, arg);
}

static size_t shortened(size_t n) { return n > 1000 ? n - 1000 : n > 1 ? n / 2 : n; }

WRAP(ssize_t, cws_os_pread, int fd, void *data, size_t bytes, uint64_t offset)
{
    if (hit(INJECT_READ))
        return -EIO;
    if (hit_times(INJECT_EINTR, 2))
        return -EINTR;
    if (hit_times(INJECT_EAGAIN, 2))
        return -EAGAIN;
    if (atomic_load(&armed) == INJECT_DIRECT && (fcntl(fd, F_GETFL) & O_DIRECT) && hit(INJECT_DIRECT))
        return -EINVAL;
    if (hit_times(INJECT_SHORT_READ, 1u << 30))
        bytes = shortened(bytes);
    return __real_cws_os_pread(fd, data, bytes, offset);
}

WRAP(ssize_t, cws_os_pwrite, int fd, const void *data, size_t bytes, uint64_t offset)
{
    if (hit(INJECT_WRITE))
        return -ENOSPC;
    if (hit_times(INJECT_EINTR, 2))
        return -EINTR;
    if (hit_times(INJECT_EAGAIN, 2))
        return -EAGAIN;
    if (hit_times(INJECT_SHORT_WRITE, 1u << 30))
        bytes = (bytes + 1) / 2;
    return __real_cws_os_pwrite(fd, data, bytes, offset);
}

WRAP(int, cws_os_fsync, int fd) { return hit(INJECT_SYNC) ? -EIO : __real_cws_os_fsync(fd); }

WRAP(int, cws_os_renameat, int dir, const char *from, const char *to)
{
    return hit(INJECT_RENAME) ? -EACCES : __real_cws_os_renameat(dir, from, to);
}

WRAP(int, cws_os_openat, int dir, const char *path, int flags, unsigned mode)
{
    return hit(INJECT_OPEN) ? -EMFILE : __real_cws_os_openat(dir, path, flags, mode);
}

WRAP(int, cws_os_ioctl, int fd, unsigned long request, void *argument)
{
    return hit_times(INJECT_IOCTL, 1u << 30) ? -ENOTTY : __real_cws_os_ioctl(fd, request, argument);
}

WRAP(int, cws_os_dup, int fd) { return hit(INJECT_OPEN) ? -EMFILE : __real_cws_os_dup(fd); }

WRAP(int, cws_os_fstat, int fd, struct stat *st) { return hit(INJECT_STAT) ? -EIO : __real_cws_os_fstat(fd, st); }

WRAP(int, cws_os_fstatat, int dir, const char *path, struct stat *st, int flags)
{
    return hit(INJECT_STAT) ? -EIO : __real_cws_os_fstatat(dir, path, st, flags);
}

WRAP(int, io_uring_queue_init_params, unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
    return hit_times(INJECT_RING, 1u << 30) ? -EPERM : __real_io_uring_queue_init_params(entries, ring, p);
}

WRAP(int, io_uring_submit, struct io_uring *ring)
{
    if (hit_times(INJECT_RING, 1u << 30))
        return -EBADF;
    if (hit_times(INJECT_EINTR, 2))
        return -EINTR;
    if (hit_times(INJECT_EAGAIN, 2))
        return -EAGAIN;
    return __real_io_uring_submit(ring);
}

WRAP(int, __io_uring_get_cqe, struct io_uring *ring, struct io_uring_cqe **cqe, unsigned submit, unsigned wait,
     sigset_t *mask)
{
    if (hit_times(INJECT_RING, 1u << 30))
        return -EBADF;
    if (hit_times(INJECT_EINTR, 2))
        return -EINTR;
    int code = __real___io_uring_get_cqe(ring, cqe, submit, wait, mask);
    if (code || !*cqe)
        return code;
    if ((*cqe)->res > 1 && hit_times(INJECT_SHORT_READ, 1u << 30))
        (*cqe)->res = (int)shortened((size_t)(*cqe)->res);
    if (hit(INJECT_RING_RESULT))
        (*cqe)->res = -EIO;
    if (hit_times(INJECT_EAGAIN, 2))
        (*cqe)->res = -EAGAIN;
    if (hit(INJECT_DIRECT))
        (*cqe)->res = -EINVAL;
    return 0;
}

unsigned inject_open_files(void)
{
    unsigned count = 0;
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return 0;
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}
