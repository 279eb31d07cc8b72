/* writer.h - pack one safetensors file into a store, and unpack a store. Streaming: memory is bounded by
 * jobs x a few MiB, 64 MiB and the header, however large the model; a tensor of more than 64 MiB is read twice.
 * The output is created under a temporary name in the same directory, written, fsynced, renamed over `out_path`, and
 * the directory fsynced; on any error it is removed and an earlier file is left as it was. Symbolic links are followed
 * on the input, never on the output: an output path that is a symbolic link is refused, not written through.
 * The output has the owner and the permissions of the input, less the umask, and never more than the file that it
 * replaces (file_mode.h); until it is complete, its owner's alone.
 * Reproducible: the same input and options give the same bytes, whatever `jobs` is. */
#ifndef CWS_WRITER_H
#define CWS_WRITER_H
#include "store/codec/codec.h"
#include "store/base/error.h"
#include "store/base/options.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct cws_store;

struct cws_pack_options {
    enum cws_mode mode;
    unsigned jobs;              /* threads; 0: all cores this process may use */
    bool convert;               /* --dtype: cast F16, BF16, F32 and F64 tensors to `dtype` first (round to nearest
                                 * even) */
    enum cws_dtype dtype;       /* BF16, F16 or F32 */
    const char *const *exclude; /* fnmatch globs of tensor names to store raw and unconverted; NULL-terminated, or
                                 * NULL */
    /* logical bytes; may be NULL; never concurrent */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    const volatile int *cancel; /* may be NULL; non-zero: stop, clean up, return -ECANCELED */
};
struct cws_pack_result {
    uint64_t input_bytes, logical_bytes, stored_bytes, tensor_count, chunk_count;
    /* tensors whose dtype this build does not know: stored as bytes */
    uint64_t unknown_types;
    char unknown_type[CWS_DTYPE_NAME_MAX + 1]; /* of the first of them in the file */
};

/* Errors: CWS_E_INPUT (the input breaks the safetensors rules: message names the tensor and the offset),
 * CWS_E_CHANGED (the input changed while packing), CWS_E_USAGE, -errno. *result is set on success only. */
CWS_MUST_CHECK int cws_pack_file(const char *in_path, const char *out_path, const struct cws_pack_options *options,
                                 struct cws_pack_result *result, struct cws_error *err);

/* A tensor in memory, on its way into a store. All that it points to stays the caller's and must not change meanwhile.
 * Either
 *   data    its elements, row-major, `elems * element size` bytes, any alignment (may be NULL for no elements), or
 *   packed  a store whose tensor `packed_index` has this dtype and shape: its chunks are taken as they are, so that
 *           what was quantised once is not quantised again. The mode does not matter then. */
struct cws_memory_tensor {
    const char *name; /* UTF-8, unique; not "__metadata__" */
    enum cws_dtype dtype;
    const uint64_t *shape;
    size_t ndim;
    const void *data;
    const struct cws_store *packed;
    size_t packed_index;
};
struct cws_memory_model {
    const struct cws_memory_tensor *tensors;
    size_t tensor_count;
    const char *const *metadata; /* key, value, key, value, ...; unique keys */
    size_t metadata_count;       /* pairs */
};

/* Packs tensors from memory. The logical file is the safetensors file that holds them by element size, largest first,
 * then by name. options->convert must be false. To a file: errors as cws_pack_file. To memory: *out is the whole store,
 * free() it; on an error NULL.
 * CWS_E_INPUT: a name, a shape, the metadata; CWS_E_CORRUPT, CWS_E_USAGE: `packed`. */
CWS_MUST_CHECK int cws_pack_tensors_to_file(const struct cws_memory_model *model, const char *out_path,
                                            const struct cws_pack_options *options, struct cws_pack_result *result,
                                            struct cws_error *err);
CWS_MUST_CHECK int cws_pack_tensors_to_memory(const struct cws_memory_model *model,
                                              const struct cws_pack_options *options, uint8_t **out,
                                              uint64_t *out_bytes, struct cws_error *err);

/* Writes the logical file. For a lossless store it is the packed file to the bit. Verifies every chunk and content
 * hash as it goes. io: how the store is read, as cws_store_open() takes it. */
CWS_MUST_CHECK int cws_unpack_file(const char *in_path, const char *out_path, enum cws_io_engine io, unsigned jobs,
                                   void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                                   const volatile int *cancel, struct cws_error *err);

/* Copies a plain file with the same guarantees (temporary, fsync, rename). For the other files of a model directory. */
CWS_MUST_CHECK int cws_copy_file(const char *in_path, const char *out_path, struct cws_error *err);

/* Writes `bytes` bytes as a file with the same guarantees.
 *   like  the file that the bytes were made from, which gives the permissions and must not be the output, or NULL */
CWS_MUST_CHECK int cws_write_file(const char *out_path, const void *data, size_t bytes, const struct stat *like,
                                  struct cws_error *err);
#endif
