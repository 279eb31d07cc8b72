/* Ordinary safetensors files as sources of device memory: bound where the mapping is clean, right whatever becomes of
 * mapping, descriptor and name; a change is an error. */
#include "uvm/cuda/file.h"
#include "uvm/cuda/mapping.h"
#include "gpu_fixture.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

struct mapped {
    const char *path;
    uint8_t *at;
    size_t bytes;
    int fd;
};

static struct mapped map_file(const char *name, int flags)
{
    struct mapped m = {.path = sample_path(name), .bytes = plain.size};
    sample_save(m.path, plain.data, plain.size);
    m.fd = open(m.path, O_RDWR | O_CLOEXEC);
    m.at = mmap(NULL, m.bytes, PROT_READ | PROT_WRITE, flags, m.fd, 0);
    assert_true(m.fd >= 0 && m.at != MAP_FAILED);
    return m;
}

static uint64_t begin_of(unsigned i) { return cws_store_tensor(store, i)->begin; }

static bool bind_one(struct fixture *f, const struct mapped *m, unsigned i)
{
    uint64_t offset = 0;
    struct cws_gpu_file *file = cws_gpu_file_of(m->at + begin_of(i), tensor_bytes(i), &offset);
    if (!file)
        return false;
    assert_int_equal(offset, begin_of(i));
    bool bound = cws_gpu_bind_file(f->gpu, f->at[i], tensor_bytes(i), f->stream, file, offset, m->at + begin_of(i));
    cws_gpu_file_release(file);
    return bound;
}

static struct fixture *open_bound(const struct mapped *m, uint64_t budget, size_t host)
{
    host_budget = host;
    struct fixture *f = open_gpu(256 * MIB, budget, true);
    host_budget = 64 * MIB;
    for (unsigned i = 0; i < TENSORS; i++) {
        assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &f->at[i]), 0);
        assert_true(bind_one(f, m, i));
    }
    return f;
}

static void unmap_file(struct mapped *m)
{
    munmap(m->at, m->bytes);
    close(m->fd);
}

static void test_paged_from_a_file(void **state)
{
    (void)state;
    struct mapped m = map_file("p.safetensors", MAP_PRIVATE);
    struct fixture *f = open_bound(&m, 34 * MIB, 64 * MIB);
    struct cws_gpu_stats stats;
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            expect_bytes(f, i, content(i));
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.drops > 0);
    assert_int_equal(stats.dirty_bytes, 0);
    unmap_file(&m);
    free_all(f);
    close_gpu(f);
}

/* Unmapped, closed, its name taken by another file (as a save into the directory does) and then removed. */
static void test_outlives_mapping_and_name(void **state)
{
    (void)state;
    struct mapped m = map_file("q.safetensors", MAP_PRIVATE);
    struct fixture *f = open_bound(&m, 34 * MIB, 4 * MIB); /* little host memory: read again and again */
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    unmap_file(&m);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_right(f, i);
    const char *other = sample_path("other.safetensors");
    sample_save(other, "other", 5);
    assert_int_equal(rename(other, m.path), 0);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_bytes(f, i, content(i));
    assert_int_equal(unlink(m.path), 0);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_bytes(f, i, content(i));
    free_all(f);
    close_gpu(f);
}

static void expect_refused(struct fixture *f, unsigned i, const char *why)
{
    uint64_t sum;
    assert_int_equal(device_sum(f, i, &sum), 304);
    if (!strstr(last_line, "w03") || !strstr(last_line, "r.safetensors") || !strstr(last_line, why))
        fail_msg("said: %s", last_line);
}

/* Somebody writes to the file itself, or cuts it: nothing that was not loaded is ever seen. */
static void changed(bool cut)
{
    struct mapped m = map_file("r.safetensors", MAP_PRIVATE);
    struct fixture *f = open_bound(&m, 34 * MIB, 4 * MIB); /* hardly anything stays in host memory */
    uint8_t byte = (uint8_t)(content(3)[77] ^ 1);
    cws_gpu_settle(f->gpu);
    if (cut)
        assert_int_equal(ftruncate(m.fd, (off_t)begin_of(3) + 100), 0);
    else
        assert_int_equal(pwrite(m.fd, &byte, 1, (off_t)begin_of(3) + 77), 1);
    munmap(m.at, m.bytes);
    close(m.fd);
    expect_refused(f, 3, cut ? "shorter" : "was changed");
    expect_right(f, 1);
    free_all(f);
    close_gpu(f);
}
static void test_written_file(void **state) { (void)state, changed(false); }
static void test_cut_file(void **state) { (void)state, changed(true); }

/* What does not bind: a page that the program wrote to, a shared mapping, a part of a tensor, a file that is no
 * safetensors file, memory of no file. */
static void test_what_does_not_bind(void **state)
{
    (void)state;
    struct mapped m = map_file("s.safetensors", MAP_PRIVATE), shared = map_file("t.safetensors", MAP_SHARED);
    uint64_t offset;
    struct cws_gpu_file *file = cws_gpu_file_of(m.at + begin_of(2), tensor_bytes(2), &offset);
    assert_non_null(file);
    assert_string_equal(cws_gpu_file_tensor(file, offset), "w02");
    cws_gpu_file_release(file);
    volatile uint8_t *last = m.at + begin_of(2) + tensor_bytes(2) - 1;
    *last = *last; /* the same byte, but a page of its own now */
    assert_null(cws_gpu_file_of(m.at + begin_of(2), tensor_bytes(2), &offset));
    assert_false(cws_mapping_is_clean((uintptr_t)m.at + begin_of(2), tensor_bytes(2)));
    assert_null(cws_gpu_file_of(m.at + begin_of(0), tensor_bytes(0) - 2, &offset));
    assert_null(cws_gpu_file_of(m.at + begin_of(0) + 4096, tensor_bytes(0) - 4096, &offset));
    assert_null(cws_gpu_file_of(shared.at + begin_of(2), tensor_bytes(2), &offset));
    uint8_t *heap = malloc(MIB);
    assert_null(cws_gpu_file_of(heap, MIB, &offset));
    free(heap);
    unmap_file(&m);
    unmap_file(&shared);
    const char *path = sample_path("u.bin");
    uint8_t *zeros = calloc(1, 2 * MIB);
    sample_save(path, zeros, 2 * MIB);
    free(zeros);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint8_t *at = mmap(NULL, 2 * MIB, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(at != MAP_FAILED);
    assert_null(cws_gpu_file_of(at, 2 * MIB, &offset));
    munmap(at, 2 * MIB);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paged_from_a_file),  cmocka_unit_test(test_outlives_mapping_and_name),
        cmocka_unit_test(test_written_file),       cmocka_unit_test(test_cut_file),
        cmocka_unit_test(test_what_does_not_bind),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
