/* inspect_json.h - totals over stores, and the JSON form of `inspect`. 64-bit hashes are strings of hexadecimal digits,
 * because many JSON readers round large numbers. Threads: one. */
#ifndef CWS_INSPECT_JSON_H
#define CWS_INSPECT_JSON_H
#include "store/read/store.h"
#include <stdbool.h>

#define CWS_INSPECT_CODECS 5 /* raw, zstd, split, q8, q6 */

struct cws_inspect_codec {
    uint64_t tensors, logical_bytes, stored_bytes, elems;
};

struct cws_inspect_totals {
    uint64_t logical_bytes, file_bytes; /* of whole files */
    uint64_t tensor_bytes, tensor_stored_bytes, elems, tensors;
    struct cws_inspect_codec codecs[CWS_INSPECT_CODECS];
};

void cws_inspect_add(const struct cws_store *store, struct cws_inspect_totals *sum);
const char *cws_inspect_codec_label(size_t i);                       /* i < CWS_INSPECT_CODECS; static */
const char *cws_inspect_codec_name(const struct cws_tensor_info *t); /* "split", "q8", ...; static */

/* Prints {"files": [...], "totals": ...}, or {"tensors": [...]}, on stdout, item by item: a store may have millions of
 * tensors. Starts zeroed; nothing is printed where there is no item. */
struct cws_inspect_json {
    size_t items;
    bool failed;
};
void cws_inspect_json_store(struct cws_inspect_json *out, const char *path, const struct cws_store *store,
                            const struct cws_inspect_totals *sum);
/* With "symbols": what --tensor shows. Fills err when the tensor cannot be read; the rest is printed all the same. */
void cws_inspect_json_tensor(struct cws_inspect_json *out, const struct cws_store *store,
                             const struct cws_tensor_info *t, struct cws_error *err);
/* totals: NULL after tensors. 0, or -1: there was no memory for some of it. */
int cws_inspect_json_end(struct cws_inspect_json *out, const struct cws_inspect_totals *totals);

#endif
