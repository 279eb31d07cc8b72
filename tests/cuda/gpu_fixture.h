/* gpu_fixture.h - what the tests of the CUDA manager share: a store of TENSORS tensors, the stand-in driver with a
 * manager on it, launches, comparisons. */
#ifndef CWS_TESTS_GPU_FIXTURE_H
#define CWS_TESTS_GPU_FIXTURE_H
#include "store/cuda/decoder.h"
#include "store/pack/writer.h"
#include "uvm/cuda/manager.h"
#include "tests/support/sample_model.h"
#include "tests/standin/standin.h"
#include "tests/support/sanitized.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifndef GPU_TENSORS
#define GPU_TENSORS 12
#endif
enum { TENSORS = GPU_TENSORS };
#define MIB ((size_t)1 << 20)

static struct cws_driver driver;
static struct cws_store *store;
static struct bytes plain; /* the logical file */
static char last_line[1024];
static size_t host_budget = 64 * MIB; /* of the managers to be opened */
static bool strict, adopt;
static size_t staging_bytes = 8 * MIB; /* of these managers; 0: their choice */

static char explained[1024]; /* the last line that said why memory is not paged */

static inline void say(const char *line)
{
    snprintf(last_line, sizeof last_line, "%s", line);
    if (strstr(line, "so they are not paged"))
        snprintf(explained, sizeof explained, "%s", line);
}
static void (*hear)(const char *line) = say; /* of the managers to be opened */
static bool (*pins)(const char *tensor);     /* the same */

static inline size_t tensor_bytes(unsigned i) { return i % 3 == 0 ? 3 * MIB : i % 3 == 1 ? 2 * MIB : MIB + 512; }

/* bf16 weights, near enough to normal ones. */
static inline void fill_weights(uint8_t *to, size_t bytes, uint64_t *seed)
{
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        uint64_t r = sample_random(seed);
        float f = (float)((double)(r & 0xffff) + (double)(r >> 16 & 0xffff) - 65536.0) / 3e6f;
        uint32_t v;
        memcpy(&v, &f, 4);
        to[i] = (uint8_t)(v >> 16);
        to[i + 1] = (uint8_t)(v >> 24);
    }
}

/* What the tensors say that they are; a test with types of its own defines GPU_TYPES. */
struct gpu_type {
    const char *name;
    unsigned bits; /* of an element */
};
#ifdef GPU_TYPES
static const struct gpu_type gpu_types[] = {GPU_TYPES};
#else
static const struct gpu_type gpu_types[] = {{"BF16", 16}};
#endif

static inline void make_store(void)
{
    char json[512 + 96 * TENSORS];
    size_t at = 0, len = (size_t)snprintf(json, sizeof json, "{");
    uint64_t seed = 7;
    for (unsigned i = 0; i < TENSORS; i++) {
        const struct gpu_type *type = &gpu_types[i % (sizeof gpu_types / sizeof *gpu_types)];
        len += (size_t)snprintf(
            json + len, sizeof json - len, "%s\"w%02u\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
            i ? "," : "", i, type->name, tensor_bytes(i) * 8 / type->bits, at, at + tensor_bytes(i));
        at += tensor_bytes(i);
    }
    snprintf(json + len, sizeof json - len, "}");
    uint8_t *data = malloc(at);
    fill_weights(data, at, &seed);
#ifdef GPU_PATCH
    GPU_PATCH(data);
#endif
    plain = sample_file(json, 1, data, at);
    free(data);
    const char *in = sample_path("gpu.safetensors"), *out = sample_path("gpu.store");
    struct cws_pack_options options = {0};
    struct cws_error err = {0};
    sample_save(in, plain.data, plain.size);
    if (cws_pack_file(in, out, &options, NULL, &err) || cws_store_open(out, CWS_IO_AUTO, &store, &err)) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
}

static inline int group_setup(void **state)
{
    (void)state;
    make_store();
    return 0;
}
static inline int group_teardown(void **state)
{
    (void)state;
    cws_store_close(store);
    free(plain.data);
    return 0;
}

struct fixture {
    CUdevice device;
    struct cws_gpu *gpu;
    CUcontext context;
    CUmodule kernels;
    CUstream stream;
    CUdeviceptr at[TENSORS], scratch;
};

/* a fatbin: the stand-in has kernels of its own for it */
static const uint32_t image_of_kernels[16] = {0xba55ed50};

/* On a device of the driver as it is; its context is current then. */
static inline struct fixture *open_gpu_on(CUdevice device, uint64_t budget, bool prefetch)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct cws_error err = {0};
    f->device = device;
    assert_int_equal(driver.primary_retain(&f->context, device), 0);
    assert_int_equal(driver.context_set(f->context), 0);
    struct cws_gpu_config config = {.driver = &driver,
                                    .budget_bytes = budget,
                                    .host_budget_bytes = host_budget,
                                    .policy = CWS_POLICY_NEXT,
                                    .prefetch = prefetch,
                                    .strict = strict,
                                    .adopt = adopt,
                                    .ring_bytes = staging_bytes,
                                    .kernels = image_of_kernels,
                                    .pins = pins,
                                    .say = hear};
    last_line[0] = '\0';
    if (cws_gpu_open(&config, device, &f->gpu, &err))
        fail_msg("%s", err.message);
    assert_int_equal(driver.module_load(&f->kernels, &standin_test_image), 0);
    assert_int_equal(driver.stream_create(&f->stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(driver.mem_alloc(&f->scratch, 4096), 0);
    return f;
}

static inline void start_driver(size_t device_bytes, unsigned devices)
{
    struct cws_error err = {0};
    standin_reset(device_bytes);
    standin_devices(devices);
    assert_int_equal(cws_driver_fill(&driver, standin_resolve, NULL, &err), 0);
    assert_int_equal(driver.init(0), 0);
}

static inline struct fixture *open_gpu(size_t device_bytes, uint64_t budget, bool prefetch)
{
    start_driver(device_bytes, 1);
    return open_gpu_on(0, budget, prefetch);
}

/* Its context is current. */
static inline void close_gpu_on(struct fixture *f)
{
    assert_null(cws_gpu_check(f->gpu));
    cws_gpu_close(f->gpu);
    assert_int_equal(driver.stream_destroy(f->stream), 0);
    assert_int_equal(driver.mem_free(f->scratch), 0);
    assert_int_equal(driver.module_unload(f->kernels), 0);
    assert_int_equal(driver.primary_release(f->device), 0);
    free(f);
}

static inline void expect_nothing_left(void)
{
    char text[256];
    if (standin_leak_text(text, sizeof text))
        fail_msg("left behind: %s", text);
}

static inline void close_gpu(struct fixture *f)
{
    close_gpu_on(f);
    expect_nothing_left();
}

static inline const uint8_t *content(unsigned i) { return plain.data + cws_store_tensor(store, i)->begin; }

static inline void bind_all(struct fixture *f)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &f->at[i]), 0);
        assert_true(
            cws_gpu_bind(f->gpu, f->at[i], tensor_bytes(i), f->stream, store, cws_store_tensor(store, i)->begin));
    }
}

static inline CUresult launch(struct fixture *f, const char *name, CUdeviceptr *named, size_t count, void **params)
{
    CUfunction function;
    struct cws_gpu_use use;
    assert_int_equal(driver.module_function(&function, f->kernels, name), 0);
    CUresult result = cws_gpu_begin(f->gpu, f->stream, named, count, &use);
    if (result != CUDA_SUCCESS)
        return result;
    result = driver.launch(function, 1, 1, 1, 1, 1, 1, 0, f->stream, params, NULL);
    cws_gpu_end(f->gpu, &use, result == CUDA_SUCCESS);
    return result;
}

__attribute__((no_sanitize("thread"))) static inline uint64_t plain_sum(const uint8_t *from, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum += from[i];
    return sum;
}

/* The sum that a kernel sees of so many bytes. */
static inline CUresult sum_at(struct fixture *f, CUdeviceptr from, uint64_t bytes, uint64_t *out)
{
    CUdeviceptr to = f->scratch;
    void *params[] = {&to, &from, &bytes};
    CUresult result = launch(f, "sum", &from, 1, params);
    if (result == CUDA_SUCCESS)
        result = driver.copy_out_async(out, f->scratch, 8, f->stream);
    return result == CUDA_SUCCESS ? driver.stream_sync(f->stream) : result;
}

static inline CUresult device_sum(struct fixture *f, unsigned i, uint64_t *out)
{
    return sum_at(f, f->at[i], tensor_bytes(i), out);
}

static inline void expect_right(struct fixture *f, unsigned i)
{
    uint64_t sum = 0;
    CUresult result = device_sum(f, i, &sum);
    if (result != CUDA_SUCCESS)
        fail_msg("tensor %u: error %d: %s", i, result, last_line);
    assert_int_equal(sum, plain_sum(content(i), tensor_bytes(i)));
}

/* Copies of the program, from `in` or to `out`, waited for. */
static inline CUresult copy_and_wait(struct fixture *f, CUdeviceptr at, const void *in, void *out, size_t bytes)
{
    struct cws_gpu_use use;
    CUresult result = cws_gpu_begin(f->gpu, f->stream, &at, 1, &use);
    if (result != CUDA_SUCCESS)
        return result;
    result = out ? driver.copy_out_async(out, at, bytes, f->stream) : driver.copy_in_async(at, in, bytes, f->stream);
    cws_gpu_end(f->gpu, &use, true);
    CUresult waited = driver.stream_sync(f->stream);
    return result ? result : waited;
}

static inline CUresult copy_to(struct fixture *f, CUdeviceptr to, const void *from, size_t bytes)
{
    return copy_and_wait(f, to, from, NULL, bytes);
}

static inline CUresult copy_from(struct fixture *f, CUdeviceptr from, void *to, size_t bytes)
{
    return copy_and_wait(f, from, NULL, to, bytes);
}

static inline void expect_bytes(struct fixture *f, unsigned i, const uint8_t *expected)
{
    uint8_t *copy = malloc(tensor_bytes(i));
    assert_int_equal(copy_from(f, f->at[i], copy, tensor_bytes(i)), 0);
    assert_memory_equal(copy, expected, tensor_bytes(i));
    free(copy);
}

static inline void free_all(struct fixture *f)
{
    for (unsigned i = 0; i < TENSORS; i++)
        assert_int_equal(cws_gpu_free(f->gpu, f->at[i], f->stream, true), 0);
}

#endif
