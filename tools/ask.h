/* ask.h - asks a process that pages for its budget or counters, over the socket of store/base/control.h.
 * Threads: any. */
#ifndef CWS_ASK_H
#define CWS_ASK_H
#include "store/base/control.h"
#include "store/base/error.h"
#include <stdbool.h>

/* Reads the number of a process, 1 to 999999999, from text. False: it is none. */
bool cws_ask_pid(const char *text, int *out);

/* Sends `request`, a line without its end, and waits `seconds` at most for the answer, in all.
 *   answer  lines, terminated; the last one is "end"
 * Returns 0, or what follows with a line for a person, which names no process:
 *   -ESRCH: no such process; -ECONNREFUSED: nothing is paged there; -EAGAIN: no answer in time; -EPIPE: it ended
 *   without one; -EPERM: another process listens in its place; CWS_E_UNSUPPORTED: the answer is of another version; or
 *   the code with which the process refuses, -EACCES for a foreign one. */
CWS_MUST_CHECK int cws_ask(int pid, const char *request, unsigned seconds, char answer[CWS_CONTROL_ANSWER],
                           struct cws_error *err);

#endif
