/* json_text.c - checks and reads JSON as Python's json module takes it. Jansson refuses NaN and large numbers, so the
 * text is checked here, and jansson gets it with every number blanked. */
#include "json_text.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_BYTES_MAX = 64 << 20, DEPTH_MAX = 200 };

struct json_scan {
    const char *at, *end;
};

static void skip_space(struct json_scan *t)
{
    while (t->at < t->end && memchr(" \t\r\n", *t->at, 4))
        t->at++;
}

static bool take(struct json_scan *t, const char *word)
{
    size_t len = strlen(word);
    if ((size_t)(t->end - t->at) < len || memcmp(t->at, word, len) != 0)
        return false;
    t->at += len;
    return true;
}

static bool is_digit(const struct json_scan *t) { return t->at < t->end && *t->at >= '0' && *t->at <= '9'; }

static bool skip_digits(struct json_scan *t)
{
    if (!is_digit(t))
        return false;
    while (is_digit(t))
        t->at++;
    return true;
}

static bool skip_number(struct json_scan *t)
{
    (void)take(t, "-");
    if (take(t, "Infinity"))
        return true;
    if (!take(t, "0") && !skip_digits(t))
        return false;
    if (take(t, ".") && !skip_digits(t))
        return false;
    if (take(t, "e") || take(t, "E")) {
        if (!take(t, "+"))
            (void)take(t, "-");
        return skip_digits(t);
    }
    return true;
}

static bool skip_string(struct json_scan *t)
{
    if (!take(t, "\""))
        return false;
    for (; t->at < t->end && *t->at != '"'; t->at++) {
        if ((unsigned char)*t->at < 0x20)
            return false;
        if (*t->at != '\\')
            continue;
        if (++t->at == t->end || !*t->at || !strchr("\"\\/bfnrtu", *t->at))
            return false;
        if (*t->at != 'u')
            continue;
        for (unsigned digits = 0; digits < 4; digits++) {
            if (++t->at == t->end || !*t->at || !strchr("0123456789abcdefABCDEF", *t->at))
                return false;
        }
    }
    return take(t, "\"");
}

static bool skip_value(struct json_scan *t, unsigned depth);

static bool skip_members(struct json_scan *t, bool object, unsigned depth)
{
    const char *close = object ? "}" : "]";
    t->at++;
    skip_space(t);
    if (take(t, close))
        return true;
    for (;;) {
        skip_space(t);
        if (object) {
            if (!skip_string(t))
                return false;
            skip_space(t);
            if (!take(t, ":"))
                return false;
        }
        if (!skip_value(t, depth + 1))
            return false;
        if (take(t, close))
            return true;
        if (!take(t, ","))
            return false;
    }
}

/* A value with the space around it. On false, t->at is where it went wrong. */
static bool skip_value(struct json_scan *t, unsigned depth)
{
    bool good;
    skip_space(t);
    if (t->at == t->end || depth > DEPTH_MAX)
        return false;
    switch (*t->at) {
    case '{': good = skip_members(t, true, depth); break;
    case '[': good = skip_members(t, false, depth); break;
    case '"': good = skip_string(t); break;
    case 't': good = take(t, "true"); break;
    case 'f': good = take(t, "false"); break;
    case 'n': good = take(t, "null"); break;
    case 'N': good = take(t, "NaN"); break;
    default: good = skip_number(t); break;
    }
    if (good)
        skip_space(t);
    return good;
}

int cws_json_check(const char *text, size_t len, unsigned *out_line)
{
    struct json_scan t = {text, text + len};
    bool good = skip_value(&t, 0) && t.at == t.end;
    *out_line = 1;
    for (const char *p = text; p < t.at; p++)
        *out_line += *p == '\n';
    return good ? 0 : CWS_E_INPUT;
}

int cws_json_read(const char *path, char **out, size_t *out_len, struct stat *out_st, struct cws_error *err)
{
    FILE *file = fopen(path, "re");
    unsigned line = 0;
    *out = NULL;
    *out_len = 0;
    if (!file)
        return cws_fail_errno(err, errno, "%s: cannot open", path);
    int rc = fstat(fileno(file), out_st) == 0 ? 0 : cws_fail_errno(err, errno, "%s", path);
    if (!rc && out_st->st_size > TEXT_BYTES_MAX)
        rc = cws_fail(err, CWS_E_INPUT, "%s: larger than 64 MiB; not a configuration", path);
    if (!rc && !(*out = malloc((size_t)out_st->st_size + 1)))
        rc = cws_fail(err, -ENOMEM, "%s: out of memory", path);
    if (!rc) {
        *out_len = fread(*out, 1, (size_t)out_st->st_size, file);
        (*out)[*out_len] = '\0';
        if (ferror(file))
            rc = cws_fail_errno(err, errno, "%s: cannot read", path);
        else if (cws_json_check(*out, *out_len, &line))
            rc = cws_fail(err, CWS_E_INPUT, "%s: line %u: not JSON", path, line);
    }
    fclose(file);
    if (rc) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

/* Every number outside of strings becomes 0 and spaces, so that all keeps its place. */
static void blank_numbers(char *text, size_t len)
{
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        if (in_string) {
            in_string = text[i] != '"';
            i += text[i] == '\\';
        } else if (text[i] == '"') {
            in_string = true;
        } else if (memchr("-0123456789NI", text[i], 13)) {
            for (bool first = true; i < len && !memchr(",]} \t\r\n", text[i], 7); i++, first = false)
                text[i] = first ? '0' : ' ';
            i--;
        }
    }
}

json_t *cws_json_objects(const char *text, size_t len, struct cws_json_twice *out_twice)
{
    unsigned line;
    json_error_t why;
    out_twice->text[0] = '\0';
    char *copy = cws_json_check(text, len, &line) ? NULL : malloc(len + 1);
    if (!copy)
        return NULL;
    memcpy(copy, text, len);
    blank_numbers(copy, len);
    json_t *root = json_loadb(copy, len, JSON_REJECT_DUPLICATES, &why);
    if (!root && json_error_code(&why) == json_error_duplicate_key) {
        snprintf(out_twice->text, sizeof out_twice->text, "line %d: %s; the last one counts", why.line, why.text);
        root = json_loadb(copy, len, 0, &why);
    }
    free(copy);
    return root;
}
