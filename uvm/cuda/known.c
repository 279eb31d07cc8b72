/* known.c - the tensors of stores, found by size and content hash. */
#include "known.h"

#include <stdlib.h>
#include <string.h>

struct known_tensor {
    struct cws_store *store;
    const struct cws_tensor_info *tensor;
};

void cws_gpu_known_init(struct cws_gpu_known *k)
{
    *k = (struct cws_gpu_known){.by_hash = CWS_MAP_OF(struct known_tensor)};
}

void cws_gpu_known_close(struct cws_gpu_known *k)
{
    for (unsigned i = 0; i < k->count; i++)
        cws_store_close(k->stores[i]);
    free(k->stores);
    cws_map_deinit(&k->by_hash);
    cws_gpu_known_init(k);
}

static uint64_t key_of(uint64_t bytes, struct cws_hash128 hash)
{
    uint64_t key = hash.lo ^ bytes * 0x9e3779b97f4a7c15u;
    return key ? key : 1;
}

static void add_size(struct cws_gpu_known *k, uint64_t bytes)
{
    unsigned i = 0;
    while (i < k->size_count && k->sizes[i] > bytes)
        i++;
    if (i == CWS_GPU_KNOWN_SIZES || (i < k->size_count && k->sizes[i] == bytes))
        return;
    k->size_count += k->size_count < CWS_GPU_KNOWN_SIZES;
    memmove(&k->sizes[i + 1], &k->sizes[i], (k->size_count - i - 1) * sizeof *k->sizes);
    k->sizes[i] = bytes;
}

static void add_tensor(struct cws_gpu_known *k, struct cws_store *store, const struct cws_tensor_info *t)
{
    uint64_t bytes = t->end - t->begin;
    if (bytes == 0)
        return;
    struct cws_hash128 hash = {t->record->content_hash[0], t->record->content_hash[1]};
    struct known_tensor *known = cws_map_put(&k->by_hash, key_of(bytes, hash));
    if (!known)
        return;
    if (!known->store) /* else one with the same bytes: either will do */
        *known = (struct known_tensor){store, t};
    add_size(k, bytes);
}

void cws_gpu_known_add(struct cws_gpu_known *k, struct cws_store *store)
{
    for (unsigned i = k->count; i > 0; i--)
        if (k->stores[i - 1] == store)
            return;
    if (k->count == k->room) {
        unsigned room = k->room ? 2 * k->room : 4;
        struct cws_store **more = realloc(k->stores, room * sizeof *more);
        if (!more)
            return;
        k->stores = more;
        k->room = room;
    }
    cws_store_retain(store);
    k->stores[k->count++] = store;
    for (size_t i = 0; i < cws_store_tensor_count(store); i++)
        add_tensor(k, store, cws_store_tensor(store, i));
}

const struct cws_tensor_info *cws_gpu_known_find(const struct cws_gpu_known *k, uint64_t bytes, struct cws_hash128 hash,
                                                 struct cws_store **store)
{
    const struct known_tensor *known = cws_map_find(&k->by_hash, key_of(bytes, hash));
    if (!known || known->tensor->end - known->tensor->begin != bytes ||
        known->tensor->record->content_hash[0] != hash.lo || known->tensor->record->content_hash[1] != hash.hi)
        return NULL;
    *store = known->store;
    return known->tensor;
}
