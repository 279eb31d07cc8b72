/* Description: many threads read, write, hold and advise two views at a tiny budget, checked against a shadow copy;
 * forks and unmaps in between.
 *   stress_view [THREADS [SCALE_MIB [ITERATIONS [SEED]]]]    defaults 4 8 1500 1; once per rung */
#include "pattern_source.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t bytes;
static unsigned threads = 4, iterations = 1500;
static uint64_t first_seed = 1;

/* each has one lock and one shadow; not a page size, so that blocks and pages are shared */
enum { STRIPE = 5000 };

static struct pattern *source;
static uint8_t *written_view, *read_view, *shadow;
static pthread_mutex_t *stripe_locks;
static _Atomic long failures;

static void expect(bool right, const char *what, size_t offset, uint64_t seed)
{
    if (!right && atomic_fetch_add(&failures, 1) < 5)
        printf("# WRONG: %s at offset %zu (seed %llu)\n", what, offset, (unsigned long long)seed);
}

static void one_step(uint64_t *seed)
{
    size_t stripe = next_random(seed) % (bytes / STRIPE), at = stripe * STRIPE;
    size_t from = next_random(seed) % STRIPE, len = next_random(seed) % (STRIPE - from) + 1;
    uint64_t dice = next_random(seed) % 100;
    pthread_mutex_lock(&stripe_locks[stripe]);
    if (dice < 45) {
        expect(memcmp(written_view + at + from, shadow + at + from, len) == 0, "a read", at + from, *seed);
    } else if (dice < 60) {
        /* Few stripes are written, or all would be written soon. */
        if (stripe % 8 == 0) {
            memset(shadow + at + from, (int)dice, len);
            memset(written_view + at + from, (int)dice, len);
        }
    } else if (dice < 75) {
        expect(pattern_differs(source, read_view + at + from, len, at + from) == -1, "the read-only view", at + from,
               *seed);
    } else if (dice < 85) {
        bool for_write = dice < 78 && stripe % 8 == 0;
        if (cws_view_hold(written_view + at + from, len, for_write, NULL) != 0) {
            expect(false, "a hold", at + from, *seed);
        } else {
            int fds[2];
            if (pipe(fds) == 0) { /* the kernel reads, and perhaps writes, what is held */
                uint8_t back[4096];
                size_t n = len < sizeof back ? len : sizeof back;
                expect(write(fds[1], written_view + at + from, n) == (ssize_t)n, "write(2) from held memory", at + from,
                       *seed);
                if (for_write)
                    memset(shadow + at + from, 0x5C, n);
                expect(read(fds[0], back, n) == (ssize_t)n, "read(2)", at + from, *seed);
                if (!for_write)
                    expect(memcmp(back, shadow + at + from, n) == 0, "what the kernel read", at + from, *seed);
                memset(back, 0x5C, n);
                if (for_write)
                    expect(write(fds[1], back, n) == (ssize_t)n &&
                               read(fds[0], written_view + at + from, n) == (ssize_t)n,
                           "read(2) into held memory", at + from, *seed);
                close(fds[0]);
                close(fds[1]);
            }
            cws_view_unhold(written_view + at + from, len);
        }
    } else if (dice < 93) {
        size_t page = at / PAGE * PAGE;
        expect(cws_view_advise(read_view + page, 3 * PAGE, dice < 90 ? MADV_DONTNEED : MADV_WILLNEED) == 0, "advice",
               at, *seed);
    } else if (dice < 96) {
        size_t page = at / PAGE * PAGE;
        expect(cws_view_protect(read_view + page, PAGE, PROT_READ | (dice & 1 ? PROT_WRITE : 0)) == 0, "protection", at,
               *seed);
    } else {
        void *other = NULL;
        size_t page = at / PAGE * PAGE, want = len + from;
        if (cws_view_map_source(&source->base, NULL, want, PROT_READ | PROT_WRITE, 0, page, &other, NULL) == 0) {
            expect(pattern_differs(source, other, want, page) == -1, "a short-lived view", page, *seed);
            ((uint8_t *)other)[0] = 1;
            expect(cws_view_munmap(other, want) == 0, "its end", page, *seed);
        } else {
            expect(false, "a map", page, *seed);
        }
    }
    pthread_mutex_unlock(&stripe_locks[stripe]);
}

static void *work(void *arg)
{
    uint64_t seed = first_seed * 1000003 + (uintptr_t)arg * 7919 + 1;
    for (unsigned i = 0; i < iterations; i++)
        one_step(&seed);
    return NULL;
}

static void check_in_a_child(void)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) /* raw: ThreadSanitizer's exit would call the parent's threads a leak */
        syscall(SYS_exit_group, pattern_differs(source, read_view, bytes, 0) == -1 ? 0 : 1);
    int status = -1;
    waitpid(pid, &status, 0);
    expect(status == 0, "a forked child", (size_t)status, 0);
}

static int run(void)
{
    pthread_t *ids = calloc(threads, sizeof *ids);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("# threads %u, %zu bytes, %u iterations, seed %llu, rung %s\n", threads, bytes, iterations,
           (unsigned long long)first_seed, rung_under_test());
    start_pager(MIB + MIB / 2);
    source = pattern_new(bytes, 300 * KIB + 7);
    written_view = map_view(source, bytes, PROT_READ | PROT_WRITE, 0);
    read_view = map_view(source, bytes, PROT_READ, 0);
    shadow = malloc(bytes);
    stripe_locks = calloc(bytes / STRIPE + 1, sizeof *stripe_locks);
    for (size_t i = 0; i < bytes; i++)
        shadow[i] = pattern_byte(source, i);
    for (size_t i = 0; i <= bytes / STRIPE; i++)
        pthread_mutex_init(&stripe_locks[i], NULL);
    for (uintptr_t i = 0; i < threads; i++)
        pthread_create(&ids[i], NULL, work, (void *)i);
    for (int i = 0; i < 3; i++)
        check_in_a_child();
    for (unsigned i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    expect(memcmp(written_view, shadow, bytes) == 0, "the end", 0, 0);
    expect(pattern_differs(source, read_view, bytes, 0) == -1, "the end, read-only", 0, 0);
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    printf("# faults %llu, write faults %llu, evictions %llu, ahead %llu, peak %llu of %llu\n",
           (unsigned long long)stats.faults, (unsigned long long)stats.write_faults,
           (unsigned long long)stats.evictions, (unsigned long long)stats.prefetched_blocks,
           (unsigned long long)stats.peak_bytes, (unsigned long long)stats.budget_bytes);
    if (!rung_is("eager"))
        expect(stats.peak_bytes <= stats.budget_bytes + cws_pager_slots() * stats.block_bytes, "the budget",
               (size_t)stats.peak_bytes, 0);
    cws_view_munmap(written_view, bytes);
    cws_view_munmap(read_view, bytes);
    expect(cws_pager_stop() == 0, "the stop", 0, 0);
    printf("# %ld failures\n", atomic_load(&failures));
    for (size_t i = 0; i <= bytes / STRIPE; i++)
        pthread_mutex_destroy(&stripe_locks[i]);
    pattern_free(source);
    free(stripe_locks);
    free(shadow);
    free(ids);
    return atomic_load(&failures) ? 1 : 0;
}

int main(int argc, char **argv)
{
    bytes = (argc > 2 ? strtoul(argv[2], NULL, 10) : 8) * MIB + 777;
    threads = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : threads;
    iterations = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : iterations;
    first_seed = argc > 4 ? strtoull(argv[4], NULL, 10) : first_seed;
    return for_each_rung(argc, argv, run);
}
