/* prove.c - provenance by content. The bytes of an extent that only the program knows are hashed at each offset in each
 * of the sizes that tensors of the known stores have. Where the hashes are those of tensors, one after the other to the
 * end, it is unmapped, so that nobody can write to it any more, at least not silently; the tensors are decoded into
 * staging memory, and both are hashed again, chunk by chunk, under a random key: the file's key is known to everybody,
 * so that what it finds proves nothing. If all chunks are equal the extent is bound, and its memory is free. If not it
 * is mapped again, and not looked at before it was used again; the more often that happens, the longer it is left
 * alone. What is not tensors is never unmapped: kernels may reach it by pointers that nobody sees. */
#include "gpu.h"

#include <stdio.h>
#include <sys/random.h>

enum {
    TIMES_MOST = 10, /* an extent that was looked at in vain so often is looked at again after 2^10 uses of others */
    PARTS_AHEAD = 4, /* that are fetched meanwhile, and the one that is looked at */
    /* as long as a launch waits for a better victim, so often: while uses do not end; then memory is refused */
    WAITS = 500,
};

void cws_gpu_proofs_init(struct cws_gpu_proofs *proofs)
{
    *proofs = (struct cws_gpu_proofs){.asked = false};
    cws_gpu_known_init(&proofs->known);
    if (getrandom(proofs->key, sizeof proofs->key, GRND_NONBLOCK) != (ssize_t)sizeof proofs->key)
        proofs->key[0] = proofs->key[1] = 0;
}

void cws_gpu_proofs_close(struct cws_gpu_proofs *proofs) { cws_gpu_known_close(&proofs->known); }

void cws_gpu_proof_forget_locked(struct cws_gpu_extent *x) { x->proof = (struct cws_gpu_proof){.failed = 0}; }

/* --- which ------------------------------------------------------------------------------------------------ */

/* One that was spilled was looked at before that; while the copy is kept it is hardly anything new. */
static bool is_candidate(const struct cws_gpu *gpu, const struct cws_gpu_extent *x)
{
    const struct cws_gpu_known *known = &gpu->proofs.known;
    uint64_t age = gpu->uses.begun - x->used;
    return (x->state == CWS_EXTENT_ANONYMOUS || x->state == CWS_EXTENT_DIRTY) && !x->holds && !x->range->pinned &&
           !x->range->freed && !cws_gpu_is_demanded(x) && !x->spill.host && x->proof.failed != x->used + 1 &&
           x->bytes >= known->sizes[known->size_count - 1] && age + 1 >= (uint64_t)1 << x->proof.times;
}

static bool is_possible(const struct cws_gpu *gpu)
{
    return gpu->proofs.known.size_count && (gpu->proofs.key[0] || gpu->proofs.key[1]);
}

uint64_t cws_gpu_provable_locked(const struct cws_gpu *gpu)
{
    uint64_t bytes = 0;
    for (const struct cws_gpu_extent *x = is_possible(gpu) ? cws_gpu_extent_next(&gpu->ranges, NULL) : NULL; x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        bytes += is_candidate(gpu, x) ? cws_gpu_span(x) : 0;
    return bytes;
}

/* The one that was used longest ago, of those whose uses are done. */
static struct cws_gpu_extent *choose_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_extent *best = NULL;
    for (struct cws_gpu_extent *x = is_possible(gpu) ? cws_gpu_extent_next(&gpu->ranges, NULL) : NULL; x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        if (is_candidate(gpu, x) && (!best || x->used < best->used) &&
            cws_gpu_users_done(&gpu->streams, &x->users, true))
            best = x;
    return best;
}

/* --- what it may be ---------------------------------------------------------------------------------------- */

static struct cws_gpu_check *check_of(struct cws_gpu *gpu) { return &gpu->staging.checks[CWS_GPU_DROPS]; }

/* Waits for hashes that were started, or not: what was queued uses the check's memory, also after an error. */
static CUresult finish_check(struct cws_gpu *gpu, CUresult started)
{
    CUresult waited = gpu->core.driver->stream_sync(gpu->staging.check_stream);
    if (waited != CUDA_SUCCESS)
        gpu->core.driver->stream_sync(gpu->staging.check_stream);
    return started == CUDA_SUCCESS ? waited : started;
}

/* Adds the tensor that begins at `at`, the largest of those that may. False: there is none, or this failed. */
static bool add_next_drops_lock(struct cws_gpu *gpu, const struct cws_gpu_extent *x, struct cws_gpu_pieces *found)
{
    const struct cws_gpu_known *known = &gpu->proofs.known;
    struct cws_gpu_check *check = check_of(gpu);
    uint64_t at = found->covered;
    uint32_t count = 0;
    for (unsigned i = 0; i < known->size_count && at % 16 == 0; i++)
        if (known->sizes[i] <= x->bytes - at)
            check->jobs[count++] = (struct cws_gpu_hash_job){.address = x->frame->alias + at, .bytes = known->sizes[i]};
    if (count == 0)
        return false;
    cws_gpu_unlock(&gpu->core);
    CUresult result = finish_check(gpu, cws_gpu_check_start(&gpu->staging, check, count, cws_content_key));
    cws_gpu_lock(&gpu->core);
    for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        struct cws_gpu_piece piece;
        struct cws_store *store;
        uint64_t bytes = check->jobs[i].bytes;
        const struct cws_tensor_info *t = cws_gpu_known_find(known, bytes, cws_gpu_result_hash(&check->results[i]),
                                                             &store);
        if (!t || !cws_gpu_piece_of(t, 0, bytes, at, &piece))
            continue;
        if (gpu->config.pins && gpu->config.pins(t->name))
            return false;
        piece.source = cws_gpu_source_get(&gpu->sources, store, t);
        if (piece.source && cws_gpu_pieces_put(&gpu->sources, found, &piece))
            return true;
        if (piece.source)
            cws_gpu_source_put(&gpu->sources, piece.source);
        return false;
    }
    return false;
}

/* --- whether it is ------------------------------------------------------------------------------------------- */

/* Are the next chunks of the piece what lies in the extent's frame? *done: how many were looked at. No load is under
 * way: the slots are free. The lock is not held. */
static bool is_same_batch(struct cws_gpu *gpu, const struct cws_gpu_extent *x, const struct cws_gpu_piece *piece,
                          uint64_t next, uint64_t *done)
{
    struct cws_gpu_staging *st = &gpu->staging;
    struct cws_gpu_slot *slot = cws_gpu_slot_free(st);
    const struct cws_gpu_slot *scratch = &st->slots[(st->next + 1) % st->slot_count];
    const struct cws_chunk_record *chunks = piece->source->tensor->chunks;
    struct cws_gpu_check *check = check_of(gpu);
    struct cws_gpu_send send;
    struct cws_error err = {0};
    const struct cws_gpu_batch_of what = {.piece = piece,
                                          .next_chunk = next,
                                          .to = scratch->device,
                                          .bytes_most = st->slot_bytes,
                                          .chunks_most = CWS_GPU_CHECK_JOBS};
    if (cws_gpu_slot_plan(gpu, slot, &what, &send, &err) || slot->chunks == 0)
        return false;
    uint64_t chunk_bytes = piece->source->tensor->record->chunk_bytes;
    for (uint64_t i = 0; i < slot->chunks; i++)
        check->jobs[i] = (struct cws_gpu_hash_job){.address = x->frame->alias + piece->at + (next + i) * chunk_bytes,
                                                   .bytes = chunks[slot->first_chunk + i].logical_bytes,
                                                   .first_word = (slot->first_chunk + i) * chunk_bytes / 16};
    send.key = gpu->proofs.key;
    bool good = !cws_gpu_slot_send(st, slot, &send, &err);
    CUresult result = cws_gpu_check_start(st, check, (uint32_t)slot->chunks, gpu->proofs.key);
    good &= cws_gpu_slot_wait(st) == CUDA_SUCCESS;
    good &= finish_check(gpu, result) == CUDA_SUCCESS;
    for (uint64_t i = 0; i < slot->chunks && good; i++) {
        struct cws_hash128 theirs = cws_gpu_result_hash(&slot->results[i]);
        struct cws_hash128 ours = cws_gpu_result_hash(&check->results[i]);
        good = slot->results[i].status == CWS_GPU_OK && theirs.lo == ours.lo && theirs.hi == ours.hi;
    }
    *done = slot->chunks;
    return good;
}

/* Is one part of a piece the same? */
static bool is_same_part_drops_lock(struct cws_gpu *gpu, const struct cws_gpu_extent *x,
                                    const struct cws_gpu_pieces *found, struct cws_gpu_place place)
{
    struct cws_gpu_part *p = cws_gpu_place_part(found, place);
    uint64_t next, end, done = 0;
    cws_gpu_place_chunks(found, place, &next, &end);
    cws_gpu_part_need(&gpu->sources, p);
    while ((p->state == CWS_SOURCE_WANTED || p->state == CWS_SOURCE_FETCHING) && !gpu->core.stop) {
        cws_gpu_work_begin_locked(&gpu->core);
        cws_gpu_work_wait_drops_lock(&gpu->core, gpu->core.tuning->patience_most_ns);
    }
    bool same = p->state == CWS_SOURCE_READY && p->host;
    cws_gpu_unlock(&gpu->core);
    for (; same && next < end; next += done)
        same = is_same_batch(gpu, x, &found->list[place.piece], next, &done);
    cws_gpu_lock(&gpu->core);
    return same;
}

/* --- the proof ------------------------------------------------------------------------------------------------ */

/* Its tensors were found, and are what it holds: it is bound to them, and its memory is free. */
static void take_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, const struct cws_gpu_pieces *found)
{
    bool was_bound = cws_gpu_is_bound(x);
    struct cws_gpu_frame *frame = x->frame;
    cws_gpu_pieces_clear(&gpu->sources, &x->pieces);
    x->pieces = *found;
    cws_gpu_spill_forget_locked(gpu, x);
    cws_gpu_proof_forget_locked(x);
    x->frame = NULL;
    cws_gpu_frame_put(&gpu->frames, frame);
    cws_gpu_bind_found_locked(gpu, x, was_bound);
    if (was_bound)
        cws_gpu_order_lost(&gpu->order);
    gpu->proofs.proven++;
}

/* The tensors that it may be, by their hashes. False: it is none. */
static bool find_drops_lock(struct cws_gpu *gpu, const struct cws_gpu_extent *x, struct cws_gpu_pieces *found)
{
    bool same = true;
    while (same && found->covered < x->bytes)
        same = add_next_drops_lock(gpu, x, found);
    return same;
}

static bool are_same_drops_lock(struct cws_gpu *gpu, const struct cws_gpu_extent *x, const struct cws_gpu_pieces *found)
{
    struct cws_gpu_place at = {.piece = 0}, begun = at;
    struct cws_gpu_part *part, *next;
    bool same = true;
    for (unsigned asked = 0; (part = cws_gpu_place_part(found, at)) != NULL; asked--) {
        for (; same && asked < PARTS_AHEAD && (next = cws_gpu_place_part(found, begun)) != NULL; asked++) {
            cws_gpu_part_begin(&gpu->sources, next);
            begun = cws_gpu_place_next(found, begun);
        }
        if (asked == 0)
            break;
        bool needed = same && !x->range->freed;
        same = needed && is_same_part_drops_lock(gpu, x, found, at);
        cws_gpu_part_end(&gpu->sources, part, needed);
        at = cws_gpu_place_next(found, at);
    }
    return same && !x->range->freed;
}

static void refuted_locked(struct cws_gpu *gpu, struct cws_gpu_extent *x, struct cws_gpu_pieces *found, uint64_t used)
{
    cws_gpu_pieces_clear(&gpu->sources, found);
    x->proof.failed = used + 1;
    gpu->proofs.refuted++;
}

static void prove_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x)
{
    enum cws_extent_state before = x->state;
    uint64_t used = x->used; /* a launch may name it meanwhile, and wait */
    struct cws_gpu_pieces found = {.list = NULL};
    cws_gpu_extent_set_locked(gpu, x, CWS_EXTENT_PROVING);
    bool same = find_drops_lock(gpu, x, &found);
    cws_gpu_unlock(&gpu->core);
    bool unmapped = same && cws_gpu_frame_unmap(&gpu->frames, x->frame, x->base) == CUDA_SUCCESS;
    cws_gpu_lock(&gpu->core);
    if (unmapped && are_same_drops_lock(gpu, x, &found)) {
        take_locked(gpu, x, &found);
    } else {
        cws_gpu_unlock(&gpu->core);
        if (unmapped)
            cws_gpu_frame_map_again(&gpu->frames, x->frame, x->base);
        cws_gpu_lock(&gpu->core);
        refuted_locked(gpu, x, &found, used);
        x->proof.times += x->proof.times < TIMES_MOST;
        cws_gpu_extent_set_locked(gpu, x, before);
    }
    cws_gpu_extent_settle_locked(gpu, x);
}

bool cws_gpu_prove_kept_drops_lock(struct cws_gpu *gpu, struct cws_gpu_extent *x, uint64_t used)
{
    struct cws_gpu_pieces found = {.list = NULL};
    const struct cws_gpu_known *known = &gpu->proofs.known;
    if (!is_possible(gpu) || x->proof.failed == used + 1 || x->spill.host ||
        x->bytes < known->sizes[known->size_count - 1])
        return false;
    if (!find_drops_lock(gpu, x, &found) || !are_same_drops_lock(gpu, x, &found)) {
        refuted_locked(gpu, x, &found, used); /* how often that was so, look.c counts: memory was not short */
        return false;
    }
    cws_gpu_pieces_clear(&gpu->sources, &x->pieces);
    x->pieces = found;
    cws_gpu_proof_forget_locked(x);
    gpu->proofs.proven++;
    return true;
}

bool cws_gpu_prove_one_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_extent *x = gpu->loads.count || gpu->staging.busy ? NULL : choose_locked(gpu);
    if (!x)
        return false;
    prove_drops_lock(gpu, x);
    return true;
}

/* --- for who waits --------------------------------------------------------------------------------------------- */

/* Nothing can be looked at now: is it no use to wait any longer? */
static bool is_over(struct cws_gpu *gpu)
{
    struct cws_gpu_proofs *p = &gpu->proofs;
    uint64_t now = cws_gpu_now_ns();
    if (cws_gpu_provable_locked(gpu) == 0 || gpu->core.stop)
        return true;
    if (p->since_ns == 0 || p->progress != gpu->streams.progress || gpu->loads.count)
        p->since_ns = now;
    p->progress = gpu->streams.progress;
    return now - p->since_ns > WAITS * gpu->core.tuning->victim_wait_ns;
}

bool cws_gpu_prove_asked_drops_lock(struct cws_gpu *gpu)
{
    struct cws_gpu_proofs *p = &gpu->proofs;
    if (!p->asked)
        return false;
    uint64_t proven = p->proven;
    bool moved = cws_gpu_prove_one_drops_lock(gpu);
    if (p->proven != proven || (!moved && is_over(gpu))) {
        p->asked = false;
        p->answered++;
        p->since_ns = 0;
        cws_gpu_changed_locked(&gpu->core);
    }
    return moved;
}

/* Bytes of what the loader works on, and of which it is not known before that ends whether they stay. */
static uint64_t in_work(const struct cws_gpu *gpu)
{
    uint64_t bytes = 0;
    for (const struct cws_gpu_extent *x = cws_gpu_extent_next(&gpu->ranges, NULL); x;
         x = cws_gpu_extent_next(&gpu->ranges, x))
        if (x->state == CWS_EXTENT_LOOKING || x->state == CWS_EXTENT_PROVING || x->state == CWS_EXTENT_SPILLING)
            bytes += cws_gpu_span(x);
    return bytes;
}

bool cws_gpu_prove_wait_drops_lock(struct cws_gpu *gpu, uint64_t need)
{
    struct cws_gpu_proofs *p = &gpu->proofs;
    uint64_t answered = p->answered, proven = p->proven, working = in_work(gpu),
             most = cws_gpu_provable_locked(gpu) + working;
    if (most == 0 || need > gpu->budget.bytes + most + cws_gpu_spillable_locked(gpu))
        return false;
    while (p->answered == answered && !gpu->core.stop) {
        p->asked = true;
        cws_gpu_wake_locked(&gpu->core);
        cws_gpu_changed_wait_drops_lock(&gpu->core);
    }
    return p->proven != proven || working;
}
