/* dtype.h - element types: names, sizes, and what the codecs take for one element. */
#ifndef CWS_DTYPE_H
#define CWS_DTYPE_H
#include "format.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "BF16"; static. "?" for CWS_OTHER, whose name stands in the header only. */
const char *cws_dtype_name(enum cws_dtype dtype);
/* A name that is none of the table's gives CWS_OTHER. CWS_E_INPUT: it cannot be a type's, being empty, longer than
 * CWS_DTYPE_NAME_MAX or of other characters than letters, digits and _. */
int cws_dtype_parse(const char *name, size_t len, enum cws_dtype *out);
enum { CWS_DTYPE_NAME_MAX = 31 };
/* Bits of an element; 0: not known. */
unsigned cws_dtype_bits(enum cws_dtype dtype);
/* Bytes of what the codecs take for one element: a C64 is two of them; types of less than a byte and unknown ones are
 * taken by bytes. 0 for a value that is no dtype. */
unsigned cws_dtype_unit(enum cws_dtype dtype);
/* Bytes of `elems` elements. False: more than 2^64, no whole number of bytes, or a type whose size is not known. */
bool cws_dtype_size(enum cws_dtype dtype, uint64_t elems, uint64_t *out_bytes);
bool cws_dtype_is_float(enum cws_dtype dtype); /* may be split */
uint8_t cws_dtype_code(enum cws_dtype dtype);  /* in a tensor's record */

#endif
