/* cursor.c - a cursor: reads chunks into its slots, checks them and decodes them into the caller's memory. It runs
 * inside page-fault handlers, so everything is allocated in cws_store_cursor_create(). */
#include "store/format/checksum.h"
#include "internal.h"
#include "store/base/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEPTH_MAX = 256,
    TABLES_KEPT = 8, /* decode tables are built when met: one for each tensor of a hostile file would be 160 times its
                      * size */
    GAP_MAX = 2 * CWS_CHUNK_ALIGN,
};

struct kept_table {
    struct cws_decode_table *table;
    uint32_t id; /* UINT32_MAX: none */
};

struct cws_store_cursor {
    struct cws_store *store;
    struct cws_reader *reader;
    struct cws_decode_scratch *scratch;
    struct kept_table tables[TABLES_KEPT];
    unsigned next_table; /* to be replaced */
    unsigned depth;
    /* The last chunk that was checked stays in its slot, for reads smaller than a chunk. */
    uint64_t kept_chunk; /* UINT64_MAX: none */
    unsigned kept_slot;
    const uint8_t *kept_stored;
};

int cws_store_cursor_create(const struct cws_store *s, unsigned depth, struct cws_store_cursor **out,
                            struct cws_error *err)
{
    int code = 0;
    *out = NULL;
    struct cws_store_cursor *c = calloc(1, sizeof *c);
    if (!c)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for a cursor", s->path);
    c->store = (struct cws_store *)s; /* for the counters only */
    c->kept_chunk = UINT64_MAX;
    c->depth = depth < 1 ? 1 : depth > DEPTH_MAX ? DEPTH_MAX : depth;
    for (unsigned i = 0; i < TABLES_KEPT && i < s->table_count; i++) {
        c->tables[i].table = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
        c->tables[i].id = UINT32_MAX;
        if (!c->tables[i].table)
            code = -ENOMEM;
    }
    if (!code)
        code = cws_decode_scratch_create(&c->scratch);
    if (code) {
        cws_fail(err, code, "%s: not enough memory for a cursor", s->path);
    } else {
        struct cws_reader_options how = {
            .engine = s->io,
            .slots = c->depth,
            .extent_bytes = s->stored_max + (size_t)GAP_MAX,
            .file_bytes = s->trailer.file_bytes,
            .memory = s->memory,
        };
        code = cws_reader_create(s->fd, &how, &c->reader, err);
    }
    if (code) {
        cws_store_cursor_destroy(c);
        return code;
    }
    *out = c;
    return 0;
}

void cws_store_cursor_destroy(struct cws_store_cursor *c)
{
    if (!c)
        return;
    cws_reader_destroy(c->reader);
    cws_decode_scratch_destroy(c->scratch);
    for (unsigned i = 0; i < TABLES_KEPT; i++)
        free(c->tables[i].table);
    free(c);
}

void cws_store_cursor_after_fork(struct cws_store_cursor *c) { cws_reader_after_fork(c->reader); }

unsigned cws_cursor_depth(const struct cws_store_cursor *c) { return c->depth; }

void cws_cursor_drain(struct cws_store_cursor *c)
{
    cws_reader_drain(c->reader);
    c->kept_chunk = UINT64_MAX;
}

/* --- one chunk ----------------------------------------------------------------------------------- */

void cws_cursor_expect(const struct cws_store_cursor *c, uint64_t first, uint64_t end)
{
    const struct cws_chunk_record *chunks = c->store->chunks;
    uint64_t begin = chunks[first].offset;
    cws_reader_expect(c->reader, begin, chunks[end - 1].offset + chunks[end - 1].stored_bytes - begin);
}

void cws_cursor_start(struct cws_store_cursor *c, unsigned slot, uint64_t chunk, bool with_gap)
{
    struct cws_store *s = c->store;
    const struct cws_chunk_record *r = &s->chunks[chunk];
    uint64_t end = with_gap ? cws_store_gap_end(s, chunk) : r->offset + r->stored_bytes;
    if (c->kept_chunk != UINT64_MAX && c->kept_slot == slot)
        c->kept_chunk = UINT64_MAX;
    cws_reader_submit(c->reader, slot, r->offset, end - r->offset);
    atomic_fetch_add_explicit(&s->read_calls, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->read_bytes, end - r->offset, memory_order_relaxed);
}

/* "PATH: tensor "T": WHAT in chunk N (file offset A, logical offset B)". */
static int chunk_fail(const struct cws_store *s, const struct cws_tensor_info *t, uint64_t chunk, int code,
                      const char *what, struct cws_error *err)
{
    char shown[CWS_NAME_SHOWN_BYTES];
    return cws_fail(
        err, code, "%s: tensor \"%s\": %s in chunk %" PRIu64 " (file offset %" PRIu64 ", logical offset %" PRIu64 ")",
        s->path, cws_name_shown(t->name, shown), what, chunk, s->chunks[chunk].offset, cws_store_chunk_begin(t, chunk));
}

int cws_cursor_check(struct cws_store_cursor *c, unsigned slot, const struct cws_tensor_info *t, uint64_t chunk,
                     bool with_gap, const uint8_t **out_stored, struct cws_error *err)
{
    const struct cws_store *s = c->store;
    const struct cws_chunk_record *r = &s->chunks[chunk];
    const uint8_t *stored = NULL;
    bool traced = CWS_TRACE_BEGIN(.kind = CWS_TRACE_READ, .tensor = t->name, .bytes = r->stored_bytes, .index = chunk);
    int code = cws_reader_wait(c->reader, slot, &stored);
    if (!code && cws_checksum(stored, r->stored_bytes, chunk) != r->xxh3)
        code = CWS_E_CORRUPT;
    cws_trace_end(CWS_TRACE_READ, traced);
    if (code && code != CWS_E_SHORT_READ && code != CWS_E_CORRUPT)
        return chunk_fail(s, t, chunk, code, cws_strerror(code), err);
    for (uint64_t i = r->stored_bytes; !code && with_gap && i < cws_store_gap_end(s, chunk) - r->offset; i++)
        if (stored[i])
            return chunk_fail(s, t, chunk, CWS_E_CORRUPT, "bytes that are not zero behind the data", err);
    if (!code) {
        *out_stored = stored;
        return 0;
    }
    int changed = cws_store_changed(s, err);
    if (changed)
        return changed;
    return chunk_fail(s, t, chunk, code,
                      code == CWS_E_CORRUPT ? "the stored bytes fail their checksum" : "the file ends", err);
}

static int table_for(struct cws_store_cursor *c, uint32_t id, const struct cws_decode_table **out,
                     struct cws_error *err)
{
    *out = NULL;
    if (id == UINT32_MAX)
        return 0;
    for (unsigned i = 0; i < TABLES_KEPT; i++) {
        if (c->tables[i].table && c->tables[i].id == id) {
            *out = c->tables[i].table;
            return 0;
        }
    }
    struct kept_table *k = &c->tables[c->next_table];
    unsigned kept = c->store->table_count < TABLES_KEPT ? c->store->table_count : TABLES_KEPT;
    c->next_table = (c->next_table + 1) % kept;
    k->id = UINT32_MAX;
    int code = cws_decode_table_init(k->table, c->store->tables[id], err);
    if (code)
        return code;
    k->id = id;
    *out = k->table;
    return 0;
}

int cws_cursor_decode(struct cws_store_cursor *c, const struct cws_tensor_info *t, uint64_t chunk,
                      const uint8_t *stored, size_t begin, size_t end, void *dst, struct cws_error *err)
{
    struct cws_store *s = c->store;
    const struct cws_chunk_record *r = &s->chunks[chunk];
    struct cws_error why = {0};
    struct cws_chunk_context context = {
        .dtype = t->dtype,
        .codec = (enum cws_codec_id)r->codec,
        .row_elems = t->record->row_elems,
        .first_elem = (chunk - t->record->first_chunk) * (t->record->chunk_bytes / cws_dtype_unit(t->dtype)),
    };
    bool traced = CWS_TRACE_BEGIN(.kind = CWS_TRACE_DECODE, .tensor = t->name, .bytes = end - begin, .index = chunk);
    int code = table_for(c, r->codec == CWS_CODEC_RAW ? UINT32_MAX : t->record->table, &context.table, &why);
    if (!code)
        code = cws_chunk_decode(&context, stored, r->stored_bytes, r->logical_bytes, begin, end, dst, c->scratch, &why);
    cws_trace_end(CWS_TRACE_DECODE, traced);
    if (code)
        return chunk_fail(s, t, chunk, code, why.message[0] ? why.message : cws_strerror(code), err);
    atomic_fetch_add_explicit(&s->decoded_bytes, end - begin, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->chunks_decoded, 1, memory_order_relaxed);
    return 0;
}

/* --- a range ------------------------------------------------------------------------------------- */

/* Decodes the part of a checked chunk that lies in the logical range [begin, end); dst is where `begin` goes. */
static int decode_part(struct cws_store_cursor *c, const struct cws_tensor_info *t, uint64_t chunk,
                       const uint8_t *stored, uint64_t begin, uint64_t end, uint8_t *dst, struct cws_error *err)
{
    uint64_t first = cws_store_chunk_begin(t, chunk);
    uint64_t last = first + c->store->chunks[chunk].logical_bytes;
    uint64_t from = begin > first ? begin : first;
    uint64_t to = end < last ? end : last;
    return cws_cursor_decode(c, t, chunk, stored, from - first, to - first, dst + (from - begin), err);
}

static uint64_t chunk_at(const struct cws_store *s, uint64_t offset)
{
    const struct cws_tensor_info *t = cws_store_tensor_at(s, offset);
    return t->record->first_chunk + (offset - t->begin) / t->record->chunk_bytes;
}

/* [begin, end) is not empty and lies behind the header: the chunks that it touches follow each other. */
static int read_chunks(struct cws_store_cursor *c, uint64_t begin, uint64_t end, uint8_t *dst, struct cws_error *err)
{
    const struct cws_store *s = c->store;
    uint64_t chunk = chunk_at(s, begin), stop = chunk_at(s, end - 1) + 1;
    const struct cws_tensor_info *t = cws_store_tensor_at(s, begin);
    int code = 0;
    if (c->kept_chunk == chunk) {
        code = decode_part(c, t, chunk, c->kept_stored, begin, end, dst, err);
        chunk++;
    }
    unsigned slot = (c->kept_slot + 1) % c->depth;
    for (uint64_t started = chunk; chunk < stop && !code; chunk++) {
        for (; started < stop && started < chunk + c->depth; started++)
            cws_cursor_start(c, (unsigned)((slot + (started - chunk)) % c->depth), started, /* with_gap */ false);
        while (t->record->first_chunk + t->record->chunk_count <= chunk)
            t++;
        const uint8_t *stored;
        code = cws_cursor_check(c, slot, t, chunk, /* with_gap */ false, &stored, err);
        if (code)
            break;
        c->kept_slot = slot;
        c->kept_stored = stored;
        c->kept_chunk = chunk; /* last: a fork may come anywhere */
        code = decode_part(c, t, chunk, stored, begin, end, dst, err);
        slot = (slot + 1) % c->depth;
    }
    if (code)
        cws_cursor_drain(c);
    return code;
}

int cws_store_read(struct cws_store_cursor *c, uint64_t begin, uint64_t end, void *dst, struct cws_error *err)
{
    const struct cws_store *s = c->store;
    uint64_t header_bytes = s->parsed->header_bytes;
    if (begin > end || end > s->trailer.logical_bytes)
        return cws_fail(err, CWS_E_RANGE,
                        "%s: bytes [%" PRIu64 ", %" PRIu64 ") are outside the logical file of %" PRIu64 " bytes",
                        s->path, begin, end, s->trailer.logical_bytes);
    uint8_t *to = dst;
    if (begin < header_bytes) {
        uint64_t stop = end < header_bytes ? end : header_bytes;
        memcpy(to, s->header + begin, stop - begin);
        to += stop - begin;
        begin = stop;
    }
    return begin < end ? read_chunks(c, begin, end, to, err) : 0;
}
