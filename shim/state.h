/* state.h - the shim's state for every hook: active, options, pager started, memory borrowed by a vfork child.
 *
 * The shim does nothing unless CODEC_VRAM_BUDGET is set, and nothing in a program that exports cws_tool_real_files (our
 * own command). Even then it starts no thread and prints no line before the first store is mapped. Before the
 * constructor (shim.c) has run every hook passes through. Threads: any, but for what the constructor calls. */
#ifndef CWS_SHIM_STATE_H
#define CWS_SHIM_STATE_H
#include "store/base/options.h"
#include <stdbool.h>

extern bool cws_shim_is_active; /* written by cws_shim_activate only */
static inline bool cws_shim_active(void) { return __builtin_expect(cws_shim_is_active, 0); }
/* From the constructor: reads the options from the environment. An error is reported at the first store, because the
 * program may never open one. */
void cws_shim_activate(void);

/* Before a store is opened: 0, or -EINVAL when a CODEC_* variable has a value that is not understood (one line says
 * which; said once). */
int cws_shim_check_options(void);
/* What is in force; what it points to stays as it is. */
const struct cws_options *cws_shim_options(void);
/* Others are in force from now on, which are the same but for the budget. 0 or -ENOMEM. One thread at a time. */
int cws_shim_change_options(const struct cws_options *next);

/* Does the pager run (libc/paging.h)? */
bool cws_shim_pager_started(void);
void cws_shim_note_pager(void);
/* Paging begins, here or on a GPU: the first one calls what was given here by the constructor. */
void cws_shim_when_paging(void (*begins)(void));
void cws_shim_note_paging(void);

/* True between vfork and exec: this process borrows the memory of its parent, so it must not note in it what it does to
 * its own descriptors. */
bool cws_shim_is_borrowed(void);
/* In the constructor, and in the child of fork(): the memory is this process's own. */
void cws_shim_note_owner(void);

#endif
