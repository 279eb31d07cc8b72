/* test_kernels.c - kernels for tests. They are written so that a fault or a race shows: plain loads and stores, in
 * order. */
#include "state.h"
#include "store/base/race_range.h"

#include <string.h>

#define ARG(type, index) (*(type *)params[index])
#define UNUSED_SHAPE (void)grid, (void)block

#if defined(__SANITIZE_THREAD__)
#define WITHOUT_TSAN __attribute__((no_sanitize("thread")))
#else
#define WITHOUT_TSAN
#endif

/* The sum of all bytes: most of what tests do. ThreadSanitizer looks at the whole of it at once. */
WITHOUT_TSAN static uint64_t sum_bytes(const unsigned char *from, uint64_t bytes)
{
    cws_race_read(from, bytes);
    const uint64_t even = 0x00ff00ff00ff00ff;
    uint64_t sum = 0, word, i = 0;
    for (; i + sizeof word <= bytes; i += sizeof word) {
        memcpy(&word, from + i, sizeof word);
        word = (word & even) + (word >> 8 & even); /* four sums of two bytes */
        sum += word * 0x0001000100010001 >> 48;
    }
    for (; i < bytes; i++)
        sum += from[i];
    return sum;
}

static void fill_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    memset(ARG(void *, 0), (int)ARG(uint32_t, 2), ARG(uint64_t, 1));
}

static void copy_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    memcpy(ARG(void *, 0), ARG(const void *, 1), ARG(uint64_t, 2));
}

static void sum_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    *ARG(uint64_t *, 0) = sum_bytes(ARG(const unsigned char *, 1), ARG(uint64_t, 2));
}

static void add_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    uint32_t *to = ARG(uint32_t *, 0), value = ARG(uint32_t, 2);
    for (uint64_t i = 0; i < ARG(uint64_t, 1); i++)
        to[i] += value;
}

static void gather_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    uint64_t *out = ARG(uint64_t *, 0);
    const unsigned char *const *from = ARG(const unsigned char *const *, 1);
    for (uint64_t i = 0; i < ARG(uint64_t, 2); i++)
        out[i] = sum_bytes(from[i], ARG(uint64_t, 3));
}

static void scatter_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    unsigned char *const *to = ARG(unsigned char *const *, 0);
    for (uint64_t i = 0; i < ARG(uint64_t, 1); i++)
        memset(to[i], (int)ARG(uint32_t, 3), ARG(uint64_t, 2));
}

static void many_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    const unsigned char *const *from = params[0];
    uint64_t sum = 0;
    for (int i = 0; i < 40; i++)
        sum += from[i] ? sum_bytes(from[i], ARG(uint64_t, 1)) : 0;
    *ARG(uint64_t *, 2) = sum;
}

static void map_sum_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    uint64_t map[16];
    memcpy(map, params[1], sizeof map);
    *ARG(uint64_t *, 0) = sum_bytes((const unsigned char *)(uintptr_t)(map[0] ^ map[1]), ARG(uint64_t, 2));
}

/* As those of NCCL: what to do lies in memory of the host. */
static void queued_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    UNUSED_SHAPE;
    const uint64_t *queue = ARG(const uint64_t *, 0);
    memcpy((void *)(uintptr_t)queue[0], (const void *)(uintptr_t)queue[1], queue[2]);
}

static void nothing_kernel(void **params, const unsigned grid[3], const unsigned block[3])
{
    (void)params;
    UNUSED_SHAPE;
}

static const struct standin_kernel KERNELS[] = {
    {"fill", fill_kernel, 3, {{0, 8}, {8, 8}, {16, 4}}},
    {"copy", copy_kernel, 3, {{0, 8}, {8, 8}, {16, 8}}},
    {"sum", sum_kernel, 3, {{0, 8}, {8, 8}, {16, 8}}},
    {"add", add_kernel, 3, {{0, 8}, {8, 8}, {16, 4}}},
    {"gather", gather_kernel, 4, {{0, 8}, {8, 8}, {16, 8}, {24, 8}}},
    {"scatter", scatter_kernel, 4, {{0, 8}, {8, 8}, {16, 8}, {24, 4}}},
    {"many", many_kernel, 3, {{0, 320}, {320, 8}, {328, 8}}},
    {"map_sum", map_sum_kernel, 3, {{0, 8}, {64, 128}, {192, 8}}},
    {"_Z18ncclDevKernel_Test24ncclDevKernelArgsStorageILm4096EE", queued_kernel, 1, {{0, 8}}},
    {"nothing", nothing_kernel, 0, {{0, 0}}},
};
const struct standin_image standin_test_image = {STANDIN_IMAGE_MAGIC, sizeof KERNELS / sizeof *KERNELS, KERNELS};
