/* Description: under the shim, a fault of a view takes nothing of a small stack but the kernel's frame, whatever the
 * decoder needs; and a program's handlers for SIGSEGV and SIGBUS are called on the stack that they ask for, with
 * nothing of ours below the kernel's frame. */
#include "shim_fixture.h"
#include "tests/host/small_stack.h"
#include "tests/support/hang.h"

#include <pthread.h>
#include <sys/wait.h>

static uint8_t *view;

static uint8_t *map_all(const char *path)
{
    int fd = open(path, O_RDONLY);
    uint8_t *at = mmap(NULL, plain_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(fd >= 0);
    assert_ptr_not_equal(at, MAP_FAILED);
    close(fd);
    return at;
}

static int map_view(void **state)
{
    (void)state;
    (void)kernel_frame_bytes();
    view = map_all(packed_path);
    return 0;
}

static int unmap_view(void **state)
{
    (void)state;
    use_as_alternate(NULL);
    return munmap(view, plain_bytes);
}

static int status_of(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* The test library's handlers are the program's for the shim, and ask for the ordinary stack. */
static void forget_handlers(void)
{
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
}

static bool differs(void) { return memcmp(view, plain, plain_bytes) != 0; }
/* The sigsegv rung pages so here, and every child but the eager rung's. */
static bool pages_by_signal(bool child)
{
    return strcmp(rung, "sigsegv") == 0 || (child && strcmp(rung, "eager") != 0);
}

static void a_decode_takes_nothing_of_a_small_alternate_stack(void **state)
{
    (void)state;
    struct small_stack s = small_stack_new(least_stack_bytes());
    forget_handlers();
    use_as_alternate(&s);
    for (int child = 0; child < 2; child++) {
        memset(s.low, PAINT, (size_t)(s.top - s.low));
        if (!child) {
            assert_false(differs());
            view[5000000] = plain[5000000];
            assert_only_the_frame_was_put_on(&s, 1);
            assert_int_equal(small_stack_used(&s) != 0, pages_by_signal(false));
            continue;
        }
        pid_t pid = fork();
        if (pid == 0) {
            int bad = differs();
            view[7000000] = plain[7000000];
            size_t used = small_stack_used(&s);
            _exit(bad                                          ? 1
                  : used > kernel_frame_bytes() + OURS_AT_MOST ? 2
                  : (used != 0) != pages_by_signal(true)       ? 3
                                                               : 0);
        }
        assert_int_equal(status_of(pid), 0);
    }
    use_as_alternate(NULL);
    small_stack_free(&s);
}

static void *read_in_a_thread(void *arg)
{
    struct small_stack s = small_stack_new(least_stack_bytes());
    uint64_t seed = (uint64_t)(uintptr_t)arg;
    bool bad = false;
    use_as_alternate(&s);
    for (int i = 0; i < (SANITIZED ? 10 : 60); i++) {
        size_t at = fixture_random(&seed) % (plain_bytes - 1000);
        bad |= memcmp(view + at, plain + at, 1000) != 0;
    }
    bad |= small_stack_used(&s) > kernel_frame_bytes() + OURS_AT_MOST;
    use_as_alternate(NULL);
    small_stack_free(&s);
    return bad ? arg : NULL;
}

static int run_threads(void)
{
    enum { THREADS = 40 };
    pthread_t threads[THREADS];
    int bad = 0;
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, read_in_a_thread, (void *)(i + 1)) != 0)
            return -1;
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        bad += result != NULL;
    }
    return bad;
}

static void many_threads_with_small_stacks_read_right(void **state)
{
    (void)state;
    forget_handlers();
    assert_int_equal(run_threads(), 0);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(100);
        _exit(run_threads());
    }
    assert_int_equal(status_of(pid), 0);
}

/* --- the program's own handlers ------------------------------------------------------------------------ */

static struct small_stack stack;
static sigjmp_buf jump;
static volatile size_t depth; /* of the handler's frame below the top; 0: it ran on another stack */
static volatile int calls, blocked[4];

static void on_fault(int signo, siginfo_t *info, void *context)
{
    sigset_t now;
    uint8_t *frame = __builtin_frame_address(0);
    (void)info, (void)context;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &now, 8);
    calls++;
    depth = small_stack_holds(&stack, frame) ? (size_t)(stack.top - frame) : 0;
    blocked[0] = sigismember(&now, SIGSEGV);
    blocked[1] = sigismember(&now, SIGBUS);
    blocked[2] = sigismember(&now, SIGUSR1);
    blocked[3] = sigismember(&now, SIGUSR2);
    siglongjmp(jump, signo);
}

/* As a function that returns, `volatile` is not needed for what is left by the jump. */
static int faults_at(volatile uint8_t *at)
{
    int signo = sigsetjmp(jump, 1);
    if (signo == 0)
        *at = 1;
    return signo;
}

static void check_handler(int signo, volatile uint8_t *at, int flags)
{
    struct sigaction mine = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | flags}, got;
    sigemptyset(&mine.sa_mask);
    sigaddset(&mine.sa_mask, SIGUSR1);
    assert_int_equal(sigaction(signo, &mine, NULL), 0);
    assert_int_equal(sigaction(signo, NULL, &got), 0);
    assert_int_equal(got.sa_flags & (SA_ONSTACK | SA_NODEFER), flags & (SA_ONSTACK | SA_NODEFER));
    for (int round = 0; round < 70; round++) { /* each leaves by a jump */
        int before = calls;
        assert_int_equal(faults_at(at), signo);
        assert_int_equal(calls, before + 1);
        if (flags & SA_ONSTACK)
            assert_in_range(depth, 1, kernel_frame_bytes() + 256 + (OURS_AT_MOST - 1024));
        else
            assert_int_equal(depth, 0);
        assert_int_equal(blocked[signo == SIGBUS], !(flags & SA_NODEFER));
        assert_int_equal(blocked[signo == SIGSEGV], 0);
        assert_int_equal(blocked[2], 1);
        assert_int_equal(blocked[3], 0);
        assert_memory_equal(view + (size_t)round * 100000, plain + (size_t)round * 100000, 1000);
    }
    assert_int_equal(sigaction(signo, &(struct sigaction){.sa_handler = SIG_DFL}, NULL), 0);
}

static void check_handlers(void)
{
    static const int flags[] = {SA_ONSTACK, 0, SA_ONSTACK | SA_NODEFER, SA_NODEFER | SA_RESTART};
    uint8_t *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int hole = memfd_create("hole", 0);
    uint8_t *beyond = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, hole, 0);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        check_handler(SIGSEGV, nowhere, flags[i]);
        check_handler(SIGBUS, beyond, flags[i]);
    }
    munmap(nowhere, 4096);
    munmap(beyond, 4096);
    close(hole);
}

static void a_programs_handler_runs_where_the_kernel_would_have_called_it(void **state)
{
    (void)state;
    stack = small_stack_new(2 * least_stack_bytes() + 8192);
    use_as_alternate(&stack);
    check_handlers();
    assert_true(small_stack_used(&stack) <= (size_t)(stack.top - stack.low));
    pid_t pid = fork();
    if (pid == 0) {
        /* a failed check ends in exit() or a jump into the parent's list of tests: not 42 */
        check_handlers();
        _exit(42);
    }
    assert_int_equal(status_of(pid), 42);
    use_as_alternate(NULL);
    small_stack_free(&stack);
}

static void a_stack_that_is_too_small_ends_with_a_line(void **state)
{
    (void)state;
    unsigned lines = 0, right = 0;
    size_t frame = kernel_frame_bytes();
    forget_handlers();
    for (size_t bytes = frame + 64; bytes < frame + 2048; bytes += 320) {
        char text[1024] = "";
        int fds[2];
        struct small_stack s = small_stack_new(bytes);
        stack_t alternate = {.ss_sp = s.low, .ss_size = bytes};
        assert_int_equal(pipe(fds), 0);
        pid_t pid = fork();
        if (pid == 0) {
            dup2(fds[1], 2);
            signal(SIGABRT, SIG_DFL);
            if (sigaltstack(&alternate, NULL) != 0)
                _exit(0); /* the kernel says so */
            _exit(differs());
        }
        close(fds[1]);
        for (size_t got = 0, n = 1; n > 0 && n < sizeof text; got += n) /* a sanitizer says something first */
            n = (size_t)read(fds[0], text + got, sizeof text - 1 - got);
        close(fds[0]);
        int status = status_of(pid);
        if (status == 1000 + SIGABRT && strstr(text, "alternate signal stack") && strchr(text, '\n'))
            lines++;
        else if (status == 0)
            right++;
        else
            fail_msg("a stack of %zu bytes (the frame is %zu): status %d, \"%s\"", bytes, frame, status, text);
        small_stack_free(&s);
    }
    assert_true(right > 0);
    if (pages_by_signal(true) && !SANITIZED)
        assert_true(lines > 0);
}

/* --- handlers of other signals, with SIGSEGV and SIGBUS in their masks ------------------------------- */

static const uint8_t *volatile touched_at;
static volatile int touched_right;

static void touch_in_a_handler(int signo)
{
    (void)signo;
    size_t at = (size_t)(touched_at - view);
    touched_right += memcmp(view + at, plain + at, 100) == 0;
}

static int set_full(int signo)
{
    struct sigaction full = {.sa_handler = touch_in_a_handler};
    sigfillset(&full.sa_mask);
    return sigaction(signo, &full, NULL);
}

static bool is_full(int signo)
{
    struct sigaction now;
    return sigaction(signo, NULL, &now) == 0 && sigismember(&now.sa_mask, SIGSEGV) == 1 &&
           sigismember(&now.sa_mask, SIGBUS) == 1;
}

static int touch_by(int signo, size_t at)
{
    int before = touched_right;
    touched_at = view + at;
    raise(signo);
    return touched_right - before;
}

static void a_handler_that_masks_our_signals_touches_absent_pages(void **state)
{
    (void)state;
    assert_int_equal(set_full(SIGUSR2), 0);
    assert_true(is_full(SIGUSR1) && is_full(SIGUSR2)); /* one set before anything was mapped, one now */
    assert_int_equal(touch_by(SIGUSR1, 3000000), 1);
    assert_int_equal(touch_by(SIGUSR2, 4000000), 1);
    if (!SANITIZED || strcmp(rung, "sigsegv") == 0) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(touch_by(SIGUSR1, 6000000) == 1 && touch_by(SIGUSR2, 7000000) == 1 && is_full(SIGUSR1) ? 0 : 1);
        assert_int_equal(status_of(pid), 0);
    }
    signal(SIGUSR1, SIG_DFL);
    struct sigaction now;
    assert_int_equal(sigaction(SIGUSR1, NULL, &now), 0);
    assert_int_equal(sigismember(&now.sa_mask, SIGSEGV), 0);
    signal(SIGUSR2, SIG_DFL);
}

/* --- forks beside a thread that sets actions --------------------------------------------------------- */

static volatile bool stop;

static void *set_again_and_again(void *arg)
{
    while (!stop)
        set_full(SIGUSR2);
    return arg;
}

/* 1000 + SIGKILL: it hung. */
static int status_in_time(pid_t child)
{
    for (unsigned i = 0; i < HANG_SECONDS * 1000; i++) {
        int status;
        if (waitpid(child, &status, WNOHANG) == child)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
        usleep(1000);
    }
    kill(child, SIGKILL); /* which alone gets through where all signals are blocked */
    return status_of(child);
}

static void a_child_forked_beside_a_thread_that_sets_actions_sets_its_own(void **state)
{
    (void)state;
    pthread_t thread;
    if (SANITIZED) /* whose allocator may be locked in such a child */
        return;
    stop = false;
    assert_int_equal(pthread_create(&thread, NULL, set_again_and_again, NULL), 0);
    for (int i = 0; i < 500; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(set_full(SIGUSR1) || set_full(SIGBUS) ? 1 : 0);
        assert_int_equal(status_in_time(pid), 0);
    }
    stop = true;
    assert_int_equal(pthread_join(thread, NULL), 0);
    signal(SIGUSR2, SIG_DFL);
}

int main(void)
{
    set_full(SIGUSR1);
    int code = fixture_start();
    if (code)
        return code;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_decode_takes_nothing_of_a_small_alternate_stack, map_view, unmap_view),
        cmocka_unit_test_setup_teardown(many_threads_with_small_stacks_read_right, map_view, unmap_view),
        cmocka_unit_test_setup_teardown(a_programs_handler_runs_where_the_kernel_would_have_called_it, map_view,
                                        unmap_view),
        cmocka_unit_test_setup_teardown(a_stack_that_is_too_small_ends_with_a_line, map_view, unmap_view),
        cmocka_unit_test_setup_teardown(a_handler_that_masks_our_signals_touches_absent_pages, map_view, unmap_view),
        cmocka_unit_test_setup_teardown(a_child_forked_beside_a_thread_that_sets_actions_sets_its_own, map_view,
                                        unmap_view),
    };
    return cmocka_run_group_tests_name("shim_signal", tests, fixture_load, NULL);
}
