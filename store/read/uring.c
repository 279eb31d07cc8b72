/* uring.c - the engine that reads with io_uring. A ring with SINGLE_ISSUER and DEFER_TASKRUN belongs to the
 * thread that made it, and a reader may move between threads: the ring is made by the thread that submits first, and
 * made again when another thread comes. */
#include "store/base/os.h"
#include "engine.h"

#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct cws_uring {
    struct io_uring ring;
    bool alive;      /* ring is initialised */
    bool registered; /* the staging is buffer 0..n-1 of the ring */
    int owner_tid;   /* of the thread that made the ring */
    int failed;      /* 0, or why nothing can be read any more */
    unsigned queued; /* prepared, not yet accepted by the kernel */
    struct iovec *buffers;
};

enum { EXTENT_RETRIES_MAX = 1000 };

/* Rings that were unmapped: one that comes to lie where another thread's was is ordered behind its end. The kernel does
 * that, but ThreadSanitizer does not see the library map and unmap. */
static atomic_uint ended;

/* The flags are asked for, then not: kernels before 6.1 and some sandboxes refuse them. */
static int ring_init(struct io_uring *ring, unsigned entries)
{
    struct io_uring_params with = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                            IORING_SETUP_SUBMIT_ALL};
    int code = io_uring_queue_init_params(entries, ring, &with);
    struct io_uring_params without = {0};
    if (code == -EINVAL)
        code = io_uring_queue_init_params(entries, ring, &without);
    (void)atomic_load_explicit(&ended, memory_order_acquire);
    return code;
}

static void ring_exit(struct io_uring *ring)
{
    atomic_fetch_add_explicit(&ended, 1, memory_order_release);
    io_uring_queue_exit(ring);
}

int cws_reader_probe_uring(void)
{
    struct io_uring ring;
    int code = ring_init(&ring, 1);
    if (code)
        return code;
    /* A ring may be granted and reading refused: that is seen by reading. Operation READ came later than rings. */
    struct io_uring_probe *probe = io_uring_get_probe_ring(&ring);
    code = probe && io_uring_opcode_supported(probe, IORING_OP_READ) &&
                   io_uring_opcode_supported(probe, IORING_OP_READ_FIXED)
               ? 0
               : -EOPNOTSUPP;
    io_uring_free_probe(probe);
    ring_exit(&ring);
    return code;
}

int cws_uring_create(struct cws_reader *r)
{
    int code = cws_reader_probe_uring();
    if (code)
        return code;
    struct cws_uring *u = calloc(1, sizeof *u);
    struct iovec *buffers = calloc(r->slot_count, sizeof *buffers);
    if (!u || !buffers) {
        free(u);
        free(buffers);
        return -ENOMEM;
    }
    u->buffers = buffers;
    r->uring = u;
    return 0;
}

/* Makes the ring this thread's own. Nothing is in flight. */
static int ring_claim(struct cws_reader *r)
{
    struct cws_uring *u = r->uring;
    int tid = cws_os_gettid();
    if (u->alive && u->owner_tid == tid)
        return 0;
    if (u->alive)
        ring_exit(&u->ring);
    u->alive = false;
    int code = ring_init(&u->ring, r->slot_count);
    if (code)
        return code;
    u->alive = true;
    u->owner_tid = tid;
    u->queued = 0;
    for (unsigned i = 0; i < r->slot_count; i++)
        u->buffers[i] = (struct iovec){.iov_base = r->slots[i].buffer, .iov_len = r->slot_bytes};
    /* Refused when RLIMIT_MEMLOCK is too small: reading works without, a little slower. */
    u->registered = io_uring_register_buffers(&u->ring, u->buffers, r->slot_count) == 0;
    return 0;
}

/* Prepares what is still missing of a slot. */
static bool queue_rest(struct cws_reader *r, unsigned slot)
{
    struct cws_uring *u = r->uring;
    struct cws_slot *s = &r->slots[slot];
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe)
        return false;
    bool direct = atomic_load_explicit(&r->direct, memory_order_relaxed);
    int fd = direct ? r->direct_fd : r->fd;
    unsigned bytes = (unsigned)(s->bytes - s->got);
    if (u->registered)
        io_uring_prep_read_fixed(sqe, fd, s->buffer + s->got, bytes, s->offset + s->got, (int)slot);
    else
        io_uring_prep_read(sqe, fd, s->buffer + s->got, bytes, s->offset + s->got);
    io_uring_sqe_set_data64(sqe, slot);
    u->queued++;
    return true;
}

static void finish(struct cws_reader *r, struct cws_slot *s)
{
    cws_reader_finish_slot(r, s);
    s->state = CWS_SLOT_DONE;
}

static void complete(struct cws_reader *r, unsigned slot, int result)
{
    struct cws_slot *s = &r->slots[slot];
    bool direct = atomic_load_explicit(&r->direct, memory_order_relaxed);
    bool again = false;
    if (result > 0) {
        s->got += (size_t)result;
        if (s->got < s->needed) {
            if (direct) /* the rest has to start on a block again */
                s->got -= s->got % CWS_DIRECT_ALIGN;
            again = true;
        }
    } else if (result == -EINTR || result == -EAGAIN) {
        again = true;
    } else if (result == -EINVAL && direct) {
        atomic_store(&r->direct, false); /* accepted at open, refused at read: some file systems do */
        again = true;
    }
    /* 0 is the end of the file, or says so; any other error may be the ring's own. pread decides both. */
    if (!again || ++s->retries > EXTENT_RETRIES_MAX || !queue_rest(r, slot))
        finish(r, s);
}

/* The ring stopped working with extents in flight. The kernel may still write into their buffers, so all buffers move:
 * what was read is copied, what was in flight is read again by pread. */
static void ring_abandon(struct cws_reader *r)
{
    struct cws_uring *u = r->uring;
    uint8_t *fresh = mmap(NULL, r->staging_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED) {
        u->failed = -ENOMEM;
    } else {
        memcpy(fresh, r->staging, r->staging_bytes);
        munmap(r->staging, r->staging_bytes);
        r->staging = fresh;
    }
    ring_exit(&u->ring);
    u->alive = false;
    for (unsigned i = 0; i < r->slot_count; i++) {
        struct cws_slot *s = &r->slots[i];
        s->buffer = r->staging + i * r->slot_bytes;
        if (s->state != CWS_SLOT_IN_FLIGHT)
            continue;
        s->got = 0;
        s->code = u->failed;
        if (u->failed)
            s->state = CWS_SLOT_DONE;
        else
            finish(r, s);
    }
    if (!u->failed)
        r->engine = &cws_engine_plain;
}

/* Hands what is prepared to the kernel. Negative: -errno; 0 may also mean that nothing was taken. */
static int flush(struct cws_uring *u)
{
    int taken = io_uring_submit(&u->ring);
    if (taken > 0)
        u->queued -= (unsigned)taken < u->queued ? (unsigned)taken : u->queued;
    return taken;
}

static bool transient(int code) { return code == -EINTR || code == -EAGAIN || code == -EBUSY; }

static void uring_submit(struct cws_reader *r, unsigned slot)
{
    struct cws_uring *u = r->uring;
    if (u->failed || ring_claim(r) || !queue_rest(r, slot)) {
        struct cws_slot *s = &r->slots[slot];
        if (u->failed) {
            s->code = u->failed;
            s->state = CWS_SLOT_DONE;
        } else {
            finish(r, s);
        }
    }
}

static void uring_wait(struct cws_reader *r, unsigned slot)
{
    struct cws_uring *u = r->uring;
    struct cws_slot *s = &r->slots[slot];
    unsigned retries = 0;
    while (s->state != CWS_SLOT_DONE) {
        int code = u->queued ? flush(u) : 1;
        if (code > 0 || code == -EBUSY) { /* EBUSY: completions have to be taken first */
            struct io_uring_cqe *cqe;
            code = io_uring_wait_cqe_nr(&u->ring, &cqe, 1);
            if (code == 0) {
                unsigned done_slot = (unsigned)io_uring_cqe_get_data64(cqe);
                int result = cqe->res;
                io_uring_cqe_seen(&u->ring, cqe);
                complete(r, done_slot, result);
                continue;
            }
        }
        if ((code < 0 && !transient(code)) || ++retries > EXTENT_RETRIES_MAX) {
            ring_abandon(r);
            return;
        }
    }
    if (u->queued) /* keep the disk busy while the caller decodes; a failure shows at the next wait */
        flush(u);
}

static void uring_after_fork(struct cws_reader *r)
{
    r->uring = NULL; /* ring, memory and completions are the parent's */
}

static void uring_destroy(struct cws_reader *r)
{
    if (r->uring->alive)
        ring_exit(&r->uring->ring);
    free(r->uring->buffers);
    free(r->uring);
}

const struct cws_reader_engine cws_engine_uring = {
    "io_uring", "io_uring+direct", uring_submit, uring_wait, uring_after_fork, uring_destroy,
};
