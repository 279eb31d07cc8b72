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
 * Threads: any. */
#ifndef CWS_GPU_ADOPT_H
#define CWS_GPU_ADOPT_H
#include <stdint.h>

struct cws_gpu_adopts {
    uint64_t copied; /* bytes that filled new ranges from ordinary memory, since the stores last had nothing unbound */
};
#endif
