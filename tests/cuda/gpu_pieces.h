/* gpu_pieces.h - for tests of ranges that are put together from tensors and parts of them: copies as the shim makes
 * them, and a shadow of what must be in each range. */
#ifndef CWS_TESTS_GPU_PIECES_H
#define CWS_TESTS_GPU_PIECES_H
#define GPU_TENSORS 70
#include "gpu_fixture.h"

struct part { /* what a copy brings: bytes of the logical file */
    uint64_t begin;
    size_t bytes;
};

struct made { /* a range of parts, and what must be in it */
    CUdeviceptr at;
    size_t bytes;
    uint8_t *shadow;
};

static inline struct part whole(unsigned i)
{
    return (struct part){cws_store_tensor(store, i)->begin, tensor_bytes(i)};
}

static inline struct part rows(unsigned i, uint64_t chunk, size_t chunks)
{
    size_t bytes = chunks * 256 * 1024;
    return (struct part){cws_store_tensor(store, i)->begin + chunk * 256 * 1024,
                         chunk * 256 * 1024 + bytes > tensor_bytes(i) ? tensor_bytes(i) - chunk * 256 * 1024 : bytes};
}

static inline const uint8_t *bytes_of(struct part p) { return plain.data + p.begin; }

static inline struct made make(struct fixture *f, size_t bytes)
{
    struct made m = {.bytes = bytes, .shadow = calloc(1, bytes)};
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &m.at), 0);
    return m;
}

static inline void drop(struct fixture *f, struct made *m)
{
    assert_int_equal(cws_gpu_free(f->gpu, m->at, f->stream, true), 0);
    free(m->shadow);
    *m = (struct made){0};
}

/* A copy as the shim does it. Returns whether it was bound. */
static inline bool copy(struct fixture *f, struct made *m, size_t at, struct part p)
{
    memcpy(m->shadow + at, bytes_of(p), p.bytes);
    if (cws_gpu_bind(f->gpu, m->at + at, p.bytes, f->stream, store, p.begin))
        return true;
    struct cws_gpu_use use;
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &m->at, 1, &use), 0);
    assert_int_equal(driver.copy_in_async(m->at + at, bytes_of(p), p.bytes, f->stream), 0);
    cws_gpu_end(f->gpu, &use, true);
    cws_gpu_copied(f->gpu, m->at + at, p.bytes, store, p.begin);
    return false;
}

static inline CUresult sum_of(struct fixture *f, const struct made *m, uint64_t *out)
{
    return sum_at(f, m->at, m->bytes, out);
}

static inline void expect_all(struct fixture *f, const struct made *m)
{
    uint8_t *back = malloc(m->bytes);
    CUresult result = copy_from(f, m->at, back, m->bytes);
    if (result != CUDA_SUCCESS)
        fail_msg("error %d: %s", result, last_line);
    assert_memory_equal(back, m->shadow, m->bytes);
    free(back);
    const char *wrong = cws_gpu_check(f->gpu);
    if (wrong)
        fail_msg("%s", wrong);
}

/* All are right, one after the other, and freed. */
static inline void expect_and_drop(struct fixture *f, struct made *m, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        expect_all(f, &m[i]);
        drop(f, &m[i]);
    }
}

static inline void write_word(struct fixture *f, struct made *m, size_t at)
{
    uint64_t words = 1;
    uint32_t value = 0x10203, word;
    CUdeviceptr to = m->at + at;
    void *params[] = {&to, &words, &value};
    assert_int_equal(launch(f, "add", &to, 1, params), 0);
    memcpy(&word, m->shadow + at, 4);
    word += value;
    memcpy(m->shadow + at, &word, 4);
}

static inline void fill_bytes(struct fixture *f, struct made *m, size_t at, size_t bytes, uint32_t value)
{
    uint64_t count = bytes;
    CUdeviceptr to = m->at + at;
    void *params[] = {&to, &count, &value};
    assert_int_equal(launch(f, "fill", &to, 1, params), 0);
    memset(m->shadow + at, (int)value, bytes);
}

static inline struct cws_gpu_stats stats_of(struct fixture *f)
{
    struct cws_gpu_stats stats;
    cws_gpu_settle(f->gpu);
    cws_gpu_stats_get(f->gpu, &stats);
    return stats;
}

/* As a fused projection: tensors i, i + 1 and i + 2 after each other. */
static inline struct made fuse(struct fixture *f, unsigned i)
{
    size_t at = 0;
    struct made m = make(f, tensor_bytes(i) + tensor_bytes(i + 1) + tensor_bytes(i + 2));
    for (unsigned k = 0; k < 3; k++) {
        copy(f, &m, at, whole(i + k));
        at += tensor_bytes(i + k);
    }
    return m;
}

/* Half of a tensor's rows, and of another one's, which ends it. */
static inline struct made take_rows(struct fixture *f, unsigned i)
{
    struct part a = rows(i, 2, 3), b = rows(i + 2, 3, 2);
    struct made m = make(f, a.bytes + b.bytes);
    assert_true(copy(f, &m, 0, a));
    assert_true(copy(f, &m, a.bytes, b));
    return m;
}

static inline void use_in_turns(struct fixture *f, const struct made *m, unsigned count, unsigned rounds)
{
    for (unsigned pass = 0; pass < rounds; pass++)
        for (unsigned i = 0; i < count; i++) {
            uint64_t sum = 0;
            CUresult result = sum_of(f, &m[i], &sum);
            if (result != CUDA_SUCCESS)
                fail_msg("error %d: %s", result, last_line);
            assert_int_equal(sum, plain_sum(m[i].shadow, m[i].bytes));
        }
}

/* A copy on the device as the shim does it. Returns whether it was bound. */
static inline bool move(struct fixture *f, struct made *to, size_t at, const struct made *from, size_t begin,
                        size_t bytes)
{
    struct cws_gpu_use use;
    CUdeviceptr both[] = {to->at, from->at};
    memcpy(to->shadow + at, from->shadow + begin, bytes);
    if (cws_gpu_carry(f->gpu, to->at + at, from->at + begin, bytes, f->stream))
        return true;
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, both, 2, &use), 0);
    assert_int_equal(driver.copy_async(to->at + at, from->at + begin, bytes, f->stream), 0);
    cws_gpu_end(f->gpu, &use, true);
    cws_gpu_carried(f->gpu, to->at + at, from->at + begin, bytes);
    return false;
}

/* A kernel that copies: the manager sees no more than what it names. */
static inline CUresult kernel_copy(struct fixture *f, struct made *to, size_t at, const struct made *from, size_t begin,
                                   size_t bytes)
{
    CUdeviceptr both[] = {to->at + at, from->at + begin};
    uint64_t count = bytes;
    void *params[] = {&both[0], &both[1], &count};
    CUresult result = launch(f, "copy", both, 2, params);
    if (result == CUDA_SUCCESS)
        memcpy(to->shadow + at, from->shadow + begin, bytes);
    return result;
}

/* Tensors first .. first + count - 1 on the device, and a kernel that stacks them, as torch.stack: one after the other
 * here. The parts are freed. */
static inline struct made stack(struct fixture *f, unsigned first, unsigned count)
{
    struct made part;
    size_t bytes = 0, at = 0;
    for (unsigned i = 0; i < count; i++)
        bytes += tensor_bytes(first + i);
    struct made m = make(f, bytes);
    for (unsigned i = 0; i < count; i++) {
        part = make(f, tensor_bytes(first + i));
        copy(f, &part, 0, whole(first + i));
        CUresult result = kernel_copy(f, &m, at, &part, 0, part.bytes);
        if (result != CUDA_SUCCESS)
            fail_msg("error %d: %s", result, last_line);
        at += part.bytes;
        drop(f, &part);
    }
    return m;
}
#endif
