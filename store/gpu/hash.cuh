/* hash.cuh - the content hash (../content_hash.h) as warps compute it. */
#ifndef CWS_GPU_HASH_CUH
#define CWS_GPU_HASH_CUH
#include "gpu_job.h"

#define KEY_STEP 0x9e3779b97f4a7c15ull
#define KEY_MIX 0xd6e8feb86659fd93ull
#define WARP_ALL 0xffffffffu

struct hash_key {
    uint64_t first;
    uint64_t between; /* second key - first key */
};

/* One thread's part of a sum. */
struct hash_sum {
    uint64_t lo, hi;
};

static __device__ __forceinline__ uint64_t hash_derive(uint64_t y)
{
    uint64_t z = (y ^ (y >> 32)) * KEY_MIX;
    return z ^ (z >> 29);
}

/* Position of word `index`, to be stepped by KEY_STEP a word. */
static __device__ __forceinline__ uint64_t hash_position(hash_key key, uint64_t index)
{
    return key.first + index * KEY_STEP;
}

static __device__ __forceinline__ void hash_add(hash_sum &sum, hash_key key, uint64_t position, uint4 v)
{
    uint64_t a = ((uint64_t)v.y << 32 | v.x) + hash_derive(position);
    uint64_t b = ((uint64_t)v.w << 32 | v.z) + hash_derive(position + key.between);
    unsigned __int128 s = ((unsigned __int128)sum.hi << 64 | sum.lo) + (unsigned __int128)a * b;
    sum.lo = (uint64_t)s;
    sum.hi = (uint64_t)(s >> 64);
}

/* The whole warp's sum into *result. Each wrap of the low word is seen by exactly one add, so the order does not matter. */
static __device__ __forceinline__ void hash_give(hash_sum sum, unsigned lane, cws_gpu_result *result)
{
    unsigned __int128 s = (unsigned __int128)sum.hi << 64 | sum.lo;
    for (int d = 16; d > 0; d /= 2) {
        uint64_t lo = __shfl_down_sync(WARP_ALL, (unsigned long long)s, d);
        uint64_t hi = __shfl_down_sync(WARP_ALL, (unsigned long long)(s >> 64), d);
        s += (unsigned __int128)hi << 64 | lo;
    }
    if (lane == 0) {
        uint64_t lo = (uint64_t)s, hi = (uint64_t)(s >> 64);
        uint64_t before = atomicAdd((unsigned long long *)&result->hash[0], (unsigned long long)lo);
        atomicAdd((unsigned long long *)&result->hash[1], (unsigned long long)(hi + (before + lo < before)));
    }
}

/* The last of jobs[0 .. n) whose first_unit is not above `unit`; jobs[0].first_unit is 0. By a whole warp: 32 probes a step. */
template <typename Job> static __device__ __forceinline__ uint32_t find_job(const Job *jobs, uint32_t n, uint32_t unit, unsigned lane)
{
    uint32_t begin = 0, end = n;
    while (end - begin > 1) {
        uint32_t step = (end - begin + 31) / 32, probe = begin + lane * step;
        unsigned below = __ballot_sync(WARP_ALL, probe < end && jobs[probe < end ? probe : begin].first_unit <= unit);
        begin += (31 - __clz(below | 1)) * step;
        end = min(end, begin + step);
    }
    return begin;
}

#endif
