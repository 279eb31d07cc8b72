/* text.c - forms sizes, times and printable names, reads numbers of options, tells the time. */
#include "text.h"
#include "store/base/error.h"
#include "store/base/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
