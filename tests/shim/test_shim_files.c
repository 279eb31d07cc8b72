/* Every call that opens, asks about or reads a file, on a packed model, against the same call on the plain one. */
#include "shim_fixture.h"

#include <dlfcn.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

/* --- opening ----------------------------------------------------------------------------------- */

static void assert_is_logical(int fd)
{
    uint8_t *bytes = malloc(plain_bytes + 1);
    size_t done = 0;
    ssize_t got;
    assert_true(fd >= 0);
    while ((got = read(fd, bytes + done, plain_bytes + 1 - done)) > 0)
        done += (size_t)got;
    assert_int_equal(got, 0);
    assert_int_equal(done, plain_bytes);
    assert_memory_equal(bytes, plain, plain_bytes);
    free(bytes);
    assert_int_equal(close(fd), 0);
}

static void every_way_to_open_shows_the_logical_file(void **state)
{
    (void)state;
    static const char *const by_path[] = {"open", "open64", "__open", "__open64", "__open_2", "__open64_2"};
    static const char *const by_dir[] = {"openat", "openat64", "__openat_2", "__openat64_2"};
    for (size_t i = 0; i < sizeof by_path / sizeof *by_path; i++) {
        int (*call)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_DEFAULT, by_path[i]);
        assert_non_null(call);
        assert_is_logical(call(packed_path, O_RDONLY));
    }
    for (size_t i = 0; i < sizeof by_dir / sizeof *by_dir; i++) {
        int (*call)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))dlsym(RTLD_DEFAULT, by_dir[i]);
        assert_non_null(call);
        assert_is_logical(call(AT_FDCWD, packed_path, O_RDONLY | O_CLOEXEC));
    }
}

static void relative_paths_links_and_proc_lead_to_it(void **state)
{
    (void)state;
    char directory[4096], link[4200], proc[64];
    strcpy(directory, packed_path);
    char *slash = strrchr(directory, '/');
    *slash = '\0';
    int dir = open(directory, O_RDONLY | O_DIRECTORY);
    assert_true(dir >= 0);
    assert_is_logical(openat(dir, slash + 1, O_RDONLY));
    struct stat st;
    assert_int_equal(fstatat(dir, slash + 1, &st, 0), 0);
    assert_int_equal(st.st_size, plain_bytes);
    close(dir);
    snprintf(link, sizeof link, "%s.link.%d", packed_path, (int)getpid());
    assert_int_equal(symlink(packed_path, link), 0);
    assert_is_logical(open(link, O_RDONLY));
    assert_int_equal(stat(link, &st), 0);
    assert_int_equal(st.st_size, plain_bytes);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(st.st_size, strlen(packed_path));
    unlink(link);
    int fd = open(packed_path, O_RDONLY);
    lseek(fd, 77, SEEK_SET);
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    assert_is_logical(open(proc, O_RDONLY)); /* a new description: from the beginning */
    assert_int_equal(lseek(fd, 0, SEEK_CUR), 77);
    close(fd);
}

static void other_files_are_left_alone(void **state)
{
    (void)state;
    assert_is_logical(open(plain_path, O_RDONLY));
    assert_int_equal(open("/no/such/file", O_RDONLY), -1);
    assert_int_equal(errno, ENOENT);
    int fd = open("/dev/null", O_RDWR);
    assert_true(fd >= 0);
    close(fd);
    int pair[2];
    assert_int_equal(pipe(pair), 0);
    assert_int_equal(write(pair[1], "abc", 3), 3);
    char got[4] = "";
    assert_int_equal(read(pair[0], got, 3), 3);
    assert_string_equal(got, "abc");
    assert_int_equal(lseek(pair[0], 0, SEEK_CUR), -1);
    assert_int_equal(errno, ESPIPE);
    close(pair[0]);
    close(pair[1]);
}

/* --- O_DIRECT ----------------------------------------------------------------------------------- */

enum { DIRECT_ALIGN = 4096, DIRECT_ROOM = 1 << 20 };

/* Asked past the hooks. */
static bool has_direct(void)
{
    long raw = syscall(SYS_openat, AT_FDCWD, packed_path, O_RDONLY | O_DIRECT, 0);
    if (raw >= 0)
        syscall(SYS_close, raw);
    return raw >= 0;
}

/* As `dd iflag=direct` reads: aligned pieces until the end. Returns the file's bytes or -1. */
static ssize_t read_aligned(int fd, size_t piece, uint8_t *all, size_t room)
{
    uint8_t *buffer = aligned_alloc(DIRECT_ALIGN, DIRECT_ROOM);
    size_t done = 0;
    ssize_t got;
    while ((got = read(fd, buffer, piece)) > 0 && done + (size_t)got <= room) {
        memcpy(all + done, buffer, (size_t)got);
        done += (size_t)got;
    }
    free(buffer);
    return got ? -1 : (ssize_t)done;
}

static void other_files_open_with_o_direct(void **state)
{
    (void)state;
    if (!has_direct())
        skip();
    uint8_t *all = malloc(plain_bytes);
    for (int flags = O_RDONLY; flags <= O_RDWR; flags += O_RDWR) {
        int fd = open(plain_path, flags | O_DIRECT);
        assert_true(fd >= 0);
        assert_int_equal(read_aligned(fd, DIRECT_ROOM, all, plain_bytes), plain_bytes);
        assert_memory_equal(all, plain, plain_bytes);
        close(fd);
    }
    FILE *file = fdopen(open(plain_path, O_RDONLY | O_DIRECT), "r");
    assert_non_null(file);
    fclose(file);
    free(all);
}

/* By each way to come to such a descriptor; and with any alignment, which is more than the kernel allows on the plain
 * file. */
static void a_packed_file_reads_right_with_o_direct(void **state)
{
    (void)state;
    if (!has_direct())
        skip();
    uint8_t *all = malloc(plain_bytes), some[777];
    int fds[5] = {open(packed_path, O_RDONLY | O_DIRECT)};
    fds[1] = openat(AT_FDCWD, packed_path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    fds[2] = dup(fds[1]);
    fds[3] = open(packed_path, O_RDONLY);
    assert_int_equal(pread(fds[3], some, sizeof some, 99), sizeof some);
    assert_int_equal(fcntl(fds[3], F_SETFL, O_DIRECT), 0); /* after the file was opened and read */
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fds[0]);
    fds[4] = open(proc, O_RDONLY | O_DIRECT);
    for (size_t i = 0; i < 5; i++) {
        struct stat st;
        assert_true(fds[i] >= 0);
        assert_int_equal(lseek(fds[i], 0, SEEK_SET), 0);
        assert_int_equal(read_aligned(fds[i], i % 2 ? 4096 : DIRECT_ROOM, all, plain_bytes), plain_bytes);
        assert_memory_equal(all, plain, plain_bytes);
        assert_int_equal(fstat(fds[i], &st), 0);
        assert_int_equal(st.st_size, plain_bytes);
        assert_int_equal(pread(fds[i], some, sizeof some, 1234567), sizeof some);
        assert_memory_equal(some, plain + 1234567, sizeof some);
        assert_int_equal(pread(fds[i], some, sizeof some, (off_t)plain_bytes - 5), 5);
        assert_memory_equal(some, plain + plain_bytes - 5, 5);
        uint8_t *view = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fds[i], 0);
        assert_ptr_not_equal(view, MAP_FAILED);
        assert_memory_equal(view, plain, plain_bytes);
        munmap(view, plain_bytes);
    }
    FILE *file = fdopen(fds[0], "r");
    assert_int_equal(fseek(file, 4321, SEEK_SET), 0);
    assert_int_equal(fread(some, 1, sizeof some, file), sizeof some);
    assert_memory_equal(some, plain + 4321, sizeof some);
    fclose(file);
    for (size_t i = 1; i < 5; i++)
        close(fds[i]);
    free(all);
}

static void a_packed_file_is_not_opened_to_write_with_o_direct(void **state)
{
    (void)state;
    if (!has_direct())
        skip();
    assert_int_equal(open(packed_path, O_RDWR | O_DIRECT), -1);
    assert_int_equal(errno, EROFS);
    assert_int_equal(open(packed_path, O_WRONLY | O_DIRECT), -1);
    assert_int_equal(errno, EROFS);
}

static void opening_keeps_errno(void **state)
{
    (void)state;
    errno = ERANGE;
    int fd = open(packed_path, O_RDONLY);
    char byte;
    struct stat st;
    assert_int_equal(read(fd, &byte, 1), 1);
    assert_int_equal(stat(packed_path, &st), 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(errno, ERANGE);
}

/* --- asking ------------------------------------------------------------------------------------ */

static void assert_stat(int result, const struct stat *st)
{
    assert_int_equal(result, 0);
    assert_int_equal(st->st_size, plain_bytes);
    assert_int_equal(st->st_blocks, (plain_bytes + 511) / 512);
}

static void every_way_to_ask_tells_the_logical_size(void **state)
{
    (void)state;
    typedef int (*by_path)(const char *, struct stat *);
    typedef int (*by_fd)(int, struct stat *);
    typedef int (*by_dir)(int, const char *, struct stat *, int);
    typedef int (*old_path)(int, const char *, struct stat *);
    typedef int (*old_fd)(int, int, struct stat *);
    typedef int (*old_dir)(int, int, const char *, struct stat *, int);
#ifdef __x86_64__
    const int version = 1;
#else
    const int version = 0;
#endif
    struct stat st;
    int fd = open(packed_path, O_RDONLY);
    static const char *const paths[] = {"stat", "stat64", "lstat", "lstat64"};
    static const char *const fds[] = {"fstat", "fstat64"};
    static const char *const dirs[] = {"fstatat", "fstatat64"};
    static const char *const old_paths[] = {"__xstat", "__xstat64", "__lxstat", "__lxstat64"};
    static const char *const old_fds[] = {"__fxstat", "__fxstat64"};
    static const char *const old_dirs[] = {"__fxstatat", "__fxstatat64"};
#define EACH(list, type, ...)                                                                                          \
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {                                                          \
        type call = (type)dlsym(RTLD_DEFAULT, list[i]);                                                                \
        assert_non_null(call);                                                                                         \
        memset(&st, 0, sizeof st);                                                                                     \
        assert_stat(call(__VA_ARGS__), &st);                                                                           \
    }
    EACH(paths, by_path, packed_path, &st)
    EACH(fds, by_fd, fd, &st)
    EACH(dirs, by_dir, AT_FDCWD, packed_path, &st, 0)
    EACH(dirs, by_dir, fd, "", &st, AT_EMPTY_PATH)
    EACH(old_paths, old_path, version, packed_path, &st)
    EACH(old_fds, old_fd, version, fd, &st)
    EACH(old_dirs, old_dir, version, AT_FDCWD, packed_path, &st, 0)
#undef EACH
    struct statx stx;
    static const unsigned masks[] = {STATX_SIZE, STATX_BASIC_STATS, STATX_ALL, STATX_SIZE | STATX_TYPE, STATX_BLOCKS};
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        assert_int_equal(statx(AT_FDCWD, packed_path, 0, masks[i], &stx), 0);
        assert_int_equal(stx.stx_size, plain_bytes);
        assert_int_equal(stx.stx_blocks, (plain_bytes + 511) / 512);
        assert_int_equal(statx(fd, "", AT_EMPTY_PATH, masks[i], &stx), 0);
        assert_int_equal(stx.stx_size, plain_bytes);
    }
    close(fd);
    assert_int_not_equal(raw_file_bytes(packed_path), plain_bytes);
}

static void a_changed_file_is_looked_at_again(void **state)
{
    (void)state;
    char path[4200];
    struct stat st;
    packed_copy(path, sizeof path, "changed");
    assert_stat(stat(path, &st), &st);
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_TRUNC, 0); /* from outside, as it were */
    assert_int_equal(syscall(SYS_write, fd, plain, 5000), 5000);
    syscall(SYS_close, fd);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 5000);
    raw_copy(packed_path, path);
    assert_stat(stat(path, &st), &st);
    unlink(path);
}

/* --- reading, at random ------------------------------------------------------------------------ */

enum { FDS = 8, READ_MAX = 700000 };

struct shadow {
    uint64_t random;
    int packed[FDS], same[FDS]; /* -1: closed */
    uint8_t *a, *b;
};

static size_t any_length(struct shadow *s)
{
    uint64_t r = fixture_random(&s->random);
    switch (r % 4) {
    case 0: return r / 4 % 64;
    case 1: return r / 4 % 8192;
    default: return r / 4 % READ_MAX;
    }
}

static off_t any_offset(struct shadow *s)
{
    uint64_t r = fixture_random(&s->random);
    return r % 16 == 0   ? (off_t)(plain_bytes + r / 16 % 1000) - 500
           : r % 64 == 1 ? -1 - (off_t)(r / 64 % 100)
                         : (off_t)(r / 64 % plain_bytes);
}

static void check(const char *what, ssize_t x, int x_errno, ssize_t y, int y_errno, const struct shadow *s)
{
    if (x != y || (x < 0 && x_errno != y_errno) || (x > 0 && s && memcmp(s->a, s->b, (size_t)x) != 0))
        fail_msg("%s: packed %zd (errno %d), plain %zd (errno %d), or other bytes", what, x, x_errno, y, y_errno);
}

#define BOTH(what, s, call_packed, call_plain)                                                                         \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        ssize_t x_ = call_packed;                                                                                      \
        int x_errno_ = errno;                                                                                          \
        errno = 0;                                                                                                     \
        ssize_t y_ = call_plain;                                                                                       \
        check(what, x_, x_errno_, y_, errno, s);                                                                       \
    } while (0)

static void step_seek(struct shadow *s, int i)
{
    static const int whences[] = {SEEK_SET, SEEK_SET, SEEK_CUR, SEEK_END};
    int whence = whences[fixture_random(&s->random) % 4];
    off_t offset = any_offset(s);
    if (whence == SEEK_CUR)
        offset = offset % 100000 - 50000;
    if (whence == SEEK_END)
        offset = -offset;
    BOTH("lseek", NULL, lseek(s->packed[i], offset, whence), lseek(s->same[i], offset, whence));
}

static void step_read(struct shadow *s, int i)
{
    size_t len = any_length(s);
    off_t offset = any_offset(s);
    size_t cut = len ? (size_t)fixture_random(&s->random) % len : 0;
    struct iovec a[3] = {{s->a, cut}, {s->a + cut, 0}, {s->a + cut, len - cut}},
                 b[3] = {{s->b, cut}, {s->b + cut, 0}, {s->b + cut, len - cut}};
    switch (fixture_random(&s->random) % 6) {
    case 0: BOTH("pread", s, pread(s->packed[i], s->a, len, offset), pread(s->same[i], s->b, len, offset)); break;
    case 1: BOTH("readv", s, readv(s->packed[i], a, 3), readv(s->same[i], b, 3)); break;
    case 2: BOTH("preadv", s, preadv(s->packed[i], a, 3, offset), preadv(s->same[i], b, 3, offset)); break;
    case 3: BOTH("preadv2", s, preadv2(s->packed[i], a, 3, -1, 0), preadv2(s->same[i], b, 3, -1, 0)); break;
    default: BOTH("read", s, read(s->packed[i], s->a, len), read(s->same[i], s->b, len)); break;
    }
}

static void step_duplicate(struct shadow *s, int i)
{
    int j = (int)(fixture_random(&s->random) % FDS), how = (int)(fixture_random(&s->random) % 4);
    if (j == i)
        return;
    if (how == 0 && s->packed[j] >= 0) {
        assert_int_equal(dup2(s->packed[i], s->packed[j]), s->packed[j]);
        assert_int_equal(dup2(s->same[i], s->same[j]), s->same[j]);
        return;
    }
    if (s->packed[j] >= 0) {
        close(s->packed[j]);
        close(s->same[j]);
    }
    if (how == 1) {
        s->packed[j] = dup(s->packed[i]);
        s->same[j] = dup(s->same[i]);
    } else if (how == 2) {
        s->packed[j] = fcntl(s->packed[i], F_DUPFD_CLOEXEC, 50);
        s->same[j] = fcntl(s->same[i], F_DUPFD, 50);
    } else {
        s->packed[j] = open(packed_path, O_RDONLY);
        s->same[j] = open(plain_path, O_RDONLY);
    }
    assert_true(s->packed[j] >= 0 && s->same[j] >= 0);
}

static void step_map(struct shadow *s, int i)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    off_t offset = any_offset(s);
    offset = offset < 0 ? 0 : offset / (off_t)page * (off_t)page;
    if ((size_t)offset >= plain_bytes)
        return;
    size_t len = 1 + any_length(s);
    if (len > plain_bytes - (size_t)offset)
        len = plain_bytes - (size_t)offset;
    uint8_t *view = mmap(NULL, len, PROT_READ, MAP_PRIVATE, s->packed[i], offset);
    assert_ptr_not_equal(view, MAP_FAILED);
    assert_memory_equal(view, plain + offset, len);
    assert_int_equal(munmap(view, len), 0);
}

static void random_calls_do_what_they_do_on_the_plain_file(void **state)
{
    (void)state;
    struct shadow s = {.random = 42, .a = malloc(READ_MAX), .b = malloc(READ_MAX)};
    print_message("seed %d\n", 42);
    for (int i = 0; i < FDS; i++) {
        s.packed[i] = open(packed_path, O_RDONLY);
        s.same[i] = open(plain_path, O_RDONLY);
    }
    for (unsigned step = 0; step < (SANITIZED ? 1000 : 3000); step++) {
        int i = (int)(fixture_random(&s.random) % FDS);
        switch (fixture_random(&s.random) % 10) {
        case 0: step_duplicate(&s, i); break;
        case 1:
        case 2:
        case 3: step_seek(&s, i); break;
        case 4: step_map(&s, i); break;
        default: step_read(&s, i); break;
        }
    }
    for (int i = 0; i < FDS; i++) {
        close(s.packed[i]);
        close(s.same[i]);
    }
    free(s.a);
    free(s.b);
}

static void checked_forms_read_the_same(void **state)
{
    (void)state;
    ssize_t (*read_chk)(int, void *, size_t, size_t) = (ssize_t(*)(int, void *, size_t, size_t))dlsym(RTLD_DEFAULT,
                                                                                                      "__read_chk");
    static const char *const preads[] = {"__pread_chk", "__pread64_chk"};
    uint8_t bytes[5000];
    int fd = open(packed_path, O_RDONLY);
    assert_int_equal(read_chk(fd, bytes, sizeof bytes, sizeof bytes), sizeof bytes);
    assert_memory_equal(bytes, plain, sizeof bytes);
    for (int i = 0; i < 2; i++) {
        ssize_t (*call)(int, void *, size_t, off_t,
                        size_t) = (ssize_t(*)(int, void *, size_t, off_t, size_t))dlsym(RTLD_DEFAULT, preads[i]);
        assert_int_equal(call(fd, bytes, sizeof bytes, 123457, sizeof bytes), sizeof bytes);
        assert_memory_equal(bytes, plain + 123457, sizeof bytes);
    }
    ssize_t (*pread64_)(int, void *, size_t, off_t) = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_DEFAULT,
                                                                                                    "__pread64");
    assert_int_equal(pread64_(fd, bytes, 100, 7), 100);
    assert_memory_equal(bytes, plain + 7, 100);
    close(fd);
}

static void offsets_beyond_the_real_file_work(void **state)
{
    (void)state;
    uint8_t bytes[100];
    int fd = open(packed_path, O_RDONLY);
    off_t late = (off_t)plain_bytes - 50;
    assert_true(late > raw_file_bytes(packed_path));
    assert_int_equal(lseek(fd, late, SEEK_SET), late);
    assert_int_equal(read(fd, bytes, sizeof bytes), 50);
    assert_memory_equal(bytes, plain + late, 50);
    assert_int_equal(read(fd, bytes, sizeof bytes), 0);
    assert_int_equal(lseek(fd, 0, SEEK_END), plain_bytes);
    assert_int_equal(lseek(fd, 10, SEEK_DATA), 10);
    assert_int_equal(lseek(fd, 10, SEEK_HOLE), plain_bytes);
    assert_int_equal(lseek(fd, (off_t)plain_bytes, SEEK_DATA), -1);
    assert_int_equal(errno, ENXIO);
    int rest;
    assert_int_equal(lseek(fd, late, SEEK_SET), late);
    assert_int_equal(ioctl(fd, FIONREAD, &rest), 0);
    assert_int_equal(rest, 50);
    close(fd);
}

static void every_name_of_lseek_knows_the_logical_size(void **state)
{
    (void)state;
    static const char *const names[] = {"lseek", "lseek64", "__lseek", "llseek"};
    uint8_t bytes[10];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        off_t (*call)(int, off_t, int) = (off_t(*)(int, off_t, int))dlsym(RTLD_DEFAULT, names[i]);
        assert_non_null(call);
        int fd = open(packed_path, O_RDONLY);
        assert_int_equal(call(fd, 0, SEEK_END), plain_bytes);
        assert_int_equal(call(fd, -10, SEEK_END), plain_bytes - 10);
        assert_int_equal(read(fd, bytes, sizeof bytes), 10);
        assert_memory_equal(bytes, plain + plain_bytes - 10, 10);
        assert_int_equal(call(fd, 777, SEEK_SET), 777);
        assert_int_equal(call(fd, 3, SEEK_CUR), 780);
        assert_int_equal(call(fd, 780, SEEK_HOLE), plain_bytes);
        close(fd);
    }
}

static void a_descriptor_closed_behind_our_back_is_noticed(void **state)
{
    (void)state;
    char got[4] = "";
    int fd = open(packed_path, O_RDONLY), pair[2];
    assert_int_equal(pipe(pair), 0);
    syscall(SYS_dup3, pair[0], fd, 0);
    assert_int_equal(write(pair[1], "xyz", 3), 3);
    assert_int_equal(read(fd, got, 3), 3);
    assert_string_equal(got, "xyz");
    close(fd);
    close(pair[0]);
    close(pair[1]);
}

static void ranges_of_descriptors_close(void **state)
{
    (void)state;
    int fd = open(packed_path, O_RDONLY);
    int high = fcntl(fd, F_DUPFD, 900);
    assert_int_equal(high, 900);
    assert_int_equal(close_range(900, ~0u, 0), 0);
    char byte;
    assert_int_equal(read(high, &byte, 1), -1);
    assert_int_equal(errno, EBADF);
    high = fcntl(open(plain_path, O_RDONLY), F_DUPFD, 900);
    uint8_t bytes[64];
    struct stat st;
    assert_int_equal(read(high, bytes, 64), 64);
    assert_int_equal(fstat(high, &st), 0);
    assert_memory_equal(bytes, plain, 64);
    high = fcntl(fd, F_DUPFD, 901);
    closefrom(900);
    assert_int_equal(fcntl(high, F_GETFD), -1);
    close(fd);
}

/* --- what a store cannot offer ----------------------------------------------------------------- */

#define REFUSED(why, call)                                                                                             \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        assert_int_equal(call, -1);                                                                                    \
        assert_int_equal(errno, why);                                                                                  \
    } while (0)

static void copies_inside_the_kernel_are_refused(void **state)
{
    (void)state;
    char path[] = "/tmp/cws-shim-XXXXXX";
    int out = mkstemp(path), fd = open(packed_path, O_RDONLY), pair[2];
    struct file_clone_range range = {.src_fd = fd};
    off_t at = 0;
    assert_true(out >= 0 && pipe(pair) == 0);
    REFUSED(EINVAL, sendfile(out, fd, NULL, 4096));
    REFUSED(EINVAL, sendfile64(out, fd, &at, 4096));
    REFUSED(EXDEV, copy_file_range(fd, NULL, out, NULL, 4096, 0));
    REFUSED(EINVAL, splice(fd, NULL, pair[1], NULL, 4096, 0));
    REFUSED(EOPNOTSUPP, ioctl(out, FICLONE, fd));
    REFUSED(EOPNOTSUPP, ioctl(out, FICLONERANGE, &range));
    assert_int_equal(raw_file_bytes(path), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL), 0);
    assert_int_equal(readahead(fd, 0, 4096), 0);
    int from = open(plain_path, O_RDONLY); /* and other files are copied as ever */
    assert_int_equal(sendfile(out, from, NULL, 4096), 4096);
    assert_int_equal(raw_file_bytes(path), 4096);
    REFUSED(EROFS, open(packed_path, O_RDWR));
    REFUSED(EROFS, open(packed_path, O_WRONLY));
    REFUSED(EROFS, open(packed_path, O_WRONLY | O_APPEND));
    assert_null(fopen(packed_path, "r+b"));
    assert_int_equal(errno, EROFS);
    assert_null(fopen(packed_path, "ab"));
    assert_int_equal(errno, EROFS);
    FILE *file = fopen(path, "r");
    assert_null(freopen(packed_path, "r", file));
    assert_int_equal(errno, EOPNOTSUPP);
    close(from);
    close(fd);
    close(out);
    close(pair[0]);
    close(pair[1]);
    unlink(path);
}

/* A size is one of the logical file, to which the real one cannot be cut. */
static void truncating_by_path_empties_or_is_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"truncate", "truncate64"};
    char path[4200], link[4300];
    packed_copy(path, sizeof path, "cut");
    snprintf(link, sizeof link, "%s.link", path);
    assert_int_equal(symlink(path, link), 0);
    off_t real = raw_file_bytes(path);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int (*call)(const char *, off_t) = (int (*)(const char *, off_t))dlsym(RTLD_DEFAULT, names[i]);
        const off_t sizes[] = {1, 4096, real - 1, real, (off_t)plain_bytes, (off_t)plain_bytes + 5000};
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
            REFUSED(EROFS, call(path, sizes[k]));
            REFUSED(EROFS, call(link, sizes[k]));
        }
        REFUSED(EINVAL, call(path, -1));
        assert_int_equal(raw_file_bytes(path), real);
        assert_is_logical(open(path, O_RDONLY));
        assert_int_equal(call(path, 0), 0); /* not in use: cut where it is */
        assert_int_equal(raw_file_bytes(path), 0);
        assert_int_equal(call(path, 70000), 0); /* any file now */
        assert_int_equal(raw_file_bytes(path), 70000);
        raw_copy(packed_path, path);
        REFUSED(ENOENT, call("/no/such/file", 5));
        REFUSED(ENOENT, call("/no/such/file", 0));
        REFUSED(EISDIR, call("/tmp", 5));
        REFUSED(EFAULT, call(NULL, 5));
    }
    unlink(link);
    unlink(path);
}

/* --- stdio ------------------------------------------------------------------------------------- */

static void random_stdio_does_what_it_does_on_the_plain_file(void **state)
{
    (void)state;
    uint64_t random = 7;
    uint8_t *a = malloc(READ_MAX), *b = malloc(READ_MAX);
    print_message("seed %d\n", 7);
    FILE *x = fopen(packed_path, "rb"), *y = fopen64(plain_path, "rb");
    assert_true(x && y);
    for (unsigned step = 0; step < 3000; step++) {
        size_t len = fixture_random(&random) % (step % 8 ? 300 : READ_MAX);
        long offset = (long)(fixture_random(&random) % (plain_bytes + 100));
        switch (fixture_random(&random) % 6) {
        case 0: assert_int_equal(fseek(x, offset, SEEK_SET), fseek(y, offset, SEEK_SET)); break;
        case 1: assert_int_equal(fseek(x, -(offset % 5000), SEEK_END), fseek(y, -(offset % 5000), SEEK_END)); break;
        case 2: assert_int_equal(fgetc(x), fgetc(y)); break;
        case 3: {
            memset(a, 0, len + 2);
            memset(b, 0, len + 2);
            assert_int_equal(fgets((char *)a, (int)len + 1, x) != NULL, fgets((char *)b, (int)len + 1, y) != NULL);
            assert_memory_equal(a, b, len);
            break;
        }
        default: {
            size_t got = fread(a, 3, len / 3, x);
            assert_int_equal(got, fread(b, 3, len / 3, y));
            assert_memory_equal(a, b, got * 3);
            assert_int_equal(feof(x) != 0, feof(y) != 0);
        }
        }
        assert_int_equal(ftell(x), ftell(y));
    }
    assert_int_equal(fclose(x), 0);
    assert_int_equal(fclose(y), 0);
    free(a);
    free(b);
}

static void streams_have_descriptors(void **state)
{
    (void)state;
    struct stat st;
    uint8_t bytes[16];
    FILE *file = fopen(packed_path, "re");
    assert_non_null(file);
    int fd = fileno(file);
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, plain_bytes);
    assert_int_equal(pread(fileno_unlocked(file), bytes, 16, 1000), 16);
    assert_memory_equal(bytes, plain + 1000, 16);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    fd = open(packed_path, O_RDONLY);
    assert_int_equal(lseek(fd, 555, SEEK_SET), 555);
    assert_non_null(file = fdopen(fd, "rb"));
    assert_int_equal(fread(bytes, 1, 16, file), 16);
    assert_memory_equal(bytes, plain + 555, 16);
    assert_int_equal(fileno(file), fd);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    fd = open(packed_path, O_RDONLY); /* so that the store stays open: it is the slots that are tried */
    for (int i = 0; i < 3000; i++) {
        assert_non_null(file = fopen(packed_path, "r"));
        fclose(file);
    }
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_to_open_shows_the_logical_file),
        cmocka_unit_test(relative_paths_links_and_proc_lead_to_it),
        cmocka_unit_test(other_files_are_left_alone),
        cmocka_unit_test(other_files_open_with_o_direct),
        cmocka_unit_test(a_packed_file_reads_right_with_o_direct),
        cmocka_unit_test(a_packed_file_is_not_opened_to_write_with_o_direct),
        cmocka_unit_test(opening_keeps_errno),
        cmocka_unit_test(every_way_to_ask_tells_the_logical_size),
        cmocka_unit_test(a_changed_file_is_looked_at_again),
        cmocka_unit_test(random_calls_do_what_they_do_on_the_plain_file),
        cmocka_unit_test(checked_forms_read_the_same),
        cmocka_unit_test(offsets_beyond_the_real_file_work),
        cmocka_unit_test(every_name_of_lseek_knows_the_logical_size),
        cmocka_unit_test(a_descriptor_closed_behind_our_back_is_noticed),
        cmocka_unit_test(ranges_of_descriptors_close),
        cmocka_unit_test(copies_inside_the_kernel_are_refused),
        cmocka_unit_test(truncating_by_path_empties_or_is_refused),
        cmocka_unit_test(random_stdio_does_what_it_does_on_the_plain_file),
        cmocka_unit_test(streams_have_descriptors),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, fixture_load, NULL);
}
