/* alloc.c - allocations of device memory. Ordered ones of CWS_GPU_RANGE_MIN and more are ranges of the manager. All
 * others are the driver's own and are counted; small ordered ones are kept when they are freed (small.c). */
#include "capture.h"
#include "plain.h"
#include "small.h"
#include "use.h"
#include "shim/say.h"
#include "shim/libc/stores.h"
#include "store/base/lock.h"

/* --- plain memory ---------------------------------------------------------------------------------- */

/* `bytes` are about to be taken from the driver. *gpu NULL: nobody counts. */
static CUresult prepare(size_t bytes, struct cws_gpu **gpu)
{
    CUresult result;
    *gpu = cws_cuda_manager(&result);
    return *gpu ? cws_gpu_make_room(*gpu, bytes) : result;
}

/* `taken` of the `bytes` were, or none where the call failed. */
static void settle(struct cws_gpu *gpu, CUresult result, unsigned long long key, size_t bytes, size_t taken)
{
    if (gpu)
        cws_gpu_room_used(gpu, bytes, result == CUDA_SUCCESS && cws_cuda_plain_note(key, taken, gpu) ? taken : 0);
}

static void forget(unsigned long long key)
{
    struct cws_gpu *gpu = NULL;
    size_t bytes = cws_cuda_plain_forget(key, &gpu);
    if (bytes)
        cws_gpu_plain_freed(gpu, bytes);
}

/* A large plain allocation that does not fit is most likely PyTorch's own allocator. */
static CUresult explain_plain(CUresult result, size_t bytes)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (result == CUDA_ERROR_OUT_OF_MEMORY && bytes >= CWS_GPU_RANGE_MIN && !atomic_flag_test_and_set(&said))
        cws_shim_say(
            "memory from cuMemAlloc cannot be paged: PyTorch's weights are, with its allocator backend:cudaMallocAsync "
            "(PYTORCH_ALLOC_CONF; the codecllm Python package and `codecllm run` set it)");
    return result;
}

CUresult cws_do_cuMemAlloc_v2(cws_fn_cuMemAlloc_v2 real, CUstream own, CUdeviceptr *out, size_t bytes)
{
    struct cws_gpu *gpu;
    (void)own;
    CUresult result = prepare(bytes, &gpu);
    if (result != CUDA_SUCCESS)
        return explain_plain(result, bytes);
    result = real(out, bytes);
    settle(gpu, result, result == CUDA_SUCCESS ? *out : 0, bytes, bytes);
    return result;
}

CUresult cws_do_cuMemAllocPitch_v2(cws_fn_cuMemAllocPitch_v2 real, CUstream own, CUdeviceptr *out, size_t *pitch,
                                   size_t width, size_t height, unsigned element)
{
    struct cws_gpu *gpu;
    (void)own;
    size_t padded = (width + 511) & ~(size_t)511, bytes;
    if (__builtin_mul_overflow(padded, height, &bytes))
        return real(out, pitch, width, height, element);
    CUresult result = prepare(bytes, &gpu);
    if (result != CUDA_SUCCESS)
        return explain_plain(result, bytes);
    result = real(out, pitch, width, height, element);
    settle(gpu, result, result == CUDA_SUCCESS ? *out : 0, bytes, result == CUDA_SUCCESS ? *pitch * height : 0);
    return result;
}

/* Counted as if it were on the device all the time: it may be. */
CUresult cws_do_cuMemAllocManaged(cws_fn_cuMemAllocManaged real, CUstream own, CUdeviceptr *out, size_t bytes,
                                  unsigned flags)
{
    struct cws_gpu *gpu;
    (void)own;
    CUresult result = prepare(bytes, &gpu);
    if (result != CUDA_SUCCESS)
        return explain_plain(result, bytes);
    result = real(out, bytes, flags);
    settle(gpu, result, result == CUDA_SUCCESS ? *out : 0, bytes, bytes);
    return result;
}

CUresult cws_do_cuMemFree_v2(cws_fn_cuMemFree_v2 real, CUstream own, CUdeviceptr address)
{
    struct cws_gpu *gpu = cws_cuda_owner(address);
    if (gpu)
        return cws_gpu_free(gpu, address, own, /* in_order */ false);
    if (cws_cuda_small_free(address, own, /* may_keep */ false, NULL) == CWS_CUDA_SMALL_FREED_TWICE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = real(address);
    if (result == CUDA_SUCCESS)
        forget(address);
    return result;
}

/* --- ordered memory -------------------------------------------------------------------------------- */

static CUresult alloc_range(struct cws_gpu *gpu, CUdeviceptr *out, size_t bytes, CUstream stream)
{
    CUresult result = cws_gpu_alloc_loading(gpu, bytes, cws_stores_unbound_bytes(), stream, out);
    if (result == CUDA_SUCCESS)
        cws_cuda_note_range(*out, bytes);
    return result;
}

CUresult cws_do_cuMemAllocAsync(cws_fn_cuMemAllocAsync real, CUstream own, CUdeviceptr *out, size_t bytes,
                                CUstream stream)
{
    CUresult result;
    if (cws_cuda_is_capturing(cws_cuda_stream(stream, own)))
        return real(out, bytes, stream);
    struct cws_gpu *gpu = cws_cuda_manager(&result);
    if (!gpu)
        return result == CUDA_SUCCESS ? real(out, bytes, stream) : result;
    if (bytes >= CWS_GPU_RANGE_MIN && out)
        return alloc_range(gpu, out, bytes, cws_cuda_stream(stream, own));
    if (bytes && out)
        return cws_cuda_small_alloc(real, gpu, out, bytes, stream, cws_cuda_stream(stream, own));
    return real(out, bytes, stream);
}

/* Pools whose memory can be shared with other processes, and those made elsewhere, have to be the driver's. */
static struct {
    CUmemoryPool pool;
    struct cws_gpu *gpu;
} pools[64];
static struct cws_lock pools_lock = CWS_LOCK_OF(CWS_RANK_CUDA_POOLS);

static void note_pool(CUmemoryPool pool, struct cws_gpu *gpu)
{
    cws_lock_take(&pools_lock);
    for (unsigned i = 0; i < sizeof pools / sizeof *pools; i++) {
        if (!pools[i].pool) {
            pools[i].pool = pool;
            pools[i].gpu = gpu;
            break;
        }
    }
    cws_lock_drop(&pools_lock);
}

static bool is_ordinary_pool(CUmemoryPool pool, struct cws_gpu *gpu)
{
    bool found = false;
    CUdevice device;
    CUmemoryPool current = NULL, usual = NULL;
    cws_lock_take(&pools_lock);
    for (unsigned i = 0; i < sizeof pools / sizeof *pools && !found; i++)
        found = pools[i].pool == pool && pools[i].gpu == gpu;
    cws_lock_drop(&pools_lock);
    if (found)
        return true;
    const struct cws_driver *d = cws_cuda_driver();
    return d->context_device(&device) == CUDA_SUCCESS && d->device_pool(&current, device) == CUDA_SUCCESS &&
           d->device_default_pool(&usual, device) == CUDA_SUCCESS && (pool == current || pool == usual);
}

CUresult cws_do_cuMemAllocFromPoolAsync(cws_fn_cuMemAllocFromPoolAsync real, CUstream own, CUdeviceptr *out,
                                        size_t bytes, CUmemoryPool pool, CUstream stream)
{
    CUresult result;
    if (cws_cuda_is_capturing(cws_cuda_stream(stream, own)))
        return real(out, bytes, pool, stream);
    struct cws_gpu *gpu = cws_cuda_manager(&result);
    if (!gpu)
        return result == CUDA_SUCCESS ? real(out, bytes, pool, stream) : result;
    if (bytes >= CWS_GPU_RANGE_MIN && out && is_ordinary_pool(pool, gpu))
        return alloc_range(gpu, out, bytes, cws_cuda_stream(stream, own));
    size_t room;
    result = cws_gpu_pool_room(gpu, pool, bytes, &room);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(out, bytes, pool, stream);
    cws_gpu_pool_used(gpu, room);
    return result;
}

CUresult cws_do_cuMemFreeAsync(cws_fn_cuMemFreeAsync real, CUstream own, CUdeviceptr address, CUstream stream)
{
    CUstream order = cws_cuda_stream(stream, own);
    struct cws_gpu *gpu = cws_cuda_owner(address);
    bool captures = cws_cuda_is_capturing(order);
    if (gpu) /* a graph can free only what it allocated */
        return captures ? CUDA_ERROR_INVALID_VALUE : cws_gpu_free(gpu, address, order, /* in_order */ true);
    bool several = atomic_load_explicit(&cws_cuda_device_count, memory_order_relaxed) > 1;
    enum cws_cuda_small_end end = cws_cuda_small_free(address, order, !captures,
                                                      several ? cws_cuda_manager_if_open() : NULL);
    if (end != CWS_CUDA_SMALL_NOT_OURS)
        return end == CWS_CUDA_SMALL_KEPT ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    CUresult result = real(address, stream);
    if (result == CUDA_SUCCESS)
        forget(address);
    return result;
}

CUresult cws_do_cuMemPoolCreate(cws_fn_cuMemPoolCreate real, CUstream own, CUmemoryPool *out,
                                const CUmemPoolProps *props)
{
    CUresult result, made;
    (void)own;
    struct cws_gpu *gpu = cws_cuda_manager(&result);
    made = real(out, props);
    if (made != CUDA_SUCCESS || !gpu || props->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return made;
    cws_gpu_pool_seen(gpu, *out);
    if (props->handleTypes == CU_MEM_HANDLE_TYPE_NONE)
        note_pool(*out, gpu);
    return made;
}

CUresult cws_do_cuMemPoolDestroy(cws_fn_cuMemPoolDestroy real, CUstream own, CUmemoryPool pool)
{
    (void)own;
    unsigned count = atomic_load(&cws_cuda_device_count);
    cws_lock_take(&pools_lock);
    for (unsigned i = 0; i < sizeof pools / sizeof *pools; i++)
        if (pools[i].pool == pool)
            pools[i].pool = NULL;
    cws_lock_drop(&pools_lock);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (gpu) {
            cws_cuda_small_release(gpu);
            cws_gpu_pool_gone(gpu, pool);
        }
    }
    return real(pool);
}

CUresult cws_do_cuMemPoolTrimTo(cws_fn_cuMemPoolTrimTo real, CUstream own, CUmemoryPool pool, size_t keep)
{
    (void)own;
    struct cws_gpu *gpu = cws_cuda_manager_if_open();
    if (gpu)
        cws_cuda_small_release(gpu);
    if (gpu && is_ordinary_pool(pool, gpu))
        cws_gpu_trim(gpu, keep);
    CUresult result = real(pool, keep);
    if (gpu)
        cws_gpu_pools_changed(gpu);
    return result;
}

/* --- other memory ---------------------------------------------------------------------------------- */

CUresult cws_do_cuMemCreate(cws_fn_cuMemCreate real, CUstream own, CUmemGenericAllocationHandle *out, size_t bytes,
                            const CUmemAllocationProp *prop, unsigned long long flags)
{
    struct cws_gpu *gpu;
    (void)own;
    if (!prop || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return real(out, bytes, prop, flags);
    CUresult result = prepare(bytes, &gpu);
    if (result != CUDA_SUCCESS)
        return explain_plain(result, bytes);
    result = real(out, bytes, prop, flags);
    settle(gpu, result, result == CUDA_SUCCESS ? *out : 0, bytes, bytes);
    return result;
}

CUresult cws_do_cuMemRelease(cws_fn_cuMemRelease real, CUstream own, CUmemGenericAllocationHandle handle)
{
    (void)own;
    CUresult result = real(handle);
    if (result == CUDA_SUCCESS)
        forget(handle);
    return result;
}

static size_t element_bytes(CUarray_format format, unsigned channels)
{
    size_t each = 4; /* unknown ones, too: compressed formats are smaller */
    if (format == 0x01 || format == 0x08)
        each = 1;
    else if (format == 0x02 || format == 0x09 || format == 0x10)
        each = 2;
    return each * (channels ? channels : 1);
}

static size_t at_least_one(size_t n) { return n ? n : 1; }

static size_t box_bytes(const CUDA_ARRAY3D_DESCRIPTOR *s)
{
    return s->Width * at_least_one(s->Height) * at_least_one(s->Depth) * element_bytes(s->Format, s->NumChannels);
}

CUresult cws_do_cuArrayCreate_v2(cws_fn_cuArrayCreate_v2 real, CUstream own, CUarray *out,
                                 const CUDA_ARRAY_DESCRIPTOR *shape)
{
    struct cws_gpu *gpu;
    (void)own;
    size_t bytes = shape ? shape->Width * at_least_one(shape->Height) * element_bytes(shape->Format, shape->NumChannels)
                         : 0;
    CUresult result = prepare(bytes, &gpu);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(out, shape);
    settle(gpu, result, result == CUDA_SUCCESS ? (uintptr_t)*out : 0, bytes, bytes);
    return result;
}

CUresult cws_do_cuArray3DCreate_v2(cws_fn_cuArray3DCreate_v2 real, CUstream own, CUarray *out,
                                   const CUDA_ARRAY3D_DESCRIPTOR *shape)
{
    struct cws_gpu *gpu;
    (void)own;
    size_t bytes = shape ? box_bytes(shape) : 0;
    CUresult result = prepare(bytes, &gpu);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(out, shape);
    settle(gpu, result, result == CUDA_SUCCESS ? (uintptr_t)*out : 0, bytes, bytes);
    return result;
}

CUresult cws_do_cuArrayDestroy(cws_fn_cuArrayDestroy real, CUstream own, CUarray array)
{
    (void)own;
    CUresult result = real(array);
    if (result == CUDA_SUCCESS)
        forget((uintptr_t)array);
    return result;
}

CUresult cws_do_cuMipmappedArrayCreate(cws_fn_cuMipmappedArrayCreate real, CUstream own, CUmipmappedArray *out,
                                       const CUDA_ARRAY3D_DESCRIPTOR *shape, unsigned levels)
{
    struct cws_gpu *gpu;
    (void)own;
    size_t bytes = shape ? box_bytes(shape) : 0;
    bytes += levels > 1 ? bytes / 2 : 0; /* all smaller levels together: at most so much */
    CUresult result = prepare(bytes, &gpu);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(out, shape, levels);
    settle(gpu, result, result == CUDA_SUCCESS ? (uintptr_t)*out : 0, bytes, bytes);
    return result;
}

CUresult cws_do_cuMipmappedArrayDestroy(cws_fn_cuMipmappedArrayDestroy real, CUstream own, CUmipmappedArray array)
{
    (void)own;
    CUresult result = real(array);
    if (result == CUDA_SUCCESS)
        forget((uintptr_t)array);
    return result;
}
