/* access.h - permissions of what is in an output directory. Files get those of their input when they are written
 * (store/base/file_mode.h); here is what a tree adds: directories, and links that lead out of it. Threads: one.
 *
 * Links of the input are followed. A file that is 0644 behind a directory that only its owner may enter can be read by
 * nobody else, and neither may its copy: for what a link shows from outside of the input, the permissions of the
 * directories on the way to it count, except of those that the input directory itself lies in. */
#ifndef CWS_ACCESS_H
#define CWS_ACCESS_H
#include "model_dir.h"

/* Takes from the finished file `out`, in an output directory that nobody else can enter yet, what users could not do
 * with `in`, which was named below the directory `root`. -errno with a path in the line. */
CWS_MUST_CHECK int cws_access_narrow_file(const char *root, const char *in, const char *out, struct cws_error *err);

/* Gives every directory of the tree `to`, which is filled and was made from dir, the permissions of its input. The last
 * thing to do, as directories may be read-only. -errno with a path in the line. */
CWS_MUST_CHECK int cws_access_set_directories(const struct cws_model_dir *dir, const char *to, struct cws_error *err);

#endif
