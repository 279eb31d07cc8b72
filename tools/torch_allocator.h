/* torch_allocator.h - PyTorch's allocator for device memory, chosen by its environment variables before it starts:
 * weights are paged only where each tensor is an allocation of its own. The same as allocator_settings() of the Python
 * package, for programs that run without that. Threads: one. */
#ifndef CWS_TORCH_ALLOCATOR_H
#define CWS_TORCH_ALLOCATOR_H
#include <stdbool.h>

/* Could PyTorch see an NVIDIA GPU here? From CUDA_VISIBLE_DEVICES and device files alone. */
bool cws_torch_may_see_gpu(void);

/* `before`, a list of key:value, with the allocator that pages: another backend and expandable segments are left out
 * (*out_changed says that there was one), other keys stay as they are. Fresh memory, or NULL where there is none. */
char *cws_torch_allocator_conf(const char *before, bool *out_changed);

/* Sets PYTORCH_ALLOC_CONF and its older name in this process's environment; says so where a value that the user had set
 * had to change. 0, or -ENOMEM. */
int cws_torch_allocator_choose(void);

#endif
