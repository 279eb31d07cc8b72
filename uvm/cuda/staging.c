/* staging.c - staging memory and the streams of the loader. */
#include "staging.h"

#include <string.h>

/* The control block of a slot, the same in pinned host memory and on the device: table, results (sent as zeros, for the
 * kernel adds to them), jobs. */
#define TABLE_BYTES ((sizeof(struct cws_gpu_table) + 127) / 128 * 128)
#define JOBS_BYTES (CWS_GPU_SLOT_CHUNKS * sizeof(struct cws_gpu_job))
#define RESULTS_BYTES ((CWS_GPU_SLOT_CHUNKS * sizeof(struct cws_gpu_result) + 127) / 128 * 128)
#define CONTROL_BYTES (TABLE_BYTES + JOBS_BYTES + RESULTS_BYTES)
/* A check's control block: results; in host memory jobs behind them. */
#define CHECK_RESULTS_BYTES ((CWS_GPU_CHECK_JOBS * sizeof(struct cws_gpu_result) + 127) / 128 * 128)
#define CHECK_BYTES (CHECK_RESULTS_BYTES + CWS_GPU_CHECK_JOBS * sizeof(struct cws_gpu_hash_job))
#define CHECKS_BYTES (CWS_GPU_CHECKS * CHECK_BYTES)
#define CHECKS_DEVICE_BYTES (CWS_GPU_CHECKS * CHECK_RESULTS_BYTES)
#define RING_BYTES_MAX ((uint64_t)64 << 20)
#define SLOT_BYTES_MAX ((uint64_t)16 << 20)
#define SLOT_BYTES_MIN ((uint64_t)1 << 20)

/* --- open and close ------------------------------------------------------------------------------------ */

/* The ring is a part of the budget that holds no weights, so it is a small part: 64 MiB, or a 32nd where that is less.
 * A copy of 8 MiB takes as long as the loader may need to see that the one before is done, and each copy costs its link
 * some microseconds: a few large slots are better than more small ones. Returns all that it takes. */
static uint64_t plan(uint64_t share, uint64_t ring_bytes, uint64_t budget, unsigned *slot_count, uint64_t *slot_bytes)
{
    enum { SLOTS_MIN = 4 };
    uint64_t part = budget / share < RING_BYTES_MAX ? budget / share : RING_BYTES_MAX;
    uint64_t ring = ring_bytes ? ring_bytes : part, slots = ring / SLOT_BYTES_MAX;
    *slot_count = slots < SLOTS_MIN ? SLOTS_MIN : slots < CWS_GPU_SLOTS ? (unsigned)slots : CWS_GPU_SLOTS;
    uint64_t slot = ring / *slot_count / 4096 * 4096;
    slot = slot > SLOT_BYTES_MAX && !ring_bytes ? SLOT_BYTES_MAX : slot;
    *slot_bytes = slot < SLOT_BYTES_MIN ? SLOT_BYTES_MIN : slot;
    return (*slot_count * (*slot_bytes + CONTROL_BYTES) + CHECKS_DEVICE_BYTES + CWS_GPU_GRANULE - 1) / CWS_GPU_GRANULE *
           CWS_GPU_GRANULE;
}

uint64_t cws_gpu_staging_bytes(const struct cws_gpu_core *core, uint64_t ring_bytes, uint64_t budget)
{
    unsigned slots;
    uint64_t slot;
    return plan(core->tuning->staging_share, ring_bytes, budget, &slots, &slot);
}

static CUresult set_up_slot(struct cws_gpu_staging *st, unsigned index)
{
    const struct cws_driver *d = st->core->driver;
    struct cws_gpu_slot *s = &st->slots[index];
    uint8_t *control = st->control + index * CONTROL_BYTES;
    s->device = st->ring + index * (st->slot_bytes + CONTROL_BYTES);
    s->device_table = s->device + st->slot_bytes;
    s->device_results = s->device_table + TABLE_BYTES;
    s->device_jobs = s->device_results + RESULTS_BYTES;
    s->table = (struct cws_gpu_table *)control;
    s->results = (struct cws_gpu_result *)(control + TABLE_BYTES);
    s->jobs = (struct cws_gpu_job *)(control + TABLE_BYTES + RESULTS_BYTES);
    CUresult result = d->event_create(&s->copied, CU_EVENT_DISABLE_TIMING);
    if (result == CUDA_SUCCESS)
        result = d->event_create(&s->done, CU_EVENT_DISABLE_TIMING);
    for (unsigned k = CWS_MOMENT_COPY; k <= CWS_MOMENT_COPIED && result == CUDA_SUCCESS; k++)
        result = d->event_create(&s->moments[k], CU_EVENT_DEFAULT);
    return result;
}

static CUresult set_up_check(struct cws_gpu_staging *st, unsigned index)
{
    struct cws_gpu_check *check = &st->checks[index];
    uint8_t *control = st->control + st->slot_count * CONTROL_BYTES + index * CHECK_BYTES;
    check->device_results = st->ring + st->slot_count * (st->slot_bytes + CONTROL_BYTES) + index * CHECK_RESULTS_BYTES;
    check->results = (struct cws_gpu_result *)control;
    check->jobs = (struct cws_gpu_hash_job *)(control + CHECK_RESULTS_BYTES);
    return st->core->driver->event_create(&check->done, CU_EVENT_DISABLE_TIMING);
}

uint64_t cws_gpu_staging_host_bytes(const struct cws_gpu_staging *st)
{
    return st->slot_count * CONTROL_BYTES + CHECKS_BYTES;
}

static int set_up(struct cws_gpu_staging *st, struct cws_error *err)
{
    const struct cws_driver *d = st->core->driver;
    CUresult result = d->host_alloc((void **)&st->control, cws_gpu_staging_host_bytes(st), CU_MEMHOSTALLOC_PORTABLE);
    CUstream *const streams[] = {&st->copy_stream, &st->decode_stream, &st->check_stream};
    for (unsigned i = 0; i < 3 && result == CUDA_SUCCESS; i++)
        result = d->stream_create(streams[i], CU_STREAM_NON_BLOCKING);
    for (unsigned i = 0; i < st->slot_count && result == CUDA_SUCCESS; i++)
        result = set_up_slot(st, i);
    for (unsigned i = 0; i < CWS_GPU_CHECKS && result == CUDA_SUCCESS; i++)
        result = set_up_check(st, i);
    return result == CUDA_SUCCESS ? 0 : cws_driver_fail(d, err, result, "setting up staging");
}

int cws_gpu_staging_open(struct cws_gpu_staging *st, struct cws_gpu_core *core, struct cws_gpu_budget *budget,
                         const struct cws_gpu_config *config, struct cws_error *err)
{
    const struct cws_driver *d = core->driver;
    st->core = core;
    int code = config->kernels ? cws_gpu_decoder_create_from(d, config->kernels, CWS_GPU_BLOCK_WARPS, &st->decoder, err)
                               : cws_gpu_decoder_create(d, config->say, &st->decoder, err);
    if (code)
        return code;
    uint64_t bytes = plan(core->tuning->staging_share, config->ring_bytes, budget->bytes, &st->slot_count,
                          &st->slot_bytes);
    if (bytes > budget->bytes / 2)
        return cws_fail(err, CWS_E_BUDGET,
                        "CODEC_VRAM_BUDGET is %llu MiB: staging alone takes %llu MiB; give it at least %llu MiB",
                        (unsigned long long)(budget->bytes >> 20), (unsigned long long)(bytes >> 20),
                        (unsigned long long)(bytes >> 19));
    CUresult result = d->mem_alloc(&st->ring, bytes);
    if (result != CUDA_SUCCESS) {
        st->ring = 0;
        return cws_driver_fail(d, err, result, "allocating staging in device memory");
    }
    cws_gpu_budget_set_ring(budget, bytes);
    return set_up(st, err);
}

static void destroy_event(struct cws_gpu_staging *st, CUevent *event)
{
    if (*event)
        st->core->driver->event_destroy(*event);
    *event = NULL;
}

void cws_gpu_staging_close(struct cws_gpu_staging *st)
{
    const CUstream streams[] = {st->copy_stream, st->decode_stream, st->check_stream};
    if (!st->core)
        return;
    const struct cws_driver *d = st->core->driver;
    for (unsigned i = 0; i < 3; i++)
        if (streams[i])
            d->stream_sync(streams[i]);
    for (unsigned i = 0; i < CWS_GPU_SLOTS; i++) {
        destroy_event(st, &st->slots[i].copied);
        destroy_event(st, &st->slots[i].done);
        for (unsigned k = 0; k < CWS_GPU_MOMENTS; k++)
            destroy_event(st, &st->slots[i].moments[k]);
    }
    for (unsigned i = 0; i < CWS_GPU_CHECKS; i++)
        destroy_event(st, &st->checks[i].done);
    for (unsigned i = 0; i < 3; i++)
        if (streams[i])
            d->stream_destroy(streams[i]);
    if (st->control)
        d->host_free(st->control);
    if (st->ring)
        d->mem_free(st->ring);
    cws_gpu_decoder_destroy(st->decoder);
}

/* --- moments -------------------------------------------------------------------------------------------- */

bool cws_gpu_staging_time_all(struct cws_gpu_staging *st, bool all)
{
    bool made = true;
    for (unsigned i = 0; i < st->slot_count; i++)
        for (unsigned k = CWS_MOMENT_DECODE; k <= CWS_MOMENT_DECODED; k++) {
            CUevent *event = &st->slots[i].moments[k];
            if (!all)
                destroy_event(st, event);
            else if (made && !*event)
                made = st->core->driver->event_create(event, CU_EVENT_DEFAULT) == CUDA_SUCCESS;
        }
    return made;
}

static void note_moment(struct cws_gpu_staging *st, struct cws_gpu_slot *slot, enum cws_gpu_moment which)
{
    bool copies = which == CWS_MOMENT_COPY || which == CWS_MOMENT_COPIED;
    slot->timed &= ~(1u << which);
    if (slot->moments[which] && st->core->driver->event_record(
                                    slot->moments[which], copies ? st->copy_stream : st->decode_stream) == CUDA_SUCCESS)
        slot->timed |= 1u << which;
}

/* --- slots ------------------------------------------------------------------------------------------------ */

struct cws_gpu_slot *cws_gpu_slot_free(struct cws_gpu_staging *st)
{
    return st->busy < st->slot_count ? &st->slots[st->next] : NULL;
}

static CUresult copy(struct cws_gpu_staging *st, struct cws_gpu_slot *slot, const struct cws_gpu_send *send)
{
    const struct cws_driver *d = st->core->driver;
    size_t control = RESULTS_BYTES + slot->chunks * sizeof(struct cws_gpu_job);
    memset(slot->results, 0, slot->chunks * sizeof *slot->results);
    if (send->table)
        memcpy(slot->table, send->table, sizeof *send->table);
    note_moment(st, slot, CWS_MOMENT_COPY);
    /* On the same stream: on that of decodes it would wait in the copy engine behind the next batches' bytes. */
    CUresult result = send->table
                          ? d->copy_in_async(slot->device_table, slot->table, TABLE_BYTES + control, st->copy_stream)
                          : d->copy_in_async(slot->device_results, slot->results, control, st->copy_stream);
    if (result == CUDA_SUCCESS)
        result = d->copy_in_async(slot->device, send->host, send->bytes, st->copy_stream);
    /* before `copied`: what decoding waits for is the last on the stream that it knows of */
    note_moment(st, slot, CWS_MOMENT_COPIED);
    if (result == CUDA_SUCCESS)
        result = d->event_record(slot->copied, st->copy_stream);
    return result == CUDA_SUCCESS ? d->stream_wait(st->decode_stream, slot->copied, 0) : result;
}

int cws_gpu_slot_send(struct cws_gpu_staging *st, struct cws_gpu_slot *slot, const struct cws_gpu_send *send,
                      struct cws_error *err)
{
    const struct cws_driver *d = st->core->driver;
    CUresult result = copy(st, slot, send);
    if (result != CUDA_SUCCESS)
        return cws_driver_fail(d, err, result, "copying compressed weights");
    note_moment(st, slot, CWS_MOMENT_DECODE);
    int code = cws_gpu_decode(st->decoder, st->decode_stream, slot->device_jobs, &send->batch, slot->device_results,
                              send->key, err);
    if (code)
        return code;
    note_moment(st, slot, CWS_MOMENT_DECODED);
    result = d->copy_out_async(slot->results, slot->device_results, slot->chunks * sizeof *slot->results,
                               st->decode_stream);
    if (result == CUDA_SUCCESS)
        result = d->event_record(slot->done, st->decode_stream);
    return result == CUDA_SUCCESS ? 0 : cws_driver_fail(d, err, result, "decoding weights");
}

CUresult cws_gpu_slot_wait(struct cws_gpu_staging *st)
{
    CUresult copied = st->core->driver->stream_sync(st->copy_stream);
    CUresult decoded = st->core->driver->stream_sync(st->decode_stream);
    if (copied != CUDA_SUCCESS || decoded != CUDA_SUCCESS) { /* what was queued uses this memory, also after an error */
        st->core->driver->stream_sync(st->copy_stream);
        st->core->driver->stream_sync(st->decode_stream);
    }
    return copied == CUDA_SUCCESS ? decoded : copied;
}

void cws_gpu_slot_sent(struct cws_gpu_staging *st, const struct cws_gpu_send *send)
{
    st->next = (st->next + 1) % st->slot_count;
    st->busy++;
    st->link_bytes += send->bytes;
}

CUresult cws_gpu_slot_oldest(struct cws_gpu_staging *st, struct cws_gpu_slot **out)
{
    *out = st->busy ? &st->slots[st->oldest] : NULL;
    return st->busy ? st->core->driver->event_query((*out)->done) : CUDA_ERROR_NOT_READY;
}

void cws_gpu_slot_done(struct cws_gpu_staging *st)
{
    const uint32_t both = 1u << CWS_MOMENT_COPY | 1u << CWS_MOMENT_COPIED;
    struct cws_gpu_slot *slot = &st->slots[st->oldest];
    float ms = 0;
    if ((slot->timed & both) == both &&
        st->core->driver->event_elapsed(&ms, slot->moments[CWS_MOMENT_COPY], slot->moments[CWS_MOMENT_COPIED]) ==
            CUDA_SUCCESS &&
        ms > 0)
        st->link_ns += (uint64_t)((double)ms * 1e6);
    slot->timed = 0;
    st->oldest = (st->oldest + 1) % st->slot_count;
    st->busy--;
}

/* --- checks ------------------------------------------------------------------------------------------------ */

/* Hashing has a stream of its own, and its job is read from host memory: on the stream of decodes or of copies an
 * eviction would wait for them. */
CUresult cws_gpu_check_start(struct cws_gpu_staging *st, struct cws_gpu_check *check, uint32_t count,
                             const uint64_t key[2])
{
    const struct cws_driver *d = st->core->driver;
    struct cws_gpu_batch batch;
    struct cws_error err = {0};
    size_t bytes = count * sizeof *check->results;
    if (cws_gpu_hash_plan(check->jobs, count, &batch, &err))
        return CUDA_ERROR_UNKNOWN;
    /* the kernel adds to it */
    CUresult result = d->set8_async(check->device_results, 0, bytes, st->check_stream);
    if (result == CUDA_SUCCESS && cws_gpu_hash(st->decoder, st->check_stream, (CUdeviceptr)(uintptr_t)check->jobs,
                                               &batch, check->device_results, key, &err))
        result = CUDA_ERROR_UNKNOWN;
    return result == CUDA_SUCCESS ? d->copy_out_async(check->results, check->device_results, bytes, st->check_stream)
                                  : result;
}

const char *cws_gpu_staging_check(const struct cws_gpu_staging *st)
{
    return st->busy > st->slot_count || st->next != (st->oldest + st->busy) % st->slot_count
               ? "staging: the ring of slots is broken"
               : NULL;
}
