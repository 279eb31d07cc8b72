/* The CUDA manager with tensors of every kind of dtype: of less than a byte, complex, scales, and one that no build
 * knows. They bind, page and decode to their bytes, from a store and from an ordinary file. */
#define GPU_TYPES                                                                                                      \
    {"F6_E2M3", 6}, {"F4", 4}, {"C64", 64}, {"I4", 4}, {"F8_E8M0", 8}, { "F8_E4M3FNUZ", 8 }
#include "gpu_fixture.h"
#include "uvm/cuda/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static void use_all(struct fixture *f)
{
    for (unsigned pass = 0; pass < 3; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            expect_right(f, i);
    for (unsigned i = 0; i < TENSORS; i++)
        expect_bytes(f, i, content(i));
    struct cws_gpu_stats stats;
    cws_gpu_stats_get(f->gpu, &stats);
    assert_true(stats.drops > 0);
    assert_int_equal(stats.dirty_bytes, 0);
    free_all(f);
    close_gpu(f);
}

static void they_page_from_a_store(void **state)
{
    (void)state;
    unsigned codecs = 0;
    for (unsigned i = 0; i < TENSORS; i++) {
        assert_string_equal(gpu_types[i % 6].name, cws_store_tensor(store, i)->dtype_name);
        codecs |= 1u << cws_store_tensor(store, i)->record->codec;
    }
    assert_true(codecs >> CWS_CODEC_SPLIT & 1);
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    bind_all(f);
    use_all(f);
}

static void they_page_from_a_file(void **state)
{
    (void)state;
    const char *path = sample_path("types.safetensors");
    sample_save(path, plain.data, plain.size);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint8_t *at = mmap(NULL, plain.size, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(fd >= 0 && at != MAP_FAILED);
    struct fixture *f = open_gpu(256 * MIB, 34 * MIB, true);
    for (unsigned i = 0; i < TENSORS; i++) {
        uint64_t offset, begin = cws_store_tensor(store, i)->begin;
        struct cws_gpu_file *file = cws_gpu_file_of(at + begin, tensor_bytes(i), &offset);
        assert_non_null(file);
        assert_int_equal(begin, offset);
        assert_int_equal(cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &f->at[i]), 0);
        assert_true(cws_gpu_bind_file(f->gpu, f->at[i], tensor_bytes(i), f->stream, file, offset, at + begin));
        cws_gpu_file_release(file);
    }
    use_all(f);
    munmap(at, plain.size);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(they_page_from_a_store),
                                       cmocka_unit_test(they_page_from_a_file)};
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
