/* text.h - sizes, times, names and numbers as text that a person reads. Threads: any. */
#ifndef CWS_TEXT_H
#define CWS_TEXT_H
#include <stddef.h>
#include <stdint.h>

/* "9.31 MiB"; whole bytes below 1024 ("512 B"). Returns buf. */
struct cws_size_text {
    char text[24];
};
struct cws_size_text cws_size_text(uint64_t bytes);

/* "2.10 s, 409 MB/s" (10^6 bytes); below a tenth of a second only "0.02 s": a rate of that would say how long the start
 * of threads took. */
struct cws_time_text {
    char text[48];
};
struct cws_time_text cws_time_text(double seconds, uint64_t bytes);

/* Copies a name from a file into buf with control characters and broken UTF-8 as \xNN, so that a file cannot drive the
 * terminal; cut with "..." when buf is too small. Returns buf. size >= 8. */
char *cws_printable(const char *name, char *buf, size_t size);

/* --jobs N: 1..1024. Returns 0 or CWS_E_USAGE. */
int cws_parse_jobs(const char *text, unsigned *out);

/* Seconds of the monotonic clock. */
double cws_now_s(void);

#endif
