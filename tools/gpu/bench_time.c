/* bench_time.c - bench_decode time: speed of the decoder on N(0, 0.02) in bf16, beside a device-to-device copy of the
 * decoded bytes. 16 Mi different weights are packed, and repeated at other addresses to the size wanted. Small batches
 * take turns over all of it, so that neither input nor output is in the cache. Every launch validates and hashes. */
#include "bench.h"

#define BASE_WEIGHTS (16u << 20)
#define COLS 4096u

struct packed_weights {
    struct cws_plan plan;
    uint8_t *stored; /* chunks, each from a multiple of 64 */
    size_t *at, *bytes;
    unsigned chunks;
    size_t stored_bytes;      /* with what alignment costs */
    struct cws_hash128 *hash; /* of the decoded chunks */
};

static void pack(struct bench *b, struct packed_weights *k, enum cws_mode mode, unsigned lane_symbols,
                 const uint8_t *data)
{
    size_t total = 2 * (size_t)BASE_WEIGHTS, used = 0;
    data_plan(&k->plan, mode, CWS_BF16, data, BASE_WEIGHTS / COLS, COLS);
    k->plan.lane_symbols = (uint16_t)lane_symbols;
    k->chunks = (unsigned)((total + k->plan.chunk_bytes - 1) / k->plan.chunk_bytes);
    k->stored = bench_need(calloc(1, 2 * total));
    k->at = bench_need(calloc(k->chunks, sizeof *k->at));
    k->bytes = bench_need(calloc(k->chunks, sizeof *k->bytes));
    k->hash = bench_need(calloc(k->chunks, sizeof *k->hash));
    uint8_t *out = bench_need(malloc(k->plan.chunk_bytes));
    for (unsigned i = 0; i < k->chunks; i++) {
        size_t first = (size_t)i * k->plan.chunk_bytes,
               n = total - first < k->plan.chunk_bytes ? total - first : k->plan.chunk_bytes;
        enum cws_codec_id codec;
        struct cws_error err;
        k->at[i] = used;
        bench_rc(cws_chunk_encode(&k->plan, data + first, n, first / 2, k->stored + used, &k->bytes[i], &codec,
                                  b->scratch, &err),
                 &err);
        struct cws_chunk_context ctx = {CWS_BF16, codec, NULL, k->plan.row_elems, first / 2};
        if (codec != k->plan.codec)
            bench_die("encoding", "gave another codec");
        if (i % 16 == 0) { /* the reference is slow */
            bench_rc(cws_chunk_decode_ref(&ctx, k->plan.packed, k->stored + used, k->bytes[i], n, out, &err), &err);
            cws_content_hash_add(&k->hash[i], cws_content_key, out, n, first);
        }
        used += (k->bytes[i] + CWS_CHUNK_ALIGN - 1) / CWS_CHUNK_ALIGN * CWS_CHUNK_ALIGN;
    }
    free(out);
    k->stored_bytes = used;
}

static void unpack(struct packed_weights *k)
{
    free(k->stored);
    free(k->at);
    free(k->bytes);
    free(k->hash);
}

struct field { /* the device's copies */
    CUdeviceptr stored, dst, table, jobs, results;
    unsigned copies;
    struct cws_gpu_job *job;
};

static void spread(struct bench *b, struct field *f, const struct packed_weights *k, unsigned copies)
{
    struct cws_error err;
    struct cws_gpu_table *table = bench_need(malloc(sizeof *table));
    size_t total = 2 * (size_t)BASE_WEIGHTS;
    f->copies = copies;
    f->stored = bench_device(b, copies * k->stored_bytes + CWS_STREAM_PAD);
    f->dst = bench_device(b, copies * total);
    f->table = bench_device(b, sizeof *table);
    f->jobs = bench_device(b, copies * k->chunks * sizeof *f->job);
    f->results = bench_device(b, copies * k->chunks * sizeof(struct cws_gpu_result));
    f->job = bench_need(calloc(copies * k->chunks, sizeof *f->job));
    bench_rc(cws_gpu_table_build(k->plan.packed, table, &err), &err);
    bench_upload(b, f->table, table, sizeof *table);
    for (unsigned c = 0; c < copies; c++)
        bench_upload(b, f->stored + c * k->stored_bytes, k->stored, k->stored_bytes);
    for (unsigned i = 0, c = 0, n = 0; i < copies * k->chunks;
         i++, c += n + 1 == k->chunks, n = n + 1 == k->chunks ? 0 : n + 1) {
        size_t first = (size_t)n * k->plan.chunk_bytes, left = total - first;
        struct cws_gpu_chunk chunk = {
            .dtype = CWS_BF16,
            .codec = k->plan.codec,
            .row_elems = k->plan.row_elems,
            .first_byte = first,
            .stored_bytes = (uint32_t)k->bytes[n],
            .logical_bytes = left < k->plan.chunk_bytes ? (uint32_t)left : k->plan.chunk_bytes,
            .stored = f->stored + c * k->stored_bytes + k->at[n],
            .dst = f->dst + c * total + first,
            .table = f->table,
        };
        bench_rc(cws_gpu_job_init(&f->job[i], &chunk, k->stored + k->at[n], &err), &err);
    }
    free(table);
}

static void clear(struct bench *b, struct field *f)
{
    bench_free(b, f->stored);
    bench_free(b, f->dst);
    bench_free(b, f->table);
    bench_free(b, f->jobs);
    bench_free(b, f->results);
    free(f->job);
}

static double elapsed(struct bench *b, CUevent from, CUevent to)
{
    float ms = 0;
    bench_driver(b, b->driver.event_sync(to), "waiting");
    bench_driver(b, b->driver.event_elapsed(&ms, from, to), "timing");
    return ms * 1e-3;
}

static void decode_set(struct bench *b, const struct field *f, const struct cws_gpu_batch *batch, unsigned chunks,
                       unsigned set)
{
    struct cws_error err;
    bench_rc(cws_gpu_decode(b->decoder, b->stream, f->jobs + set * chunks * sizeof *f->job, &batch[set],
                            f->results + set * chunks * sizeof(struct cws_gpu_result), cws_content_key, &err),
             &err);
}

/* Seconds of one launch over `chunks` jobs: the best of five rounds of at least 16 launches. One launch more goes ahead
 * of what is timed: the device is busy with it while the host begins, whose own delay would count as decoding else. */
static double time_decode(struct bench *b, struct field *f, unsigned all, unsigned chunks)
{
    struct cws_error err;
    CUevent from, to;
    unsigned sets = all / chunks, launches = sets > 16 ? sets : 16;
    struct cws_gpu_batch *batch = bench_need(calloc(sets, sizeof *batch));
    double best = 1e9;
    for (unsigned s = 0; s < sets; s++)
        bench_rc(cws_gpu_batch_plan(f->job + s * chunks, chunks, &batch[s], &err), &err);
    bench_upload(b, f->jobs, f->job, all * sizeof *f->job);
    bench_driver(b, b->driver.event_create(&from, CU_EVENT_DEFAULT), "event");
    bench_driver(b, b->driver.event_create(&to, CU_EVENT_DEFAULT), "event");
    for (int round = 0; round < 7; round++) { /* the first warms up; the last is one of each, for its results */
        bool timed = round > 0 && round < 6;
        unsigned n = round < 6 ? launches : sets;
        bench_clear(b, f->results, all * sizeof(struct cws_gpu_result));
        if (timed)
            decode_set(b, f, batch, chunks, sets - 1);
        bench_driver(b, b->driver.event_record(from, b->stream), "event");
        for (unsigned i = 0; i < n; i++)
            decode_set(b, f, batch, chunks, i % sets);
        bench_driver(b, b->driver.event_record(to, b->stream), "event");
        double t = elapsed(b, from, to) / n;
        if (timed && t < best)
            best = t;
    }
    b->driver.event_destroy(from);
    b->driver.event_destroy(to);
    free(batch);
    return best;
}

/* Every result's status, and every hash that the host knows. */
static unsigned wrong_results(struct bench *b, const struct field *f, const struct packed_weights *k, unsigned all)
{
    unsigned wrong = 0;
    struct cws_gpu_result *r = bench_need(calloc(all, sizeof *r));
    bench_download(b, r, f->results, all * sizeof *r);
    for (unsigned i = 0, n = 0; i < all; i++, n = n + 1 == k->chunks ? 0 : n + 1) { /* copies of the same chunks */
        const struct cws_hash128 *h = &k->hash[n];
        struct cws_hash128 got = cws_gpu_result_hash(&r[i]);
        if (r[i].status != 0 || ((h->lo | h->hi) != 0 && (h->lo != got.lo || h->hi != got.hi)))
            wrong++;
    }
    free(r);
    return wrong;
}

static double time_copy(struct bench *b, CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    CUevent begin, end;
    double best = 1e9;
    bench_driver(b, b->driver.event_create(&begin, CU_EVENT_DEFAULT), "event");
    bench_driver(b, b->driver.event_create(&end, CU_EVENT_DEFAULT), "event");
    for (int round = 0; round < 6; round++) {
        bench_driver(b, b->driver.event_record(begin, b->stream), "event");
        for (int i = 0; i < 8; i++)
            bench_driver(b, b->driver.copy_async(to, from, bytes, b->stream), "copy");
        bench_driver(b, b->driver.event_record(end, b->stream), "event");
        double t = elapsed(b, begin, end) / 8;
        if (round > 0 && t < best)
            best = t;
    }
    b->driver.event_destroy(begin);
    b->driver.event_destroy(end);
    return best;
}

static double time_hash(struct bench *b, CUdeviceptr memory, size_t bytes)
{
    struct cws_error err;
    CUevent begin, end;
    double best = 1e9;
    struct cws_gpu_hash_job job = {.address = memory, .bytes = bytes};
    struct cws_gpu_batch batch;
    CUdeviceptr job_at = bench_device(b, sizeof job), result_at = bench_device(b, sizeof(struct cws_gpu_result));
    bench_rc(cws_gpu_hash_plan(&job, 1, &batch, &err), &err);
    bench_upload(b, job_at, &job, sizeof job);
    bench_driver(b, b->driver.event_create(&begin, CU_EVENT_DEFAULT), "event");
    bench_driver(b, b->driver.event_create(&end, CU_EVENT_DEFAULT), "event");
    for (int round = 0; round < 6; round++) {
        bench_driver(b, b->driver.event_record(begin, b->stream), "event");
        for (int i = 0; i < 8; i++)
            bench_rc(cws_gpu_hash(b->decoder, b->stream, job_at, &batch, result_at, cws_content_key, &err), &err);
        bench_driver(b, b->driver.event_record(end, b->stream), "event");
        double t = elapsed(b, begin, end) / 8;
        if (round > 0 && t < best)
            best = t;
    }
    b->driver.event_destroy(begin);
    b->driver.event_destroy(end);
    bench_free(b, job_at);
    bench_free(b, result_at);
    return best;
}

static unsigned time_one(struct bench *b, const char *label, enum cws_mode mode, unsigned lane_symbols,
                         const uint8_t *data, unsigned long long most)
{
    static const char *const names[] = {"lossless", "q8", "q6"};
    struct packed_weights k = {0};
    struct field f = {0};
    pack(b, &k, mode, lane_symbols, data);
    unsigned copies = (unsigned)(most / BASE_WEIGHTS ? most / BASE_WEIGHTS : 1), all = copies * k.chunks;
    spread(b, &f, &k, copies);
    double bits = 8.0 *
                  ((double)k.stored_bytes + k.chunks * sizeof(struct cws_chunk_record) +
                   sizeof(struct cws_tensor_record) + 128) /
                  BASE_WEIGHTS;
    printf("%-16s %-8s S %-4u %7.3f bits/w ", label, names[mode], lane_symbols, bits);
    for (unsigned long long weights = most; weights >= (4u << 20); weights /= 4) {
        unsigned chunks = (unsigned)(2 * weights / k.plan.chunk_bytes);
        double t = time_decode(b, &f, all - all % chunks, chunks);
        printf(" %5llu Mi %7.1f GB/s", weights >> 20, 2e-9 * (double)chunks * k.plan.chunk_bytes / 2 / t);
    }
    unsigned wrong = wrong_results(b, &f, &k, all - all % (unsigned)((8u << 20) / k.plan.chunk_bytes));
    printf("  %s\n", wrong ? "WRONG" : "right");
    fflush(stdout);
    clear(b, &f);
    unpack(&k);
    return wrong;
}

unsigned bench_time(struct bench *b, const char *label, unsigned long long most, unsigned only)
{
    unsigned wrong = 0;
    uint8_t *data = bench_need(data_normal(CWS_BF16, BASE_WEIGHTS, 0.02));
    size_t bytes = 2 * (size_t)most;
    CUdeviceptr from = bench_device(b, bytes), to = bench_device(b, bytes);
    for (size_t at = 0; at + 2 * BASE_WEIGHTS <= bytes; at += 2 * BASE_WEIGHTS)
        bench_upload(b, from + at, data, 2 * BASE_WEIGHTS);
    printf("%-16s copy on the device: %.1f GB/s of output; content hash: %.1f GB/s\n", label,
           1e-9 * (double)bytes / time_copy(b, to, from, bytes), 1e-9 * (double)bytes / time_hash(b, from, bytes));
    bench_free(b, from);
    bench_free(b, to);
    for (unsigned s = 64; s <= 512; s *= 2)
        wrong += only && s != only ? 0 : time_one(b, label, CWS_MODE_LOSSLESS, s, data, most);
    for (unsigned s = 128; s <= 1024; s *= 2)
        wrong += only && s != only ? 0 : time_one(b, label, CWS_MODE_Q8, s, data, most);
    wrong += only && only != 256 ? 0 : time_one(b, label, CWS_MODE_Q6, 256, data, most);
    free(data);
    return wrong;
}
