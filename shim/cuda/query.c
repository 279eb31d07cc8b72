/* query.c - answers about paged device memory and its pointers, and refusals to share it or to pin views. */
#include "uvm/host/view.h"
#include "device.h"
#include "shim/say.h"
#include "shim/libc/stores.h"

#include <string.h>

CUresult cws_do_cuMemGetInfo_v2(cws_fn_cuMemGetInfo_v2 real, CUstream own, size_t *free_bytes, size_t *total_bytes)
{
    CUresult result;
    (void)own;
    struct cws_gpu *gpu = cws_cuda_manager(&result);
    if (!gpu || !free_bytes || !total_bytes)
        return real(free_bytes, total_bytes);
    cws_gpu_mem_info(gpu, cws_stores_unbound_bytes(), free_bytes, total_bytes);
    return CUDA_SUCCESS;
}

/* --- pointers -------------------------------------------------------------------------------------- */

struct extent {
    CUdeviceptr base;
    size_t bytes;
    const struct cws_cuda_device *device;
};

/* Does the address lie in a range? */
static bool find_extent(CUdeviceptr address, struct extent *out)
{
    struct cws_gpu *gpu = cws_cuda_owner(address);
    if (!gpu || !cws_gpu_extent(gpu, address, &out->base, &out->bytes))
        return false;
    for (unsigned i = 0; i < CWS_CUDA_DEVICES; i++) {
        if (atomic_load(&cws_cuda_devices[i].gpu) == gpu) {
            out->device = &cws_cuda_devices[i];
            return true;
        }
    }
    return false;
}

/* As the driver answers for memory of a pool. Flags are one byte: callers pass a bool or a zeroed integer. */
static CUresult answer(void *data, CUpointer_attribute which, CUdeviceptr address, const struct extent *e)
{
    unsigned long long wide = 0;
    unsigned narrow = 0;
    switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: wide = (uintptr_t)atomic_load(&e->device->context); break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: wide = address; break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR: wide = e->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE: wide = e->bytes; break;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        wide = which == CU_POINTER_ATTRIBUTE_ACCESS_FLAGS ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : 0;
        break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: {
        CUmemoryPool pool = NULL;
        CUresult result = cws_cuda_driver()->device_pool(&pool, e->device->ordinal);
        if (result != CUDA_SUCCESS)
            return result;
        wide = (uintptr_t)pool;
        break;
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        narrow = CU_MEMORYTYPE_DEVICE;
        memcpy(data, &narrow, sizeof narrow);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        memcpy(data, &e->device->ordinal, sizeof e->device->ordinal);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE: *(unsigned char *)data = 0; return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED: *(unsigned char *)data = 1; return CUDA_SUCCESS;
    default: /* a host pointer, tokens: device memory has none */ return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(data, &wide, sizeof wide);
    return CUDA_SUCCESS;
}

CUresult cws_do_cuPointerGetAttribute(cws_fn_cuPointerGetAttribute real, CUstream own, void *data,
                                      CUpointer_attribute which, CUdeviceptr address)
{
    struct extent e;
    (void)own;
    if (!data || !find_extent(address, &e))
        return real(data, which, address);
    return answer(data, which, address, &e);
}

/* This call gives NULL for attributes that do not apply, and succeeds. */
CUresult cws_do_cuPointerGetAttributes(cws_fn_cuPointerGetAttributes real, CUstream own, unsigned count,
                                       CUpointer_attribute *which, void **data, CUdeviceptr address)
{
    struct extent e;
    (void)own;
    if (!which || !data || !find_extent(address, &e))
        return real(count, which, data, address);
    for (unsigned i = 0; i < count; i++) {
        CUresult result = answer(data[i], which[i], address, &e);
        if (result == CUDA_ERROR_INVALID_VALUE && which[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER)
            memset(data[i], 0, sizeof(void *));
        else if (result != CUDA_SUCCESS)
            return result;
    }
    return CUDA_SUCCESS;
}

CUresult cws_do_cuMemGetAddressRange_v2(cws_fn_cuMemGetAddressRange_v2 real, CUstream own, CUdeviceptr *base,
                                        size_t *bytes, CUdeviceptr address)
{
    struct extent e;
    (void)own;
    if (!find_extent(address, &e))
        return real(base, bytes, address);
    if (base)
        *base = e.base;
    if (bytes)
        *bytes = e.bytes;
    return CUDA_SUCCESS;
}

/* --- what cannot be had ------------------------------------------------------------------------------ */

/* Memory that another process, or another mapping, can reach must not move away under it. */
static CUresult refuse_export(const char *how)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&said))
        cws_shim_say(
            "%s: memory of 1 MiB and more is paged and cannot be shared with another process or device; run without "
            "CODEC_VRAM_BUDGET for that",
            how);
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cws_do_cuIpcGetMemHandle(cws_fn_cuIpcGetMemHandle real, CUstream own, CUipcMemHandle *out, CUdeviceptr address)
{
    (void)own;
    return cws_cuda_owner(address) ? refuse_export("cuIpcGetMemHandle") : real(out, address);
}

CUresult cws_do_cuMemGetHandleForAddressRange(cws_fn_cuMemGetHandleForAddressRange real, CUstream own, void *out,
                                              CUdeviceptr address, size_t bytes, CUmemRangeHandleType type,
                                              unsigned long long flags)
{
    (void)own;
    return cws_cuda_owner(address) ? refuse_export("cuMemGetHandleForAddressRange")
                                   : real(out, address, bytes, type, flags);
}

CUresult cws_do_cuMemRetainAllocationHandle(cws_fn_cuMemRetainAllocationHandle real, CUstream own,
                                            CUmemGenericAllocationHandle *out, void *address)
{
    (void)own;
    return cws_cuda_owner((uintptr_t)address) ? refuse_export("cuMemRetainAllocationHandle") : real(out, address);
}

/* Pages of a view that the device reads by itself would be dropped and read again elsewhere. */
CUresult cws_do_cuMemHostRegister_v2(cws_fn_cuMemHostRegister_v2 real, CUstream own, void *memory, size_t bytes,
                                     unsigned flags)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    (void)own;
    if (!cws_view_overlaps(memory, bytes))
        return real(memory, bytes, flags);
    if (!atomic_flag_test_and_set(&said))
        cws_shim_say("memory of a mapped store cannot be pinned (cuMemHostRegister); copy it first");
    return CUDA_ERROR_NOT_SUPPORTED;
}
