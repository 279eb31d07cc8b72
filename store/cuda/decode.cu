/* decode.cu - a batch of chunks, and the content hash of what they decode to, in one launch.
 *
 * Three kernels from one text: for any chunks, and for the two kinds that models mostly are (enum cws_gpu_kind).
 *
 * Work is counted in units; each block takes an equal, contiguous run of them, and its warps the tiles in it in turn. A
 * tile is decoded by one warp without a barrier; blocks stop only to change the code table in shared memory. */
#ifdef __cplusplus
#define _Static_assert static_assert
#endif
#include "elements.cuh"
#include "hash.cuh"
#include "lanes.cuh"

/* Tried on an H200 (docs/notes/gpu-decoder.md has the speeds): 4, 8 and 16 warps and 40 to 80 registers; a function of
 * its own for each kind of tile in one kernel; asking for the next tile's bytes, or loading a row's plane one row
 * ahead; streams in shared memory, or in pairs of words. */
#ifndef CWS_BLOCK_WARPS
#define CWS_BLOCK_WARPS CWS_GPU_BLOCK_WARPS
#endif
#ifndef CWS_BLOCKS_PER_SM
#define CWS_BLOCKS_PER_SM 2
#endif
#define LANES CWS_TILE_LANES
#define MINUS_INFINITY 0xff800000u
#define ROW_ELEMS 256u /* of a tile: 8 elements of each lane */

enum kind { SPLIT1, SPLIT2, SPLIT4, SPLIT8, QUANT_HALF, QUANT_F32 };

template <int KIND> struct shape {
    static constexpr int elem_bytes = KIND == SPLIT1                         ? 1
                                      : KIND == SPLIT2 || KIND == QUANT_HALF ? 2
                                      : KIND == SPLIT8                       ? 8
                                                                             : 4;
    static constexpr bool quant = KIND == QUANT_HALF || KIND == QUANT_F32;
    static constexpr int planes = quant ? 0 : elem_bytes - 1;
};

struct tile_place {        /* what a lane knows of its tile */
    uint32_t first, elems; /* of the chunk's elements */
    uint32_t lane_end;     /* bit of the streams */
    unsigned bad;
};

/* The highest of a warp's, in all lanes. */
static __device__ __forceinline__ unsigned warp_max(unsigned v)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(WARP_ALL, v);
#else
    for (int d = 16; d > 0; d /= 2)
        v = max(v, __shfl_xor_sync(WARP_ALL, v, d));
    return v;
#endif
}

static __device__ __forceinline__ uint32_t align16(uint32_t v) { return (v + 15) & ~15u; }

/* Asks for the tile's streams in the first-level cache, by sectors: lanes come to new sectors at different steps, and
 * each time the whole warp would wait. */
static __device__ __forceinline__ void fetch_streams(const uint8_t *from, uint32_t bytes, unsigned lane)
{
    for (uint32_t at = 32 * lane; at < bytes; at += 32 * LANES)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(from + at));
}

/* Reads the tile's directory entry and starts the lane's reader. False, with place.bad set, when it cannot be decoded
 * safely. */
static __device__ __forceinline__ bool tile_start(const cws_gpu_job &job, uint32_t tile, unsigned lane,
                                                  bit_reader &reader, tile_place &place)
{
    const uint8_t *stored = (const uint8_t *)job.stored, *directory = stored + job.directory_at;
    const uint8_t *streams = stored + job.streams_at;
    uint32_t tiles = job.tiles, stream_words = job.head.stream_words;
    const uint32_t *first_word = (const uint32_t *)directory;
    uint32_t word = __ldg(first_word + tile), next = tile + 1 < tiles ? __ldg(first_word + tile + 1) : stream_words;
    uint32_t bits = __ldg((const uint16_t *)(directory + 4 * tiles) + tile);
    const uint8_t *excess = directory + 6 * tiles;
    if (job.head.flags & CWS_CODED_WIDE)
        bits += __ldg((const uint16_t *)excess + tile * LANES + lane);
    else
        bits += __ldg(excess + tile * LANES + lane);
    uint32_t end = bits;
    for (unsigned d = 1; d < LANES; d *= 2) {
        uint32_t before = __shfl_up_sync(WARP_ALL, end, d);
        end += lane >= d ? before : 0;
    }
    uint32_t total = __shfl_sync(WARP_ALL, end, LANES - 1), words = (total + 31) / 32;
    if ((tile == 0 && word != 0) || word > stream_words || words > stream_words - word || word + words != next) {
        place.bad = CWS_GPU_BAD_DIRECTORY;
        return false;
    }
    place.lane_end = 32 * word + end;
    fetch_streams(streams + 4 * word, 4 * words, lane);
    reader_start(reader, streams, stream_words, place.lane_end - bits);
    return true;
}

/* The bits behind the tile, and behind the last one the padding of the streams. Looked at when the tile is done: these
 * words are near then. */
static __device__ __forceinline__ bool padding_is_zero(const cws_gpu_job &job, uint32_t tile, const tile_place &place)
{
    const uint32_t *words = (const uint32_t *)((const uint8_t *)job.stored + job.streams_at);
    uint32_t end = __shfl_sync(WARP_ALL, place.lane_end, LANES - 1), next = (end + 31) / 32, after = 0;
    if (end % 32 != 0)
        after = __ldg(words + next - 1) >> end % 32;
    if (tile + 1 == job.tiles)
        after |= __ldg(words + next) | __ldg(words + next + 1);
    return after == 0;
}

/* The scale of row `row` of the chunk; sets bad. */
static __device__ __forceinline__ float scale_of(const cws_gpu_job &job, uint32_t row, unsigned &bad)
{
    uint32_t width = job.head.scale_bits, field = 0;
    uint64_t bit = (uint64_t)row * width;
    uint32_t at = (uint32_t)(bit / 8);
    const uint8_t *scales = (const uint8_t *)job.stored + job.scales_at;
    for (uint32_t b = 0; b < 3; b++)
        if (at + b < job.scale_bytes)
            field |= (uint32_t)__ldg(scales + at + b) << 8 * b;
    uint32_t code = job.head.scale_base + (field >> bit % 8 & ((1u << width) - 1));
    if (code < CWS_SCALE_MIN || code > CWS_SCALE_MAX)
        bad = max(bad, (unsigned)CWS_GPU_BAD_SCALE);
    return __uint_as_float(code << CWS_SCALE_SHIFT);
}

struct row_cursor {       /* QUANT: which scale a lane's next element has */
    uint32_t row, offset; /* of the element, in the chunk's rows */
    uint32_t known;       /* row whose scale this is */
    float scale, base;    /* base: see scaled_from() */
};

static __device__ __forceinline__ float cursor_scale(const cws_gpu_job &job, row_cursor &c, unsigned &bad)
{
    if (c.row != c.known) {
        c.scale = scale_of(job, c.row, bad);
        c.base = -SYMBOL_BASE * c.scale;
        c.known = c.row;
    }
    return c.scale;
}

static __device__ __forceinline__ void cursor_step(row_cursor &c, uint32_t row_elems, uint32_t elems)
{
    c.offset += elems;
    while (c.offset >= row_elems) {
        c.offset -= row_elems;
        c.row++;
    }
}

/* Eight elements (of the last row of a tile: count) from symbols; leaves the cursor at the first of them. */
template <int KIND>
static __device__ __forceinline__ void scale_eight(const cws_gpu_job &job, row_cursor &c, const uint32_t symbols[8],
                                                   unsigned count, uint32_t *out, unsigned &bad)
{
    float v[8], scale = count ? cursor_scale(job, c, bad) : 0;
    uint32_t row_elems = job.row_elems;
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = scaled_from(symbols[i], scale, c.base);
    /* several rows, or scales above 2^104 */
    if (c.offset + count > row_elems || __float_as_uint(c.base) == MINUS_INFINITY) {
        row_cursor walk = c;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < count)
                v[i] = scaled(symbols[i], cursor_scale(job, walk, bad));
            cursor_step(walk, row_elems, i + 1 < count ? 1 : 0);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        if (KIND == QUANT_F32) {
            out[i] = __float_as_uint(v[i]);
            out[i + 1] = __float_as_uint(v[i + 1]);
        } else {
            out[i / 2] = round_two(v[i], v[i + 1], job.dtype);
        }
    }
}

/* Hash of a lane's first `bytes` bytes, the rest of their last 16-byte word being zero. 1-byte elements share a word
 * with the neighbour's. */
template <int WORDS>
static __device__ __forceinline__ void hash_words(hash_sum &sum, hash_key key, uint64_t position, const uint32_t *out,
                                                  uint32_t bytes, unsigned lane)
{
    if constexpr (WORDS == 2) {
        uint32_t x = __shfl_down_sync(WARP_ALL, out[0], 1), y = __shfl_down_sync(WARP_ALL, out[1], 1);
        if (lane % 2 == 0 && bytes > 0)
            hash_add(sum, key, position, make_uint4(out[0], out[1], x, y));
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4)
            if (bytes > 4u * i)
                hash_add(sum, key, position + i / 4 * KEY_STEP, make_uint4(out[i], out[i + 1], out[i + 2], out[i + 3]));
    }
}

template <int WORDS> static __device__ __forceinline__ void store_words(uint8_t *dst, const uint32_t *out)
{
    if constexpr (WORDS == 2) {
        *(uint2 *)dst = make_uint2(out[0], out[1]);
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4)
            __stcs((uint4 *)dst + i / 4, make_uint4(out[i], out[i + 1], out[i + 2], out[i + 3]));
    }
}

/* The first `bytes` of out go to dst; the rest of out becomes zero, as the hash has it. */
template <int WORDS> static __device__ __forceinline__ void store_some(uint8_t *dst, uint32_t *out, uint32_t bytes)
{
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        uint32_t have = bytes > 4u * i ? bytes - 4u * i : 0;
        if (have < 4)
            out[i] &= (1u << 8 * have) - 1;
        for (uint32_t b = 0; b < 4 && b < have; b++)
            dst[4 * i + b] = (uint8_t)(out[i] >> 8 * b);
    }
}

/* A row's hash: of four words late, between the lookups of the row after it. */
template <int WORDS> struct row_hash {
    uint64_t position;
    __device__ __forceinline__ void start(uint64_t at) { position = at; }
    __device__ __forceinline__ void step(hash_sum &, hash_key, int) {}
    __device__ __forceinline__ void row(hash_sum &sum, hash_key key, const uint32_t *out, unsigned lane)
    {
        hash_words<WORDS>(sum, key, position, out, 4 * WORDS, lane);
        position += 2 * WORDS * LANES / 8 * KEY_STEP;
    }
    __device__ __forceinline__ void end(hash_sum &, hash_key) {}
};

template <> struct row_hash<4> {
    uint64_t position;
    hash_late late;
    __device__ __forceinline__ void start(uint64_t at)
    {
        position = at;
        late_none(late, at);
    }
    __device__ __forceinline__ void step(hash_sum &sum, hash_key key, int which) { late_step(late, sum, key, which); }
    __device__ __forceinline__ void row(hash_sum &, hash_key, const uint32_t *out, unsigned)
    {
        late.v = make_uint4(out[0], out[1], out[2], out[3]);
        late.position = position;
        position += LANES * KEY_STEP;
    }
    __device__ __forceinline__ void end(hash_sum &sum, hash_key key)
    {
        for (int which = 0; which < 3; which++)
            late_step(late, sum, key, which);
    }
};

/* Decodes a tile with one warp. Returns the lane's enum cws_gpu_status. */
template <int KIND, bool PAIRS>
static __device__ __forceinline__ unsigned decode_tile(const cws_gpu_job &job, uint32_t tile, unsigned lane,
                                                       const uint32_t *table, hash_key key, hash_sum &out_sum)
{
    hash_sum sum = {0, 0};
    typedef shape<KIND> s;
    constexpr int words = 2 * s::elem_bytes;
    tile_place place = {};
    bit_reader reader;
    if (!tile_start(job, tile, lane, reader, place))
        return place.bad;
    uint32_t tile_elems = LANES * job.head.lane_symbols, elem_count = job.head.elem_count;
    place.first = tile * tile_elems;
    place.elems = min(tile_elems, elem_count - place.first);
    uint32_t at = place.first + 8 * lane;
    uint8_t *dst = (uint8_t *)job.dst + (uint64_t)at * s::elem_bytes;
    row_hash<words> hash;
    hash.start(hash_position(key, job.first_word + (uint64_t)at * s::elem_bytes / 16));

    const uint8_t *plane[7];
    uint2 bytes[7];
    uint32_t section = sizeof(cws_coded_head);
#pragma unroll
    for (int p = 0; p < s::planes; p++) {
        plane[p] = NULL;
        uint32_t value = job.head.const_value[p] * 0x01010101u;
        bytes[p] = make_uint2(value, value);
        if (!(job.head.const_planes >> p & 1)) {
            plane[p] = (const uint8_t *)job.stored + section + at;
            section = align16(section + elem_count);
        }
    }
    row_cursor cursor = {0, 0, UINT32_MAX, 0, 0};
    if (s::quant) {
        uint32_t elem = job.row_offset + at;
        cursor.row = elem / job.row_elems;
        cursor.offset = elem % job.row_elems;
    }

    /* symbols: one in each word, two in each */
    uint32_t out[words], one[8], pair[4], rows = place.elems / ROW_ELEMS;
    if (s::elem_bytes == 2 && !s::quant && plane[0])
        for (uint32_t i = 0; i < rows; i += 8)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(plane[0] - 8 * lane + i * ROW_ELEMS + 64 * lane));
    for (uint32_t row = 0; row < rows; row++) {
#pragma unroll
        for (int p = 0; p < s::planes; p++)
            if (plane[p]) {
                bytes[p] = __ldcs((const uint2 *)plane[p]);
                plane[p] += ROW_ELEMS;
            }
        auto meanwhile = [&](int i) { hash.step(sum, key, i); };
        if (PAIRS && !s::quant) {
            reader_pairs(reader, table, meanwhile, pair);
        } else {
            reader_ones(reader, table, meanwhile, one);
            pairs_of(one, pair);
        }
        if (s::quant) {
            scale_eight<KIND>(job, cursor, one, 8, out, place.bad);
            cursor_step(cursor, job.row_elems, ROW_ELEMS);
        } else {
            join_planes<s::elem_bytes>(pair, bytes, out);
        }
        store_words<words>(dst, out);
        hash.row(sum, key, out, lane);
        dst += ROW_ELEMS * s::elem_bytes;
    }
    hash.end(sum, key);
    uint32_t rest = place.elems % ROW_ELEMS;
    if (rest != 0) {
        uint32_t count = rest > 8 * lane ? min(rest - 8 * lane, 8u) : 0;
#pragma unroll
        for (int p = 0; p < s::planes; p++) /* a lane without elements has no plane bytes of its own */
            if (plane[p] && count)
                bytes[p] = *(const uint2 *)plane[p];
        reader_some(reader, table, count, one);
        pairs_of(one, pair);
        if (s::quant)
            scale_eight<KIND>(job, cursor, one, count, out, place.bad);
        else
            join_planes<s::elem_bytes>(pair, bytes, out);
        store_some<words>(dst, out, count * s::elem_bytes);
        hash_words<words>(sum, key, hash.position, out, count * s::elem_bytes, lane);
    }
    out_sum = sum;
    if (reader_bit(reader) != place.lane_end)
        place.bad = max(place.bad, (unsigned)CWS_GPU_BAD_LANE);
    if (!padding_is_zero(job, tile, place))
        place.bad = max(place.bad, (unsigned)CWS_GPU_BAD_PADDING);
    return place.bad;
}

static __device__ __forceinline__ void copy_tile(const cws_gpu_job &job, uint32_t tile, unsigned lane, hash_key key,
                                                 hash_sum &sum)
{
    uint32_t begin = tile * CWS_GPU_RAW_TILE, end = min(job.logical_bytes, begin + CWS_GPU_RAW_TILE),
             at = begin + 16 * lane;
    const uint8_t *from = (const uint8_t *)job.stored;
    uint8_t *to = (uint8_t *)job.dst;
    uint64_t position = hash_position(key, job.first_word + at / 16);
    for (; at + 16 <= end; at += 16 * LANES, position += LANES * KEY_STEP) {
        uint4 v = __ldcs((const uint4 *)(from + at));
        __stcs((uint4 *)(to + at), v);
        hash_add(sum, key, position, v);
    }
    if (at < end) { /* the chunk's last word */
        uint64_t half[2] = {0, 0};
        for (uint32_t b = 0; at + b < end; b++) {
            to[at + b] = from[at + b];
            half[b / 8] |= (uint64_t)from[at + b] << 8 * (b % 8);
        }
        hash_add(
            sum, key, position,
            make_uint4((uint32_t)half[0], (uint32_t)(half[0] >> 32), (uint32_t)half[1], (uint32_t)(half[1] >> 32)));
    }
}

template <int WHAT, bool PAIRS>
static __device__ __forceinline__ unsigned decode_coded(const cws_gpu_job &job, uint32_t tile, unsigned lane,
                                                        const uint32_t *table, hash_key key, hash_sum &sum)
{
    if constexpr (WHAT == CWS_GPU_SPLIT2) {
        return decode_tile<SPLIT2, PAIRS>(job, tile, lane, table, key, sum);
    } else if constexpr (WHAT == CWS_GPU_QUANT2) {
        return decode_tile<QUANT_HALF, false>(job, tile, lane, table, key, sum);
    } else {
        if (job.codec == CWS_CODEC_QUANT) {
            if (job.head.elem_bytes == 4)
                return decode_tile<QUANT_F32, false>(job, tile, lane, table, key, sum);
            return decode_tile<QUANT_HALF, false>(job, tile, lane, table, key, sum);
        }
        switch (job.head.elem_bytes) {
        case 1: return decode_tile<SPLIT1, PAIRS>(job, tile, lane, table, key, sum);
        case 2: return decode_tile<SPLIT2, PAIRS>(job, tile, lane, table, key, sum);
        case 4: return decode_tile<SPLIT4, PAIRS>(job, tile, lane, table, key, sum);
        default: return decode_tile<SPLIT8, PAIRS>(job, tile, lane, table, key, sum);
        }
    }
}

/* Is the head in device memory the one that the job was made from? */
static __device__ __forceinline__ unsigned check_head(const cws_gpu_job *job, unsigned lane)
{
    const uint32_t *here = (const uint32_t *)job->stored, *there = (const uint32_t *)&job->head;
    bool differs = lane < sizeof job->head / 4 && __ldg(here + lane) != __ldg(there + lane);
    return __any_sync(WARP_ALL, differs) ? CWS_GPU_BAD_HEAD : CWS_GPU_OK;
}

template <int WHAT>
static __device__ __forceinline__ void run_tile(const cws_gpu_job *at, uint32_t tile, unsigned lane,
                                                const cws_gpu_table &table, hash_key key, cws_gpu_result *result)
{
    const cws_gpu_job job = *at;
    hash_sum sum = {0, 0};
    unsigned bad = CWS_GPU_OK;
    if (WHAT == CWS_GPU_ANY && job.codec == CWS_CODEC_RAW)
        copy_tile(job, tile, lane, key, sum);
    else if (WHAT != CWS_GPU_QUANT2 && table.pairs)
        bad = decode_coded<WHAT, true>(job, tile, lane, table.entry, key, sum);
    else
        bad = decode_coded<WHAT, false>(job, tile, lane, table.entry, key, sum);
    __syncwarp();
    if (tile == 0 && !(WHAT == CWS_GPU_ANY && job.codec == CWS_CODEC_RAW))
        bad = max(bad, check_head(at, lane));
    bad = warp_max(bad);
    hash_give(sum, lane, result);
    if (bad != CWS_GPU_OK && lane == 0)
        atomicMax(&result->status, bad);
}

/* Asks for what run_tile() will read first of a tile, while the block's table is on its way: its place in the
 * directory, and from there the start of its streams. What it reads is not trusted: an address is asked for only inside
 * the chunk. */
static __device__ __forceinline__ void fetch_tile(const cws_gpu_job *job, uint32_t tile, unsigned lane)
{
    const uint8_t *stored = (const uint8_t *)job->stored;
    uint32_t directory = job->directory_at, tiles = job->tiles, streams = job->streams_at;
    uint32_t wide = job->head.flags & CWS_CODED_WIDE ? 2 : 1;
    if (lane == 0)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(stored + directory + 4 * tiles + 2 * tile));
    if (lane == 1 || lane == 2)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(stored + directory + 6 * tiles + tile * LANES * wide +
                                                      (lane - 1) * 32 * (wide - 1)));
    uint32_t word = __ldg((const uint32_t *)(stored + directory) + tile), words = job->head.stream_words;
    for (uint32_t at = 8 * lane; at < 2 * 8 * LANES; at += 8 * LANES) /* 2 KiB: mostly all of them */
        if (word < words && at < words - word)
            asm volatile("prefetch.global.L1 [%0];" ::"l"(stored + streams + 4 * word + 4 * at));
}

/* The block's table. All that a thread brings of it is asked for before anything is waited for. */
struct table_words {
    static constexpr unsigned each = sizeof(((cws_gpu_table *)NULL)->entry) / 16 / (32 * CWS_BLOCK_WARPS);
    uint4 word[each];
    uint32_t pairs;
};
_Static_assert(table_words::each * 32 * CWS_BLOCK_WARPS * 16 == sizeof(((cws_gpu_table *)NULL)->entry),
               "a table in equal parts");

static __device__ __forceinline__ void table_ask(table_words &w, const cws_gpu_table *from)
{
#pragma unroll
    for (unsigned i = 0; i < table_words::each; i++)
        w.word[i] = __ldg((const uint4 *)from->entry + 32 * CWS_BLOCK_WARPS * i + threadIdx.x);
    w.pairs = __ldg(&from->pairs);
}

static __device__ __forceinline__ void table_put(cws_gpu_table &table, const table_words &w)
{
#pragma unroll
    for (unsigned i = 0; i < table_words::each; i++)
        ((uint4 *)table.entry)[32 * CWS_BLOCK_WARPS * i + threadIdx.x] = w.word[i];
    if (threadIdx.x == 0)
        table.pairs = w.pairs;
}

template <int WHAT>
static __device__ __forceinline__ void decode_batch(const cws_gpu_job *__restrict__ jobs, uint32_t count,
                                                    uint32_t units, cws_gpu_result *results, uint64_t key0,
                                                    uint64_t key1)
{
    __shared__ __align__(16) cws_gpu_table table;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    uint32_t begin = (uint32_t)((uint64_t)units * blockIdx.x / gridDim.x);
    uint32_t end = (uint32_t)((uint64_t)units * (blockIdx.x + 1) / gridDim.x);
    if (begin == end)
        return;
    hash_key key = {key0, key1 - key0};
    uint64_t loaded = 0;
    uint32_t taken = 0; /* tiles that the block had before */
    for (uint32_t j = find_job(jobs, count, begin, units, lane); j < count; j++) {
        const cws_gpu_job *job = jobs + j;
        uint32_t first = job->first_unit, shift = job->tile_shift, round = (1u << shift) - 1;
        if (first >= end)
            break;
        /* A tile is the block's in whose run its first unit lies. */
        uint32_t tile_begin = first >= begin ? 0 : (begin - first + round) >> shift;
        uint32_t tile_end = min(job->tiles, (end - first + round) >> shift);
        if (tile_begin >= tile_end)
            continue;
        uint32_t t = tile_begin + ((warp - taken) & (warps - 1));
        uint64_t from = job->table;
        if (from != 0 && from != loaded) {
            table_words words;
            table_ask(words, (const cws_gpu_table *)from);
            if (t < tile_end)
                fetch_tile(job, t, lane);
            else if (j + 1 < count && job[1].table != 0) { /* the warp's first tile is the next job's */
                uint32_t next = t - tile_end;
                if (next < job[1].tiles && job[1].first_unit + (next << job[1].tile_shift) < end)
                    fetch_tile(job + 1, next, lane);
            }
            if (loaded != 0)
                __syncthreads();
            table_put(table, words);
            loaded = from;
            __syncthreads();
        }
        for (; t < tile_end; t += warps)
            run_tile<WHAT>(job, t, lane, table, key, results + j);
        taken += tile_end - tile_begin;
    }
}

#define DECODE_KERNEL(name, what)                                                                                      \
    extern "C" __global__ void __launch_bounds__(32 * CWS_BLOCK_WARPS, CWS_BLOCKS_PER_SM)                              \
        name(const cws_gpu_job *__restrict__ jobs, uint32_t count, uint32_t units, cws_gpu_result *results,            \
             uint64_t key0, uint64_t key1)                                                                             \
    {                                                                                                                  \
        decode_batch<what>(jobs, count, units, results, key0, key1);                                                   \
    }
DECODE_KERNEL(cws_gpu_decode_kernel, CWS_GPU_ANY)
DECODE_KERNEL(cws_gpu_decode_split2_kernel, CWS_GPU_SPLIT2)
DECODE_KERNEL(cws_gpu_decode_quant2_kernel, CWS_GPU_QUANT2)

/* The same hash over plain memory; each warp takes an equal, contiguous run of the units. */
extern "C" __global__ void __launch_bounds__(32 * CWS_BLOCK_WARPS)
    cws_gpu_hash_kernel(const cws_gpu_hash_job *__restrict__ jobs, uint32_t count, uint32_t units,
                        cws_gpu_result *results, uint64_t key0, uint64_t key1)
{
    unsigned lane = threadIdx.x % 32;
    uint64_t warp = (uint64_t)blockIdx.x * CWS_BLOCK_WARPS + threadIdx.x / 32,
             warps = (uint64_t)gridDim.x * CWS_BLOCK_WARPS;
    uint32_t unit = (uint32_t)(units * warp / warps), end = (uint32_t)(units * (warp + 1) / warps);
    hash_key key = {key0, key1 - key0};
    if (unit == end)
        return;
    for (uint32_t j = find_job(jobs, count, unit, units, lane); unit < end && j < count; j++) {
        const cws_gpu_hash_job job = jobs[j];
        uint64_t at = (uint64_t)(unit - job.first_unit) * CWS_GPU_RAW_TILE;
        if (at >= job.bytes)
            continue;
        uint64_t stop = min(job.bytes, (uint64_t)(end - job.first_unit) * CWS_GPU_RAW_TILE);
        unit += (uint32_t)((stop - at + CWS_GPU_RAW_TILE - 1) / CWS_GPU_RAW_TILE);
        const uint8_t *p = (const uint8_t *)job.address;
        hash_sum sum = {0, 0};
        at += 16 * lane;
        uint64_t position = hash_position(key, job.first_word + at / 16);
        for (; at + 48 * LANES + 16 <= stop; at += 64 * LANES) {
            uint4 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = __ldcs((const uint4 *)(p + at + 16 * LANES * i));
#pragma unroll
            for (int i = 0; i < 4; i++, position += LANES * KEY_STEP)
                hash_add(sum, key, position, v[i]);
        }
        for (; at + 16 <= stop; at += 16 * LANES, position += LANES * KEY_STEP)
            hash_add(sum, key, position, __ldcs((const uint4 *)(p + at)));
        if (at < stop) {
            uint64_t half[2] = {0, 0};
            for (uint32_t b = 0; at + b < stop; b++)
                half[b / 8] |= (uint64_t)p[at + b] << 8 * (b % 8);
            hash_add(
                sum, key, position,
                make_uint4((uint32_t)half[0], (uint32_t)(half[0] >> 32), (uint32_t)half[1], (uint32_t)(half[1] >> 32)));
        }
        __syncwarp();
        hash_give(sum, lane, results + j);
    }
}
