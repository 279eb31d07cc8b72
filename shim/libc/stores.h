/* stores.h - which files are stores: by path, by descriptor, by identity; open ones are shared.
 *
 * An identity is device, inode, size and both times: what stat tells of a file's content without reading it.
 * Threads: any. What opens a store allocates, so it may not be called from a signal handler that interrupted malloc. No
 * lock of ours is held where a signal handler can run (store/base/guard.h). */
#ifndef CWS_SHIM_STORES_H
#define CWS_SHIM_STORES_H
#include "store/read/store.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/* An open store, shared by every descriptor and every view of the same file. */
struct cws_shared {
    struct cws_store *store;
    struct stat opened;
    /* stores.c: */
    unsigned users; /* descriptors */
    bool mapped;    /* was mapped: kept open until the process has no view left */
    struct cws_shared *next;
};

/* Could this be a store? Answered from the result of stat alone. */
bool cws_stores_plausible(const struct stat *st);

/* Does the file start as every store does? 1, 0 or -errno. One short read at the place that the program will read next
 * anyway. */
int cws_stores_has_front(int fd);

/* Is the open file, whose fstat is st and which has the front of a store, one? Inside a guard. 1, *out holds a use of
 * it: cws_stores_release(). 0: no. -errno: it is, and cannot be opened (one line was written). `path` is for
 * messages. */
int cws_stores_acquire(int fd, const struct stat *st, const char *path, struct cws_shared **out);
void cws_stores_release(struct cws_shared *shared);

/* The logical size of the store at (dir, path), whose stat is st; 0: not a store that could be opened; -errno: no
 * memory, descriptor or answer to find out with (a line was written, for the first of them). Remembered by identity.
 * flags: AT_SYMLINK_NOFOLLOW or 0. Keeps errno. */
int64_t cws_stores_logical_bytes(int dir, const char *path, const struct stat *st, int flags);

/* Writes the line "PATH: cannot tell whether it is a packed model: WHY". Returns -errnum. */
int cws_stores_cannot_tell(const char *path, int errnum);

/* Notes that a view of the store was made. */
void cws_stores_note_mapped(struct cws_shared *shared);
/* Notes that logical bytes of the store were bound to device memory. */
void cws_stores_note_bound(const struct cws_store *store, uint64_t bytes);
/* Logical bytes, not bound yet, of all stores that the process has opened or asked the size of: the program is about to
 * load them. */
uint64_t cws_stores_unbound_bytes(void);

/* Calls visit, with a lock held that no other function here may be called under, for each store that is open. */
void cws_stores_each(void (*visit)(struct cws_store *store, void *arg), void *arg);

/* The process has no view now: closes stores that were kept open for views only. */
void cws_stores_drop_unmapped(void);

/* Before (dir, path) is opened in a way that truncates it: when it is a store that this process uses, an empty file
 * takes its place in the directory, so that descriptors and views keep the old one. 0, or -errno (a line was
 * written). */
int cws_stores_spare(int dir, const char *path);

/* Is this descriptor (writable, or O_PATH), opened by `path`, one of a whole store, which can be replaced but not
 * changed in place? 0: no. -EROFS: yes; another -errno: it could not be found out (a line was written in both cases).
 * Keeps errno. */
int cws_stores_check_writable(int fd, const char *path);
/* The same of a file that is about to be changed by its path. What opening it would fail with is left to the program's
 * call. */
int cws_stores_check_path_writable(const char *path);

/* Around fork(). */
void cws_stores_fork_prepare(void);
void cws_stores_fork_done(void);

#endif
