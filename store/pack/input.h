/* input.h - the file that is packed, or tensors in memory that stand for one: its header, its logical bytes (converted
 * where asked), and whether it changed. Read with pread only: a mapping would die of SIGBUS when the file is truncated.
 * Threads: any, after open. */
#ifndef CWS_PACK_INPUT_H
#define CWS_PACK_INPUT_H
#include "store/format/safetensors.h"
#include "writer.h"
#include <sys/stat.h>

struct cws_pack_input {
    const char *path;
    int fd;
    struct stat opened;
    struct cws_header *source;  /* the file's header */
    struct cws_header *logical; /* of what is packed; == source unless converted */
    /* of the logical file: verbatim, or regenerated when something is converted */
    uint8_t *header_text;
    struct cws_header_tensor *shapes;        /* storage of a converted header's tensors */
    bool *excluded;                          /* by tensor */
    const struct cws_memory_tensor **memory; /* by tensor, or NULL: a file */
};

/* CWS_E_INPUT, CWS_E_USAGE (already a store), -errno. On an error nothing is left to close. */
CWS_MUST_CHECK int cws_pack_input_open(struct cws_pack_input *in, const char *path,
                                       const struct cws_pack_options *options, struct cws_error *err);
/* Tensors in memory. CWS_E_INPUT, CWS_E_USAGE, -ENOMEM. */
CWS_MUST_CHECK int cws_pack_input_memory(struct cws_pack_input *in, const struct cws_memory_model *model,
                                         const char *path, const struct cws_pack_options *options,
                                         struct cws_error *err);
void cws_pack_input_close(struct cws_pack_input *in);

/* Not for tensors in memory, which are used where they are. Logical bytes [begin, begin + bytes) of tensor t, whole
 * elements. scratch: CWS_PACK_SCRATCH_PER_BYTE * bytes. */
enum { CWS_PACK_SCRATCH_PER_BYTE = 4 };
CWS_MUST_CHECK int cws_pack_input_read(const struct cws_pack_input *in, size_t t, uint64_t begin, size_t bytes,
                                       void *dst, void *scratch, struct cws_error *err);

/* CWS_E_CHANGED with a message if the file is not as it was, else 0. */
CWS_MUST_CHECK int cws_pack_input_changed(const struct cws_pack_input *in, struct cws_error *err);

#endif
