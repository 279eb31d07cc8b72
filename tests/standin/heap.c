/* heap.c - cuMemAlloc, and the stream-ordered pools. A heap is chunks of whole granules, each cut into blocks. The
 * plain heap gives a chunk back when it is empty; a pool keeps it until it is trimmed or a wait finds it above the
 * threshold. */
#include "state.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_ALIGN 512

struct block *block_at_locked(CUdeviceptr address)
{
    struct mapping *mapping = mapping_at_locked(address);
    if (!mapping || !mapping->chunk)
        return NULL;
    for (struct block *block = mapping->chunk->first; block; block = block->next)
        if (address >= block->at && address - block->at < block->bytes)
            return block->state == BLOCK_USED ? block : NULL;
    return NULL;
}

static void chunk_free_locked(struct chunk *chunk)
{
    struct CUmemPoolHandle_st *heap = chunk->heap;
    struct chunk **link = &heap->chunks;
    while (*link != chunk)
        link = &(*link)->next;
    *link = chunk->next;
    heap->reserved -= chunk->bytes;
    mapping_remove_locked(chunk->begin);
    addresses_give_locked(chunk->begin);
    while (chunk->first) {
        struct block *block = chunk->first;
        chunk->first = block->next;
        if (block->state == BLOCK_FREEING)
            stream_reference_drop_locked(block->stream);
        free(block);
    }
    free(chunk);
}

static bool chunk_empty(const struct chunk *chunk) { return !chunk->first->next && chunk->first->state == BLOCK_FREE; }

void heap_trim_locked(struct CUmemPoolHandle_st *heap, uint64_t keep)
{
    for (struct chunk *chunk = heap->chunks, *next; chunk && heap->reserved > keep; chunk = next) {
        next = chunk->next;
        if (chunk_empty(chunk))
            chunk_free_locked(chunk);
    }
}

void heaps_synchronised_locked(void)
{
    struct CUmemPoolHandle_st *pool;
    for (size_t i = 0; (pool = object_index_locked(OBJECT_POOL, i)) != NULL; i++)
        heap_trim_locked(pool, pool->threshold);
}

static struct chunk *chunk_create_locked(struct CUmemPoolHandle_st *heap, size_t bytes)
{
    bytes = (bytes + STANDIN_GRANULE - 1) & ~(STANDIN_GRANULE - 1);
    CUdeviceptr begin = addresses_take_locked(bytes, 0, 0, true);
    struct piece *piece = begin ? piece_create_locked(bytes, heap->device) : NULL;
    if (!piece) {
        addresses_give_locked(begin);
        return NULL;
    }
    struct chunk *chunk = take_memory(sizeof *chunk);
    chunk->begin = begin;
    chunk->bytes = bytes;
    chunk->piece = piece;
    chunk->heap = heap;
    chunk->next = heap->chunks;
    heap->chunks = chunk;
    mapping_add_locked(begin, piece, 0, bytes, chunk);
    mapping_access_locked(mapping_at_locked(begin), heap->device, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    chunk->first = take_memory(sizeof *chunk->first);
    chunk->first->at = begin;
    chunk->first->bytes = bytes;
    chunk->first->chunk = chunk;
    heap->reserved += bytes;
    if (heap->reserved > heap->reserved_high)
        heap->reserved_high = heap->reserved;
    return chunk;
}

static void block_split(struct block *block, size_t bytes)
{
    if (block->bytes == bytes)
        return;
    struct block *rest = take_memory(sizeof *rest);
    rest->at = block->at + bytes;
    rest->bytes = block->bytes - bytes;
    rest->chunk = block->chunk;
    rest->prev = block;
    rest->next = block->next;
    if (rest->next)
        rest->next->prev = rest;
    block->next = rest;
    block->bytes = bytes;
}

/* The smallest free block that fits; or one that `stream` itself has queued to be freed; or, if `any`, one that another
 * stream has. */
static struct block *block_find(struct CUmemPoolHandle_st *heap, size_t bytes, const struct CUstream_st *stream,
                                bool any)
{
    struct block *best = NULL;
    for (struct chunk *chunk = heap->chunks; chunk; chunk = chunk->next)
        for (struct block *block = chunk->first; block; block = block->next) {
            bool usable = block->state == BLOCK_FREE ? block->bytes >= bytes
                                                     : block->state == BLOCK_FREEING && block->bytes == bytes &&
                                                           stream && (any || block->stream == stream);
            if (usable && (!best || block->bytes < best->bytes))
                best = block;
        }
    return best;
}

static struct block *block_use(struct CUmemPoolHandle_st *heap, struct block *block, size_t asked, size_t bytes,
                               struct CUstream_st *stream)
{
    if (block->state == BLOCK_FREEING) {
        if (block->stream != stream)
            stream_depend_locked(stream, block->stream, block->sequence);
        stream_reference_drop_locked(block->stream);
        block->stream = NULL;
        heap->used -= block->bytes; /* the free's operation will find the block taken and leave it */
        heap->used_blocks--;
    } else {
        block_split(block, bytes);
    }
    block->state = BLOCK_USED;
    block->asked = asked;
    heap->used += block->bytes;
    heap->used_blocks++;
    if (heap->used > heap->used_high)
        heap->used_high = heap->used;
    return block;
}

struct block *heap_take_locked(struct CUmemPoolHandle_st *heap, size_t asked, struct CUstream_st *stream)
{
    if (asked > standin.device_bytes)
        return NULL;
    size_t bytes = (asked + BLOCK_ALIGN - 1) & ~(size_t)(BLOCK_ALIGN - 1);
    struct block *block = block_find(heap, bytes, stream, false);
    struct chunk *chunk = NULL;
    if (!block) {
        chunk = chunk_create_locked(heap, bytes);
        if (!chunk) {
            heap_trim_locked(heap, 0);
            chunk = chunk_create_locked(heap, bytes);
        }
        block = chunk ? chunk->first : block_find(heap, bytes, stream, true);
    }
    return block ? block_use(heap, block, asked, bytes, stream) : NULL;
}

static void block_merge_next(struct block *block)
{
    struct block *gone = block->next;
    block->bytes += gone->bytes;
    block->next = gone->next;
    if (block->next)
        block->next->prev = block;
    free(gone);
}

void heap_give_locked(struct block *block)
{
    struct CUmemPoolHandle_st *heap = block->chunk->heap;
    heap->used -= block->bytes;
    heap->used_blocks--;
    block->state = BLOCK_FREE;
    if (block->next && block->next->state == BLOCK_FREE)
        block_merge_next(block);
    if (block->prev && block->prev->state == BLOCK_FREE) {
        block = block->prev;
        block_merge_next(block);
    }
    if (heap == &heap->device->plain && chunk_empty(block->chunk))
        chunk_free_locked(block->chunk);
}

void heap_destroy_locked(struct CUmemPoolHandle_st *heap)
{
    while (heap->chunks)
        chunk_free_locked(heap->chunks);
    heap->used = 0;
    heap->used_blocks = 0;
}

static struct CUmemPoolHandle_st *pool_create_locked(struct device *device)
{
    struct CUmemPoolHandle_st *pool = take_memory(sizeof *pool);
    pool->device = device;
    object_add_locked(OBJECT_POOL, pool);
    return pool;
}

static void pool_free_locked(struct CUmemPoolHandle_st *pool)
{
    heap_destroy_locked(pool);
    object_remove_locked(OBJECT_POOL, pool);
    free(pool);
}

void heaps_begin_locked(struct device *device)
{
    device->plain = device->graph_pool = (struct CUmemPoolHandle_st){.device = device};
    device->default_pool = device->current_pool = pool_create_locked(device);
}

void heaps_end_locked(struct device *device)
{
    heap_destroy_locked(&device->plain);
    heap_destroy_locked(&device->graph_pool);
    struct CUmemPoolHandle_st *pool;
    for (size_t i = 0; (pool = object_index_locked(OBJECT_POOL, i)) != NULL;)
        if (pool->device == device)
            pool_free_locked(pool); /* another one takes its place */
        else
            i++;
    device->default_pool = device->current_pool = NULL;
}

/* ---- The calls. */
static bool is_plain_heap(const struct CUmemPoolHandle_st *heap) { return heap == &heap->device->plain; }
static bool is_graph_heap(const struct CUmemPoolHandle_st *heap) { return heap == &heap->device->graph_pool; }

static CUresult poisoned_locked(const struct block *block)
{
    memset((void *)(uintptr_t)block->at, STANDIN_POISON, block->bytes);
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    ENTER("cuMemAlloc_v2", CALL_CONTEXT | CALL_UNSAFE, bytes, 0);
    if (!address || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    struct block *block = heap_take_locked(&context_handle_locked()->device->plain, bytes, NULL);
    if (!block)
        return unlock(CUDA_ERROR_OUT_OF_MEMORY);
    *address = block->at;
    return unlock(poisoned_locked(block));
}

API cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height, unsigned element)
{
    ENTER("cuMemAllocPitch_v2", CALL_CONTEXT | CALL_UNSAFE, width, height);
    if (!address || !pitch || width == 0 || height == 0 || element == 0)
        return CUDA_ERROR_INVALID_VALUE;
    size_t row = (width + BLOCK_ALIGN - 1) & ~(size_t)(BLOCK_ALIGN - 1);
    CUresult result = cuMemAlloc_v2(address, row * height);
    if (result == CUDA_SUCCESS)
        *pitch = row;
    return result;
}

API cuMemFree_v2(CUdeviceptr address)
{
    ENTER("cuMemFree_v2", CALL_CONTEXT | CALL_UNSAFE, address, 0);
    if (address == 0)
        return CUDA_SUCCESS;
    lock();
    struct block *block = block_at_locked(address);
    if (!block || block->at != address || is_graph_heap(block->chunk->heap))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    CUresult result = streams_wait_locked(NULL);
    block = block_at_locked(address);
    if (result == CUDA_SUCCESS && block)
        heap_give_locked(block);
    return unlock(result);
}

struct block_order {
    CUdeviceptr at;
    size_t bytes;
    const struct CUstream_st *stream;
    uint64_t sequence;
};

static void poison_run(void *data)
{
    const struct block_order *order = data;
    memset((void *)(uintptr_t)order->at, STANDIN_POISON, order->bytes);
}

static CUresult pool_alloc(CUdeviceptr *address, size_t bytes, struct CUmemPoolHandle_st *pool, CUstream handle)
{
    if (!address || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (!pool)
        pool = stream->context->device->current_pool;
    if (!object_is_locked(OBJECT_POOL, pool))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    if (stream->capture)
        return unlock(capture_alloc_locked(stream->capture, bytes, address));
    struct block *block = heap_take_locked(pool, bytes, stream);
    if (!block)
        return unlock(CUDA_ERROR_OUT_OF_MEMORY);
    struct block_order *order = take_memory(sizeof *order);
    order->at = block->at;
    order->bytes = block->bytes;
    *address = block->at;
    return unlock(stream_submit_locked(stream, poison_run, order, NULL, NODE_NONE));
}

API cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream)
{
    ENTER("cuMemAllocAsync", CALL_CONTEXT, bytes, U64(stream));
    return pool_alloc(address, bytes, NULL, stream);
}

API cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream stream)
{
    ENTER("cuMemAllocFromPoolAsync", CALL_CONTEXT, bytes, U64(stream));
    return pool ? pool_alloc(address, bytes, pool, stream) : CUDA_ERROR_INVALID_VALUE;
}

/* In stream order: the block becomes free, unless an allocation of the same stream took it over. */
static void free_run(void *data)
{
    const struct block_order *order = data;
    lock();
    struct mapping *mapping = mapping_at_locked(order->at);
    for (struct block *block = mapping && mapping->chunk ? mapping->chunk->first : NULL; block; block = block->next)
        if (block->at == order->at && block->state == BLOCK_FREEING && block->stream == order->stream &&
            block->sequence == order->sequence) {
            stream_reference_drop_locked(block->stream);
            block->stream = NULL;
            heap_give_locked(block);
            break;
        }
    unlock(0);
}

API cuMemFreeAsync(CUdeviceptr address, CUstream handle)
{
    ENTER("cuMemFreeAsync", CALL_CONTEXT, address, U64(handle));
    if (address == 0)
        return CUDA_SUCCESS;
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture)
        return unlock(capture_owns_locked(stream->capture, address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
    struct block *block = block_at_locked(address);
    if (!block || block->at != address || is_plain_heap(block->chunk->heap) || is_graph_heap(block->chunk->heap))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    struct block_order *order = take_memory(sizeof *order);
    order->at = address;
    order->stream = stream;
    order->sequence = stream->submitted + 1;
    block->state = BLOCK_FREEING;
    block->stream = stream;
    block->sequence = order->sequence;
    stream->references++;
    return unlock(stream_submit_locked(stream, free_run, order, NULL, NODE_NONE));
}

/* ---- Pools. */
struct pool_props { /* the beginning of CUmemPoolProps */
    CUmemAllocationType type;
    CUmemAllocationHandleType handle_types;
    CUmemLocation location;
};

API cuMemPoolCreate(CUmemoryPool *pool, const struct pool_props *props)
{
    ENTER("cuMemPoolCreate", 0, 0, 0);
    struct device *device = props ? device_of(props->location.id) : NULL;
    if (!pool || !device)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *pool = pool_create_locked(device);
    return unlock(CUDA_SUCCESS);
}

API cuMemPoolDestroy(CUmemoryPool pool)
{
    ENTER("cuMemPoolDestroy", 0, U64(pool), 0);
    lock();
    if (!object_is_locked(OBJECT_POOL, pool) || pool == pool->device->default_pool)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    if (pool->used_blocks > 0)
        misuse_locked("a pool was destroyed with allocations in use");
    CUresult result = streams_wait_locked(NULL);
    if (pool->device->current_pool == pool)
        pool->device->current_pool = pool->device->default_pool;
    pool_free_locked(pool);
    return unlock(result);
}

API cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute which, void *value)
{
    ENTER("cuMemPoolGetAttribute", 0, U64(pool), which);
    lock();
    if (!object_is_locked(OBJECT_POOL, pool) || !value)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    switch (which) {
    case 1:
    case 2:
    case 3: *(int *)value = 1; break;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: *(uint64_t *)value = pool->threshold; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: *(uint64_t *)value = pool->reserved; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT + 1: *(uint64_t *)value = pool->reserved_high; break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: *(uint64_t *)value = pool->used; break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT + 1: *(uint64_t *)value = pool->used_high; break;
    default: return unlock(CUDA_ERROR_INVALID_VALUE);
    }
    return unlock(CUDA_SUCCESS);
}

API cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute which, void *value)
{
    ENTER("cuMemPoolSetAttribute", 0, U64(pool), which);
    lock();
    if (!object_is_locked(OBJECT_POOL, pool) || !value)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    CUresult result = CUDA_SUCCESS;
    switch (which) {
    case 1:
    case 2:
    case 3: break;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: pool->threshold = *(uint64_t *)value; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT + 1:
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT + 1: /* high-water marks can only be set to 0 */
        if (*(uint64_t *)value != 0)
            result = CUDA_ERROR_INVALID_VALUE;
        else if (which == CU_MEMPOOL_ATTR_USED_MEM_CURRENT + 1)
            pool->used_high = pool->used;
        else
            pool->reserved_high = pool->reserved;
        break;
    default: result = CUDA_ERROR_INVALID_VALUE;
    }
    return unlock(result);
}

API cuMemPoolTrimTo(CUmemoryPool pool, size_t keep_bytes)
{
    ENTER("cuMemPoolTrimTo", 0, U64(pool), keep_bytes);
    lock();
    if (!object_is_locked(OBJECT_POOL, pool))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    heap_trim_locked(pool, keep_bytes);
    return unlock(CUDA_SUCCESS);
}

API cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice ordinal)
{
    ENTER("cuDeviceGetMemPool", 0, ordinal, 0);
    struct device *device = device_of(ordinal);
    if (!device || !pool)
        return CUDA_ERROR_INVALID_DEVICE;
    lock();
    *pool = device->current_pool;
    return unlock(CUDA_SUCCESS);
}

API cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice ordinal)
{
    ENTER("cuDeviceGetDefaultMemPool", 0, ordinal, 0);
    struct device *device = device_of(ordinal);
    if (!device || !pool)
        return CUDA_ERROR_INVALID_DEVICE;
    lock();
    *pool = device->default_pool;
    return unlock(CUDA_SUCCESS);
}

API cuDeviceSetMemPool(CUdevice ordinal, CUmemoryPool pool)
{
    ENTER("cuDeviceSetMemPool", 0, ordinal, U64(pool));
    struct device *device = device_of(ordinal);
    lock();
    if (!device || !object_is_locked(OBJECT_POOL, pool) || pool->device != device)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    device->current_pool = pool;
    return unlock(CUDA_SUCCESS);
}

API cuDeviceGetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute which, void *value)
{
    ENTER("cuDeviceGetGraphMemAttribute", 0, ordinal, which);
    const struct device *device = device_of(ordinal);
    if (!device || !value || which < 0 || which > 3)
        return device ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_DEVICE;
    lock();
    const struct CUmemPoolHandle_st *pool = &device->graph_pool;
    *(uint64_t *)value = which == 0   ? pool->used
                         : which == 1 ? pool->used_high
                         : which == 2 ? (pool->reserved - device->graph_unseen) / STANDIN_GRANULE * STANDIN_GRANULE
                                      : pool->reserved_high;
    return unlock(CUDA_SUCCESS);
}

API cuDeviceGraphMemTrim(CUdevice ordinal)
{
    ENTER("cuDeviceGraphMemTrim", 0, ordinal, 0);
    struct device *device = device_of(ordinal);
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    lock();
    heap_trim_locked(&device->graph_pool, 0);
    return unlock(CUDA_SUCCESS);
}
