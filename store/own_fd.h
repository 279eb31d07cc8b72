/* own_fd.h - descriptors of this library inside the program's process. A program that closes every descriptor it does not know
 * (a daemon, a spawner) would close a userfaultfd with them, and missing pages would then read as zeros. The shim asks
 * here before it lets the program close or replace a descriptor. Threads: any. No allocation, no locks. */
#ifndef CWS_OWN_FD_H
#define CWS_OWN_FD_H
#include <stdbool.h>

enum { CWS_OWN_FD_MAX = 65536 }; /* a descriptor above is not guarded */

/* Marks fd (ignored when negative) as ours; returns fd. cws_os_close() and cws_sys_close() take the mark away. */
int cws_own_fd_note(int fd);
void cws_own_fd_forget(int fd);
bool cws_own_fd_is(int fd);
/* The least marked descriptor that is >= first, or -1. */
int cws_own_fd_next(int first);
#endif
