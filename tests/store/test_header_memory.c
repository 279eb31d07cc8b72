/* Memory for large headers, as the kernel counts it: packing takes at most 20 times the header's bytes, everything that
 * opens the store at most 10, and a header that is refused not much more than itself. Headers of 100 MB scale as these
 * of a few do. */
#include "tests/support/sample_model.h"
#include "tests/support/sanitized.h"

#include <fcntl.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define COMMAND CWS_BIN_DIR "/bin/codecllm"

static uint64_t header_bytes; /* of the file at hand */

/* Through stdio to the disk, so that this process stays small: a child's peak is at least what its parent had when it
 * began. */
struct header {
    FILE *file;
    uint64_t data;
};

static struct header begin_header(const char *path)
{
    struct header h = {.file = fopen(path, "wb")};
    assert_non_null(h.file);
    fwrite("........", 1, 8, h.file);
    return h;
}

static void end_header(struct header *h)
{
    header_bytes = (uint64_t)ftell(h->file) - 8;
    static const uint8_t zeros[4096];
    for (; h->data; h->data -= h->data < sizeof zeros ? h->data : sizeof zeros)
        fwrite(zeros, 1, h->data < sizeof zeros ? h->data : sizeof zeros, h->file);
    rewind(h->file);
    fwrite(&header_bytes, 8, 1, h->file);
    assert_int_equal(0, fclose(h->file));
}

static void repeat(struct header *h, char c, size_t count)
{
    while (count--)
        putc(c, h->file);
}

static bool is_full(const struct header *h, long bytes) { return ftell(h->file) >= bytes; }

/* Runs it, its output thrown away; its peak of memory in bytes. preload: NULL, or on which rung. */
static uint64_t peak_of(const char *const argv[], const char *rung, int expected)
{
    char preload[600], pager[60];
    char *plain[] = {NULL}, *shimmed[] = {preload, "CODEC_VRAM_BUDGET=64M", pager, NULL};
    snprintf(preload, sizeof preload, "LD_PRELOAD=%s/lib/libcodecshim.so", CWS_BIN_DIR);
    snprintf(pager, sizeof pager, "CODEC_PAGER=%s", rung ? rung : "");
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    pid_t pid;
    assert_int_equal(
        0, posix_spawn(&pid, argv[0], &files, NULL, (char *const *)(const void *)argv, rung ? shimmed : plain));
    posix_spawn_file_actions_destroy(&files);
    int status;
    struct rusage usage;
    assert_int_equal(pid, wait4(pid, &status, 0, &usage));
    assert_true(WIFEXITED(status));
    assert_int_equal(expected, WEXITSTATUS(status));
    return (uint64_t)usage.ru_maxrss * 1024;
}

static void expect_at_most(unsigned times, const char *const argv[], const char *rung)
{
    uint64_t peak = peak_of(argv, rung, 0);
    printf("%-8s %-10s %4.1f times the header\n", rung ? rung : argv[1],
           rung                ? ""
           : argv[2][0] == '-' ? argv[2]
                               : "",
           (double)peak / (double)header_bytes);
    if (peak > times * header_bytes)
        fail_msg("%s %s: %llu bytes for a header of %llu", argv[0], argv[1], (unsigned long long)peak,
                 (unsigned long long)header_bytes);
}

#define TIMES(times, ...) expect_at_most(times, (const char *const[]){COMMAND, __VA_ARGS__, NULL}, NULL)

/* briefly: what the others do not show again */
static void measure(const char *in, bool briefly)
{
    const char *out = sample_path("out"), *back = sample_path("back");
    TIMES(20, "pack", "-q", "--jobs", "2", in, out);
    TIMES(10, "verify", "--jobs", "2", out);
    if (!briefly) {
        TIMES(10, "inspect", out);
        TIMES(10, "inspect", "--json", out);
    }
    TIMES(10, "unpack", "-q", "--jobs", "2", out, back);
    static const char *const rungs[] = {"uffd-dev", "sigsegv", "eager"};
    unsigned rung_count = briefly ? 1 : 3;
    for (unsigned i = 0;
         access(CWS_BIN_DIR "/lib/libcodecshim.so", R_OK) == 0 && strchr(CWS_BIN_DIR, ' ') == NULL && i < rung_count;
         i++)
        expect_at_most(10, (const char *const[]){"/bin/cat", out, NULL}, rungs[i]);
    (void)peak_of((const char *const[]){"/usr/bin/cmp", in, back, NULL}, NULL, 0);
    unlink(out);
    unlink(back);
}

static void many_tensors(void **state)
{
    (void)state;
    const char *in = sample_path("in");
    struct header h = begin_header(in);
    putc('{', h.file);
    for (unsigned i = 0; !is_full(&h, 3000000); i++) {
        unsigned bytes = i % 2; /* one of a byte, one of none */
        fprintf(h.file, "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[%u],\"data_offsets\":[%llu,%llu]}", i ? "," : "", i,
                bytes, (unsigned long long)h.data, (unsigned long long)h.data + bytes);
        h.data += bytes;
    }
    putc('}', h.file);
    end_header(&h);
    measure(in, false);
}

static void long_names(void **state)
{
    (void)state;
    const char *in = sample_path("in");
    struct header h = begin_header(in);
    putc('{', h.file);
    for (unsigned i = 0; !is_full(&h, 8000000); i++) {
        fprintf(h.file, "%s\"%x", i ? "," : "", i);
        repeat(&h, 'n', 20000);
        fprintf(h.file, "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%llu,%llu]}", (unsigned long long)h.data,
                (unsigned long long)h.data + 4);
        h.data += 4;
    }
    putc('}', h.file);
    end_header(&h);
    measure(in, true);
}

static void a_long_value(void **state)
{
    (void)state;
    const char *in = sample_path("in");
    struct header h = begin_header(in);
    fputs("{\"__metadata__\":{\"k\":\"", h.file);
    repeat(&h, 'v', 8000000);
    fputs("\"}}", h.file);
    end_header(&h);
    measure(in, true);
}

static void many_values(void **state)
{
    (void)state;
    const char *in = sample_path("in");
    struct header h = begin_header(in);
    fputs("{\"__metadata__\":{", h.file);
    for (unsigned i = 0; !is_full(&h, 3000000); i++)
        fprintf(h.file, "%s\"%x\":\"\"", i ? "," : "", i);
    fputs("}}", h.file);
    end_header(&h);
    measure(in, true);
}

/* Refused before anything is built of it: nesting, and an object or array of millions. */
static void hostile_headers(void **state)
{
    (void)state;
    static const char *const starts[] = {"{\"a\":", "{\"a\":{\"b\":0", "{\"a\":{\"shape\":[0",
                                         "{\"__metadata__\":{\"a\":[0"};
    static const char *const repeated[] = {"[", ",\"b\":0", ",0", ",\"\""};
    const char *in = sample_path("in"), *out = sample_path("out");
    for (unsigned i = 0; i < 4; i++) {
        struct header h = begin_header(in);
        fputs(starts[i], h.file);
        while (!is_full(&h, 8000000))
            fputs(repeated[i], h.file);
        end_header(&h);
        uint64_t peak = peak_of((const char *const[]){COMMAND, "pack", "-q", in, out, NULL}, NULL, 2);
        assert_true(peak < 4 * header_bytes);
    }
}

int main(void)
{
    if (SANITIZED)
        return 77; /* a sanitizer takes memory of its own */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_tensors), cmocka_unit_test(long_names),      cmocka_unit_test(a_long_value),
        cmocka_unit_test(many_values),  cmocka_unit_test(hostile_headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
