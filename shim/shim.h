/* shim.h - activation, and what the hooks share: options, the one line on stderr, the pager's start.
 *
 * The shim does nothing unless CODEC_VRAM_BUDGET is set, and nothing in a program that exports cws_tool_real_files (our
 * own command). Even then it starts no thread and prints no line before the first store is mapped. Before the
 * constructor has run every hook passes through. Threads: any, for every function. */
#ifndef CWS_SHIM_SHIM_H
#define CWS_SHIM_SHIM_H
#include "store/base/error.h"
#include "store/base/options.h"
#include <stdbool.h>
#include <stddef.h>

extern bool cws_shim_is_active; /* written by the constructor only */

static inline bool cws_shim_active(void) { return __builtin_expect(cws_shim_is_active, 0); }

/* Before a store is opened: 0, or -EINVAL when a CODEC_* variable has a value that is not understood (one line says
 * which; said once). */
int cws_shim_check_options(void);
const struct cws_options *cws_shim_options(void);

/* Before a store is mapped: starts the pager, with what CODEC_VERBOSE asks to be said. 0 or -errno (the line was written). */
int cws_shim_start_pager(void);
bool cws_shim_pager_started(void);

/* True between vfork and exec: this process borrows the memory of its parent, so it must not note in it what it does to its
 * own descriptors. */
bool cws_shim_is_borrowed(void);
/* In the child of fork(): the memory is its own. */
void cws_shim_note_fork(void);

/* One line on stderr, "codecllm: " before it. One write; no allocation; errno is kept. */
void cws_shim_say(const char *format, ...) CWS_PRINTF(1, 2);

/* The errno that fits a code of error.h best. */
int cws_shim_errno(int code);

/* The counters as one JSON object in buf (cut off at n bytes, always terminated when n > 0). Returns the length of the whole
 * text, as snprintf does. For the Python package, through ctypes. */
size_t codecllm_stats_json(char *buf, size_t n);

#endif
