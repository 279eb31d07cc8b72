/* size_class.h - sizes in classes, so that what is freed will do for what is about as large: memory of the program's
 * own allocations, and addresses.
 *
 * In granules (2 MiB): every size up to 16, then eight classes between two powers of two, from 128 on 32. So a class is
 * larger than what it is for by at most an eighth, above 256 MiB by a 32nd. Weights have frames of their exact size.
 * Threads: nothing is kept. */
#ifndef CWS_GPU_SIZE_CLASS_H
#define CWS_GPU_SIZE_CLASS_H
#include <stdint.h>

/* Of 1 to 2^31 granules. */
#define CWS_SIZE_CLASSES (16u + 3u * 8u + 24u * 32u)

/* The power of two below `granules`, which is more than 16: 2^*k. */
static inline uint32_t cws_size_class_step(uint32_t granules, unsigned *k)
{
    *k = 31u - (unsigned)__builtin_clz(granules - 1);
    return (1u << *k) / (*k < 7 ? 8u : 32u);
}

/* The class of a size, in the order of sizes. granules: 1 to 2^31. */
static inline unsigned cws_size_class(uint32_t granules)
{
    unsigned k;
    if (granules <= 16)
        return granules - 1;
    uint32_t step = cws_size_class_step(granules, &k);
    unsigned first = k < 7 ? 16 + (k - 4) * 8 : 40 + (k - 7) * 32;
    return first + (granules - (1u << k) - 1) / step;
}

/* The largest size of its class, which all of that class get. */
static inline uint32_t cws_size_class_round(uint32_t granules)
{
    unsigned k;
    if (granules <= 16)
        return granules;
    uint32_t step = cws_size_class_step(granules, &k);
    return (granules + step - 1) / step * step;
}
#endif
