#include "safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEPTH_MAX = 8,  /* a valid header needs 3; the parser recurses */
    DIMS_MAX = 256, /* keeps a hostile header from becoming 50 times as much memory */
};

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

int cws_header_length(const char *path, const uint8_t first[8], uint64_t file_bytes, uint64_t *out_bytes, struct cws_error *err)
{
    uint64_t n;
    if (file_bytes < 8)
        return cws_fail(err, CWS_E_INPUT, "%s: %" PRIu64 " bytes are too few for a safetensors file; is the download complete?",
                        path, file_bytes);
    memcpy(&n, first, sizeof n);
    if (n > CWS_HEADER_BYTES_MAX)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: offset 0: header length %" PRIu64 " is above the limit of %u; not a safetensors file?", path, n,
                        CWS_HEADER_BYTES_MAX);
    if (n < 2)
        return cws_fail(err, CWS_E_INPUT, "%s: offset 0: header length %" PRIu64 " is too small; not a safetensors file?", path, n);
    if (n > file_bytes - 8)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: offset 0: the header takes %" PRIu64 " bytes but only %" PRIu64 " follow; is the download complete?",
                        path, n, file_bytes - 8);
    *out_bytes = n + 8;
    return 0;
}

/* --- before the JSON parser runs ------------------------------------------------------------ */

/* Bounds what the parser may be asked to build: nesting, and values in one array. Strings are skipped, all else is left to
 * the parser. `at` counts from the start of the file. */
static int scan_limits(const char *path, const uint8_t *json, size_t len, struct cws_error *err)
{
    size_t commas[DEPTH_MAX + 1] = {0};
    char kind[DEPTH_MAX + 1] = {0};
    unsigned depth = 0;
    for (size_t i = 0; i < len; i++) {
        switch (json[i]) {
        case '"':
            for (i++; i < len && json[i] != '"'; i++)
                i += json[i] == '\\';
            break;
        case '{':
        case '[':
            if (depth == DEPTH_MAX)
                return cws_fail(err, CWS_E_INPUT, "%s: offset %zu: the header is nested more than %d deep", path, i + 8, DEPTH_MAX);
            depth++;
            commas[depth] = 0;
            kind[depth] = (char)json[i];
            break;
        case '}':
        case ']':
            depth -= depth > 0;
            break;
        case ',':
            if (++commas[depth] >= DIMS_MAX && kind[depth] == '[')
                return cws_fail(err, CWS_E_INPUT, "%s: offset %zu: an array of more than %d numbers", path, i + 8, DIMS_MAX);
            break;
        default: break;
        }
    }
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

static int parse_shape(const char *path, const char *shown, const json_t *shape, struct cws_header_tensor *t, uint64_t *dims,
                       struct cws_error *err)
{
    if (!json_is_array(shape))
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": \"shape\" is missing or is not an array", path, shown);
    t->ndim = json_array_size(shape);
    t->shape = dims;
    t->elems = 1;
    bool overflow = false;
    for (size_t i = 0; i < t->ndim; i++) {
        if (!to_u64(json_array_get(shape, i), &dims[i]))
            return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": shape[%zu] is not a non-negative integer", path, shown, i);
        overflow |= __builtin_mul_overflow(t->elems, dims[i], &t->elems);
    }
    if (overflow) /* refused even where a later 0 would make the product 0: the reference implementation does */
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": the product of its shape is above 2^64", path, shown);
    return 0;
}

/* *text: where the name goes if it is not one of the table's. */
static int parse_dtype(const char *path, const char *shown, const json_t *dtype, struct cws_header_tensor *t, char **text,
                       struct cws_error *err)
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
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": its entry must be an object of dtype, shape and data_offsets", path, shown);
    int code = parse_dtype(path, shown, json_object_get(entry, "dtype"), t, text, err);
    if (!code)
        code = parse_shape(path, shown, json_object_get(entry, "shape"), t, dims, err);
    if (code)
        return code;
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !to_u64(json_array_get(offsets, 0), &t->begin) ||
        !to_u64(json_array_get(offsets, 1), &t->end))
        return cws_fail(err, CWS_E_INPUT, "%s: tensor \"%s\": \"data_offsets\" is not a pair of non-negative integers", path, shown);
    uint64_t bytes = 0;
    bool sized = t->dtype != CWS_OTHER;
    if (t->begin > t->end || (sized && (!cws_dtype_size(t->dtype, t->elems, &bytes) || bytes != t->end - t->begin)))
        return cws_fail(err, CWS_E_INPUT,
                        "%s: tensor \"%s\": data_offsets [%" PRIu64 ", %" PRIu64 ") do not hold %" PRIu64 " elements of %s", path, shown,
                        t->begin, t->end, t->elems, t->dtype_name);
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
                            "%s: tensor \"%s\" at data offset %" PRIu64 " (file offset %" PRIu64 ") overlaps \"%s\", which ends at %" PRIu64,
                            path, cws_name_shown(t->name, shown), t->begin, h->header_bytes + t->begin, cws_name_shown(last, before), at);
        if (t->begin > at)
            return cws_fail(err, CWS_E_INPUT,
                            "%s: hole of %" PRIu64 " bytes at data offset %" PRIu64 " (file offset %" PRIu64 ") before tensor \"%s\"",
                            path, t->begin - at, at, h->header_bytes + at, cws_name_shown(t->name, shown));
        at = t->end;
        last = t->name;
    }
    h->data_bytes = at;
    if (file_bytes == UINT64_MAX || file_bytes - h->header_bytes == at)
        return 0;
    if (file_bytes - h->header_bytes < at)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: the file ends at offset %" PRIu64 " but tensor \"%s\" ends at %" PRIu64 "; is the download complete?", path,
                        file_bytes, cws_name_shown(last, shown), h->header_bytes + at);
    return cws_fail(err, CWS_E_INPUT, "%s: %" PRIu64 " bytes at offset %" PRIu64 " belong to no tensor", path,
                    file_bytes - h->header_bytes - at, h->header_bytes + at);
}

/* --- the object ----------------------------------------------------------------------------- */

static int parse_metadata(const char *path, const json_t *metadata, struct cws_header *h, char **text, struct cws_error *err)
{
    if (!json_is_object(metadata))
        return cws_fail(err, CWS_E_INPUT, "%s: \"__metadata__\" is not an object", path);
    h->has_metadata = true;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata, key, value) {
        char shown[CWS_NAME_SHOWN_BYTES];
        if (!json_is_string(value))
            return cws_fail(err, CWS_E_INPUT, "%s: \"__metadata__\": the value of \"%s\" is not a string", path, cws_name_shown(key, shown));
        struct cws_header_metadata *m = &h->metadata[h->metadata_count++];
        m->key = *text;
        *text = stpcpy(*text, key) + 1;
        m->value = *text;
        *text = stpcpy(*text, json_string_value(value)) + 1;
    }
    return 0;
}

/* Room for everything is counted first, so that building cannot run out half way. */
static int reserve(const json_t *root, struct header_block *b)
{
    size_t text = 1, dims = 1, tensors = 0, metadata = 0;
    const char *key, *inner_key;
    json_t *value, *inner;
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            json_object_foreach(value, inner_key, inner) {
                text += strlen(inner_key) + json_string_length(inner) + 2;
                metadata++;
            }
        } else {
            text += strlen(key) + 1 + json_string_length(json_object_get(value, "dtype")) + 1;
            dims += json_array_size(json_object_get(value, "shape"));
            tensors++;
        }
    }
    b->text = malloc(text);
    b->dims = malloc(dims * sizeof *b->dims);
    b->header.tensors = calloc(tensors + 1, sizeof *b->header.tensors);
    b->header.metadata = calloc(metadata + 1, sizeof *b->header.metadata);
    return b->text && b->dims && b->header.tensors && b->header.metadata ? 0 : -ENOMEM;
}

static int build(const char *path, const json_t *root, struct header_block *b, struct cws_error *err)
{
    struct cws_header *h = &b->header;
    const char *key;
    json_t *value;
    int code = reserve(root, b);
    if (code)
        return cws_fail(err, code, "%s: not enough memory for the header", path);
    char *text = b->text;
    uint64_t *dims = b->dims;
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            code = parse_metadata(path, value, h, &text, err);
        } else {
            struct cws_header_tensor *t = &h->tensors[h->tensor_count];
            t->name = text;
            text = stpcpy(text, key) + 1;
            t->position = h->tensor_count++;
            code = parse_tensor(path, value, t, &text, dims, err);
            dims += t->ndim;
        }
        if (code)
            return code;
    }
    qsort(h->tensors, h->tensor_count, sizeof *h->tensors, by_offset);
    return 0;
}

int cws_header_parse(const char *path, const uint8_t *bytes, uint64_t header_bytes, uint64_t file_bytes, struct cws_header **out,
                     struct cws_error *err)
{
    const uint8_t *text = bytes + 8;
    size_t len = (size_t)header_bytes - 8;
    *out = NULL;
    if (text[0] != '{')
        return cws_fail(err, CWS_E_INPUT, "%s: offset 8: the header does not start with '{'; not a safetensors file?", path);
    int code = scan_limits(path, text, len, err);
    if (code)
        return code;
    json_error_t why;
    /* Where the parser has no memory it says so in few places, speaks of the syntax in most, and drops the end of a word in one: errno tells. */
    int saved = errno;
    errno = 0;
    json_t *root = json_loadb((const char *)text, len, JSON_REJECT_DUPLICATES, &why);
    bool no_memory = errno == ENOMEM;
    errno = saved;
    if (!root || no_memory) {
        json_decref(root);
        if (no_memory || json_error_code(&why) == json_error_out_of_memory)
            return cws_fail(err, -ENOMEM, "%s: not enough memory for the header", path);
        char shown[CWS_NAME_SHOWN_BYTES];
        return cws_fail(err, CWS_E_INPUT, "%s: offset %d: the header is not valid JSON: %s", path, 8 + (why.position > 0 ? why.position : 0),
                        cws_name_shown(why.text, shown));
    }
    struct header_block *b = calloc(1, sizeof *b);
    if (!b) {
        code = cws_fail(err, -ENOMEM, "%s: not enough memory for the header", path);
    } else {
        b->header.header_bytes = header_bytes;
        code = build(path, root, b, err);
        if (!code)
            code = check_cover(path, &b->header, file_bytes, err);
    }
    json_decref(root);
    if (code) {
        cws_header_destroy(b ? &b->header : NULL);
        return code;
    }
    *out = &b->header;
    return 0;
}

void cws_header_destroy(struct cws_header *h)
{
    if (!h)
        return;
    struct header_block *b = (struct header_block *)h;
    free(h->tensors);
    free(h->metadata);
    free(b->text);
    free(b->dims);
    free(b);
}
