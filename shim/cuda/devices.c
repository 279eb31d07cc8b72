/* devices.c - the manager of each device: opened by the first allocation, closed with its context, disabled in a forked
 * child. */
#include "store/base/lock.h"
#include "store/cuda/decoder.h"
#include "uvm/host/view.h"
#include "auto_budget.h"
#include "copy.h"
#include "device.h"
#include "neighbor.h"
#include "shim/say.h"
#include "shim/state.h"

#include <stdio.h>
#include <stdlib.h>

struct cws_cuda_device cws_cuda_devices[CWS_CUDA_DEVICES];
_Atomic unsigned cws_cuda_device_count;
_Atomic CUdeviceptr cws_cuda_low = ~0ull, cws_cuda_high;

static struct cws_lock open_lock = CWS_LOCK_OF(CWS_RANK_CUDA_OPEN);
static struct cws_driver driver;
static atomic_bool driver_filled, exiting;
static struct cws_cuda_parts parts;
static _Atomic int retains[CWS_CUDA_DEVICES]; /* of each device's primary context, by the program */

const struct cws_driver *cws_cuda_driver(void) { return &driver; }

bool cws_cuda_is_exiting(void) { return atomic_load_explicit(&exiting, memory_order_relaxed); }

void cws_cuda_devices_hold(void) { cws_lock_take(&open_lock); }
void cws_cuda_devices_let(void) { cws_lock_drop(&open_lock); }

static void say(const char *line)
{
    if (!atomic_load_explicit(&exiting, memory_order_relaxed))
        cws_shim_say("%s", line);
}

/* --- opening ------------------------------------------------------------------------------------- */

static bool fill_driver(void)
{
    struct cws_error err = {0};
    if (atomic_load(&driver_filled))
        return true;
    if (cws_driver_fill(&driver, cws_cuda_symbol, NULL, &err)) {
        cws_shim_say("paging on the GPU is OFF: %s", err.message);
        return false;
    }
    atomic_store(&driver_filled, true);
    return true;
}

/* The device's primary context, if it is active; else NULL. */
static CUcontext primary_of(CUdevice device)
{
    unsigned flags;
    int active = 0;
    CUcontext primary = NULL;
    if (CWS_CUDA_REAL(cuDevicePrimaryCtxGetState)(device, &flags, &active) || !active ||
        driver.primary_retain(&primary, device))
        return NULL;
    driver.primary_release(device);
    return primary;
}

/* Its context is current. 0: a list does not name it. */
static uint64_t first_budget(const struct cws_options *options, CUdevice device, size_t total)
{
    size_t free_bytes = 0;
    if (!options->budget_auto)
        return cws_options_device_budget(options, device, total);
    driver.mem_info(&free_bytes, &total);
    struct cws_auto_rule rule = cws_auto_rule_of(options, total);
    return cws_auto_first(&rule, free_bytes);
}

static CUresult open_manager(CUdevice device, struct cws_gpu **out)
{
    const struct cws_options *options = cws_shim_options();
    struct cws_error err = {0};
    size_t total = 0;
    *out = NULL;
    if (cws_shim_check_options()) /* a program that asks for a budget does not run without one */
        return CUDA_ERROR_OUT_OF_MEMORY;
    cws_pager_trace_start(options);
    driver.device_total(&total, device);
    struct cws_gpu_config config = {
        .driver = &driver,
        .budget_bytes = first_budget(options, device, total),
        .host_budget_bytes = options->host_budget_bytes,
        .policy = options->policy,
        .prefetch = options->prefetch,
        .strict = options->strict,
        .adopt = options->adopt,
        .release = parts.release,
        .pins = cws_cuda_is_pinned,
        .say = say,
    };
    if (!config.budget_bytes && !options->budget_auto) {
        cws_shim_say("GPU %d: no budget in CODEC_VRAM_BUDGET, so no paging there", device);
        return CUDA_SUCCESS;
    }
    int code = cws_gpu_open(&config, device, out, &err);
    if (!code) {
        cws_pager_copies_are_elsewhere();
        cws_shim_note_paging();
        cws_cuda_note_neighbor();
        if (options->budget_auto)
            cws_cuda_auto_start();
        if (options->verbose)
            cws_shim_say("GPU %d: budget %.1f MiB of %.1f MiB, %u functions of the driver replaced", device,
                         (double)config.budget_bytes / (1 << 20), (double)total / (1 << 20), cws_cuda_hook_count());
        return CUDA_SUCCESS;
    }
    cws_shim_say(code == CWS_E_BUDGET ? "GPU %d: %s" : "GPU %d: paging is OFF: %s", device, err.message);
    return code == CWS_E_BUDGET ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static void at_exit(void);

/* open_lock is held. The entry that answers for this context from now on, or NULL: there is no room for one. */
static struct cws_cuda_device *add_device(CUcontext context)
{
    static bool registered;
    CUdevice ordinal = 0;
    unsigned count = atomic_load(&cws_cuda_device_count), i = 0;
    while (i < count && atomic_load(&cws_cuda_devices[i].context))
        i++;
    if (i == CWS_CUDA_DEVICES || driver.context_device(&ordinal))
        return NULL;
    struct cws_cuda_device *entry = &cws_cuda_devices[i];
    struct cws_gpu *gpu = NULL;
    entry->ordinal = ordinal;
    entry->answer = CUDA_SUCCESS;
    if (primary_of(ordinal) == context)
        entry->answer = open_manager(ordinal, &gpu);
    else
        cws_shim_say("GPU %d: a context that is not the device's primary one is not paged", ordinal);
    atomic_store(&entry->gpu, gpu);
    atomic_store_explicit(&entry->context, context, memory_order_release);
    if (i == count)
        atomic_store(&cws_cuda_device_count, count + 1);
    if (!registered) /* after the driver's own handlers were, so that it runs before them */
        registered = atexit(at_exit) == 0;
    return entry;
}

static struct cws_cuda_device *find_device(CUcontext context)
{
    unsigned count = atomic_load_explicit(&cws_cuda_device_count, memory_order_acquire);
    for (unsigned i = 0; i < count; i++)
        if (atomic_load_explicit(&cws_cuda_devices[i].context, memory_order_acquire) == context)
            return &cws_cuda_devices[i];
    return NULL;
}

static CUcontext current_context(void)
{
    CUcontext context = NULL;
    if (!atomic_load_explicit(&driver_filled, memory_order_acquire))
        return NULL;
    return driver.context_get(&context) == CUDA_SUCCESS ? context : NULL;
}

struct cws_gpu *cws_cuda_manager_if_open(void)
{
    CUcontext context = current_context();
    struct cws_cuda_device *entry = context ? find_device(context) : NULL;
    return entry ? atomic_load_explicit(&entry->gpu, memory_order_relaxed) : NULL;
}

struct cws_gpu *cws_cuda_manager(CUresult *out_result)
{
    static atomic_bool broken;
    *out_result = CUDA_SUCCESS;
    if (!atomic_load_explicit(&driver_filled, memory_order_acquire)) {
        if (atomic_load(&broken))
            return NULL;
        cws_lock_take(&open_lock);
        if (!atomic_load(&broken) && !fill_driver())
            atomic_store(&broken, true);
        cws_lock_drop(&open_lock);
    }
    CUcontext context = current_context();
    if (!context)
        return NULL;
    struct cws_cuda_device *entry = find_device(context);
    if (!entry) {
        cws_lock_take(&open_lock);
        entry = find_device(context);
        if (!entry)
            entry = add_device(context);
        cws_lock_drop(&open_lock);
    }
    if (!entry)
        return NULL;
    *out_result = entry->answer;
    return atomic_load_explicit(&entry->gpu, memory_order_relaxed);
}

/* --- addresses ----------------------------------------------------------------------------------- */

void cws_cuda_note_range(CUdeviceptr base, size_t bytes)
{
    CUdeviceptr low = atomic_load(&cws_cuda_low), high = atomic_load(&cws_cuda_high);
    while (base < low && !atomic_compare_exchange_weak(&cws_cuda_low, &low, base)) {
    }
    while (base + bytes > high && !atomic_compare_exchange_weak(&cws_cuda_high, &high, base + bytes)) {
    }
}

struct cws_gpu *cws_cuda_owner_slow(CUdeviceptr address)
{
    unsigned count = atomic_load_explicit(&cws_cuda_device_count, memory_order_acquire);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load_explicit(&cws_cuda_devices[i].gpu, memory_order_acquire);
        if (gpu && cws_gpu_owns(gpu, address))
            return gpu;
    }
    return NULL;
}

/* --- the end of contexts --------------------------------------------------------------------------- */

/* open_lock is held. Ranges of other devices may have been used on streams of a context that is about to end. */
static void tell_others(CUcontext ends)
{
    unsigned count = atomic_load(&cws_cuda_device_count);
    CUcontext before = NULL;
    bool waited = false;
    for (unsigned i = 0; i < count && ends; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (!gpu || atomic_load(&cws_cuda_devices[i].context) == ends)
            continue;
        if (!waited) {
            driver.context_get(&before);
            driver.context_set(ends);
            driver.context_sync();
            driver.context_set(before);
        }
        waited = true;
        cws_gpu_context_gone(gpu, ends);
    }
}

void cws_cuda_close(CUcontext context, CUdevice device)
{
    cws_lock_take(&open_lock);
    unsigned count = atomic_load(&cws_cuda_device_count);
    if (count)
        tell_others(context ? context : primary_of(device));
    for (unsigned i = 0; i < count; i++) {
        struct cws_cuda_device *entry = &cws_cuda_devices[i];
        CUcontext own = atomic_load(&entry->context);
        struct cws_gpu *gpu = atomic_load(&entry->gpu);
        if (!own || (context ? own != context : !gpu || entry->ordinal != device))
            continue;
        atomic_store(&entry->context, NULL);
        atomic_store(&entry->gpu, NULL);
        if (!gpu)
            continue;
        CUcontext before = NULL;
        driver.context_get(&before);
        driver.context_set(own);
        parts.forget(gpu);
        cws_gpu_close(gpu);
        driver.context_set(before);
    }
    cws_lock_drop(&open_lock);
}

CUresult cws_do_cuDevicePrimaryCtxRetain(cws_fn_cuDevicePrimaryCtxRetain real, CUstream own, CUcontext *out,
                                         CUdevice device)
{
    (void)own;
    CUresult result = real(out, device);
    if (result == CUDA_SUCCESS && device >= 0 && device < CWS_CUDA_DEVICES)
        atomic_fetch_add(&retains[device], 1);
    return result;
}

/* The last release ends the context. */
CUresult cws_do_cuDevicePrimaryCtxRelease_v2(cws_fn_cuDevicePrimaryCtxRelease_v2 real, CUstream own, CUdevice device)
{
    (void)own;
    if (device >= 0 && device < CWS_CUDA_DEVICES && atomic_load(&retains[device]) > 0 &&
        atomic_fetch_sub(&retains[device], 1) == 1)
        cws_cuda_close(NULL, device);
    return real(device);
}

CUresult cws_do_cuDevicePrimaryCtxReset_v2(cws_fn_cuDevicePrimaryCtxReset_v2 real, CUstream own, CUdevice device)
{
    (void)own;
    cws_cuda_close(NULL, device);
    return real(device);
}

CUresult cws_do_cuCtxDestroy_v2(cws_fn_cuCtxDestroy_v2 real, CUstream own, CUcontext context)
{
    (void)own;
    if (context)
        cws_cuda_close(context, 0);
    return real(context);
}

/* --- fork ------------------------------------------------------------------------------------------ */

void cws_cuda_set_parts(const struct cws_cuda_parts *given) { parts = *given; }

void cws_cuda_fork_child(void)
{
    cws_lock_reset(&open_lock);
    unsigned count = atomic_load(&cws_cuda_device_count);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (gpu)
            cws_gpu_fork_child(gpu);
        atomic_store(&cws_cuda_devices[i].gpu, NULL);
    }
    if (count)
        atomic_store(&cws_cuda_state, CWS_CUDA_FORKED);
}

/* --- the end ------------------------------------------------------------------------------------------ */

/* At exit the managers stay open: other threads may still launch, and would crash without them. */
static void at_exit(void)
{
    if (cws_shim_options()->stats)
        cws_cuda_say_counters();
    atomic_store(&exiting, true);
}
