/* replay_tuning.c - the tuned numbers (uvm/policy/tuning.h) on the command line of replay_policy: NAME=VALUE, and the
 * values of a sweep. */
#include "store/base/options.h"
#include "replay.h"

#include <stdio.h>
#include <string.h>

bool replay_has(const struct cws_tuning_row *row)
{
    static const char *const groups[] = {"history_", "order_", "views_", "load_", "staging_", "tier_"};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (strncmp(row->name, groups[i], strlen(groups[i])) == 0)
            return true;
    return false;
}

bool replay_is_of_views(const struct cws_tuning_row *row) { return strncmp(row->name, "views_", 6) == 0; }

static bool is_bytes(const struct cws_tuning_row *row) { return strcmp(row->unit, "bytes") == 0; }

struct replay_value replay_value(const struct cws_tuning_row *row, uint64_t value)
{
    static const char units[] = "KMG";
    struct replay_value v;
    int unit = -1;
    while (is_bytes(row) && unit < 2 && value && value % 1024 == 0) {
        value /= 1024;
        unit++;
    }
    snprintf(v.text, sizeof v.text, "%llu%.*s", (unsigned long long)value, unit >= 0, unit >= 0 ? units + unit : "");
    return v;
}

/* Splits NAME=REST, finds the number. */
static int parse_name(const char *text, struct cws_tuning_row *row, const char **rest, struct cws_error *err)
{
    char name[64];
    size_t length = strcspn(text, "=");
    if (length == 0 || !text[length])
        return cws_fail(err, CWS_E_USAGE, "%.80s: NAME=VALUE is wanted; --tuning lists names", text);
    snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), text);
    if (length >= sizeof name || !cws_tuning_find(name, row))
        return cws_fail(err, CWS_E_USAGE, "%s: there is no number of this name; --tuning lists them", name);
    if (!replay_has(row))
        return cws_fail(err, CWS_E_USAGE, "%s: it belongs to the CUDA manager alone, and the model has no use for it",
                        name);
    *rest = text + length + 1;
    return 0;
}

static bool parse_count(const char *text, size_t length, uint64_t *out)
{
    *out = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9' || *out > (UINT64_MAX - 9) / 10)
            return false;
        *out = *out * 10 + (uint64_t)(text[i] - '0');
    }
    return length > 0;
}

/* A whole number; of bytes, also a size. */
static int parse_value(const struct cws_tuning_row *row, const char *text, size_t length, uint64_t *out,
                       struct cws_error *err)
{
    bool read = parse_count(text, length, out) || (is_bytes(row) && cws_parse_bytes(text, length, out) == 0);
    if (!read || *out < row->least || *out > row->most)
        return cws_fail(err, CWS_E_USAGE, "%s=%.*s: it is %s from %s to %s", row->name,
                        (int)(length < 40 ? length : 40), text, is_bytes(row) ? "a size" : "a whole number",
                        replay_value(row, row->least).text, replay_value(row, row->most).text);
    return 0;
}

int replay_set(struct cws_tuning *t, const char *text, struct cws_error *err)
{
    struct cws_tuning_row row;
    const char *rest;
    uint64_t value;
    int code = parse_name(text, &row, &rest, err);
    if (!code)
        code = parse_value(&row, rest, strlen(rest), &value, err);
    if (!code)
        cws_tuning_set(t, row.name, value);
    return code;
}

static int too_many(const struct cws_tuning_row *row, struct cws_error *err)
{
    return cws_fail(err, CWS_E_USAGE, "%s: a sweep has from 2 to %d values", row->name, REPLAY_SWEEP_MAX);
}

/* FROM:TO:STEPS */
static int parse_steps(struct replay_sweep *s, const char *rest, struct cws_error *err)
{
    uint64_t from, to, steps;
    size_t first = strcspn(rest, ":"), second = first + 1 + strcspn(rest + first + 1, ":");
    int code = parse_value(&s->row, rest, first, &from, err);
    if (!code)
        code = parse_value(&s->row, rest + first + 1, second - first - 1, &to, err);
    if (code)
        return code;
    if (rest[second] != ':' || from >= to)
        return cws_fail(err, CWS_E_USAGE, "%s=%.80s: FROM:TO:STEPS is wanted, FROM below TO", s->row.name, rest);
    if (!parse_count(rest + second + 1, strlen(rest + second + 1), &steps) || steps < 2 || steps > REPLAY_SWEEP_MAX)
        return too_many(&s->row, err);
    for (uint64_t i = 0; i < steps; i++) { /* steps of less than one are one */
        uint64_t value = from + (uint64_t)((double)(to - from) * (double)i / (double)(steps - 1) + 0.5);
        if (s->count == 0 || value > s->values[s->count - 1])
            s->values[s->count++] = value;
    }
    return 0;
}

static int parse_list(struct replay_sweep *s, const char *rest, struct cws_error *err)
{
    for (;; rest++) {
        size_t length = strcspn(rest, ",");
        if (s->count == REPLAY_SWEEP_MAX)
            return too_many(&s->row, err);
        int code = parse_value(&s->row, rest, length, &s->values[s->count++], err);
        if (code)
            return code;
        rest += length;
        if (!*rest)
            return s->count < 2 ? too_many(&s->row, err) : 0;
    }
}

int replay_sweep_of(struct replay_sweep *s, const char *text, struct cws_error *err)
{
    const char *rest;
    *s = (struct replay_sweep){0};
    int code = parse_name(text, &s->row, &rest, err);
    if (!code)
        code = strchr(rest, ':') ? parse_steps(s, rest, err) : parse_list(s, rest, err);
    if (code)
        s->count = 0;
    return code;
}
