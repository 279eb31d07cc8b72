/* read.c - a range of the logical file, read by several threads, each with a cursor of its own. */
#include "store/base/parallel.h"
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE_BYTES = 1 << 20, /* what a thread takes at a time; less is not worth one */
    FILE_DEPTH = 8,        /* chunks in flight for each thread, of a file */
};

struct reading {
    const struct cws_store *store;
    struct cws_store_cursor **cursors; /* by thread; made when it takes its first piece */
    struct cws_error *errors;          /* by thread */
    uint64_t begin, end;
    uint8_t *dst;
};

/* A range of one piece has a few chunks: to make a ring or threads for it takes longer than to read them in turn. */
static unsigned depth_of(const struct reading *r)
{
    return r->store->memory || r->end - r->begin <= PIECE_BYTES ? 1 : FILE_DEPTH;
}

static int read_piece(void *arg, unsigned thread, uint64_t i)
{
    struct reading *r = arg;
    uint64_t from = r->begin + i * PIECE_BYTES, to = r->end - from < PIECE_BYTES ? r->end : from + PIECE_BYTES;
    int code = 0;
    if (!r->cursors[thread])
        code = cws_store_cursor_create(r->store, depth_of(r), &r->cursors[thread], &r->errors[thread]);
    return code ? code : cws_store_read(r->cursors[thread], from, to, r->dst + (from - r->begin), &r->errors[thread]);
}

int cws_store_read_parallel(const struct cws_store *s, unsigned jobs, uint64_t begin, uint64_t end, void *dst,
                            struct cws_error *err)
{
    struct reading r = {.store = s, .begin = begin, .end = end, .dst = dst};
    if (begin > end || end > s->trailer.logical_bytes)
        return cws_fail(err, CWS_E_RANGE, "%s: bytes [%llu, %llu) are outside the logical file of %llu bytes", s->path,
                        (unsigned long long)begin, (unsigned long long)end,
                        (unsigned long long)s->trailer.logical_bytes);
    if (begin == end)
        return 0;
    uint64_t pieces = (end - begin + PIECE_BYTES - 1) / PIECE_BYTES;
    jobs = cws_parallel_jobs(jobs);
    if (pieces < jobs)
        jobs = (unsigned)pieces;
    r.cursors = calloc(jobs, sizeof *r.cursors);
    r.errors = calloc(jobs, sizeof *r.errors);
    int code = r.cursors && r.errors ? cws_parallel(jobs, pieces, read_piece, NULL, &r)
                                     : cws_fail(err, -ENOMEM, "%s: not enough memory for %u threads", s->path, jobs);
    for (unsigned i = 0; code && err && r.errors && i < jobs; i++)
        if (r.errors[i].code == code)
            *err = r.errors[i];
    for (unsigned i = 0; r.cursors && i < jobs; i++)
        cws_store_cursor_destroy(r.cursors[i]);
    free(r.cursors);
    free(r.errors);
    return code;
}
