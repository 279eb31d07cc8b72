/* Ranges that are put together from tensors and from parts of tensors: bound piece by piece, loaded and dropped as a
 * whole, right whatever is written, freed, used too early or fails. */
#include "gpu_pieces.h"

enum { MOST = 64 };

/* --- tests ---------------------------------------------------------------------------------------------- */

static void paged(bool prefetch)
{
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, prefetch);
    struct made m[8];
    for (unsigned i = 0; i < 8; i++)
        m[i] = i % 2 ? take_rows(f, 3 * i) : fuse(f, 3 * i);
    assert_int_equal(stats_of(f).anonymous_bytes, 0); /* no memory until it is used */
    use_in_turns(f, m, 8, SANITIZED ? 3 : 6);
    for (unsigned i = 0; i < 8; i++)
        expect_all(f, &m[i]);
    struct cws_gpu_stats stats = stats_of(f);
    assert_true(stats.drops > 0);
    assert_int_equal(stats.dirty_bytes + stats.anonymous_bytes, 0);
    assert_true(stats.peak_bytes <= 40 * MIB);
    for (unsigned i = 0; i < 8; i++)
        drop(f, &m[i]);
    close_gpu(f);
}
static void test_paged(void **state) { (void)state, paged(false); }
static void test_prefetched(void **state) { (void)state, paged(true); }

/* More pieces than one check hashes, in another order than they lie. */
static void test_many_pieces(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(512 * MIB, 200 * MIB, true);
    struct made all = {0}, other = fuse(f, 0);
    size_t places[MOST], bytes = 0;
    for (unsigned i = 0; i < MOST; i++) {
        places[i] = bytes;
        bytes += tensor_bytes(i);
    }
    all = make(f, bytes);
    for (unsigned i = 0; i < MOST; i++)
        assert_true(copy(f, &all, places[i * 5 % MOST], whole(i * 5 % MOST)));
    expect_all(f, &all);
    struct made more = make(f, 60 * MIB); /* of the program: pushes it out */
    fill_bytes(f, &more, 0, more.bytes, 7);
    expect_all(f, &other);
    assert_true(stats_of(f).drops >= 1);
    expect_all(f, &more);
    drop(f, &more);
    expect_all(f, &all);
    write_word(f, &all, places[MOST - 1] + 4096); /* in the last ones */
    more = make(f, 40 * MIB);
    fill_bytes(f, &more, 0, more.bytes, 8);
    expect_all(f, &all);
    drop(f, &more);
    drop(f, &all);
    drop(f, &other);
    close_gpu(f);
}

static void test_a_written_piece_is_kept(void **state)
{
    (void)state;
    for (unsigned which = 0; which < 3; which++) {
        struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
        struct made m[5];
        for (unsigned i = 0; i < 5; i++)
            m[i] = fuse(f, 3 * i);
        write_word(f, &m[2], which == 0 ? 0 : which == 1 ? 3 * MIB + 4096 : m[2].bytes - 4);
        use_in_turns(f, m, 5, 3);
        for (unsigned i = 0; i < 5; i++)
            expect_all(f, &m[i]);
        assert_true(stats_of(f).dirty_bytes + stats_of(f).spilled_bytes > 0);
        for (unsigned i = 0; i < 5; i++)
            drop(f, &m[i]);
        close_gpu(f);
    }
}

/* Two pieces with each other's content: both hashes are known, and each is wrong. */
static void test_exchanged_pieces_are_kept(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    struct made m = make(f, 6 * MIB), other[3];
    assert_true(copy(f, &m, 0, whole(0)));
    assert_true(copy(f, &m, 3 * MIB, whole(3)));
    expect_all(f, &m);
    struct cws_gpu_use use; /* a copy that nobody tells of */
    assert_int_equal(cws_gpu_begin(f->gpu, f->stream, &m.at, 1, &use), 0);
    assert_int_equal(driver.copy_in_async(m.at, content(3), 3 * MIB, f->stream), 0);
    assert_int_equal(driver.copy_in_async(m.at + 3 * MIB, content(0), 3 * MIB, f->stream), 0);
    cws_gpu_end(f->gpu, &use, true);
    memcpy(m.shadow, content(3), 3 * MIB);
    memcpy(m.shadow + 3 * MIB, content(0), 3 * MIB);
    for (unsigned i = 0; i < 3; i++)
        other[i] = fuse(f, 6 + 3 * i);
    use_in_turns(f, other, 3, 3);
    expect_all(f, &m);
    drop(f, &m);
    for (unsigned i = 0; i < 3; i++)
        drop(f, &other[i]);
    close_gpu(f);
}

/* What it is used for before all is there: read, written, by a copy that does not bind. The parts come, and what is
 * between them is the program's. */
static void test_used_too_early(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 3; how++) {
        struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
        struct made m = make(f, 8 * MIB), other[4];
        assert_true(copy(f, &m, 0, whole(0)));
        assert_true(copy(f, &m, 5 * MIB, whole(3)));
        if (how == 1) /* also over a part of a piece */
            assert_false(copy(f, &m, 5 * MIB - 128 * 1024, rows(6, 1, 2)));
        if (how == 2)
            write_word(f, &m, 5 * MIB + 64);
        fill_bytes(f, &m, 3 * MIB, MIB, 9); /* a kernel fills the rest */
        fill_bytes(f, &m, 4 * MIB, how == 1 ? MIB - 128 * 1024 : MIB, 9);
        if (how == 2) /* all has been copied once, and was written to */
            assert_false(copy(f, &m, 3 * MIB, whole(1)));
        expect_all(f, &m);
        for (unsigned i = 0; i < 4; i++)
            other[i] = fuse(f, 9 + 3 * i);
        use_in_turns(f, other, 4, 3);
        expect_all(f, &m);
        for (unsigned i = 0; i < 4; i++)
            drop(f, &other[i]);
        drop(f, &m);
        close_gpu(f);
    }
}

/* A range that has memory: zeros were written there, or it is one that was freed before. What is copied is noted, and
 * it is paged once all of it was. */
static void test_copied_into_memory(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m[6];
    for (unsigned i = 0; i < 6; i++) {
        size_t at = 0;
        m[i] = make(f, tensor_bytes(3 * i) + tensor_bytes(3 * i + 1));
        fill_bytes(f, &m[i], 0, m[i].bytes, 0);
        for (unsigned k = 0; k < 2; at += tensor_bytes(3 * i + k), k++)
            assert_false(copy(f, &m[i], at, whole(3 * i + k)));
    }
    assert_int_equal(stats_of(f).anonymous_bytes, 0);
    use_in_turns(f, m, 6, 3);
    for (unsigned i = 0; i < 6; i++)
        expect_all(f, &m[i]);
    assert_int_equal(stats_of(f).dirty_bytes + stats_of(f).anonymous_bytes, 0);
    write_word(f, &m[1], 64);
    use_in_turns(f, m, 6, 2);
    expect_all(f, &m[1]);
    for (unsigned i = 0; i < 6; i++)
        drop(f, &m[i]);
    close_gpu(f);
}

/* Copies over copies, whole pieces and parts of them, before any use and after. */
static void test_copied_again(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m = make(f, 6 * MIB), other[4];
    assert_true(copy(f, &m, 0, whole(0)));
    assert_true(copy(f, &m, 0, whole(3)));         /* instead of it */
    assert_false(copy(f, &m, MIB, rows(6, 0, 4))); /* a part of it: it is loaded, and written to */
    assert_false(copy(f, &m, 3 * MIB, whole(0)));  /* it has memory now */
    expect_all(f, &m);
    assert_false(copy(f, &m, 0, whole(6))); /* now all of it is known again */
    assert_int_equal(stats_of(f).anonymous_bytes, 0);
    for (unsigned i = 0; i < 4; i++)
        other[i] = fuse(f, 9 + 3 * i);
    use_in_turns(f, other, 4, 3);
    expect_all(f, &m);
    assert_int_equal(stats_of(f).dirty_bytes, 0);
    for (unsigned i = 0; i < 4; i++)
        drop(f, &other[i]);
    drop(f, &m);
    close_gpu(f);
}

/* Copies between ranges that nobody used: whole ones, parts of several pieces, chunks; the source is freed. */
static void test_carried(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m[6], source;
    for (unsigned i = 0; i < 6; i++) {
        source = fuse(f, 3 * i);
        m[i] = make(f, i % 3 == 0 ? source.bytes : i % 3 == 1 ? 4 * MIB : 2 * MIB + 512);
        size_t from = i % 3 == 0 ? 0 : i % 3 == 1 ? MIB : 5 * MIB - MIB, half = i % 3 == 1 ? 2 * MIB : m[i].bytes;
        assert_true(move(f, &m[i], 0, &source, from, half));
        if (half < m[i].bytes)
            assert_true(move(f, &m[i], half, &source, 3 * MIB, 2 * MIB));
        drop(f, &source);
    }
    assert_int_equal(stats_of(f).loads + stats_of(f).anonymous_bytes, 0);
    use_in_turns(f, m, 6, 3);
    for (unsigned i = 0; i < 6; i++)
        expect_all(f, &m[i]);
    assert_int_equal(stats_of(f).dirty_bytes + stats_of(f).anonymous_bytes, 0);
    for (unsigned i = 0; i < 6; i++)
        drop(f, &m[i]);
    close_gpu(f);
}

/* The source was used: the copy is made. It is right if the source was written, and paged if it was not. */
static void test_carried_after_use(void **state)
{
    (void)state;
    for (unsigned written = 0; written < 2; written++) {
        struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
        struct made source = fuse(f, 0), to = make(f, source.bytes), other[4];
        expect_all(f, &source);
        if (written)
            write_word(f, &source, 4096);
        assert_false(move(f, &to, 0, &source, 0, source.bytes));
        drop(f, &source);
        for (unsigned i = 0; i < 4; i++)
            other[i] = fuse(f, 9 + 3 * i);
        use_in_turns(f, other, 4, 3);
        struct cws_gpu_stats stats = stats_of(f);
        assert_int_equal(stats.dirty_bytes + stats.spilled_bytes + stats.anonymous_bytes > 0, written);
        expect_all(f, &to);
        for (unsigned i = 0; i < 4; i++)
            drop(f, &other[i]);
        drop(f, &to);
        close_gpu(f);
    }
}

/* What cannot be carried: to itself, from what has no source, over the end, a cut inside of a chunk. */
static void test_what_is_not_carried(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made source = fuse(f, 0), part = make(f, 6 * MIB), to = make(f, 6 * MIB);
    assert_true(copy(f, &part, 0, whole(0)));
    assert_false(cws_gpu_carry(f->gpu, part.at + 3 * MIB, part.at, 3 * MIB, f->stream));
    assert_false(cws_gpu_carry(f->gpu, to.at, part.at, 4 * MIB, f->stream));
    assert_false(cws_gpu_carry(f->gpu, to.at, source.at + 4096, MIB, f->stream));
    assert_false(cws_gpu_carry(f->gpu, to.at, source.at, MIB + 4096, f->stream));
    assert_false(cws_gpu_carry(f->gpu, to.at + 4 * MIB, source.at, 3 * MIB, f->stream));
    assert_false(cws_gpu_carry(f->gpu, to.at + 8, source.at, 3 * MIB, f->stream));
    assert_true(move(f, &to, 0, &part, 0, 3 * MIB)); /* what there is of it */
    assert_true(move(f, &to, 3 * MIB, &source, 0, 3 * MIB));
    expect_all(f, &to);
    expect_all(f, &source);
    drop(f, &part);
    drop(f, &to);
    drop(f, &source);
    close_gpu(f);
}

/* Cuts inside of chunks, places that are no multiple of 16, odd sizes, what lies behind the end: copied. */
static void test_what_does_not_bind(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    struct made m = make(f, 4 * MIB);
    uint64_t begin = cws_store_tensor(store, 0)->begin;
    assert_false(cws_gpu_bind(f->gpu, m.at, MIB, f->stream, store, begin + 4096));
    assert_false(cws_gpu_bind(f->gpu, m.at, MIB + 4096, f->stream, store, begin));
    assert_false(cws_gpu_bind(f->gpu, m.at + 8, MIB, f->stream, store, begin));
    assert_false(cws_gpu_bind(f->gpu, m.at + 2 * MIB, 3 * MIB, f->stream, store, begin));
    assert_false(
        cws_gpu_bind(f->gpu, m.at, 3 * MIB + 256 * 1024, f->stream, store, begin)); /* and a part of the next */
    assert_false(cws_gpu_bind(f->gpu, m.at, 256 * 1024 - 1, f->stream, store, begin));
    assert_true(copy(f, &m, 0, rows(0, 11, 1)));
    assert_true(copy(f, &m, 4 * MIB - 3 * 256 * 1024, rows(0, 9, 3)));
    drop(f, &m); /* in the middle */
    m = make(f, 4 * MIB);
    assert_true(copy(f, &m, 0, rows(0, 0, 4)));
    m.bytes = MIB; /* what is behind it is undefined */
    expect_all(f, &m);
    drop(f, &m);
    close_gpu(f);
}

/* Freed while it is loaded, by a thread that does not wait. */
static void test_freed_in_the_middle(void **state)
{
    (void)state;
    struct fixture *f = open_gpu(256 * MIB, 40 * MIB, true);
    for (unsigned round = 0; round < (SANITIZED ? 6 : 20); round++) {
        struct made m[3];
        for (unsigned i = 0; i < 3; i++)
            m[i] = fuse(f, 3 * ((round + i) % 8));
        use_in_turns(f, m, 3, 1);
        struct made half = make(f, 5 * MIB);
        copy(f, &half, 0, whole(0)); /* bound, or not where its memory was another one's */
        if (round % 2)
            write_word(f, &half, 64);
        drop(f, &half);
        for (unsigned i = 0; i < 3; i++)
            drop(f, &m[(i + round) % 3]);
    }
    cws_gpu_settle(f->gpu);
    close_gpu(f);
}

/* A kernel that writes to a piece is still queued when memory is wanted. */
static void test_a_writer_in_flight(void **state)
{
    (void)state;
    start_driver(256 * MIB, 1);
    standin_delay(5, 300);
    struct fixture *f = open_gpu_on(0, 34 * MIB, true);
    struct made m[4];
    for (unsigned i = 0; i < 4; i++)
        m[i] = fuse(f, 3 * i);
    for (unsigned round = 0; round < (SANITIZED ? 4 : 12); round++) {
        write_word(f, &m[0], 4 * MIB + 64 * round);
        for (unsigned i = 1; i < 4; i++)
            use_in_turns(f, &m[i], 1, 1);
    }
    expect_all(f, &m[0]);
    for (unsigned i = 0; i < 4; i++)
        drop(f, &m[i]);
    close_gpu(f);
}

/* The N-th call fails, for every N: an error or the right bytes, never others. */
static void test_every_call_fails_once(void **state)
{
    (void)state;
    static const char *const CALLS[] = {"cuMemCreate",       "cuMemMap",      "cuMemSetAccess", "cuMemHostAlloc",
                                        "cuMemcpyHtoDAsync", "cuEventRecord", "cuLaunchKernel", "cuMemUnmap"};
    for (size_t c = 0; c < sizeof CALLS / sizeof *CALLS; c++) {
        for (unsigned n = 1; n <= (SANITIZED ? 1 : 16); n *= SANITIZED ? 4 : 2) {
            struct fixture *f = open_gpu(256 * MIB, 34 * MIB, n % 2);
            struct made m[6];
            for (unsigned i = 0; i < 6; i++)
                m[i] = i % 2 ? take_rows(f, 3 * i) : fuse(f, 3 * i);
            standin_fail(CALLS[c], n, CUDA_ERROR_OUT_OF_MEMORY);
            unsigned errors = 0;
            for (unsigned i = 0; i < 12; i++) {
                uint64_t sum = 0;
                if (sum_of(f, &m[i % 6], &sum) == CUDA_SUCCESS)
                    assert_int_equal(sum, plain_sum(m[i % 6].shadow, m[i % 6].bytes));
                else
                    errors++;
            }
            assert_true(errors <= 4);
            standin_fail_none();
            for (unsigned i = 0; i < 6; i++)
                drop(f, &m[i]);
            cws_gpu_settle(f->gpu);
            cws_gpu_close(f->gpu);
            standin_reset(0);
            free(f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paged),
        cmocka_unit_test(test_prefetched),
        cmocka_unit_test(test_many_pieces),
        cmocka_unit_test(test_a_written_piece_is_kept),
        cmocka_unit_test(test_exchanged_pieces_are_kept),
        cmocka_unit_test(test_used_too_early),
        cmocka_unit_test(test_copied_into_memory),
        cmocka_unit_test(test_copied_again),
        cmocka_unit_test(test_carried),
        cmocka_unit_test(test_carried_after_use),
        cmocka_unit_test(test_what_is_not_carried),
        cmocka_unit_test(test_what_does_not_bind),
        cmocka_unit_test(test_freed_in_the_middle),
        cmocka_unit_test(test_a_writer_in_flight),
        cmocka_unit_test(test_every_call_fails_once),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
