/* top_show.h - a sample of `codecllm top`, as text and as JSON. A row of the sample before, where there is one, makes
 * its rates. Threads: one. */
#ifndef CWS_TOP_SHOW_H
#define CWS_TOP_SHOW_H
#include "top_sample.h"
#include <stdio.h>

/* A line for each row. */
void cws_top_show_all(const struct cws_top_sample *now, const struct cws_top_sample *before, FILE *out);
/* One process: a column for each row. */
void cws_top_show_one(const struct cws_top_sample *now, const struct cws_top_sample *before, FILE *out);
/* One line. */
void cws_top_show_json(const struct cws_top_sample *now, const struct cws_top_sample *before, FILE *out);
/* Draws text on a terminal: from its home, with lines cut at its width, what was below cleared. */
void cws_top_draw(const char *text, unsigned lines, unsigned columns, FILE *out);

#endif
