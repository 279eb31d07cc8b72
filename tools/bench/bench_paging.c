/* bench_paging.c - speed of views of a packed store: cyclic scans at several budgets, on every rung that works here,
 * with and without readahead.
 *
 *   bench_paging STORE [PASSES [RUNG [cold]]]    default 3 passes, every rung; the first pass is reported apart, with
 *                                                the mapping: it reads the file
 *
 * A touch sums every 64th byte (a program that does little with its weights: the pager's own limit). GB/s are logical;
 * "us/MiB" is the processor time of the later passes, the program's and the kernel's, for each MiB decoded: what does
 * not depend on who else uses the machine. Cold: the file is dropped from the page cache before each pass. */
#include "store/read/store.h"
#include "uvm/host/view.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_us(bool kernel)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    const struct timeval *t = kernel ? &u.ru_stime : &u.ru_utime;
    return 1e6 * (double)t->tv_sec + (double)t->tv_usec;
}

static const char *cold_path; /* NULL: warm */

static void make_cold(void)
{
    int fd = cold_path ? open(cold_path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static uint64_t scan(const volatile uint8_t *at, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += 64)
        sum += at[i];
    return sum;
}

static int bench(struct cws_store *store, const char *rung, unsigned percent, bool prefetch, enum cws_policy_id policy,
                 unsigned passes)
{
    uint64_t bytes = cws_store_logical_bytes(store);
    struct cws_error err = {0};
    struct cws_options options = {.active = percent != 0,
                                  .budget_bytes = bytes * percent / 100,
                                  .pager = rung,
                                  .prefetch = prefetch,
                                  .policy = policy};
    void *at;
    make_cold();
    double begin = now(), first;
    if (cws_pager_start(&options, &err) || cws_view_map(store, NULL, bytes, PROT_READ, 0, 0, &at, &err)) {
        printf("%-9s %4u%%  %s\n", rung, percent, err.message);
        return cws_pager_stop();
    }
    uint64_t sum = scan(at, bytes);
    first = now() - begin;
    struct cws_pager_stats before, after;
    cws_pager_stats_get(&before);
    double user = cpu_us(false), kernel = cpu_us(true), rest = 0;
    for (unsigned i = 1; i < passes; i++) {
        make_cold();
        begin = now();
        sum ^= scan(at, bytes);
        rest += (now() - begin) / (passes - 1);
    }
    user = cpu_us(false) - user;
    kernel = cpu_us(true) - kernel;
    cws_pager_stats_get(&after);
    double decoded = passes > 1 ? (double)(after.decoded_bytes - before.decoded_bytes) / (passes - 1) : 0;
    printf("%-9s %4u%%  %-4s %-5s %6llu KiB  %6.2f GB/s first  %6.2f GB/s later  %5.1f%% hits  %7llu faults  %7llu "
           "ahead  %7llu evictions  peak %5.1f%%  %6.1f + %6.1f us/MiB%s\n",
           rung, percent ? percent : 100, policy == CWS_POLICY_LRU ? "lru" : "next", prefetch ? "ahead" : "-",
           (unsigned long long)after.block_bytes >> 10, (double)bytes / first / 1e9,
           rest > 0 ? (double)bytes / rest / 1e9 : 0, 100.0 * (1 - decoded / (double)bytes),
           (unsigned long long)after.faults, (unsigned long long)after.prefetched_blocks,
           (unsigned long long)after.evictions, 100.0 * (double)after.peak_bytes / (double)bytes,
           decoded > 0 ? user / (passes - 1) / (decoded / 1048576) : 0,
           /* uses the sum */
           decoded > 0 ? kernel / (passes - 1) / (decoded / 1048576) : 0, sum == 42 ? " " : "");
    fflush(stdout);
    if (cws_view_munmap(at, bytes))
        return 1;
    return cws_pager_stop();
}

int main(int argc, char **argv)
{
    static const char *const rungs[] = {"uffd-dev", "uffd", "uffd-user", "sigsegv", "eager"};
    static const unsigned percents[] = {0, 50, 25};
    struct cws_store *store;
    struct cws_options options;
    struct cws_error err = {0};
    unsigned passes = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 3;
    if (argc < 2 || passes < 1) {
        fprintf(stderr, "usage: bench_paging STORE [PASSES [RUNG [cold]]]\n");
        return 2;
    }
    if (cws_options_from_env(&options, &err) || cws_store_open(argv[1], options.io, &store, &err)) {
        fprintf(stderr, "bench_paging: %s\n", err.message);
        return 2;
    }
    int failed = 0;
    cold_path = argc > 4 ? argv[1] : NULL;
    for (size_t r = 0; r < sizeof rungs / sizeof *rungs; r++) {
        if (argc > 3 && strcmp(argv[3], rungs[r]) != 0)
            continue;
        if (cws_pager_probe(rungs[r], &err)) {
            printf("%-9s skipped: %s\n", rungs[r], err.message);
            continue;
        }
        for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
            if (strcmp(rungs[r], "eager") == 0 && percents[i])
                continue;
            failed |= bench(store, rungs[r], percents[i], true, CWS_POLICY_NEXT, passes);
            if (strcmp(rungs[r], "eager") != 0)
                failed |= bench(store, rungs[r], percents[i], false, CWS_POLICY_NEXT, passes);
        }
        if (r == 0)
            failed |= bench(store, rungs[r], 50, true, CWS_POLICY_LRU, passes);
    }
    cws_store_close(store);
    return failed ? 1 : 0;
}
