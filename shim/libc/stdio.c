/* stdio.c - hooks of stdio: a FILE that reads a store. Its buffer is filled inside the C library, behind our hooks,
 * so a store gets a FILE of fopencookie's with our reads below it. Such a FILE has no descriptor as far as the C
 * library knows; fileno() is ours, too. */
#include "uvm/host/view.h"
#include "buffers.h"
#include "file_table.h"
#include "hooks.h"
#include "shim/say.h"
#include "shim/state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* The FILEs that are ours. A slot is free when its file is NULL, and taken but not yet a FILE while it is CLAIMED. */
struct stream {
    FILE *_Atomic file;
    int fd;
};
enum { STREAMS_MAX = 1024 };
static struct stream streams[STREAMS_MAX];
static atomic_int stream_count;
#define CLAIMED ((FILE *)1)

static struct stream *claim(int fd)
{
    for (int i = 0; i < STREAMS_MAX; i++) {
        FILE *free_slot = NULL;
        if (atomic_compare_exchange_strong(&streams[i].file, &free_slot, CLAIMED)) {
            streams[i].fd = fd;
            atomic_fetch_add(&stream_count, 1);
            return &streams[i];
        }
    }
    cws_shim_say("%d packed models are open as FILE, which is all there can be", STREAMS_MAX);
    errno = EMFILE;
    return NULL;
}

static void release(struct stream *s)
{
    atomic_store(&s->file, NULL);
    atomic_fetch_sub(&stream_count, 1);
}

static const struct stream *find(FILE *file)
{
    if (!CWS_UNLIKELY(atomic_load_explicit(&stream_count, memory_order_relaxed)))
        return NULL;
    for (int i = 0; i < STREAMS_MAX; i++)
        if (atomic_load_explicit(&streams[i].file, memory_order_acquire) == file)
            return &streams[i];
    return NULL;
}

static ssize_t stream_read(void *cookie, char *data, size_t bytes)
{
    return cws_hook_read(((struct stream *)cookie)->fd, data, bytes);
}

static int stream_seek(void *cookie, off_t *offset, int whence)
{
    off_t at = cws_hook_lseek(((struct stream *)cookie)->fd, *offset, whence);
    if (at < 0)
        return -1;
    *offset = at;
    return 0;
}

static int stream_close(void *cookie)
{
    struct stream *s = cookie;
    int fd = s->fd;
    struct cws_guard guard = cws_guard_begin();
    release(s);
    int result = cws_hook_close(fd);
    cws_guard_end(&guard);
    return result;
}

/* A FILE that owns the tracked descriptor, or NULL with errno; the descriptor is the caller's still then. */
static FILE *stream_on(int fd)
{
    struct stream *s = claim(fd);
    if (!s)
        return NULL;
    FILE *file = fopencookie(s, "r", (cookie_io_functions_t){stream_read, NULL, stream_seek, stream_close});
    if (!file) {
        release(s);
        return NULL;
    }
    atomic_store_explicit(&s->file, file, memory_order_release);
    return file;
}

static bool is_for_reading(const char *mode) { return mode[0] == 'r' && !memchr(mode, '+', strcspn(mode, ",")); }

/* The C library's FILE is given up, its descriptor kept. The offset is the beginning's: nothing was read yet. */
static FILE *exchange(FILE *file, const char *mode)
{
    int old = CWS_REAL(fileno)(file);
    int cloexec = memchr(mode, 'e', strcspn(mode, ",")) != NULL;
    int fd = CWS_REAL(fcntl)(old, cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
    int code = fd < 0 ? -errno : cws_file_share(old, fd);
    FILE *ours = NULL;
    if (!code && !(ours = stream_on(fd)))
        code = -errno;
    cws_file_forget(old);
    fclose(file);
    if (code) {
        if (fd >= 0)
            cws_hook_close(fd);
        errno = -code;
    }
    return ours;
}

/* Inside a guard. */
static FILE *look_at(FILE *file, const char *path, const char *mode)
{
    int fd = CWS_REAL(fileno)(file), code = 0;
    if (is_for_reading(mode)) {
        code = cws_file_adopt(fd, path);
        if (code > 0)
            return exchange(file, mode);
    } else {
        if (cws_file_is_tracked(fd))
            cws_file_forget(fd);
        if (mode[0] != 'w')
            code = cws_stores_check_writable(fd, path);
    }
    if (code < 0) {
        fclose(file);
        errno = -code;
        return NULL;
    }
    return file;
}

static FILE *opened(FILE *file, const char *path, const char *mode)
{
    struct cws_guard guard = cws_guard_begin();
    FILE *shown = look_at(file, path, mode);
    cws_guard_end(&guard);
    return shown;
}

static bool spared(const char *path, const char *mode)
{
    int code = mode[0] == 'w' ? cws_stores_spare(AT_FDCWD, path) : 0;
    if (code)
        errno = -code;
    return code == 0;
}

FILE *cws_hook_fopen(const char *path, const char *mode)
{
    if (!cws_shim_active())
        return CWS_REAL(fopen)(path, mode);
    if (!spared(path, mode))
        return NULL;
    FILE *file = CWS_REAL(fopen)(path, mode);
    return file ? opened(file, path, mode) : NULL;
}
CWS_SAME(fopen64, fopen);
CWS_SAME(_IO_fopen, fopen);

/* The same FILE must go on to exist, so it cannot become one of ours: a store is refused, and the stream closed, as
 * POSIX has it when freopen fails. */
FILE *cws_hook_freopen(const char *path, const char *mode, FILE *file)
{
    if (!cws_shim_active() || !path)
        return CWS_REAL(freopen)(path, mode, file);
    if (!spared(path, mode))
        return NULL;
    FILE *again = CWS_REAL(freopen)(path, mode, file);
    if (!again)
        return NULL;
    struct cws_guard guard = cws_guard_begin();
    int fd = CWS_REAL(fileno)(again);
    int code = is_for_reading(mode) ? cws_file_adopt(fd, path)
               : mode[0] != 'w'     ? cws_stores_check_writable(fd, path)
                                    : 0;
    if (code > 0) {
        cws_file_forget(fd);
        cws_shim_say("%s: freopen cannot show a packed model; use fopen", path);
        code = -EOPNOTSUPP;
    }
    if (code)
        fclose(again);
    cws_guard_end(&guard);
    if (!code)
        return again;
    errno = -code;
    return NULL;
}
CWS_SAME(freopen64, freopen);

FILE *cws_hook_fdopen(int fd, const char *mode)
{
    if (!cws_file_is_tracked(fd) || !is_for_reading(mode))
        return CWS_REAL(fdopen)(fd, mode);
    struct cws_guard guard = cws_guard_begin();
    FILE *file = stream_on(fd);
    cws_guard_end(&guard);
    return file;
}
CWS_SAME(_IO_fdopen, fdopen);

int cws_hook_fileno(FILE *file)
{
    const struct stream *s = find(file);
    return s ? s->fd : CWS_REAL(fileno)(file);
}
CWS_SAME(fileno_unlocked, fileno);

/* --- buffers in views: a large request goes past the FILE's buffer straight to the kernel ------------- */

typedef size_t (*transfer)(void *data, size_t bytes, FILE *file);

struct stdio_piece {
    transfer call;
    struct iovec part;
    FILE *file;
    size_t done;
};

static void call_piece(void *arg)
{
    struct stdio_piece *p = arg;
    p->done = p->call(p->part.iov_base, p->part.iov_len, p->file);
}

static size_t in_pieces(transfer call, bool into, const void *data, size_t bytes, FILE *file)
{
    size_t done = 0, max = cws_view_hold_max();
    while (done < bytes) {
        struct stdio_piece p = {
            .call = call, .part = {(char *)data + done, bytes - done < max ? bytes - done : max}, .file = file};
        int code = cws_buffers_while_held(&p.part, 1, into, call_piece, &p);
        if (code) {
            errno = -code;
            break;
        }
        done += p.done;
        if (p.done < p.part.iov_len)
            break;
    }
    return done;
}

static bool lies_in_view(const void *data, size_t size, size_t count)
{
    size_t bytes;
    return !__builtin_mul_overflow(size, count, &bytes) && CWS_UNLIKELY(cws_view_overlaps(data, bytes));
}

static size_t call_fread(void *data, size_t bytes, FILE *file) { return CWS_REAL(fread)(data, 1, bytes, file); }
static size_t call_fread_unlocked(void *data, size_t bytes, FILE *file)
{
    return CWS_REAL(fread_unlocked)(data, 1, bytes, file);
}
static size_t call_fwrite(void *data, size_t bytes, FILE *file) { return CWS_REAL(fwrite)(data, 1, bytes, file); }
static size_t call_fwrite_unlocked(void *data, size_t bytes, FILE *file)
{
    return CWS_REAL(fwrite_unlocked)(data, 1, bytes, file);
}

size_t cws_hook_fread(void *data, size_t size, size_t count, FILE *file)
{
    if (!lies_in_view(data, size, count))
        return CWS_REAL(fread)(data, size, count, file);
    return in_pieces(call_fread, /* into */ true, data, size * count, file) / size;
}

size_t cws_hook_fread_unlocked(void *data, size_t size, size_t count, FILE *file)
{
    if (!lies_in_view(data, size, count))
        return CWS_REAL(fread_unlocked)(data, size, count, file);
    return in_pieces(call_fread_unlocked, /* into */ true, data, size * count, file) / size;
}

static bool fits(size_t room, size_t size, size_t count)
{
    size_t bytes;
    return !__builtin_mul_overflow(size, count, &bytes) && bytes <= room;
}

size_t cws_hook___fread_chk(void *data, size_t room, size_t size, size_t count, FILE *file)
{
    return fits(room, size, count) ? cws_hook_fread(data, size, count, file)
                                   : CWS_REAL(__fread_chk)(data, room, size, count, file);
}

size_t cws_hook___fread_unlocked_chk(void *data, size_t room, size_t size, size_t count, FILE *file)
{
    return fits(room, size, count) ? cws_hook_fread_unlocked(data, size, count, file)
                                   : CWS_REAL(__fread_unlocked_chk)(data, room, size, count, file);
}

size_t cws_hook_fwrite(const void *data, size_t size, size_t count, FILE *file)
{
    if (!lies_in_view(data, size, count))
        return CWS_REAL(fwrite)(data, size, count, file);
    return in_pieces(call_fwrite, /* into */ false, data, size * count, file) / size;
}

size_t cws_hook_fwrite_unlocked(const void *data, size_t size, size_t count, FILE *file)
{
    if (!lies_in_view(data, size, count))
        return CWS_REAL(fwrite_unlocked)(data, size, count, file);
    return in_pieces(call_fwrite_unlocked, /* into */ false, data, size * count, file) / size;
}
