/* walk.c - every chunk of a store, decoded and compared with its content hash, by several threads: for verify and
 * unpack. */
#include "store/format/content_hash.h"
#include "store/base/parallel.h"
#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum {
    RUN_CHUNKS = 32, /* that one thread takes at a time: long enough to keep its reads in flight */
    RUN_DEPTH = 8,
};

struct walker {
    struct cws_store_cursor *cursor;
    uint8_t *decoded;
};

struct walking {
    const struct cws_store *store;
    const struct cws_walk *walk;
    struct walker *walkers; /* by thread */
    pthread_mutex_t lock;   /* protects done, and keeps progress() to one thread */
    uint64_t done;
};

/* One chunk that has been started in `slot`. */
static int visit(struct walking *w, struct walker *me, unsigned slot, const struct cws_tensor_info *t, uint64_t chunk)
{
    const struct cws_store *s = w->store;
    const struct cws_chunk_record *r = &s->chunks[chunk];
    struct cws_error err = {0};
    struct cws_walk_item item = {
        .tensor = t,
        .chunk = chunk,
        .logical_begin = cws_store_chunk_begin(t, chunk),
        .bytes = r->logical_bytes,
    };
    const uint8_t *stored;
    item.code = cws_cursor_check(me->cursor, slot, t, chunk, w->walk->with_gaps, &stored, &err);
    if (!item.code)
        item.code = cws_cursor_decode(me->cursor, t, chunk, stored, 0, r->logical_bytes, me->decoded, &err);
    if (!item.code) {
        struct cws_hash128 sum = {0, 0};
        cws_content_hash_add(&sum, cws_content_key, me->decoded, r->logical_bytes, item.logical_begin - t->begin);
        if (sum.lo != r->content_hash[0] || sum.hi != r->content_hash[1]) {
            char shown[CWS_NAME_SHOWN_BYTES];
            item.code = cws_fail(&err, CWS_E_CORRUPT,
                                 "%s: tensor \"%s\": the decoded bytes fail their content hash in chunk %llu "
                                 "(file offset %llu, logical offset %llu)",
                                 s->path, cws_name_shown(t->name, shown), (unsigned long long)chunk,
                                 (unsigned long long)r->offset, (unsigned long long)item.logical_begin);
        }
    }
    if (!item.code)
        item.decoded = me->decoded;
    item.message = err.message;
    return w->walk->chunk(w->walk->arg, &item);
}

static int walk_run(void *arg, unsigned thread, uint64_t run)
{
    struct walking *w = arg;
    const struct cws_store *s = w->store;
    struct walker *me = &w->walkers[thread];
    uint64_t begin = run * RUN_CHUNKS, end = begin + RUN_CHUNKS < s->chunk_count ? begin + RUN_CHUNKS : s->chunk_count;
    const struct cws_tensor_info *t = cws_store_chunk_tensor(s, begin);
    unsigned depth = cws_cursor_depth(me->cursor);
    uint64_t started = begin, bytes = 0;
    int code = 0;
    for (uint64_t chunk = begin; chunk < end && !code; chunk++) {
        if (w->walk->cancel && __atomic_load_n(w->walk->cancel, __ATOMIC_RELAXED)) {
            code = -ECANCELED;
            break;
        }
        for (; started < end && started < chunk + depth; started++)
            cws_cursor_start(me->cursor, (unsigned)(started % depth), started, w->walk->with_gaps);
        while (t->record->first_chunk + t->record->chunk_count <= chunk)
            t++;
        code = visit(w, me, (unsigned)(chunk % depth), t, chunk);
        bytes += s->chunks[chunk].logical_bytes;
    }
    if (code)
        cws_cursor_drain(me->cursor);
    if (!code && w->walk->progress) {
        pthread_mutex_lock(&w->lock);
        w->done += bytes;
        w->walk->progress(w->walk->progress_arg, w->done, s->trailer.logical_bytes);
        pthread_mutex_unlock(&w->lock);
    }
    return code;
}

int cws_store_walk(const struct cws_store *s, const struct cws_walk *walk, struct cws_error *err)
{
    unsigned jobs = cws_parallel_jobs(walk->jobs);
    uint64_t runs = (s->chunk_count + RUN_CHUNKS - 1) / RUN_CHUNKS;
    if (runs < jobs)
        jobs = runs ? (unsigned)runs : 1;
    unsigned depth = s->chunk_count < RUN_DEPTH ? (unsigned)s->chunk_count : RUN_DEPTH;
    struct walking w = {.store = s, .walk = walk, .done = s->parsed->header_bytes};
    pthread_mutex_init(&w.lock, NULL);
    w.walkers = calloc(jobs, sizeof *w.walkers);
    int code = w.walkers ? 0 : cws_fail(err, -ENOMEM, "%s: not enough memory for %u threads", s->path, jobs);
    for (unsigned i = 0; i < jobs && !code && s->chunk_count; i++) {
        code = cws_store_cursor_create(s, depth, &w.walkers[i].cursor, err);
        if (!code && !(w.walkers[i].decoded = malloc(s->logical_max)))
            code = cws_fail(err, -ENOMEM, "%s: not enough memory for %u threads", s->path, jobs);
    }
    if (!code) {
        code = cws_parallel(jobs, runs, walk_run, NULL, &w);
        if (code == -ECANCELED)
            cws_fail(err, code, "%s: cancelled", s->path);
    }
    for (unsigned i = 0; w.walkers && i < jobs; i++) {
        cws_store_cursor_destroy(w.walkers[i].cursor);
        free(w.walkers[i].decoded);
    }
    free(w.walkers);
    pthread_mutex_destroy(&w.lock);
    return code;
}
