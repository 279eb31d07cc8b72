/* bench_check.c - bench_decode check: every dtype, codec, lane length and odd size in one launch, compared with the
 * reference decoder; then corrupt chunks. */
#include "bench.h"

#define GUARD 64u
#define GUARD_BYTE 0xa5
#define CASES_MAX 4096u

struct check_case {
    struct data_chunk chunk;
    uint8_t *good; /* stored bytes as encoded; chunk.stored may be changed */
    uint8_t *want; /* NULL: the reference refuses it */
    uint64_t first_byte;
    size_t stored_at, dst_at;
    struct cws_gpu_job job;
    uint32_t result_at;
    uint32_t logical;
    bool sent;
};

static struct check_case cases[CASES_MAX];
static unsigned case_count, findings;

static void find(unsigned i, const char *what)
{
    const struct check_case *c = &cases[i];
    if (findings++ < 20)
        printf("case %u (%s, codec %d, %u bytes at %llu, S %u): %s\n", i, cws_dtype_name(c->chunk.context.dtype),
               (int)c->chunk.context.codec, c->logical, (unsigned long long)c->first_byte, c->chunk.plan.lane_symbols,
               what);
}

static void judge(struct check_case *c)
{
    free(c->want);
    c->want = bench_need(malloc(c->logical + 1));
    if (cws_chunk_decode_ref(&c->chunk.context, c->chunk.plan.packed, c->chunk.stored, c->chunk.stored_bytes,
                             c->logical, c->want, NULL) != 0) {
        free(c->want);
        c->want = NULL;
    }
}

static void add_case(struct bench *b, const struct cws_plan *plan, unsigned lane_symbols, const uint8_t *data,
                     size_t at, size_t bytes)
{
    struct check_case *c = &cases[case_count];
    if (case_count == CASES_MAX)
        bench_die("cases", "too many");
    c->chunk.plan = *plan;
    c->chunk.plan.lane_symbols = (uint16_t)lane_symbols;
    c->logical = (uint32_t)bytes;
    c->first_byte = at;
    if (data_encode(&c->chunk, data, at, bytes, b->scratch) != 0)
        bench_die("encoding", "failed");
    if (c->chunk.context.codec == CWS_CODEC_ZSTD) {
        data_chunk_free(&c->chunk);
        return;
    }
    c->good = bench_need(malloc(c->chunk.stored_bytes + 1));
    memcpy(c->good, c->chunk.stored, c->chunk.stored_bytes);
    judge(c);
    if (!c->want)
        bench_die("reference", "refuses what the encoder made");
    case_count++;
}

/* A tensor of rows x cols, whole where it is small, and pieces of it. */
static void add_tensor(struct bench *b, enum cws_mode mode, enum cws_dtype dtype, size_t rows, size_t cols, int kind)
{
    struct cws_plan plan;
    unsigned size = cws_dtype_unit(dtype);
    size_t elems = rows * cols, bytes = elems * size;
    /* 3: scales whose multiple of 2^23 is none of float's numbers */
    uint8_t *data = bench_need(data_normal(dtype, elems, kind == 3 ? 1e37 : 0.02));
    for (size_t i = 0; kind == 1 && i < elems; i++) /* constant low plane */
        data[i * size] = 0;
    for (size_t i = 0; kind == 2 && i < elems; i++) /* lanes of very different length */
        if (i / 8 % 32 < 16)
            memcpy(data + i * size, data, size);
    data_plan(&plan, mode, dtype, data, rows, cols);
    for (unsigned s = 64; s <= 1024; s *= 2) {
        add_case(b, &plan, s, data, 0, bytes < plan.chunk_bytes ? bytes : plan.chunk_bytes);
        /* No chunk of a store starts here, but the decoder need not know; the encoder wants whole rows of a scale. */
        size_t at = plan.row_elems ? 16 * cols * size : bytes / 3 / 16 * 16;
        if (bytes > plan.chunk_bytes)
            at = plan.chunk_bytes;
        if (at > 0 && at < bytes && s <= 256)
            add_case(b, &plan, s, data, at, bytes - at < plan.chunk_bytes ? bytes - at : plan.chunk_bytes);
    }
    free(data);
}

static void add_raw(struct bench *b, size_t bytes)
{
    struct cws_plan plan;
    uint8_t *data = bench_need(malloc(bytes));
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)data_u64();
    data_plan(&plan, CWS_MODE_LOSSLESS, CWS_U8, data, 1, bytes);
    plan.codec = CWS_CODEC_RAW;
    add_case(b, &plan, 256, data, 0, bytes);
    free(data);
}

static void add_all(struct bench *b)
{
    static const size_t counts[] = {1,    7,    8,    9,    31,   33,   255,   256,  257,
                                    2047, 2048, 2049, 4097, 8191, 8193, 16385, 70001};
    static const enum cws_dtype dtypes[] = {CWS_BF16, CWS_F16, CWS_F32, CWS_F64, CWS_F8_E4M3, CWS_F8_E5M2};
    static const size_t shapes[][2] = {{64, 64}, {100, 77}, {3, 4099}, {200, 33}, {1000, 32}, {17, 1023}};
    static const size_t raw[] = {1, 15, 16, 17, 511, 512, 513, 16383, 16384, 16385, 40000};
    for (size_t d = 0; d < 6; d++) {
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            add_tensor(b, CWS_MODE_LOSSLESS, dtypes[d], 1, counts[i], 0);
        for (int kind = 1; kind < 3; kind++)
            add_tensor(b, CWS_MODE_LOSSLESS, dtypes[d], 5, 8209, kind);
    }
    for (size_t d = 0; d < 3; d++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int mode = CWS_MODE_Q8; mode <= CWS_MODE_Q6; mode++)
                add_tensor(b, (enum cws_mode)mode, dtypes[d], shapes[i][0], shapes[i][1], 0);
    add_tensor(b, CWS_MODE_Q8, CWS_BF16, 2, 140000, 0); /* rows longer than a chunk */
    add_tensor(b, CWS_MODE_Q8, CWS_BF16, 16, 1000, 3);
    add_tensor(b, CWS_MODE_Q6, CWS_F32, 16, 1000, 3);
    for (size_t i = 0; i < sizeof raw / sizeof *raw; i++)
        add_raw(b, raw[i]);
}

struct device_side {
    CUdeviceptr stored, dst, tables, jobs, results;
    size_t stored_bytes, dst_bytes;
    uint8_t *image, *out;
    struct cws_gpu_job *job_list;
    struct cws_gpu_result *result_list;
};

static void device_start(struct bench *b, struct device_side *d)
{
    for (unsigned i = 0; i < case_count; i++) {
        cases[i].stored_at = d->stored_bytes;
        cases[i].dst_at = d->dst_bytes + GUARD;
        d->stored_bytes += (cases[i].chunk.stored_bytes + CWS_STREAM_PAD + 63) / 64 * 64;
        d->dst_bytes = (cases[i].dst_at + cases[i].logical + GUARD + 15) / 16 * 16;
    }
    d->stored = bench_device(b, d->stored_bytes);
    d->dst = bench_device(b, d->dst_bytes);
    d->tables = bench_device(b, case_count * sizeof(struct cws_gpu_table));
    d->jobs = bench_device(b, case_count * sizeof(struct cws_gpu_job));
    d->results = bench_device(b, case_count * sizeof(struct cws_gpu_result));
    d->image = bench_need(calloc(1, d->stored_bytes));
    d->out = bench_need(malloc(d->dst_bytes));
    d->job_list = bench_need(calloc(case_count, sizeof *d->job_list));
    d->result_list = bench_need(calloc(case_count, sizeof *d->result_list));
    struct cws_gpu_table *tables = bench_need(aligned_alloc(16, case_count * sizeof *tables));
    memset(tables, 0, case_count * sizeof *tables);
    for (unsigned i = 0; i < case_count; i++)
        if (cases[i].chunk.table && cws_gpu_table_build(cases[i].chunk.plan.packed, &tables[i], NULL) != 0)
            find(i, "its table was refused");
    bench_upload(b, d->tables, tables, case_count * sizeof *tables);
    free(tables);
}

static void device_end(struct bench *b, struct device_side *d)
{
    const CUdeviceptr memory[] = {d->stored, d->dst, d->tables, d->jobs, d->results};
    for (unsigned i = 0; i < sizeof memory / sizeof *memory; i++)
        bench_free(b, memory[i]);
    free(d->image);
    free(d->out);
    free(d->job_list);
    free(d->result_list);
}

static int make_job(const struct device_side *d, unsigned i, const uint8_t *stored, struct cws_gpu_job *job)
{
    const struct check_case *c = &cases[i];
    struct cws_gpu_chunk chunk = {
        .dtype = c->chunk.context.dtype,
        .codec = c->chunk.context.codec,
        .row_elems = c->chunk.context.row_elems,
        .first_byte = c->first_byte,
        .stored_bytes = (uint32_t)c->chunk.stored_bytes,
        .logical_bytes = c->logical,
        .stored = d->stored + c->stored_at,
        .dst = d->dst + c->dst_at,
        .table = d->tables + i * sizeof(struct cws_gpu_table),
    };
    return cws_gpu_job_init(job, &chunk, stored, NULL);
}

static enum cws_gpu_kind kind_of(struct cws_gpu_job job)
{
    struct cws_error err;
    struct cws_gpu_batch batch;
    bench_rc(cws_gpu_batch_plan(&job, 1, &batch, &err), &err);
    return batch.kind;
}

/* apart: each kind of chunk in a launch of its own, by the kernel that is for it; else all in one. */
static void run(struct bench *b, struct device_side *d, const uint64_t key[2], bool apart)
{
    struct cws_error err;
    struct cws_gpu_batch batch[CWS_GPU_KINDS];
    uint32_t n = 0, begin[CWS_GPU_KINDS], groups = apart ? CWS_GPU_KINDS : 1;
    for (unsigned i = 0; i < case_count; i++)
        memcpy(d->image + cases[i].stored_at, cases[i].chunk.stored, cases[i].chunk.stored_bytes + CWS_STREAM_PAD);
    for (uint32_t g = 0; g < groups; g++) {
        begin[g] = n;
        for (unsigned i = 0; i < case_count; i++) {
            if (!cases[i].sent || (apart && kind_of(cases[i].job) != g))
                continue;
            cases[i].result_at = n;
            d->job_list[n++] = cases[i].job;
        }
        bench_rc(cws_gpu_batch_plan(d->job_list + begin[g], n - begin[g], &batch[g], &err), &err);
        if (n > begin[g] && batch[g].kind != (apart ? g : CWS_GPU_ANY))
            bench_die("plan", "chose another kernel");
    }
    memset(d->out, GUARD_BYTE, d->dst_bytes);
    bench_upload(b, d->stored, d->image, d->stored_bytes);
    bench_upload(b, d->dst, d->out, d->dst_bytes);
    bench_upload(b, d->jobs, d->job_list, n * sizeof *d->job_list);
    bench_clear(b, d->results, n * sizeof *d->result_list);
    for (uint32_t g = 0; g < groups; g++)
        bench_rc(cws_gpu_decode(b->decoder, b->stream, d->jobs + begin[g] * sizeof(struct cws_gpu_job), &batch[g],
                                d->results + begin[g] * sizeof(struct cws_gpu_result), key, &err),
                 &err);
    bench_driver(b, b->driver.stream_sync(b->stream), "decoding");
    bench_download(b, d->result_list, d->results, n * sizeof *d->result_list);
    bench_download(b, d->out, d->dst, d->dst_bytes);
}

/* Outputs, statuses, hashes and guards of the last run. */
static void compare(const struct device_side *d, const uint64_t key[2])
{
    size_t clean = 0;
    for (unsigned i = 0; i < case_count; i++) {
        const struct check_case *c = &cases[i];
        for (; clean < c->dst_at; clean++)
            if (d->out[clean] != GUARD_BYTE) {
                find(i, "bytes before its destination were written");
                break;
            }
        clean = c->dst_at + c->logical;
        if (!c->sent)
            continue;
        const struct cws_gpu_result *r = &d->result_list[c->result_at];
        if (!c->want) {
            if (r->status == CWS_GPU_OK)
                find(i, "accepted, but the reference refuses it");
            continue;
        }
        if (r->status != CWS_GPU_OK) {
            find(i, cws_gpu_status_text(r->status));
            continue;
        }
        struct cws_hash128 h = {0, 0}, got = cws_gpu_result_hash(r);
        cws_content_hash_add(&h, key, c->want, c->logical, c->first_byte);
        if (memcmp(d->out + c->dst_at, c->want, c->logical) != 0)
            find(i, "other bytes than the reference's");
        else if (h.lo != got.lo || h.hi != got.hi)
            find(i, "other hash than the host's");
    }
}

static void restore(struct check_case *c) { memcpy(c->chunk.stored, c->good, c->chunk.stored_bytes); }

/* Flips bits of a chunk: anywhere, or where the decoder takes its decisions. */
static void damage(struct check_case *c, size_t from)
{
    size_t bytes = c->chunk.stored_bytes, span = bytes - from;
    unsigned flips = 1 + data_u64() % 3;
    while (flips--) {
        size_t at = from + data_u64() % span;
        if (data_u64() % 2) /* the last part: directory and streams */
            at = bytes - 1 - data_u64() % (span / 2 + 1);
        c->chunk.stored[at] ^= (uint8_t)(1u << data_u64() % 8);
    }
}

/* host_sees: the job is made from the damaged bytes, as in use; otherwise the device's copy alone is damaged. */
static unsigned corrupt(struct bench *b, struct device_side *d, bool host_sees, bool apart, const uint64_t key[2])
{
    unsigned refused = 0;
    for (unsigned i = 0; i < case_count; i++) {
        struct check_case *c = &cases[i];
        struct cws_gpu_job good;
        restore(c);
        c->sent = make_job(d, i, c->good, &good) == 0;
        if (c->chunk.context.codec == CWS_CODEC_RAW)
            continue;
        damage(c, host_sees ? 0 : good.directory_at);
        judge(c);
        refused += c->want == NULL;
        c->sent = make_job(d, i, c->chunk.stored, &c->job) == 0;
        if (!c->sent && c->want)
            find(i, "refused by the host side, but the reference accepts it");
        if (!host_sees) {
            c->job = good;
            if (!c->sent)
                continue; /* padding, which the device does not look at */
        }
    }
    run(b, d, key, apart);
    compare(d, key);
    return refused;
}

static void check_hash(struct bench *b, const uint64_t key[2])
{
    static const size_t sizes[] = {1, 16, 17, 2048, 16384, 16385, 100000, 1u << 20, (3u << 20) + 5};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    struct cws_error err;
    struct cws_gpu_batch batch;
    struct cws_gpu_hash_job jobs[COUNT];
    struct cws_gpu_result results[COUNT];
    size_t total = 0;
    for (unsigned i = 0; i < COUNT; i++)
        total += (sizes[i] + 15) / 16 * 16;
    uint8_t *data = bench_need(malloc(total));
    for (size_t i = 0; i < total; i++)
        data[i] = (uint8_t)data_u64();
    CUdeviceptr memory = bench_device(b, total), jobs_at = bench_device(b, sizeof jobs),
                results_at = bench_device(b, sizeof results);
    bench_upload(b, memory, data, total);
    size_t at = 0;
    for (unsigned i = 0; i < COUNT; at += (sizes[i] + 15) / 16 * 16, i++)
        jobs[i] = (struct cws_gpu_hash_job){.address = memory + at, .bytes = sizes[i], .first_word = 1000 * i};
    bench_rc(cws_gpu_hash_plan(jobs, COUNT, &batch, &err), &err);
    bench_upload(b, jobs_at, jobs, sizeof jobs);
    bench_clear(b, results_at, sizeof results);
    bench_rc(cws_gpu_hash(b->decoder, b->stream, jobs_at, &batch, results_at, key, &err), &err);
    bench_driver(b, b->driver.stream_sync(b->stream), "hashing");
    bench_download(b, results, results_at, sizeof results);
    at = 0;
    for (unsigned i = 0; i < COUNT; at += (sizes[i] + 15) / 16 * 16, i++) {
        struct cws_hash128 h = {0, 0}, got = cws_gpu_result_hash(&results[i]);
        cws_content_hash_add(&h, key, data + at, sizes[i], 16000 * (uint64_t)i);
        if (h.lo != got.lo || h.hi != got.hi || results[i].status != 0) {
            findings++;
            printf("hash of %zu bytes: not the host's\n", sizes[i]);
        }
    }
    bench_free(b, memory);
    bench_free(b, jobs_at);
    bench_free(b, results_at);
    free(data);
}

unsigned bench_check(struct bench *b, unsigned rounds)
{
    struct device_side d = {0};
    uint64_t key[2] = {data_u64(), data_u64()};
    unsigned refused = 0, damaged = 0;
    add_all(b);
    device_start(b, &d);
    for (unsigned i = 0; i < case_count; i++) {
        cases[i].sent = make_job(&d, i, cases[i].good, &cases[i].job) == 0;
        if (!cases[i].sent)
            find(i, "refused by the host side");
    }
    for (int apart = 0; apart < 2; apart++) {
        run(b, &d, key, apart);
        compare(&d, key);
    }
    check_hash(b, key);
    printf("check: %u chunks in one launch and by kind, %zu stored bytes: %u findings\n", case_count, d.stored_bytes,
           findings);
    for (unsigned r = 0; r < rounds; r++) {
        refused += corrupt(b, &d, r % 2 == 0, r % 4 >= 2, key);
        damaged += case_count;
    }
    printf("check: %u corrupt chunks, %u of them refused: %u findings\n", damaged, refused, findings);
    device_end(b, &d);
    return findings;
}
