/* bench_launch.c - what the hook costs a launch. Run with the preloaded library and the stand-in driver:
 *   LD_LIBRARY_PATH=BUILD/standin LD_PRELOAD=BUILD/lib/libcodecshim.so CODEC_VRAM_BUDGET=64M BUILD/bin/bench_launch
 * The stand-in is told to fail the launch at once, so that what is timed is the way there: by the hook, and past it. */
#include "shim/cuda/types.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef CUresult (*launch_function)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                    CUstream, void **, void **);

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double best_of(launch_function launch, CUfunction f, void **params)
{
    enum { ROUNDS = 15, CALLS = 20000 };
    double best = 1e18;
    for (int r = 0; r < ROUNDS; r++) {
        double begin = now_ns();
        for (int i = 0; i < CALLS; i++)
            launch(f, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL);
        double each = (now_ns() - begin) / CALLS;
        best = each < best ? each : best;
    }
    return best;
}

#define FIND(name, type) __typeof__(type) name = (__typeof__(type))dlsym(driver, #name)
#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        CUresult result_ = (call);                                                                                     \
        if (result_) {                                                                                                 \
            fprintf(stderr, "%s: error %d\n", #call, result_);                                                         \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)

int main(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver || !dlsym(driver, "standin_resolve")) {
        fprintf(stderr, "needs the stand-in driver: see the top of this file\n");
        return 1;
    }
    FIND(cuInit, CUresult(*)(unsigned));
    FIND(cuDevicePrimaryCtxRetain, CUresult(*)(CUcontext *, CUdevice));
    FIND(cuCtxSetCurrent, CUresult(*)(CUcontext));
    FIND(cuModuleLoadData, CUresult(*)(CUmodule *, const void *));
    FIND(cuModuleGetFunction, CUresult(*)(CUfunction *, CUmodule, const char *));
    FIND(cuMemAllocAsync, CUresult(*)(CUdeviceptr *, size_t, CUstream));
    FIND(cuCtxSynchronize, CUresult(*)(void));
    FIND(cuLaunchKernel, launch_function);
    FIND(standin_resolve, void *(*)(void *, const char *));
    FIND(standin_fail, void (*)(const char *, unsigned, CUresult));
    launch_function real = (launch_function)standin_resolve(NULL, "cuLaunchKernel");
    CUcontext context;
    CUmodule module;
    CUfunction f;
    CUdeviceptr small, large;
    uint64_t bytes = 16;
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadData(&module, "standin:test"));
    CHECK(cuModuleGetFunction(&f, module, "copy"));
    CHECK(cuMemAllocAsync(&small, 4096, NULL));
    CHECK(cuMemAllocAsync(&large, 4 << 20, NULL));
    void *none[] = {&small, &small, &bytes}, *one[] = {&small, &large, &bytes}, *two[] = {&large, &large, &bytes};
    CHECK(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, two, NULL)); /* now it has memory */
    CHECK(cuCtxSynchronize());
    standin_fail("cuLaunchKernel", 0, CUDA_ERROR_UNKNOWN);
    double plain = best_of(real, f, none);
    printf("past the hook            %7.1f ns\n", plain);
    printf("no managed pointer      +%7.1f ns\n", best_of(cuLaunchKernel, f, none) - plain);
    printf("one, resident           +%7.1f ns\n", best_of(cuLaunchKernel, f, one) - plain);
    printf("the same twice          +%7.1f ns\n", best_of(cuLaunchKernel, f, two) - plain);
    return 0;
}
