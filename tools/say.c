/* say.c - prints lines for a person, and forms sizes, times and names. */
#include "say.h"
#include "progress.h"
#include "verbs.h"
#include "store/base/utf8.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Long enough for a path, a tensor name and the library's line; longer text is cut, never split over two writes. */
enum { LINE_BYTES = 8192 };

/* Names and messages may come out of a file: nothing that drives a terminal gets through. */
static void say_line(const char *lead, const char *fmt, va_list args)
{
    char text[LINE_BYTES], line[LINE_BYTES + 1];
    int used = snprintf(text, sizeof text, "codecllm: %s%s", lead ? lead : "", lead ? ": " : "");
    vsnprintf(text + used, sizeof text - (size_t)used, fmt, args);
    cws_printable(text, line, sizeof line - 1);
    size_t len = strlen(line);
    line[len] = '\n';
    cws_progress_erase();
    fflush(stdout); /* keeps findings and talk in order when both go to one place */
    fwrite(line, 1, len + 1, stderr);
}

void cws_say_line(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say_line(NULL, fmt, args);
    va_end(args);
}

int cws_say_error(const char *path, const char *other, const struct cws_error *err)
{
    const char *message = err->message[0] ? err->message : cws_strerror(err->code);
    if (strstr(message, path) || (other && strstr(message, other)))
        cws_say_line("%s", message);
    else
        cws_say_line("%s: %s", path, message);
    return CWS_EXIT_FAILURE;
}

int cws_say_usage(const char *verb, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say_line(verb, fmt, args);
    va_end(args);
    cws_say_line("try 'codecllm %s%s--help'", verb ? verb : "", verb ? " " : "");
    return CWS_EXIT_FAILURE;
}

struct cws_size_text cws_size_text(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    struct cws_size_text out;
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024.0 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024.0;
        unit++;
    }
    if (unit == 0)
        snprintf(out.text, sizeof out.text, "%u B", (unsigned)bytes);
    else
        snprintf(out.text, sizeof out.text, value < 10 ? "%.2f %s" : "%.1f %s", value, units[unit]);
    return out;
}

struct cws_time_text cws_time_text(double seconds, uint64_t bytes)
{
    struct cws_time_text out;
    if (seconds < 0.1)
        snprintf(out.text, sizeof out.text, "%.2f s", seconds);
    else
        snprintf(out.text, sizeof out.text, "%.2f s, %.0f MB/s", seconds, (double)bytes / 1e6 / seconds);
    return out;
}

/* Bytes of the well-formed printable UTF-8 character at s, or 0. C1 controls count as unprintable. */
static size_t printable_bytes(const unsigned char *s)
{
    if (s[0] < 0x80)
        return s[0] >= 0x20 && s[0] != 0x7f;
    size_t len = cws_utf8_bytes((const char *)s);
    if (len == 2 && s[0] == 0xc2 && s[1] < 0xa0)
        return 0;
    return len;
}

char *cws_printable(const char *name, char *buf, size_t size)
{
    const unsigned char *s = (const unsigned char *)name;
    size_t at = 0;
    while (*s) {
        size_t len = printable_bytes(s);
        size_t need = len ? len : 4;
        if (at + need + 4 > size) {
            memcpy(buf + at, "...", 3);
            at += 3;
            break;
        }
        if (len) {
            memcpy(buf + at, s, len);
            s += len;
        } else {
            static const char hex[] = "0123456789abcdef";
            const char escape[4] = {'\\', 'x', hex[*s >> 4], hex[*s & 15]};
            memcpy(buf + at, escape, sizeof escape);
            s++;
        }
        at += need;
    }
    buf[at] = '\0';
    return buf;
}

int cws_parse_jobs(const char *text, unsigned *out)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || end == text || *end || text[0] < '0' || text[0] > '9' || value < 1 || value > 1024)
        return CWS_E_USAGE;
    *out = (unsigned)value;
    return 0;
}

double cws_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
