/* say.h - the shim's lines on stderr, and the errno that fits an error code. Threads: any. */
#ifndef CWS_SHIM_SAY_H
#define CWS_SHIM_SAY_H
#include "store/base/error.h"

/* One line on stderr, "codecllm: " before it. One write; no allocation; errno is kept. */
void cws_shim_say(const char *format, ...) CWS_PRINTF(1, 2);

/* The errno that fits a code of error.h best. */
int cws_shim_errno(int code);

#endif
