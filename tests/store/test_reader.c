/* The reader: every engine, direct and buffered, gives the file's bytes, whatever the system calls do. */
#include "tests/support/inject.h"
#include "tests/support/sample_model.h"
#include "store/base/os.h"
#include "store/read/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { FILE_BYTES = 3 * 1024 * 1024 + 777, EXTENT = 200000 };

static struct bytes content;
static const char *path;
static int fd;
static bool have_uring;

static const struct {
    enum cws_io_engine engine;
    enum cws_direct direct;
    unsigned slots;
} ways[] = {
    {CWS_IO_PREADV, CWS_DIRECT_NEVER, 1},  {CWS_IO_PREADV, CWS_DIRECT_NEVER, 5}, {CWS_IO_PREADV, CWS_DIRECT_ALWAYS, 1},
    {CWS_IO_PREADV, CWS_DIRECT_ALWAYS, 5}, {CWS_IO_URING, CWS_DIRECT_NEVER, 1},  {CWS_IO_URING, CWS_DIRECT_NEVER, 5},
    {CWS_IO_URING, CWS_DIRECT_ALWAYS, 1},  {CWS_IO_URING, CWS_DIRECT_ALWAYS, 5}, {CWS_IO_AUTO, CWS_DIRECT_AUTO, 3},
};
enum { WAYS = sizeof ways / sizeof *ways };

static bool usable(size_t w) { return have_uring || ways[w].engine != CWS_IO_URING; }

static int create(size_t w, int on_fd, struct cws_reader **r, struct cws_error *err)
{
    struct cws_reader_options o = {
        .engine = ways[w].engine,
        .direct = ways[w].direct,
        .slots = ways[w].slots,
        .extent_bytes = EXTENT,
        .file_bytes = FILE_BYTES,
    };
    return cws_reader_create(on_fd, &o, r, err);
}

static struct cws_reader *reader(size_t w)
{
    struct cws_reader *r;
    struct cws_error err = {0};
    if (create(w, fd, &r, &err))
        fail_msg("way %zu: %s", w, err.message);
    return r;
}

/* Reads `count` random extents, as many in flight as there are slots; 0, or the first error. */
static int read_random(struct cws_reader *r, unsigned slots, unsigned count, uint64_t seed)
{
    struct {
        uint64_t offset;
        size_t bytes;
    } in[8];
    for (unsigned i = 0; i < count + slots; i++) {
        unsigned slot = i % slots;
        if (i >= slots) {
            const uint8_t *data = NULL;
            int code = cws_reader_wait(r, slot, &data);
            if (code) {
                cws_reader_drain(r);
                return code;
            }
            assert_memory_equal(data, content.data + in[slot].offset, in[slot].bytes);
            if (in[slot].offset % 64 == 0)
                assert_int_equal(0, (uintptr_t)data % 64);
        }
        if (i < count) {
            in[slot].bytes = 1 + sample_random(&seed) % EXTENT;
            in[slot].offset = sample_random(&seed) % (FILE_BYTES - in[slot].bytes);
            if (i % 3 == 0)
                in[slot].offset &= ~UINT64_C(63);
            if (i % 7 == 0)
                in[slot].offset = FILE_BYTES - in[slot].bytes; /* to the unaligned end of the file */
            cws_reader_submit(r, slot, in[slot].offset, in[slot].bytes);
        }
    }
    return 0;
}

static void every_engine_reads_right(void **state)
{
    (void)state;
    for (size_t w = 0; w < WAYS; w++) {
        if (!usable(w))
            continue;
        struct cws_reader *r = reader(w);
        assert_int_equal(0, read_random(r, ways[w].slots, 60, w + 1));
        bool ring = strstr(cws_reader_engine(r), "io_uring") != NULL;
        if (ways[w].engine != CWS_IO_AUTO)
            assert_int_equal(ways[w].engine == CWS_IO_URING, ring);
        if (ways[w].direct == CWS_DIRECT_NEVER)
            assert_null(strstr(cws_reader_engine(r), "direct"));
        cws_reader_destroy(r);
    }
}

static void waiting_again_gives_the_same(void **state)
{
    (void)state;
    for (size_t w = 0; w < WAYS; w++) {
        if (!usable(w))
            continue;
        struct cws_reader *r = reader(w);
        const uint8_t *a, *b;
        cws_reader_submit(r, 0, 1000, 5000);
        assert_int_equal(0, cws_reader_wait(r, 0, &a));
        assert_int_equal(0, cws_reader_wait(r, 0, &b));
        assert_ptr_equal(a, b);
        assert_memory_equal(b, content.data + 1000, 5000);
        cws_reader_destroy(r);
    }
}

static void the_end_of_the_file_is_a_short_read(void **state)
{
    (void)state;
    for (size_t w = 0; w < WAYS; w++) {
        if (!usable(w))
            continue;
        struct cws_reader *r = reader(w);
        const uint8_t *data;
        cws_reader_submit(r, 0, FILE_BYTES - 100, 101);
        assert_int_equal(CWS_E_SHORT_READ, cws_reader_wait(r, 0, &data));
        cws_reader_submit(r, 0, FILE_BYTES + 100000, 1);
        assert_int_equal(CWS_E_SHORT_READ, cws_reader_wait(r, 0, &data));
        cws_reader_submit(r, 0, FILE_BYTES - 100, 100);
        assert_int_equal(0, cws_reader_wait(r, 0, &data));
        assert_memory_equal(data, content.data + FILE_BYTES - 100, 100);
        cws_reader_destroy(r);
    }
}

/* Whoever opened the file may have asked for O_DIRECT, which takes whole aligned blocks only. */
static void a_descriptor_with_o_direct_reads_right(void **state)
{
    (void)state;
    int direct = open(path, O_RDONLY | O_DIRECT);
    if (direct < 0)
        skip(); /* the file system has none */
    for (size_t w = 0; w < WAYS; w++) {
        struct cws_reader *r;
        struct cws_error err;
        if (!usable(w))
            continue;
        assert_int_equal(0, create(w, direct, &r, &err));
        assert_int_equal(0, read_random(r, ways[w].slots, 20, w + 1));
        cws_reader_destroy(r);
    }
    uint8_t *got = malloc(content.size + 100);
    static const size_t offsets[] = {0, 1, 4095, 4096, 100000, FILE_BYTES - 5, FILE_BYTES, FILE_BYTES + 5000};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        size_t left = offsets[i] < FILE_BYTES ? FILE_BYTES - offsets[i] : 0, n = 0;
        assert_int_equal(0, cws_os_read_full(direct, got + 1, content.size + 99, offsets[i], &n));
        assert_int_equal(left, n);
        assert_memory_equal(got + 1, content.data + FILE_BYTES - left, left);
    }
    free(got);
    close(direct);
}

static void reopening_gives_a_description_of_its_own(void **state)
{
    (void)state;
    int again = cws_os_reopen(fd, O_RDONLY), null = open("/dev/null", O_RDONLY);
    assert_true(again >= 0);
    assert_int_equal(lseek(again, 100, SEEK_SET), 100);
    assert_int_equal(lseek(fd, 0, SEEK_CUR), 0);
    assert_int_equal(cws_os_reopen(null, O_RDONLY), -EINVAL);
    assert_int_equal(cws_os_reopen(-1, O_RDONLY), -EBADF);
    close(null);
    close(again);
}

/* Short reads, interruptions, refusals and a ring that dies must all end in the right bytes. */
static void faults_that_can_be_survived_are(void **state)
{
    (void)state;
    static const enum inject_kind kinds[] = {INJECT_SHORT_READ,  INJECT_EINTR,  INJECT_EAGAIN, INJECT_RING,
                                             INJECT_RING_RESULT, INJECT_DIRECT, INJECT_OPEN};
    unsigned fired_of[sizeof kinds / sizeof *kinds] = {0};
    for (size_t w = 0; w < WAYS; w++) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds && usable(w); k++) {
            for (unsigned nth = 1;; nth++) {
                struct cws_reader *r;
                struct cws_error err = {0};
                inject_arm(kinds[k], nth);
                int code = create(w, fd, &r, &err);
                if (!code) {
                    code = read_random(r, ways[w].slots, 20, nth);
                    cws_reader_destroy(r);
                } else {
                    assert_int_equal(INJECT_RING, kinds[k]); /* forced, and not to be had */
                    assert_int_equal(CWS_E_UNSUPPORTED, code);
                    code = 0;
                }
                int fired = inject_disarm();
                if (code)
                    fail_msg("way %zu, kind %d, call %u: code %d", w, kinds[k], nth, code);
                fired_of[k] += (unsigned)fired;
                if (!fired)
                    break;
            }
        }
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (have_uring || (kinds[k] != INJECT_RING && kinds[k] != INJECT_RING_RESULT))
            assert_true(fired_of[k] > 0);
}

/* A read error is reported, and so is a lack of memory; nothing leaks and the next read works. */
static void other_faults_are_reported(void **state)
{
    (void)state;
    for (size_t w = 0; w < WAYS; w++) {
        unsigned reported = 0, files = inject_open_files();
        for (unsigned nth = 1; usable(w); nth++) {
            struct cws_reader *r;
            struct cws_error err = {0};
            inject_arm(nth % 2 ? INJECT_READ : INJECT_ALLOC, (nth + 1) / 2);
            int code = create(w, fd, &r, &err);
            if (!code) {
                code = read_random(r, ways[w].slots, 20, nth);
                if (code && code != -EIO)
                    fail_msg("way %zu, call %u: code %d", w, nth, code);
                int fired = inject_disarm();
                if (code) {
                    assert_true(fired);
                    assert_int_equal(0, read_random(r, ways[w].slots, 20, nth));
                    reported++;
                }
                cws_reader_destroy(r);
                if (!fired && nth > 60)
                    break;
            } else {
                assert_true(inject_disarm());
                assert_true(err.message[0] != '\0');
                reported++;
            }
            assert_int_equal(files, inject_open_files());
        }
        if (usable(w))
            assert_true(reported > 1);
    }
}

struct moved {
    struct cws_reader *r;
    unsigned slots;
    int code;
};

static void *read_elsewhere(void *arg)
{
    struct moved *m = arg;
    m->code = read_random(m->r, m->slots, 20, 99);
    return NULL;
}

static void a_reader_moves_between_threads(void **state)
{
    (void)state;
    for (size_t w = 0; w < WAYS; w++) {
        if (!usable(w))
            continue;
        struct moved m = {reader(w), ways[w].slots, -1};
        assert_int_equal(0, read_random(m.r, m.slots, 10, 5));
        for (int i = 0; i < 3; i++) {
            pthread_t t;
            m.code = -1;
            assert_int_equal(0, pthread_create(&t, NULL, read_elsewhere, &m));
            pthread_join(t, NULL);
            assert_int_equal(0, m.code);
            assert_int_equal(0, read_random(m.r, m.slots, 10, 6));
        }
        if (ways[w].engine == CWS_IO_URING) /* still by the ring, not by falling back */
            assert_non_null(strstr(cws_reader_engine(m.r), "io_uring"));
        cws_reader_destroy(m.r);
    }
}

static void a_forked_child_reads_on(void **state)
{
    (void)state;
    for (size_t w = 0; w < WAYS; w++) {
        if (!usable(w))
            continue;
        struct cws_reader *r = reader(w);
        for (unsigned slot = 0; slot < ways[w].slots; slot++)
            cws_reader_submit(r, slot, slot * 1000, 900); /* in flight, or not yet handed over */
        pid_t child = fork();
        if (child == 0) {
            cws_reader_after_fork(r);
            int code = read_random(r, ways[w].slots, 20, 3);
            cws_reader_destroy(r);
            _exit(code ? 1 : 0);
        }
        int status;
        assert_int_equal(child, waitpid(child, &status, 0));
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        for (unsigned slot = 0; slot < ways[w].slots; slot++) {
            const uint8_t *data;
            assert_int_equal(0, cws_reader_wait(r, slot, &data));
            assert_memory_equal(data, content.data + slot * 1000, 900);
        }
        assert_int_equal(0, read_random(r, ways[w].slots, 20, 4));
        cws_reader_destroy(r);
    }
}

static void forcing_a_ring_that_is_refused_is_an_error(void **state)
{
    (void)state;
    struct cws_reader *r;
    struct cws_error err = {0};
    inject_arm(INJECT_RING, 1);
    assert_int_equal(CWS_E_UNSUPPORTED, create(5, fd, &r, &err));
    assert_true(inject_disarm());
    assert_null(r);
    assert_non_null(strstr(err.message, "CODEC_IO=preadv"));
    inject_arm(INJECT_RING, 1);
    assert_int_equal(0, create(8, fd, &r, &err)); /* automatic: preadv then */
    assert_true(inject_disarm());
    assert_string_equal("preadv", cws_reader_engine(r));
    assert_int_equal(0, read_random(r, 3, 20, 1));
    cws_reader_destroy(r);
}

static int setup(void **state)
{
    (void)state;
    content = (struct bytes){malloc(FILE_BYTES), FILE_BYTES};
    uint64_t seed = 42;
    for (size_t i = 0; i < FILE_BYTES; i++)
        content.data[i] = (uint8_t)sample_random(&seed);
    path = strdup(sample_path("reader.bin"));
    sample_save(path, content.data, content.size);
    fd = open(path, O_RDONLY);
    have_uring = cws_reader_probe_uring() == 0;
    print_message("io_uring: %s\n", have_uring ? "yes" : "refused here; its tests are left out");
    return fd < 0;
}

static int teardown(void **state)
{
    (void)state;
    close(fd);
    free(content.data);
    free((void *)path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_engine_reads_right),
        cmocka_unit_test(waiting_again_gives_the_same),
        cmocka_unit_test(the_end_of_the_file_is_a_short_read),
        cmocka_unit_test(a_descriptor_with_o_direct_reads_right),
        cmocka_unit_test(reopening_gives_a_description_of_its_own),
        cmocka_unit_test(faults_that_can_be_survived_are),
        cmocka_unit_test(other_faults_are_reported),
        cmocka_unit_test(a_reader_moves_between_threads),
        cmocka_unit_test(a_forked_child_reads_on),
        cmocka_unit_test(forcing_a_ring_that_is_refused_is_an_error),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
