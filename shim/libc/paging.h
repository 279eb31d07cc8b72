/* paging.h - starting the pager, and its counters for the user. */
#ifndef CWS_SHIM_LIBC_PAGING_H
#define CWS_SHIM_LIBC_PAGING_H
#include <stddef.h>

/* Before a store is mapped: starts the pager, with what CODEC_VERBOSE asks to be said. 0 or -errno (the line was
 * written).
 * Threads: any. */
int cws_shim_start_pager(void);

/* The counters as one JSON object in buf (cut off at n bytes, always terminated when n > 0). Returns the length of the
 * whole text, as snprintf does. For the Python package, through ctypes. */
size_t codecllm_stats_json(char *buf, size_t n);

#endif
