/* plain.c - allocations that the program takes from the driver itself: their sizes, by address or handle. Such calls
 * are rare and slow, so one lock does. */
#include "plain.h"
#include "store/base/lock.h"
#include "store/base/map.h"

#include <stdatomic.h>

struct plain {
    size_t bytes;
    struct cws_gpu *gpu;
};

static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_CUDA_PLAIN);
static struct cws_map sizes = CWS_MAP_OF(struct plain);
static _Atomic size_t live; /* sizes.count, for who has no lock */

bool cws_cuda_plain_note(unsigned long long key, size_t bytes, struct cws_gpu *gpu)
{
    if (!key || !bytes)
        return true;
    cws_lock_take(&lock);
    struct plain *p = cws_map_put(&sizes, key);
    if (p)
        *p = (struct plain){bytes, gpu};
    atomic_store(&live, sizes.count);
    cws_lock_drop(&lock);
    return p != NULL;
}

size_t cws_cuda_plain_forget(unsigned long long key, struct cws_gpu **out_gpu)
{
    size_t bytes = 0;
    if (!atomic_load_explicit(&live, memory_order_relaxed))
        return 0;
    cws_lock_take(&lock);
    const struct plain *p = cws_map_find(&sizes, key);
    if (p) {
        bytes = p->bytes;
        *out_gpu = p->gpu;
        cws_map_remove(&sizes, key);
        atomic_store(&live, sizes.count);
    }
    cws_lock_drop(&lock);
    return bytes;
}

static bool is_of(uint64_t key, void *value, void *gpu)
{
    (void)key;
    return ((const struct plain *)value)->gpu == gpu;
}

void cws_cuda_plain_forget_manager(struct cws_gpu *gpu)
{
    cws_lock_take(&lock);
    cws_map_remove_if(&sizes, is_of, gpu);
    atomic_store(&live, sizes.count);
    cws_lock_drop(&lock);
}
