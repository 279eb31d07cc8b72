/* cmd_top.c - codecllm top: what processes page, shown again and again. */
#include "ask.h"
#include "say.h"
#include "top_show.h"
#include "verbs.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* For an answer: while it watches, it goes on without one, and Ctrl-C waits for it. */
enum { FIRST_SECONDS = 5, WATCH_SECONDS = 2 };

struct top {
    int pid; /* 0: all */
    double interval_s;
    bool once, json, screen;
    sigset_t signals; /* blocked, and taken while it waits; none for a single sample */
    struct cws_top_sample now, before;
};

/* --- samples ------------------------------------------------------------------------------------------------ */

/* The process's first sample, or one of all. */
static int begin(struct top *t)
{
    struct cws_error err = {0};
    if (!t->pid)
        cws_top_sample_all(&t->now);
    else if (cws_top_sample_one(&t->now, t->pid, FIRST_SECONDS, &err))
        cws_say_line("%d: %s", t->pid, err.message);
    else
        return CWS_EXIT_FINE;
    return t->pid ? CWS_EXIT_FAILURE : CWS_EXIT_FINE;
}

/* The next one; what it fails with is said. 0; -EAGAIN: the one before is still there; another code: it is over. */
static int sample(struct top *t, struct cws_error *err)
{
    struct cws_top_sample next = {.rows = NULL};
    int code = 0;
    if (t->pid)
        code = cws_top_sample_one(&next, t->pid, t->once ? FIRST_SECONDS : WATCH_SECONDS, err);
    else
        cws_top_sample_all(&next);
    if (code)
        return code;
    cws_top_sample_free(&t->before);
    t->before = t->now;
    t->now = next;
    return 0;
}

/* Says why it is over. The end of a process that was watched is fine. */
static int say_end(const struct top *t, int code, const struct cws_error *err)
{
    if (code == -ESRCH || code == -EPIPE) {
        cws_say_line("%d: it has ended", t->pid);
        return CWS_EXIT_FINE;
    }
    if (code == -ECONNREFUSED) {
        cws_say_line("%d: it pages no more", t->pid);
        return CWS_EXIT_FINE;
    }
    cws_say_line("%d: %s", t->pid, err->message);
    return CWS_EXIT_FAILURE;
}

/* --- showing ------------------------------------------------------------------------------------------------ */

static void write_text(const struct top *t, FILE *out)
{
    if (t->pid)
        cws_top_show_one(&t->now, &t->before, out);
    else if (t->now.count)
        cws_top_show_all(&t->now, &t->before, out);
    else
        fputs("No process that pages answers.\n", out);
}

static void draw(const struct top *t, const char *note)
{
    struct winsize size = {.ws_row = 0};
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return;
    write_text(t, out);
    fprintf(out, "%s%s", *note ? "\n" : "", note);
    fclose(out);
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || !size.ws_row || !size.ws_col)
        size = (struct winsize){.ws_row = 24, .ws_col = 80};
    cws_top_draw(text, size.ws_row, size.ws_col, stdout);
    free(text);
}

static void show(const struct top *t, const char *note)
{
    if (t->screen) {
        draw(t, note);
        return;
    }
    if (t->json)
        cws_top_show_json(&t->now, &t->before, stdout);
    else
        write_text(t, stdout);
    fflush(stdout);
}

/* --- the terminal, and signals -------------------------------------------------------------------------------- */

static void enter(void)
{
    fputs("\033[?25l\033[H\033[2J", stdout); /* no cursor, and an empty screen */
    fflush(stdout);
}

static void leave(void)
{
    fputs("\n\033[?25h", stdout);
    fflush(stdout);
}

static void block_signals(struct top *t)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction action;
        /* nohup and background jobs of a shell without job control start with some ignored: leave them so */
        if ((signals[i] == SIGTSTP && !t->screen) || sigaction(signals[i], NULL, &action) != 0 ||
            action.sa_handler != SIG_DFL)
            continue;
        sigaddset(&t->signals, signals[i]);
    }
    sigprocmask(SIG_BLOCK, &t->signals, NULL);
}

/* Waits until then. False: it is to end. */
static bool wait_until(const struct top *t, double until_s, const char *note)
{
    for (;;) {
        double left_s = until_s - cws_now_s();
        left_s = left_s > 0 ? left_s : 0;
        struct timespec left = {.tv_sec = (time_t)left_s};
        left.tv_nsec = (long)((left_s - (double)left.tv_sec) * 1e9);
        int signo = sigtimedwait(&t->signals, NULL, &left);
        if (signo < 0 && errno == EAGAIN)
            return true;
        if (signo == SIGTSTP) {
            leave();
            raise(SIGSTOP);
            enter();
        }
        if (signo == SIGTSTP || signo == SIGWINCH) {
            if (t->screen)
                draw(t, note);
        } else if (signo > 0) {
            return false;
        }
    }
}

static int watch(struct top *t)
{
    struct cws_error err = {0};
    char note[600] = "";
    int code = 0;
    double next_s = cws_now_s();
    for (;;) {
        next_s += t->interval_s;
        if (next_s < cws_now_s())
            next_s = cws_now_s();
        if (!wait_until(t, next_s, note))
            return CWS_EXIT_FINE;
        code = sample(t, &err);
        if (code && (code != -EAGAIN || t->once))
            break;
        snprintf(note, sizeof note, "%s", code ? err.message : "");
        if (!code || t->screen)
            show(t, note);
        if (t->once || ferror(stdout))
            return CWS_EXIT_FINE;
    }
    if (t->screen)
        leave();
    t->screen = false;
    return say_end(t, code, &err);
}

static int top(struct top *t)
{
    int status = begin(t);
    if (status)
        return status;
    if (!t->once)
        block_signals(t);
    if (t->screen) {
        enter();
        draw(t, "");
    }
    status = watch(t);
    if (t->screen)
        leave();
    cws_top_sample_free(&t->now);
    cws_top_sample_free(&t->before);
    return status;
}

/* --- the command line ----------------------------------------------------------------------------------------- */

static bool read_seconds(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && *out >= 0.1 && *out <= 3600;
}

static int run_top(int argc, char **argv)
{
    static const struct option longs[] = {{"interval", required_argument, NULL, 'i'},
                                          {"json", no_argument, NULL, 'j'},
                                          {"once", no_argument, NULL, 'o'},
                                          {0}};
    struct top t = {.interval_s = 1};
    const char *term = getenv("TERM");
    int c;
    sigemptyset(&t.signals);
    while ((c = getopt_long(argc, argv, ":i:", longs, NULL)) != -1) {
        if (c == 'j')
            t.json = true;
        else if (c == 'o')
            t.once = true;
        else if (c == ':')
            return cws_say_usage("top", "%s needs a value", argv[optind - 1]);
        else if (c != 'i')
            return cws_say_usage("top", "unknown option %s", argv[optind - 1]);
        else if (!read_seconds(optarg, &t.interval_s))
            return cws_say_usage("top", "--interval %s: not a number of seconds from 0.1 to 3600", optarg);
    }
    if (argc - optind > 1)
        return cws_say_usage("top", "takes one process, or none for all");
    if (optind < argc && !cws_ask_pid(argv[optind], &t.pid))
        return cws_say_usage("top", "%s: not the number of a process", argv[optind]);
    t.screen = !t.json && !t.once && isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0;
    t.once = t.once || (!t.json && !t.screen);
    return top(&t);
}

const struct cws_verb cws_verb_top = {
    .name = "top",
    .summary = "show what processes page: memory, loads, waits",
    .help =
        "Usage: codecllm top [--interval SECONDS] [--once] [--json] [PID]\n"
        "\n"
        "Shows, once a second, what processes that run under CodecLLM page: a line for each GPU of each process, and\n"
        "for weights in host memory. With PID more of one process. Ctrl-C ends it.\n"
        "\n"
        "  budget    what CODEC_VRAM_BUDGET or 'codecllm budget' gave\n"
        "  weights   decoded weights in memory\n"
        "  other     on a GPU activations, caches and all else that counts; on the host, where it does not count,\n"
        "            the process's own memory\n"
        "  loads/s   weights brought to a GPU, blocks decoded on the host\n"
        "  ahead %   of the loads, those that began before the program asked\n"
        "  link %    of the time that the link to the GPU was busy with weights\n"
        "  waits %   of the time that launches waited; more than 100 where several threads do\n"
        "\n"
        "Only processes of the same user are shown, to root all.\n"
        "\n"
        "Options:\n"
        "  -i, --interval SECONDS  between two samples, 0.1 to 3600 (default 1)\n"
        "  --once                  what happens in one interval, as plain text; so it is without a terminal, too\n"
        "  --json                  a line of JSON for each interval, without an end; with --once one line\n"
        "\n"
        "Exit status: 0 fine, also where the process ended or Ctrl-C was pressed; 2 usage, no such process, nothing\n"
        "is paged there, no permission.\n"
        "\n"
        "Examples:\n"
        "  codecllm top\n"
        "  codecllm top 4711\n"
        "  codecllm top --once --json 4711\n",
    .run = run_top,
};
