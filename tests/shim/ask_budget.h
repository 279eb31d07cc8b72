/* ask_budget.h - what the preloaded library exports for another budget, and `codecllm budget` for a process, as a
 * program of its own, without the library. After a fixture (cmocka, dlfcn). */
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

/* Its exit status; what it wrote, to both streams, in text. size: NULL, or the new budget. */
static inline int ask_budget(int pid, const char *size, char *text, size_t room)
{
    char number[16];
    int ends[2], status = -1;
    size_t got = 0;
    ssize_t n;
    text[0] = '\0';
    snprintf(number, sizeof number, "%d", pid);
    if (pipe(ends))
        return -1;
    pid_t child = fork();
    if (child == 0) {
        unsetenv("LD_PRELOAD");
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        execl(CWS_BIN_DIR "/bin/codecllm", "codecllm", "budget", number, size, (char *)NULL);
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

#endif
