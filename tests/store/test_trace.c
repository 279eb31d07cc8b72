/* Description: the trace's file: what many threads record comes out once, in order and balanced; names of any bytes;
 * after kill -9; fork, a second process, files that cannot or must not be written, a full disk at every write, a ring
 * that is full, a signal handler that records. */
#include "tests/support/inject.h"
#include "tests/support/sample_model.h"
#include "store/base/trace.h"
#include "tests/support/trace_file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char said[512];
static _Atomic unsigned lines_said;
static void say(const char *line)
{
    snprintf(said, sizeof said, "%s", line);
    atomic_fetch_add(&lines_said, 1);
}

static void start(const char *path)
{
    struct cws_error err = {0};
    said[0] = '\0';
    atomic_store(&lines_said, 0);
    if (cws_trace_start(path, say, &err))
        fail_msg("%s", err.message);
    assert_true(cws_trace_is_on());
}

static void one_span(const char *tensor, uint64_t index)
{
    bool outer = CWS_TRACE_BEGIN(.kind = CWS_TRACE_FAULT, .tensor = tensor, .why = "read", .bytes = 100,
                                 .tensor_bytes = 200, .index = index);
    bool inner = CWS_TRACE_BEGIN(.kind = CWS_TRACE_DECODE, .tensor = tensor, .bytes = 100, .index = UINT64_MAX);
    cws_trace_end(CWS_TRACE_DECODE, inner);
    cws_trace_end(CWS_TRACE_FAULT, outer);
}

/* How many ends of spans the file has so far. */
static unsigned ends_in(const char *path)
{
    char line[1024];
    unsigned count = 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        count += strstr(line, "\"ph\":\"E\"") != NULL;
    if (f)
        fclose(f);
    return count;
}

static void off_means_nothing(void **state)
{
    (void)state;
    assert_false(cws_trace_is_on());
    one_span("w", 0);
    cws_trace_stop();
}

static void what_is_recorded_comes_out(void **state)
{
    (void)state;
    const char *path = sample_path("plain.json");
    start(path);
    one_span("model.layers.0.weight", 7);
    cws_trace_span(cws_trace_lane(1, CWS_LANE_LOAD, 2), 5000000, 7500250,
                   &(const struct cws_trace_what){.kind = CWS_TRACE_LOAD, .tensor = "w", .bytes = 5, .index = 1});
    CWS_TRACE_MARK(.kind = CWS_TRACE_CYCLE, .index = 3);
    cws_trace_count(-1, 10, 20);
    cws_trace_count(0, 30, 40);
    cws_trace_stop();
    assert_false(cws_trace_is_on());
    json_t *events = trace_load(path, getpid(), true), *e = trace_event(events, "fault", 'B', 0);
    assert_string_equal(trace_text(e, "tensor"), "model.layers.0.weight");
    assert_string_equal(trace_text(e, "why"), "read");
    assert_int_equal(trace_number(e, "block"), 7);
    assert_int_equal(trace_number(e, "bytes"), 100);
    assert_int_equal(trace_number(e, "tensor_bytes"), 200);
    assert_int_equal(json_integer_value(json_object_get(e, "tid")), gettid());
    assert_int_equal(trace_number(trace_event(events, "decode", 'B', 0), "chunk"), -1);
    e = trace_event(events, "load", 'X', 0);
    assert_true(json_number_value(json_object_get(e, "ts")) == 5000.0);
    assert_true(json_number_value(json_object_get(e, "dur")) == 2500.25);
    long long lane = json_integer_value(json_object_get(e, "tid"));
    bool named = false;
    for (size_t i = 0; (e = trace_event(events, "thread_name", 'M', i)) != NULL; i++)
        named |= json_integer_value(json_object_get(e, "tid")) == lane &&
                 strcmp(trace_text(e, "name"), "GPU 1 load 2") == 0;
    assert_true(named);
    assert_int_equal(trace_number(trace_event(events, "cycle", 'i', 0), "number"), 3);
    assert_int_equal(trace_number(trace_event(events, "views in memory", 'C', 0), "fixed"), 20);
    assert_int_equal(trace_number(trace_event(events, "GPU 0 memory", 'C', 0), "weights"), 30);
    assert_int_equal(atomic_load(&lines_said), 0);
    json_decref(events);
}

static void any_name_is_a_string(void **state)
{
    (void)state;
    static const struct {
        const char *name, *expected;
    } rows[] = {
        {"a\"b\\c/d", "a\"b\\c/d"},
        {"t\x01\n\x7f", "t\x01\n\x7f"},
        {"\xd1\x84.\xe2\x82\xac.\xf0\x9f\x98\x80", "\xd1\x84.\xe2\x82\xac.\xf0\x9f\x98\x80"},
        {"\xff\xc0\x80\xed\xa0\x80\xe2\x82",
         "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    };
    char name[1000];
    memset(name, 1, sizeof name - 1); /* six bytes each in the file */
    name[sizeof name - 1] = '\0';
    const char *path = sample_path("names.json");
    start(path);
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++)
        one_span(rows[i].name, i);
    for (unsigned i = 0; i < 500; i++)
        one_span(name, i);
    cws_trace_stop();
    json_t *events = trace_load(path, getpid(), true);
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_string_equal(trace_text(trace_event(events, "fault", 'B', i), "tensor"), rows[i].expected);
    const char *cut = trace_text(trace_event(events, "fault", 'B', 100), "tensor");
    assert_int_equal(strlen(cut), 185);
    assert_string_equal(cut + 182, "...");
    json_decref(events);
}

enum { THREADS = 6, SPANS = 300 };
static void *record_many(void *arg)
{
    for (unsigned i = 0; i < SPANS; i++)
        one_span(arg, i);
    return NULL;
}

static void threads_do_not_mix(void **state)
{
    (void)state;
    static char names[THREADS][16];
    pthread_t threads[THREADS];
    const char *path = sample_path("threads.json");
    start(path);
    for (unsigned i = 0; i < THREADS; i++) {
        snprintf(names[i], sizeof names[i], "w%u", i);
        assert_int_equal(pthread_create(&threads[i], NULL, record_many, names[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cws_trace_stop();
    json_t *events = trace_load(path, getpid(), true), *e;
    unsigned next[THREADS] = {0};
    size_t i;
    json_array_foreach(events, i, e)
    {
        if (strcmp(json_string_value(json_object_get(e, "ph")), "B") != 0 ||
            strcmp(json_string_value(json_object_get(e, "name")), "fault") != 0)
            continue;
        unsigned of = (unsigned)(trace_text(e, "tensor")[1] - '0');
        assert_int_equal(trace_number(e, "block"), next[of]++);
    }
    for (i = 0; i < THREADS; i++)
        assert_int_equal(next[i], SPANS);
    assert_null(trace_event(events, "lost", 'i', 0));
    json_decref(events);
}

/* More than the ring holds, faster than it is written. */
static void *flood(void *arg)
{
    for (unsigned i = 0; i < 40000; i++)
        one_span(arg, i);
    return NULL;
}

static void a_full_ring_loses_whole_spans_and_says_so(void **state)
{
    (void)state;
    pthread_t threads[3];
    const char *path = sample_path("flood.json");
    start(path);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, flood, "w"), 0);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    cws_trace_stop();
    json_t *events = trace_load(path, getpid(), true), *e;
    size_t i, begun = 0;
    long long lost = 0;
    json_array_foreach(events, i, e)
    {
        const char *name = json_string_value(json_object_get(e, "name"));
        begun += strcmp(json_string_value(json_object_get(e, "ph")), "B") == 0;
        lost += name && strcmp(name, "lost") == 0 ? trace_number(e, "bytes") : 0;
    }
    assert_int_equal((long long)begun + lost, 3 * 40000 * 2);
    assert_true(lost > 0);
    json_decref(events);
}

static _Atomic unsigned handled;
static void on_signal(int signo)
{
    (void)signo;
    one_span("in a handler", atomic_fetch_add(&handled, 1));
}

static void a_handler_may_record(void **state)
{
    (void)state;
    const char *path = sample_path("handler.json");
    struct sigaction old, ours = {.sa_handler = on_signal};
    pthread_t thread;
    start(path);
    sigaction(SIGUSR1, &ours, &old);
    atomic_store(&handled, 0);
    assert_int_equal(pthread_create(&thread, NULL, record_many, "outside"), 0);
    for (unsigned i = 0; i < 200; i++) {
        pthread_kill(pthread_self(), SIGUSR1);
        one_span("outside", i);
    }
    pthread_join(thread, NULL);
    sigaction(SIGUSR1, &old, NULL);
    cws_trace_stop();
    json_t *events = trace_load(path, getpid(), true);
    assert_int_equal(trace_count(events, "fault", 'B'), SPANS + 200 + atomic_load(&handled));
    json_decref(events);
}

/* --- ends -------------------------------------------------------------------------------------------- */

static void a_killed_process_leaves_a_readable_file(void **state)
{
    (void)state;
    const char *path = sample_path("killed.json");
    pid_t child = fork();
    if (child == 0) {
        struct cws_error err;
        if (cws_trace_start(path, say, &err))
            _exit(1);
        bool open = CWS_TRACE_BEGIN(.kind = CWS_TRACE_WAIT, .tensor = "never ends", .index = UINT64_MAX);
        for (unsigned i = 0; open && i < 2000; i++)
            one_span("w", i);
        while (ends_in(path) < 2 * 2000)
            usleep(1000);
        kill(getpid(), SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    json_t *events = trace_load(path, child, false);
    assert_int_equal(trace_count(events, "wait for weights", 'B'), 1);
    assert_int_equal(trace_count(events, "wait for weights", 'E'), 0);
    assert_int_equal(trace_count(events, "fault", 'E'), 2000);
    json_decref(events);
}

static void exit_finishes_the_file(void **state)
{
    (void)state;
    const char *path = sample_path("exit.json");
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct cws_error err;
        if (cws_trace_start(path, say, &err))
            _exit(1);
        bool open = CWS_TRACE_BEGIN(.kind = CWS_TRACE_WAIT, .tensor = "still open", .index = UINT64_MAX);
        exit(open ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    json_decref(trace_load(path, child, true));
}

static void a_forked_child_does_not_write(void **state)
{
    (void)state;
    const char *path = sample_path("fork.json");
    start(path);
    one_span("parent", 0);
    pid_t child = fork();
    if (child == 0) {
        bool on = cws_trace_is_on();
        for (unsigned i = 0; i < 100; i++)
            one_span("child", i);
        cws_trace_stop();
        _exit(on ? 1 : 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    one_span("parent", 1);
    cws_trace_stop();
    json_t *events = trace_load(path, getpid(), true);
    assert_int_equal(trace_count(events, "fault", 'B'), 2);
    json_decref(events);
    start(path); /* the child's descriptor holds no lock */
    cws_trace_stop();
    assert_string_equal(said, "");
}

static void a_second_process_gets_a_file_of_its_own(void **state)
{
    (void)state;
    const char *path = sample_path("two.json");
    int go[2];
    char byte = 0;
    assert_int_equal(pipe(go), 0);
    pid_t child = fork();
    if (child == 0) {
        struct cws_error err;
        atomic_store(&lines_said, 0);
        if (read(go[0], &byte, 1) != 1 || cws_trace_start(path, say, &err))
            _exit(1);
        one_span("second", 0);
        cws_trace_stop();
        _exit(atomic_load(&lines_said) == 1 && strstr(said, path) ? 0 : 2);
    }
    int status;
    start(path);
    one_span("first", 0);
    assert_int_equal(write(go[1], &byte, 1), 1);
    close(go[0]);
    close(go[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    one_span("first", 1);
    cws_trace_stop();
    char own[4200];
    snprintf(own, sizeof own, "%s.%d", path, (int)child);
    json_t *first = trace_load(path, getpid(), true), *second = trace_load(own, child, true);
    assert_int_equal(trace_count(first, "fault", 'B'), 2);
    assert_string_equal(trace_text(trace_event(second, "fault", 'B', 0), "tensor"), "second");
    json_decref(first);
    json_decref(second);
}

/* --- files ------------------------------------------------------------------------------------------- */

static void expect_refused(const char *path, int code, const char *part)
{
    struct cws_error err = {0};
    assert_int_equal(cws_trace_check(path, &err), code);
    assert_non_null(strstr(err.message, part));
    assert_int_equal(cws_trace_start(path, say, &err), code);
    assert_non_null(strstr(err.message, part));
    assert_non_null(strstr(err.message, "CODEC_TRACE="));
    assert_false(cws_trace_is_on());
}

static void files_that_cannot_be_written_are_refused(void **state)
{
    (void)state;
    struct cws_error err;
    char below[4200];
    snprintf(below, sizeof below, "%s/t.json", sample_path("no-folder"));
    expect_refused(below, -ENOENT, "No such file");
    expect_refused("/", -EISDIR, "directory");
    const char *precious = sample_path("precious.safetensors");
    sample_save(precious, "weights, not to be lost", 23);
    expect_refused(precious, CWS_E_INPUT, "is not a trace");
    struct bytes same = sample_load(precious);
    assert_int_equal(same.size, 23);
    assert_memory_equal(same.data, "weights, not to be lost", 23);
    free(same.data);
    if (geteuid() != 0) {
        const char *closed = sample_path("closed.json");
        sample_save(closed, "", 0);
        chmod(closed, 0444);
        expect_refused(closed, -EACCES, "denied");
    }
    static const char *const others[] = {
        "[\n{}\n]\n", "[\n  1,\n  2\n]\n", "[\n",
        "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"tid\":1,\"args\":{\"name\":\"chrome\"}}\n]\n"};
    for (size_t i = 0; i < sizeof others / sizeof *others;
         i++) { /* what a program that indents its JSON writes; another's trace */
        const char *list = sample_path("list.json");
        sample_save(list, others[i], strlen(others[i]));
        expect_refused(list, CWS_E_INPUT, "is not a trace");
        same = sample_load(list);
        assert_int_equal(same.size, strlen(others[i]));
        assert_memory_equal(same.data, others[i], same.size);
        free(same.data);
    }
    const char *old = sample_path("old.json");
    sample_save(old, "", 0);
    for (unsigned i = 0; i < 2; i++) { /* an empty file; then a trace */
        assert_int_equal(cws_trace_check(old, &err), 0);
        start(old);
        cws_trace_stop();
        json_decref(trace_load(old, getpid(), true));
    }
}

/* What may lie in wait under a name in a directory that others can write to. */
static void links_and_pipes_are_left_alone(void **state)
{
    (void)state;
    const char *target = sample_path("target"), *link_path = sample_path("link.json"),
               *pipe_path = sample_path("pipe.json"), *twin = sample_path("twin.json");
    sample_save(target, "", 0);
    assert_int_equal(symlink(target, link_path), 0);
    expect_refused(link_path, CWS_E_INPUT, "symbolic link");
    unlink(target);
    /* nor is a file made where one leads to nothing */
    expect_refused(link_path, CWS_E_INPUT, "symbolic link");
    assert_int_equal(access(target, F_OK), -1);
    assert_int_equal(mkfifo(pipe_path, 0666), 0);
    expect_refused(pipe_path, CWS_E_INPUT, "not a regular file");
    sample_save(target, "", 0);
    assert_int_equal(link(target, twin), 0);
    expect_refused(twin, CWS_E_INPUT, "hard links");
    if (geteuid() == 0) {
        const char *theirs = sample_path("theirs.json");
        sample_save(theirs, "", 0);
        assert_int_equal(chown(theirs, 12345, 12345), 0);
        expect_refused(theirs, CWS_E_INPUT, "another user");
    }
}

/* The name of a second process can be guessed. */
static void a_second_name_that_is_taken_is_not_used(void **state)
{
    (void)state;
    char own[4200], other[4210];
    const char *path = sample_path("guess.json");
    struct cws_error err;
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    snprintf(own, sizeof own, "%s.%d", path, (int)getpid());
    snprintf(other, sizeof other, "%s.1", own);
    assert_int_equal(symlink("nowhere", own), 0);
    start(path);
    one_span("second", 0);
    cws_trace_stop();
    assert_non_null(strstr(said, other));
    json_decref(trace_load(other, getpid(), true));
    assert_int_equal(access(sample_path("nowhere"), F_OK), -1);
    close(fd);
    assert_int_equal(cws_trace_check(path, &err), 0);
}

static void a_full_device_is_one_line(void **state)
{
    (void)state;
    struct cws_error err = {0};
    assert_int_equal(cws_trace_start("/dev/full", say, &err), -ENOSPC);
    assert_non_null(strstr(err.message, "/dev/full"));
}

/* Whichever write fails, the program goes on, hears of it once, and the file is whole as far as it goes. */
static void every_failing_write_ends_the_trace_only(void **state)
{
    (void)state;
    static const enum inject_kind kinds[] = {INJECT_WRITE, INJECT_SHORT_WRITE, INJECT_EINTR, INJECT_EAGAIN};
    const char *path = sample_path("full.json");
    unsigned ended = 0;
    for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (unsigned n = 1; n < 12; n++) {
            struct cws_error err = {0};
            said[0] = '\0';
            atomic_store(&lines_said, 0);
            inject_arm(kinds[k], n);
            int code = cws_trace_start(path, say, &err);
            for (unsigned i = 0; !code && i < 1000; i++)
                one_span("some tensor with a name", i);
            cws_trace_stop();
            bool fired = inject_disarm();
            if (code) {
                assert_int_equal(n, 1);
                assert_non_null(strstr(err.message, "CODEC_TRACE"));
                continue;
            }
            assert_int_equal(atomic_load(&lines_said), fired && kinds[k] == INJECT_WRITE ? 1 : 0);
            ended += atomic_load(&lines_said);
            assert_true(!*said || strstr(said, "No space left"));
            json_decref(trace_load(path, getpid(), !*said));
        }
    }
    assert_true(ended >= 5);
}

/* A real limit, so that a write succeeds in part first; and its signal, which would end the program. The file has what
 * there was room for: all but the event that met the limit, however the writing thread divided them. */
static void a_limit_of_file_sizes_ends_the_trace_only(void **state)
{
    (void)state;
    static const rlim_t limits[] = {0, 100001, 70000};
    for (unsigned i = 0; i < sizeof limits / sizeof *limits; i++) {
        const char *path = sample_path(i == 0 ? "limit0.json" : i == 1 ? "limit1.json" : "limit2.json");
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            struct cws_error err;
            const struct rlimit limit = {.rlim_cur = limits[i], .rlim_max = RLIM_INFINITY};
            setrlimit(RLIMIT_FSIZE, &limit);
            atomic_store(&lines_said, 0);
            if (cws_trace_start(path, say, &err))
                _exit(err.code == -EFBIG && i == 0 ? 0 : 1);
            for (unsigned k = 0; k < 2000; k++)
                one_span("some tensor", k);
            cws_trace_stop();
            _exit(atomic_load(&lines_said) == 1 ? 0 : 2);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        if (i > 0) {
            struct stat st;
            assert_int_equal(stat(path, &st), 0);
            assert_in_range(st.st_size, limits[i] - 400, limits[i]);
            json_decref(trace_load(path, child, false));
        }
    }
}

static void start_fails_whole(void **state)
{
    (void)state;
    static const enum inject_kind kinds[] = {INJECT_ALLOC, INJECT_OPEN, INJECT_STAT, INJECT_READ};
    const char *path = sample_path("start.json");
    unsigned files = inject_open_files();
    for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        unsigned failed = 0;
        for (unsigned n = 1;; n++) {
            struct cws_error err = {0};
            inject_arm(kinds[k], n);
            int code = cws_trace_start(path, say, &err);
            cws_trace_stop();
            bool fired = inject_disarm();
            failed += code != 0;
            assert_true(!code || err.message[0]);
            assert_false(cws_trace_is_on());
            assert_int_equal(inject_open_files(), files);
            if (!fired)
                break;
        }
        assert_true(failed > 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(off_means_nothing),
        cmocka_unit_test(what_is_recorded_comes_out),
        cmocka_unit_test(any_name_is_a_string),
        cmocka_unit_test(threads_do_not_mix),
        cmocka_unit_test(a_full_ring_loses_whole_spans_and_says_so),
        cmocka_unit_test(a_handler_may_record),
        cmocka_unit_test(a_killed_process_leaves_a_readable_file),
        cmocka_unit_test(exit_finishes_the_file),
        cmocka_unit_test(a_forked_child_does_not_write),
        cmocka_unit_test(a_second_process_gets_a_file_of_its_own),
        cmocka_unit_test(files_that_cannot_be_written_are_refused),
        cmocka_unit_test(links_and_pipes_are_left_alone),
        cmocka_unit_test(a_second_name_that_is_taken_is_not_used),
        cmocka_unit_test(a_full_device_is_one_line),
        cmocka_unit_test(every_failing_write_ends_the_trace_only),
        cmocka_unit_test(a_limit_of_file_sizes_ends_the_trace_only),
        cmocka_unit_test(start_fails_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
