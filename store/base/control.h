/* control.h - how `codecllm budget` and `codecllm top` speak with a process that pages: a Unix socket with an abstract
 * name, which nobody has to remove, made from the process's number.
 *
 * A client sends one line: CWS_CONTROL_GET, CWS_CONTROL_SET and a budget in a form of CODEC_VRAM_BUDGET, or
 * CWS_CONTROL_STATS. The answer is either
 *   error CODE TEXT      a code of error.h, and one line for a person
 * or, with bytes in decimal, a line for views and one for each GPU, and a last one:
 *   host BUDGET USED
 *   gpu NUMBER BUDGET USED
 *   end
 * or, to CWS_CONTROL_STATS, all counters, as the Python package gets them (shim/python/codecllm/counters.py), with the
 * time of the monotonic clock at which they were read; without views there is no line for the host:
 *   clock NANOSECONDS
 *   host {...}
 *   gpus [{"device": NUMBER, ...}, ...]
 *   end
 * Anybody can take a name first, so a client looks at the number of who listens (SO_PEERCRED), and a process at the
 * user of who asks. */
#ifndef CWS_CONTROL_H
#define CWS_CONTROL_H
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { CWS_CONTROL_LINE = 1024, CWS_CONTROL_ANSWER = 32768 }; /* bytes of a request, of an answer, at most */
#define CWS_CONTROL_GET "get"
#define CWS_CONTROL_SET "set "
#define CWS_CONTROL_STATS "stats"

/* The address of a process's socket; its length. */
static inline socklen_t cws_control_address(int pid, struct sockaddr_un *out)
{
    memset(out, 0, sizeof *out);
    out->sun_family = AF_UNIX;
    int len = snprintf(out->sun_path + 1, sizeof out->sun_path - 1, "codecllm.%d", pid);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
}

#endif
