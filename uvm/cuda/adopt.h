/* adopt.h - adoption: content that neither a store nor a file has gets a source of its own, in pinned host memory, and
 * is foreseen, loaded ahead and dropped like any weight from then on. That is what a program copies to the device from
 * ordinary memory: weights in another dtype, of a file that is no safetensors file, merged or cut on the CPU.
 *
 * Source memory is the only copy of these bytes while the extent is not resident (invariant I5), so it is given up only
 * with the source: for compressed bytes and spills other memory has to do. A copy is adopted only
 *   - where the budget may not hold all: what cannot be dropped, what is bound, and this copy, or what opened stores
 *     still have, leave less than the tuned share of the budget. A program that fits loses neither time nor memory.
 *   - into a new range, or 1 MiB of one that is put together (pieces.h). One whose memory comes from the reserve takes
 *     part in a round already: it is an input or an activation; but not while stores have something left to be loaded.
 *   - where the host budget has room. Else the copy is a copy.
 *
 * What kernels wrote, or copies below that share, is adopted by the loader: as it looks at it (look.h), or when memory
 * is short and it would be spilled, that is what such copies brought, content that nobody used for long, and written
 * weights whose bytes were the same at two attempts. It goes out once, and comes back as weights do: ahead of its use,
 * many at a time. What changed after it was adopted, twice, is only spilled for the next rounds.
 * Where host memory is short for a spill, what was adopted and is on the device is the device's alone again.
 * Threads: any. */
#ifndef CWS_GPU_ADOPT_H
#define CWS_GPU_ADOPT_H
#include "store/format/content_hash.h"
#include <stdbool.h>
#include <stdint.h>

struct cws_gpu;
struct cws_gpu_extent;
struct cws_tensor_info;

struct cws_gpu_adopts {
    uint64_t taken;   /* extents that were adopted from the device, since the manager was opened */
    uint64_t refused; /* bytes of copies that were not adopted for want of host memory */
    bool explained;
    uint64_t copied; /* bytes that filled new ranges from ordinary memory, since the stores last had nothing unbound */
};

/* In the loader, which spills an extent (spill.c). The lock is held. */
/* May its content be adopted? `old`: at once, because it was not used for as long as an allocation has to be to be
 * spilled, or a copy brought it. */
bool cws_gpu_adopt_may_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, bool *old);
/* What describes such content, `host`; NULL: no memory, or that is not its hash. Without the lock. */
struct cws_tensor_info *cws_gpu_adopt_describe(const struct cws_gpu_extent *x, const void *host,
                                               struct cws_hash128 hash);
/* A SPILLING extent without a frame becomes BOUND: `host`, which is counted as the extent's span, and `tensor` are its
 * source's. False: no memory, and nothing changed. */
bool cws_gpu_adopt_spilled_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, void *host,
                                  struct cws_tensor_info *tensor);
/* In the loader, which looks at an extent (look.c) whose content has the hash of its last look: gives it a source of
 * its own, its one piece. False: there is no host memory that nothing else has, or it changed. */
bool cws_gpu_adopt_kept_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x);
/* May the budget be too small for what the program has and `more` bytes? */
bool cws_gpu_adopt_is_short_locked(const struct cws_gpu *gpu, uint64_t more);
/* Bytes of host memory of what is on the device, too, and can be given up for something that is not. */
uint64_t cws_gpu_adopt_doubled_locked(const struct cws_gpu *gpu);
/* Gives up the memory of one such extent, the one that was used last. It is DIRTY then: the device alone has it. False:
 * there is none. */
bool cws_gpu_adopt_give_locked(struct cws_gpu *gpu);

/* Memory is refused: says, once, why most of what the program has on the device is not paged, if that is so. The lock
 * is held. */
void cws_gpu_adopt_explain_locked(struct cws_gpu *gpu);
#endif
