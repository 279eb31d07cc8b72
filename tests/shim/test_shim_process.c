/* Processes, signals and saving: what forks, starts programs, handles faults or overwrites the model it has mapped. */
#include "tests/support/hang.h"
#include "tests/store/no_ring.h"
#include "shim_fixture.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>

extern char **environ;

static uint8_t *map_all(const char *path)
{
    int fd = open(path, O_RDONLY);
    uint8_t *view = mmap(NULL, plain_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(fd >= 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    close(fd);
    return view;
}

static int status_of(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void a_forked_child_goes_on_with_views_and_descriptors(void **state)
{
    (void)state;
    uint8_t *view = map_all(packed_path), bytes[100];
    int fd = open(packed_path, O_RDONLY);
    FILE *file = fopen(packed_path, "rb");
    assert_int_equal(read(fd, bytes, 100), 100);
    assert_int_equal(fread(bytes, 1, 100, file), 100);
    memset(view + 5000000, 1, 10);
    pid_t child = fork();
    if (child == 0) {
        uint8_t *more = malloc(100000);
        int bad = memcmp(view, plain, 5000000) != 0 || view[5000009] != 1;
        bad |= memcmp(view + 5000010, plain + 5000010, plain_bytes - 5000010) != 0 ? 2 : 0;
        bad |= read(fd, more, 100000) != 100000 || memcmp(more, plain + 100, 100000) != 0 ? 4 : 0;
        bad |= fread(more, 1, 100000, file) != 100000 || memcmp(more, plain + 100, 100000) != 0 ? 8 : 0;
        int again = open(packed_path, O_RDONLY), twin = dup(fd);
        bad |= pread(again, more, 1000, 7000000) != 1000 || memcmp(more, plain + 7000000, 1000) != 0 ? 16 : 0;
        bad |= read(twin, more, 1000) != 1000 || memcmp(more, plain + 100100, 1000) != 0 ? 32 : 0;
        _exit(bad);
    }
    assert_int_equal(status_of(child), 0);
    assert_int_equal(read(fd, bytes, 100), 100); /* the offset is one for both */
    assert_memory_equal(bytes, plain + 101100, 100);
    assert_memory_equal(view, plain, 5000000);
    close(fd);
    fclose(file);
    munmap(view, plain_bytes);
}

/* Its reading threads, or its ring, stayed with the parent: which of them, the rung's CODEC_IO says
 * (CMakeLists.txt). */
static void a_forked_child_reads_on(void **state)
{
    (void)state;
    uint8_t bytes[100];
    int fd = open(packed_path, O_RDONLY);
    assert_int_equal(pread(fd, bytes, 100, 3000000), 100);
    pid_t child = fork();
    if (child == 0) {
        uint8_t *more = malloc(2000000);
        alarm(HANG_SECONDS);
        forbid_rings();
        _exit(pread(fd, more, 2000000, 1234567) != 2000000 || memcmp(more, plain + 1234567, 2000000) != 0);
    }
    assert_int_equal(status_of(child), 0);
    close(fd);
}

static atomic_bool stop;
static atomic_int reading; /* threads that have read once */
static int shared_fd;      /* both threads and the children read from it: a fork may find its lock taken */

/* AddressSanitizer's allocator, unlike the C library's, is not made whole in a child: one that allocates waits for ever
 * when another thread of the parent was allocating. So there the threads do not. */
#ifdef __SANITIZE_ADDRESS__
enum { SANITIZER_FORKS_LOCKED = 1 };
#else
enum { SANITIZER_FORKS_LOCKED = 0 };
#endif

static void *keep_reading(void *arg)
{
    uint8_t *bytes = malloc(300000);
    (void)arg;
    for (bool first = true; !stop; first = false) {
        if (first || !SANITIZER_FORKS_LOCKED) {
            int fd = open(packed_path, O_RDONLY);
            if (pread(fd, bytes, 300000, 1234567) != 300000 || memcmp(bytes, plain + 1234567, 300000) != 0)
                abort();
            close(fd);
        }
        if (pread(shared_fd, bytes, 300000, 2345678) != 300000 || memcmp(bytes, plain + 2345678, 300000) != 0)
            abort();
        reading += first;
    }
    free(bytes);
    return NULL;
}

static void fork_in_the_middle_of_reads_leaves_the_child_whole(void **state)
{
    (void)state;
    pthread_t threads[2];
    int fd = shared_fd = open(packed_path, O_RDONLY);
    stop = false;
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, keep_reading, NULL);
    while (reading < 2)
        usleep(1000);
    for (int round = 0; round < 30; round++) {
        pid_t child = fork();
        if (child == 0) {
            uint8_t bytes[5000];
            alarm(HANG_SECONDS);
            _exit(pread(fd, bytes, sizeof bytes, 3000000) != sizeof bytes ||
                  memcmp(bytes, plain + 3000000, sizeof bytes) != 0);
        }
        assert_int_equal(status_of(child), 0);
    }
    stop = true;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    close(fd);
}

/* Between vfork and exec the child has the parent's memory but its own descriptors. */
static void a_vforked_child_does_not_disturb_the_parent(void **state)
{
    (void)state;
    uint8_t bytes[100];
    int fd = open(packed_path, O_RDONLY), other = open(plain_path, O_RDONLY);
    pid_t child = vfork();
    if (child == 0) {
        close(fd);
        dup2(other, fd);
        close_range(3, ~0u, 0);
        _exit(0);
    }
    assert_int_equal(status_of(child), 0);
    assert_int_equal(read(fd, bytes, 100), 100);
    assert_memory_equal(bytes, plain, 100);
    assert_int_equal(lseek(fd, 0, SEEK_END), plain_bytes);
    close(fd);
    close(other);
}

/* Runs a shell command with `fd` as its standard input; its status. */
static int shell(int fd, const char *command)
{
    pid_t child;
    posix_spawn_file_actions_t actions;
    char *argv[] = {"sh", "-c", (char *)command, "sh", (char *)packed_path, (char *)plain_path, NULL};
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 0);
    assert_int_equal(posix_spawn(&child, "/bin/sh", &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return status_of(child);
}

static void programs_see_the_logical_file(void **state)
{
    (void)state;
    static const char *const commands[] = {
        "cmp \"$1\" \"$2\"",
        "cat \"$1\" | cmp - \"$2\"",
        "cp \"$1\" \"$1.cp.$$\" && cmp \"$1.cp.$$\" \"$2\"; s=$?; rm -f \"$1.cp.$$\"; exit $s",
        ("cp --reflink=auto --sparse=auto \"$1\" \"$1.cp.$$\" && cmp \"$1.cp.$$\" \"$2\"; s=$?; rm -f \"$1.cp.$$\"; "
         "exit $s"),
        "dd if=\"$1\" bs=100000 status=none | cmp - \"$2\"",
        "tail -c 1000 \"$1\" >\"$1.t.$$\"; tail -c 1000 \"$2\" | cmp - \"$1.t.$$\"; s=$?; rm -f \"$1.t.$$\"; exit $s",
        "test \"$(stat -c %s \"$1\")\" = \"$(stat -c %s \"$2\")\"",
        "test \"$(wc -c <\"$1\")\" = \"$(wc -c <\"$2\")\"",
        "cmp - \"$2\" <\"$1\"",
    };
    int null = open("/dev/null", O_RDONLY);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (shell(null, commands[i]) != 0)
            fail_msg("%s", commands[i]);
    close(null);
}

static void programs_read_with_o_direct(void **state)
{
    (void)state;
    static const char *const commands[] = {
        "dd if=\"$1\" iflag=direct bs=4096 status=none | cmp - \"$2\"",
        "dd if=\"$1\" iflag=direct bs=1M status=none | cmp - \"$2\"",
        "dd if=\"$2\" iflag=direct bs=1M status=none | cmp - \"$2\"",
    };
    int null = open("/dev/null", O_RDONLY),
        fd = (int)syscall(SYS_openat, AT_FDCWD, packed_path, O_RDONLY | O_DIRECT, 0);
    if (fd < 0)
        skip(); /* the file system has none */
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (shell(null, commands[i]) != 0)
            fail_msg("%s", commands[i]);
    assert_int_equal(shell(fd, "cmp - \"$2\""), 0); /* inherited so */
    close(fd);
    close(null);
}

static void an_inherited_descriptor_is_recognised(void **state)
{
    (void)state;
    uint8_t bytes[1000];
    int fd = open(packed_path, O_RDONLY);
    assert_int_equal(shell(fd, "cmp - \"$2\""), 0);
    assert_int_equal(read(fd, bytes, 1000), 0); /* the child has read it to its end: one offset */
    assert_int_equal(lseek(fd, 5000, SEEK_SET), 5000);
    assert_int_equal(
        shell(fd, "tail -c +5001 \"$2\" >\"$1.in.$$\"; cmp - \"$1.in.$$\"; s=$?; rm -f \"$1.in.$$\"; exit $s"), 0);
    close(fd);
}

/* --- signals ----------------------------------------------------------------------------------- */

static sigjmp_buf jump;
static volatile sig_atomic_t seen, seen_code;

static void on_fault(int signo, siginfo_t *info, void *context)
{
    (void)context;
    seen = signo;
    seen_code = info->si_code;
    siglongjmp(jump, 1);
}

static void on_plain(int signo) { seen = signo; }

static void a_program_keeps_its_own_handlers(void **state)
{
    (void)state;
    struct sigaction before, mine = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, got;
    uint8_t *view = map_all(packed_path);
    int *volatile nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_int_equal(sigaction(SIGSEGV, &mine, &before), 0);
    assert_int_equal(sigaction(SIGSEGV, NULL, &got), 0);
    assert_ptr_equal(got.sa_sigaction, on_fault);
    for (int round = 0; round < 3; round++) { /* a fault of the program's, between faults of views */
        madvise(view, plain_bytes, MADV_DONTNEED);
        assert_memory_equal(view, plain, plain_bytes);
        seen = 0;
        if (sigsetjmp(jump, 1) == 0)
            *nowhere = 1;
        assert_int_equal(seen, SIGSEGV);
        assert_true(seen_code > 0);
    }
    assert_ptr_equal(signal(SIGSEGV, on_plain), (void (*)(int))(void *)on_fault);
    seen = 0;
    raise(SIGSEGV);
    assert_int_equal(seen, SIGSEGV);
    assert_memory_equal(view, plain, 100000);
    assert_ptr_equal(sysv_signal(SIGSEGV, on_plain), on_plain); /* once */
    raise(SIGSEGV);
    assert_ptr_equal(signal(SIGSEGV, SIG_IGN), SIG_DFL);
    raise(SIGSEGV); /* ignored when sent */
    assert_int_equal(sigaction(SIGSEGV, &before, NULL), 0);
    munmap(nowhere, 4096);
    munmap(view, plain_bytes);
}

static void blocked_signals_do_not_stop_the_pager(void **state)
{
    (void)state;
    sigset_t all, before;
    uint8_t *view = map_all(packed_path);
    sigfillset(&all);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &all, &before), 0);
    assert_memory_equal(view, plain, plain_bytes);
    pid_t child = fork();
    if (child == 0)
        _exit(memcmp(view, plain, plain_bytes) != 0);
    assert_int_equal(status_of(child), 0);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    munmap(view, plain_bytes);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static void older_ways_to_block_and_ignore_do_not_stop_the_pager(void **state)
{
    (void)state;
    const int both = 1 << (SIGSEGV - 1) | 1 << (SIGBUS - 1);
    struct sigaction before[2];
    sigaction(SIGSEGV, NULL, &before[0]);
    sigaction(SIGBUS, NULL, &before[1]);
    for (int how = 0; how < 4; how++) {
        uint8_t *view = map_all(packed_path);
        int old = how == 0 ? sigblock(both) : how == 1 ? sigsetmask(both) : sigblock(0);
        if (how == 2)
            assert_int_equal(sighold(SIGSEGV) | sighold(SIGBUS), 0);
        if (how == 3)
            assert_int_equal(sigignore(SIGSEGV) | sigignore(SIGBUS), 0);
        assert_memory_equal(view, plain, plain_bytes);
        pid_t child = fork(); /* reads by the signal on every rung */
        if (child == 0)
            _exit(memcmp(view, plain, plain_bytes) != 0);
        assert_int_equal(status_of(child), 0);
        sigsetmask(old);
        munmap(view, plain_bytes);
    }
    sigaction(SIGSEGV, &before[0], NULL);
    sigaction(SIGBUS, &before[1], NULL);
}
#pragma GCC diagnostic pop

static void a_fault_of_the_program_ends_it_as_ever(void **state)
{
    (void)state;
    uint8_t *view = map_all(packed_path);
    int *volatile nowhere = (int *)8;
    for (int how = 0; how < 3; how++) {
        pid_t child = fork();
        if (child == 0) {
            signal(SIGSEGV, how == 1 ? SIG_IGN : SIG_DFL);
            if (view[12345] != plain[12345])
                _exit(1);
            if (how == 2)
                raise(SIGSEGV);
            else
                *nowhere = 1;
            _exit(2);
        }
        assert_int_equal(status_of(child), 1000 + SIGSEGV);
    }
    munmap(view, plain_bytes);
}

/* Flips one byte in the middle of the chunks. */
static void damage(const char *path)
{
    uint8_t byte;
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR, 0);
    off_t at = raw_file_bytes(path) / 2;
    assert_int_equal(syscall(SYS_pread64, fd, &byte, 1, at), 1);
    byte ^= 0x10;
    assert_int_equal(syscall(SYS_pwrite64, fd, &byte, 1, at), 1);
    syscall(SYS_close, fd);
}

static void damage_is_a_bus_error_or_a_failed_read(void **state)
{
    (void)state;
    char path[4200];
    uint8_t bytes[65536];
    packed_copy(path, sizeof path, "damaged");
    damage(path);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    ssize_t got;
    while ((got = read(fd, bytes, sizeof bytes)) > 0)
        ;
    assert_int_equal(got, -1);
    assert_int_equal(errno, EIO);
    FILE *file = fopen(path, "rb");
    while (fread(bytes, 1, sizeof bytes, file) > 0)
        ;
    assert_true(ferror(file));
    fclose(file);
    uint8_t *view = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        for (size_t at = 0; at < plain_bytes; at++)
            if (view[at] != plain[at])
                _exit(1);
        _exit(2);
    }
    assert_int_equal(status_of(child), 1000 + SIGBUS);
    struct sigaction before, mine = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    volatile size_t at = 0;
    sigaction(SIGBUS, &mine, &before);
    seen = 0;
    if (sigsetjmp(jump, 1) == 0)
        for (; at < plain_bytes && view[at] == plain[at]; at++)
            ;
    assert_int_equal(seen, SIGBUS);
    assert_true(at > 0 && at < plain_bytes);
    sigaction(SIGBUS, &before, NULL);
    int pair[2];
    assert_int_equal(pipe(pair), 0);
    assert_int_equal(write(pair[1], view + at, 100), -1);
    assert_int_equal(errno, EIO);
    close(pair[0]);
    close(pair[1]);
    munmap(view, plain_bytes);
    close(fd);
    unlink(path);
}

/* --- saving over the model in use --------------------------------------------------------------- */

static void overwriting_a_mapped_model_leaves_the_mapping_alone(void **state)
{
    (void)state;
    for (int how = 0; how < 5; how++) {
        char path[4200], link[4300];
        struct stat st;
        packed_copy(path, sizeof path, "overwritten");
        snprintf(link, sizeof link, "%s.link", path);
        assert_int_equal(chmod(path, 0640), 0);
        assert_int_equal(symlink(path, link), 0);
        uint8_t *view = map_all(path);
        int reader = open(path, O_RDONLY);
        const char *target = how == 3 ? link : path;
        if (how == 1) {
            FILE *file = fopen(target, "wb");
            assert_non_null(file);
            assert_int_equal(fwrite(view, 1, plain_bytes, file), plain_bytes);
            assert_int_equal(fclose(file), 0);
        } else {
            if (how == 4)
                assert_int_equal(truncate(target, 0), 0);
            int fd = how == 2   ? creat(target, 0600)
                     : how == 4 ? open(target, O_WRONLY)
                                : open(target, O_WRONLY | O_CREAT | O_TRUNC, 0600);
            assert_true(fd >= 0);
            assert_int_equal(write(fd, view, plain_bytes), plain_bytes);
            assert_int_equal(close(fd), 0);
        }
        assert_memory_equal(view, plain, plain_bytes);
        assert_int_equal(raw_file_bytes(path), plain_bytes);
        assert_int_equal(lstat(link, &st), 0);
        assert_true(S_ISLNK(st.st_mode));
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0640);
        uint8_t bytes[1000];
        assert_int_equal(pread(reader, bytes, 1000, 4000000), 1000); /* the old file */
        assert_memory_equal(bytes, plain + 4000000, 1000);
        close(reader);
        reader = open(path, O_RDONLY); /* the new one */
        assert_int_equal(pread(reader, bytes, 1000, 5000000), 1000);
        assert_memory_equal(bytes, plain + 5000000, 1000);
        close(reader);
        munmap(view, plain_bytes);
        unlink(path);
        unlink(link);
    }
}

static void replacing_and_removing_it_does_not_either(void **state)
{
    (void)state;
    char path[4200], fresh[4300];
    packed_copy(path, sizeof path, "replaced");
    snprintf(fresh, sizeof fresh, "%s.new", path);
    uint8_t *view = map_all(path);
    assert_memory_equal(view, plain, 4096);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, "new", 3), 3);
    close(fd);
    assert_int_equal(rename(fresh, path), 0);
    assert_memory_equal(view, plain, plain_bytes);
    unlink(path);
    madvise(view, plain_bytes, MADV_DONTNEED);
    assert_memory_equal(view, plain, plain_bytes);
    munmap(view, plain_bytes);
}

/* As daemons and spawners do. A closed userfaultfd would turn the pages that are still missing into zeros, silently. */
static void closing_every_descriptor_leaves_the_views_right(void **state)
{
    (void)state;
    uint8_t *view = map_all(packed_path);
    assert_memory_equal(view, plain, 100000);
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    assert_memory_equal(view + 2000000, plain + 2000000, 1000000);
    assert_int_equal(close_range(3, ~0u, 0), 0);
    assert_memory_equal(view + 4000000, plain + 4000000, 1000000);
    closefrom(3);
    for (int fd = 3; fd < 1024; fd++) {
        char name[40], target[60] = "";
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        if (readlink(name, target, sizeof target - 1) > 0 && strstr(target, "userfaultfd")) {
            assert_int_equal(dup2(0, fd), -1);
            assert_int_equal(errno, EBUSY);
        }
    }
    assert_memory_equal(view, plain, plain_bytes);
    munmap(view, plain_bytes);
    int fd = open(packed_path, O_RDONLY); /* the numbers that were the program's are free again */
    uint8_t bytes[100];
    assert_int_equal(pread(fd, bytes, 100, 5000000), 100);
    assert_memory_equal(bytes, plain + 5000000, 100);
    assert_int_equal(close(fd), 0);
    assert_int_equal(close(fd), -1);
}

static void counters_are_json(void **state)
{
    (void)state;
    size_t (*stats)(char *, size_t) = (size_t(*)(char *, size_t))dlsym(RTLD_DEFAULT, "codecllm_stats_json");
    char text[2048], expect[64], small[10];
    assert_non_null(stats);
    size_t len = stats(text, sizeof text);
    assert_int_equal(len, strlen(text));
    snprintf(expect, sizeof expect, "{\"rung\": \"%s\"", rung);
    assert_memory_equal(text, expect, strlen(expect));
    assert_non_null(strstr(text, "\"budget_bytes\": 2097152"));
    assert_non_null(strstr(text, "\"views\": 0"));
    assert_true(stats(small, sizeof small) >= len - 20);
    assert_int_equal(strlen(small), 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_forked_child_goes_on_with_views_and_descriptors),
        cmocka_unit_test(a_forked_child_reads_on),
        cmocka_unit_test(fork_in_the_middle_of_reads_leaves_the_child_whole),
        cmocka_unit_test(a_vforked_child_does_not_disturb_the_parent),
        cmocka_unit_test(programs_see_the_logical_file),
        cmocka_unit_test(programs_read_with_o_direct),
        cmocka_unit_test(an_inherited_descriptor_is_recognised),
        cmocka_unit_test(a_program_keeps_its_own_handlers),
        cmocka_unit_test(blocked_signals_do_not_stop_the_pager),
        cmocka_unit_test(older_ways_to_block_and_ignore_do_not_stop_the_pager),
        cmocka_unit_test(a_fault_of_the_program_ends_it_as_ever),
        cmocka_unit_test(damage_is_a_bus_error_or_a_failed_read),
        cmocka_unit_test(overwriting_a_mapped_model_leaves_the_mapping_alone),
        cmocka_unit_test(replacing_and_removing_it_does_not_either),
        cmocka_unit_test(closing_every_descriptor_leaves_the_views_right),
        cmocka_unit_test(counters_are_json),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, fixture_load, NULL);
}
