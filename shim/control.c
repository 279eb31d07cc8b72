/* control.c - answers `codecllm budget PID [SIZE]` and `codecllm top`. All calls are made raw, because the C library's
 * are our hooks. */
#include "control.h"
#include "budget.h"
#include "say.h"
#include "shim/cuda/budget.h"
#include "shim/cuda/device.h"
#include "shim/libc/paging.h"
#include "state.h"
#include "store/base/control.h"
#include "store/base/guard.h"
#include "store/base/os.h"
#include "store/base/own_fd.h"
#include "store/base/sys.h"
#include "store/base/trace.h"
#include "uvm/host/view.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>

enum { BACKLOG = 16, CLIENT_SECONDS = 2, READS_MOST = 8 /* that a line comes in */ };
static _Atomic int listener = -1;

/* --- an answer -------------------------------------------------------------------------------------------- */

struct answer {
    char text[CWS_CONTROL_ANSWER];
    size_t bytes;
};

static void put(struct answer *a, const char *format, ...) CWS_PRINTF(2, 3);
static void put(struct answer *a, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(a->text + a->bytes, sizeof a->text - a->bytes, format, arguments);
    va_end(arguments);
    if (len > 0 && (size_t)len < sizeof a->text - a->bytes)
        a->bytes += (size_t)len;
}

static void put_budgets(struct answer *a)
{
    struct cws_pager_stats host;
    struct cws_cuda_budget_rows gpus;
    if (cws_shim_pager_started()) {
        cws_pager_stats_get(&host);
        put(a, "host %" PRIu64 " %" PRIu64 "\n", host.budget_bytes, host.resident_bytes);
    }
    cws_cuda_budgets_get(&gpus);
    for (unsigned i = 0; i < gpus.count; i++)
        put(a, "gpu %d %" PRIu64 " %" PRIu64 "\n", gpus.of[i].ordinal, gpus.of[i].budget, gpus.of[i].used);
    put(a, "end\n");
}

/* A line of JSON, which a function writes as snprintf does; one that does not fit is left out. */
static void put_json(struct answer *a, const char *name, size_t (*json)(char *buf, size_t n))
{
    size_t begin = a->bytes;
    put(a, "%s ", name);
    size_t room = sizeof a->text - a->bytes, len = json(a->text + a->bytes, room);
    a->bytes = len < room ? a->bytes + len : begin;
    if (len < room)
        put(a, "\n");
}

static void put_stats(struct answer *a)
{
    put(a, "clock %" PRIu64 "\n", cws_trace_now());
    if (cws_shim_pager_started())
        put_json(a, "host", codecllm_stats_json);
    cws_cuda_devices_hold(); /* none closes meanwhile */
    put_json(a, "gpus", codecllm_gpu_stats_json);
    cws_cuda_devices_let();
    put(a, "end\n");
}

static void obey(const char *line, struct answer *a)
{
    struct cws_error err = {0};
    int code = 0;
    if (strncmp(line, CWS_CONTROL_SET, strlen(CWS_CONTROL_SET)) == 0)
        code = cws_shim_set_budget(line + strlen(CWS_CONTROL_SET), &err);
    else if (strcmp(line, CWS_CONTROL_STATS) != 0 && strcmp(line, CWS_CONTROL_GET) != 0)
        code = cws_fail(&err, CWS_E_USAGE, "the process is of another version of codecllm");
    if (code)
        put(a, "error %d %s\n", code, err.message);
    else if (strcmp(line, CWS_CONTROL_STATS) == 0)
        put_stats(a);
    else
        put_budgets(a);
}

/* --- a client --------------------------------------------------------------------------------------------- */

static bool may_ask(int fd)
{
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t size = sizeof peer;
    if (CWS_SYSCALL(SYS_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return false;
    return peer.uid == 0 || peer.uid == geteuid();
}

/* Its line, without the end of it. False: it did not send one. */
static bool read_line(int fd, char *line, size_t room)
{
    size_t bytes = 0;
    for (unsigned reads = 0; reads < READS_MOST && bytes < room; reads++) {
        long got = cws_sys_read(fd, line + bytes, room - bytes);
        if (got <= 0)
            return false;
        bytes += (size_t)got;
        if (line[bytes - 1] == '\n') {
            line[bytes - 1] = '\0';
            return true;
        }
    }
    return false;
}

static void serve(int fd)
{
    static struct answer a; /* of the one thread that answers */
    const struct timeval wait = {.tv_sec = CLIENT_SECONDS};
    char line[CWS_CONTROL_LINE];
    a.bytes = 0;
    CWS_SYSCALL(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    CWS_SYSCALL(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    if (!may_ask(fd))
        put(&a, "error %d only root and the user that it runs as may see and change its budget\n", -EACCES);
    else if (read_line(fd, line, sizeof line))
        obey(line, &a);
    for (size_t at = 0; at < a.bytes;) {
        long sent = CWS_SYSCALL(SYS_sendto, fd, a.text + at, a.bytes - at, MSG_NOSIGNAL, NULL, 0);
        if (sent <= 0)
            break;
        at += (size_t)sent;
    }
}

static void *run(void *arg)
{
    const struct timespec pause = {.tv_sec = 1};
    (void)arg;
    prctl(PR_SET_NAME, "codecllm-control");
    for (;;) {
        int fd = (int)CWS_SYSCALL(SYS_accept4, atomic_load(&listener), NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            cws_own_fd_note(fd);
            serve(fd);
            CWS_SYSCALL(SYS_shutdown, fd, SHUT_RDWR); /* a child that was forked meanwhile has it, too */
            cws_os_close(fd);
        } else if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM) {
            CWS_SYSCALL(SYS_nanosleep, &pause, NULL);
        } else if (fd != -EINTR && fd != -ECONNABORTED) {
            return NULL;
        }
    }
}

/* --- its beginning and end ---------------------------------------------------------------------------------- */

/* 0 or -errno. */
static int begin(void)
{
    struct sockaddr_un address;
    socklen_t size = cws_control_address(getpid(), &address);
    pthread_t thread;
    int fd = (int)CWS_SYSCALL(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    fd = cws_own_fd_keep(fd);
    int code = (int)CWS_SYSCALL(SYS_bind, fd, &address, size);
    if (code >= 0)
        code = (int)CWS_SYSCALL(SYS_listen, fd, BACKLOG);
    if (code >= 0) {
        atomic_store(&listener, fd);
        code = -pthread_create(&thread, NULL, run, NULL);
    }
    if (code < 0) {
        atomic_store(&listener, -1);
        cws_os_close(fd);
        return code;
    }
    pthread_detach(thread);
    return 0;
}

void cws_control_start(void)
{
    struct cws_guard guard = cws_guard_begin(); /* the thread has the program's signals blocked */
    int code = begin();
    cws_guard_end(&guard);
    if (code && cws_shim_options()->verbose)
        cws_shim_say("'codecllm budget' and 'codecllm top' cannot reach this process: %s", cws_strerror(code));
}

void cws_control_fork_child(void)
{
    int fd = atomic_exchange(&listener, -1);
    if (fd >= 0)
        cws_os_close(fd);
}
