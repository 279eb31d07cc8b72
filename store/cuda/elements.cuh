/* elements.cuh - eight symbols and what goes with them become eight elements, in 2 * ELEM_BYTES words of 4 bytes. */
#ifndef CWS_GPU_ELEMENTS_CUH
#define CWS_GPU_ELEMENTS_CUH
#include "job.h"

/* Two 16-bit halves, each rotated right by one. */
static __device__ __forceinline__ uint32_t unrotate(uint32_t v)
{
    return (v >> 1 & 0x7fff7fffu) | (v << 15 & 0x80008000u);
}

static __device__ __forceinline__ uint32_t byte_at(uint2 v, int i) /* i: constant after unrolling */
{
    return __byte_perm(i < 4 ? v.x : v.y, 0, 0x4440 | (i & 3));
}

/* Symbol on top of the plane below it, unrotated: elements 2i and 2i+1 in result i. symbols: two in each word. */
static __device__ __forceinline__ void join_top(const uint32_t symbols[4], uint2 below, uint32_t top[4])
{
    top[0] = unrotate(__byte_perm(below.x, symbols[0], 0x5140));
    top[1] = unrotate(__byte_perm(below.x, symbols[1], 0x5342));
    top[2] = unrotate(__byte_perm(below.y, symbols[2], 0x5140));
    top[3] = unrotate(__byte_perm(below.y, symbols[3], 0x5342));
}

template <int ELEM_BYTES>
static __device__ __forceinline__ void join_planes(const uint32_t symbols[4], const uint2 *plane, uint32_t *out)
{
    uint32_t top[4];
    if (ELEM_BYTES == 1) {
        out[0] = __byte_perm(symbols[0], symbols[1], 0x5410);
        out[1] = __byte_perm(symbols[2], symbols[3], 0x5410);
        return;
    }
    join_top(symbols, plane[ELEM_BYTES - 2], top);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (ELEM_BYTES == 2) {
            if (i < 4)
                out[i] = top[i];
            continue;
        }
        uint32_t high = i % 2 ? top[i / 2] & 0xffff0000u : top[i / 2] << 16;
        if (ELEM_BYTES == 4) {
            out[i] = high | byte_at(plane[1], i) << 8 | byte_at(plane[0], i);
        } else {
            out[2 * i] = byte_at(plane[3], i) << 24 | byte_at(plane[2], i) << 16 | byte_at(plane[1], i) << 8 |
                         byte_at(plane[0], i);
            out[2 * i + 1] = high | byte_at(plane[5], i) << 8 | byte_at(plane[4], i);
        }
    }
}

#define SYMBOL_BASE 8388736.0f /* 2^23 + 128 */

/* 2^23 + the symbol in the low byte, put together from bytes: no conversion is needed. */
static __device__ __forceinline__ float symbol_float(uint32_t symbol)
{
    return __uint_as_float(__byte_perm(symbol, 0x4b000000u, 0x7650));
}

/* (symbol - 128) * scale, rounded once. */
static __device__ __forceinline__ float scaled(uint32_t symbol, float scale)
{
    return (symbol_float(symbol) - SYMBOL_BASE) * scale;
}

/* The same in one step, where base = -SYMBOL_BASE * scale is finite. It is exact then: 2^23 + 128 is 65537 * 2^7, and a
 * scale has six significant bits. So the sum is rounded once, as the product above. */
static __device__ __forceinline__ float scaled_from(uint32_t symbol, float scale, float base)
{
    return __fmaf_rn(symbol_float(symbol), scale, base);
}

/* A float's nearest bf16, ties to even, in the upper half of the result; not for a NaN. For devices that have no
 * instruction for it. */
static __device__ __forceinline__ uint32_t bf16_on_top(uint32_t bits) { return bits + 0x7fff + (bits >> 16 & 1); }

/* Two floats to the nearest halves or bf16, ties to even. As instructions, so that this compiles where the toolkit's
 * headers are not (compile.h). Before compute capability 8.0 none makes two of them, and none a bf16. */
static __device__ __forceinline__ uint32_t round_two(float low, float high, unsigned dtype)
{
    uint32_t v;
#if __CUDA_ARCH__ >= 800
    if (dtype == CWS_BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
#else
    if (dtype == CWS_BF16)
        v = __byte_perm(bf16_on_top(__float_as_uint(low)), bf16_on_top(__float_as_uint(high)), 0x7632);
    else
        asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
            : "=r"(v)
            : "f"(low), "f"(high));
#endif
    return v;
}

#endif
