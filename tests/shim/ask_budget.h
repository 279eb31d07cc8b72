/* ask_budget.h - what the preloaded library exports for another budget, and `codecllm budget` and `codecllm top` for a process,
 * each a program of its own, without the library. After a fixture (cmocka, dlfcn). */
#ifndef CWS_TESTS_ASK_BUDGET_H
#define CWS_TESTS_ASK_BUDGET_H
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char line[512]; /* that the last call said */

static inline int call_set(const char *text)
{
    int (*set)(const char *, char *, size_t) = (int (*)(const char *, char *, size_t))dlsym(RTLD_DEFAULT,
                                                                                            "codecllm_set_budget");
    assert_non_null(set);
    return set(text, line, sizeof line);
}

static inline int call(const char *name)
{
    int (*function)(char *, size_t) = (int (*)(char *, size_t))dlsym(RTLD_DEFAULT, name);
    assert_non_null(function);
    return function(line, sizeof line);
}

/* codecllm with these arguments, up to NULL. Its exit status; what it wrote, to both streams, in text. */
static inline int ask(const char *const *arguments, char *text, size_t room)
{
    int ends[2], status = -1;
    size_t got = 0;
    ssize_t n;
    text[0] = '\0';
    if (pipe(ends))
        return -1;
    pid_t child = fork();
    if (child == 0) {
        unsetenv("LD_PRELOAD");
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        execv(CWS_BIN_DIR "/bin/codecllm", (char *const *)arguments);
        _exit(99);
    }
    close(ends[1]);
    while (got < room - 1 && (n = read(ends[0], text + got, room - 1 - got)) != 0)
        got += n > 0 ? (size_t)n : 0;
    text[got] = '\0';
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* size: NULL, or the new budget. */
static inline int ask_budget(int pid, const char *size, char *text, size_t room)
{
    char number[16];
    const char *const arguments[] = {"codecllm", "budget", number, size, NULL};
    snprintf(number, sizeof number, "%d", pid);
    return ask(arguments, text, room);
}

/* One sample of `codecllm top`, as JSON. */
static inline int ask_top(int pid, char *text, size_t room)
{
    char number[16];
    const char *const arguments[] = {"codecllm", "top", "--once", "--json", "--interval", "0.1", number, NULL};
    snprintf(number, sizeof number, "%d", pid);
    return ask(arguments, text, room);
}

/* The number behind a key of JSON; ~0: it has none. */
static inline unsigned long long number_in(const char *text, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "\"%s\": ", name);
    const char *found = strstr(text, key);
    return found ? strtoull(found + strlen(key), NULL, 10) : ~0ull;
}

#endif
