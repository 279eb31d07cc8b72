/* symbols.h - the symbols that a tensor's entropy code is about: exponent bytes (split) or int8 codes (quantised),
 * counted from the decoded weights. For `inspect --tensor` and for tests. Threads: any. */
#ifndef CWS_SYMBOLS_H
#define CWS_SYMBOLS_H
#include "store.h"

struct cws_symbols {
    uint64_t count[256];
    uint8_t length[256]; /* code lengths in bits as stored; 0: no code */
    uint64_t total;
    double entropy_bits; /* order-0, per symbol */
    double mean_bits;    /* of the stored code, per symbol */
};

/* Reads and decodes the whole tensor. CWS_E_UNSUPPORTED: its codec has no symbols (raw, zstd); otherwise the errors of
 * cws_store_read; -errno. */
CWS_MUST_CHECK int cws_symbols_count(const struct cws_store *store, const struct cws_tensor_info *tensor,
                                     struct cws_symbols *out, struct cws_error *err);

#endif
