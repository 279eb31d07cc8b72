/* The safetensors parser: what it takes, and what it refuses by name and offset. */
#include "tests/support/sample_model.h"
#include "store/format/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Parses a whole file as pack would. */
static int parse(struct bytes f, struct cws_header **out, struct cws_error *err)
{
    uint64_t header_bytes;
    uint8_t first[8] = {0};
    *out = NULL;
    *err = (struct cws_error){0};
    memcpy(first, f.data, f.size < 8 ? f.size : 8);
    int code = cws_header_length("file", first, f.size, &header_bytes, err);
    if (code)
        return code;
    /* A copy of exactly that size: the sanitizer sees a read behind it. */
    uint8_t *copy = malloc(header_bytes);
    assert_non_null(copy);
    memcpy(copy, f.data, header_bytes);
    code = cws_header_parse("file", copy, header_bytes, f.size, out, err);
    free(copy);
    return code;
}

static int parse_text(const char *json, size_t data_bytes, struct cws_header **out, struct cws_error *err)
{
    uint8_t *data = calloc(1, data_bytes + 1);
    struct bytes f = sample_file(json, 0, data, data_bytes);
    int code = parse(f, out, err);
    free(f.data);
    free(data);
    return code;
}

static void refused(const char *json, size_t data_bytes, const char *part)
{
    struct cws_header *h;
    struct cws_error err;
    int code = parse_text(json, data_bytes, &h, &err);
    if (code != CWS_E_INPUT || !strstr(err.message, part) || strchr(err.message, '\n') || err.code != code)
        fail_msg("%.60s: code %d, message \"%s\", expected \"%s\"", json, code, err.message, part);
    assert_null(h);
}

static void taken(const char *json, size_t data_bytes, size_t tensors)
{
    struct cws_header *h;
    struct cws_error err;
    int code = parse_text(json, data_bytes, &h, &err);
    if (code)
        fail_msg("%.60s: code %d, message \"%s\"", json, code, err.message);
    assert_int_equal(h->tensor_count, tensors);
    assert_int_equal(h->data_bytes, data_bytes);
    cws_header_destroy(h);
}

#define T(name, dtype, shape, begin, end)                                                                              \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]}"

static void takes_valid_headers(void **state)
{
    (void)state;
    taken("{}", 0, 0);
    taken("{} \n\t ", 0, 0);
    taken("{\"__metadata__\":{}}", 0, 0);
    taken("{\"\\u005f_metadata_\\u005F\" : {\"k\" :\t\"v\" , \"\\u006c\":\"\"} } ", 0, 0);
    taken("{ " T("a", "U8", "3", 0, 3) " , \n" T("__metadata_", "U8", "", 3, 4) "\r}", 4, 2);
    taken("{" T("a", "U8", "3", 0, 3) "}      ", 3, 1);
    taken("{" T("a", "F64", "", 0, 8) "}", 8, 1);
    taken("{" T("a", "BF16", "0,5", 0, 0) "," T("b", "BOOL", "2", 0, 2) "," T("c", "F8_E4M3", "0", 2, 2) "}", 2, 3);
    taken("{" T("b", "I32", "1,1,1", 4, 8) "," T("a", "I32", "1", 0, 4) "}", 8, 2);
    taken("{\"a\":{\"data_offsets\":[0,1],\"shape\":[1],\"dtype\":\"I8\"}}", 1, 1);
    /* brackets in a string are no nesting */
    taken("{" T("[{]}\\\"[[[[[[[[[[[[", "U8", "1", 0, 1) "}", 1, 1);
}

/* As the reference implementation has them; and a type that it may have one day, of which nothing is checked but that
 * its bytes are its own. */
static void takes_every_dtype(void **state)
{
    (void)state;
    taken(
        "{" T("a", "F8_E8M0", "3", 0, 3) "," T("b", "F8_E4M3FNUZ", "1", 3, 4) "," T("c", "F8_E5M2FNUZ", "1", 4, 5) "}",
        5, 3);
    taken("{" T("a", "F4", "2,2", 0, 2) "," T("b", "F4", "3,2", 2, 5) "," T("c", "F4", "0", 5,
                                                                            5) "," T("d", "F4", "2,1", 5, 6) "}",
          6, 4);
    taken("{" T("a", "F6_E2M3", "4", 0, 3) "," T("b", "F6_E3M2", "4,2", 3, 9) "," T("c", "C64", "2", 9, 25) "}", 25, 3);
    taken("{" T("a", "I4", "3", 0, 2) "," T("b", "U9", "", 2, 2) "," T("c", "u8", "1000", 2, 3) "}", 3, 3);
    struct cws_header *h;
    struct cws_error err;
    assert_int_equal(0, parse_text("{" T("a", "I4", "3", 0, 2) "," T("b", "F4", "2", 2, 3) "}", 3, &h, &err));
    assert_int_equal(CWS_OTHER, h->tensors[0].dtype);
    assert_string_equal("I4", h->tensors[0].dtype_name);
    assert_int_equal(CWS_F4, h->tensors[1].dtype);
    assert_string_equal("F4", h->tensors[1].dtype_name);
    cws_header_destroy(h);
    refused("{" T("a", "I4", "3", 0, 2) "," T("b", "I4", "3", 1, 3) "}", 3, "overlaps");
    refused("{" T("a", "I4", "3", 0, 2) "," T("b", "I4", "3", 3, 4) "}", 4, "hole");
}

static void orders_tensors_by_offset(void **state)
{
    struct cws_header *h;
    struct cws_error err;
    (void)state;
    assert_int_equal(
        0, parse_text("{" T("c", "U8", "2", 3, 5) "," T("empty2", "U8", "0", 3, 3) ",\"__metadata__\":{\"k\":\"v\"}," T(
                          "a", "U8", "3", 0, 3) "," T("empty1", "U8", "0", 3, 3) "}",
                      5, &h, &err));
    static const char *const names[] = {"a", "empty2", "empty1", "c"};
    static const size_t positions[] = {2, 1, 3, 0};
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(names[i], h->tensors[i].name);
        assert_int_equal(positions[i], h->tensors[i].position);
    }
    assert_true(h->has_metadata);
    assert_int_equal(1, h->metadata_count);
    assert_string_equal("k", h->metadata[0].key);
    assert_string_equal("v", h->metadata[0].value);
    cws_header_destroy(h);
}

static bool compare_text(const char *text, const struct cws_header *with)
{
    struct bytes f = sample_file(text, 0, NULL, 0);
    struct cws_error err;
    bool same;
    if (cws_header_compare("f", f.data, f.size, with, &same, &err))
        fail_msg("%s: %s", text, err.message);
    free(f.data);
    return same;
}

static void compares_tensors_in_any_order(void **state)
{
    (void)state;
    struct cws_header *h;
    struct cws_error err;
    assert_int_equal(
        0, parse_text("{" T("a", "U8", "2", 0, 2) "," T("b", "I4", "0,7", 2, 2) ",\"__metadata__\":{\"k\":\"v\"}}", 2,
                      &h, &err));
    assert_true(compare_text("{" T("b", "I4", "0,7", 2, 2) "," T("a", "U8", "2", 0, 2) "}", h));
    assert_true(compare_text(
        "{" T("\\u0061", "U8", "2", 0, 2) ",\"__metadata__\":{\"l\":\"w\"}," T("b", "I4", "0,7", 2, 2) "}", h));
    assert_false(compare_text("{}", h));
    assert_false(compare_text("{" T("a", "U8", "2", 0, 2) "}", h));
    assert_false(
        compare_text("{" T("a", "U8", "2", 0, 2) "," T("b", "I4", "0,7", 2, 2) "," T("c", "U8", "0", 2, 2) "}", h));
    assert_false(compare_text("{" T("a", "U8", "2", 0, 2) "," T("b", "I5", "0,7", 2, 2) "}", h));
    assert_false(compare_text("{" T("a", "U8", "2", 0, 2) "," T("b", "I4", "7,0", 2, 2) "}", h));
    assert_false(compare_text("{" T("a", "U8", "2", 0, 2) "," T("b", "I4", "0,7", 0, 0) "}", h));
    assert_false(compare_text("{" T("a", "I8", "2", 0, 2) "," T("b", "I4", "0,7", 2, 2) "}", h));
    assert_false(compare_text("{" T("c", "U8", "2", 0, 2) "," T("b", "I4", "0,7", 2, 2) "}", h));
    assert_int_equal(0, cws_header_find(h, "a"));
    assert_int_equal(1, cws_header_find(h, "b"));
    assert_true(cws_header_find(h, "") == SIZE_MAX && cws_header_find(h, "aa") == SIZE_MAX &&
                cws_header_find(h, "c") == SIZE_MAX);
    /* One name twice is as many, and not the same; in two batches for the library. */
    char *text = malloc(100000);
    size_t len = (size_t)sprintf(text, "{" T("a", "U8", "2", 0, 2));
    for (unsigned i = 0; i < 100; i++)
        len += (size_t)sprintf(text + len, ",\"t%u\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}", i % 99);
    strcpy(text + len, "}");
    cws_header_destroy(h);
    refused(text, 2, "duplicate tensor \"t0\"");
    char *again = malloc(100000), *last;
    strcpy(again, text);
    /* the second t0 becomes t99 for the header to compare with */
    last = strstr(again + len - 60, "\"t0\"");
    assert_non_null(last);
    memmove(last + 5, last + 4, strlen(last + 4) + 1);
    memcpy(last, "\"t99\"", 5);
    assert_int_equal(0, parse_text(again, 2, &h, &err));
    assert_int_equal(101, h->tensor_count);
    assert_true(compare_text(again, h));
    assert_false(compare_text(text, h));
    cws_header_destroy(h);
    free(again);
    free(text);
}

static void refuses_broken_tensors(void **state)
{
    (void)state;
    refused("{" T("a", "U8", "3", 0, 4) "}", 4, "\"a\": data_offsets [0, 4) do not hold 3 elements of U8");
    refused("{" T("a", "U8", "-0", 0, 0) "}", 0, "-0");
    refused("{" T("a", "U8", "3\x01", 0, 3) "}", 3, "control character");
    refused("{" T("a", "BF16", "3", 0, 3) "}", 3, "do not hold");
    refused("{" T("a", "U8", "3", 3, 0) "}", 3, "do not hold");
    refused("{" T("a", "U8", "2", 0, 2) "," T("b", "U8", "2", 1, 3) "}", 3, "\"b\" at data offset 1");
    refused("{" T("a", "U8", "2", 0, 2) "," T("b", "U8", "2", 3, 5) "}", 5, "hole of 1 bytes at data offset 2");
    refused("{" T("a", "U8", "2", 1, 3) "}", 3, "hole of 1 bytes at data offset 0");
    refused("{" T("a", "U8", "2", 0, 2) "}", 3, "1 bytes at offset");
    refused("{" T("a", "U8", "2", 0, 2) "}", 1, "the file ends at offset");
    refused("{" T("a", "", "2", 0, 2) "}", 2, "\"\" is not the name of a dtype");
    refused("{" T("a", "U 8", "2", 0, 2) "}", 2, "\"U 8\" is not the name of a dtype");
    refused("{" T("a", "U9", "2", 2, 0) "}", 2, "data_offsets [2, 0) do not hold 2 elements of U9");
    refused("{" T("a", "F4", "3", 0, 2) "}", 2, "do not hold 3 elements of F4");
    refused("{" T("a", "F4", "3", 0, 1) "}", 1, "do not hold");
    refused("{" T("a", "F4", "", 0, 1) "}", 1, "do not hold");
    refused("{" T("a", "F4", "4", 0, 4) "}", 4, "do not hold");
    refused("{" T("a", "F6_E2M3", "2", 0, 2) "}", 2, "do not hold");
    refused("{" T("a", "C64", "2", 0, 8) "}", 8, "do not hold");
    refused("{" T("a", "U8", "-2", 0, 2) "}", 2, "shape[0] is not a non-negative integer");
    refused("{" T("a", "U8", "2.0", 0, 2) "}", 2, "shape[0]");
    refused("{" T("a", "U8", "1,\\\"2\\\"", 0, 2) "}", 2, "not valid JSON");
    refused("{" T("a", "U8", "1,null", 0, 2) "}", 2, "shape[1]");
    refused("{" T("a", "U8", "4294967296,4294967296", 0, 2) "}", 2, "product of its shape");
    refused("{" T("a", "U8", "4294967296,4294967296,0", 0, 0) "}", 0, "product of its shape");
    refused("{" T("a", "F64", "4611686018427387904", 0, 0) "}", 0, "do not hold");
    refused("{" T("a", "U8", "18446744073709551616", 0, 0) "}", 0, "not valid JSON");
    refused("{" T("a", "U8", "1", 0, -1) "}", 1, "data_offsets");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, "data_offsets");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, "\"shape\"");
    refused("{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "\"dtype\"");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "must be an object of dtype");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "must be an object of dtype");
    refused("{\"a\":[]}", 0, "must be an object of dtype");
    refused("{\"a\":null}", 0, "must be an object of dtype");
}

static void refuses_broken_text(void **state)
{
    (void)state;
    refused("[]", 0, "does not start with '{'");
    refused(" {}", 0, "does not start with '{'");
    refused("{}x", 0, "not valid JSON");
    refused("{}{}", 0, "not valid JSON");
    refused("{\"a\"}", 0, "not valid JSON");
    refused("{\"a\":{}", 0, "not valid JSON");
    refused("{\"\xff\":1}", 0, "not valid JSON");
    refused("{\"a\\u0000b\":1}", 0, "not valid JSON");
    refused("{" T("a", "U8", "1", 0, 1) "," T("a", "U8", "1", 0, 1) "}", 1, "duplicate");
    refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate");
    refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "duplicate");
    refused("{\"__metadata__\":{\"k\":1}}", 0, "value of \"k\" is not a string");
    refused("{\"__metadata__\":{\"k\":\"1\"},\"__metadata__\":{}}", 0, "duplicate");
    /* the same key */
    refused("{\"__metadata__\":{\"k\":\"1\"},\"\\u005f_met\\u0061data_\\u005F\":{}}", 0, "duplicate");
    refused("{" T("a", "U8", "1", 0, 1) "," T("\\u0061", "U8", "1", 1, 2) "}", 2, "duplicate");
    refused("{\"__metadata__\":{\"\\u006b\":\"1\",\"k\":\"2\"}}", 0, "duplicate");
    refused("{" T("__metadat\\u0041__", "?", "1", 0, 1) "}", 1, "tensor \"__metadatA__\"");
    /* What stands between the commas must be one entry. */
    refused("{,}", 0, "not valid JSON");
    refused("{ , " T("a", "U8", "1", 0, 1) "}", 1, "not valid JSON");
    refused("{" T("a", "U8", "1", 0, 1) ",}", 1, "not valid JSON");
    refused("{" T("a", "U8", "1", 0, 1) ",, " T("b", "U8", "1", 1, 2) "}", 2, "not valid JSON");
    refused("{" T("a", "U8", "1", 0, 1) " " T("b", "U8", "1", 1, 2) "}", 2, "not valid JSON");
    refused("{" T("a", "U8", "1", 0, 1) "]", 1, "not valid JSON");
    refused("{\"a\":[}}", 0, "not valid JSON");
    refused("{\"a\":{]}", 0, "not valid JSON");
    refused("{\"a\":1}]}", 0, "not valid JSON");
    refused("{\"a\\\":1}", 0, "not valid JSON");
    refused("{a:1}", 0, "not valid JSON");
    refused("{1:1}", 0, "not valid JSON");
    refused("{\"\\ud800\":1}", 0, "not valid JSON");
    refused("{\"__metadata__\":{}x}", 0, "not valid JSON");
    refused("{\"__metadata__\":{\"k\":\"1\",}}", 0, "not valid JSON");
    refused("{\"__metadata__\":{\"k\"}}", 0, "not valid JSON");
    refused("{\"__metadata__\" {}}", 0, "not an object");
    refused("{\"__metadata__\":{\"k\":\"1\"", 0, "not valid JSON");
    refused("{\"__metadata__\":[]}", 0, "\"__metadata__\" is not an object");
    refused("{\"__metadata__\":{\"k\":{\"x\":\"y\"}}}", 0, "is not a string");
    refused("{" T("a\\u001b[31m", "?", "1", 0, 1) "}", 1, "\"a?[31m\"");
}

static void refuses_deep_nesting_and_long_arrays(void **state)
{
    (void)state;
    enum { N = 1000000 };
    char *text = malloc(2 * N + 64);
    assert_non_null(text);
    memset(text, '[', N);
    memcpy(text, "{\"a\":", 5);
    text[N] = '\0';
    refused(text, 0, "nested more than");
    for (size_t i = 5; i < N; i += 5)
        memcpy(text + i, "{\"a\":", 5);
    refused(text, 0, "nested more than");
    size_t len = (size_t)sprintf(text, "{\"a\":{\"dtype\":\"U8\",\"shape\":[");
    for (size_t i = 0; i < N; i += 2)
        memcpy(text + len + i, "1,", 2);
    strcpy(text + len + N, "1],\"data_offsets\":[0,1]}}");
    refused(text, 1, "an array of more than");
    free(text);
}

static void refuses_bad_lengths(void **state)
{
    (void)state;
    struct cws_error err;
    uint64_t out;
    static const struct {
        uint64_t n, file_bytes;
        const char *part;
    } cases[] = {
        {0, 0, "too few"},
        {0, 7, "too few"},
        {0, 8, "too small"},
        {1, 9, "too small"},
        {3, 10, "only 2 follow"},
        {100000001, UINT64_C(1) << 40, "above the limit"},
        {UINT64_MAX, 100, "above the limit"},
        {UINT64_MAX - 7, 100, "above the limit"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t first[8];
        memcpy(first, &cases[i].n, 8);
        assert_int_equal(CWS_E_INPUT, cws_header_length("f", first, cases[i].file_bytes, &out, &err));
        if (!strstr(err.message, cases[i].part))
            fail_msg("%zu: %s", i, err.message);
    }
    uint64_t most = 100000000;
    assert_int_equal(0, cws_header_length("f", (const uint8_t *)&most, most + 8, &out, &err));
    assert_int_equal(most + 8, out);
}

/* Every prefix, and every byte changed in turn: no crash, no wrong acceptance of a shorter file. */
static void survives_damage(void **state)
{
    (void)state;
    struct bytes f = sample_model(1, 0);
    struct cws_header *h;
    struct cws_error err;
    assert_int_equal(0, parse(f, &h, &err));
    uint64_t header_bytes = h->header_bytes;
    cws_header_destroy(h);
    for (size_t size = 0; size < header_bytes + 20; size++) {
        assert_int_equal(CWS_E_INPUT, parse((struct bytes){f.data, size}, &h, &err));
        assert_true(err.message[0] != '\0');
    }
    uint64_t seed = 7;
    for (size_t i = 0; i < header_bytes; i++) {
        uint8_t was = f.data[i];
        f.data[i] ^= (uint8_t)(1 + sample_random(&seed) % 255);
        if (parse(f, &h, &err) == 0)
            cws_header_destroy(h);
        f.data[i] = was;
    }
    free(f.data);
}

static void shows_names_on_one_line(void **state)
{
    (void)state;
    char buf[CWS_NAME_SHOWN_BYTES], name[1000];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = '\0';
    name[3] = '\n';
    name[4] = 0x7f;
    cws_name_shown(name, buf);
    assert_int_equal(CWS_NAME_SHOWN_BYTES - 1, strlen(buf));
    assert_memory_equal("xxx??x", buf, 6);
    assert_string_equal("...", buf + strlen(buf) - 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_valid_headers),
        cmocka_unit_test(takes_every_dtype),
        cmocka_unit_test(compares_tensors_in_any_order),
        cmocka_unit_test(orders_tensors_by_offset),
        cmocka_unit_test(refuses_broken_tensors),
        cmocka_unit_test(refuses_broken_text),
        cmocka_unit_test(refuses_deep_nesting_and_long_arrays),
        cmocka_unit_test(refuses_bad_lengths),
        cmocka_unit_test(survives_damage),
        cmocka_unit_test(shows_names_on_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
