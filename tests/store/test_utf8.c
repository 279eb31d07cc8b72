/* Description: what is a character of UTF-8 is found to be one, and nothing else is; nothing behind the end is read. */
#include "store/base/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static size_t encode(uint32_t c, char out[5])
{
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char first[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(first[n] | c);
    out[n] = '\0';
    return n;
}

static void every_character_is_one(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char text[5];
        size_t n = encode(c, text);
        size_t expected = c >= 0xd800 && c < 0xe000 ? 0 : n;
        if (cws_utf8_bytes(text) != expected)
            fail_msg("U+%04X", c);
    }
}

static void what_is_broken_is_none(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\x80",
        "\xbf",
        "\xc0\x80",
        "\xc1\xbf",
        "\xc2",
        "\xc2"
        "A",
        "\xe0\x9f\xbf",
        "\xe1\x80",
        "\xe1\x80"
        "A",
        "\xed\xa0\x80",
        "\xf0\x8f\xbf\xbf",
        "\xf1\x80\x80",
        "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80",
        "\xff",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *copy = strdup(bad[i]); /* for sanitizers: exactly as long as it is */
        assert_non_null(copy);
        if (cws_utf8_bytes(copy) != 0)
            fail_msg("number %zu", i);
        free(copy);
    }
}

static void characters_are_counted(void **state)
{
    (void)state;
    assert_int_equal(cws_utf8_count(""), 0);
    assert_int_equal(cws_utf8_count("weights"), 7);
    assert_int_equal(cws_utf8_count("gr\xc3\xb6\xc3\x9f"
                                    "e \xe2\x82\xac \xf0\x9f\x90\x98"),
                     9);
    assert_int_equal(cws_utf8_count("\xff\xfe"
                                    "a"),
                     3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_character_is_one),
        cmocka_unit_test(what_is_broken_is_none),
        cmocka_unit_test(characters_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
