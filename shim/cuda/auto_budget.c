/* auto_budget.c - the thread of CODEC_VRAM_BUDGET=auto. */
#include "auto_budget.h"
#include "device.h"
#include "shim/say.h"
#include "shim/state.h"
#include "store/base/guard.h"
#include "store/base/sys.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <time.h>

static struct cws_auto_rule rules[CWS_CUDA_DEVICES]; /* of the thread; total 0: not met yet */

/* Managers are held. Its context is current. */
static void look(struct cws_gpu *gpu, int ordinal, struct cws_auto_rule *rule, const struct cws_options *options)
{
    struct cws_gpu_stats stats;
    struct cws_error err = {0};
    size_t free_bytes = 0, total = 0;
    if (cws_cuda_driver()->mem_info(&free_bytes, &total) != CUDA_SUCCESS)
        return;
    if (rule->total != total)
        *rule = cws_auto_rule_of(options, total);
    cws_gpu_stats_get(gpu, &stats);
    uint64_t next = cws_auto_next(rule, stats.budget_bytes, stats.used_bytes, free_bytes);
    uint64_t least = next < stats.budget_bytes ? cws_gpu_least_budget(gpu) : 0;
    next = next < least ? least : next;
    if (next == stats.budget_bytes || (least && next > stats.budget_bytes))
        return;
    if (cws_gpu_set_budget(gpu, next, &err) == 0 && options->verbose)
        cws_shim_say("GPU %d: budget %.1f MiB, of %.1f MiB that are free or its own", ordinal, (double)next / (1 << 20),
                     (double)(stats.used_bytes + free_bytes) / (1 << 20));
    /* where that cannot be now, the next look tries again */
}

static void look_at_all(void)
{
    cws_cuda_devices_hold();
    const struct cws_options *options = cws_shim_options(); /* which change only while managers are held */
    unsigned count = options->budget_auto ? atomic_load(&cws_cuda_device_count) : 0;
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        CUcontext context = atomic_load(&cws_cuda_devices[i].context);
        if (gpu && context && cws_cuda_driver()->context_set(context) == CUDA_SUCCESS)
            look(gpu, cws_cuda_devices[i].ordinal, &rules[i], options);
    }
    cws_cuda_driver()->context_set(NULL);
    cws_cuda_devices_let();
}

static void *run(void *arg)
{
    const struct timespec second = {.tv_sec = 1};
    (void)arg;
    prctl(PR_SET_NAME, "codecllm-auto");
    while (cws_shim_options()->budget_auto && !cws_cuda_is_exiting()) {
        CWS_SYSCALL(SYS_nanosleep, &second, NULL);
        if (!cws_cuda_is_exiting())
            look_at_all();
    }
    return NULL;
}

void cws_cuda_auto_start(void)
{
    static atomic_flag started = ATOMIC_FLAG_INIT;
    pthread_t thread;
    if (atomic_flag_test_and_set(&started))
        return;
    struct cws_guard guard = cws_guard_begin(); /* the thread has the program's signals blocked */
    int code = pthread_create(&thread, NULL, run, NULL);
    if (!code)
        pthread_detach(thread);
    cws_guard_end(&guard);
    if (code)
        cws_shim_say("CODEC_VRAM_BUDGET=auto: no thread can be started (%s), so the budget stays as it is",
                     cws_strerror(-code));
}
