/* cmd_plot.c - codecllm plot: hands over to the Python package, which draws. */
#include "say.h"
#include "verbs.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The interpreter beside this command, where pip put it (a virtual environment), else the one in PATH. Returns buf. */
static const char *find_python(char *buf, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", buf, size - sizeof "python3");
    char *slash = n > 0 ? memrchr(buf, '/', (size_t)n) : NULL;
    if (slash) {
        strcpy(slash + 1, "python3");
        if (access(buf, X_OK) == 0)
            return buf;
    }
    return strcpy(buf, "python3");
}

static int run_plot(int argc, char **argv)
{
    char python[4096];
    char **arguments = calloc((size_t)argc + 3, sizeof *arguments);
    if (argc < 2) {
        free(arguments);
        return cws_say_usage("plot", "the trace to draw is missing");
    }
    if (!arguments) {
        cws_say_line("out of memory");
        return CWS_EXIT_FAILURE;
    }
    arguments[0] = (char *)find_python(python, sizeof python);
    arguments[1] = "-m";
    arguments[2] = "codecllm.plot";
    memcpy(arguments + 3, argv + 1, (size_t)(argc - 1) * sizeof *argv);
    unsetenv("CODEC_VRAM_BUDGET"); /* it reads a trace, not a model */
    fflush(NULL);
    signal(SIGPIPE, SIG_DFL);
    execvp(python, arguments);
    int why = errno;
    free(arguments);
    cws_say_line("%s: cannot run: %s; 'codecllm plot' needs the Python package: pip install .", python,
                 cws_strerror(-why));
    return CWS_EXIT_FAILURE;
}

const struct cws_verb cws_verb_plot = {
    .name = "plot",
    .summary = "draw a trace: which weights were in memory when",
    .run = run_plot,
    .help = "Usage: codecllm plot TRACE -o FILE.png\n"
            "\n"
            "Draws a trace that CODEC_TRACE=FILE wrote: which weights were decoded in memory when, the memory\n"
            "they took, the bytes read, and how often the program had to wait. Needs the Python package and\n"
            "matplotlib. A trace of a program that was killed is fine.\n"
            "\n"
            "Examples:\n"
            "  CODEC_TRACE=run.json codecllm run --budget 2G -- python infer.py --model ./TinyLlama.packed\n"
            "  codecllm plot run.json -o run.png\n",
};
