/* main.c - the codecllm command: finds the verb, and makes sure that what went to stdout arrived. */
#include "say.h"
#include "verbs.h"

#include "store/format/format.h"
#include "store/base/options.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The shim looks for this symbol in a program's main executable and then stays out of its way: this command must see
 * stores as the files they are. Exported by the dynamic list of tools/CMakeLists.txt. */
extern const int cws_tool_real_files;
__attribute__((visibility("default"), used)) const int cws_tool_real_files = 1;

static const struct cws_verb *const verbs[] = {&cws_verb_pack,   &cws_verb_unpack, &cws_verb_inspect,
                                               &cws_verb_verify, &cws_verb_doctor, &cws_verb_run,
                                               &cws_verb_budget, &cws_verb_top,    &cws_verb_plot};
enum { VERB_COUNT = sizeof verbs / sizeof *verbs };

static void print_help(void)
{
    struct cws_option_row row;
    fputs("Usage: codecllm VERB [OPTIONS] ...\n"
          "\n"
          "Packs model weights into compressed, checksummed files, and runs unmodified PyTorch programs from them\n"
          "inside a memory budget.\n"
          "\n"
          "Verbs ('codecllm VERB --help' tells more):\n",
          stdout);
    for (size_t i = 0; i < VERB_COUNT; i++)
        printf("  %-8s %s\n", verbs[i]->name, verbs[i]->summary);
    fputs("\nOptions:\n"
          "  --help      this text\n"
          "  --version   the version and the file format\n"
          "\n"
          "Environment of the programs that are run ('codecllm doctor' shows what is in force):\n",
          stdout);
    for (size_t i = 0; cws_options_row(i, &row); i++)
        printf("  %-18s %s\n", row.name, row.meaning);
    fputs("\nExamples:\n"
          "  codecllm pack ./TinyLlama ./TinyLlama.packed\n"
          "  codecllm inspect ./TinyLlama.packed\n"
          "  codecllm verify ./TinyLlama.packed\n"
          "  codecllm run --budget 2G -- python infer.py --model ./TinyLlama.packed\n"
          "\n"
          "Exit status: 0 fine, 1 a finding (a damaged file, paging cannot work), 2 usage or I/O.\n",
          stdout);
}

/* Opens /dev/null on a standard descriptor that is closed, in the wrong direction, so that no data file lands on it and
 * writes to it still fail. */
static void guard_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF)
            (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
    }
}

/* Everything printed must have arrived: a full disk or a closed pipe is a failure. */
static int finish(int status)
{
    int failed = ferror(stdout);
    errno = 0;
    if (fflush(stdout) != 0)
        failed = 1;
    int why = errno;
    if (fclose(stdout) != 0 && !failed) {
        failed = 1;
        why = errno;
    }
    if (!failed)
        return status;
    if (why != EPIPE) /* the reader has gone away on purpose, as `head` does */
        cws_say_line("standard output: cannot write: %s", why ? cws_strerror(-why) : "write error");
    return CWS_EXIT_FAILURE;
}

static int run_verb(const struct cws_verb *verb, int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(verb->help, stdout);
            return CWS_EXIT_FINE;
        }
        if (verb == &cws_verb_run && argv[i][0] != '-') /* the rest belongs to the program */
            break;
    }
    opterr = 0;
    return verb->run(argc, argv);
}

static int dispatch(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name)
        return cws_say_usage(NULL, "a verb is missing");
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help();
        return CWS_EXIT_FINE;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("codecllm %s (file format %u)\n", CWS_VERSION, CWS_FORMAT_VERSION);
        return CWS_EXIT_FINE;
    }
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (strcmp(name, verbs[i]->name) == 0)
            return run_verb(verbs[i], argc - 1, argv + 1);
    }
    return cws_say_usage(NULL, "unknown verb '%s'", name);
}

int main(int argc, char **argv)
{
    guard_standard_descriptors();
    /* a closed pipe is an error to report, not a silent end; `run` puts it back */
    signal(SIGPIPE, SIG_IGN);
    setlocale(LC_CTYPE, ""); /* for the histogram's bars; numbers keep the C locale */
    return finish(dispatch(argc, argv));
}
