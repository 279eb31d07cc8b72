/* codec.h - chunks: decode and encode. Pure functions over memory: no I/O, no threads, no globals
 * but the decoder chosen at first use. Implementations:
 *   ref.c            slow, obvious; the oracle          portable.c       fast C11
 *   avx2.c           AVX2 + BMI2                        avx512.c         AVX-512 with VBMI2 and GFNI
 *   huffman.c        code lengths, canonical codes      encode.c         encoder           plan.c  choice
 * All decoders give the same bytes and the same verdict for every input, valid or not. */
#ifndef CWS_CODEC_H
#define CWS_CODEC_H
#include "store/base/error.h"
#include "store/format/dtype.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- decoding ------------------------------------------------------------------------------- */

/* A Huffman table ready for decoding, built from 128 packed bytes of the index (about 20 KiB).
 * Immutable after init; any number of threads may use it. Caller's storage, 64-byte aligned. */
struct cws_decode_table;
size_t cws_decode_table_bytes(void);

/* Builds *t. Refuses lengths above CWS_CODE_BITS_MAX and codes that are not complete (Kraft sum != 1).
 * 0 or CWS_E_CORRUPT (*t undefined). No allocation. */
CWS_MUST_CHECK int cws_decode_table_init(struct cws_decode_table *t, const uint8_t packed[128], struct cws_error *err);

/* What a decoder needs to know about the tensor a chunk belongs to. */
struct cws_chunk_context {
    enum cws_dtype dtype;
    enum cws_codec_id codec;              /* of this chunk (the record's) */
    const struct cws_decode_table *table; /* SPLIT and QUANT */
    uint64_t row_elems;                   /* QUANT */
    uint64_t first_elem;                  /* QUANT: index in the tensor of the chunk's first element */
};

/* Scratch of one decoding thread: no decode call allocates. */
struct cws_decode_scratch;
CWS_MUST_CHECK int cws_decode_scratch_create(struct cws_decode_scratch **out); /* 0, -ENOMEM */
void cws_decode_scratch_destroy(struct cws_decode_scratch *s);                 /* NULL is fine */

/* Decodes logical bytes [begin, end) of a chunk into dst[0 .. end-begin).
 *   stored, stored_bytes  the chunk's bytes; at least CWS_STREAM_PAD readable bytes must follow them
 *   logical_bytes         of the whole chunk
 * Everything in `stored` is validated before a fast loop runs; only the tiles that overlap the range are decoded,
 * but the whole directory is validated. For tiles decoded, each lane must consume exactly its stated bits.
 * Any alignment. Returns 0 or CWS_E_CORRUPT (dst undefined, never written outside). Does not check the XXH3. */
CWS_MUST_CHECK int cws_chunk_decode(const struct cws_chunk_context *ctx, const void *stored, size_t stored_bytes,
                                    size_t logical_bytes, size_t begin, size_t end, void *dst,
                                    struct cws_decode_scratch *scratch, struct cws_error *err);

/* The oracle: same contract, its own allocations and its own code path. */
CWS_MUST_CHECK int cws_chunk_decode_ref(const struct cws_chunk_context *ctx, const uint8_t packed_table[128],
                                        const void *stored, size_t stored_bytes, size_t logical_bytes, void *dst,
                                        struct cws_error *err);

/* Decoders this machine can run, best first ("avx512", "avx2", "portable"); NULL past the end. */
const char *cws_decoder_name(unsigned i);
/* Forces one by name (tests, benchmark); NULL: the best. 0 or CWS_E_UNSUPPORTED. Not while others decode. */
int cws_decoder_force(const char *name);

/* The same for the encoders ("avx512", "avx2", "portable"), which all give the same bytes. Not while others encode or
 * plan. */
const char *cws_encoder_name(unsigned i);
int cws_encoder_force(const char *name);

/* --- encoding ------------------------------------------------------------------------------- */

enum cws_mode { CWS_MODE_LOSSLESS, CWS_MODE_Q8, CWS_MODE_Q6 };

/* The encoder's decisions for one tensor. Caller's storage; plain data; use: begin, sample, then
 * (if plan.needs_count) count every chunk and finish, repeated while finish returns 1; then encode each chunk. */
struct cws_plan {
    enum cws_dtype dtype;
    enum cws_mode mode;
    enum cws_codec_id codec;
    unsigned elem_bytes; /* cws_dtype_unit() */
    uint16_t lane_symbols;
    uint32_t chunk_bytes; /* logical; for QUANT a whole number of rows where a row fits */
    /* of the tensor, in units of elem_bytes; 0 where the dtype's size is not known */
    uint64_t elems;
    uint64_t row_elems; /* QUANT, else 0 */
    unsigned quant_bits;
    /* q6: step per unit of row RMS, raised until the tensor fits 6.0 bits per weight */
    float q6_step;
    float typical_rms; /* q6: mean RMS of a row, as in the sample */
    bool needs_count;
    bool counts_part;  /* SPLIT, large: cws_plan_count looks at a part of each chunk; an unforeseen symbol makes a
                             * chunk RAW */
    bool counts_range; /* and at all of it for the least and the largest symbol (2-byte floats, 64 KiB to 4 MiB):
                             * none is unforeseen */
    unsigned rounds;
    unsigned stored_planes; /* SPLIT: byte planes that are not constant in the sample */
    unsigned scale_bits;    /* QUANT: packed width of a scale code, as in the sample */
    uint8_t lengths[256];   /* code lengths, 0 = symbol absent */
    uint8_t packed[128];    /* the same as stored in the index */
    double symbol_entropy;  /* bits, after finish; 0 for RAW and ZSTD */
};

/* Starts a plan. shape: dims; ndim 0 is a scalar; their product must not overflow. Quantised are F16, BF16 and F32
 * tensors of >= 2 dimensions and >= 4096 elements, in rows of at least 32 elements (the last dimension, or the last few
 * where it is shorter; never all of them); others, and those with a NaN, an infinity or a magnitude over half of the
 * dtype's largest, stay lossless. */
void cws_plan_begin(struct cws_plan *p, enum cws_mode mode, enum cws_dtype dtype, const uint64_t *shape, size_t ndim);

/* Chooses the codec from at most 1 MiB taken at even spacing out of the tensor (the caller gathers it, whole
 * rows for QUANT where it can). sample_bytes a multiple of the element size; 0 allowed. Allocates up to 256 KiB and a
 * zstd context for the while. 0, or -ENOMEM, CWS_E_BUG: the plan is not to be used. */
CWS_MUST_CHECK int cws_plan_sample(struct cws_plan *p, const void *sample, size_t sample_bytes, struct cws_error *err);

/* Adds the symbols of one chunk (a part of them where counts_part) to histogram[256]. first_elem: index in the tensor.
 * Thread-safe (plan is const). Returns 0, or 1 if QUANT met a value it refuses: call cws_plan_refuse_quant, then
 * cws_plan_sample again, clear the histogram and, if needs_count, count again. */
int cws_plan_count(const struct cws_plan *p, const void *chunk, size_t bytes, uint64_t first_elem,
                   uint64_t histogram[256]);
void cws_plan_refuse_quant(struct cws_plan *p);

/* Fixes the code from the whole tensor's histogram. 0: ready to encode (the codec may have become RAW);
 * 1: the step was changed, clear the histogram and count again. */
int cws_plan_finish(struct cws_plan *p, const uint64_t histogram[256]);

/* Upper bound of a stored chunk. */
size_t cws_chunk_bound(const struct cws_plan *p, size_t logical_bytes);

/* Encodes one chunk. dst has cws_chunk_bound() bytes. *out_codec is the plan's codec, or RAW when that would not
 * be smaller or counts_part left a symbol of it without a code (dst then holds the logical bytes). Deterministic. 0,
 * CWS_E_BUG, -ENOMEM (zstd context).
 *   scratch  one per thread, from cws_encode_scratch_create */
struct cws_encode_scratch;
CWS_MUST_CHECK int cws_encode_scratch_create(struct cws_encode_scratch **out);
void cws_encode_scratch_destroy(struct cws_encode_scratch *s);
CWS_MUST_CHECK int cws_chunk_encode(const struct cws_plan *p, const void *chunk, size_t bytes, uint64_t first_elem,
                                    void *dst, size_t *out_stored_bytes, enum cws_codec_id *out_codec,
                                    struct cws_encode_scratch *scratch, struct cws_error *err);

/* Deterministic, complete code of at most `limit` bits, 8 to CWS_CODE_BITS_MAX, from a histogram (at least one non-zero
 * count; a single symbol gets a dummy partner so that the code is complete). Returns the cost in bits. */
uint64_t cws_huffman_lengths(const uint64_t histogram[256], unsigned limit, uint8_t lengths[256]);
double cws_entropy_bits(const uint64_t histogram[256]); /* order-0, bits per symbol */

#endif
