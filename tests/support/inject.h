/* inject.h - makes the N-th call of a kind fail, or come back short, in the code under test. The program is linked with
 * --wrap for each function named in INJECT_WRAPS (tests/store/CMakeLists.txt): nothing of this is in the product. */
#ifndef CWS_TEST_INJECT_H
#define CWS_TEST_INJECT_H
#include <stdint.h>

enum inject_kind {
    INJECT_NONE,
    INJECT_ALLOC, /* malloc, calloc, realloc, aligned_alloc, mmap, thread creation */
    INJECT_READ,  /* pread: -EIO */
    /* every pread and ring completion from the N-th on gives at most 1000 bytes less than asked, then all */
    INJECT_SHORT_READ,
    INJECT_EINTR, /* pread, pwrite, ring submit and completion: -EINTR at the N-th, twice */
    INJECT_EAGAIN,
    INJECT_WRITE,       /* pwrite: -ENOSPC */
    INJECT_SHORT_WRITE, /* every pwrite from the N-th on writes half */
    INJECT_SYNC,        /* fsync: -EIO */
    INJECT_RENAME,      /* -EACCES */
    INJECT_OPEN,        /* openat, dup: -EMFILE */
    INJECT_STAT,        /* fstat, fstatat: -EIO */
    INJECT_RING,        /* making a ring, submitting, waiting: fails for good from the N-th on */
    INJECT_RING_RESULT, /* a completion carries -EIO */
    INJECT_IOCTL,       /* ioctl: -ENOTTY from the N-th on, as of an older kernel */
    INJECT_DIRECT,      /* O_DIRECT reads: -EINVAL */
};

/* Arms: the nth (from 1) call of this kind fails. Any thread's. Resets the counts. */
void inject_arm(enum inject_kind kind, unsigned nth);
/* Disarms. Returns whether the fault happened. */
int inject_disarm(void);
/* Descriptors this process has open. */
unsigned inject_open_files(void);

#endif
