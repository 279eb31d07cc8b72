/* os.h - the system calls that the store makes, as direct calls, and the one loop for short transfers.
 *
 * Direct, because this library also runs inside the preloaded shim, where the C library's open, pread and fstat
 * are the shim's own hooks: a page-fault handler must not take the locks of those. It is also the one place that
 * the tests replace (linker option --wrap, tests/support/inject.h) to make the N-th call fail or come back short;
 * therefore the loops have a file of their own.
 * All return -errno on failure. Threads: any. Never allocate. */
#ifndef CWS_OS_H
#define CWS_OS_H
#include "error.h"
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

int cws_os_openat(int dir, const char *path, int flags, unsigned mode); /* descriptor; O_CLOEXEC is added */
int cws_os_dup(int fd);                                                 /* descriptor, O_CLOEXEC */
int cws_os_close(int fd);
int cws_os_fstat(int fd, struct stat *out);
int cws_os_fstatat(int dir, const char *path, struct stat *out, int flags);
ssize_t cws_os_pread(int fd, void *data, size_t bytes, uint64_t offset);
ssize_t cws_os_pwrite(int fd, const void *data, size_t bytes, uint64_t offset);
int cws_os_fsync(int fd);
int cws_os_ftruncate(int fd, uint64_t bytes);
int cws_os_renameat(int dir, const char *from, const char *to);
int cws_os_unlinkat(int dir, const char *path);
int cws_os_flock(int fd, int operation);
int cws_os_fchmod(int fd, unsigned mode);
int cws_os_fchown(int fd, uid_t uid, gid_t gid);
int cws_os_ioctl(int fd, unsigned long request, void *argument); /* result >= 0 */
int cws_os_gettid(void);

/* Reads until `bytes` bytes, the end of the file, or an error. *out_got is set in every case; less than `bytes` with
 * result 0 means end of file. EINTR, EAGAIN and short reads are retried. A descriptor with O_DIRECT is read by whole
 * blocks, whatever `data`, `bytes` and `offset` are. */
CWS_MUST_CHECK int cws_os_read_full(int fd, void *data, size_t bytes, uint64_t offset, size_t *out_got);

/* Writes all of it or fails. A write of 0 bytes is -ENOSPC. */
CWS_MUST_CHECK int cws_os_write_full(int fd, const void *data, size_t bytes, uint64_t offset);

/* Opens the regular file behind `fd` once more, so that flags and offset are not shared with whoever has `fd`: it works
 * for one that was renamed or unlinked. `flags` as of openat. Descriptor, O_CLOEXEC; -errno: no regular file, no /proc,
 * or the file may not be opened by this process again. */
int cws_os_reopen(int fd, int flags);

/* The process's umask. Other threads may make files meanwhile: it is read, and changed only where there is no /proc. */
mode_t cws_os_umask(void);

/* CPUs this process may use, at least 1. */
unsigned cws_os_cpu_count(void);

#endif
