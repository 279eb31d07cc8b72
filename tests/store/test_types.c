/* The dtypes that came later, and those that nobody knows yet: packed in every mode, listed, verified, read, unpacked,
 * taken out. */
#include "tests/support/sample_model.h"
#include "store/read/store.h"
#include "store/pack/writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int no_fault(void *arg, const struct cws_verify_fault *f)
{
    (void)arg;
    print_error("%s\n", f->message);
    return 1;
}

static void check_bytes(const struct cws_store *s, const struct cws_tensor_info *t, const uint8_t *want)
{
    struct cws_error err = {0};
    uint8_t *got = malloc(t->end - t->begin + 1);
    assert_int_equal(0, cws_store_read_parallel(s, 1, t->begin, t->end, got, &err));
    assert_memory_equal(want, got, t->end - t->begin);
    free(got);
}

static void they_come_back_in_every_mode(void **state)
{
    (void)state;
    struct bytes model = sample_later_types(5);
    const char *in = sample_path("in"), *out = sample_path("out"), *back = sample_path("back");
    sample_save(in, model.data, model.size);
    static const char *const globs[] = {"*s*", NULL};
    for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q6; mode++) {
        for (int how = 0; how < 2; how++) {
            struct cws_pack_options o = {.mode = (enum cws_mode)mode, .jobs = 2, .exclude = how ? globs : NULL};
            struct cws_pack_result result;
            struct cws_store *s;
            struct cws_error err = {0};
            assert_int_equal(0, cws_pack_file(in, out, &o, &result, &err));
            assert_int_equal(13, result.tensor_count);
            assert_int_equal(2, result.unknown_types);
            assert_string_equal("I4", result.unknown_type);
            assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
            assert_int_equal(mode == CWS_MODE_LOSSLESS || how ? CWS_INCOMPAT_TYPES
                                                              : CWS_INCOMPAT_TYPES | CWS_INCOMPAT_LOSSY,
                             cws_store_trailer(s)->incompat);
            assert_int_equal(0, cws_store_verify(s, 2, no_fault, NULL, NULL, &err));
            for (size_t i = 0; i < cws_store_tensor_count(s); i++)
                if (cws_store_tensor(s, i)->record->codec != CWS_CODEC_QUANT) /* "usual", where it is asked for */
                    check_bytes(s, cws_store_tensor(s, i), model.data + cws_store_tensor(s, i)->begin);
            if (!cws_store_is_lossy(s)) {
                assert_int_equal(0, cws_unpack_file(out, back, CWS_IO_AUTO, 2, NULL, NULL, NULL, &err));
                struct bytes same = sample_load(back);
                assert_int_equal(model.size, same.size);
                assert_memory_equal(model.data, same.data, model.size);
                free(same.data);
            }
            cws_store_close(s);
        }
    }
    free(model.data);
}

/* What pays is split; nothing of an unknown type is taken for a float. */
static void each_has_the_codec_that_suits_it(void **state)
{
    (void)state;
    static const struct {
        const char *name, *dtype;
        unsigned codecs, code; /* bits of those that are right */
    } expected[] = {
        {"scales", "F8_E8M0", 1u << CWS_CODEC_SPLIT, 15},
        {"blocks", "F4", 1u << CWS_CODEC_SPLIT, 18},
        {"complex", "C64", 1u << CWS_CODEC_SPLIT, 21},
        {"e4", "F8_E4M3FNUZ", 1u << CWS_CODEC_SPLIT, 16},
        {"six", "F6_E2M3", 1u << CWS_CODEC_RAW, 19},
        {"six.too", "F6_E3M2", 1u << CWS_CODEC_RAW, 20},
        {"nothing", "F4", 1u << CWS_CODEC_RAW, 18},
        {"complex.scalar", "C64", 1u << CWS_CODEC_RAW, 21},
        {"not yet", "I4", 1u << CWS_CODEC_RAW, 255},
        {"not yet scalar", "F2_of_tomorrow", 1u << CWS_CODEC_ZSTD, 255},
        {"e5", "F8_E5M2FNUZ", 1u << CWS_CODEC_SPLIT | 1u << CWS_CODEC_RAW, 17},
    };
    struct bytes model = sample_later_types(5);
    const char *in = sample_path("in"), *out = sample_path("out");
    struct cws_store *s;
    struct cws_error err = {0};
    sample_save(in, model.data, model.size);
    free(model.data);
    assert_int_equal(0, cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 1}, NULL, &err));
    assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const struct cws_tensor_info *t = cws_store_tensor_find(s, expected[i].name);
        assert_non_null(t);
        assert_string_equal(expected[i].dtype, t->dtype_name);
        assert_int_equal(expected[i].code, t->record->dtype);
        if (!(expected[i].codecs >> t->record->codec & 1))
            fail_msg("%s: codec %u", t->name, t->record->codec);
    }
    cws_store_close(s);
}

/* --dtype casts what it can and leaves these as they are. */
static void casting_leaves_them_alone(void **state)
{
    (void)state;
    struct bytes model = sample_later_types(6);
    const char *in = sample_path("in"), *out = sample_path("out");
    struct cws_store *s;
    struct cws_error err = {0};
    sample_save(in, model.data, model.size);
    assert_int_equal(0, cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 2, .convert = true, .dtype = CWS_F32},
                                      NULL, &err));
    assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
    uint64_t header_bytes;
    memcpy(&header_bytes, model.data, 8);
    /* "usual", the only one that is cast, lies behind the others */
    const uint8_t *at = model.data + 8 + header_bytes;
    for (size_t i = 0; i < cws_store_tensor_count(s); i++) {
        const struct cws_tensor_info *t = cws_store_tensor(s, i);
        if (strcmp(t->name, "usual") == 0)
            assert_int_equal(CWS_F32, t->dtype);
        else
            check_bytes(s, t, at);
        at += t->end - t->begin;
    }
    cws_store_close(s);
    free(model.data);
}

/* Every tensor goes alone, as it is packed, into another store; one of an unknown type keeps its name and bytes. */
static void each_can_be_taken_out(void **state)
{
    (void)state;
    struct bytes model = sample_later_types(7);
    const char *in = sample_path("in"), *out = sample_path("out");
    struct cws_store *s, *alone;
    struct cws_error err = {0};
    sample_save(in, model.data, model.size);
    assert_int_equal(0, cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 2}, NULL, &err));
    assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
    for (size_t i = 0; i < cws_store_tensor_count(s); i++) {
        const struct cws_tensor_info *t = cws_store_tensor(s, i);
        struct cws_memory_tensor m = {
            .name = "tensor", .dtype = t->dtype, .shape = t->shape, .ndim = t->ndim, .packed = s, .packed_index = i};
        struct cws_memory_model one = {.tensors = &m, .tensor_count = 1};
        uint8_t *bytes;
        uint64_t size;
        if (cws_pack_tensors_to_memory(&one, &(struct cws_pack_options){.jobs = 1}, &bytes, &size, &err) ||
            cws_store_open_memory(bytes, size, "alone", &alone, &err))
            fail_msg("%s: %s", t->name, err.message);
        assert_string_equal(t->dtype_name, cws_store_tensor(alone, 0)->dtype_name);
        assert_int_equal(t->record->codec, cws_store_tensor(alone, 0)->record->codec);
        assert_int_equal(0, cws_store_verify(alone, 1, no_fault, NULL, NULL, &err));
        check_bytes(alone, cws_store_tensor(alone, 0), model.data + t->begin);
        cws_store_close(alone);
        free(bytes);
    }
    cws_store_close(s);
    free(model.data);
}

/* From memory: half a byte is no tensor, and without a packed form an unknown type has no size. */
static void memory_refuses_what_has_no_size(void **state)
{
    (void)state;
    static const uint8_t data[16];
    const uint64_t shape[] = {3};
    static const enum cws_dtype dtypes[] = {CWS_F4, CWS_F6_E2M3, CWS_OTHER};
    for (unsigned i = 0; i < 3; i++) {
        struct cws_memory_tensor m = {.name = "t", .dtype = dtypes[i], .shape = shape, .ndim = 1, .data = data};
        struct cws_memory_model one = {.tensors = &m, .tensor_count = 1};
        struct cws_error err = {0};
        uint8_t *bytes;
        uint64_t size;
        assert_int_equal(dtypes[i] == CWS_OTHER ? CWS_E_USAGE : CWS_E_INPUT,
                         cws_pack_tensors_to_memory(&one, &(struct cws_pack_options){.jobs = 1}, &bytes, &size, &err));
        assert_non_null(strstr(err.message, dtypes[i] == CWS_OTHER ? "unknown dtype" : "no whole number of bytes"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(they_come_back_in_every_mode),    cmocka_unit_test(each_has_the_codec_that_suits_it),
        cmocka_unit_test(casting_leaves_them_alone),       cmocka_unit_test(each_can_be_taken_out),
        cmocka_unit_test(memory_refuses_what_has_no_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
