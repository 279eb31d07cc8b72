/* store.c - an open store: told by its trailer, opened, referenced, closed; lookups of tensors and chunks, counters,
 * and whether the file has changed since. */
#include "store.h"
#include "store/base/file_version.h"
#include "store/base/os.h"
#include "store/base/own_fd.h"
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { TRAILER = CWS_TRAILER_BYTES };

static const char magic[8] = CWS_MAGIC;

int cws_store_probe_fd(int fd)
{
    struct stat st;
    uint8_t tail[TRAILER];
    size_t got;
    int code = cws_os_fstat(fd, &st);
    if (code)
        return code;
    if (!S_ISREG(st.st_mode) || st.st_size < TRAILER)
        return 0;
    code = cws_os_read_full(fd, tail, sizeof tail, (uint64_t)st.st_size - TRAILER, &got);
    if (code)
        return code == -EBADF ? 0 : code; /* opened write-only: nothing can be shown through it */
    return got == sizeof tail && memcmp(tail, magic, sizeof magic) == 0;
}

/* --- opening ----------------------------------------------------------------------------------- */

/* A store that lost its end has no trailer, but its front says what it was. */
static int without_trailer(const struct cws_store *s, uint64_t file_bytes, struct cws_error *err)
{
    static const char mark[] = CWS_FRONT_MARK;
    char front[8 + sizeof mark - 1];
    size_t got;
    if (cws_store_read_stored(s, front, sizeof front, 0, &got) == 0 && got == sizeof front &&
        memcmp(front + 8, mark, sizeof mark - 1) == 0)
        return cws_fail(err, CWS_E_TRUNCATED,
                        "%s: the file starts like a codecllm store but has no trailer at offset %" PRIu64
                        ": it was cut short or something was appended; copy or pack it again",
                        s->path, file_bytes < TRAILER ? 0 : file_bytes - TRAILER);
    return cws_fail(err, CWS_E_NOT_STORE, "%s: not a codecllm store (make one with: codecllm pack)", s->path);
}

static int check_trailer(const struct cws_store *s, uint64_t file_bytes, struct cws_error *err)
{
    const struct cws_trailer *t = &s->trailer;
    uint64_t at = file_bytes - TRAILER;
    if (memcmp(t->magic, magic, sizeof magic) != 0)
        return without_trailer(s, file_bytes, err);
    if (XXH3_64bits(t, offsetof(struct cws_trailer, trailer_xxh3)) != t->trailer_xxh3)
        return cws_fail(err, CWS_E_CORRUPT, "%s: offset %" PRIu64 ": the trailer fails its checksum", s->path, at);
    if (t->version != CWS_FORMAT_VERSION)
        return cws_fail(err, CWS_E_VERSION,
                        "%s: store version %u; this build reads version %u: pack the model again or use that build",
                        s->path, t->version, CWS_FORMAT_VERSION);
    if (t->incompat & ~CWS_INCOMPAT_KNOWN)
        return cws_fail(err, CWS_E_FEATURE,
                        "%s: the store needs feature bits 0x%" PRIx64 ", which this build lacks: use a newer codecllm",
                        s->path, t->incompat & ~CWS_INCOMPAT_KNOWN);
    if (t->file_bytes != file_bytes)
        return cws_fail(err, t->file_bytes > file_bytes ? CWS_E_TRUNCATED : CWS_E_CORRUPT,
                        "%s: the file has %" PRIu64 " bytes but was written with %" PRIu64, s->path, file_bytes,
                        t->file_bytes);
    if (t->trailer_bytes != TRAILER || t->reserved[0] || t->reserved[1])
        return cws_fail(err, CWS_E_CORRUPT,
                        "%s: offset %" PRIu64 ": the trailer has fields that version %u does not know", s->path, at,
                        CWS_FORMAT_VERSION);
    if (t->front_bytes < 8 + 2 || t->front_bytes > CWS_HEADER_BYTES_MAX + UINT64_C(8) ||
        t->front_bytes % CWS_CHUNK_ALIGN || t->index_offset % CWS_CHUNK_ALIGN || t->front_bytes > t->index_offset ||
        t->index_offset > at || t->index_bytes != at - t->index_offset ||
        t->index_bytes < sizeof(struct cws_index_header))
        return cws_fail(err, CWS_E_CORRUPT, "%s: offset %" PRIu64 ": the trailer's offsets do not fit the file",
                        s->path, at);
    return 0;
}

int cws_store_read_stored(const struct cws_store *s, void *dst, size_t bytes, uint64_t offset, size_t *out_got)
{
    if (!s->memory)
        return cws_os_read_full(s->fd, dst, bytes, offset, out_got);
    uint64_t size = (uint64_t)s->opened.st_size, left = offset < size ? size - offset : 0;
    *out_got = left < bytes ? (size_t)left : bytes;
    memcpy(dst, s->memory + (*out_got ? offset : 0), *out_got);
    return 0;
}

static int read_trailer(struct cws_store *s, struct cws_error *err)
{
    int code = s->memory ? 0 : cws_os_fstat(s->fd, &s->opened);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot stat", s->path);
    if (!s->memory && !S_ISREG(s->opened.st_mode))
        return cws_fail(err, CWS_E_NOT_STORE, "%s: not a regular file", s->path);
    uint64_t file_bytes = (uint64_t)s->opened.st_size;
    if (file_bytes < TRAILER)
        return without_trailer(s, file_bytes, err);
    size_t got;
    code = cws_store_read_stored(s, &s->trailer, TRAILER, file_bytes - TRAILER, &got);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot read offset %" PRIu64, s->path, file_bytes - TRAILER);
    if (got < TRAILER)
        return cws_fail(err, CWS_E_CHANGED, "%s: the file became shorter while it was opened", s->path);
    return check_trailer(s, file_bytes, err);
}

/* Takes over fd; memory: of `bytes` bytes instead, and fd is -1. */
static int open_owned(int fd, const uint8_t *memory, uint64_t bytes, const char *path, enum cws_io_engine io,
                      struct cws_store **out, struct cws_error *err)
{
    struct cws_store *s = calloc(1, sizeof *s);
    char *name = strdup(path);
    if (!s || !name) {
        free(s);
        free(name);
        if (fd >= 0)
            cws_os_close(fd);
        return cws_fail(err, -ENOMEM, "%s: not enough memory to open the store", path);
    }
    atomic_init(&s->refs, 1);
    s->fd = cws_own_fd_keep(fd);
    s->memory = memory;
    s->opened.st_size = (off_t)bytes;
    s->path = name;
    s->io = io;
    int code = read_trailer(s, err);
    if (!code)
        code = cws_store_load(s, err);
    if (code) {
        cws_store_close(s);
        return code;
    }
    *out = s;
    return 0;
}

int cws_store_open(const char *path, enum cws_io_engine io, struct cws_store **out, struct cws_error *err)
{
    *out = NULL;
    /* Not blocking: a FIFO would wait for a writer for ever. */
    int fd = cws_os_openat(AT_FDCWD, path, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0)
        return cws_fail_errno(err, -fd, "%s: cannot open", path);
    return open_owned(fd, NULL, 0, path, io, out, err);
}

/* Not a duplicate where that can be: whoever has fd may set O_DIRECT at any time, and every read would go by single
 * blocks. */
static int open_again(int fd)
{
    int own = cws_os_reopen(fd, O_RDONLY);
    return own < 0 ? cws_os_dup(fd) : own;
}

int cws_store_open_fd(int fd, const char *path, enum cws_io_engine io, struct cws_store **out, struct cws_error *err)
{
    *out = NULL;
    int own = open_again(fd);
    if (own == -EMFILE && cws_own_fd_raise()) {
        own = open_again(fd);
        cws_own_fd_lower();
    }
    if (own == -EMFILE)
        return cws_fail(err, own,
                        "%s: all descriptors that the process may have are open, and the packed file needs one: "
                        "allow more (ulimit -n), or save the model in fewer, larger files",
                        path);
    if (own < 0)
        return cws_fail_errno(err, -own, "%s: cannot duplicate the descriptor", path);
    return open_owned(own, NULL, 0, path, io, out, err);
}

int cws_store_open_memory(const void *data, uint64_t bytes, const char *name, struct cws_store **out,
                          struct cws_error *err)
{
    static const uint8_t nothing;
    *out = NULL;
    if (bytes > INT64_MAX)
        return cws_fail(err, CWS_E_RANGE, "%s: a store cannot have %" PRIu64 " bytes", name, bytes);
    return open_owned(-1, data && bytes ? data : &nothing, bytes, name, CWS_IO_AUTO, out, err);
}

void cws_store_retain(struct cws_store *s) { atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed); }

void cws_store_close(struct cws_store *s)
{
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (s->fd >= 0)
        cws_os_close(s->fd);
    cws_header_destroy(s->parsed);
    free(s->tensors);
    free(s->index);
    free(s->path);
    free(s);
}

/* --- the same file ----------------------------------------------------------------------------- */

bool cws_store_is_same(const struct cws_store *a, const struct cws_store *b)
{
    if (a == b || a->fd < 0 || b->fd < 0)
        return a == b;
    return cws_is_same_version(&a->opened, &b->opened) && memcmp(&a->trailer, &b->trailer, sizeof a->trailer) == 0;
}

uint64_t cws_store_tensor_key(const struct cws_store *s, const struct cws_tensor_info *tensor)
{
    if (s->fd < 0)
        return (uintptr_t)tensor;
    uint64_t file = (uint64_t)s->opened.st_ino * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)s->opened.st_dev << 32;
    return (file ^ s->trailer.trailer_xxh3) + (uint64_t)(tensor - s->tensors) * UINT64_C(0xd1b54a32d192ed03);
}

/* --- looking ----------------------------------------------------------------------------------- */

const char *cws_store_path(const struct cws_store *s) { return s->path; }
uint64_t cws_store_logical_bytes(const struct cws_store *s) { return s->trailer.logical_bytes; }
uint64_t cws_store_file_bytes(const struct cws_store *s) { return s->trailer.file_bytes; }
bool cws_store_is_lossy(const struct cws_store *s) { return s->trailer.incompat & CWS_INCOMPAT_LOSSY; }
const struct cws_trailer *cws_store_trailer(const struct cws_store *s) { return &s->trailer; }
size_t cws_store_tensor_count(const struct cws_store *s) { return s->tensor_count; }
uint64_t cws_store_chunk_count(const struct cws_store *s) { return s->chunk_count; }

const uint8_t *cws_store_header(const struct cws_store *s, uint64_t *out_header_bytes)
{
    *out_header_bytes = s->parsed->header_bytes;
    return s->header;
}

const struct cws_tensor_info *cws_store_tensor(const struct cws_store *s, size_t i)
{
    return i < s->tensor_count ? &s->tensors[i] : NULL;
}

const struct cws_tensor_info *cws_store_tensor_find(const struct cws_store *s, const char *name)
{
    return cws_store_tensor(s, cws_header_find(s->parsed, name));
}

const struct cws_tensor_info *cws_store_tensor_at(const struct cws_store *s, uint64_t offset)
{
    if (offset < s->parsed->header_bytes || offset >= s->trailer.logical_bytes)
        return NULL;
    /* the first tensor that ends behind offset: never one of no bytes */
    size_t low = 0, high = s->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (s->tensors[middle].end > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return &s->tensors[low];
}

const struct cws_tensor_info *cws_store_chunk_tensor(const struct cws_store *s, uint64_t chunk)
{
    size_t low = 0, high = s->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct cws_tensor_record *r = s->tensors[middle].record;
        if (r->first_chunk + r->chunk_count > chunk)
            high = middle;
        else
            low = middle + 1;
    }
    return &s->tensors[low];
}

uint64_t cws_store_chunk_begin(const struct cws_tensor_info *t, uint64_t chunk)
{
    return t->begin + (chunk - t->record->first_chunk) * t->record->chunk_bytes;
}

uint64_t cws_store_gap_end(const struct cws_store *s, uint64_t chunk)
{
    return chunk + 1 < s->chunk_count ? s->chunks[chunk + 1].offset : s->trailer.index_offset;
}

int cws_store_changed(const struct cws_store *s, struct cws_error *err)
{
    struct stat now;
    if (cws_os_fstat(s->fd, &now))
        return 0;
    const struct stat *then = &s->opened;
    if (now.st_size != then->st_size)
        return cws_fail(err, CWS_E_CHANGED, "%s: the file was %s while open (%" PRIu64 " bytes, now %" PRIu64 ")",
                        s->path, now.st_size < then->st_size ? "truncated" : "extended", (uint64_t)then->st_size,
                        (uint64_t)now.st_size);
    if (!cws_is_same_version(&now, then))
        return cws_fail(err, CWS_E_CHANGED, "%s: the file was rewritten while open", s->path);
    return 0;
}

void cws_store_counters_get(const struct cws_store *s, struct cws_store_counters *out)
{
    out->read_calls = atomic_load_explicit(&s->read_calls, memory_order_relaxed);
    out->read_bytes = atomic_load_explicit(&s->read_bytes, memory_order_relaxed);
    out->decoded_bytes = atomic_load_explicit(&s->decoded_bytes, memory_order_relaxed);
    out->chunks_decoded = atomic_load_explicit(&s->chunks_decoded, memory_order_relaxed);
}

const uint8_t *cws_store_table(const struct cws_store *s, const struct cws_tensor_info *t)
{
    return t->record->table == UINT32_MAX ? NULL : s->tables[t->record->table];
}
