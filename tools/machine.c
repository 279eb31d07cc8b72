#include "machine.h"

#include <dlfcn.h>
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

/* Walks from a group up to the root: a limit holds for everything below it. */
static bool tightest(const char *root, char *group, const char *file, uint64_t *out)
{
    bool any = false;
    for (;;) {
        char path[4400];
        uint64_t limit = UINT64_MAX;
        snprintf(path, sizeof path, "%s%s/%s", root, group, file);
        if (cws_machine_number(path, &limit) && limit < UINT64_C(1) << 60 && (!any || limit < *out)) {
            *out = limit; /* version 1 writes a number near 2^63 for "no limit" */
            any = true;
        }
        char *slash = strrchr(group, '/');
        if (!slash || !group[0])
            return any;
        *slash = '\0';
    }
}

bool cws_machine_cgroup_limit(uint64_t *out_bytes)
{
    char line[4200];
    bool any = false;
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file)
        return false;
    while (fgets(line, sizeof line, file)) {
        uint64_t limit = UINT64_MAX;
        char *group = strrchr(line, ':');
        line[strcspn(line, "\n")] = '\0';
        if (!group)
            continue;
        group++;
        bool found = false;
        if (strncmp(line, "0::", 3) == 0)
            found = tightest("/sys/fs/cgroup", group, "memory.max", &limit);
        else if (strstr(line, ":memory:") || strstr(line, ",memory:"))
            found = tightest("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes", &limit);
        if (found && (!any || limit < *out_bytes)) {
            *out_bytes = limit;
            any = true;
        }
    }
    fclose(file);
    return any;
}

void cws_machine_cpu_features(char *buf, size_t size)
{
    buf[0] = '\0';
#if defined(__x86_64__)
    __builtin_cpu_init();
    snprintf(buf, size, "%s%s%s%s", __builtin_cpu_supports("avx2") ? "avx2 " : "", __builtin_cpu_supports("bmi2") ? "bmi2 " : "",
             __builtin_cpu_supports("avx512bw") ? "avx512bw " : "", __builtin_cpu_supports("avx512vbmi") ? "avx512vbmi " : "");
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
enum { ATTRIBUTE_VMM = 102 };

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
        struct cws_cuda_device *device = &out->devices[i];
        size_t bytes = 0;
        int vmm = 0;
        if (d.name(device->name, sizeof device->name, i) != 0)
            snprintf(device->name, sizeof device->name, "unnamed");
        d.memory(&bytes, i);
        d.attribute(&vmm, ATTRIBUTE_VMM, i);
        device->memory_bytes = bytes;
        device->vmm = vmm != 0;
    } /* the library stays: drivers do not like to be unloaded */
}
