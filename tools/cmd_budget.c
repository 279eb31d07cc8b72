/* cmd_budget.c - codecllm budget: shows the budget of a process that pages, or changes it. */
#include "store/base/control.h"
#include "store/base/options.h"
#include "say.h"
#include "table.h"
#include "text.h"
#include "verbs.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

enum { ANSWER_SECONDS = 120 }; /* each GPU may take some */

static int fail_connect(const char *pid, int why)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s", pid);
    if (access(path, F_OK) != 0)
        cws_say_line("%s: no such process", pid);
    else if (why == ECONNREFUSED)
        cws_say_line("%s: nothing is paged there: it runs without CODEC_VRAM_BUDGET, has neither mapped a packed file "
                     "nor used a GPU yet, or is the forked child of a process that did",
                     pid);
    else
        cws_say_line("%s: cannot be asked: %s", pid, cws_strerror(-why));
    return CWS_EXIT_FAILURE;
}

/* A socket to the process, or -1 after a line. */
static int reach(const char *pid)
{
    struct sockaddr_un address;
    struct ucred peer = {.pid = 0};
    const struct timeval wait = {.tv_sec = ANSWER_SECONDS};
    int number = (int)strtol(pid, NULL, 10);
    socklen_t size = cws_control_address(number, &address), peer_size = sizeof peer;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) != 0 ||
        connect(fd, (const struct sockaddr *)&address, size) != 0) {
        fail_connect(pid, errno);
    } else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_size) != 0 || peer.pid != number) {
        cws_say_line("%s: process %d listens in its place, and was not asked", pid, (int)peer.pid);
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

/* All of the answer, terminated; false after a line. */
static bool ask(const char *pid, int fd, const char *size, char *answer, size_t room)
{
    char line[CWS_CONTROL_LINE];
    size_t got = 0;
    ssize_t n = 0;
    int len = size ? snprintf(line, sizeof line, CWS_CONTROL_SET "%s\n", size)
                   : snprintf(line, sizeof line, CWS_CONTROL_GET "\n");
    send(fd, line, (size_t)len, MSG_NOSIGNAL); /* who is refused may have the answer, and nobody who listens, before */
    while (got < room - 1 && (n = recv(fd, answer + got, room - 1 - got, 0)) > 0)
        got += (size_t)n;
    int why = n < 0 ? errno : 0;
    answer[got] = '\0';
    if (got && answer[got - 1] == '\n')
        return true;
    if (why == EAGAIN || why == EWOULDBLOCK)
        cws_say_line("%s: no answer in %d s; is it stopped?", pid, ANSWER_SECONDS);
    else
        cws_say_line("%s: it ended without an answer", pid);
    return false;
}

static int show_error(const char *pid, const char *answer)
{
    char text[CWS_CONTROL_LINE], *end;
    long code = strtol(answer, &end, 10);
    char *stop = strchr(end, '\n');
    if (stop)
        *stop = '\0';
    cws_say_line("%s: %s", pid, cws_printable(end + (*end == ' '), text, sizeof text));
    return code == CWS_E_BUDGET ? CWS_EXIT_FINDING : CWS_EXIT_FAILURE;
}

static int show(const char *pid, char *answer)
{
    struct cws_table *t = cws_table_create("lrrrr");
    bool all = false;
    char *rest = NULL;
    for (char *line = strtok_r(answer, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        bool gpu = strncmp(line, "gpu ", 4) == 0;
        char *at = line + (gpu ? 4 : 5);
        all = strcmp(line, "end") == 0;
        if (!gpu && strncmp(line, "host ", 5) != 0)
            continue;
        if (gpu)
            cws_table_cell(t, "GPU %lu", strtoul(at, &at, 10));
        else
            cws_table_cell(t, "host");
        uint64_t budget = strtoull(at, &at, 10), used = strtoull(at, &at, 10);
        cws_table_cell(t, "budget");
        cws_table_cell(t, "%s", cws_size_text(budget).text);
        cws_table_cell(t, "used");
        cws_table_cell(t, "%s", cws_size_text(used).text);
    }
    if (all)
        cws_table_print(t);
    else
        cws_say_line("%s: the answer is of another version of codecllm", pid);
    cws_table_destroy(t);
    return all ? CWS_EXIT_FINE : CWS_EXIT_FAILURE;
}

static int run_budget(int argc, char **argv)
{
    struct cws_options unused = {0};
    struct cws_error err = {0};
    char answer[CWS_CONTROL_ANSWER];
    if (argc < 2 || argc > 3)
        return cws_say_usage("budget", "needs the number of a process, and a budget if it is to be changed");
    const char *pid = argv[1], *size = argc > 2 ? argv[2] : NULL;
    size_t digits = strspn(pid, "0123456789");
    if (!digits || pid[digits] || digits > 9 || strtol(pid, NULL, 10) == 0)
        return cws_say_usage("budget", "%s: not the number of a process", pid);
    if (size && cws_options_set_budget(&unused, size, &err))
        return cws_say_usage("budget", "%s", err.message);
    if (size && strlen(size) + strlen(CWS_CONTROL_SET) + 2 > CWS_CONTROL_LINE)
        return cws_say_usage("budget", "this budget is too long");
    int fd = reach(pid);
    if (fd < 0)
        return CWS_EXIT_FAILURE;
    bool answered = ask(pid, fd, size, answer, sizeof answer);
    close(fd);
    if (!answered)
        return CWS_EXIT_FAILURE;
    return strncmp(answer, "error ", 6) == 0 ? show_error(pid, answer + 6) : show(pid, answer);
}

const struct cws_verb cws_verb_budget = {
    .name = "budget",
    .summary = "show or change the budget of a process that pages, while it runs",
    .help =
        "Usage: codecllm budget PID [SIZE]\n"
        "\n"
        "Shows the budget of a process that runs under CodecLLM, and what is used of it: weights in host memory, and\n"
        "for each GPU all memory that it has there but its context. With SIZE it changes the budget, in any form of\n"
        "CODEC_VRAM_BUDGET (2G, 50%, 0:2G,1:3G): when this returns no more is used. A budget that cannot be met\n"
        "is refused, with the least that is sure to do, and all stays as it was.\n"
        "\n"
        "Only root and the user that the process runs as may ask. A forked child does not answer.\n"
        "\n"
        "Exit status: 0 fine, 1 the budget cannot be met, 2 usage, no such process, nothing is paged there.\n"
        "\n"
        "Examples:\n"
        "  codecllm budget 4711\n"
        "  codecllm budget 4711 3G\n",
    .run = run_budget,
};
