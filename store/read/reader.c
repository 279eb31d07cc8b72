/* reader.c - a reader: its slots and their memory, the choice of its engine, and the reads of last resort. */
#include "engine.h"
#include "store/base/memory_limit.h"
#include "store/base/os.h"
#include "store/base/own_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

/* --- plain pread: also how every engine ends when it is out of ideas --------------------------- */

void cws_reader_finish_slot(struct cws_reader *r, struct cws_slot *s)
{
    s->code = 0;
    if (s->got >= s->needed)
        return;
    size_t more = 0;
    s->code = cws_os_read_full(r->fd, s->buffer + s->got, s->needed - s->got, s->offset + s->got, &more);
    s->got += more;
    if (!s->code && s->got < s->needed)
        s->code = CWS_E_SHORT_READ;
}

void cws_reader_read_slot(struct cws_reader *r, struct cws_slot *s)
{
    if (atomic_load_explicit(&r->direct, memory_order_relaxed)) {
        /* One attempt. What it leaves (an unaligned end, a short read) comes through the page cache. */
        ssize_t n = cws_os_pread(r->direct_fd, s->buffer, s->bytes, s->offset);
        if (n > 0)
            s->got = (size_t)n;
        else if (n == -EINVAL)
            atomic_store(&r->direct, false);
    }
    cws_reader_finish_slot(r, s);
}

static void plain_submit(struct cws_reader *r, unsigned slot)
{
    (void)r, (void)slot; /* read when waited for: there is nobody to do it meanwhile */
}

static void plain_wait(struct cws_reader *r, unsigned slot)
{
    cws_reader_read_slot(r, &r->slots[slot]);
    r->slots[slot].state = CWS_SLOT_DONE;
}

static void plain_after_fork(struct cws_reader *r) { r->uring = NULL; }

const struct cws_reader_engine cws_engine_plain = {
    "preadv", "preadv+direct", plain_submit, plain_wait, plain_after_fork, NULL,
};

/* --- memory: nothing is copied ---------------------------------------------------------------- */

static void memory_wait(struct cws_reader *r, unsigned slot)
{
    struct cws_slot *s = &r->slots[slot];
    if (s->offset > r->memory_bytes || s->needed > r->memory_bytes - s->offset)
        s->code = CWS_E_SHORT_READ;
    else
        s->buffer = (uint8_t *)r->memory + s->offset; /* only ever given out as const */
    s->state = CWS_SLOT_DONE;
}

static void memory_after_fork(struct cws_reader *r) { (void)r; }

static const struct cws_reader_engine engine_memory = {
    "memory", "memory", plain_submit, memory_wait, memory_after_fork, NULL,
};

/* --- the reader -------------------------------------------------------------------------------- */

enum { DIRECT_SLOTS_LEAST = 8 };

static bool wants_direct(const struct cws_reader_options *o)
{
    struct cws_memory_limit limit;
    if (o->direct != CWS_DIRECT_AUTO)
        return o->direct == CWS_DIRECT_ALWAYS;
    /* With few extents in flight the kernel's readahead is worth more than the copy it costs (bench_read). */
    if (o->slots < DIRECT_SLOTS_LEAST)
        return false;
    cws_memory_limit_get("", &limit);
    return o->file_bytes > limit.bytes / 2;
}

/* A second descriptor, because the buffered one is read without alignment. Where it cannot be had: -1, all is
 * buffered. */
static int open_direct(int fd)
{
    int direct = cws_os_reopen(fd, O_RDONLY | O_DIRECT);
    return direct < 0 ? -1 : cws_own_fd_keep(direct);
}

static int choose_engine(struct cws_reader *r, enum cws_io_engine engine, struct cws_error *err)
{
    r->engine = &cws_engine_plain;
    /* One extent at a time gains nothing from a ring: the same one system call, and one to wait. */
    if (engine == CWS_IO_URING || (engine == CWS_IO_AUTO && r->slot_count > 1)) {
        int code = cws_uring_create(r);
        if (!code) {
            r->engine = &cws_engine_uring;
            return 0;
        }
        if (engine == CWS_IO_URING)
            return cws_fail(err, CWS_E_UNSUPPORTED,
                            "CODEC_IO=uring: this system does not grant an io_uring (%s); use CODEC_IO=preadv",
                            cws_strerror(code));
    }
    if (r->slot_count > 1 && cws_pool_create(r) == 0)
        r->engine = &cws_engine_preadv;
    return 0;
}

int cws_reader_create(int fd, const struct cws_reader_options *options, struct cws_reader **out, struct cws_error *err)
{
    *out = NULL;
    struct cws_reader *r = calloc(1, sizeof *r);
    if (!r)
        return cws_fail(err, -ENOMEM, "not enough memory for a reader");
    r->engine = options->memory ? &engine_memory : &cws_engine_plain;
    r->fd = fd;
    r->direct_fd = !options->memory && wants_direct(options) ? open_direct(fd) : -1;
    atomic_init(&r->direct, r->direct_fd >= 0);
    r->slot_count = options->slots ? options->slots : 1;
    if (options->memory) {
        r->memory = options->memory;
        r->memory_bytes = options->file_bytes;
        r->slots = calloc(r->slot_count, sizeof *r->slots);
        if (!r->slots) {
            cws_reader_destroy(r);
            return cws_fail(err, -ENOMEM, "not enough memory for a reader");
        }
        *out = r;
        return 0;
    }
    r->slot_bytes = round_up(options->extent_bytes + CWS_STREAM_PAD, CWS_DIRECT_ALIGN) + 2 * (size_t)CWS_DIRECT_ALIGN;
    r->staging_bytes = r->slot_bytes * r->slot_count;
    r->slots = calloc(r->slot_count, sizeof *r->slots);
    r->staging = mmap(NULL, r->staging_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int code = 0;
    if (!r->slots || r->staging == MAP_FAILED)
        code = cws_fail(err, -ENOMEM, "not enough memory for %u read buffers of %zu bytes", r->slot_count,
                        r->slot_bytes);
    for (unsigned i = 0; !code && i < r->slot_count; i++)
        r->slots[i].buffer = r->staging + i * r->slot_bytes;
    if (!code)
        code = choose_engine(r, options->engine, err);
    if (code) {
        cws_reader_destroy(r);
        return code;
    }
    *out = r;
    return 0;
}

void cws_reader_destroy(struct cws_reader *r)
{
    if (!r)
        return;
    cws_reader_drain(r);
    if (r->uring) /* by what is there, not by engine: a ring that broke was replaced by plain pread */
        cws_engine_uring.destroy(r);
    if (r->pool)
        cws_engine_preadv.destroy(r);
    if (r->direct_fd >= 0)
        cws_os_close(r->direct_fd);
    if (r->staging && r->staging != MAP_FAILED)
        munmap(r->staging, r->staging_bytes);
    free(r->slots);
    free(r);
}

void cws_reader_submit(struct cws_reader *r, unsigned slot, uint64_t offset, size_t bytes)
{
    struct cws_slot *s = &r->slots[slot];
    uint64_t begin = offset, end = offset + bytes;
    if (atomic_load_explicit(&r->direct, memory_order_relaxed)) {
        begin = begin / CWS_DIRECT_ALIGN * CWS_DIRECT_ALIGN;
        end = round_up(end, CWS_DIRECT_ALIGN);
    }
    s->offset = begin;
    s->bytes = (size_t)(end - begin);
    s->skip = (size_t)(offset - begin);
    s->needed = s->skip + bytes;
    s->got = 0;
    s->code = 0;
    s->retries = 0;
    s->state = CWS_SLOT_IN_FLIGHT;
    r->engine->submit(r, slot);
}

void cws_reader_expect(const struct cws_reader *r, uint64_t offset, uint64_t bytes)
{
    if (!r->memory && !atomic_load_explicit(&r->direct, memory_order_relaxed))
        posix_fadvise(r->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

int cws_reader_wait(struct cws_reader *r, unsigned slot, const uint8_t **out_data)
{
    struct cws_slot *s = &r->slots[slot];
    if (s->state == CWS_SLOT_IN_FLIGHT)
        r->engine->wait(r, slot);
    if (s->state != CWS_SLOT_DONE)
        return CWS_E_BUG;
    *out_data = s->buffer + s->skip;
    return s->code;
}

void cws_reader_drain(struct cws_reader *r)
{
    for (unsigned i = 0; r->slots && i < r->slot_count; i++) {
        if (r->slots[i].state == CWS_SLOT_IN_FLIGHT && r->engine != &cws_engine_plain)
            r->engine->wait(r, i);
        r->slots[i].state = CWS_SLOT_IDLE;
    }
}

void cws_reader_after_fork(struct cws_reader *r)
{
    r->engine->after_fork(r);
    if (!r->memory)
        r->engine = &cws_engine_plain;
}

const char *cws_reader_engine(const struct cws_reader *r)
{
    return atomic_load(&r->direct) ? r->engine->direct_name : r->engine->name;
}
