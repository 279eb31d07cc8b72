/* A compressed tensor in device memory, against the stand-in for the driver: decoded there to what it was, wherever it
 * lies; a byte that changed in device memory is found; a driver that fails at any call leaves an error and nothing
 * running. */
#include "tests/store/codec_data.h"
#include "tests/standin/standin.h"
#include "store/cuda/tensor.h"
#include "store/pack/writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define OK(call) assert_int_equal(call, 0)

static struct cws_driver cu;
static struct cws_gpu_decoder *decoder;

struct loaded {
    uint8_t *packed, *expected;
    uint64_t packed_bytes, bytes;
    struct cws_store *store;
    struct cws_gpu_tensor *tensor;
    CUdeviceptr d_packed, d_scratch, d_dst;
};

static struct loaded load(enum cws_dtype dtype, uint64_t rows, uint64_t row, enum cws_mode mode)
{
    struct loaded l = {.bytes = rows * row * cws_dtype_unit(dtype)};
    struct cws_error err = {0};
    const uint64_t shape[] = {rows, row};
    uint8_t *data = data_normal(dtype, rows * row, 0.02);
    struct cws_memory_tensor t = {.name = "tensor", .dtype = dtype, .shape = shape, .ndim = 2, .data = data};
    struct cws_memory_model model = {.tensors = &t, .tensor_count = 1};
    OK(cws_pack_tensors_to_memory(&model, &(struct cws_pack_options){.mode = mode, .jobs = 1}, &l.packed,
                                  &l.packed_bytes, &err));
    OK(cws_store_open_memory(l.packed, l.packed_bytes, "t", &l.store, &err));
    l.expected = malloc(l.bytes + 1);
    const struct cws_tensor_info *info = cws_store_tensor(l.store, 0);
    OK(cws_store_read_parallel(l.store, 1, info->begin, info->end, l.expected, &err));
    OK(cws_gpu_tensor_create(l.store, &l.tensor, &err));
    OK(cu.mem_alloc(&l.d_packed, l.packed_bytes));
    OK(cu.mem_alloc(&l.d_scratch, cws_gpu_tensor_scratch_bytes(l.tensor)));
    OK(cu.mem_alloc(&l.d_dst, l.bytes + 16));
    OK(cu.copy_in(l.d_packed, l.packed, l.packed_bytes));
    free(data);
    return l;
}

static void unload(struct loaded *l)
{
    cws_gpu_tensor_destroy(l->tensor);
    cws_store_close(l->store);
    cu.mem_free(l->d_packed);
    cu.mem_free(l->d_scratch);
    cu.mem_free(l->d_dst);
    free(l->packed);
    free(l->expected);
}

static int decode(const struct loaded *l, struct cws_error *err)
{
    return cws_gpu_tensor_decode(l->tensor, &cu, decoder, NULL, l->d_packed, l->d_scratch, l->d_dst, err);
}

static int setup(void **state)
{
    (void)state;
    struct cws_error err;
    CUcontext context;
    standin_reset((size_t)64 << 20);
    return cws_driver_fill(&cu, standin_resolve, NULL, &err) || cu.init(0) || cu.primary_retain(&context, 0) ||
           cu.context_set(context) || cws_gpu_decoder_create_from(&cu, &standin_gpu_image, 8, &decoder, &err);
}

static void decodes_to_what_it_was(void **state)
{
    (void)state;
    static const struct {
        enum cws_dtype dtype;
        uint64_t rows, row;
        enum cws_mode mode;
    } cases[] = {
        {CWS_BF16, 700, 512, CWS_MODE_LOSSLESS},   {CWS_BF16, 700, 512, CWS_MODE_Q8},
        {CWS_BF16, 61, 515, CWS_MODE_Q6},          {CWS_F32, 33, 1291, CWS_MODE_LOSSLESS},
        {CWS_F16, 1, 7, CWS_MODE_LOSSLESS},        {CWS_F64, 50, 333, CWS_MODE_LOSSLESS},
        {CWS_F8_E4M3, 40, 333, CWS_MODE_LOSSLESS}, {CWS_F8_E8M0, 40, 333, CWS_MODE_LOSSLESS},
        {CWS_F8_E4M3FNUZ, 40, 333, CWS_MODE_Q8},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct loaded l = load(cases[i].dtype, cases[i].rows, cases[i].row, cases[i].mode);
        struct cws_error err = {0};
        for (int again = 0; again < 2; again++) { /* the second time over what the first left */
            uint8_t *back = malloc(l.bytes);
            OK(decode(&l, &err));
            OK(cu.copy_out(back, l.d_dst, l.bytes));
            assert_memory_equal(back, l.expected, l.bytes);
            free(back);
        }
        unload(&l);
    }
}

static void an_empty_tensor_makes_no_calls(void **state)
{
    (void)state;
    struct cws_error err = {0};
    const uint64_t shape[] = {0, 8};
    struct cws_memory_tensor t = {.name = "tensor", .dtype = CWS_BF16, .shape = shape, .ndim = 2};
    struct cws_memory_model model = {.tensors = &t, .tensor_count = 1};
    struct loaded l = {0};
    OK(cws_pack_tensors_to_memory(&model, &(struct cws_pack_options){.jobs = 1}, &l.packed, &l.packed_bytes, &err));
    OK(cws_store_open_memory(l.packed, l.packed_bytes, "t", &l.store, &err));
    OK(cws_gpu_tensor_create(l.store, &l.tensor, &err));
    unsigned long calls = standin_calls(NULL);
    OK(decode(&l, &err));
    assert_int_equal(calls, standin_calls(NULL));
    cws_gpu_tensor_destroy(l.tensor);
    cws_store_close(l.store);
    free(l.packed);
}

static void a_byte_that_changed_in_device_memory_is_found(void **state)
{
    (void)state;
    struct loaded l = load(CWS_BF16, 300, 512, CWS_MODE_LOSSLESS);
    const struct cws_tensor_info *info = cws_store_tensor(l.store, 0);
    for (uint64_t k = 0; k < info->record->chunk_count; k++) {
        const struct cws_chunk_record *r = &info->chunks[k];
        for (uint64_t at = 0; at < r->stored_bytes; at += 1 + r->stored_bytes / 60) {
            struct cws_error err = {0};
            uint8_t byte = l.packed[r->offset + at] ^ 0x20;
            OK(cu.copy_in(l.d_packed + r->offset + at, &byte, 1));
            assert_int_equal(CWS_E_CORRUPT, decode(&l, &err));
            assert_int_equal(CWS_E_CORRUPT, err.code);
            assert_non_null(strstr(err.message, "chunk"));
            OK(cu.copy_in(l.d_packed + r->offset + at, &l.packed[r->offset + at], 1));
        }
    }
    struct cws_error err = {0};
    OK(decode(&l, &err));
    unload(&l);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    struct cws_error err = {0};
    struct loaded l = load(CWS_BF16, 64, 64, CWS_MODE_LOSSLESS);
    l.d_dst += 2;
    assert_int_equal(CWS_E_BUG, decode(&l, &err));
    l.d_dst -= 2;
    struct cws_gpu_tensor *none;
    uint64_t at = cws_store_tensor(l.store, 0)->chunks[0].offset + 100;
    l.packed[at] ^= 1; /* the copy in host memory is checked, too */
    assert_int_equal(CWS_E_CORRUPT, cws_gpu_tensor_create(l.store, &none, &err));
    assert_null(none);
    l.packed[at] ^= 1;
    unload(&l);

    static int64_t ones[5000];
    const uint64_t shape[] = {5000};
    struct cws_memory_tensor t = {.name = "tensor", .dtype = CWS_I64, .shape = shape, .ndim = 1, .data = ones};
    struct cws_memory_model model = {.tensors = &t, .tensor_count = 1};
    struct loaded z = {0};
    OK(cws_pack_tensors_to_memory(&model, &(struct cws_pack_options){.jobs = 1}, &z.packed, &z.packed_bytes, &err));
    OK(cws_store_open_memory(z.packed, z.packed_bytes, "t", &z.store, &err));
    assert_int_equal(CWS_CODEC_ZSTD, cws_store_tensor(z.store, 0)->record->codec);
    assert_int_equal(CWS_E_UNSUPPORTED, cws_gpu_tensor_create(z.store, &none, &err));
    cws_store_close(z.store);
    free(z.packed);
}

static void a_driver_that_fails_leaves_an_error(void **state)
{
    (void)state;
    static const char *const calls[] = {"cuMemcpyHtoDAsync_v2", "cuLaunchKernel", "cuMemcpyDtoHAsync_v2",
                                        "cuStreamSynchronize"};
    struct loaded l = load(CWS_BF16, 128, 256, CWS_MODE_LOSSLESS);
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct cws_error err = {0};
        standin_fail(calls[i], 1, CUDA_ERROR_OUT_OF_MEMORY);
        int code = decode(&l, &err);
        assert_false(standin_fail_pending());
        standin_fail_none();
        assert_true(code <= -20000);
        assert_int_equal(code, err.code);
        OK(decode(&l, &err));
    }
    unload(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_to_what_it_was),
        cmocka_unit_test(an_empty_tensor_makes_no_calls),
        cmocka_unit_test(a_byte_that_changed_in_device_memory_is_found),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(a_driver_that_fails_leaves_an_error),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
