/* output_dir.h - a directory that appears whole or not at all: made under a temporary name beside the final one and renamed
 * at the end. Nothing in it existed before, so nothing is written through a link. Threads: one. */
#ifndef CWS_OUTPUT_DIR_H
#define CWS_OUTPUT_DIR_H
#include "../store/error.h"

struct cws_output_dir {
    char *final;     /* without slashes at the end */
    char *temporary; /* ".NAME.partial-XXXXXX" in the same directory */
};

/* Checks that `out` can become the output for the directory `in` (it does not exist or is empty; it is no symbolic link; it
 * does not lie inside `in`) and makes the temporary directory. On an error nothing was made.
 * CWS_E_USAGE: the line says what to do; -errno. */
CWS_MUST_CHECK int cws_output_dir_begin(const char *in, const char *out, struct cws_output_dir *d, struct cws_error *err);
/* Gives the directory its name. On an error it is removed, as by abort. Frees *d. */
CWS_MUST_CHECK int cws_output_dir_commit(struct cws_output_dir *d, struct cws_error *err);
/* Removes the temporary directory with all that is in it. Frees *d. */
void cws_output_dir_abort(struct cws_output_dir *d);

/* Refuses a single file's output that is a directory or the input itself. CWS_E_USAGE. */
CWS_MUST_CHECK int cws_output_file_check(const char *in, const char *out, struct cws_error *err);

#endif
