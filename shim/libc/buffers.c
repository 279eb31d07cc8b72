/* buffers.c - hooks of system calls that send from, or receive into, the memory of views. */
#include "buffers.h"
#include "store/base/guard.h"
#include "hooks.h"
#include "shim/say.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

bool cws_buffers_any(const struct iovec *parts, int count)
{
    for (int i = 0; i < count; i++)
        if (cws_view_overlaps(parts[i].iov_base, parts[i].iov_len))
            return true;
    return false;
}

/* --- pieces ------------------------------------------------------------------------------------ */

struct buffer_piece {
    struct iovec parts[CWS_BUFFERS_PARTS];
    int count;
    size_t bytes;
    bool cut; /* more follows */
};

/* The bytes behind the first `skip`, as far as the pager can hold them at once. */
static void cut_piece(struct buffer_piece *p, const struct iovec *parts, int count, size_t skip)
{
    size_t room = cws_view_hold_max();
    p->count = 0;
    p->bytes = 0;
    p->cut = false;
    for (int i = 0; i < count; i++) {
        size_t len = parts[i].iov_len;
        if (skip >= len) {
            skip -= len;
            continue;
        }
        char *base = (char *)parts[i].iov_base + skip;
        len -= skip;
        skip = 0;
        if (p->count == CWS_BUFFERS_PARTS || room == 0) {
            p->cut = true;
            return;
        }
        if (len > room) {
            len = room;
            p->cut = true;
        }
        p->parts[p->count++] = (struct iovec){base, len};
        p->bytes += len;
        room -= len;
        if (p->cut)
            return;
    }
}

struct held {
    const struct iovec *parts;
    int count; /* of parts that are held */
};

static void unhold(void *arg)
{
    struct held *h = arg;
    int saved = errno;
    struct cws_guard guard = cws_guard_begin();
    while (h->count) {
        h->count--;
        cws_view_unhold(h->parts[h->count].iov_base, h->parts[h->count].iov_len);
    }
    cws_guard_end(&guard);
    errno = saved;
}

static int hold(struct held *h, int count, bool into)
{
    int code = 0;
    struct cws_guard guard = cws_guard_begin();
    for (; !code && h->count < count; h->count += !code)
        code = cws_view_hold(h->parts[h->count].iov_base, h->parts[h->count].iov_len, into, NULL);
    cws_guard_end(&guard);
    return code ? -cws_shim_errno(code) : 0;
}

int cws_buffers_while_held(const struct iovec *parts, int count, bool into, void (*call)(void *arg), void *arg)
{
    struct held h = {.parts = parts};
    int code;
    pthread_cleanup_push(unhold, &h); /* the call may be a cancellation point */
    code = hold(&h, count, into);
    if (!code)
        call(arg);
    unhold(&h);
    pthread_cleanup_pop(0);
    return code;
}

struct running {
    const struct cws_transfer *t;
    const struct buffer_piece *p;
    size_t done;
    ssize_t result;
};

static void call_piece(void *arg)
{
    struct running *r = arg;
    r->result = r->t->call(r->t, r->p->parts, r->p->count, r->done);
}

ssize_t cws_buffers_run(const struct cws_transfer *t, const struct iovec *parts, int count)
{
    struct buffer_piece p;
    size_t done = 0;
    int saved = errno;
    do {
        cut_piece(&p, parts, count, done);
        if (p.count == 0)
            break;
        if (t->whole && p.cut) {
            errno = EMSGSIZE;
            return -1;
        }
        struct running r = {.t = t, .p = &p, .done = done};
        int code = cws_buffers_while_held(p.parts, p.count, t->into, call_piece, &r);
        if (code) {
            errno = done ? saved : -code;
            return done ? (ssize_t)done : -1;
        }
        ssize_t n = r.result;
        if (n < 0) {
            if (!done)
                return -1;
            errno = saved;
            break;
        }
        done += (size_t)n;
        if ((size_t)n < p.bytes)
            break;
    } while (p.cut && !t->once);
    return (ssize_t)done;
}

void cws_buffers_classify(struct cws_transfer *t)
{
    struct stat st;
    int type, saved = errno;
    socklen_t len = sizeof type;
    if (CWS_REAL(fstat)(t->fd, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        t->once = t->into && !(t->flags & MSG_WAITALL && S_ISSOCK(st.st_mode));
        t->whole = !t->into && S_ISSOCK(st.st_mode) && getsockopt(t->fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 &&
                   type != SOCK_STREAM;
    }
    errno = saved;
}

/* --- write ------------------------------------------------------------------------------------- */

static ssize_t call_write(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    (void)done;
    return count == 1 ? CWS_REAL(write)(t->fd, parts->iov_base, parts->iov_len) : CWS_REAL(writev)(t->fd, parts, count);
}

static ssize_t call_pwrite(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    return CWS_REAL(pwritev)(t->fd, parts, count, t->offset + (off_t)done);
}

static ssize_t call_pwritev2(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    off_t offset = t->offset == -1 ? -1 : t->offset + (off_t)done; /* -1: at the descriptor's own offset */
    return CWS_REAL(pwritev2)(t->fd, parts, count, offset, t->flags);
}

static ssize_t write_held(struct cws_transfer t, const struct iovec *parts, int count)
{
    cws_buffers_classify(&t);
    return cws_buffers_run(&t, parts, count);
}

ssize_t cws_hook_write(int fd, const void *data, size_t bytes)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(write)(fd, data, bytes);
    struct iovec part = {(void *)data, bytes};
    return write_held((struct cws_transfer){.call = call_write, .fd = fd}, &part, 1);
}
CWS_SAME(__write, write);

ssize_t cws_hook_pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(pwrite)(fd, data, bytes, offset);
    struct iovec part = {(void *)data, bytes};
    return write_held((struct cws_transfer){.call = call_pwrite, .fd = fd, .offset = offset}, &part, 1);
}
CWS_SAME(pwrite64, pwrite);
CWS_SAME(__pwrite64, pwrite);

ssize_t cws_hook_writev(int fd, const struct iovec *parts, int count)
{
    if (!CWS_UNLIKELY(cws_buffers_any(parts, count)))
        return CWS_REAL(writev)(fd, parts, count);
    return write_held((struct cws_transfer){.call = call_write, .fd = fd}, parts, count);
}

ssize_t cws_hook_pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    if (!CWS_UNLIKELY(cws_buffers_any(parts, count)))
        return CWS_REAL(pwritev)(fd, parts, count, offset);
    return write_held((struct cws_transfer){.call = call_pwrite, .fd = fd, .offset = offset}, parts, count);
}
CWS_SAME(pwritev64, pwritev);

ssize_t cws_hook_pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    if (!CWS_UNLIKELY(cws_buffers_any(parts, count)))
        return CWS_REAL(pwritev2)(fd, parts, count, offset, flags);
    struct cws_transfer t = {.call = call_pwritev2, .fd = fd, .offset = offset};
    cws_buffers_classify(&t); /* looks at flags as those of a message */
    t.flags = flags;
    return cws_buffers_run(&t, parts, count);
}
CWS_SAME(pwritev64v2, pwritev2);

/* --- send -------------------------------------------------------------------------------------- */

static ssize_t call_sendmsg(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    struct msghdr message = *t->message;
    message.msg_iov = (struct iovec *)parts;
    message.msg_iovlen = (size_t)count;
    if (done) { /* descriptors and the like go once */
        message.msg_control = NULL;
        message.msg_controllen = 0;
    }
    return CWS_REAL(sendmsg)(t->fd, &message, t->flags);
}

static ssize_t send_held(int fd, const struct msghdr *message, int flags)
{
    struct cws_transfer t = {.call = call_sendmsg, .fd = fd, .flags = flags, .message = message};
    cws_buffers_classify(&t);
    return cws_buffers_run(&t, message->msg_iov, (int)message->msg_iovlen);
}

ssize_t cws_hook_send(int fd, const void *data, size_t bytes, int flags)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(send)(fd, data, bytes, flags);
    struct iovec part = {(void *)data, bytes};
    return send_held(fd, &(struct msghdr){.msg_iov = &part, .msg_iovlen = 1}, flags);
}
CWS_SAME(__send, send);

ssize_t cws_hook_sendto(int fd, const void *data, size_t bytes, int flags, const struct sockaddr *to, socklen_t to_len)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(sendto)(fd, data, bytes, flags, to, to_len);
    struct iovec part = {(void *)data, bytes};
    struct msghdr message = {.msg_name = (void *)to, .msg_namelen = to_len, .msg_iov = &part, .msg_iovlen = 1};
    return send_held(fd, &message, flags);
}

ssize_t cws_hook_sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (!message || !CWS_UNLIKELY(cws_buffers_any(message->msg_iov, (int)message->msg_iovlen)))
        return CWS_REAL(sendmsg)(fd, message, flags);
    return send_held(fd, message, flags);
}

/* --- receive ----------------------------------------------------------------------------------- */

static ssize_t call_recv(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    (void)count;
    (void)done;
    return CWS_REAL(recv)(t->fd, parts->iov_base, parts->iov_len, t->flags);
}

ssize_t cws_hook_recv(int fd, void *data, size_t bytes, int flags)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(recv)(fd, data, bytes, flags);
    struct iovec part = {data, bytes};
    struct cws_transfer t = {.call = call_recv, .fd = fd, .flags = flags, .into = true};
    cws_buffers_classify(&t);
    return cws_buffers_run(&t, &part, 1);
}

ssize_t cws_hook___recv_chk(int fd, void *data, size_t bytes, size_t room, int flags)
{
    if (bytes > room || !CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(__recv_chk)(fd, data, bytes, room, flags);
    return cws_hook_recv(fd, data, bytes, flags);
}

/* The message header is updated by the call; only its buffers are ours. */
static ssize_t call_recvmsg(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    struct msghdr *program = (struct msghdr *)t->message;
    struct iovec *const iov = program->msg_iov;
    const size_t iovlen = program->msg_iovlen;
    (void)done;
    program->msg_iov = (struct iovec *)parts;
    program->msg_iovlen = (size_t)count;
    ssize_t got = CWS_REAL(recvmsg)(t->fd, program, t->flags);
    program->msg_iov = iov;
    program->msg_iovlen = iovlen;
    return got;
}

ssize_t cws_hook_recvmsg(int fd, struct msghdr *message, int flags)
{
    if (!message || !CWS_UNLIKELY(cws_buffers_any(message->msg_iov, (int)message->msg_iovlen)))
        return CWS_REAL(recvmsg)(fd, message, flags);
    struct cws_transfer t = {
        .call = call_recvmsg, .fd = fd, .flags = flags, .message = message, .into = true, .once = true};
    return cws_buffers_run(&t, message->msg_iov, (int)message->msg_iovlen);
}

ssize_t cws_hook_recvfrom(int fd, void *data, size_t bytes, int flags, struct sockaddr *from, socklen_t *from_len)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(recvfrom)(fd, data, bytes, flags, from, from_len);
    if (!from)
        return cws_hook_recv(fd, data, bytes, flags);
    struct iovec part = {data, bytes};
    struct msghdr message = {
        .msg_name = from, .msg_namelen = from_len ? *from_len : 0, .msg_iov = &part, .msg_iovlen = 1};
    ssize_t got = cws_hook_recvmsg(fd, &message, flags);
    if (got >= 0 && from_len)
        *from_len = message.msg_namelen;
    return got;
}

ssize_t cws_hook___recvfrom_chk(int fd, void *data, size_t bytes, size_t room, int flags, struct sockaddr *from,
                                socklen_t *from_len)
{
    if (bytes > room || !CWS_UNLIKELY(cws_view_overlaps(data, bytes)))
        return CWS_REAL(__recvfrom_chk)(fd, data, bytes, room, flags, from, from_len);
    return cws_hook_recvfrom(fd, data, bytes, flags, from, from_len);
}

/* --- several messages: one by one, when any of them touches a view ------------------------------- */

static bool messages_any(const struct mmsghdr *messages, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (cws_buffers_any(messages[i].msg_hdr.msg_iov, (int)messages[i].msg_hdr.msg_iovlen))
            return true;
    return false;
}

int cws_hook_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    unsigned done = 0;
    int saved = errno;
    if (!CWS_UNLIKELY(messages_any(messages, count)))
        return CWS_REAL(sendmmsg)(fd, messages, count, flags);
    for (; done < count; done++) {
        ssize_t sent = cws_hook_sendmsg(fd, &messages[done].msg_hdr, flags);
        if (sent < 0)
            break;
        messages[done].msg_len = (unsigned)sent;
    }
    if (done)
        errno = saved; /* an error of a later message is met by the next call */
    return done ? (int)done : -1;
}

/* What is left until `end`; false: nothing. */
static bool time_left(const struct timespec *end, struct timespec *left)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t ns = (int64_t)(end->tv_sec - now.tv_sec) * 1000000000 + end->tv_nsec - now.tv_nsec;
    if (ns < 0)
        ns = 0;
    *left = (struct timespec){ns / 1000000000, ns % 1000000000};
    return ns > 0;
}

int cws_hook_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    unsigned done = 0;
    int saved = errno, each = flags & ~MSG_WAITFORONE;
    struct timespec end = {0};
    if (!CWS_UNLIKELY(messages_any(messages, count)))
        return CWS_REAL(recvmmsg)(fd, messages, count, flags, timeout);
    if (timeout) {
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_sec += timeout->tv_sec;
        end.tv_nsec += timeout->tv_nsec;
    }
    while (done < count) {
        ssize_t got = cws_hook_recvmsg(fd, &messages[done].msg_hdr, each);
        if (got < 0)
            break;
        messages[done++].msg_len = (unsigned)got;
        if (flags & MSG_WAITFORONE)
            each |= MSG_DONTWAIT;
        if (timeout && !time_left(&end, timeout)) /* looked at after a message only, as the kernel does */
            break;
    }
    if (done)
        errno = saved;
    return done ? (int)done : -1;
}

/* --- vmsplice ---------------------------------------------------------------------------------- */

static ssize_t call_vmsplice(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done)
{
    (void)done;
    return CWS_REAL(vmsplice)(t->fd, parts, (size_t)count, (unsigned)t->flags);
}

ssize_t cws_hook_vmsplice(int fd, const struct iovec *parts, size_t count, unsigned flags)
{
    if (count > IOV_MAX || !CWS_UNLIKELY(cws_buffers_any(parts, (int)count)))
        return CWS_REAL(vmsplice)(fd, parts, count, flags);
    struct cws_transfer t = {.call = call_vmsplice, .fd = fd};
    t.into = (CWS_REAL(fcntl)(fd, F_GETFL) & O_ACCMODE) == O_RDONLY;
    cws_buffers_classify(&t);
    t.flags = (int)(flags & ~(unsigned)SPLICE_F_GIFT); /* the pages stay the pager's */
    return cws_buffers_run(&t, parts, (int)count);
}
