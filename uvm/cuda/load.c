/* load.c - loading of one range. Batches of its chunks are copied to staging memory on the device and decoded from
 * there through the frame's alias. When all of them were checked, the frame is mapped at the range. Staging is a ring
 * of slots, so that the copy of one batch runs beside the decoding of the one before. */
#include "state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The control block of a slot, the same in pinned host memory and on the device: table, results (sent as zeros, for the
 * kernel adds to them), jobs. */
#define TABLE_BYTES ((sizeof(struct cws_gpu_table) + 127) / 128 * 128)
#define JOBS_BYTES (CWS_GPU_SLOT_CHUNKS * sizeof(struct cws_gpu_job))
#define RESULTS_BYTES ((CWS_GPU_SLOT_CHUNKS * sizeof(struct cws_gpu_result) + 127) / 128 * 128)
#define CONTROL_BYTES (TABLE_BYTES + JOBS_BYTES + RESULTS_BYTES)
#define DROP_BYTES 128u /* of a drop's control block: in host memory job, then result; on the device the result */
#define DROPS_BYTES ((CWS_GPU_DROPS + 1) * DROP_BYTES)
#define SLOT_BYTES_MAX ((uint64_t)8 << 20)
#define SLOT_BYTES_MIN ((uint64_t)1 << 20)

/* --- staging ------------------------------------------------------------------------------------- */

/* The ring is a part of the budget that holds no weights, so it is a small part: 64 MiB, or a 32nd where that is less.
 * A copy of 8 MiB takes as long as the loader may need to see that the one before is done: a few large slots are better
 * than more small ones. Returns all that it takes. */
static uint64_t plan(const struct cws_gpu_config *config, uint64_t budget, unsigned *slot_count, uint64_t *slot_bytes)
{
    enum { SLOTS_MIN = 4, PART = 32 };
    uint64_t ring = config->ring_bytes ? config->ring_bytes : budget / PART, slots = ring / SLOT_BYTES_MAX;
    *slot_count = slots < SLOTS_MIN ? SLOTS_MIN : slots < CWS_GPU_SLOTS ? (unsigned)slots : CWS_GPU_SLOTS;
    uint64_t slot = ring / *slot_count / 4096 * 4096;
    slot = slot > SLOT_BYTES_MAX && !config->ring_bytes ? SLOT_BYTES_MAX : slot;
    *slot_bytes = slot < SLOT_BYTES_MIN ? SLOT_BYTES_MIN : slot;
    return (*slot_count * (*slot_bytes + CONTROL_BYTES) + DROPS_BYTES + CWS_GPU_GRANULE - 1) / CWS_GPU_GRANULE *
           CWS_GPU_GRANULE;
}

uint64_t cws_gpu_ring_bytes(const struct cws_gpu_config *config, uint64_t budget)
{
    unsigned slots;
    uint64_t slot;
    return plan(config, budget, &slots, &slot);
}

int cws_gpu_ring_open(struct cws_gpu *gpu, struct cws_error *err)
{
    const struct cws_driver *d = gpu->driver;
    uint64_t bytes = plan(&gpu->config, gpu->config.budget_bytes, &gpu->slot_count, &gpu->slot_bytes),
             slot = gpu->slot_bytes + CONTROL_BYTES;
    CUresult result = d->mem_alloc(&gpu->ring, bytes);
    if (result != CUDA_SUCCESS) {
        gpu->ring = 0;
        return cws_driver_fail(d, err, result, "allocating staging in device memory");
    }
    gpu->ring_bytes = bytes;
    gpu->control_bytes = gpu->slot_count * CONTROL_BYTES + DROPS_BYTES;
    result = d->host_alloc((void **)&gpu->control, gpu->control_bytes, CU_MEMHOSTALLOC_PORTABLE);
    if (result == CUDA_SUCCESS)
        result = d->stream_create(&gpu->copy_stream, CU_STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS)
        result = d->stream_create(&gpu->decode_stream, CU_STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS)
        result = d->stream_create(&gpu->drop_stream, CU_STREAM_NON_BLOCKING);
    for (unsigned i = 0; i < gpu->slot_count && result == CUDA_SUCCESS; i++) {
        struct cws_gpu_slot *s = &gpu->slots[i];
        uint8_t *control = gpu->control + i * CONTROL_BYTES;
        s->device = gpu->ring + i * slot;
        s->device_table = s->device + gpu->slot_bytes;
        s->device_results = s->device_table + TABLE_BYTES;
        s->device_jobs = s->device_results + RESULTS_BYTES;
        s->table = (struct cws_gpu_table *)control;
        s->results = (struct cws_gpu_result *)(control + TABLE_BYTES);
        s->jobs = (struct cws_gpu_job *)(control + TABLE_BYTES + RESULTS_BYTES);
        result = d->event_create(&s->copied, CU_EVENT_DISABLE_TIMING);
        if (result == CUDA_SUCCESS)
            result = d->event_create(&s->done, CU_EVENT_DISABLE_TIMING);
    }
    for (unsigned i = 0; i <= CWS_GPU_DROPS && result == CUDA_SUCCESS; i++) {
        struct cws_gpu_drop *drop = &gpu->drops[i];
        uint8_t *control = gpu->control + gpu->slot_count * CONTROL_BYTES + i * DROP_BYTES;
        drop->device_result = gpu->ring + gpu->slot_count * slot + i * DROP_BYTES;
        drop->job = (struct cws_gpu_hash_job *)control;
        drop->result = (struct cws_gpu_result *)(control + sizeof(struct cws_gpu_hash_job));
        result = d->event_create(&drop->done, CU_EVENT_DISABLE_TIMING);
    }
    return result == CUDA_SUCCESS ? 0 : cws_driver_fail(d, err, result, "setting up staging");
}

void cws_gpu_ring_close(struct cws_gpu *gpu)
{
    const struct cws_driver *d = gpu->driver;
    const CUstream streams[] = {gpu->copy_stream, gpu->decode_stream, gpu->drop_stream};
    for (unsigned i = 0; i < 3; i++)
        if (streams[i])
            d->stream_sync(streams[i]);
    for (unsigned i = 0; i < gpu->slot_count; i++) {
        if (gpu->slots[i].copied)
            d->event_destroy(gpu->slots[i].copied);
        if (gpu->slots[i].done)
            d->event_destroy(gpu->slots[i].done);
    }
    for (unsigned i = 0; i <= CWS_GPU_DROPS; i++)
        if (gpu->drops[i].done)
            d->event_destroy(gpu->drops[i].done);
    for (unsigned i = 0; i < 3; i++)
        if (streams[i])
            d->stream_destroy(streams[i]);
    if (gpu->control)
        d->host_free(gpu->control);
    if (gpu->ring)
        d->mem_free(gpu->ring);
}

/* --- begin --------------------------------------------------------------------------------------- */

bool cws_gpu_load_start_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, struct cws_gpu_frame *frame,
                               bool for_launch)
{
    if (gpu->load_count == CWS_GPU_LOADS)
        return false;
    cws_gpu_range_set_locked(gpu, r, CWS_RANGE_LOADING);
    r->frame = frame;
    r->order.ahead = !for_launch;
    r->source->refs++;
    r->source->loading++;
    cws_gpu_source_want_locked(gpu, r->source, true);
    gpu->loads[gpu->load_count++] = (struct cws_gpu_load){.range = r, .source = r->source, .for_launch = for_launch};
    if (cws_trace_is_on())
        cws_gpu_trace_load_begin_slow_locked(gpu, &gpu->loads[gpu->load_count - 1]);
    gpu->counts.loads++;
    gpu->counts.prefetched += !for_launch;
    return true;
}

/* --- batches --------------------------------------------------------------------------------------- */

static const struct cws_chunk_record *chunk(const struct cws_gpu_source *s, uint64_t i)
{
    return &s->tensor->chunks[i];
}
static uint64_t chunk_total(const struct cws_gpu_source *s) { return s->tensor->record->chunk_count; }

/* Where chunk i lies in the source's host memory. */
static uint64_t host_at(const struct cws_gpu_source *s, uint64_t i)
{
    return s->plain ? i * s->tensor->record->chunk_bytes : chunk(s, i)->offset - chunk(s, 0)->offset;
}
static uint32_t host_bytes(const struct cws_gpu_source *s, uint64_t i)
{
    return s->plain ? chunk(s, i)->logical_bytes : chunk(s, i)->stored_bytes;
}

static int plan_slot(struct cws_gpu *gpu, struct cws_gpu_slot *slot, const struct cws_gpu_load *load,
                     struct cws_gpu_batch *batch, uint64_t *out_bytes, struct cws_error *err)
{
    const struct cws_gpu_source *s = load->source;
    uint64_t base = host_at(s, load->next_chunk), end = base;
    slot->first_chunk = load->next_chunk;
    slot->chunks = 0;
    while (slot->chunks < CWS_GPU_SLOT_CHUNKS && slot->first_chunk + slot->chunks < chunk_total(s)) {
        uint64_t i = slot->first_chunk + slot->chunks;
        if (host_at(s, i) + host_bytes(s, i) + CWS_STREAM_PAD - base > gpu->slot_bytes)
            break;
        end = host_at(s, i) + host_bytes(s, i);
        const struct cws_gpu_chunk what = {
            .dtype = s->tensor->dtype,
            .codec = s->plain ? CWS_CODEC_RAW : (enum cws_codec_id)chunk(s, i)->codec,
            .row_elems = s->tensor->record->row_elems,
            .first_byte = i * s->tensor->record->chunk_bytes,
            .stored_bytes = host_bytes(s, i),
            .logical_bytes = chunk(s, i)->logical_bytes,
            .stored = slot->device + (host_at(s, i) - base),
            .dst = load->range->frame->alias + i * s->tensor->record->chunk_bytes,
            .table = slot->device_table,
        };
        int code = cws_gpu_job_init(&slot->jobs[slot->chunks], &what, s->host + host_at(s, i), err);
        if (code)
            return code;
        slot->chunks++;
    }
    *out_bytes = end - base;
    if (s->table)
        memcpy(slot->table, s->table, sizeof *s->table);
    return cws_gpu_batch_plan(slot->jobs, (uint32_t)slot->chunks, batch, err);
}

static int issue(struct cws_gpu *gpu, struct cws_gpu_slot *slot, const struct cws_gpu_load *load, uint64_t *out_bytes,
                 struct cws_error *err)
{
    const struct cws_driver *d = gpu->driver;
    const struct cws_gpu_source *s = load->source;
    struct cws_gpu_batch batch;
    int code = plan_slot(gpu, slot, load, &batch, out_bytes, err);
    if (code)
        return code;
    size_t control = RESULTS_BYTES + slot->chunks * sizeof(struct cws_gpu_job);
    memset(slot->results, 0, slot->chunks * sizeof *slot->results);
    cws_gpu_trace_moment(gpu, slot, CWS_MOMENT_COPY);
    CUresult result = d->copy_in_async(slot->device, s->host + host_at(s, slot->first_chunk), *out_bytes,
                                       gpu->copy_stream);
    if (result == CUDA_SUCCESS)
        result = s->table ? d->copy_in_async(slot->device_table, slot->table, TABLE_BYTES + control, gpu->copy_stream)
                          : d->copy_in_async(slot->device_results, slot->results, control, gpu->copy_stream);
    /* before `copied`: what decoding waits for is the last on the stream that it knows of */
    cws_gpu_trace_moment(gpu, slot, CWS_MOMENT_COPIED);
    if (result == CUDA_SUCCESS)
        result = d->event_record(slot->copied, gpu->copy_stream);
    if (result == CUDA_SUCCESS)
        result = d->stream_wait(gpu->decode_stream, slot->copied, 0);
    if (result != CUDA_SUCCESS)
        return cws_driver_fail(d, err, result, "copying compressed weights");
    cws_gpu_trace_moment(gpu, slot, CWS_MOMENT_DECODE);
    code = cws_gpu_decode(gpu->decoder, gpu->decode_stream, slot->device_jobs, &batch, slot->device_results,
                          cws_content_key, err);
    if (code)
        return code;
    cws_gpu_trace_moment(gpu, slot, CWS_MOMENT_DECODED);
    result = d->copy_out_async(slot->results, slot->device_results, slot->chunks * sizeof *slot->results,
                               gpu->decode_stream);
    if (result == CUDA_SUCCESS)
        result = d->event_record(slot->done, gpu->decode_stream);
    return result == CUDA_SUCCESS ? 0 : cws_driver_fail(d, err, result, "decoding weights");
}

static void fail_load(struct cws_gpu *gpu, struct cws_gpu_load *load, const char *why)
{
    if (!load->failed)
        cws_gpu_say(gpu, "%s", why);
    load->failed = true;
}

bool cws_gpu_loads_issue_locked(struct cws_gpu *gpu)
{
    bool moved = false;
    for (unsigned pass = 0; pass < 2; pass++) { /* what a launch waits for goes first */
        for (unsigned i = 0; i < gpu->load_count; i++) {
            struct cws_gpu_load *load = &gpu->loads[i];
            if ((load->for_launch || load->range->demanded) != (pass == 0))
                continue;
            if (load->source->state == CWS_SOURCE_FAILED && !load->failed) {
                fail_load(gpu, load, load->source->error.message);
                moved = true;
            }
            if (load->source->state != CWS_SOURCE_READY || !load->source->host)
                continue;
            while (!load->failed && load->next_chunk < chunk_total(load->source) && gpu->slots_busy < gpu->slot_count) {
                struct cws_gpu_slot *slot = &gpu->slots[gpu->slot_next];
                struct cws_error err = {0};
                uint64_t bytes = 0;
                pthread_mutex_unlock(&gpu->lock);
                int code = issue(gpu, slot, load, &bytes, &err);
                if (code) { /* a part of it may be under way: the slot is used again only when that is over */
                    gpu->driver->stream_sync(gpu->copy_stream);
                    gpu->driver->stream_sync(gpu->decode_stream);
                }
                pthread_mutex_lock(&gpu->lock);
                moved = true;
                if (code) {
                    char line[640];
                    snprintf(line, sizeof line, "%s: tensor \"%s\": %s", cws_gpu_source_path(load->source),
                             load->source->tensor->name, err.message);
                    fail_load(gpu, load, line);
                    break;
                }
                slot->busy = true;
                slot->load = load;
                gpu->slot_next = (gpu->slot_next + 1) % gpu->slot_count;
                gpu->slots_busy++;
                load->next_chunk += slot->chunks;
                gpu->counts.link_bytes += bytes;
            }
        }
    }
    return moved;
}

/* --- end ------------------------------------------------------------------------------------------- */

/* Compares the device's results for each chunk of a batch with what the store has. */
static void check_results(struct cws_gpu *gpu, const struct cws_gpu_slot *slot)
{
    struct cws_gpu_load *load = slot->load;
    for (uint64_t i = 0; i < slot->chunks && !load->failed; i++) {
        const struct cws_chunk_record *c = chunk(load->source, slot->first_chunk + i);
        const struct cws_gpu_result *result = &slot->results[i];
        struct cws_hash128 hash = cws_gpu_result_hash(result);
        bool same = hash.lo == c->content_hash[0] && hash.hi == c->content_hash[1];
        if (result->status == CWS_GPU_OK && same)
            continue;
        char line[640];
        snprintf(line, sizeof line, "%s: tensor \"%s\": chunk at file offset %" PRIu64 " does not decode: %s",
                 cws_gpu_source_path(load->source), load->source->tensor->name, c->offset,
                 result->status       ? cws_gpu_status_text(result->status)
                 : load->source->file ? "the file was changed after it was loaded"
                                      : "its content hash is not the stored one");
        fail_load(gpu, load, line);
    }
}

static void finish_locked(struct cws_gpu *gpu, unsigned index)
{
    struct cws_gpu_load load = gpu->loads[index];
    struct cws_gpu_range *r = load.range;
    struct cws_gpu_frame *frame = r->frame;
    CUresult result = CUDA_ERROR_UNKNOWN;
    if (!load.failed && !r->freed) {
        pthread_mutex_unlock(&gpu->lock);
        result = cws_gpu_map(gpu, r, frame);
        pthread_mutex_lock(&gpu->lock);
        if (result != CUDA_SUCCESS)
            cws_gpu_unexpected(gpu, result, "mapping a range");
    }
    if (load.lane)
        cws_gpu_trace_load_end_slow_locked(gpu, &load);
    /* Slots point into the array: the last one moves, its slots with it. */
    unsigned last = --gpu->load_count;
    for (unsigned i = 0; i < gpu->slot_count; i++)
        if (gpu->slots[i].busy && gpu->slots[i].load == &gpu->loads[last])
            gpu->slots[i].load = &gpu->loads[index];
    gpu->loads[index] = gpu->loads[last];
    load.source->loading--;
    cws_gpu_source_done_locked(gpu, load.source);
    if (result == CUDA_SUCCESS) {
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_RESIDENT);
        gpu->counts.loaded_bytes += r->bytes;
        if (r->freed) /* while it was mapped */
            cws_gpu_range_cache_locked(gpu, r);
    } else {
        r->frame = NULL;
        cws_gpu_frame_put_idle_locked(gpu, frame);
        cws_gpu_range_set_locked(gpu, r, CWS_RANGE_BOUND);
        r->failed = (CUresult)304; /* CUDA_ERROR_OPERATING_SYSTEM */
        if (r->freed)
            cws_gpu_range_end_locked(gpu, r);
        else
            r->order.ahead = false;
    }
    cws_gpu_source_put_locked(gpu, load.source);
    pthread_cond_broadcast(&gpu->changed);
}

bool cws_gpu_loads_reap_locked(struct cws_gpu *gpu)
{
    bool moved = false;
    while (gpu->slots_busy) {
        struct cws_gpu_slot *slot = &gpu->slots[gpu->slot_oldest];
        CUresult result = gpu->driver->event_query(slot->done);
        if (result == CUDA_ERROR_NOT_READY)
            break;
        if (result == CUDA_SUCCESS)
            check_results(gpu, slot);
        else
            fail_load(gpu, slot->load, "the device failed while weights were decoded");
        if (slot->timed)
            cws_gpu_trace_batch_slow(gpu, slot);
        slot->load->chunks_done += slot->chunks;
        slot->busy = false;
        gpu->slot_oldest = (gpu->slot_oldest + 1) % gpu->slot_count;
        gpu->slots_busy--;
        moved = true;
    }
    for (unsigned i = 0; i < gpu->load_count;) {
        struct cws_gpu_load *load = &gpu->loads[i];
        bool all = load->chunks_done == chunk_total(load->source);
        if (all || (load->failed && load->chunks_done == load->next_chunk)) {
            finish_locked(gpu, i);
            moved = true;
        } else {
            i++;
        }
    }
    return moved;
}

bool cws_gpu_load_is_ready(const struct cws_gpu *gpu)
{
    return gpu->slots_busy && gpu->driver->event_query(gpu->slots[gpu->slot_oldest].done) != CUDA_ERROR_NOT_READY;
}
