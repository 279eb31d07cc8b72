/* Description: one life of the pager (start, map, faults, eviction, readahead, holds, changes, fork, unmap, stop) in
 * which the N-th call of a kind fails, for every N until a life needs no more, on every rung. The outcome is right
 * bytes or one clear line; never zeros, wrong bytes, a hang or a leak. */
#include "tests/support/hang.h"
#include "tests/support/inject_sys.h"
#include "pattern_source.h"
#include "tests/support/sanitized.h"

#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#undef PAGE /* this layout is for pages of 4 KiB */
enum {
    EXIT_QUIET = 40, /* right, and nothing had to be said */
    EXIT_REFUSED,    /* a call returned an error with a message */
    EXIT_BUS,        /* an access raised SIGBUS */
    EXIT_NOT_FIRED,  /* the life needs fewer calls than N */
    EXIT_WRONG = 60, /* the rest are faults of the pager */
    EXIT_UNSAID,
    EXIT_LEAK,
    EXIT_ACCOUNTS,
    EXIT_CHILD,
    VIEW = 26 * 65536,
    BUDGET = 16 * 65536,
    BLOCK = 65536,
    PAGE = 4096,
    FOR_EVER = 1 << 30,
};

static struct {
    struct pattern *p;
    uint8_t *at;
    size_t bytes;                 /* mapped from `at` */
    size_t gone, gone_to;         /* unmapped in the middle */
    uint8_t written[VIEW / PAGE]; /* first byte of a page that was written to; 0: the pattern's */
    bool refused, bus;
} life;

/* --- looking at memory -------------------------------------------------------------------------------- */

static sigjmp_buf jump;

static void on_bus(int signo)
{
    (void)signo;
    siglongjmp(jump, 1);
}

/* False: the access raised SIGBUS. */
static bool touch(size_t offset, bool write, uint8_t value)
{
    if (sigsetjmp(jump, 1))
        return false;
    if (write)
        *(volatile uint8_t *)(life.at + offset) = value;
    else
        (void)*(volatile uint8_t *)(life.at + offset);
    return true;
}

static void look_at_page(size_t at)
{
    uint8_t page[PAGE];
    if (sigsetjmp(jump, 1)) {
        life.bus = true;
        return;
    }
    memcpy(page, life.at + at, PAGE);
    uint8_t first = life.written[at / PAGE] ? life.written[at / PAGE] : pattern_byte(life.p, at);
    long differs = pattern_differs(life.p, page + 8, PAGE - 8, at + 8);
    if (page[0] != first || differs >= 0) {
        fprintf(stderr, "# page %zu of block %zu is wrong: byte 0 is %#x (expected %#x), difference at %ld\n",
                at % BLOCK / PAGE, at / BLOCK, page[0], first, differs);
        _exit(EXIT_WRONG);
    }
}

static void look_at_all(void)
{
    for (size_t at = 0; at < life.bytes; at += PAGE)
        if (at < life.gone || at >= life.gone_to)
            look_at_page(at);
}

static void write_to(size_t offset, uint8_t value)
{
    if (touch(offset, true, value))
        life.written[offset / PAGE] = value;
    else
        life.bus = true;
}

/* --- the life ----------------------------------------------------------------------------------------- */

static bool said(int code, const struct cws_error *err)
{
    if (code == 0)
        return true;
    life.refused = true;
    if (err && !err->message[0])
        _exit(EXIT_UNSAID);
    return false;
}

static bool begin_life(void)
{
    struct cws_error err = {0};
    struct cws_options options = {.active = !rung_is("eager"),
                                  .budget_bytes = BUDGET,
                                  .prefetch = true,
                                  .policy = CWS_POLICY_NEXT,
                                  .pager = rung_under_test()};
    void *at = NULL;
    if (!said(cws_pager_start(&options, &err), &err) ||
        !said(cws_view_map_source(&life.p->base, NULL, VIEW, PROT_READ | PROT_WRITE, 0, 0, &at, &err), &err))
        return false;
    life.at = at;
    life.bytes = VIEW;
    return true;
}

static void hold_some(void)
{
    struct cws_error err = {0};
    for (int write = 0; write < 2; write++) {
        uint8_t *at = life.at + 3 * BLOCK - PAGE + (size_t)write * 4 * BLOCK;
        if (!said(cws_view_hold(at, 2 * PAGE, write, &err), &err))
            continue;
        look_at_page((size_t)(at - life.at)); /* served without a fault */
        look_at_page((size_t)(at - life.at) + PAGE);
        cws_view_unhold(at, 2 * PAGE);
    }
}

/* Either all of the range is as before or all is the source's again; what is in between is the pager's fault. */
static void forget(size_t block)
{
    int code = cws_view_advise(life.at + block * BLOCK, BLOCK, MADV_DONTNEED);
    if (!said(code, NULL))
        return;
    memset(life.written + block * BLOCK / PAGE, 0, BLOCK / PAGE);
}

static void change_some(void)
{
    uint8_t *at = life.at;
    said(cws_view_protect(at + 5 * BLOCK + PAGE, 2 * BLOCK, PROT_READ), NULL);
    write_to(8 * BLOCK, 0x71);
    forget(8);
    write_to(9 * BLOCK + PAGE, 0x72);
    /* a part: the write beside it stays */
    said(cws_view_advise(at + 9 * BLOCK + 2 * PAGE, PAGE, MADV_DONTNEED), NULL);
    said(cws_view_advise(at + 10 * BLOCK, 2 * BLOCK, MADV_WILLNEED), NULL);
    said(cws_view_advise(at + 13 * BLOCK, BLOCK, MADV_DONTNEED), NULL);
    if (said(cws_view_munmap(at + 11 * BLOCK + PAGE, 2 * BLOCK), NULL)) {
        life.gone = 11 * BLOCK + PAGE;
        life.gone_to = life.gone + 2 * BLOCK;
    }
    void *moved;
    if (said(cws_view_remap(at, VIEW, VIEW - 2 * BLOCK - PAGE, 0, &moved), NULL))
        life.bytes = VIEW - 2 * BLOCK - PAGE;
}

/* What the kernel drops behind our back is put back (userfault rungs). */
static void drop_behind(void)
{
    if (cws_pager.rung && cws_pager.rung->userfault && !cws_pager.child)
        madvise(life.at + 14 * BLOCK, 2 * PAGE, MADV_DONTNEED);
}

static void fork_once(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        alarm(HANG_SECONDS);
        look_at_all();
        write_to(2 * BLOCK, 0x73);
        look_at_all();
        _exit(life.bus ? EXIT_BUS : 0);
    }
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        _exit(EXIT_CHILD);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT)
        raise(SIGABRT); /* with one line, the parent of us checks */
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_BUS)
        life.bus = true;
    else if (status != 0)
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_CHILD);
}

static unsigned open_files(void)
{
    unsigned count = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        count++;
    if (d)
        closedir(d);
    return count;
}

/* Bytes of readable or writable private memory: what a lost view or buffer would add to. */
static uint64_t mapped_bytes(void)
{
    uint64_t total = 0;
    char line[512];
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *dash;
        unsigned long begin = strtoul(line, &dash, 16);
        if (!strchr(line, '[') && !strchr(line, '/') && *dash == '-')
            total += strtoul(dash + 1, NULL, 16) - begin;
    }
    if (f)
        fclose(f);
    return total;
}

/* True: a call failed. */
static bool live_and_die(bool in_full)
{
    memset(&life.written, 0, sizeof life.written);
    life.gone = life.gone_to = life.bytes = 0;
    if (begin_life() && !in_full) {
        look_at_page(0);
    } else if (life.bytes) {
        look_at_all();
        write_to(BLOCK + PAGE, 0x70);
        hold_some();
        look_at_all();
        change_some();
        drop_behind();
        look_at_all();
        fork_once();
        look_at_all();
    }
    bool fired = sys_inject_fired();
    sys_inject_disarm();
    if (life.bytes) {
        if (in_full)
            look_at_all(); /* a failure that is over leaves nothing wrong behind */
        if (cws_view_munmap(life.at, life.bytes))
            _exit(EXIT_ACCOUNTS);
    }
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    if (stats.views || stats.resident_bytes || stats.written_bytes || cws_pager.in_flight ||
        atomic_load(&cws_pager.busy) || cws_pager.policy.seen_bytes || cws_pager.policy.total_bytes ||
        !cws_policy_check(&cws_pager.policy))
        _exit(EXIT_ACCOUNTS);
    if (cws_pager_stop())
        _exit(EXIT_ACCOUNTS);
    return fired;
}

struct plan {
    enum sys_kind kind;
    unsigned nth, times;
};

static void body(void *arg)
{
    const struct plan *plan = arg;
    struct sigaction bus = {.sa_handler = on_bus, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &bus, NULL);
    signal(SIGABRT, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGALRM, SIG_DFL);
    alarm(HANG_SECONDS);
    life.p = pattern_new(VIEW, 5 * BLOCK);
    sys_inject_arm(SYS_KIND_NONE, 1, 0);                 /* the count is shared with those that were before */
    if (live_and_die(false) || life.refused || life.bus) /* warm: thread stacks, the C library's own memory */
        _exit(EXIT_WRONG);
    unsigned files = open_files();
    uint64_t mapped = mapped_bytes();
    long blocks = sys_live_blocks();
    life.refused = life.bus = false;
    sys_inject_arm(plan->kind, plan->nth, plan->times);
    if (plan->kind == SYS_KIND_POISON) { /* needs a block to close off */
        atomic_store(&life.p->corrupt_begin, 15 * BLOCK + 1);
        atomic_store(&life.p->corrupt_end, 15 * BLOCK + 2);
    }
    bool fired = live_and_die(true);
    if (open_files() != files || sys_live_blocks() != blocks) {
        fprintf(stderr, "# leak: files %u -> %u, blocks %ld -> %ld\n", files, open_files(), blocks, sys_live_blocks());
        _exit(EXIT_LEAK);
    }
    if (!SANITIZED && plan->kind != SYS_KIND_MUNMAP && mapped_bytes() > mapped + BLOCK / 2) {
        fprintf(stderr, "# leak: mapped %llu -> %llu\n", (unsigned long long)mapped,
                (unsigned long long)mapped_bytes());
        _exit(EXIT_LEAK);
    }
    int outcome = life.bus ? EXIT_BUS : life.refused ? EXIT_REFUSED : EXIT_QUIET;
    _exit(fired ? outcome : outcome == EXIT_QUIET || plan->kind == SYS_KIND_POISON ? EXIT_NOT_FIRED : EXIT_WRONG);
}

/* --- the loop ----------------------------------------------------------------------------------------- */

static unsigned lines_of(const char *text)
{
    unsigned lines = 0;
    for (const char *at = text; (at = strstr(at, "codecllm: ")) != NULL; at++)
        lines += at == text || at[-1] == '\n';
    return lines;
}

static void run_lives(enum sys_kind kind, unsigned times)
{
    unsigned runs = 0, quiet = 0, refused = 0, bus = 0, ended = 0;
    for (unsigned n = 1; n < 100000; n += SANITIZED ? 1 + n / 3 : 1) { /* a sanitizer is slow: it sees a sample */
        char text[4000];
        struct plan plan = {kind, n, times};
        int status = in_child(body, &plan, text, sizeof text);
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
        bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
        unsigned lines = lines_of(text);
        if (code == EXIT_NOT_FIRED && lines == (kind == SYS_KIND_POISON))
            break;
        runs++;
        quiet += code == EXIT_QUIET;
        refused += code == EXIT_REFUSED;
        bus += code == EXIT_BUS;
        ended += aborted;
        bool fine = code == EXIT_QUIET || code == EXIT_REFUSED || (code == EXIT_BUS && lines > 0) ||
                    (aborted && lines > 0);
        if (times == 1)
            fine &= lines <= 1;
        if (!fine)
            fail_msg("%s: %s number %u (%u times): status %#x\n%s", rung_under_test(), sys_kind_name(kind), n, times,
                     (unsigned)status, text);
    }
    if (runs)
        printf("# %-16s %4u lives: %u right, %u refused, %u SIGBUS, %u ended with a line\n", sys_kind_name(kind), runs,
               quiet, refused, bus, ended);
}

static void every_failure_ends_right_or_loud(void **state)
{
    (void)state;
    for (int kind = SYS_KIND_NONE + 1; kind < SYS_KIND_COUNT; kind++)
        run_lives((enum sys_kind)kind, 1);
}

/* It fails from the N-th on and goes on failing. (A copy that says EEXIST or ESRCH for ever, or a lost wake-up, is no
 * kernel's.) */
static void lasting_failures_end_right_or_loud(void **state)
{
    (void)state;
    static const enum sys_kind kinds[] = {SYS_KIND_ALLOC,         SYS_KIND_MMAP,   SYS_KIND_MREMAP, SYS_KIND_MPROTECT,
                                          SYS_KIND_MADVISE,       SYS_KIND_LOCKED, SYS_KIND_OPEN,   SYS_KIND_COPY_NOMEM,
                                          SYS_KIND_PROTECT_NOMEM, SYS_KIND_POISON, SYS_KIND_PREAD,  SYS_KIND_WRITE,
                                          SYS_KIND_THREAD};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        run_lives(kinds[i], FOR_EVER);
}

static int tests(const char *which)
{
    const struct CMUnitTest once[] = {cmocka_unit_test(every_failure_ends_right_or_loud)};
    const struct CMUnitTest lasting[] = {cmocka_unit_test(lasting_failures_end_right_or_loud)};
    int failed = 0;
    if (strcmp(which, "lasting") != 0)
        failed += cmocka_run_group_tests_name("pager_inject", once, NULL, NULL);
    if (strcmp(which, "once") != 0)
        failed += cmocka_run_group_tests_name("pager_inject", lasting, NULL, NULL);
    return failed != 0;
}

/* RUNG [once | lasting]: all of it, or a half, on this rung; 77 where it does not work. With RUNG KIND N TIMES: that
 * one life, to look at it in a debugger. */
int main(int argc, char **argv)
{
    struct cws_error err = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: test_pager_inject RUNG [once | lasting | KIND N TIMES]\n");
        return 2;
    }
    if (cws_pager_probe(argv[1], &err)) {
        printf("# rung %s: SKIPPED: %s\n", argv[1], err.message);
        return 77;
    }
    if (CWS_PAGE_BYTES != PAGE || rung_is_left_out(argv[1]))
        return 77;
    setenv("CODEC_PAGER", argv[1], 1);
    for (int kind = 1; argc == 5 && kind < SYS_KIND_COUNT; kind++) {
        struct plan plan = {(enum sys_kind)kind, (unsigned)strtoul(argv[3], NULL, 10),
                            (unsigned)strtoul(argv[4], NULL, 10)};
        if (strcmp(argv[2], sys_kind_name(plan.kind)) == 0)
            body(&plan);
    }
    return tests(argc > 2 ? argv[2] : "");
}
