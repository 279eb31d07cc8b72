/* sys.h - system calls made raw: the macro for any of them, and those that change memory (os.h has those on files).
 *
 * The shim replaces munmap, mprotect, read and their like by hooks that call into the pager, so what the pager calls
 * may not reach them through the C library; and a fault handler must not touch errno.
 * Every function returns the call's result or -errno, and keeps errno. Threads: any; safe in a signal handler. */
#ifndef CWS_SYS_H
#define CWS_SYS_H
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __x86_64__
#define CWS_PAGE_BYTES ((size_t)4096)
#else /* of the running kernel: arm64 has kernels of 4, 16 and 64 KiB */
#define CWS_PAGE_BYTES ((size_t)sysconf(_SC_PAGESIZE))
#endif

static inline long cws_sys_result(long rc, int saved_errno)
{
    long result = rc == -1 ? -(long)errno : rc;
    errno = saved_errno;
    return result;
}
#define CWS_SYSCALL(...)                                                                                               \
    __extension__({                                                                                                    \
        int saved_ = errno;                                                                                            \
        cws_sys_result(syscall(__VA_ARGS__), saved_);                                                                  \
    })

/* Returns the address, or -errno in the top page. */
static inline long cws_sys_mmap(void *addr, size_t len, int prot, int flags, int fd, size_t offset)
{
#ifdef CWS_TSAN
    /* ThreadSanitizer does not see raw calls: it would take an address that the kernel hands out again for the memory
     * that was there before. What replaces pages of a view stays raw, because for it that would be a write to them. */
    if (!(flags & MAP_FIXED)) {
        int saved = errno;
        void *at = mmap(addr, len, prot, flags, fd, (off_t)offset);
        return cws_sys_result((long)at, saved);
    }
#endif
    return CWS_SYSCALL(SYS_mmap, addr, len, prot, flags, fd, (long)offset);
}
static inline int cws_sys_munmap(void *addr, size_t len) { return (int)CWS_SYSCALL(SYS_munmap, addr, len); }
static inline int cws_sys_munlock(void *addr, size_t len) { return (int)CWS_SYSCALL(SYS_munlock, addr, len); }
static inline int cws_sys_mprotect(void *addr, size_t len, int prot)
{
    return (int)CWS_SYSCALL(SYS_mprotect, addr, len, prot);
}
static inline int cws_sys_madvise(void *addr, size_t len, int advice)
{
    return (int)CWS_SYSCALL(SYS_madvise, addr, len, advice);
}
/* Moves pages to a fixed address, replacing what is there. */
static inline int cws_sys_move(void *from, size_t len, void *to)
{
    long rc = CWS_SYSCALL(SYS_mremap, from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    return rc < 0 && rc > -4096 ? (int)rc : 0;
}
static inline long cws_sys_read(int fd, void *dst, size_t len) { return CWS_SYSCALL(SYS_read, fd, dst, len); }
static inline long cws_sys_write(int fd, const void *src, size_t len) { return CWS_SYSCALL(SYS_write, fd, src, len); }

/* For handlers of faults, which may run on a small stack: what a guard is elsewhere. All signals are blocked, that of
 * an asynchronous cancellation among them; the C library's cancellation points are not to be called. */
struct cws_signal_mask {
    uint64_t bits;
};
static inline struct cws_signal_mask cws_signals_block(void)
{
    struct cws_signal_mask all = {~UINT64_C(0)}, saved = {0};
    CWS_SYSCALL(SYS_rt_sigprocmask, SIG_BLOCK, &all.bits, &saved.bits, sizeof saved.bits);
    return saved;
}
static inline void cws_signals_restore(struct cws_signal_mask saved)
{
    CWS_SYSCALL(SYS_rt_sigprocmask, SIG_SETMASK, &saved.bits, (void *)0, sizeof saved.bits);
}
#endif
