/* trace_writer.c - trace records as lines of JSON. One thread's work; the file is written by direct calls (os.h),
 * since inside the shim the C library's are hooks. */
#include "os.h"
#include "trace_ring.h"
#include "utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 1 << 16,
    LINE_BYTES = 4096,   /* no event is longer, its thread's name with it: 6 bytes for each of a name */
    THREADS_MAX = 4096,  /* known by name; a power of two */
    LANE_BASE = 1 << 22, /* above every thread's number */
};

struct seen {
    uint32_t thread;
    uint32_t open; /* spans */
    uint64_t last_ns;
};

struct cws_trace_writer {
    int fd, pid;
    uint64_t at; /* of the file: all before are whole events */
    size_t used;
    uint32_t seen_count;
    struct seen seen[THREADS_MAX];
    char buffer[BUFFER_BYTES];
};

static const struct {
    const char *name, *category, *index;
} kinds[] = {
    [CWS_TRACE_FAULT] = {"fault", "host", "block"},
    [CWS_TRACE_PREFETCH] = {"prefetch", "host", "block"},
    [CWS_TRACE_HOLD] = {"hold", "host", "block"},
    [CWS_TRACE_EVICT] = {"evict", "host", "block"},
    [CWS_TRACE_UNMAPPED] = {"unmapped", "host", "block"},
    [CWS_TRACE_WRITTEN] = {"written", "host", "block"},
    [CWS_TRACE_READ] = {"read", "store", "chunk"},
    [CWS_TRACE_DECODE] = {"decode", "store", "chunk"},
    [CWS_TRACE_PUBLISH] = {"publish", "host", "block"},
    [CWS_TRACE_USE] = {"use", "gpu", "range"},
    [CWS_TRACE_WAIT] = {"wait for weights", "gpu", "range"},
    [CWS_TRACE_FETCH] = {"fetch", "gpu", "range"},
    [CWS_TRACE_LOAD] = {"load", "gpu", "range"},
    [CWS_TRACE_COPY] = {"copy", "gpu", "chunk"},
    [CWS_TRACE_MAP] = {"map", "gpu", "range"},
    [CWS_TRACE_DROP] = {"drop", "gpu", "range"},
    [CWS_TRACE_CYCLE] = {"cycle", "gpu", "number"},
    [CWS_TRACE_LOST] = {"lost", "trace", "number"},
};
_Static_assert(sizeof kinds / sizeof *kinds == CWS_TRACE_KINDS, "a row for each kind");

/* --- text -------------------------------------------------------------------------------------------- */

static void put(struct cws_trace_writer *w, const char *format, ...) CWS_PRINTF(2, 3);
static void put(struct cws_trace_writer *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(w->buffer + w->used, BUFFER_BYTES - w->used, format, arguments);
    va_end(arguments);
    w->used += (size_t)n; /* there is room for a line, and no line is longer than that */
}

static void put_string(struct cws_trace_writer *w, const char *text)
{
    char *to = w->buffer + w->used;
    *to++ = '"';
    for (const uint8_t *s = (const uint8_t *)text; *s;) {
        size_t n = cws_utf8_bytes((const char *)s);
        if (n == 0) {
            memcpy(to, "\\ufffd", 6);
            to += 6;
            s++;
        } else if (*s == '"' || *s == '\\') {
            *to++ = '\\';
            *to++ = (char)*s++;
        } else if (*s < 0x20 || *s == 0x7f) {
            static const char hex[] = "0123456789abcdef";
            memcpy(to, "\\u00", 4);
            to[4] = hex[*s >> 4];
            to[5] = hex[*s++ & 15];
            to += 6;
        } else {
            memcpy(to, s, n);
            to += n;
            s += n;
        }
    }
    *to++ = '"';
    w->used = (size_t)(to - w->buffer);
}

static void put_time(struct cws_trace_writer *w, const char *key, uint64_t ns)
{
    put(w, ",\"%s\":%" PRIu64 ".%03u", key, ns / 1000, (unsigned)(ns % 1000));
}

/* --- the file ---------------------------------------------------------------------------------------- */

/* Of the buffer, of which only a piece reached the file: the whole events. Each but the first of all begins with
 * ",\n". */
static size_t whole_bytes(const struct cws_trace_writer *w)
{
    struct stat st;
    if (cws_os_fstat(w->fd, &st) || st.st_size <= (off_t)w->at)
        return 0;
    size_t n = (size_t)st.st_size - w->at;
    n = n < w->used ? n : w->used;
    while (n > 1 && memcmp(w->buffer + n - 2, ",\n", 2) != 0)
        n--;
    return n > 1 ? n - 2 : 0;
}

int cws_trace_writer_flush(struct cws_trace_writer *w)
{
    int code = cws_os_write_full(w->fd, w->buffer, w->used, w->at);
    if (code) {
        cws_os_ftruncate(w->fd, w->at + whole_bytes(w));
        return code;
    }
    w->at += w->used;
    w->used = 0;
    return 0;
}

static int need_line(struct cws_trace_writer *w)
{
    return BUFFER_BYTES - w->used < LINE_BYTES ? cws_trace_writer_flush(w) : 0;
}

/* The first line of a file of /proc, or "". */
static void first_line(const char *path, char *out, size_t room)
{
    size_t got = 0;
    int fd = cws_os_openat(AT_FDCWD, path, O_RDONLY, 0);
    if (fd >= 0 && cws_os_read_full(fd, out, room - 1, 0, &got))
        got = 0;
    if (fd >= 0)
        cws_os_close(fd);
    out[got] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

int cws_trace_writer_create(int fd, struct cws_trace_writer **out)
{
    char name[64];
    struct cws_trace_writer *w = *out = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->fd = fd;
    w->pid = (int)getpid();
    first_line("/proc/self/comm", name, sizeof name);
    put(w, CWS_TRACE_FIRST "%d,\"tid\":%d,\"args\":{\"name\":", w->pid, w->pid);
    put_string(w, name);
    put(w, "}}");
    int code = cws_trace_writer_flush(w);
    if (code) {
        free(w);
        *out = NULL;
    }
    return code;
}

void cws_trace_writer_destroy(struct cws_trace_writer *w) { free(w); }

/* --- threads and lanes ------------------------------------------------------------------------------- */

static void lane_name(uint32_t lane, char *out, size_t room)
{
    unsigned device = (lane - 1) / CWS_TRACE_LANES, at = (lane - 1) % CWS_TRACE_LANES;
    if (at == CWS_LANE_COPY)
        snprintf(out, room, "GPU %u copies, by its clock", device);
    else if (at == CWS_LANE_DECODE)
        snprintf(out, room, "GPU %u decoding, by its clock", device);
    else if (at >= CWS_LANE_DROP)
        snprintf(out, room, "GPU %u drop %u", device, at - CWS_LANE_DROP);
    else
        snprintf(out, room, "GPU %u load %u", device, at);
}

static void name_thread(struct cws_trace_writer *w, uint32_t thread)
{
    char name[64], path[64];
    if (thread > LANE_BASE) {
        lane_name(thread - LANE_BASE, name, sizeof name);
        put(w,
            ",\n{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":%d,\"tid\":%" PRIu32
            ",\"args\":{\"sort_index\":%" PRIu32 "}}",
            w->pid, thread, thread);
    } else {
        snprintf(path, sizeof path, "/proc/self/task/%" PRIu32 "/comm", thread);
        first_line(path, name, sizeof name);
        if (!name[0]) /* it has ended already */
            snprintf(name, sizeof name, "thread");
    }
    put(w, ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%" PRIu32 ",\"args\":{\"name\":", w->pid,
        thread);
    put_string(w, name);
    put(w, "}}");
}

/* NULL: there are too many; then it has only a number. */
static struct seen *find(struct cws_trace_writer *w, uint32_t thread)
{
    for (uint32_t i = thread * 2654435761u;; i++) {
        struct seen *s = &w->seen[i % THREADS_MAX];
        if (s->thread == thread)
            return s;
        if (s->thread)
            continue;
        if (w->seen_count > THREADS_MAX / 2)
            return NULL;
        w->seen_count++;
        s->thread = thread;
        name_thread(w, thread);
        return s;
    }
}

/* --- events ------------------------------------------------------------------------------------------ */

static void put_head(struct cws_trace_writer *w, const char *name, const char *category, char phase, uint32_t thread,
                     uint64_t at)
{
    put(w, ",\n{\"name\":\"%s\",\"cat\":\"%s\",\"ph\":\"%c\",\"pid\":%d,\"tid\":%" PRIu32, name, category, phase,
        w->pid, thread);
    put_time(w, "ts", at);
}

static void put_count(struct cws_trace_writer *w, const struct cws_trace_record *r)
{
    char name[32] = "views in memory";
    if (r->device >= 0)
        snprintf(name, sizeof name, "GPU %d memory", (int)r->device);
    put_head(w, name, "memory", 'C', (uint32_t)w->pid, r->at_ns);
    put(w, ",\"args\":{\"weights\":%" PRIu64 ",\"fixed\":%" PRIu64 "}}", r->bytes, r->tensor_bytes);
}

static void put_args(struct cws_trace_writer *w, const struct cws_trace_record *r)
{
    put(w, ",\"args\":{\"bytes\":%" PRIu64, r->bytes);
    if (r->tensor[0]) {
        put(w, ",\"tensor\":");
        put_string(w, r->tensor);
    }
    if (r->tensor_bytes)
        put(w, ",\"tensor_bytes\":%" PRIu64, r->tensor_bytes);
    if (r->index != UINT64_MAX)
        put(w, ",\"%s\":%" PRIu64, kinds[r->kind].index, r->index);
    if (r->why)
        put(w, ",\"why\":\"%s\"", r->why);
    put(w, "}");
}

int cws_trace_writer_put(struct cws_trace_writer *w, const struct cws_trace_record *r)
{
    static const char letters[] = {
        [CWS_RECORD_BEGIN] = 'B', [CWS_RECORD_END] = 'E', [CWS_RECORD_SPAN] = 'X', [CWS_RECORD_MARK] = 'i'};
    int code = need_line(w);
    if (code)
        return code;
    if (r->phase == CWS_RECORD_COUNT) {
        put_count(w, r);
        return 0;
    }
    uint32_t thread = r->thread ? r->thread : LANE_BASE + r->lane;
    uint64_t at = r->at_ns;
    struct seen *s = find(w, thread);
    if (s && r->phase == CWS_RECORD_END && !s->open) /* of a span that an earlier file has */
        return 0;
    if (s) { /* a signal handler may have come in between the clock and the ring */
        s->last_ns = at = at > s->last_ns ? at : s->last_ns;
        s->open += r->phase == CWS_RECORD_BEGIN;
        s->open -= r->phase == CWS_RECORD_END;
    }
    put_head(w, kinds[r->kind].name, kinds[r->kind].category, letters[r->phase], thread, at);
    if (r->phase == CWS_RECORD_SPAN)
        put_time(w, "dur", r->span_ns);
    if (r->phase == CWS_RECORD_MARK)
        put(w, ",\"s\":\"%c\"", r->kind == CWS_TRACE_CYCLE || r->kind == CWS_TRACE_LOST ? 'p' : 't');
    if (r->phase != CWS_RECORD_END)
        put_args(w, r);
    put(w, "}");
    return 0;
}

int cws_trace_writer_finish(struct cws_trace_writer *w, uint64_t now_ns)
{
    for (uint32_t i = 0; i < THREADS_MAX; i++) {
        for (struct seen *s = &w->seen[i]; s->open; s->open--) {
            int code = need_line(w);
            if (code)
                return code;
            put(w, ",\n{\"ph\":\"E\",\"pid\":%d,\"tid\":%" PRIu32, w->pid, s->thread);
            put_time(w, "ts", now_ns);
            put(w, "}");
        }
    }
    int code = need_line(w);
    put(w, "\n]\n");
    return code ? code : cws_trace_writer_flush(w);
}
