/* header_scan.h - cuts a JSON object into its entries, without building what they hold. No I/O, no memory.
 *
 * A header of 100 MB may have two million entries. Built as a whole by the JSON library they take sixty times their
 * text; so they are found here and given to the library a few at a time. Nothing is decided here that the library
 * decides: an entry is what stands between the commas of its object, and a text that is not valid JSON has an entry
 * that is not, or ends where it should not. */
#ifndef CWS_HEADER_SCAN_H
#define CWS_HEADER_SCAN_H
#include "store/base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CWS_HEADER_DEPTH_MAX = 8,    /* a valid header needs 3; the library recurses */
    CWS_HEADER_VALUES_MAX = 256, /* of an array or object in an entry: keeps a hostile header from becoming 50 times as
                                  * much memory */
};

struct cws_scan {
    const char *path; /* for messages; offsets in them are in the file, whose text starts at 8 */
    const uint8_t *text;
    size_t len, at;
    unsigned depth; /* of the object, from 1 */
    bool begun, ended;
};

struct cws_scan_entry {
    size_t begin, end; /* in the text: key, colon and value, with the white space around them */
    /* the token of the key, with its quotes; empty where the entry does not start with a string */
    size_t key, key_end;
    size_t values;  /* no array in it has more elements than this */
    size_t longest; /* bytes of its longest string, with quotes */
    bool metadata;  /* the key of depth 1 that says "__metadata__" */
};

/* At an object's '{' at text[at]. */
struct cws_scan cws_scan_object(const char *path, const uint8_t *text, size_t len, size_t at, unsigned depth);
/* 1: *out is the next entry; 0: the object has ended, scan->at is behind its '}'; CWS_E_INPUT, -ENOMEM with a
 * message. */
CWS_MUST_CHECK int cws_scan_next(struct cws_scan *scan, struct cws_scan_entry *out, struct cws_error *err);
/* The object that is an entry's value, or false where that is none. The scan ends where the entry does. */
bool cws_scan_value(const struct cws_scan *scan, const struct cws_scan_entry *entry, struct cws_scan *out);
/* Nothing but white space from `at` to the end. */
bool cws_scan_blank(const uint8_t *text, size_t at, size_t end);
CWS_MUST_CHECK int cws_scan_invalid(const char *path, size_t at, const char *why, struct cws_error *err);

#endif
