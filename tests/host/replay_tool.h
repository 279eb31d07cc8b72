/* replay_tool.h - for the tests of tools/bench/replay_policy: runs it. */
#ifndef CWS_TEST_REPLAY_TOOL_H
#define CWS_TEST_REPLAY_TOOL_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cmocka.h>

/* Runs the tool. Returns its exit status; *out is what it said, on both. */
static inline int tool(const char *arguments, char *out, size_t room)
{
    char command[1024];
    snprintf(command, sizeof command, "'%s/bin/replay_policy' %s 2>&1", CWS_BIN_DIR, arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t n = fread(out, 1, room - 1, pipe);
    out[n] = '\0';
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
#endif
