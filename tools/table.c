#include "table.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cws_table {
    const char *spec;
    size_t columns, count, room;
    char **cells;   /* count of them */
    bool *rules;    /* per row begun: a rule follows */
};

static void out_of_memory(void)
{
    fputs("codecllm: out of memory while making a table\n", stderr);
    exit(2);
}

struct cws_table *cws_table_create(const char *spec)
{
    struct cws_table *t = calloc(1, sizeof *t);
    if (!t)
        out_of_memory();
    t->spec = spec;
    t->columns = strlen(spec);
    return t;
}

void cws_table_cell(struct cws_table *t, const char *fmt, ...)
{
    if (t->count == t->room) {
        t->room = t->room ? 2 * t->room : 64;
        void *cells = realloc(t->cells, t->room * sizeof *t->cells);
        void *rules = realloc(t->rules, t->room * sizeof *t->rules);
        if (!cells || !rules)
            out_of_memory();
        t->cells = cells;
        t->rules = rules;
        memset(t->rules + t->count, 0, (t->room - t->count) * sizeof *t->rules);
    }
    va_list args;
    va_start(args, fmt);
    if (vasprintf(&t->cells[t->count], fmt, args) < 0)
        out_of_memory();
    va_end(args);
    t->count++;
}

void cws_table_rule(struct cws_table *t)
{
    if (t->count)
        t->rules[(t->count - 1) / t->columns] = true;
}

/* Columns on the terminal of UTF-8 text: its characters, as names are rarely wide ones. */
static size_t text_columns(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void print_row(const struct cws_table *t, size_t first, const size_t *widths)
{
    size_t pending = 0; /* spaces owed before the next character, so that none ends a line */
    for (size_t c = 0; c < t->columns && first + c < t->count; c++) {
        const char *cell = t->cells[first + c];
        size_t pad = widths[c] - text_columns(cell);
        bool right = t->spec[c] == 'r';
        pending += right ? pad : 0;
        if (*cell) {
            printf("%*s%s", (int)pending, "", cell);
            pending = 0;
        }
        pending += (right ? 0 : pad) + 2;
    }
    putchar('\n');
}

void cws_table_print(const struct cws_table *t)
{
    size_t *widths = calloc(t->columns, sizeof *widths), all = 0;
    if (!widths)
        out_of_memory();
    for (size_t i = 0; i < t->count; i++) {
        size_t n = text_columns(t->cells[i]);
        if (n > widths[i % t->columns])
            widths[i % t->columns] = n;
    }
    for (size_t c = 0; c < t->columns; c++)
        all += widths[c] + (c ? 2 : 0);
    for (size_t first = 0; first < t->count; first += t->columns) {
        print_row(t, first, widths);
        if (t->rules[first / t->columns]) {
            for (size_t i = 0; i < all; i++)
                putchar('-');
            putchar('\n');
        }
    }
    free(widths);
}

void cws_table_destroy(struct cws_table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->count; i++)
        free(t->cells[i]);
    free(t->cells);
    free(t->rules);
    free(t);
}
