/* options.c - the table of CODEC_* variables, and the parser of each. */
#include "options.h"
#include "memory_limit.h"

#include <stdlib.h>
#include <string.h>

extern char **environ;

/* The one table. A parser returns 0 and sets its field, or CWS_E_USAGE and leaves it. */
struct option {
    const char *name, *fallback, *meaning, *accepts;
    int (*parse)(struct cws_options *o, const char *value);
};

int cws_parse_bytes(const char *text, size_t len, uint64_t *out)
{
    uint64_t whole = 0, fraction = 0, fraction_unit = 1;
    size_t i = 0, digits = 0;

    for (; i < len && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
        if (whole > (UINT64_MAX - 9) / 10)
            return CWS_E_USAGE;
        whole = whole * 10 + (uint64_t)(text[i] - '0');
    }
    if (i < len && text[i] == '.') {
        for (i++; i < len && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
            if (fraction_unit < 1000000) { /* finer digits than this do not matter to a byte count */
                fraction = fraction * 10 + (uint64_t)(text[i] - '0');
                fraction_unit *= 10;
            }
        }
    }
    if (digits == 0)
        return CWS_E_USAGE;
    unsigned shift = 0;
    if (i < len) {
        switch (text[i]) {
        case 'k':
        case 'K': shift = 10; break;
        case 'm':
        case 'M': shift = 20; break;
        case 'g':
        case 'G': shift = 30; break;
        case 't':
        case 'T': shift = 40; break;
        case 'b':
        case 'B': i--; break; /* plain bytes: "512B" */
        default: return CWS_E_USAGE;
        }
        i++;
        if (shift && i < len && text[i] == 'i') /* KiB, MiB, GiB */
            i++;
        if (i < len && (text[i] == 'B' || text[i] == 'b'))
            i++;
    }
    if (i != len || (shift == 0 && fraction) || whole > (UINT64_MAX >> shift))
        return CWS_E_USAGE;
    uint64_t bytes = whole << shift;
    uint64_t extra = ((UINT64_C(1) << shift) * fraction) / fraction_unit; /* 2^40 * 10^6 < 2^64 */
    if (bytes > UINT64_MAX - extra)
        return CWS_E_USAGE;
    *out = bytes + extra;
    return 0;
}

/* SIZE or PERCENT%, [text, stop); sets one of both. */
static int parse_amount(const char *text, const char *stop, uint64_t *bytes, unsigned *percent)
{
    size_t len = (size_t)(stop - text);
    uint64_t number;
    *bytes = *percent = 0;
    if (len < 2 || stop[-1] != '%')
        return cws_parse_bytes(text, len, bytes);
    if (strspn(text, "0123456789") != len - 1 || cws_parse_bytes(text, len - 1, &number) || number == 0 || number > 100)
        return CWS_E_USAGE;
    *percent = (unsigned)number;
    return 0;
}

/* "0:SIZE,1:SIZE": the entries, in order. */
static int parse_list(struct cws_options *o, const char *value)
{
    o->device_count = 0;
    for (const char *entry = value;;) {
        const char *stop = entry + strcspn(entry, ","), *mark = strchr(entry, ':');
        uint64_t bytes;
        unsigned percent;
        if (!mark || mark > stop || mark == entry || mark - entry > 9 ||
            strspn(entry, "0123456789") != (size_t)(mark - entry) || o->device_count == CWS_OPTIONS_DEVICES ||
            parse_amount(mark + 1, stop, &bytes, &percent))
            return CWS_E_USAGE;
        o->devices[o->device_count].device = (int)strtol(entry, NULL, 10); /* digits, as was seen */
        o->devices[o->device_count].percent = percent;
        o->devices[o->device_count++].bytes = bytes;
        if (!*stop)
            break;
        entry = stop + 1;
    }
    o->budget_bytes = o->devices[0].bytes;
    o->budget_percent = o->devices[0].percent;
    return o->budget_bytes || o->budget_percent ? 0 : CWS_E_USAGE;
}

/* "auto" or "auto:MIN-MAX". */
static int parse_auto(struct cws_options *o, const char *value)
{
    const char *mark = strchr(value, '-');
    if (value[4] == '\0') {
        o->auto_min = o->auto_max = 0;
    } else if (value[4] != ':' || !mark || cws_parse_bytes(value + 5, (size_t)(mark - value - 5), &o->auto_min) ||
               cws_parse_bytes(mark + 1, strlen(mark + 1), &o->auto_max) || o->auto_min == 0 ||
               o->auto_min > o->auto_max) {
        return CWS_E_USAGE;
    }
    o->budget_auto = o->active = true;
    return 0;
}

/* SIZE, PERCENT%, a list of these per device, or auto. */
static int parse_budget(struct cws_options *o, const char *value)
{
    if (strncmp(value, "auto", 4) == 0)
        return parse_auto(o, value);
    int code = strchr(value, ':') ? parse_list(o, value)
                                  : parse_amount(value, value + strlen(value), &o->budget_bytes, &o->budget_percent);
    if (code || (!o->budget_bytes && !o->budget_percent))
        return CWS_E_USAGE;
    o->active = true;
    return 0;
}

uint64_t cws_options_host_budget(const struct cws_options *o)
{
    struct cws_memory_limit limit;
    if (!o->budget_percent && !o->budget_auto)
        return o->budget_bytes;
    cws_memory_limit_get("", &limit);
    if (o->budget_auto) {
        uint64_t half = limit.free_bytes == UINT64_MAX ? 0 : limit.free_bytes / 2;
        uint64_t most = o->auto_max ? o->auto_max : UINT64_MAX;
        return half < o->auto_min ? o->auto_min : half > most ? most : half;
    }
    return limit.bytes / 100 * o->budget_percent;
}

uint64_t cws_options_device_budget(const struct cws_options *o, int device, uint64_t device_bytes)
{
    for (unsigned i = 0; i < o->device_count; i++)
        if (o->devices[i].device == device)
            return o->devices[i].percent ? device_bytes / 100 * o->devices[i].percent : o->devices[i].bytes;
    if (o->device_count)
        return 0;
    if (o->budget_auto)
        return o->auto_max && o->auto_max < device_bytes ? o->auto_max : device_bytes;
    return o->budget_percent ? device_bytes / 100 * o->budget_percent : o->budget_bytes;
}

static int parse_pin(struct cws_options *o, const char *value)
{
    size_t len = strlen(value);
    if (len >= sizeof o->pin)
        return CWS_E_USAGE;
    memcpy(o->pin, value, len + 1);
    return 0;
}

static int parse_trace(struct cws_options *o, const char *value)
{
    size_t len = strlen(value);
    if (len >= sizeof o->trace)
        return CWS_E_USAGE;
    memcpy(o->trace, value, len + 1);
    return 0;
}

static int parse_host_budget(struct cws_options *o, const char *value)
{
    return cws_parse_bytes(value, strlen(value), &o->host_budget_bytes);
}

static int parse_policy(struct cws_options *o, const char *value)
{
    if (strcmp(value, "next") == 0)
        o->policy = CWS_POLICY_NEXT;
    else if (strcmp(value, "lru") == 0)
        o->policy = CWS_POLICY_LRU;
    else
        return CWS_E_USAGE;
    return 0;
}

static int parse_flag(const char *value, bool *out)
{
    if ((value[0] != '0' && value[0] != '1') || value[1])
        return CWS_E_USAGE;
    *out = value[0] == '1';
    return 0;
}

static int parse_prefetch(struct cws_options *o, const char *value) { return parse_flag(value, &o->prefetch); }
static int parse_strict(struct cws_options *o, const char *value) { return parse_flag(value, &o->strict); }
static int parse_adopt(struct cws_options *o, const char *value) { return parse_flag(value, &o->adopt); }
static int parse_stats(struct cws_options *o, const char *value) { return parse_flag(value, &o->stats); }

static int parse_verbose(struct cws_options *o, const char *value)
{
    bool on;
    int code = parse_flag(value, &on);
    if (code == 0)
        o->verbose = on;
    return code;
}

static int parse_io(struct cws_options *o, const char *value)
{
    if (strcmp(value, "uring") == 0)
        o->io = CWS_IO_URING;
    else if (strcmp(value, "preadv") == 0)
        o->io = CWS_IO_PREADV;
    else
        return CWS_E_USAGE;
    return 0;
}

static int parse_pager(struct cws_options *o, const char *value)
{
    static const char *const rungs[] = {"uffd-dev", "uffd", "uffd-user", "sigsegv", "eager"};
    for (size_t i = 0; i < sizeof rungs / sizeof *rungs; i++) {
        if (strcmp(value, rungs[i]) == 0) {
            o->pager = rungs[i];
            return 0;
        }
    }
    return CWS_E_USAGE;
}

#define BUDGET_FORMS "a size (2G, 512M), a percentage (50%)"

/* The first row is the budget: cws_options_check_budget. */
static const struct option table[] = {
    {"CODEC_VRAM_BUDGET", "unset: paging off", "decoded weights kept at most; without a GPU, in host memory",
     BUDGET_FORMS ", a list per device (0:2G,1:50%) or auto (auto, auto:4G-20G)", parse_budget},
    {"CODEC_HOST_BUDGET", "automatic", "pinned host memory of a GPU's paging: compressed bytes, and what was written",
     "a size (8G, 512M)", parse_host_budget},
    {"CODEC_POLICY", "next", "what to drop first: next (predicted next use) or lru", "next or lru", parse_policy},
    {"CODEC_PREFETCH", "1", "decode ahead of the program", "0 or 1", parse_prefetch},
    {"CODEC_ADOPT", "1", "page on a GPU what was copied there from ordinary memory, too, where not all fits", "0 or 1",
     parse_adopt},
    {"CODEC_PIN", "none", "weights never dropped from a GPU, for kernels that reach them through hidden pointers",
     "tensor names with * and ?, comma-separated, at most 255 bytes", parse_pin},
    {"CODEC_IO", "automatic", "how the store is read: uring (io_uring) or preadv", "uring or preadv", parse_io},
    {"CODEC_PAGER", "automatic", "force one paging rung", "uffd-dev, uffd, uffd-user, sigsegv or eager", parse_pager},
    {"CODEC_TRACE", "none", "file to write what was paged when to, for ui.perfetto.dev and 'codecllm plot'",
     "the name of a file, at most 1023 bytes", parse_trace},
    {"CODEC_STRICT", "0",
     "1: on a GPU, only what a launch names is mapped while it runs: shows hidden pointers at once; slow", "0 or 1",
     parse_strict},
    {"CODEC_STATS", "0", "print the counters when the program ends", "0 or 1", parse_stats},
    {"CODEC_VERBOSE", "0", "1: say at the first store what is in force", "0 or 1", parse_verbose},
};
enum { ROW_COUNT = sizeof table / sizeof *table };

static int refuse(const struct option *row, const char *value, struct cws_error *err)
{
    return cws_fail(err, CWS_E_USAGE, "%s=%s: not understood; use %s", row->name, value, row->accepts);
}

int cws_options_check_budget(const char *value, struct cws_error *err)
{
    struct cws_options unused = {0};
    return parse_budget(&unused, value) ? refuse(&table[0], value, err) : 0;
}

int cws_options_set_budget(struct cws_options *o, const char *value, struct cws_error *err)
{
    struct cws_options next = *o;
    next.budget_bytes = 0;
    next.budget_percent = next.device_count = 0;
    next.budget_auto = false;
    next.auto_min = next.auto_max = 0;
    if (parse_budget(&next, value) || next.budget_auto)
        return cws_fail(err, CWS_E_USAGE,
                        "a budget of '%s': not understood%s; use %s or a list per device (0:2G,1:50%%)", value,
                        next.budget_auto ? " while a program runs" : "", BUDGET_FORMS);
    *o = next;
    return 0;
}

int cws_options_from_env(struct cws_options *out, struct cws_error *err)
{
    static const struct cws_options defaults = {
        .policy = CWS_POLICY_NEXT, .prefetch = true, .adopt = true, .io = CWS_IO_AUTO};
    *out = defaults;
    for (size_t i = 0; i < ROW_COUNT; i++) {
        const char *value = getenv(table[i].name);
        if (!value || !*value) /* empty means unset, as in most tools */
            continue;
        if (table[i].parse(out, value)) {
            *out = defaults;
            return refuse(&table[i], value, err);
        }
    }
    return 0;
}

void cws_options_unknown(void (*visit)(void *arg, const char *name_and_value), void *arg)
{
    for (char **entry = environ; entry && *entry; entry++) {
        if (strncmp(*entry, "CODEC_", 6) != 0)
            continue;
        size_t len = strcspn(*entry, "=");
        bool known = false;
        for (size_t i = 0; i < ROW_COUNT && !known; i++)
            known = strlen(table[i].name) == len && strncmp(table[i].name, *entry, len) == 0;
        if (!known)
            visit(arg, *entry);
    }
}

bool cws_options_row(size_t i, struct cws_option_row *out)
{
    if (i >= ROW_COUNT)
        return false;
    out->name = table[i].name;
    out->fallback = table[i].fallback;
    out->meaning = table[i].meaning;
    out->value = getenv(table[i].name);
    return true;
}
