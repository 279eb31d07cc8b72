/* file_mode.h - who may use an output: the owner, the group and the permissions of the input, less the umask, as cp and
 * zstd give them. Threads: any. */
#ifndef CWS_FILE_MODE_H
#define CWS_FILE_MODE_H
#include "error.h"
#include <sys/stat.h>

/* Sets the mode of an open file or directory of ours that nobody else can use yet.
 *   like  the input that it was made from; NULL: made from memory, 0666
 *   most  permissions that it may have at most (those of what it replaces)
 * The mode is that of `like` without setuid, setgid and sticky, less the umask (a directory keeps the setgid that it
 * was made with); its owner may always read. The owner becomes that of `like` where this process may do that (root).
 * Where the group is not and cannot be made that of `like`, the group gets no more than others. A file system that has
 * no permissions leaves it as it is. -errno: it cannot be looked at; its permissions are as they were.
 * Allocates: no. */
CWS_MUST_CHECK int cws_file_mode_take(int fd, const struct stat *like, mode_t most);

#endif
