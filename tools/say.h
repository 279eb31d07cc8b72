/* say.h - what the command tells a person: lines on stderr ("codecllm: path: what: why").
 * Every line first takes the progress bar off the terminal. Threads: any for the lines (one write each). */
#ifndef CWS_SAY_H
#define CWS_SAY_H
#include "store/base/error.h"
#include "text.h"

/* "codecllm: " + text + newline on stderr. */
void cws_say_line(const char *fmt, ...) CWS_PRINTF(1, 2);

/* "codecllm: path: message", without the path when the message names it or `other` (NULL: no other file is concerned).
 * Returns CWS_EXIT_FAILURE. */
int cws_say_error(const char *path, const char *other, const struct cws_error *err);

/* "codecllm: verb: text" and where to find help. Returns CWS_EXIT_FAILURE. */
int cws_say_usage(const char *verb, const char *fmt, ...) CWS_PRINTF(2, 3);

#endif
