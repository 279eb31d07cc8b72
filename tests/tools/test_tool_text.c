/* The command's small text functions: values replaced in JSON, names made printable, sizes, thread counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/json_replace.h"
#include "tools/json_text.h"
#include "tools/say.h"

static int any(const char *value, size_t len)
{
    (void)value;
    return len > 0;
}

static int is_float32(const char *value, size_t len) { return len == 9 && memcmp(value, "\"float32\"", 9) == 0; }

static void expect(const char *text, const char *key, int (*matches)(const char *, size_t), const char *replacement,
                   const char *expected, size_t expected_count)
{
    size_t len = strlen(text), count;
    char *copy = malloc(len), *out; /* no NUL behind it: the function must keep to the length */
    assert_non_null(copy);
    memcpy(copy, text, len);
    assert_int_equal(cws_json_replace(copy, len, key, matches, replacement, &out, &len, &count), 0);
    assert_string_equal(out, expected);
    assert_int_equal(len, strlen(expected));
    assert_int_equal(count, expected_count);
    free(out);
    free(copy);
}

static void replace_changes_values_and_keeps_every_other_byte(void **state)
{
    (void)state;
    expect("{\"dtype\" :\t\"float32\",\n \"eps\": 1e-06 }", "dtype", is_float32, "\"bfloat16\"",
           "{\"dtype\" :\t\"bfloat16\",\n \"eps\": 1e-06 }", 1);
    expect("{\"a\":{\"dtype\":\"float32\"},\"b\":[{\"dtype\":\"float32\"}]}", "dtype", is_float32, "\"x\"",
           "{\"a\":{\"dtype\":\"x\"},\"b\":[{\"dtype\":\"x\"}]}", 2);
    expect("{\"total_size\":123456}", "total_size", any, "7", "{\"total_size\":7}", 1);
    expect("{\"total_size\":1", "total_size", any, "1234567890", "{\"total_size\":1234567890", 1);
}

static void replace_leaves_other_keys_strings_and_values_alone(void **state)
{
    (void)state;
    static const char *const same[] = {
        "{\"compute_dtype\":\"float32\",\"dtypes\":\"float32\"}",
        "{\"note\":\"dtype\",\"list\":[\"dtype\",\"float32\"]}",
        "{\"dtype\":null,\"x\":{\"dtype\":[\"float32\"]}}",
        "{\"dtype\":\"float16\"}",
        "{\"note\":\"\\\"dtype\\\":\\\"float32\\\"\"}",
        "\"dtype\"",
        "\"dtype",
        "\"dtype\\",
        "{\"dtype\":",
        "",
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        expect(same[i], "dtype", is_float32, "\"bfloat16\"", same[i], 0);
}

static int check_json(const char *text, unsigned *line)
{
    size_t len = strlen(text);
    char *copy = malloc(len + 1); /* no NUL behind it */
    assert_non_null(copy);
    memcpy(copy, text, len);
    copy = realloc(copy, len + !len);
    int rc = cws_json_check(copy, len, line);
    free(copy);
    return rc;
}

static void json_is_what_python_takes_for_it(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{}",
        " [ ] ",
        "null",
        "\"a\"",
        "-0.5e+10",
        "{\"a\": Infinity, \"b\": [NaN, -Infinity, 1e999]}",
        "{\"model_max_length\": 1000000000000000019884624838656}",
        "[\"\\ud800 \\\" \xc3\xa9\"]",
        "{\"a\":1,\"a\":2}",
        "[true,false,0]\n",
    };
    static const char *const bad[] = {
        "",      " ",        "{",   "[1,]",   "{\"a\" 1}", "{a:1}",      "\"a", "\"a\\",   "\"\\u12", "\"\\u12g4\"",
        "01",    "-",        "1.",  "1e",     "+1",        ".5",         "Inf", "nan",     "tru",     "{} {}",
        "[1 2]", "{\"a\":}", "'a'", "\"\t\"", "-NaN",      "{\"a\":1,}", "]",   "\"\\x\"",
    };
    unsigned line;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (check_json(good[i], &line))
            fail_msg("refused: %s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (check_json(bad[i], &line) != CWS_E_INPUT)
            fail_msg("taken: %s", bad[i]);
    assert_int_equal(check_json("{\n \"a\": 1,\n b}", &line), CWS_E_INPUT);
    assert_int_equal(line, 3);
    char deep[500];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    assert_int_equal(check_json(deep, &line), CWS_E_INPUT);
}

static void objects_are_found_beside_any_number(void **state)
{
    (void)state;
    struct cws_json_twice twice;
    static const char text[] =
        "{\"n\": [1e999, -Infinity,NaN, 1000000000000000019884624838656],\n \"map\": {\"a\": \"NaN 1e999\"}}";
    json_t *root = cws_json_objects(text, sizeof text - 1, &twice);
    assert_non_null(root);
    assert_string_equal(json_string_value(json_object_get(json_object_get(root, "map"), "a")), "NaN 1e999");
    assert_string_equal(twice.text, "");
    json_decref(root);
    static const char doubled[] = "{\"a\": \"first\",\n \"a\": \"second\"}";
    root = cws_json_objects(doubled, sizeof doubled - 1, &twice);
    assert_non_null(root);
    assert_string_equal(json_string_value(json_object_get(root, "a")), "second");
    assert_non_null(strstr(twice.text, "line 2"));
    json_decref(root);
    assert_null(cws_json_objects("{", 1, &twice));
}

static void printable_shows_what_could_drive_a_terminal(void **state)
{
    (void)state;
    char buf[64];
    assert_string_equal(cws_printable("model.weight", buf, sizeof buf), "model.weight");
    assert_string_equal(cws_printable("a\x1b[2J\n", buf, sizeof buf), "a\\x1b[2J\\x0a");
    assert_string_equal(cws_printable("caf\xc3\xa9", buf, sizeof buf), "caf\xc3\xa9");
    assert_string_equal(cws_printable("\xc3(", buf, sizeof buf), "\\xc3(");
    /* a C1 control: CSI in one character */
    assert_string_equal(cws_printable("\xc2\x9b", buf, sizeof buf), "\\xc2\\x9b");
    assert_string_equal(cws_printable("\xe2\x82", buf, sizeof buf), "\\xe2\\x82");
}

static void printable_keeps_to_its_buffer(void **state)
{
    (void)state;
    for (size_t size = 8; size < 40; size++) {
        char *buf = malloc(size);
        assert_non_null(buf);
        cws_printable("0123456789\x01\x02\x03\xc3\xa9\xc3\xa9\xe2\x82\xac", buf, size);
        assert_true(strlen(buf) < size);
        assert_memory_equal(buf, "0123456789", size < 14 ? size - 8 : 6);
        free(buf);
    }
    char buf[8];
    assert_string_equal(cws_printable("abcdefghij", buf, sizeof buf), "abcd...");
}

static void sizes_read_well(void **state)
{
    (void)state;
    assert_string_equal(cws_size_text(0).text, "0 B");
    assert_string_equal(cws_size_text(1023).text, "1023 B");
    assert_string_equal(cws_size_text(1024).text, "1.00 KiB");
    assert_string_equal(cws_size_text(9761168).text, "9.31 MiB");
    assert_string_equal(cws_size_text(UINT64_C(2200119864)).text, "2.05 GiB");
    assert_string_equal(cws_size_text(UINT64_MAX).text, "16.0 EiB");
}

static void a_tenth_of_a_second_is_too_short_for_a_rate(void **state)
{
    (void)state;
    assert_string_equal(cws_time_text(0, 9761168).text, "0.00 s");
    assert_string_equal(cws_time_text(0.0999, 9761168).text, "0.10 s");
    assert_string_equal(cws_time_text(0.1, 9761168).text, "0.10 s, 98 MB/s");
    assert_string_equal(cws_time_text(2, 0).text, "2.00 s, 0 MB/s");
}

static void jobs_are_one_to_1024(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "0", "1025", "-1", "+1", " 1", "1 ", "1x", "x", "99999999999999999999"};
    unsigned jobs = 77;
    assert_int_equal(cws_parse_jobs("1024", &jobs), 0);
    assert_int_equal(jobs, 1024);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(cws_parse_jobs(bad[i], &jobs), CWS_E_USAGE);
        assert_int_equal(jobs, 1024);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replace_changes_values_and_keeps_every_other_byte),
        cmocka_unit_test(replace_leaves_other_keys_strings_and_values_alone),
        cmocka_unit_test(json_is_what_python_takes_for_it),
        cmocka_unit_test(objects_are_found_beside_any_number),
        cmocka_unit_test(printable_shows_what_could_drive_a_terminal),
        cmocka_unit_test(printable_keeps_to_its_buffer),
        cmocka_unit_test(sizes_read_well),
        cmocka_unit_test(a_tenth_of_a_second_is_too_short_for_a_rate),
        cmocka_unit_test(jobs_are_one_to_1024),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
