/* tensor_map.c - tensor maps. A kernel gets one by value, and its copy engine reads memory at the address inside.
 * Drivers keep that address as it is, so the scan of a launch's parameters finds it, as it finds one in a copy to the
 * device. Where that is not so, the range that the map names stays resident. */
#include "uvm/cuda/manager.h"
#include "device.h"
#include "shim/say.h"

#include <stdatomic.h>
#include <string.h>

#define MAP_WORDS 16 /* a CUtensorMap is 128 bytes */

static CUresult made(CUresult result, const void *map, const void *named)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    CUdeviceptr address = (uintptr_t)named, words[MAP_WORDS];
    struct cws_gpu *gpu = cws_cuda_owner(address);
    if (result != CUDA_SUCCESS || !gpu)
        return result;
    memcpy(words, map, sizeof words);
    for (unsigned i = 0; i < MAP_WORDS; i++)
        if (words[i] == address)
            return result;
    cws_gpu_pin(gpu, address);
    if (!atomic_flag_test_and_set(&said))
        cws_shim_say("this driver hides the address in a tensor map: weights that tensor maps name stay on the GPU");
    return result;
}

CUresult cws_do_cuTensorMapEncodeTiled(cws_fn_cuTensorMapEncodeTiled real, CUstream own, void *map, int type,
                                       unsigned rank, void *address, const unsigned long long *dims,
                                       const unsigned long long *strides, const unsigned *box, const unsigned *steps,
                                       int interleave, int swizzle, int promotion, int fill)
{
    (void)own;
    return made(real(map, type, rank, address, dims, strides, box, steps, interleave, swizzle, promotion, fill), map,
                address);
}

CUresult cws_do_cuTensorMapEncodeIm2col(cws_fn_cuTensorMapEncodeIm2col real, CUstream own, void *map, int type,
                                        unsigned rank, void *address, const unsigned long long *dims,
                                        const unsigned long long *strides, const int *lower, const int *upper,
                                        unsigned channels, unsigned pixels, const unsigned *steps, int interleave,
                                        int swizzle, int promotion, int fill)
{
    (void)own;
    return made(real(map, type, rank, address, dims, strides, lower, upper, channels, pixels, steps, interleave,
                     swizzle, promotion, fill),
                map, address);
}

CUresult cws_do_cuTensorMapEncodeIm2colWide(cws_fn_cuTensorMapEncodeIm2colWide real, CUstream own, void *map, int type,
                                            unsigned rank, void *address, const unsigned long long *dims,
                                            const unsigned long long *strides, int lower, int upper, unsigned channels,
                                            unsigned pixels, const unsigned *steps, int interleave, int mode,
                                            int swizzle, int promotion, int fill)
{
    (void)own;
    return made(real(map, type, rank, address, dims, strides, lower, upper, channels, pixels, steps, interleave, mode,
                     swizzle, promotion, fill),
                map, address);
}

CUresult cws_do_cuTensorMapReplaceAddress(cws_fn_cuTensorMapReplaceAddress real, CUstream own, void *map, void *address)
{
    (void)own;
    return made(real(map, address), map, address);
}
