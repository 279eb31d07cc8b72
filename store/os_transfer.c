#include "os.h"

#include <errno.h>
#include <sched.h>

/* Some file systems answer EAGAIN even to a blocking read; a device that never recovers must still end. */
enum { RETRIES_MAX = 10000 };

static int may_retry(int code, unsigned *retries)
{
    if (code != -EINTR && code != -EAGAIN)
        return 0;
    if (code == -EAGAIN)
        sched_yield();
    return ++*retries < RETRIES_MAX;
}

int cws_os_read_full(int fd, void *data, size_t bytes, uint64_t offset, size_t *out_got)
{
    size_t got = 0;
    unsigned retries = 0;
    int code = 0;
    while (got < bytes) {
        ssize_t n = cws_os_pread(fd, (char *)data + got, bytes - got, offset + got);
        if (n > 0) {
            got += (size_t)n;
        } else if (n == 0) {
            break;
        } else if (!may_retry((int)n, &retries)) {
            code = (int)n;
            break;
        }
    }
    *out_got = got;
    return code;
}

int cws_os_write_full(int fd, const void *data, size_t bytes, uint64_t offset)
{
    size_t done = 0;
    unsigned retries = 0;
    while (done < bytes) {
        ssize_t n = cws_os_pwrite(fd, (const char *)data + done, bytes - done, offset + done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0)
            return -ENOSPC;
        else if (!may_retry((int)n, &retries))
            return (int)n;
    }
    return 0;
}
