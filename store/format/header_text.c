/* header_text.c - safetensors headers as text: the front of a store, and the header of a converted file. */
#include "header_text.h"
#include "format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Writes what fits and counts all: one pass to measure, one to write, no way to overrun. */
struct text {
    char *at; /* NULL: only count */
    uint64_t len, room;
};

static void put(struct text *t, const char *bytes, size_t n)
{
    if (t->at && t->len + n <= t->room)
        memcpy(t->at + t->len, bytes, n);
    t->len += n;
}

static void put_string(struct text *t, const char *s)
{
    put(t, "\"", 1);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        char escape[8];
        if (c == '"' || c == '\\') {
            escape[0] = '\\';
            escape[1] = (char)c;
            put(t, escape, 2);
        } else if (c < 0x20) {
            put(t, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
        } else {
            put(t, s, 1);
        }
    }
    put(t, "\"", 1);
}

static void put_number(struct text *t, uint64_t n)
{
    char digits[24];
    put(t, digits, (size_t)snprintf(digits, sizeof digits, "%" PRIu64, n));
}

static void put_tensor(struct text *t, const struct cws_header_tensor *tensor)
{
    put_string(t, tensor->name);
    put(t, ":{\"dtype\":", 10);
    put_string(t, tensor->dtype_name);
    put(t, ",\"shape\":[", 10);
    for (size_t d = 0; d < tensor->ndim; d++) {
        if (d)
            put(t, ",", 1);
        put_number(t, tensor->shape[d]);
    }
    put(t, "],\"data_offsets\":[", 18);
    put_number(t, tensor->begin);
    put(t, ",", 1);
    put_number(t, tensor->end);
    put(t, "]}", 2);
}

static void put_metadata(struct text *t, const struct cws_header *h, bool front)
{
    static const char begin[] = CWS_FRONT_MARK ",\"codecllm_version\":\"0\"";
    bool first = !front;
    if (front)
        put(t, begin, sizeof begin - 1);
    else
        put(t, "{\"__metadata__\":{", 17);
    for (size_t i = 0; i < h->metadata_count; i++) {
        const struct cws_header_metadata *m = &h->metadata[i];
        if (front && (strcmp(m->key, "format") == 0 || strcmp(m->key, "codecllm_version") == 0))
            continue;
        if (!first)
            put(t, ",", 1);
        first = false;
        put_string(t, m->key);
        put(t, ":", 1);
        put_string(t, m->value);
    }
    put(t, "}", 1);
}

static void put_header(struct text *t, const struct cws_header *h, const size_t *by_position, bool front)
{
    bool metadata = front || h->has_metadata;
    if (metadata)
        put_metadata(t, h, front);
    else
        put(t, "{", 1);
    for (size_t i = 0; i < h->tensor_count; i++) {
        if (i || metadata)
            put(t, ",", 1);
        put_tensor(t, &h->tensors[by_position[i]]);
    }
    put(t, "}", 1);
}

static int write_header(const char *path, const struct cws_header *h, bool front, unsigned align, uint8_t **out,
                        uint64_t *out_bytes, struct cws_error *err)
{
    *out = NULL;
    size_t *by_position = malloc((h->tensor_count + 1) * sizeof *by_position);
    if (!by_position)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for the header", path);
    for (size_t i = 0; i < h->tensor_count; i++)
        by_position[h->tensors[i].position] = i;
    struct text t = {0};
    put_header(&t, h, by_position, front);
    uint64_t total = (t.len + 8 + align - 1) / align * align;
    int code = 0;
    uint8_t *bytes = NULL;
    if (total - 8 > CWS_HEADER_BYTES_MAX)
        code = cws_fail(err, CWS_E_INPUT, "%s: the header would become larger than the %u bytes that are allowed", path,
                        CWS_HEADER_BYTES_MAX);
    else if (!(bytes = malloc(total)))
        code = cws_fail(err, -ENOMEM, "%s: not enough memory for the header", path);
    if (!code) {
        uint64_t n = total - 8;
        memcpy(bytes, &n, sizeof n);
        memset(bytes + 8, ' ', n);
        t = (struct text){.at = (char *)bytes + 8, .room = n};
        put_header(&t, h, by_position, front);
        *out = bytes;
        *out_bytes = total;
    }
    free(by_position);
    return code;
}

int cws_header_write_front(const char *path, const struct cws_header *h, uint8_t **out, uint64_t *out_bytes,
                           struct cws_error *err)
{
    return write_header(path, h, /* front */ true, CWS_CHUNK_ALIGN, out, out_bytes, err);
}

int cws_header_write(const char *path, const struct cws_header *h, uint8_t **out, uint64_t *out_bytes,
                     struct cws_error *err)
{
    return write_header(path, h, /* front */ false, 8, out, out_bytes, err);
}
