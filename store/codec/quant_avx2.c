/* quant_avx2.c - the quantisation of rows for processors with AVX2. Built with -mavx2 and without FMA; chosen at run
 * time. */
#include "quant.h"

#if defined(__x86_64__)
#include "quant_body.h"

const struct cws_quant_ops cws_quant_avx2 = {measure, symbols_of};
#endif
