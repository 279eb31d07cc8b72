/* buffers.h - system calls whose buffers lie in views. On some rungs the kernel cannot wait for a view's page to be
 * filled and answers EFAULT, so such a call runs in pieces, each made present and held while the kernel uses it.
 * Threads: any. */
#ifndef CWS_SHIM_BUFFERS_H
#define CWS_SHIM_BUFFERS_H
#include "uvm/host/view.h"
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

/* One call, to be run in pieces. `call` transfers the parts (at most CWS_BUFFERS_PARTS, at least one) and returns what
 * the system call does, errno included; `done` is what earlier pieces transferred. */
struct cws_transfer {
    ssize_t (*call)(const struct cws_transfer *t, const struct iovec *parts, int count, size_t done);
    int fd, flags;
    off_t offset;
    const struct msghdr *message;
    bool into; /* the kernel writes the memory */
    /* a second call could block although the first one has a result, or would be a second message */
    bool once;
    bool whole; /* all of it in one call, or EMSGSIZE */
};
enum { CWS_BUFFERS_PARTS = 64 };

ssize_t cws_buffers_run(const struct cws_transfer *t, const struct iovec *parts, int count);

/* Calls call(arg) while the parts, together at most cws_view_hold_max() bytes, are present and stay so. They are let go
 * also when the thread is cancelled in the call; a jump out of it keeps them until the view ends. 0, or -errno: it was
 * not called. */
int cws_buffers_while_held(const struct iovec *parts, int count, bool into, void (*call)(void *arg), void *arg);

/* Does any part touch a view? */
bool cws_buffers_any(const struct iovec *parts, int count);

/* How a call into or from this descriptor may be cut: sets once and whole. */
void cws_buffers_classify(struct cws_transfer *t);

#endif
