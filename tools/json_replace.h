/* json_replace.h - changes single values in JSON text and leaves every other byte as it was, so that a model's
 * configuration keeps its order, its spacing and its way of writing numbers. Threads: any. */
#ifndef CWS_JSON_REPLACE_H
#define CWS_JSON_REPLACE_H
#include "store/base/error.h"
#include <stddef.h>

/* Copies text[0..len), which must be valid JSON, with the value of every member called `key`, at any depth, that is a
 * string or a number and that `matches` accepts replaced by `replacement` (JSON text).
 *   matches   is given the value as written (a string with its quotes), not NUL-terminated
 * *out is the caller's to free; *out_count the number of values replaced. 0, or -ENOMEM. */
CWS_MUST_CHECK int cws_json_replace(const char *text, size_t len, const char *key,
                                    int (*matches)(const char *value, size_t len), const char *replacement, char **out,
                                    size_t *out_len, size_t *out_count);
#endif
