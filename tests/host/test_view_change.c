/* Description: munmap, mprotect, madvise, mremap and holds on views mean what they mean on a private file mapping, on
 * every rung, while other threads fault and blocks are evicted. */
#include "tests/support/hang.h"
#include "pattern_source.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* What signal does one access raise? 0: none. */
static sigjmp_buf probe_jump;
static struct sigaction probe_before[2];
static volatile sig_atomic_t probe_signal;

static void on_probe(int signo, siginfo_t *info, void *ucontext)
{
    if (cws_view_signal(signo, info, ucontext))
        return;
    probe_signal = signo;
    siglongjmp(probe_jump, 1);
}

static int signal_of_access(volatile uint8_t *at, bool write)
{
    struct sigaction sa = {.sa_sigaction = on_probe, .sa_flags = SA_SIGINFO};
    sigfillset(&sa.sa_mask);
    sigaction(SIGSEGV, &sa, &probe_before[0]);
    sigaction(SIGBUS, &sa, &probe_before[1]);
    probe_signal = 0;
    if (sigsetjmp(probe_jump, 1) == 0) {
        uint8_t value = *at;
        if (write)
            *at = value;
    }
    sigaction(SIGSEGV, &probe_before[0], NULL);
    sigaction(SIGBUS, &probe_before[1], NULL);
    return probe_signal;
}

static struct pattern *begin(uint64_t budget, size_t bytes)
{
    start_pager(budget);
    return pattern_new(bytes, MIB);
}
static void end(struct pattern *p)
{
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    assert_int_equal(stats.views, 0);
    assert_int_equal(stats.resident_bytes, 0);
    assert_int_equal(stats.written_bytes, 0);
    assert_true(cws_policy_check(&cws_pager.policy));
    assert_int_equal(cws_pager.in_flight, 0);
    assert_int_equal(cws_pager.policy.seen_bytes, 0);
    assert_int_equal(cws_pager.policy.total_bytes, 0);
    pattern_free(p);
    stop_pager();
}

/* Somebody else moves into what was unmapped. Nobody else can, then. */
static uint8_t *move_in(uint8_t *at, size_t bytes, int prot)
{
    assert_ptr_equal(mmap(at, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), at);
    return at;
}

/* --- munmap ------------------------------------------------------------------------------------------ */

static void unmapping_a_part_leaves_the_rest(void **state)
{
    (void)state;
    struct pattern *p = begin(2 * MIB, 4 * MIB);
    uint8_t *at = map_view(p, 4 * MIB, PROT_READ | PROT_WRITE, 0);
    assert_int_equal(pattern_differs(p, at, MIB, 0), -1);
    at[100 * PAGE] = 7; /* a written block is cut too */
    unmap_view(at, PAGE);
    assert_int_equal(signal_of_access(at, false), SIGSEGV);
    move_in(at, PAGE, PROT_NONE);
    unmap_view(at + 2 * MIB, 5);
    move_in(at + 2 * MIB, PAGE, PROT_NONE);
    /* Eviction and fills must not touch what moves in. */
    unmap_view(at + 101 * PAGE, 3 * PAGE);
    uint8_t *hole = move_in(at + 101 * PAGE, 3 * PAGE, PROT_READ | PROT_WRITE);
    memset(hole, 0x33, 3 * PAGE);
    uint8_t *second = at + 300 * PAGE; /* in a block that stays clean, and so is dropped and filled again */
    unmap_view(second, PAGE);
    move_in(second, PAGE, PROT_READ | PROT_WRITE);
    memset(second, 0x44, PAGE);
    for (int pass = 0; pass < 3; pass++) {
        assert_int_equal(pattern_differs(p, at + PAGE, 99 * PAGE, PAGE), -1);
        assert_int_equal(at[100 * PAGE], 7);
        assert_int_equal(pattern_differs(p, at + 104 * PAGE, 196 * PAGE, 104 * PAGE), -1);
        assert_int_equal(pattern_differs(p, at + 301 * PAGE, 2 * MIB - 301 * PAGE, 301 * PAGE), -1);
        assert_int_equal(pattern_differs(p, at + 2 * MIB + PAGE, 2 * MIB - PAGE, 2 * MIB + PAGE), -1);
    }
    for (size_t i = 0; i < PAGE; i++)
        assert_true(hole[i] == 0x33 && hole[2 * PAGE + i] == 0x33 && second[i] == 0x44);
    assert_int_equal(signal_of_access(at, false), SIGSEGV);
    assert_int_equal(signal_of_access(at + 2 * MIB, false), SIGSEGV);
    assert_int_equal(cws_view_munmap(at + 1, 5), -EINVAL);
    assert_int_equal(cws_view_munmap(at, 0), -EINVAL);
    unmap_view(at, 4 * MIB);
    end(p);
}

static void one_call_unmaps_views_and_what_is_between(void **state)
{
    (void)state;
    struct pattern *p = begin(MIB, MIB);
    uint8_t *area = mmap(NULL, 3 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *a, *b;
    area[MIB + MIB / 2] = 1;
    assert_int_equal(cws_view_map_source(&p->base, area, MIB, PROT_READ, MAP_FIXED, 0, &a, NULL), 0);
    assert_int_equal(cws_view_map_source(&p->base, area + 2 * MIB, MIB, PROT_READ, MAP_FIXED, 0, &b, NULL), 0);
    assert_ptr_equal(a, area);
    assert_true(cws_view_overlaps(area + MIB - 1, 1));
    assert_false(cws_view_overlaps(area + MIB, MIB));
    assert_true(cws_view_overlaps(area + MIB, MIB + 1));
    assert_false(cws_view_overlaps(area + 3 * MIB, PAGE));
    assert_false(cws_view_overlaps(area, 0));
    assert_int_equal(pattern_differs(p, a, MIB, 0), -1);
    assert_int_equal(pattern_differs(p, b, MIB, 0), -1);
    assert_int_equal(
        cws_view_map_source(&p->base, area + MIB / 2, MIB / 2, PROT_READ, MAP_FIXED_NOREPLACE, 0, &b, NULL), -EEXIST);
    /* A view over the end of another one replaces it there. */
    assert_int_equal(cws_view_map_source(&p->base, area + MIB / 2, MIB, PROT_READ, MAP_FIXED, 0, &b, NULL), 0);
    assert_int_equal(pattern_differs(p, area, MIB / 2, 0), -1);
    assert_int_equal(pattern_differs(p, area + MIB / 2, MIB, 0), -1);
    unmap_view(area, 3 * MIB);
    assert_false(cws_view_overlaps(area, 3 * MIB));
    end(p);
}

struct toucher {
    uint8_t *at;
    size_t bytes;
    struct pattern *p;
    _Atomic size_t limit; /* touches below this offset only */
    _Atomic bool stop;
    _Atomic long wrong;
    _Atomic uint64_t seed;
};

static void *touch_below_limit(void *arg)
{
    struct toucher *t = arg;
    uint64_t seed = atomic_fetch_add(&t->seed, 1);
    while (!atomic_load(&t->stop)) {
        size_t limit = atomic_load(&t->limit), offset = next_random(&seed) % (limit - 64);
        if (pattern_differs(t->p, t->at + offset, 64, offset) != -1)
            atomic_fetch_add(&t->wrong, 1);
    }
    return NULL;
}

static void unmapping_while_others_fault_next_to_it(void **state)
{
    (void)state;
    struct pattern *p = begin(MIB, 8 * MIB);
    uint8_t *at = map_view(p, 8 * MIB, PROT_READ, 0);
    struct toucher t = {.at = at, .bytes = 8 * MIB, .p = p, .limit = 4 * MIB, .seed = 5};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, touch_below_limit, &t);
    for (size_t from = 8 * MIB; from > 4 * MIB; from -= 20 * PAGE < from - 4 * MIB ? 20 * PAGE : from - 4 * MIB) {
        size_t next = from - 4 * MIB > 20 * PAGE ? from - 20 * PAGE : 4 * MIB;
        unmap_view(at + next, from - next);
    }
    for (int i = 0; i < 200; i++) { /* whole views come and go at the same time */
        uint8_t *other = map_view(p, MIB, PROT_READ, 0);
        assert_int_equal(other[i * PAGE], pattern_byte(p, (uint64_t)i * PAGE));
        unmap_view(other, MIB);
    }
    atomic_store(&t.stop, true);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&t.wrong), 0);
    unmap_view(at, 4 * MIB); /* the rest may be anybody's by now */
    end(p);
}

static void crash_waiting_for_unmapped(void *arg)
{
    struct pattern *p = arg;
    struct toucher t = {.bytes = MIB, .p = p, .limit = MIB, .seed = 3};
    pthread_t thread;
    signal(SIGSEGV, SIG_DFL);
    start_pager(MIB);
    signal(SIGABRT, SIG_DFL);
    p->delay_us = 3000;
    t.at = map_view(p, MIB, PROT_READ, 0);
    pthread_create(&thread, NULL, touch_below_limit, &t);
    usleep(10000);
    cws_view_munmap(t.at, MIB); /* the toucher must get SIGSEGV, not hang */
    sleep(HANG_SECONDS);
    _exit(4);
}

static void a_thread_that_faults_in_what_is_unmapped_crashes(void **state)
{
    (void)state;
    char text[1000];
    struct pattern *p = pattern_new(MIB, 0);
    int status = in_child(crash_waiting_for_unmapped, p, text, sizeof text);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSEGV);
    pattern_free(p);
}

/* --- mprotect ---------------------------------------------------------------------------------------- */

static void protections_hold_for_each_page(void **state)
{
    (void)state;
    struct pattern *p = begin(MIB, 4 * MIB);
    uint8_t *at = map_view(p, 4 * MIB, PROT_READ, 0);
    at[0] == 0 ? fail() : (void)0;
    assert_int_equal(signal_of_access(at, true), SIGSEGV);
    /* in the middle of a block that is there */
    assert_int_equal(cws_view_protect(at + PAGE, PAGE, PROT_READ | PROT_WRITE), 0);
    /* of one that is not */
    assert_int_equal(cws_view_protect(at + 2 * MIB + 2 * PAGE, PAGE, PROT_NONE), 0);
    assert_int_equal(cws_view_protect(at + 3 * MIB, 2 * PAGE, PROT_WRITE), 0);
    assert_int_equal(cws_view_protect(at, PAGE, PROT_READ | PROT_EXEC), -EACCES);
    assert_int_equal(cws_view_protect(at + 1, PAGE, PROT_READ), -EINVAL);
    for (int pass = 0; pass < 2; pass++) { /* the second time after eviction */
        assert_int_equal(signal_of_access(at, true), SIGSEGV);
        assert_int_equal(signal_of_access(at + PAGE - 1, true), SIGSEGV);
        assert_int_equal(signal_of_access(at + PAGE, true), 0);
        assert_int_equal(signal_of_access(at + 2 * PAGE, true), SIGSEGV);
        assert_int_equal(signal_of_access(at + 2 * MIB + 2 * PAGE, false), SIGSEGV);
        assert_int_equal(signal_of_access(at + 2 * MIB + PAGE, false), 0);
        assert_int_equal(signal_of_access(at + 2 * MIB + 3 * PAGE, false), 0);
        assert_int_equal(signal_of_access(at + 3 * MIB + PAGE, true), 0);
        assert_int_equal(pattern_differs(p, at, 2 * MIB + 2 * PAGE, 0), -1);
        assert_int_equal(pattern_differs(p, at + 2 * MIB + 3 * PAGE, 2 * MIB - 3 * PAGE, 2 * MIB + 3 * PAGE), -1);
    }
    assert_int_equal(cws_view_protect(at, 4 * MIB, PROT_READ | PROT_WRITE), 0);
    at[2 * MIB + 2 * PAGE] = 9;
    assert_int_equal(pattern_differs(p, at + 2 * MIB + 2 * PAGE + 1, PAGE - 1, 2 * MIB + 2 * PAGE + 1), -1);
    assert_int_equal(cws_view_protect(at, 4 * MIB, PROT_READ), 0);
    assert_int_equal(at[2 * MIB + 2 * PAGE], 9);
    assert_int_equal(signal_of_access(at + 2 * MIB + 2 * PAGE, true), SIGSEGV);
    unmap_view(at, 4 * MIB);
    end(p);
}

/* --- madvise ----------------------------------------------------------------------------------------- */

static void dontneed_brings_the_bytes_of_the_file_back(void **state)
{
    (void)state;
    struct pattern *p = begin(MIB, 2 * MIB);
    uint8_t *at = map_view(p, 2 * MIB, PROT_READ | PROT_WRITE, 0);
    memset(at, 0, MIB);
    at[MIB] = 0;
    /* a part of a written block */
    assert_int_equal(cws_view_advise(at + PAGE, 2 * PAGE, MADV_DONTNEED), 0);
    assert_int_equal(at[PAGE - 1], 0);
    assert_int_equal(pattern_differs(p, at + PAGE, 2 * PAGE, PAGE), -1);
    assert_int_equal(at[3 * PAGE], 0);
    assert_int_equal(cws_view_advise(at, 2 * MIB, MADV_DONTNEED), 0);
    assert_int_equal(pattern_differs(p, at, 2 * MIB, 0), -1);
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    if (!rung_is("eager"))
        assert_int_equal(stats.written_bytes, 0);
    at[5] = 77; /* writes still work, and stay */
    assert_int_equal(pattern_differs(p, at + MIB, MIB, MIB), -1);
    assert_int_equal(at[5], 77);
    assert_int_equal(cws_view_advise(at, 2 * MIB, MADV_WILLNEED), 0);
    assert_int_equal(cws_view_advise(at, 2 * MIB, MADV_DONTFORK), 0);
    assert_int_equal(cws_view_advise(at, 2 * MIB, MADV_HUGEPAGE), 0);
    assert_int_equal(cws_view_advise(at, 2 * MIB, MADV_FREE), -EINVAL);
    assert_int_equal(cws_view_advise(at, 2 * MIB, 22 /* MADV_POPULATE_READ */), 0);
    assert_int_equal(cws_view_advise(at + 1, PAGE, MADV_DONTNEED), -EINVAL);
    assert_int_equal(at[5], 77);
    assert_int_equal(pattern_differs(p, at + 6, 2 * MIB - 6, 6), -1);
    unmap_view(at, 2 * MIB);
    end(p);
}

static void a_raw_madvise_behind_our_back_is_noticed(void **state)
{
    (void)state;
    if (rung_is("sigsegv") || rung_is("eager"))
        skip(); /* no message comes there: README.md says that the call has to go through cws_view_advise */
    struct pattern *p = begin(MIB, 2 * MIB);
    uint8_t *at = map_view(p, 2 * MIB, PROT_READ | PROT_WRITE, 0);
    at[PAGE] = 1;
    (void)!*(volatile uint8_t *)(at + MIB);
    assert_int_equal(madvise(at, PAGE, MADV_DONTNEED), 0);
    assert_int_equal(madvise(at + MIB + PAGE, 2 * PAGE, MADV_DONTNEED), 0);
    assert_int_equal(pattern_differs(p, at, PAGE, 0), -1);
    assert_int_equal(at[PAGE], 1);
    assert_int_equal(pattern_differs(p, at + MIB, MIB, MIB), -1);
    unmap_view(at, 2 * MIB);
    end(p);
}

/* A raw mprotect behind our back takes a page away that is there: it is put right, or the fault goes to the program;
 * never an endless loop. */
static void a_raw_mprotect_behind_our_back_is_no_endless_loop(void **state)
{
    (void)state;
    if (!rung_is("sigsegv"))
        skip();
    struct pattern *p = begin(MIB, MIB);
    uint8_t *at = map_view(p, MIB, PROT_READ | PROT_WRITE, 0);
    at[0] = 5;
    assert_int_equal(at[MIB / 2], pattern_byte(p, MIB / 2));
    assert_int_equal(mprotect(at, PAGE, PROT_NONE), 0);
    assert_int_equal(mprotect(at + MIB / 2, PAGE, PROT_NONE), 0);
    assert_int_equal(at[0], 5);
    assert_int_equal(at[MIB / 2], pattern_byte(p, MIB / 2));
    unmap_view(at, MIB);
    end(p);
}

static void remap_shrinks_in_place_only(void **state)
{
    (void)state;
    struct pattern *p = begin(MIB, 2 * MIB);
    uint8_t *at = map_view(p, 2 * MIB, PROT_READ, 0);
    void *moved = NULL;
    assert_int_equal(cws_view_remap(at, 2 * MIB, 3 * MIB, MREMAP_MAYMOVE, &moved), -ENOMEM);
    assert_int_equal(pattern_differs(p, at, 2 * MIB, 0), -1);
    assert_int_equal(cws_view_remap(at, 2 * MIB, MIB + 1, MREMAP_MAYMOVE, &moved), 0);
    assert_ptr_equal(moved, at);
    assert_int_equal(pattern_differs(p, at, MIB + PAGE, 0), -1);
    assert_int_equal(signal_of_access(at + MIB + PAGE, false), SIGSEGV);
    unmap_view(at, MIB + PAGE);
    end(p);
}

/* --- hold -------------------------------------------------------------------------------------------- */

static void held_pages_serve_the_kernel_and_stay(void **state)
{
    (void)state;
    struct pattern *p = begin(MIB, 8 * MIB);
    uint8_t *at = map_view(p, 8 * MIB, PROT_READ | PROT_WRITE, 0);
    uint8_t *copy = malloc(256 * KIB);
    char name[] = "/tmp/cws-hold-XXXXXX";
    int fd = mkstemp(name);
    size_t piece = cws_view_hold_max();
    piece = piece > 256 * KIB ? 256 * KIB : piece;
    for (size_t offset = 100; offset + piece < 8 * MIB; offset += 5 * piece / 3) {
        assert_int_equal(cws_view_hold(at + offset, piece, false, NULL), 0);
        for (int i = 0; i < 40; i++) /* pressure: the rest of the budget turns over */
            assert_int_equal(*(volatile uint8_t *)(at + (size_t)i * 200 * KIB), pattern_byte(p, (size_t)i * 200 * KIB));
        assert_int_equal(pwrite(fd, at + offset, piece, 0), (ssize_t)piece);
        cws_view_unhold(at + offset, piece);
        assert_int_equal(pread(fd, copy, piece, 0), (ssize_t)piece);
        assert_int_equal(pattern_differs(p, copy, piece, offset), -1);
    }
    memset(copy, 0x42, piece);
    assert_int_equal(pwrite(fd, copy, piece, 0), (ssize_t)piece);
    assert_int_equal(cws_view_hold(at + MIB + 5, piece, true, NULL), 0);
    assert_int_equal(pread(fd, at + MIB + 5, piece, 0), (ssize_t)piece);
    cws_view_unhold(at + MIB + 5, piece);
    assert_int_equal(pattern_differs(p, at + 4 * MIB, 4 * MIB, 4 * MIB), -1); /* pressure */
    assert_memory_equal(at + MIB + 5, copy, piece);
    assert_int_equal(pattern_differs(p, at, MIB + 5, 0), -1);
    assert_int_equal(cws_view_hold(copy, piece, true, NULL), 0); /* not a view: nothing to do */
    cws_view_unhold(copy, piece);
    close(fd);
    unlink(name);
    free(copy);
    unmap_view(at, 8 * MIB);
    end(p);
}

static void a_hold_that_cannot_be_leaves_nothing_held(void **state)
{
    (void)state;
    struct pattern *p = begin(MIB, 4 * MIB);
    struct cws_error err = {0};
    uint8_t *at = map_view(p, 4 * MIB, PROT_READ, 0);
    assert_int_equal(cws_view_hold(at, PAGE, true, &err), -EFAULT);
    assert_int_equal(cws_view_protect(at + 128 * KIB, PAGE, PROT_NONE), 0);
    assert_int_equal(cws_view_hold(at, 256 * KIB, false, &err), -EFAULT);
    uint32_t slot = 0;
    struct cws_view *v = cws_index_next_locked(&slot);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(v->blocks[i].holds, 0);
    assert_int_equal(cws_view_protect(at, 4 * MIB, PROT_READ), 0);
    assert_int_equal(cws_view_hold(at, 256 * KIB, false, &err), 0);
    unmap_view(at + 64 * KIB, 64 * KIB); /* a hold does not keep what is unmapped */
    move_in(at + 64 * KIB, 64 * KIB, PROT_NONE);
    cws_view_unhold(at, 256 * KIB);
    assert_true(cws_policy_check(&cws_pager.policy));
    unmap_view(at, 4 * MIB);
    end(p);
}

static void a_hold_of_a_corrupt_block_is_an_error(void **state)
{
    (void)state;
    struct cws_error err = {0};
    struct pattern *p;
    start_pager(MIB);
    p = pattern_new(4 * MIB, MIB);
    atomic_store(&p->corrupt_begin, 2 * MIB);
    atomic_store(&p->corrupt_end, 2 * MIB + 1);
    uint8_t *at = map_view(p, 4 * MIB, PROT_READ, 0);
    assert_int_equal(cws_view_hold(at + 2 * MIB - 64 * KIB, 256 * KIB, false, &err), CWS_E_CORRUPT);
    assert_int_equal(cws_view_hold(at + 2 * MIB, 1, false, &err), CWS_E_CORRUPT);
    assert_int_equal(cws_view_hold(at, 256 * KIB, false, &err), 0);
    cws_view_unhold(at, 256 * KIB);
    assert_int_equal(signal_of_access(at + 2 * MIB, false), SIGBUS);
    assert_int_equal(signal_of_access(at + 3 * MIB, false), 0);
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    assert_int_equal(stats.errors, 1);
    unmap_view(at, 4 * MIB);
    end(p);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test(unmapping_a_part_leaves_the_rest),
        cmocka_unit_test(one_call_unmaps_views_and_what_is_between),
        cmocka_unit_test(unmapping_while_others_fault_next_to_it),
        cmocka_unit_test(a_thread_that_faults_in_what_is_unmapped_crashes),
        cmocka_unit_test(protections_hold_for_each_page),
        cmocka_unit_test(dontneed_brings_the_bytes_of_the_file_back),
        cmocka_unit_test(a_raw_madvise_behind_our_back_is_noticed),
        cmocka_unit_test(a_raw_mprotect_behind_our_back_is_no_endless_loop),
        cmocka_unit_test(remap_shrinks_in_place_only),
        cmocka_unit_test(held_pages_serve_the_kernel_and_stay),
        cmocka_unit_test(a_hold_that_cannot_be_leaves_nothing_held),
        cmocka_unit_test(a_hold_of_a_corrupt_block_is_an_error),
    };
    return cmocka_run_group_tests_name("view_change", list, NULL, NULL);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
