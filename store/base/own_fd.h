/* own_fd.h - descriptors of this library inside the program's process. A program that closes every descriptor it does
 * not know (a daemon, a spawner) would close a userfaultfd with them, and missing pages would then read as zeros. The
 * shim asks here before it lets the program close or replace a descriptor.
 *
 * Nor may ours take the numbers that the program's own limit (RLIMIT_NOFILE) gives it, where a model has hundreds of
 * files. What is open stays open whatever the limit becomes, so the soft limit is raised to the hard one for the
 * instant in which a descriptor of ours is made or moved above it, and set back: the program and its children do not
 * see a change.
 * Threads: any. No allocation, no locks. */
#ifndef CWS_OWN_FD_H
#define CWS_OWN_FD_H
#include <stdbool.h>

enum { CWS_OWN_FD_MAX = 65536 }; /* a descriptor above is not guarded */

/* Marks fd (ignored when negative) as ours; returns fd. cws_os_close() takes the mark away. */
int cws_own_fd_note(int fd);
/* As note, for one that was just made and of which there may be many: where ours take more than an eighth of what the
 * program may have open, it is moved above the soft limit. The number it has now. */
int cws_own_fd_keep(int fd);
/* The soft limit is the hard one until cws_own_fd_lower(), so that a call may be tried again that failed with EMFILE.
 * False: there is no difference, or it was not possible; nothing to lower. */
bool cws_own_fd_raise(void);
void cws_own_fd_lower(void);
void cws_own_fd_forget(int fd);
bool cws_own_fd_is(int fd);
/* The least marked descriptor that is >= first, or -1. */
int cws_own_fd_next(int first);
#endif
