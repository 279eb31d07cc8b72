/* top_show.c - tables, JSON, and a screen that is drawn over the one before. */
#include "top_show.h"
#include "store/base/utf8.h"
#include "table.h"
#include "text.h"

#include <math.h>
#include <string.h>

/* --- tables --------------------------------------------------------------------------------------------------- */

static void size_cell(struct cws_table *t, uint64_t bytes) { cws_table_cell(t, "%s", cws_size_text(bytes).text); }

static void rate_cell(struct cws_table *t, double value)
{
    if (isfinite(value))
        cws_table_cell(t, "%.0f", value);
    else
        cws_table_cell(t, "-");
}

static void bytes_rate_cell(struct cws_table *t, double value)
{
    if (isfinite(value))
        cws_table_cell(t, "%s", cws_size_text((uint64_t)value).text);
    else
        cws_table_cell(t, "-");
}

static void share_cell(struct cws_table *t, double value)
{
    if (isfinite(value))
        cws_table_cell(t, "%.0f", 100 * value);
    else
        cws_table_cell(t, "-");
}

void cws_top_show_all(const struct cws_top_sample *now, const struct cws_top_sample *before, FILE *out)
{
    static const char *const heads[] = {"PID",   "program", "device",  "budget", "weights",
                                        "other", "loads/s", "ahead %", "link %", "waits %"};
    struct cws_table *t = cws_table_create("rllrrrrrrr");
    char text[32];
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cws_table_cell(t, "%s", heads[i]);
    for (size_t i = 0; i < now->count; i++) {
        const struct cws_top_row *row = &now->rows[i];
        struct cws_top_figures f;
        cws_table_cell(t, "%d", row->pid);
        cws_table_cell(t, "%s", row->program);
        cws_table_cell(t, "%s", cws_top_device(row, text));
        if (!row->counters) {
            for (unsigned c = 3; c < sizeof heads / sizeof *heads; c++)
                cws_table_cell(t, "-");
            continue;
        }
        cws_top_figures(row, before, &f);
        size_cell(t, f.budget);
        size_cell(t, f.weights);
        size_cell(t, f.other);
        rate_cell(t, f.loads);
        share_cell(t, f.ahead);
        share_cell(t, f.link);
        share_cell(t, f.waits);
    }
    cws_table_write(t, out);
    cws_table_destroy(t);
}

/* --- one process ------------------------------------------------------------------------------------------------ */

/* A line of the table: what it is called, and the cell of a row. */
struct line {
    const char *name;
    bool of_gpus; /* left out where there is none */
    void (*cell)(struct cws_table *t, const struct cws_top_row *row, const struct cws_top_figures *f);
};

#define SIZE_LINE(id, expression)                                                                                      \
    static void id##_cell(struct cws_table *t, const struct cws_top_row *row, const struct cws_top_figures *f)         \
    {                                                                                                                  \
        (void)row;                                                                                                     \
        (void)f;                                                                                                       \
        size_cell(t, expression);                                                                                      \
    }
#define FIGURE_LINE(id, form)                                                                                          \
    static void id##_cell(struct cws_table *t, const struct cws_top_row *row, const struct cws_top_figures *f)         \
    {                                                                                                                  \
        (void)row;                                                                                                     \
        form(t, f->id);                                                                                                \
    }
#define GPU_LINE(id, counter)                                                                                          \
    static void id##_cell(struct cws_table *t, const struct cws_top_row *row, const struct cws_top_figures *f)         \
    {                                                                                                                  \
        (void)f;                                                                                                       \
        if (row->kind == CWS_TOP_GPU)                                                                                  \
            size_cell(t, cws_top_counter(row, counter));                                                               \
        else                                                                                                           \
            cws_table_cell(t, "-");                                                                                    \
    }
SIZE_LINE(budget, f->budget)
SIZE_LINE(peak, cws_top_counter(row, row->kind == CWS_TOP_GPU ? "peak" : "peak_bytes"))
SIZE_LINE(weights, f->weights)
SIZE_LINE(of, f->of)
SIZE_LINE(written, f->written)
SIZE_LINE(other, f->other)
GPU_LINE(staging, "staging")
GPU_LINE(compressed, "compressed")
FIGURE_LINE(loads, rate_cell)
FIGURE_LINE(ahead, share_cell)
FIGURE_LINE(drops, rate_cell)
FIGURE_LINE(decoded_bytes, bytes_rate_cell)
FIGURE_LINE(read_bytes, bytes_rate_cell)
FIGURE_LINE(link, share_cell)
FIGURE_LINE(waits, share_cell)
FIGURE_LINE(weight_waits, share_cell)
FIGURE_LINE(memory_waits, share_cell)

static const struct line lines[] = {
    {"budget", false, budget_cell},
    {"peak", false, peak_cell},
    {"weights in memory", false, weights_cell},
    {"weights in all", false, of_cell},
    {"written weights", false, written_cell},
    {"other memory", false, other_cell},
    {"staging", true, staging_cell},
    {"pinned host memory", true, compressed_cell},
    {"loads/s", false, loads_cell},
    {"loaded ahead %", false, ahead_cell},
    {"drops/s", false, drops_cell},
    {"decoded, bytes/s", false, decoded_bytes_cell},
    {"read or sent, bytes/s", false, read_bytes_cell},
    {"link busy %", true, link_cell},
    {"launches waited %", true, waits_cell},
    {"  for weights %", true, weight_waits_cell},
    {"  for memory %", true, memory_waits_cell},
};

static void print_command(int pid, FILE *out)
{
    char path[64], raw[512], text[1024];
    size_t bytes = 0;
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (file) {
        bytes = fread(raw, 1, sizeof raw - 1, file);
        fclose(file);
    }
    while (bytes && !raw[bytes - 1])
        bytes--;
    for (size_t i = 0; i < bytes; i++)
        raw[i] = raw[i] ? raw[i] : ' ';
    raw[bytes] = '\0';
    fprintf(out, "%d  %s\n\n", pid, cws_printable(raw, text, sizeof text));
}

void cws_top_show_one(const struct cws_top_sample *now, const struct cws_top_sample *before, FILE *out)
{
    char spec[64] = "l", text[32];
    size_t columns = now->count < sizeof spec - 2 ? now->count : sizeof spec - 2;
    if (!columns)
        return;
    print_command(now->rows[0].pid, out);
    if (!now->rows[0].counters) {
        fputs("It pages nothing now.\n", out);
        return;
    }
    bool gpus = now->rows[now->count - 1].kind == CWS_TOP_GPU;
    memset(spec + 1, 'r', columns);
    struct cws_table *t = cws_table_create(spec);
    cws_table_cell(t, "%s", "");
    for (size_t c = 0; c < columns; c++)
        cws_table_cell(t, "%s", cws_top_device(&now->rows[c], text));
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (lines[i].of_gpus && !gpus)
            continue;
        cws_table_cell(t, "%s", lines[i].name);
        for (size_t c = 0; c < columns; c++) {
            struct cws_top_figures f;
            cws_top_figures(&now->rows[c], before, &f);
            lines[i].cell(t, &now->rows[c], &f);
        }
    }
    cws_table_write(t, out);
    cws_table_destroy(t);
}

/* --- JSON ------------------------------------------------------------------------------------------------------- */

static void set_bytes(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void set_real(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, isfinite(value) ? json_real(value) : json_null());
}

static json_t *device_json(const struct cws_top_row *row, const struct cws_top_sample *before)
{
    struct cws_top_figures f;
    char text[32];
    json_t *out = json_object();
    cws_top_figures(row, before, &f);
    json_object_set_new(out, "device", json_string(cws_top_device(row, text)));
    set_bytes(out, "budget", f.budget);
    set_bytes(out, "weights", f.weights);
    set_bytes(out, "weights_in_all", f.of);
    set_bytes(out, "written", f.written);
    set_bytes(out, "other", f.other);
    set_real(out, "loads_per_s", f.loads);
    set_real(out, "ahead", f.ahead);
    set_real(out, "drops_per_s", f.drops);
    set_real(out, "decoded_per_s", f.decoded_bytes);
    set_real(out, "read_per_s", f.read_bytes);
    set_real(out, "link_busy", f.link);
    set_real(out, "waited", f.waits);
    set_real(out, "waited_for_weights", f.weight_waits);
    set_real(out, "waited_for_memory", f.memory_waits);
    json_object_set(out, "counters", row->counters);
    return out;
}

void cws_top_show_json(const struct cws_top_sample *now, const struct cws_top_sample *before, FILE *out)
{
    json_t *all = json_array(), *devices = NULL;
    for (size_t i = 0; i < now->count; i++) {
        const struct cws_top_row *row = &now->rows[i];
        if (i == 0 || row->pid != now->rows[i - 1].pid) {
            json_t *process = json_object();
            devices = json_array();
            json_object_set_new(process, "pid", json_integer(row->pid));
            json_object_set_new(process, "program", json_string(row->program));
            json_object_set_new(process, "answered", json_boolean(row->kind != CWS_TOP_SILENT));
            json_object_set_new(process, "clock_ns", json_integer((json_int_t)row->at_ns));
            json_object_set_new(process, "devices", devices);
            json_array_append_new(all, process);
        }
        if (row->counters)
            json_array_append_new(devices, device_json(row, before));
    }
    json_t *line = json_pack("{s:o}", "processes", all);
    json_dumpf(line, out, JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(line);
}

/* --- a terminal --------------------------------------------------------------------------------------------------- */

/* Bytes of the line at `text` that `columns` characters take. */
static size_t cut(const char *text, unsigned columns)
{
    size_t at = 0;
    while (columns-- > 0 && text[at] && text[at] != '\n') {
        size_t bytes = cws_utf8_bytes(text + at);
        at += bytes ? bytes : 1;
    }
    return at;
}

void cws_top_draw(const char *text, unsigned lines_most, unsigned columns, FILE *out)
{
    columns -= columns > 1; /* what stands in the last column is cleared with the rest of its line */
    fputs("\033[H", out);
    for (unsigned line = 0; *text && line < lines_most; line++) {
        if (line) /* a line's end behind the last one would scroll */
            fputc('\n', out);
        fwrite(text, 1, cut(text, columns), out);
        fputs("\033[K", out);
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    fputs("\033[J", out);
    fflush(out);
}
