/* quant.h - from elements to int8 symbols and a scale per row: what the plan counts and the encoder writes.
 * Exact IEEE single and double arithmetic in a fixed order, so that every machine packs the same bytes. */
#ifndef CWS_CODEC_QUANT_H
#define CWS_CODEC_QUANT_H
#include "codec.h"

/* What a row, or the part of it that lies in one chunk, needs to get its scale. */
struct cws_quant_row {
    float absmax;
    float rms;
};

/* 0, or 1: the row holds a NaN, an infinity, or a magnitude over half of the dtype's largest, whose decoded value
 * might overflow. elems: count elements of F16, BF16 or F32, any alignment. */
int cws_quant_measure(enum cws_dtype dtype, const uint8_t *elems, size_t count, struct cws_quant_row *out);

/* The scale code (format.h), 0 for a row of zeros. step: per unit of rms; 0 for q8. A row whose rms is within a third
 * of typical_rms takes the step of that: such rows share a code, and their scales need no bits. */
uint32_t cws_quant_scale_code(const struct cws_quant_row *row, float step, float typical_rms);

/* symbols[i] = clamp(round-half-even(x / scale), -127, 127) + 128; all 128 when code is 0. */
void cws_quant_symbols(enum cws_dtype dtype, const uint8_t *elems, size_t count, uint32_t code, uint8_t *symbols);

/* The two loops, per instruction set; same results to the bit. */
struct cws_quant_ops {
    int (*measure)(enum cws_dtype dtype, const uint8_t *elems, size_t count, struct cws_quant_row *out);
    void (*symbols)(enum cws_dtype dtype, const uint8_t *elems, size_t count, uint32_t code, uint8_t *symbols);
};
extern const struct cws_quant_ops cws_quant_avx2;

#endif
