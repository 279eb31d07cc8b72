/* load.c - loading of one extent, piece after piece. Batches of chunks are copied to staging memory on the device and
 * decoded from there through the frame's alias. When all of them were checked, the frame is mapped at the extent. An
 * extent that has a source for a part of its bytes only is the program's from then on. */
#include "gpu.h"

#include <inttypes.h>
#include <stdio.h>

unsigned cws_gpu_loads_most(const struct cws_gpu *gpu)
{
    uint64_t most = gpu->core.tuning->load_most;
    return most < CWS_GPU_LOADS ? (unsigned)most : CWS_GPU_LOADS;
}

enum { PARTS_AHEAD = 6 }; /* that are asked for before their turn: more of them take more host memory */

static const struct cws_gpu_pieces *pieces_of(const struct cws_gpu_load *load) { return &load->extent->pieces; }
static const struct cws_gpu_piece *piece_at(const struct cws_gpu_load *load, uint32_t i)
{
    return &pieces_of(load)->list[i];
}
static uint32_t piece_count(const struct cws_gpu_load *load) { return pieces_of(load)->count; }

/* Is its next chunk one of the parts before `place`? */
static bool is_before(const struct cws_gpu_load *load, struct cws_gpu_place place)
{
    uint64_t begin, end;
    if (load->piece != place.piece || place.piece == piece_count(load))
        return load->piece < place.piece;
    cws_gpu_place_chunks(pieces_of(load), place, &begin, &end);
    return load->next_chunk < begin;
}

/* Asks for the bytes of the parts that come next, and needs that of which the next chunk is. */
static void begin_parts(struct cws_gpu *gpu, struct cws_gpu_load *load)
{
    struct cws_gpu_part *part;
    while (load->asked < PARTS_AHEAD && (part = cws_gpu_place_part(pieces_of(load), load->begun)) != NULL) {
        cws_gpu_part_begin(&gpu->sources, part);
        load->begun = cws_gpu_place_next(pieces_of(load), load->begun);
        load->asked++;
    }
    while (!is_before(load, load->needed) && cws_gpu_place_is_before(load->needed, load->begun)) {
        cws_gpu_part_need(&gpu->sources, cws_gpu_place_part(pieces_of(load), load->needed));
        load->needed = cws_gpu_place_next(pieces_of(load), load->needed);
    }
}

static void end_part(struct cws_gpu *gpu, struct cws_gpu_load *load)
{
    struct cws_gpu_part *part = cws_gpu_place_part(pieces_of(load), load->ended);
    bool needed = cws_gpu_place_is_before(load->ended, load->needed);
    load->ended = cws_gpu_place_next(pieces_of(load), load->ended);
    if (!needed)
        load->needed = load->ended;
    load->asked--;
    cws_gpu_part_end(&gpu->sources, part, needed);
}

/* `chunks` of the first part that has not arrived as a whole have arrived. */
static void note_arrived(struct cws_gpu *gpu, struct cws_gpu_load *load, uint64_t chunks)
{
    uint64_t begin, end;
    cws_gpu_place_chunks(pieces_of(load), load->ended, &begin, &end);
    load->chunks_done += chunks;
    if (load->chunks_done < end - begin)
        return;
    load->chunks_done = 0;
    end_part(gpu, load);
    if (!load->failed)
        begin_parts(gpu, load);
}

bool cws_gpu_load_start_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, struct cws_gpu_frame *frame,
                               bool for_launch)
{
    struct cws_gpu_loads *loads = &gpu->loads;
    if (loads->count == cws_gpu_loads_most(gpu))
        return false;
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_LOADING);
    x->frame = frame;
    x->order.ahead = !for_launch;
    struct cws_gpu_load *load = &loads->at[loads->count++];
    *load = (struct cws_gpu_load){.extent = x, .for_launch = for_launch};
    begin_parts(gpu, load);
    if (cws_trace_is_on())
        cws_gpu_trace_load_begin_slow_locked(gpu, load);
    loads->begun++;
    loads->ahead += !for_launch;
    return true;
}

/* --- batches --------------------------------------------------------------------------------------- */

static const struct cws_chunk_record *chunk(const struct cws_gpu_source *s, uint64_t i)
{
    return &s->tensor->chunks[i];
}

/* Where chunk i would lie in host memory, if all of the source's chunks followed each other there. */
static uint64_t host_at(const struct cws_gpu_source *s, uint64_t i)
{
    return s->plain ? i * s->tensor->record->chunk_bytes : chunk(s, i)->offset - chunk(s, 0)->offset;
}
static uint32_t host_bytes(const struct cws_gpu_source *s, uint64_t i)
{
    return s->plain ? chunk(s, i)->logical_bytes : chunk(s, i)->stored_bytes;
}

int cws_gpu_slot_plan(const struct cws_gpu *gpu, struct cws_gpu_slot *slot, const struct cws_gpu_batch_of *of,
                      struct cws_gpu_send *send, struct cws_error *err)
{
    const struct cws_gpu_piece *piece = of->piece;
    const struct cws_gpu_source *s = piece->source;
    uint64_t chunk_bytes = s->tensor->record->chunk_bytes;
    slot->first_chunk = piece->first_chunk + of->next_chunk;
    slot->chunks = 0;
    const struct cws_gpu_part *part = cws_gpu_source_part(piece->source, slot->first_chunk);
    uint64_t base = host_at(s, slot->first_chunk), end = base, part_end = part->first_chunk + part->chunk_count;
    const uint8_t *host = part->host + (base - host_at(s, part->first_chunk));
    while (slot->chunks < of->chunks_most && of->next_chunk + slot->chunks < piece->chunk_count) {
        uint64_t i = slot->first_chunk + slot->chunks;
        if (i == part_end)
            break;
        if (host_at(s, i) + host_bytes(s, i) + CWS_STREAM_PAD - base > gpu->staging.slot_bytes ||
            slot->chunks * chunk_bytes + chunk(s, i)->logical_bytes > of->bytes_most)
            break;
        end = host_at(s, i) + host_bytes(s, i);
        const struct cws_gpu_chunk what = {
            .dtype = s->tensor->dtype,
            .codec = s->plain ? CWS_CODEC_RAW : (enum cws_codec_id)chunk(s, i)->codec,
            .row_elems = s->tensor->record->row_elems,
            .first_byte = i * chunk_bytes,
            .stored_bytes = host_bytes(s, i),
            .logical_bytes = chunk(s, i)->logical_bytes,
            .stored = slot->device + (host_at(s, i) - base),
            .dst = of->to + slot->chunks * chunk_bytes,
            .table = slot->device_table,
        };
        int code = cws_gpu_job_init(&slot->jobs[slot->chunks], &what, host + (host_at(s, i) - base), err);
        if (code)
            return code;
        slot->chunks++;
    }
    send->host = host;
    send->bytes = end - base;
    send->table = s->table;
    send->key = cws_content_key;
    return cws_gpu_batch_plan(slot->jobs, (uint32_t)slot->chunks, &send->batch, err);
}

static void fail_load(struct cws_gpu *gpu, struct cws_gpu_load *load, const char *why)
{
    if (!load->failed)
        cws_gpu_say(&gpu->core, "%s", why);
    load->failed = true;
}

void cws_gpu_loads_fail_locked(struct cws_gpu *gpu)
{
    for (unsigned i = 0; i < gpu->loads.count; i++)
        gpu->loads.at[i].failed = true;
}

/* Sends the load's next batch into a free slot. */
static void send_drops_lock(struct cws_gpu *gpu, struct cws_gpu_load *load, struct cws_gpu_slot *slot)
{
    struct cws_error err = {0};
    struct cws_gpu_send send;
    cws_gpu_unlock(&gpu->core);
    const struct cws_gpu_piece *piece = piece_at(load, load->piece);
    uint64_t begin = piece->at + load->next_chunk * piece->source->tensor->record->chunk_bytes;
    const struct cws_gpu_batch_of of = {.piece = piece,
                                        .next_chunk = load->next_chunk,
                                        .to = load->extent->frame->alias + begin,
                                        .bytes_most = UINT64_MAX,
                                        .chunks_most = CWS_GPU_SLOT_CHUNKS};
    int code = cws_gpu_slot_plan(gpu, slot, &of, &send, &err);
    if (!code) {
        code = cws_gpu_slot_send(&gpu->staging, slot, &send, &err);
        if (code) /* a part of it may be under way: the slot is used again only when that is over */
            cws_gpu_slot_wait(&gpu->staging);
    }
    cws_gpu_lock(&gpu->core);
    if (code) {
        char line[640];
        snprintf(line, sizeof line, "%s: tensor \"%s\": %s", cws_gpu_source_path(piece->source),
                 piece->source->tensor->name, err.message);
        fail_load(gpu, load, line);
        return;
    }
    gpu->loads.of_slot[slot - gpu->staging.slots] = load;
    gpu->loads.piece_of_slot[slot - gpu->staging.slots] = load->piece;
    cws_gpu_slot_sent(&gpu->staging, &send);
    load->slots_pending++;
    load->next_chunk += slot->chunks;
    if (load->next_chunk == piece->chunk_count) {
        load->next_chunk = 0;
        load->piece++;
    }
    begin_parts(gpu, load);
}

static bool is_for_launch(const struct cws_gpu_load *load)
{
    return load->for_launch || cws_gpu_is_demanded(load->extent);
}

/* Can its next batch be sent? */
static bool is_at_hand(struct cws_gpu *gpu, struct cws_gpu_load *load)
{
    if (load->failed || !is_before(load, load->needed))
        return false;
    const struct cws_gpu_piece *piece = piece_at(load, load->piece);
    const struct cws_gpu_part *p = cws_gpu_source_part(piece->source, piece->first_chunk + load->next_chunk);
    if (p->state == CWS_SOURCE_FAILED)
        fail_load(gpu, load, piece->source->error.message);
    return p->state == CWS_SOURCE_READY && p->host;
}

/* Notes how long what a launch waits for stands ready, and there is no slot for it. */
static void note_slot_wait(struct cws_gpu_loads *loads, bool waits)
{
    uint64_t now = waits || loads->no_slot_ns ? cws_gpu_now_ns() : 0;
    if (waits && !loads->no_slot_ns) {
        loads->no_slot_ns = now;
        loads->slot_waits++;
    } else if (!waits && loads->no_slot_ns) {
        loads->slot_wait_ns += now - loads->no_slot_ns;
        loads->no_slot_ns = 0;
    }
}

bool cws_gpu_loads_issue_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_loads *loads = &gpu->loads;
    bool moved = false, waits = false;
    for (unsigned pass = 0; pass < 2; pass++) { /* what a launch waits for goes first */
        for (unsigned i = 0; i < loads->count; i++) {
            struct cws_gpu_load *load = &loads->at[i];
            if (is_for_launch(load) != (pass == 0))
                continue;
            bool failed = load->failed;
            while (is_at_hand(gpu, load)) {
                struct cws_gpu_slot *slot = cws_gpu_slot_free(&gpu->staging);
                waits |= !slot && pass == 0;
                if (!slot)
                    break;
                send_drops_lock(gpu, load, slot);
                moved = true;
            }
            moved |= load->failed != failed;
        }
    }
    note_slot_wait(loads, waits);
    return moved;
}

/* --- end ------------------------------------------------------------------------------------------- */

/* Compares the device's results for each chunk of a batch with what the store has. */
static void check_results(struct cws_gpu *gpu, struct cws_gpu_load *load, const struct cws_gpu_slot *slot)
{
    const struct cws_gpu_source *s = piece_at(load, gpu->loads.piece_of_slot[slot - gpu->staging.slots])->source;
    for (uint64_t i = 0; i < slot->chunks && !load->failed; i++) {
        const struct cws_chunk_record *c = chunk(s, slot->first_chunk + i);
        const struct cws_gpu_result *result = &slot->results[i];
        struct cws_hash128 hash = cws_gpu_result_hash(result);
        bool same = hash.lo == c->content_hash[0] && hash.hi == c->content_hash[1];
        if (result->status == CWS_GPU_OK && same)
            continue;
        char line[640];
        snprintf(line, sizeof line, "%s: tensor \"%s\": chunk at file offset %" PRIu64 " does not decode: %s",
                 cws_gpu_source_path(s), s->tensor->name, c->offset,
                 result->status ? cws_gpu_status_text(result->status)
                 : s->file      ? "the file was changed after it was loaded"
                                : "its content hash is not the stored one");
        fail_load(gpu, load, line);
    }
}

/* Takes a load off the list: the last one moves to its place, and what slots know of it with it. */
static void remove_locked(struct cws_gpu_loads *loads, unsigned index)
{
    unsigned last = --loads->count;
    for (unsigned i = 0; i < CWS_GPU_SLOTS; i++)
        if (loads->of_slot[i] == &loads->at[last])
            loads->of_slot[i] = &loads->at[index];
    loads->at[index] = loads->at[last];
}

static void finish_drops_lock(struct cws_gpu *gpu, unsigned index)
{
    struct cws_gpu_load load = gpu->loads.at[index];
    struct cws_gpu_extent *x = load.extent;
    struct cws_gpu_frame *frame = x->frame;
    CUresult result = CUDA_ERROR_UNKNOWN;
    if (!load.failed && !x->range->freed) {
        cws_gpu_unlock(&gpu->core);
        bool traced = cws_trace_is_on() && cws_gpu_trace_extent_slow(x, CWS_TRACE_MAP);
        result = cws_gpu_frame_map(&gpu->frames, frame, x->base);
        cws_trace_end(CWS_TRACE_MAP, traced);
        cws_gpu_lock(&gpu->core);
        if (result != CUDA_SUCCESS)
            cws_gpu_unexpected(&gpu->core, result, "mapping a range");
    }
    if (load.lane)
        cws_gpu_trace_load_end_slow_locked(gpu, &load);
    remove_locked(&gpu->loads, index);
    if (result == CUDA_SUCCESS) {
        cws_gpu_extent_set_locked(gpu, x, cws_gpu_is_bound(x) ? CWS_EXTENT_RESIDENT : CWS_EXTENT_ANONYMOUS);
        gpu->loads.bytes += x->bytes;
    } else {
        x->frame = NULL;
        cws_gpu_frame_put(&gpu->frames, frame);
        cws_gpu_extent_set_locked(gpu, x, cws_gpu_is_bound(x) ? CWS_EXTENT_BOUND : CWS_EXTENT_PARTIAL);
        x->failed = (CUresult)304; /* CUDA_ERROR_OPERATING_SYSTEM */
        x->order.ahead = false;
    }
    while (cws_gpu_place_is_before(load.ended, load.begun))
        end_part(gpu, &load);
    cws_gpu_extent_settle_locked(gpu, x);
}

/* What is queued behind may still be at work in its slot, which is used again next. */
static void fail_device_drops_lock(struct cws_gpu *gpu, struct cws_gpu_load *load)
{
    cws_gpu_unlock(&gpu->core);
    cws_gpu_slot_wait(&gpu->staging);
    cws_gpu_lock(&gpu->core);
    fail_load(gpu, load, "the device failed while weights were decoded");
}

bool cws_gpu_loads_reap_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_slot *slot;
    bool moved = false;
    for (CUresult result; (result = cws_gpu_slot_oldest(&gpu->staging, &slot)) != CUDA_ERROR_NOT_READY; moved = true) {
        struct cws_gpu_load **of = &gpu->loads.of_slot[slot - gpu->staging.slots];
        if (result == CUDA_SUCCESS)
            check_results(gpu, *of, slot);
        else
            fail_device_drops_lock(gpu, *of);
        if (cws_trace_is_on())
            cws_gpu_trace_batch_slow(gpu, *of, slot);
        note_arrived(gpu, *of, slot->chunks);
        (*of)->slots_pending--;
        *of = NULL;
        cws_gpu_slot_done(&gpu->staging);
    }
    for (unsigned i = 0; i < gpu->loads.count;) {
        struct cws_gpu_load *load = &gpu->loads.at[i];
        bool all = load->ended.piece == piece_count(load);
        if (all || (load->failed && !load->slots_pending)) {
            finish_drops_lock(gpu, i);
            moved = true;
        } else {
            i++;
        }
    }
    return moved;
}

bool cws_gpu_load_is_ready(const struct cws_gpu *gpu)
{
    const struct cws_gpu_staging *st = &gpu->staging;
    return st->busy && gpu->core.driver->event_query(st->slots[st->oldest].done) != CUDA_ERROR_NOT_READY;
}

const char *cws_gpu_loads_check(const struct cws_gpu *gpu)
{
    const struct cws_gpu_loads *loads = &gpu->loads;
    unsigned slots = 0, pending = 0;
    for (unsigned i = 0; i < loads->count; i++) {
        const struct cws_gpu_load *load = &loads->at[i];
        if (load->extent->state != CWS_EXTENT_LOADING)
            return "loads: one that is under way is in another state";
        if (cws_gpu_place_is_before(load->needed, load->ended) || cws_gpu_place_is_before(load->begun, load->needed) ||
            is_before(load, load->ended))
            return "loads: more has arrived than was sent";
        pending += load->slots_pending;
    }
    for (unsigned i = 0; i < CWS_GPU_SLOTS; i++)
        slots += loads->of_slot[i] != NULL;
    return slots != gpu->staging.busy || slots != pending ? "loads: a slot under way is nobody's" : NULL;
}
