/* bench_codec.c - the codec's speed and size beside zstd's, one core, same bytes. Not installed.
 *   bench_codec MODEL.safetensors | --gaussian N  [--tensors] [--parts] [--lossless] [--encoder NAME] [--no-19]
 *                                                 [--repeat R]
 * Decoding is timed with what a reader does: XXH3 of the stored bytes, validation, decode. Packing is timed with what
 * the writer does but I/O: sample, count, code, encode, XXH3, content hash. In processor time, so what else runs on the
 * machine is seen in the caches only: the best of R runs is shown, but for packing the median of R runs, each beside
 * one of zstd -3. Chunks are packed to where the writer's are: a few buffers that are used again and again; zstd, which
 * packs the whole at once, cannot. */
#include "store/format/checksum.h"
#include "store/codec/codec.h"
#include "store/format/content_hash.h"
#include "store/format/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <zstd.h>

struct tensor {
    const char *name;
    enum cws_dtype dtype;
    const uint64_t *shape;
    size_t ndim;
    const uint8_t *data;
    size_t bytes;
};

struct chunk {
    size_t tensor, logical, first_byte, stored;
    uint8_t *bytes; /* stored bytes and CWS_STREAM_PAD more */
    uint64_t xxh3;
    enum cws_codec_id codec;
};

#define SLOTS 4 /* chunks that the writer of one job has on their way to the file */

struct packed_model { /* a model packed in memory */
    struct cws_plan *plans;
    struct cws_decode_table **tables;
    struct chunk *chunks;
    size_t chunk_count;
    uint8_t *arena; /* of all stored bytes */
    uint8_t *slots; /* of SLOTS chunks, each as large as any may become */
    size_t slot_bytes;
    double seconds, plan_seconds, encode_seconds, check_seconds, hash_seconds;
};

static struct tensor *tensors;
static size_t tensor_count, total_bytes;
static struct cws_encode_scratch *encode_scratch;
static struct cws_decode_scratch *decode_scratch;

static bool timing_parts; /* reading the clock is not free */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double part_now(void) { return timing_parts ? now() : 0; }

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_codec: %s: %s\n", what, why);
    exit(2);
}

static void *need(void *p)
{
    if (!p)
        die("memory", "not enough");
    return p;
}

/* Large buffers on huge pages, for us and for zstd: page walks are not what is measured. */
static void *big(size_t bytes)
{
    size_t rounded = (bytes + (2u << 20) - 1) / (2u << 20) * (2u << 20);
    void *p = need(aligned_alloc(2u << 20, rounded));
    madvise(p, rounded, MADV_HUGEPAGE);
    return p;
}

/* --- input --- */

static void read_model(const char *path)
{
    struct cws_error err;
    struct cws_header *h;
    struct stat st;
    uint64_t header;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st) != 0)
        die(path, "cannot be opened");
    uint8_t *all = big((size_t)st.st_size);
    if (fread(all, 1, (size_t)st.st_size, f) != (size_t)st.st_size)
        die(path, "cannot be read");
    fclose(f);
    if (st.st_size < 8 || cws_header_length(path, all, (uint64_t)st.st_size, &header, &err) != 0 ||
        cws_header_parse(path, all, header, (uint64_t)st.st_size, &h, &err) != 0)
        die(path, "is not a safetensors file");
    tensors = need(calloc(h->tensor_count + 1, sizeof *tensors));
    tensor_count = total_bytes = 0;
    for (size_t i = 0; i < h->tensor_count; i++) {
        const struct cws_header_tensor *t = &h->tensors[i];
        if (t->begin == t->end)
            continue;
        tensors[tensor_count++] = (struct tensor){
            t->name, t->dtype, t->shape, t->ndim, all + h->header_bytes + t->begin, (size_t)(t->end - t->begin)};
        total_bytes += (size_t)(t->end - t->begin);
    }
    /* The writer reads each tensor to the start of a cache line. */
    uint8_t *lines = big(total_bytes + 64 * tensor_count);
    for (size_t i = 0; i < tensor_count; lines += (tensors[i].bytes + 63) / 64 * 64, i++)
        tensors[i].data = memcpy(lines, tensors[i].data, tensors[i].bytes);
}

static uint64_t random_state = 1;
static double uniform(void)
{
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

static void make_gaussian(size_t n)
{
    static uint64_t shape[2];
    uint64_t row = n >= 4096 ? 4096 : 64;
    n -= n % row;
    if (n == 0)
        die("--gaussian", "at least 64 elements");
    uint16_t *data = big(2 * n);
    for (size_t i = 0; i < n; i++) {
        float f = (float)(0.02 * sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
        uint32_t v;
        memcpy(&v, &f, 4);
        data[i] = (uint16_t)((v + 0x7fff + (v >> 16 & 1)) >> 16);
    }
    shape[0] = n / row;
    shape[1] = row;
    tensors = need(calloc(1, sizeof *tensors));
    tensors[tensor_count++] = (struct tensor){"gaussian", CWS_BF16, shape, 2, (uint8_t *)data, 2 * n};
    total_bytes = 2 * n;
}

/* --- pack --- */

/* The tensor, or 1 MiB of it evenly spread, in whole rows, gathered at room. */
static size_t take_sample(const struct tensor *t, const struct cws_plan *p, uint8_t *room, const uint8_t **out)
{
    const size_t limit = 1u << 20;
    *out = t->bytes <= limit ? t->data : room;
    if (t->bytes <= limit)
        return t->bytes;
    size_t piece = p->row_elems ? (size_t)p->row_elems * p->elem_bytes : 64u << 10;
    if (piece > limit)
        piece = limit;
    size_t pieces = limit / piece, units = t->bytes / piece;
    for (size_t i = 0; i < pieces; i++)
        memcpy(room + i * piece, t->data + units * i / pieces * piece, piece);
    return pieces * piece;
}

static void make_plan(const struct tensor *t, enum cws_mode mode, struct cws_plan *p, uint8_t *room)
{
    uint64_t histogram[256];
    const uint8_t *sample;
    cws_plan_begin(p, mode, t->dtype, t->shape, t->ndim);
    size_t sample_bytes = take_sample(t, p, room, &sample);
    if (cws_plan_sample(p, sample, sample_bytes, NULL) != 0)
        die(t->name, "cannot be planned");
    while (p->needs_count) {
        int refused = 0;
        memset(histogram, 0, sizeof histogram);
        for (size_t at = 0; at < t->bytes && !refused; at += p->chunk_bytes) {
            size_t n = t->bytes - at < p->chunk_bytes ? t->bytes - at : p->chunk_bytes;
            refused = cws_plan_count(p, t->data + at, n, at / p->elem_bytes, histogram);
        }
        if (refused) {
            cws_plan_refuse_quant(p);
            if (cws_plan_sample(p, sample, sample_bytes, NULL) != 0)
                die(t->name, "cannot be planned");
        } else if (cws_plan_finish(p, histogram) == 0) {
            break;
        }
    }
}

/* keep: the stored bytes stay in the arena, one after the other; else they go where the writer's do, to one of a few
 * buffers. */
static void pack_tensor(struct packed_model *k, size_t index, enum cws_mode mode, uint8_t *sample, bool keep,
                        size_t *arena_used)
{
    const struct tensor *t = &tensors[index];
    struct cws_plan *p = &k->plans[index];
    struct cws_error err;
    struct cws_hash128 content = {0, 0};
    double start = part_now(), at_time;
    make_plan(t, mode, p, sample);
    k->plan_seconds += part_now() - start;
    if (cws_chunk_bound(p, p->chunk_bytes) > k->slot_bytes)
        die(t->name, "its chunks are too large");
    for (size_t at = 0; at < t->bytes; at += p->chunk_bytes) {
        struct chunk *c = &k->chunks[k->chunk_count];
        c->tensor = index;
        c->logical = t->bytes - at < p->chunk_bytes ? t->bytes - at : p->chunk_bytes;
        c->first_byte = at;
        c->bytes = keep ? k->arena + *arena_used : k->slots + k->chunk_count % SLOTS * k->slot_bytes;
        at_time = part_now();
        cws_content_hash_add(&content, cws_content_key, t->data + at, c->logical, at);
        k->hash_seconds += part_now() - at_time;
        at_time = part_now();
        if (cws_chunk_encode(p, t->data + at, c->logical, at / p->elem_bytes, c->bytes, &c->stored, &c->codec,
                             encode_scratch, &err) != 0)
            die(t->name, err.message);
        k->encode_seconds += part_now() - at_time;
        at_time = part_now();
        c->xxh3 = cws_checksum(c->bytes, c->stored, k->chunk_count);
        k->check_seconds += part_now() - at_time;
        *arena_used += (c->stored + CWS_STREAM_PAD + 63) / 64 * 64;
        k->chunk_count++;
    }
}

static void pack(struct packed_model *k, enum cws_mode mode, bool keep)
{
    static uint8_t *sample;
    size_t used = 0, chunks = 0;
    if (!sample)
        sample = need(malloc(1u << 20));
    if (!k->arena) {
        for (size_t i = 0; i < tensor_count; i++)
            chunks += tensors[i].bytes / 4096 + 2;
        k->plans = need(calloc(tensor_count, sizeof *k->plans));
        k->tables = need(calloc(tensor_count, sizeof *k->tables));
        k->chunks = need(calloc(chunks, sizeof *k->chunks));
        k->arena = big(2 * total_bytes + tensor_count * 65536 + (4u << 20));
        k->slot_bytes = 2 * CWS_CHUNK_BYTES + 65536;
        k->slots = big(SLOTS * k->slot_bytes);
    }
    k->chunk_count = 0;
    k->plan_seconds = k->encode_seconds = k->check_seconds = k->hash_seconds = 0;
    double start = now();
    for (size_t i = 0; i < tensor_count; i++)
        pack_tensor(k, i, mode, sample, keep, &used);
    k->seconds = now() - start;
}

static void make_tables(struct packed_model *k)
{
    struct cws_error err;
    for (size_t i = 0; i < tensor_count; i++) {
        if (k->plans[i].codec != CWS_CODEC_SPLIT && k->plans[i].codec != CWS_CODEC_QUANT)
            continue;
        k->tables[i] = need(aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64));
        if (cws_decode_table_init(k->tables[i], k->plans[i].packed, &err) != 0)
            die(tensors[i].name, err.message);
    }
}

/* --- decode --- */

static double decode(const struct packed_model *k, uint8_t *out)
{
    struct cws_error err;
    double start = now();
    for (size_t i = 0; i < k->chunk_count; i++) {
        const struct chunk *c = &k->chunks[i];
        const struct cws_plan *p = &k->plans[c->tensor];
        struct cws_chunk_context ctx = {p->dtype, c->codec, k->tables[c->tensor], p->row_elems,
                                        c->first_byte / p->elem_bytes};
        if (cws_checksum(c->bytes, c->stored, i) != c->xxh3)
            die(tensors[c->tensor].name, "checksum");
        if (cws_chunk_decode(&ctx, c->bytes, c->stored, c->logical, 0, c->logical, out, decode_scratch, &err) != 0)
            die(tensors[c->tensor].name, err.message);
        out += c->logical;
    }
    return now() - start;
}

static size_t stored_bytes(const struct packed_model *k, size_t tensor)
{
    size_t sum = sizeof(struct cws_tensor_record) + (k->tables[tensor] ? 128 : 0);
    for (size_t i = 0; i < k->chunk_count; i++)
        if (k->chunks[i].tensor == tensor)
            sum += sizeof(struct cws_chunk_record) +
                   (k->chunks[i].stored + CWS_CHUNK_ALIGN - 1) / CWS_CHUNK_ALIGN * CWS_CHUNK_ALIGN;
    return sum;
}

/* --- report --- */

static void machine(void)
{
    char line[256] = "", name[256] = "unknown processor";
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %255[^\n]", name) == 1)
            break;
    if (f)
        fclose(f);
    printf("machine  %s, one core\ninput    %zu bytes, %zu tensors\n\n", name, total_bytes, tensor_count);
}

struct zstd_result {
    double ratio, compress, decompress; /* bytes per second */
};

static struct zstd_result run_zstd(int level, const uint8_t *all, uint8_t *out, int repeat)
{
    size_t bound = ZSTD_compressBound(total_bytes), got = 0;
    uint8_t *to = big(bound);
    ZSTD_CCtx *cctx = need(ZSTD_createCCtx());
    ZSTD_DCtx *dctx = need(ZSTD_createDCtx());
    double best_c = 1e9, best_d = 1e9;
    for (int r = 0; r < (level > 9 ? 1 : repeat); r++) {
        double start = now();
        got = ZSTD_compressCCtx(cctx, to, bound, all, total_bytes, level);
        best_c = fmin(best_c, now() - start);
    }
    if (ZSTD_isError(got))
        die("zstd", ZSTD_getErrorName(got));
    for (int r = 0; r < repeat; r++) {
        double start = now();
        if (ZSTD_decompressDCtx(dctx, out, total_bytes, to, got) != total_bytes)
            die("zstd", "decompression failed");
        best_d = fmin(best_d, now() - start);
    }
    ZSTD_freeCCtx(cctx);
    ZSTD_freeDCtx(dctx);
    free(to);
    double n = (double)total_bytes;
    struct zstd_result z = {n / (double)got, n / best_c, n / best_d};
    printf("%-22s %7.3f %9.0f %9.0f\n", level > 9 ? "zstd -19" : "zstd -3", z.ratio, z.compress / 1e6,
           z.decompress / 1e6);
    return z;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, by_value);
    return values[count / 2];
}

/* Packs `repeat` times, each beside zstd -3 on the same bytes, for what shares the machine slows both: medians of the
 * time and of the ratio of the two. */
static void pack_beside(struct packed_model *k, enum cws_mode mode, const uint8_t *all, int repeat, double *out_seconds,
                        double *out_factor)
{
    size_t bound = ZSTD_compressBound(total_bytes);
    uint8_t *to = big(bound);
    ZSTD_CCtx *cctx = need(ZSTD_createCCtx());
    double *seconds = need(calloc((size_t)repeat, sizeof *seconds)),
           *factor = need(calloc((size_t)repeat, sizeof *factor));
    for (int r = 0; r < repeat; r++) {
        double start = now();
        if (ZSTD_isError(ZSTD_compressCCtx(cctx, to, bound, all, total_bytes, 3)))
            die("zstd", "compression failed");
        double zstd = now() - start;
        pack(k, mode, false);
        seconds[r] = k->seconds;
        factor[r] = zstd / k->seconds;
    }
    *out_seconds = median(seconds, repeat);
    *out_factor = median(factor, repeat);
    ZSTD_freeCCtx(cctx);
    free(seconds);
    free(factor);
    free(to);
}

static float to_float(enum cws_dtype dtype, const uint8_t *p)
{
    float f;
    uint16_t h;
    uint32_t v;
    if (dtype == CWS_F32) {
        memcpy(&f, p, 4);
        return f;
    }
    memcpy(&h, p, 2);
    if (dtype == CWS_F16) {
        int e = h >> 10 & 31, m = h & 1023;
        f = e ? ldexpf((float)(m + 1024), e - 25) : ldexpf((float)m, -24);
        return h & 0x8000 ? -f : f;
    }
    v = (uint32_t)h << 16;
    memcpy(&f, &v, 4);
    return f;
}

static void report_quant(const struct packed_model *k, const char *name, const uint8_t *out, bool per_tensor)
{
    double bits = 0, bound = 0, elems = 0, error = 0, norm = 0;
    const uint8_t *decoded = out;
    if (per_tensor)
        printf("\n%-44s %10s %8s %8s %7s %9s\n", name, "elements", "bits/w", "order-0", "factor", "rel. L2");
    for (size_t i = 0; i < tensor_count; decoded += tensors[i].bytes, i++) {
        const struct cws_plan *p = &k->plans[i];
        if (p->codec != CWS_CODEC_QUANT)
            continue;
        double e = 0, n = 0, b = 8.0 * (double)stored_bytes(k, i), count = (double)p->elems;
        for (size_t at = 0; at < tensors[i].bytes; at += p->elem_bytes) {
            double x = to_float(p->dtype, tensors[i].data + at), y = to_float(p->dtype, decoded + at);
            e += (x - y) * (x - y);
            n += x * x;
        }
        if (per_tensor)
            printf("%-44.44s %10.0f %8.3f %8.3f %7.4f %9.5f\n", tensors[i].name, count, b / count, p->symbol_entropy,
                   b / count / p->symbol_entropy, sqrt(e / n));
        bits += b;
        bound += p->symbol_entropy * count;
        elems += count;
        error += e;
        norm += n;
    }
    if (elems > 0)
        printf("%s: %.0f quantised weights, %.4f bits/weight, order-0 %.4f, factor %.4f, relative L2 %.5f\n", name,
               elems, bits / elems, bound / elems, bits / bound, sqrt(error / norm));
}

static void report_lossless(const struct packed_model *k)
{
    double bits = 0, bound = 0, elems = 0;
    for (size_t i = 0; i < tensor_count; i++) {
        const struct cws_plan *p = &k->plans[i];
        if (tensors[i].dtype != CWS_BF16)
            continue;
        uint64_t histogram[256] = {0};
        for (size_t at = 0; at < tensors[i].bytes; at += 2)
            histogram[(tensors[i].data[at + 1] << 1 | tensors[i].data[at] >> 7) & 0xff]++;
        bits += 8.0 * (double)stored_bytes(k, i);
        bound += (8 + cws_entropy_bits(histogram)) * (double)p->elems;
        elems += (double)p->elems;
    }
    if (elems > 0)
        printf("lossless: %.0f bf16 weights, %.4f bits/weight, bound 8 + H(exponent) %.4f, factor %.4f\n", elems,
               bits / elems, bound / elems, bits / bound);
}

static void run_mode(enum cws_mode mode, const char *name, const uint8_t *all, uint8_t *out, int repeat, bool parts,
                     bool per_tensor, struct zstd_result z)
{
    struct packed_model k = {0};
    double seconds, factor, n = (double)total_bytes;
    size_t stored = 0;
    pack_beside(&k, mode, all, repeat, &seconds, &factor);
    if (parts) {
        timing_parts = true;
        pack(&k, mode, false);
        timing_parts = false;
    }
    struct packed_model timed = k;
    pack(&k, mode, true);
    make_tables(&k);
    for (size_t i = 0; i < tensor_count; i++)
        stored += stored_bytes(&k, i);
    printf("%-22s %7.3f %9.0f %9s   %5.2fx zstd -3\n", name, n / (double)stored, n / seconds / 1e6, "", factor);
    if (parts)
        printf("    plan %.0f, encode %.0f, xxh3 %.0f, content hash %.0f MB/s\n", n / timed.plan_seconds / 1e6,
               n / timed.encode_seconds / 1e6, n / timed.check_seconds / 1e6, n / timed.hash_seconds / 1e6);
    for (unsigned d = 0; cws_decoder_name(d); d++) {
        double best_d = 1e9;
        if (cws_decoder_force(cws_decoder_name(d)) != 0)
            die(cws_decoder_name(d), "cannot be chosen");
        memset(out, 0x55, total_bytes);
        for (int r = 0; r < repeat; r++)
            best_d = fmin(best_d, decode(&k, out));
        if (mode == CWS_MODE_LOSSLESS && memcmp(all, out, total_bytes) != 0)
            die(cws_decoder_name(d), "decoded bytes differ");
        printf("    decoder %-10s %7s %9s %9.0f   %5.2fx zstd -3\n", cws_decoder_name(d), "", "", n / best_d / 1e6,
               n / best_d / z.decompress);
    }
    if (mode == CWS_MODE_LOSSLESS)
        report_lossless(&k);
    else
        report_quant(&k, name, out, per_tensor);
    for (size_t i = 0; i < tensor_count; i++)
        free(k.tables[i]);
    free(k.tables);
    free(k.plans);
    free(k.chunks);
    free(k.arena);
    free(k.slots);
}

int main(int argc, char **argv)
{
    bool per_tensor = false, parts = false, slow = true, lossy = true;
    int repeat = 9;
    const char *path = NULL;
    size_t gaussian = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--tensors") == 0)
            per_tensor = true;
        else if (strcmp(argv[i], "--parts") == 0)
            parts = true;
        else if (strcmp(argv[i], "--lossless") == 0)
            lossy = false;
        else if (strcmp(argv[i], "--no-19") == 0)
            slow = false;
        else if (strcmp(argv[i], "--repeat") == 0 && i + 1 < argc)
            repeat = (int)strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--encoder") == 0 && i + 1 < argc && cws_encoder_force(argv[i + 1]) == 0)
            i++;
        else if (strcmp(argv[i], "--gaussian") == 0 && i + 1 < argc)
            gaussian = (size_t)strtoull(argv[++i], NULL, 10);
        else if (argv[i][0] != '-')
            path = argv[i];
        else
            die(argv[i], "not known; usage: bench_codec MODEL.safetensors | --gaussian N [--tensors] [--parts] "
                         "[--lossless] [--encoder NAME] [--no-19] [--repeat R]");
    }
    if (repeat < 1)
        die("--repeat", "at least 1");
    if (path)
        read_model(path);
    else
        make_gaussian(gaussian ? gaussian : 16u << 20);
    if (cws_encode_scratch_create(&encode_scratch) != 0 || cws_decode_scratch_create(&decode_scratch) != 0)
        die("memory", "not enough");
    uint8_t *all = big(total_bytes), *out = big(total_bytes), *at = all;
    for (size_t i = 0; i < tensor_count; at += tensors[i].bytes, i++)
        memcpy(at, tensors[i].data, tensors[i].bytes);
    machine();
    printf("%-22s %7s %9s %9s\n", "", "ratio", "pack MB/s", "read MB/s");
    struct zstd_result z = run_zstd(3, all, out, repeat > 5 ? 5 : repeat);
    if (slow)
        run_zstd(19, all, out, repeat > 5 ? 5 : repeat);
    run_mode(CWS_MODE_LOSSLESS, "codecllm lossless", all, out, repeat, parts, per_tensor, z);
    if (lossy)
        run_mode(CWS_MODE_Q8, "codecllm q8", all, out, repeat, parts, per_tensor, z);
    if (lossy)
        run_mode(CWS_MODE_Q6, "codecllm q6", all, out, repeat, parts, per_tensor, z);
    cws_encode_scratch_destroy(encode_scratch);
    cws_decode_scratch_destroy(decode_scratch);
    return 0;
}
