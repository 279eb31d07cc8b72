/* os_transfer.c - whole reads and writes: the loops that go on after a short transfer or an interruption. */
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

/* Some file systems answer EAGAIN even to a blocking read; a device that never recovers must still end. */
enum { RETRIES_MAX = 10000, BLOCK_BYTES = 4096 };

static int may_retry(int code, unsigned *retries)
{
    if (code != -EINTR && code != -EAGAIN)
        return 0;
    if (code == -EAGAIN)
        sched_yield();
    return ++*retries < RETRIES_MAX;
}

/* As pread, by way of one aligned block: O_DIRECT takes nothing else. */
static ssize_t read_block(int fd, void *data, size_t bytes, uint64_t offset)
{
    uint8_t room[2 * BLOCK_BYTES];
    uint8_t *block = room + (BLOCK_BYTES - (uintptr_t)room % BLOCK_BYTES) % BLOCK_BYTES;
    size_t skip = offset % BLOCK_BYTES;
    ssize_t n = cws_os_pread(fd, block, BLOCK_BYTES, offset - skip);
    if (n <= (ssize_t)skip)
        return n < 0 ? n : 0;
    size_t got = (size_t)n - skip < bytes ? (size_t)n - skip : bytes;
    memcpy(data, block + skip, got);
    return (ssize_t)got;
}

int cws_os_read_full(int fd, void *data, size_t bytes, uint64_t offset, size_t *out_got)
{
    size_t got = 0;
    unsigned retries = 0;
    int code = 0;
    while (got < bytes) {
        ssize_t n = cws_os_pread(fd, (char *)data + got, bytes - got, offset + got);
        if (n == -EINVAL)
            n = read_block(fd, (char *)data + got, bytes - got, offset + got);
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

int cws_os_reopen(int fd, int flags)
{
    char path[40];
    struct stat was, is;
    int code = cws_os_fstat(fd, &was);
    if (!code && !S_ISREG(was.st_mode)) /* opening a device may do something; a FIFO waits */
        code = -EINVAL;
    if (code)
        return code;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = cws_os_openat(AT_FDCWD, path, flags | O_NOCTTY | O_NONBLOCK, 0);
    if (again < 0)
        return again;
    code = cws_os_fstat(again, &is);
    if (!code && (is.st_dev != was.st_dev || is.st_ino != was.st_ino)) /* what is mounted there is no /proc */
        code = -ENOENT;
    if (code)
        cws_os_close(again);
    return code ? code : again;
}
