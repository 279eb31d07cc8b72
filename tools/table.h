/* table.h - aligned columns of text. The cells are kept until print, which knows the widths.
 * Threads: one. Running out of memory ends the process with a line. */
#ifndef CWS_TABLE_H
#define CWS_TABLE_H
#include "store/base/error.h"
#include <stddef.h>
#include <stdio.h>

struct cws_table;

/* spec: one character per column, 'l' or 'r' for left or right aligned. */
struct cws_table *cws_table_create(const char *spec);
/* Appends a cell; a row is as many cells as spec is long. */
void cws_table_cell(struct cws_table *t, const char *fmt, ...) CWS_PRINTF(2, 3);
/* A line of dashes under the row that has just been completed. */
void cws_table_rule(struct cws_table *t);
/* Prints all rows with two spaces between columns and no space at a line's end. */
void cws_table_print(const struct cws_table *t);
/* The same to another stream than stdout. */
void cws_table_write(const struct cws_table *t, FILE *out);
void cws_table_destroy(struct cws_table *t);

#endif
