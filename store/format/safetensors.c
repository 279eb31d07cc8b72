/* safetensors.c - the header of a safetensors file: parsed, checked against every rule, and searched by name. */
#include "safetensors.h"
#include "header_scan.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* One allocation behind the header: names, shapes and metadata strings are cut from it. */
struct header_block {
    struct cws_header header; /* first: the public pointer is this one's */
    char *text;
    uint64_t *dims;
};

const char *cws_name_shown(const char *name, char buf[CWS_NAME_SHOWN_BYTES])
{
    size_t i = 0;
    for (; name[i] && i < CWS_NAME_SHOWN_BYTES - 4; i++) {
        unsigned char c = (unsigned char)name[i];
        buf[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    if (name[i]) {
        memcpy(buf + i, "...", 3);
        i += 3;
    }
    buf[i] = '\0';
    return buf;
}

int cws_header_length(const char *path, const uint8_t first[8], uint64_t file_bytes, uint64_t *out_bytes,
                      struct cws_error *err)
{
    uint64_t n;
    if (file_bytes < 8)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: %" PRIu64 " bytes are too few for a safetensors file; is the download complete?", path,
                        file_bytes);
    memcpy(&n, first, sizeof n);
    if (n > CWS_HEADER_BYTES_MAX)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: offset 0: header length %" PRIu64 " is above the limit of %u; not a safetensors file?",
                        path, n, CWS_HEADER_BYTES_MAX);
    if (n < 2)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: offset 0: header length %" PRIu64 " is too small; not a safetensors file?", path, n);
    if (n > file_bytes - 8)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: offset 0: the header takes %" PRIu64 " bytes but only %" PRIu64
                        " follow; is the download complete?",
                        path, n, file_bytes - 8);
    *out_bytes = n + 8;
    return 0;
}

/* --- one tensor ----------------------------------------------------------------------------- */

static bool to_u64(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static int parse_shape(const char *path, const char *shown, const json_t *shape, struct cws_header_tensor *t,
                       uint64_t *dims, struct cws_error *err)
{
    if (!json_is_array(shape))
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": \"shape\" is missing or is not an array", path, shown);
    t->ndim = json_array_size(shape);
    t->shape = dims;
    t->elems = 1;
    bool overflow = false;
    for (size_t i = 0; i < t->ndim; i++) {
        if (!to_u64(json_array_get(shape, i), &dims[i]))
            return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": shape[%zu] is not a non-negative integer", path,
                            shown, i);
        overflow |= __builtin_mul_overflow(t->elems, dims[i], &t->elems);
    }
    if (overflow) /* refused even where a later 0 would make the product 0: the reference implementation does */
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": the product of its shape is above 2^64", path, shown);
    return 0;
}

/* *text: where the name goes if it is not one of the table's. */
static int parse_dtype(const char *path, const char *shown, const json_t *dtype, struct cws_header_tensor *t,
                       char **text, struct cws_error *err)
{
    if (!json_is_string(dtype))
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": \"dtype\" is missing or is not a string", path, shown);
    if (cws_dtype_parse(json_string_value(dtype), json_string_length(dtype), &t->dtype)) {
        char shown_dtype[CWS_NAME_SHOWN_BYTES];
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": \"%s\" is not the name of a dtype", path, shown,
                        cws_name_shown(json_string_value(dtype), shown_dtype));
    }
    t->dtype_name = cws_dtype_name(t->dtype);
    if (t->dtype == CWS_OTHER) {
        t->dtype_name = *text;
        *text = stpcpy(*text, json_string_value(dtype)) + 1;
    }
    return 0;
}

static int parse_tensor(const char *path, const json_t *entry, struct cws_header_tensor *t, char **text, uint64_t *dims,
                        struct cws_error *err)
{
    char shown[CWS_NAME_SHOWN_BYTES];
    cws_name_shown(t->name, shown);
    if (!json_is_object(entry) || json_object_size(entry) != 3)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: tensor \"%s\": its entry must be an object of dtype, shape and data_offsets", path, shown);
    int code = parse_dtype(path, shown, json_object_get(entry, "dtype"), t, text, err);
    if (!code)
        code = parse_shape(path, shown, json_object_get(entry, "shape"), t, dims, err);
    if (code)
        return code;
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !to_u64(json_array_get(offsets, 0), &t->begin) ||
        !to_u64(json_array_get(offsets, 1), &t->end))
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": \"data_offsets\" is not a pair of non-negative integers",
                        path, shown);
    uint64_t bytes = 0;
    bool sized = t->dtype != CWS_OTHER;
    if (t->begin > t->end || (sized && (!cws_dtype_size(t->dtype, t->elems, &bytes) || bytes != t->end - t->begin)))
        return cws_fail(err, CWS_E_INPUT,
                        "%s: tensor \"%s\": data_offsets [%" PRIu64 ", %" PRIu64 ") do not hold %" PRIu64
                        " elements of %s",
                        path, shown, t->begin, t->end, t->elems, t->dtype_name);
    return 0;
}

/* --- all tensors together ------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b)
{
    const struct cws_header_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->position < y->position ? -1 : x->position > y->position;
}

static int check_cover(const char *path, struct cws_header *h, uint64_t file_bytes, struct cws_error *err)
{
    char shown[CWS_NAME_SHOWN_BYTES], before[CWS_NAME_SHOWN_BYTES];
    uint64_t at = 0;
    const char *last = "the header";
    for (size_t i = 0; i < h->tensor_count; i++) {
        const struct cws_header_tensor *t = &h->tensors[i];
        if (t->begin < at)
            return cws_fail(err, CWS_E_INPUT,
                            "%s: tensor \"%s\" at data offset %" PRIu64 " (file offset %" PRIu64
                            ") overlaps \"%s\", which ends at %" PRIu64,
                            path, cws_name_shown(t->name, shown), t->begin, h->header_bytes + t->begin,
                            cws_name_shown(last, before), at);
        if (t->begin > at)
            return cws_fail(err, CWS_E_INPUT,
                            "%s: hole of %" PRIu64 " bytes at data offset %" PRIu64 " (file offset %" PRIu64
                            ") before tensor \"%s\"",
                            path, t->begin - at, at, h->header_bytes + at, cws_name_shown(t->name, shown));
        at = t->end;
        last = t->name;
    }
    h->data_bytes = at;
    if (file_bytes == UINT64_MAX || file_bytes - h->header_bytes == at)
        return 0;
    if (file_bytes - h->header_bytes < at)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: the file ends at offset %" PRIu64 " but tensor \"%s\" ends at %" PRIu64
                        "; is the download complete?",
                        path, file_bytes, cws_name_shown(last, shown), h->header_bytes + at);
    return cws_fail(err, CWS_E_INPUT, "%s: %" PRIu64 " bytes at offset %" PRIu64 " belong to no tensor", path,
                    file_bytes - h->header_bytes - at, h->header_bytes + at);
}

/* --- the object ----------------------------------------------------------------------------- */

/* A header on its way from text to memory, entry by entry. Of one that is compared only the metadata is kept. */
struct parsing {
    const char *path;
    const uint8_t *text; /* behind the length */
    size_t len;
    struct header_block *b;
    char *strings; /* where the next ones go */
    uint64_t *dims;
    const struct cws_header *with; /* to be compared with, or NULL */
    uint8_t *seen;                 /* of its tensors, a bit each */
    size_t position;
    bool same;
};

static int no_memory(const struct parsing *p, struct cws_error *err)
{
    return cws_fail(err, -ENOMEM, "%s: not enough memory for the header", p->path);
}

/* Entries that stand beside each other and are given to the library together: most are short, and a call costs as much
 * as one. */
struct batch {
    size_t begin, end, longest, count;
};

enum { BATCH_COUNT = 32, BATCH_BYTES = 1 << 16 };

/* Feeds the library ["xxx...",{ENTRIES}]. Its buffer for a token grows while it reads one, and where there is no memory
 * for that the token loses a character: behind a backslash that ends in a failed assertion, and a closing quote that is
 * lost in a read past the end. So the buffer grows on a string that is at least as long as any of the entries', and the
 * rest follows only if that went well. */
struct feed {
    const uint8_t *at;
    size_t left, pad;
    enum { FEED_BEGIN, FEED_PAD, FEED_ENTRIES, FEED_END } stage;
};

/* The padding's own quote is not what makes the buffer grow: its sizes are multiples of 16. */
static size_t padding(size_t longest) { return longest / 16 * 16 + 16 + 6; }

enum { FEED_AROUND = 2 + 3 }; /* what stands before the entries, beside the padding */

static size_t feed_entries(void *to, size_t room, void *arg)
{
    struct feed *f = arg;
    size_t n;
    switch (f->stage) {
    case FEED_BEGIN:
        f->stage = FEED_PAD;
        memcpy(to, "[\"", 2);
        return 2;
    case FEED_PAD:
        n = f->pad < room ? f->pad : room;
        f->pad -= n;
        memset(to, 'x', n);
        if (n)
            return n;
        if (errno == ENOMEM)
            return 0; /* the end; -1 would be taken for a length */
        f->stage = FEED_ENTRIES;
        memcpy(to, "\",{", 3);
        return 3;
    case FEED_ENTRIES:
        n = f->left < room ? f->left : room;
        memcpy(to, f->at, n);
        f->at += n;
        f->left -= n;
        if (n)
            return n;
        f->stage = FEED_END;
        memcpy(to, "}]", 2);
        return 2;
    case FEED_END: break;
    }
    return 0;
}

/* *out: to be released; *entries belongs to it, an object of as many as the batch has. */
static int load_batch(const struct parsing *p, const struct batch *e, json_t **out, json_t **entries,
                      struct cws_error *err)
{
    struct feed feed = {.at = p->text + e->begin, .left = e->end - e->begin, .pad = padding(e->longest)};
    size_t before = FEED_AROUND + feed.pad;
    json_error_t why;
    /* Where the parser has no memory it says so in few places, speaks of the syntax in most, and drops the end of a
     * word in one: errno tells. */
    int saved = errno;
    errno = 0;
    *out = json_load_callback(feed_entries, &feed, JSON_REJECT_DUPLICATES, &why);
    bool failed = errno == ENOMEM;
    errno = saved;
    if (failed || (!*out && json_error_code(&why) == json_error_out_of_memory)) {
        json_decref(*out);
        return no_memory(p, err);
    }
    if (!*out) {
        char shown[CWS_NAME_SHOWN_BYTES];
        size_t at = (size_t)why.position > before ? (size_t)why.position - before : 0;
        return cws_scan_invalid(p->path, e->begin + at, cws_name_shown(why.text, shown), err);
    }
    *entries = json_array_get(*out, 1);
    if (json_object_size(*entries) != e->count) {
        json_decref(*out);
        return cws_scan_invalid(p->path, e->begin, "a key is missing", err);
    }
    return 0;
}

static int take_pair(struct parsing *p, const char *key, const json_t *value, struct cws_error *err)
{
    struct cws_header *h = &p->b->header;
    char shown[CWS_NAME_SHOWN_BYTES];
    if (!json_is_string(value))
        return cws_fail(err, CWS_E_INPUT, "%s: \"__metadata__\": the value of \"%s\" is not a string", p->path,
                        cws_name_shown(key, shown));
    struct cws_header_metadata *m = &h->metadata[h->metadata_count++];
    m->key = p->strings;
    p->strings = stpcpy(p->strings, key) + 1;
    m->value = p->strings;
    p->strings = stpcpy(p->strings, json_string_value(value)) + 1;
    return 0;
}

static bool same_tensor(const struct cws_header_tensor *a, const struct cws_header_tensor *b)
{
    return a->dtype == b->dtype && strcmp(a->dtype_name, b->dtype_name) == 0 && a->begin == b->begin &&
           a->end == b->end && a->ndim == b->ndim && memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape) == 0;
}

static void compare_tensor(struct parsing *p, const struct cws_header_tensor *t)
{
    size_t i = cws_header_find(p->with, t->name);
    if (i == SIZE_MAX || p->seen[i / 8] >> i % 8 & 1 || !same_tensor(t, &p->with->tensors[i]))
        p->same = false;
    else
        p->seen[i / 8] |= (uint8_t)(1u << i % 8);
}

static int take_tensor(struct parsing *p, const char *key, const json_t *value, struct cws_error *err)
{
    struct cws_header *h = &p->b->header;
    int code;
    if (p->with) {
        char dtype[CWS_DTYPE_NAME_MAX + 1], *text = dtype;
        uint64_t dims[CWS_HEADER_VALUES_MAX];
        struct cws_header_tensor t = {.name = key};
        code = parse_tensor(p->path, value, &t, &text, dims, err);
        if (!code)
            compare_tensor(p, &t);
    } else {
        struct cws_header_tensor *t = &h->tensors[h->tensor_count++];
        t->name = p->strings;
        t->position = p->position;
        p->strings = stpcpy(p->strings, key) + 1;
        code = parse_tensor(p->path, value, t, &p->strings, p->dims, err);
        p->dims += t->ndim;
    }
    p->position++;
    return code;
}

/* Takes the batch's entries and empties it. */
static int take_batch(struct parsing *p, struct batch *batch, bool pairs, struct cws_error *err)
{
    json_t *loaded, *entries, *value;
    const char *key;
    if (batch->count == 0)
        return 0;
    int code = load_batch(p, batch, &loaded, &entries, err);
    if (code)
        return code;
    json_object_foreach(entries, key, value)
    {
        code = pairs ? take_pair(p, key, value, err) : take_tensor(p, key, value, err);
        if (code)
            break;
    }
    json_decref(loaded);
    *batch = (struct batch){0};
    return code;
}

static int add_to_batch(struct parsing *p, struct batch *batch, const struct cws_scan_entry *e, bool pairs,
                        struct cws_error *err)
{
    if (batch->count == 0)
        batch->begin = e->begin;
    batch->end = e->end;
    batch->longest = e->longest > batch->longest ? e->longest : batch->longest;
    batch->count++;
    return batch->count == BATCH_COUNT || batch->end - batch->begin >= BATCH_BYTES ? take_batch(p, batch, pairs, err)
                                                                                   : 0;
}

static int take_metadata(struct parsing *p, const struct cws_scan *outer, const struct cws_scan_entry *e,
                         struct cws_error *err)
{
    struct cws_scan scan;
    struct cws_scan_entry pair;
    struct batch batch = {0};
    if (p->b->header.has_metadata)
        return cws_fail(err, CWS_E_INPUT, "%s: offset %zu: duplicate \"__metadata__\"", p->path, e->key + 8);
    if (!cws_scan_value(outer, e, &scan))
        return cws_fail(err, CWS_E_INPUT, "%s: \"__metadata__\" is not an object", p->path);
    p->b->header.has_metadata = true;
    int code;
    while ((code = cws_scan_next(&scan, &pair, err)) == 1) {
        code = add_to_batch(p, &batch, &pair, /* pairs */ true, err);
        if (code)
            return code;
    }
    if (!code)
        code = take_batch(p, &batch, true, err);
    if (!code && !cws_scan_blank(p->text, scan.at, e->end))
        code = cws_scan_invalid(p->path, scan.at, "something follows an object", err);
    return code;
}

/* Room for everything is counted first, so that building cannot run out half way. Strings never take more than their
 * text does. */
static int reserve(struct parsing *p, struct cws_error *err)
{
    struct cws_scan scan = cws_scan_object(p->path, p->text, p->len, 0, 1), inner;
    struct cws_scan_entry e, pair;
    size_t strings = 1, dims = 1, tensors = 1, metadata = 1;
    int code;
    while ((code = cws_scan_next(&scan, &e, err)) == 1) {
        if (e.metadata || !p->with)
            strings += e.end - e.begin;
        dims += p->with ? 0 : e.values;
        tensors += !p->with;
        int inner_code = 0;
        if (e.metadata && cws_scan_value(&scan, &e, &inner))
            while ((inner_code = cws_scan_next(&inner, &pair, err)) == 1)
                metadata++;
        if (inner_code)
            return inner_code;
    }
    if (code)
        return code;
    if (!cws_scan_blank(p->text, scan.at, p->len))
        return cws_scan_invalid(p->path, scan.at, "something follows the object", err);
    struct header_block *b = p->b;
    b->text = malloc(strings);
    b->dims = malloc(dims * sizeof *b->dims);
    b->header.tensors = calloc(tensors, sizeof *b->header.tensors);
    b->header.metadata = malloc(metadata * sizeof *b->header.metadata);
    if (!b->text || !b->dims || !b->header.tensors || !b->header.metadata)
        return no_memory(p, err);
    p->strings = b->text;
    p->dims = b->dims;
    return 0;
}

static int build(struct parsing *p, struct cws_error *err)
{
    struct cws_scan scan = cws_scan_object(p->path, p->text, p->len, 0, 1);
    struct cws_scan_entry e;
    struct batch batch = {0};
    int code = reserve(p, err);
    if (code)
        return code;
    while ((code = cws_scan_next(&scan, &e, err)) == 1) {
        if (!e.metadata) {
            code = add_to_batch(p, &batch, &e, /* pairs */ false, err);
        } else {
            code = take_batch(p, &batch, false, err);
            if (!code)
                code = take_metadata(p, &scan, &e, err);
        }
        if (code)
            return code;
    }
    return code ? code : take_batch(p, &batch, false, err);
}

/* --- names ----------------------------------------------------------------------------------- */

static int tensor_order(const void *a, const void *b, void *tensors)
{
    const struct cws_header_tensor *t = tensors;
    return strcmp(t[*(const uint32_t *)a].name, t[*(const uint32_t *)b].name);
}

static int metadata_order(const void *a, const void *b, void *metadata)
{
    const struct cws_header_metadata *m = metadata;
    return strcmp(m[*(const uint32_t *)a].key, m[*(const uint32_t *)b].key);
}

/* *out: 0 .. count-1 in order, or NULL without memory. Returns how many of them come before the first that has an equal
 * behind it. */
static size_t sort_names(size_t count, void *items, int (*order)(const void *, const void *, void *), uint32_t **out)
{
    uint32_t *names = malloc((count + 1) * sizeof *names);
    *out = names;
    if (!names)
        return 0;
    for (size_t i = 0; i < count; i++)
        names[i] = (uint32_t)i; /* a header of 100 MB has far fewer than 2^32 */
    if (count > 1)
        qsort_r(names, count, sizeof *names, order, items);
    for (size_t i = 1; i < count; i++)
        if (order(&names[i - 1], &names[i], items) == 0)
            return i - 1;
    return count;
}

static int check_names(const struct parsing *p, struct cws_error *err)
{
    struct header_block *b = p->b;
    struct cws_header *h = &b->header;
    char shown[CWS_NAME_SHOWN_BYTES];
    uint32_t *keys;
    size_t unique = sort_names(h->metadata_count, h->metadata, metadata_order, &keys);
    if (!keys)
        return no_memory(p, err);
    const char *twice = unique < h->metadata_count ? h->metadata[keys[unique]].key : NULL;
    free(keys);
    if (twice)
        return cws_fail(err, CWS_E_INPUT, "%s: \"__metadata__\": duplicate key \"%s\"", p->path,
                        cws_name_shown(twice, shown));
    if (p->with)
        return 0;
    unique = sort_names(h->tensor_count, h->tensors, tensor_order, &h->by_name);
    if (!h->by_name)
        return no_memory(p, err);
    if (unique < h->tensor_count)
        return cws_fail(err, CWS_E_INPUT, "%s: duplicate tensor \"%s\"", p->path,
                        cws_name_shown(h->tensors[h->by_name[unique]].name, shown));
    return 0;
}

size_t cws_header_find(const struct cws_header *h, const char *name)
{
    size_t low = 0, high = h->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(h->tensors[h->by_name[middle]].name, name);
        if (order == 0)
            return h->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return SIZE_MAX;
}

/* --- the whole -------------------------------------------------------------------------------- */

static int parse(struct parsing *p, uint64_t header_bytes, struct cws_error *err)
{
    if (p->text[0] != '{')
        return cws_fail(err, CWS_E_INPUT, "%s: offset 8: the header does not start with '{'; not a safetensors file?",
                        p->path);
    p->b = calloc(1, sizeof *p->b);
    if (!p->b)
        return no_memory(p, err);
    p->b->header.header_bytes = header_bytes;
    int code = build(p, err);
    if (!code && p->b->header.tensor_count > 1)
        qsort(p->b->header.tensors, p->b->header.tensor_count, sizeof *p->b->header.tensors, by_offset);
    return code ? code : check_names(p, err);
}

int cws_header_parse(const char *path, const uint8_t *bytes, uint64_t header_bytes, uint64_t file_bytes,
                     struct cws_header **out, struct cws_error *err)
{
    struct parsing p = {.path = path, .text = bytes + 8, .len = (size_t)header_bytes - 8};
    *out = NULL;
    int code = parse(&p, header_bytes, err);
    if (!code)
        code = check_cover(path, &p.b->header, file_bytes, err);
    if (code)
        cws_header_destroy(p.b ? &p.b->header : NULL);
    else
        *out = &p.b->header;
    return code;
}

int cws_header_compare(const char *path, const uint8_t *bytes, uint64_t header_bytes, const struct cws_header *with,
                       bool *out_same, struct cws_error *err)
{
    struct parsing p = {.path = path, .text = bytes + 8, .len = (size_t)header_bytes - 8, .with = with, .same = true};
    p.seen = calloc(1, with->tensor_count / 8 + 1);
    int code = p.seen ? parse(&p, header_bytes, err) : no_memory(&p, err);
    *out_same = !code && p.same && p.position == with->tensor_count;
    free(p.seen);
    cws_header_destroy(p.b ? &p.b->header : NULL);
    return code;
}

void cws_header_destroy(struct cws_header *h)
{
    if (!h)
        return;
    struct header_block *b = (struct header_block *)h;
    free(h->tensors);
    free(h->metadata);
    free(h->by_name);
    free(b->text);
    free(b->dims);
    free(b);
}
