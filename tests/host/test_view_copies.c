/* Description: weights that a program copies out of a view are told from weights that it only reads: one line, and a
 * counter; on every rung, while blocks are decoded and after that. */
#include "tests/support/hang.h"
#include "pattern_source.h"

#include <sys/mman.h>
#include <unistd.h>

enum { MODEL_MIB = 40 };

struct program {
    unsigned budget_mib;
    bool reads_first, copies, frees, to_a_device;
    uint64_t least, most; /* copied_bytes at the end, in MiB */
};

static void check(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "wrong: %s\n", what);
        _exit(1);
    }
}

static void read_all(const uint8_t *view, size_t bytes)
{
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < bytes; i += PAGE)
        sum = (uint8_t)(sum + view[i]);
}

static void run(void *arg)
{
    const struct program *program = arg;
    const size_t bytes = MODEL_MIB * MIB;
    struct cws_pager_stats stats;
    alarm(HANG_SECONDS);
    start_pager(program->budget_mib * MIB);
    if (program->to_a_device)
        cws_pager_copies_are_elsewhere();
    struct pattern *p = pattern_new(bytes, 0);
    uint8_t *view = map_view(p, bytes, PROT_READ, 0);
    if (program->reads_first)
        read_all(view, bytes);
    for (size_t at = 0; program->copies && at < bytes; at += 4 * MIB) {
        uint8_t *copy = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(copy != MAP_FAILED, "memory");
        memcpy(copy, view + at, 4 * MIB);
        check(pattern_differs(p, copy, 4 * MIB, at) == -1, "bytes");
        if (program->frees)
            munmap(copy, 4 * MIB);
    }
    read_all(view, bytes);
    cws_pager_stats_get(&stats);
    fprintf(stderr, "# copied %.1f outside %.1f\n", (double)stats.copied_bytes / (double)MIB,
            (double)stats.outside_bytes / (double)MIB);
    check(stats.mapped_bytes == bytes, "mapped_bytes");
    check(stats.outside_bytes > 0, "outside_bytes");
    check(stats.copied_bytes >= program->least * MIB && stats.copied_bytes <= program->most * MIB, "copied_bytes");
    check(!(program->copies && !program->frees) || stats.outside_bytes >= bytes, "outside_bytes with copies");
    unmap_view(view, bytes);
    cws_pager_stats_get(&stats);
    check(stats.mapped_bytes == 0, "mapped_bytes at the end");
}

static void expect(struct program program, unsigned lines)
{
    char text[4096];
    unsigned found = 0;
    if (rung_is("eager")) { /* where everything is decoded at once, nothing can be told, and no budget is kept */
        program.least = program.most = 0;
        lines = 0;
    }
    int status = in_child(run, &program, text, sizeof text);
    for (const char *at = text; (at = strstr(at, "codecllm: the program has copied about")) != NULL; at++)
        found++;
    if (status != 0 || found != lines)
        fail_msg("status %#x, %u lines instead of %u in: %s", (unsigned)status, found, lines, text);
}

static void weights_that_are_only_read(void **state)
{
    (void)state;
    expect((struct program){.budget_mib = 4, .most = 8}, 0);
    expect((struct program){.budget_mib = 64, .most = 8}, 0);
}

static void weights_that_are_copied_when_they_are_read(void **state)
{
    (void)state;
    expect((struct program){.budget_mib = 4, .copies = true, .least = 30, .most = MODEL_MIB}, 1);
    expect((struct program){.budget_mib = 64, .copies = true, .least = 30, .most = MODEL_MIB}, 1);
}

/* As a loader does that reads all experts before it merges the first ones. Within a large budget nothing is decoded
 * meanwhile. */
static void weights_that_are_copied_after_they_were_read(void **state)
{
    (void)state;
    expect((struct program){.budget_mib = 4, .reads_first = true, .copies = true, .least = 30, .most = MODEL_MIB}, 1);
    expect((struct program){.budget_mib = 64, .reads_first = true, .copies = true, .least = 30, .most = MODEL_MIB}, 1);
}

static void copies_that_are_freed_do_not_count(void **state)
{
    (void)state;
    expect((struct program){.budget_mib = 4, .copies = true, .frees = true, .most = 12}, 0);
}

static void copies_on_the_way_to_a_device_are_not_ours_to_tell(void **state)
{
    (void)state;
    expect((struct program){.budget_mib = 4, .copies = true, .to_a_device = true}, 0);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test(weights_that_are_only_read),
        cmocka_unit_test(weights_that_are_copied_when_they_are_read),
        cmocka_unit_test(weights_that_are_copied_after_they_were_read),
        cmocka_unit_test(copies_that_are_freed_do_not_count),
        cmocka_unit_test(copies_on_the_way_to_a_device_are_not_ours_to_tell),
    };
    return cmocka_run_group_tests(list, NULL, NULL);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
