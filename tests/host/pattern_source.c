#include "pattern_source.h"
#include "tests/support/hang.h"
#include "tests/support/sanitized.h"

#include <dirent.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t pattern_word(uint64_t seed, uint64_t index)
{
    uint64_t x = (index + seed) * UINT64_C(0x9E3779B97F4A7C15);
    x ^= x >> 29;
    return (x * UINT64_C(0xBF58476D1CE4E5B9)) |
           UINT64_C(0x0101010101010101); /* no byte is zero: zeros are what must never be seen */
}

uint8_t pattern_byte(const struct pattern *p, uint64_t offset)
{
    return (uint8_t)(pattern_word(p->seed, offset / 8) >> (offset % 8 * 8));
}

static struct pattern *self(struct cws_source *s) { return (struct pattern *)s; }

static int fill(struct cws_source *s, unsigned slot, uint64_t begin, uint64_t end, void *dst, struct cws_error *err)
{
    struct pattern *p = self(s);
    if (atomic_fetch_add(&p->in_slot[slot], 1) != 0)
        atomic_store(&p->overlapped, true);
    atomic_fetch_add(&p->fills, 1);
    if (p->delay_us) {
        struct timespec pause = {.tv_nsec = (long)p->delay_us * 1000};
        nanosleep(&pause, NULL);
    }
    uint8_t *out = dst;
    uint64_t at = begin;
    for (; at < end && at % 8; at++)
        *out++ = pattern_byte(p, at);
    for (; at + 8 <= end; at += 8, out += 8) {
        uint64_t word = pattern_word(p->seed, at / 8);
        memcpy(out, &word, 8);
    }
    for (; at < end; at++)
        *out++ = pattern_byte(p, at);
    atomic_fetch_sub(&p->in_slot[slot], 1);
    if (begin < atomic_load(&p->corrupt_end) && end > atomic_load(&p->corrupt_begin)) {
        memset(dst, 0xEE, end - begin);
        return cws_fail(err, CWS_E_CORRUPT,
                        "pattern.store: tensor \"t%llu\": the stored bytes fail their checksum (logical offset %llu)",
                        (unsigned long long)(p->region_bytes ? begin / p->region_bytes : 0), (unsigned long long)begin);
    }
    return 0;
}

static uint32_t region_at(struct cws_source *s, uint64_t offset)
{
    struct pattern *p = self(s);
    return p->region_bytes ? (uint32_t)(offset / p->region_bytes) : CWS_NO_REGION;
}

static void region(struct cws_source *s, uint32_t i, uint64_t *begin, uint64_t *end)
{
    *begin = i * self(s)->region_bytes;
    *end = *begin + self(s)->region_bytes < s->bytes ? *begin + self(s)->region_bytes : s->bytes;
}

static void destroy(struct cws_source *s) { atomic_store(&self(s)->destroyed, true); }

struct pattern *pattern_new(uint64_t bytes, uint64_t region_bytes)
{
    static const struct cws_source_ops ops = {
        .fill = fill, .region_at = region_at, .region = region, .destroy = destroy};
    struct pattern *p = calloc(1, sizeof *p);
    p->region_bytes = region_bytes;
    p->seed = 12345;
    p->base = (struct cws_source){.ops = &ops, .bytes = bytes, .last_region = CWS_NO_REGION, .refs = 1};
    if (region_bytes) {
        p->base.regions = (uint32_t)((bytes + region_bytes - 1) / region_bytes);
        p->base.successor = malloc(p->base.regions * sizeof(uint32_t));
        memset(p->base.successor, 0xff, p->base.regions * sizeof(uint32_t));
    }
    return p;
}

void pattern_free(struct pattern *p)
{
    cws_source_release(&p->base);
    assert_true(atomic_load(&p->destroyed)); /* every view has given its reference back */
    assert_false(atomic_load(&p->overlapped));
    free(p->base.successor);
    free(p);
}

long pattern_differs(const struct pattern *p, const uint8_t *addr, size_t len, uint64_t offset)
{
    for (size_t i = 0; i < len; i++) {
        if ((offset + i) % 8 == 0 && len - i >= 8) {
            uint64_t word;
            memcpy(&word, addr + i, 8);
            if (word == pattern_word(p->seed, (offset + i) / 8)) {
                i += 7;
                continue;
            }
        }
        if (addr[i] != pattern_byte(p, offset + i))
            return (long)i;
    }
    return -1;
}

const char *rung_under_test(void) { return getenv("CODEC_PAGER"); }
bool rung_is(const char *name) { return strcmp(rung_under_test(), name) == 0; }

static bool reads_as(const char *tid, const char *what, const char *expected)
{
    char path[64], text[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%.20s/%s", tid, what);
    FILE *file = fopen(path, "r");
    bool same = file && fgets(text, sizeof text, file) && strncmp(text, expected, strlen(expected)) == 0;
    if (file)
        fclose(file);
    return same;
}

/* Is every other thread but the one that writes a trace asleep in epoll_pwait(), or as a sanitizer's own? True where
 * nobody tells. */
static bool workers_wait(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    bool all = true;
    while (tasks && (task = readdir(tasks)) != NULL) {
        char path[64], text[32] = "";
        if (task->d_name[0] == '.' || atoi(task->d_name) == getpid())
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%.20s/syscall", task->d_name);
        FILE *file = fopen(path, "r");
        if (file && fgets(text, sizeof text, file) && atoi(text) != SYS_epoll_pwait &&
            atoi(text) != SYS_clock_nanosleep && atoi(text) != SYS_nanosleep &&
            !reads_as(task->d_name, "comm", "codecllm-trace"))
            all = false;
        if (file)
            fclose(file);
    }
    if (tasks)
        closedir(tasks);
    return all;
}

/* A thread that starts maps memory, much of it with a sanitizer, and it may get just the page that a test has unmapped
 * to see that it stays unmapped; the test then unmaps memory of the sanitizer. So tests begin when the pager's threads
 * have started. */
static void await_workers(void)
{
    for (int ms = 0; ms < HANG_SECONDS * 1000 && !workers_wait(); ms++)
        usleep(1000);
}

void start_pager_with(struct cws_options options)
{
    struct cws_error err = {0};
    options.pager = rung_under_test();
    if (cws_pager_start(&options, &err))
        fail_msg("cws_pager_start: %s", err.message);
    assert_string_equal(cws_pager_rung(), rung_under_test());
    await_workers();
}

void start_pager(uint64_t budget_bytes)
{
    start_pager_with((struct cws_options){
        .active = budget_bytes != 0, .budget_bytes = budget_bytes, .prefetch = true, .policy = CWS_POLICY_NEXT});
}

void stop_pager(void) { assert_int_equal(cws_pager_stop(), 0); }

uint8_t *map_view(struct pattern *p, size_t len, int prot, uint64_t offset)
{
    void *at = NULL;
    struct cws_error err = {0};
    if (cws_view_map_source(&p->base, NULL, len, prot, 0, offset, &at, &err))
        fail_msg("map: %s", err.message);
    return at;
}

void unmap_view(void *at, size_t len) { assert_int_equal(cws_view_munmap(at, len), 0); }

int for_each_rung(int argc, char **argv, int (*tests)(void))
{
    static const char *const rungs[] = {"uffd-dev", "uffd", "uffd-user", "sigsegv", "eager"};
    (void)argc;
    if (rung_under_test()) {
        alarm(HANG_SECONDS); /* a hang ends even where nobody watches */
        return tests();
    }
    int failures = 0;
    for (size_t i = 0; i < sizeof rungs / sizeof *rungs; i++) {
        struct cws_error err = {0};
        if (rung_is_left_out(rungs[i]))
            continue;
        if (cws_pager_probe(rungs[i], &err)) {
            printf("# rung %s: SKIPPED: %s\n", rungs[i], err.message);
            continue;
        }
        printf("# rung %s\n", rungs[i]);
        fflush(NULL);
        setenv("CODEC_PAGER", rungs[i], 1);
        pid_t pid;
        int status = -1;
        if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ) != 0 || waitpid(pid, &status, 0) != pid ||
            status != 0) {
            printf("# rung %s: FAILED (status %#x)\n", rungs[i], (unsigned)status);
            failures++;
        }
        unsetenv("CODEC_PAGER");
    }
    return failures ? 1 : 0;
}

uint64_t smaps_rss(const void *addr, size_t len)
{
    uintptr_t want_begin = (uintptr_t)addr, want_end = want_begin + len;
    uint64_t total = 0;
    char line[512];
    bool inside = false;
    FILE *f = fopen("/proc/self/smaps", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        unsigned long begin, end, kib;
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            inside = begin >= want_begin && end <= want_end;
        else if (inside && sscanf(line, "Rss: %lu kB", &kib) == 1)
            total += (uint64_t)kib * 1024;
    }
    fclose(f);
    return total;
}

int in_child(void (*body)(void *), void *arg, char *text, size_t text_bytes)
{
    int fds[2], status = -1;
    assert_int_equal(pipe(fds), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fds[1], 2);
        close(fds[0]);
        close(fds[1]);
        body(arg);
        _exit(0);
    }
    close(fds[1]);
    size_t used = 0;
    for (;;) {
        char extra[256];
        bool room = used + 1 < text_bytes;
        ssize_t n = read(fds[0], room ? text + used : extra, room ? text_bytes - 1 - used : sizeof extra);
        if (n <= 0)
            break;
        used += room ? (size_t)n : 0;
    }
    close(fds[0]);
    if (text_bytes)
        text[used] = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}
