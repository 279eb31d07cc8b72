/* os.c - system calls of the store as direct calls, without the C library's functions. */
#include "os.h"
#include "own_fd.h"
#include "sys.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "64-bit only: offsets travel in one register");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian only: stored integers are used in place");

int cws_os_openat(int dir, const char *path, int flags, unsigned mode)
{
    return (int)CWS_SYSCALL(SYS_openat, dir, path, flags | O_CLOEXEC, mode);
}

int cws_os_dup(int fd) { return (int)CWS_SYSCALL(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0); }

int cws_os_close(int fd)
{
    cws_own_fd_forget(fd); /* before, since the number may be the program's right after */
    return (int)CWS_SYSCALL(SYS_close, fd);
}

int cws_os_fstat(int fd, struct stat *out) { return (int)CWS_SYSCALL(SYS_fstat, fd, out); }

int cws_os_fstatat(int dir, const char *path, struct stat *out, int flags)
{
    return (int)CWS_SYSCALL(SYS_newfstatat, dir, path, out, flags);
}

ssize_t cws_os_pread(int fd, void *data, size_t bytes, uint64_t offset)
{
    return CWS_SYSCALL(SYS_pread64, fd, data, bytes, offset);
}

ssize_t cws_os_pwrite(int fd, const void *data, size_t bytes, uint64_t offset)
{
    return CWS_SYSCALL(SYS_pwrite64, fd, data, bytes, offset);
}

int cws_os_fsync(int fd) { return (int)CWS_SYSCALL(SYS_fsync, fd); }

int cws_os_ftruncate(int fd, uint64_t bytes) { return (int)CWS_SYSCALL(SYS_ftruncate, fd, bytes); }

int cws_os_renameat(int dir, const char *from, const char *to)
{
    return (int)CWS_SYSCALL(SYS_renameat, dir, from, dir, to);
}

int cws_os_unlinkat(int dir, const char *path) { return (int)CWS_SYSCALL(SYS_unlinkat, dir, path, 0); }

int cws_os_flock(int fd, int operation) { return (int)CWS_SYSCALL(SYS_flock, fd, operation); }

int cws_os_fchmod(int fd, unsigned mode) { return (int)CWS_SYSCALL(SYS_fchmod, fd, mode); }

int cws_os_fchown(int fd, uid_t uid, gid_t gid) { return (int)CWS_SYSCALL(SYS_fchown, fd, uid, gid); }

int cws_os_ioctl(int fd, unsigned long request, void *argument)
{
    return (int)CWS_SYSCALL(SYS_ioctl, fd, request, argument);
}

int cws_os_gettid(void) { return (int)syscall(SYS_gettid); }

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
