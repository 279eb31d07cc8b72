/* Description: activations and weights share a budget, round after round: a round loads what does not fit and little
 * more, the budget holds at every moment, and what kernels read is right. With activations by size and place, a decoder
 * whose activations double in each stage, a pool that is trimmed, and two models in turn. */
#define GPU_TENSORS 60
#include "uvm/cuda/gpu.h"
#include "gpu_fixture.h"

/* What streams has beside what stays (uvm/policy/tuning.h): of five weights in turn two of 4 MiB, or four of 2 MiB, and
 * what is in flight. */
#define WINDOW (48 * MIB)
#define OWN (2 * MIB)      /* of the fixture: f->scratch, which nobody counts */
#define PLACES (12 * MIB)  /* what walk() has live at its peak */
#define DECODER (40 * MIB) /* what decode() has live at its peak */
#define AHEAD (32 * MIB)   /* loaded by one round for the next, and by a thread that got no processor in time */
/* Loads are judged after two rounds; the sanitizers, which are slow, see these. */
enum { STEPS = 2 /* of a round */, ROUNDS = SANITIZED ? 2 : 4 };

/* --- what fits ------------------------------------------------------------------------------------------- */

static uint64_t span(unsigned i) { return (tensor_bytes(i) + CWS_GPU_GRANULE - 1) / CWS_GPU_GRANULE * CWS_GPU_GRANULE; }

/* Logical bytes of weights that a walk over all of them has to load, where so much lies beside them at its peak. */
static uint64_t not_fitting(uint64_t budget, uint64_t beside)
{
    uint64_t spans = 0, logical = 0, room = budget > beside + WINDOW ? budget - beside - WINDOW : 0;
    for (unsigned i = 0; i < TENSORS; i++) {
        spans += span(i);
        logical += tensor_bytes(i);
    }
    return spans > room ? (spans - room) * logical / spans : 0;
}

/* Of one round, in the steady state. */
static void expect_loads(const struct cws_gpu_stats *before, const struct cws_gpu_stats *after, uint64_t least)
{
    uint64_t loaded = after->loaded_bytes - before->loaded_bytes;
    if (loaded > least + least / 10 + AHEAD)
        fail_msg("a round loads %.1f MiB, and %.1f MiB do not fit", (double)loaded / (double)MIB,
                 (double)least / (double)MIB);
}

/* --- the program ------------------------------------------------------------------------------------------- */

static uint64_t budget;

static void expect_inside(struct fixture *f)
{
    const char *wrong = cws_gpu_check(f->gpu);
    if (wrong)
        fail_msg("%s", wrong);
    if (standin_device_used() > budget + OWN)
        fail_msg("%zu MiB in use", standin_device_used() / MIB);
}

/* Plans by time are tried when launches wait, which they do by chance here; what moves for them is loaded. */
static struct fixture *start(uint64_t bytes)
{
    static struct cws_tuning by_uses;
    budget = bytes;
    struct fixture *f = open_gpu(512 * MIB, budget, true);
    cws_gpu_lock(&f->gpu->core);
    by_uses = *f->gpu->core.tuning;
    by_uses.order_pace_tries = 0;
    f->gpu->core.tuning = &by_uses;
    f->gpu->order.order.tuning = &by_uses;
    cws_gpu_unlock(&f->gpu->core);
    bind_all(f);
    return f;
}

static void end(struct fixture *f)
{
    struct cws_gpu_stats stats;
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.peak_bytes <= budget);
    free_all(f);
    close_gpu(f);
}

static CUdeviceptr take(struct fixture *f, size_t bytes, uint32_t value)
{
    CUdeviceptr at;
    uint64_t count = bytes;
    void *params[] = {&at, &count, &value};
    assert_int_equal(cws_gpu_alloc(f->gpu, bytes, f->stream, &at), 0);
    assert_int_equal(launch(f, "fill", &at, 1, params), 0);
    return at;
}

static void give(struct fixture *f, CUdeviceptr at, size_t bytes, uint32_t value)
{
    uint64_t sum = 0;
    assert_int_equal(sum_at(f, at, bytes, &sum), 0);
    assert_int_equal(sum, bytes * value); /* it is still what was written */
    assert_int_equal(cws_gpu_free(f->gpu, at, f->stream, true), 0);
}

/* Each weight in [from, to), beside two activations whose sizes depend on its place. */
static void walk(struct fixture *f, unsigned from, unsigned to)
{
    static const size_t sizes[][2] = {{2 * MIB, 4 * MIB}, {6 * MIB, 2 * MIB}, {MIB, 10 * MIB}, {3 * MIB, 3 * MIB}};
    for (unsigned i = from; i < to; i++) {
        const size_t *size = sizes[i / 8 % 4];
        CUdeviceptr first = take(f, size[0], 1), second = take(f, size[1], 2);
        expect_right(f, i);
        give(f, first, size[0], 1);
        give(f, second, size[1], 2);
        expect_inside(f);
    }
}

/* A decoder: what a stage makes is twice as large as what it read. */
static void decode(struct fixture *f)
{
    size_t size = 2 * MIB;
    CUdeviceptr image = take(f, size, 3);
    for (; size < 16 * MIB; size *= 2) {
        CUdeviceptr larger = take(f, 2 * size, 3), other = take(f, 2 * size, 4);
        give(f, image, size, 3);
        give(f, other, 2 * size, 4);
        image = larger;
        expect_inside(f);
    }
    give(f, image, size, 3);
}

/* --- tests --------------------------------------------------------------------------------------------------- */

static void test_activations_by_place(void **state)
{
    (void)state;
    struct fixture *f = start(96 * MIB);
    struct cws_gpu_stats before, after;
    for (unsigned round = 0; round < ROUNDS; round++) {
        cws_gpu_stats_get(f->gpu, &before);
        walk(f, 0, TENSORS);
        cws_gpu_stats_get(f->gpu, &after);
        if (round < 2)
            continue;
        expect_loads(&before, &after, not_fitting(budget, after.staging_bytes + PLACES));
        assert_int_equal(after.stolen_bytes, before.stolen_bytes);
    }
    end(f);
}

static void test_a_decoder_between_steps(void **state)
{
    (void)state;
    struct fixture *f = start(192 * MIB);
    struct cws_gpu_stats before, after;
    for (unsigned image = 0; image < ROUNDS; image++) {
        cws_gpu_stats_get(f->gpu, &before);
        for (unsigned step = 0; step < STEPS; step++)
            walk(f, 0, TENSORS);
        decode(f);
        cws_gpu_stats_get(f->gpu, &after);
        if (image < 2)
            continue;
        expect_loads(&before, &after, STEPS * not_fitting(budget, after.staging_bytes + DECODER));
        assert_int_equal(after.stolen_bytes, before.stolen_bytes);
    }
    end(f);
}

/* The same, and the program gives back what the decoder left, as with torch.cuda.empty_cache(). */
static void test_a_pool_that_is_trimmed(void **state)
{
    (void)state;
    struct fixture *f = start(128 * MIB);
    struct cws_gpu_stats before, after;
    for (unsigned image = 0; image < ROUNDS; image++) {
        cws_gpu_stats_get(f->gpu, &before);
        for (unsigned step = 0; step < STEPS; step++)
            walk(f, 0, TENSORS);
        decode(f);
        cws_gpu_trim(f->gpu, 0);
        cws_gpu_stats_get(f->gpu, &after);
        assert_int_equal(after.reserve_bytes, 0);
        if (image >= 2)
            expect_loads(&before, &after, STEPS * not_fitting(budget, after.staging_bytes + DECODER));
    }
    end(f);
}

static void test_two_models_in_turn(void **state)
{
    (void)state;
    struct fixture *f = start(96 * MIB);
    struct cws_gpu_stats before, after;
    for (unsigned round = 0; round < ROUNDS; round++) {
        cws_gpu_stats_get(f->gpu, &before);
        for (unsigned step = 0; step < 2 * STEPS; step++)
            walk(f, step < STEPS ? 0 : TENSORS / 2, step < STEPS ? TENSORS / 2 : TENSORS);
        cws_gpu_stats_get(f->gpu, &after);
        if (round >= 2)
            expect_loads(&before, &after, STEPS * not_fitting(budget, after.staging_bytes + PLACES));
    }
    end(f);
}

/* A launch on a stream, whose number `slot` is in the stream's scratch memory once that is done. */
static void sum_later(struct fixture *f, CUdeviceptr from, uint64_t bytes, unsigned slot)
{
    CUdeviceptr to = f->scratch + 8 * slot;
    void *params[] = {&to, &from, &bytes};
    assert_int_equal(launch(f, "sum", &from, 1, params), 0);
}

/* Both halves of a batch go through each weight, and then change places: what one stream made the other one reads, and
 * frees in its own order. Nothing is waited for by the host before the end of a round. */
static void two_streams_round(struct fixture *halves, CUevent *events)
{
    enum { SIZES = 3 };
    static const size_t sizes[SIZES] = {2 * MIB, 5 * MIB, 3 * MIB};
    for (unsigned i = 0; i < TENSORS; i++) {
        size_t size = sizes[i % SIZES];
        CUdeviceptr made[2];
        for (unsigned k = 0; k < 2; k++) {
            made[k] = take(&halves[k], size, 1 + k);
            sum_later(&halves[k], halves[k].at[i], tensor_bytes(i), i);
            assert_int_equal(driver.event_record(events[k], halves[k].stream), 0);
        }
        for (unsigned k = 0; k < 2; k++) {
            assert_int_equal(driver.stream_wait(halves[k].stream, events[!k], 0), 0);
            sum_later(&halves[k], made[!k], size, TENSORS + i);
            assert_int_equal(cws_gpu_free(halves[k].gpu, made[!k], halves[k].stream, true), 0);
        }
        expect_inside(&halves[0]);
    }
    for (unsigned k = 0; k < 2; k++) {
        uint64_t sums[2 * TENSORS];
        assert_int_equal(driver.copy_out_async(sums, halves[k].scratch, sizeof sums, halves[k].stream), 0);
        assert_int_equal(driver.stream_sync(halves[k].stream), 0);
        for (unsigned i = 0; i < TENSORS; i++) {
            assert_int_equal(sums[i], plain_sum(content(i), tensor_bytes(i)));
            assert_int_equal(sums[TENSORS + i], sizes[i % SIZES] * (2 - k));
        }
    }
}

static void test_two_streams(void **state)
{
    (void)state;
    struct fixture *f = start(96 * MIB);
    struct fixture halves[2] = {*f, *f};
    struct cws_gpu_stats before, after;
    CUevent events[2];
    assert_int_equal(driver.stream_create(&halves[1].stream, CU_STREAM_NON_BLOCKING), 0);
    assert_int_equal(driver.mem_alloc(&halves[1].scratch, 4096), 0);
    for (unsigned k = 0; k < 2; k++)
        assert_int_equal(driver.event_create(&events[k], CU_EVENT_DISABLE_TIMING), 0);
    standin_delay(11, 100);
    for (unsigned round = 0; round < ROUNDS; round++) {
        cws_gpu_stats_get(f->gpu, &before);
        two_streams_round(halves, events);
        cws_gpu_stats_get(f->gpu, &after);
        if (round >= 2) /* of each size two, and two that wait for the other stream */
            expect_loads(&before, &after, not_fitting(budget, after.staging_bytes + 4 * 6 * MIB));
    }
    standin_delay(0, 0);
    cws_gpu_stream_gone(f->gpu, halves[1].stream);
    assert_int_equal(driver.stream_destroy(halves[1].stream), 0);
    assert_int_equal(driver.mem_free(halves[1].scratch), 0);
    for (unsigned k = 0; k < 2; k++)
        assert_int_equal(driver.event_destroy(events[k]), 0);
    end(f);
}

/* One use at a time, each waited for: loads are all, but bits and the budget are the same. */
static void test_strict(void **state)
{
    (void)state;
    strict = true;
    struct fixture *f = start(96 * MIB);
    for (unsigned round = 0; round < 2; round++) {
        walk(f, 0, TENSORS);
        decode(f);
        cws_gpu_trim(f->gpu, 0);
        expect_inside(f);
    }
    end(f);
    strict = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_activations_by_place),
        cmocka_unit_test(test_a_decoder_between_steps),
        cmocka_unit_test(test_a_pool_that_is_trimmed),
        cmocka_unit_test(test_two_models_in_turn),
        cmocka_unit_test(test_two_streams),
        cmocka_unit_test(test_strict),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
