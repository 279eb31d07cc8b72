/* content.h - recognizes a tensor of a store by its bytes in host memory, wherever they lie (a loader that reads the
 * file, a model that comes back from the host), so that a copy of them to the device binds like one from the file's
 * mapping. */
#ifndef CWS_SHIM_CUDA_CONTENT_H
#define CWS_SHIM_CUDA_CONTENT_H
#include "store/read/store.h"

/* Keeps a store open, to be found in later, however long ago the program closed its file. */
void cws_cuda_content_keep(struct cws_store *store);

/* Is there a tensor of this size? Quick: asked before anything is read. */
bool cws_cuda_content_has(size_t bytes);

/* The tensor, of a store that this process has open or bound memory to, whose bytes are exactly these: *store, with a
 * reference for the caller, and its logical offset. The content hash leads to it, the bytes themselves are compared.
 * Reads `bytes` bytes at `from` when a tensor has that size: they must be the program's, in ordinary host memory.
 * Threads: any. */
bool cws_cuda_content_find(const void *from, size_t bytes, struct cws_store **store, uint64_t *offset);
#endif
