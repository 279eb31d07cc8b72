/* Description: with CODEC_VRAM_BUDGET=auto:16M-64M the budget of a GPU begins with what is free inside the range, and
 * gives way when other programs take memory there; what is read stays right. A budget that is set ends it. */
#include "cuda_shim_fixture.h"

#include <time.h>

static CUstream stream;
static CUdeviceptr at[TENSORS], scratch;

static void read_all(void)
{
    CUfunction sum = kernel("sum");
    for (unsigned i = 0; i < TENSORS; i++) {
        uint64_t bytes = tensor_bytes(i), got = 0;
        void *params[] = {&scratch, &at[i], &bytes};
        OK(cu.cuLaunchKernel(sum, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL));
        OK(cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream));
        OK(cu.cuStreamSynchronize(stream));
        assert_int_equal(got, sum_of(content(i), tensor_bytes(i)));
    }
}

static void others_take(size_t bytes)
{
    void (*others)(size_t) = (void (*)(size_t))dlsym(driver_handle, "standin_others");
    assert_non_null(others);
    others(bytes);
}

static int call_set(const char *text)
{
    char line[512];
    int (*set)(const char *, char *, size_t) = (int (*)(const char *, char *, size_t))dlsym(RTLD_DEFAULT,
                                                                                            "codecllm_set_budget");
    return set(text, line, sizeof line);
}

static void it_gives_way(void **state)
{
    (void)state;
    const struct timespec moment = {.tv_nsec = 10000000};
    assert_int_equal(stat_of("budget"), 64 * MIB);
    read_all();
    others_take((512 - 150) * MIB); /* 256 MiB are to stay free */
    while (stat_of("budget") == 64 * MIB)
        nanosleep(&moment, NULL);
    assert_true(stat_of("budget") < 40 * MIB && stat_of("budget") >= 16 * MIB);
    read_all();
    assert_true(stat_of("used") <= stat_of("budget"));
    assert_true(call_set("auto") < 0);
    assert_int_equal(call_set("60M"), 0); /* from now on it is what was said */
    assert_int_equal(stat_of("budget"), 60 * MIB);
    read_all();
    assert_int_equal(stat_of("budget"), 60 * MIB);
}

static int setup(void **state)
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

static int teardown(void **state)
{
    (void)state;
    return unlink(model_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_gives_way)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
