/* budget.c - other budgets for the GPUs of this process, and sleep. */
#include "budget.h"
#include "device.h"

_Static_assert(CWS_CUDA_DEVICES <= CWS_OPTIONS_DEVICES, "each has its row");

void cws_cuda_budgets_begin(struct cws_cuda_budgets *b, const struct cws_options *options)
{
    struct cws_gpu_stats stats;
    cws_cuda_devices_hold();
    *b = (struct cws_cuda_budgets){.count = 0};
    unsigned count = atomic_load(&cws_cuda_device_count);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        size_t total = 0;
        if (!gpu)
            continue;
        cws_gpu_stats_get(gpu, &stats);
        cws_cuda_driver()->device_total(&total, cws_cuda_devices[i].ordinal);
        uint64_t bytes = cws_options_device_budget(options, cws_cuda_devices[i].ordinal, total);
        b->of[b->count].gpu = gpu;
        b->of[b->count].ordinal = cws_cuda_devices[i].ordinal;
        b->of[b->count].before = stats.budget_bytes;
        b->of[b->count++].bytes = bytes ? bytes : stats.budget_bytes;
    }
}

int cws_cuda_budgets_shrink(struct cws_cuda_budgets *b, struct cws_error *err)
{
    struct cws_error why = {0};
    for (unsigned i = 0; i < b->count; i++) {
        if (b->of[i].bytes >= b->of[i].before)
            continue;
        int code = cws_gpu_set_budget(b->of[i].gpu, b->of[i].bytes, &why);
        if (code)
            return cws_fail(err, code, "GPU %d: %s", b->of[i].ordinal, why.message);
        b->of[i].shrunk = true;
    }
    return 0;
}

static void set(struct cws_gpu *gpu, uint64_t bytes)
{
    struct cws_error err = {0};
    if (cws_gpu_set_budget(gpu, bytes, &err))
        return; /* it was forked meanwhile */
}

void cws_cuda_budgets_grow(struct cws_cuda_budgets *b)
{
    for (unsigned i = 0; i < b->count; i++)
        if (b->of[i].bytes > b->of[i].before)
            set(b->of[i].gpu, b->of[i].bytes);
}

void cws_cuda_budgets_restore(struct cws_cuda_budgets *b)
{
    for (unsigned i = 0; i < b->count; i++)
        if (b->of[i].shrunk)
            set(b->of[i].gpu, b->of[i].before);
}

void cws_cuda_budgets_end(void) { cws_cuda_devices_let(); }

void cws_cuda_budgets_get(struct cws_cuda_budget_rows *out)
{
    struct cws_gpu_stats stats;
    cws_cuda_devices_hold();
    *out = (struct cws_cuda_budget_rows){.count = 0};
    unsigned count = atomic_load(&cws_cuda_device_count);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (!gpu)
            continue;
        cws_gpu_stats_get(gpu, &stats);
        out->of[out->count].ordinal = cws_cuda_devices[i].ordinal;
        out->of[out->count].budget = stats.budget_bytes;
        out->of[out->count++].used = stats.used_bytes;
    }
    cws_cuda_devices_let();
}

static void each(void (*do_it)(struct cws_gpu *gpu))
{
    cws_cuda_devices_hold();
    unsigned count = atomic_load(&cws_cuda_device_count);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (gpu)
            do_it(gpu);
    }
    cws_cuda_devices_let();
}

void cws_cuda_sleep(void) { each(cws_gpu_sleep); }
void cws_cuda_wake(void) { each(cws_gpu_wake_up); }
