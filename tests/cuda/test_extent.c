/* The states of an extent: every change that the table has is made, and every other one aborts with a line. */
#include "uvm/cuda/extent.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* As in the picture of extent.h, written down a second time. */
static const struct {
    const char *from, *to;
} legal[] = {
    {"RESERVED", "PARTIAL"},  {"PARTIAL", "BOUND"},      {"PARTIAL", "LOADING"},    {"PARTIAL", "RESERVED"},
    {"LOADING", "PARTIAL"},   {"LOADING", "ANONYMOUS"},  {"ANONYMOUS", "RESIDENT"}, {"RESERVED", "BOUND"},
    {"RESERVED", "MAKING"},   {"BOUND", "LOADING"},      {"BOUND", "RESERVED"},     {"LOADING", "RESIDENT"},
    {"LOADING", "BOUND"},     {"RESIDENT", "DROPPING"},  {"RESIDENT", "CACHED"},    {"DROPPING", "BOUND"},
    {"DROPPING", "DIRTY"},    {"MAKING", "ANONYMOUS"},   {"MAKING", "RESERVED"},    {"ANONYMOUS", "SPILLING"},
    {"ANONYMOUS", "CACHED"},  {"ANONYMOUS", "UNMAKING"}, {"UNMAKING", "RESERVED"},  {"UNMAKING", "ANONYMOUS"},
    {"DIRTY", "SPILLING"},    {"DIRTY", "CACHED"},       {"CACHED", "ANONYMOUS"},   {"CACHED", "COLD"},
    {"COLD", "ANONYMOUS"},    {"COLD", "UNMAKING"},      {"SPILLING", "SPILLED"},   {"SPILLING", "ANONYMOUS"},
    {"SPILLING", "DIRTY"},    {"SPILLED", "RESTORING"},  {"SPILLED", "RESERVED"},   {"RESTORING", "ANONYMOUS"},
    {"RESTORING", "DIRTY"},   {"RESTORING", "SPILLED"},  {"SPILLING", "BOUND"},     {"RESIDENT", "DIRTY"},
    {"ANONYMOUS", "PROVING"}, {"DIRTY", "PROVING"},      {"PROVING", "BOUND"},      {"PROVING", "ANONYMOUS"},
    {"PROVING", "DIRTY"},     {"ANONYMOUS", "LOOKING"},  {"DIRTY", "LOOKING"},      {"LOOKING", "RESIDENT"},
    {"LOOKING", "ANONYMOUS"}, {"LOOKING", "DIRTY"},
};

static bool is_legal(enum cws_extent_state from, enum cws_extent_state to)
{
    for (size_t i = 0; i < sizeof legal / sizeof *legal; i++)
        if (strcmp(legal[i].from, cws_extent_state_name(from)) == 0 &&
            strcmp(legal[i].to, cws_extent_state_name(to)) == 0)
            return true;
    return false;
}

static void test_legal_changes(void **state)
{
    (void)state;
    unsigned count = 0;
    for (unsigned from = 0; from < CWS_EXTENT_STATES; from++) {
        for (unsigned to = 0; to < CWS_EXTENT_STATES; to++) {
            struct cws_gpu_extent x = {.state = from};
            assert_int_equal(cws_extent_may(from, to), is_legal(from, to));
            if (!cws_extent_may(from, to))
                continue;
            cws_extent_go(&x, to);
            assert_int_equal(x.state, to);
            count++;
        }
    }
    assert_int_equal(count, sizeof legal / sizeof *legal);
    assert_string_equal(cws_extent_state_name(CWS_EXTENT_STATES), "?");
}

/* In a child: what it said is in `text`. Returns the signal that ended it, or 0. */
static int signal_of_change(enum cws_extent_state from, enum cws_extent_state to, char *text, size_t room)
{
    int pipes[2], status;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {0, 0};
        struct cws_gpu_extent x = {.state = from, .base = 0x1234000};
        setrlimit(RLIMIT_CORE, &none);
        dup2(pipes[1], 2);
        cws_extent_go(&x, to);
        _exit(0);
    }
    close(pipes[1]);
    size_t have = 0;
    for (ssize_t got; have + 1 < room && (got = read(pipes[0], text + have, room - 1 - have)) > 0;)
        have += (size_t)got;
    text[have] = '\0';
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void test_illegal_changes_abort(void **state)
{
    (void)state;
    char text[4096], line[256];
    unsigned count = 0;
    for (unsigned from = 0; from < CWS_EXTENT_STATES; from++) {
        for (unsigned to = 0; to < CWS_EXTENT_STATES; to++) {
            if (is_legal(from, to))
                continue;
            assert_int_equal(signal_of_change(from, to, text, sizeof text), SIGABRT);
            snprintf(line, sizeof line, "codecllm: bug: device memory at 0x1234000 went from %s to %s\n",
                     cws_extent_state_name(from), cws_extent_state_name(to));
            assert_non_null(strstr(text, line));
            count++;
        }
    }
    assert_int_equal(count, CWS_EXTENT_STATES * CWS_EXTENT_STATES - sizeof legal / sizeof *legal);
}

/* What a state says of itself holds together: what is mapped has memory, what is away has none that counts. */
static void test_what_states_mean(void **state)
{
    (void)state;
    for (unsigned s = 0; s < CWS_EXTENT_STATES; s++) {
        enum cws_gpu_class class = cws_extent_class(s);
        if (cws_extent_is_mapped(s)) {
            assert_int_not_equal(class, CWS_CLASS_NONE);
            assert_false(cws_extent_is_away(s) || cws_extent_has_owner(s));
        }
        if (cws_extent_has_owner(s))
            assert_true(cws_extent_is_away(s));
        assert_true(class < CWS_GPU_CLASSES);
    }
    assert_int_equal(cws_extent_class(CWS_EXTENT_RESIDENT), CWS_CLASS_RESIDENT);
    assert_int_equal(cws_extent_class(CWS_EXTENT_CACHED), CWS_CLASS_RESERVE);
    assert_int_equal(cws_extent_class(CWS_EXTENT_COLD), CWS_CLASS_IDLE);
    assert_int_equal(cws_extent_class(CWS_EXTENT_DIRTY), CWS_CLASS_FIXED);
    assert_int_equal(cws_extent_class(CWS_EXTENT_BOUND), CWS_CLASS_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_legal_changes),
        cmocka_unit_test(test_illegal_changes_abort),
        cmocka_unit_test(test_what_states_mean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
