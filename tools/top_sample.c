/* top_sample.c - finds processes that page, reads their counters, and makes figures of them. */
#include "top_sample.h"
#include "ask.h"
#include "text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EACH_SECONDS = 2 }; /* for the answer of one of many */

/* --- one process -------------------------------------------------------------------------------------------- */

static void *more(void *array, size_t count, size_t size)
{
    void *out = realloc(array, count * size);
    if (!out) {
        fputs("codecllm: out of memory\n", stderr);
        exit(2);
    }
    return out;
}

static void read_program(int pid, char *out, size_t room)
{
    char path[64], name[64] = "?";
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    FILE *file = fopen(path, "re");
    if (file) {
        if (fgets(name, sizeof name, file))
            name[strcspn(name, "\n")] = '\0';
        fclose(file);
    }
    cws_printable(name, out, room);
}

/* The row takes the reference on its counters. */
static void add(struct cws_top_sample *s, struct cws_top_row row)
{
    read_program(row.pid, row.program, sizeof row.program);
    s->rows = more(s->rows, s->count + 1, sizeof *s->rows);
    s->rows[s->count++] = row;
}

static void add_gpus(struct cws_top_sample *s, struct cws_top_row row, const char *text)
{
    json_t *gpus = json_loads(text, 0, NULL), *gpu;
    size_t i;
    json_array_foreach(gpus, i, gpu)
    {
        if (!json_is_object(gpu))
            continue;
        row.kind = CWS_TOP_GPU;
        row.gpu = (int)json_integer_value(json_object_get(gpu, "device"));
        row.counters = json_incref(gpu);
        add(s, row);
    }
    json_decref(gpus);
}

static void add_answer(struct cws_top_sample *s, int pid, char *answer)
{
    struct cws_top_row row = {.pid = pid, .kind = CWS_TOP_HOST};
    size_t before = s->count;
    char *rest = NULL;
    for (char *line = strtok_r(answer, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (strncmp(line, "clock ", 6) == 0) {
            row.at_ns = strtoull(line + 6, NULL, 10);
        } else if (strncmp(line, "host ", 5) == 0) {
            struct cws_top_row host = row;
            host.counters = json_loads(line + 5, 0, NULL);
            if (json_is_object(host.counters))
                add(s, host);
            else
                json_decref(host.counters);
        } else if (strncmp(line, "gpus ", 5) == 0) {
            add_gpus(s, row, line + 5);
        }
    }
    row.kind = CWS_TOP_NOTHING;
    if (s->count == before)
        add(s, row);
}

static int sample(struct cws_top_sample *s, int pid, unsigned seconds, struct cws_error *err)
{
    char answer[CWS_CONTROL_ANSWER];
    int code = cws_ask(pid, CWS_CONTROL_STATS, seconds, answer, err);
    if (!code)
        add_answer(s, pid, answer);
    return code;
}

int cws_top_sample_one(struct cws_top_sample *s, int pid, unsigned seconds, struct cws_error *err)
{
    cws_top_sample_free(s);
    return sample(s, pid, seconds, err);
}

/* --- all of them -------------------------------------------------------------------------------------------- */

/* A name may be taken by anybody, who then need not answer. Programs whose memory is secret seem to be root's. */
static bool may_be_ours(int pid)
{
    char path[64];
    struct stat st;
    snprintf(path, sizeof path, "/proc/%d", pid);
    return stat(path, &st) == 0 && (geteuid() == 0 || st.st_uid == geteuid() || st.st_uid == 0);
}

static int by_number(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* Does the line of /proc/net/unix show a socket that listens? "ADDRESS: COUNT PROTOCOL FLAGS ...", in hexadecimal. */
static bool listens(const char *line)
{
    for (unsigned field = 0; field < 3; field++) {
        line += strcspn(line, " ");
        line += strspn(line, " ");
    }
    return strtoul(line, NULL, 16) & 0x10000;
}

/* The processes whose name is taken by a socket that listens, in ascending order; the caller frees them. */
static size_t list(int **out)
{
    static const char name[] = " @codecllm.";
    FILE *file = fopen("/proc/net/unix", "re");
    char *line = NULL;
    size_t room = 0, count = 0;
    int pid;
    *out = NULL;
    while (file && getline(&line, &room, file) > 0) {
        char *at = strstr(line, name);
        line[strcspn(line, "\n")] = '\0';
        if (!at || !listens(line) || !cws_ask_pid(at + strlen(name), &pid) || !may_be_ours(pid))
            continue;
        *out = more(*out, count + 1, sizeof **out);
        (*out)[count++] = pid;
    }
    free(line);
    if (file)
        fclose(file);
    if (count)
        qsort(*out, count, sizeof **out, by_number);
    return count;
}

void cws_top_sample_all(struct cws_top_sample *s)
{
    struct cws_error err = {0};
    int *pids;
    size_t count = list(&pids);
    cws_top_sample_free(s);
    for (size_t i = 0; i < count; i++)
        if (sample(s, pids[i], EACH_SECONDS, &err) == -EAGAIN)
            add(s, (struct cws_top_row){.pid = pids[i], .kind = CWS_TOP_SILENT});
    free(pids);
}

void cws_top_sample_free(struct cws_top_sample *s)
{
    for (size_t i = 0; i < s->count; i++)
        json_decref(s->rows[i].counters);
    free(s->rows);
    *s = (struct cws_top_sample){.rows = NULL};
}

/* --- figures ------------------------------------------------------------------------------------------------ */

const char *cws_top_device(const struct cws_top_row *row, char text[32])
{
    static const char *const names[] = {
        [CWS_TOP_HOST] = "host", [CWS_TOP_NOTHING] = "none", [CWS_TOP_SILENT] = "no answer"};
    if (row->kind == CWS_TOP_GPU)
        snprintf(text, 32, "GPU %d", row->gpu);
    else
        snprintf(text, 32, "%s", names[row->kind]);
    return text;
}

uint64_t cws_top_counter(const struct cws_top_row *row, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(row->counters, name));
    return value > 0 ? (uint64_t)value : 0;
}

/* The same of the sample before; NULL: it was not there, or began anew. */
static const struct cws_top_row *earlier(const struct cws_top_row *row, const struct cws_top_sample *before)
{
    for (size_t i = 0; before && i < before->count; i++) {
        const struct cws_top_row *r = &before->rows[i];
        if (r->pid == row->pid && r->kind == row->kind && r->gpu == row->gpu)
            return r->at_ns < row->at_ns ? r : NULL;
    }
    return NULL;
}

struct span { /* between two samples */
    const struct cws_top_row *now, *then;
    double seconds;
};

static double difference(const struct span *s, const char *name)
{
    if (!s->then)
        return NAN;
    uint64_t now = cws_top_counter(s->now, name), then = cws_top_counter(s->then, name);
    return now >= then ? (double)(now - then) : NAN;
}

static double rate(const struct span *s, const char *name) { return difference(s, name) / s->seconds; }
static double share(const struct span *s, const char *name) { return rate(s, name) / 1e9; }

static void host_figures(const struct span *s, struct cws_top_figures *out)
{
    double ahead = rate(s, "prefetched_blocks");
    out->budget = cws_top_counter(s->now, "budget_bytes");
    out->weights = cws_top_counter(s->now, "resident_bytes");
    out->of = cws_top_counter(s->now, "mapped_bytes");
    out->written = cws_top_counter(s->now, "written_bytes");
    out->other = cws_top_counter(s->now, "outside_bytes");
    out->loads = ahead + rate(s, "faults");
    out->decoded_bytes = rate(s, "decoded_bytes");
    out->read_bytes = rate(s, "read_bytes");
    out->drops = rate(s, "evictions");
    out->ahead = ahead / out->loads;
    out->link = out->waits = out->weight_waits = out->memory_waits = NAN;
}

static void gpu_figures(const struct span *s, struct cws_top_figures *out)
{
    out->budget = cws_top_counter(s->now, "budget");
    out->weights = cws_top_counter(s->now, "decoded");
    out->of = cws_top_counter(s->now, "bound");
    out->written = cws_top_counter(s->now, "dirty");
    out->other = cws_top_counter(s->now, "other");
    out->loads = rate(s, "loads");
    out->decoded_bytes = rate(s, "loaded_bytes");
    out->read_bytes = rate(s, "link_bytes");
    out->drops = rate(s, "drops");
    out->ahead = rate(s, "prefetched") / out->loads;
    out->link = share(s, "link_ns");
    out->waits = share(s, "stall_ns");
    out->weight_waits = share(s, "weight_wait_ns");
    out->memory_waits = share(s, "fresh_wait_ns");
}

void cws_top_figures(const struct cws_top_row *row, const struct cws_top_sample *before, struct cws_top_figures *out)
{
    struct span s = {.now = row, .then = earlier(row, before)};
    if (s.then)
        s.seconds = (double)(row->at_ns - s.then->at_ns) / 1e9;
    if (row->kind == CWS_TOP_GPU)
        gpu_figures(&s, out);
    else
        host_figures(&s, out);
}
