/* ask.c - the client's side of the control socket. */
#include "ask.h"
#include "text.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

bool cws_ask_pid(const char *text, int *out)
{
    size_t digits = strspn(text, "0123456789");
    *out = digits && digits <= 9 && !text[digits] ? (int)strtol(text, NULL, 10) : 0;
    return *out > 0;
}

static int fail_late(unsigned seconds, struct cws_error *err)
{
    return cws_fail(err, -EAGAIN, "no answer in %u s; is it stopped?", seconds);
}

static int fail_connect(int pid, int why, unsigned seconds, struct cws_error *err)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d", pid);
    if (access(path, F_OK) != 0)
        return cws_fail(err, -ESRCH, "no such process");
    if (why == ECONNREFUSED)
        return cws_fail(err, -ECONNREFUSED,
                        "nothing is paged there: it runs without CODEC_VRAM_BUDGET, has neither mapped a packed file "
                        "nor used a GPU yet, or is the forked child of a process that did");
    if (why == EAGAIN) /* nobody has accepted those that came before */
        return fail_late(seconds, err);
    return cws_fail(err, -why, "cannot be asked: %s", cws_strerror(-why));
}

static int reach(int fd, int pid, unsigned seconds, struct cws_error *err)
{
    struct sockaddr_un address;
    struct ucred peer = {.pid = 0};
    const struct timeval wait = {.tv_sec = seconds};
    socklen_t size = cws_control_address(pid, &address), peer_size = sizeof peer;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) != 0 ||
        connect(fd, (const struct sockaddr *)&address, size) != 0)
        return fail_connect(pid, errno, seconds, err);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_size) != 0 || peer.pid != pid)
        return cws_fail(err, -EPERM, "process %d listens in its place, and was not asked", (int)peer.pid);
    return 0;
}

/* All of the answer, or of one that is too long its beginning, terminated. */
static int receive(int fd, unsigned seconds, char *answer, struct cws_error *err)
{
    double late_s = cws_now_s() + seconds;
    size_t got = 0;
    ssize_t n = 0;
    while (got < CWS_CONTROL_ANSWER - 1 && cws_now_s() < late_s &&
           (n = recv(fd, answer + got, CWS_CONTROL_ANSWER - 1 - got, 0)) > 0)
        got += (size_t)n;
    int why = n < 0 ? errno : 0;
    answer[got] = '\0';
    if (got == CWS_CONTROL_ANSWER - 1 || (got && answer[got - 1] == '\n'))
        return 0;
    if (why == EAGAIN || why == EWOULDBLOCK || n > 0)
        return fail_late(seconds, err);
    return cws_fail(err, -EPIPE, "it ended without an answer");
}

static int check(char *answer, struct cws_error *err)
{
    static const char refusal[] = "error ", end[] = "end\n";
    size_t bytes = strlen(answer);
    if (strncmp(answer, refusal, strlen(refusal)) == 0) {
        char *text;
        long code = strtol(answer + strlen(refusal), &text, 10);
        text[strcspn(text, "\n")] = '\0';
        if (code < 0 && code > -100000)
            return cws_fail(err, (int)code, "%s", text + (*text == ' '));
    } else if (bytes >= strlen(end) && strcmp(answer + bytes - strlen(end), end) == 0) {
        return 0;
    }
    return cws_fail(err, CWS_E_UNSUPPORTED, "the answer is of another version of codecllm");
}

int cws_ask(int pid, const char *request, unsigned seconds, char answer[CWS_CONTROL_ANSWER], struct cws_error *err)
{
    char line[CWS_CONTROL_LINE];
    int len = snprintf(line, sizeof line, "%s\n", request);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail_connect(pid, errno, seconds, err);
    int code = reach(fd, pid, seconds, err);
    if (!code) {
        /* who is refused may have the answer, and nobody who listens, before */
        send(fd, line, (size_t)len, MSG_NOSIGNAL);
        code = receive(fd, seconds, answer, err);
    }
    close(fd);
    return code ? code : check(answer, err);
}
