/* control.h - answers `codecllm budget PID [SIZE]` and `codecllm top` in a process that pages (store/base/control.h has
 * what is said). */
#ifndef CWS_SHIM_CONTROL_H
#define CWS_SHIM_CONTROL_H

/* Begins to listen: a thread that sleeps until somebody asks. Of others than root and the user that the process runs as
 * nothing is taken. Where it cannot be, the process goes on without. Once, when paging begins; any thread. */
void cws_control_start(void);
/* In the child of fork(): it does not answer for its parent, nor for itself. */
void cws_control_fork_child(void);

#endif
