/* nvtx_tool.c - a profiler as NVTX describes them: asks for the tables of a program, stores its functions, and counts.
 * NVTX_TOOL=refuse: it does not start. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOOL __attribute__((visibility("default")))

struct event {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;
    const char *message;
};
struct callbacks {
    size_t bytes;
    int (*table)(int module, void (****out)(void), unsigned *out_size);
};
struct version {
    size_t bytes;
    uint32_t number, reserved;
    void (*set)(uint32_t);
};

TOOL int nvtx_tool_begun, nvtx_tool_wrong, nvtx_tool_depth, nvtx_tool_started;
TOOL uint64_t nvtx_tool_bytes;
TOOL char nvtx_tool_domain[32], nvtx_tool_last[256];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *create(const char *name)
{
    snprintf(nvtx_tool_domain, sizeof nvtx_tool_domain, "%s", name);
    return nvtx_tool_domain;
}
static int push(void *domain, const struct event *e)
{
    pthread_mutex_lock(&lock);
    nvtx_tool_wrong += domain != nvtx_tool_domain || e->version != 3 || e->size != 48 || e->message_type != 1 ||
                       e->payload_type != 1 || e->color_type != 0;
    nvtx_tool_begun++;
    nvtx_tool_bytes += e->payload;
    snprintf(nvtx_tool_last, sizeof nvtx_tool_last, "%s", e->message);
    int depth = nvtx_tool_depth++;
    pthread_mutex_unlock(&lock);
    return depth;
}
static int pop(void *domain)
{
    pthread_mutex_lock(&lock);
    nvtx_tool_wrong += domain != nvtx_tool_domain;
    int depth = --nvtx_tool_depth;
    pthread_mutex_unlock(&lock);
    return depth;
}
static void ignored(void) {}

TOOL int InitializeInjectionNvtx2(const void *(*get)(uint32_t));
TOOL int InitializeInjectionNvtx2(const void *(*get)(uint32_t))
{
    static const unsigned sizes[] = {0, 16, 9, 15, 7, 16, 7};
    const struct callbacks *callbacks = get(1);
    const struct version *version = get(3);
    const char *how = getenv("NVTX_TOOL");
    nvtx_tool_started++;
    if (!callbacks || callbacks->bytes < sizeof *callbacks || !version || version->number != 3 || get(77))
        return 0;
    version->set(3);
    for (int module = 1; module <= 6; module++) {
        void (***table)(void) = NULL;
        unsigned size = 0;
        if (!callbacks->table(module, &table, &size) || size != sizes[module])
            return 0;
        for (unsigned i = 1; i < size; i++) /* all of them may be stored to */
            *table[i] = ignored;
        if (module == 5) {
            *table[12] = (void (*)(void))create;
            *table[4] = (void (*)(void))push;
            *table[5] = (void (*)(void))pop;
        }
    }
    return (!how || strcmp(how, "refuse") != 0) && !callbacks->table(7, NULL, NULL);
}
