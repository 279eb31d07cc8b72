/* content.c - finds the tensor of a store that equals some bytes in host memory: by size, then by hash, then by every
 * byte. */
#include "content.h"
#include "store/base/lock.h"
#include "store/format/content_hash.h"
#include "shim/libc/stores.h"

#include <stdlib.h>
#include <string.h>

#define STORES_MAX 256
#define PIECE_BYTES ((size_t)8 << 20)

static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_CUDA_CONTENT);
/* Kept open until the process ends: a model may come back from the host long after its file was closed. */
static struct kept {
    struct cws_store *store;
    uint64_t *sizes; /* of its tensors, rising, each once: a model of thousands has few */
    size_t size_count;
} kept[STORES_MAX];
static unsigned kept_count;

static bool is_same(const struct cws_store *a, const struct cws_store *b)
{
    return a == b || (strcmp(cws_store_path(a), cws_store_path(b)) == 0 &&
                      memcmp(cws_store_trailer(a), cws_store_trailer(b), sizeof *cws_store_trailer(a)) == 0);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* NULL: no memory, or no tensors. */
static uint64_t *sizes_of(const struct cws_store *store, size_t *out_count)
{
    size_t count = cws_store_tensor_count(store), to = 0;
    uint64_t *sizes = count ? malloc(count * sizeof *sizes) : NULL;
    for (size_t i = 0; sizes && i < count; i++)
        sizes[i] = cws_store_tensor(store, i)->end - cws_store_tensor(store, i)->begin;
    if (sizes)
        qsort(sizes, count, sizeof *sizes, by_size);
    for (size_t i = 0; sizes && i < count; i++)
        if (i == 0 || sizes[i] != sizes[i - 1])
            sizes[to++] = sizes[i];
    *out_count = to;
    return sizes;
}

static void keep_locked(struct cws_store *store, void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < kept_count; i++)
        if (is_same(kept[i].store, store))
            return;
    if (kept_count == STORES_MAX)
        return;
    struct kept k = {.store = store};
    k.sizes = sizes_of(store, &k.size_count);
    if (!k.sizes) /* the next copy tries again */
        return;
    cws_store_retain(store);
    kept[kept_count++] = k;
}

static bool has_size(const struct kept *k, uint64_t bytes)
{
    return bsearch(&bytes, k->sizes, k->size_count, sizeof bytes, by_size) != NULL;
}

/* Are the bytes the same? A tensor that cannot be read is not; the error is reported when the tensor is needed. */
static bool is_equal(const struct cws_store *store, const struct cws_tensor_info *t, const char *from)
{
    struct cws_error err = {0};
    size_t bytes = (size_t)(t->end - t->begin);
    char *piece = malloc(PIECE_BYTES);
    bool same = piece != NULL;
    for (size_t at = 0; same && at < bytes; at += PIECE_BYTES) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        same = cws_store_read_parallel(store, 0, t->begin + at, t->begin + at + n, piece, &err) == 0 &&
               memcmp(piece, from + at, n) == 0;
    }
    free(piece);
    return same;
}

static const struct cws_tensor_info *find_in(const struct cws_store *store, const void *from, size_t bytes,
                                             struct cws_hash128 sum)
{
    for (size_t i = 0; i < cws_store_tensor_count(store); i++) {
        const struct cws_tensor_info *t = cws_store_tensor(store, i);
        if (t->end - t->begin == bytes && t->record->content_hash[0] == sum.lo &&
            t->record->content_hash[1] == sum.hi && is_equal(store, t, from))
            return t;
    }
    return NULL;
}

void cws_cuda_content_keep(struct cws_store *store)
{
    cws_lock_take(&lock);
    keep_locked(store, NULL);
    cws_lock_drop(&lock);
}

bool cws_cuda_content_has(size_t bytes)
{
    bool has = false;
    cws_lock_take(&lock);
    cws_stores_each(keep_locked, NULL);
    for (unsigned i = 0; i < kept_count && !has; i++)
        has = has_size(&kept[i], bytes);
    cws_lock_drop(&lock);
    return has;
}

bool cws_cuda_content_find(const void *from, size_t bytes, struct cws_store **store, uint64_t *offset)
{
    struct cws_store *candidates[STORES_MAX];
    struct cws_hash128 sum = {0, 0};
    unsigned count = 0;
    bool found = false;
    cws_lock_take(&lock);
    for (unsigned i = 0; i < kept_count; i++)
        if (has_size(&kept[i], bytes))
            candidates[count++] = kept[i].store;
    cws_lock_drop(&lock); /* what is kept stays */
    if (count)
        cws_content_hash_add(&sum, cws_content_key, from, bytes, 0);
    for (unsigned i = 0; i < count && !found; i++) {
        const struct cws_tensor_info *t = find_in(candidates[i], from, bytes, sum);
        found = t != NULL;
        if (found) {
            cws_store_retain(candidates[i]);
            *store = candidates[i];
            *offset = t->begin;
        }
    }
    return found;
}
