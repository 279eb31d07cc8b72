/* Description: which file lies behind memory: the kernel's answer to one question and its list of all mappings say the
 * same, and what was written to is told from what was not. */
#include "tests/support/inject.h"
#include "tests/support/sample_model.h"
#include "uvm/cuda/mapping.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { PAGE = 4096, PAGES = 64, BYTES = PAGE * PAGES };

struct file {
    const char *path;
    int fd;
    struct stat st;
};

static struct file make(const char *name)
{
    static uint8_t data[BYTES];
    struct file f = {.path = sample_path(name)};
    for (unsigned i = 0; i < BYTES; i++)
        data[i] = (uint8_t)(i / PAGE + i);
    sample_save(f.path, data, BYTES);
    f.fd = open(f.path, O_RDWR | O_CLOEXEC);
    assert_true(f.fd >= 0 && fstat(f.fd, &f.st) == 0);
    return f;
}

static uint8_t *map(const struct file *f, size_t from, size_t bytes, int flags)
{
    uint8_t *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, f->fd, (off_t)from);
    assert_true(at != MAP_FAILED);
    return at;
}

/* Both ways. */
static bool find(const void *at, size_t bytes, struct cws_mapping *out)
{
    struct cws_mapping listed;
    memset(out, 0, sizeof *out);
    memset(&listed, 0, sizeof listed);
    inject_arm(INJECT_IOCTL, 1);
    bool found = cws_mapping_find((uintptr_t)at, bytes, &listed);
    assert_true(inject_disarm());
    assert_int_equal(cws_mapping_find((uintptr_t)at, bytes, out), found);
    if (!found)
        return false;
    assert_true(out->begin == listed.begin && out->end == listed.end && out->offset == listed.offset &&
                out->inode == listed.inode && out->device == listed.device);
    if (!strchr(out->path, '\n')) /* the list writes \012 */
        assert_string_equal(out->path, listed.path);
    return true;
}

static void a_private_mapping_is_its_file(void **state)
{
    (void)state;
    static const char *const names[] = {"plain.bin", "with a space.bin", "with\nlines.bin"};
    for (unsigned i = 0; i < 3; i++) {
        struct file f = make(names[i]);
        struct cws_mapping m;
        uint8_t *at = map(&f, 3 * PAGE, BYTES - 3 * PAGE, MAP_PRIVATE);
        assert_true(find(at, BYTES - 3 * PAGE, &m));
        assert_int_equal(m.begin, (uintptr_t)at);
        assert_int_equal(m.offset, 3 * PAGE);
        assert_int_equal(m.inode, f.st.st_ino);
        assert_string_equal(m.path, f.path);
        assert_true(find(at + 100, 1, &m) && find(at + 5 * PAGE + 7, 2 * PAGE, &m));
        assert_false(find(at + 1, BYTES - 3 * PAGE, &m));              /* one byte more than there is */
        assert_int_equal(mprotect(at + 8 * PAGE, PAGE, PROT_READ), 0); /* three mappings now */
        assert_true(find(at + 8 * PAGE, PAGE, &m));
        assert_int_equal(m.offset, 11 * PAGE);
        assert_false(find(at + 7 * PAGE, 2 * PAGE, &m));
        assert_int_equal(unlink(f.path), 0);
        assert_true(find(at, PAGE, &m));
        assert_non_null(strstr(m.path, " (deleted)"));
        munmap(at, BYTES - 3 * PAGE);
        assert_false(find(at, PAGE, &m));
        close(f.fd);
    }
}

static void other_memory_is_none(void **state)
{
    (void)state;
    struct cws_mapping m;
    struct file f = make("shared.bin");
    uint8_t *shared = map(&f, 0, BYTES, MAP_SHARED), *heap = malloc(BYTES);
    uint8_t *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED && heap);
    assert_false(find(shared, PAGE, &m));
    assert_false(find(heap, PAGE, &m));
    assert_false(find(memory, PAGE, &m));
    assert_false(find(&m, sizeof m, &m));
    assert_false(find((void *)(uintptr_t)PAGE, 1, &m));
    assert_false(find((void *)(UINTPTR_MAX - PAGE), 1, &m));
    munmap(memory, BYTES);
    munmap(shared, BYTES);
    free(heap);
    close(f.fd);
}

static void a_written_page_is_not_the_files(void **state)
{
    (void)state;
    struct file f = make("written.bin");
    volatile uint8_t *at = map(&f, 0, BYTES, MAP_PRIVATE);
    uintptr_t begin = (uintptr_t)at;
    assert_true(cws_mapping_is_clean(begin, BYTES)); /* untouched */
    for (unsigned i = 0; i < PAGES; i++)
        (void)at[i * PAGE];
    assert_true(cws_mapping_is_clean(begin, BYTES));
    at[17 * PAGE + 5] = at[17 * PAGE + 5]; /* the same byte, in a page of its own now */
    assert_false(cws_mapping_is_clean(begin, BYTES));
    assert_true(cws_mapping_is_clean(begin, 17 * PAGE));
    assert_false(cws_mapping_is_clean(begin, 17 * PAGE + 1));
    assert_true(cws_mapping_is_clean(begin + 18 * PAGE, BYTES - 18 * PAGE));
    assert_false(cws_mapping_is_clean(begin + 18 * PAGE - 1, 1));
    for (enum inject_kind kind = INJECT_READ; kind <= INJECT_OPEN;
         kind += INJECT_OPEN - INJECT_READ) { /* it cannot be told */
        inject_arm(kind, 1);
        assert_false(cws_mapping_is_clean(begin, PAGE));
        assert_true(inject_disarm());
    }
    munmap((void *)begin, BYTES);
    close(f.fd);
}

static void what_cannot_be_asked_is_no_mapping(void **state)
{
    (void)state;
    struct file f = make("asked.bin");
    struct cws_mapping m;
    uint8_t *at = map(&f, 0, BYTES, MAP_PRIVATE);
    inject_arm(INJECT_OPEN, 1);
    assert_false(cws_mapping_find((uintptr_t)at, PAGE, &m));
    assert_true(inject_disarm());
    unsigned files = inject_open_files();
    assert_true(find(at, PAGE, &m));
    assert_int_equal(inject_open_files(), files);
    munmap(at, BYTES);
    close(f.fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_private_mapping_is_its_file),
        cmocka_unit_test(other_memory_is_none),
        cmocka_unit_test(a_written_page_is_not_the_files),
        cmocka_unit_test(what_cannot_be_asked_is_no_mapping),
    };
    if (sysconf(_SC_PAGESIZE) != PAGE) {
        puts("pages of another size: skipped");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
