/* Random work on the CUDA manager against a shadow: several threads with a stream each allocate, bind, read, write and
 * free ranges in a budget that holds a part of them, and that they change. Every read is compared with what the shadow
 * says. Prints its seed; takes one as argument. */
#include "store/cuda/decoder.h"
#include "store/pack/writer.h"
#include "uvm/cuda/gpu.h"
#include "tests/support/sample_model.h"
#include "tests/standin/standin.h"
#include "tests/support/sanitized.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TENSORS = 10, THREADS = 4, SLOTS = 5 };
#define MIB ((size_t)1 << 20)

static struct cws_driver driver;
static struct cws_store *store;
static struct bytes plain;
static struct cws_gpu *gpu;
static CUcontext context;
static CUmodule kernels;
static atomic_ulong steps, refused, resized;
static uint64_t first_budget;
/* addresses of any thread's ranges, also of freed ones: stray words in the parameters of kernels */
static _Atomic CUdeviceptr seen[8];
static unsigned rounds = SANITIZED ? 30 : 120;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "stress_gpu: %s:%d: %s\n", __FILE__, __LINE__, #condition);                                \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static bool talk; /* second argument after the rounds: say what the manager says */
static void say(const char *line)
{
    if (talk)
        fprintf(stderr, "%s\n", line);
}
static size_t tensor_bytes(unsigned i) { return MIB + 4096 * (size_t)i * (i % 3 ? 61 : 7); }

static void make_store(uint64_t seed)
{
    char json[4096];
    size_t at = 0, len = (size_t)snprintf(json, sizeof json, "{");
    for (unsigned i = 0; i < TENSORS; i++) {
        len += (size_t)snprintf(json + len, sizeof json - len,
                                "%s\"t%u\":{\"dtype\":\"F32\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                                i ? "," : "", i, tensor_bytes(i) / 4, at, at + tensor_bytes(i));
        at += tensor_bytes(i);
    }
    snprintf(json + len, sizeof json - len, "}");
    uint8_t *data = malloc(at);
    for (size_t i = 0; i + 4 <= at; i += 4) {
        float f = (float)(sample_random(&seed) & 0xffff) / 1e6f;
        memcpy(data + i, &f, 4);
    }
    plain = sample_file(json, 1, data, at);
    free(data);
    struct cws_pack_options options = {0};
    struct cws_error err = {0};
    sample_save(sample_path("s.safetensors"), plain.data, plain.size);
    CHECK(!cws_pack_file(sample_path("s.safetensors"), sample_path("s.store"), &options, NULL, &err));
    CHECK(!cws_store_open(sample_path("s.store"), CWS_IO_AUTO, &store, &err));
}

struct slot { /* one range of a thread and what must be in it */
    CUdeviceptr at;
    size_t bytes;
    unsigned tensor; /* UINT32_MAX: none */
    uint8_t *shadow; /* NULL: the tensor, or nothing yet */
};

struct worker {
    uint64_t seed;
    CUstream stream;
    CUdeviceptr out;
    struct slot slots[SLOTS];
};

static unsigned pick(struct worker *w, unsigned n) { return (unsigned)(sample_random(&w->seed) % n); }

static CUresult launch(struct worker *w, const char *name, CUdeviceptr named, void **params)
{
    CUfunction function;
    struct cws_gpu_use use;
    CHECK(driver.module_function(&function, kernels, name) == CUDA_SUCCESS);
    CUdeviceptr all[2] = {named, atomic_load(&seen[pick(w, 8)])};
    CUresult result = cws_gpu_begin(gpu, w->stream, all, 1 + pick(w, 2), &use);
    if (result != CUDA_SUCCESS) {
        if (result != CUDA_ERROR_OUT_OF_MEMORY)
            fprintf(stderr, "stress_gpu: error %d\n", result);
        CHECK(result == CUDA_ERROR_OUT_OF_MEMORY);
        atomic_fetch_add(&refused, 1);
        return result;
    }
    CHECK(driver.launch(function, 1, 1, 1, 1, 1, 1, 0, w->stream, params, NULL) == CUDA_SUCCESS);
    cws_gpu_end(gpu, &use, true);
    return CUDA_SUCCESS;
}

static const uint8_t *expected(const struct slot *s)
{
    if (s->shadow)
        return s->shadow;
    return s->tensor != UINT32_MAX ? plain.data + cws_store_tensor(store, s->tensor)->begin : NULL;
}

/* Bytes of no store, from a buffer that is changed at once. */
static bool adopt(struct worker *w, struct slot *s)
{
    uint8_t *buffer = malloc(s->bytes);
    memset(buffer, (int)pick(w, 256), s->bytes);
    for (unsigned i = 0; i < 64; i++)
        buffer[pick(w, (unsigned)s->bytes)] = (uint8_t)pick(w, 256);
    s->shadow = malloc(s->bytes);
    memcpy(s->shadow, buffer, s->bytes);
    bool adopted = cws_gpu_adopt_wants(gpu, s->at, s->bytes, w->stream, 256 * MIB) &&
                   cws_gpu_adopt(gpu, s->at, s->bytes, w->stream, buffer);
    memset(buffer, 0xee, s->bytes);
    free(buffer);
    if (!adopted) {
        free(s->shadow);
        s->shadow = NULL;
    }
    s->tensor = adopted ? UINT32_MAX : s->tensor;
    return adopted;
}

static void get(struct worker *w, struct slot *s)
{
    s->tensor = pick(w, TENSORS);
    s->bytes = tensor_bytes(s->tensor);
    CUresult result = cws_gpu_alloc(gpu, s->bytes, w->stream, &s->at);
    if (result != CUDA_SUCCESS) {
        CHECK(result == CUDA_ERROR_OUT_OF_MEMORY);
        s->at = 0;
        return;
    }
    atomic_store(&seen[pick(w, 8)], s->at);
    if (pick(w, 3) == 0 && adopt(w, s))
        return;
    if (pick(w, 4) == 0 ||
        !cws_gpu_bind(gpu, s->at, s->bytes, w->stream, store, cws_store_tensor(store, s->tensor)->begin))
        s->tensor = UINT32_MAX;
}

static void put(struct worker *w, struct slot *s)
{
    CHECK(cws_gpu_free(gpu, s->at, w->stream, pick(w, 2)) == CUDA_SUCCESS);
    free(s->shadow);
    *s = (struct slot){0};
}

static void look(struct worker *w, struct slot *s)
{
    const uint8_t *should = expected(s);
    uint64_t sum = 0, bytes = s->bytes, got = 0;
    void *params[] = {&w->out, &s->at, &bytes};
    if (!should || launch(w, "sum", s->at, params) != CUDA_SUCCESS)
        return;
    CHECK(driver.stream_sync(w->stream) == CUDA_SUCCESS);
    CHECK(driver.copy_out(&got, w->out, 8) == CUDA_SUCCESS);
    for (size_t i = 0; i < s->bytes; i++)
        sum += should[i];
    CHECK(got == sum);
}

static void write_to(struct worker *w, struct slot *s)
{
    uint64_t words = 16;
    uint32_t value = pick(w, 1000) + 1;
    const uint8_t *should = expected(s);
    if (!should) {
        uint64_t bytes = s->bytes;
        void *params[] = {&s->at, &bytes, &value};
        if (launch(w, "fill", s->at, params) != CUDA_SUCCESS)
            return;
        s->shadow = malloc(s->bytes);
        memset(s->shadow, (int)(value & 0xff), s->bytes);
        return;
    }
    size_t offset = pick(w, (unsigned)(s->bytes / 4 - 16)) * 4;
    CUdeviceptr at = s->at + offset;
    void *params[] = {&at, &words, &value};
    if (launch(w, "add", at, params) != CUDA_SUCCESS)
        return;
    if (!s->shadow) {
        s->shadow = malloc(s->bytes);
        memcpy(s->shadow, should, s->bytes);
    }
    for (unsigned i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, s->shadow + offset + 4 * i, 4);
        word += value;
        memcpy(s->shadow + offset + 4 * i, &word, 4);
    }
}

/* Another budget, between a half and all of the first one, which may be refused; or sleep. */
static void resize(struct worker *w)
{
    struct cws_error err = {0};
    unsigned part = pick(w, 12);
    if (part > 8) {
        cws_gpu_sleep(gpu);
        return;
    }
    uint64_t bytes = first_budget / 16 * (8 + part);
    int code = cws_gpu_set_budget(gpu, bytes, &err);
    CHECK(code == 0 || code == CWS_E_BUDGET);
    atomic_fetch_add(&resized, code == 0);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    CHECK(driver.context_set(context) == CUDA_SUCCESS);
    for (unsigned i = 0; i < rounds; i++) {
        struct slot *s = &w->slots[pick(w, SLOTS)];
        atomic_fetch_add(&steps, 1);
        if (!s->at)
            get(w, s);
        else if (pick(w, 8) == 0)
            put(w, s);
        else if (pick(w, 10) == 0)
            write_to(w, s);
        else
            look(w, s);
        if (pick(w, 16) == 0)
            cws_gpu_trim(gpu, pick(w, 4) * MIB);
        else if (pick(w, 40) == 0)
            resize(w);
        else if (pick(w, 12) == 0)
            usleep(pick(w, 400)); /* the loader comes to rest */
        const char *wrong = i % 16 ? NULL : cws_gpu_check(gpu);
        if (wrong)
            fprintf(stderr, "stress_gpu: %s\n", wrong);
        CHECK(!wrong);
    }
    for (unsigned i = 0; i < SLOTS; i++)
        if (w->slots[i].at) {
            look(w, &w->slots[i]);
            put(w, &w->slots[i]);
        }
    return NULL;
}

static void run(uint64_t seed, uint64_t budget, bool prefetch, enum cws_policy_id policy)
{
    static const uint32_t image[16] = {0xba55ed50};
    struct worker workers[THREADS] = {0};
    pthread_t threads[THREADS];
    struct cws_error err = {0};
    struct cws_gpu_stats stats;
    char text[256];
    standin_reset(256 * MIB);
    standin_delay((unsigned)seed, 50);
    CHECK(cws_driver_fill(&driver, standin_resolve, NULL, &err) == 0);
    CHECK(driver.init(0) == 0 && driver.primary_retain(&context, 0) == 0 && driver.context_set(context) == 0);
    struct cws_gpu_config config = {.driver = &driver,
                                    .budget_bytes = budget,
                                    .host_budget_bytes = (budget > 24 * MIB ? 48 : 12) * MIB,
                                    .policy = policy,
                                    .prefetch = prefetch,
                                    .adopt = true,
                                    .ring_bytes = 8 * MIB,
                                    .kernels = image,
                                    .say = say};
    first_budget = budget;
    CHECK(cws_gpu_open(&config, 0, &gpu, &err) == 0);
    static struct cws_tuning tuning;
    cws_gpu_lock(&gpu->core);
    tuning = cws_tuning_default;
    tuning.spill_unused_long = 12;   /* so that what is old is adopted */
    tuning.look_uses = 1 + seed % 4; /* and what does not change is found */
    tuning.look_every_ns = 1000000;
    gpu->core.tuning = &tuning;
    cws_gpu_unlock(&gpu->core);
    CHECK(driver.module_load(&kernels, &standin_test_image) == 0);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].seed = seed + i;
        CHECK(driver.stream_create(&workers[i].stream, CU_STREAM_NON_BLOCKING) == 0);
        CHECK(driver.mem_alloc(&workers[i].out, 64) == 0);
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cws_gpu_stats_get(gpu, &stats);
    printf("budget %zu MiB, prefetch %d, policy %d: %lu steps, %lu refused, %lu loads, %lu drops, peak %.1f MiB\n",
           (size_t)(budget >> 20), prefetch, policy, atomic_load(&steps), atomic_load(&refused),
           (unsigned long)stats.loads, (unsigned long)stats.drops, (double)stats.peak_bytes / (1 << 20));
    printf("%lu spills, %lu adopted from the device, %lu of them where they lay\n", (unsigned long)stats.spills,
           (unsigned long)gpu->adopts.taken, (unsigned long)gpu->looks.found);
    printf("the budget was changed %lu times\n", atomic_load(&resized));
    CHECK(stats.peak_bytes <= budget);
    CHECK(stats.adopted_bytes == 0);
    for (unsigned i = 0; i < THREADS; i++) {
        cws_gpu_stream_gone(gpu, workers[i].stream);
        CHECK(driver.stream_destroy(workers[i].stream) == 0);
        CHECK(driver.mem_free(workers[i].out) == 0);
    }
    CHECK(!cws_gpu_check(gpu));
    cws_gpu_close(gpu);
    CHECK(driver.module_unload(kernels) == 0);
    CHECK(driver.primary_release(0) == 0);
    if (standin_leak_text(text, sizeof text)) {
        fprintf(stderr, "stress_gpu: left behind: %s\n", text);
        abort();
    }
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    talk = argc > 3;
    rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : rounds;
    printf("seed %llu\n", (unsigned long long)seed);
    make_store(seed);
    run(seed, 24 * MIB, true, CWS_POLICY_NEXT);
    run(seed + 100, 32 * MIB, false, CWS_POLICY_LRU);
    run(seed + 200, 96 * MIB, true, CWS_POLICY_NEXT);
    cws_store_close(store);
    free(plain.data);
    return 0;
}
