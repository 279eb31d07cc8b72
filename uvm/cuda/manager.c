/* manager.c - opening and closing the manager of a device, its counters, and the check of its invariants. */
#include "state.h"
#include "nvtx.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ARENA_SHARE 64u                /* addresses per byte of the device: they are not given back to other sizes */
#define POOL_STEP ((uint64_t)32 << 20) /* that a pool is expected to grow by; what it does is learned */

void cws_gpu_say(struct cws_gpu *gpu, const char *format, ...)
{
    char line[640];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (gpu->config.say)
        gpu->config.say(line);
}

uint64_t cws_gpu_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void cws_gpu_unexpected(struct cws_gpu *gpu, CUresult error, const char *what)
{
    struct cws_error err;
    cws_driver_fail(gpu->driver, &err, error, what);
    cws_gpu_say(gpu, "%s", err.message);
}

/* --- open and close ---------------------------------------------------------------------------------- */

static int start_threads(struct cws_gpu *gpu, struct cws_error *err)
{
    int code = pthread_create(&gpu->loader, NULL, cws_gpu_loader_main, gpu);
    gpu->threads = code == 0;
    for (unsigned i = 0; i < CWS_GPU_FETCHERS && code == 0; i++) {
        code = pthread_create(&gpu->fetchers[i], NULL, cws_gpu_fetcher_main, gpu);
        gpu->threads += code == 0;
    }
    return code ? cws_fail_errno(err, code, "starting threads for paging to the device") : 0;
}

static size_t table_bytes(const struct cws_gpu *gpu) { return gpu->arena.granules * sizeof(struct cws_gpu_range *); }

static int set_up(struct cws_gpu *gpu, struct cws_error *err)
{
    const struct cws_driver *d = gpu->driver;
    CUresult result = d->context_get(&gpu->context);
    if (result != CUDA_SUCCESS)
        return cws_driver_fail(d, err, result, "asking for the current context");
    size_t total = 0;
    result = d->device_total(&total, gpu->device);
    if (result != CUDA_SUCCESS)
        return cws_driver_fail(d, err, result, "asking for the device's memory");
    uint64_t arena = (uint64_t)total / CWS_GPU_GRANULE * CWS_GPU_GRANULE * ARENA_SHARE;
    int code = cws_gpu_arena_open(gpu, &gpu->arena, arena, err);
    if (!code)
        code = cws_gpu_arena_open(gpu, &gpu->aliases, arena, err);
    if (code)
        return code;
    gpu->by_granule = mmap(NULL, table_bytes(gpu), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                           -1, 0);
    if (gpu->by_granule == MAP_FAILED) {
        gpu->by_granule = NULL;
        return cws_fail_errno(err, errno, "reserving the table of device ranges");
    }
    CUmemoryPool pool;
    if (d->device_pool(&pool, gpu->device) == CUDA_SUCCESS)
        cws_gpu_pool_seen(gpu, pool);
    if (d->device_default_pool(&pool, gpu->device) == CUDA_SUCCESS)
        cws_gpu_pool_seen(gpu, pool);
    code = gpu->config.kernels
               ? cws_gpu_decoder_create_from(d, gpu->config.kernels, CWS_GPU_BLOCK_WARPS, &gpu->decoder, err)
               : cws_gpu_decoder_create(d, gpu->config.say, &gpu->decoder, err);
    if (!code)
        code = cws_gpu_ring_open(gpu, err); /* sets slot_count, slot_bytes, ring_bytes */
    if (!code && gpu->ring_bytes > gpu->config.budget_bytes / 2)
        code = cws_fail(err, CWS_E_BUDGET,
                        "CODEC_VRAM_BUDGET is %llu MiB: staging alone takes %llu MiB; give it at least %llu MiB",
                        (unsigned long long)(gpu->config.budget_bytes >> 20),
                        (unsigned long long)(gpu->ring_bytes >> 20), (unsigned long long)(gpu->ring_bytes >> 19));
    if (!code)
        cws_gpu_trace_open(gpu);
    cws_nvtx_start();
    return code ? code : start_threads(gpu, err);
}

int cws_gpu_open(const struct cws_gpu_config *config, CUdevice device, struct cws_gpu **out, struct cws_error *err)
{
    *out = NULL;
    struct cws_gpu *gpu = calloc(1, sizeof *gpu);
    if (!gpu)
        return cws_fail(err, -ENOMEM, "no memory for paging to the device");
    gpu->driver = config->driver;
    gpu->config = *config;
    gpu->config.prefetch = config->prefetch && !config->strict;
    gpu->device = device;
    gpu->pool_step = config->budget_bytes / 16 < POOL_STEP ? config->budget_bytes / 16 : POOL_STEP;
    gpu->host_budget = config->host_budget_bytes ? config->host_budget_bytes : cws_gpu_host_default();
    pthread_mutexattr_t again;
    pthread_mutexattr_init(&again);
    pthread_mutexattr_settype(&again, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&gpu->strict, &again);
    pthread_mutexattr_destroy(&again);
    pthread_mutex_init(&gpu->slow, NULL);
    pthread_mutex_init(&gpu->lock, NULL);
    pthread_cond_init(&gpu->changed, NULL);
    gpu->wake_at = UINT64_MAX;
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&gpu->work, &clock);
    pthread_condattr_destroy(&clock);
    pthread_cond_init(&gpu->fetch, NULL);
    cws_list_init(&gpu->ranges);
    cws_list_init(&gpu->cached);
    cws_list_init(&gpu->wanted);
    cws_list_init(&gpu->idle);
    cws_list_init(&gpu->sources);
    gpu->by_tensor = (struct cws_map)CWS_MAP_OF(struct cws_gpu_source *);
    cws_list_init(&gpu->fetch_first);
    cws_list_init(&gpu->fetch_later);
    cws_order_init(&gpu->order, config->policy, &cws_tuning_default);
    int code = set_up(gpu, err);
    if (code) {
        cws_gpu_close(gpu);
        return code;
    }
    pthread_mutex_lock(&gpu->lock);
    cws_gpu_recount_pools_locked(gpu);
    pthread_mutex_unlock(&gpu->lock);
    *out = gpu;
    return 0;
}

static void stop_threads(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    gpu->stop = true;
    gpu->work_due = true;
    pthread_cond_broadcast(&gpu->work);
    pthread_cond_broadcast(&gpu->fetch);
    pthread_mutex_unlock(&gpu->lock);
    if (gpu->threads)
        pthread_join(gpu->loader, NULL);
    for (unsigned i = 1; i < gpu->threads; i++)
        pthread_join(gpu->fetchers[i - 1], NULL);
}

static void end_ranges(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    while (!cws_list_is_empty(&gpu->ranges)) {
        struct cws_gpu_range *r = CWS_LIST_OF(gpu->ranges.next, struct cws_gpu_range, link);
        struct cws_gpu_frame *frame = r->frame;
        if (cws_gpu_is_mapped(r->state))
            gpu->driver->unmap(r->base, cws_gpu_span(r));
        if (r->state == CWS_RANGE_CACHED)
            cws_gpu_range_set_locked(gpu, r, CWS_RANGE_RESERVED);
        r->frame = NULL;
        if (frame)
            cws_gpu_frame_put_idle_locked(gpu, frame);
        cws_gpu_range_end_locked(gpu, r);
    }
    while (!cws_list_is_empty(&gpu->idle)) {
        struct cws_gpu_frame *frame = CWS_LIST_OF(gpu->idle.next, struct cws_gpu_frame, link);
        cws_list_remove(&frame->link);
        cws_gpu_frame_destroy_locked(gpu, frame);
    }
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_close(struct cws_gpu *gpu)
{
    if (!gpu || gpu->dead) /* in a child its threads and locks are the parent's: it is left alone */
        return;
    stop_threads(gpu);
    if (gpu->context)
        gpu->driver->context_sync();
    end_ranges(gpu);
    cws_gpu_sources_close(gpu);
    cws_gpu_streams_close(gpu);
    cws_gpu_trace_close(gpu);
    cws_gpu_ring_close(gpu);
    cws_gpu_decoder_destroy(gpu->decoder);
    if (gpu->by_granule)
        munmap(gpu->by_granule, table_bytes(gpu));
    cws_gpu_arena_close(gpu, &gpu->arena);
    cws_gpu_arena_close(gpu, &gpu->aliases);
    cws_order_deinit(&gpu->order);
    pthread_cond_destroy(&gpu->changed);
    pthread_cond_destroy(&gpu->work);
    pthread_cond_destroy(&gpu->fetch);
    pthread_mutex_destroy(&gpu->lock);
    pthread_mutex_destroy(&gpu->slow);
    pthread_mutex_destroy(&gpu->strict);
    free(gpu);
}

void cws_gpu_fork_child(struct cws_gpu *gpu)
{
    if (gpu)
        gpu->dead = true;
}

/* --- numbers ---------------------------------------------------------------------------------------- */

void cws_gpu_mem_info(struct cws_gpu *gpu, uint64_t opened_bytes, size_t *free_bytes, size_t *total_bytes)
{
    pthread_mutex_lock(&gpu->lock);
    cws_gpu_recount_pools_locked(gpu);
    uint64_t fixed = cws_gpu_undroppable_locked(gpu), budget = gpu->config.budget_bytes;
    uint64_t left = (fixed < budget ? budget - fixed : 0) + opened_bytes;
    pthread_mutex_unlock(&gpu->lock);
    *total_bytes = budget + opened_bytes;
    *free_bytes = left;
}

void cws_gpu_stats_get(struct cws_gpu *gpu, struct cws_gpu_stats *out)
{
    pthread_mutex_lock(&gpu->lock);
    *out = gpu->counts;
    out->budget_bytes = gpu->config.budget_bytes;
    out->used_bytes = cws_gpu_used_locked(gpu);
    out->peak_bytes = gpu->used_peak;
    out->decoded_bytes = gpu->frame_bytes - gpu->mapped_idle_bytes - gpu->fixed_bytes;
    out->anonymous_bytes = gpu->fixed_bytes;
    out->idle_bytes = gpu->mapped_idle_bytes;
    out->staging_bytes = gpu->ring_bytes;
    out->other_bytes = gpu->other_plain + gpu->other_pools;
    out->bound_bytes = 0;
    out->dirty_bytes = 0;
    out->spilled_bytes = 0;
    for (struct cws_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        const struct cws_gpu_range *r = CWS_LIST_OF(l, struct cws_gpu_range, link);
        out->bound_bytes += r->source ? r->bytes : 0;
        out->spilled_bytes += r->spill && !r->spill_kept ? r->bytes : 0;
        out->dirty_bytes += r->state == CWS_RANGE_DIRTY ? cws_gpu_span(r) : 0;
    }
    out->host_bytes = gpu->host_bytes;
    out->ranges = gpu->range_count;
    out->least_budget_bytes = gpu->least_budget;
    pthread_mutex_unlock(&gpu->lock);
}

static const char *check_locked(struct cws_gpu *gpu)
{
    uint64_t frames = 0, fixed = 0, idle = 0, bound = 0, resident = 0, kept = 0;
    uint32_t ranges = 0;
    for (struct cws_list *l = gpu->idle.next; l != &gpu->idle; l = l->next)
        idle += (uint64_t)CWS_LIST_OF(l, struct cws_gpu_frame, link)->granules * CWS_GPU_GRANULE;
    frames = idle;
    for (struct cws_list *l = gpu->ranges.next; l != &gpu->ranges; l = l->next) {
        const struct cws_gpu_range *r = CWS_LIST_OF(l, struct cws_gpu_range, link);
        uint64_t span = cws_gpu_span(r);
        bool wants_frame = cws_gpu_is_mapped(r->state) || r->state == CWS_RANGE_LOADING ||
                           r->state == CWS_RANGE_DROPPING || r->state == CWS_RANGE_SPILLING;
        ranges++;
        if (r->state != CWS_RANGE_MAKING && wants_frame != (r->frame != NULL))
            return "I1: a range has a frame in a state that has none, or none where there must be one";
        if (r->frame && r->frame->granules != r->granules)
            return "I2: a frame is not as large as its range";
        frames += r->frame ? span : 0;
        fixed += r->state == CWS_RANGE_ANONYMOUS || r->state == CWS_RANGE_DIRTY || r->state == CWS_RANGE_MAKING ||
                         r->state == CWS_RANGE_SPILLING
                     ? span
                     : 0;
        idle += r->state == CWS_RANGE_CACHED ? span : 0;
        bound += r->source ? span : 0;
        resident += r->state == CWS_RANGE_RESIDENT ? span : 0;
        kept += r->spill_kept ? span : 0;
        if (r->spill_kept ? !r->spill || (r->state != CWS_RANGE_ANONYMOUS && r->state != CWS_RANGE_DIRTY &&
                                          r->state != CWS_RANGE_MAKING)
                          : r->state == CWS_RANGE_SPILLED && !r->spill)
            return "a spilled range has no copy, or one that is not spilled keeps one";
        if ((r->state == CWS_RANGE_BOUND || r->state == CWS_RANGE_LOADING || r->state == CWS_RANGE_RESIDENT ||
             r->state == CWS_RANGE_DROPPING) &&
            !r->source)
            return "I5: a bound range has no source";
        if (r->state == CWS_RANGE_DROPPING && r->holds && !r->demanded && gpu->waiting == 0)
            return "I3: a range that is held is being dropped";
    }
    if (ranges != gpu->range_count)
        return "the ranges are miscounted";
    if (fixed != gpu->fixed_bytes || idle != gpu->mapped_idle_bytes || bound != gpu->bound_bytes ||
        resident != gpu->resident_bytes || kept != gpu->kept_bytes)
        return "an account disagrees with the ranges";
    if (frames > gpu->frame_bytes)
        /* not while a frame moves into a range or out of one: for a moment it is in neither */
        return "I2: frames are miscounted";
    if (gpu->frame_bytes + gpu->granted_bytes + gpu->ring_bytes > gpu->config.budget_bytes)
        return "I4: the budget is exceeded";
    return NULL;
}

const char *cws_gpu_check(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    const char *wrong = check_locked(gpu);
    pthread_mutex_unlock(&gpu->lock);
    return wrong;
}

void cws_gpu_settle(struct cws_gpu *gpu)
{
    const struct timespec pause = {.tv_nsec = 200000};
    for (unsigned quiet = 0; quiet < 5;) {
        pthread_mutex_lock(&gpu->lock);
        bool busy = gpu->load_count || gpu->drop_count || gpu->rooms || gpu->waiting;
        pthread_mutex_unlock(&gpu->lock);
        quiet = busy ? 0 : quiet + 1;
        nanosleep(&pause, NULL);
    }
}
