/* gpu.c - opening and closing the manager of a device, its numbers, and the check of its invariants. */
#include "gpu.h"
#include "store/base/memory_limit.h"
#include "nvtx.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define ARENA_SHARE 64u /* addresses per byte of the device: they are not given back to other size classes */

/* --- open and close ---------------------------------------------------------------------------------- */

static void add_pools(struct cws_gpu *gpu)
{
    const struct cws_driver *d = gpu->core.driver;
    CUmemoryPool pool;
    cws_gpu_lock(&gpu->core);
    if (d->device_pool(&pool, gpu->core.device) == CUDA_SUCCESS)
        cws_gpu_pools_add(&gpu->pools, pool);
    if (d->device_default_pool(&pool, gpu->core.device) == CUDA_SUCCESS)
        cws_gpu_pools_add(&gpu->pools, pool);
    cws_gpu_pools_count(&gpu->pools);
    cws_gpu_unlock(&gpu->core);
}

static int set_up(struct cws_gpu *gpu, struct cws_error *err)
{
    const struct cws_driver *d = gpu->core.driver;
    size_t total = 0;
    uint64_t host = gpu->config.host_budget_bytes;
    if (host && host < CWS_PINNED_LEAST)
        return cws_fail(
            err, CWS_E_BUDGET,
            "CODEC_HOST_BUDGET is %llu KiB: paging to a GPU takes pinned host memory; give it at least %llu MiB",
            (unsigned long long)(host >> 10), (unsigned long long)(CWS_PINNED_LEAST >> 20));
    CUresult result = d->device_total(&total, gpu->core.device);
    if (result != CUDA_SUCCESS)
        return cws_driver_fail(d, err, result, "asking for the device's memory");
    uint64_t arena = (uint64_t)total / CWS_GPU_GRANULE * CWS_GPU_GRANULE * ARENA_SHARE;
    int code = cws_gpu_ranges_open(&gpu->ranges, &gpu->core, arena, err);
    if (!code)
        code = cws_gpu_frames_open(&gpu->frames, &gpu->core, &gpu->budget, arena, err);
    if (!code)
        code = cws_gpu_staging_open(&gpu->staging, &gpu->core, &gpu->budget, &gpu->config, err);
    if (code)
        return code;
    cws_gpu_host_withhold(&gpu->sources, cws_gpu_staging_host_bytes(&gpu->staging));
    add_pools(gpu);
    cws_gpu_trace_open(gpu);
    cws_nvtx_start();
    code = cws_gpu_loader_start(gpu, err);
    return code ? code : cws_gpu_sources_start(&gpu->sources, err);
}

int cws_gpu_open(const struct cws_gpu_config *config, CUdevice device, struct cws_gpu **out, struct cws_error *err)
{
    *out = NULL;
    struct cws_gpu *gpu = calloc(1, sizeof *gpu);
    if (!gpu)
        return cws_fail(err, -ENOMEM, "no memory for paging to the device");
    gpu->config = *config;
    gpu->config.prefetch = config->prefetch && !config->strict;
    cws_gpu_core_init(&gpu->core, config, device);
    cws_gpu_budget_init(&gpu->budget, &gpu->core, config->budget_bytes);
    cws_gpu_pools_init(&gpu->pools, &gpu->core, &gpu->budget);
    cws_gpu_streams_init(&gpu->streams, &gpu->core);
    cws_gpu_sources_init(&gpu->sources, &gpu->core, config->host_budget_bytes);
    cws_gpu_ranges_init(&gpu->ranges);
    cws_gpu_reserve_init(&gpu->reserve);
    gpu->sets.ranges = &gpu->ranges;
    cws_gpu_order_init(&gpu->order, &gpu->core, &gpu->budget, &gpu->streams, config->policy);
    cws_gpu_uses_init(&gpu->uses, &gpu->strict);
    cws_gpu_proofs_init(&gpu->proofs);
    CUresult result = config->driver->context_get(&gpu->core.context);
    int code = result == CUDA_SUCCESS ? set_up(gpu, err)
                                      : cws_driver_fail(config->driver, err, result, "asking for the current context");
    if (code) {
        cws_gpu_close(gpu);
        return code;
    }
    *out = gpu;
    return 0;
}

void cws_gpu_close(struct cws_gpu *gpu)
{
    if (!gpu || gpu->core.dead) /* in a child its threads and locks are the parent's: it is left alone */
        return;
    cws_gpu_core_stop(&gpu->core);
    cws_gpu_loader_join(gpu);
    cws_gpu_sources_join(&gpu->sources);
    if (gpu->core.context)
        gpu->core.driver->context_sync();
    cws_gpu_ranges_close(gpu);
    cws_gpu_frames_close(&gpu->frames);
    cws_gpu_sources_close(&gpu->sources);
    cws_gpu_proofs_close(&gpu->proofs);
    cws_gpu_streams_close(&gpu->streams);
    cws_gpu_trace_close(gpu);
    cws_gpu_staging_close(&gpu->staging);
    cws_gpu_order_close(&gpu->order);
    free(gpu);
}

void cws_gpu_fork_child(struct cws_gpu *gpu)
{
    if (gpu)
        gpu->core.dead = true;
}

/* --- numbers ---------------------------------------------------------------------------------------- */

/* What stays unbound of a store that was loaded is less than this part of what is bound. */
enum { MEM_INFO_REST = 4 };

/* Is the program loading? Some bytes of a store stay unbound: small tensors, what was copied from ordinary memory. */
static bool is_loading_locked(const struct cws_gpu *gpu, uint64_t opened_bytes)
{
    uint64_t copied = gpu->adopts.copied;
    return opened_bytes > copied && opened_bytes - copied > gpu->budget.bound / MEM_INFO_REST;
}

/* Of the budget, what weights are to have beside all that a program plans once it has loaded. */
static uint64_t weights_share_locked(const struct cws_gpu *gpu)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    uint64_t share = gpu->sets.largest > b->bytes / 2 ? gpu->sets.largest : b->bytes / 2;
    return b->bound < share ? b->bound : share;
}

void cws_gpu_mem_info(struct cws_gpu *gpu, uint64_t opened_bytes, size_t *free_bytes, size_t *total_bytes)
{
    cws_gpu_lock(&gpu->core);
    cws_gpu_pools_count(&gpu->pools);
    bool loading = is_loading_locked(gpu, opened_bytes);
    uint64_t left = cws_gpu_budget_for_weights(&gpu->budget), share = loading ? 0 : weights_share_locked(gpu);
    uint64_t more = loading ? opened_bytes : 0, total = gpu->budget.bytes + more;
    cws_gpu_unlock(&gpu->core);
    *total_bytes = total > CWS_GPU_TOTAL_MIN ? total : CWS_GPU_TOTAL_MIN;
    *free_bytes = (left > share ? left - share : 0) + more;
}

/* Bytes of an extent that were adopted; host: those that host memory has, which are none once it was written to. */
static uint64_t adopted_bytes(const struct cws_gpu_extent *x, bool host)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < x->pieces.count; i++) {
        const struct cws_gpu_piece *piece = &x->pieces.list[i];
        if (cws_gpu_source_is_adopted(piece->source) && (!cws_gpu_source_is_gone(piece->source) || !host))
            bytes += piece->bytes;
    }
    return bytes;
}

/* Also while the loader looks at it. */
static bool is_dirty(const struct cws_gpu_extent *x)
{
    bool at_work = x->state == CWS_EXTENT_LOOKING || x->state == CWS_EXTENT_PROVING;
    return x->state == CWS_EXTENT_DIRTY || (at_work && cws_gpu_is_bound(x));
}

static void get_bytes_locked(const struct cws_gpu *gpu, struct cws_gpu_stats *out)
{
    const struct cws_gpu_budget *b = &gpu->budget;
    *out = (struct cws_gpu_stats){
        .budget_bytes = b->bytes,
        .used_bytes = cws_gpu_budget_used(b),
        .peak_bytes = b->peak,
        .decoded_bytes = cws_gpu_budget_weights(b),
        .anonymous_bytes = b->of_class[CWS_CLASS_FIXED],
        .reserve_bytes = b->of_class[CWS_CLASS_RESERVE],
        .idle_bytes = b->of_class[CWS_CLASS_IDLE],
        .staging_bytes = b->ring,
        .other_bytes = b->plain + b->pools,
        .host_bytes = gpu->sources.host_bytes,
        .least_budget_bytes = b->least,
    };
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x)) {
        bool away = x->state == CWS_EXTENT_SPILLED || x->state == CWS_EXTENT_RESTORING;
        out->bound_bytes += cws_gpu_is_bound(x) ? x->bytes - adopted_bytes(x, false) : 0;
        out->adopted_bytes += cws_gpu_is_bound(x) ? adopted_bytes(x, true) : 0;
        out->spilled_bytes += away ? x->bytes : 0;
        out->dirty_bytes += is_dirty(x) ? cws_gpu_span(x) : 0;
    }
}

void cws_gpu_stats_get(struct cws_gpu *gpu, struct cws_gpu_stats *out)
{
    cws_gpu_lock(&gpu->core);
    get_bytes_locked(gpu, out);
    out->ranges = gpu->ranges.count;
    out->loads = gpu->loads.begun;
    out->prefetched = gpu->loads.ahead;
    out->demand = gpu->uses.demanded;
    out->drops = gpu->drops.dropped;
    out->spills = gpu->spills.out;
    out->restores = gpu->spills.in;
    out->proven = gpu->proofs.proven;
    out->loaded_bytes = gpu->loads.bytes;
    out->link_bytes = gpu->staging.link_bytes;
    out->link_ns = gpu->staging.link_ns;
    out->stall_ns = gpu->uses.stall_ns;
    out->weight_waits = gpu->uses.waits[CWS_WAIT_WEIGHT];
    out->weight_wait_ns = gpu->uses.wait_ns[CWS_WAIT_WEIGHT];
    out->fresh_waits = gpu->uses.waits[CWS_WAIT_FRESH];
    out->fresh_wait_ns = gpu->uses.wait_ns[CWS_WAIT_FRESH];
    out->staging_waits = gpu->loads.slot_waits;
    out->staging_wait_ns = gpu->loads.slot_wait_ns;
    out->stolen_bytes = gpu->reserve.stolen;
    out->frames_created = gpu->frames.created;
    out->frames_released = gpu->frames.released;
    out->vmm_calls = atomic_load_explicit(&gpu->frames.calls, memory_order_relaxed);
    cws_gpu_unlock(&gpu->core);
}

/* --- for tests ------------------------------------------------------------------------------------------ */

static const char *check_locked(const struct cws_gpu *gpu)
{
    const char *const wrong[] = {
        cws_gpu_ranges_check(gpu),
        cws_gpu_reserve_check(gpu),
        cws_gpu_budget_check(&gpu->budget),
        cws_gpu_pools_check(&gpu->pools),
        cws_gpu_frames_check(&gpu->frames),
        cws_gpu_streams_check(&gpu->streams),
        cws_gpu_sources_check(&gpu->sources),
        cws_gpu_staging_check(&gpu->staging),
        cws_gpu_sets_check(&gpu->sets),
        cws_gpu_order_check(&gpu->order, &gpu->ranges),
        cws_gpu_uses_check(gpu),
        cws_gpu_loads_check(gpu),
        cws_gpu_drops_check(gpu),
        cws_gpu_spills_check(gpu),
        cws_gpu_resize_check(gpu),
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (wrong[i])
            return wrong[i];
    return NULL;
}

const char *cws_gpu_check(struct cws_gpu *gpu)
{
    cws_gpu_lock(&gpu->core);
    const char *wrong = check_locked(gpu);
    cws_gpu_unlock(&gpu->core);
    return wrong;
}

void cws_gpu_settle(struct cws_gpu *gpu)
{
    const struct timespec pause = {.tv_nsec = 200000};
    for (unsigned quiet = 0; quiet < 5;) {
        cws_gpu_lock(&gpu->core);
        bool busy = gpu->loads.count || gpu->drops.count || gpu->budget.rooms || gpu->uses.waiting ||
                    gpu->proofs.asked || cws_gpu_resize_waits(&gpu->resize);
        cws_gpu_unlock(&gpu->core);
        quiet = busy ? 0 : quiet + 1;
        nanosleep(&pause, NULL);
    }
}
