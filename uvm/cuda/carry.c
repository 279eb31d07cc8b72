/* carry.c - copies from one range to another. Where nobody used the source since it was bound or dropped, its bytes are
 * those of its pieces, and the target gets the pieces instead of the bytes. Else the copy is made, and what is known of
 * the source is noted of the target: a drop of the target finds out whether it was so. */
#include "gpu.h"

#include <stdlib.h>

/* The pieces of [from, from + bytes) of an extent, as pieces of a target at the place `at`; each with a reference.
 * *count: how many; NULL: a part of it has none, or a cut falls inside of a chunk, or there is no memory. */
static struct cws_gpu_piece *cut_locked(const struct cws_gpu_extent *x, uint64_t from, uint64_t bytes, uint64_t at,
                                        uint32_t *count)
{
    const struct cws_gpu_pieces *p = &x->pieces;
    uint64_t end = from + bytes, next = from;
    struct cws_gpu_piece *list = p->count ? malloc(p->count * sizeof *list) : NULL;
    *count = 0;
    for (uint32_t i = 0; i < p->count && list && next < end; i++) {
        const struct cws_gpu_piece *piece = &p->list[i];
        const struct cws_tensor_info *t = piece->source->tensor;
        if (cws_gpu_source_is_gone(piece->source))
            continue;
        uint64_t begin = piece->at > from ? piece->at : from, stop = piece->at + piece->bytes;
        stop = stop < end ? stop : end;
        if (stop <= from)
            continue;
        uint64_t offset = piece->first_chunk * t->record->chunk_bytes + (begin - piece->at);
        if (begin != next || cws_gpu_source_is_gone(piece->source) ||
            !cws_gpu_piece_of(t, offset, stop - begin, at + (begin - from), &list[*count]))
            break;
        list[(*count)++].source = piece->source;
        next = stop;
    }
    if (next < end) {
        free(list);
        *count = 0;
        return NULL;
    }
    for (uint32_t i = 0; i < *count; i++)
        cws_gpu_source_retain(list[i].source);
    return list;
}

/* Does nothing but its sources have its content? What is pinned stays in memory, and so does a copy of it. */
static bool is_untouched(const struct cws_gpu_extent *x)
{
    return x && !x->holds && !x->range->pinned && (x->state == CWS_EXTENT_BOUND || x->state == CWS_EXTENT_PARTIAL);
}

/* What the copy would bring, as pieces of its target; as cut_locked says. NULL, too: nothing can be carried. */
static struct cws_gpu_piece *pieces_of_locked(struct cws_gpu *gpu, CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                              uint32_t *count)
{
    const struct cws_gpu_extent *source = cws_gpu_bind_around_locked(gpu, from, bytes);
    const struct cws_gpu_extent *x = cws_gpu_bind_around_locked(gpu, to, bytes);
    *count = 0;
    return x && x != source && is_untouched(source)
               ? cut_locked(source, from - source->base, bytes, to - x->base, count)
               : NULL;
}

bool cws_gpu_carry(struct cws_gpu *gpu, CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    uint32_t count;
    if (gpu->core.dead || bytes == 0)
        return false;
    cws_gpu_lock(&gpu->core);
    /* before the target loses its memory, which is for nothing if there is no such list */
    struct cws_gpu_piece *list = pieces_of_locked(gpu, to, from, bytes, &count);
    struct cws_gpu_extent *x = list ? cws_gpu_bind_target_drops_lock(gpu, to, bytes, stream) : NULL;
    bool bound = x && is_untouched(cws_gpu_bind_around_locked(gpu, from, bytes)); /* the lock was free */
    for (uint32_t i = 0; list && i < count; i++) {
        if (bound) /* where one fails the copy is made, which brings the same bytes */
            bound = cws_gpu_bind_put_locked(gpu, x, &list[i]);
        else
            cws_gpu_source_put(&gpu->sources, list[i].source);
    }
    free(list);
    cws_gpu_unlock(&gpu->core);
    return bound;
}

void cws_gpu_carried(struct cws_gpu *gpu, CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    uint32_t count = 0;
    if (gpu->core.dead || bytes == 0)
        return;
    cws_gpu_lock(&gpu->core);
    const struct cws_gpu_extent *source = cws_gpu_bind_around_locked(gpu, from, bytes);
    struct cws_gpu_extent *x = cws_gpu_bind_around_locked(gpu, to, bytes);
    if (x && source && x != source && x->state == CWS_EXTENT_ANONYMOUS && source->state != CWS_EXTENT_DIRTY &&
        !source->range->pinned) {
        struct cws_gpu_piece *list = cut_locked(source, from - source->base, bytes, to - x->base, &count);
        for (uint32_t i = 0; i < count; i++)
            cws_gpu_bind_note_locked(gpu, x, &list[i]);
        free(list);
    }
    cws_gpu_unlock(&gpu->core);
}
