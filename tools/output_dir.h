/* output_dir.h - a directory that appears whole or not at all: made under a temporary name beside the final one and
 * renamed at the end. Nothing in it existed before, so nothing is written through a link. Nobody but its owner can
 * enter it before it has its name. A kill leaves ".NAME.partial-XXXXXX", which the next run for the same output
 * removes: a marker in it is locked with flock, so that a living one is never taken for a left-over. Threads: one. */
#ifndef CWS_OUTPUT_DIR_H
#define CWS_OUTPUT_DIR_H
#include "store/base/error.h"
#include <sys/stat.h>

struct cws_output_dir {
    char *final;      /* without slashes at the end */
    char *outer;      /* ".NAME.partial-XXXXXX" in the same directory */
    char *temporary;  /* in it: the directory to fill */
    int lock;         /* of the marker in outer */
    struct stat like; /* the input */
};

/* Checks that `out` can become the output for the directory `in` (it does not exist or is empty; it is no symbolic
 * link; it does not lie inside `in`) and makes the temporary directory. On an error nothing was made. CWS_E_USAGE: the
 * line says what to do; -errno. */
CWS_MUST_CHECK int cws_output_dir_begin(const char *in, const char *out, struct cws_output_dir *d,
                                        struct cws_error *err);
/* Gives the directory the permissions of the input, less the umask and those of an empty directory that it replaces,
 * and its name. On an error it is removed, as by abort. Frees *d. */
CWS_MUST_CHECK int cws_output_dir_commit(struct cws_output_dir *d, struct cws_error *err);
/* Removes the temporary directory with all that is in it. Frees *d. */
void cws_output_dir_abort(struct cws_output_dir *d);

/* Refuses a single file's output that is a directory or the input itself. CWS_E_USAGE. */
CWS_MUST_CHECK int cws_output_file_check(const char *in, const char *out, struct cws_error *err);

#endif
