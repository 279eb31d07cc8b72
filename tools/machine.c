/* machine.c - reads what the machine offers from /proc, the processor and the CUDA driver. The driver is asked by a few
 * calls that every one has: store/base/driver.h refuses one before 12.4, of which doctor is to tell the version. */
#include "store/base/error.h"
#include "machine.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool cws_machine_number(const char *path, uint64_t *out)
{
    char text[64] = "";
    FILE *file = fopen(path, "re");
    bool ok = file && fgets(text, sizeof text, file);
    if (file)
        fclose(file);
    if (!ok)
        return false;
    if (strncmp(text, "max", 3) == 0) {
        *out = UINT64_MAX;
        return true;
    }
    char *end;
    *out = strtoull(text, &end, 10);
    return end != text;
}

bool cws_machine_has_capability(unsigned which)
{
    char text[256];
    unsigned long long effective = 0;
    FILE *file = fopen("/proc/self/status", "re");
    while (file && fgets(text, sizeof text, file))
        if (strncmp(text, "CapEff:", 7) == 0) {
            effective = strtoull(text + 7, NULL, 16);
            break;
        }
    if (file)
        fclose(file);
    return effective >> which & 1;
}

const char *cws_machine_errno_name(int code)
{
    switch (code) {
    case EPERM: return "EPERM";
    case EACCES: return "EACCES";
    case ENOSYS: return "ENOSYS";
    default: return cws_strerror(-code);
    }
}

void cws_machine_cpu_features(char *buf, size_t size)
{
    buf[0] = '\0';
#if defined(__x86_64__)
    __builtin_cpu_init();
    snprintf(buf, size, "%s%s%s%s", __builtin_cpu_supports("avx2") ? "avx2 " : "",
             __builtin_cpu_supports("bmi2") ? "bmi2 " : "", __builtin_cpu_supports("avx512bw") ? "avx512bw " : "",
             __builtin_cpu_supports("avx512vbmi") ? "avx512vbmi " : "");
    size_t len = strlen(buf);
    if (len)
        buf[len - 1] = '\0';
#elif defined(__aarch64__)
    snprintf(buf, size, "neon");
#endif
    if (!buf[0])
        snprintf(buf, size, "none of use");
}

/* The few driver calls, typed; CUresult and CUdevice are ints, CUDA_SUCCESS is 0. */
struct driver {
    int (*init)(unsigned flags);
    int (*version)(int *version);
    int (*count)(int *count);
    int (*name)(char *name, int len, int device);
    int (*memory)(size_t *bytes, int device);
    int (*attribute)(int *value, int attribute, int device);
};
enum { ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76, ATTRIBUTE_VMM = 102 };

static bool load(void *library, struct driver *d)
{
    *(void **)&d->init = dlsym(library, "cuInit");
    *(void **)&d->version = dlsym(library, "cuDriverGetVersion");
    *(void **)&d->count = dlsym(library, "cuDeviceGetCount");
    *(void **)&d->name = dlsym(library, "cuDeviceGetName");
    *(void **)&d->memory = dlsym(library, "cuDeviceTotalMem_v2");
    *(void **)&d->attribute = dlsym(library, "cuDeviceGetAttribute");
    return d->init && d->version && d->count && d->name && d->memory && d->attribute;
}

void cws_machine_cuda(struct cws_cuda *out)
{
    struct driver d;
    memset(out, 0, sizeof *out);
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library || !load(library, &d))
        return;
    out->driver = true;
    d.version(&out->version);
    out->result = d.init(0);
    if (out->result != 0 || d.count(&out->device_count) != 0)
        out->device_count = 0;
    for (int i = 0; i < out->device_count && i < (int)(sizeof out->devices / sizeof *out->devices); i++) {
        struct cws_machine_gpu *device = &out->devices[i];
        size_t bytes = 0;
        int vmm = 0;
        if (d.name(device->name, sizeof device->name, i) != 0)
            snprintf(device->name, sizeof device->name, "unnamed");
        d.memory(&bytes, i);
        d.attribute(&vmm, ATTRIBUTE_VMM, i);
        d.attribute(&device->major, ATTRIBUTE_MAJOR, i);
        d.attribute(&device->minor, ATTRIBUTE_MINOR, i);
        device->memory_bytes = bytes;
        device->vmm = vmm != 0;
    } /* the library stays: drivers do not like to be unloaded */
}
