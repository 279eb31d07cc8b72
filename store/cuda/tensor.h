/* tensor.h - one compressed tensor (a store of one tensor) whose bytes lie in device memory, decoded there. What a
 * decode needs beside the bytes is read from a copy in host memory, once, and is small; the copy is not needed
 * afterwards.
 *
 * A decode is checked as one on the host is: each chunk's head against the host's, streams and padding by the kernel,
 * and the content hash of every chunk that came out. A byte that changed in device memory is an error, not a weight.
 * Threads: a tensor is immutable; any thread may decode it, on any stream. */
#ifndef CWS_GPU_TENSOR_H
#define CWS_GPU_TENSOR_H
#include "store/read/store.h"
#include "decoder.h"

struct cws_gpu_tensor;

/* From a store of one tensor, in memory or in a file. Reads and checks all of it, makes no driver call, and does not
 * keep the store.
 * CWS_E_UNSUPPORTED: a chunk is zstd, which only the host decodes; CWS_E_USAGE: not one tensor; CWS_E_CORRUPT;
 * -ENOMEM. */
CWS_MUST_CHECK int cws_gpu_tensor_create(const struct cws_store *s, struct cws_gpu_tensor **out, struct cws_error *err);
void cws_gpu_tensor_destroy(struct cws_gpu_tensor *t); /* NULL is fine */

/* Device memory that a decode needs while it runs. */
uint64_t cws_gpu_tensor_scratch_bytes(const struct cws_gpu_tensor *t);

/* Decodes in the current context, behind what is on `stream`, and waits for it.
 *   packed   device address of the store's bytes, as they were in host memory
 *   scratch  of cws_gpu_tensor_scratch_bytes(); dst: of the tensor's bytes
 * All three multiples of 16. CWS_E_CORRUPT: a byte in device memory is not as it was (dst is then of no meaning);
 * CWS_E_BUG; -ENOMEM; driver errors. */
CWS_MUST_CHECK int cws_gpu_tensor_decode(const struct cws_gpu_tensor *t, const struct cws_driver *driver,
                                         const struct cws_gpu_decoder *dec, CUstream stream, CUdeviceptr packed,
                                         CUdeviceptr scratch, CUdeviceptr dst, struct cws_error *err);
#endif
