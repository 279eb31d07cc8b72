#include "trace_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { THREADS = 512, DEPTH = 64 };

struct line { /* of time */
    long long tid;
    double last;
    unsigned depth;
    bool named, used;
    const char *open[DEPTH];
};

static char *load_text(const char *path, bool finished)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s cannot be opened", path);
    fseek(f, 0, SEEK_END);
    size_t size = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(size + 2);
    if (fread(text, 1, size, f) != size)
        fail_msg("%s cannot be read", path);
    fclose(f);
    text[size] = '\0';
    if (!finished)
        strcpy(text + size, "]");
    return text;
}

static struct line *line_of(struct line *lines, long long tid)
{
    for (unsigned i = 0; i < THREADS; i++) {
        if (lines[i].tid == tid || lines[i].tid == 0) {
            lines[i].tid = tid;
            return &lines[i];
        }
    }
    fail_msg("more than %d threads", THREADS);
    return NULL;
}

static void check_event(json_t *e, struct line *l, int pid)
{
    const char *name = json_string_value(json_object_get(e, "name")),
               *phase = json_string_value(json_object_get(e, "ph"));
    assert_non_null(phase);
    assert_int_equal(strlen(phase), 1);
    assert_true(strchr("BEXiCM", *phase));
    assert_int_equal(json_integer_value(json_object_get(e, "pid")), pid);
    if (*phase == 'M') {
        assert_non_null(name);
        l->named |= strcmp(name, "thread_name") == 0 &&
                    json_string_length(json_object_get(json_object_get(e, "args"), "name")) > 0;
        return;
    }
    json_t *at = json_object_get(e, "ts");
    assert_true(json_is_number(at));
    if (*phase == 'C') {
        assert_true(json_is_integer(json_object_get(json_object_get(e, "args"), "weights")));
        return;
    }
    l->used = true;
    if (json_number_value(at) < l->last)
        fail_msg("%s: time goes back from %f to %f", name ? name : "E", l->last, json_number_value(at));
    l->last = json_number_value(at);
    if (*phase == 'B') {
        assert_true(l->depth < DEPTH);
        l->open[l->depth++] = name;
    } else if (*phase == 'E') {
        assert_true(l->depth > 0);
        l->depth--;
        if (name && strcmp(name, l->open[l->depth]) != 0)
            fail_msg("%s ends %s", name, l->open[l->depth]);
    } else if (*phase == 'X') {
        assert_true(json_number_value(json_object_get(e, "dur")) >= 0);
    }
}

json_t *trace_load(const char *path, int pid, bool finished)
{
    static struct line lines[THREADS];
    json_error_t error;
    json_t *e;
    size_t i;
    char *text = load_text(path, finished);
    json_t *events = json_loads(text, 0, &error);
    if (!events)
        fail_msg("%s: line %d: %s", path, error.line, error.text);
    free(text);
    memset(lines, 0, sizeof lines);
    assert_true(json_is_array(events));
    json_array_foreach(events, i, e) check_event(e, line_of(lines, json_integer_value(json_object_get(e, "tid"))), pid);
    for (i = 0; i < THREADS; i++) {
        assert_true(!lines[i].used || lines[i].named);
        assert_true(!finished || lines[i].depth == 0);
    }
    assert_string_equal(json_string_value(json_object_get(json_array_get(events, 0), "name")), "process_name");
    return events;
}

static bool is(json_t *e, const char *name, char phase)
{
    const char *own = json_string_value(json_object_get(e, "name"));
    return own && strcmp(own, name) == 0 && (phase == '*' || json_string_value(json_object_get(e, "ph"))[0] == phase);
}

json_t *trace_event(json_t *events, const char *name, char phase, size_t n)
{
    json_t *e;
    size_t i;
    json_array_foreach(events, i, e) if (is(e, name, phase) && n-- == 0) return e;
    return NULL;
}

size_t trace_count(json_t *events, const char *name, char phase)
{
    json_t *e;
    size_t i, n = 0;
    json_array_foreach(events, i, e) n += is(e, name, phase);
    return n;
}

const char *trace_text(json_t *event, const char *argument)
{
    const char *text = json_string_value(json_object_get(json_object_get(event, "args"), argument));
    return text ? text : "";
}

long long trace_number(json_t *event, const char *argument)
{
    json_t *value = json_object_get(json_object_get(event, "args"), argument);
    return value ? json_integer_value(value) : -1;
}
