/* plain.h - allocations that are the driver's own: counted in the budget. Threads: any. */
#ifndef CWS_SHIM_CUDA_PLAIN_H
#define CWS_SHIM_CUDA_PLAIN_H
#include "device.h"

/* Notes `bytes` under a key (an address, a handle). False: no memory. */
bool cws_cuda_plain_note(unsigned long long key, size_t bytes, struct cws_gpu *gpu);
/* Forgets it: its bytes and manager; 0: not known. */
size_t cws_cuda_plain_forget(unsigned long long key, struct cws_gpu **out_gpu);
/* The manager is about to close. */
void cws_cuda_plain_forget_manager(struct cws_gpu *gpu);

#endif
