/* index.c - the index of a store: everything that a reader must refuse before it trusts one. docs/format.md, "What
 * a reader must reject", has the list in the same order. Every count is checked against the bytes that are there before
 * it is multiplied or allocated. */
#include "store/format/content_hash.h"
#include "store/base/os.h"
#include "internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static int corrupt(const struct cws_store *s, struct cws_error *err, const char *what)
{
    return cws_fail(err, CWS_E_CORRUPT, "%s: the index at offset %" PRIu64 " is not valid: %s", s->path,
                    s->trailer.index_offset, what);
}

static int corrupt_tensor(const struct cws_store *s, struct cws_error *err, const char *name, const char *what)
{
    char shown[CWS_NAME_SHOWN_BYTES];
    return cws_fail(err, CWS_E_CORRUPT, "%s: the index at offset %" PRIu64 " is not valid: tensor \"%s\": %s", s->path,
                    s->trailer.index_offset, cws_name_shown(name, shown), what);
}

static bool all_zero(const uint8_t *p, size_t n)
{
    while (n && *p == 0)
        p++, n--;
    return n == 0;
}

/* A part of the file in private memory, checked against its checksum. */
static int load_part(const struct cws_store *s, const char *what, uint64_t offset, uint64_t bytes, uint64_t xxh3,
                     uint8_t **out, struct cws_error *err)
{
    size_t got;
    uint8_t *data = malloc(bytes);
    if (!data)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for the %s of %" PRIu64 " bytes", s->path, what, bytes);
    int code = cws_store_read_stored(s, data, bytes, offset, &got);
    if (code)
        cws_fail_errno(err, -code, "%s: cannot read the %s at offset %" PRIu64, s->path, what, offset);
    else if (got < bytes)
        code = cws_fail(err, CWS_E_CHANGED, "%s: the file became shorter while it was opened", s->path);
    else if (XXH3_64bits(data, bytes) != xxh3)
        code = cws_fail(err, CWS_E_CORRUPT, "%s: offset %" PRIu64 ": the %s fails its checksum", s->path, offset, what);
    if (code) {
        free(data);
        return code;
    }
    *out = data;
    return 0;
}

/* --- the parts of the index ------------------------------------------------------------------- */

static int split_index(struct cws_store *s, struct cws_error *err)
{
    struct cws_index_header h;
    uint64_t left = s->trailer.index_bytes - sizeof h;
    memcpy(&h, s->index, sizeof h);
    if (h.reserved)
        return corrupt(s, err, "a reserved field is not 0");
    if (h.header_bytes < 8 + 2 || h.header_bytes > CWS_HEADER_BYTES_MAX + UINT64_C(8) || h.header_bytes > left)
        return corrupt(s, err, "the original header does not fit");
    uint64_t padded = (h.header_bytes + 7) / 8 * 8;
    if (padded > left || !all_zero(s->index + sizeof h + h.header_bytes, padded - h.header_bytes))
        return corrupt(s, err, "the original header is not padded with zeros");
    left -= padded;
    /* 32-bit counts: cannot overflow */
    uint64_t tensor_bytes = (uint64_t)h.tensor_count * sizeof *s->records;
    uint64_t table_bytes = (uint64_t)h.table_count * sizeof *s->tables;
    if (tensor_bytes > left || table_bytes > left - tensor_bytes ||
        h.chunk_count != (left - tensor_bytes - table_bytes) / sizeof *s->chunks ||
        (left - tensor_bytes - table_bytes) % sizeof *s->chunks)
        return corrupt(s, err, "its counts do not fill it");
    const uint8_t *at = s->index + sizeof h;
    s->header = at;
    at += padded;
    s->records = (const void *)at;
    s->tensor_count = h.tensor_count;
    at += tensor_bytes;
    s->chunks = (const void *)at;
    s->chunk_count = h.chunk_count;
    at += h.chunk_count * sizeof *s->chunks;
    s->tables = (const void *)at;
    s->table_count = h.table_count;
    return cws_header_length(s->path, s->header, h.header_bytes, &left, NULL) || left != h.header_bytes
               ? corrupt(s, err, "the original header's own length disagrees")
               : 0;
}

static int check_tables(const struct cws_store *s, struct cws_error *err)
{
    if (!s->table_count)
        return 0;
    struct cws_decode_table *t = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
    if (!t)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for a decode table", s->path);
    int code = 0;
    for (uint32_t i = 0; i < s->table_count && !code; i++) {
        struct cws_error why = {0};
        if (cws_decode_table_init(t, s->tables[i], &why))
            code = cws_fail(err, CWS_E_CORRUPT, "%s: the index at offset %" PRIu64 " is not valid: code table %u: %s",
                            s->path, s->trailer.index_offset, i, why.message);
    }
    free(t);
    return code;
}

/* --- tensors and chunks ----------------------------------------------------------------------- */

/* NULL, or what is wrong with a tensor's record by itself. */
static const char *record_fault(const struct cws_store *s, const struct cws_tensor_record *r,
                                const struct cws_tensor_info *t)
{
    uint64_t bytes = t->end - t->begin;
    bool coded = r->codec == CWS_CODEC_SPLIT || r->codec == CWS_CODEC_QUANT;
    if (!all_zero(r->reserved, sizeof r->reserved))
        return "a reserved field is not 0";
    if (r->dtype != cws_dtype_code(t->dtype) && r->dtype != CWS_DTYPE_CODE_OTHER)
        return "its dtype is not the header's";
    if (r->codec > CWS_CODEC_QUANT)
        return "unknown codec";
    if (r->chunk_bytes == 0 || r->chunk_bytes > CWS_CHUNK_BYTES_MAX || r->chunk_bytes % 16 ||
        r->chunk_bytes % cws_dtype_unit(t->dtype))
        return "chunk_bytes is not allowed";
    if (r->chunk_count != bytes / r->chunk_bytes + (bytes % r->chunk_bytes != 0))
        return "its chunk count does not match its size";
    if (coded ? r->table >= s->table_count : r->table != UINT32_MAX)
        return "its code table is not allowed";
    if (coded && r->dtype == CWS_DTYPE_CODE_OTHER) /* its writer did not know the type: nothing but bytes */
        return "a codec for floats on a dtype that was not known";
    if (r->codec == CWS_CODEC_SPLIT && !cws_dtype_is_float(t->dtype))
        return "codec split on a dtype that is not a float";
    if (r->codec != CWS_CODEC_QUANT)
        return r->row_elems || r->quant_bits ? "quantisation fields without codec quant" : NULL;
    if (t->dtype != CWS_F16 && t->dtype != CWS_BF16 && t->dtype != CWS_F32)
        return "codec quant on a dtype it is not for";
    if ((r->quant_bits != 8 && r->quant_bits != 6) || r->row_elems == 0 || t->elems % r->row_elems)
        return "its quantisation fields are not allowed";
    return NULL;
}

static const char *chunk_fault(const struct cws_tensor_record *r, const struct cws_chunk_record *c, uint64_t logical,
                               uint64_t offset, uint64_t limit)
{
    if (!all_zero(c->reserved, sizeof c->reserved))
        return "a reserved field of a chunk is not 0";
    if (c->logical_bytes != logical)
        return "the chunks' sizes do not make up the tensor";
    if (c->codec != r->codec && c->codec != CWS_CODEC_RAW)
        return "a chunk's codec is not the tensor's";
    if (c->codec == CWS_CODEC_RAW ? c->stored_bytes != logical : c->stored_bytes == 0 || c->stored_bytes >= logical)
        return "a chunk's stored size is not allowed";
    if (c->offset != offset || c->offset > limit || c->stored_bytes > limit - c->offset)
        return "a chunk is not where it must be";
    return NULL;
}

static uint64_t align_up(uint64_t n) { return (n + CWS_CHUNK_ALIGN - 1) / CWS_CHUNK_ALIGN * CWS_CHUNK_ALIGN; }

/* The chunks of one tensor: in order, back to back. *at: where the next one must start; *chunk: its index. */
static int check_chunks(struct cws_store *s, struct cws_tensor_info *t, uint64_t *chunk, uint64_t *at,
                        struct cws_error *err)
{
    const struct cws_tensor_record *r = t->record;
    struct cws_hash128 sum = {0, 0};
    if (r->first_chunk != *chunk || r->chunk_count > s->chunk_count - *chunk)
        return corrupt_tensor(s, err, t->name, "its chunks are not those that follow the tensor before it");
    t->chunks = s->chunks + *chunk;
    uint64_t left = t->end - t->begin;
    for (uint64_t i = 0; i < r->chunk_count; i++) {
        const struct cws_chunk_record *c = &t->chunks[i];
        uint64_t logical = left < r->chunk_bytes ? left : r->chunk_bytes;
        const char *fault = chunk_fault(r, c, logical, *at, s->trailer.index_offset);
        if (fault)
            return corrupt_tensor(s, err, t->name, fault);
        cws_hash128_add(&sum, (struct cws_hash128){c->content_hash[0], c->content_hash[1]});
        t->stored_bytes += c->stored_bytes;
        s->stored_max = c->stored_bytes > s->stored_max ? c->stored_bytes : s->stored_max;
        s->logical_max = c->logical_bytes > s->logical_max ? c->logical_bytes : s->logical_max;
        *at = align_up(c->offset + c->stored_bytes);
        left -= logical;
    }
    *chunk += r->chunk_count;
    if (sum.lo != r->content_hash[0] || sum.hi != r->content_hash[1])
        return corrupt_tensor(s, err, t->name, "its content hash is not the sum of its chunks'");
    return 0;
}

static int check_tensors(struct cws_store *s, struct cws_error *err)
{
    struct cws_hash128 file_hash = {0, 0};
    uint64_t at = s->trailer.front_bytes, chunk = 0;
    bool lossy = false, types = false;
    for (size_t i = 0; i < s->tensor_count; i++) {
        struct cws_tensor_info *t = &s->tensors[i];
        const char *fault = record_fault(s, t->record, t);
        if (fault)
            return corrupt_tensor(s, err, t->name, fault);
        if (t->record->table != UINT32_MAX)
            t->stored_bytes += sizeof *s->tables;
        lossy |= t->record->codec == CWS_CODEC_QUANT;
        types |= t->record->dtype > CWS_F64;
        int code = check_chunks(s, t, &chunk, &at, err);
        if (code)
            return code;
        cws_content_hash_add(&file_hash, cws_content_key, t->record->content_hash, sizeof t->record->content_hash,
                             i * sizeof t->record->content_hash);
    }
    if (chunk != s->chunk_count)
        return corrupt(s, err, "there are chunks that belong to no tensor");
    if (file_hash.lo != s->trailer.content_hash[0] || file_hash.hi != s->trailer.content_hash[1])
        return corrupt(s, err, "the content hashes of the tensors do not make up that of the file");
    if (lossy != cws_store_is_lossy(s))
        return corrupt(s, err, "the lossy feature bit does not match the codecs");
    if (types != ((s->trailer.incompat & CWS_INCOMPAT_TYPES) != 0))
        return corrupt(s, err, "the feature bit of later dtypes does not match the dtypes");
    if (s->trailer.index_offset != at && s->trailer.index_offset != at + CWS_CHUNK_ALIGN)
        return corrupt(s, err, "it does not follow the chunks");
    return 0;
}

/* --- header and front ------------------------------------------------------------------------- */

static int list_tensors(struct cws_store *s, struct cws_error *err)
{
    const struct cws_header *h = s->parsed;
    if (h->tensor_count != s->tensor_count)
        return corrupt(s, err, "it does not have as many tensors as the original header");
    if (s->trailer.logical_bytes != h->header_bytes + h->data_bytes) /* both far below 2^63 */
        return corrupt(s, err, "the logical size is not the original header's");
    s->tensors = calloc(s->tensor_count + 1, sizeof *s->tensors);
    if (!s->tensors)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for %zu tensors", s->path, s->tensor_count);
    for (size_t i = 0; i < s->tensor_count; i++) {
        const struct cws_header_tensor *from = &h->tensors[i];
        s->tensors[i] = (struct cws_tensor_info){
            .name = from->name,
            .dtype = from->dtype,
            .dtype_name = from->dtype_name,
            .shape = from->shape,
            .ndim = from->ndim,
            .elems = from->elems,
            .begin = h->header_bytes + from->begin,
            .end = h->header_bytes + from->end,
            .record = &s->records[i],
        };
    }
    return 0;
}

/* What header-only tools are told must be what the store holds. */
static int check_front(const struct cws_store *s, const uint8_t *front, struct cws_error *err)
{
    static const char mark[] = CWS_FRONT_MARK;
    struct cws_error why = {0};
    uint64_t bytes;
    bool same = false;
    int code = cws_header_length(s->path, front, s->trailer.front_bytes, &bytes, &why);
    if (!code && (bytes != s->trailer.front_bytes || bytes < 8 + sizeof mark - 1 ||
                  memcmp(front + 8, mark, sizeof mark - 1) != 0))
        return cws_fail(err, CWS_E_CORRUPT, "%s: offset 0: the front does not say that this is a codecllm store",
                        s->path);
    if (!code)
        code = cws_header_compare(s->path, front, bytes, s->parsed, &same, &why);
    if (code)
        return cws_fail(err, code == CWS_E_INPUT ? CWS_E_CORRUPT : code, "%s", why.message);
    bool plain_size = s->trailer.front_bytes + s->parsed->data_bytes == s->trailer.file_bytes;
    if (!same)
        return cws_fail(err, CWS_E_CORRUPT, "%s: offset 0: the front does not list the tensors of the original header",
                        s->path);
    if (plain_size) /* a plain loader would take the compressed bytes for weights */
        return cws_fail(err, CWS_E_CORRUPT, "%s: the file's size is what its front implies; a store's must not be",
                        s->path);
    return 0;
}

int cws_store_load(struct cws_store *s, struct cws_error *err)
{
    const struct cws_trailer *t = &s->trailer;
    struct cws_error why = {0};
    uint8_t *front = NULL;
    int code = load_part(s, "index", t->index_offset, t->index_bytes, t->index_xxh3, &s->index, err);
    if (!code)
        code = split_index(s, err);
    if (code)
        return code;
    uint64_t header_bytes;
    memcpy(&header_bytes, s->index, sizeof header_bytes);
    code = cws_header_parse(s->path, s->header, header_bytes, UINT64_MAX, &s->parsed, &why);
    if (code)
        return cws_fail(err, code == CWS_E_INPUT ? CWS_E_CORRUPT : code, "%s", why.message);
    if (!code)
        code = list_tensors(s, err);
    if (!code)
        code = check_tables(s, err);
    if (!code)
        code = check_tensors(s, err);
    if (!code)
        code = load_part(s, "front", 0, t->front_bytes, t->front_xxh3, &front, err);
    if (!code)
        code = check_front(s, front, err);
    free(front);
    return code;
}
