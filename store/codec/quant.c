/* quant.c - the quantisation of rows in plain C, and the choice between that and AVX2. */
#include "quant_body.h"

#include <stdatomic.h>

static const struct cws_quant_ops portable = {measure, symbols_of};

/* Racing first uses choose the same one. */
static const struct cws_quant_ops *ops(void)
{
    static _Atomic(const struct cws_quant_ops *) chosen;
    const struct cws_quant_ops *o = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (o)
        return o;
    o = &portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        o = &cws_quant_avx2;
#endif
    atomic_store_explicit(&chosen, o, memory_order_relaxed);
    return o;
}

int cws_quant_measure(enum cws_dtype dtype, const uint8_t *elems, size_t count, struct cws_quant_row *out)
{
    return ops()->measure(dtype, elems, count, out);
}

void cws_quant_symbols(enum cws_dtype dtype, const uint8_t *elems, size_t count, uint32_t code, uint8_t *symbols)
{
    ops()->symbols(dtype, elems, count, code, symbols);
}

uint32_t cws_quant_scale_code(const struct cws_quant_row *row, float step, float typical_rms)
{
    if (row->absmax == 0)
        return 0;
    bool typical = 4 * row->rms >= 3 * typical_rms && 3 * row->rms <= 4 * typical_rms;
    float scale = row->absmax / 127.0f, wanted = step * (typical ? typical_rms : row->rms);
    if (wanted > scale)
        scale = wanted;
    uint32_t code = (to_bits(scale) + (1u << CWS_SCALE_SHIFT) - 1) >> CWS_SCALE_SHIFT; /* rounded up */
    if (code < CWS_SCALE_MIN)
        code = CWS_SCALE_MIN;
    return code < CWS_SCALE_MAX ? code : CWS_SCALE_MAX;
}
