/* Description: where pages come by SIGSEGV (the sigsegv rung, forked children of every rung), nothing but the kernel's
 * frame lies on the program's stack, however small that is, and a fault that is no view's reaches the program's handler
 * as the kernel would have called it. */
#include "pattern_source.h"
#include "small_stack.h"
#include "uvm/host/signal_stack.h"

#include <alloca.h>
#include <pthread.h>
#include <sys/wait.h>
#include <ucontext.h>

/* ThreadSanitizer cannot follow the forked children of a process with threads, and calls handlers with every signal
 * blocked. */
#ifdef __SANITIZE_THREAD__
enum { TSAN = 1 };
#else
enum { TSAN = 0 };
#endif

static struct pattern *p;
static uint8_t *at;
#define BYTES (6 * MIB)

/* The test library's own handlers would be taken for the program's. */
static void begin_with(uint64_t corrupt_begin, uint64_t corrupt_end)
{
    signal(SIGSEGV, SIG_DFL);
    start_pager(2 * MIB);
    if (cws_view_needs_signal())
        assert_int_equal(cws_signal_install(), 0);
    p = pattern_new(BYTES, MIB);
    atomic_store(&p->corrupt_begin, corrupt_begin);
    atomic_store(&p->corrupt_end, corrupt_end);
    at = map_view(p, BYTES, PROT_READ | PROT_WRITE, 0);
}

static void begin(void) { begin_with(0, 0); }

static void end(void)
{
    unmap_view(at, BYTES);
    pattern_free(p);
    stop_pager();
}

/* In a child: no assertions. */
static int exit_status(void (*body)(void))
{
    int status = -1;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        body();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void read_all(void)
{
    if (pattern_differs(p, at, BYTES, 0) != -1)
        _exit(3);
}

static void read_and_write(void)
{
    read_all();
    for (size_t i = 0; i < BYTES; i += 300 * KIB) { /* a write fault, and a first touch that writes */
        at[i] = 1;
        if (at[i] != 1)
            _exit(4);
        at[i] = pattern_byte(p, i);
    }
    read_all();
}

/* --- alternate stacks --------------------------------------------------------------------------------- */

static struct small_stack child_stack;

static void read_and_write_on_a_small_one(void)
{
    read_and_write();
    size_t used = small_stack_used(&child_stack);
    /* 6: no fault came that way */
    _exit(used > kernel_frame_bytes() + OURS_AT_MOST ? 5 : used == 0 ? 6 : 0);
}

static void an_alternate_stack_of_the_least_size_is_enough(void **state)
{
    (void)state;
    begin();
    (void)kernel_frame_bytes();
    struct small_stack s = child_stack = small_stack_new(least_stack_bytes());
    use_as_alternate(&s);
    read_and_write();
    assert_only_the_frame_was_put_on(&s, 1);
    assert_true(small_stack_used(&s) > 0 || !cws_view_needs_signal());
    memset(s.low, PAINT, (size_t)(s.top - s.low));
    int status = exit_status(read_and_write_on_a_small_one);
    if (rung_is("eager"))
        assert_true(status == 6 << 8);
    else
        assert_int_equal(status, 0);
    use_as_alternate(NULL);
    small_stack_free(&s);
    end();
}

static void write_to_a_failed_block(void *arg)
{
    (void)arg;
    *(volatile uint8_t *)(at + 3 * MIB) = 1;
}

static sigjmp_buf jump;
static struct small_stack handlers_stack;
static volatile size_t used_at_call;

static void jump_back(int signo)
{
    used_at_call = small_stack_used(&handlers_stack); /* a sanitizer's siglongjmp takes more of it */
    siglongjmp(jump, signo);
}

/* Lines are made on our stack, too. */
static void the_line_of_a_failed_block_is_not_made_there(void **state)
{
    (void)state;
    char text[1024];
    begin_with(3 * MIB, 3 * MIB + 1);
    handlers_stack = small_stack_new(2 * least_stack_bytes());
    struct sigaction action = {.sa_handler = jump_back, .sa_flags = SA_ONSTACK}, before;
    use_as_alternate(&handlers_stack);
    assert_int_equal(sigaction(SIGBUS, &action, &before), 0);
    int got = sigsetjmp(jump, 1);
    if (!got)
        write_to_a_failed_block(NULL);
    assert_int_equal(got, SIGBUS);
    assert_in_range(used_at_call, 1, kernel_frame_bytes() + OURS_AT_MOST);
    signal(SIGBUS, SIG_DFL);
    int status = in_child(write_to_a_failed_block, NULL, text, sizeof text);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    assert_int_equal(sigaction(SIGBUS, &before, NULL), 0);
    use_as_alternate(NULL);
    small_stack_free(&handlers_stack);
    end();
}

static void touch_once(void *arg)
{
    (void)arg;
    _exit(*(volatile uint8_t *)(at + 4 * MIB) != pattern_byte(p, 4 * MIB));
}

/* Whatever the size: right bytes, or a line. */
static void a_stack_that_is_too_small_ends_with_a_line(void **state)
{
    (void)state;
    unsigned right = 0, lines = 0;
    begin();
    size_t frame = kernel_frame_bytes();
    for (size_t bytes = frame + 64; bytes < frame + 2048; bytes += 96) {
        char text[1024];
        struct small_stack s = small_stack_new(bytes);
        stack_t stack = {.ss_sp = s.low, .ss_size = bytes};
        assert_int_equal(mprotect(s.map, s.map_bytes - GUARD_BYTES - (bytes + PAGE - 1) / PAGE * PAGE, PROT_NONE), 0);
        if (sigaltstack(&stack, NULL) == 0) { /* else the kernel says that it is too small */
            int status = in_child(touch_once, NULL, text, sizeof text);
            bool line = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && strstr(text, "alternate signal stack") &&
                        strchr(text, '\n');
            if (status != 0 && !line)
                fail_msg("a stack of %zu bytes (the frame is %zu): status %#x, \"%s\"", bytes, frame, (unsigned)status,
                         text);
            right += status == 0;
            lines += line;
        }
        use_as_alternate(NULL);
        small_stack_free(&s);
    }
    assert_true(right > 0);
    if (!rung_is("eager") && OURS_AT_MOST == 1024)
        assert_true(lines > 0);
    end();
}

/* --- other small stacks ------------------------------------------------------------------------------- */

static void on_user_signal(int signo)
{
    (void)signo;
    read_and_write();
}

static void a_handler_on_the_alternate_stack_may_fault(void **state)
{
    (void)state;
    if (TSAN)
        skip();
    begin();
    struct small_stack s = small_stack_new(2 * least_stack_bytes() + 1024);
    struct sigaction action = {.sa_handler = on_user_signal, .sa_flags = SA_ONSTACK}, before;
    use_as_alternate(&s);
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    raise(SIGUSR1);
    assert_only_the_frame_was_put_on(&s, 2);
    assert_int_equal(sigaction(SIGUSR1, &before, NULL), 0);
    use_as_alternate(NULL);
    small_stack_free(&s);
    end();
}

static ucontext_t caller, other;
static _Atomic int coroutine_done;

static void coroutine(void)
{
    for (size_t i = 0; i < BYTES; i += 64 * KIB) {
        if (((volatile uint8_t *)at)[i] != pattern_byte(p, i))
            return;
        swapcontext(&other, &caller); /* back and forth, while it goes on */
    }
    coroutine_done = 1;
}

static void resume_to_the_end(void)
{
    struct small_stack s = small_stack_new(kernel_frame_bytes() + 2 * OURS_AT_MOST + 1024);
    coroutine_done = 0;
    getcontext(&other);
    other.uc_stack = (stack_t){.ss_sp = s.low, .ss_size = (size_t)(s.top - s.low)};
    other.uc_link = &caller;
    makecontext(&other, coroutine, 0);
    for (size_t i = 0; i <= BYTES; i += 64 * KIB)
        if (!coroutine_done)
            swapcontext(&caller, &other);
    if (!coroutine_done || small_stack_used(&s) > (size_t)(s.top - s.low))
        _exit(7);
    small_stack_free(&s);
}

static void a_coroutine_with_a_small_stack_may_fault(void **state)
{
    (void)state;
    begin();
    (void)kernel_frame_bytes();
    resume_to_the_end();
    assert_int_equal(exit_status(resume_to_the_end), 0);
    end();
}

/* Touches with little more than a frame left above `low`. */
static __attribute__((noinline)) void *touch_near_the_end(void *low)
{
    size_t keep = kernel_frame_bytes() + 2 * OURS_AT_MOST + 512,
           here = (size_t)((uint8_t *)__builtin_frame_address(0) - (uint8_t *)low);
    volatile uint8_t *room = alloca(here > keep ? here - keep : 1);
    room[0] = 1;
    for (size_t i = 0; i < BYTES; i += 64 * KIB)
        if (((volatile uint8_t *)at)[i] != pattern_byte(p, i))
            return NULL;
    return low;
}

static void a_thread_near_the_end_of_its_stack_may_fault(void **state)
{
    (void)state;
    begin();
    (void)kernel_frame_bytes();
    /* with room for a sanitizer's thread-local memory */
    struct small_stack s = small_stack_new(32 * GUARD_BYTES);
    pthread_attr_t attr;
    pthread_t thread;
    void *result = NULL;
    pthread_attr_init(&attr);
    assert_int_equal(pthread_attr_setstack(&attr, s.low, (size_t)(s.top - s.low)), 0);
    assert_int_equal(pthread_create(&thread, &attr, touch_near_the_end, s.low), 0);
    pthread_join(thread, &result);
    assert_ptr_equal(result, s.low);
    assert_true(small_stack_used(&s) <= (size_t)(s.top - s.low));
    pthread_attr_destroy(&attr);
    small_stack_free(&s);
    end();
}

/* --- many threads ------------------------------------------------------------------------------------- */

enum { THREADS = CWS_SIGNAL_STACKS + 12 }; /* more than can be served at once */

static _Atomic int wrong, forks_left;

static void child_of_a_thread(void)
{
    alarm(60);
    read_and_write();
}

static void *touch_with_a_small_stack(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg + 1;
    struct small_stack s = small_stack_new(least_stack_bytes());
    use_as_alternate(&s);
    for (int i = 0; i < 40; i++) {
        size_t offset = next_random(&seed) % (BYTES - 64);
        if (pattern_differs(p, at + offset, 64, offset) != -1)
            wrong++;
        at[offset / PAGE * PAGE] ^= 0;
    }
    if (atomic_fetch_sub(&forks_left, 1) > 0 && exit_status(child_of_a_thread) != 0)
        wrong++;
    size_t used = small_stack_used(&s);
    if (used > kernel_frame_bytes() + OURS_AT_MOST)
        wrong += 1000;
    use_as_alternate(NULL);
    small_stack_free(&s);
    return NULL;
}

static void run_threads(void)
{
    pthread_t threads[THREADS];
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 1 << 18);
    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], &attr, touch_with_a_small_stack, (void *)i) != 0)
            _exit(8);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_attr_destroy(&attr);
}

static void run_threads_in_a_child(void)
{
    wrong = 0;
    run_threads();
    if (wrong)
        _exit(9);
}

static void more_threads_than_stacks_are_served_and_may_fork(void **state)
{
    (void)state;
    begin();
    (void)kernel_frame_bytes();
    wrong = 0;
    forks_left = TSAN ? 0 : 5;
    run_threads();
    assert_int_equal(wrong, 0);
    forks_left = 0;
    if (!TSAN)
        assert_int_equal(exit_status(run_threads_in_a_child), 0);
    end();
}

/* --- the program's own handler ------------------------------------------------------------------------ */

static volatile int called, was_on_alternate, was_blocked[3];

static void on_own_fault(int signo, siginfo_t *info, void *context)
{
    sigset_t now;
    (void)info, (void)context;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    called++;
    was_on_alternate = small_stack_holds(&handlers_stack, __builtin_frame_address(0));
    was_blocked[0] = sigismember(&now, SIGSEGV);
    was_blocked[1] = sigismember(&now, SIGUSR1);
    was_blocked[2] = sigismember(&now, SIGUSR2);
    siglongjmp(jump, signo);
}

static void a_fault_of_the_program_reaches_its_handler_on_its_stack(void **state)
{
    (void)state;
    struct sigaction before;
    int *volatile nowhere = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    handlers_stack = small_stack_new(2 * least_stack_bytes() + 4096);
    use_as_alternate(&handlers_stack);
    sigaction(SIGSEGV, NULL, &before);
    const int flags[] = {SA_ONSTACK, 0, SA_ONSTACK | SA_NODEFER};
    for (size_t how = 0; how < sizeof flags / sizeof *flags; how++) {
        begin();
        struct sigaction mine = {.sa_sigaction = on_own_fault, .sa_flags = SA_SIGINFO | flags[how]};
        sigemptyset(&mine.sa_mask);
        sigaddset(&mine.sa_mask, SIGUSR1);
        assert_int_equal(sigaction(SIGSEGV, &mine, NULL), 0);
        if (cws_view_needs_signal())
            assert_int_equal(cws_signal_install(), 0);
        called = 0;
        for (volatile int round = 0; round < 3 * CWS_SIGNAL_STACKS; round++) { /* the jump leaves no stack behind */
            if (round % 16 == 0)
                read_all();
            if (sigsetjmp(jump, 1) == 0)
                *nowhere = 1;
            assert_int_equal(called, round + 1);
            assert_int_equal(was_on_alternate, (flags[how] & SA_ONSTACK) != 0);
            assert_int_equal(was_blocked[0] || TSAN, !(flags[how] & SA_NODEFER) || TSAN);
            assert_int_equal(was_blocked[1], 1);
            assert_int_equal(was_blocked[2] && !TSAN, 0);
        }
        assert_true(small_stack_used(&handlers_stack) <= (size_t)(handlers_stack.top - handlers_stack.low));
        signal(SIGSEGV, SIG_DFL);
        end();
    }
    sigaction(SIGSEGV, &before, NULL);
    use_as_alternate(NULL);
    small_stack_free(&handlers_stack);
    munmap(nowhere, PAGE);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        cmocka_unit_test(an_alternate_stack_of_the_least_size_is_enough),
        cmocka_unit_test(the_line_of_a_failed_block_is_not_made_there),
        cmocka_unit_test(a_stack_that_is_too_small_ends_with_a_line),
        cmocka_unit_test(a_handler_on_the_alternate_stack_may_fault),
        cmocka_unit_test(a_coroutine_with_a_small_stack_may_fault),
        cmocka_unit_test(a_thread_near_the_end_of_its_stack_may_fault),
        cmocka_unit_test(more_threads_than_stacks_are_served_and_may_fork),
        cmocka_unit_test(a_fault_of_the_program_reaches_its_handler_on_its_stack),
    };
    return cmocka_run_group_tests_name("view_stack", list, NULL, NULL);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
