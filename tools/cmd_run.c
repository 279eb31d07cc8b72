/* cmd_run.c - codecllm run: the shim under a program, without installing anything. Ends by becoming the program, so its
 * exit status is the program's; 126 and 127 as env(1) has them. */
#include "store/base/options.h"
#include "model_dir.h"
#include "say.h"
#include "torch_allocator.h"
#include "verbs.h"

#include <errno.h>
#include <getopt.h>
#include <glob.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where the library may lie, seen from the directory of this command: a build tree or an installation prefix, a
 * relocated pair of files, and the Python package of the environment that the command was installed into. */
static const char *const places[] = {
    "../lib/libcodecshim.so",
    "libcodecshim.so",
    "../lib/python3*/site-packages/codecllm/libcodecshim.so",
    "../lib/python3*/dist-packages/codecllm/libcodecshim.so",
    "../local/lib/python3*/dist-packages/codecllm/libcodecshim.so",
    "../lib64/python3*/site-packages/codecllm/libcodecshim.so",
    "../codecllm/libcodecshim.so",
};

/* Path of the library in fresh memory, or NULL. */
static char *find_shim(char *directory, size_t size)
{
    ssize_t len = readlink("/proc/self/exe", directory, size - 1);
    if (len <= 0)
        return NULL;
    directory[len] = '\0';
    char *slash = strrchr(directory, '/');
    if (!slash)
        return NULL;
    *slash = '\0';
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char *pattern = cws_path_join(directory, places[i]), *found = NULL;
        glob_t matches;
        if (access(pattern, R_OK) == 0)
            found = realpath(pattern, NULL);
        else if (strchr(places[i], '*') && glob(pattern, 0, NULL, &matches) == 0) {
            found = realpath(matches.gl_pathv[0], NULL);
            globfree(&matches);
        }
        free(pattern);
        if (found)
            return found;
    }
    return NULL;
}

/* Puts `entry` in front of a list in the environment, unless it is in there. False: out of memory. */
static bool put_in_front(const char *variable, const char *entry)
{
    const char *before = getenv(variable);
    char *value;
    if (before && strstr(before, entry))
        return true;
    if (asprintf(&value, "%s%s%s", entry, before && *before ? ":" : "", before ? before : "") < 0)
        return false;
    bool done = setenv(variable, value, 1) == 0;
    free(value);
    return done;
}

/* Puts the library in front of what LD_PRELOAD has. That cannot hold a path with a space: such a library is named
 * alone, and found through LD_LIBRARY_PATH. May cut `shim` in two. 0 or an exit status. */
static int preload(char *shim)
{
    if (strpbrk(shim, ":;") && strpbrk(shim, " :")) {
        cws_say_line("%s: neither LD_PRELOAD nor LD_LIBRARY_PATH can hold this path; move the library to one without "
                     "colon and semicolon",
                     shim);
        return 126;
    }
    const char *name = shim;
    if (strchr(shim, ' ')) {
        char *slash = strrchr(shim, '/');
        *slash = '\0';
        name = slash + 1;
        if (!put_in_front("LD_LIBRARY_PATH", shim))
            name = NULL;
    }
    if (!name || !put_in_front("LD_PRELOAD", name)) {
        cws_say_line("out of memory");
        return 126;
    }
    return 0;
}

static int run_run(int argc, char **argv)
{
    static const struct option longs[] = {{"budget", required_argument, NULL, 'b'}, {NULL, 0, NULL, 0}};
    struct cws_options options;
    struct cws_error err = {0};
    char directory[4096];
    int c;
    while ((c = getopt_long(argc, argv, "+:b:", longs, NULL)) != -1) {
        if (c == ':')
            return cws_say_usage("run", "%s needs a value", argv[optind - 1]);
        if (c != 'b')
            return cws_say_usage("run", "unknown option %s", argv[optind - 1]);
        if (setenv("CODEC_VRAM_BUDGET", optarg, 1) != 0) {
            cws_say_line("out of memory");
            return CWS_EXIT_FAILURE;
        }
    }
    if (optind == argc)
        return cws_say_usage("run", "the program to run is missing");
    if (cws_options_from_env(&options, &err)) {
        cws_say_line("%s", err.message);
        return CWS_EXIT_FAILURE;
    }
    char *shim = find_shim(directory, sizeof directory);
    if (!shim) {
        cws_say_line(
            "libcodecshim.so was not found beside %s, in ../lib or in a Python package below it; install or build it",
            directory);
        return CWS_EXIT_FAILURE;
    }
    int rc = preload(shim);
    free(shim);
    if (rc)
        return rc;
    if (cws_torch_may_see_gpu() && cws_torch_allocator_choose() != 0) {
        cws_say_line("out of memory");
        return CWS_EXIT_FAILURE;
    }
    if (!options.active) { /* the library does nothing without a budget, and the program was to see plain files */
        cws_say_line("no --budget and no CODEC_VRAM_BUDGET: using 100%% of the memory that a process may have here");
        setenv("CODEC_VRAM_BUDGET", "100%", 1);
    }
    fflush(NULL);
    signal(SIGPIPE, SIG_DFL);
    execvp(argv[optind], argv + optind);
    int why = errno;
    cws_say_line("%s: cannot run: %s", argv[optind], cws_strerror(-why));
    return why == ENOENT ? 127 : 126;
}

const struct cws_verb cws_verb_run = {
    .name = "run",
    .summary = "run a program that sees packed files as plain ones",
    .run = run_run,
    .help = "Usage: codecllm run [--budget SIZE] -- PROGRAM [ARGUMENTS]\n"
            "\n"
            "Runs a program with libcodecshim.so in LD_PRELOAD, so that it sees packed files as the plain\n"
            "safetensors files they were, decoded as they are touched. SIZE (2G, 512M, 50%) bounds the\n"
            "decoded weights; it is the same as setting CODEC_VRAM_BUDGET, and 100% when neither is given.\n"
            "\n"
            "Exit status: the program's; 127 it was not found, 126 it could not be run, 2 wrong arguments.\n"
            "\n"
            "Examples:\n"
            "  codecllm run --budget 2G -- python infer.py --model ./TinyLlama.packed\n"
            "  CODEC_STATS=1 codecllm run --budget 512M -- python -m my.server\n",
};
