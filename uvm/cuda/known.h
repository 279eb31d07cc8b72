/* known.h - the tensors of all stores that something was bound to, to be found by what their bytes are. A store stays
 * open from then on: what kernels put together of its tensors may be looked at long after the program closed it.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_KNOWN_H
#define CWS_GPU_KNOWN_H
#include "store/base/map.h"
#include "store/format/content_hash.h"
#include "store/read/store.h"

enum { CWS_GPU_KNOWN_SIZES = 48 };

struct cws_gpu_known {
    struct cws_store **stores; /* with a reference each */
    unsigned count, room;
    struct cws_map by_hash; /* of struct known_tensor (known.c) */
    /* of tensors, each once, the largest first; where there are more, the largest */
    uint64_t sizes[CWS_GPU_KNOWN_SIZES];
    unsigned size_count;
};

void cws_gpu_known_init(struct cws_gpu_known *k);
void cws_gpu_known_close(struct cws_gpu_known *k);
/* Takes its own reference. Where memory is short some of its tensors are not found. Takes time once for each store. */
void cws_gpu_known_add(struct cws_gpu_known *k, struct cws_store *store);
/* A tensor of this size and content hash, or NULL; *store: its store. Equal hashes do not prove that bytes are. */
const struct cws_tensor_info *cws_gpu_known_find(const struct cws_gpu_known *k, uint64_t bytes, struct cws_hash128 hash,
                                                 struct cws_store **store);
#endif
