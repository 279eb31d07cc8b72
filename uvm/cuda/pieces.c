/* pieces.c - what is known of an extent's content. */
#include "pieces.h"

#include <stdlib.h>
#include <string.h>

static uint64_t end_of(const struct cws_gpu_piece *piece) { return piece->at + piece->bytes; }

bool cws_gpu_piece_of(const struct cws_tensor_info *tensor, uint64_t offset, uint64_t bytes, uint64_t at,
                      struct cws_gpu_piece *out)
{
    uint64_t size = tensor->end - tensor->begin, chunk = tensor->record->chunk_bytes;
    if (bytes == 0 || offset > size || bytes > size - offset || bytes % 2 != 0 || at % 16 != 0 || offset % chunk != 0 ||
        ((offset + bytes) % chunk != 0 && offset + bytes != size))
        return false;
    *out = (struct cws_gpu_piece){
        .at = at, .bytes = bytes, .first_chunk = offset / chunk, .chunk_count = (bytes + chunk - 1) / chunk};
    return true;
}

/* The pieces that [at, at + bytes) touches: [*first, *end) of the list. */
static void touched(const struct cws_gpu_pieces *p, uint64_t at, uint64_t bytes, uint32_t *first, uint32_t *end)
{
    uint32_t low = 0, high = p->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (end_of(&p->list[middle]) <= at)
            low = middle + 1;
        else
            high = middle;
    }
    *first = *end = low;
    while (*end < p->count && p->list[*end].at < at + bytes)
        ++*end;
}

bool cws_gpu_pieces_may_fill(const struct cws_gpu_pieces *p, uint64_t at, uint64_t bytes)
{
    uint32_t first, end;
    touched(p, at, bytes, &first, &end);
    return first == end || (p->list[first].at >= at && end_of(&p->list[end - 1]) <= at + bytes);
}

bool cws_gpu_pieces_make_room(struct cws_gpu_pieces *p)
{
    if (p->count < p->room)
        return true;
    uint32_t room = p->room ? 2 * p->room : 1; /* nearly all extents have one */
    struct cws_gpu_piece *more = realloc(p->list, room * sizeof *more);
    if (!more)
        return false;
    p->list = more;
    p->room = room;
    return true;
}

bool cws_gpu_pieces_put(struct cws_gpu_sources *sources, struct cws_gpu_pieces *p, const struct cws_gpu_piece *piece)
{
    uint32_t first, end;
    if (!cws_gpu_pieces_make_room(p))
        return false;
    touched(p, piece->at, piece->bytes, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        p->covered -= p->list[i].bytes;
        cws_gpu_source_put(sources, p->list[i].source);
    }
    memmove(&p->list[first + 1], &p->list[end], (p->count - end) * sizeof *p->list);
    p->list[first] = *piece;
    p->count = p->count - (end - first) + 1;
    p->covered += piece->bytes;
    return true;
}

void cws_gpu_pieces_clear(struct cws_gpu_sources *sources, struct cws_gpu_pieces *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        cws_gpu_source_put(sources, p->list[i].source);
    free(p->list);
    *p = (struct cws_gpu_pieces){.list = NULL};
}

void cws_gpu_pieces_unneeded(struct cws_gpu_sources *sources, const struct cws_gpu_pieces *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        cws_gpu_source_unneeded(sources, p->list[i].source);
}

struct cws_gpu_hash_job cws_gpu_piece_job(const struct cws_gpu_piece *piece, uint64_t base)
{
    uint64_t first_byte = piece->first_chunk * piece->source->tensor->record->chunk_bytes;
    return (struct cws_gpu_hash_job){.address = base + piece->at, .bytes = piece->bytes, .first_word = first_byte / 16};
}

struct cws_hash128 cws_gpu_piece_hash(const struct cws_gpu_piece *piece)
{
    const struct cws_tensor_info *t = piece->source->tensor;
    if (piece->chunk_count == t->record->chunk_count)
        return (struct cws_hash128){t->record->content_hash[0], t->record->content_hash[1]};
    struct cws_hash128 sum = {0};
    for (uint64_t i = 0; i < piece->chunk_count; i++) {
        const uint64_t *hash = t->chunks[piece->first_chunk + i].content_hash;
        cws_hash128_add(&sum, (struct cws_hash128){hash[0], hash[1]});
    }
    return sum;
}

struct cws_gpu_part *cws_gpu_place_part(const struct cws_gpu_pieces *p, struct cws_gpu_place place)
{
    if (place.piece == p->count)
        return NULL;
    const struct cws_gpu_piece *piece = &p->list[place.piece];
    return cws_gpu_source_part(piece->source, piece->first_chunk) + place.part;
}

void cws_gpu_place_chunks(const struct cws_gpu_pieces *p, struct cws_gpu_place place, uint64_t *begin, uint64_t *end)
{
    const struct cws_gpu_piece *piece = &p->list[place.piece];
    const struct cws_gpu_part *part = cws_gpu_place_part(p, place);
    uint64_t stop = part->first_chunk + part->chunk_count - piece->first_chunk;
    *begin = place.part ? part->first_chunk - piece->first_chunk : 0;
    *end = stop < piece->chunk_count ? stop : piece->chunk_count;
}

struct cws_gpu_place cws_gpu_place_next(const struct cws_gpu_pieces *p, struct cws_gpu_place place)
{
    uint64_t begin, end;
    cws_gpu_place_chunks(p, place, &begin, &end);
    if (end < p->list[place.piece].chunk_count)
        return (struct cws_gpu_place){.piece = place.piece, .part = place.part + 1};
    return (struct cws_gpu_place){.piece = place.piece + 1};
}

const char *cws_gpu_pieces_check(const struct cws_gpu_pieces *p, uint64_t bytes)
{
    uint64_t covered = 0, end = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        if (p->list[i].at < end || p->list[i].at % 16 != 0 || end_of(&p->list[i]) > bytes)
            return "pieces: one lies where it cannot";
        end = end_of(&p->list[i]);
        covered += p->list[i].bytes;
    }
    return covered != p->covered || p->count > p->room ? "pieces: they are miscounted" : NULL;
}
