/* inspect_json.c - writes what `inspect` knows as JSON. */
#include "inspect_json.h"
#include "say.h"
#include "store/read/symbols.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t codec_index(const struct cws_tensor_info *t)
{
    switch (t->record->codec) {
    case CWS_CODEC_ZSTD: return 1;
    case CWS_CODEC_SPLIT: return 2;
    case CWS_CODEC_QUANT: return t->record->quant_bits == 8 ? 3 : 4;
    default: return 0;
    }
}

const char *cws_inspect_codec_label(size_t i)
{
    static const char *const labels[CWS_INSPECT_CODECS] = {"raw", "zstd", "split", "q8", "q6"};
    return labels[i];
}

const char *cws_inspect_codec_name(const struct cws_tensor_info *t) { return cws_inspect_codec_label(codec_index(t)); }

void cws_inspect_add(const struct cws_store *store, struct cws_inspect_totals *sum)
{
    sum->logical_bytes += cws_store_logical_bytes(store);
    sum->file_bytes += cws_store_file_bytes(store);
    for (size_t i = 0; i < cws_store_tensor_count(store); i++) {
        const struct cws_tensor_info *t = cws_store_tensor(store, i);
        struct cws_inspect_codec *codec = &sum->codecs[codec_index(t)];
        sum->tensors++;
        sum->elems += t->elems;
        sum->tensor_bytes += t->end - t->begin;
        sum->tensor_stored_bytes += t->stored_bytes;
        codec->tensors++;
        codec->elems += t->elems;
        codec->logical_bytes += t->end - t->begin;
        codec->stored_bytes += t->stored_bytes;
    }
}

static void set_u64(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void set_hash(json_t *object, const char *key, const uint64_t hash[2])
{
    char text[40];
    snprintf(text, sizeof text, "%016llx%016llx", (unsigned long long)hash[1], (unsigned long long)hash[0]);
    json_object_set_new(object, key, json_string(text));
}

static json_t *json_tensor(const struct cws_tensor_info *t)
{
    json_t *out = json_object(), *shape = json_array();
    for (size_t i = 0; i < t->ndim; i++)
        json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    json_object_set_new(out, "name", json_string(t->name));
    json_object_set_new(out, "dtype", json_string(t->dtype_name));
    json_object_set_new(out, "shape", shape);
    json_object_set_new(out, "codec", json_string(cws_inspect_codec_name(t)));
    set_u64(out, "logical_offset", t->begin);
    set_u64(out, "logical_bytes", t->end - t->begin);
    set_u64(out, "stored_bytes", t->stored_bytes);
    set_u64(out, "chunks", t->record->chunk_count);
    set_hash(out, "content_hash", t->record->content_hash);
    return out;
}

static json_t *json_codecs(const struct cws_inspect_totals *sum)
{
    json_t *out = json_object();
    for (size_t i = 0; i < CWS_INSPECT_CODECS; i++) {
        const struct cws_inspect_codec *codec = &sum->codecs[i];
        if (codec->tensors == 0)
            continue;
        json_t *one = json_object();
        set_u64(one, "tensors", codec->tensors);
        set_u64(one, "elements", codec->elems);
        set_u64(one, "logical_bytes", codec->logical_bytes);
        set_u64(one, "stored_bytes", codec->stored_bytes);
        json_object_set_new(out, cws_inspect_codec_label(i), one);
    }
    return out;
}

static void set_totals(json_t *out, const struct cws_inspect_totals *sum)
{
    set_u64(out, "logical_bytes", sum->logical_bytes);
    set_u64(out, "file_bytes", sum->file_bytes);
    set_u64(out, "elements", sum->elems);
    json_object_set_new(out, "codecs", json_codecs(sum));
}

static json_t *json_tensor_symbols(const struct cws_store *store, const struct cws_tensor_info *t,
                                   struct cws_error *err)
{
    struct cws_symbols symbols;
    json_t *out = json_tensor(t);
    if (t->record->codec != CWS_CODEC_SPLIT && t->record->codec != CWS_CODEC_QUANT)
        return out;
    if (cws_symbols_count(store, t, &symbols, err) != 0)
        return out;
    json_t *list = json_array();
    for (int s = 0; s < 256; s++) {
        if (symbols.count[s] == 0)
            continue;
        json_t *one = json_object();
        json_object_set_new(one, "symbol", json_integer(t->record->codec == CWS_CODEC_QUANT ? s - 128 : s));
        set_u64(one, "count", symbols.count[s]);
        set_u64(one, "code_bits", symbols.length[s]);
        json_array_append_new(list, one);
    }
    json_object_set_new(out, "symbols", list);
    json_object_set_new(out, "entropy_bits", json_real(symbols.entropy_bits));
    json_object_set_new(out, "code_bits", json_real(symbols.mean_bits));
    return out;
}

/* Its lines behind the first are moved right by `indent`. `open`: without the brace that ends it. Takes the reference;
 * NULL: no memory. */
static void print_value(struct cws_inspect_json *out, json_t *value, int indent, bool open)
{
    char *text = value ? json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : NULL;
    json_decref(value);
    if (!text) {
        out->failed = true;
        return;
    }
    if (open)
        text[strlen(text) - 2] = '\0';
    for (char *line = text, *end; line; line = end) {
        end = strchr(line, '\n');
        if (end)
            *end++ = '\0';
        printf("%*s%s%s", line == text ? 0 : indent, "", line, end ? "\n" : "");
    }
    free(text);
}

static void begin_item(struct cws_inspect_json *out, const char *list)
{
    if (out->items++ == 0)
        printf("{\n  \"%s\": [\n    ", list);
    else
        printf(",\n    ");
}

void cws_inspect_json_store(struct cws_inspect_json *out, const char *path, const struct cws_store *store,
                            const struct cws_inspect_totals *sum)
{
    const struct cws_trailer *trailer = cws_store_trailer(store);
    size_t count = cws_store_tensor_count(store);
    json_t *head = json_object();
    char printable[4096];
    json_object_set_new(head, "path", json_string(cws_printable(path, printable, sizeof printable)));
    set_u64(head, "version", trailer->version);
    json_object_set_new(head, "lossless", json_boolean(!cws_store_is_lossy(store)));
    set_totals(head, sum);
    set_u64(head, "chunks", cws_store_chunk_count(store));
    set_hash(head, "content_hash", trailer->content_hash);
    begin_item(out, "files");
    print_value(out, head, 4, /* open */ true);
    printf(",\n      \"tensors\": [");
    for (size_t i = 0; i < count; i++) {
        printf("%s\n        ", i ? "," : "");
        print_value(out, json_tensor(cws_store_tensor(store, i)), 8, false);
    }
    printf("%s]\n    }", count ? "\n      " : "");
}

void cws_inspect_json_tensor(struct cws_inspect_json *out, const struct cws_store *store,
                             const struct cws_tensor_info *t, struct cws_error *err)
{
    begin_item(out, "tensors");
    print_value(out, json_tensor_symbols(store, t, err), 4, false);
}

int cws_inspect_json_end(struct cws_inspect_json *out, const struct cws_inspect_totals *totals)
{
    if (!out->items)
        return 0;
    printf("\n  ]");
    if (totals) {
        json_t *sum = json_object();
        set_totals(sum, totals);
        printf(",\n  \"totals\": ");
        print_value(out, sum, 2, false);
    }
    printf("\n}\n");
    return out->failed ? -1 : 0;
}
