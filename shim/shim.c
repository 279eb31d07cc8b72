/* shim.c - the library's constructor: finds the real functions, decides whether the shim is active, and adopts stores
 * that the program inherited as descriptors. */
#include "shim/cuda/state.h"
#include "shim/libc/file_table.h"
#include "shim/libc/hooks.h"
#include "shim/libc/signals.h"
#include "budget.h"
#include "control.h"
#include "state.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void fork_prepare(void)
{
    cws_files_fork_prepare();
    cws_signals_fork_prepare();
}

static void fork_parent(void)
{
    cws_signals_fork_done();
    cws_files_fork_parent();
}

/* Before the pager's own, which was registered later and may install our handlers. */
static void fork_child(void)
{
    cws_signals_fork_done();
    cws_shim_note_owner();
    cws_shim_budget_fork_child();
    cws_control_fork_child();
    cws_files_fork_child();
}

/* A program may be started with a store as its standard input, or on another descriptor that no hook has seen. */
static void adopt_inherited(void)
{
    enum { LOOK_AT = 256 };
    struct pollfd fds[LOOK_AT];
    char link[64], path[PATH_MAX];
    for (int i = 0; i < LOOK_AT; i++)
        fds[i] = (struct pollfd){.fd = i};
    if (poll(fds, LOOK_AT, 0) < 0) /* fewer may be allowed: each is asked, then */
        for (int i = 0; i < LOOK_AT; i++)
            fds[i].revents = 0;
    for (int i = 0; i < LOOK_AT; i++) {
        if (fds[i].revents & POLLNVAL)
            continue;
        int flags = CWS_REAL(fcntl)(i, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH))
            continue;
        snprintf(link, sizeof link, "/proc/self/fd/%d", i);
        ssize_t len = readlink(link, path, sizeof path - 1);
        path[len > 0 ? len : 0] = '\0';
        if (cws_file_adopt(i, path) < 0)
            CWS_REAL(close)(i); /* the line was written; its raw bytes are nothing to read */
    }
}

__attribute__((constructor)) static void start(void)
{
    const char *budget = getenv("CODEC_VRAM_BUDGET");
    int saved = errno;
    cws_shim_note_owner();
    cws_real_find_all();
    if (budget && *budget && !dlsym(RTLD_DEFAULT, "cws_tool_real_files")) {
        pthread_atfork(fork_prepare, fork_parent, fork_child);
        cws_shim_activate();
        cws_shim_when_paging(cws_control_start);
        cws_cuda_start();
        adopt_inherited();
    }
    errno = saved;
}
