/* header_scan.c - the entries of a JSON object, found without a parser. */
#include "header_scan.h"

#include <string.h>

static bool is_blank(uint8_t c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static size_t skip_blank(const uint8_t *text, size_t at, size_t end)
{
    while (at < end && is_blank(text[at]))
        at++;
    return at;
}

bool cws_scan_blank(const uint8_t *text, size_t at, size_t end) { return skip_blank(text, at, end) == end; }

int cws_scan_invalid(const char *path, size_t at, const char *why, struct cws_error *err)
{
    return cws_fail(err, CWS_E_INPUT, "%s: offset %zu: the header is not valid JSON: %s", path, at + 8, why);
}

/* From an opening quote to behind the closing one, or to the end. */
static size_t skip_string(const uint8_t *text, size_t at, size_t end)
{
    for (at++; at < end && text[at] != '"'; at++)
        at += text[at] == '\\';
    return at < end ? at + 1 : end;
}

/* Does the text at `at` say `c`, as it is or escaped? Returns what it takes, 0: no. */
static size_t says(const uint8_t *at, size_t left, char c)
{
    static const uint8_t hex[] = "0123456789abcdef";
    if (left && (char)at[0] == c)
        return 1;
    if (left < 6 || memcmp(at, "\\u00", 4) != 0)
        return 0;
    /* none of its characters is above 0x7f */
    return at[4] == hex[c >> 4] && (at[5] | 0x20) == (hex[c & 15] | 0x20) ? 6 : 0;
}

static bool says_metadata(const uint8_t *token, size_t len)
{
    size_t at = 1, n;
    for (const char *c = "__metadata__"; *c; c++, at += n)
        if (at >= len || !(n = says(token + at, len - at, *c)))
            return false;
    return at + 1 == len;
}

struct cws_scan cws_scan_object(const char *path, const uint8_t *text, size_t len, size_t at, unsigned depth)
{
    return (struct cws_scan){.path = path, .text = text, .len = len, .at = at + 1, .depth = depth};
}

bool cws_scan_value(const struct cws_scan *scan, const struct cws_scan_entry *entry, struct cws_scan *out)
{
    size_t at = skip_blank(scan->text, entry->key_end, entry->end);
    if (at == entry->end || scan->text[at] != ':')
        return false;
    at = skip_blank(scan->text, at + 1, entry->end);
    if (at == entry->end || scan->text[at] != '{')
        return false;
    *out = cws_scan_object(scan->path, scan->text, entry->end, at, scan->depth + 1);
    return true;
}

/* From the value's first byte to the comma or brace that ends the entry; bounds what the library may be asked to
 * build. */
static int skip_value(struct cws_scan *s, struct cws_scan_entry *e, struct cws_error *err)
{
    const uint8_t *text = s->text;
    size_t commas[CWS_HEADER_DEPTH_MAX + 1] = {0}, i = e->key_end;
    unsigned depth = s->depth;
    for (; i < s->len; i++) {
        switch (text[i]) {
        case '"': {
            size_t end = skip_string(text, i, s->len);
            e->longest = end - i > e->longest ? end - i : e->longest;
            i = end - 1;
            break;
        }
        case '{':
        case '[':
            if (depth == CWS_HEADER_DEPTH_MAX)
                return cws_fail(err, CWS_E_INPUT, "%s: offset %zu: the header is nested more than %d deep", s->path,
                                i + 8, CWS_HEADER_DEPTH_MAX);
            commas[++depth] = 0;
            e->values++;
            break;
        case '}':
        case ']':
            if (depth == s->depth) {
                s->ended = true;
                e->end = i;
                s->at = i + 1;
                return text[i] == '}' ? 1 : cws_scan_invalid(s->path, i, "']' ends an object", err);
            }
            depth--;
            break;
        case ',':
            if (depth == s->depth) {
                e->end = i;
                s->at = i + 1;
                return 1;
            }
            /* The pairs of __metadata__ are scanned by themselves. */
            if (++commas[depth] >= CWS_HEADER_VALUES_MAX && !(e->metadata && depth == s->depth + 1))
                return cws_fail(err, CWS_E_INPUT,
                                "%s: offset %zu: an array of more than %d numbers, or an object of as many entries",
                                s->path, i + 8, CWS_HEADER_VALUES_MAX);
            e->values++;
            break;
        case '-': /* for the library 0, for the reference implementation no integer */
            if (i + 1 < s->len && text[i + 1] == '0')
                return cws_scan_invalid(s->path, i, "-0 is no integer", err);
            break;
        default: /* the library passes over a NUL behind a number */
            if (text[i] < ' ' && skip_blank(text, i, i + 1) == i)
                return cws_scan_invalid(s->path, i, "a control character", err);
            break;
        }
    }
    return cws_scan_invalid(s->path, s->len, "it ends inside an object", err);
}

int cws_scan_next(struct cws_scan *s, struct cws_scan_entry *out, struct cws_error *err)
{
    if (s->ended)
        return 0;
    *out = (struct cws_scan_entry){.begin = s->at};
    size_t at = skip_blank(s->text, s->at, s->len);
    if (!s->begun && at < s->len && s->text[at] == '}') {
        s->ended = true;
        s->at = at + 1;
        return 0;
    }
    s->begun = true;
    out->key = out->key_end = at;
    if (at < s->len && s->text[at] == '"')
        out->key_end = skip_string(s->text, at, s->len);
    out->longest = out->key_end - out->key;
    out->metadata = s->depth == 1 && says_metadata(s->text + out->key, out->key_end - out->key);
    return skip_value(s, out, err);
}
