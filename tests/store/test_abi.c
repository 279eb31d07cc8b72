/* What libcws.so exports, called as ctypes calls it: the way there and back, and the line for each wrong argument. */
#include "tests/support/sample_model.h"
#include "store/abi.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { ROWS = 300, COLUMNS = 128, ELEMS = ROWS * COLUMNS };

static float weights[ELEMS];
static const uint64_t shape[] = {ROWS, COLUMNS};

static struct codecllm_input input(void)
{
    return (struct codecllm_input){
        .name = "w", .dtype = "F32", .shape = shape, .ndim = 2, .data = weights, .bytes = sizeof weights};
}

static int setup(void **state)
{
    (void)state;
    uint64_t seed = 4;
    for (unsigned i = 0; i < ELEMS; i++)
        weights[i] = (float)((int)(sample_random(&seed) % 401) - 200) *
                     (float)((int)(sample_random(&seed) % 401) - 200) * 1e-6f;
    return 0;
}

static void packs_and_reads(void **state)
{
    (void)state;
    static const char *const modes[] = {"lossless", "q8", "q6"};
    static float back[ELEMS];
    for (unsigned m = 0; m < 3; m++) {
        struct codecllm_input in = input();
        struct codecllm_job job = {.tensors = &in, .tensor_count = 1, .mode = modes[m]};
        struct cws_error err = {0};
        uint8_t *data;
        uint64_t bytes, header_bytes;
        struct cws_store *s;
        struct codecllm_tensor t;
        double entropy, plain;
        assert_int_equal(0, codecllm_pack_memory(&job, &data, &bytes, &err));
        assert_int_equal(0, codecllm_open_memory(data, bytes, "w", &s, &err));
        assert_int_equal(1, codecllm_tensor_count(s));
        assert_int_equal(0, codecllm_tensor(s, 0, &t, &err));
        assert_string_equal("w", t.name);
        assert_string_equal("F32", t.dtype);
        assert_string_equal(m ? "quant" : "split", t.codec);
        assert_int_equal(m == 0 ? 0 : m == 1 ? 8 : 6, t.quant_bits);
        assert_int_equal(2, t.ndim);
        assert_int_equal(sizeof weights, t.end - t.begin);
        assert_true(t.stored_bytes < bytes && t.stored_bytes > bytes / 2);
        assert_non_null(strstr((const char *)codecllm_header(s, &header_bytes) + 8, "\"w\""));
        assert_int_equal(t.begin, header_bytes);
        assert_int_equal(0, codecllm_read(s, 0, t.begin, t.end, back, &err));
        if (m == 0)
            assert_memory_equal(weights, back, sizeof back);
        assert_int_equal(0, codecllm_verify(s, 0, &err));
        assert_int_equal(0, codecllm_entropy(s, 0, &entropy, &plain, &err));
        assert_int_equal(m ? 0 : 24, (int)plain);
        assert_true(entropy > 1 && entropy + plain < 8.0 * (double)t.stored_bytes / ELEMS);
        assert_int_equal(CWS_E_RANGE, codecllm_tensor(s, 1, &t, &err));
        assert_int_equal(CWS_E_RANGE, codecllm_entropy(s, 1, &entropy, &plain, &err));
        assert_int_equal(CWS_E_RANGE, codecllm_read(s, 1, 5, t.end + 1, back, &err));
        assert_int_equal(CWS_E_RANGE, codecllm_read(s, 1, 5, 4, back, &err));
        codecllm_close(s);

        uint8_t *alone; /* the tensor of a store of one is that store, but for its name */
        uint64_t alone_bytes;
        assert_int_equal(0, codecllm_open_memory(data, bytes, "w", &s, &err));
        assert_int_equal(0, codecllm_extract(s, 0, &alone, &alone_bytes, &err));
        assert_int_equal(CWS_E_RANGE, codecllm_extract(s, 1, &(uint8_t *){NULL}, &(uint64_t){0}, &err));
        codecllm_close(s);
        assert_int_equal(0, codecllm_open_memory(alone, alone_bytes, "alone", &s, &err));
        assert_int_equal(0, codecllm_tensor(s, 0, &t, &err));
        assert_string_equal("tensor", t.name);
        static float again[ELEMS];
        assert_int_equal(0, codecllm_read(s, 1, t.begin, t.end, again, &err));
        assert_memory_equal(back, again, sizeof again);
        codecllm_close(s);
        memset(again, 0, sizeof again);
        assert_int_equal(0, codecllm_unpack(alone, alone_bytes, 0, again, sizeof again, &err));
        assert_memory_equal(back, again, sizeof again);
        assert_int_equal(CWS_E_RANGE, codecllm_unpack(alone, alone_bytes, 0, again, sizeof again - 1, &err));
        alone[alone_bytes / 2] ^= 4;
        assert_int_equal(CWS_E_CORRUPT, codecllm_unpack(alone, alone_bytes, 0, again, sizeof again, &err));
        codecllm_free(alone);

        const char *path = sample_path("packed");
        struct codecllm_input packed = {
            .name = "w", .dtype = "F32", .shape = shape, .ndim = 2, .packed = data, .packed_bytes = bytes};
        job.tensors = &packed; /* the same store again, through a file */
        assert_int_equal(0, codecllm_is_store(path));
        assert_int_equal(0, codecllm_pack_file(&job, path, &err));
        assert_int_equal(1, codecllm_is_store(path));
        struct bytes file = sample_load(path);
        assert_int_equal(bytes, file.size);
        assert_memory_equal(data, file.data, bytes);
        file.data[file.size / 2] ^= 1;
        assert_int_equal(0, codecllm_open_memory(file.data, file.size, "w", &s, &err));
        assert_int_equal(CWS_E_CORRUPT, codecllm_verify(s, 1, &err));
        assert_int_equal(CWS_E_CORRUPT, err.code);
        assert_non_null(strstr(err.message, "chunk"));
        codecllm_close(s);
        free(file.data);
        assert_int_equal(0, codecllm_open(path, &s, &err));
        assert_int_equal(0, codecllm_verify(s, 1, &err));
        codecllm_close(s);
        codecllm_free(data);
        unlink(path);
    }
}

static void budgets_are_checked(void **state)
{
    (void)state;
    struct cws_error err = {0};
    assert_int_equal(0, codecllm_budget_check("0:2G,1:50%", &err));
    assert_int_equal(0, err.code);
    assert_int_equal(CWS_E_USAGE, codecllm_budget_check("lots", &err));
    assert_int_equal(CWS_E_USAGE, err.code);
    assert_non_null(strstr(err.message, "CODEC_VRAM_BUDGET=lots: not understood"));
    assert_int_equal(CWS_E_USAGE, codecllm_budget_check("lots", NULL));
}

static void wrong_arguments_have_a_line(void **state)
{
    (void)state;
    const uint64_t huge[] = {UINT64_C(1) << 40, UINT64_C(1) << 40};
    for (unsigned i = 0; i < 6; i++) {
        struct codecllm_input in = input();
        struct codecllm_job job = {.tensors = &in, .tensor_count = 1, .mode = "q8"};
        const char *says = "";
        switch (i) {
        case 0: job.mode = "q4", says = "use lossless, q8 or q6"; break;
        case 1: in.dtype = "C63", says = "C63"; break;
        case 2: in.bytes--, says = "153599 bytes were given"; break;
        case 3: in.shape = huge, says = "larger than memory"; break;
        case 4: in.packed = weights, in.packed_bytes = sizeof weights, says = "not a codecllm store"; break;
        default: in.name = "\xff", says = "0xff"; break;
        }
        struct cws_error err = {0};
        uint8_t *data;
        uint64_t bytes;
        int code = codecllm_pack_memory(&job, &data, &bytes, &err);
        assert_true(code < 0);
        assert_int_equal(code, err.code);
        if (!strstr(err.message, says))
            fail_msg("%u: %s", i, err.message);
        assert_null(data);
    }
    struct cws_store *s;
    struct cws_error err = {0};
    assert_true(codecllm_open("/nowhere/at/all", &s, &err) < 0);
    assert_null(s);
    assert_non_null(strstr(err.message, "/nowhere/at/all"));
    assert_int_equal(0, codecllm_is_store("/nowhere/at/all"));
    assert_int_equal(CWS_E_NOT_STORE, codecllm_open_memory(NULL, 0, "none", &s, &err));
    codecllm_close(NULL);
    codecllm_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_and_reads),
        cmocka_unit_test(budgets_are_checked),
        cmocka_unit_test(wrong_arguments_have_a_line),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
