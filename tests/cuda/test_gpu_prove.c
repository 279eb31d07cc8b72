/* What kernels put together of weights is found to be these weights when memory is short: its memory is given away, and
 * it comes back right. What is only nearly so, or is used meanwhile, stays. */
#include <stdint.h>
static void patch(uint8_t *data);
#define GPU_PATCH patch
#include "gpu_pieces.h"
#include "store/base/memory_limit.h"

#include <pthread.h>

/* A word of tensor 0 of which the file's key, which everybody knows, does not see the second half: the first one is
 * what makes its factor zero (content_hash.h). */
enum { BLIND_WORD = 1000 };
static void patch(uint8_t *data)
{
    uint64_t y = cws_content_key[0] + BLIND_WORD * 0x9e3779b97f4a7c15u, z = (y ^ (y >> 32)) * 0xd6e8feb86659fd93u;
    uint64_t blind = -(z ^ (z >> 29));
    memcpy(data + 16 * BLIND_WORD, &blind, 8);
}

/* More than the budget holds, so that each needs memory of those before it. */
static void test_stacked_weights_page(void **state)
{
    (void)state;
    for (unsigned prefetch = 0; prefetch < 2; prefetch++) {
        struct fixture *f = open_gpu(256 * MIB, 40 * MIB, prefetch);
        struct made m[10];
        for (unsigned i = 0; i < 10; i++)
            m[i] = stack(f, 3 * i, 3);
        use_in_turns(f, m, 10, SANITIZED ? 2 : 4);
        for (unsigned i = 0; i < 10; i++)
            expect_all(f, &m[i]);
        struct cws_gpu_stats stats = stats_of(f);
        assert_true(stats.proven >= 6);
        assert_true(stats.drops > 0);
        assert_int_equal(stats.spills, 0);
        assert_true(stats.peak_bytes <= 40 * MIB);
        for (unsigned i = 0; i < 10; i++)
            drop(f, &m[i]);
        close_gpu(f);
    }
}

/* An allocation that does not fit beside them is not refused, without a launch that needs memory. */
static void test_an_allocation_waits_for_it(void **state)
{
    (void)state;
    host_budget = CWS_PINNED_LEAST; /* nothing can be spilled */
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m[3], more;
    host_budget = 64 * MIB;
    for (unsigned i = 0; i < 3; i++)
        m[i] = stack(f, 3 * i, 3);
    more = make(f, 20 * MIB);
    assert_true(stats_of(f).proven > 0);
    fill_bytes(f, &more, 0, more.bytes, 3);
    expect_all(f, &more);
    drop(f, &more);
    expect_and_drop(f, m, 3);
    CUdeviceptr too_much;
    assert_int_equal(cws_gpu_alloc(f->gpu, 64 * MIB, f->stream, &too_much), CUDA_ERROR_OUT_OF_MEMORY);
    close_gpu(f);
}

/* One word, two words exchanged, the first or the last bytes, something behind a tensor. */
static void test_what_is_only_nearly_so(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 5; how++) {
        struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
        struct made m = how == 4 ? make(f, 8 * MIB) : stack(f, 0, 3), other[5];
        if (how == 0)
            write_word(f, &m, m.bytes - 4);
        if (how == 1) {
            struct cws_gpu_use use;
            uint8_t words[32];
            memcpy(words, m.shadow + 4096 + 16, 16);
            memcpy(words + 16, m.shadow + 4096, 16);
            memcpy(m.shadow + 4096, words, 32);
            assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &m.at, 1, &use), 0);
            assert_int_equal(driver.copy_in_async(m.at + 4096, words, 32, f->stream), 0);
            cws_gpu_end(f->gpu, &use, true);
        }
        if (how == 2)
            fill_bytes(f, &m, 0, MIB, 0);
        if (how == 3)
            fill_bytes(f, &m, m.bytes - 512, 512, 0);
        if (how == 4) {
            struct made part = make(f, 3 * MIB);
            copy(f, &part, 0, whole(0));
            fill_bytes(f, &m, 0, 8 * MIB, 0);
            assert_int_equal(kernel_copy(f, &m, 0, &part, 0, 3 * MIB), 0);
            drop(f, &part);
        }
        for (unsigned i = 0; i < 5; i++)
            other[i] = stack(f, 9 + 3 * i, 3);
        use_in_turns(f, other, 5, 2);
        expect_all(f, &m);
        expect_all(f, &m);
        for (unsigned i = 0; i < 5; i++)
            drop(f, &other[i]);
        drop(f, &m);
        close_gpu(f);
    }
}

/* The hash under the file's key is that of the tensor, and the bytes are not. */
static void test_a_hash_that_is_known_is_no_proof(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m = stack(f, 0, 3), other[5];
    struct cws_hash128 hash = {0};
    write_word(f, &m, 16 * BLIND_WORD + 8);
    cws_content_hash_add(&hash, cws_content_key, m.shadow, tensor_bytes(0), 0);
    assert_int_equal(hash.lo, cws_store_tensor(store, 0)->record->content_hash[0]);
    assert_int_equal(hash.hi, cws_store_tensor(store, 0)->record->content_hash[1]);
    for (unsigned i = 0; i < 5; i++)
        other[i] = stack(f, 9 + 3 * i, 3);
    use_in_turns(f, other, 5, 2);
    expect_all(f, &m);
    for (unsigned i = 0; i < 5; i++)
        drop(f, &other[i]);
    drop(f, &m);
    close_gpu(f);
}

/* A pinned one stays where it is: kernels reach it by pointers that nobody sees. */
static void test_pinned_ones_stay(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m = stack(f, 0, 3), other[5];
    cws_gpu_pin(f->gpu, m.at);
    for (unsigned i = 0; i < 5; i++)
        other[i] = stack(f, 9 + 3 * i, 3);
    use_in_turns(f, other, 5, 2);
    CUdeviceptr to = f->scratch, from = m.at;
    uint64_t bytes = m.bytes, sum = 0;
    void *params[] = {&to, &from, &bytes};
    assert_int_equal(launch(f, "sum", NULL, 0, params), 0);
    assert_int_equal(driver.copy_out_async(&sum, f->scratch, 8, f->stream), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    assert_int_equal(sum, plain_sum(m.shadow, m.bytes));
    for (unsigned i = 0; i < 5; i++)
        drop(f, &other[i]);
    drop(f, &m);
    close_gpu(f);
}

/* And so does what has a tensor that the user wants to stay. */
static bool pins_one(const char *tensor) { return strcmp(tensor, "w01") == 0; }

static void test_named_tensors_stay(void **state)
{
    (void)state;
    pins = pins_one;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    pins = NULL;
    struct made m = stack(f, 0, 3), other[5];
    for (unsigned i = 0; i < 5; i++)
        other[i] = stack(f, 9 + 3 * i, 3);
    use_in_turns(f, other, 5, 2);
    assert_true(stats_of(f).proven > 0);
    assert_true(stats_of(f).anonymous_bytes >= m.bytes);
    expect_all(f, &m);
    for (unsigned i = 0; i < 5; i++)
        drop(f, &other[i]);
    drop(f, &m);
    close_gpu(f);
}

/* Written after it was proven, loaded and written, put together anew. */
static void test_written_afterwards(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m[6];
    for (unsigned i = 0; i < 6; i++)
        m[i] = stack(f, 3 * i, 3);
    for (unsigned i = 0; i < 6; i += 2)
        write_word(f, &m[i], 3 * MIB + 64 * i);
    use_in_turns(f, m, 6, 3);
    struct made part = make(f, 3 * MIB);
    copy(f, &part, 0, whole(30));
    assert_int_equal(kernel_copy(f, &m[0], 0, &part, 0, 3 * MIB), 0); /* still one word is wrong */
    assert_int_equal(kernel_copy(f, &m[1], 0, &part, 0, 3 * MIB), 0); /* other tensors than before */
    drop(f, &part);
    use_in_turns(f, m, 6, 3);
    expect_and_drop(f, m, 6);
    close_gpu(f);
}

/* The store's file is read again for the proof, and has other bytes by then: no proof, and nothing is lost. */
static void test_a_changed_store_proves_nothing(void **state)
{
    (void)state;
    const char *path = sample_path("changing.store");
    struct bytes file = sample_load(cws_store_path(store));
    struct cws_store *other;
    struct cws_error err = {0};
    sample_save(path, file.data, file.size);
    assert_int_equal(cws_store_open(path, CWS_IO_AUTO, &other, &err), 0);
    host_budget = CWS_PINNED_LEAST; /* hardly anything stays in host memory */
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, false);
    host_budget = 64 * MIB;
    struct made m = make(f, 6 * MIB), part = make(f, 3 * MIB);
    const struct cws_tensor_info *t = cws_store_tensor(other, 0);
    for (unsigned i = 0; i < 2; i++) {
        memcpy(part.shadow, content(0), 3 * MIB);
        assert_true(cws_gpu_bind(f->gpu, part.at, 3 * MIB, f->stream, other, t->begin));
        assert_int_equal(kernel_copy(f, &m, i * 3 * MIB, &part, 0, 3 * MIB), 0);
        assert_int_equal(driver.stream_sync(f->stream), 0);
        drop(f, &part);
        cws_gpu_trim(f->gpu, 0);
        part = make(f, 3 * MIB);
    }
    drop(f, &part);
    file.data[t->chunks[1].offset + 100] ^= 1;
    FILE *out = fopen(path, "r+b");
    assert_true(out && fwrite(file.data, 1, file.size, out) == file.size && fclose(out) == 0);
    struct cws_gpu_stats stats = stats_of(f);
    CUdeviceptr more;
    assert_int_equal(cws_gpu_alloc(f->gpu, 30 * MIB, f->stream, &more), CUDA_ERROR_OUT_OF_MEMORY);
    assert_int_equal(stats_of(f).proven, stats.proven);
    expect_all(f, &m);
    drop(f, &m);
    free(file.data);
    close_gpu(f);
    cws_store_close(other);
}

/* A kernel that writes is still queued, or another thread names it, while memory is short. */
struct other_thread {
    struct fixture *f;
    struct made m;
    CUstream stream;
};

static void *name_it(void *arg)
{
    struct other_thread *o = arg;
    driver.context_set(o->f->context);
    for (unsigned i = 0; i < (SANITIZED ? 100 : 400); i++) {
        struct cws_gpu_use use;
        CUresult result = cws_gpu_begin(o->f->gpu, o->stream, &o->m.at, 1, &use);
        if (result == CUDA_SUCCESS) {
            uint8_t byte = (uint8_t)i;
            driver.copy_in_async(o->m.at + 5 * MIB + 100, &byte, 1, o->stream);
            o->m.shadow[5 * MIB + 100] = byte;
            cws_gpu_end(o->f->gpu, &use, true);
            driver.stream_sync(o->stream);
        }
    }
    return NULL;
}

static void test_used_meanwhile(void **state)
{
    (void)state;
    start_driver(256 * MIB, 1);
    standin_delay(3, 100);
    struct fixture *f = open_gpu_on(0, 40 * MIB, true);
    struct other_thread o = {.f = f, .m = stack(f, 0, 3)};
    pthread_t thread;
    assert_int_equal(driver.stream_sync(f->stream), 0);
    assert_int_equal(driver.stream_create(&o.stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(pthread_create(&thread, NULL, name_it, &o), 0);
    struct made m[6];
    for (unsigned i = 0; i < 6; i++)
        m[i] = stack(f, 3 + 3 * i, 3);
    use_in_turns(f, m, 6, 3);
    pthread_join(thread, NULL);
    expect_all(f, &o.m);
    expect_and_drop(f, m, 6);
    drop(f, &o.m);
    cws_gpu_stream_gone(f->gpu, o.stream);
    assert_int_equal(driver.stream_destroy(o.stream), 0);
    close_gpu(f);
}

/* The N-th call fails, for every N: an error or the right bytes, never others. */
static void test_every_call_fails_once(void **state)
{
    (void)state;
    static const char *const CALLS[] = {"cuMemCreate",       "cuMemMap",        "cuMemSetAccess",     "cuMemHostAlloc",
                                        "cuMemcpyHtoDAsync", "cuEventRecord",   "cuLaunchKernel",     "cuMemUnmap",
                                        "cuMemcpyDtoHAsync", "cuMemsetD8Async", "cuStreamSynchronize"};
    for (size_t c = 0; c < sizeof CALLS / sizeof *CALLS; c++) {
        for (unsigned n = 1; n <= (SANITIZED ? 1 : 16); n *= SANITIZED ? 4 : 2) {
            struct fixture *f = open_gpu(256 * MIB, 34 * MIB, n % 2);
            struct made m[4];
            for (unsigned i = 0; i < 2; i++)
                m[i] = stack(f, 3 * i, 3);
            for (unsigned i = 2; i < 4; i++)
                m[i] = fuse(f, 3 * i);
            assert_int_equal(driver.stream_sync(f->stream), 0);
            standin_fail(CALLS[c], n, CUDA_ERROR_OUT_OF_MEMORY);
            unsigned errors = 0;
            CUdeviceptr more = 0;
            if (cws_gpu_alloc(f->gpu, 16 * MIB, f->stream, &more) != CUDA_SUCCESS)
                more = 0;
            for (unsigned i = 0; i < 8; i++) {
                uint64_t sum = 0;
                if (sum_of(f, &m[i % 4], &sum) == CUDA_SUCCESS)
                    assert_int_equal(sum, plain_sum(m[i % 4].shadow, m[i % 4].bytes));
                else
                    errors++;
            }
            assert_true(errors <= 4);
            standin_fail_none();
            if (more)
                assert_int_equal(cws_gpu_free(f->gpu, more, f->stream, true), 0);
            for (unsigned i = 0; i < 4; i++)
                drop(f, &m[i]);
            cws_gpu_settle(f->gpu);
            assert_null(cws_gpu_check(f->gpu));
            cws_gpu_close(f->gpu);
            standin_reset(0);
            free(f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stacked_weights_page),   cmocka_unit_test(test_an_allocation_waits_for_it),
        cmocka_unit_test(test_what_is_only_nearly_so), cmocka_unit_test(test_pinned_ones_stay),
        cmocka_unit_test(test_named_tensors_stay),     cmocka_unit_test(test_a_hash_that_is_known_is_no_proof),
        cmocka_unit_test(test_written_afterwards),     cmocka_unit_test(test_a_changed_store_proves_nothing),
        cmocka_unit_test(test_used_meanwhile),         cmocka_unit_test(test_every_call_fails_once),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
