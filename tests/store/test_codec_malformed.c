/* Description: a damaged chunk is refused by every decoder, with the oracle's verdict, and nothing outside its bytes
 * and their CWS_STREAM_PAD is read (run under ASan: buffers are of the exact size). */
#include "codec_data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <zstd.h>
#include <cmocka.h>

enum { ROWS = 40, COLS = 300, ELEMS = ROWS * COLS };

static struct cws_decode_scratch *decode_scratch;
static struct cws_encode_scratch *encode_scratch;
static struct data_chunk chunks[4]; /* split bf16, q8 bf16, split f32, split bf16 with wide excesses */
static size_t logical[4];

static int setup(void **state)
{
    (void)state;
    printf("seed %llu\n", (unsigned long long)data_state);
    if (cws_decode_scratch_create(&decode_scratch) || cws_encode_scratch_create(&encode_scratch))
        return 1;
    for (unsigned k = 0; k < 4; k++) {
        enum cws_dtype dtype = k == 2 ? CWS_F32 : CWS_BF16;
        uint8_t *data = data_normal(dtype, ELEMS, 0.02);
        for (unsigned i = 0; k == 3 && i < ELEMS; i++) {
            unsigned e = i / 8 % 32 < 16 ? 120 : 60 + (unsigned)(data_u64() % 50);
            uint16_t v = (uint16_t)(e << 7 | (data_u64() & 0x807f));
            memcpy(data + 2 * i, &v, 2);
        }
        logical[k] = ELEMS * cws_dtype_unit(dtype);
        if (data_plan(&chunks[k].plan, k == 1 ? CWS_MODE_Q8 : CWS_MODE_LOSSLESS, dtype, data, ROWS, COLS))
            return 1;
        if (k < 2)
            chunks[k].plan.lane_symbols = 128; /* two whole tiles and a part of one */
        if (data_encode(&chunks[k], data, 0, logical[k], encode_scratch))
            return 1;
        free(data);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 4; k++)
        data_chunk_free(&chunks[k]);
    cws_decode_scratch_destroy(decode_scratch);
    cws_encode_scratch_destroy(encode_scratch);
    return 0;
}

/* The verdict on these bytes, the same from all; on success the same bytes. */
static int verdict(const struct cws_chunk_context *context, const uint8_t packed[128], const uint8_t *bytes,
                   size_t size, size_t logical_bytes)
{
    uint8_t *stored = malloc(size + CWS_STREAM_PAD), *want = malloc(logical_bytes + 1),
            *got = malloc(logical_bytes + 1);
    memcpy(stored, bytes, size);
    memset(stored + size, 0xee, CWS_STREAM_PAD);
    uint8_t *exact = malloc(size ? size : 1); /* the oracle needs no padding */
    memcpy(exact, bytes, size);
    int rc = cws_chunk_decode_ref(context, packed, exact, size, logical_bytes, want, NULL);
    for (unsigned d = 0; cws_decoder_name(d); d++) {
        struct cws_error err = {0};
        assert_int_equal(cws_decoder_force(cws_decoder_name(d)), 0);
        int own = cws_chunk_decode(context, stored, size, logical_bytes, 0, logical_bytes, got, decode_scratch, &err);
        if (own != rc)
            fail_msg("%s says %d (%s), the reference %d", cws_decoder_name(d), own, err.message, rc);
        assert_true(rc == 0 || err.message[0] != 0);
        if (rc == 0)
            assert_memory_equal(got, want, logical_bytes);
    }
    assert_int_equal(cws_decoder_force(NULL), 0);
    free(stored);
    free(exact);
    free(want);
    free(got);
    return rc;
}

static int damaged(unsigned k, size_t at, const void *value, size_t bytes)
{
    uint8_t *copy = malloc(chunks[k].stored_bytes);
    memcpy(copy, chunks[k].stored, chunks[k].stored_bytes);
    memcpy(copy + at, value, bytes);
    int rc = verdict(&chunks[k].context, chunks[k].plan.packed, copy, chunks[k].stored_bytes, logical[k]);
    free(copy);
    return rc;
}

static void the_undamaged_chunk_is_accepted(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 4; k++)
        assert_int_equal(damaged(k, 0, chunks[k].stored, 1), 0);
}

static void each_head_field(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 4; k++)
        for (size_t i = 0; i < sizeof(struct cws_coded_head); i++)
            for (unsigned bit = 0; bit < 8; bit++) {
                uint8_t value = chunks[k].stored[i] ^ (uint8_t)(1u << bit);
                int rc = damaged(k, i, &value, 1);
                /* A scale base that stays in range is another valid chunk: the checksum is there for that. */
                bool scale = k == 1 && (i == offsetof(struct cws_coded_head, scale_base) ||
                                        i == offsetof(struct cws_coded_head, scale_base) + 1);
                if (!scale)
                    assert_int_equal(rc, CWS_E_CORRUPT);
            }
}

static void scales_out_of_range(void **state)
{
    (void)state;
    static const uint16_t bases[] = {0, 1, CWS_SCALE_MIN - 1, CWS_SCALE_MAX + 1, 0x2000, 0xffff};
    struct cws_coded_head head;
    memcpy(&head, chunks[1].stored, sizeof head);
    for (unsigned i = 0; i < sizeof bases / sizeof *bases; i++) {
        /* a field may lift a low base into the range: not this low */
        unsigned fields = (1u << head.scale_bits) - 1;
        if (bases[i] + fields < CWS_SCALE_MIN || bases[i] > CWS_SCALE_MAX)
            assert_int_equal(damaged(1, offsetof(struct cws_coded_head, scale_base), &bases[i], 2), CWS_E_CORRUPT);
    }
    uint16_t least = 0; /* the row with the smallest scale has field 0 */
    assert_int_equal(damaged(1, offsetof(struct cws_coded_head, scale_base), &least, 2), CWS_E_CORRUPT);
}

/* Where the directory and the streams lie. */
static void sections(unsigned k, size_t *directory, size_t *streams, size_t *tiles)
{
    struct cws_coded_head head;
    memcpy(&head, chunks[k].stored, sizeof head);
    *streams = chunks[k].stored_bytes - CWS_STREAM_PAD - 4 * (size_t)head.stream_words;
    *tiles = head.tile_count;
    size_t bytes = head.tile_count * (6 + CWS_TILE_LANES * (head.flags & CWS_CODED_WIDE ? 2u : 1u));
    *directory = (*streams - bytes) / 16 * 16;
}

static void each_directory_byte(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 4; k++) {
        size_t directory, streams, tiles;
        sections(k, &directory, &streams, &tiles);
        for (size_t i = directory; i < streams; i++)
            for (unsigned bit = 0; bit < 8; bit += 7) {
                uint8_t value = chunks[k].stored[i] ^ (uint8_t)(1u << bit);
                assert_int_equal(damaged(k, i, &value, 1), CWS_E_CORRUPT);
            }
    }
}

/* Two lanes' lengths moved against each other: the sums stay right, so only decoding finds it. */
static void lengths_that_only_decoding_refutes(void **state)
{
    (void)state;
    size_t directory, streams, tiles;
    for (unsigned k = 0; k < 2; k++) {
        sections(k, &directory, &streams, &tiles);
        assert_int_equal(tiles, 3);
        for (unsigned l = 0; l + 1 < 32 * tiles; l += l % 32 == 30 ? 2 : 1) {
            size_t at = directory + 6 * tiles + l;
            uint8_t moved[2] = {(uint8_t)(chunks[k].stored[at] + 1), (uint8_t)(chunks[k].stored[at + 1] - 1)};
            if (moved[0] != 0 && moved[1] != 255)
                assert_int_equal(damaged(k, at, moved, 2), CWS_E_CORRUPT);
        }
    }
}

static void random_stream_bits(void **state)
{
    (void)state;
    unsigned refused = 0;
    for (unsigned k = 0; k < 4; k++) {
        size_t directory, streams, tiles;
        sections(k, &directory, &streams, &tiles);
        for (unsigned i = 0; i < 400; i++) {
            size_t at = streams + data_u64() % (chunks[k].stored_bytes - streams - 8);
            uint64_t noise = data_u64();
            refused += damaged(k, at, &noise, 8) == CWS_E_CORRUPT;
        }
    }
    /* a changed symbol of the same length passes: the checksum is there for that */
    assert_true(refused > 800);
}

static void every_truncation_and_trailing_bytes(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 4; k++) {
        const struct data_chunk *c = &chunks[k];
        for (size_t n = 0; n < c->stored_bytes; n += n < 64 ? 1 : 997)
            assert_int_equal(verdict(&c->context, c->plan.packed, c->stored, n, logical[k]), CWS_E_CORRUPT);
        assert_int_equal(verdict(&c->context, c->plan.packed, c->stored, c->stored_bytes - 1, logical[k]),
                         CWS_E_CORRUPT);
        assert_int_equal(verdict(&c->context, c->plan.packed, c->stored, c->stored_bytes + 1, logical[k]),
                         CWS_E_CORRUPT);
        assert_int_equal(verdict(&c->context, c->plan.packed, c->stored, c->stored_bytes, logical[k] + 1),
                         CWS_E_CORRUPT);
        assert_int_equal(verdict(&c->context, c->plan.packed, c->stored, c->stored_bytes, logical[k] - 2),
                         CWS_E_CORRUPT);
    }
}

static void each_padding_byte(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 4; k++)
        for (unsigned i = 1; i <= CWS_STREAM_PAD; i++) {
            uint8_t one = 1;
            assert_int_equal(damaged(k, chunks[k].stored_bytes - i, &one, 1), CWS_E_CORRUPT);
        }
}

/* The bits between a tile's last lane and the next word. */
static void each_tile_padding_bit(void **state)
{
    (void)state;
    unsigned padded = 0;
    for (unsigned k = 0; k < 3; k++) { /* those with narrow excesses */
        size_t directory, streams, tiles;
        sections(k, &directory, &streams, &tiles);
        for (size_t t = 0; t < tiles; t++) {
            const uint8_t *entry = chunks[k].stored + directory;
            uint32_t first, bits = 0;
            uint16_t shortest;
            memcpy(&first, entry + 4 * t, 4);
            memcpy(&shortest, entry + 4 * tiles + 2 * t, 2);
            for (unsigned l = 0; l < CWS_TILE_LANES; l++)
                bits += shortest + entry[6 * tiles + CWS_TILE_LANES * t + l];
            for (uint32_t bit = 32 * first + bits; bit % 32 != 0; bit++, padded++) {
                uint8_t value = chunks[k].stored[streams + bit / 8] ^ (uint8_t)(1u << bit % 8);
                assert_int_equal(damaged(k, streams + bit / 8, &value, 1), CWS_E_CORRUPT);
            }
        }
    }
    assert_true(padded > 0);
}

static void a_context_that_does_not_fit(void **state)
{
    (void)state;
    struct cws_chunk_context c = chunks[0].context;
    c.dtype = CWS_F32;
    assert_int_equal(verdict(&c, chunks[0].plan.packed, chunks[0].stored, chunks[0].stored_bytes, logical[0]),
                     CWS_E_CORRUPT);
    c = chunks[0].context;
    c.dtype = CWS_U16;
    assert_int_equal(verdict(&c, chunks[0].plan.packed, chunks[0].stored, chunks[0].stored_bytes, logical[0]),
                     CWS_E_CORRUPT);
    c = chunks[0].context;
    c.codec = CWS_CODEC_QUANT;
    c.row_elems = COLS;
    assert_int_equal(verdict(&c, chunks[0].plan.packed, chunks[0].stored, chunks[0].stored_bytes, logical[0]),
                     CWS_E_CORRUPT);
    c = chunks[1].context;
    c.row_elems = 0;
    assert_int_equal(verdict(&c, chunks[1].plan.packed, chunks[1].stored, chunks[1].stored_bytes, logical[1]),
                     CWS_E_CORRUPT);
    c = chunks[1].context;
    c.first_elem = UINT64_MAX - 5;
    assert_int_equal(verdict(&c, chunks[1].plan.packed, chunks[1].stored, chunks[1].stored_bytes, logical[1]),
                     CWS_E_CORRUPT);
    c = chunks[1].context;
    c.codec = (enum cws_codec_id)9;
    assert_int_equal(verdict(&c, chunks[1].plan.packed, chunks[1].stored, chunks[1].stored_bytes, logical[1]),
                     CWS_E_CORRUPT);
}

static void raw_and_zstd(void **state)
{
    (void)state;
    struct cws_chunk_context c = {.dtype = CWS_U8, .codec = CWS_CODEC_ZSTD};
    uint8_t data[1000], frame[2000], two[4000], packed[128] = {0};
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i / 16);
    size_t n = ZSTD_compress(frame, sizeof frame, data, sizeof data, 3);
    assert_int_equal(verdict(&c, packed, frame, n, sizeof data), 0);
    assert_int_equal(verdict(&c, packed, frame, n, sizeof data - 1), CWS_E_CORRUPT);
    assert_int_equal(verdict(&c, packed, frame, n - 1, sizeof data), CWS_E_CORRUPT);
    assert_int_equal(verdict(&c, packed, frame, 0, sizeof data), CWS_E_CORRUPT);
    memcpy(two, frame, n);
    memcpy(two + n, frame, n);
    assert_int_equal(verdict(&c, packed, two, 2 * n, 2 * sizeof data), CWS_E_CORRUPT);
    assert_int_equal(verdict(&c, packed, two, 2 * n, sizeof data), CWS_E_CORRUPT);
    c.codec = CWS_CODEC_RAW;
    assert_int_equal(verdict(&c, packed, data, sizeof data, sizeof data), 0);
    assert_int_equal(verdict(&c, packed, data, sizeof data - 1, sizeof data), CWS_E_CORRUPT);
    assert_int_equal(verdict(&c, packed, data, 0, 0), 0);
}

static void code_tables(void **state)
{
    (void)state;
    struct cws_decode_table *t = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
    uint8_t packed[128];
    memcpy(packed, chunks[0].plan.packed, 128);
    assert_int_equal(cws_decode_table_init(t, packed, NULL), 0);
    for (unsigned i = 0; i < 128; i++) { /* any changed length breaks the Kraft sum or the limit */
        for (unsigned v = 1; v < 16; v++) {
            uint8_t keep = packed[i];
            packed[i] ^= (uint8_t)v;
            assert_int_equal(cws_decode_table_init(t, packed, NULL), CWS_E_CORRUPT);
            packed[i] = keep;
        }
    }
    memset(packed, 0, 128);
    assert_int_equal(cws_decode_table_init(t, packed, NULL), CWS_E_CORRUPT);
    packed[0] = 0x01; /* one code of one bit: half of the strings mean nothing */
    assert_int_equal(cws_decode_table_init(t, packed, NULL), CWS_E_CORRUPT);
    packed[0] = 0x11;
    assert_int_equal(cws_decode_table_init(t, packed, NULL), 0);
    memset(packed, 0x88, 128); /* 256 codes of 8 bits */
    assert_int_equal(cws_decode_table_init(t, packed, NULL), 0);
    memset(packed, 0xcc, 128);
    assert_int_equal(cws_decode_table_init(t, packed, NULL), CWS_E_CORRUPT);
    for (unsigned longest = 11; longest <= 13; longest++) { /* lengths 1, 2, 3, ..., longest, longest */
        memset(packed, 0, 128);
        for (unsigned s = 0; s <= longest; s++)
            packed[s / 2] |= (uint8_t)((s < longest ? s + 1 : longest) << s % 2 * 4);
        assert_int_equal(cws_decode_table_init(t, packed, NULL), longest <= CWS_CODE_BITS_MAX ? 0 : CWS_E_CORRUPT);
    }
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_undamaged_chunk_is_accepted),
        cmocka_unit_test(each_head_field),
        cmocka_unit_test(scales_out_of_range),
        cmocka_unit_test(each_directory_byte),
        cmocka_unit_test(lengths_that_only_decoding_refutes),
        cmocka_unit_test(random_stream_bits),
        cmocka_unit_test(every_truncation_and_trailing_bytes),
        cmocka_unit_test(each_padding_byte),
        cmocka_unit_test(each_tile_padding_bit),
        cmocka_unit_test(a_context_that_does_not_fit),
        cmocka_unit_test(raw_and_zstd),
        cmocka_unit_test(code_tables),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
