/* progress.c - draws the progress bar, and counts signals that ask the command to stop. */
#include "progress.h"
#include "text.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static struct cws_progress *current; /* the bar that is on the terminal, or NULL */
static volatile int interrupted;
static long first_ms; /* of CLOCK_MONOTONIC, when the first signal came; 0 before */

/* Signals closer together than this count as one: timeout(1), batch systems and a shell's kill of a job send one to the
 * process and one to its group. */
#define SAME_SIGNAL_MS 300

static unsigned terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

void cws_progress_begin(struct cws_progress *p, const char *verb, uint64_t total_bytes)
{
    const char *term = getenv("TERM");
    memset(p, 0, sizeof *p);
    p->shown = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    p->verb = verb;
    p->total_bytes = total_bytes;
    p->begin_s = cws_now_s();
}

void cws_progress_item(struct cws_progress *p, const char *name, uint64_t item_bytes)
{
    const char *base = strrchr(name, '/');
    p->base_bytes += p->item_bytes;
    p->item_bytes = item_bytes;
    cws_printable(base ? base + 1 : name, p->item, sizeof p->item);
}

static void time_left(char *buf, size_t size, double seconds)
{
    unsigned long s = seconds < 1e7 ? (unsigned long)(seconds + 0.5) : 9999999;
    if (s >= 3600)
        snprintf(buf, size, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(buf, size, "%lu:%02lu", s / 60, s % 60);
}

static void draw(struct cws_progress *p, uint64_t done, double now)
{
    enum { BAR = 24 };
    char line[512], bar[BAR + 1], left[32] = "-:--";
    double seconds = now - p->begin_s, part = p->total_bytes ? (double)done / (double)p->total_bytes : 1.0;
    if (part > 1.0)
        part = 1.0;
    double rate = seconds > 0 ? (double)done / seconds : 0;
    if (done && seconds > 0.5) /* an earlier guess is noise */
        time_left(left, sizeof left, (double)(p->total_bytes - (part < 1.0 ? done : p->total_bytes)) / rate);
    int filled = (int)(part * BAR);
    for (int i = 0; i < BAR; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR] = '\0';
    int used = snprintf(line, sizeof line, "%s [%s] %3d%%  %s of %s  %.0f MB/s  %s left  %s", p->verb, bar,
                        (int)(part * 100), cws_size_text(done).text, cws_size_text(p->total_bytes).text, rate / 1e6,
                        left, p->item);
    unsigned columns = terminal_columns();
    size_t len = used < 0 ? 0 : (size_t)used < sizeof line ? (size_t)used : sizeof line - 1;
    if (len >= columns) /* a wrapped line could not be taken back; one column stays free for the cursor */
        len = columns - 1;
    fprintf(stderr, "\r%.*s\033[K", (int)len, line);
    fflush(stderr);
    p->drawn_s = now;
    current = p;
}

void cws_progress_update(void *arg, uint64_t done, uint64_t total)
{
    struct cws_progress *p = arg;
    if (!p->shown)
        return;
    double now = cws_now_s();
    if (now - p->drawn_s < 0.1)
        return;
    double part = total ? (double)done / (double)total : 1.0;
    draw(p, p->base_bytes + (uint64_t)(part * (double)p->item_bytes), now);
}

void cws_progress_erase(void)
{
    if (current) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        current = NULL;
    }
}

void cws_progress_end(struct cws_progress *p)
{
    p->shown = false;
    cws_progress_erase();
}

static void on_interrupt(int signo)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long ms = (long)now.tv_sec * 1000 + now.tv_nsec / 1000000 + 1, before = 0;
    if (__atomic_compare_exchange_n(&first_ms, &before, ms, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        /* lock-free: safe in a handler, seen by all threads */
        __atomic_store_n(&interrupted, 1, __ATOMIC_RELAXED);
    } else if (ms - before > SAME_SIGNAL_MS) { /* asked again: end at once, as if there were no handler */
        signal(signo, SIG_DFL);
        raise(signo);
    }
}

const volatile int *cws_interrupt_flag(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction old, action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
        /* nohup and background jobs of a shell without job control start with these ignored: leave them so */
        if (!__atomic_load_n(&interrupted, __ATOMIC_RELAXED) && sigaction(signals[i], NULL, &old) == 0 &&
            old.sa_handler == SIG_DFL)
            sigaction(signals[i], &action, NULL);
    }
    return &interrupted;
}
