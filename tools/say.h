/* say.h - what the command tells a person: lines on stderr ("codecllm: path: what: why"), sizes, printable names.
 * Every line first takes the progress bar off the terminal. Threads: any for the lines (one write each). */
#ifndef CWS_SAY_H
#define CWS_SAY_H
#include "store/base/error.h"
#include <stddef.h>
#include <stdint.h>

/* "codecllm: " + text + newline on stderr. */
void cws_say_line(const char *fmt, ...) CWS_PRINTF(1, 2);

/* "codecllm: path: message", without the path when the message names it or `other` (NULL: no other file is concerned).
 * Returns CWS_EXIT_FAILURE. */
int cws_say_error(const char *path, const char *other, const struct cws_error *err);

/* "codecllm: verb: text" and where to find help. Returns CWS_EXIT_FAILURE. */
int cws_say_usage(const char *verb, const char *fmt, ...) CWS_PRINTF(2, 3);

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
