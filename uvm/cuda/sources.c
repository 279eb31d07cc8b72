/* sources.c - compressed bytes in pinned host memory, and the fetcher threads that read them from stores and check
 * them. What was bound first stays there while the host budget lasts. All else is read again for each load, because on
 * a cyclic scan no replacement does better. All of it gives way to content that no file can give back (spill.c). */
#include "store/base/memory_limit.h"
#include "store/base/trace.h"
#include "sources.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { SWEEP_TRIES = 20 }; /* to free what was given up, while a thread of the program waits */

static uint64_t default_budget(void)
{
    struct cws_memory_limit limit;
    cws_memory_limit_get("", &limit);
    return limit.free_bytes == UINT64_MAX ? (uint64_t)1 << 30 : limit.free_bytes / 2;
}

void cws_gpu_sources_init(struct cws_gpu_sources *sources, struct cws_gpu_core *core, uint64_t host_budget)
{
    *sources = (struct cws_gpu_sources){.core = core,
                                        .by_tensor = CWS_MAP_OF(struct cws_gpu_source *),
                                        .host_budget = host_budget ? host_budget : default_budget()};
    cws_list_init(&sources->all);
    cws_list_init(&sources->first);
    cws_list_init(&sources->later);
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

size_t cws_gpu_host_bytes_of(size_t bytes) { return (bytes + CWS_STREAM_PAD + 4095) / 4096 * 4096; }

static size_t host_bytes_of(const struct cws_gpu_source *s)
{
    /* The analyzer does not see that a source which was freed is in no list.
     * NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
    const struct cws_chunk_record *first = &s->tensor->chunks[0], *last = &s->tensor->chunks[chunk_count(s) - 1];
    return cws_gpu_host_bytes_of(s->plain ? s->tensor->end - s->tensor->begin
                                          : last->offset + last->stored_bytes - first->offset);
}

struct cws_gpu_source *cws_gpu_source_get(struct cws_gpu_sources *sources, struct cws_store *store,
                                          const struct cws_tensor_info *tensor)
{
    struct cws_gpu_source **known = cws_map_find(&sources->by_tensor, (uintptr_t)tensor);
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
    known = cws_map_put(&sources->by_tensor, (uintptr_t)tensor);
    if (!known)
        goto fail;
    *known = s;
    s->store = store;
    s->tensor = tensor;
    s->plain = has_host_chunks(tensor);
    s->refs = 1;
    s->state = CWS_SOURCE_READY; /* nobody needs its bytes yet */
    cws_store_retain(store);
    cws_list_init(&s->wanted);
    cws_list_add_before(&sources->all, &s->link);
    return s;
fail:
    if (s)
        free(s->table);
    free(s);
    return NULL;
}

struct cws_gpu_source *cws_gpu_source_of_file(struct cws_gpu_sources *sources, struct cws_gpu_file *file,
                                              struct cws_tensor_info *tensor)
{
    struct cws_gpu_source *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->file = cws_gpu_file_retain(file);
    s->tensor = tensor;
    s->refs = 1;
    s->state = CWS_SOURCE_READY;
    cws_list_init(&s->wanted);
    cws_list_add_before(&sources->all, &s->link);
    return s;
}

struct cws_gpu_source *cws_gpu_source_of_memory(struct cws_gpu_sources *sources, struct cws_tensor_info *tensor,
                                                uint8_t *host, size_t host_bytes)
{
    struct cws_gpu_source *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->tensor = tensor;
    s->refs = 1;
    s->state = CWS_SOURCE_READY;
    s->keeps = true;
    s->host = host;
    s->host_bytes = host_bytes;
    cws_list_init(&s->wanted);
    cws_list_add_before(&sources->all, &s->link);
    return s;
}

const char *cws_gpu_source_path(const struct cws_gpu_source *s)
{
    if (cws_gpu_source_is_adopted(s))
        return "host memory";
    return s->file ? cws_gpu_file_path(s->file) : cws_store_path(s->store);
}

/* Freeing pinned memory takes the driver long, so a fetcher does it. */
void cws_gpu_host_give(struct cws_gpu_sources *sources, void *host, size_t bytes)
{
    struct cws_gpu_garbage *g = host; /* the list lies in what it lists */
    g->bytes = bytes;
    g->next = sources->garbage;
    sources->garbage = g;
    sources->garbage_bytes += bytes;
    cws_cond_signal(&sources->fetch);
}

static void give_host(struct cws_gpu_sources *sources, struct cws_gpu_source *s)
{
    if (!s->host)
        return;
    cws_gpu_host_give(sources, s->host, s->host_bytes);
    s->host = NULL;
}

static bool sweep_drops_lock(struct cws_gpu_sources *sources)
{
    struct cws_gpu_garbage *g = sources->garbage;
    if (!g)
        return false;
    sources->garbage = g->next;
    size_t bytes = g->bytes;
    cws_gpu_unlock(sources->core);
    sources->core->driver->host_free(g);
    cws_gpu_lock(sources->core);
    sources->host_bytes -= bytes;
    sources->garbage_bytes -= bytes;
    if (sources->claimed)
        cws_gpu_wake_locked(sources->core);
    return true;
}

static void unwant(struct cws_gpu_source *s, enum cws_source_state to)
{
    cws_list_remove(&s->wanted);
    s->state = to;
}

/* --- room for what no file gives back ---------------------------------------------------------------- */

/* Can its bytes be had again, and does nobody read them now? */
static bool is_spare(const struct cws_gpu_source *s)
{
    return s->host && s->state == CWS_SOURCE_READY && s->loading == 0 && !cws_gpu_source_is_adopted(s);
}

uint64_t cws_gpu_host_unused(const struct cws_gpu_sources *sources)
{
    uint64_t used = sources->host_bytes + sources->claimed;
    return used < sources->host_budget ? sources->host_budget - used : 0;
}

uint64_t cws_gpu_host_left(const struct cws_gpu_sources *sources)
{
    uint64_t used = sources->host_bytes - sources->garbage_bytes - sources->kept_bytes;
    for (const struct cws_list *l = sources->all.next; l != &sources->all; l = l->next) {
        const struct cws_gpu_source *s = CWS_LIST_OF(l, const struct cws_gpu_source, link);
        used -= is_spare(s) ? s->host_bytes : 0;
    }
    return used < sources->host_budget ? sources->host_budget - used : 0;
}

static bool will_fit(const struct cws_gpu_sources *sources, uint64_t bytes)
{
    return sources->host_bytes - sources->garbage_bytes + bytes <= sources->host_budget;
}

/* Those that were bound last first, as when they came. */
static void give_spare(struct cws_gpu_sources *sources, uint64_t bytes)
{
    for (struct cws_list *l = sources->all.prev; l != &sources->all && !will_fit(sources, bytes); l = l->prev)
        if (is_spare(CWS_LIST_OF(l, struct cws_gpu_source, link)))
            give_host(sources, CWS_LIST_OF(l, struct cws_gpu_source, link));
}

bool cws_gpu_host_reserve_drops_lock(struct cws_gpu_sources *sources, size_t bytes)
{
    const struct timespec pause = {.tv_nsec = 50000};
    uint64_t leave = sources->host_budget / sources->core->tuning->fetch_leave_share;
    if (cws_gpu_host_left(sources) < sources->kept_bytes + leave + bytes)
        return false;
    give_spare(sources, sources->claimed + bytes);
    for (unsigned i = 0; i < SWEEP_TRIES && sources->host_bytes + sources->claimed + bytes > sources->host_budget;
         i++) {
        if (sweep_drops_lock(sources))
            continue;
        cws_gpu_unlock(sources->core);
        nanosleep(&pause, NULL);
        cws_gpu_lock(sources->core);
    }
    if (sources->host_bytes + sources->claimed + bytes > sources->host_budget)
        return false;
    sources->host_bytes += bytes;
    return true;
}

enum cws_host_room cws_gpu_host_claim(struct cws_gpu_sources *sources, uint64_t bytes)
{
    sources->claimed = bytes;
    give_spare(sources, bytes);
    if (!will_fit(sources, bytes))
        return CWS_HOST_SHORT;
    if (sources->host_bytes + bytes > sources->host_budget)
        return CWS_HOST_SWEEPING;
    sources->claimed = 0;
    return CWS_HOST_FREE;
}

bool cws_gpu_host_unclaim(struct cws_gpu_sources *sources)
{
    bool claimed = sources->claimed != 0;
    sources->claimed = 0;
    return claimed;
}

void cws_gpu_host_unclaimed(struct cws_gpu_sources *sources)
{
    if (sources->claimed == 0)
        cws_cond_signal(&sources->fetch);
}

void cws_gpu_host_take(struct cws_gpu_sources *sources, uint64_t bytes) { sources->host_bytes += bytes; }
void cws_gpu_host_untake(struct cws_gpu_sources *sources, uint64_t bytes) { sources->host_bytes -= bytes; }
void cws_gpu_host_keep(struct cws_gpu_sources *sources, uint64_t bytes) { sources->kept_bytes += bytes; }
void cws_gpu_host_unkeep(struct cws_gpu_sources *sources, uint64_t bytes) { sources->kept_bytes -= bytes; }

void cws_gpu_source_unneeded(struct cws_gpu_sources *sources, struct cws_gpu_source *s)
{
    if (s->refs != 1)
        return;
    if (s->state == CWS_SOURCE_WANTED)
        unwant(s, CWS_SOURCE_READY);
    if (s->state == CWS_SOURCE_READY && s->loading == 0)
        give_host(sources, s);
}

void cws_gpu_source_retain(struct cws_gpu_source *s) { s->refs++; }

void cws_gpu_source_put(struct cws_gpu_sources *sources, struct cws_gpu_source *s)
{
    if (--s->refs || s->state == CWS_SOURCE_FETCHING) /* the fetcher looks again when it is done */
        return;
    cws_list_remove(&s->link);
    if (s->store)
        cws_map_remove(&sources->by_tensor, (uintptr_t)s->tensor);
    cws_list_remove(&s->wanted);
    give_host(sources, s);
    if (!s->store)
        free((void *)s->tensor);
    cws_store_close(s->store);
    cws_gpu_file_release(s->file);
    free(s->table);
    free(s);
}

enum cws_source_state cws_gpu_source_want(struct cws_gpu_sources *sources, struct cws_gpu_source *s, bool urgent)
{
    if (s->state == CWS_SOURCE_READY && !s->host) {
        s->state = CWS_SOURCE_WANTED;
        s->urgent = false;
        cws_list_add_before(&sources->later, &s->wanted);
        cws_cond_signal(&sources->fetch);
    }
    if (urgent && !s->urgent && s->state == CWS_SOURCE_WANTED) { /* what was not worth its memory is now */
        s->urgent = true;
        cws_list_remove(&s->wanted);
        cws_list_add_before(&sources->first, &s->wanted);
        cws_cond_signal(&sources->fetch);
    }
    return s->state;
}

void cws_gpu_source_load_begin(struct cws_gpu_sources *sources, struct cws_gpu_source *s)
{
    s->refs++;
    s->loading++;
    cws_gpu_source_want(sources, s, true);
}

void cws_gpu_source_load_end(struct cws_gpu_sources *sources, struct cws_gpu_source *s)
{
    s->loading--;
    if (!s->keeps && s->loading == 0)
        give_host(sources, s);
    cws_gpu_source_put(sources, s);
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
static struct cws_gpu_source *next_wanted(struct cws_gpu_sources *sources)
{
    uint64_t most = sources->core->tuning->fetch_look_at; /* thousands may be waiting for room that there is not */
    if (!cws_list_is_empty(&sources->first))
        return CWS_LIST_OF(sources->first.next, struct cws_gpu_source, wanted);
    unsigned looked = 0;
    for (struct cws_list *l = sources->later.next; l != &sources->later && looked < most; l = l->next, looked++) {
        struct cws_gpu_source *s = CWS_LIST_OF(l, struct cws_gpu_source, wanted);
        if (sources->host_bytes + sources->claimed + host_bytes_of(s) <= sources->host_budget)
            return s;
    }
    return NULL;
}

static void fetch_drops_lock(struct cws_gpu_sources *sources, struct fetcher *f, struct cws_gpu_source *s)
{
    struct cws_error err = {0};
    void *host = NULL;
    unwant(s, CWS_SOURCE_FETCHING);
    s->host_bytes = host_bytes_of(s);
    /* A part of the budget is for what comes and goes. */
    s->keeps = sources->host_bytes + sources->claimed + s->host_bytes <=
               sources->host_budget - sources->host_budget / sources->core->tuning->fetch_leave_share;
    sources->host_bytes += s->host_bytes;
    size_t bytes = s->host_bytes;
    cws_gpu_unlock(sources->core);
    bool traced = CWS_TRACE_BEGIN(.kind = CWS_TRACE_FETCH, .tensor = s->tensor->name, .bytes = bytes,
                                  .index = UINT64_MAX);
    CUresult result = sources->core->driver->host_alloc(&host, bytes, CU_MEMHOSTALLOC_PORTABLE);
    int code = result == CUDA_SUCCESS
                   ? read_source(f, s, host, &err)
                   : cws_driver_fail(sources->core->driver, &err, result, "pinning host memory for compressed weights");
    if (code && host)
        sources->core->driver->host_free(host);
    cws_trace_end(CWS_TRACE_FETCH, traced);
    cws_gpu_lock(sources->core);
    if (code) {
        sources->host_bytes -= bytes;
        s->error = err;
        s->state = CWS_SOURCE_FAILED;
    } else {
        s->host = host;
        s->state = CWS_SOURCE_READY;
    }
    s->urgent = false;
    if (s->refs == 0) {
        s->refs = 1;
        cws_gpu_source_put(sources, s);
    }
    cws_gpu_wake_locked(sources->core);
    cws_gpu_changed_locked(sources->core);
}

static void *run(void *arg)
{
    struct cws_gpu_sources *sources = arg;
    struct fetcher f = {0};
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    prctl(PR_SET_NAME, "codecllm-fetch");
    sources->core->driver->context_set(sources->core->context);
    sources->core->driver->capture_mode(&mode);
    cws_gpu_lock(sources->core);
    while (!sources->core->stop) {
        if (sweep_drops_lock(sources))
            continue;
        struct cws_gpu_source *s = next_wanted(sources);
        if (s)
            fetch_drops_lock(sources, &f, s);
        else
            cws_cond_wait_drops_lock(&sources->fetch, &sources->core->lock);
    }
    cws_gpu_unlock(sources->core);
    cws_store_cursor_destroy(f.cursor);
    cws_store_close(f.store);
    return NULL;
}

int cws_gpu_sources_start(struct cws_gpu_sources *sources, struct cws_error *err)
{
    int code = 0;
    for (unsigned i = 0; i < CWS_GPU_FETCHERS && code == 0; i++) {
        code = pthread_create(&sources->fetchers[i], NULL, run, sources);
        sources->threads += code == 0;
    }
    return code ? cws_fail_errno(err, code, "starting threads for paging to the device") : 0;
}

void cws_gpu_sources_join(struct cws_gpu_sources *sources)
{
    cws_gpu_lock(sources->core);
    cws_cond_broadcast(&sources->fetch);
    cws_gpu_unlock(sources->core);
    for (unsigned i = 0; i < sources->threads; i++)
        pthread_join(sources->fetchers[i], NULL);
    sources->threads = 0;
}

void cws_gpu_sources_close(struct cws_gpu_sources *sources)
{
    cws_gpu_lock(sources->core);
    for (struct cws_list *l = sources->all.next, *next; l != &sources->all; l = next) {
        struct cws_gpu_source *s = CWS_LIST_OF(l, struct cws_gpu_source, link);
        next = l->next;
        s->refs = 1;
        if (s->state != CWS_SOURCE_WANTED)
            s->state = CWS_SOURCE_READY;
        cws_gpu_source_put(sources, s);
    }
    while (sweep_drops_lock(sources)) {
    }
    cws_map_deinit(&sources->by_tensor);
    cws_gpu_unlock(sources->core);
}

const char *cws_gpu_sources_check(const struct cws_gpu_sources *sources)
{
    uint64_t bytes = sources->garbage_bytes;
    for (const struct cws_list *l = sources->all.next; l != &sources->all; l = l->next) {
        const struct cws_gpu_source *s = CWS_LIST_OF(l, const struct cws_gpu_source, link);
        if (s->host && s->state != CWS_SOURCE_READY)
            return "sources: one has bytes before they were read";
        if (s->loading > s->refs)
            return "sources: one is loaded by more than have it";
        bytes += s->host ? s->host_bytes : 0;
    }
    return bytes + sources->kept_bytes > sources->host_bytes ? "sources: host memory is miscounted" : NULL;
}
