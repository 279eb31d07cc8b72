/* file.h - ordinary safetensors files as sources of device memory: a copy to the device whose source lies in a private
 * mapping of one binds (manager.h), uncompressed.
 * Threads: any. */
#ifndef CWS_GPU_FILE_H
#define CWS_GPU_FILE_H
#include "store/base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An open file and its header. It has a descriptor of its own, so the program may close its own, unmap the file and
 * rename it. */
struct cws_gpu_file;

/* The file that [memory, memory + bytes) shows, and the offset in it. The memory must lie in one private mapping of a
 * valid safetensors file, be exactly one tensor of it, and have no page that was written to (mapping.h). NULL: it is
 * not so, or it could not be found out. The caller releases it. */
struct cws_gpu_file *cws_gpu_file_of(const void *memory, size_t bytes, uint64_t *out_offset);
void cws_gpu_file_release(struct cws_gpu_file *file); /* NULL is fine */
const char *cws_gpu_file_path(const struct cws_gpu_file *file);
/* its name; valid as long as the file */
const char *cws_gpu_file_tensor(const struct cws_gpu_file *file, uint64_t offset);

/* For sources.c: */
struct cws_gpu_file *cws_gpu_file_retain(struct cws_gpu_file *file);
struct cws_tensor_info;
/* The tensor at `offset` as if it were one of a store: chunks that are stored as they are, with the content hashes of
 * `now`. NULL: no memory. One block, for free(). */
struct cws_tensor_info *cws_gpu_file_describe(const struct cws_gpu_file *file, uint64_t offset, size_t bytes,
                                              const uint8_t *now);
/* Bytes [begin, end) of the tensor. */
CWS_MUST_CHECK int cws_gpu_file_read(const struct cws_gpu_file *file, const struct cws_tensor_info *tensor,
                                     uint64_t begin, uint64_t end, uint8_t *to, struct cws_error *err);
#endif
