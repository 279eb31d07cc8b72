/* format.h - the on-disk structures of a store and nothing else. docs/format.md is the specification;
 * this file must agree with it to the byte. All integers are little-endian and fixed-width.
 *
 *   offset 0   front: u64 N, then N bytes of JSON (a safetensors header of the logical tensors,
 *              with "__metadata__": {"format": "codecllm", ...}), padded with spaces
 *   ...        chunks: each starts on a CWS_CHUNK_ALIGN boundary, zero padding between
 *   index      on a CWS_CHUNK_ALIGN boundary: header, original header, tensors, chunks, code tables
 *   trailer    the last CWS_TRAILER_BYTES bytes of the file
 */
#ifndef CWS_FORMAT_H
#define CWS_FORMAT_H

#include <stdint.h>

#define CWS_MAGIC                                                                                                      \
    "\x8b"                                                                                                             \
    "CWS\r\n\x1a\n" /* 8 bytes; high bit, CR LF and ^Z catch text-mode damage */
#define CWS_FORMAT_VERSION 0u
#define CWS_CHUNK_ALIGN 64u
#define CWS_CHUNK_BYTES (256u * 1024u)  /* default logical bytes of a chunk */
#define CWS_CHUNK_BYTES_MAX (16u << 20) /* a reader rejects a larger chunk */
#define CWS_HEADER_BYTES_MAX 100000000u /* safetensors' own limit */
#define CWS_TILE_LANES 32u
#define CWS_CODE_BITS_MAX 12u
#define CWS_STREAM_PAD 8u /* zero bytes behind the bit streams of a chunk */

/* Compatible: a reader that does not know the bit may ignore it. Incompatible: it must refuse. */
#define CWS_COMPAT_KNOWN UINT64_C(0)
#define CWS_INCOMPAT_LOSSY (UINT64_C(1) << 0) /* some tensor is q8/q6: the logical file is not the packed one */
#define CWS_INCOMPAT_TYPES (UINT64_C(1) << 1) /* some tensor's dtype is above CWS_F64, or other */
#define CWS_INCOMPAT_KNOWN (CWS_INCOMPAT_LOSSY | CWS_INCOMPAT_TYPES)

enum cws_codec_id {                      /* on disk: u8, pinned */
                    CWS_CODEC_RAW = 0,   /* stored bytes are the logical bytes */
                    CWS_CODEC_ZSTD = 1,  /* one zstd frame, content size present */
                    CWS_CODEC_SPLIT = 2, /* floats: exponent byte Huffman-coded, the rest raw byte planes */
                    CWS_CODEC_QUANT = 3, /* int8 symbols Huffman-coded, a scale per row (q8, q6) */
};

enum cws_dtype { /* on disk: u8, pinned, but for CWS_OTHER, which is CWS_DTYPE_CODE_OTHER there; safetensors names in
                  * cws_dtype_name() */
                 CWS_BOOL = 0,
                 CWS_U8 = 1,
                 CWS_I8 = 2,
                 CWS_U16 = 3,
                 CWS_I16 = 4,
                 CWS_U32 = 5,
                 CWS_I32 = 6,
                 CWS_U64 = 7,
                 CWS_I64 = 8,
                 CWS_F8_E4M3 = 9,
                 CWS_F8_E5M2 = 10,
                 CWS_F16 = 11,
                 CWS_BF16 = 12,
                 CWS_F32 = 13,
                 CWS_F64 = 14,
                 CWS_F8_E8M0 = 15,
                 CWS_F8_E4M3FNUZ = 16,
                 CWS_F8_E5M2FNUZ = 17,
                 CWS_F4 = 18,
                 CWS_F6_E2M3 = 19,
                 CWS_F6_E3M2 = 20,
                 CWS_C64 = 21,
                 CWS_OTHER = 22, /* a type that this build does not know: its bytes are what data_offsets say */
                 CWS_DTYPE_COUNT = 23,
};
#define CWS_DTYPE_CODE_OTHER 255u

/* The front's JSON starts with exactly these bytes, so that a store without its trailer can still be told. */
#define CWS_FRONT_MARK "{\"__metadata__\":{\"format\":\"codecllm\""

#define CWS_TRAILER_BYTES 128
struct cws_trailer { /* the last bytes of the file */
    uint8_t magic[8];
    uint32_t version;
    uint32_t trailer_bytes; /* 128 */
    uint64_t compat;
    uint64_t incompat;
    uint64_t file_bytes;    /* == st_size */
    uint64_t logical_bytes; /* size of the logical (unpacked) file */
    uint64_t front_bytes;   /* 8 + N, a multiple of CWS_CHUNK_ALIGN */
    uint64_t index_offset;
    uint64_t index_bytes; /* index_offset + index_bytes <= file_bytes - trailer_bytes */
    uint64_t front_xxh3;  /* XXH3-64, seed 0, of bytes [0, front_bytes) */
    uint64_t index_xxh3;  /* XXH3-64, seed 0, of the index */
    /* content hash of the tensors' hashes, 16 bytes each, as one string: order-sensitive */
    uint64_t content_hash[2];
    uint64_t reserved[2];  /* 0 */
    uint64_t trailer_xxh3; /* XXH3-64, seed 0, of the 120 bytes before this field */
};
_Static_assert(sizeof(struct cws_trailer) == CWS_TRAILER_BYTES, "trailer layout");

struct cws_index_header {  /* at index_offset; then, without gaps: original header, tensor records, chunk records, code
                           * tables */
    uint64_t header_bytes; /* original safetensors header, verbatim, incl. its 8-byte length; padded to 8 */
    uint32_t tensor_count; /* records by begin, then end, then position in the header; as many as the header has
                            * tensors */
    uint32_t table_count;  /* 128 bytes each: 256 four-bit code lengths, low nibble first */
    uint64_t chunk_count;  /* chunk records, in order of logical offset */
    uint64_t reserved;     /* 0 */
};
_Static_assert(sizeof(struct cws_index_header) == 32, "index header layout");

struct cws_tensor_record {
    uint64_t first_chunk;     /* index into the chunk records; chunks of a tensor are consecutive */
    uint64_t chunk_count;     /* ceil(tensor bytes / chunk_bytes) */
    uint64_t content_hash[2]; /* of the decoded bytes, fixed key; low word first */
    uint64_t row_elems;       /* CWS_CODEC_QUANT: elements that share a scale; otherwise 0 */
    /* logical bytes of every chunk but the last; multiple of 16, of the element size */
    uint32_t chunk_bytes;
    uint32_t table;      /* code table, or UINT32_MAX for none */
    uint8_t dtype;       /* cws_dtype_code() of the header's, or CWS_DTYPE_CODE_OTHER */
    uint8_t codec;       /* the codec of its chunks; a single chunk may still be RAW */
    uint8_t quant_bits;  /* 8 or 6 for CWS_CODEC_QUANT, else 0 */
    uint8_t reserved[5]; /* 0 */
};
_Static_assert(sizeof(struct cws_tensor_record) == 56, "tensor record layout");

struct cws_chunk_record {
    uint64_t offset; /* in the file, multiple of CWS_CHUNK_ALIGN */
    uint32_t stored_bytes;
    uint32_t logical_bytes;
    uint64_t xxh3;            /* XXH3-64 of the stored bytes, seed = index of this record in the chunk table */
    uint8_t codec;            /* the tensor's codec or CWS_CODEC_RAW */
    uint8_t reserved[7];      /* 0 */
    uint64_t content_hash[2]; /* this chunk's share of the tensor's sum */
};
_Static_assert(sizeof(struct cws_chunk_record) == 48, "chunk record layout");

/* Head of the stored bytes of a SPLIT or QUANT chunk. The sections follow in this order, each on a
 * 16-byte boundary from the head (zero padding): raw byte planes that are not constant (SPLIT; elem_count
 * bytes each, each plane a section of its own, lowest first); bit-packed scale codes (QUANT); tile directory =
 * u32 first_word[tile_count], u16 shortest[tile_count], then 32 lane-length excesses per tile (u8, or u16 with
 * CWS_CODED_WIDE); bit streams: stream_words u32 words + CWS_STREAM_PAD zero bytes, which end the chunk.
 *   element = SPLIT: the top 16 bits of an element of 2, 4 or 8 bytes are rotated left by one bit, which puts the sign
 *             below them; its highest byte is then the symbol, byte p (0 = lowest) is plane p. An element of 1 byte
 *             is its own symbol, not rotated.
 *   tile    = 32 * lane_symbols consecutive elements (the last one of a chunk may be partial)
 *   lane l  = elements e of a tile with (e / 8) % 32 == l, in rising order; its bit length is shortest[tile] + excess
 *   streams = a tile's 32 lane streams joined bit to bit, least significant bit first, from word first_word[tile]
 *             of the stream section; the tile's end is padded with zero bits to a 32-bit word. Tiles follow each
 *             other without gaps: first_word[0] = 0, and the last tile ends at stream_words
 * An element of C64 is a half of it, one of F4 a pair of them.
 * SPLIT is for float dtypes, QUANT for F16, BF16 and F32; elem_count >= 1. */
struct cws_coded_head {
    uint32_t elem_count;
    uint16_t lane_symbols; /* 64, 128, 256, 512 or 1024 */
    uint8_t elem_bytes;    /* 1, 2, 4, 8: bytes of one decoded element: cws_dtype_unit() */
    uint8_t flags;         /* CWS_CODED_* */
    uint32_t tile_count;   /* ceil(elem_count / (32 * lane_symbols)) */
    uint32_t stream_words;
    uint8_t const_planes;   /* SPLIT: bit p set = plane p is not stored, all its bytes are const_value[p] */
    uint8_t const_value[7]; /* 0 where the bit is clear */
    uint16_t scale_base;    /* QUANT: scale code of row r = scale_base + its packed field */
    uint8_t scale_bits;     /* QUANT: width of a packed field, 0..13, fields least significant bit first; the rows are
                             * those that have an element in the chunk; unused bits of the last byte are 0 */
    uint8_t reserved[5];    /* 0 */
};
_Static_assert(sizeof(struct cws_coded_head) == 32, "coded head layout");
#define CWS_CODED_WIDE 1u /* lane-length excesses are u16 */

/* A QUANT scale is the f32 whose bits are (code << 18): 5 mantissa bits, positive, normal and finite, so that the
 * product below is exact and never subnormal.
 * decoded element = round-to-nearest-even to the tensor's dtype of (f32)(symbol - 128) * scale. */
#define CWS_SCALE_SHIFT 18
#define CWS_SCALE_MIN 0x20u   /* 2^-126 */
#define CWS_SCALE_MAX 0x1fdfu /* the largest finite one */

#endif
