/* pieces.h - what is known of an extent's content: which of its bytes equal which bytes of which source. A piece is a
 * whole tensor, or chunks of one that follow each other. Where all bytes of an extent have a piece it is bound, and
 * needs no memory while nobody uses it.
 *
 * Pieces of an extent without memory are its content. Those of one that has memory are what was decoded or copied
 * there: a kernel may have written there since, which the hash tells (drop.c) before its memory is given away.
 *
 * Threads: the caller of every function holds the manager's lock, or owns the extent. */
#ifndef CWS_GPU_PIECES_H
#define CWS_GPU_PIECES_H
#include "store/cuda/job.h"
#include "store/format/content_hash.h"
#include "sources.h"

struct cws_gpu_piece {
    uint64_t at, bytes; /* in the extent; at: a multiple of 16 */
    struct cws_gpu_source *source;
    uint64_t first_chunk, chunk_count; /* of the source's */
};

struct cws_gpu_pieces {
    struct cws_gpu_piece *list; /* by place; each has a reference to its source */
    uint32_t count, room;
    uint64_t covered; /* bytes of all of them; they do not overlap */
};

/* Bytes [offset, offset + bytes) of a tensor as a piece at the place `at`, with no source yet. False: it begins or ends
 * inside of a chunk, or no decoder can write it there. */
CWS_MUST_CHECK bool cws_gpu_piece_of(const struct cws_tensor_info *tensor, uint64_t offset, uint64_t bytes, uint64_t at,
                                     struct cws_gpu_piece *out);

/* May [at, at + bytes) be filled anew, without a part of another piece being left? */
bool cws_gpu_pieces_may_fill(const struct cws_gpu_pieces *p, uint64_t at, uint64_t bytes);
/* Room for one more, so that the next cws_gpu_pieces_put succeeds. False: no memory. */
CWS_MUST_CHECK bool cws_gpu_pieces_make_room(struct cws_gpu_pieces *p);
/* Adds a piece, and takes over its reference; removes those that it touches, also in part. False: no memory, and
 * nothing changed. */
CWS_MUST_CHECK bool cws_gpu_pieces_put(struct cws_gpu_sources *sources, struct cws_gpu_pieces *p,
                                       const struct cws_gpu_piece *piece);
void cws_gpu_pieces_clear(struct cws_gpu_sources *sources, struct cws_gpu_pieces *p);
/* None of them is loaded again. */
void cws_gpu_pieces_unneeded(struct cws_gpu_sources *sources, const struct cws_gpu_pieces *p);

/* The hash of a piece that lies in memory at base + piece->at, and what it must come to. */
struct cws_gpu_hash_job cws_gpu_piece_job(const struct cws_gpu_piece *piece, uint64_t base);
struct cws_hash128 cws_gpu_piece_hash(const struct cws_gpu_piece *piece);

/* A part of the source of a piece, as far as the piece has chunks of it. */
struct cws_gpu_place {
    uint32_t piece, part; /* part: counted from the first one that the piece has chunks of */
};
/* NULL: behind the last piece. */
struct cws_gpu_part *cws_gpu_place_part(const struct cws_gpu_pieces *p, struct cws_gpu_place place);
struct cws_gpu_place cws_gpu_place_next(const struct cws_gpu_pieces *p, struct cws_gpu_place place);
/* Of its chunks, those of the piece: [*begin, *end), counted from the piece's first. */
void cws_gpu_place_chunks(const struct cws_gpu_pieces *p, struct cws_gpu_place place, uint64_t *begin, uint64_t *end);
static inline bool cws_gpu_place_is_before(struct cws_gpu_place a, struct cws_gpu_place b)
{
    return a.piece < b.piece || (a.piece == b.piece && a.part < b.part);
}

/* NULL, or what does not hold; bytes: of the extent. */
const char *cws_gpu_pieces_check(const struct cws_gpu_pieces *p, uint64_t bytes);
#endif
