/* device.c - the devices: what they tell of themselves, and their primary contexts. */
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct device *device_of(CUdevice ordinal)
{
    return ordinal >= 0 && (unsigned)ordinal < standin.device_count ? &standin.devices[ordinal] : NULL;
}

CUdevice device_ordinal(const struct device *device) { return (CUdevice)(device - standin.devices); }

void devices_begin_locked(void)
{
    for (unsigned i = 0; i < standin.device_count; i++)
        heaps_begin_locked(&standin.devices[i]);
}

void devices_end_locked(void)
{
    for (unsigned i = 0; i < standin.device_count; i++)
        heaps_end_locked(&standin.devices[i]);
    standin.device_count = 0;
}

/* ---- What they tell. */
API cuDeviceGetCount(int *count)
{
    ENTER("cuDeviceGetCount", CALL_AFTER_ERROR, 0, 0);
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = (int)standin.device_count;
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER("cuDeviceGet", CALL_AFTER_ERROR, ordinal, 0);
    if (!device || !device_of(ordinal))
        return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

API cuDeviceGetName(char *name, int room, CUdevice device)
{
    ENTER("cuDeviceGetName", CALL_AFTER_ERROR, device, room);
    if (!name || room <= 0 || !device_of(device))
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, (size_t)room, "Stand-in for a GPU");
    return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(unsigned char uuid[16], CUdevice device)
{
    ENTER("cuDeviceGetUuid_v2", CALL_AFTER_ERROR, device, 0);
    if (!uuid || !device_of(device))
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(uuid, "standin device 0", 16);
    uuid[15] = (unsigned char)('0' + device);
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    ENTER("cuDeviceTotalMem_v2", CALL_AFTER_ERROR, device, 0);
    if (!bytes || !device_of(device))
        return CUDA_ERROR_INVALID_VALUE;
    *bytes = standin.device_bytes;
    return CUDA_SUCCESS;
}

int device_capability(int which)
{
    int capability[2] = {9, 0};
    const char *text = getenv("STANDIN_CAPABILITY");
    if (text && sscanf(text, "%d.%d", &capability[0], &capability[1]) != 2)
        abort();
    return capability[which];
}

API cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device)
{
    ENTER("cuDeviceGetAttribute", CALL_AFTER_ERROR, which, device);
    static const int VALUES[][2] = {
        {1, 1024},
        {2, 1024},
        {3, 1024},
        {4, 64},
        {5, 2147483647},
        {6, 65535},
        {7, 65535},
        {8, 48 << 10},
        {10, 32},
        {12, 65536},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 4},
        {31, 1},
        {39, 2048},
        {40, 3},
        {41, 1},
        {81, 228 << 10},
        {95, 1},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 227 << 10},
        {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
        {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
    };
    if (!value || which <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_of(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *value = 0;
    for (size_t i = 0; i < sizeof VALUES / sizeof *VALUES; i++)
        if (VALUES[i][0] == which)
            *value = VALUES[i][1];
    if (which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR || which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        *value = device_capability(which - CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    return CUDA_SUCCESS;
}

/* ---- Primary contexts. */
API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice ordinal)
{
    ENTER("cuDevicePrimaryCtxRetain", 0, ordinal, 0);
    struct device *device = device_of(ordinal);
    if (!context || !device)
        return context ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE;
    lock();
    if (!device->primary)
        device->primary = context_add_locked(device, true);
    device->primary_retained++;
    *context = device->primary;
    return unlock(CUDA_SUCCESS);
}

API cuDevicePrimaryCtxRelease_v2(CUdevice ordinal)
{
    ENTER("cuDevicePrimaryCtxRelease_v2", CALL_AFTER_ERROR, ordinal, 0);
    struct device *device = device_of(ordinal);
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    lock();
    if (device->primary_retained == 0)
        return unlock(CUDA_ERROR_INVALID_CONTEXT);
    if (--device->primary_retained == 0)
        context_end_locked(device->primary);
    return unlock(CUDA_SUCCESS);
}

API cuDevicePrimaryCtxReset_v2(CUdevice ordinal)
{
    ENTER("cuDevicePrimaryCtxReset_v2", CALL_AFTER_ERROR, ordinal, 0);
    struct device *device = device_of(ordinal);
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    lock();
    if (device->primary)
        context_end_locked(device->primary);
    return unlock(CUDA_SUCCESS);
}

API cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned *flags, int *active)
{
    ENTER("cuDevicePrimaryCtxGetState", CALL_AFTER_ERROR, ordinal, 0);
    const struct device *device = device_of(ordinal);
    if (!device || !flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *flags = 0;
    *active = device->primary != NULL;
    return unlock(CUDA_SUCCESS);
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags)
{
    ENTER("cuDevicePrimaryCtxSetFlags_v2", CALL_AFTER_ERROR, device, flags);
    return device_of(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
