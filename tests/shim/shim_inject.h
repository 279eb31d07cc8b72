/* shim_inject.h - a library that lies between the preloaded shim and the C library, and makes the N-th call of a kind
 * fail: what the shim calls, what the C library calls by its public names, and the direct system calls of store/ and
 * uvm/. Nothing of this is in the product. It counts only while it is armed; any thread's calls count. */
#ifndef CWS_SHIM_INJECT_H
#define CWS_SHIM_INJECT_H
#include <stdbool.h>

enum shim_inject_kind {
    SHIM_INJECT_NONE,
    SHIM_INJECT_ALLOC,  /* malloc, calloc, realloc, aligned_alloc: NULL, ENOMEM */
    SHIM_INJECT_MAP,    /* mmap: ENOMEM */
    SHIM_INJECT_STAT,   /* fstat, fstatat, stat, lstat, statx: EIO */
    SHIM_INJECT_OPEN,   /* open, openat, dup, fcntl(F_DUPFD), and their like: EMFILE */
    SHIM_INJECT_READ,   /* read, pread and their v forms: EIO */
    SHIM_INJECT_SHORT,  /* the same, every one from the N-th on: a part of what was asked for */
    SHIM_INJECT_INTR,   /* pread: EINTR, twice */
    SHIM_INJECT_SEEK,   /* lseek: EIO */
    SHIM_INJECT_LINK,   /* readlink, rename, fchmod, fchown, faccessat: EIO */
    SHIM_INJECT_THREAD, /* pthread_create: EAGAIN */
    SHIM_INJECT_KINDS
};

void shim_inject_arm(enum shim_inject_kind kind, unsigned nth);
/* Disarms; did a call fail since it was armed? *out_by_shim: it was made by the shim itself, not by the C library or
 * the program. */
bool shim_inject_disarm(bool *out_by_shim);
/* Blocks that were allocated and not freed; 0 under AddressSanitizer. */
long shim_inject_live_blocks(void);

#endif
