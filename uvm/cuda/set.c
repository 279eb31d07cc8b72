/* set.c - the largest sets of bound ranges that one launch named. Room for the largest one is kept free of what cannot
 * be evicted, so that a shortage shows at an allocation and not at a launch. A set is forgotten when the first of its
 * ranges ends or is written to. */
#include "state.h"

static void find_largest_locked(struct cws_gpu *gpu)
{
    gpu->largest_set = 0;
    gpu->smallest_set = UINT64_MAX;
    for (unsigned i = 0; i < CWS_GPU_SETS; i++) {
        gpu->largest_set = gpu->sets[i] > gpu->largest_set ? gpu->sets[i] : gpu->largest_set;
        gpu->smallest_set = gpu->sets[i] < gpu->smallest_set ? gpu->sets[i] : gpu->smallest_set;
    }
}

static void forget_locked(struct cws_gpu *gpu, uint32_t which)
{
    for (struct cws_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next)
        CWS_LIST_OF(l, struct cws_gpu_range, link)->sets &= ~which;
    for (unsigned i = 0; i < CWS_GPU_SETS; i++)
        if (which >> i & 1)
            gpu->sets[i] = 0;
}

static bool counts(const struct cws_gpu_range *r) { return r->source && r->state != CWS_RANGE_DIRTY; }

void cws_gpu_set_note_locked(struct cws_gpu *gpu, struct cws_gpu_range *const *ranges, unsigned count)
{
    uint64_t bytes = 0;
    uint32_t common = UINT32_MAX;
    unsigned smallest = 0;
    for (unsigned i = 0; i < count; i++) {
        if (counts(ranges[i])) {
            bytes += cws_gpu_span(ranges[i]);
            common &= ranges[i]->sets;
        }
    }
    if (bytes <= gpu->smallest_set)
        return;
    for (; common; common &= common - 1)
        if (gpu->sets[__builtin_ctz(common)] >= bytes)
            return; /* known, it or a larger one around it */
    for (unsigned i = 1; i < CWS_GPU_SETS; i++)
        smallest = gpu->sets[i] < gpu->sets[smallest] ? i : smallest;
    /* a set that fails is not to be kept room for */
    if (cws_gpu_undroppable_locked(gpu) + bytes > gpu->config.budget_bytes)
        return;
    if (gpu->sets[smallest])
        forget_locked(gpu, 1u << smallest);
    gpu->sets[smallest] = bytes;
    for (unsigned i = 0; i < count; i++)
        if (counts(ranges[i]))
            ranges[i]->sets |= 1u << smallest;
    find_largest_locked(gpu);
}

void cws_gpu_set_forget_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    if (!r->sets)
        return;
    forget_locked(gpu, r->sets);
    find_largest_locked(gpu);
}
