/* cuda_weights.h - the model's tensors on the GPU, through the preloaded library: for tests that read them again and
 * again while something else changes. */
#ifndef CWS_TESTS_CUDA_WEIGHTS_H
#define CWS_TESTS_CUDA_WEIGHTS_H
#include "cuda_shim_fixture.h"

static CUstream stream;
static CUdeviceptr at[TENSORS], scratch;

static inline void read_one(unsigned i)
{
    uint64_t bytes = tensor_bytes(i), got = 0;
    void *params[] = {&scratch, &at[i], &bytes};
    OK(cu.cuLaunchKernel(kernel("sum"), 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
    OK(cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream));
    OK(cu.cuStreamSynchronize(stream));
    assert_int_equal(got, sum_of(content(i), tensor_bytes(i)));
}

static inline int setup(void **state)
{
    (void)state;
    fixture_open_driver();
    fixture_model();
    fixture_map();
    OK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cu.cuMemAllocAsync(&scratch, 4096, stream));
    if (stat_of("budget") == ~0ull) {
        fprintf(stderr, "no manager: built without kernels for the GPU\n");
        exit(77);
    }
    for (unsigned i = 0; i < TENSORS; i++) {
        OK(cu.cuMemAllocAsync(&at[i], tensor_bytes(i), stream));
        OK(cu.cuMemcpyHtoDAsync_v2(at[i], view + tensor_begin[i], tensor_bytes(i), stream));
    }
    OK(cu.cuStreamSynchronize(stream));
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    return unlink(model_path);
}

#endif
