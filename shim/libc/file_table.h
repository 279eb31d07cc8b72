/* file_table.h - the descriptors of this process that are stores, and reading their logical bytes.
 *
 * The offset of such a descriptor is the kernel's own offset of the real file, used as the logical one (it may lie
 * beyond the end of the real file): so dup, fork and exec share it exactly as for any file, and nothing here has to
 * follow them.
 * Threads: any. Callable from a signal handler, because no lock is held where one can run (store/base/guard.h); but
 * what opens a file, and its first read, allocate. */
#ifndef CWS_SHIM_FILE_TABLE_H
#define CWS_SHIM_FILE_TABLE_H
#include "store/base/guard.h"
#include "stores.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct cws_file;

extern unsigned cws_files_tracked; /* descriptors in the table; read without a lock */
bool cws_file_lookup(int fd);

/* What every hook asks first. A process without stores pays one load. */
static inline bool cws_files_any(void)
{
    return __builtin_expect(__atomic_load_n(&cws_files_tracked, __ATOMIC_RELAXED) != 0, 0);
}
static inline bool cws_file_is_tracked(int fd) { return cws_files_any() && cws_file_lookup(fd); }

/* The file behind a tracked descriptor, with a reference: cws_file_put(), inside one guard with it. NULL: not tracked,
 * or the number was closed and used again without our knowing (found by comparing device and inode; forgotten then). */
struct cws_file *cws_file_get(int fd);
void cws_file_put(struct cws_file *f);

/* fd was just opened for reading. 1: it is a store and tracked from now on; 0: any other file; -errno: a store that
 * cannot be shown (a line was written; the caller closes fd and fails). Keeps errno otherwise. */
int cws_file_adopt(int fd, const char *path);
/* `to` is now a duplicate of `from`, whichever either was before. 0, or -errno: it could not be noted, and the caller
 * must close `to`, which would show raw bytes. */
CWS_MUST_CHECK int cws_file_share(int from, int to);
/* fd is about to be closed; or, for the range form, every one of [first, last]. */
void cws_file_forget(int fd);
void cws_file_forget_range(unsigned first, unsigned last);

uint64_t cws_file_bytes(const struct cws_file *f);
struct cws_shared *cws_file_shared(struct cws_file *f);

/* As preadv, readv and lseek, on logical bytes, of a descriptor. False: it is not tracked (any more), and nothing was
 * done. Otherwise *out_... is the result, or -errno; a read that fails says why on stderr. A long read lets signals in
 * between two pieces, with nothing held: a handler may read the same descriptor, or leave by siglongjmp. Reads are
 * cancellation points when they begin. */
bool cws_file_preadv(int fd, const struct iovec *parts, int count, off_t offset, ssize_t *out_got);
bool cws_file_readv(int fd, const struct iovec *parts, int count, ssize_t *out_got);
bool cws_file_seek(int fd, off_t offset, int whence, off_t *out_at);

/* Around fork(): the table and its locks are whole in the child. */
void cws_files_fork_prepare(void);
void cws_files_fork_parent(void);
void cws_files_fork_child(void);

#endif
