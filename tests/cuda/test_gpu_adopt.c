/* Adoption: what the program copies to the device from ordinary memory pages from a copy of its own in pinned memory,
 * where the budget may not hold all, and is right to the bit whatever becomes of the program's buffer. */
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"
#include "tests/support/hang.h"

#include <unistd.h>

static uint8_t *expected[TENSORS];

static struct fixture *open_adopting(uint64_t budget, size_t host)
{
    host_budget = host;
    adopt = true;
    struct fixture *f = open_gpu(256 * MIB, budget, true);
    adopt = false;
    host_budget = 64 * MIB;
    return f;
}

static bool adopted(struct fixture *f, unsigned i, const void *from, uint64_t unbound)
{
    return cws_gpu_adopt_wants(f->gpu, f->at[i], tensor_bytes(i), f->stream, unbound) &&
           cws_gpu_adopt(f->gpu, f->at[i], tensor_bytes(i), f->stream, from);
}

#define BY_A_KERNEL UINT64_MAX /* as far as the manager knows */

/* Tensor i of other bytes than the store's, from a buffer that is overwritten at once. Whether it was adopted. */
static bool bring(struct fixture *f, unsigned i, uint64_t unbound)
{
    size_t bytes = tensor_bytes(i);
    uint8_t *buffer = malloc(bytes);
    expected[i] = malloc(bytes);
    for (size_t k = 0; k < bytes; k++)
        expected[i][k] = (uint8_t)(content(i)[k] ^ (k * 7 + i));
    memcpy(buffer, expected[i], bytes);
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &f->at[i]), 0);
    bool is = unbound != BY_A_KERNEL && adopted(f, i, buffer, unbound);
    if (!is)
        assert_int_equal(copy_to(f, f->at[i], buffer, bytes), 0);
    memset(buffer, 0xee, bytes);
    free(buffer);
    return is;
}

static unsigned bring_all(struct fixture *f, uint64_t unbound)
{
    unsigned count = 0;
    for (unsigned i = 0; i < TENSORS; i++)
        count += bring(f, i, unbound);
    return count;
}

static void expect_all(struct fixture *f, unsigned passes)
{
    for (unsigned pass = 0; pass < passes; pass++)
        for (unsigned i = 0; i < TENSORS; i++) {
            expect_bytes(f, i, expected[i]);
            assert_null(cws_gpu_check(f->gpu));
        }
}

static void forget_expected(void)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        free(expected[i]);
        expected[i] = NULL;
    }
}

static struct cws_gpu_stats stats_of(struct fixture *f)
{
    struct cws_gpu_stats stats;
    cws_gpu_stats_get(f->gpu, &stats);
    return stats;
}

/* Pinned memory goes with the ranges: fetchers free it. */
static void expect_no_host_memory(struct fixture *f)
{
    for (unsigned i = 0; i < HANG_SECONDS * 1000 && stats_of(f).host_bytes != 0; i++)
        usleep(1000);
    assert_int_equal(stats_of(f).host_bytes, 0);
}

static void end(struct fixture *f)
{
    free_all(f);
    expect_no_host_memory(f);
    assert_int_equal(stats_of(f).adopted_bytes, 0);
    forget_expected();
    close_gpu(f);
}

static size_t all_bytes(void)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < TENSORS; i++)
        bytes += tensor_bytes(i);
    return bytes;
}

/* A store that is loaded by copies tells how much is to come: all of it is adopted, pages and takes no memory before it
 * is used. */
static void test_pages_like_a_weight(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(24 * MIB, 64 * MIB);
    uint64_t taken = stats_of(f).used_bytes;
    assert_int_equal(bring_all(f, 64 * MIB), TENSORS);
    cws_gpu_settle(f->gpu);
    assert_int_equal(stats_of(f).adopted_bytes, all_bytes());
    assert_int_equal(stats_of(f).bound_bytes, 0);
    assert_true(stats_of(f).host_bytes >= all_bytes());
    assert_int_equal(stats_of(f).used_bytes, taken);
    expect_all(f, 4);
    struct cws_gpu_stats stats = stats_of(f);
    assert_true(stats.drops > TENSORS && stats.loads > TENSORS);
    assert_true(stats.prefetched > 0);
    assert_int_equal(stats.dirty_bytes, 0);
    assert_int_equal(stats.spills, 0);
    assert_true(stats.peak_bytes <= 24 * MIB);
    end(f);
}

/* With no store: what comes first is copied as ever, until three quarters of the budget are taken. As it is used, or
 * when memory is short after all, it pages, too. */
static void test_a_part_stays_first(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(40 * MIB, 64 * MIB);
    assert_false(bring(f, 0, 0));
    unsigned count = 0;
    for (unsigned i = 1; i < TENSORS; i++)
        count += bring(f, i, 0);
    assert_true(count > 2 && count < TENSORS - 2);
    uint64_t adopted_then = stats_of(f).adopted_bytes;
    expect_all(f, 3);
    CUdeviceptr large;
    assert_int_equal(cws_gpu_alloc(f->gpu, 12 * MIB, f->stream, &large), 0);
    assert_int_equal(copy_to(f, large, expected[0], tensor_bytes(0)), 0);
    expect_all(f, 3);
    assert_true(stats_of(f).adopted_bytes > adopted_then && f->gpu->adopts.taken > 0);
    assert_int_equal(stats_of(f).spills, 0);
    assert_int_equal(cws_gpu_free(f->gpu, large, f->stream, true), 0);
    end(f);
}

/* All fits: no copy is adopted, and no host memory is pinned. The store's bytes are those that come as copies. */
static void test_what_fits_is_copied(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(120 * MIB, 64 * MIB);
    assert_int_equal(bring_all(f, all_bytes()), 0);
    assert_int_equal(stats_of(f).host_bytes, 0);
    assert_int_equal(stats_of(f).bound_bytes, 0);
    expect_all(f, 1);
    end(f);
}

static void test_switched_off(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 64 * MIB, true);
    assert_int_equal(bring_all(f, 64 * MIB), 0);
    expect_all(f, 1);
    end(f);
}

/* Small copies, copies of odd sizes and places, into memory that was used or bound, or is pinned, and of none of ours. */
static void test_what_is_not_adopted(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(24 * MIB, 64 * MIB);
    uint8_t *from = calloc(1, 4 * MIB);
    CUdeviceptr at;
    const uint64_t much = 64 * MIB;
    assert_int_equal(cws_gpu_alloc(f->gpu, 2 * MIB, f->stream, &at), 0);
    assert_false(cws_gpu_adopt_wants(f->gpu, at, MIB - 2, f->stream, much));
    assert_false(cws_gpu_adopt_wants(f->gpu, at + MIB + 2, MIB, f->stream, much));
    assert_false(cws_gpu_adopt_wants(f->gpu, at + 8, MIB, f->stream, much));
    assert_false(cws_gpu_adopt_wants(f->gpu, at, 4 * MIB, f->stream, much));
    assert_false(cws_gpu_adopt_wants(f->gpu, 4096, 2 * MIB, f->stream, much));
    assert_true(cws_gpu_adopt_wants(f->gpu, at, 2 * MIB, f->stream, much));
    cws_gpu_pin(f->gpu, at);
    assert_false(cws_gpu_adopt_wants(f->gpu, at, 2 * MIB, f->stream, much));
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, 2 * MIB, f->stream, &at), 0);
    assert_int_equal(copy_to(f, at, from, 100), 0);
    assert_false(cws_gpu_adopt_wants(f->gpu, at, 2 * MIB, f->stream, 0));
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    /* in the memory that was just freed: an input that comes in each round, unless a store is being loaded */
    assert_int_equal(cws_gpu_alloc(f->gpu, 2 * MIB, f->stream, &at), 0);
    assert_false(cws_gpu_adopt_wants(f->gpu, at, 2 * MIB, f->stream, 0));
    assert_true(cws_gpu_adopt_wants(f->gpu, at, 2 * MIB, f->stream, much));
    assert_true(cws_gpu_adopt(f->gpu, at, 2 * MIB, f->stream, from));
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, 3 * MIB + 1, f->stream, &at), 0);
    assert_false(cws_gpu_adopt_wants(f->gpu, at, 3 * MIB + 1, f->stream, much));
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    assert_int_equal(cws_gpu_alloc(f->gpu, 3 * MIB, f->stream, &at), 0);
    assert_true(cws_gpu_adopt(f->gpu, at, 3 * MIB, f->stream, from));
    assert_false(cws_gpu_adopt_wants(f->gpu, at, 3 * MIB, f->stream, much));
    assert_false(cws_gpu_adopt(f->gpu, at, 3 * MIB, f->stream, from));
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
    expect_no_host_memory(f);
    free(from);
    close_gpu(f);
}

/* The host budget holds a part: the rest is copied, an eighth of it stays free, and freed ranges give theirs back. */
static void test_host_memory_is_short(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(40 * MIB, 16 * MIB);
    unsigned count = bring_all(f, 64 * MIB);
    assert_true(count >= 5 && count < TENSORS);
    assert_true(stats_of(f).host_bytes <= 14 * MIB);
    expect_all(f, 3);
    free_all(f);
    expect_no_host_memory(f);
    forget_expected();
    assert_true(bring_all(f, 1024 * MIB) >= 5);
    expect_all(f, 1);
    end(f);
}

/* Half is bound to a store, whose compressed bytes fill the host memory before: they give way, and are read again. Other
 * compressed bytes, and spills, never take what was adopted. */
static void test_beside_compressed_weights(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(24 * MIB, 16 * MIB);
    for (unsigned i = 0; i < TENSORS; i += 2) {
        assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &f->at[i]), 0);
        assert_true(
            cws_gpu_bind(f->gpu, f->at[i], tensor_bytes(i), f->stream, store, cws_store_tensor(store, i)->begin));
        expected[i] = malloc(tensor_bytes(i));
        memcpy(expected[i], content(i), tensor_bytes(i));
    }
    cws_gpu_settle(f->gpu);
    unsigned count = 0;
    for (unsigned i = 1; i < TENSORS; i += 2)
        count += bring(f, i, 64 * MIB);
    assert_true(count >= 4);
    expect_all(f, 3);
    for (unsigned i = 0; i < TENSORS; i += 4) { /* written: to be spilled */
        expected[i][5] ^= 1;
        assert_int_equal(copy_to(f, f->at[i] + 5, expected[i] + 5, 1), 0);
    }
    expect_all(f, 3);
    end(f);
}

/* The program writes to what was adopted: it stays, and host memory has no old bytes of it any more. */
static void test_written(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(34 * MIB, 64 * MIB);
    assert_int_equal(bring_all(f, 64 * MIB), TENSORS);
    for (unsigned i = 1; i < TENSORS; i += 3) {
        expected[i][77] ^= 4;
        assert_int_equal(copy_to(f, f->at[i] + 77, expected[i] + 77, 1), 0);
    }
    expect_all(f, 4);
    struct cws_gpu_stats stats = stats_of(f);
    assert_true(stats.dirty_bytes > 0);
    assert_true(stats.adopted_bytes < all_bytes());
    end(f);
}

/* Host memory is not what it was: the launch fails, with a line, and works once it is put right. */
static void test_changed_host_memory(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(24 * MIB, 64 * MIB);
    uint64_t sum;
    assert_int_equal(bring_all(f, 64 * MIB), TENSORS);
    uint8_t *host = cws_gpu_range_at_locked(&f->gpu->ranges, f->at[3])->extents->pieces.list->source->parts[0].host;
    host[MIB + 3] ^= 1;
    assert_int_equal(device_sum(f, 3, &sum), 304);
    assert_non_null(strstr(last_line, "host memory: tensor \"copied by the program\""));
    host[MIB + 3] ^= 1;
    expect_all(f, 1);
    end(f);
}

/* An allocation that is put together: of a tensor of the store, of bytes that are adopted in two parts, and of a copy
 * of a part of these; one that is never filled whole; and copies of them. */
static void test_pieces(void **state)
{
    (void)state;
    enum { W = 3 }; /* 3 MiB */
    struct fixture *f = open_adopting(30 * MIB, 64 * MIB);
    const size_t bytes = 7 * MIB;
    uint8_t *whole = malloc(bytes), *back = malloc(bytes), *buffer = malloc(2 * MIB);
    CUdeviceptr a = 0, b = 0, c;
    assert_int_equal(bring_all(f, 1024 * MIB), TENSORS);
    memcpy(whole, content(W), 3 * MIB);
    for (size_t i = 3 * MIB; i < bytes; i++)
        whole[i] = (uint8_t)(i * i >> 7);
    for (unsigned part = 0; part < 2; part++) { /* b is filled in part only */
        CUdeviceptr to;
        assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &to), 0);
        assert_true(cws_gpu_bind(f->gpu, to, 3 * MIB, f->stream, store, cws_store_tensor(store, W)->begin));
        for (size_t at = 3 * MIB; at < (part ? 5 : 7) * MIB; at += 2 * MIB) {
            memcpy(buffer, whole + at, 2 * MIB);
            assert_true(cws_gpu_adopt_wants(f->gpu, to + at, 2 * MIB, f->stream, 1024 * MIB));
            assert_true(cws_gpu_adopt(f->gpu, to + at, 2 * MIB, f->stream, buffer));
            memset(buffer, 0xee, 2 * MIB);
        }
        *(part ? &b : &a) = to;
    }
    assert_int_equal(stats_of(f).adopted_bytes, all_bytes() + 4 * MIB);
    assert_int_equal(cws_gpu_alloc(f->gpu, 3 * MIB, f->stream, &c), 0);
    assert_true(cws_gpu_carry(f->gpu, c, a + 4 * MIB, 3 * MIB, f->stream));
    for (unsigned pass = 0; pass < 3; pass++) {
        assert_int_equal(copy_from(f, a, back, bytes), 0);
        assert_memory_equal(back, whole, bytes);
        assert_int_equal(copy_from(f, b, back, bytes), 0);
        assert_memory_equal(back, whole, 5 * MIB);
        assert_int_equal(copy_from(f, c, back, 3 * MIB), 0);
        assert_memory_equal(back, whole + 4 * MIB, 3 * MIB);
        expect_all(f, 1);
        whole[6 * MIB] ^= pass == 0; /* the first is written to, the copy is not */
        assert_int_equal(copy_to(f, a + 6 * MIB, whole + 6 * MIB, 1), 0);
        whole[6 * MIB] ^= pass == 0;
        expect_all(f, 1);
        assert_int_equal(copy_from(f, c, back, 3 * MIB), 0);
        assert_memory_equal(back, whole + 4 * MIB, 3 * MIB);
        assert_int_equal(copy_to(f, a + 6 * MIB, whole + 6 * MIB, 1), 0);
    }
    assert_int_equal(cws_gpu_free(f->gpu, a, f->stream, true), 0);
    assert_int_equal(copy_from(f, c, back, 3 * MIB), 0);
    assert_memory_equal(back, whole + 4 * MIB, 3 * MIB);
    assert_int_equal(cws_gpu_free(f->gpu, b, f->stream, true), 0);
    assert_int_equal(cws_gpu_free(f->gpu, c, f->stream, true), 0);
    free(whole);
    free(back);
    free(buffer);
    end(f);
}

/* --- what kernels wrote -------------------------------------------------------------------------------------- */

enum { AGE = 40 };

/* Launches that name something else, so that all the rest grows old. */
static void grow_old(struct fixture *f, CUdeviceptr other)
{
    for (unsigned i = 0; i <= AGE; i++) {
        struct cws_gpu_use use;
        assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &other, 1, &use), 0);
        cws_gpu_end(f->gpu, &use, true);
    }
}

static struct fixture *open_aging(uint64_t budget, size_t host)
{
    static struct cws_tuning tuning;
    struct fixture *f = open_adopting(budget, host);
    cws_gpu_lock(&f->gpu->core);
    tuning = *f->gpu->core.tuning;
    tuning.spill_unused_long = AGE;
    f->gpu->core.tuning = &tuning;
    cws_gpu_unlock(&f->gpu->core);
    return f;
}

/* Allocations that the device has the only bytes of, more and more of them: those that nobody used for long go to host
 * memory, once, and come back ahead of their use. */
static void test_old_allocations_page(void **state)
{
    (void)state;
    struct fixture *f = open_aging(24 * MIB, 64 * MIB);
    CUdeviceptr other;
    assert_int_equal(cws_gpu_alloc(f->gpu, MIB, f->stream, &other), 0);
    for (unsigned i = 0; i < TENSORS; i++) {
        bring(f, i, BY_A_KERNEL);
        grow_old(f, other);
    }
    unsigned long long taken = f->gpu->adopts.taken;
    expect_all(f, 4);
    struct cws_gpu_stats stats = stats_of(f);
    assert_true(f->gpu->adopts.taken > 0);
    assert_int_equal(stats.spills, 0);
    assert_int_equal(stats.dirty_bytes, 0);
    assert_true(stats.prefetched > 0 && stats.drops > TENSORS);
    assert_true(f->gpu->adopts.taken <= taken + 4); /* they went out once */
    assert_true(stats.peak_bytes <= 24 * MIB);
    assert_int_equal(cws_gpu_free(f->gpu, other, f->stream, true), 0);
    end(f);
}

/* Weights that were changed once: spilled at first, and once they were the same again they page. */
static void test_written_weights_page(void **state)
{
    (void)state;
    struct fixture *f = open_adopting(24 * MIB, 64 * MIB);
    bind_all(f);
    for (unsigned i = 0; i < TENSORS; i++) {
        expected[i] = malloc(tensor_bytes(i));
        memcpy(expected[i], content(i), tensor_bytes(i));
        expected[i][i] ^= 1;
        assert_int_equal(copy_to(f, f->at[i] + i, expected[i] + i, 1), 0);
    }
    expect_all(f, 4);
    uint64_t spills = stats_of(f).spills;
    assert_true(spills > 0 && f->gpu->adopts.taken >= TENSORS / 2);
    assert_true(stats_of(f).adopted_bytes > 0);
    expect_all(f, 3);
    struct cws_gpu_stats stats = stats_of(f);
    assert_true(stats.spills <= spills + 2);
    assert_true(stats.adopted_bytes + stats.dirty_bytes >= all_bytes() - 8 * MIB);
    end(f);
}

/* What changes again and again is not adopted again and again. */
static void test_what_changes_is_left_alone(void **state)
{
    (void)state;
    enum { PASSES = SANITIZED ? 5 : 12 };
    struct fixture *f = open_aging(24 * MIB, 64 * MIB);
    CUdeviceptr other;
    assert_int_equal(cws_gpu_alloc(f->gpu, MIB, f->stream, &other), 0);
    for (unsigned i = 0; i < TENSORS; i++) {
        bring(f, i, BY_A_KERNEL);
        grow_old(f, other);
    }
    for (unsigned pass = 0; pass < PASSES; pass++) {
        for (unsigned i = 0; i < TENSORS; i++) {
            expected[i][pass] ^= 2;
            assert_int_equal(copy_to(f, f->at[i] + pass, expected[i] + pass, 1), 0);
            expect_bytes(f, i, expected[i]);
            grow_old(f, other);
            assert_null(cws_gpu_check(f->gpu));
        }
    }
    assert_true(stats_of(f).spills > 0);
    assert_true(f->gpu->adopts.taken <= 3 * TENSORS);
    for (unsigned i = 0; i < TENSORS; i++) {
        expect_bytes(f, i, expected[i]);
        grow_old(f, other);
    }
    assert_int_equal(cws_gpu_free(f->gpu, other, f->stream, true), 0);
    end(f);
}

/* Host memory is short: some page, the others stay, and nothing is lost. */
static void test_short_host_memory_for_what_is_old(void **state)
{
    (void)state;
    struct fixture *f = open_aging(34 * MIB, 8 * MIB);
    CUdeviceptr other;
    uint8_t *back = malloc(3 * MIB);
    unsigned made = 0;
    assert_int_equal(cws_gpu_alloc(f->gpu, MIB, f->stream, &other), 0);
    for (; made < TENSORS; made++) {
        size_t bytes = tensor_bytes(made);
        if (cws_gpu_alloc(f->gpu, bytes, f->stream, &f->at[made]) != CUDA_SUCCESS)
            break;
        if (copy_to(f, f->at[made], content(made), bytes) != CUDA_SUCCESS) {
            assert_int_equal(cws_gpu_free(f->gpu, f->at[made], f->stream, true), 0);
            break;
        }
        grow_old(f, other);
    }
    assert_true(made > 4 && f->gpu->adopts.taken > 0);
    for (unsigned i = 0; i < 2 * made; i++)
        if (copy_from(f, f->at[i % made], back, tensor_bytes(i % made)) == CUDA_SUCCESS)
            assert_memory_equal(back, content(i % made), tensor_bytes(i % made));
    assert_true(stats_of(f).host_bytes <= 8 * MIB);
    for (unsigned i = 0; i < made; i++)
        assert_int_equal(cws_gpu_free(f->gpu, f->at[i], f->stream, true), 0);
    assert_int_equal(cws_gpu_free(f->gpu, other, f->stream, true), 0);
    expect_no_host_memory(f);
    free(back);
    close_gpu(f);
}

/* When memory is refused, one line says why what is there is not paged. */
static void refused(bool switched_on, size_t host, const char *why)
{
    struct fixture *f;
    CUdeviceptr at[TENSORS] = {0};
    uint8_t *from = calloc(1, 3 * MIB);
    host_budget = host;
    adopt = switched_on;
    f = open_gpu(256 * MIB, 24 * MIB, true);
    adopt = false;
    host_budget = 64 * MIB;
    explained[0] = '\0';
    for (unsigned i = 0; i < TENSORS; i++) {
        if (cws_gpu_alloc(f->gpu, 3 * MIB, f->stream, &at[i]) != CUDA_SUCCESS)
            break;
        if (host < 64 * MIB && cws_gpu_adopt_wants(f->gpu, at[i], 3 * MIB, f->stream, 1024 * MIB) &&
            cws_gpu_adopt(f->gpu, at[i], 3 * MIB, f->stream, from))
            continue;
        if (copy_to(f, at[i], from, 3 * MIB) != CUDA_SUCCESS)
            break;
    }
    assert_non_null(strstr(last_line, "least budget"));
    if (!strstr(explained, why))
        fail_msg("said: '%s'", explained);
    for (unsigned i = 0; i < TENSORS; i++)
        if (at[i])
            assert_int_equal(cws_gpu_free(f->gpu, at[i], f->stream, true), 0);
    free(from);
    close_gpu(f);
}

static void test_refusals_are_explained(void **state)
{
    (void)state;
    refused(false, 64 * MIB, "CODEC_ADOPT=0");
    refused(true, 4 * MIB, "CODEC_HOST_BUDGET is used up");
    refused(true, 64 * MIB, "kernels wrote it");
}

static void test_strict(void **state)
{
    (void)state;
    strict = true;
    struct fixture *f = open_adopting(24 * MIB, 64 * MIB);
    strict = false;
    assert_int_equal(bring_all(f, 64 * MIB), TENSORS);
    expect_all(f, 2);
    end(f);
}

/* The N-th call fails while all is brought, used and freed: an error, or the right bytes. */
static void test_calls_fail(void **state)
{
    (void)state;
    static const char *const CALLS[] = {"cuMemHostAlloc", "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuLaunchKernel",
                                        "cuMemUnmap",     "cuMemMap",          "cuMemSetAccess",    "cuMemCreate",
                                        "cuEventRecord",  "cuEventQuery"};
    uint8_t *back = malloc(3 * MIB);
    for (size_t c = 0; c < sizeof CALLS / sizeof *CALLS; c++) {
        for (unsigned n = 1; n <= (SANITIZED ? 1 : 30); n += n) {
            struct fixture *f = open_adopting(30 * MIB, 64 * MIB);
            standin_fail(CALLS[c], n, CUDA_ERROR_OUT_OF_MEMORY);
            unsigned count = bring_all(f, 64 * MIB), errors = 0;
            assert_true(count >= TENSORS - 1);
            for (unsigned i = 0; i < 2 * TENSORS; i++) {
                unsigned k = i % TENSORS;
                if (copy_from(f, f->at[k], back, tensor_bytes(k)) == CUDA_SUCCESS)
                    assert_memory_equal(back, expected[k], tensor_bytes(k));
                else
                    errors++;
            }
            standin_fail_none();
            assert_true(errors <= 2);
            assert_null(cws_gpu_check(f->gpu));
            expect_all(f, 1);
            forget_expected();
            free_all(f);
            cws_gpu_close(f->gpu);
            standin_reset(0);
            free(f);
        }
    }
    free(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_like_a_weight),
        cmocka_unit_test(test_a_part_stays_first),
        cmocka_unit_test(test_what_fits_is_copied),
        cmocka_unit_test(test_switched_off),
        cmocka_unit_test(test_what_is_not_adopted),
        cmocka_unit_test(test_host_memory_is_short),
        cmocka_unit_test(test_written),
        cmocka_unit_test(test_beside_compressed_weights),
        cmocka_unit_test(test_changed_host_memory),
        cmocka_unit_test(test_old_allocations_page),
        cmocka_unit_test(test_written_weights_page),
        cmocka_unit_test(test_what_changes_is_left_alone),
        cmocka_unit_test(test_short_host_memory_for_what_is_old),
        cmocka_unit_test(test_refusals_are_explained),
        cmocka_unit_test(test_strict),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_calls_fail),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
