/* Stores in memory: what is packed from memory is what a file would be, one tensor of every dtype, shape and mode comes
 * back, a damaged byte anywhere is found, and a packed tensor goes into another store as it is. */
#include "tests/support/inject.h"
#include "tests/support/sanitized.h"
#include "tests/support/sample_model.h"
#include "store/read/reader.h"
#include "store/read/store.h"
#include "store/pack/writer.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct blob {
    uint8_t *data;
    uint64_t bytes;
};

static struct blob blob_of(const struct cws_memory_tensor *t, enum cws_mode mode)
{
    struct cws_memory_model model = {.tensors = t, .tensor_count = 1};
    struct cws_pack_options o = {.mode = mode, .jobs = 2};
    struct cws_error err = {0};
    struct blob b;
    if (cws_pack_tensors_to_memory(&model, &o, &b.data, &b.bytes, &err))
        fail_msg("%s", err.message);
    return b;
}

static struct cws_store *open_blob(struct blob b)
{
    struct cws_store *s;
    struct cws_error err = {0};
    if (cws_store_open_memory(b.data, b.bytes, "blob", &s, &err))
        fail_msg("%s", err.message);
    return s;
}

static int no_fault(void *arg, const struct cws_verify_fault *f)
{
    (void)arg;
    print_error("%s\n", f->message);
    return 0;
}

static int quiet_fault(void *arg, const struct cws_verify_fault *f)
{
    (void)arg;
    return f->message[0] == '\0';
}

static uint8_t *noise(uint64_t seed, enum cws_dtype dtype, size_t elems)
{
    unsigned step = cws_dtype_unit(dtype);
    uint8_t *data = malloc(elems * step + 1);
    for (size_t i = 0; i < elems; i++) {
        float f = 0;
        uint32_t bits;
        for (unsigned k = 0; k < 4; k++)
            f += (float)(sample_random(&seed) % 2001) / 1000 - 1;
        f *= 0.02f;
        memcpy(&bits, &f, sizeof bits);
        if (dtype == CWS_F32) {
            memcpy(data + 4 * i, &bits, 4);
        } else if (dtype == CWS_BF16) {
            memcpy(data + 2 * i, (uint8_t *)&bits + 2, 2);
        } else {
            uint64_t word = sample_random(&seed) & UINT64_C(0x3f1f3f1f3f1f3f1f);
            memcpy(data + step * i, &word, step);
        }
    }
    return data;
}

static void every_dtype_shape_and_mode_comes_back(void **state)
{
    (void)state;
    static const uint64_t shapes[][3] = {{0, 3, 5},   {1, 1, 1},      {1, 1, 31},   {64, 64, 1},
                                         {3, 41, 97}, {129, 1031, 1}, {2, 500, 641}};
    unsigned seed = 0;
    for (unsigned dtype = 0; dtype < CWS_OTHER; dtype++) {
        for (unsigned i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            size_t elems = (size_t)(shapes[i][0] * shapes[i][1] * shapes[i][2]);
            uint64_t bytes;
            if (!cws_dtype_size((enum cws_dtype)dtype, elems, &bytes))
                continue; /* half a byte: refuses_bad_input() */
            uint8_t *data = noise(++seed, (enum cws_dtype)dtype, (size_t)bytes / cws_dtype_unit((enum cws_dtype)dtype));
            uint8_t *back = malloc(bytes + 1);
            for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q6; mode++) {
                if (SANITIZED && (dtype + i + (unsigned)mode) % 2) /* each dtype meets each shape and mode */
                    continue;
                /* the same elements, seen as one, two or three dimensions */
                size_t ndim = i % 3 + 1, first = 0;
                uint64_t shape[3] = {elems, 1, 1};
                if (ndim > 1)
                    memcpy(shape, shapes[i], sizeof shape);
                struct cws_memory_tensor t = {.name = "w",
                                              .dtype = (enum cws_dtype)dtype,
                                              .shape = shape + first,
                                              .ndim = ndim > 1 ? 3 : 1,
                                              .data = elems ? data : NULL};
                struct blob b = blob_of(&t, (enum cws_mode)mode);
                struct cws_store *s = open_blob(b);
                struct cws_error err = {0};
                const struct cws_tensor_info *info = cws_store_tensor_find(s, "w");
                assert_non_null(info);
                assert_int_equal(dtype, info->dtype);
                assert_int_equal(elems, info->elems);
                assert_int_equal(0, cws_store_verify(s, 2, no_fault, NULL, NULL, &err));
                assert_int_equal(0, cws_store_read_parallel(s, 3, info->begin, info->end, back, &err));
                if (!cws_store_is_lossy(s))
                    assert_memory_equal(data, back, bytes);
                else if (dtype == CWS_F32)
                    for (size_t k = 0; k < elems; k++)
                        assert_true(fabsf(((float *)back)[k] - ((float *)data)[k]) < 0.005f);
                bool quantised = mode != CWS_MODE_LOSSLESS && ndim > 1 && elems >= 4096 && dtype >= CWS_F16 &&
                                 dtype <= CWS_F32;
                if (quantised && dtype != CWS_F16) /* noise of F16 has magnitudes that are refused */
                    assert_true(cws_store_is_lossy(s));
                if (!quantised)
                    assert_false(cws_store_is_lossy(s));
                cws_store_close(s);
                free(b.data);
            }
            free(data);
            free(back);
        }
    }
}

/* The store in memory is byte for byte the file that pack writes for the same logical file, whatever the number of
 * threads. */
static void memory_and_file_are_the_same_store(void **state)
{
    (void)state;
    uint64_t big[] = {1100, 512}, small[] = {7}, one[1];
    uint8_t *w = noise(5, CWS_BF16, 1100 * 512), *v = noise(6, CWS_F32, 7);
    struct cws_memory_tensor tensors[] = {
        {.name = "b", .dtype = CWS_BF16, .shape = big, .ndim = 2, .data = w},
        {.name = "a \"quoted\"", .dtype = CWS_F32, .shape = small, .ndim = 1, .data = v},
        {.name = "scalar", .dtype = CWS_F32, .shape = one, .ndim = 0, .data = v},
    };
    static const char *const metadata[] = {"format", "pt", "note", "x"};
    struct cws_memory_model model = {tensors, 3, metadata, 2};
    const char *from_memory = sample_path("m.cws"), *plain = sample_path("plain"), *from_file = sample_path("f.cws");
    for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q6; mode++) {
        struct cws_pack_options o = {.mode = (enum cws_mode)mode, .jobs = 3};
        struct cws_pack_result result;
        struct cws_error err = {0};
        uint8_t *data;
        uint64_t bytes;
        assert_int_equal(0, cws_pack_tensors_to_file(&model, from_memory, &o, &result, &err));
        assert_int_equal(3, result.tensor_count);
        o.jobs = 1;
        assert_int_equal(0, cws_pack_tensors_to_memory(&model, &o, &data, &bytes, &err));
        struct bytes file = sample_load(from_memory);
        assert_int_equal(file.size, bytes);
        assert_int_equal(result.stored_bytes, bytes);
        assert_memory_equal(file.data, data, bytes);
        if (mode == CWS_MODE_LOSSLESS) { /* and the same as of the plain file */
            assert_int_equal(0, cws_unpack_file(from_memory, plain, CWS_IO_AUTO, 1, NULL, NULL, NULL, &err));
            assert_int_equal(0, cws_pack_file(plain, from_file, &o, NULL, &err));
            struct bytes again = sample_load(from_file);
            assert_int_equal(bytes, again.size);
            assert_memory_equal(again.data, data, bytes);
            free(again.data);
        }
        free(file.data);
        free(data);
    }
    free(w);
    free(v);
}

static void a_damaged_byte_anywhere_is_found(void **state)
{
    (void)state;
    uint64_t shape[] = {96, 64};
    uint8_t *data = noise(9, CWS_BF16, 96 * 64), back[96 * 64 * 2];
    for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q8; mode++) {
        struct cws_memory_tensor t = {.name = "w", .dtype = CWS_BF16, .shape = shape, .ndim = 2, .data = data};
        struct blob b = blob_of(&t, (enum cws_mode)mode);
        uint8_t *bad = malloc(b.bytes); /* of its exact size, for AddressSanitizer */
        uint64_t gap_only = 0;
        for (uint64_t at = (uint64_t)mode; at < b.bytes; at += SANITIZED ? 37 : 7) { /* the fuzz target does the rest */
            struct cws_store *s;
            struct cws_error err = {0};
            memcpy(bad, b.data, b.bytes);
            bad[at] ^= (uint8_t)(1u << at % 8);
            int code = cws_store_open_memory(bad, b.bytes, "blob", &s, &err);
            if (code) {
                assert_null(s);
                assert_int_equal(code, err.code);
                assert_true(err.message[0] != '\0');
                continue;
            }
            const struct cws_tensor_info *info = cws_store_tensor(s, 0);
            code = cws_store_read_parallel(s, 1, info->begin, info->end, back, &err);
            gap_only += code == 0;
            assert_int_equal(1, cws_store_verify(s, 1, quiet_fault, NULL, NULL, &err));
            cws_store_close(s);
        }
        /* only the zero bytes between chunk and index are verify's alone */
        assert_in_range(gap_only, 0, 9);
        for (uint64_t bytes = 0; bytes < b.bytes; bytes += 1 + bytes / 16) {
            struct cws_store *s;
            struct cws_error err = {0};
            uint8_t *cut = malloc(bytes + !bytes);
            memcpy(cut, b.data, bytes);
            int code = cws_store_open_memory(cut, bytes, "blob", &s, &err);
            assert_true(code == CWS_E_TRUNCATED || code == CWS_E_NOT_STORE);
            free(cut);
        }
        free(bad);
        free(b.data);
    }
    free(data);
}

static void a_packed_tensor_is_taken_as_it_is(void **state)
{
    (void)state;
    uint64_t shape[] = {700, 640}, empty[] = {0, 4};
    uint8_t *w = noise(11, CWS_BF16, 700 * 640), *once = malloc(700 * 640 * 2), *twice = malloc(700 * 640 * 2);
    for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q6; mode++) {
        struct cws_error err = {0};
        struct cws_memory_tensor t = {.name = "t", .dtype = CWS_BF16, .shape = shape, .ndim = 2, .data = w};
        struct cws_memory_tensor e = {.name = "t", .dtype = CWS_F32, .shape = empty, .ndim = 2};
        struct blob b = blob_of(&t, (enum cws_mode)mode), nothing = blob_of(&e, (enum cws_mode)mode);
        struct cws_store *packed = open_blob(b), *none = open_blob(nothing);
        struct cws_memory_tensor tensors[] = {
            {.name = "a plain one first, so that the chunks get other places",
             .dtype = CWS_BF16,
             .shape = shape,
             .ndim = 2,
             .data = w},
            {.name = "packed", .dtype = CWS_BF16, .shape = shape, .ndim = 2, .packed = packed},
            {.name = "none", .dtype = CWS_F32, .shape = empty, .ndim = 2, .packed = none},
        };
        struct cws_memory_model model = {.tensors = tensors, .tensor_count = 3};
        struct cws_pack_options o = {.mode = CWS_MODE_LOSSLESS};
        struct blob all;
        assert_int_equal(0, cws_pack_tensors_to_memory(&model, &o, &all.data, &all.bytes, &err));
        struct cws_store *s = open_blob(all);
        assert_int_equal(mode != CWS_MODE_LOSSLESS, cws_store_is_lossy(s));
        assert_int_equal(0, cws_store_verify(s, 2, no_fault, NULL, NULL, &err));
        const struct cws_tensor_info *from = cws_store_tensor(packed, 0), *to = cws_store_tensor_find(s, "packed");
        assert_int_equal(from->stored_bytes, to->stored_bytes);
        assert_int_equal(from->record->quant_bits, to->record->quant_bits);
        assert_int_equal(0, cws_store_read_parallel(packed, 2, from->begin, from->end, once, &err));
        assert_int_equal(0, cws_store_read_parallel(s, 2, to->begin, to->end, twice, &err));
        assert_memory_equal(once, twice, 700 * 640 * 2);
        cws_store_close(s);
        free(all.data);

        tensors[1].dtype = CWS_F16; /* not what the blob holds */
        assert_int_equal(CWS_E_USAGE, cws_pack_tensors_to_memory(&model, &o, &all.data, &all.bytes, &err));
        assert_null(all.data);
        tensors[1].dtype = CWS_BF16;
        uint64_t at = from->chunks[1].offset + from->chunks[1].stored_bytes / 2;
        b.data[at] ^= 1; /* damaged: not passed on */
        assert_int_equal(CWS_E_CORRUPT, cws_pack_tensors_to_memory(&model, &o, &all.data, &all.bytes, &err));
        assert_non_null(strstr(err.message, "chunk 1"));
        const char *path = sample_path("damaged.cws");
        assert_int_equal(CWS_E_CORRUPT, cws_pack_tensors_to_file(&model, path, &o, NULL, &err));
        assert_int_equal(-1, access(path, F_OK));
        cws_store_close(packed);
        cws_store_close(none);
        free(b.data);
        free(nothing.data);
    }
    free(w);
    free(once);
    free(twice);
}

static void a_reader_of_memory_stays_inside(void **state)
{
    (void)state;
    static const uint8_t bytes[100] = {7, 8, 9};
    struct cws_reader_options o = {.slots = 2, .extent_bytes = 100, .file_bytes = sizeof bytes, .memory = bytes};
    struct cws_reader *r;
    struct cws_error err = {0};
    const uint8_t *data;
    assert_int_equal(0, cws_reader_create(-1, &o, &r, &err));
    assert_string_equal("memory", cws_reader_engine(r));
    cws_reader_submit(r, 0, 1, 99);
    cws_reader_submit(r, 1, 1, 100);
    assert_int_equal(0, cws_reader_wait(r, 0, &data));
    assert_ptr_equal(bytes + 1, data);
    assert_int_equal(CWS_E_SHORT_READ, cws_reader_wait(r, 1, &data));
    cws_reader_submit(r, 0, UINT64_MAX - 10, 20);
    assert_int_equal(CWS_E_SHORT_READ, cws_reader_wait(r, 0, &data));
    cws_reader_after_fork(r); /* nothing of it belongs to a parent */
    cws_reader_submit(r, 1, 2, 1);
    assert_int_equal(0, cws_reader_wait(r, 1, &data));
    assert_int_equal(9, *data);
    cws_reader_destroy(r);
}

static void bad_models_are_refused_with_a_line(void **state)
{
    (void)state;
    uint64_t shape[] = {2, 2}, huge[] = {UINT64_C(1) << 40, UINT64_C(1) << 40};
    float data[4] = {1, 2, 3, 4};
    static const char *const twice[] = {"k", "a", "k", "b"};
    struct cws_memory_tensor good = {.name = "w", .dtype = CWS_F32, .shape = shape, .ndim = 2, .data = data}, bad[2];
    for (unsigned i = 0; i < 8; i++) {
        struct cws_memory_model model = {.tensors = bad, .tensor_count = 2};
        struct cws_pack_options o = {0};
        bad[0] = bad[1] = good;
        bad[1].name = "v";
        switch (i) {
        case 0: bad[1].name = "w"; break;
        case 1: bad[1].name = "__metadata__"; break;
        case 2: bad[1].name = "\xff\xfe"; break;
        case 3: bad[1].shape = huge; break;
        case 4: bad[1].data = NULL; break;
        case 5: bad[1].dtype = (enum cws_dtype)77; break;
        case 6: model.metadata = twice, model.metadata_count = 2; break;
        default: o.convert = true; break;
        }
        struct cws_error err = {0};
        uint8_t *out;
        uint64_t bytes;
        int code = cws_pack_tensors_to_memory(&model, &o, &out, &bytes, &err);
        assert_true(code == CWS_E_INPUT || code == CWS_E_USAGE);
        assert_int_equal(code, err.code);
        assert_true(err.message[0] != '\0');
        assert_null(out);
    }
    struct cws_memory_model none = {0};
    struct cws_pack_options o = {0};
    struct blob b;
    assert_int_equal(0, cws_pack_tensors_to_memory(&none, &o, &b.data, &b.bytes, NULL));
    struct cws_store *s = open_blob(b);
    assert_int_equal(0, cws_store_tensor_count(s));
    cws_store_close(s);
    free(b.data);
}

static void no_allocation_that_fails_does_harm(void **state)
{
    (void)state;
    uint64_t shape[] = {80, 64};
    uint8_t *data = noise(3, CWS_BF16, 80 * 64), back[80 * 64 * 2];
    struct cws_memory_tensor t = {.name = "w", .dtype = CWS_BF16, .shape = shape, .ndim = 2, .data = data};
    struct cws_memory_model model = {.tensors = &t, .tensor_count = 1};
    struct cws_pack_options o = {.jobs = 1, .mode = CWS_MODE_Q8};
    unsigned failed = 0;
    for (unsigned n = 1; n < 500; n++) {
        struct blob b;
        struct cws_store *s = NULL;
        struct cws_error err = {0};
        inject_arm(INJECT_ALLOC, n);
        int code = cws_pack_tensors_to_memory(&model, &o, &b.data, &b.bytes, &err);
        if (!code)
            code = cws_store_open_memory(b.data, b.bytes, "blob", &s, &err);
        if (!code) {
            const struct cws_tensor_info *info = cws_store_tensor(s, 0);
            code = cws_store_read_parallel(s, 1, info->begin, info->end, back, &err);
        }
        bool hit = inject_disarm();
        if (code) {
            failed++;
            assert_int_equal(code, err.code);
            assert_true(err.message[0] != '\0');
        }
        cws_store_close(s);
        free(b.data);
        if (!hit) {
            assert_int_equal(0, code);
            assert_true(failed > 10);
            free(data);
            return;
        }
    }
    fail_msg("never without a failure");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_shape_and_mode_comes_back), cmocka_unit_test(memory_and_file_are_the_same_store),
        cmocka_unit_test(a_damaged_byte_anywhere_is_found),      cmocka_unit_test(a_packed_tensor_is_taken_as_it_is),
        cmocka_unit_test(a_reader_of_memory_stays_inside),       cmocka_unit_test(bad_models_are_refused_with_a_line),
        cmocka_unit_test(no_allocation_that_fails_does_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
