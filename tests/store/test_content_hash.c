/* Description: the content hash is the one the header defines, sees order, and its parts add up. */
#include "codec_data.h"
#include "store/format/content_hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

enum { BYTES = 4096 };
static uint8_t data[BYTES];

static struct cws_hash128 hash(const uint8_t *p, size_t bytes)
{
    struct cws_hash128 h = {0, 0};
    cws_content_hash_add(&h, cws_content_key, p, bytes, 0);
    return h;
}

static bool same(struct cws_hash128 a, struct cws_hash128 b) { return a.lo == b.lo && a.hi == b.hi; }

static int fill(void **state)
{
    (void)state;
    for (unsigned i = 0; i < BYTES; i++)
        data[i] = (uint8_t)data_u64();
    return 0;
}

static uint64_t key_of(uint64_t j)
{
    uint64_t y = cws_content_key[j & 1] + (j >> 1) * UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = (y ^ (y >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return z ^ (z >> 29);
}

static void follows_its_definition(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 255, 256, 1000, BYTES};
    for (unsigned s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        unsigned __int128 want = 0;
        for (size_t i = 0; 16 * i < sizes[s]; i++) {
            uint64_t word[2] = {0, 0};
            memcpy(word, data + 16 * i, sizes[s] - 16 * i < 16 ? sizes[s] - 16 * i : 16);
            want += (unsigned __int128)(uint64_t)(word[0] + key_of(2 * i)) * (uint64_t)(word[1] + key_of(2 * i + 1));
        }
        struct cws_hash128 got = hash(data, sizes[s]);
        assert_true(got.lo == (uint64_t)want && got.hi == (uint64_t)(want >> 64));
    }
}

/* Data whose factors are a and b in every word: sums of parts of the products come as close to their limits as they
 * can. */
static void factors_at_their_limits(void **state)
{
    (void)state;
    enum { WORDS = 9 * 8192 + 5 };
    static const uint64_t parts[] = {0,
                                     1,
                                     0xfff,
                                     0x1000,
                                     0x80000001,
                                     0xffffffff,
                                     0xfffffffffffff,
                                     0x10000000000000,
                                     0x1fffffffffffff,
                                     0xffffffffffffffff};
    const unsigned n = sizeof parts / sizeof *parts;
    uint64_t *words = malloc(16 * (size_t)WORDS);
    assert_non_null(words);
    for (unsigned pair = 0; pair < n * n; pair++) {
        uint64_t a = parts[pair / n], b = parts[pair % n];
        for (uint64_t i = 0; i < WORDS; i++) {
            words[2 * i] = a - key_of(2 * i);
            words[2 * i + 1] = b - key_of(2 * i + 1);
        }
        unsigned __int128 want = (unsigned __int128)a * b * WORDS;
        struct cws_hash128 got = hash((const uint8_t *)words, 16 * (size_t)WORDS);
        assert_true(got.lo == (uint64_t)want && got.hi == (uint64_t)(want >> 64));
    }
    free(words);
}

static void two_words_swapped(void **state)
{
    (void)state;
    uint8_t copy[BYTES];
    for (unsigned width = 2; width <= 64; width *= 2)
        for (unsigned trial = 0; trial < 50; trial++) {
            size_t a = data_u64() % (BYTES / width) * width, b = data_u64() % (BYTES / width) * width;
            memcpy(copy, data, BYTES);
            memcpy(copy + a, data + b, width);
            memcpy(copy + b, data + a, width);
            assert_true(same(hash(copy, BYTES), hash(data, BYTES)) == (memcmp(copy, data, BYTES) == 0));
        }
}

static void one_bit_flipped_in_two_words(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 128; bit++)
        for (unsigned trial = 0; trial < 20; trial++) {
            size_t a = data_u64() % (BYTES / 16), b = (a + 1 + data_u64() % (BYTES / 16 - 1)) % (BYTES / 16);
            struct cws_hash128 before = hash(data, BYTES);
            data[16 * a + bit / 8] ^= (uint8_t)(1u << bit % 8);
            data[16 * b + bit / 8] ^= (uint8_t)(1u << bit % 8);
            assert_false(same(hash(data, BYTES), before));
        }
}

static void rows_rolled(void **state)
{
    (void)state;
    uint8_t copy[BYTES];
    for (size_t row = 16; row < BYTES; row *= 2) {
        memcpy(copy, data + row, BYTES - row);
        memcpy(copy + BYTES - row, data, row);
        assert_false(same(hash(copy, BYTES), hash(data, BYTES)));
    }
}

static void parts_add_up(void **state)
{
    (void)state;
    for (unsigned trial = 0; trial < 100; trial++) {
        size_t bytes = data_u64() % BYTES, cut = data_u64() % (bytes / 16 + 1) * 16;
        struct cws_hash128 sum = {0, 0}, part = {0, 0};
        cws_content_hash_add(&sum, cws_content_key, data, cut, 0);
        cws_content_hash_add(&part, cws_content_key, data + cut, bytes - cut, cut);
        cws_hash128_add(&sum, part);
        assert_true(same(sum, hash(data, bytes)));
    }
    struct cws_hash128 carry = {UINT64_MAX, 1};
    cws_hash128_add(&carry, (struct cws_hash128){1, 2});
    assert_true(carry.lo == 0 && carry.hi == 4);
}

static void zeros_have_a_position(void **state)
{
    (void)state;
    uint8_t zeros[64] = {0};
    assert_false(same(hash(zeros, 32), hash(zeros, 48)));
    uint64_t other[2] = {cws_content_key[0] + 1, cws_content_key[1]};
    struct cws_hash128 h = {0, 0};
    cws_content_hash_add(&h, other, data, BYTES, 0);
    assert_false(same(h, hash(data, BYTES)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(follows_its_definition, fill),
        cmocka_unit_test(factors_at_their_limits),
        cmocka_unit_test(two_words_swapped),
        cmocka_unit_test(one_bit_flipped_in_two_words),
        cmocka_unit_test(rows_rolled),
        cmocka_unit_test(parts_add_up),
        cmocka_unit_test(zeros_have_a_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
