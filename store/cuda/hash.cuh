/* hash.cuh - the content hash (../content_hash.h) as warps compute it. */
#ifndef CWS_GPU_HASH_CUH
#define CWS_GPU_HASH_CUH
#include "job.h"

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

/* A hash_add whose word is known before there is time for it: its steps go between the lookups of the next eight
 * symbols. */
struct hash_late {
    uint64_t position;
    uint4 v;
    uint64_t a, b; /* the two factors */
};

/* One that adds nothing, whatever happens to it: a becomes 0. */
static __device__ __forceinline__ void late_none(hash_late &late, uint64_t position)
{
    uint64_t low = 0 - hash_derive(position);
    late.position = position;
    late.v = make_uint4((uint32_t)low, (uint32_t)(low >> 32), 0, 0);
}

/* Called with step 0, 1 and 2, in turn. */
static __device__ __forceinline__ void late_step(hash_late &late, hash_sum &sum, hash_key key, int step)
{
    if (step == 0)
        late.a = ((uint64_t)late.v.y << 32 | late.v.x) + hash_derive(late.position);
    if (step == 1)
        late.b = ((uint64_t)late.v.w << 32 | late.v.z) + hash_derive(late.position + key.between);
    if (step == 2) {
        unsigned __int128 s = ((unsigned __int128)sum.hi << 64 | sum.lo) + (unsigned __int128)late.a * late.b;
        sum.lo = (uint64_t)s;
        sum.hi = (uint64_t)(s >> 64);
    }
}

/* The whole warp's sum to *result: four lanes add a digit each, all in one instruction. */
static __device__ __forceinline__ void hash_give(hash_sum sum, unsigned lane, cws_gpu_result *result)
{
    unsigned __int128 s = (unsigned __int128)sum.hi << 64 | sum.lo;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        uint64_t lo = __shfl_xor_sync(WARP_ALL, (unsigned long long)s, d);
        uint64_t hi = __shfl_xor_sync(WARP_ALL, (unsigned long long)(s >> 64), d);
        s += (unsigned __int128)hi << 64 | lo;
    }
    uint64_t half = lane & 2 ? (uint64_t)(s >> 64) : (uint64_t)s;
    if (lane < 4)
        atomicAdd((unsigned long long *)&result->digit[lane],
                  (unsigned long long)(lane & 1 ? half >> 32 : half & 0xffffffffu));
}

/* The last of jobs[0 .. n) whose first_unit is not above `unit`; jobs[0].first_unit is 0, and n jobs have `units`. By a
 * whole warp. Mostly they are of one size, and the job is where that says or beside it; the rest of it and the job
 * behind it, which are needed next, are asked for with the question. Else 32 probes a step: all warps of a launch ask
 * at once, so that many would wait for the same few lines. */
template <typename Job>
static __device__ __forceinline__ uint32_t find_job(const Job *jobs, uint32_t n, uint32_t unit, uint32_t units,
                                                    unsigned lane)
{
    if (n == 1)
        return 0;
    uint32_t guess = min(n - 1, (uint32_t)(((float)unit + 0.5f) * ((float)n / (float)units))),
             at = guess ? guess - 1 : 0;
    if (lane < sizeof *jobs / 16 && guess + lane / (sizeof *jobs / 32) < n)
        asm volatile("prefetch.global.L1 [%0];" ::"l"((const char *)(jobs + guess) + 32 * lane));
    unsigned near = __ballot_sync(WARP_ALL, lane < 4 && at + lane < n &&
                                                jobs[lane < 4 && at + lane < n ? at + lane : at].first_unit <= unit);
    if ((near & 9) == 1)
        return at + 31 - __clz(near);
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
