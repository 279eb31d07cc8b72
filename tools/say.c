/* say.c - prints lines for a person. */
#include "say.h"
#include "progress.h"
#include "verbs.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Long enough for a path, a tensor name and the library's line; longer text is cut, never split over two writes. */
enum { LINE_BYTES = 8192 };

/* Names and messages may come out of a file: nothing that drives a terminal gets through. */
static void say_line(const char *lead, const char *fmt, va_list args)
{
    char text[LINE_BYTES], line[LINE_BYTES + 1];
    int used = snprintf(text, sizeof text, "codecllm: %s%s", lead ? lead : "", lead ? ": " : "");
    vsnprintf(text + used, sizeof text - (size_t)used, fmt, args);
    cws_printable(text, line, sizeof line - 1);
    size_t len = strlen(line);
    line[len] = '\n';
    cws_progress_erase();
    fflush(stdout); /* keeps findings and talk in order when both go to one place */
    fwrite(line, 1, len + 1, stderr);
}

void cws_say_line(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say_line(NULL, fmt, args);
    va_end(args);
}

int cws_say_error(const char *path, const char *other, const struct cws_error *err)
{
    const char *message = err->message[0] ? err->message : cws_strerror(err->code);
    if (strstr(message, path) || (other && strstr(message, other)))
        cws_say_line("%s", message);
    else
        cws_say_line("%s: %s", path, message);
    return CWS_EXIT_FAILURE;
}

int cws_say_usage(const char *verb, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say_line(verb, fmt, args);
    va_end(args);
    cws_say_line("try 'codecllm %s%s--help'", verb ? verb : "", verb ? " " : "");
    return CWS_EXIT_FAILURE;
}
