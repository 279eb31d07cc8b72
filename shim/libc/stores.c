/* stores.c - the open stores of the process, shared by descriptors and views; what is known of files that were asked
 * about by path; room for a file that is about to be overwritten; and which stores a program is about to load. What is
 * known by path is a cache of fixed size in which a collision replaces: no map, so that nothing is allocated for a
 * stat. */
#include "stores.h"
#include "hooks.h"
#include "shim/say.h"
#include "shim/state.h"
#include "store/format/checksum.h"
#include "store/base/file_version.h"
#include "store/base/guard.h"
#include "store/base/lock.h"
#include "store/base/os.h"
#include "store/base/own_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_STORES);
static struct cws_shared *open_stores;

static struct cws_guard take(void)
{
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&lock);
    return guard;
}

static void drop(const struct cws_guard *guard)
{
    cws_lock_drop(&lock);
    cws_guard_end(guard);
}

/* What is known of files by identity, so that a program that asks for the size of the same file again and again does
 * not make us open it again and again. Direct-mapped: a collision costs one look into a file. */
struct known {
    struct stat st;
    uint64_t logical_bytes; /* 0: not a store */
};
enum { KNOWN_COUNT = 256 };
static struct known known[KNOWN_COUNT];
/* Beside each entry of a file that is no store, a hash of its identity: found without a lock, so that a program pays
 * nothing more to ask for the size of other files. */
static _Atomic uint64_t plain_tags[KNOWN_COUNT];

bool cws_stores_plausible(const struct stat *st)
{
    return S_ISREG(st->st_mode) && st->st_size >= CWS_CHUNK_ALIGN + CWS_TRAILER_BYTES;
}

int cws_stores_has_front(int fd)
{
    static const char mark[] = CWS_FRONT_MARK;
    char front[8 + sizeof mark - 1];
    size_t got;
    int code = cws_os_read_full(fd, front, sizeof front, 0, &got);
    return code ? code : got == sizeof front && memcmp(front + 8, mark, sizeof mark - 1) == 0;
}

int cws_stores_cannot_tell(const char *path, int errnum)
{
    cws_shim_say("%s: cannot tell whether it is a packed model: %s; try again", path, cws_strerror(-errnum));
    return -errnum;
}

/* A parser without memory may drop the end of a word (store/format/safetensors.c), so that a sound file looks damaged:
 * that is believed when it is found twice. */
static int open_store(int fd, const char *path, struct cws_store **out, struct cws_error *err)
{
    enum cws_io_engine io = cws_shim_options()->io;
    int code = cws_store_open_fd(fd, path, io, out, err);
    return code == CWS_E_CORRUPT ? cws_store_open_fd(fd, path, io, out, err) : code;
}

/* --- what is about to be loaded ------------------------------------------------------------------ */

/* Stores that the process has looked at. Those beyond the table are left out: a plan then asks for less. */
enum { SEEN_COUNT = 256 };
static struct {
    dev_t device;
    ino_t inode;
    uint64_t logical_bytes, bound_bytes;
} seen[SEEN_COUNT];
static unsigned seen_count;

static unsigned find_seen_locked(const struct stat *st)
{
    unsigned i = 0;
    while (i < seen_count && (seen[i].inode != st->st_ino || seen[i].device != st->st_dev))
        i++;
    return i;
}

static void note_seen_locked(const struct stat *st, uint64_t logical_bytes)
{
    unsigned i = find_seen_locked(st);
    if (!logical_bytes || i == SEEN_COUNT)
        return;
    if (i == seen_count)
        seen_count++;
    seen[i].device = st->st_dev;
    seen[i].inode = st->st_ino;
    seen[i].logical_bytes = logical_bytes;
}

void cws_stores_note_bound(const struct cws_store *store, uint64_t bytes)
{
    struct cws_guard guard = take();
    for (struct cws_shared *s = open_stores; s; s = s->next) {
        unsigned i = s->store == store ? find_seen_locked(&s->opened) : SEEN_COUNT;
        if (i < seen_count)
            seen[i].bound_bytes += bytes;
    }
    drop(&guard);
}

void cws_stores_each(void (*visit)(struct cws_store *store, void *arg), void *arg)
{
    struct cws_guard guard = take();
    for (struct cws_shared *s = open_stores; s; s = s->next)
        visit(s->store, arg);
    drop(&guard);
}

uint64_t cws_stores_unbound_bytes(void)
{
    uint64_t bytes = 0;
    struct cws_guard guard = take();
    for (unsigned i = 0; i < seen_count; i++)
        if (seen[i].logical_bytes > seen[i].bound_bytes)
            bytes += seen[i].logical_bytes - seen[i].bound_bytes;
    drop(&guard);
    return bytes;
}

/* --- open stores ------------------------------------------------------------------------------- */

static struct cws_shared *find_locked(const struct stat *st)
{
    for (struct cws_shared *s = open_stores; s; s = s->next)
        if (cws_is_same_version(&s->opened, st))
            return s;
    return NULL;
}

static void destroy(struct cws_shared *s)
{
    cws_store_close(s->store);
    free(s);
}

static int refuse(const struct cws_error *err, int code)
{
    cws_shim_say("%s", err->message);
    return -cws_shim_errno(code);
}

int cws_stores_acquire(int fd, const struct stat *st, const char *path, struct cws_shared **out)
{
    struct cws_error err = {0};
    cws_lock_take(&lock);
    struct cws_shared *s = find_locked(st);
    if (s)
        s->users++;
    cws_lock_drop(&lock);
    if (s) {
        *out = s;
        return 1;
    }
    int code = cws_shim_check_options();
    if (code)
        return code;
    struct cws_store *store;
    code = open_store(fd, path, &store, &err);
    if (code == CWS_E_NOT_STORE)
        return 0;
    if (code)
        return refuse(&err, code);
    struct cws_shared *fresh = calloc(1, sizeof *fresh);
    if (!fresh) {
        cws_store_close(store);
        return refuse(&err, cws_fail(&err, -ENOMEM, "%s: not enough memory to open the store", path));
    }
    *fresh = (struct cws_shared){.store = store, .opened = *st, .users = 1};
    cws_lock_take(&lock);
    s = find_locked(st); /* another thread may have been faster */
    if (s) {
        s->users++;
    } else {
        fresh->next = open_stores;
        open_stores = fresh;
        note_seen_locked(st, cws_store_logical_bytes(store));
    }
    cws_lock_drop(&lock);
    if (s)
        destroy(fresh);
    *out = s ? s : fresh;
    return 1;
}

/* Takes the stores that nothing uses any more out of the list, and returns them. */
static struct cws_shared *collect_locked(bool views_ended)
{
    struct cws_shared *dead = NULL;
    for (struct cws_shared **at = &open_stores; *at;) {
        struct cws_shared *s = *at;
        if (views_ended)
            s->mapped = false;
        if (s->users || s->mapped) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        s->next = dead;
        dead = s;
    }
    return dead;
}

static void destroy_all(struct cws_shared *dead)
{
    while (dead) {
        struct cws_shared *next = dead->next;
        destroy(dead);
        dead = next;
    }
}

void cws_stores_release(struct cws_shared *shared)
{
    struct cws_guard guard = take();
    shared->users--;
    struct cws_shared *dead = collect_locked(false);
    cws_lock_drop(&lock);
    destroy_all(dead);
    cws_guard_end(&guard);
}

void cws_stores_note_mapped(struct cws_shared *shared)
{
    struct cws_guard guard = take();
    shared->mapped = true;
    drop(&guard);
}

void cws_stores_drop_unmapped(void)
{
    struct cws_guard guard = take();
    struct cws_shared *dead = collect_locked(true);
    cws_lock_drop(&lock);
    destroy_all(dead);
    cws_guard_end(&guard);
}

/* --- asking by path ---------------------------------------------------------------------------- */

static struct known *slot_of(const struct stat *st)
{
    uint64_t key = (uint64_t)st->st_ino * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)st->st_dev;
    return &known[(key >> 32) % KNOWN_COUNT];
}

/* A program may be told an error for want of these, which may be there again the next moment. What it may not be told
 * is the real size of a store. */
static bool is_passing(int errnum)
{
    return errnum == ENOMEM || errnum == EMFILE || errnum == ENFILE || errnum == EIO || errnum == EAGAIN ||
           errnum == EINTR;
}

static int64_t look_inside(int dir, const char *path, const struct stat *st, int flags)
{
    struct stat now;
    struct cws_store *store;
    int nofollow = flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0;
    int how = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | nofollow;
    int fd = CWS_REAL(openat)(dir, path, how);
    if (fd < 0 && errno == EMFILE && cws_own_fd_raise()) { /* a program that has all it may have open can still ask */
        fd = CWS_REAL(openat)(dir, path, how);
        int why = errno;
        cws_own_fd_lower();
        errno = why;
    }
    if (fd < 0)
        return is_passing(errno) ? -errno : 0; /* not for this program to read: it stays what it is */
    int64_t bytes = 0;
    int code = CWS_REAL(fstat)(fd, &now) != 0 ? -errno : 0;
    if (!code && cws_is_same_version(&now, st))
        code = cws_stores_has_front(fd);
    if (code > 0) {
        code = open_store(fd, path, &store, NULL);
        if (code == 0) {
            bytes = (int64_t)cws_store_logical_bytes(store);
            cws_store_close(store);
        }
    }
    CWS_REAL(close)(fd);
    return code < 0 && is_passing(-code) ? code : bytes;
}

static uint64_t tag_of(const struct stat *st)
{
    const uint64_t words[] = {st->st_ino,
                              st->st_dev,
                              (uint64_t)st->st_size,
                              (uint64_t)st->st_mtim.tv_sec,
                              (uint64_t)st->st_mtim.tv_nsec,
                              (uint64_t)st->st_ctim.tv_sec,
                              (uint64_t)st->st_ctim.tv_nsec};
    return cws_checksum(words, sizeof words, 0) | 1; /* never 0, which is no tag */
}

int64_t cws_stores_logical_bytes(int dir, const char *path, const struct stat *st, int flags)
{
    int saved = errno;
    static atomic_flag said = ATOMIC_FLAG_INIT;
    struct known *slot = slot_of(st);
    _Atomic uint64_t *tag = &plain_tags[slot - known];
    int64_t bytes = 0;
    if (atomic_load_explicit(tag, memory_order_relaxed) == tag_of(st))
        return 0;
    struct cws_guard guard = take();
    struct cws_shared *s = find_locked(st);
    bool found = s || cws_is_same_version(&slot->st, st);
    if (found)
        bytes = (int64_t)(s ? cws_store_logical_bytes(s->store) : slot->logical_bytes);
    cws_lock_drop(&lock);
    if (!found) {
        bytes = look_inside(dir, path, st, flags);
        if (bytes >= 0) {
            cws_lock_take(&lock);
            *slot = (struct known){*st, (uint64_t)bytes};
            atomic_store_explicit(tag, bytes ? 0 : tag_of(st), memory_order_relaxed);
            note_seen_locked(st, (uint64_t)bytes);
            cws_lock_drop(&lock);
        } else if (!atomic_flag_test_and_set(&said)) {
            cws_stores_cannot_tell(path, (int)-bytes);
        }
    }
    cws_guard_end(&guard);
    errno = saved;
    return bytes;
}

/* --- writing ----------------------------------------------------------------------------------- */

static bool is_in_use(const struct stat *st)
{
    struct cws_guard guard = take();
    struct cws_shared *s = open_stores;
    while (s && !cws_is_same_file(&s->opened, st))
        s = s->next;
    drop(&guard);
    return s != NULL;
}

/* Puts a new, empty file in the place of `path`, which names the file itself (no link). */
static int replace_by_empty(const char *path, const struct stat *st)
{
    char fresh[PATH_MAX + 32];
    int fd = -1;
    for (unsigned attempt = 0; fd < 0 && attempt < 100; attempt++) {
        snprintf(fresh, sizeof fresh, "%s.%d-%u.tmp", path, (int)getpid(), attempt);
        fd = CWS_REAL(open)(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    if (fd < 0)
        return -errno;
    /* The owner first: it takes set-id bits away. Only root can give a file away; a program that cannot gets its own
     * file, as it would after a rename. */
    int owner = fchown(fd, st->st_uid, st->st_gid);
    int code = 0;
    if ((owner != 0 && errno != EPERM) || fchmod(fd, st->st_mode & 07777) != 0 || rename(fresh, path) != 0) {
        code = -errno;
        unlink(fresh);
    }
    CWS_REAL(close)(fd);
    return code;
}

int cws_stores_spare(int dir, const char *path)
{
    struct stat st;
    char link[64], real_path[PATH_MAX];
    int saved = errno, code = 0;
    if (!__atomic_load_n(&open_stores, __ATOMIC_RELAXED))
        return 0;
    struct cws_guard guard = cws_guard_begin();
    /* What the open itself will answer is the program's to see. */
    bool is_there = CWS_REAL(fstatat)(dir, path, &st, 0) == 0;
    if (is_there && (!S_ISREG(st.st_mode) || !is_in_use(&st)))
        code = 1;
    else if (!is_there || faccessat(dir, path, W_OK, AT_EACCESS) != 0)
        code = is_passing(errno) ? -errno : 1;
    int fd = code ? -1 : CWS_REAL(openat)(dir, path, O_PATH | O_CLOEXEC);
    if (!code && fd < 0)
        code = -errno;
    if (!code) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t len = readlink(link, real_path, sizeof real_path - 1);
        code = len <= 0 ? -errno : 0;
        real_path[len > 0 ? len : 0] = '\0';
        CWS_REAL(close)(fd);
        if (!code)
            code = replace_by_empty(real_path, &st);
    }
    cws_guard_end(&guard);
    errno = saved;
    if (code > 0)
        return 0;
    if (code)
        cws_shim_say(
            "%s: a packed model that this program is using can be overwritten only by putting a new file into its "
            "directory, and that failed: %s; save elsewhere",
            path, cws_strerror(code));
    return code;
}

/* 1, 0 or -errno. A file that can be written but not read is left to the program. */
static int is_store(int fd)
{
    struct stat st;
    char link[64];
    if (CWS_REAL(fstat)(fd, &st) != 0)
        return -errno;
    if (!cws_stores_plausible(&st))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    struct cws_guard guard = cws_guard_begin();
    int again = CWS_REAL(open)(link, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    int is = again >= 0 ? cws_stores_has_front(again) : is_passing(errno) ? -errno : 0;
    if (is > 0)
        is = cws_store_probe_fd(again);
    if (again >= 0)
        CWS_REAL(close)(again);
    cws_guard_end(&guard);
    return is;
}

int cws_stores_check_writable(int fd, const char *path)
{
    int saved = errno;
    int is = is_store(fd);
    errno = saved;
    if (is > 0) {
        cws_shim_say("%s: a packed model cannot be changed in place; unpack it first, or write a new file", path);
        return -EROFS;
    }
    return is < 0 ? cws_stores_cannot_tell(path, cws_shim_errno(is)) : 0;
}

int cws_stores_check_path_writable(const char *path)
{
    int saved = errno, code = 0;
    struct cws_guard guard = cws_guard_begin();
    int fd = CWS_REAL(open)(path, O_PATH | O_CLOEXEC);
    if (fd >= 0) {
        code = cws_stores_check_writable(fd, path);
        CWS_REAL(close)(fd);
    } else if (is_passing(errno)) {
        code = cws_stores_cannot_tell(path, errno);
    }
    cws_guard_end(&guard);
    errno = saved;
    return code;
}

void cws_stores_fork_prepare(void) { cws_lock_take(&lock); } /* inside the caller's guard */
void cws_stores_fork_done(void) { cws_lock_drop(&lock); }
