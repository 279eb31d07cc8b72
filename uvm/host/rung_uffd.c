/* rung_uffd.c - the three userfaultfd rungs. They differ in where the descriptor comes from, and in whether the
 * kernel's own accesses fault. The descriptor is that of the view's channel (channel.h), registered for missing and
 * write-protect faults. UFFDIO_COPY publishes a block with write protection. */
#include "pager.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef UFFDIO_POISON /* Linux 6.6; older headers lack it */
#define UFFD_FEATURE_POISON (1 << 14)
struct uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

enum { RETRIES_MAX = 20000, RETRY_SLEEP_NS = 50000 };

/* --- the descriptor ---------------------------------------------------------------------------------- */

static int create_dev(void)
{
    int dev = cws_os_openat(AT_FDCWD, "/dev/userfaultfd", O_RDWR, 0);
    if (dev < 0)
        return dev;
    int fd = (int)CWS_SYSCALL(SYS_ioctl, dev, USERFAULTFD_IOC_NEW, (long)(O_CLOEXEC | O_NONBLOCK));
    cws_os_close(dev);
    return fd;
}
static int create_plain(void) { return (int)CWS_SYSCALL(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK); }
static int create_user(void) { return (int)CWS_SYSCALL(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY); }

static uint64_t features; /* what the kernel has of the ones we want; set by probe */

/* UFFDIO_API works once per descriptor, so the kernel's features were asked for with another one (probe). */
static int handshake(int fd, uint64_t want, uint64_t *out_have)
{
    struct uffdio_api api = {.api = UFFD_API, .features = want};
    int rc = cws_os_ioctl(fd, UFFDIO_API, &api);
    if (rc >= 0 && out_have)
        *out_have = api.features;
    return rc < 0 ? rc : 0;
}

static int enroll(int fd, void *base, size_t bytes)
{
    struct uffdio_register r = {
        .range = {(uintptr_t)base, bytes},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
    };
    int rc = cws_os_ioctl(fd, UFFDIO_REGISTER, &r);
    if (rc < 0)
        return rc;
    uint64_t need = (UINT64_C(1) << _UFFDIO_COPY) | (UINT64_C(1) << _UFFDIO_WRITEPROTECT) |
                    (UINT64_C(1) << _UFFDIO_WAKE);
    return (r.ioctls & need) == need ? 0 : -EOPNOTSUPP;
}

static int probe(const struct cws_rung *self, struct cws_error *err)
{
    uint64_t have = 0;
    int fd = self->create_uffd();
    if (fd < 0)
        return cws_fail_errno(err, -fd, "%s: no userfaultfd", self->name);
    int code = handshake(fd, 0, &have);
    cws_os_close(fd);
    if (code)
        return cws_fail_errno(err, -code, "%s: UFFDIO_API", self->name);
    if (!(have & UFFD_FEATURE_PAGEFAULT_FLAG_WP))
        return cws_fail(err, CWS_E_UNSUPPORTED,
                        "%s: this kernel cannot write-protect with userfaultfd (Linux 5.7 or later can)", self->name);
    features = have & (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_POISON);

    /* A page is really put there: seccomp and odd kernels fail late. */
    const size_t bytes = CWS_PAGE_BYTES;
    uint8_t page[CWS_BLOCK_BYTES_MIN]; /* no page is larger; pager.c sees to it */
    memset(page, 0x5a, bytes);
    long at = cws_view_memory(NULL, bytes, PROT_READ, 0, 0); /* which is empty, also after mlockall(MCL_FUTURE) */
    fd = self->create_uffd();
    code = at < 0 && at > -4096 ? (int)at : fd < 0 ? fd : handshake(fd, features, NULL);
    if (!code)
        code = enroll(fd, (void *)at, bytes);
    struct uffdio_copy copy = {.dst = (uint64_t)at, .src = (uintptr_t)page, .len = bytes, .mode = UFFDIO_COPY_MODE_WP};
    if (!code)
        code = cws_os_ioctl(fd, UFFDIO_COPY, &copy);
    if (!code && memcmp((void *)at, page, bytes) != 0)
        code = -EIO;
    if (at > 0)
        cws_sys_munmap((void *)at, bytes);
    if (fd >= 0)
        cws_os_close(fd);
    return code ? cws_fail_errno(err, -code, "%s: a trial page could not be served", self->name) : 0;
}

/* --- a view ------------------------------------------------------------------------------------------ */

static int create_ready(void)
{
    int fd = cws_pager.rung->create_uffd();
    int code = fd < 0 ? fd : handshake(fd, features, NULL);
    if (code && fd >= 0)
        cws_os_close(fd);
    return code ? code : fd;
}

static int view_open(struct cws_view *v, struct cws_error *err)
{
    int code = cws_channel_open(v, create_ready);
    if (code)
        return cws_fail_errno(err, -code, "cannot open a userfaultfd for a view");
    code = enroll(v->uffd, v->base, v->bytes);
    /* A child that is made past our fork handlers must crash on a view rather than read zeros. */
    if (!code)
        code = cws_sys_madvise(v->base, v->bytes, MADV_DONTFORK);
    if (code)
        return cws_fail_errno(err, -code, "cannot register %zu bytes with userfaultfd", v->bytes);
    return 0;
}

static void view_close(struct cws_view *v) { cws_channel_close(v); }

static void wake(struct cws_view *v, size_t begin, size_t end)
{
    struct uffdio_range range = {(uintptr_t)v->base + begin, end - begin};
    int code = v->uffd >= 0 && end > begin ? cws_os_ioctl(v->uffd, UFFDIO_WAKE, &range) : 0;
    if (code < 0)
        cws_die("UFFDIO_WAKE failed (errno %d): a thread that touches a view would wait for ever", -code);
}

/* One ioctl on [at, at + len); *out_done: bytes it did. */
struct uffd_piece {
    struct cws_view *v;
    const uint8_t *from; /* for a copy: what goes to `begin` */
    size_t begin;
    bool writable;
};
typedef int piece_fn(const struct uffd_piece *p, size_t at, size_t len, size_t *out_done);

static int copy_piece(const struct uffd_piece *p, size_t at, size_t len, size_t *out_done)
{
    struct uffdio_copy copy = {
        .dst = (uintptr_t)p->v->base + at,
        .src = (uintptr_t)p->from + (at - p->begin),
        .len = len,
        .mode = p->writable ? 0 : UFFDIO_COPY_MODE_WP,
    };
    int rc = cws_os_ioctl(p->v->uffd, UFFDIO_COPY, &copy);
    *out_done = copy.copy > 0 ? (size_t)copy.copy : 0;
    return rc;
}

static int poison_piece(const struct uffd_piece *p, size_t at, size_t len, size_t *out_done)
{
    struct uffdio_poison poison = {.range = {(uintptr_t)p->v->base + at, len}};
    int rc = cws_os_ioctl(p->v->uffd, UFFDIO_POISON, &poison);
    *out_done = poison.updated > 0 ? (size_t)poison.updated : 0;
    return rc;
}

static int allow_piece(const struct uffd_piece *p, size_t at, size_t len, size_t *out_done)
{
    struct uffdio_writeprotect allow = {.range = {(uintptr_t)p->v->base + at, len}};
    int rc = cws_os_ioctl(p->v->uffd, UFFDIO_WRITEPROTECT, &allow);
    *out_done = rc == 0 ? len : 0;
    return rc;
}

/* Does [begin, end), which is one run of mapped pages as far as we know. Pages that are there already or that were
 * unmapped behind our back are skipped. 0 or -errno. */
static int do_run(const struct uffd_piece *p, size_t begin, size_t end, piece_fn *fn)
{
    bool skipped = false;
    unsigned retries = 0;
    size_t len = end - begin;
    for (size_t at = begin; at < end;) {
        size_t done = 0;
        if (len > end - at)
            len = end - at;
        int rc = fn(p, at, len, &done);
        at += done;
        if (done || rc >= 0) { /* a page that is present in the middle ends the call early with EAGAIN */
            retries = 0;
            continue;
        }
        switch (rc) {
        case -EEXIST:
            at += CWS_PAGE_BYTES;
            skipped = true;
            break;
        case -ENOENT: /* the range is cut into several mappings, or the page is no longer ours */
        case -EINVAL:
            if (len > CWS_PAGE_BYTES) {
                len = len / 2 / CWS_PAGE_BYTES * CWS_PAGE_BYTES;
            } else {
                at += CWS_PAGE_BYTES;
                skipped = true;
            }
            break;
        case -EAGAIN: {
            struct timespec pause = {.tv_nsec = RETRY_SLEEP_NS};
            if (++retries > RETRIES_MAX)
                return rc;
            CWS_SYSCALL(SYS_nanosleep, &pause, (void *)0);
            break;
        }
        case -ESRCH: /* the process is ending; who would still wait finds nothing, and asks again */
            wake(p->v, begin, end);
            return 0;
        default: return rc;
        }
        if (rc != -ENOENT && rc != -EINVAL)
            len = end - at;
    }
    if (skipped)
        wake(p->v, begin, end);
    return 0;
}

static int publish(struct cws_view *v, struct cws_decoder_slot *s, size_t begin, size_t end, bool writable,
                   bool missing_only)
{
    struct uffd_piece p = {.v = v, .from = s->staging, .begin = begin, .writable = writable};
    size_t from, to;
    int prot, code = 0;
    (void)missing_only; /* a copy never replaces a page */
    for (size_t at = begin; !code && cws_page_run(v, at, end, &from, &to, &prot); at = to)
        code = do_run(&p, from, to, copy_piece);
    return code;
}

static int drop(struct cws_view *v, size_t begin, size_t end)
{
    size_t from, to;
    int prot;
    bool some = false;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to, some = true) {
        int code = cws_sys_madvise(v->base + from, to - from, MADV_DONTNEED);
        if (code == -EINVAL) /* the program locked them in memory */
            code = cws_sys_madvise(v->base + from, to - from, MADV_DONTNEED_LOCKED);
        if (!code)
            continue;
        if (some)
            cws_die("pages of a view could not be dropped (errno %d)", -code);
        return code;
    }
    return 0;
}

static void allow_write(struct cws_view *v, size_t begin, size_t end)
{
    struct uffd_piece p = {.v = v};
    size_t from, to;
    int prot;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to) {
        int code = do_run(&p, from, to, allow_piece);
        if (code)
            cws_die("UFFDIO_WRITEPROTECT failed (errno %d): a thread that writes to a view would wait for ever", -code);
    }
}

static void poison(struct cws_view *v, size_t begin, size_t end)
{
    struct uffd_piece p = {.v = v};
    size_t from, to;
    int prot;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to) {
        if (!(features & UFFD_FEATURE_POISON) || do_run(&p, from, to, poison_piece))
            cws_rung_map_hole(v, from, to);
    }
    wake(v, begin, end);
}

static int protect(struct cws_view *v, size_t begin, size_t end, int prot, unsigned state)
{
    (void)state; /* write protection of clean pages is apart from the mapping's */
    return cws_sys_mprotect(v->base + begin, end - begin, prot);
}

#define UFFD_RUNG(variable, text, create)                                                                              \
    const struct cws_rung variable = {.name = (text),                                                                  \
                                      .userfault = true,                                                               \
                                      .probe = probe,                                                                  \
                                      .open = view_open,                                                               \
                                      .close = view_close,                                                             \
                                      .publish = publish,                                                              \
                                      .drop = drop,                                                                    \
                                      .poison = poison,                                                                \
                                      .allow_write = allow_write,                                                      \
                                      .wake = wake,                                                                    \
                                      .protect = protect,                                                              \
                                      .create_uffd = (create)}
UFFD_RUNG(cws_rung_uffd_dev, "uffd-dev", create_dev);
UFFD_RUNG(cws_rung_uffd, "uffd", create_plain);
UFFD_RUNG(cws_rung_uffd_user, "uffd-user", create_user);
