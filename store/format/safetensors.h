/* safetensors.h - reads and checks the header of a safetensors file. No I/O.
 *
 * The rules (docs/format.md, "The logical file"): an 8-byte length of at most 100 MB; a JSON object that starts with
 * '{' and may be followed by white space; no key twice in any object; "__metadata__" maps strings to strings; every
 * other entry is exactly {dtype, shape, data_offsets} with a shape of non-negative integers whose product does not
 * overflow, and offsets that span exactly that many bytes, where the dtype's size is known; the tensors cover the data
 * without overlap or hole. */
#ifndef CWS_SAFETENSORS_H
#define CWS_SAFETENSORS_H
#include "dtype.h"
#include "store/base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cws_header_tensor {
    const char *name; /* NUL-terminated UTF-8 */
    const uint64_t *shape;
    size_t ndim;
    uint64_t elems;
    uint64_t begin, end; /* relative to the data, which starts behind the header */
    size_t position;     /* among the entries of the JSON text, from 0 */
    enum cws_dtype dtype;
    const char *dtype_name; /* as the text has it: also for CWS_OTHER */
};

struct cws_header_metadata {
    const char *key, *value;
};

/* Immutable. All that it points to belongs to it. */
struct cws_header {
    struct cws_header_tensor *tensors; /* by begin, then end, then position */
    size_t tensor_count;
    uint32_t *by_name;                    /* indices of tensors */
    struct cws_header_metadata *metadata; /* in the order of the text */
    size_t metadata_count;
    bool has_metadata;     /* "__metadata__" was there, perhaps empty */
    uint64_t header_bytes; /* with the 8 of the length */
    uint64_t data_bytes;
};

/* The header's length, with the 8 bytes of the length itself, from the first 8 bytes of a file of file_bytes bytes.
 * CWS_E_INPUT: the file is too short or the length is not allowed. `path` is for messages. */
CWS_MUST_CHECK int cws_header_length(const char *path, const uint8_t first[8], uint64_t file_bytes, uint64_t *out_bytes,
                                     struct cws_error *err);

/* Parses and checks a whole header: `bytes` starts with the 8-byte length and header_bytes is what cws_header_length
 * gave. file_bytes: the size of the file, checked against the tensors; UINT64_MAX: not checked (data_bytes tells).
 * CWS_E_INPUT, with the tensor and the offset in the message, or -ENOMEM; *out = NULL then. */
CWS_MUST_CHECK int cws_header_parse(const char *path, const uint8_t *bytes, uint64_t header_bytes, uint64_t file_bytes,
                                    struct cws_header **out, struct cws_error *err);
/* The tensor of this name, SIZE_MAX: none. */
size_t cws_header_find(const struct cws_header *h, const char *name);

/* Does a header list exactly the tensors of `with`, in whatever order? It is checked like one to be parsed, but takes
 * far less memory: only its metadata is built. CWS_E_INPUT, -ENOMEM as above. */
CWS_MUST_CHECK int cws_header_compare(const char *path, const uint8_t *bytes, uint64_t header_bytes,
                                      const struct cws_header *with, bool *out_same, struct cws_error *err);
void cws_header_destroy(struct cws_header *h); /* NULL is fine */

/* A tensor's name fit for a one-line message: control characters become '?', a long name is cut. Returns buf. */
enum { CWS_NAME_SHOWN_BYTES = 128 };
const char *cws_name_shown(const char *name, char buf[CWS_NAME_SHOWN_BYTES]);

#endif
