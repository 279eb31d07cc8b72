/* fuzz_codec.h - one decoder against the oracle: the same verdict and the same bytes, whatever the bytes are. The
 * including file defines FUZZ_DECODER, its name. An input is either a chunk as it stands, or patches to a chunk that
 * the encoder makes from a seed: random bytes alone would never get past the directory. */
#ifndef CWS_TESTS_FUZZ_CODEC_H
#define CWS_TESTS_FUZZ_CODEC_H
#include "tests/store/codec_data.h"

#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

struct fuzz_input {
    const uint8_t *at;
    size_t left;
};

static uint32_t take(struct fuzz_input *in, unsigned bytes)
{
    uint32_t v = 0;
    for (unsigned b = 0; b < bytes && in->left > 0; b++, in->left--)
        v |= (uint32_t)*in->at++ << (8 * b);
    return v;
}

static void demand(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", FUZZ_DECODER, what);
        abort();
    }
}

static struct cws_decode_scratch *fuzz_scratch;
static struct cws_encode_scratch *fuzz_encode_scratch;

static void compare(const struct cws_chunk_context *context, const uint8_t packed[128], const uint8_t *bytes,
                    size_t size, size_t logical, uint32_t range)
{
    uint8_t *stored = malloc(size + CWS_STREAM_PAD), *want = malloc(logical + 1), *got = malloc(logical + 1);
    memcpy(stored, bytes, size);
    memset(stored + size, 0xee, CWS_STREAM_PAD);
    int reference = cws_chunk_decode_ref(context, packed, bytes, size, logical, want, NULL);
    int rc = cws_chunk_decode(context, stored, size, logical, 0, logical, got, fuzz_scratch, NULL);
    demand(rc == reference, "another verdict than the reference");
    demand(rc != 0 || memcmp(got, want, logical) == 0, "other bytes than the reference");
    size_t begin = logical ? range % logical : 0, end = begin + (logical - begin) * (range >> 24) / 255;
    uint8_t *part = malloc(end - begin + 1);
    rc = cws_chunk_decode(context, stored, size, logical, begin, end, part, fuzz_scratch, NULL);
    demand(rc == 0 || reference != 0, "a range of a valid chunk is refused");
    demand(reference != 0 || memcmp(part, want + begin, end - begin) == 0, "a range differs from the whole");
    free(part);
    free(stored);
    free(want);
    free(got);
}

/* The rest of the input is a chunk. */
static void as_it_stands(struct fuzz_input *in)
{
    struct cws_chunk_context context = {0};
    uint64_t histogram[256] = {0};
    uint8_t lengths[256], packed[128] = {0};
    context.dtype = (enum cws_dtype)(take(in, 1) % CWS_DTYPE_COUNT);
    context.codec = (enum cws_codec_id)(take(in, 1) % 5);
    context.row_elems = take(in, 2);
    context.first_elem = take(in, 4);
    size_t logical = take(in, 3) % (1u << 18);
    uint32_t range = take(in, 4);
    for (unsigned s = 0; s < 16; s++)
        histogram[take(in, 1)] += UINT64_C(1) << s;
    cws_huffman_lengths(histogram, range & 1 ? CWS_CODE_BITS_MAX : 11, lengths);
    for (unsigned i = 0; i < 128; i++)
        packed[i] = (uint8_t)(lengths[2 * i] | lengths[2 * i + 1] << 4);
    struct cws_decode_table *table = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
    demand(cws_decode_table_init(table, packed, NULL) == 0, "a code that the encoder made is refused");
    context.table = table;
    uint8_t *exact = malloc(in->left ? in->left : 1);
    memcpy(exact, in->at, in->left);
    compare(&context, packed, exact, in->left, logical, range);
    free(exact);
    free(table);
}

/* The rest of the input is (position, xor) pairs. */
static void patched(struct fuzz_input *in)
{
    static const enum cws_dtype dtypes[] = {CWS_BF16,    CWS_F16,     CWS_F32, CWS_F64,
                                            CWS_F8_E4M3, CWS_F8_E5M2, CWS_U8,  CWS_I32};
    struct data_chunk c = {0};
    unsigned kind = take(in, 1), rows = 1 + take(in, 1) % 64, cols = 1 + take(in, 2) % 600;
    enum cws_dtype dtype = dtypes[kind & 7];
    data_state = take(in, 1);
    uint32_t range = take(in, 4);
    uint8_t *data = data_normal(dtype, (size_t)rows * cols, kind & 64 ? 1e3 : 0.02);
    size_t bytes = (size_t)rows * cols * cws_dtype_unit(dtype);
    demand(data_plan(&c.plan, (enum cws_mode)(kind >> 3 & 3 ? (kind >> 3 & 3) - 1 : 0), dtype, data, rows, cols) == 0,
           "no plan");
    if (bytes > c.plan.chunk_bytes)
        bytes = c.plan.chunk_bytes;
    demand(data_encode(&c, data, 0, bytes, fuzz_encode_scratch) == 0, "no chunk");
    bool untouched = in->left == 0;
    while (in->left >= 3) {
        size_t at = take(in, 2);
        if (at >= 0x8000) /* the upper half counts from the end */
            at = c.stored_bytes - 1 - (at - 0x8000) % c.stored_bytes;
        c.stored[at % c.stored_bytes] ^= (uint8_t)take(in, 1);
    }
    uint8_t *exact = malloc(c.stored_bytes);
    memcpy(exact, c.stored, c.stored_bytes);
    compare(&c.context, c.plan.packed, exact, c.stored_bytes, bytes, range);
    if (untouched) {
        uint8_t *back = malloc(bytes);
        demand(cws_chunk_decode_ref(&c.context, c.plan.packed, exact, c.stored_bytes, bytes, back, NULL) == 0,
               "the encoder's own chunk is refused");
        demand(c.context.codec == CWS_CODEC_QUANT || memcmp(back, data, bytes) == 0, "lossless is not");
        free(back);
    }
    free(exact);
    data_chunk_free(&c);
    free(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct fuzz_input in = {input, size};
    if (!fuzz_scratch) {
        if (cws_decode_scratch_create(&fuzz_scratch) != 0 || cws_encode_scratch_create(&fuzz_encode_scratch) != 0)
            abort();
        if (cws_decoder_force(FUZZ_DECODER) != 0) { /* _Exit: libFuzzer takes exit for a crash */
            fprintf(stderr, "%s: skipped, this machine cannot run it\n", FUZZ_DECODER);
            _Exit(0);
        }
    }
    if (take(&in, 1) & 1)
        as_it_stands(&in);
    else
        patched(&in);
    return 0;
}

#endif
