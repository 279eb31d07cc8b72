/* budget.c - the budget of this process while it runs, and sleep. */
#include "budget.h"
#include "shim/cuda/budget.h"
#include "shim/libc/hooks.h"
#include "state.h"
#include "store/base/lock.h"
#include "uvm/host/view.h"

#include <errno.h>
#include <stdio.h>

static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_BUDGET);

void cws_shim_budget_fork_child(void) { cws_lock_reset(&lock); }

static int check_on(struct cws_error *err)
{
    if (!cws_shim_active())
        return cws_fail(err, CWS_E_BUSY,
                        "paging is off in this process: CODEC_VRAM_BUDGET was not set when it started");
    if (cws_shim_check_options())
        return cws_fail(err, CWS_E_BUSY, "paging is off in this process: a CODEC_* variable was not understood");
    return 0;
}

/* The views' budget; *before: what it was, 0: they have none yet. */
static int set_host(const struct cws_options *options, uint64_t *before, struct cws_error *err)
{
    struct cws_pager_stats stats;
    *before = 0;
    if (!cws_shim_pager_started())
        return 0;
    cws_pager_stats_get(&stats);
    *before = stats.budget_bytes;
    return cws_pager_set_budget(cws_options_host_budget(options), err);
}

static void restore_host(uint64_t before)
{
    struct cws_error err = {0};
    if (before && cws_pager_set_budget(before, &err))
        return; /* it is on the eager rung, which has none */
}

static int set_locked(const struct cws_options *options, struct cws_error *err)
{
    struct cws_cuda_budgets gpus;
    uint64_t host = 0;
    cws_cuda_budgets_begin(&gpus, options);
    int code = cws_cuda_budgets_shrink(&gpus, err);
    if (!code)
        code = set_host(options, &host, err);
    if (code == CWS_E_UNSUPPORTED && gpus.count > 0)
        code = 0; /* the GPUs are what it is for */
    if (!code && cws_shim_change_options(options)) {
        restore_host(host);
        code = cws_fail(err, -ENOMEM, "no memory for another budget");
    }
    if (code)
        cws_cuda_budgets_restore(&gpus);
    else
        cws_cuda_budgets_grow(&gpus);
    cws_cuda_budgets_end();
    return code;
}

int cws_shim_set_budget(const char *text, struct cws_error *err)
{
    int code = check_on(err);
    if (code)
        return code;
    cws_lock_take(&lock);
    struct cws_options options = *cws_shim_options();
    code = cws_options_set_budget(&options, text, err);
    if (!code)
        code = set_locked(&options, err);
    cws_lock_drop(&lock);
    return code;
}

int cws_shim_sleep(struct cws_error *err)
{
    int code = check_on(err);
    if (code)
        return code;
    cws_lock_take(&lock);
    cws_cuda_sleep();
    cws_pager_sleep();
    cws_lock_drop(&lock);
    return 0;
}

int cws_shim_wake(struct cws_error *err)
{
    int code = check_on(err);
    if (!code)
        cws_cuda_wake();
    return code;
}

/* --- for the Python package ------------------------------------------------------------------------------ */

static int answer(int code, const struct cws_error *err, char *buf, size_t n)
{
    if (n)
        snprintf(buf, n, "%s", code ? err->message : "");
    return code;
}

CWS_EXPORT int codecllm_set_budget(const char *text, char *buf, size_t n)
{
    struct cws_error err = {0};
    return answer(cws_shim_set_budget(text, &err), &err, buf, n);
}

CWS_EXPORT int codecllm_sleep(char *buf, size_t n)
{
    struct cws_error err = {0};
    return answer(cws_shim_sleep(&err), &err, buf, n);
}

CWS_EXPORT int codecllm_wake(char *buf, size_t n)
{
    struct cws_error err = {0};
    return answer(cws_shim_wake(&err), &err, buf, n);
}
