/* The N-th allocation of host memory inside the manager fails, for every N: an error that is told, or the right bytes;
 * and everything works afterwards. The stand-in driver is a shared library here, so that its own allocations do not
 * count. */
#include "uvm/cuda/file.h"
#include "gpu_fixture.h"
#include "tests/support/inject.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static const uint8_t *mapping; /* of an ordinary file, to be bound to instead of the store */
static bool adopting;          /* the bytes are adopted instead */
static uint8_t back[3 * MIB];

static bool bind(struct fixture *f, unsigned i)
{
    uint64_t begin = cws_store_tensor(store, i)->begin, offset;
    if (adopting)
        return cws_gpu_adopt_wants(f->gpu, f->at[i], tensor_bytes(i), f->stream, 1024 * MIB) &&
               cws_gpu_adopt(f->gpu, f->at[i], tensor_bytes(i), f->stream, content(i));
    if (!mapping)
        return cws_gpu_bind(f->gpu, f->at[i], tensor_bytes(i), f->stream, store, begin);
    struct cws_gpu_file *file = cws_gpu_file_of(mapping + begin, tensor_bytes(i), &offset);
    bool bound = file && cws_gpu_bind_file(f->gpu, f->at[i], tensor_bytes(i), f->stream, file, offset, mapping + begin);
    cws_gpu_file_release(file);
    return bound;
}

/* Everything a program does: allocate, bind (or copy where that is refused), read, change, read, free. Counts what was
 * refused. */
static unsigned live_with_it(struct fixture *f)
{
    unsigned refused = 0;
    static bool changed[TENSORS];
    memset(changed, 0, sizeof changed);
    for (unsigned i = 0; i < TENSORS; i++) {
        f->at[i] = 0;
        if (cws_gpu_alloc(f->gpu, tensor_bytes(i), f->stream, &f->at[i]) != CUDA_SUCCESS) {
            f->at[i] = 0;
            refused++;
            continue;
        }
        if (!bind(f, i)) {
            refused++;
            if (copy_to(f, f->at[i], content(i), tensor_bytes(i)) != CUDA_SUCCESS) {
                assert_int_equal(cws_gpu_free(f->gpu, f->at[i], f->stream, true), 0);
                f->at[i] = 0;
            }
        }
    }
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < TENSORS; i++) {
            if (!f->at[i])
                continue;
            if (copy_from(f, f->at[i], back, tensor_bytes(i)) != CUDA_SUCCESS) {
                refused++;
                continue;
            }
            assert_int_equal(back[0], (uint8_t)(content(i)[0] ^ changed[i]));
            assert_memory_equal(back + 1, content(i) + 1, tensor_bytes(i) - 1);
            if (i % 3 == 0 && !changed[i]) {
                uint8_t byte = content(i)[0] ^ 1;
                changed[i] = copy_to(f, f->at[i], &byte, 1) == CUDA_SUCCESS;
                refused += !changed[i];
            }
        }
    }
    for (unsigned i = 0; i < TENSORS; i++)
        if (f->at[i])
            assert_int_equal(cws_gpu_free(f->gpu, f->at[i], f->stream, true), 0);
    return refused;
}

/* The first ones each, then every third. */
static void allocations_fail(unsigned each)
{
    unsigned fired = 0, told = 0;
    for (unsigned n = 1; n < 200; n += SANITIZED ? 1 + n / 3 : n < each ? 1 : 3) {
        struct fixture *f = open_gpu(256 * MIB, 30 * MIB, n % 4 == 1);
        inject_arm(INJECT_ALLOC, n);
        told += live_with_it(f);
        bool hit = inject_disarm();
        assert_null(cws_gpu_check(f->gpu));
        assert_int_equal(live_with_it(f), 0);
        close_gpu(f);
        fired += hit;
        if (!hit)
            break;
    }
    assert_true(fired > 5);
    assert_true(told > 0);
}
static void test_allocations_fail(void **state) { (void)state, allocations_fail(0); }

static void test_adoptions_fail(void **state)
{
    (void)state;
    adopting = adopt = true;
    allocations_fail(40);
    adopting = adopt = false;
}

/* As the manager opens: an error with a line, and nothing left behind. */
static void test_open_fails(void **state)
{
    (void)state;
    for (unsigned n = 1; n < 30; n += SANITIZED ? 1 + n / 4 : 1) {
        struct cws_error err = {0};
        struct cws_gpu *gpu = NULL;
        CUcontext context;
        char text[256];
        standin_reset(256 * MIB);
        assert_int_equal(cws_driver_fill(&driver, standin_resolve, NULL, &err), 0);
        assert_int_equal(driver.init(0) | driver.primary_retain(&context, 0) | driver.context_set(context), 0);
        struct cws_gpu_config config = {.driver = &driver,
                                        .budget_bytes = 64 * MIB,
                                        .host_budget_bytes = 64 * MIB,
                                        .policy = CWS_POLICY_NEXT,
                                        .prefetch = true,
                                        .ring_bytes = 8 * MIB,
                                        .kernels = image_of_kernels,
                                        .say = say};
        inject_arm(INJECT_ALLOC, n);
        int code = cws_gpu_open(&config, 0, &gpu, &err);
        bool hit = inject_disarm();
        if (code) {
            assert_null(gpu);
            assert_true(err.message[0] != '\0');
        }
        cws_gpu_close(gpu);
        assert_int_equal(driver.primary_release(0), 0);
        if (standin_leak_text(text, sizeof text))
            fail_msg("left behind: %s", text);
        assert_true(code != 0 || !hit || n > 1);
        if (!hit)
            return;
    }
    fail_msg("thirty allocations to open a manager");
}

/* A file that was not seen before, so that it is opened and its header is read. */
static void map_new_file(void)
{
    static const char *path;
    path = path ? path : sample_path("inject.safetensors");
    unlink(path);
    sample_save(path, plain.data, plain.size);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *at = mmap(NULL, plain.size, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(fd >= 0 && at != MAP_FAILED);
    close(fd);
    mapping = at;
}

/* The N-th call that an ordinary file needs fails, or is interrupted: then the copy is made, or a read is refused with
 * a line; no byte is ever wrong, and no descriptor stays but that of the last file. */
static void test_files_fail(void **state)
{
    (void)state;
    static const struct {
        enum inject_kind kind;
        /* fstat: there is a second way to open it, for root; a short read: of /proc/self/pagemap it is no answer */
        bool never_told, told;
    } rows[] = {{INJECT_ALLOC, false, true},       {INJECT_OPEN, false, true},  {INJECT_STAT, false, false},
                {INJECT_READ, false, true},        {INJECT_EINTR, true, false}, {INJECT_EAGAIN, true, false},
                {INJECT_SHORT_READ, false, false}, {INJECT_IOCTL, true, false}};
    unsigned files = 0;
    for (unsigned k = 0; k < sizeof rows / sizeof *rows; k++) {
        unsigned told = 0, fired = 0;
        for (unsigned n = 1; n < 40; n += 1 + n / 4) {
            map_new_file();
            struct fixture *f = open_gpu(256 * MIB, 30 * MIB, n % 2 == 1);
            last_line[0] = '\0';
            inject_arm(rows[k].kind, n);
            unsigned refused = live_with_it(f);
            bool hit = inject_disarm();
            told += refused;
            fired += hit;
            assert_true(!rows[k].never_told || refused == 0);
            assert_null(cws_gpu_check(f->gpu));
            assert_int_equal(live_with_it(f), 0);
            close_gpu(f);
            munmap((void *)(uintptr_t)mapping, plain.size);
            mapping = NULL;
            files = files ? files : inject_open_files();
            assert_int_equal(inject_open_files(), files);
            if (!hit)
                break;
        }
        assert_true(fired > 0);
        assert_true(told > 0 || !rows[k].told);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_allocations_fail), cmocka_unit_test(test_adoptions_fail),
                                       cmocka_unit_test(test_open_fails), cmocka_unit_test(test_files_fail)};
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
