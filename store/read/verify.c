/* verify.c - every chunk of a store checked, and each fault reported. */
#include "store/base/os.h"
#include "internal.h"

#include <pthread.h>

struct verifying {
    const struct cws_store *store;
    int (*report)(void *arg, const struct cws_verify_fault *fault);
    void *arg;
    pthread_mutex_t lock; /* one report at a time; protects faults */
    uint64_t faults;
};

enum { STOPPED = 2 }; /* report() wanted no more */

static int tell(struct verifying *v, const struct cws_verify_fault *fault)
{
    pthread_mutex_lock(&v->lock);
    v->faults++;
    int stop = v->report(v->arg, fault);
    pthread_mutex_unlock(&v->lock);
    return stop ? STOPPED : 0;
}

static int verify_chunk(void *arg, const struct cws_walk_item *item)
{
    struct verifying *v = arg;
    if (!item->code)
        return 0;
    return tell(v, &(struct cws_verify_fault){
                       .tensor = item->tensor->name,
                       .chunk = item->chunk,
                       .file_offset = v->store->chunks[item->chunk].offset,
                       .logical_offset = item->logical_begin,
                       .message = item->message,
                   });
}

/* A store without chunks may have zero bytes between front and index, behind no chunk that the walk would visit. */
static int verify_empty(struct verifying *v, struct cws_error *err)
{
    const struct cws_trailer *t = &v->store->trailer;
    uint8_t gap[2 * CWS_CHUNK_ALIGN];
    size_t bytes = t->index_offset - t->front_bytes, got;
    if (v->store->chunk_count || bytes > sizeof gap)
        return 0;
    int code = cws_store_read_stored(v->store, gap, bytes, t->front_bytes, &got);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot read offset %llu", v->store->path,
                              (unsigned long long)t->front_bytes);
    for (size_t i = 0; i < got; i++)
        if (gap[i])
            return tell(v, &(struct cws_verify_fault){
                               .file_offset = t->front_bytes + i,
                               .message = "bytes that are not zero between the front and the index",
                           });
    return 0;
}

int cws_store_verify(const struct cws_store *s, unsigned jobs,
                     int (*report)(void *arg, const struct cws_verify_fault *fault),
                     void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg, struct cws_error *err)
{
    struct verifying v = {.store = s, .report = report, .arg = arg};
    struct cws_walk walk = {
        .jobs = jobs,
        .with_gaps = true,
        .chunk = verify_chunk,
        .progress = progress,
        .arg = &v,
        .progress_arg = arg,
    };
    pthread_mutex_init(&v.lock, NULL);
    int code = verify_empty(&v, err);
    if (!code)
        code = cws_store_walk(s, &walk, err);
    struct cws_error why = {0};
    if (!code && v.faults == 0 && cws_store_changed(s, &why))
        code = tell(&v, &(struct cws_verify_fault){.message = why.message});
    pthread_mutex_destroy(&v.lock);
    if (code && code != STOPPED)
        return code;
    return v.faults ? 1 : 0;
}
