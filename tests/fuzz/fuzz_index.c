/* A whole store of arbitrary bytes: opened, listed, verified, read. The checksums of trailer, index and front are made
 * right where the trailer's offsets allow it, and those of the chunks, so that the rules behind them are reached. */
#include "fuzz_sign.h"
#include "store/read/store.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int count(void *arg, const struct cws_verify_fault *f)
{
    (void)f;
    return ++*(int *)arg > 3;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct cws_store *s;
    struct cws_error err = {0};
    if (size > 1 << 17)
        return 0;
    if (fd < 0)
        fd = memfd_create("store", 0);
    uint8_t *file = malloc(size + 1);
    if (!file || fd < 0)
        abort();
    memcpy(file, data, size);
    if (size % 2 == 0 || (size && data[size - 1] & 1))
        fuzz_sign(file, size);
    if (ftruncate(fd, 0) || pwrite(fd, file, size, 0) != (ssize_t)size)
        abort();
    free(file);
    int code = cws_store_open_fd(fd, "f", CWS_IO_PREADV, &s, &err); /* a ring for each input is slow */
    if ((code == 0) != (s != NULL) || (code && (err.code != code || !err.message[0])))
        abort();
    if (code)
        return 0;
    int faults = 0;
    int bad = cws_store_verify(s, 1, count, NULL, &faults, &err);
    struct cws_store_cursor *c;
    uint64_t bytes = cws_store_logical_bytes(s);
    if (cws_store_cursor_create(s, 1, &c, &err))
        abort();
    uint8_t *out = malloc(4096);
    for (uint64_t at = 0; at < bytes && at < 1 << 22; at += 4096) {
        uint64_t end = at + 4096 < bytes ? at + 4096 : bytes;
        if (cws_store_read(c, at, end, out, &err) && bad == 0)
            abort(); /* verify said that it is sound */
    }
    free(out);
    cws_store_cursor_destroy(c);
    cws_store_close(s);
    return 0;
}
