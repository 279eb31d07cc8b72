/* Description: the budget of views changes under the preloaded library while the program runs; what cannot be is
 * refused with one line; sleep drops what is in memory; and what is read stays right. */
#include "shim_fixture.h"
#include "ask_budget.h"
#include "store/base/control.h"

#include <dlfcn.h>
#include <sys/wait.h>

static uint8_t *view;

static unsigned long long stat_of(const char *name)
{
    size_t (*json)(char *, size_t) = (size_t(*)(char *, size_t))dlsym(RTLD_DEFAULT, "codecllm_stats_json");
    char text[4096], key[64];
    assert_true(json(text, sizeof text) < sizeof text);
    snprintf(key, sizeof key, "\"%s\": ", name);
    const char *at = strstr(text, key);
    assert_non_null(at);
    return strtoull(at + strlen(key), NULL, 10);
}

static bool is_eager(void) { return rung && strcmp(rung, "eager") == 0; }

static void set_to(const char *text, unsigned long long bytes)
{
    if (call_set(text))
        fail_msg("%s: %s", text, line);
    assert_int_equal(stat_of("budget_bytes"), bytes);
    assert_true(stat_of("resident_bytes") <= bytes);
    assert_memory_equal(view, plain, plain_bytes);
    assert_true(stat_of("resident_bytes") <= bytes);
}

static void refused(const char *text, const char *why)
{
    unsigned long long before = stat_of("budget_bytes");
    assert_true(call_set(text) < 0);
    if (!strstr(line, why) || strchr(line, '\n'))
        fail_msg("%s: %s", text, line);
    assert_int_equal(stat_of("budget_bytes"), before);
}

/* This program once more: before_a_store, with this variable. */
static int run_again(const char *variable, const char *size)
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("CODEC_VRAM_BUDGET", variable, 1);
        execl("/proc/self/exe", "test_shim_budget", size, (char *)NULL);
        _exit(99);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

/* Before a store is mapped it is what the pager begins with. */
static void it_may_come_before_the_first_store(void **state)
{
    (void)state;
    assert_int_equal(run_again("2M", "7M"), 0);
}

/* Every machine has more than twice the end of the range. */
static void auto_is_half_of_what_is_free(void **state)
{
    (void)state;
    assert_int_equal(run_again("auto:2M-7M", ""), 0);
}

static int map(void **state)
{
    if (fixture_load(state))
        return -1;
    int fd = open(packed_path, O_RDONLY);
    view = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    return view == MAP_FAILED ? -1 : 0;
}

static int before_a_store(const char *size)
{
    packed_path = getenv("CWS_SHIM_PACKED");
    plain_path = getenv("CWS_SHIM_PLAIN");
    if ((*size && call_set(size)) || stat_of("budget_bytes") != 7 << 20 || map(NULL))
        return 1;
    return stat_of("budget_bytes") == 7 << 20 && memcmp(view, plain, plain_bytes) == 0 ? 0 : 2;
}

static void it_follows(void **state)
{
    (void)state;
    if (is_eager()) {
        refused("4M", "decoded whole");
        return;
    }
    set_to("1M", 1 << 20);
    set_to("16M", 16 << 20);
    assert_true(stat_of("resident_bytes") > 9 << 20);
    set_to("0:3M,1:1G", 3 << 20);
    set_to("2M", 2 << 20);
}

static void what_cannot_be_is_one_line(void **state)
{
    (void)state;
    refused("", "not understood");
    refused("2 GB", "not understood");
    refused("0", "not understood");
    if (!is_eager())
        refused("1048575", "the least is 1048576");
}

static void sleep_drops_all(void **state)
{
    (void)state;
    assert_memory_equal(view, plain, plain_bytes);
    for (unsigned i = 0; i < 1000; i++) { /* what a worker begins just now comes once more */
        assert_int_equal(call("codecllm_sleep"), 0);
        if (is_eager() || stat_of("resident_bytes") == 0)
            break;
        usleep(1000); /* and it may be slow, beside other work */
    }
    if (!is_eager())
        assert_int_equal(stat_of("resident_bytes"), 0);
    assert_int_equal(call("codecllm_wake"), 0);
    assert_memory_equal(view, plain, plain_bytes);
}

static void a_child_has_its_own(void **state)
{
    (void)state;
    unsigned long long before = stat_of("budget_bytes");
    int status;
    if (is_eager())
        skip();
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(call_set("1M") == 0 && memcmp(view, plain, plain_bytes) == 0 && stat_of("budget_bytes") == 1 << 20 ? 0
                                                                                                                 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(stat_of("budget_bytes"), before);
}

/* --- from outside --------------------------------------------------------------------------------------- */

static char said[4096];

static void expect_said(int status, int want, const char *part)
{
    if (status != want || !strstr(said, part))
        fail_msg("exit status %d, said: %s", status, said);
    assert_true(said[strlen(said) - 1] == '\n' && strchr(said, '\n') == said + strlen(said) - 1); /* one line */
}

static void the_command_sees_and_changes_it(void **state)
{
    (void)state;
    const int self = (int)getpid();
    expect_said(ask_budget(self, NULL, said, sizeof said), 0, "host  budget  2.00 MiB  used");
    if (is_eager()) {
        expect_said(ask_budget(self, "3M", said, sizeof said), 2, "decoded whole");
        return;
    }
    expect_said(ask_budget(self, "3M", said, sizeof said), 0, "host  budget  3.00 MiB  used");
    assert_int_equal(stat_of("budget_bytes"), 3 << 20);
    expect_said(ask_budget(self, "1000000", said, sizeof said), 1, "the least is 1048576; it stays at 3145728");
    assert_int_equal(stat_of("budget_bytes"), 3 << 20);
    assert_memory_equal(view, plain, plain_bytes);
    set_to("2M", 2 << 20);
}

static void top_sees_its_counters(void **state)
{
    (void)state;
    static char later[32768], first[32768];
    assert_memory_equal(view, plain, plain_bytes);
    if (ask_top((int)getpid(), first, sizeof first) != 0 || !strstr(first, "\"device\": \"host\""))
        fail_msg("%s", first);
    assert_int_equal(number_in(first, "budget"), stat_of("budget_bytes"));
    assert_int_equal(number_in(first, "weights_in_all"), stat_of("mapped_bytes"));
    assert_true(number_in(first, "decoded_bytes") > 0);
    assert_memory_equal(view, plain, plain_bytes);
    assert_int_equal(ask_top((int)getpid(), later, sizeof later), 0);
    if (!is_eager())
        assert_true(number_in(later, "decoded_bytes") > number_in(first, "decoded_bytes"));
}

/* Waits until it is let end; has changed its mind about nothing. */
static pid_t forked(int *hold)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(ends[1]);
        _exit(read(ends[0], &byte, 1) == 0 && memcmp(view, plain, plain_bytes) == 0 ? 0 : 1);
    }
    close(ends[0]);
    *hold = ends[1];
    return child;
}

static void a_forked_child_does_not_answer(void **state)
{
    (void)state;
    int hold, status;
    pid_t child = forked(&hold);
    expect_said(ask_budget((int)child, NULL, said, sizeof said), 2, "nothing is paged there");
    expect_said(ask_budget((int)getpid(), NULL, said, sizeof said), 0, "host  budget  2.00 MiB");
    close(hold);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    expect_said(ask_budget((int)child, NULL, said, sizeof said), 2, "no such process");
}

/* The process forks while it answers: the child has the connection, too, and does not keep the client waiting. */
static void a_fork_meanwhile_holds_nobody_up(void **state)
{
    (void)state;
    const struct timeval most = {.tv_sec = 5};
    struct sockaddr_un address;
    socklen_t size = cws_control_address((int)getpid(), &address);
    int hold, status, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ssize_t n;
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, size), 0);
    usleep(50000); /* it has been let in */
    pid_t child = forked(&hold);
    assert_int_equal(send(fd, "get\n", 4, MSG_NOSIGNAL), 4);
    while ((n = recv(fd, said, sizeof said, 0)) > 0) {
    }
    assert_int_equal(n, 0); /* the end, while the child lives */
    close(fd);
    close(hold);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* A client that speaks for itself: what it gets for this line. */
static void speak(const char *request, char *answer, size_t room)
{
    struct sockaddr_un address;
    socklen_t size = cws_control_address((int)getppid(), &address);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    size_t got = 0;
    ssize_t n;
    answer[0] = '\0';
    if (connect(fd, (struct sockaddr *)&address, size) != 0)
        return;
    send(fd, request, strlen(request), MSG_NOSIGNAL); /* may come too late for an answer that is there already */
    shutdown(fd, SHUT_WR);
    while ((n = recv(fd, answer + got, room - 1 - got, 0)) > 0)
        got += (size_t)n;
    answer[got] = '\0';
    close(fd);
}

static int stranger(void)
{
    char answer[512];
    if (getuid() != 0 || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
        return 77;
    speak("set 1M\n", answer, sizeof answer);
    if (strncmp(answer, "error -13 only root and the user", 32) != 0)
        return 1;
    speak("stats\n", answer, sizeof answer);
    return strncmp(answer, "error -13 only root and the user", 32) == 0 ? 0 : 2;
}

static int garbage(void)
{
    static char answer[4096], long_one[4000];
    memset(long_one, 'x', sizeof long_one - 1);
    speak(long_one, answer, sizeof answer); /* longer than a line may be */
    if (answer[0])
        return 1;
    speak("", answer, sizeof answer); /* nothing */
    if (answer[0])
        return 2;
    speak("hello\n", answer, sizeof answer);
    if (strncmp(answer, "error -10050 ", 13) != 0)
        return 3;
    speak("set nonsense\n", answer, sizeof answer);
    if (strncmp(answer, "error -10050 a budget of 'nonsense': not understood", 50) != 0)
        return 4;
    speak("get\n", answer, sizeof answer);
    return strncmp(answer, "host 2097152 ", 13) == 0 && strstr(answer, "\nend\n") ? 0 : 5;
}

static int in_process(int (*client)(void))
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(client());
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void others_may_not_ask(void **state)
{
    (void)state;
    int status = in_process(stranger);
    if (status == 77) /* only root can be somebody else */
        skip();
    assert_int_equal(status, 0);
    assert_int_equal(stat_of("budget_bytes"), 2 << 20);
}

static void clients_that_talk_nonsense_do_no_harm(void **state)
{
    (void)state;
    assert_int_equal(in_process(garbage), 0);
}

/* The name of a process that does not page, taken by another one. */
static void who_listens_in_anothers_place_is_not_asked(void **state)
{
    (void)state;
    struct sockaddr_un address;
    int hold, status, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pid_t child = forked(&hold);
    socklen_t size = cws_control_address((int)child, &address);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(fd, 1), 0);
    expect_said(ask_budget((int)child, "1M", said, sizeof said), 2, "listens in its place, and was not asked");
    close(fd);
    close(hold);
    assert_int_equal(waitpid(child, &status, 0), child);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return before_a_store(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_may_come_before_the_first_store),
        cmocka_unit_test(auto_is_half_of_what_is_free),
        cmocka_unit_test(it_follows),
        cmocka_unit_test(what_cannot_be_is_one_line),
        cmocka_unit_test(sleep_drops_all),
        cmocka_unit_test(a_child_has_its_own),
        cmocka_unit_test(the_command_sees_and_changes_it),
        cmocka_unit_test(top_sees_its_counters),
        cmocka_unit_test(a_forked_child_does_not_answer),
        cmocka_unit_test(a_fork_meanwhile_holds_nobody_up),
        cmocka_unit_test(others_may_not_ask),
        cmocka_unit_test(clients_that_talk_nonsense_do_no_harm),
        cmocka_unit_test(who_listens_in_anothers_place_is_not_asked),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, map, NULL);
}
