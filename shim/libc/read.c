/* read.c - hooks of read and its kin: the logical bytes of a store, and reads of other files into views. What a
 * store cannot offer (the kernel copying the file's bytes by itself) fails with the error that callers fall back
 * from: EINVAL for sendfile and splice, EXDEV for copy_file_range, EOPNOTSUPP for reflinks. */
#include "buffers.h"
#include "file_table.h"
#include "hooks.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/fiemap.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <unistd.h>

static ssize_t result_of(ssize_t code)
{
    if (code >= 0)
        return code;
    errno = (int)-code;
    return -1;
}

/* --- into views -------------------------------------------------------------------------------- */

static ssize_t call_read(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    (void)done;
    return count == 1 ? CWS_REAL(read)(t->fd, parts->iov_base, parts->iov_len) : CWS_REAL(readv)(t->fd, parts, count);
}

static ssize_t call_pread(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    return CWS_REAL(preadv)(t->fd, parts, count, t->offset + (off_t)done);
}

static ssize_t call_preadv2(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    off_t offset = t->offset == -1 ? -1 : t->offset + (off_t)done;
    return CWS_REAL(preadv2)(t->fd, parts, count, offset, t->flags);
}

static ssize_t read_held(struct cws_transfer t, const struct iovec *parts, int count)
{
    int flags = t.flags;
    t.into = true;
    t.flags = 0; /* of preadv2, not of a message */
    cws_buffers_classify(&t);
    t.flags = flags;
    return cws_buffers_run(&t, parts, count);
}

/* --- from stores: true, and *out is the result with errno; false: no store's descriptor, the call passes ----- */

static bool read_store(int fd, const struct iovec *parts, int count, ssize_t *out)
{
    if (!cws_file_is_tracked(fd) || !cws_file_readv(fd, parts, count, out))
        return false;
    *out = result_of(*out);
    return true;
}

static bool pread_store(int fd, const struct iovec *parts, int count, off_t offset, ssize_t *out)
{
    if (!cws_file_is_tracked(fd) || !cws_file_preadv(fd, parts, count, offset, out))
        return false;
    *out = result_of(*out);
    return true;
}

/* Is fd a store? Then errno says why the call is refused. */
static bool refused(int fd, int why)
{
    if (!cws_file_is_tracked(fd))
        return false;
    struct cws_guard guard = cws_guard_begin();
    struct cws_file *f = cws_file_get(fd);
    cws_file_put(f);
    cws_guard_end(&guard);
    if (f)
        errno = why;
    return f != NULL;
}

/* --- read -------------------------------------------------------------------------------------- */

ssize_t cws_hook_read(int fd, void *data, size_t bytes)
{
    struct iovec part = {data, bytes};
    ssize_t got;
    if (read_store(fd, &part, 1, &got))
        return got;
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(read)(fd, data, bytes);
    return read_held((struct cws_transfer){.call = call_read, .fd = fd}, &part, 1);
}
CWS_SAME(__read, read);

ssize_t cws_hook___read_chk(int fd, void *data, size_t bytes, size_t room)
{
    return bytes > room ? CWS_REAL(__read_chk)(fd, data, bytes, room) : cws_hook_read(fd, data, bytes);
}

ssize_t cws_hook_pread(int fd, void *data, size_t bytes, off_t offset)
{
    struct iovec part = {data, bytes};
    ssize_t got;
    if (pread_store(fd, &part, 1, offset, &got))
        return got;
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(pread)(fd, data, bytes, offset);
    return read_held((struct cws_transfer){.call = call_pread, .fd = fd, .offset = offset}, &part, 1);
}
CWS_SAME(pread64, pread);
CWS_SAME(__pread64, pread);

ssize_t cws_hook___pread_chk(int fd, void *data, size_t bytes, off_t offset, size_t room)
{
    return bytes > room ? CWS_REAL(__pread_chk)(fd, data, bytes, offset, room)
                        : cws_hook_pread(fd, data, bytes, offset);
}
CWS_SAME(__pread64_chk, __pread_chk);

ssize_t cws_hook_readv(int fd, const struct iovec *parts, int count)
{
    ssize_t got;
    if (read_store(fd, parts, count, &got))
        return got;
    if (!CWS_UNLIKELY(cws_buffers_any(parts, count)))
        return CWS_REAL(readv)(fd, parts, count);
    return read_held((struct cws_transfer){.call = call_read, .fd = fd}, parts, count);
}

ssize_t cws_hook_preadv(int fd, const struct iovec *parts, int count, off_t offset)
{
    ssize_t got;
    if (pread_store(fd, parts, count, offset, &got))
        return got;
    if (!CWS_UNLIKELY(cws_buffers_any(parts, count)))
        return CWS_REAL(preadv)(fd, parts, count, offset);
    return read_held((struct cws_transfer){.call = call_pread, .fd = fd, .offset = offset}, parts, count);
}
CWS_SAME(preadv64, preadv);

ssize_t cws_hook_preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    ssize_t got;
    /* flags are hints, but for RWF_NOWAIT, which a store never satisfies */
    if ((flags & ~RWF_HIPRI) && refused(fd, EOPNOTSUPP))
        return -1;
    if (offset == -1 ? read_store(fd, parts, count, &got) : pread_store(fd, parts, count, offset, &got))
        return got;
    if (!CWS_UNLIKELY(cws_buffers_any(parts, count)))
        return CWS_REAL(preadv2)(fd, parts, count, offset, flags);
    return read_held((struct cws_transfer){.call = call_preadv2, .fd = fd, .offset = offset, .flags = flags}, parts,
                     count);
}
CWS_SAME(preadv64v2, preadv2);

off_t cws_hook_lseek(int fd, off_t offset, int whence)
{
    off_t at;
    if (!cws_file_is_tracked(fd) || !cws_file_seek(fd, offset, whence, &at))
        return CWS_REAL(lseek)(fd, offset, whence);
    return result_of(at);
}
CWS_SAME(lseek64, lseek);
CWS_SAME(__lseek, lseek);
CWS_SAME(llseek, lseek);

/* --- what a store does not offer --------------------------------------------------------------- */

ssize_t cws_hook_sendfile(int to, int from, off_t *offset, size_t bytes)
{
    return refused(from, EINVAL) ? -1 : CWS_REAL(sendfile)(to, from, offset, bytes);
}
CWS_SAME(sendfile64, sendfile);

ssize_t cws_hook_copy_file_range(int from, off_t *from_at, int to, off_t *to_at, size_t bytes, unsigned flags)
{
    return refused(from, EXDEV) ? -1 : CWS_REAL(copy_file_range)(from, from_at, to, to_at, bytes, flags);
}

ssize_t cws_hook_splice(int from, off_t *from_at, int to, off_t *to_at, size_t bytes, unsigned flags)
{
    return refused(from, EINVAL) ? -1 : CWS_REAL(splice)(from, from_at, to, to_at, bytes, flags);
}

static int ioctl_on_store(int fd, unsigned long request, void *argument)
{
    switch (request) {
    case FIONREAD: {
        struct cws_guard guard = cws_guard_begin();
        struct cws_file *f = cws_file_get(fd);
        off_t rest = f ? (off_t)cws_file_bytes(f) - CWS_REAL(lseek)(fd, 0, SEEK_CUR) : 0;
        cws_file_put(f);
        cws_guard_end(&guard);
        *(int *)argument = rest > INT32_MAX ? INT32_MAX : rest > 0 ? (int)rest : 0;
        return 0;
    }
    case FS_IOC_FIEMAP: /* where raw bytes lie on the disk */
    case FIBMAP: errno = EOPNOTSUPP; return -1;
    default: return CWS_REAL(ioctl)(fd, request, argument);
    }
}

int cws_hook_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!cws_files_any())
        return CWS_REAL(ioctl)(fd, request, argument);
    if (request == FICLONE && refused((int)(long)argument, EOPNOTSUPP))
        return -1;
    if (request == FICLONERANGE && refused((int)((struct file_clone_range *)argument)->src_fd, EOPNOTSUPP))
        return -1;
    return cws_file_is_tracked(fd) ? ioctl_on_store(fd, request, argument) : CWS_REAL(ioctl)(fd, request, argument);
}

/* Advice about offsets of the logical file would be wrong for the real one. */
int cws_hook_posix_fadvise(int fd, off_t offset, off_t bytes, int advice)
{
    return cws_file_is_tracked(fd) ? 0 : CWS_REAL(posix_fadvise)(fd, offset, bytes, advice);
}
CWS_SAME(posix_fadvise64, posix_fadvise);

ssize_t cws_hook_readahead(int fd, off_t offset, size_t bytes)
{
    return cws_file_is_tracked(fd) ? 0 : CWS_REAL(readahead)(fd, offset, bytes);
}
