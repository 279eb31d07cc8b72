/* copy_file.c - files that are copied or written as they are, with the same guarantees as a packed one. */
#include "store/base/atomic_file.h"
#include "store/base/os.h"
#include "writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

enum { PIECE_BYTES = 1 << 20 };

static int copy_bytes(int in, const char *in_path, struct cws_atomic_file *out, struct cws_error *err)
{
    uint8_t *piece = malloc(PIECE_BYTES);
    if (!piece)
        return cws_fail(err, -ENOMEM, "%s: not enough memory to copy", in_path);
    uint64_t at = 0;
    size_t got = PIECE_BYTES;
    int code = 0;
    while (!code && got == PIECE_BYTES) {
        code = cws_os_read_full(in, piece, PIECE_BYTES, at, &got);
        if (code)
            cws_fail_errno(err, -code, "%s: cannot read offset %" PRIu64, in_path, at);
        else
            code = cws_atomic_write(out, piece, got, at, err);
        at += got;
    }
    free(piece);
    return code;
}

int cws_copy_file(const char *in_path, const char *out_path, struct cws_error *err)
{
    struct cws_atomic_file out;
    struct stat st;
    int in = cws_os_openat(AT_FDCWD, in_path, O_RDONLY | O_NONBLOCK, 0);
    if (in < 0)
        return cws_fail_errno(err, -in, "%s: cannot open", in_path);
    int code = cws_os_fstat(in, &st);
    if (code)
        cws_fail_errno(err, -code, "%s: cannot stat", in_path);
    else if (!S_ISREG(st.st_mode))
        code = cws_fail(err, CWS_E_USAGE, "%s: not a regular file", in_path);
    if (!code)
        code = cws_atomic_begin(&out, out_path, &st, err);
    if (!code) {
        code = copy_bytes(in, in_path, &out, err);
        if (code)
            cws_atomic_abort(&out);
        else
            code = cws_atomic_commit(&out, err);
    }
    cws_os_close(in);
    return code;
}

int cws_write_file(const char *out_path, const void *data, size_t bytes, const struct stat *like, struct cws_error *err)
{
    struct cws_atomic_file out;
    int code = cws_atomic_begin(&out, out_path, like, err);
    if (code)
        return code;
    code = cws_atomic_write(&out, data, bytes, 0, err);
    if (!code)
        return cws_atomic_commit(&out, err);
    cws_atomic_abort(&out);
    return code;
}
