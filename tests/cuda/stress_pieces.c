/* Random programs that put ranges together, against a shadow: threads with a stream each copy tensors and parts of
 * tensors into ranges, copy between ranges with calls and with kernels, cast, merge in place, write, read and free, in a
 * budget that holds a part of it, and rest, so that what they made is looked at, adopted or proven. What is pinned is
 * written to by kernels that nobody sees. Every read is compared with the shadow, byte by byte. Prints its seed; takes
 * one as argument, then the rounds. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { THREADS = 3, SLOTS = 6, CHUNK = 256 * 1024 };

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "stress_pieces: %s:%d: %s\n", __FILE__, __LINE__, #condition);                             \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static void hear_nothing(const char *line) { (void)line; } /* from several threads */

struct slot {
    CUdeviceptr at;
    size_t bytes;
    uint8_t *shadow;
    uint8_t *known; /* a byte per chunk: what is there is known, so that it can be compared */
    bool pinned;
};

struct worker {
    uint64_t seed;
    struct fixture *f;
    CUstream stream;
    CUdeviceptr out;
    struct slot slots[SLOTS];
};

static unsigned rounds = SANITIZED ? 30 : 250;
static atomic_ulong bound, copied, carried, refused;
static unsigned long found, taken; /* of all managers: recognized on the device, adopted from there */

static size_t pick(struct worker *w, size_t n) { return (size_t)(sample_random(&w->seed) % n); }

static bool begin(struct worker *w, const CUdeviceptr *at, size_t count, struct cws_gpu_use *use)
{
    CUresult result = cws_gpu_begin(w->f->gpu, w->stream, at, count, use);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY);
    refused += result != CUDA_SUCCESS;
    return result == CUDA_SUCCESS;
}

static void note(struct slot *s, size_t at, const uint8_t *from, size_t bytes)
{
    if (from)
        memcpy(s->shadow + at, from, bytes);
    size_t first = (at + CHUNK - 1) / CHUNK,
           end = at + bytes == s->bytes ? (s->bytes + CHUNK - 1) / CHUNK : (at + bytes) / CHUNK;
    for (size_t i = first; i < end; i++)
        s->known[i] = 1;
}

/* Bytes of a tensor, to a place of the range. */
static void copy_part(struct worker *w, struct slot *s, size_t at, unsigned i, size_t offset, size_t bytes)
{
    uint64_t begin_at = cws_store_tensor(store, i)->begin + offset;
    const uint8_t *from = plain.data + begin_at;
    if (cws_gpu_bind(w->f->gpu, s->at + at, bytes, w->stream, store, begin_at)) {
        bound++;
    } else {
        struct cws_gpu_use use;
        if (!begin(w, &s->at, 1, &use))
            return;
        CHECK(driver.copy_in_async(s->at + at, from, bytes, w->stream) == CUDA_SUCCESS);
        cws_gpu_end(w->f->gpu, &use, true);
        cws_gpu_copied(w->f->gpu, s->at + at, bytes, store, begin_at);
        copied++;
    }
    note(s, at, from, bytes);
}

/* A tensor or chunks of one, to a place where the range has room for it. */
static void copy(struct worker *w, struct slot *s)
{
    unsigned i = (unsigned)pick(w, TENSORS);
    size_t bytes = tensor_bytes(i), offset = 0;
    if (pick(w, 3) == 0) {
        offset = pick(w, bytes / CHUNK) * CHUNK;
        bytes = pick(w, 2) ? bytes - offset : CHUNK;
    }
    if (bytes > s->bytes)
        return;
    size_t at = pick(w, 2) ? 0 : pick(w, 2) ? s->bytes - bytes : pick(w, (s->bytes - bytes) / CHUNK + 1) * CHUNK;
    copy_part(w, s, at, i, offset, bytes);
}

/* Half of them are two tensors, one after the other. */
static void get(struct worker *w, struct slot *s)
{
    unsigned a = (unsigned)pick(w, TENSORS), b = (unsigned)pick(w, TENSORS);
    bool fused = pick(w, 2);
    s->bytes = fused ? tensor_bytes(a) + tensor_bytes(b) : (2 + pick(w, 3)) * MIB;
    CUresult result = cws_gpu_alloc(w->f->gpu, s->bytes, w->stream, &s->at);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY);
    if (result != CUDA_SUCCESS) {
        refused++;
        s->at = 0;
        return;
    }
    s->shadow = calloc(1, s->bytes);
    s->known = calloc(1, s->bytes / CHUNK + 1);
    if (fused) {
        copy_part(w, s, 0, a, 0, tensor_bytes(a));
        copy_part(w, s, tensor_bytes(a), b, 0, tensor_bytes(b));
    }
}

static void put(struct worker *w, struct slot *s)
{
    CHECK(cws_gpu_free(w->f->gpu, s->at, w->stream, pick(w, 2)) == CUDA_SUCCESS);
    free(s->shadow);
    free(s->known);
    *s = (struct slot){0};
}

static void move(struct worker *w, struct slot *to, struct slot *from)
{
    size_t most = to->bytes < from->bytes ? to->bytes : from->bytes;
    size_t bytes = pick(w, 2) ? most : (1 + pick(w, most / CHUNK)) * CHUNK;
    size_t at = pick(w, (to->bytes - bytes) / CHUNK + 1) * CHUNK,
           begin_at = pick(w, (from->bytes - bytes) / CHUNK + 1) * CHUNK;
    struct cws_gpu_use use;
    CUdeviceptr both[] = {to->at, from->at};
    bool kernel = pick(w, 3) == 0;
    if (!kernel && cws_gpu_carry(w->f->gpu, to->at + at, from->at + begin_at, bytes, w->stream)) {
        carried++;
    } else {
        if (!begin(w, both, 2, &use))
            return;
        CHECK(driver.copy_async(to->at + at, from->at + begin_at, bytes, w->stream) == CUDA_SUCCESS);
        cws_gpu_end(w->f->gpu, &use, true);
        if (!kernel) /* the manager sees no more of a kernel than what it names */
            cws_gpu_carried(w->f->gpu, to->at + at, from->at + begin_at, bytes);
    }
    bool all = true;
    for (size_t i = begin_at / CHUNK; i < (begin_at + bytes + CHUNK - 1) / CHUNK; i++)
        all &= from->known[i];
    memcpy(to->shadow + at, from->shadow + begin_at, bytes);
    if (all)
        note(to, at, NULL, bytes);
    else
        memset(to->known + at / CHUNK, 0, (bytes + CHUNK - 1) / CHUNK);
}

/* The manager does not see what a hidden kernel names. */
static bool launch_of(struct worker *w, struct slot *s, const char *name, void **params, bool hidden)
{
    CUfunction function;
    struct cws_gpu_use use;
    CHECK(driver.module_function(&function, w->f->kernels, name) == CUDA_SUCCESS);
    if (!hidden && !begin(w, &s->at, 1, &use))
        return false;
    CHECK(driver.launch(function, 1, 1, 1, 1, 1, 1, 0, w->stream, params, NULL) == CUDA_SUCCESS);
    if (!hidden)
        cws_gpu_end(w->f->gpu, &use, true);
    return true;
}

static void write_to(struct worker *w, struct slot *s, bool hidden)
{
    size_t chunk = pick(w, s->bytes / CHUNK);
    CUdeviceptr at = s->at + chunk * CHUNK;
    uint64_t bytes = CHUNK;
    uint32_t value = (uint32_t)pick(w, 256);
    void *params[] = {&at, &bytes, &value};
    if (!launch_of(w, s, "fill", params, hidden))
        return;
    memset(s->shadow + chunk * CHUNK, (int)value, CHUNK);
    s->known[chunk] = 1;
}

/* Kernels reach it by hidden pointers from now on. */
static void pin(struct worker *w, struct slot *s)
{
    struct cws_gpu_use use;
    cws_gpu_pin(w->f->gpu, s->at);
    if (!s->pinned && begin(w, &s->at, 1, &use)) {
        cws_gpu_end(w->f->gpu, &use, true);
        s->pinned = true;
    }
}

/* Other bytes all over it, where they are known: as a kernel that casts, or merges an adapter, each chunk. */
static void merge(struct worker *w, struct slot *s)
{
    uint32_t value = (uint32_t)pick(w, 1000) + 1, word;
    for (size_t chunk = 0; chunk < s->bytes / CHUNK; chunk++) {
        size_t offset = chunk * CHUNK + 16 * pick(w, CHUNK / 16);
        CUdeviceptr at = s->at + offset;
        uint64_t words = 1;
        void *params[] = {&at, &words, &value};
        if (!launch_of(w, s, "add", params, false))
            return;
        memcpy(&word, s->shadow + offset, 4);
        word += value;
        memcpy(s->shadow + offset, &word, 4);
    }
}

/* The loader comes to rest. */
static void rest(struct worker *w) { usleep((unsigned)pick(w, 400)); }

static void look(struct worker *w, struct slot *s)
{
    struct cws_gpu_use use;
    if (!begin(w, &s->at, 1, &use))
        return;
    uint8_t *back = malloc(s->bytes);
    CHECK(driver.copy_out_async(back, s->at, s->bytes, w->stream) == CUDA_SUCCESS);
    cws_gpu_end(w->f->gpu, &use, true);
    CHECK(driver.stream_sync(w->stream) == CUDA_SUCCESS);
    for (size_t at = 0; at < s->bytes; at += CHUNK)
        CHECK(!s->known[at / CHUNK] ||
              memcmp(back + at, s->shadow + at, s->bytes - at < CHUNK ? s->bytes - at : CHUNK) == 0);
    free(back);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    CHECK(driver.context_set(w->f->context) == CUDA_SUCCESS);
    for (unsigned i = 0; i < rounds; i++) {
        struct slot *s = &w->slots[pick(w, SLOTS)], *other = &w->slots[pick(w, SLOTS)];
        size_t what = pick(w, 16);
        if (!s->at)
            get(w, s);
        else if (what == 0)
            put(w, s);
        else if (what == 1)
            write_to(w, s, s->pinned && pick(w, 2));
        else if (what < 5 && other->at && other != s)
            move(w, s, other);
        else if (what < 8)
            copy(w, s);
        else
            look(w, s);
        size_t more = pick(w, 64);
        if (what == 15)
            cws_gpu_trim(w->f->gpu, 0);
        else if (more < 4 && s->at)
            merge(w, s);
        else if (more == 4 && s->at)
            pin(w, s);
        else if (more < 16)
            rest(w);
        const char *wrong = i % 16 ? NULL : cws_gpu_check(w->f->gpu);
        if (wrong)
            fprintf(stderr, "stress_pieces: %s\n", wrong);
        CHECK(!wrong);
    }
    for (unsigned i = 0; i < SLOTS; i++)
        if (w->slots[i].at) {
            look(w, &w->slots[i]);
            put(w, &w->slots[i]);
        }
    return NULL;
}

static void run(uint64_t seed, uint64_t budget, bool prefetch, bool adopts)
{
    struct worker workers[THREADS] = {0};
    pthread_t threads[THREADS];
    static struct cws_tuning tuning;
    host_budget = 24 * MIB;
    hear = hear_nothing;
    adopt = adopts;
    start_driver(256 * MIB, 1);
    standin_delay((unsigned)seed, 40);
    struct fixture *f = open_gpu_on(0, budget, prefetch);
    cws_gpu_lock(&f->gpu->core);
    tuning = cws_tuning_default;
    tuning.look_uses = 1 + seed % 8; /* it is looked at often */
    tuning.look_every_ns = 1000000;
    f->gpu->core.tuning = &tuning;
    cws_gpu_unlock(&f->gpu->core);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].seed = seed + i;
        workers[i].f = f;
        CHECK(driver.stream_create(&workers[i].stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        cws_gpu_stream_gone(f->gpu, workers[i].stream);
        CHECK(driver.stream_destroy(workers[i].stream) == CUDA_SUCCESS);
    }
    struct cws_gpu_stats stats;
    cws_gpu_stats_get(f->gpu, &stats);
    printf("budget %zu MiB, prefetch %d: %lu bound, %lu copied, %lu carried, %lu refused, %lu loads, %lu drops, %lu "
           "spills, %lu proven\n",
           (size_t)(budget >> 20), prefetch, atomic_load(&bound), atomic_load(&copied), atomic_load(&carried),
           atomic_load(&refused), (unsigned long)stats.loads, (unsigned long)stats.drops, (unsigned long)stats.spills,
           (unsigned long)stats.proven);
    CHECK(stats.peak_bytes <= budget);
    CHECK(stats.adopted_bytes == 0);
    found += f->gpu->looks.found;
    taken += f->gpu->adopts.taken;
    printf("%lu recognized, %lu adopted from the device so far\n", found, taken);
    close_gpu(f);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : rounds;
    printf("seed %llu\n", (unsigned long long)seed);
    group_setup(NULL);
    run(seed, 36 * MIB, true, true);
    run(seed + 100, 40 * MIB, false, false);
    run(seed + 200, 64 * MIB, true, true);
    if (rounds >= 200)
        CHECK(found > 0 && taken > 0);
    group_teardown(NULL);
    return 0;
}
