/* trace_file.h - reads a trace back, for tests, and checks what holds for every one of them. */
#ifndef TRACE_FILE_H
#define TRACE_FILE_H
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* The events of the file (json_decref). Fails the test unless: it is JSON (unfinished: with "]" appended); every event
 * has what its phase asks for; spans of each thread nest by name and, in a finished file, all end; times of each thread
 * and lane do not go back; all events have this pid, and every thread a name. */
json_t *trace_load(const char *path, int pid, bool finished);
/* The n-th event of that name and phase ('*': any) from n = 0; NULL: there are fewer. */
json_t *trace_event(json_t *events, const char *name, char phase, size_t n);
size_t trace_count(json_t *events, const char *name, char phase);
const char *trace_text(json_t *event, const char *argument); /* "" if it has none */
long long trace_number(json_t *event, const char *argument); /* -1 if it has none */
#endif
