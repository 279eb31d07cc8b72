/* make_golden DIR - writes DIR/golden (stores and the files they unpack to) and DIR/malformed (stores with one thing
 * wrong each, checksums made right again, so that only the rule itself can refuse them). Deterministic. The name says
 * what is wrong and, before the first dot, how: the code of open, or "verify" for what only shows when chunks are
 * decoded. */
#include "tests/support/sample_model.h"
#include "store/format/content_hash.h"
#include "store/read/store.h"
#include "store/pack/writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static char directory[200];

/* A store in memory, its parts found. Trailing room, so that parts may grow. */
struct image {
    uint8_t data[16384];
    size_t size;
    struct cws_trailer *trailer;
    struct cws_index_header *index;
    struct cws_tensor_record *tensors;
    struct cws_chunk_record *chunks;
    uint8_t (*tables)[128];
};

static struct bytes base;

static void locate(struct image *m)
{
    m->trailer = (void *)(m->data + m->size - sizeof *m->trailer);
    m->index = (void *)(m->data + m->trailer->index_offset);
    m->tensors = (void *)((uint8_t *)(m->index + 1) + (m->index->header_bytes + 7) / 8 * 8);
    m->chunks = (void *)(m->tensors + m->index->tensor_count);
    m->tables = (void *)(m->chunks + m->index->chunk_count);
}

enum { SIGN_CHUNKS = 1, SIGN_SUMS = 2, SIGN_PARTS = 4, SIGN_TRAILER = 8, SIGN_ALL = 15 };

static void sign(struct image *m, int what)
{
    if (what & SIGN_CHUNKS)
        for (uint64_t i = 0; i < m->index->chunk_count; i++)
            if (m->chunks[i].offset < m->size && m->chunks[i].stored_bytes < m->size - m->chunks[i].offset)
                m->chunks[i].xxh3 = XXH3_64bits_withSeed(m->data + m->chunks[i].offset, m->chunks[i].stored_bytes, i);
    if (what & SIGN_SUMS) {
        struct cws_hash128 sum = {0, 0};
        for (uint32_t i = 0; i < m->index->tensor_count; i++)
            cws_content_hash_add(&sum, cws_content_key, m->tensors[i].content_hash, 16, 16 * i);
        m->trailer->content_hash[0] = sum.lo;
        m->trailer->content_hash[1] = sum.hi;
    }
    if (what & SIGN_PARTS) {
        m->trailer->front_xxh3 = XXH3_64bits(m->data, m->trailer->front_bytes);
        m->trailer->index_xxh3 = XXH3_64bits(m->data + m->trailer->index_offset, m->trailer->index_bytes);
    }
    if (what & SIGN_TRAILER)
        m->trailer->trailer_xxh3 = XXH3_64bits(m->trailer, sizeof *m->trailer - 8);
}

/* Front and original header hold the same entries in other spacing: replaces `from` by `to` of the same length in
 * one. */
static void replace(uint8_t *at, size_t room, const char *from, const char *to)
{
    uint8_t *hit = memmem(at, room, from, strlen(from));
    if (!hit || strlen(from) != strlen(to)) {
        fprintf(stderr, "make_golden: cannot replace %s\n", from);
        exit(1);
    }
    memcpy(hit, to, strlen(to));
}

#define FRONT(m, from, to) replace((m)->data, (m)->trailer->front_bytes, from, to)
#define HEADER(m, from, to) replace((uint8_t *)((m)->index + 1), (m)->index->header_bytes, from, to)

/* The base: tensors "w" (BF16 [64,100], split) and "r" (U8 [70], raw), see make_base(). Chunks 0 and 1. */
static struct cws_coded_head *head(struct image *m) { return (void *)(m->data + m->chunks[0].offset); }

static void bad_version(struct image *m) { m->trailer->version = 1; }
static void unknown_feature(struct image *m) { m->trailer->incompat |= UINT64_C(1) << 40; }
static void lossy_bit_alone(struct image *m) { m->trailer->incompat |= CWS_INCOMPAT_LOSSY; }
static void types_bit_alone(struct image *m) { m->trailer->incompat |= CWS_INCOMPAT_TYPES; }
static void other_without_bit(struct image *m) { m->tensors[1].dtype = CWS_DTYPE_CODE_OTHER; }
static void dtype_of_tomorrow(struct image *m)
{
    m->tensors[1].dtype = CWS_OTHER;
    m->trailer->incompat |= CWS_INCOMPAT_TYPES;
}
static void other_split(struct image *m)
{
    m->tensors[0].dtype = CWS_DTYPE_CODE_OTHER;
    m->trailer->incompat |= CWS_INCOMPAT_TYPES;
}
static void trailer_reserved(struct image *m) { m->trailer->reserved[1] = 1; }
static void trailer_size(struct image *m) { m->trailer->trailer_bytes = 136; }
static void file_longer_than_said(struct image *m) { m->trailer->file_bytes -= 64; }
static void file_shorter_than_said(struct image *m) { m->trailer->file_bytes += 64; }
static void index_behind_end(struct image *m) { m->trailer->index_offset = UINT64_MAX / 64 * 64; }
static void index_bytes_huge(struct image *m) { m->trailer->index_bytes = UINT64_C(1) << 62; }
static void index_unaligned(struct image *m)
{
    m->trailer->index_offset += 8;
    m->trailer->index_bytes -= 8;
}
static void front_over_index(struct image *m) { m->trailer->front_bytes = m->trailer->index_offset + 64; }
static void front_unaligned(struct image *m) { m->trailer->front_bytes -= 8; }
static void logical_size(struct image *m) { m->trailer->logical_bytes++; }
static void file_hash(struct image *m) { m->trailer->content_hash[0]++; }
static void header_bytes_huge(struct image *m) { m->index->header_bytes = UINT64_MAX - 3; }
static void header_bytes_small(struct image *m) { m->index->header_bytes = 8; }
static void header_bytes_off(struct image *m) { m->index->header_bytes -= 8; }
static void tensor_count_huge(struct image *m) { m->index->tensor_count = UINT32_MAX; }
static void tensor_count_less(struct image *m) { m->index->tensor_count--; }
static void table_count_huge(struct image *m) { m->index->table_count = UINT32_MAX; }
static void chunk_count_huge(struct image *m) { m->index->chunk_count = UINT64_MAX / 48 + 2; }
static void chunk_count_less(struct image *m) { m->index->chunk_count--; }
static void index_reserved(struct image *m) { m->index->reserved = 1; }
static void tensor_reserved(struct image *m) { m->tensors[0].reserved[4] = 1; }
static void tensor_dtype(struct image *m) { m->tensors[0].dtype = CWS_F16; }
static void tensor_codec_unknown(struct image *m) { m->tensors[0].codec = 4; }
static void tensor_split_on_integers(struct image *m)
{
    m->tensors[1].codec = CWS_CODEC_SPLIT;
    m->tensors[1].table = 0;
}
static void tensor_quant_without_bit(struct image *m)
{
    m->tensors[0].codec = m->chunks[0].codec = CWS_CODEC_QUANT;
    m->tensors[0].row_elems = 100;
    m->tensors[0].quant_bits = 8;
}
static void tensor_quant_row(struct image *m)
{
    tensor_quant_without_bit(m);
    m->tensors[0].row_elems = 99;
    m->trailer->incompat |= CWS_INCOMPAT_LOSSY;
}
static void tensor_quant_bits(struct image *m)
{
    tensor_quant_without_bit(m);
    m->tensors[0].quant_bits = 7;
    m->trailer->incompat |= CWS_INCOMPAT_LOSSY;
}
static void tensor_row_without_quant(struct image *m) { m->tensors[0].row_elems = 100; }
static void tensor_table_outside(struct image *m) { m->tensors[0].table = 1; }
static void tensor_table_missing(struct image *m) { m->tensors[0].table = UINT32_MAX; }
static void tensor_table_for_raw(struct image *m) { m->tensors[1].table = 0; }
static void tensor_chunk_bytes_zero(struct image *m) { m->tensors[0].chunk_bytes = 0; }
static void tensor_chunk_bytes_odd(struct image *m) { m->tensors[0].chunk_bytes -= 2; }
static void tensor_chunk_bytes_huge(struct image *m) { m->tensors[0].chunk_bytes = CWS_CHUNK_BYTES_MAX + 16; }
static void tensor_chunk_count(struct image *m) { m->tensors[0].chunk_count++; }
static void tensor_first_chunk(struct image *m) { m->tensors[1].first_chunk = 0; }
static void tensor_hash(struct image *m) { m->tensors[0].content_hash[1]++; }
static void chunk_reserved(struct image *m) { m->chunks[0].reserved[0] = 1; }
static void chunk_codec(struct image *m) { m->chunks[0].codec = CWS_CODEC_ZSTD; }
static void chunk_logical_less(struct image *m) { m->chunks[0].logical_bytes -= 16; }
static void chunk_stored_zero(struct image *m) { m->chunks[0].stored_bytes = 0; }
static void chunk_stored_more_than_logical(struct image *m) { m->chunks[0].stored_bytes = m->chunks[0].logical_bytes; }
static void chunk_raw_shorter(struct image *m) { m->chunks[1].stored_bytes--; }
static void chunk_overlap(struct image *m) { m->chunks[1].offset = m->chunks[0].offset; }
static void chunk_in_front(struct image *m) { m->chunks[0].offset = 0; }
static void chunk_unaligned(struct image *m) { m->chunks[0].offset += 8; }
static void chunk_outside(struct image *m) { m->chunks[1].offset = UINT64_MAX - 63; }
static void table_not_complete(struct image *m)
{
    memset(m->tables[0], 0, 128);
    m->tables[0][0] = 0x22;
}
static void table_over_full(struct image *m) { memset(m->tables[0], 0x11, 128); }
static void table_code_too_long(struct image *m) { memset(m->tables[0], 0xff, 128); }
static void front_other_dtype(struct image *m) { FRONT(m, "\"BF16\"", "\"F16\" "); }
static void front_other_name(struct image *m) { FRONT(m, "\"w\"", "\"v\""); }
static void front_other_shape(struct image *m) { FRONT(m, "[64,100]", "[100,64]"); }
static void front_no_mark(struct image *m) { FRONT(m, "codecllm", "codecllx"); }
static void front_not_json(struct image *m) { FRONT(m, "}}", "}]"); }
static void front_length(struct image *m) { m->data[0]--; }
static void header_not_json(struct image *m) { HEADER(m, "}}", "}]"); }
static void header_hole(struct image *m) { HEADER(m, "[12800,12870]", "[12801,12871]"); }
static void header_twice(struct image *m) { HEADER(m, "\"r\"", "\"w\""); }
static void header_padding(struct image *m) { ((uint8_t *)(m->index + 1))[m->index->header_bytes] = 1; }
static void chunk_checksum(struct image *m) { m->data[m->chunks[1].offset] ^= 1; }
static void chunks_swapped_hash(struct image *m)
{
    m->chunks[1].xxh3 = XXH3_64bits_withSeed(m->data + m->chunks[1].offset, 70, 0);
}
static void gap_not_zero(struct image *m) { m->data[m->chunks[1].offset + 70] = 1; }
static void content_hash_of_chunk(struct image *m)
{
    m->chunks[1].content_hash[0]++;
    m->tensors[1].content_hash[0]++;
}
static void raw_bytes_changed(struct image *m) { m->data[m->chunks[1].offset + 3] ^= 4; }
static void coded_elem_count(struct image *m) { head(m)->elem_count++; }
static void coded_stream_words(struct image *m) { head(m)->stream_words += 1u << 20; }
static void coded_tile_count(struct image *m) { head(m)->tile_count = UINT32_MAX; }
static void coded_lane_symbols(struct image *m) { head(m)->lane_symbols = 0; }
static void coded_elem_bytes(struct image *m) { head(m)->elem_bytes = 8; }
static void coded_flags(struct image *m) { head(m)->flags |= 0x80; }
static void coded_planes(struct image *m) { head(m)->const_planes = 0xff; }
static void coded_streams(struct image *m) { m->data[m->chunks[0].offset + m->chunks[0].stored_bytes - 40] ^= 0xff; }
static void coded_pad(struct image *m) { m->data[m->chunks[0].offset + m->chunks[0].stored_bytes - 1] = 1; }

static const struct {
    const char *name;
    void (*damage)(struct image *m);
    int sign;
} bugs[] = {
    {"version.one", bad_version, SIGN_TRAILER},
    {"feature.unknown-bit", unknown_feature, SIGN_TRAILER},
    {"truncated.file-shorter-than-said", file_shorter_than_said, SIGN_TRAILER},
    {"corrupt.file-longer-than-said", file_longer_than_said, SIGN_TRAILER},
    {"corrupt.trailer-checksum", trailer_reserved, 0},
    {"corrupt.trailer-reserved", trailer_reserved, SIGN_TRAILER},
    {"corrupt.trailer-size", trailer_size, SIGN_TRAILER},
    {"corrupt.lossy-bit-without-quant", lossy_bit_alone, SIGN_TRAILER},
    {"corrupt.types-bit-without-types", types_bit_alone, SIGN_TRAILER},
    {"corrupt.tensor-other-without-types-bit", other_without_bit, SIGN_ALL},
    {"corrupt.tensor-dtype-unknown", dtype_of_tomorrow, SIGN_ALL},
    {"corrupt.tensor-split-on-other", other_split, SIGN_ALL},
    {"corrupt.index-behind-end", index_behind_end, SIGN_TRAILER},
    {"corrupt.index-bytes-huge", index_bytes_huge, SIGN_TRAILER},
    {"corrupt.index-unaligned", index_unaligned, SIGN_TRAILER},
    {"corrupt.front-over-index", front_over_index, SIGN_TRAILER},
    {"corrupt.front-unaligned", front_unaligned, SIGN_TRAILER},
    {"corrupt.logical-size", logical_size, SIGN_TRAILER},
    {"corrupt.file-content-hash", file_hash, SIGN_TRAILER},
    {"corrupt.index-checksum", index_reserved, SIGN_TRAILER},
    {"corrupt.header-bytes-huge", header_bytes_huge, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.header-bytes-small", header_bytes_small, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.header-bytes-off", header_bytes_off, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.header-not-json", header_not_json, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.header-hole", header_hole, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.header-name-twice", header_twice, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.header-padding", header_padding, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.tensor-count-huge", tensor_count_huge, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.tensor-count-less", tensor_count_less, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.table-count-huge", table_count_huge, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.chunk-count-wraps", chunk_count_huge, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.chunk-count-less", chunk_count_less, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.index-reserved", index_reserved, SIGN_PARTS | SIGN_TRAILER},
    {"corrupt.tensor-reserved", tensor_reserved, SIGN_ALL},
    {"corrupt.tensor-dtype", tensor_dtype, SIGN_ALL},
    {"corrupt.tensor-codec-unknown", tensor_codec_unknown, SIGN_ALL},
    {"corrupt.tensor-split-on-integers", tensor_split_on_integers, SIGN_ALL},
    {"corrupt.tensor-quant-without-lossy-bit", tensor_quant_without_bit, SIGN_ALL},
    {"corrupt.tensor-quant-row", tensor_quant_row, SIGN_ALL},
    {"corrupt.tensor-quant-bits", tensor_quant_bits, SIGN_ALL},
    {"corrupt.tensor-row-without-quant", tensor_row_without_quant, SIGN_ALL},
    {"corrupt.tensor-table-outside", tensor_table_outside, SIGN_ALL},
    {"corrupt.tensor-table-missing", tensor_table_missing, SIGN_ALL},
    {"corrupt.tensor-table-for-raw", tensor_table_for_raw, SIGN_ALL},
    {"corrupt.tensor-chunk-bytes-zero", tensor_chunk_bytes_zero, SIGN_ALL},
    {"corrupt.tensor-chunk-bytes-odd", tensor_chunk_bytes_odd, SIGN_ALL},
    {"corrupt.tensor-chunk-bytes-huge", tensor_chunk_bytes_huge, SIGN_ALL},
    {"corrupt.tensor-chunk-count", tensor_chunk_count, SIGN_ALL},
    {"corrupt.tensor-first-chunk", tensor_first_chunk, SIGN_ALL},
    {"corrupt.tensor-content-hash", tensor_hash, SIGN_ALL},
    {"corrupt.chunk-reserved", chunk_reserved, SIGN_ALL},
    {"corrupt.chunk-codec", chunk_codec, SIGN_ALL},
    {"corrupt.chunk-logical-less", chunk_logical_less, SIGN_ALL},
    {"corrupt.chunk-stored-zero", chunk_stored_zero, SIGN_ALL},
    {"corrupt.chunk-stored-not-smaller", chunk_stored_more_than_logical, SIGN_ALL},
    {"corrupt.chunk-raw-shorter", chunk_raw_shorter, SIGN_ALL},
    {"corrupt.chunk-overlap", chunk_overlap, SIGN_ALL},
    {"corrupt.chunk-in-front", chunk_in_front, SIGN_ALL},
    {"corrupt.chunk-unaligned", chunk_unaligned, SIGN_ALL},
    {"corrupt.chunk-outside", chunk_outside, SIGN_ALL},
    {"corrupt.table-not-complete", table_not_complete, SIGN_ALL},
    {"corrupt.table-over-full", table_over_full, SIGN_ALL},
    {"corrupt.table-code-too-long", table_code_too_long, SIGN_ALL},
    {"corrupt.front-checksum", front_other_name, SIGN_TRAILER},
    {"corrupt.front-other-dtype", front_other_dtype, SIGN_ALL},
    {"corrupt.front-other-name", front_other_name, SIGN_ALL},
    {"corrupt.front-other-shape", front_other_shape, SIGN_ALL},
    {"corrupt.front-without-mark", front_no_mark, SIGN_ALL},
    {"corrupt.front-not-json", front_not_json, SIGN_ALL},
    {"corrupt.front-length", front_length, SIGN_ALL},
    {"verify.chunk-checksum", chunk_checksum, SIGN_PARTS | SIGN_TRAILER},
    {"verify.chunk-checksum-of-another-place", chunks_swapped_hash, SIGN_PARTS | SIGN_TRAILER},
    {"verify.gap-not-zero", gap_not_zero, SIGN_ALL},
    {"verify.content-hash", content_hash_of_chunk, SIGN_ALL},
    {"verify.raw-bytes-changed", raw_bytes_changed, SIGN_ALL},
    {"verify.coded-elem-count", coded_elem_count, SIGN_ALL},
    {"verify.coded-stream-words", coded_stream_words, SIGN_ALL},
    {"verify.coded-tile-count", coded_tile_count, SIGN_ALL},
    {"verify.coded-lane-symbols", coded_lane_symbols, SIGN_ALL},
    {"verify.coded-elem-bytes", coded_elem_bytes, SIGN_ALL},
    {"verify.coded-flags", coded_flags, SIGN_ALL},
    {"verify.coded-planes", coded_planes, SIGN_ALL},
    {"verify.coded-streams", coded_streams, SIGN_ALL},
    {"verify.coded-pad-not-zero", coded_pad, SIGN_ALL},
};

static const char *in_directory(const char *part, const char *name, const char *end)
{
    static char paths[4][500];
    static unsigned turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s/%s%s", directory, part, name, end);
    return path;
}

static void check(int code, const struct cws_error *err)
{
    if (code) {
        fprintf(stderr, "make_golden: %s\n", err->message);
        exit(1);
    }
}

static void make_golden(const char *name, struct bytes f, enum cws_mode mode)
{
    struct cws_error err;
    const char *in = sample_path(name), *out = in_directory("golden", name, ".cws");
    sample_save(in, f.data, f.size);
    check(cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 1, .mode = mode}, NULL, &err), &err);
    check(cws_unpack_file(out, in_directory("golden", name, ".safetensors"), CWS_IO_AUTO, 1, NULL, NULL, NULL, &err),
          &err);
    free(f.data);
}

/* Tensors that are large enough to be quantised, of every dtype that can be, in rows of another scale each, some of
 * zeros. */
static struct bytes lossy_model(uint64_t seed)
{
    enum { BF16 = 48 * 100, F16 = 2 * 41 * 60, F32 = 70 * 64 };
    static uint8_t data[2 * BF16 + 2 * F16 + 4 * F32];
    uint8_t *at = data;
    for (unsigned i = 0; i < BF16 + F16 + F32; i++) {
        uint64_t r = sample_random(&seed), down = (uint64_t)__builtin_ctzll(r >> 32 | 16), row = i / 64 % 5;
        uint16_t bf16 = (uint16_t)((r & 0x807f) | ((118 - down + row) << 7)),
                 f16 = (uint16_t)((r & 0x83ff) | ((8 - down + row) << 10));
        uint32_t f32 = (uint32_t)bf16 << 16 | (uint32_t)(r >> 16 & 0xffff);
        bool zero = row == 4 && i / 64 % 3 == 0;
        const void *value = i < BF16 ? (void *)&bf16 : i < BF16 + F16 ? (void *)&f16 : (void *)&f32;
        size_t size = i < BF16 + F16 ? 2 : 4;
        memset(at, 0, size);
        if (!zero)
            memcpy(at, value, size);
        at += size;
    }
    return sample_file("{\"b\":{\"dtype\":\"BF16\",\"shape\":[48,100],\"data_offsets\":[0,9600]},"
                       "\"h\":{\"dtype\":\"F16\",\"shape\":[2,41,60],\"data_offsets\":[9600,19440]},"
                       "\"f\":{\"dtype\":\"F32\",\"shape\":[70,64],\"data_offsets\":[19440,37360]}}",
                       1, data, sizeof data);
}

static void make_base(void)
{
    struct cws_error err;
    uint8_t data[12870];
    uint64_t seed = 1;
    for (unsigned i = 0; i < 6400; i++) {
        uint64_t r = sample_random(&seed);
        uint16_t bits = (uint16_t)((r & 0x807f) | (0x3b00 + (uint64_t)__builtin_ctzll(r >> 32 | 256) * 128));
        memcpy(data + 2 * i, &bits, 2);
    }
    for (unsigned i = 12800; i < sizeof data; i++)
        data[i] = (uint8_t)sample_random(&seed);
    struct bytes f = sample_file("{\"w\":{\"dtype\":\"BF16\",\"shape\":[64,100],\"data_offsets\":[0,12800]},"
                                 "\"r\":{\"dtype\":\"U8\",\"shape\":[70],\"data_offsets\":[12800,12870]}} ",
                                 0, data, sizeof data);
    const char *in = sample_path("base"), *out = sample_path("base.cws");
    sample_save(in, f.data, f.size);
    sample_save(in_directory("golden", "known-as-other", ".safetensors"), f.data, f.size);
    free(f.data);
    check(cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 1}, NULL, &err), &err);
    base = sample_load(out);
    /* As a build would have written it that did not know U8. */
    struct image m = {.size = base.size};
    memcpy(m.data, base.data, base.size);
    locate(&m);
    m.tensors[1].dtype = CWS_DTYPE_CODE_OTHER;
    m.trailer->incompat |= CWS_INCOMPAT_TYPES;
    sign(&m, SIGN_ALL);
    sample_save(in_directory("golden", "known-as-other", ".cws"), m.data, m.size);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: make_golden DIR\n");
        return 2;
    }
    snprintf(directory, sizeof directory, "%s", argv[1]);
    (void)mkdir(in_directory("golden", "", ""), 0777);
    (void)mkdir(in_directory("malformed", "", ""), 0777);
    make_golden("all-dtypes", sample_model(1, 0), CWS_MODE_LOSSLESS);
    make_golden("later-dtypes", sample_later_types(1), CWS_MODE_LOSSLESS);
    make_golden("q8", lossy_model(2), CWS_MODE_Q8);
    make_golden("q6", lossy_model(3), CWS_MODE_Q6);
    make_golden("no-tensors", sample_file("{\"__metadata__\":{\"a\":\"b\"}}   ", 0, "", 0), CWS_MODE_LOSSLESS);
    make_base();
    for (size_t i = 0; i < sizeof bugs / sizeof *bugs; i++) {
        struct image m = {.size = base.size};
        memcpy(m.data, base.data, base.size);
        locate(&m);
        if (m.tensors[0].codec != CWS_CODEC_SPLIT || m.chunks[1].codec != CWS_CODEC_RAW ||
            m.index->header_bytes % 8 == 0)
            check(1, &(struct cws_error){.message = "the base store is not what the damage is made for"});
        bugs[i].damage(&m);
        sign(&m, bugs[i].sign);
        sample_save(in_directory("malformed", bugs[i].name, ".cws"), m.data, m.size);
    }
    free(base.data);
    return 0;
}
