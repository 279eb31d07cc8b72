/* budget.h - the budget of this process while it runs, in the forms of CODEC_VRAM_BUDGET: of all its GPUs and of views
 * in host memory, of those that come later, too; and sleep. What is exported is for the Python package, through ctypes.
 * Threads: any of the program's, none inside a use or from a signal handler. */
#ifndef CWS_SHIM_BUDGET_H
#define CWS_SHIM_BUDGET_H
#include "store/base/error.h"
#include <stddef.h>

/* All or nothing: smaller budgets first, and where one cannot be met (CWS_E_BUDGET) the others are as before. A GPU
 * that a list does not name keeps its budget. CWS_E_USAGE: not understood. CWS_E_BUSY: paging is off in this process.
 * CWS_E_UNSUPPORTED: only views, and those cannot be paged here. May take as long as cws_gpu_set_budget says, for each
 * GPU. One call at a time: others wait. */
CWS_MUST_CHECK int cws_shim_set_budget(const char *text, struct cws_error *err);
/* cws_gpu_sleep and cws_pager_sleep for all of them; cws_gpu_wake_up. CWS_E_BUSY as above. */
CWS_MUST_CHECK int cws_shim_sleep(struct cws_error *err);
CWS_MUST_CHECK int cws_shim_wake(struct cws_error *err);

/* In the child of fork(): nobody changes it there. */
void cws_shim_budget_fork_child(void);

/* The same; the line in buf, cut off at n bytes and always terminated when n > 0 ("" where there is none). */
int codecllm_set_budget(const char *text, char *buf, size_t n);
int codecllm_sleep(char *buf, size_t n);
int codecllm_wake(char *buf, size_t n);

#endif
