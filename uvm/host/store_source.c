/* store_source.c - a store as the source of a view: one cursor per decoder slot, shared by all views of the store. */
#include "pager.h"

#include <stdlib.h>

struct store_source {
    struct cws_source base;
    struct cws_store *store;
    struct cws_store_cursor *cursors[CWS_SLOTS_MAX];
    struct store_source *next; /* sources_lock */
};

/* outside of all ranks: nothing of the pager is called inside */
static pthread_mutex_t sources_lock = PTHREAD_MUTEX_INITIALIZER;
static struct store_source *sources;

static struct store_source *self(struct cws_source *s) { return (struct store_source *)s; }

static int fill(struct cws_source *s, unsigned slot, uint64_t begin, uint64_t end, void *dst, struct cws_error *err)
{
    return cws_store_read(self(s)->cursors[slot], begin, end, dst, err);
}

static uint32_t region_at(struct cws_source *s, uint64_t offset)
{
    const struct cws_tensor_info *t = cws_store_tensor_at(self(s)->store, offset);
    return t ? (uint32_t)(t - cws_store_tensor(self(s)->store, 0)) : CWS_NO_REGION;
}

static void region(struct cws_source *s, uint32_t i, uint64_t *begin, uint64_t *end)
{
    const struct cws_tensor_info *t = cws_store_tensor(self(s)->store, i);
    *begin = t->begin;
    *end = t->end;
}

static const char *name(struct cws_source *s, uint32_t i) { return cws_store_tensor(self(s)->store, i)->name; }

static void counters(struct cws_source *s, uint64_t *reads, uint64_t *read_bytes)
{
    struct cws_store_counters c;
    cws_store_counters_get(self(s)->store, &c);
    *reads = c.read_calls;
    *read_bytes = c.read_bytes;
}

static void after_fork(struct cws_source *s)
{
    for (unsigned i = 0; i < CWS_SLOTS_MAX; i++)
        if (self(s)->cursors[i])
            cws_store_cursor_after_fork(self(s)->cursors[i]);
}

static void free_source(struct store_source *s)
{
    for (unsigned i = 0; i < CWS_SLOTS_MAX; i++)
        cws_store_cursor_destroy(s->cursors[i]);
    cws_store_close(s->store);
    free(s->base.successor);
    free(s);
}

static void destroy(struct cws_source *base)
{
    struct store_source *s = self(base);
    pthread_mutex_lock(&sources_lock);
    for (struct store_source **link = &sources; *link; link = &(*link)->next) {
        if (*link == s) {
            *link = s->next;
            break;
        }
    }
    pthread_mutex_unlock(&sources_lock);
    free_source(s);
}

static const struct cws_source_ops store_ops = {fill, region_at, region, name, counters, after_fork, destroy};

static int create(struct cws_store *store, struct store_source **out, struct cws_error *err)
{
    struct store_source *s = calloc(1, sizeof *s);
    size_t tensors = cws_store_tensor_count(store);
    int code = 0;
    *out = NULL;
    if (!s)
        return cws_fail(err, -ENOMEM, "%s: no memory for a view", cws_store_path(store));
    cws_store_retain(store);
    s->store = store;
    s->base = (struct cws_source){
        .ops = &store_ops, .bytes = cws_store_logical_bytes(store), .last_region = CWS_NO_REGION, .refs = 1};
    if (tensors && tensors < CWS_NO_REGION) {
        s->base.regions = (uint32_t)tensors;
        s->base.successor = malloc(tensors * sizeof *s->base.successor);
        for (size_t i = 0; s->base.successor && i < tensors; i++)
            s->base.successor[i] = CWS_NO_REGION;
    }
    for (unsigned i = 0; !code && i < cws_pager_slots(); i++)
        code = cws_store_cursor_create(store, /* depth */ 1, &s->cursors[i], err);
    if (code) {
        free_source(s);
        return code;
    }
    *out = s;
    return 0;
}

/* The source of the store, made on first use. The caller gets a reference. */
static int source_of(struct cws_store *store, struct store_source **out, struct cws_error *err)
{
    int code = 0;
    pthread_mutex_lock(&sources_lock);
    struct store_source *s = sources;
    while (s && s->store != store)
        s = s->next;
    /* A source whose last reference is being released is not used again. */
    unsigned refs = s ? atomic_load(&s->base.refs) : 0;
    while (refs && !atomic_compare_exchange_weak(&s->base.refs, &refs, refs + 1))
        ;
    if (!refs) {
        code = create(store, &s, err);
        if (!code) {
            s->next = sources;
            sources = s;
        }
    }
    pthread_mutex_unlock(&sources_lock);
    *out = s;
    return code;
}

int cws_view_map(struct cws_store *store, void *hint, size_t length, int prot, int flags, uint64_t offset,
                 void **out_addr, struct cws_error *err)
{
    struct store_source *s;
    *out_addr = NULL;
    struct cws_guard guard = cws_guard_begin();
    int code = source_of(store, &s, err);
    if (!code) {
        code = cws_view_map_source(&s->base, hint, length, prot, flags, offset, out_addr, err);
        cws_source_release(&s->base); /* the view has its own */
    }
    cws_guard_end(&guard);
    return code;
}

/* The store and the offset whose bytes a part of a view shows, as long as nobody wrote to it. */
static bool is_unwritten_locked(const struct cws_view *v, size_t from, size_t to)
{
    for (uint32_t b = cws_block_of(v, from); b <= cws_block_of(v, to - 1); b++) {
        const struct cws_block *block = &v->blocks[b];
        enum cws_block_state s = cws_block_state(block);
        if (s != CWS_ABSENT && s != CWS_CLEAN && s != CWS_EVICTING &&
            !(s == CWS_FILLING && block->under != CWS_WRITTEN))
            return false;
    }
    return true;
}

bool cws_view_locate(const void *addr, size_t len, struct cws_store **out_store, uint64_t *out_offset)
{
    struct cws_piece piece;
    if (!cws_view_overlaps(addr, len))
        return false;
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.lock);
    bool found = cws_index_find_locked(addr, len, &piece) && piece.view->source->ops == &store_ops &&
                 piece.to - piece.from == len && piece.view->base + piece.from == (const uint8_t *)addr &&
                 is_unwritten_locked(piece.view, piece.from, piece.to);
    if (found) {
        *out_store = self(piece.view->source)->store;
        *out_offset = piece.view->offset + piece.from;
        cws_store_retain(*out_store);
    }
    cws_lock_drop(&cws_pager.lock);
    cws_guard_end(&guard);
    return found;
}
