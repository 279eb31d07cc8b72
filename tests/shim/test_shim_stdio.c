/* The lesser-known names of stdio and dup, and pieces of calls, on a packed model and on memory of its views. */
#include "tests/support/hang.h"
#include "shim_fixture.h"

#include <dlfcn.h>
#include <sys/socket.h>

enum { HOLD_MAX = 512 << 10 }; /* a quarter of the tests' budget: what the pager holds at once */

static uint8_t *map_all(const char *path)
{
    int fd = open(path, O_RDONLY);
    uint8_t *view = mmap(NULL, plain_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    close(fd);
    return view;
}

static void every_name_of_fread_fills_views(void **state)
{
    (void)state;
    typedef size_t (*plain_form)(void *, size_t, size_t, FILE *);
    typedef size_t (*checked_form)(void *, size_t, size_t, size_t, FILE *);
    static const char *const names[] = {"fread", "fread_unlocked", "__fread_chk", "__fread_unlocked_chk"};
    for (int how = 0; how < 4; how++) {
        uint8_t *view = map_all(packed_path);
        FILE *file = fopen(plain_path, "rb");
        void *call = dlsym(RTLD_DEFAULT, names[how]);
        size_t len = 3000000, got = how < 2 ? ((plain_form)call)(view + 4096, 1, len, file)
                                            : ((checked_form)call)(view + 4096, len, 1, len, file);
        assert_int_equal(got, len);
        assert_memory_equal(view + 4096, plain, len);
        assert_memory_equal(view + 4096 + len, plain + 4096 + len, 100000);
        fclose(file);
        munmap(view, plain_bytes);
    }
}

static void both_names_of_fwrite_take_views(void **state)
{
    (void)state;
    char path[4200];
    snprintf(path, sizeof path, "%s.stdio.%d", packed_path, (int)getpid());
    for (int how = 0; how < 2; how++) {
        uint8_t *view = map_all(packed_path), *bytes = malloc(3000000);
        FILE *file = fopen(path, "w+b");
        size_t put = how ? fwrite_unlocked(view + 5, 1000, 3000, file) : fwrite(view + 5, 1000, 3000, file);
        assert_int_equal(put, 3000);
        rewind(file);
        assert_int_equal(fread(bytes, 1, 3000000, file), 3000000);
        assert_memory_equal(bytes, plain + 5, 3000000);
        fclose(file);
        free(bytes);
        munmap(view, plain_bytes);
    }
    unlink(path);
}

static void items_are_counted_not_bytes(void **state)
{
    (void)state;
    uint8_t *view = map_all(packed_path);
    FILE *file = fopen(plain_path, "rb");
    size_t item = 1000003, whole = plain_bytes / item;
    assert_int_equal(fread(view, item, 1, file), 1);
    rewind(file);
    assert_int_equal(fread(view, item, whole + 1, file), whole); /* the last one is not whole */
    assert_true(feof(file));
    assert_memory_equal(view, plain, plain_bytes);
    fclose(file);
    munmap(view, plain_bytes);
}

static void the_inner_names_of_fopen_show_the_logical_file(void **state)
{
    (void)state;
    FILE *(*open_inner)(const char *, const char *) = (FILE * (*)(const char *, const char *))
        dlsym(RTLD_DEFAULT, "_IO_fopen");
    FILE *(*fd_inner)(int, const char *) = (FILE * (*)(int, const char *)) dlsym(RTLD_DEFAULT, "_IO_fdopen");
    uint8_t bytes[1000];
    for (int how = 0; how < 2; how++) {
        FILE *file = how ? fd_inner(open(packed_path, O_RDONLY), "rb") : open_inner(packed_path, "rb");
        assert_non_null(file);
        assert_int_equal(fseek(file, -1000, SEEK_END), 0);
        assert_int_equal(ftell(file), plain_bytes - 1000);
        assert_int_equal(fread(bytes, 1, 1000, file), 1000);
        assert_memory_equal(bytes, plain + plain_bytes - 1000, 1000);
        fclose(file);
    }
}

static void reopening_for_writing_leaves_the_mapping_alone(void **state)
{
    (void)state;
    char path[4200];
    packed_copy(path, sizeof path, "reopened");
    uint8_t *view = map_all(path);
    FILE *file = freopen(path, "wb", fopen("/dev/null", "r"));
    assert_non_null(file);
    assert_int_equal(fwrite("new", 1, 3, file), 3);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(raw_file_bytes(path), 3);
    assert_memory_equal(view, plain, plain_bytes);
    munmap(view, plain_bytes);
    unlink(path);
}

static void duplicates_share_one_offset(void **state)
{
    (void)state;
    uint8_t bytes[100];
    int fd = open(packed_path, O_RDONLY), other = open("/dev/null", O_RDONLY);
    assert_int_equal(dup3(fd, other, O_CLOEXEC), other);
    assert_int_equal(fcntl(other, F_GETFD), FD_CLOEXEC);
    assert_int_equal(lseek(fd, 9000000, SEEK_SET), 9000000);
    assert_int_equal(read(other, bytes, 100), 100);
    assert_memory_equal(bytes, plain + 9000000, 100);
    assert_int_equal(read(fd, bytes, 100), 100);
    assert_memory_equal(bytes, plain + 9000100, 100);
    assert_int_equal(dup2(fd, 700), 700);
    assert_int_equal(read(700, bytes, 100), 100);
    assert_memory_equal(bytes, plain + 9000200, 100);
    close(700);
    close(other);
    close(fd);
}

/* A datagram that cannot be held at once is not sent in halves. */
static void a_datagram_is_whole_or_an_error(void **state)
{
    (void)state;
    uint8_t *view = map_all(packed_path);
    int pair[2], room = 4 << 20;
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    assert_int_equal(send(pair[0], view, HOLD_MAX + 4096, MSG_DONTWAIT), -1);
    assert_int_equal(errno, EMSGSIZE);
    uint8_t byte;
    assert_int_equal(recv(pair[1], &byte, 1, MSG_DONTWAIT), -1); /* no half came */
    close(pair[0]);
    close(pair[1]);
    munmap(view, plain_bytes);
}

/* One piece is there, exactly; a second read would wait for ever. */
static void a_full_piece_is_not_waited_behind(void **state)
{
    (void)state;
    uint8_t *view = map_all(packed_path);
    int pair[2];
    assert_int_equal(pipe(pair), 0);
    if (fcntl(pair[1], F_SETPIPE_SZ, 2 * HOLD_MAX) < HOLD_MAX)
        skip();
    assert_int_equal(write(pair[1], plain, HOLD_MAX), HOLD_MAX);
    alarm(HANG_SECONDS);
    assert_int_equal(read(pair[0], view + 4096, 2 * HOLD_MAX), HOLD_MAX);
    alarm(0);
    assert_memory_equal(view + 4096, plain, HOLD_MAX);
    close(pair[0]);
    close(pair[1]);
    munmap(view, plain_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_name_of_fread_fills_views),
        cmocka_unit_test(both_names_of_fwrite_take_views),
        cmocka_unit_test(items_are_counted_not_bytes),
        cmocka_unit_test(the_inner_names_of_fopen_show_the_logical_file),
        cmocka_unit_test(reopening_for_writing_leaves_the_mapping_alone),
        cmocka_unit_test(duplicates_share_one_offset),
        cmocka_unit_test(a_datagram_is_whole_or_an_error),
        cmocka_unit_test(a_full_piece_is_not_waited_behind),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, fixture_load, NULL);
}
