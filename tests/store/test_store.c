/* An open store: any range of the logical file, in any order, equals the file that was packed; damage is found and
 * named. */
#include "tests/support/hang.h"
#include "no_ring.h"
#include "tests/support/sample_model.h"
#include "store/read/reader.h"
#include "store/read/store.h"
#include "store/pack/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef __SANITIZE_THREAD__
enum { LESS = 5 }; /* everything is this much slower */
#else
enum { LESS = 1 };
#endif

static struct bytes model, packed; /* the logical file; its store */
static const char *store_path;

static struct cws_store *open_with(const char *path, enum cws_io_engine io)
{
    struct cws_store *s;
    struct cws_error err = {0};
    if (cws_store_open(path, io, &s, &err))
        fail_msg("%s", err.message);
    return s;
}

static struct cws_store *open_store(const char *path) { return open_with(path, CWS_IO_AUTO); }

static struct cws_store_cursor *cursor(const struct cws_store *s, unsigned depth)
{
    struct cws_store_cursor *c;
    struct cws_error err = {0};
    if (cws_store_cursor_create(s, depth, &c, &err))
        fail_msg("%s", err.message);
    return c;
}

static void check_range(struct cws_store_cursor *c, uint64_t begin, uint64_t end)
{
    struct cws_error err = {0};
    uint8_t *buffer = malloc(end - begin + 1); /* exact, for the sanitizer */
    buffer[end - begin] = 0xa5;
    if (cws_store_read(c, begin, end, buffer, &err))
        fail_msg("[%llu, %llu): %s", (unsigned long long)begin, (unsigned long long)end, err.message);
    assert_memory_equal(buffer, model.data + begin, end - begin);
    assert_int_equal(0xa5, buffer[end - begin]);
    free(buffer);
}

static void reads_any_range(void **state)
{
    (void)state;
    static const enum cws_io_engine engines[] = {CWS_IO_PREADV, CWS_IO_URING, CWS_IO_AUTO};
    for (unsigned k = 0; k < 3; k++) {
        struct cws_store *s = open_with(store_path, engines[k]);
        for (unsigned depth = 1; depth <= 7; depth += 3) {
            struct cws_store_cursor *c;
            struct cws_error err = {0};
            int code = cws_store_cursor_create(s, depth, &c, &err);
            if (code == CWS_E_UNSUPPORTED && k == 1)
                continue; /* no io_uring here */
            assert_int_equal(0, code);
            uint64_t size = cws_store_logical_bytes(s), seed = depth;
            assert_int_equal(model.size, size);
            check_range(c, 0, size);
            check_range(c, size, size);
            check_range(c, 0, 1);
            check_range(c, size - 1, size);
            for (int i = 0; i < 300 / LESS; i++) {
                uint64_t begin = sample_random(&seed) % size, most = i % 3 ? 5000 : size;
                uint64_t end = begin + sample_random(&seed) % most;
                check_range(c, begin, end < size ? end : size);
            }
            cws_store_cursor_destroy(c);
        }
        cws_store_close(s);
    }
}

static void small_reads_keep_the_chunk(void **state)
{
    (void)state;
    struct cws_store *s = open_store(store_path);
    struct cws_store_cursor *c = cursor(s, 1);
    struct cws_store_counters n;
    for (uint64_t at = 0; at < model.size; at += 1000)
        check_range(c, at, at + 1000 < model.size ? at + 1000 : model.size);
    cws_store_counters_get(s, &n);
    assert_int_equal(cws_store_chunk_count(s), n.read_calls); /* each chunk was read once */
    uint64_t header_bytes;
    cws_store_header(s, &header_bytes);
    assert_int_equal(model.size - header_bytes, n.decoded_bytes);
    cws_store_cursor_destroy(c);
    cws_store_close(s);
}

static void a_range_outside_is_refused(void **state)
{
    (void)state;
    struct cws_store *s = open_store(store_path);
    struct cws_store_cursor *c = cursor(s, 2);
    struct cws_error err;
    uint8_t byte;
    assert_int_equal(CWS_E_RANGE, cws_store_read(c, model.size, model.size + 1, &byte, &err));
    assert_int_equal(CWS_E_RANGE, cws_store_read(c, 5, 4, &byte, &err));
    assert_int_equal(CWS_E_RANGE, cws_store_read(c, 0, UINT64_MAX, &byte, &err));
    cws_store_cursor_destroy(c);
    cws_store_close(s);
}

static void describes_the_tensors(void **state)
{
    (void)state;
    struct cws_store *s = open_store(store_path);
    uint64_t header_bytes, at, stored = 0;
    assert_memory_equal(cws_store_header(s, &header_bytes), model.data, 100);
    at = header_bytes;
    for (size_t i = 0; i < cws_store_tensor_count(s); i++) {
        const struct cws_tensor_info *t = cws_store_tensor(s, i);
        assert_int_equal(at, t->begin);
        assert_ptr_equal(t, cws_store_tensor_find(s, t->name));
        if (t->end > t->begin) {
            assert_ptr_equal(t, cws_store_tensor_at(s, t->begin));
            assert_ptr_equal(t, cws_store_tensor_at(s, t->end - 1));
        }
        stored += t->stored_bytes;
        at = t->end;
    }
    assert_int_equal(model.size, at);
    assert_true(stored < packed.size);
    assert_null(cws_store_tensor_at(s, header_bytes - 1));
    assert_null(cws_store_tensor_at(s, model.size));
    assert_null(cws_store_tensor_find(s, "no such"));
    assert_null(cws_store_tensor(s, cws_store_tensor_count(s)));
    assert_non_null(cws_store_tensor_find(s, "z.last \" \xc3\xa9"));
    assert_false(cws_store_is_lossy(s));
    cws_store_close(s);
}

static void probe_tells_stores_from_other_files(void **state)
{
    (void)state;
    int fd = open(store_path, O_RDONLY), pipes[2];
    lseek(fd, 77, SEEK_SET);
    assert_int_equal(1, cws_store_probe_fd(fd));
    assert_int_equal(77, lseek(fd, 0, SEEK_CUR));
    struct cws_store *s;
    struct cws_error err;
    assert_int_equal(0, cws_store_open_fd(fd, "by descriptor", CWS_IO_AUTO, &s, &err));
    close(fd);
    struct cws_store_cursor *c = cursor(s, 1);
    check_range(c, 0, model.size);
    cws_store_cursor_destroy(c);
    cws_store_retain(s);
    cws_store_close(s);
    assert_string_equal("by descriptor", cws_store_path(s));
    cws_store_close(s);

    const char *other = sample_path("other");
    sample_save(other, model.data, model.size);
    fd = open(other, O_RDONLY);
    assert_int_equal(0, cws_store_probe_fd(fd));
    assert_int_equal(CWS_E_NOT_STORE, cws_store_open_fd(fd, other, CWS_IO_AUTO, &s, &err));
    assert_null(s);
    close(fd);
    sample_save(other, "short", 5);
    fd = open(other, O_RDONLY);
    assert_int_equal(0, cws_store_probe_fd(fd));
    close(fd);
    assert_int_equal(CWS_E_NOT_STORE, cws_store_open(other, CWS_IO_AUTO, &s, &err));
    assert_int_equal(CWS_E_NOT_STORE, cws_store_open("/dev/null", CWS_IO_AUTO, &s, &err));
    assert_int_equal(CWS_E_NOT_STORE, cws_store_open("/tmp", CWS_IO_AUTO, &s, &err));
    assert_int_equal(-ENOENT, cws_store_open("/nonexistent/x", CWS_IO_AUTO, &s, &err));
    assert_int_equal(0, pipe(pipes));
    assert_int_equal(0, cws_store_probe_fd(pipes[0]));
    close(pipes[0]);
    close(pipes[1]);
    assert_int_equal(-EBADF, cws_store_probe_fd(-1));
}

static void a_store_is_never_a_plain_file(void **state)
{
    (void)state;
    uint64_t n;
    memcpy(&n, packed.data, 8);
    struct cws_store *s = open_store(store_path);
    uint64_t header_bytes;
    cws_store_header(s, &header_bytes);
    assert_true(8 + n + (model.size - header_bytes) != packed.size);
    assert_memory_equal(packed.data + 8, CWS_FRONT_MARK, strlen(CWS_FRONT_MARK));
    cws_store_close(s);
}

/* --- damage -------------------------------------------------------------------------------------- */

static int open_bytes(const void *data, size_t size, struct cws_error *err)
{
    struct cws_store *s;
    const char *path = sample_path("damaged");
    sample_save(path, data, size);
    *err = (struct cws_error){0};
    int code = cws_store_open(path, CWS_IO_AUTO, &s, err);
    if (!code)
        cws_store_close(s);
    else
        assert_null(s);
    return code;
}

static void every_flipped_byte_outside_the_chunks_is_found_at_open(void **state)
{
    (void)state;
    struct bytes small = sample_model(3, 0), store;
    struct cws_error err;
    const char *in = sample_path("small.safetensors"), *out = sample_path("small.cws");
    sample_save(in, small.data, small.size);
    assert_int_equal(0, cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 1}, NULL, &err));
    store = sample_load(out);
    struct cws_trailer t;
    memcpy(&t, store.data + store.size - sizeof t, sizeof t);
    for (uint64_t i = 0; i < store.size; i += LESS) {
        if (i >= t.front_bytes && i < t.index_offset)
            i = t.index_offset;
        store.data[i] ^= 1u << (i % 8);
        int code = open_bytes(store.data, store.size, &err);
        bool magic = i >= store.size - sizeof t && i < store.size - sizeof t + 8;
        if (code != (magic ? CWS_E_TRUNCATED : CWS_E_CORRUPT) || !err.message[0])
            fail_msg("byte %llu: code %d %s", (unsigned long long)i, code, err.message);
        store.data[i] ^= 1u << (i % 8);
    }
    for (uint64_t size = 0; size < store.size; size += 1 + size / 97) {
        int code = open_bytes(store.data, size, &err);
        if (code != (size < 8 + strlen(CWS_FRONT_MARK) ? CWS_E_NOT_STORE : CWS_E_TRUNCATED))
            fail_msg("cut to %llu: code %d %s", (unsigned long long)size, code, err.message);
    }
    assert_int_equal(0, open_bytes(store.data, store.size, &err));
    free(small.data);
    free(store.data);
}

struct faults {
    unsigned count;
    uint64_t chunk, file_offset, logical_offset;
    char tensor[100], message[500];
};

static int note(void *arg, const struct cws_verify_fault *f)
{
    struct faults *n = arg;
    n->count++;
    n->chunk = f->chunk;
    n->file_offset = f->file_offset;
    n->logical_offset = f->logical_offset;
    snprintf(n->tensor, sizeof n->tensor, "%s", f->tensor ? f->tensor : "");
    snprintf(n->message, sizeof n->message, "%s", f->message);
    return 0;
}

static void damage_in_a_chunk_is_named(void **state)
{
    (void)state;
    uint64_t seed = 5;
    struct cws_store *good = open_store(store_path);
    uint64_t front = cws_store_trailer(good)->front_bytes, index = cws_store_trailer(good)->index_offset, gaps = 0;
    for (int round = 0; round < 60; round++) {
        uint64_t at = front + sample_random(&seed) % (index - front);
        const struct cws_tensor_info *hit = NULL;
        while (round % 6 == 0) { /* padding is rare: look for some */
            const struct cws_tensor_info *t = cws_store_tensor(good,
                                                               sample_random(&seed) % cws_store_tensor_count(good));
            if (t->record->chunk_count && t->chunks[0].stored_bytes % CWS_CHUNK_ALIGN) {
                at = t->chunks[0].offset + t->chunks[0].stored_bytes;
                break;
            }
        }
        uint64_t chunk = 0, first = 0;
        for (size_t i = 0; i < cws_store_tensor_count(good); i++) {
            const struct cws_tensor_info *t = cws_store_tensor(good, i);
            for (uint64_t k = 0; k < t->record->chunk_count; k++) {
                if (t->chunks[k].offset <= at) {
                    hit = t;
                    chunk = k;
                    first = t->begin + k * t->record->chunk_bytes;
                }
            }
        }
        assert_non_null(hit);
        const struct cws_chunk_record *r = &hit->chunks[chunk];
        bool gap = at >= r->offset + r->stored_bytes;
        gaps += gap;
        const char *path = sample_path("flipped");
        packed.data[at] ^= 0x10;
        sample_save(path, packed.data, packed.size);
        packed.data[at] ^= 0x10;

        struct cws_store *s = open_store(path);
        struct cws_error err = {0};
        struct faults f = {0};
        assert_int_equal(1, cws_store_verify(s, 1 + round % 3, note, NULL, &f, &err));
        assert_int_equal(1, f.count);
        assert_string_equal(hit->name, f.tensor);
        assert_int_equal(r->offset, f.file_offset);
        assert_int_equal(first, f.logical_offset);
        assert_int_equal(hit->record->first_chunk + chunk, f.chunk);

        struct cws_store_cursor *c = cursor(s, 1 + round % 4);
        uint8_t *all = malloc(model.size);
        int code = cws_store_read(c, 0, model.size, all, &err);
        if (gap) { /* not part of any data: reading is right without it */
            assert_int_equal(0, code);
            assert_memory_equal(all, model.data, model.size);
        } else {
            char want[64];
            assert_int_equal(CWS_E_CORRUPT, code);
            snprintf(want, sizeof want, "file offset %llu", (unsigned long long)r->offset);
            assert_non_null(strstr(err.message, want));
            assert_non_null(strstr(err.message, path));
            uint8_t byte;
            assert_int_equal(CWS_E_CORRUPT, cws_store_read(c, first, first + 1, &byte, &err));
            check_range(c, 0, first); /* the rest is still there */
        }
        free(all);
        cws_store_cursor_destroy(c);
        cws_store_close(s);
    }
    assert_true(gaps >= 10);
    cws_store_close(good);
}

static void verify_finds_nothing_in_a_good_store(void **state)
{
    (void)state;
    struct cws_store *s = open_store(store_path);
    struct faults f = {0};
    struct cws_error err;
    for (unsigned jobs = 0; jobs < 4; jobs++)
        assert_int_equal(0, cws_store_verify(s, jobs, note, NULL, &f, &err));
    assert_int_equal(0, f.count);
    cws_store_close(s);
}

static void a_change_while_open_is_told_from_damage(void **state)
{
    (void)state;
    const char *path = sample_path("changing");
    struct cws_error err = {0};
    uint8_t *all = malloc(model.size);
    sample_save(path, packed.data, packed.size);
    struct cws_store *s = open_store(path);
    struct cws_store_cursor *c = cursor(s, 4);
    check_range(c, 0, 1000);
    assert_int_equal(0, truncate(path, (off_t)packed.size / 2));
    assert_int_equal(CWS_E_CHANGED, cws_store_read(c, 0, model.size, all, &err));
    assert_non_null(strstr(err.message, "truncated while open"));
    cws_store_cursor_destroy(c);
    cws_store_close(s);

    sample_save(path, packed.data, packed.size);
    s = open_store(path);
    c = cursor(s, 1);
    struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    int fd = open(path, O_WRONLY);
    memset(all, 0x55, model.size);
    assert_int_equal(packed.size, pwrite(fd, all, packed.size, 0));
    futimens(fd, times);
    close(fd);
    assert_int_equal(CWS_E_CHANGED, cws_store_read(c, 0, model.size, all, &err));
    assert_non_null(strstr(err.message, "rewritten while open"));
    cws_store_cursor_destroy(c);
    cws_store_close(s);

    /* Replaced or removed: the open file is still the old one, and whole. */
    sample_save(path, packed.data, packed.size);
    s = open_store(path);
    c = cursor(s, 2);
    assert_int_equal(0, unlink(path));
    sample_save(path, "something else", 14);
    check_range(c, 0, model.size);
    cws_store_cursor_destroy(c);
    cws_store_close(s);
    free(all);
}

/* Through a descriptor that takes only whole aligned blocks. */
static void a_descriptor_with_o_direct_is_read_right(void **state)
{
    (void)state;
    int fd = open(store_path, O_RDONLY | O_DIRECT);
    if (fd < 0)
        skip(); /* the file system has none */
    struct cws_store *s;
    struct cws_error err = {0};
    assert_int_equal(1, cws_store_probe_fd(fd));
    assert_int_equal(0, cws_store_open_fd(fd, "direct", CWS_IO_AUTO, &s, &err));
    for (unsigned depth = 1; depth < 9; depth += 7) {
        struct cws_store_cursor *c = cursor(s, depth);
        check_range(c, 0, model.size);
        check_range(c, model.size - 3, model.size);
        cws_store_cursor_destroy(c);
    }
    cws_store_close(s);
    close(fd);
}

/* --- threads and processes ----------------------------------------------------------------------- */

struct reading {
    const struct cws_store *s;
    struct cws_store_cursor *c; /* NULL: its own */
    uint64_t seed;
    bool right;
};

static void *read_much(void *arg)
{
    struct reading *r = arg;
    struct cws_error err;
    struct cws_store_cursor *c = r->c;
    uint8_t *buffer = malloc(model.size);
    r->right = c || cws_store_cursor_create(r->s, 2, &c, &err) == 0;
    for (int i = 0; i < 100 && r->right; i++) {
        uint64_t begin = sample_random(&r->seed) % model.size,
                 end = begin + sample_random(&r->seed) % (model.size - begin);
        r->right = cws_store_read(c, begin, end, buffer, &err) == 0 &&
                   memcmp(buffer, model.data + begin, end - begin) == 0;
    }
    if (c != r->c)
        cws_store_cursor_destroy(c);
    free(buffer);
    return NULL;
}

static void many_threads_read_one_store(void **state)
{
    (void)state;
    struct cws_store *s = open_store(store_path);
    pthread_t threads[6];
    struct reading r[6];
    for (unsigned i = 0; i < 6; i++) {
        r[i] = (struct reading){.s = s, .seed = i};
        assert_int_equal(0, pthread_create(&threads[i], NULL, read_much, &r[i]));
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        assert_true(r[i].right);
    }
    /* One cursor, one thread after the other. */
    struct cws_store_cursor *c = cursor(s, 4);
    for (unsigned i = 0; i < 3; i++) {
        r[0] = (struct reading){.s = s, .c = c, .seed = i};
        assert_int_equal(0, pthread_create(&threads[0], NULL, read_much, &r[0]));
        pthread_join(threads[0], NULL);
        assert_true(r[0].right);
    }
    cws_store_cursor_destroy(c);
    cws_store_close(s);
}

/* Without the call a child waits for the reading threads of its parent, or makes a ring of its own. */
static void a_forked_child_reads_with_the_parents_cursor(void **state)
{
    (void)state;
    static const enum cws_io_engine engines[] = {CWS_IO_AUTO, CWS_IO_PREADV, CWS_IO_URING};
    for (size_t i = 0; i < (cws_reader_probe_uring() ? 2 : 3); i++) {
        struct cws_store *s = open_with(store_path, engines[i]);
        for (unsigned depth = 1; depth < 6; depth += 4) {
            struct cws_store_cursor *c = cursor(s, depth);
            check_range(c, 0, model.size);
            pid_t child = fork();
            if (child == 0) {
                struct reading r = {.s = s, .c = c, .seed = 1};
                alarm(HANG_SECONDS);
                cws_store_cursor_after_fork(c);
                forbid_rings();
                read_much(&r);
                _exit(r.right ? 0 : 1);
            }
            int status;
            check_range(c, 0, model.size);
            assert_int_equal(child, waitpid(child, &status, 0));
            if (status)
                fail_msg("engine %d, depth %u: status %#x", (int)engines[i], depth, (unsigned)status);
            cws_store_cursor_destroy(c);
        }
        cws_store_close(s);
    }
}

/* A timer forks in the middle of reads: the child inherits slots that are being filled, and must not take them for the
 * chunk that was kept in them. */
static struct {
    struct cws_store_cursor *c;
    uint64_t begin; /* where the last finished read began */
    volatile int left, wrong;
} middle;

static void fork_here(int signo)
{
    (void)signo;
    if (middle.left <= 0)
        return;
    middle.left--;
    pid_t child = fork();
    if (child == 0) {
        uint8_t bytes[100];
        alarm(HANG_SECONDS);
        cws_store_cursor_after_fork(middle.c);
        _exit(cws_store_read(middle.c, middle.begin, middle.begin + sizeof bytes, bytes, NULL) ||
              memcmp(bytes, model.data + middle.begin, sizeof bytes) != 0);
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        middle.wrong++;
}

static void a_fork_in_the_middle_of_a_read_leaves_the_child_whole(void **state)
{
    (void)state;
    struct cws_store *s = open_store(store_path);
    struct sigaction on_timer = {.sa_handler = fork_here, .sa_flags = SA_RESTART}, before;
    uint8_t bytes[100];
    assert_int_equal(0, sigaction(SIGALRM, &on_timer, &before));
    for (unsigned depth = 1; depth <= 2; depth++) {
        uint64_t seed = 5;
        middle.c = cursor(s, depth);
        middle.begin = 0;
        middle.left = 40;
        while (middle.left > 0) {
            const struct itimerval soon = {{0, 0}, {0, (suseconds_t)(1 + sample_random(&seed) % 300)}};
            assert_int_equal(0, setitimer(ITIMER_REAL, &soon, NULL));
            uint64_t begin = sample_random(&seed) % (model.size - sizeof bytes);
            assert_int_equal(0, cws_store_read(middle.c, begin, begin + sizeof bytes, bytes, NULL));
            assert_memory_equal(bytes, model.data + begin, sizeof bytes);
            middle.begin = begin;
            __asm__ volatile("" ::: "memory");
        }
        assert_int_equal(0, setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL));
        cws_store_cursor_destroy(middle.c);
        assert_int_equal(middle.wrong, 0);
    }
    assert_int_equal(0, sigaction(SIGALRM, &before, NULL));
    cws_store_close(s);
}

static int setup(void **state)
{
    (void)state;
    struct cws_error err = {0};
    model = sample_model(1, 1);
    const char *in = sample_path("model.safetensors");
    store_path = strdup(sample_path("model.cws"));
    sample_save(in, model.data, model.size);
    if (cws_pack_file(in, store_path, &(struct cws_pack_options){.jobs = 2}, NULL, &err)) {
        print_error("%s\n", err.message);
        return 1;
    }
    packed = sample_load(store_path);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(model.data);
    free(packed.data);
    free((void *)store_path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_any_range),
        cmocka_unit_test(small_reads_keep_the_chunk),
        cmocka_unit_test(a_range_outside_is_refused),
        cmocka_unit_test(describes_the_tensors),
        cmocka_unit_test(probe_tells_stores_from_other_files),
        cmocka_unit_test(a_store_is_never_a_plain_file),
        cmocka_unit_test(every_flipped_byte_outside_the_chunks_is_found_at_open),
        cmocka_unit_test(damage_in_a_chunk_is_named),
        cmocka_unit_test(verify_finds_nothing_in_a_good_store),
        cmocka_unit_test(a_change_while_open_is_told_from_damage),
        cmocka_unit_test(a_descriptor_with_o_direct_is_read_right),
        cmocka_unit_test(many_threads_read_one_store),
        cmocka_unit_test(a_forked_child_reads_with_the_parents_cursor),
        cmocka_unit_test(a_fork_in_the_middle_of_a_read_leaves_the_child_whole),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
