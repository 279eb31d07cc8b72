/* Calls on a store that are left by siglongjmp, interrupted by handlers that use the same store, or cancelled: nothing
 * is locked afterwards, bytes and offsets are right, no descriptor is left. What hangs is ended by the test's time
 * limit. */
#include "shim_fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum {
    LONG_READ = SANITIZED ? 5 << 19 : 4 << 20,
    SHORT_READ = 1000,
    ROUNDS = SANITIZED ? 3 : 16,
    FORK_ROUNDS = SANITIZED ? 2 : 6
};

static uint8_t *buffer; /* LONG_READ bytes */
/* address space for a view of the whole file, so that one that is left can be unmapped */
static uint8_t *place;
static size_t place_bytes;
static __thread uint64_t seed = 7;
static int fd = -1, other = -1;

/* Where a map decodes the whole file, fewer. */
static int rounds(int n) { return strcmp(rung, "eager") == 0 ? (n + 3) / 4 : n; }
static uint64_t below(uint64_t n) { return fixture_random(&seed) % n; }

/* Writes no memory of the C library's: for handlers. */
static void ensure(bool good, const char *what)
{
    if (good)
        return;
    (void)!syscall(SYS_write, 2, what, strlen(what));
    (void)!syscall(SYS_write, 2, "\n", 1);
    abort();
}

__attribute__((noinline)) static unsigned count_descriptors(void)
{
    unsigned count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static void check_reads(void)
{
    uint8_t small[SHORT_READ];
    for (int i = 0; i < 3; i++) {
        uint64_t at = below(plain_bytes - sizeof small);
        assert_int_equal(pread(fd, small, sizeof small, (off_t)at), sizeof small);
        assert_memory_equal(small, plain + at, sizeof small);
        assert_int_equal(pread(other, small, sizeof small, (off_t)at), sizeof small);
        assert_memory_equal(small, plain + at, sizeof small);
    }
    uint64_t bytes = 400000, at = below(plain_bytes - bytes);
    assert_int_equal(lseek(fd, (off_t)at, SEEK_SET), at);
    assert_int_equal(read(fd, buffer, bytes), bytes);
    assert_memory_equal(buffer, plain + at, bytes);
    assert_int_equal(lseek(fd, 0, SEEK_CUR), at + bytes);
}

static void check_view(void)
{
    uint8_t *view = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    uint64_t bytes = 300000, at = below(plain_bytes - bytes);
    assert_memory_equal(view + at, plain + at, bytes);
    assert_int_equal(munmap(view, plain_bytes), 0);
}

static int setup(void **state)
{
    if (fixture_load(state))
        return -1;
    fd = open(packed_path, O_RDONLY);
    other = open(packed_path, O_RDONLY);
    buffer = malloc(LONG_READ);
    place_bytes = (plain_bytes + 65535) / 65536 * 65536;
    place = mmap(NULL, place_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fd < 0 || other < 0 || !buffer || place == MAP_FAILED)
        return -1;
    check_reads(); /* what is made at the first read is made */
    check_view();
    return 0;
}

/* --- what is left or interrupted --------------------------------------------------------------------- */

static void do_read(void)
{
    lseek(fd, (off_t)below(plain_bytes), SEEK_SET);
    (void)!read(fd, buffer, LONG_READ);
}
static void do_pread(void) { (void)!pread(fd, buffer, 1 + below(LONG_READ), (off_t)below(plain_bytes)); }
static void do_small_pread(void) { (void)!pread(fd, buffer, 1 + below(5000), (off_t)below(plain_bytes)); }
static void do_readv(void)
{
    size_t cut = below(LONG_READ);
    struct iovec parts[] = {{buffer, cut}, {buffer + cut, LONG_READ - cut}};
    lseek(fd, 0, SEEK_SET);
    (void)!readv(fd, parts, 2);
    (void)!preadv(fd, parts, 2, 100);
}
static void do_stat(void)
{
    struct stat st;
    fstat(fd, &st);
    stat(packed_path, &st);
    ensure(st.st_size == (off_t)plain_bytes, "the size of a store is wrong");
}
/* The view lies where it can be found again. The place is never free, or memory that is not ours would come to lie
 * there. */
static void empty_place(size_t from, size_t to)
{
    void *at = mmap(place + from, to - from, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    ensure(at == place + from, "a view could not be replaced");
}

static void do_map(void)
{
    void *view = mmap(place, plain_bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    ensure(view == place, "a store could not be mapped");
    ensure(memcmp(place + 70000, plain + 70000, 100) == 0, "wrong bytes in a view");
    empty_place(0, place_bytes);
}
static void do_protect(void)
{
    void *view = mmap(place, plain_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
    ensure(view == place, "a store could not be mapped");
    ensure(memcmp(place + 70000, plain + 70000, 100) == 0, "wrong bytes in a view");
    mprotect(place, 65536, PROT_READ);
    madvise(place, 1 << 20, MADV_WILLNEED);
    madvise(place, 1 << 20, MADV_DONTNEED);
    empty_place(1 << 20, 2 << 20);
    empty_place(0, place_bytes);
}
static FILE *file;
static void do_fread(void)
{
    fseek(file, (long)below(plain_bytes), SEEK_SET);
    (void)!fread(buffer, 1, 1 << 20, file);
}
static void do_dup(void)
{
    enum { TO = 200 };
    uint8_t small[100];
    if (dup2(fd, TO) == TO) {
        ensure(pread(TO, small, sizeof small, 5000) == sizeof small && memcmp(small, plain + 5000, sizeof small) == 0,
               "wrong bytes of a duplicate");
        close(TO);
    }
}

static const struct {
    const char *name;
    void (*call)(void);
    bool asynchronous; /* may be cancelled at any instruction: its own C library calls may, too */
} calls[] = {
    {"read", do_read, true},       {"pread", do_pread, true},  {"small pread", do_small_pread, true},
    {"readv", do_readv, true},     {"stat", do_stat, true},    {"map", do_map, true},
    {"protect", do_protect, true}, {"fread", do_fread, false}, {"dup", do_dup, true},
};
enum { CALLS = sizeof calls / sizeof *calls };

static void begin_call(void)
{
    file = fopen(packed_path, "rb");
    assert_non_null(file);
    assert_int_equal(getc(file), plain[0]); /* its buffer is allocated: nothing below interrupts malloc */
}

static void check_after_call(void)
{
    close(200);
    empty_place(0, place_bytes);
    check_reads();
    check_view();
    fclose(file);
}

/* --- signals ----------------------------------------------------------------------------------------- */

static void set_timer(uint64_t us)
{
    struct itimerval t = {.it_value = {.tv_usec = (suseconds_t)us}};
    assert_int_equal(setitimer(ITIMER_REAL, &t, NULL), 0);
}

static void on_alarm(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
}

static sigjmp_buf out;
static void jump(int signo)
{
    (void)signo;
    siglongjmp(out, 1);
}

static void a_jump_leaves_nothing_behind(void **state)
{
    (void)state;
    unsigned descriptors = count_descriptors();
    on_alarm(jump);
    for (volatile int i = 0; i < CALLS; i++) {
        for (volatile int round = 0; round < rounds(ROUNDS); round++) {
            begin_call();
            uint64_t us = 1 + below(round % 2 ? 300 : 4000);
            if (sigsetjmp(out, 1) == 0) {
                set_timer(us);
                for (;;)
                    calls[i].call();
            }
            check_after_call();
        }
    }
    on_alarm(SIG_DFL);
    assert_int_equal(count_descriptors(), descriptors);
}

static void wait_for_timer(void)
{
    struct itimerval t;
    do
        getitimer(ITIMER_REAL, &t);
    while (t.it_value.tv_usec || t.it_value.tv_sec);
}

enum { HANDLED_MAX = 64 };
static uint8_t handled[HANDLED_MAX][SHORT_READ];
static volatile int handled_count;
static void read_on(int signo)
{
    (void)signo;
    ensure(handled_count < HANDLED_MAX && read(fd, handled[handled_count], SHORT_READ) == SHORT_READ,
           "a read in a handler failed");
    handled_count++;
}

/* The reads of a handler come before the one it interrupts, or behind it: each byte is read once. */
static bool order_is(uint64_t at, int before)
{
    if (memcmp(buffer, plain + at + (size_t)before * SHORT_READ, LONG_READ) != 0)
        return false;
    for (int i = 0; i < handled_count; i++)
        if (memcmp(handled[i], plain + at + (size_t)i * SHORT_READ + (i < before ? 0 : LONG_READ), SHORT_READ) != 0)
            return false;
    return true;
}

static void a_handler_reads_the_same_descriptor(void **state)
{
    (void)state;
    bool some = false;
    on_alarm(read_on);
    for (int round = 0; round < rounds(4 * ROUNDS); round++) {
        uint64_t at = below(plain_bytes - LONG_READ - HANDLED_MAX * SHORT_READ);
        handled_count = 0;
        memset(buffer, 0, LONG_READ);
        assert_int_equal(lseek(fd, (off_t)at, SEEK_SET), at);
        set_timer(1 + below(4000));
        assert_int_equal(read(fd, buffer, LONG_READ), LONG_READ);
        int during = handled_count;
        wait_for_timer();
        while (handled_count == 0)
            usleep(100);
        int before = 0;
        while (before <= handled_count && !order_is(at, before))
            before++;
        assert_true(before <= handled_count);
        assert_int_equal(lseek(fd, 0, SEEK_CUR), at + LONG_READ + (uint64_t)handled_count * SHORT_READ);
        some |= during > 0;
    }
    on_alarm(SIG_DFL);
    assert_true(some); /* or nothing was tested */
}

static void use_all(int signo)
{
    uint8_t small[SHORT_READ];
    struct stat st;
    int saved = errno;
    (void)signo;
    ensure(pread(fd, small, sizeof small, 4321) == sizeof small && memcmp(small, plain + 4321, sizeof small) == 0,
           "wrong bytes in a handler");
    ensure(pread(other, small, sizeof small, 1234567) == sizeof small &&
               memcmp(small, plain + 1234567, sizeof small) == 0,
           "wrong bytes in a handler");
    ensure(fstat(other, &st) == 0 && st.st_size == (off_t)plain_bytes, "a wrong size in a handler");
    errno = saved;
}

/* Each call again and again until the handler has run, `times` times: by turns at most so many microseconds later. */
static void interrupt_calls(void (*handler)(int), int times, unsigned soon, unsigned late)
{
    on_alarm(handler);
    for (int i = 0; i < CALLS; i++) {
        for (int round = 0; round < times; round++) {
            begin_call();
            set_timer(1 + below(round % 2 ? soon : late));
            struct itimerval t;
            do {
                calls[i].call();
                getitimer(ITIMER_REAL, &t);
            } while (t.it_value.tv_usec);
            check_after_call();
        }
    }
    on_alarm(SIG_DFL);
}

static void a_handler_uses_the_same_store(void **state)
{
    (void)state;
    unsigned descriptors = count_descriptors();
    interrupt_calls(use_all, rounds(ROUNDS), 300, 4000);
    assert_int_equal(count_descriptors(), descriptors);
}

/* A read that is interrupted while it allocates nothing: mapping does allocate, in a handler, too. */
static void map_in_handler(int signo)
{
    int saved = errno;
    (void)signo;
    void *view = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, other, 0);
    ensure(view != MAP_FAILED && memcmp((uint8_t *)view + 200000, plain + 200000, 1000) == 0,
           "wrong bytes in a view of a handler");
    munmap(view, plain_bytes);
    errno = saved;
}

static void a_handler_maps_the_store_that_is_read(void **state)
{
    (void)state;
    on_alarm(map_in_handler);
    for (int round = 0; round < rounds(ROUNDS); round++) {
        uint64_t at = below(plain_bytes - LONG_READ);
        set_timer(1 + below(4000));
        assert_int_equal(pread(fd, buffer, LONG_READ, (off_t)at), LONG_READ);
        assert_memory_equal(buffer, plain + at, LONG_READ);
        wait_for_timer();
    }
    on_alarm(SIG_DFL);
    check_reads();
}

#ifndef __SANITIZE_THREAD__ /* which cannot follow the forked children of a process with threads */
static void fork_in_handler(int signo)
{
    uint8_t small[SHORT_READ];
    int status = 0;
    pid_t child = fork();
    (void)signo;
    if (child == 0) {
        bool good = pread(fd, small, sizeof small, 1234567) == sizeof small &&
                    memcmp(small, plain + 1234567, sizeof small) == 0;
        _exit(good ? 0 : 3);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    ensure(child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child that a handler forked could not read");
}

static void a_handler_forks(void **state)
{
    (void)state;
    interrupt_calls(fork_in_handler, rounds(FORK_ROUNDS), 3000, 3000);
}
#endif

static void closed_by_a_handler(int signo)
{
    (void)signo;
    close(fd);
}

/* The descriptor's number stands for nothing, or for something else: the read ends with what it has. */
static void a_handler_closes_the_descriptor(void **state)
{
    (void)state;
    on_alarm(closed_by_a_handler);
    for (int round = 0; round < rounds(ROUNDS); round++) {
        uint64_t at = below(plain_bytes - LONG_READ);
        set_timer(1 + below(3000));
        ssize_t got = pread(fd, buffer, LONG_READ, (off_t)at);
        assert_true(got > 0 || (got == -1 && errno == EBADF));
        if (got > 0)
            assert_memory_equal(buffer, plain + at, (size_t)got);
        wait_for_timer();
        while (fcntl(fd, F_GETFD) >= 0)
            usleep(100);
        fd = open(packed_path, O_RDONLY);
        assert_true(fd >= 0);
        check_reads();
    }
    on_alarm(SIG_DFL);
}

/* --- cancellation ------------------------------------------------------------------------------------ */

static int call_index, cancel_type;
static atomic_bool calling;

static void *call_for_ever(void *arg)
{
    (void)arg;
    pthread_setcanceltype(cancel_type, NULL);
    atomic_store(&calling, true);
    for (;;) {
        calls[call_index].call();
        pthread_testcancel();
    }
    return NULL;
}

static void cancel_at_many_instants(int type)
{
    unsigned descriptors = count_descriptors();
    cancel_type = type;
    for (call_index = 0; call_index < CALLS; call_index++) {
        if (type == PTHREAD_CANCEL_ASYNCHRONOUS && !calls[call_index].asynchronous)
            continue;
        for (int round = 0; round < rounds(ROUNDS); round++) {
            pthread_t thread;
            void *result;
            begin_call();
            atomic_store(&calling, false);
            assert_int_equal(pthread_create(&thread, NULL, call_for_ever, NULL), 0);
            while (!atomic_load(&calling))
                sched_yield();
            usleep((useconds_t)below(round % 2 ? 300 : 4000));
            assert_int_equal(pthread_cancel(thread), 0);
            assert_int_equal(pthread_join(thread, &result), 0);
            assert_ptr_equal(result, PTHREAD_CANCELED);
            check_after_call();
        }
    }
    assert_int_equal(count_descriptors(), descriptors);
}

static void a_cancelled_thread_leaves_nothing_behind(void **state)
{
    (void)state;
    cancel_at_many_instants(PTHREAD_CANCEL_DEFERRED);
}

static void a_thread_cancelled_at_once_leaves_nothing_behind(void **state)
{
    (void)state;
    cancel_at_many_instants(PTHREAD_CANCEL_ASYNCHRONOUS);
}

static void *read_cancelled(void *arg)
{
    pthread_cancel(pthread_self());
    (void)!pread(fd, arg, 100, 0);
    return NULL;
}
static void *close_cancelled(void *arg)
{
    pthread_cancel(pthread_self());
    close(*(int *)arg);
    return NULL;
}

static void reads_and_closes_are_cancellation_points(void **state)
{
    (void)state;
    void *(*const bodies[])(void *) = {read_cancelled, close_cancelled};
    int mine = open(packed_path, O_RDONLY);
    uint8_t small[100] = {0};
    void *arguments[] = {small, &mine};
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        void *result;
        assert_int_equal(pthread_create(&thread, NULL, bodies[i], arguments[i]), 0);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_ptr_equal(result, PTHREAD_CANCELED);
    }
    /* Still open, so still a store. */
    assert_int_equal(pread(mine, small, sizeof small, 5000), sizeof small);
    assert_memory_equal(small, plain + 5000, sizeof small);
    assert_int_equal(close(mine), 0);
}

static void *receive_into(void *arg)
{
    int *ends = arg;
    atomic_store(&calling, true);
    (void)!read(ends[0], place, 65536);
    return NULL;
}
static void *send_from(void *arg)
{
    int *ends = arg;
    atomic_store(&calling, true);
    for (;;) /* until the pipe is full */
        (void)!write(ends[1], place + (1 << 20), 65536);
    return NULL;
}

/* What the kernel was given is held in memory, and let go. */
static void a_thread_cancelled_in_a_transfer_holds_nothing(void **state)
{
    void *(*const bodies[])(void *) = {receive_into, send_from};
    (void)state;
    if (strcmp(rung, "eager") == 0)
        return; /* no budget */
    assert_ptr_equal(mmap(place, plain_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0), place);
    for (int round = 0; round < 2 * 40; round++) {
        pthread_t thread;
        void *result;
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        atomic_store(&calling, false);
        assert_int_equal(pthread_create(&thread, NULL, bodies[round % 2], ends), 0);
        while (!atomic_load(&calling))
            sched_yield();
        usleep((useconds_t)below(2000));
        assert_int_equal(pthread_cancel(thread), 0);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_ptr_equal(result, PTHREAD_CANCELED);
        close(ends[0]);
        close(ends[1]);
    }
    /* What is held stays present when it is given up. Something else may bring it back, but not each time. */
    bool held = true;
    for (int i = 0; held && i < 100; i++) {
        unsigned char there[16];
        assert_int_equal(madvise(place, 2 << 20, MADV_DONTNEED), 0);
        assert_int_equal(syscall(SYS_mincore, place + (1 << 20), sizeof there * 4096, there), 0);
        held = false;
        for (size_t page = 0; page < sizeof there; page++)
            held |= there[page] & 1;
        usleep(1000);
    }
    assert_false(held);
    assert_memory_equal(place, plain, plain_bytes);
    empty_place(0, place_bytes);
}

/* --- the first view of a process --------------------------------------------------------------------- */

static void *map_cancelled(void *arg)
{
    int mine = open(packed_path, O_RDONLY);
    pthread_cancel(pthread_self());
    void *view = mmap(NULL, 65536, PROT_READ, MAP_PRIVATE, mine, 0);
    (void)arg;
    if (view != MAP_FAILED)
        munmap(view, 65536);
    pthread_testcancel();
    return NULL;
}

static int first_view(const char *how)
{
    if (fixture_load(NULL))
        return 2;
    if (strcmp(how, "cancel") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, map_cancelled, NULL);
        pthread_join(thread, NULL);
    } else {
        int mine = open(packed_path, O_RDONLY);
        on_alarm(jump);
        if (sigsetjmp(out, 1) == 0) {
            set_timer((uint64_t)atoi(how));
            (void)!mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, mine, 0);
            for (;;)
                usleep(1000); /* where ThreadSanitizer delivers signals */
        }
    }
    int again = open(packed_path, O_RDONLY);
    uint8_t *view = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, again, 0);
    return view != MAP_FAILED && memcmp(view, plain, plain_bytes) == 0 ? 0 : 3;
}

static void the_first_view_can_be_left(void **state)
{
    extern char **environ;
    (void)state;
    setenv("CODEC_VERBOSE", "1", 1);
    for (int round = 0; round < rounds(FORK_ROUNDS); round++) {
        char how[32];
        snprintf(how, sizeof how, "%u", 1 + (unsigned)below(5000));
        char *arguments[] = {"test_shim_leave", round == 0 ? "cancel" : how, NULL};
        pid_t child;
        int status;
        posix_spawn_file_actions_t quiet;
        posix_spawn_file_actions_init(&quiet);
        posix_spawn_file_actions_addopen(&quiet, 2, "/dev/null", O_WRONLY, 0);
        assert_int_equal(posix_spawn(&child, "/proc/self/exe", &quiet, NULL, arguments, environ), 0);
        posix_spawn_file_actions_destroy(&quiet);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    unsetenv("CODEC_VERBOSE");
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        packed_path = getenv("CWS_SHIM_PACKED");
        plain_path = getenv("CWS_SHIM_PLAIN");
        return first_view(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_jump_leaves_nothing_behind),
        cmocka_unit_test(a_handler_reads_the_same_descriptor),
        cmocka_unit_test(a_handler_uses_the_same_store),
        cmocka_unit_test(a_handler_maps_the_store_that_is_read),
#ifndef __SANITIZE_THREAD__
        cmocka_unit_test(a_handler_forks),
#endif
        cmocka_unit_test(a_handler_closes_the_descriptor),
        cmocka_unit_test(a_cancelled_thread_leaves_nothing_behind),
        cmocka_unit_test(a_thread_cancelled_at_once_leaves_nothing_behind),
        cmocka_unit_test(reads_and_closes_are_cancellation_points),
        cmocka_unit_test(a_thread_cancelled_in_a_transfer_holds_nothing),
        cmocka_unit_test(the_first_view_can_be_left),
    };
    int code = fixture_start();
    return code ? code : cmocka_run_group_tests(tests, setup, NULL);
}
