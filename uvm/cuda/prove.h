/* prove.h - provenance by content: what kernels put together of tensors (torch.stack, torch.cat, a copy by a kernel) is
 * found to be these tensors, so that its memory can be given away. The loader does that when memory is short.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_PROVE_H
#define CWS_GPU_PROVE_H
#include "extent.h"
#include "known.h"

struct cws_gpu_proofs {
    struct cws_gpu_known known;
    uint64_t key[2];   /* of the hash that proves; random, of this process; 0 0: there is none, and nothing is proven */
    bool asked;        /* threads wait until nothing more can be proven, or something was */
    uint64_t answered; /* times that they were told so */
    uint64_t since_ns, progress; /* since when they have waited for uses that do not end; 0: they do not */
    /* since the manager was opened: extents; those that were looked at in vain */
    uint64_t proven, refuted;
};

void cws_gpu_proofs_init(struct cws_gpu_proofs *proofs);
void cws_gpu_proofs_close(struct cws_gpu_proofs *proofs);

/* Bytes of extents whose content might be found to be that of tensors, once their uses are done. */
uint64_t cws_gpu_provable_locked(const struct cws_gpu *gpu);
/* In the loader. Looks at one extent, and waits for that. Whether something moved. */
bool cws_gpu_prove_one_drops_lock(struct cws_gpu *gpu);
/* In the loader, which looks at an extent (look.c), last used at `used`: is it tensors? Then they are its pieces. */
bool cws_gpu_prove_kept_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x, uint64_t used);
/* In the loader: the same for threads that wait. */
bool cws_gpu_prove_asked_drops_lock(struct cws_gpu *gpu);
/* In a thread of the program that would have to be refused memory, because `need` bytes that cannot be dropped do not
 * fit the budget. True: something was proven, or the loader was at work on an extent; the caller looks again. */
bool cws_gpu_prove_wait_drops_lock(struct cws_gpu *gpu, uint64_t need);
/* The extent is another allocation's now. */
void cws_gpu_proof_forget_locked(struct cws_gpu_extent *x);
#endif
