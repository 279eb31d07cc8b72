/* atomic_file.h - a file that appears under its name whole and durable, or not at all.
 *
 * begin: checks the name and makes ".NAME.codecllm-tmp.PID.N" in the same directory, locked with flock so that a living
 *        one is never taken for a left-over. Left-overs of this name whose process is gone are removed.
 * commit: fsync, rename over the name, fsync of the directory. abort: the temporary file is removed.
 * The temporary file is its owner's alone; before the rename it gets the permissions of the input (file_mode.h), and
 * none that the file which it replaces has not.
 * Between the two the name, and what it names, stay as they were; a kill leaves at most the temporary file. */
#ifndef CWS_ATOMIC_FILE_H
#define CWS_ATOMIC_FILE_H
#include "error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct cws_atomic_file {
    int fd;           /* the temporary file, for writing; -1: none */
    int dir;          /* its directory */
    const char *path; /* as given; the caller keeps it alive */
    char name[256], temporary[256];
    bool has_like;
    struct stat like; /* what it is made from */
};

/* input: if not NULL, the file that is read meanwhile, whose permissions the output gets; the output must not be the
 * same. CWS_E_USAGE: the output is a symbolic link, no regular file, or the input; -errno. On an error there is nothing
 * to abort. */
CWS_MUST_CHECK int cws_atomic_begin(struct cws_atomic_file *f, const char *path, const struct stat *input,
                                    struct cws_error *err);
CWS_MUST_CHECK int cws_atomic_write(struct cws_atomic_file *f, const void *data, size_t bytes, uint64_t offset,
                                    struct cws_error *err);
/* On an error the file is aborted, unless the rename is done and only the directory could not be synced: then the new
 * file is in place, complete, and may be lost by a power failure only. */
CWS_MUST_CHECK int cws_atomic_commit(struct cws_atomic_file *f, struct cws_error *err);
/* Does nothing after commit or another abort. */
void cws_atomic_abort(struct cws_atomic_file *f);

#endif
