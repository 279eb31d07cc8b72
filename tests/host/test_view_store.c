/* Description: views of real stores on every rung: the file that was packed comes back to the byte under pressure, in
 * threads and in a forked child; a flipped byte in a chunk is SIGBUS with a line that names tensor, file and offset. */
#include "tests/store/no_ring.h"
#include "pattern_source.h"

#include "store/read/reader.h"
#include "store/pack/writer.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The store is what it is, whatever the page. */
#undef MIB
#define MIB ((size_t)1 << 20)

static char folder[] = "/tmp/cws-view-store-XXXXXX";
static char plain[64], packed[64], broken[64];
static uint8_t *original;
static size_t original_bytes;

/* Weights of a kind that compresses: bf16 with few exponents. The last tensor is bytes. */
static void write_plain(void)
{
    enum { TENSORS = 6 };
    static const size_t elems[TENSORS] = {700000, 1, 262144, 300001, 90000, 5000};
    char header[2048];
    size_t used = 0, at = 0;
    used += (size_t)snprintf(header, sizeof header, "{");
    for (int i = 0; i < TENSORS; i++) {
        size_t bytes = elems[i] * (i == TENSORS - 1 ? 1 : 2);
        used += (size_t)snprintf(header + used, sizeof header - used,
                                 "%s\"layer.%d.weight\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                                 i ? "," : "", i, i == TENSORS - 1 ? "U8" : "BF16", elems[i], at, at + bytes);
        at += bytes;
    }
    used += (size_t)snprintf(header + used, sizeof header - used, "}");
    original_bytes = 8 + used + at;
    original = calloc(1, original_bytes);
    uint64_t length = used, seed = 4711;
    memcpy(original, &length, 8);
    memcpy(original + 8, header, used);
    for (size_t i = 8 + used; i + 1 < original_bytes; i += 2) {
        uint64_t r = next_random(&seed);
        unsigned exponent = 120 - (unsigned)__builtin_ctzll(r | 64);
        uint16_t value = (uint16_t)((r >> 20 & 0x8000) | exponent << 7 | (r >> 40 & 0x7f));
        memcpy(original + i, &value, 2);
    }
    int fd = open(plain, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    assert_int_equal(write(fd, original, original_bytes), (ssize_t)original_bytes);
    close(fd);
}

static int prepare(void **state)
{
    (void)state;
    struct cws_error err = {0};
    struct cws_pack_options options = {.jobs = 1};
    struct cws_pack_result result;
    assert_non_null(mkdtemp(folder));
    snprintf(plain, sizeof plain, "%s/model.safetensors", folder);
    snprintf(packed, sizeof packed, "%s/packed.safetensors", folder);
    snprintf(broken, sizeof broken, "%s/broken.safetensors", folder);
    write_plain();
    if (cws_pack_file(plain, packed, &options, &result, &err) || cws_copy_file(packed, broken, &err))
        fail_msg("%s", err.message);
    return 0;
}
static int clean_up(void **state)
{
    (void)state;
    unlink(plain);
    unlink(packed);
    unlink(broken);
    rmdir(folder);
    free(original);
    return 0;
}

static struct cws_store *open_with(const char *path, enum cws_io_engine io)
{
    struct cws_store *s = NULL;
    struct cws_error err = {0};
    if (cws_store_open(path, io, &s, &err))
        fail_msg("%s", err.message);
    return s;
}

static struct cws_store *open_store(const char *path) { return open_with(path, CWS_IO_AUTO); }

static uint8_t *map_store(struct cws_store *s, size_t len, int prot, uint64_t offset)
{
    void *at = NULL;
    struct cws_error err = {0};
    if (cws_view_map(s, NULL, len, prot, 0, offset, &at, &err))
        fail_msg("%s", err.message);
    return at;
}

static void the_packed_file_reads_as_the_original(void **state)
{
    (void)state;
    uint64_t seed = 3;
    start_pager(MIB);
    struct cws_store *s = open_store(packed);
    assert_int_equal(cws_store_logical_bytes(s), original_bytes);
    uint8_t *a = map_store(s, original_bytes, PROT_READ, 0), *b = map_store(s, MIB, PROT_READ | PROT_WRITE, PAGE);
    cws_store_close(s); /* the views keep it open */
    for (int i = 0; i < 300; i++) {
        size_t len = next_random(&seed) % 5000 + 1, at = next_random(&seed) % (original_bytes - len);
        assert_memory_equal(a + at, original + at, len);
    }
    assert_memory_equal(a, original, original_bytes);
    assert_memory_equal(b, original + PAGE, MIB);
    b[5] ^= 1;
    assert_memory_equal(a, original, original_bytes);
    assert_int_equal(b[5], original[PAGE + 5] ^ 1);
    struct cws_pager_stats stats;
    cws_pager_stats_get(&stats);
    assert_true(stats.reads > 0 && stats.read_bytes > 0);
    if (!rung_is("eager"))
        assert_true(stats.peak_bytes <= MIB);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        _exit(memcmp(a, original, original_bytes) || memcmp(b + 6, original + PAGE + 6, MIB - 6) ||
              b[5] != (original[PAGE + 5] ^ 1));
    int status = -1;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    assert_memory_equal(a, original, original_bytes);
    unmap_view(a, original_bytes);
    unmap_view(b, MIB);
    struct cws_pager_stats after;
    cws_pager_stats_get(&after);
    assert_true(after.reads >= stats.reads); /* counters outlive the views */
    stop_pager();
}

struct compare {
    const uint8_t *at;
    size_t from;
    int wrong;
};
static void *compare_from(void *arg)
{
    struct compare *c = arg;
    c->wrong = memcmp(c->at + c->from, original + c->from, original_bytes - c->from) ||
               memcmp(c->at, original, c->from);
    return NULL;
}

static void threads_read_one_store_at_a_tiny_budget(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    struct compare work[THREADS];
    start_pager(MIB);
    struct cws_store *s = open_store(packed);
    uint8_t *at = map_store(s, original_bytes, PROT_READ, 0);
    for (int i = 0; i < THREADS; i++) {
        work[i] = (struct compare){.at = at, .from = original_bytes * (size_t)i / THREADS};
        pthread_create(&threads[i], NULL, compare_from, &work[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(work[i].wrong, 0);
    }
    unmap_view(at, original_bytes);
    cws_store_close(s);
    stop_pager();
}

/* A child's faults are served inside its signal handler: no place to make a ring. */
static void a_forked_child_makes_no_ring(void **state)
{
    (void)state;
    int status = -1;
    if (cws_reader_probe_uring())
        skip();
    start_pager(MIB);
    struct cws_store *s = open_with(packed, CWS_IO_URING);
    uint8_t *at = map_store(s, original_bytes, PROT_READ, 0);
    cws_store_close(s);
    assert_memory_equal(at, original, original_bytes);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        forbid_rings();
        _exit(memcmp(at, original, original_bytes) != 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    unmap_view(at, original_bytes);
    stop_pager();
}

static size_t broken_offset;

static void touch_broken(void *arg)
{
    (void)arg;
    signal(SIGBUS, SIG_DFL);
    start_pager(MIB);
    struct cws_store *s = open_store(broken);
    volatile uint8_t *at = map_store(s, original_bytes, PROT_READ, 0);
    if (memcmp((const uint8_t *)at, original, PAGE))
        _exit(3);
    (void)at[broken_offset];
    _exit(4);
}

static void a_flipped_byte_in_a_chunk_is_sigbus_and_a_line(void **state)
{
    (void)state;
    char text[4096];
    struct cws_store *s = open_store(packed);
    const struct cws_tensor_info *t = cws_store_tensor_find(s, "layer.2.weight");
    assert_non_null(t);
    uint64_t chunk_at = t->chunks[1].offset + 100;
    broken_offset = (t->begin + t->end) / 2 + 140000; /* in its second chunk */
    cws_store_close(s);
    int fd = open(broken, O_RDWR);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, (off_t)chunk_at), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)chunk_at), 1);
    close(fd);
    int status = in_child(touch_broken, NULL, text, sizeof text);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGBUS)
        fail_msg("status %#x: %s", (unsigned)status, text);
    assert_non_null(strstr(text, broken));
    assert_non_null(strstr(text, "layer.2.weight"));
    assert_non_null(strstr(text, "checksum"));
    byte ^= 4;
    fd = open(broken, O_RDWR);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)chunk_at), 1);
    close(fd);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test(the_packed_file_reads_as_the_original),
        cmocka_unit_test(threads_read_one_store_at_a_tiny_budget),
        cmocka_unit_test(a_forked_child_makes_no_ring),
        cmocka_unit_test(a_flipped_byte_in_a_chunk_is_sigbus_and_a_line),
    };
    return cmocka_run_group_tests_name("view_store", list, prepare, clean_up);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
