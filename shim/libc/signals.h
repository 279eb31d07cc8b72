/* signals.h - installs our SIGSEGV and SIGBUS handlers in front of the program's where the pager needs them.
 * Threads: any; safe in a signal handler and in a fork child. */
#ifndef CWS_SHIM_LIBC_SIGNALS_H
#define CWS_SHIM_LIBC_SIGNALS_H

/* Installs our handler if the pager needs it and it is not installed. What the program had, or sets later, is what we
 * chain to, and what it is told when it asks. Keeps errno. */
void cws_signals_refresh(void);

/* Around fork(), by the thread that forks, innermost of our locks: no action is half written in the child. */
void cws_signals_fork_prepare(void);
void cws_signals_fork_done(void); /* in the parent, and in the child before anything else of ours */

/* If it is installed: lets both signals through to this thread, which may have blocked them before. */
void cws_signals_unblock(void);

#endif
