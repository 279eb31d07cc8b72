/* json_replace.c - finds one value in JSON text and replaces it. */
#include "json_replace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Index behind the string that starts at text[i] == '"'. */
static size_t skip_string(const char *text, size_t len, size_t i)
{
    for (i++; i < len && text[i] != '"'; i++)
        i += text[i] == '\\';
    return i < len ? i + 1 : len;
}

static size_t skip_space(const char *text, size_t len, size_t i)
{
    while (i < len && memchr(" \t\r\n", text[i], 4))
        i++;
    return i;
}

/* Index behind the string or number at i; i itself for anything else. */
static size_t skip_value(const char *text, size_t len, size_t i)
{
    if (i < len && text[i] == '"')
        return skip_string(text, len, i);
    while (i < len && memchr("+-.0123456789eE", text[i], 15))
        i++;
    return i;
}

int cws_json_replace(const char *text, size_t len, const char *key, int (*matches)(const char *value, size_t len),
                     const char *replacement, char **out, size_t *out_len, size_t *out_count)
{
    size_t key_len = strlen(key), add = strlen(replacement), to = 0, count = 0;
    /* Every value replaced follows a quoted key, so this much is enough. */
    char *copy = malloc(len + (len / (key_len + 4) + 1) * add + 1);
    if (!copy)
        return -ENOMEM;
    for (size_t i = 0; i < len;) {
        if (text[i] != '"') {
            copy[to++] = text[i++];
            continue;
        }
        size_t end = skip_string(text, len, i);
        int is_key = end - i == key_len + 2 && memcmp(text + i + 1, key, key_len) == 0;
        memcpy(copy + to, text + i, end - i);
        to += end - i;
        i = end;
        size_t colon = skip_space(text, len, end);
        if (!is_key || colon == len || text[colon] != ':')
            continue;
        size_t value = skip_space(text, len, colon + 1), after = skip_value(text, len, value);
        if (after == value || !matches(text + value, after - value))
            continue;
        memcpy(copy + to, text + end, value - end);
        to += value - end;
        memcpy(copy + to, replacement, add);
        to += add;
        i = after;
        count++;
    }
    copy[to] = '\0';
    *out = copy;
    *out_len = to;
    *out_count = count;
    return 0;
}
