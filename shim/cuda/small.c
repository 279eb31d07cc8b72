/* small.c - the cache of small allocations: ordered ones below CWS_GPU_RANGE_MIN. One that a stream freed is kept, and
 * the next one of its size on that stream gets it. Stream order makes that right, and no call goes to the driver, whose
 * locks the loader holds while it maps and unmaps. A model's step makes some thousands of such allocations. */
#include "capture.h"
#include "small.h"
#include "store/base/lock.h"
#include "store/base/map.h"

#include <stdlib.h>

enum {
    UNIT = 512, /* bytes; sizes are multiples of it up to FINE, then eight to a power of two */
    FINE_LOG = 12,
    FINE = 1 << FINE_LOG,
    MOST_LOG = 20,
    CLASSES = FINE / UNIT + 8 * (MOST_LOG - FINE_LOG),
    STREAMS = 16,        /* with kept blocks; those of others go back to the driver */
    KEPT_MOST = 8 << 20, /* bytes for a stream */
};
_Static_assert(CWS_GPU_RANGE_MIN == 1u << MOST_LOG, "the largest class ends there");

struct block { /* that the driver gave out through cws_cuda_small_alloc and did not get back */
    CUdeviceptr at;
    struct cws_gpu *gpu;
    unsigned class;
    bool kept;          /* the program has freed it; in the list of its class */
    struct block *next; /* in the list */
};

struct place {
    struct cws_gpu *gpu; /* NULL: free place */
    CUstream stream;
    uint64_t kept_bytes;
    struct block *lists[CLASSES];
};

static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_CUDA_SMALL);
static struct cws_map blocks = CWS_MAP_OF(struct block *);
static struct place places[STREAMS];

static unsigned class_of(size_t bytes)
{
    if (bytes <= FINE)
        return (unsigned)((bytes - 1) / UNIT);
    unsigned log = 63 - (unsigned)__builtin_clzll(bytes - 1);
    return FINE / UNIT + 8 * (log - FINE_LOG) + (unsigned)(((bytes - 1) >> (log - 3)) - 8);
}

static size_t class_bytes(unsigned class)
{
    if (class < FINE / UNIT)
        return (class + 1) * (size_t)UNIT;
    unsigned beyond = class - FINE / UNIT;
    return (size_t)(9 + beyond % 8) << (beyond / 8 + FINE_LOG - 3);
}

/* No block is kept for CU_STREAM_PER_THREAD, which is another stream in each thread. */
static bool can_keep(CUstream stream) { return stream != CU_STREAM_PER_THREAD; }
static CUstream same_name(CUstream stream) { return stream == CU_STREAM_LEGACY ? NULL : stream; }

/* --- blocks ---------------------------------------------------------------------------------------- */

static struct block *find_locked(CUdeviceptr at)
{
    struct block **b = cws_map_find(&blocks, at);
    return b ? *b : NULL;
}

static void note(struct cws_gpu *gpu, CUdeviceptr at, unsigned class)
{
    struct block *b = calloc(1, sizeof *b);
    cws_lock_take(&lock);
    struct block **known = b ? cws_map_put(&blocks, at) : NULL;
    if (known && !*known) {
        *known = b;
        b = NULL;
    }
    if (known && !(*known)->kept) /* one that was known was freed past us */
        **known = (struct block){.at = at, .gpu = gpu, .class = class};
    cws_lock_drop(&lock);
    free(b); /* what is not known here is freed by the driver */
}

static void end_locked(struct block *b)
{
    cws_map_remove(&blocks, b->at);
    free(b);
}

/* --- streams --------------------------------------------------------------------------------------- */

static struct place *place_locked(const struct cws_gpu *gpu, CUstream stream)
{
    for (unsigned i = 0; i < STREAMS; i++)
        if (places[i].gpu == gpu && places[i].stream == stream)
            return &places[i];
    return NULL;
}

static struct place *new_place_locked(struct cws_gpu *gpu, CUstream stream)
{
    for (unsigned i = 0; i < STREAMS; i++) {
        if (!places[i].gpu || !places[i].kept_bytes) {
            places[i].gpu = gpu;
            places[i].stream = stream;
            return &places[i];
        }
    }
    return NULL;
}

static CUdeviceptr take(struct cws_gpu *gpu, CUstream stream, unsigned class)
{
    CUdeviceptr at = 0;
    cws_lock_take(&lock);
    struct place *p = place_locked(gpu, stream);
    struct block *b = p ? p->lists[class] : NULL;
    if (b) {
        p->lists[class] = b->next;
        p->kept_bytes -= class_bytes(class);
        b->kept = false;
        at = b->at;
    }
    cws_lock_drop(&lock);
    return at;
}

/* --- the program's calls --------------------------------------------------------------------------- */

CUresult cws_cuda_small_alloc(cws_fn_cuMemAllocAsync real, struct cws_gpu *gpu, CUdeviceptr *out, size_t bytes,
                              CUstream stream, CUstream order)
{
    unsigned class = class_of(bytes);
    CUdeviceptr at = can_keep(order) ? take(gpu, same_name(order), class) : 0;
    if (at) {
        *out = at;
        return CUDA_SUCCESS;
    }
    size_t room;
    CUresult result = cws_gpu_pool_room(gpu, NULL, class_bytes(class), &room);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(out, class_bytes(class), stream);
    cws_gpu_pool_used(gpu, room);
    if (result == CUDA_SUCCESS)
        note(gpu, *out, class);
    return result;
}

enum cws_cuda_small_end cws_cuda_small_free(CUdeviceptr at, CUstream order, bool may_keep,
                                            const struct cws_gpu *current)
{
    enum cws_cuda_small_end end = CWS_CUDA_SMALL_NOT_OURS;
    order = same_name(order);
    cws_lock_take(&lock);
    struct block *b = find_locked(at);
    if (b && b->kept) {
        end = CWS_CUDA_SMALL_FREED_TWICE;
    } else if (b) {
        bool keep = may_keep && can_keep(order) && (!current || current == b->gpu);
        struct place *p = keep ? place_locked(b->gpu, order) : NULL;
        if (!p && keep)
            p = new_place_locked(b->gpu, order);
        if (p && p->kept_bytes + class_bytes(b->class) <= KEPT_MOST) {
            p->kept_bytes += class_bytes(b->class);
            b->kept = true;
            b->next = p->lists[b->class];
            p->lists[b->class] = b;
            end = CWS_CUDA_SMALL_KEPT;
        } else {
            end_locked(b);
        }
    }
    cws_lock_drop(&lock);
    return end;
}

/* --- back to the driver ---------------------------------------------------------------------------- */

/* Gives back all blocks kept for the stream. If the stream is idle, the driver has them when this returns. */
static void empty(struct place *p, CUstream stream)
{
    bool rests = CWS_CUDA_REAL(cuStreamQuery)(stream) == CUDA_SUCCESS;
    for (unsigned class = 0; class < CLASSES; class ++) {
        for (;;) {
            CUdeviceptr at = 0;
            cws_lock_take(&lock);
            /* the place may have another one by now */
            struct block *b = p->stream == stream ? p->lists[class] : NULL;
            if (b) {
                at = b->at;
                p->lists[class] = b->next;
                p->kept_bytes -= class_bytes(class);
                end_locked(b);
            }
            cws_lock_drop(&lock);
            if (!at)
                break;
            /* an error is the context's, and every call says it */
            (void)CWS_CUDA_REAL(cuMemFreeAsync)(at, stream);
        }
    }
    if (rests)
        (void)CWS_CUDA_REAL(cuStreamSynchronize)(stream);
}

void cws_cuda_small_stream_gone(CUstream stream)
{
    if (cws_cuda_is_capturing(stream))
        return; /* its blocks come back with the process: nothing can be queued on it any more */
    for (unsigned i = 0; i < STREAMS; i++) {
        cws_lock_take(&lock);
        bool found = places[i].gpu && places[i].stream == stream;
        cws_lock_drop(&lock);
        if (found)
            empty(&places[i], stream);
    }
}

void cws_cuda_small_release(const struct cws_gpu *gpu)
{
    /* nothing may be queued, or not on every stream */
    if (atomic_load_explicit(&cws_cuda_captures, memory_order_relaxed))
        return;
    for (unsigned i = 0; i < STREAMS; i++) {
        cws_lock_take(&lock);
        CUstream stream = places[i].stream;
        bool found = places[i].gpu == gpu && places[i].kept_bytes;
        cws_lock_drop(&lock);
        if (found)
            empty(&places[i], stream);
    }
}

static bool ends_with(uint64_t key, void *value, void *gpu)
{
    (void)key;
    struct block *b = *(struct block **)value;
    bool ends = b->gpu == gpu;
    if (ends)
        free(b);
    return ends;
}

void cws_cuda_small_forget_manager(struct cws_gpu *gpu)
{
    cws_lock_take(&lock);
    cws_map_remove_if(&blocks, ends_with, gpu);
    for (unsigned i = 0; i < STREAMS; i++)
        if (places[i].gpu == gpu)
            places[i] = (struct place){0};
    cws_lock_drop(&lock);
}
