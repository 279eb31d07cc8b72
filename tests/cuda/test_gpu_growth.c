/* Description: caches that grow by concatenation, as torch.cat makes them: in each step every cache goes into a new
 * allocation that is a bit larger, and the old one is freed. Their sizes pass through many counts of granules, so that
 * what was freed does not fit what comes next as it is. Addresses do not run out, and memory does not. The small ones
 * lie in the driver's pool, whose free memory is in pieces. */
#define GPU_TENSORS 18
#include "gpu_fixture.h"

enum { CACHES = 12, STEPS = SANITIZED ? 1000 : 10000, ROW = 64 };

struct cache {
    CUdeviceptr at; /* 0: empty */
    size_t bytes, grows;
    unsigned rows;
};

struct addresses { /* that allocations had: from the first to behind the last */
    CUdeviceptr begin, end;
};

static size_t span_of(const struct addresses *a) { return a->end - a->begin; }

/* Each grows to `most` bytes at its own pace; the last one reaches it. */
static void start(struct cache *caches, size_t most)
{
    for (unsigned k = 0; k < CACHES; k++)
        caches[k] = (struct cache){.grows = most / CACHES * (k + 1) / STEPS};
}

static void expect_room(struct fixture *f, const struct cache *c, CUresult result)
{
    if (result != CUDA_SUCCESS)
        fail_msg("error %d at %zu MiB: %s", result, c->bytes / MIB, last_line);
    assert_non_null(f);
}

/* The new place of a cache, one row larger. */
static CUdeviceptr next_of(struct fixture *f, struct cache *c, struct addresses *seen)
{
    CUdeviceptr more;
    size_t bytes = c->bytes + c->grows;
    expect_room(f, c, cws_gpu_alloc(f->gpu, bytes, f->stream, &more));
    seen->begin = more < seen->begin ? more : seen->begin;
    seen->end = more + bytes > seen->end ? more + bytes : seen->end;
    return more;
}

static void replace(struct fixture *f, struct cache *c, CUdeviceptr more)
{
    if (c->at)
        assert_int_equal(cws_gpu_free(f->gpu, c->at, f->stream, true), 0);
    *c = (struct cache){more, c->bytes + c->grows, c->grows, c->rows + 1};
}

/* Allocations that are not used have no memory, so that this takes addresses alone. A size class may leave some pieces
 * free, and when the caches grow again, these do. */
static void test_addresses_do_not_run_out(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(512 * MIB, 400 * MIB, true);
    struct addresses seen = {.begin = ~(CUdeviceptr)0};
    size_t live = 0, first = 0;
    for (unsigned time = 0; time < 3; time++) {
        struct cache caches[CACHES];
        start(caches, 192 * MIB);
        for (unsigned step = 0; step < STEPS; step++)
            for (unsigned k = 0; k < CACHES; k++)
                replace(f, &caches[k], next_of(f, &caches[k], &seen));
        for (unsigned k = 0; k < CACHES; k++) {
            live += time == 0 ? caches[k].bytes : 0;
            assert_int_equal(cws_gpu_free(f->gpu, caches[k].at, f->stream, true), 0);
        }
        first = first ? first : span_of(&seen);
    }
    if (first > 6 * live || span_of(&seen) > first + first / 10)
        fail_msg("%zu MiB of addresses for %zu MiB, then %zu MiB", first / MIB, live / MIB, span_of(&seen) / MIB);
    close_gpu(f);
}

/* What is kept of a cache here: its first row, which tells how many there are. */
static void write_row(struct fixture *f, const struct cache *c, CUdeviceptr more)
{
    uint64_t row = ROW;
    uint32_t value = c->rows & 0xff;
    void *params[] = {&more, &row, &value};
    CUdeviceptr named[] = {more, c->at};
    expect_room(f, c, launch(f, "fill", named, c->at ? 2 : 1, params));
}

static void expect_row(struct fixture *f, const struct cache *c)
{
    uint64_t sum = 0;
    assert_int_equal(sum_at(f, c->at, ROW, &sum), 0);
    assert_int_equal(sum, ROW * ((c->rows - 1) & 0xff));
}

/* The caches to their end, beside weights of which a launch of each step names one. */
static struct cws_gpu_stats grow_beside_weights(struct fixture *f, size_t most, uint64_t frames_most)
{
    struct cws_gpu_stats stats;
    struct cache caches[CACHES];
    struct addresses seen = {.begin = ~(CUdeviceptr)0};
    bind_all(f);
    start(caches, most);
    for (unsigned step = 0; step < STEPS; step++) {
        for (unsigned k = 0; k < CACHES; k++) {
            CUdeviceptr more = next_of(f, &caches[k], &seen);
            write_row(f, &caches[k], more);
            replace(f, &caches[k], more);
        }
        if (step % 20)
            assert_int_equal(launch(f, "nothing", &f->at[step % TENSORS], 1, NULL), 0);
        else
            expect_right(f, step % TENSORS);
        if (step % 250 == 0)
            expect_row(f, &caches[step / 250 % CACHES]);
        cws_gpu_stats_get(f->gpu, &stats);
        if (stats.frames_created > frames_most)
            fail_msg("step %u: %lu frames made, %lu MiB stolen", step, (unsigned long)stats.frames_created,
                     (unsigned long)(stats.stolen_bytes / MIB));
    }
    assert_null(cws_gpu_check(f->gpu));
    for (unsigned k = 0; k < CACHES; k++)
        assert_int_equal(cws_gpu_free(f->gpu, caches[k].at, f->stream, true), 0);
    free_all(f);
    return stats;
}

/* Twice the caches, which is what they take with what they were copied from, fits beside the weights. */
static void test_weights_stay_where_all_fits(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(512 * MIB, 384 * MIB, true);
    struct cws_gpu_stats stats = grow_beside_weights(f, 12 * MIB, 1000);
    assert_true(stats.peak_bytes <= 384 * MIB);
    assert_int_equal(stats.stolen_bytes, 0);
    assert_int_equal(stats.loads, TENSORS);
    close_gpu(f);
}

/* --- the driver's pool ------------------------------------------------------------------------------------ */

/* The driver's pool is in holes of HOLE bytes, nothing that is larger fits any, and it grows by 2 MiB each time that
 * STEP bytes more are in use. */
enum { HOLE = 64 << 10, LARGER = 2 * HOLE, STEP = 2 << 20, HOLES = (32 << 20) / HOLE, MORE = 10 * STEP / LARGER };

static CUdeviceptr small(struct fixture *f, size_t bytes)
{
    CUdeviceptr at;
    size_t room;
    CUresult result = cws_gpu_pool_room(f->gpu, NULL, bytes, &room);
    if (result != CUDA_SUCCESS)
        fail_msg("error %d: %s", result, last_line);
    assert_int_equal(driver.mem_alloc_async(&at, bytes, f->stream), 0);
    cws_gpu_pool_used(f->gpu, room);
    return at;
}

static CUdeviceptr fresh(struct fixture *f, size_t bytes)
{
    CUdeviceptr at;
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &at), 0);
    assert_int_equal(launch(f, "nothing", &at, 1, NULL), 0);
    return at;
}

/* What the pool has would do for each allocation, by its bytes, and it grows: neither weights that launches wait for
 * nor the program's own memory have taken the room by then. */
static void test_a_pool_in_pieces_grows_inside_the_budget(void **state)
{
    (void)state;
    enum { BUDGET = 160 };
    struct fixture *f = open_gpu(512 * MIB, BUDGET * MIB, true);
    struct cws_gpu_stats stats;
    static CUdeviceptr holes[HOLES], more[MORE], own[1 + MORE / 32];
    unsigned owns = 0;
    for (unsigned i = 0; i < HOLES; i++)
        holes[i] = small(f, HOLE);
    for (unsigned i = 0; i < HOLES; i += 2)
        assert_int_equal(driver.mem_free_async(holes[i], f->stream), 0);
    assert_int_equal(driver.stream_sync(f->stream), 0);
    bind_all(f);
    own[owns++] = fresh(f, 80 * MIB);
    for (unsigned i = 0; i < 2 * TENSORS; i++)
        expect_right(f, i % TENSORS);
    cws_gpu_stats_get(f->gpu, &stats);
    uint64_t before = stats.other_bytes;
    for (unsigned i = 0; i < MORE; i++) {
        expect_right(f, i % TENSORS);
        more[i] = small(f, LARGER);
        if (i % 32 == 31)
            own[owns++] = fresh(f, 2 * MIB);
        cws_gpu_pools_changed(f->gpu);
        cws_gpu_stats_get(f->gpu, &stats);
        if (stats.peak_bytes > BUDGET * MIB)
            fail_msg("%lu KiB over the budget after %u more", (unsigned long)((stats.peak_bytes - BUDGET * MIB) >> 10),
                     i + 1);
    }
    assert_true(stats.other_bytes >= before + MORE * LARGER);
    for (unsigned i = 0; i < HOLES; i++)
        assert_int_equal(i % 2 ? driver.mem_free_async(holes[i], f->stream) : 0, 0);
    for (unsigned i = 0; i < MORE; i++)
        assert_int_equal(driver.mem_free_async(more[i], f->stream), 0);
    for (unsigned i = 0; i < owns; i++)
        assert_int_equal(cws_gpu_free(f->gpu, own[i], f->stream, true), 0);
    free_all(f);
    close_gpu(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_addresses_do_not_run_out),
                                       cmocka_unit_test(test_weights_stay_where_all_fits),
                                       cmocka_unit_test(test_a_pool_in_pieces_grows_inside_the_budget)};
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
