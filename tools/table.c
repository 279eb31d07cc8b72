/* table.c - collects cells of text and prints them in aligned columns. */
#include "table.h"
#include "store/base/utf8.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cws_table {
    const char *spec;
    size_t columns, count;
    char *text; /* the cells, one NUL-terminated string after the other: a table may have millions */
    size_t bytes, room;
    size_t *rules; /* numbers of cells behind which a rule follows */
    size_t rule_count;
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
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(t->text ? t->text + t->bytes : NULL, t->room - t->bytes, fmt, args);
    if (n >= 0 && (size_t)n >= t->room - t->bytes) {
        size_t room = 2 * t->room + (size_t)n + 256;
        char *text = realloc(t->text, room);
        if (!text)
            out_of_memory();
        t->text = text;
        t->room = room;
        n = vsnprintf(t->text + t->bytes, t->room - t->bytes, fmt, again);
    }
    va_end(again);
    va_end(args);
    if (n < 0)
        out_of_memory();
    t->bytes += (size_t)n + 1;
    t->count++;
}

void cws_table_rule(struct cws_table *t)
{
    size_t *rules = realloc(t->rules, (t->rule_count + 1) * sizeof *rules);
    if (!rules)
        out_of_memory();
    t->rules = rules;
    t->rules[t->rule_count++] = t->count;
}

/* Names rarely have wide characters: a character is a column. */
static size_t text_columns(const char *s) { return cws_utf8_count(s); }

/* Returns what follows the row. */
static const char *write_row(const struct cws_table *t, const char *cell, size_t cells, const size_t *widths, FILE *out)
{
    size_t pending = 0; /* spaces owed before the next character, so that none ends a line */
    for (size_t c = 0; c < cells; c++) {
        size_t pad = widths[c] - text_columns(cell);
        bool right = t->spec[c] == 'r';
        pending += right ? pad : 0;
        if (*cell) {
            fprintf(out, "%*s%s", (int)pending, "", cell);
            pending = 0;
        }
        pending += (right ? 0 : pad) + 2;
        cell += strlen(cell) + 1;
    }
    fputc('\n', out);
    return cell;
}

void cws_table_print(const struct cws_table *t) { cws_table_write(t, stdout); }

void cws_table_write(const struct cws_table *t, FILE *out)
{
    size_t *widths = calloc(t->columns, sizeof *widths), all = 0;
    if (!widths)
        out_of_memory();
    const char *cell = t->text;
    for (size_t i = 0; i < t->count; i++) {
        size_t n = text_columns(cell);
        if (n > widths[i % t->columns])
            widths[i % t->columns] = n;
        cell += strlen(cell) + 1;
    }
    for (size_t c = 0; c < t->columns; c++)
        all += widths[c] + (c ? 2 : 0);
    cell = t->text;
    size_t rule = 0;
    for (size_t done = 0; done < t->count;) {
        size_t cells = t->count - done < t->columns ? t->count - done : t->columns;
        cell = write_row(t, cell, cells, widths, out);
        done += cells;
        for (; rule < t->rule_count && t->rules[rule] <= done; rule++) {
            for (size_t i = 0; i < all; i++)
                fputc('-', out);
            fputc('\n', out);
        }
    }
    free(widths);
}

void cws_table_destroy(struct cws_table *t)
{
    if (!t)
        return;
    free(t->text);
    free(t->rules);
    free(t);
}
