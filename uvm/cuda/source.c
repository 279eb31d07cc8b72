/* source.c - compressed bytes in pinned host memory, and the fetcher threads that read them from stores and check them.
 * What was bound first stays there while the host budget lasts. All else is read again for each load, because on a
 * cyclic scan no replacement does better. All of it gives way to content that no file can give back (spill.c). */
#include "store/base/memory_limit.h"
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

/* --- how much host memory -------------------------------------------------------------------------- */

uint64_t cws_gpu_host_default(void)
{
    struct cws_memory_limit limit;
    cws_memory_limit_get("", &limit);
    return limit.free_bytes == UINT64_MAX ? (uint64_t)1 << 30 : limit.free_bytes / 2;
}

/* --- sources --------------------------------------------------------------------------------------- */

static uint64_t chunk_count(const struct cws_gpu_source *s) { return s->tensor->record->chunk_count; }

static bool has_host_chunks(const struct cws_tensor_info *t)
{
    for (uint64_t i = 0; i < t->record->chunk_count; i++)
        if (t->chunks[i].codec == CWS_CODEC_ZSTD)
            return true;
    return false;
}

static size_t host_bytes_of(const struct cws_gpu_source *s)
{
    const struct cws_chunk_record *first = &s->tensor->chunks[0], *last = &s->tensor->chunks[chunk_count(s) - 1];
    size_t bytes = s->plain ? s->tensor->end - s->tensor->begin : last->offset + last->stored_bytes - first->offset;
    return (bytes + CWS_STREAM_PAD + 4095) / 4096 * 4096;
}

struct cws_gpu_source *cws_gpu_source_get_locked(struct cws_gpu *gpu, struct cws_store *store,
                                                 const struct cws_tensor_info *tensor)
{
    struct cws_gpu_source **known = cws_map_find(&gpu->by_tensor, (uintptr_t)tensor);
    if (known) { /* which keeps its store: no other one has a tensor there */
        (*known)->refs++;
        return *known;
    }
    struct cws_gpu_source *s = calloc(1, sizeof *s);
    const uint8_t *packed = cws_store_table(store, tensor);
    if (!s || tensor->record->chunk_count == 0)
        goto fail;
    if (packed) {
        s->table = aligned_alloc(16, sizeof *s->table);
        struct cws_error err = {0};
        if (!s->table || cws_gpu_table_build(packed, s->table, &err))
            goto fail;
    }
    known = cws_map_put(&gpu->by_tensor, (uintptr_t)tensor);
    if (!known)
        goto fail;
    *known = s;
    s->store = store;
    s->tensor = tensor;
    s->plain = has_host_chunks(tensor);
    s->refs = 1;
    s->state = CWS_SOURCE_READY; /* nobody needs its bytes yet */
    cws_store_retain(store);
    cws_list_add_before(&gpu->sources, &s->link);
    return s;
fail:
    if (s)
        free(s->table);
    free(s);
    return NULL;
}

struct cws_gpu_source *cws_gpu_source_of_file_locked(struct cws_gpu *gpu, struct cws_gpu_file *file,
                                                     struct cws_tensor_info *tensor)
{
    struct cws_gpu_source *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->file = cws_gpu_file_retain(file);
    s->tensor = tensor;
    s->refs = 1;
    s->state = CWS_SOURCE_READY;
    cws_list_add_before(&gpu->sources, &s->link);
    return s;
}

const char *cws_gpu_source_path(const struct cws_gpu_source *s)
{
    return s->file ? cws_gpu_file_path(s->file) : cws_store_path(s->store);
}

/* Freeing pinned memory takes the driver long, so a fetcher does it. */
void cws_gpu_host_give_locked(struct cws_gpu *gpu, void *host, size_t bytes)
{
    struct cws_gpu_garbage *g = host; /* the list lies in what it lists */
    g->bytes = bytes;
    g->next = gpu->garbage;
    gpu->garbage = g;
    gpu->garbage_bytes += bytes;
    pthread_cond_signal(&gpu->fetch);
}

static void give_host_locked(struct cws_gpu *gpu, struct cws_gpu_source *s)
{
    if (!s->host)
        return;
    cws_gpu_host_give_locked(gpu, s->host, s->host_bytes);
    s->host = NULL;
}

static bool sweep_locked(struct cws_gpu *gpu)
{
    struct cws_gpu_garbage *g = gpu->garbage;
    if (!g)
        return false;
    gpu->garbage = g->next;
    size_t bytes = g->bytes;
    pthread_mutex_unlock(&gpu->lock);
    gpu->driver->host_free(g);
    pthread_mutex_lock(&gpu->lock);
    gpu->host_bytes -= bytes;
    gpu->garbage_bytes -= bytes;
    if (gpu->host_claimed)
        cws_gpu_wake_locked(gpu);
    return true;
}

static void unwant(struct cws_gpu_source *s, enum cws_source_state to)
{
    cws_list_remove(&s->wanted);
    s->state = to;
}

/* --- room for what no file gives back ---------------------------------------------------------------- */

static bool is_spare(const struct cws_gpu_source *s)
{
    return s->host && s->state == CWS_SOURCE_READY && s->loading == 0;
}

uint64_t cws_gpu_host_left_locked(const struct cws_gpu *gpu)
{
    uint64_t used = gpu->host_bytes - gpu->garbage_bytes - gpu->kept_bytes;
    for (const struct cws_list *l = gpu->sources.next; l != &gpu->sources; l = l->next) {
        const struct cws_gpu_source *s = CWS_LIST_OF(l, const struct cws_gpu_source, link);
        used -= is_spare(s) ? s->host_bytes : 0;
    }
    return used < gpu->host_budget ? gpu->host_budget - used : 0;
}

static bool will_fit(const struct cws_gpu *gpu, uint64_t bytes)
{
    return gpu->host_bytes - gpu->garbage_bytes + bytes <= gpu->host_budget;
}

bool cws_gpu_host_claim_locked(struct cws_gpu *gpu, uint64_t bytes)
{
    gpu->host_claimed = bytes;
    /* Those that were bound last first, as when they came; then copies of what is on the device, too. */
    for (struct cws_list *l = gpu->sources.prev; l != &gpu->sources && !will_fit(gpu, bytes); l = l->prev)
        if (is_spare(CWS_LIST_OF(l, struct cws_gpu_source, link)))
            give_host_locked(gpu, CWS_LIST_OF(l, struct cws_gpu_source, link));
    for (struct cws_list *l = gpu->ranges.next; l != &gpu->ranges && !will_fit(gpu, bytes); l = l->next)
        if (CWS_LIST_OF(l, struct cws_gpu_range, link)->spill_kept)
            cws_gpu_spill_forget_locked(gpu, CWS_LIST_OF(l, struct cws_gpu_range, link));
    return gpu->host_bytes + bytes <= gpu->host_budget;
}

void cws_gpu_source_unneeded_locked(struct cws_gpu *gpu, struct cws_gpu_source *s)
{
    if (s->refs != 1)
        return;
    if (s->state == CWS_SOURCE_WANTED)
        unwant(s, CWS_SOURCE_READY);
    if (is_spare(s))
        give_host_locked(gpu, s);
}

void cws_gpu_source_put_locked(struct cws_gpu *gpu, struct cws_gpu_source *s)
{
    if (--s->refs || s->state == CWS_SOURCE_FETCHING) /* the fetcher looks again when it is done */
        return;
    cws_list_remove(&s->link);
    if (s->store)
        cws_map_remove(&gpu->by_tensor, (uintptr_t)s->tensor);
    if (s->state == CWS_SOURCE_WANTED)
        unwant(s, CWS_SOURCE_READY);
    give_host_locked(gpu, s);
    cws_store_close(s->store);
    if (s->file) {
        cws_gpu_file_release(s->file);
        free((void *)s->tensor);
    }
    free(s->table);
    free(s);
}

enum cws_source_state cws_gpu_source_want_locked(struct cws_gpu *gpu, struct cws_gpu_source *s, bool urgent)
{
    if (s->state == CWS_SOURCE_READY && !s->host) {
        s->state = CWS_SOURCE_WANTED;
        s->urgent = false;
        cws_list_add_before(&gpu->fetch_later, &s->wanted);
        pthread_cond_signal(&gpu->fetch);
    }
    if (urgent && !s->urgent && s->state == CWS_SOURCE_WANTED) { /* what was not worth its memory is now */
        s->urgent = true;
        cws_list_remove(&s->wanted);
        cws_list_add_before(&gpu->fetch_first, &s->wanted);
        pthread_cond_signal(&gpu->fetch);
    }
    return s->state;
}

void cws_gpu_source_done_locked(struct cws_gpu *gpu, struct cws_gpu_source *s)
{
    if (!s->keeps && s->loading == 0)
        give_host_locked(gpu, s);
}

/* --- fetchers ---------------------------------------------------------------------------------------- */

struct fetcher {
    struct cws_store *store; /* of the cursor */
    struct cws_store_cursor *cursor;
};

static int cursor_for(struct fetcher *f, struct cws_store *store, struct cws_error *err)
{
    if (f->store == store)
        return 0;
    cws_store_cursor_destroy(f->cursor);
    if (f->store)
        cws_store_close(f->store);
    f->store = NULL;
    f->cursor = NULL;
    int code = cws_store_cursor_create(store, 8, &f->cursor, err);
    if (code)
        return code;
    cws_store_retain(store);
    f->store = store;
    return 0;
}

static int read_source(struct fetcher *f, struct cws_gpu_source *s, uint8_t *host, struct cws_error *err)
{
    if (s->file)
        return cws_gpu_file_read(s->file, s->tensor, host, err);
    int code = cursor_for(f, s->store, err);
    if (code)
        return code;
    return s->plain ? cws_store_read(f->cursor, s->tensor->begin, s->tensor->end, host, err)
                    : cws_store_fetch(f->cursor, s->tensor, 0, chunk_count(s), host, err);
}

/* The source to read next: first one that a launch waits for, then in the order of binding. What does not fit the host
 * budget is read only when it is to be loaded. */
static struct cws_gpu_source *next_wanted_locked(struct cws_gpu *gpu)
{
    enum { LOOK_AT = 64 }; /* thousands may be waiting for room that there is not */
    if (!cws_list_is_empty(&gpu->fetch_first))
        return CWS_LIST_OF(gpu->fetch_first.next, struct cws_gpu_source, wanted);
    unsigned looked = 0;
    for (struct cws_list *l = gpu->fetch_later.next; l != &gpu->fetch_later && looked < LOOK_AT;
         l = l->next, looked++) {
        struct cws_gpu_source *s = CWS_LIST_OF(l, struct cws_gpu_source, wanted);
        if (gpu->host_bytes + gpu->host_claimed + host_bytes_of(s) <= gpu->host_budget)
            return s;
    }
    return NULL;
}

static void fetch_locked(struct cws_gpu *gpu, struct fetcher *f, struct cws_gpu_source *s)
{
    struct cws_error err = {0};
    void *host = NULL;
    unwant(s, CWS_SOURCE_FETCHING);
    s->host_bytes = host_bytes_of(s);
    /* A part of the budget is for what comes and goes. */
    s->keeps = gpu->host_bytes + gpu->host_claimed + s->host_bytes <= gpu->host_budget - gpu->host_budget / 8;
    gpu->host_bytes += s->host_bytes;
    size_t bytes = s->host_bytes;
    pthread_mutex_unlock(&gpu->lock);
    bool traced = CWS_TRACE_BEGIN(.kind = CWS_TRACE_FETCH, .tensor = s->tensor->name, .bytes = bytes,
                                  .index = UINT64_MAX);
    CUresult result = gpu->driver->host_alloc(&host, bytes, CU_MEMHOSTALLOC_PORTABLE);
    int code = result == CUDA_SUCCESS
                   ? read_source(f, s, host, &err)
                   : cws_driver_fail(gpu->driver, &err, result, "pinning host memory for compressed weights");
    if (code && host)
        gpu->driver->host_free(host);
    cws_trace_end(CWS_TRACE_FETCH, traced);
    pthread_mutex_lock(&gpu->lock);
    if (code) {
        gpu->host_bytes -= bytes;
        s->error = err;
        s->state = CWS_SOURCE_FAILED;
    } else {
        s->host = host;
        s->state = CWS_SOURCE_READY;
    }
    s->urgent = false;
    if (s->refs == 0) {
        s->refs = 1;
        cws_gpu_source_put_locked(gpu, s);
    }
    cws_gpu_wake_locked(gpu);
    pthread_cond_broadcast(&gpu->changed);
}

void *cws_gpu_fetcher_main(void *arg)
{
    struct cws_gpu *gpu = arg;
    struct fetcher f = {0};
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    prctl(PR_SET_NAME, "codecllm-fetch");
    gpu->driver->context_set(gpu->context);
    gpu->driver->capture_mode(&mode);
    pthread_mutex_lock(&gpu->lock);
    while (!gpu->stop) {
        struct cws_gpu_source *s = next_wanted_locked(gpu);
        if (sweep_locked(gpu))
            continue;
        if (s)
            fetch_locked(gpu, &f, s);
        else
            pthread_cond_wait(&gpu->fetch, &gpu->lock);
    }
    pthread_mutex_unlock(&gpu->lock);
    cws_store_cursor_destroy(f.cursor);
    cws_store_close(f.store);
    return NULL;
}

void cws_gpu_sources_close(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    for (struct cws_list *l = gpu->sources.next, *next; l != &gpu->sources; l = next) {
        struct cws_gpu_source *s = CWS_LIST_OF(l, struct cws_gpu_source, link);
        next = l->next;
        s->refs = 1;
        if (s->state != CWS_SOURCE_WANTED)
            s->state = CWS_SOURCE_READY;
        cws_gpu_source_put_locked(gpu, s);
    }
    while (sweep_locked(gpu)) {
    }
    cws_map_deinit(&gpu->by_tensor);
    pthread_mutex_unlock(&gpu->lock);
}
