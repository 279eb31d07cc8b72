/* run.h - packing itself, whatever the input and the output are. Shared by pack.c and memory.c only. */
#ifndef CWS_PACK_RUN_H
#define CWS_PACK_RUN_H
#include "input.h"

/* Where a store goes: written once from front to end, but for gaps, which are zero bytes. One thread at a time. */
struct cws_pack_sink {
    int (*write)(void *arg, const void *data, size_t bytes, uint64_t offset, struct cws_error *err); /* 0 or an error */
    void *arg;
};

/* Everything between open and commit. Errors as cws_pack_file; what was written then is of no use. */
CWS_MUST_CHECK int cws_pack_run(struct cws_pack_input *in, const struct cws_pack_sink *sink, const struct cws_pack_options *options,
                                struct cws_pack_result *result, struct cws_error *err);

/* The same into a file that appears whole or not at all. */
CWS_MUST_CHECK int cws_pack_input_to_file(struct cws_pack_input *in, const char *out_path, const struct cws_pack_options *options,
                                          struct cws_pack_result *result, struct cws_error *err);
#endif
