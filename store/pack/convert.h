/* convert.h - casts float elements, round to nearest even, ties to even in one step. Pure. */
#ifndef CWS_CONVERT_H
#define CWS_CONVERT_H
#include "store/format/format.h"
#include <stdbool.h>
#include <stddef.h>

/* F16, BF16, F32 and F64 can be cast to F16, BF16 and F32. FP8 is left alone: its scales are tensors of their own. */
bool cws_convert_possible(enum cws_dtype from, enum cws_dtype to);

/* count elements; src and dst do not overlap, any alignment. Infinity stays, too large becomes infinity, NaN becomes a
 * quiet NaN with its sign and the top of its payload. Subnormals are exact or rounded like all others. */
void cws_convert(enum cws_dtype from, enum cws_dtype to, const void *src, void *dst, size_t count);

#endif
