/* Description: models of very many files, and very many mappings of one: descriptors of ours do not use up the
 * program's, mappings at the limit can still be unmapped, and what cannot be had is one line. */
#include "shim_fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { FILES = 600, VIEWS_LIMIT = 32768 };

static uint8_t *views[FILES];

static void make_files(unsigned count)
{
    char path[4200];
    for (unsigned i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s.many.%d.%u", packed_path, (int)getpid(), i);
        raw_copy(packed_path, path);
    }
}

static void remove_files(unsigned count)
{
    char path[4200];
    for (unsigned i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s.many.%d.%u", packed_path, (int)getpid(), i);
        unlink(path);
    }
}

/* MAP_FAILED with errno of the call that failed. */
static uint8_t *map_file(unsigned i)
{
    char path[4200], front[8];
    snprintf(path, sizeof path, "%s.many.%d.%u", packed_path, (int)getpid(), i);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return MAP_FAILED;
    assert_int_equal(read(fd, front, sizeof front), sizeof front); /* as loaders do */
    uint8_t *at = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    close(fd);
    errno = why;
    return at;
}

static void unmap_files(unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(munmap(views[i], plain_bytes), 0);
}

static void set_limit(rlim_t soft, rlim_t hard)
{
    const struct rlimit limit = {soft, hard};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static unsigned open_below(int end)
{
    unsigned count = 0;
    for (int fd = 0; fd < end; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* --- descriptors --------------------------------------------------------------------------------- */

/* A soft limit of 64, as low as they come: ours go above it. */
static void ours_do_not_count_against_the_soft_limit(void **state)
{
    (void)state;
    enum { SOFT = 64, COUNT = 256 };
    struct rlimit was, now;
    getrlimit(RLIMIT_NOFILE, &was);
    if (was.rlim_max < 1024)
        skip();
    make_files(COUNT);
    set_limit(SOFT, was.rlim_max);
    for (unsigned i = 0; i < COUNT; i++)
        assert_ptr_not_equal(views[i] = map_file(i), MAP_FAILED);
    getrlimit(RLIMIT_NOFILE, &now);
    assert_int_equal(now.rlim_cur, SOFT);
    assert_int_equal(now.rlim_max, was.rlim_max);
    assert_true(open_below(SOFT) < SOFT / 2);
    close_range(3, ~0u, 0); /* as a program does that starts anew */
    int fd = open("/dev/null", O_RDONLY);
    assert_in_range(fd, 3, SOFT - 1);
    close(fd);
    for (unsigned i = 0; i < COUNT; i++)
        assert_memory_equal(views[i], plain, plain_bytes);
    unmap_files(COUNT);
    set_limit(was.rlim_cur, was.rlim_max);
    remove_files(COUNT);
}

/* The program has used up its own: what is only looked at still needs none of them. */
static void a_program_at_its_limit_maps_what_it_has_open(void **state)
{
    (void)state;
    enum { SOFT = 64 };
    int fds[SOFT], count = 0;
    struct rlimit was;
    getrlimit(RLIMIT_NOFILE, &was);
    if (was.rlim_max < 1024)
        skip();
    set_limit(SOFT, was.rlim_max);
    while (count < SOFT && (fds[count] = open("/dev/null", O_RDONLY)) >= 0)
        count++;
    assert_int_equal(errno, EMFILE);
    struct stat st;
    assert_int_equal(stat(packed_path, &st), 0);
    assert_int_equal(st.st_size, plain_bytes);
    close(fds[--count]);
    int fd = open(packed_path, O_RDONLY); /* the last number */
    assert_true(fd >= 0);
    uint8_t *at = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_ptr_not_equal(at, MAP_FAILED);
    assert_memory_equal(at, plain, plain_bytes);
    munmap(at, plain_bytes);
    close(fd);
    while (count)
        close(fds[--count]);
    set_limit(was.rlim_cur, was.rlim_max);
}

static atomic_uint wrong;
static void *churn(void *arg)
{
    uint64_t random = (uintptr_t)arg;
    for (unsigned i = 0; i < (SANITIZED ? 60 : 300); i++) {
        unsigned file = (unsigned)(fixture_random(&random) % 300);
        uint8_t *at = map_file(file);
        if (at == MAP_FAILED || memcmp(at, plain, plain_bytes) != 0)
            atomic_fetch_add(&wrong, 1);
        unsigned other = (unsigned)(fixture_random(&random) % FILES);
        if (memcmp(views[other], plain, plain_bytes) != 0)
            atomic_fetch_add(&wrong, 1);
        if (at != MAP_FAILED && munmap(at, plain_bytes) != 0)
            atomic_fetch_add(&wrong, 1);
    }
    return NULL;
}

/* 600 files where no more than 1024 descriptors may be open, hard: one for each file, and a bounded number beside. */
static void hundreds_of_files_load_within_a_hard_limit(void **state)
{
    (void)state;
    pthread_t threads[4];
    make_files(FILES);
    set_limit(1024, 1024);
    for (unsigned i = 0; i < FILES; i++)
        assert_ptr_not_equal(views[i] = map_file(i), MAP_FAILED);
    assert_true(open_below(1024) <= FILES + 64 + 40);
    for (unsigned i = 0; i < FILES; i++)
        assert_memory_equal(views[i], plain, plain_bytes);
    for (uintptr_t i = 0; i < 4; i++) /* views that share come and go while others are read */
        assert_int_equal(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&wrong), 0);
#ifndef __SANITIZE_THREAD__ /* which cannot follow the forked children of a process with threads */
    pid_t child = fork();
    if (child == 0) {
        for (unsigned i = 0; i < FILES; i++)
            if (memcmp(views[i], plain, plain_bytes) != 0)
                _exit(1);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
#endif
    for (unsigned i = 0; i < FILES; i++)
        assert_memory_equal(views[i], plain, plain_bytes);
    unmap_files(FILES);
    assert_true(open_below(1024) < 40);
    remove_files(FILES);
}

/* What a call writes to stderr. */
static int caught_fd = -1, real_stderr = -1;
static void catch_stderr(void)
{
    caught_fd = memfd_create("stderr", MFD_CLOEXEC);
    real_stderr = dup(2);
    dup2(caught_fd, 2);
}
static void caught(char *text, size_t bytes)
{
    dup2(real_stderr, 2);
    ssize_t got = pread(caught_fd, text, bytes - 1, 0);
    text[got < 0 ? 0 : got] = '\0';
    close(caught_fd);
    close(real_stderr);
}

static void too_many_files_are_one_line_that_says_what_to_do(void **state)
{
    (void)state;
    enum { LIMIT = 128 };
    char text[4096];
    unsigned count = 0, before = open_below(LIMIT);
    make_files(LIMIT);
    catch_stderr();
    set_limit(LIMIT, LIMIT);
    while (count < LIMIT && (views[count] = map_file(count)) != MAP_FAILED)
        count++;
    int why = errno;
    caught(text, sizeof text);
    assert_int_equal(why, EMFILE);
    assert_in_range(count, 20, LIMIT - 1);
    if (!strstr(text, "ulimit -n") || strchr(text, '\n') != text + strlen(text) - 1)
        fail_msg("said: %s", text);
    for (unsigned i = 0; i < count; i++)
        assert_memory_equal(views[i], plain, plain_bytes);
    unmap_files(count);
    assert_int_equal(open_below(LIMIT), before);
    remove_files(LIMIT);
}

/* --- mappings ------------------------------------------------------------------------------------ */

static bool has_room_for_mappings(void)
{
    long max = 0;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "r");
    bool known = file && fscanf(file, "%ld", &max) == 1;
    if (file)
        fclose(file);
    return known && max >= 65000;
}

static void at_the_limit_whole_mappings_can_be_unmapped(void **state)
{
    (void)state;
    static uint8_t *pieces[VIEWS_LIMIT];
    char text[4096];
    if (SANITIZED || !has_room_for_mappings())
        skip();
    int fd = open(packed_path, O_RDONLY);
    uint8_t *large = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_ptr_not_equal(large, MAP_FAILED);
    for (unsigned i = 0; i < VIEWS_LIMIT - 1; i++)
        assert_ptr_not_equal(pieces[i] = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 4096), MAP_FAILED);
    catch_stderr();
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0), MAP_FAILED);
    int why = errno;
    caught(text, sizeof text);
    assert_int_equal(why, ENOMEM);
    assert_non_null(strstr(text, "32768 mappings"));
    assert_int_equal(munmap(large + 4096, 4096), -1); /* two where there was one: no room */
    assert_int_equal(errno, ENOMEM);
    assert_memory_equal(large, plain, plain_bytes);
    for (unsigned i = 0; i < VIEWS_LIMIT - 1; i += 97)
        assert_memory_equal(pieces[i], plain + 4096, 4096);
    assert_int_equal(munmap(large, 4096), 0); /* an end of it needs no room */
    assert_int_equal(munmap(pieces[0], 4096), 0);
    assert_int_equal(munmap(large + 8192, 4096), 0);
    assert_memory_equal(large + 4096, plain + 4096, 4096);
    assert_memory_equal(large + 12288, plain + 12288, plain_bytes - 12288);
    for (unsigned i = 1; i < VIEWS_LIMIT - 1; i++)
        assert_int_equal(munmap(pieces[i], 4096), 0);
    assert_int_equal(munmap(large, plain_bytes), 0);
    uint8_t *again = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_memory_equal(again, plain, plain_bytes);
    munmap(again, plain_bytes);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ours_do_not_count_against_the_soft_limit),
        cmocka_unit_test(a_program_at_its_limit_maps_what_it_has_open),
        cmocka_unit_test(at_the_limit_whole_mappings_can_be_unmapped),
        cmocka_unit_test(hundreds_of_files_load_within_a_hard_limit), /* these lower the hard limit */
        cmocka_unit_test(too_many_files_are_one_line_that_says_what_to_do),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, fixture_load, NULL);
}
