/* core.c - the lock's conditions, lines for the user, the clock. */
#include "core.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

void cws_gpu_core_init(struct cws_gpu_core *core, const struct cws_gpu_config *config, CUdevice device)
{
    *core = (struct cws_gpu_core){.driver = config->driver,
                                  .device = device,
                                  .tuning = &cws_tuning_default,
                                  .say = config->say,
                                  .lock = CWS_LOCK_OF(CWS_RANK_GPU)};
}

void cws_gpu_core_stop(struct cws_gpu_core *core)
{
    cws_gpu_lock(core);
    core->stop = true;
    cws_gpu_wake_locked(core);
    cws_gpu_changed_locked(core);
    cws_gpu_unlock(core);
}

void cws_gpu_wake_locked(struct cws_gpu_core *core)
{
    core->work_due = true;
    cws_cond_signal(&core->work);
}

void cws_gpu_work_begin_locked(struct cws_gpu_core *core) { core->work_due = false; }

void cws_gpu_work_wait_drops_lock(struct cws_gpu_core *core, uint64_t ns)
{
    while (!core->work_due && ns == UINT64_MAX)
        cws_cond_wait_drops_lock(&core->work, &core->lock);
    if (!core->work_due)
        cws_cond_wait_ns_drops_lock(&core->work, &core->lock, ns);
}

void cws_gpu_say(const struct cws_gpu_core *core, const char *format, ...)
{
    char line[640];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (core->say)
        core->say(line);
}

void cws_gpu_unexpected(const struct cws_gpu_core *core, CUresult error, const char *what)
{
    struct cws_error err;
    cws_driver_fail(core->driver, &err, error, what);
    cws_gpu_say(core, "%s", err.message);
}

uint64_t cws_gpu_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
