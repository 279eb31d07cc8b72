/* A program built with -D_FORTIFY_SOURCE=3, as distributions build theirs: the checked forms of the calls that read are
 * called by the names the compiler chooses (fortified_names.sh looks for them), and show the logical file, also into
 * memory of a view. */
#include "shim_fixture.h"

#include <sys/socket.h>
#include <sys/wait.h>

enum { SOME = 5000 };

/* Memory whose size the compiler must ask for when the program runs: what makes it choose the checked forms. */
static uint8_t *__attribute__((noinline, alloc_size(1))) take(size_t bytes)
{
    void *memory = malloc(bytes);
    assert_non_null(memory);
    return memory;
}

static uint8_t *__attribute__((noinline, alloc_size(1))) map(size_t bytes)
{
    int fd = open(packed_path, O_RDONLY);
    void *view = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    close(fd);
    return view;
}

static size_t volatile some = SOME; /* not a constant */

static void calls_on_descriptors_read_logical_bytes(void **state)
{
    (void)state;
    uint8_t *bytes = take(some);
    int fd = open(packed_path, O_RDONLY);
    assert_int_equal(read(fd, bytes, some), SOME);
    assert_memory_equal(bytes, plain, SOME);
    assert_int_equal(read(fd, bytes, some - 7), SOME - 7);
    assert_memory_equal(bytes, plain + SOME, SOME - 7);
    assert_int_equal(pread(fd, bytes, some, 1234567), SOME);
    assert_memory_equal(bytes, plain + 1234567, SOME);
    assert_int_equal(pread64(fd, bytes, some, (off_t)plain_bytes - 99), 99);
    assert_memory_equal(bytes, plain + plain_bytes - 99, 99);
    assert_int_equal(lseek(fd, 0, SEEK_CUR), 2 * SOME - 7);
    close(fd);
    free(bytes);
}

static void streams_read_logical_bytes(void **state)
{
    (void)state;
    uint8_t *bytes = take(some), *same = take(some);
    FILE *file = fopen(packed_path, "rb"), *other = fopen(plain_path, "rb");
    assert_true(file && other);
    assert_int_equal(fread(bytes, 5, some / 5, file), SOME / 5);
    assert_memory_equal(bytes, plain, SOME);
    assert_int_equal(fread_unlocked(bytes, 1, some, file), SOME);
    assert_memory_equal(bytes, plain + SOME, SOME);
    assert_int_equal(fseek(file, 3000001, SEEK_SET) | fseek(other, 3000001, SEEK_SET), 0);
    for (int i = 0; i < 50; i++) {
        memset(bytes, 0, some);
        memset(same, 0, some);
        assert_non_null(fgets((char *)bytes, (int)some, file));
        assert_non_null(fgets((char *)same, (int)some, other));
        assert_memory_equal(bytes, same, some);
        assert_non_null(fgets_unlocked((char *)bytes, (int)some, file));
        assert_non_null(fgets_unlocked((char *)same, (int)some, other));
        assert_memory_equal(bytes, same, some);
        assert_int_equal(ftell(file), ftell(other));
    }
    fclose(file);
    fclose(other);
    free(bytes);
    free(same);
}

static void fill_socket(int fd, uint8_t value)
{
    uint8_t bytes[SOME];
    memset(bytes, value, sizeof bytes);
    assert_int_equal(send(fd, bytes, sizeof bytes, 0), SOME);
}

static void assert_all(const uint8_t *bytes, uint8_t value)
{
    for (size_t i = 0; i < SOME; i++)
        assert_int_equal(bytes[i], value);
}

/* The view's pages are not there when the kernel is to write to them. */
static void data_comes_into_views(void **state)
{
    (void)state;
    int pair[2], fd = open(plain_path, O_RDONLY);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    for (int how = 0; how < 5; how++) {
        uint8_t *view = map(plain_bytes), *at = view + 2000000;
        FILE *file = how == 4 ? fopen(plain_path, "rb") : NULL;
        if (how < 2)
            fill_socket(pair[0], (uint8_t)(7 + how));
        switch (how) {
        case 0: assert_int_equal(recv(pair[1], at, some, 0), SOME); break;
        case 1: assert_int_equal(recvfrom(pair[1], at, some, 0, NULL, NULL), SOME); break;
        case 2: assert_int_equal(read(fd, at, some), SOME); break;
        case 3: assert_int_equal(pread(fd, at, some, 0), SOME); break;
        default: assert_int_equal(fread(at, 1, some, file), SOME); break;
        }
        if (how < 2)
            assert_all(at, (uint8_t)(7 + how));
        else
            assert_memory_equal(at, plain, SOME);
        assert_memory_equal(view + 2000000 - SOME, plain + 2000000 - SOME, SOME);
        assert_memory_equal(at + SOME, plain + 2000000 + SOME, SOME);
        if (file)
            fclose(file);
        munmap(view, plain_bytes);
    }
    close(fd);
    close(pair[0]);
    close(pair[1]);
}

/* What the check is for still happens. */
static void reading_more_than_fits_ends_the_program(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        int status;
        pid_t child = fork();
        if (child == 0) {
            uint8_t *bytes = take(some);
            int fd = open(packed_path, O_RDONLY), null = open("/dev/null", O_WRONLY);
            FILE *file = fopen(packed_path, "rb");
            size_t more = some + 1;
            dup2(null, STDERR_FILENO);
            ssize_t n = how == 0   ? read(fd, bytes, more)
                        : how == 1 ? pread(fd, bytes, more, 5)
                                   : (ssize_t)fread(bytes, 1, more, file);
            _exit(n > 0 ? 1 : 2);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGABRT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_on_descriptors_read_logical_bytes),
        cmocka_unit_test(streams_read_logical_bytes),
        cmocka_unit_test(data_comes_into_views),
        cmocka_unit_test(reading_more_than_fits_ends_the_program),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, fixture_load, NULL);
}
