#include "os.h"
#include "own_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "64-bit only: offsets travel in one register");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian only: stored integers are used in place");

/* syscall() reports through errno, which belongs to the program whose fault is being served. */
static long direct(long result, int saved_errno)
{
    if (result < 0) {
        result = -errno;
        errno = saved_errno;
    }
    return result;
}

int cws_os_openat(int dir, const char *path, int flags, unsigned mode)
{
    int saved = errno;
    return (int)direct(syscall(SYS_openat, dir, path, flags | O_CLOEXEC, mode), saved);
}

int cws_os_dup(int fd)
{
    int saved = errno;
    return (int)direct(syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0), saved);
}

int cws_os_close(int fd)
{
    int saved = errno;
    cws_own_fd_forget(fd); /* before, since the number may be the program's right after */
    return (int)direct(syscall(SYS_close, fd), saved);
}

int cws_os_fstat(int fd, struct stat *out)
{
    int saved = errno;
    return (int)direct(syscall(SYS_fstat, fd, out), saved);
}

int cws_os_fstatat(int dir, const char *path, struct stat *out, int flags)
{
    int saved = errno;
    return (int)direct(syscall(SYS_newfstatat, dir, path, out, flags), saved);
}

ssize_t cws_os_pread(int fd, void *data, size_t bytes, uint64_t offset)
{
    int saved = errno;
    return direct(syscall(SYS_pread64, fd, data, bytes, offset), saved);
}

ssize_t cws_os_pwrite(int fd, const void *data, size_t bytes, uint64_t offset)
{
    int saved = errno;
    return direct(syscall(SYS_pwrite64, fd, data, bytes, offset), saved);
}

int cws_os_fsync(int fd)
{
    int saved = errno;
    return (int)direct(syscall(SYS_fsync, fd), saved);
}

int cws_os_ftruncate(int fd, uint64_t bytes)
{
    int saved = errno;
    return (int)direct(syscall(SYS_ftruncate, fd, bytes), saved);
}

int cws_os_renameat(int dir, const char *from, const char *to)
{
    int saved = errno;
    return (int)direct(syscall(SYS_renameat, dir, from, dir, to), saved);
}

int cws_os_unlinkat(int dir, const char *path)
{
    int saved = errno;
    return (int)direct(syscall(SYS_unlinkat, dir, path, 0), saved);
}

int cws_os_flock(int fd, int operation)
{
    int saved = errno;
    return (int)direct(syscall(SYS_flock, fd, operation), saved);
}

int cws_os_fchmod(int fd, unsigned mode)
{
    int saved = errno;
    return (int)direct(syscall(SYS_fchmod, fd, mode), saved);
}

int cws_os_fchown(int fd, uid_t uid, gid_t gid)
{
    int saved = errno;
    return (int)direct(syscall(SYS_fchown, fd, uid, gid), saved);
}

int cws_os_ioctl(int fd, unsigned long request, void *argument)
{
    int saved = errno;
    return (int)direct(syscall(SYS_ioctl, fd, request, argument), saved);
}

int cws_os_gettid(void)
{
    return (int)syscall(SYS_gettid);
}

mode_t cws_os_umask(void)
{
    char text[1024];
    ssize_t bytes = -1;
    int fd = cws_os_openat(AT_FDCWD, "/proc/self/status", O_RDONLY, 0);
    if (fd >= 0) {
        bytes = cws_os_pread(fd, text, sizeof text - 1, 0);
        cws_os_close(fd);
    }
    text[bytes > 0 ? bytes : 0] = '\0';
    const char *line = strstr(text, "\nUmask:");
    if (line)
        return (mode_t)strtoul(line + strlen("\nUmask:"), NULL, 8) & 0777;
    mode_t mask = umask(0077); /* what another thread makes in between is narrower, never wider */
    umask(mask);
    return mask;
}

unsigned cws_os_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int count = CPU_COUNT(&set);
        return count > 0 ? (unsigned)count : 1;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than cpu_set_t holds */
    return online > 0 ? (unsigned)online : 1;
}
