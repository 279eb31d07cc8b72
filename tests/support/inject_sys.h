/* inject_sys.h - makes the N-th system call, allocation or thread creation of the pager fail as the kernel would. The
 * program is linked with --wrap for each function named in SYS_WRAPS (tests/host/CMakeLists.txt): nothing of this is in
 * the product. Counts balance allocations against frees. */
#ifndef CWS_TEST_INJECT_SYS_H
#define CWS_TEST_INJECT_SYS_H
#include <stdbool.h>

enum sys_kind {
    SYS_KIND_NONE,
    SYS_KIND_ALLOC,    /* malloc, calloc, realloc, aligned_alloc: NULL */
    SYS_KIND_MMAP,     /* ENOMEM, also for the C library's */
    SYS_KIND_MUNMAP,   /* ENOMEM */
    SYS_KIND_MREMAP,   /* ENOMEM */
    SYS_KIND_MPROTECT, /* ENOMEM */
    SYS_KIND_MADVISE,  /* ENOMEM */
    /* MADV_DONTNEED: EINVAL, as for locked memory on an old kernel, with MADV_DONTNEED_LOCKED too */
    SYS_KIND_LOCKED,
    SYS_KIND_OPEN,       /* open, userfaultfd, memfd_create, epoll_create1, eventfd: EMFILE */
    SYS_KIND_API,        /* UFFDIO_API: EINVAL */
    SYS_KIND_REGISTER,   /* UFFDIO_REGISTER: ENOMEM */
    SYS_KIND_COPY_AGAIN, /* UFFDIO_COPY: EAGAIN, nothing copied */
    SYS_KIND_COPY_PART,  /* UFFDIO_COPY: one page is copied, then EAGAIN */
    SYS_KIND_COPY_NOMEM,
    SYS_KIND_COPY_NOMEM_PART, /* one page is copied, the next call says ENOMEM */
    SYS_KIND_COPY_EXIST,
    SYS_KIND_COPY_NOENT,
    SYS_KIND_COPY_SRCH,
    SYS_KIND_PROTECT_AGAIN, /* UFFDIO_WRITEPROTECT */
    SYS_KIND_PROTECT_NOMEM,
    SYS_KIND_PROTECT_NOENT,
    SYS_KIND_WAKE,       /* UFFDIO_WAKE: EINVAL */
    SYS_KIND_POISON,     /* UFFDIO_POISON: ENOMEM */
    SYS_KIND_EPOLL_CTL,  /* ENOSPC */
    SYS_KIND_EPOLL_INTR, /* epoll_pwait: EINTR */
    SYS_KIND_EPOLL_BAD,  /* epoll_pwait: EBADF */
    SYS_KIND_READ_INTR,  /* read of messages and kicks: EINTR */
    SYS_KIND_READ_IO,    /* EIO */
    SYS_KIND_PREAD,      /* of pagemap and of the file: EIO */
    SYS_KIND_WRITE,      /* of kicks: EAGAIN */
    SYS_KIND_FUTEX,      /* a wait: EINTR */
    SYS_KIND_THREAD,     /* pthread_create: EAGAIN; pthread_atfork: ENOMEM */
    SYS_KIND_SIGACTION,  /* EINVAL */
    SYS_KIND_COUNT
};

const char *sys_kind_name(enum sys_kind kind);
/* The calls nth .. nth + times - 1 (from 1) of this kind fail, in any thread. Resets the count. */
void sys_inject_arm(enum sys_kind kind, unsigned nth, unsigned times);
/* Did a call fail since arm? Disarmed afterwards. */
bool sys_inject_disarm(void);
bool sys_inject_fired(void);
/* Blocks that were allocated and not freed. */
long sys_live_blocks(void);

#endif
