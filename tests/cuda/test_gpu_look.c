/* What a program makes of weights on the device, or writes there and does not change, is recognized while the loader
 * rests, before memory is short; activations, what fits, and what changes are left alone, and no byte is lost. */
#include "uvm/cuda/gpu.h"
#include "gpu_pieces.h"
#include "tests/support/hang.h"

#include <pthread.h>
#include <unistd.h>

static struct made other; /* named by launches in which time passes */

static struct fixture *open_looking(uint64_t budget, bool adopts)
{
    host_budget = 128 * MIB;
    adopt = adopts;
    struct fixture *f = open_gpu(256 * MIB, budget, true);
    adopt = false;
    host_budget = 64 * MIB;
    other = make(f, MIB);
    fill_bytes(f, &other, 0, MIB, 0);
    return f;
}

static void end(struct fixture *f)
{
    drop(f, &other);
    close_gpu(f);
}

/* Launches go on until so many extents were recognized since the manager was opened, or for long in vain. */
static void wait_found(struct fixture *f, uint64_t found)
{
    for (unsigned i = 0; i < (SANITIZED ? 200 : 400) && f->gpu->looks.found < found; i++) {
        uint64_t sum;
        assert_int_equal(sum_of(f, &other, &sum), 0);
        if (i % 40 == 39)
            usleep(2000);
    }
    cws_gpu_settle(f->gpu);
    assert_null(cws_gpu_check(f->gpu));
}

static void pass_time(struct fixture *f) { wait_found(f, UINT64_MAX); }

/* No memory is short, and they are weights all the same, which lost nothing: they stay where they are. */
static void test_stacks_are_found(void **state)
{
    (void)state;
    struct fixture *f = open_looking(48 * MIB, false);
    struct made m[4];
    for (unsigned i = 0; i < 4; i++)
        m[i] = stack(f, 3 * i, 3);
    uint64_t loads = stats_of(f).loads;
    wait_found(f, 3);
    struct cws_gpu_stats stats = stats_of(f);
    assert_true(stats.proven >= 3);
    assert_true(stats.anonymous_bytes <= 14 * MIB);
    assert_true(stats.loads <= loads);
    use_in_turns(f, m, 4, 3);
    struct made more = make(f, 20 * MIB); /* now it is short, and they go */
    fill_bytes(f, &more, 0, more.bytes, 3);
    use_in_turns(f, m, 4, 2);
    assert_true(stats_of(f).drops > 0);
    assert_int_equal(stats_of(f).spills, 0);
    expect_and_drop(f, m, 4);
    expect_all(f, &more);
    drop(f, &more);
    end(f);
}

/* A cast: kernels write other bytes of each weight, which is given up. */
static struct made cast(struct fixture *f, unsigned i)
{
    struct made part = make(f, tensor_bytes(i)), m = make(f, tensor_bytes(i));
    copy(f, &part, 0, whole(i));
    assert_int_equal(kernel_copy(f, &m, 0, &part, 0, part.bytes), 0);
    for (size_t at = 0; at < m.bytes; at += MIB / 2)
        write_word(f, &m, at);
    drop(f, &part);
    return m;
}

/* Twice as much as the budget holds; most of it pages ahead of its use in the end. */
static void test_casts_page(void **state)
{
    (void)state;
    enum { COUNT = 24 };
    struct fixture *f = open_looking(26 * MIB, true);
    struct made m[COUNT];
    for (unsigned i = 0; i < COUNT; i++)
        m[i] = cast(f, i);
    for (unsigned round = 0; round < 6; round++) {
        use_in_turns(f, m, COUNT, 1);
        wait_found(f, f->gpu->looks.found + 4);
    }
    struct cws_gpu_stats stats = stats_of(f);
    uint64_t all = 0;
    for (unsigned i = 0; i < COUNT; i++)
        all += m[i].bytes;
    assert_true(all > 44 * MIB && stats.adopted_bytes >= all - 8 * MIB);
    assert_true(stats.anonymous_bytes <= 12 * MIB);
    assert_true(stats.peak_bytes <= 26 * MIB);
    uint64_t spills = stats.spills;
    use_in_turns(f, m, COUNT, 2);
    assert_true(stats_of(f).spills <= spills + 2);
    expect_and_drop(f, m, COUNT);
    end(f);
}

/* Rows of zeros behind a tensor, and then another such: the first one, just used, gives way at once. */
static void test_padded_ones_give_way(void **state)
{
    (void)state;
    struct fixture *f = open_looking(34 * MIB, true);
    struct made m[4];
    for (unsigned i = 0; i < 4; i++) {
        size_t bytes = 0;
        for (unsigned k = 0; k < 5; k++)
            bytes += tensor_bytes(5 * i + k);
        m[i] = make(f, bytes + MIB);
        assert_true(bytes >= 9 * MIB);
        for (unsigned k = 0, at = 0; k < 5; at += tensor_bytes(5 * i + k), k++)
            copy(f, &m[i], at, whole(5 * i + k));
        fill_bytes(f, &m[i], bytes, MIB, 0);
    }
    use_in_turns(f, m, 4, 3);
    assert_true(stats_of(f).peak_bytes <= 34 * MIB);
    expect_and_drop(f, m, 4);
    end(f);
}

/* It all fits: nothing is looked at. */
static void test_what_fits_is_left_alone(void **state)
{
    (void)state;
    struct fixture *f = open_looking(96 * MIB, true);
    struct made m = stack(f, 0, 3);
    use_in_turns(f, &m, 1, 2);
    pass_time(f);
    assert_int_equal(f->gpu->looks.found, 0);
    assert_int_equal(f->gpu->proofs.proven + f->gpu->proofs.refuted, 0);
    drop(f, &m);
    end(f);
}

/* Activations of a program that loaded a while ago: made, used and freed. */
static void test_activations_are_left_alone(void **state)
{
    (void)state;
    struct fixture *f = open_looking(40 * MIB, true);
    struct made m[8];
    for (unsigned i = 0; i < 8; i++) {
        m[i] = make(f, tensor_bytes(i));
        copy(f, &m[i], 0, whole(i));
    }
    use_in_turns(f, m, 8, 3);
    pass_time(f);
    uint64_t found = f->gpu->looks.found, refuted = f->gpu->proofs.refuted, taken = f->gpu->adopts.taken;
    for (unsigned i = 0; i < 60; i++) {
        struct made a = make(f, 6 * MIB);
        fill_bytes(f, &a, 0, a.bytes, i);
        uint64_t sum;
        assert_int_equal(sum_of(f, &m[i % 8], &sum), 0);
        fill_bytes(f, &a, MIB, MIB, i + 1);
        if (i % 16 == 0)
            expect_all(f, &a);
        drop(f, &a);
    }
    assert_int_equal(f->gpu->looks.found, found);
    assert_int_equal(f->gpu->proofs.refuted, refuted);
    assert_int_equal(f->gpu->adopts.taken, taken);
    for (unsigned i = 0; i < 8; i++)
        drop(f, &m[i]);
    end(f);
}

/* A cache: the program writes to it between any two looks. */
static void test_what_changes_is_not_adopted(void **state)
{
    (void)state;
    struct fixture *f = open_looking(40 * MIB, true);
    struct made m[6], cache = make(f, 8 * MIB);
    fill_bytes(f, &cache, 0, cache.bytes, 0);
    for (unsigned i = 0; i < 6; i++)
        m[i] = cast(f, i);
    for (unsigned i = 0; i < 40; i++) {
        write_word(f, &cache, i * 4096);
        use_in_turns(f, m, 6, 1);
    }
    wait_found(f, 6);
    assert_true(cache.shadow && stats_of(f).adopted_bytes <= 20 * MIB);
    uint64_t taken = f->gpu->adopts.taken;
    for (unsigned i = 0; i < 200; i++)
        write_word(f, &cache, i * 4096);
    assert_true(f->gpu->adopts.taken <= taken + 1);
    expect_all(f, &cache);
    drop(f, &cache);
    expect_and_drop(f, m, 6);
    end(f);
}

/* A kernel that nobody sees writes to it after it was recognized: the device has the only bytes, and they stay. */
static void test_written_by_a_hidden_kernel(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 2; how++) {
        struct fixture *f = open_looking(40 * MIB, true);
        struct made m[3];
        for (unsigned i = 0; i < 3; i++)
            m[i] = how ? cast(f, 4 * i) : stack(f, 3 * i, 3);
        for (unsigned i = 0; i < 3; i++)
            use_in_turns(f, m, 3, 1);
        wait_found(f, 3);
        use_in_turns(f, m, 3, 1);
        wait_found(f, 3);
        struct made more = make(f, 14 * MIB); /* the budget is used up, but nothing has to go */
        fill_bytes(f, &more, 0, MIB, 3);
        struct cws_gpu_extent *x;
        cws_gpu_lock(&f->gpu->core);
        x = cws_gpu_bind_around_locked(f->gpu, m[2].at, 1);
        bool resident = x->state == CWS_EXTENT_RESIDENT;
        cws_gpu_unlock(&f->gpu->core);
        if (resident) {
            uint8_t byte = 0x5a;
            assert_int_equal(driver.copy_in_async(m[2].at + 77, &byte, 1, f->stream), 0);
            assert_int_equal(driver.stream_sync(f->stream), 0);
            m[2].shadow[77] = byte;
        }
        fill_bytes(f, &more, 0, more.bytes, 3);
        use_in_turns(f, m, 3, 3);
        expect_and_drop(f, m, 3);
        drop(f, &more);
        end(f);
    }
}

static void test_switched_off(void **state)
{
    (void)state;
    struct fixture *f = open_looking(40 * MIB, false);
    struct made m[8];
    for (unsigned i = 0; i < 6; i++)
        m[i] = cast(f, i);
    use_in_turns(f, m, 6, 3);
    pass_time(f);
    assert_int_equal(f->gpu->adopts.taken, 0);
    assert_int_equal(stats_of(f).adopted_bytes, 0);
    for (unsigned i = 0; i < 6; i++)
        drop(f, &m[i]);
    end(f);
}

/* Without room for it in host memory it stays the program's. */
static void test_host_memory_is_short(void **state)
{
    (void)state;
    host_budget = 8 * MIB;
    adopt = true;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    adopt = false;
    host_budget = 64 * MIB;
    other = make(f, MIB);
    fill_bytes(f, &other, 0, MIB, 0);
    struct made m[6];
    for (unsigned i = 0; i < 6; i++)
        m[i] = cast(f, i);
    for (unsigned i = 0; i < 3; i++) {
        use_in_turns(f, m, 6, 1);
        pass_time(f);
    }
    assert_true(stats_of(f).host_bytes <= 8 * MIB);
    expect_and_drop(f, m, 6);
    end(f);
}

/* Another thread writes to, frees and allocates what is looked at. */
struct worker {
    struct fixture *f;
    CUstream stream;
    unsigned rounds;
    bool wrong;
};

static void *change_it(void *arg)
{
    struct worker *w = arg;
    driver.context_set(w->f->context);
    for (unsigned i = 0; i < w->rounds; i++) {
        struct cws_gpu_use use;
        CUdeviceptr at;
        uint8_t bytes[2] = {(uint8_t)i, (uint8_t)(i >> 8)}, back[2] = {0};
        if (cws_gpu_alloc(w->f->gpu, 2 * MIB, w->stream, &at) != CUDA_SUCCESS)
            continue;
        for (unsigned k = 0; k < 8; k++) {
            if (cws_gpu_begin(w->f->gpu, w->stream, &at, 1, &use) != CUDA_SUCCESS)
                break;
            if (k % 4 == 0)
                driver.copy_in_async(at + k * MIB / 8, bytes, 2, w->stream);
            driver.copy_out_async(back, at + k / 4 * 4 * MIB / 8, 2, w->stream);
            cws_gpu_end(w->f->gpu, &use, true);
            driver.stream_sync(w->stream);
            w->wrong |= memcmp(bytes, back, 2) != 0;
        }
        w->wrong |= cws_gpu_free(w->f->gpu, at, w->stream, true) != CUDA_SUCCESS;
    }
    return NULL;
}

static void test_changed_meanwhile(void **state)
{
    (void)state;
    struct fixture *f = open_looking(40 * MIB, true);
    struct worker w = {.f = f, .rounds = SANITIZED ? 60 : 400};
    pthread_t thread;
    struct made m[12];
    assert_int_equal(driver.stream_create(&w.stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(pthread_create(&thread, NULL, change_it, &w), 0);
    for (unsigned i = 0; i < 12; i++)
        m[i] = i % 2 ? cast(f, i) : stack(f, 3 * i, 1);
    for (unsigned round = 0; round < 6; round++) {
        use_in_turns(f, m, 12, 1);
        wait_found(f, f->gpu->looks.found + 2);
    }
    pthread_join(thread, NULL);
    assert_false(w.wrong);
    expect_and_drop(f, m, 12);
    cws_gpu_stream_gone(f->gpu, w.stream);
    assert_int_equal(driver.stream_destroy(w.stream), 0);
    end(f);
}

/* The N-th call fails: an error or the right bytes, never others. */
static void test_calls_fail(void **state)
{
    (void)state;
    static const char *const CALLS[] = {"cuMemHostAlloc",    "cuMemcpyDtoHAsync", "cuLaunchKernel",
                                        "cuMemcpyHtoDAsync", "cuMemsetD8Async",   "cuStreamSynchronize"};
    for (size_t c = 0; c < sizeof CALLS / sizeof *CALLS; c++) {
        for (unsigned n = 1; n <= (SANITIZED ? 1 : 2); n++) {
            struct fixture *f = open_looking(36 * MIB, true);
            struct made m[5];
            for (unsigned i = 0; i < 5; i++)
                m[i] = i % 2 ? cast(f, i) : stack(f, 3 * i, 2);
            for (unsigned i = 0; i < 5; i++) {
                uint64_t sum;
                assert_int_equal(sum_of(f, &m[i], &sum), 0);
            }
            standin_fail(CALLS[c], n, CUDA_ERROR_OUT_OF_MEMORY);
            unsigned errors = 0;
            for (unsigned i = 0; i < 200; i++) {
                uint64_t sum = 0;
                const struct made *x = i % 10 ? &other : &m[i / 10 % 5];
                if (sum_of(f, x, &sum) == CUDA_SUCCESS)
                    assert_int_equal(sum, plain_sum(x->shadow, x->bytes));
                else
                    errors++;
                if (i % 32 == 31)
                    usleep(1000);
            }
            assert_true(errors <= 4);
            standin_fail_none();
            for (unsigned i = 0; i < 5; i++)
                drop(f, &m[i]);
            drop(f, &other);
            cws_gpu_settle(f->gpu);
            assert_null(cws_gpu_check(f->gpu));
            cws_gpu_close(f->gpu);
            standin_reset(0);
            free(f);
        }
    }
}

/* --- what happens while one is looked at ------------------------------------------------------------------------- */

/* Done once, in the loader, without the lock, as it makes host memory for the extent. */
static struct {
    struct fixture *f;
    CUdeviceptr at;
    void (*act)(void);
    bool done;
    CUstream stream;
    pthread_t thread;
    CUresult result;
    struct made made;
} meanwhile;
static CUresult (*host_alloc)(void **out, size_t bytes, unsigned flags);

static enum cws_extent_state state_at(struct fixture *f, CUdeviceptr at)
{
    cws_gpu_lock(&f->gpu->core);
    const struct cws_gpu_extent *x = cws_gpu_bind_around_locked(f->gpu, at, 1);
    enum cws_extent_state state = x ? x->state : CWS_EXTENT_RESERVED;
    cws_gpu_unlock(&f->gpu->core);
    return state;
}

static CUresult host_alloc_and_act(void **out, size_t bytes, unsigned flags)
{
    if (!meanwhile.done && state_at(meanwhile.f, meanwhile.at) == CWS_EXTENT_LOOKING) {
        meanwhile.done = true;
        meanwhile.act();
    }
    return host_alloc(out, bytes, flags);
}

/* The program wrote it while it loaded weights, and only reads it. Until it was looked at twice. */
static struct made wait_looked_at(struct fixture *f, size_t bytes, void (*act)(void))
{
    struct made part = make(f, tensor_bytes(0));
    copy(f, &part, 0, whole(0));
    struct made m = make(f, bytes);
    fill_bytes(f, &m, 0, bytes, 7);
    drop(f, &part);
    meanwhile.f = f;
    meanwhile.at = m.at;
    meanwhile.act = act;
    meanwhile.done = false;
    cws_gpu_lock(&f->gpu->core);
    host_alloc = driver.host_alloc;
    driver.host_alloc = host_alloc_and_act;
    cws_gpu_unlock(&f->gpu->core);
    for (unsigned i = 0; i < 8 && !meanwhile.done; i++) {
        uint64_t sum;
        if (state_at(f, m.at) != CWS_EXTENT_RESERVED) /* it was freed */
            assert_int_equal(sum_of(f, &m, &sum), 0);
        wait_found(f, f->gpu->looks.found + 1);
    }
    assert_true(meanwhile.done);
    driver.host_alloc = host_alloc;
    return m;
}

static void free_it(void) { assert_int_equal(cws_gpu_free(meanwhile.f->gpu, meanwhile.at, meanwhile.stream, true), 0); }

/* In the order of a stream, on which something may run that uses it by hidden pointers: no other stream gets it before
 * that is done. */
static void test_freed_meanwhile(void **state)
{
    (void)state;
    struct fixture *f = open_looking(40 * MIB, true);
    assert_int_equal(driver.stream_create(&meanwhile.stream, CU_STREAM_NON_BLOCKING), 0);
    standin_hold(meanwhile.stream);
    assert_int_equal(driver.set8_async(f->scratch, 0, 8, meanwhile.stream), 0);
    struct made m = wait_looked_at(f, 22 * MIB, free_it), again = make(f, m.bytes);
    assert_true(again.at != m.at);
    standin_let_go(meanwhile.stream);
    assert_int_equal(driver.stream_sync(meanwhile.stream), 0);
    fill_bytes(f, &again, 0, again.bytes, 1);
    expect_all(f, &again);
    drop(f, &again);
    free(m.shadow);
    cws_gpu_stream_gone(f->gpu, meanwhile.stream);
    assert_int_equal(driver.stream_destroy(meanwhile.stream), 0);
    end(f);
}

static void *allocate(void *arg)
{
    (void)arg;
    struct made *m = &meanwhile.made;
    driver.context_set(meanwhile.f->context);
    meanwhile.result = cws_gpu_alloc(meanwhile.f->gpu, m->bytes, meanwhile.f->stream, &m->at);
    return NULL;
}

static void allocate_beside(void)
{
    meanwhile.made = (struct made){.bytes = 10 * MIB};
    assert_int_equal(pthread_create(&meanwhile.thread, NULL, allocate, NULL), 0);
    usleep(20000); /* time to be refused, or to wait */
}

/* It is not refused because what could make room is being looked at. */
static void test_allocation_meanwhile(void **state)
{
    (void)state;
    struct fixture *f = open_looking(40 * MIB, true);
    struct made m = wait_looked_at(f, 22 * MIB, allocate_beside), *more = &meanwhile.made;
    pthread_join(meanwhile.thread, NULL);
    if (meanwhile.result != CUDA_SUCCESS)
        fail_msg("error %d: %s", meanwhile.result, last_line);
    more->shadow = calloc(1, more->bytes);
    fill_bytes(f, more, 0, more->bytes, 1);
    expect_all(f, more);
    drop(f, more);
    expect_all(f, &m);
    drop(f, &m);
    end(f);
}

/* What is put together slowly, and was looked at in vain meanwhile, is proven all the same when memory is short. */
static void test_short_after_looks_in_vain(void **state)
{
    (void)state;
    enum { PARTS = 9 };
    struct fixture *f = open_looking(36 * MIB, false);
    size_t bytes = 0, at = 0;
    for (unsigned i = 0; i < PARTS; i++)
        bytes += tensor_bytes(i);
    struct made m = {0};
    for (unsigned i = 0; i < PARTS; i++) {
        struct made part = make(f, tensor_bytes(i));
        copy(f, &part, 0, whole(i));
        if (i == 0)
            m = make(f, bytes);
        assert_int_equal(kernel_copy(f, &m, at, &part, 0, part.bytes), 0);
        at += part.bytes;
        drop(f, &part);
        if (i + 1 < PARTS)
            pass_time(f);
    }
    struct made more = make(f, 12 * MIB);
    fill_bytes(f, &more, 0, more.bytes, 1);
    expect_all(f, &more);
    drop(f, &more);
    expect_all(f, &m);
    drop(f, &m);
    end(f);
}

/* --- what went out before -------------------------------------------------------------------------------------------- */

static CUresult (*copy_out)(void *to, CUdeviceptr from, size_t bytes, CUstream stream);
static _Atomic unsigned copies_out; /* of so many bytes */
enum { WENT = 5 << 20 };

static CUresult copy_out_and_count(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    copies_out += bytes == WENT;
    return copy_out(to, from, bytes, stream);
}

/* It was spilled, came back, and is not changed: the copy that was kept is what it is adopted from, and pages right. */
static void test_a_kept_copy_is_adopted(void **state)
{
    (void)state;
    struct fixture *f = open_looking(40 * MIB, true);
    struct made w[10], more;
    uint64_t sum;
    for (unsigned i = 0; i < 10; i++) {
        w[i] = make(f, tensor_bytes(i));
        copy(f, &w[i], 0, whole(i));
    }
    copies_out = 0;
    copy_out = driver.copy_out_async;
    driver.copy_out_async = copy_out_and_count;
    struct made m = make(f, WENT);
    fill_bytes(f, &m, 0, WENT, 7);
    write_word(f, &m, WENT - 4);
    more = make(f, 26 * MIB); /* beside which it has no room */
    fill_bytes(f, &more, 0, more.bytes, 1);
    assert_int_equal(state_at(f, m.at), CWS_EXTENT_SPILLED);
    drop(f, &more);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    cws_gpu_trim(f->gpu, 0);
    assert_int_equal(sum_of(f, &m, &sum), 0); /* it is back */
    wait_found(f, f->gpu->looks.found + 1);
    assert_int_equal(state_at(f, m.at), CWS_EXTENT_RESIDENT);
    assert_int_equal(copies_out, 1);
    more = make(f, 26 * MIB);
    fill_bytes(f, &more, 0, more.bytes, 1);
    assert_int_equal(state_at(f, m.at), CWS_EXTENT_BOUND);
    drop(f, &more);
    driver.copy_out_async = copy_out;
    expect_all(f, &m);
    drop(f, &m);
    expect_and_drop(f, w, 10);
    end(f);
}

/* --- the least budget -------------------------------------------------------------------------------------------- */

enum { LAYERS = 4, EXPERTS_OF = 4 };

/* A mixture of experts as transformers brings it: the experts of a layer are stacked, gate and up are joined, and the
 * parts are freed; then rounds. CUDA_ERROR_OUT_OF_MEMORY: the budget is too small, as a line says. */
static CUresult mixture(struct fixture *f)
{
    struct made layers[LAYERS] = {0}, parts[3 * EXPERTS_OF] = {0};
    CUresult result = CUDA_SUCCESS;
    for (unsigned l = 0; l < LAYERS && result == CUDA_SUCCESS; l++) {
        CUdeviceptr named[2 * EXPERTS_OF + 1];
        size_t bytes = 0;
        for (unsigned i = 0; i < 2 * EXPERTS_OF && result == CUDA_SUCCESS; i++) {
            unsigned tensor = 2 * EXPERTS_OF * l + i;
            parts[i] = (struct made){.bytes = tensor_bytes(tensor), .shadow = calloc(1, tensor_bytes(tensor))};
            result = cws_gpu_alloc(f->gpu, parts[i].bytes, f->stream, &parts[i].at);
            if (result == CUDA_SUCCESS)
                copy(f, &parts[i], 0, whole(tensor));
            named[i] = parts[i].at;
            bytes += parts[i].bytes;
        }
        layers[l] = (struct made){.bytes = bytes, .shadow = calloc(1, bytes)};
        if (result == CUDA_SUCCESS)
            result = cws_gpu_alloc(f->gpu, bytes, f->stream, &layers[l].at);
        named[2 * EXPERTS_OF] = layers[l].at;
        size_t at = 0;
        for (unsigned i = 0; i < 2 * EXPERTS_OF && result == CUDA_SUCCESS; at += parts[i++].bytes) {
            /* one launch names all of them, whatever it copies */
            CUdeviceptr to = layers[l].at + at;
            uint64_t count = parts[i].bytes;
            void *params[] = {&to, &parts[i].at, &count};
            result = launch(f, "copy", named, 2 * EXPERTS_OF + 1, params);
            memcpy(layers[l].shadow + at, parts[i].shadow, parts[i].bytes);
        }
        for (unsigned i = 0; i < 2 * EXPERTS_OF; i++) {
            if (parts[i].at)
                drop(f, &parts[i]);
            free(parts[i].shadow);
            parts[i] = (struct made){0};
        }
    }
    for (unsigned round = 0; round < 3; round++)
        for (unsigned l = 0; l < LAYERS && result == CUDA_SUCCESS; l++) {
            uint64_t sum = 0;
            result = sum_of(f, &layers[l], &sum);
            if (result == CUDA_SUCCESS)
                assert_int_equal(sum, plain_sum(layers[l].shadow, layers[l].bytes));
        }
    for (unsigned l = 0; l < LAYERS; l++) {
        if (layers[l].at)
            drop(f, &layers[l]);
        free(layers[l].shadow);
    }
    return result;
}

static uint64_t named_budget(void)
{
    const char *text = strstr(last_line, "least ");
    text = text ? strstr(text, " is ") : NULL;
    return text ? strtoull(text + 4, NULL, 10) * MIB : 0;
}

/* What the line names does, at the first try. */
static void test_the_least_budget_is_named(void **state)
{
    (void)state;
    uint64_t budget = 20 * MIB;
    unsigned tries = 0;
    for (bool done = false; !done; tries++) {
        struct fixture *f = open_looking(budget, true);
        CUresult result = mixture(f);
        done = result == CUDA_SUCCESS;
        uint64_t least = named_budget();
        if (!done) {
            assert_int_equal(result, CUDA_ERROR_OUT_OF_MEMORY);
            assert_true(least > budget && tries < 6);
            budget = least;
        }
        assert_true(stats_of(f).peak_bytes <= (done ? budget : 200 * MIB));
        end(f);
    }
    assert_in_range(tries, 2, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stacks_are_found),
        cmocka_unit_test(test_casts_page),
        cmocka_unit_test(test_padded_ones_give_way),
        cmocka_unit_test(test_what_fits_is_left_alone),
        cmocka_unit_test(test_activations_are_left_alone),
        cmocka_unit_test(test_what_changes_is_not_adopted),
        cmocka_unit_test(test_written_by_a_hidden_kernel),
        cmocka_unit_test(test_switched_off),
        cmocka_unit_test(test_host_memory_is_short),
        cmocka_unit_test(test_changed_meanwhile),
        cmocka_unit_test(test_calls_fail),
        cmocka_unit_test(test_freed_meanwhile),
        cmocka_unit_test(test_allocation_meanwhile),
        cmocka_unit_test(test_short_after_looks_in_vain),
        cmocka_unit_test(test_a_kept_copy_is_adopted),
        cmocka_unit_test(test_the_least_budget_is_named),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
