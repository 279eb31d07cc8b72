/* json_text.h - JSON files as Python's json module takes them: NaN, Infinity and -Infinity are values, and numbers have
 * any size. Configurations of models hold both. Threads: any. */
#ifndef CWS_JSON_TEXT_H
#define CWS_JSON_TEXT_H
#include "store/base/error.h"
#include <jansson.h>
#include <stddef.h>
#include <sys/stat.h>

/* The whole of a JSON file of at most 64 MiB, checked: *out is the caller's to free, *out_st its stat. CWS_E_INPUT with
 * the line of the fault; -errno. On an error *out is NULL. */
CWS_MUST_CHECK int cws_json_read(const char *path, char **out, size_t *out_len, struct stat *out_st,
                                 struct cws_error *err);

/* 0, or CWS_E_INPUT with *out_line where text[0..len) stops being JSON (from 1). Nested at most 200 levels. */
CWS_MUST_CHECK int cws_json_check(const char *text, size_t len, unsigned *out_line);

/* The text as jansson sees it when every number counts as 0, for those who look for objects and strings. A key that
 * comes twice has its last value, as in Python. NULL: not JSON, or no memory.
 *   *out_twice  a key that came twice: where, in a line of its own; else "" */
struct cws_json_twice {
    char text[200];
};
CWS_MUST_CHECK json_t *cws_json_objects(const char *text, size_t len, struct cws_json_twice *out_twice);

#endif
