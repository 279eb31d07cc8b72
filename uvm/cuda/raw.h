/* raw.h - tensors that are stored as they are, without a store: the description that a source has of one.
 * Threads: any. */
#ifndef CWS_GPU_RAW_H
#define CWS_GPU_RAW_H
#include "store/read/store.h"

/* The tensor `like` (its name, dtype, shape and `begin` are taken over; what they point to must live as long) with
 * `bytes` bytes, as if it were one of a store: chunks that are stored as they are, with the content hashes of `now`.
 * NULL: no memory. One block, for free(). */
struct cws_tensor_info *cws_gpu_raw_describe(const struct cws_tensor_info *like, size_t bytes, const uint8_t *now);
#endif
