/* core.h - what the modules of one device's manager share: the driver, the context, the lock that protects them all,
 * and the two things that threads wait for.
 *
 * `lock` (rank CWS_RANK_GPU) protects all state of a manager that does not say otherwise. Calls of the driver that take
 * long (create, map, set access, unmap, copies, launches, waits) are made without it; recording and asking events and
 * asking pools are made under it. A function that may drop the lock inside has a name that ends in `_drops_lock`: what
 * was looked at before has to be looked at again.
 * Threads: any, none from a signal handler. */
#ifndef CWS_GPU_CORE_H
#define CWS_GPU_CORE_H
#include "store/base/driver.h"
#include "store/base/lock.h"
#include "uvm/policy/tuning.h"
#include "manager.h"
#include <stdbool.h>
#include <stdint.h>

struct cws_gpu_core {
    const struct cws_driver *driver;
    CUdevice device;
    CUcontext context;
    const struct cws_tuning *tuning;
    void (*say)(const char *line);
    bool dead; /* in a forked child, where nothing works */
    bool stop; /* the manager closes: threads end, and nobody waits any more */
    struct cws_lock lock;
    struct cws_cond changed; /* a range or a source changed its state, room was granted */
    struct cws_cond work;    /* the loader has something to do: work_due, too */
    bool work_due;
};

void cws_gpu_core_init(struct cws_gpu_core *core, const struct cws_gpu_config *config, CUdevice device);
/* All threads are to end. The lock is not held. */
void cws_gpu_core_stop(struct cws_gpu_core *core);

static inline void cws_gpu_lock(struct cws_gpu_core *core) { cws_lock_take(&core->lock); }
static inline void cws_gpu_unlock(struct cws_gpu_core *core) { cws_lock_drop(&core->lock); }

/* The lock is held: */
static inline void cws_gpu_changed_locked(struct cws_gpu_core *core) { cws_cond_broadcast(&core->changed); }
static inline void cws_gpu_changed_wait_drops_lock(struct cws_gpu_core *core)
{
    cws_cond_wait_drops_lock(&core->changed, &core->lock);
}
/* The loader is to look again. */
void cws_gpu_wake_locked(struct cws_gpu_core *core);
/* In the loader. Begins a pass: what it is woken for from now on is due in the next one. */
void cws_gpu_work_begin_locked(struct cws_gpu_core *core);
/* In the loader: waits until it is woken, but no longer than this; UINT64_MAX: as long as it takes. */
void cws_gpu_work_wait_drops_lock(struct cws_gpu_core *core, uint64_t ns);

/* Writes one line for the user. The shim puts "codecllm: " before it. */
void cws_gpu_say(const struct cws_gpu_core *core, const char *format, ...) CWS_PRINTF(2, 3);
/* Reports that a driver call of ours failed which must not fail. The manager goes on. */
void cws_gpu_unexpected(const struct cws_gpu_core *core, CUresult error, const char *what);

uint64_t cws_gpu_now_ns(void);
#endif
