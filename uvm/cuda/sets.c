/* sets.c - the largest sets of bound extents that one launch named. */
#include "sets.h"

static void find_largest(struct cws_gpu_sets *sets)
{
    sets->largest = 0;
    sets->smallest = UINT64_MAX;
    for (unsigned i = 0; i < CWS_GPU_SETS; i++) {
        sets->largest = sets->bytes[i] > sets->largest ? sets->bytes[i] : sets->largest;
        sets->smallest = sets->bytes[i] < sets->smallest ? sets->bytes[i] : sets->smallest;
    }
}

static void forget(struct cws_gpu_sets *sets, uint32_t which)
{
    for (struct cws_gpu_extent *x = cws_gpu_extent_next(sets->ranges, NULL); x;
         x = cws_gpu_extent_next(sets->ranges, x))
        x->sets &= ~which;
    for (unsigned i = 0; i < CWS_GPU_SETS; i++)
        if (which >> i & 1)
            sets->bytes[i] = 0;
}

static bool counts(const struct cws_gpu_extent *x) { return cws_gpu_is_bound(x) && x->state != CWS_EXTENT_DIRTY; }

void cws_gpu_sets_note(struct cws_gpu_sets *sets, struct cws_gpu_extent *const *extents, unsigned count, uint64_t room)
{
    uint64_t bytes = 0;
    uint32_t common = UINT32_MAX;
    unsigned smallest = 0;
    for (unsigned i = 0; i < count; i++) {
        if (counts(extents[i])) {
            bytes += cws_gpu_span(extents[i]);
            common &= extents[i]->sets;
        }
    }
    if (bytes <= sets->smallest)
        return;
    for (; common; common &= common - 1)
        if (sets->bytes[__builtin_ctz(common)] >= bytes)
            return; /* known, it or a larger one around it */
    for (unsigned i = 1; i < CWS_GPU_SETS; i++)
        smallest = sets->bytes[i] < sets->bytes[smallest] ? i : smallest;
    if (bytes > room)
        return;
    if (sets->bytes[smallest])
        forget(sets, 1u << smallest);
    sets->bytes[smallest] = bytes;
    for (unsigned i = 0; i < count; i++)
        if (counts(extents[i]))
            extents[i]->sets |= 1u << smallest;
    find_largest(sets);
}

void cws_gpu_sets_forget(struct cws_gpu_sets *sets, struct cws_gpu_extent *x)
{
    if (!x->sets)
        return;
    forget(sets, x->sets);
    find_largest(sets);
}

const char *cws_gpu_sets_check(const struct cws_gpu_sets *sets)
{
    uint64_t bytes[CWS_GPU_SETS] = {0};
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(sets->ranges, NULL); x;
         x = cws_gpu_extent_next(sets->ranges, x))
        for (uint32_t left = x->sets; left; left &= left - 1)
            bytes[__builtin_ctz(left)] += cws_gpu_span(x);
    for (unsigned i = 0; i < CWS_GPU_SETS; i++)
        if (bytes[i] != sets->bytes[i])
            return "sets: one is not what its extents are";
    return NULL;
}
