/* file_table.c - which descriptors are stores, and reads of their logical bytes through a window of decoded ones. */
#include "file_table.h"
#include "store/base/lock.h"
#include "store/base/list.h"
#include "store/base/sys.h"
#include "uvm/host/view.h"
#include "hooks.h"
#include "shim/say.h"
#include "shim/state.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { PAGE_SLOTS = 4096, PAGES = 1024, WINDOW_BYTES = 256 * 1024, CURSOR_DEPTH = 4 };
enum { PIECE_BYTES = 1 << 20 }; /* of a long read, between two looks for signals: milliseconds */

struct cws_file {
    atomic_uint refs;
    struct cws_shared *shared;
    dev_t dev;
    ino_t ino;
    uint64_t bytes;
    uint64_t serial;     /* no other file of this process has or had it */
    struct cws_list all; /* all_files; table_lock */

    /* A read with its move of the offset, and what follows. Held as long as a read takes, so it is waited for outside
     * of any guard (enter). 0 free, 1 held, 2 held and waited for. */
    _Atomic uint32_t lock;
    bool failed; /* the line was written: a program that tries again does not need it again */
    struct cws_store_cursor *cursor;
    uint8_t *window; /* decoded bytes [window_begin, window_end): small reads do not decode a chunk each */
    uint64_t window_begin, window_end;
};

unsigned cws_files_tracked;

typedef _Atomic(struct cws_file *) slot_t;
static _Atomic(slot_t *) pages[PAGES]; /* a page appears with its first store and stays */
static struct cws_lock table_lock = CWS_LOCK_OF(CWS_RANK_FILES);
static struct cws_list all_files = {&all_files, &all_files};
/* counts the ends of waits for any file's lock: it stays, where a file may go */
static _Atomic uint32_t unlocked;

static slot_t *slot_at(int fd)
{
    if (fd < 0 || fd / PAGE_SLOTS >= PAGES)
        return NULL;
    slot_t *page = atomic_load_explicit(&pages[fd / PAGE_SLOTS], memory_order_acquire);
    return page ? &page[fd % PAGE_SLOTS] : NULL;
}

bool cws_file_lookup(int fd)
{
    slot_t *slot = slot_at(fd);
    return slot && atomic_load_explicit(slot, memory_order_relaxed);
}

static struct cws_file *create(struct cws_shared *shared, const struct stat *st)
{
    static _Atomic uint64_t last_serial;
    struct cws_file *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    atomic_init(&f->refs, 1);
    f->serial = atomic_fetch_add_explicit(&last_serial, 1, memory_order_relaxed) + 1;
    cws_list_init(&f->all);
    f->shared = shared;
    f->dev = st->st_dev;
    f->ino = st->st_ino;
    f->bytes = cws_store_logical_bytes(shared->store);
    return f;
}

static void destroy(struct cws_file *f)
{
    cws_lock_take(&table_lock);
    cws_list_remove(&f->all);
    cws_lock_drop(&table_lock);
    cws_store_cursor_destroy(f->cursor);
    cws_stores_release(f->shared);
    free(f->window);
    free(f);
}

void cws_file_put(struct cws_file *f)
{
    struct cws_guard guard = cws_guard_begin();
    if (f && atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) == 1)
        destroy(f);
    cws_guard_end(&guard);
}

/* Puts a file (its reference goes to the table) or NULL into a slot; the caller drops what was there. */
static int install(int fd, struct cws_file *f, struct cws_file **out_before)
{
    slot_t *fresh = NULL;
    *out_before = NULL;
    if (fd < 0 || fd / PAGE_SLOTS >= PAGES)
        return f ? -EMFILE : 0;
    if (f && !slot_at(fd)) {
        fresh = calloc(PAGE_SLOTS, sizeof *fresh);
        if (!fresh)
            return -ENOMEM;
    }
    cws_lock_take(&table_lock);
    if (fresh && !slot_at(fd)) {
        atomic_store_explicit(&pages[fd / PAGE_SLOTS], fresh, memory_order_release);
        fresh = NULL;
    }
    slot_t *slot = slot_at(fd);
    if (slot) {
        *out_before = atomic_exchange_explicit(slot, f, memory_order_relaxed);
        __atomic_store_n(&cws_files_tracked, cws_files_tracked + (f != NULL) - (*out_before != NULL), __ATOMIC_RELAXED);
    }
    cws_lock_drop(&table_lock);
    free(fresh);
    return 0;
}

static struct cws_file *get_unchecked(int fd)
{
    cws_lock_take(&table_lock);
    slot_t *slot = slot_at(fd);
    struct cws_file *f = slot ? atomic_load_explicit(slot, memory_order_relaxed) : NULL;
    if (f)
        atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
    cws_lock_drop(&table_lock);
    return f;
}

struct cws_file *cws_file_get(int fd)
{
    struct stat st;
    int saved = errno;
    struct cws_guard guard = cws_guard_begin();
    struct cws_file *f = get_unchecked(fd);
    /* Closed behind our back (by a direct system call, or inside the C library) and used again for something else? A
     * call that fails for another reason tells nothing, and the real bytes must not be shown. */
    if (f && (CWS_REAL(fstat)(fd, &st) != 0 ? errno == EBADF : st.st_ino != f->ino || st.st_dev != f->dev)) {
        cws_file_put(f);
        cws_file_forget(fd);
        f = NULL;
    }
    cws_guard_end(&guard);
    errno = saved;
    return f;
}

void cws_file_forget(int fd)
{
    struct cws_file *before;
    if (cws_shim_is_borrowed())
        return;
    struct cws_guard guard = cws_guard_begin();
    if (install(fd, NULL, &before) == 0)
        cws_file_put(before);
    cws_guard_end(&guard);
}

void cws_file_forget_range(unsigned first, unsigned last)
{
    if (cws_shim_is_borrowed())
        return;
    for (unsigned page = first / PAGE_SLOTS; page < PAGES && page <= last / PAGE_SLOTS; page++) {
        if (!atomic_load_explicit(&pages[page], memory_order_acquire))
            continue;
        for (unsigned i = 0; i < PAGE_SLOTS; i++) {
            unsigned fd = page * PAGE_SLOTS + i;
            if (fd >= first && fd <= last && cws_file_lookup((int)fd))
                cws_file_forget((int)fd);
        }
    }
}

static int cannot_note(const char *path, int code)
{
    cws_shim_say("%s: not enough memory, or too many descriptors, to open the store: %s", path, cws_strerror(code));
    return code;
}

int cws_file_share(int from, int to)
{
    struct cws_file *before;
    if (cws_shim_is_borrowed())
        return 0;
    struct cws_guard guard = cws_guard_begin();
    struct cws_file *f = get_unchecked(from);
    int code = install(to, f, &before);
    if (code && f)
        cannot_note(cws_store_path(f->shared->store), code);
    cws_file_put(code ? f : before);
    cws_guard_end(&guard);
    return code;
}

static int track(int fd, const char *path, struct cws_shared *shared, const struct stat *st)
{
    struct cws_file *before, *f = create(shared, st);
    if (!f) {
        cws_stores_release(shared);
        return cannot_note(path, -ENOMEM);
    }
    cws_lock_take(&table_lock);
    cws_list_add_before(&all_files, &f->all);
    cws_lock_drop(&table_lock);
    int code = install(fd, f, &before);
    cws_file_put(code ? f : before);
    return code ? cannot_note(path, code) : 1;
}

int cws_file_adopt(int fd, const char *path)
{
    struct stat st;
    struct cws_shared *shared;
    int saved = errno, code = 0;
    if (cws_file_is_tracked(fd)) /* left over from a descriptor that was closed behind our back */
        cws_file_forget(fd);
    if (CWS_REAL(fstat)(fd, &st) != 0) {
        code = cws_stores_cannot_tell(path, errno);
    } else if (cws_stores_plausible(&st) && !cws_shim_is_borrowed() && (code = cws_stores_has_front(fd)) < 0) {
        code = cws_stores_cannot_tell(path, -code);
    } else if (code > 0) { /* most likely a store: what follows leaves nothing half-done */
        struct cws_guard guard = cws_guard_begin();
        code = cws_stores_acquire(fd, &st, path, &shared);
        if (code > 0)
            code = track(fd, path, shared, &st);
        cws_guard_end(&guard);
    }
    errno = saved;
    return code;
}

uint64_t cws_file_bytes(const struct cws_file *f) { return f->bytes; }
struct cws_shared *cws_file_shared(struct cws_file *f) { return f->shared; }

/* --- reading ----------------------------------------------------------------------------------- */

static int read_failed(struct cws_file *f, const struct cws_error *err, int code)
{
    f->window_end = f->window_begin;
    if (!f->failed)
        cws_shim_say("%s", err->message);
    f->failed = true;
    return -cws_shim_errno(code);
}

static int need_cursor_locked(struct cws_file *f)
{
    struct cws_error err = {0};
    if (f->cursor)
        return 0;
    int code = cws_store_cursor_create(f->shared->store, CURSOR_DEPTH, &f->cursor, &err);
    return code ? read_failed(f, &err, code) : 0;
}

/* Where the window that holds `offset` begins: on a chunk of the store, or the windows of a file that is read from its
 * beginning to its end would each decode two halves of chunks. */
static uint64_t window_of(const struct cws_file *f, uint64_t offset)
{
    const struct cws_tensor_info *t = cws_store_tensor_at(f->shared->store, offset);
    if (!t)
        return offset - offset % WINDOW_BYTES;
    uint64_t inside = offset - t->begin;
    uint64_t unit = t->record->chunk_bytes && t->record->chunk_bytes < WINDOW_BYTES ? t->record->chunk_bytes
                                                                                    : WINDOW_BYTES;
    return offset - inside % unit;
}

static int fill_window_locked(struct cws_file *f, uint64_t offset)
{
    struct cws_error err = {0};
    if (!f->window && !(f->window = malloc(WINDOW_BYTES)))
        return read_failed(f, &err,
                           cws_fail(&err, -ENOMEM, "%s: not enough memory to read", cws_store_path(f->shared->store)));
    uint64_t begin = window_of(f, offset), end = begin + WINDOW_BYTES;
    if (end > f->bytes)
        end = f->bytes;
    f->window_begin = f->window_end = 0;
    int code = cws_store_read(f->cursor, begin, end, f->window, &err);
    if (code)
        return read_failed(f, &err, code);
    f->window_begin = begin;
    f->window_end = end;
    return 0;
}

/* Has the kernel write one byte to each page of [data, data + bytes). */
static bool kernel_can_write(uint8_t *data, size_t bytes)
{
    static const char some_page;
    const uintptr_t mask = CWS_PAGE_BYTES - 1;
    void *page = (void *)((uintptr_t)&some_page & ~mask);
    for (size_t at = 0; at < bytes; at = (((uintptr_t)data + at) | mask) + 1 - (uintptr_t)data)
        if (mincore(page, 1, data + at) != 0)
            return false;
    return true;
}

/* Where the kernel would answer EFAULT, decoding into the memory would raise a signal, with the file's lock held. 0 or
 * -EFAULT. */
static int check_writable(void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)data & ~(uintptr_t)(CWS_PAGE_BYTES - 1);
    int saved = errno;
    bool good = CWS_REAL(madvise)((void *)page, (uintptr_t)data + bytes - page, MADV_POPULATE_WRITE) == 0;
    /* EINVAL: a kernel before 5.14, memory of a device, or not writable */
    if (!good && errno != ENOMEM && errno != EFAULT)
        good = kernel_can_write(data, bytes);
    errno = saved;
    return good ? 0 : -EFAULT;
}

/* Copies from the window. The memory of a view is held meanwhile: it may be read-only, and its faults need not come
 * here. Returns how much was copied, or -errno. */
static ssize_t copy_window(const struct cws_file *f, uint64_t at, void *data, size_t bytes, bool into_view)
{
    size_t part = f->window_end - at < bytes ? f->window_end - at : bytes, max = cws_view_hold_max();
    if (into_view && part > max)
        part = max;
    int code = into_view ? cws_view_hold(data, part, /* for_write */ true, NULL) : 0;
    if (code)
        return -cws_shim_errno(code);
    memcpy(data, f->window + (at - f->window_begin), part);
    if (into_view)
        cws_view_unhold(data, part);
    return (ssize_t)part;
}

/* At most PIECE_BYTES or so, which lie inside the file. Returns how much was read: less where the pages of a view end,
 * or -errno. */
static ssize_t read_piece_locked(struct cws_file *f, void *data, size_t bytes, uint64_t offset)
{
    struct cws_error err = {0};
    bool into_view = cws_view_overlaps(data, bytes);
    int code = into_view ? 0 : check_writable(data, bytes);
    if (!code)
        code = need_cursor_locked(f);
    size_t done = 0;
    while (!code && done < bytes) {
        uint64_t at = offset + done;
        size_t rest = bytes - done;
        if (at >= f->window_begin && at < f->window_end) {
            ssize_t part = copy_window(f, at, (char *)data + done, rest, into_view);
            code = part < 0 ? (int)part : 0;
            done += part > 0 ? (size_t)part : 0;
        } else if (rest >= WINDOW_BYTES && !into_view) {
            code = cws_store_read(f->cursor, at, at + rest, (char *)data + done, &err);
            if (code)
                code = read_failed(f, &err, code);
            else
                done += rest;
        } else {
            code = fill_window_locked(f, at);
        }
    }
    return done ? (ssize_t)done : code;
}

/* A read of a descriptor: inside a guard, with a reference and the lock of the file, all of which are given up for a
 * moment when a signal waits. Its handler may then do what it likes, also leave for good. */
struct file_read {
    int fd;
    uint64_t serial;    /* 0: any file */
    struct cws_file *f; /* NULL: nothing is held */
    struct cws_guard guard;
};

static bool try_lock(struct cws_file *f)
{
    uint32_t free_word = 0;
    return atomic_compare_exchange_strong_explicit(&f->lock, &free_word, 1, memory_order_acquire, memory_order_relaxed);
}

static void unlock(struct cws_file *f)
{
    if (atomic_exchange_explicit(&f->lock, 0, memory_order_release) != 2)
        return;
    atomic_fetch_add(&unlocked, 1);
    cws_wake(&unlocked);
}

/* False: fd is not tracked, or not as the file that it was; nothing is held. */
static bool enter(struct file_read *r)
{
    for (;;) {
        r->guard = cws_guard_begin();
        uint32_t seen = atomic_load(&unlocked), held = 1;
        struct cws_file *f = cws_file_get(r->fd);
        bool same = f && (!r->serial || f->serial == r->serial);
        bool locked = same && try_lock(f);
        if (locked) {
            r->f = f;
            r->serial = f->serial;
            return true;
        }
        bool wait = same && (atomic_compare_exchange_strong(&f->lock, &held, 2) || held == 2);
        cws_file_put(f);
        cws_guard_end(&r->guard);
        if (!same)
            return false;
        if (wait)
            cws_wait(&unlocked, seen);
    }
}

static void leave(struct file_read *r)
{
    unlock(r->f);
    cws_file_put(r->f);
    r->f = NULL;
    cws_guard_end(&r->guard);
}

/* Between two pieces. False: the descriptor was closed meanwhile, and nothing is held. */
static bool let_signals_in(struct file_read *r)
{
    if (!cws_guard_is_wanted(&r->guard))
        return true;
    leave(r);
    return enter(r);
}

static size_t piece_of(const struct cws_file *f, uint64_t at, size_t rest)
{
    if (rest <= PIECE_BYTES)
        return rest;
    uint64_t end = window_of(f, at + PIECE_BYTES); /* or two pieces would decode a chunk each a part of */
    return end > at ? (size_t)(end - at) : PIECE_BYTES;
}

static ssize_t read_part(struct file_read *r, char *data, size_t bytes, uint64_t offset)
{
    if (offset >= r->f->bytes)
        return 0;
    if (bytes > r->f->bytes - offset)
        bytes = r->f->bytes - offset;
    size_t done = 0;
    while (done < bytes) {
        size_t piece = piece_of(r->f, offset + done, bytes - done);
        ssize_t got = read_piece_locked(r->f, data + done, piece, offset + done);
        if (got < 0)
            return done ? (ssize_t)done : got;
        done += (size_t)got;
        if ((size_t)got < piece || !let_signals_in(r))
            break;
    }
    return (ssize_t)done;
}

static ssize_t read_parts(struct file_read *r, const struct iovec *parts, int count, uint64_t offset)
{
    size_t total = 0;
    for (int i = 0; r->f && i < count; i++) {
        ssize_t got = read_part(r, parts[i].iov_base, parts[i].iov_len, offset + total);
        if (got < 0)
            return total ? (ssize_t)total : got;
        total += (size_t)got;
        if ((size_t)got < parts[i].iov_len)
            break;
    }
    return (ssize_t)total;
}

/* Outside of a guard, because the list may lie in a view. */
static bool parts_are_valid(const struct iovec *parts, int count, size_t *out_total)
{
    size_t total = 0;
    if (count < 0 || count > IOV_MAX)
        return false;
    for (int i = 0; i < count; i++)
        if (parts[i].iov_len > SSIZE_MAX || (total += parts[i].iov_len) > SSIZE_MAX)
            return false;
    *out_total = total;
    return true;
}

bool cws_file_preadv(int fd, const struct iovec *parts, int count, off_t offset, ssize_t *out_got)
{
    struct file_read r = {.fd = fd};
    size_t total;
    pthread_testcancel(); /* as any read */
    bool valid = offset >= 0 && parts_are_valid(parts, count, &total);
    if (!enter(&r))
        return false;
    *out_got = valid ? read_parts(&r, parts, count, (uint64_t)offset) : -EINVAL;
    if (r.f)
        leave(&r);
    return true;
}

/* The offset moves first, by what the read will give: what comes between two pieces (another thread, a handler) finds
 * it as behind the whole read, and goes on there. What could not be read is given back, if nobody did. */
static ssize_t readv_entered(struct file_read *r, const struct iovec *parts, int count, size_t total)
{
    off_t at = CWS_REAL(lseek)(r->fd, 0, SEEK_CUR);
    if (at < 0)
        return -errno;
    uint64_t rest = (uint64_t)at < r->f->bytes ? r->f->bytes - (uint64_t)at : 0;
    size_t taken = total < rest ? total : (size_t)rest;
    if (taken == 0)
        return 0;
    if (CWS_REAL(lseek)(r->fd, at + (off_t)taken, SEEK_SET) < 0)
        return -errno;
    ssize_t got = read_parts(r, parts, count, (uint64_t)at);
    size_t moved = got > 0 ? (size_t)got : 0;
    if (moved < taken && r->f && CWS_REAL(lseek)(r->fd, 0, SEEK_CUR) == at + (off_t)taken)
        CWS_REAL(lseek)(r->fd, at + (off_t)moved, SEEK_SET);
    return got;
}

bool cws_file_readv(int fd, const struct iovec *parts, int count, ssize_t *out_got)
{
    struct file_read r = {.fd = fd};
    size_t total;
    int saved = errno;
    pthread_testcancel();
    bool valid = parts_are_valid(parts, count, &total);
    if (!enter(&r))
        return false;
    *out_got = valid ? readv_entered(&r, parts, count, total) : -EINVAL;
    if (r.f)
        leave(&r);
    errno = saved;
    return true;
}

static off_t seek_locked(const struct cws_file *f, int fd, off_t offset, int whence)
{
    switch (whence) {
    case SEEK_END:
        if (offset > 0 && (uint64_t)offset > (uint64_t)INT64_MAX - f->bytes)
            return -EOVERFLOW;
        offset += (off_t)f->bytes;
        whence = SEEK_SET;
        break;
    case SEEK_DATA: /* a logical file has no holes */
    case SEEK_HOLE:
        if (offset < 0 || (uint64_t)offset >= f->bytes)
            return -ENXIO;
        if (whence == SEEK_HOLE)
            offset = (off_t)f->bytes;
        whence = SEEK_SET;
        break;
    default: break;
    }
    off_t at = CWS_REAL(lseek)(fd, offset, whence);
    return at < 0 ? -errno : at;
}

bool cws_file_seek(int fd, off_t offset, int whence, off_t *out_at)
{
    struct file_read r = {.fd = fd};
    int saved = errno;
    if (!enter(&r))
        return false;
    *out_at = seek_locked(r.f, fd, offset, whence);
    leave(&r);
    errno = saved;
    return true;
}

/* --- fork -------------------------------------------------------------------------------------- */

static struct cws_guard fork_guard; /* of the thread that forks; table_lock */

void cws_files_fork_prepare(void)
{
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&table_lock);
    fork_guard = guard;
    cws_stores_fork_prepare();
}

static void fork_done(void)
{
    struct cws_guard guard = fork_guard;
    cws_stores_fork_done();
    cws_lock_drop(&table_lock);
    cws_guard_end(&guard);
}

void cws_files_fork_parent(void) { fork_done(); }

void cws_files_fork_child(void)
{
    for (struct cws_list *at = all_files.next; at != &all_files; at = at->next) {
        struct cws_file *f = CWS_LIST_OF(at, struct cws_file, all);
        if (try_lock(f)) {
            if (f->cursor)
                cws_store_cursor_after_fork(f->cursor);
        } else {
            /* a thread that does not exist here was reading: what it held is in no known state, and is left alone */
            f->cursor = NULL;
            f->window = NULL;
            f->window_begin = f->window_end = 0;
        }
        atomic_store(&f->lock, 0);
    }
    fork_done();
}
