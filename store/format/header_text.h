/* header_text.h - writes safetensors headers: the front of a store, and the header of a converted file. No I/O. */
#ifndef CWS_HEADER_TEXT_H
#define CWS_HEADER_TEXT_H
#include "safetensors.h"

/* What a header looks like for a store of the tensors of `h`: "format" and "codecllm_version" first, then the original
 * metadata but for these two keys, the tensors in the order of h's text; padded with spaces to a multiple of
 * CWS_CHUNK_ALIGN. *out: 8-byte length and text, free() it. -ENOMEM; CWS_E_INPUT: longer than a header may be. */
CWS_MUST_CHECK int cws_header_write_front(const char *path, const struct cws_header *h, uint8_t **out,
                                          uint64_t *out_bytes, struct cws_error *err);

/* The same tensors and metadata as a plain header, padded with spaces to a multiple of 8. */
CWS_MUST_CHECK int cws_header_write(const char *path, const struct cws_header *h, uint8_t **out, uint64_t *out_bytes,
                                    struct cws_error *err);

#endif
