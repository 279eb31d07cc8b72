/* cmd_budget.c - codecllm budget: shows the budget of a process that pages, or changes it. */
#include "ask.h"
#include "store/base/options.h"
#include "say.h"
#include "table.h"
#include "text.h"
#include "verbs.h"

#include <stdbool.h>
#include <stdlib.h>

enum { ANSWER_SECONDS = 120 }; /* each GPU may take some */

static void show(char *answer)
{
    struct cws_table *t = cws_table_create("lrrrr");
    char *rest = NULL;
    for (char *line = strtok_r(answer, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        bool gpu = strncmp(line, "gpu ", 4) == 0;
        char *at = line + (gpu ? 4 : 5);
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
    cws_table_print(t);
    cws_table_destroy(t);
}

static int run_budget(int argc, char **argv)
{
    struct cws_options unused = {0};
    struct cws_error err = {0};
    char answer[CWS_CONTROL_ANSWER], request[CWS_CONTROL_LINE - 1] = CWS_CONTROL_GET;
    int pid;
    if (argc < 2 || argc > 3)
        return cws_say_usage("budget", "needs the number of a process, and a budget if it is to be changed");
    const char *size = argc > 2 ? argv[2] : NULL;
    if (!cws_ask_pid(argv[1], &pid))
        return cws_say_usage("budget", "%s: not the number of a process", argv[1]);
    if (size && cws_options_set_budget(&unused, size, &err))
        return cws_say_usage("budget", "%s", err.message);
    if (size && strlen(size) + strlen(CWS_CONTROL_SET) >= sizeof request)
        return cws_say_usage("budget", "this budget is too long");
    if (size)
        snprintf(request, sizeof request, CWS_CONTROL_SET "%s", size);
    int code = cws_ask(pid, request, ANSWER_SECONDS, answer, &err);
    if (code) {
        cws_say_line("%s: %s", argv[1], err.message);
        return code == CWS_E_BUDGET ? CWS_EXIT_FINDING : CWS_EXIT_FAILURE;
    }
    show(answer);
    return CWS_EXIT_FINE;
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
