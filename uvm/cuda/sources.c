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

enum {
    SWEEP_TRIES = 20, /* to free what was given up, while a thread of the program waits */
    IDLE_PARTS = 16,  /* as large as parts get: so much idle memory at most */
};
/* A part is sent in one batch where staging is as large as it gets (staging.c). */
#define PART_BYTES_MAX (((uint64_t)16 << 20) - 4096)
#define PART_BYTES_MIN ((uint64_t)1 << 20)
#define PARTS_OF_BUDGET 16 /* parts are smaller where there would be fewer */

static uint64_t default_budget(void)
{
    struct cws_memory_limit limit;
    cws_memory_limit_get("", &limit);
    return cws_memory_limit_pinned(&limit);
}

void cws_gpu_sources_init(struct cws_gpu_sources *sources, struct cws_gpu_core *core, uint64_t host_budget)
{
    *sources = (struct cws_gpu_sources){.core = core,
                                        .by_tensor = CWS_MAP_OF(struct cws_gpu_source *),
                                        .host_budget = host_budget ? host_budget : default_budget()};
    uint64_t part = sources->host_budget / PARTS_OF_BUDGET / 4096 * 4096;
    part = part < PART_BYTES_MIN ? PART_BYTES_MIN : part < PART_BYTES_MAX ? part : PART_BYTES_MAX;
    uint64_t share = sources->host_budget / core->tuning->fetch_leave_share;
    sources->part_bytes = part;
    sources->leave = share < 2 * part ? 2 * part : share;
    cws_list_init(&sources->all);
    cws_list_init(&sources->first);
    cws_list_init(&sources->ahead);
    cws_list_init(&sources->later);
    cws_list_init(&sources->passing);
}

void cws_gpu_host_withhold(struct cws_gpu_sources *sources, uint64_t bytes) { sources->host_budget -= bytes; }

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

/* Pinned bytes that chunks of it take. */
static size_t host_bytes_of(const struct cws_gpu_source *s, uint64_t first_chunk, uint64_t count)
{
    uint64_t chunk_bytes = s->tensor->record->chunk_bytes, bytes = s->tensor->end - s->tensor->begin;
    uint64_t begin = first_chunk * chunk_bytes, end = begin + count * chunk_bytes;
    /* The analyzer does not see that a source which was freed is in no list.
     * NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
    const struct cws_chunk_record *first = &s->tensor->chunks[first_chunk], *last = first + count - 1;
    return cws_gpu_host_bytes_of(s->plain ? (end < bytes ? end : bytes) - begin
                                          : last->offset + last->stored_bytes - first->offset);
}

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Chunks of each part, so that all parts are about as large and none has more than part_bytes; one chunk at least. */
static uint64_t chunks_of_part(const struct cws_gpu_sources *sources, const struct cws_gpu_source *s)
{
    uint64_t all = chunk_count(s), parts = host_bytes_of(s, 0, all) / sources->part_bytes + 1;
    for (;; parts++) {
        uint64_t count = (all + parts - 1) / parts, largest = 0;
        for (uint64_t at = 0; at < all; at += count) {
            size_t bytes = host_bytes_of(s, at, smaller(count, all - at));
            largest = bytes > largest ? bytes : largest;
        }
        if (largest <= sources->part_bytes || count == 1)
            return count;
    }
}

/* With one reference, in the list of all. part_chunks 0: as many as parts have. NULL: no memory. */
static struct cws_gpu_source *create(struct cws_gpu_sources *sources, const struct cws_tensor_info *tensor, bool plain,
                                     uint64_t part_chunks)
{
    const struct cws_gpu_source like = {.tensor = tensor, .plain = plain, .refs = 1};
    uint64_t all = tensor->record->chunk_count;
    part_chunks = part_chunks ? part_chunks : chunks_of_part(sources, &like);
    uint64_t count = (all + part_chunks - 1) / part_chunks;
    struct cws_gpu_source *s = calloc(1, sizeof *s + count * sizeof *s->parts);
    if (!s)
        return NULL;
    *s = like;
    s->part_chunks = part_chunks;
    s->part_count = (uint32_t)count;
    for (uint32_t i = 0; i < s->part_count; i++) {
        uint64_t first = i * part_chunks;
        s->parts[i] = (struct cws_gpu_part){.source = s,
                                            .first_chunk = first,
                                            .chunk_count = smaller(part_chunks, all - first),
                                            .state = CWS_SOURCE_READY}; /* nobody needs its bytes yet */
        cws_list_init(&s->parts[i].link);
    }
    cws_list_add_before(&sources->all, &s->link);
    return s;
}

struct cws_gpu_source *cws_gpu_source_get(struct cws_gpu_sources *sources, struct cws_store *store,
                                          const struct cws_tensor_info *tensor)
{
    uint64_t key = cws_store_tensor_key(store, tensor);
    struct cws_gpu_source **known = cws_map_find(&sources->by_tensor, key);
    if (known && cws_store_is_same((*known)->store, store) && (*known)->tensor->begin == tensor->begin) {
        (*known)->refs++;
        return *known;
    }
    bool listed = !known; /* two that have the same key by chance: the second one is not found again */
    const uint8_t *packed = cws_store_table(store, tensor);
    struct cws_gpu_table *table = NULL;
    struct cws_gpu_source *s = NULL;
    if (tensor->record->chunk_count == 0)
        return NULL;
    if (packed) {
        table = aligned_alloc(16, sizeof *table);
        struct cws_error err = {0};
        if (!table || cws_gpu_table_build(packed, table, &err))
            goto fail;
    }
    s = create(sources, tensor, has_host_chunks(tensor), 0);
    if (!s)
        goto fail;
    if (listed) {
        known = cws_map_put(&sources->by_tensor, key);
        if (!known)
            goto fail;
        *known = s;
    }
    s->listed = listed;
    s->store = store;
    s->table = table;
    cws_store_retain(store);
    return s;
fail:
    if (s)
        cws_list_remove(&s->link);
    free(table);
    free(s);
    return NULL;
}

struct cws_gpu_source *cws_gpu_source_of_file(struct cws_gpu_sources *sources, struct cws_gpu_file *file,
                                              struct cws_tensor_info *tensor)
{
    struct cws_gpu_source *s = create(sources, tensor, /* plain */ false, 0);
    if (s)
        s->file = cws_gpu_file_retain(file);
    return s;
}

struct cws_gpu_source *cws_gpu_source_of_memory(struct cws_gpu_sources *sources, struct cws_tensor_info *tensor,
                                                uint8_t *host, size_t host_bytes)
{
    struct cws_gpu_source *s = create(sources, tensor, /* plain */ false, tensor->record->chunk_count);
    if (!s)
        return NULL;
    s->parts[0].keeps = true;
    s->parts[0].host = host;
    s->parts[0].host_bytes = host_bytes;
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

/* Idle memory is freed, until so many bytes more fit the host budget; UINT64_MAX / 2: all of it. */
static void give_idle(struct cws_gpu_sources *sources, uint64_t bytes)
{
    while (sources->idle && sources->host_bytes - sources->garbage_bytes + bytes > sources->host_budget) {
        struct cws_gpu_garbage *g = sources->idle;
        sources->idle = g->next;
        sources->idle_bytes -= g->bytes;
        sources->passing_bytes -= g->bytes;
        cws_gpu_host_give(sources, g, g->bytes);
    }
}

/* Idle memory for a part that does not stay, as little as there is of so many bytes; not much larger than that. */
static struct cws_gpu_garbage **find_idle(struct cws_gpu_sources *sources, size_t bytes)
{
    struct cws_gpu_garbage **best = NULL;
    for (struct cws_gpu_garbage **g = &sources->idle; *g; g = &(*g)->next)
        if ((*g)->bytes >= bytes && (*g)->bytes <= bytes + bytes / 4 && (!best || (*g)->bytes < (*best)->bytes))
            best = g;
    return best;
}

static void give_host(struct cws_gpu_sources *sources, struct cws_gpu_part *p)
{
    struct cws_gpu_garbage *g = (struct cws_gpu_garbage *)p->host;
    if (!g)
        return;
    p->host = NULL;
    cws_list_remove(&p->link);
    if (!p->keeps && !sources->claimed && sources->idle_bytes + p->host_bytes <= IDLE_PARTS * sources->part_bytes) {
        g->bytes = p->host_bytes;
        g->next = sources->idle;
        sources->idle = g;
        sources->idle_bytes += g->bytes;
        cws_cond_signal(&sources->fetch);
        return;
    }
    sources->passing_bytes -= p->keeps ? 0 : p->host_bytes;
    cws_gpu_host_give(sources, g, p->host_bytes);
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
    cws_cond_signal(&sources->fetch); /* a program's thread may sweep, and a fetcher wait for the room */
    return true;
}

static void unwant(struct cws_gpu_part *p, enum cws_source_state to)
{
    cws_list_remove(&p->link);
    p->state = to;
}

/* --- room ---------------------------------------------------------------------------------------------- */

/* What stays, until it is given up. */
static uint64_t staying(const struct cws_gpu_sources *sources)
{
    return sources->host_bytes - sources->garbage_bytes - sources->passing_bytes;
}

/* Of the budget, for what stays. */
static uint64_t for_staying(const struct cws_gpu_sources *sources)
{
    return sources->host_budget > sources->leave ? sources->host_budget - sources->leave : 0;
}

/* Could its bytes be had again, and does nobody read them now? */
static bool is_spare(const struct cws_gpu_part *p)
{
    return p->host && p->keeps && p->state == CWS_SOURCE_READY && p->loading == 0 &&
           !cws_gpu_source_is_adopted(p->source);
}

uint64_t cws_gpu_host_unused(const struct cws_gpu_sources *sources)
{
    uint64_t used = staying(sources) + sources->garbage_bytes + sources->claimed;
    return used < for_staying(sources) ? for_staying(sources) - used : 0;
}

uint64_t cws_gpu_host_left(const struct cws_gpu_sources *sources)
{
    uint64_t used = staying(sources) - sources->kept_bytes;
    for (const struct cws_list *l = sources->all.next; l != &sources->all; l = l->next) {
        const struct cws_gpu_source *s = CWS_LIST_OF(l, const struct cws_gpu_source, link);
        for (uint32_t i = 0; i < s->part_count; i++)
            used -= is_spare(&s->parts[i]) ? s->parts[i].host_bytes : 0;
    }
    return used < for_staying(sources) ? for_staying(sources) - used : 0;
}

static bool may_stay(const struct cws_gpu_sources *sources, uint64_t bytes)
{
    return staying(sources) + bytes <= for_staying(sources);
}

/* Those that were bound last first, as when they came. */
static void give_spare(struct cws_gpu_sources *sources, uint64_t bytes)
{
    for (struct cws_list *l = sources->all.prev; l != &sources->all && !may_stay(sources, bytes); l = l->prev) {
        struct cws_gpu_source *s = CWS_LIST_OF(l, struct cws_gpu_source, link);
        for (uint32_t i = s->part_count; i-- > 0 && !may_stay(sources, bytes);)
            if (is_spare(&s->parts[i]))
                give_host(sources, &s->parts[i]);
    }
    give_idle(sources, bytes);
}

bool cws_gpu_host_reserve_drops_lock(struct cws_gpu_sources *sources, size_t bytes)
{
    const struct timespec pause = {.tv_nsec = 50000};
    if (cws_gpu_host_left(sources) < sources->kept_bytes + bytes)
        return false;
    give_spare(sources, sources->claimed + bytes);
    for (unsigned i = 0; i < SWEEP_TRIES && sources->host_bytes + sources->claimed + bytes > sources->host_budget;
         i++) {
        if (sweep_drops_lock(sources))
            continue;
        cws_gpu_unlock(sources->core);
        nanosleep(&pause, NULL);
        cws_gpu_lock(sources->core);
        give_idle(sources, sources->claimed + bytes);
    }
    if (sources->host_bytes + sources->claimed + bytes > sources->host_budget ||
        !may_stay(sources, sources->claimed + bytes))
        return false;
    sources->host_bytes += bytes;
    return true;
}

enum cws_host_room cws_gpu_host_claim(struct cws_gpu_sources *sources, uint64_t bytes)
{
    sources->claimed = bytes;
    give_spare(sources, bytes);
    if (!may_stay(sources, bytes))
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

/* Nobody is to read its bytes. */
static void forget_part(struct cws_gpu_sources *sources, struct cws_gpu_part *p)
{
    if (p->state == CWS_SOURCE_WANTED)
        unwant(p, CWS_SOURCE_READY);
    if (p->state == CWS_SOURCE_READY)
        give_host(sources, p);
}

void cws_gpu_source_unneeded(struct cws_gpu_sources *sources, struct cws_gpu_source *s)
{
    for (uint32_t i = 0; i < s->part_count && s->refs == 1; i++)
        if (s->parts[i].loading == 0)
            forget_part(sources, &s->parts[i]);
}

void cws_gpu_source_retain(struct cws_gpu_source *s) { s->refs++; }

void cws_gpu_source_put(struct cws_gpu_sources *sources, struct cws_gpu_source *s)
{
    if (--s->refs || s->fetching) /* the fetcher looks again when it is done */
        return;
    cws_list_remove(&s->link);
    if (s->listed)
        cws_map_remove(&sources->by_tensor, cws_store_tensor_key(s->store, s->tensor));
    for (uint32_t i = 0; i < s->part_count; i++)
        forget_part(sources, &s->parts[i]);
    if (cws_list_is_empty(&sources->all))
        give_idle(sources, UINT64_MAX / 2);
    if (!s->store)
        free((void *)s->tensor);
    cws_store_close(s->store);
    cws_gpu_file_release(s->file);
    free(s->table);
    free(s);
}

/* Puts a part that is WANTED into the list where it belongs, as the last one. */
static void enlist(struct cws_gpu_sources *sources, struct cws_gpu_part *p)
{
    cws_list_remove(&p->link);
    cws_list_add_before(p->needed ? &sources->first : p->loading ? &sources->ahead : &sources->later, &p->link);
    cws_cond_signal(&sources->fetch);
}

static void want(struct cws_gpu_sources *sources, struct cws_gpu_part *p)
{
    if (p->state != CWS_SOURCE_READY || p->host)
        return;
    p->state = CWS_SOURCE_WANTED;
    enlist(sources, p);
}

void cws_gpu_source_want(struct cws_gpu_sources *sources, struct cws_gpu_source *s, uint64_t first_chunk,
                         uint64_t count)
{
    for (uint64_t at = first_chunk; at < first_chunk + count;) {
        struct cws_gpu_part *p = cws_gpu_source_part(s, at);
        want(sources, p);
        at = p->first_chunk + p->chunk_count;
    }
}

void cws_gpu_part_begin(struct cws_gpu_sources *sources, struct cws_gpu_part *p)
{
    p->source->refs++;
    p->loading++;
    if (p->state == CWS_SOURCE_WANTED && p->loading == 1)
        enlist(sources, p);
    want(sources, p);
}

void cws_gpu_part_need(struct cws_gpu_sources *sources, struct cws_gpu_part *p)
{
    p->needed++;
    if (p->state == CWS_SOURCE_WANTED && p->needed == 1)
        enlist(sources, p);
}

void cws_gpu_part_end(struct cws_gpu_sources *sources, struct cws_gpu_part *p, bool needed)
{
    p->needed -= needed;
    p->loading--;
    if (p->loading == 0 && (p->state == CWS_SOURCE_WANTED || !p->keeps))
        forget_part(sources, p);
    else if (p->state == CWS_SOURCE_WANTED)
        enlist(sources, p);
    else if (p->needed == 0)
        cws_cond_signal(&sources->fetch); /* whoever waits for room may take its memory now */
    cws_gpu_source_put(sources, p->source);
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

static int read_part(struct fetcher *f, const struct cws_gpu_part *p, uint8_t *host, struct cws_error *err)
{
    const struct cws_gpu_source *s = p->source;
    uint64_t begin = p->first_chunk * s->tensor->record->chunk_bytes, bytes = s->tensor->end - s->tensor->begin;
    uint64_t end = smaller(begin + p->chunk_count * s->tensor->record->chunk_bytes, bytes);
    if (s->file)
        return cws_gpu_file_read(s->file, s->tensor, begin, end, host, err);
    int code = cursor_for(f, s->store, err);
    if (code)
        return code;
    return s->plain ? cws_store_read(f->cursor, s->tensor->begin + begin, s->tensor->begin + end, host, err)
                    : cws_store_fetch(f->cursor, s->tensor, p->first_chunk, p->chunk_count, host, err);
}

/* Does the part stay in host memory, once it is there? */
static bool will_stay(const struct cws_gpu_sources *sources, size_t bytes)
{
    return may_stay(sources, sources->claimed + bytes);
}

/* Parts that are only ahead give way to one that is needed, the last one first. */
static void take_from_ahead(struct cws_gpu_sources *sources, size_t bytes)
{
    for (struct cws_list *l = sources->passing.prev, *before;
         l != &sources->passing && !find_idle(sources, bytes) &&
         sources->host_bytes - sources->garbage_bytes - sources->idle_bytes + bytes > sources->host_budget;
         l = before) {
        struct cws_gpu_part *p = CWS_LIST_OF(l, struct cws_gpu_part, link);
        before = l->prev;
        if (p->needed)
            continue;
        give_host(sources, p);
        want(sources, p);
    }
}

/* Is there room for it now? Idle memory is given up for it, and for what is needed what is ahead. */
static bool has_room(struct cws_gpu_sources *sources, const struct cws_gpu_part *p)
{
    size_t bytes = host_bytes_of(p->source, p->first_chunk, p->chunk_count);
    bool stays = will_stay(sources, bytes);
    if (!stays && bytes > sources->leave)
        return true; /* it fails */
    if (p->needed)
        take_from_ahead(sources, bytes);
    if (!stays && find_idle(sources, bytes))
        return true;
    give_idle(sources, bytes);
    return sources->host_bytes + bytes <= sources->host_budget;
}

static struct cws_gpu_part *first_of(const struct cws_list *list)
{
    return CWS_LIST_OF(list->next, struct cws_gpu_part, link);
}

/* The part to read next: first one that a load needs, then what loads have begun, in their order. The others in the
 * order of binding, as far as they stay. NULL: there is none, or no room for it. */
static struct cws_gpu_part *next_wanted(struct cws_gpu_sources *sources)
{
    uint64_t most = sources->core->tuning->fetch_look_at; /* thousands may be waiting for room that there is not */
    unsigned looked = 0;
    struct cws_gpu_part *p = NULL;
    if (!cws_list_is_empty(&sources->first))
        p = first_of(&sources->first);
    else if (!cws_list_is_empty(&sources->ahead))
        p = first_of(&sources->ahead);
    for (struct cws_list *l = sources->later.next; !p && l != &sources->later && looked < most; l = l->next, looked++) {
        struct cws_gpu_part *at = CWS_LIST_OF(l, struct cws_gpu_part, link);
        if (will_stay(sources, host_bytes_of(at->source, at->first_chunk, at->chunk_count)))
            p = at;
    }
    return p && has_room(sources, p) ? p : NULL;
}

/* Counts the memory that the part is to have. Idle memory for it, or NULL: it has to be pinned. */
static void *count_host(struct cws_gpu_sources *sources, struct cws_gpu_part *p)
{
    struct cws_gpu_garbage **idle = p->keeps ? NULL : find_idle(sources, p->host_bytes), *g;
    if (!idle) {
        sources->host_bytes += p->host_bytes;
        sources->passing_bytes += p->keeps ? 0 : p->host_bytes;
        return NULL;
    }
    g = *idle;
    *idle = g->next;
    sources->idle_bytes -= g->bytes;
    p->host_bytes = g->bytes;
    return g;
}

static int fail_for_size(const struct cws_gpu_sources *sources, const struct cws_gpu_part *p, struct cws_error *err)
{
    return cws_fail(
        err, CWS_E_BUDGET,
        "CODEC_HOST_BUDGET is too small: tensor \"%s\" has a chunk that takes %llu KiB of pinned host memory, "
        "and the budget has %llu KiB for what comes and goes",
        p->source->tensor->name, (unsigned long long)(p->host_bytes >> 10), (unsigned long long)(sources->leave >> 10));
}

static int pin(const struct cws_gpu_sources *sources, size_t bytes, void **host, struct cws_error *err)
{
    const struct cws_driver *d = sources->core->driver;
    CUresult result = d->host_alloc(host, bytes, CU_MEMHOSTALLOC_PORTABLE);
    return result == CUDA_SUCCESS ? 0 : cws_driver_fail(d, err, result, "pinning host memory for compressed weights");
}

/* With the lock again: the part has its bytes in `host`, or failed. */
static void fetched_locked(struct cws_gpu_sources *sources, struct cws_gpu_part *p, void *host, int code,
                           const struct cws_error *err)
{
    struct cws_gpu_source *s = p->source;
    if (code) {
        sources->host_bytes -= p->host_bytes;
        sources->passing_bytes -= p->keeps ? 0 : p->host_bytes;
        s->error = *err;
        p->state = CWS_SOURCE_FAILED;
    } else {
        p->host = host;
        p->state = CWS_SOURCE_READY;
    }
    if (!code && !p->keeps) {
        cws_list_add_before(&sources->passing, &p->link);
        if (p->loading == 0)
            give_host(sources, p);
    }
    s->fetching--;
    if (s->refs == 0) {
        s->refs = 1;
        cws_gpu_source_put(sources, s);
    }
    cws_gpu_wake_locked(sources->core);
    cws_gpu_changed_locked(sources->core);
}

static void fetch_drops_lock(struct cws_gpu_sources *sources, struct fetcher *f, struct cws_gpu_part *p)
{
    struct cws_error err = {0};
    unwant(p, CWS_SOURCE_FETCHING);
    p->source->fetching++;
    p->host_bytes = host_bytes_of(p->source, p->first_chunk, p->chunk_count);
    p->keeps = will_stay(sources, p->host_bytes);
    if (!p->keeps && p->host_bytes > sources->leave) {
        int code = fail_for_size(sources, p, &err);
        p->host_bytes = 0;
        fetched_locked(sources, p, NULL, code, &err);
        return;
    }
    void *host = count_host(sources, p);
    size_t bytes = p->host_bytes;
    cws_cond_signal(&sources->fetch); /* there may be room for another one, too */
    cws_gpu_unlock(sources->core);
    bool traced = CWS_TRACE_BEGIN(.kind = CWS_TRACE_FETCH, .tensor = p->source->tensor->name, .bytes = bytes,
                                  .index = p->first_chunk);
    int code = host ? 0 : pin(sources, bytes, &host, &err);
    if (!code)
        code = read_part(f, p, host, &err);
    if (code && host)
        sources->core->driver->host_free(host);
    cws_trace_end(CWS_TRACE_FETCH, traced);
    cws_gpu_lock(sources->core);
    fetched_locked(sources, p, host, code, &err);
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
        struct cws_gpu_part *p = next_wanted(sources);
        if (p)
            fetch_drops_lock(sources, &f, p);
        else if (!sources->garbage)
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
        cws_gpu_source_put(sources, s);
    }
    while (sweep_drops_lock(sources)) {
    }
    cws_map_deinit(&sources->by_tensor);
    cws_gpu_unlock(sources->core);
}

const char *cws_gpu_sources_check(const struct cws_gpu_sources *sources)
{
    uint64_t bytes = sources->garbage_bytes + sources->idle_bytes, passing = sources->idle_bytes;
    for (const struct cws_list *l = sources->all.next; l != &sources->all; l = l->next) {
        const struct cws_gpu_source *s = CWS_LIST_OF(l, const struct cws_gpu_source, link);
        uint32_t loading = 0;
        for (uint32_t i = 0; i < s->part_count; i++) {
            const struct cws_gpu_part *p = &s->parts[i];
            if (p->host && p->state != CWS_SOURCE_READY)
                return "sources: a part has bytes before they were read";
            if (p->host && !p->keeps && p->loading == 0)
                return "sources: a part that nobody reads has memory of those that come and go";
            if (p->needed > p->loading)
                return "sources: a part is needed by more than have begun it";
            loading += p->loading;
            bytes += p->host ? p->host_bytes : 0;
            passing += p->host && !p->keeps ? p->host_bytes : 0;
        }
        if (loading > s->refs)
            return "sources: one is loaded by more than have it";
    }
    if (sources->host_bytes > sources->host_budget)
        return "sources: more host memory is pinned than the budget has";
    if (passing > sources->passing_bytes || sources->passing_bytes > sources->host_bytes)
        return "sources: host memory of what comes and goes is miscounted";
    return bytes + sources->kept_bytes > sources->host_bytes ? "sources: host memory is miscounted" : NULL;
}
