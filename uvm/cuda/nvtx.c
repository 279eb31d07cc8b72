/* nvtx.c - the program's side of NVTX version 3, written from the description in its headers. The profiler's library
 * gets a function that returns one table per module, of pointers to function pointers. It stores its own functions
 * through those that it knows. */
#include "nvtx.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

enum {
    TABLE_CALLBACKS = 1,
    TABLE_VERSION = 3,
    MODULE_DOMAINS = 5,
    MODULES = 7,
    FUNCTIONS_MAX = 16,
    DOMAIN_RANGE_PUSH = 4, /* of MODULE_DOMAINS */
    DOMAIN_RANGE_POP = 5,
    DOMAIN_CREATE = 12,
    VERSION = 3,
    MESSAGE_ASCII = 1,
    PAYLOAD_UINT64 = 1,
};

struct attributes { /* of an event */
    uint16_t version, bytes;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;
    const char *message;
};
_Static_assert(sizeof(struct attributes) == 48 && offsetof(struct attributes, message) == 40, "as in NVTX");

typedef void (*function)(void);
static const unsigned module_functions[MODULES] = {0, 16, 9, 15, 7, 16, 7}; /* the first of each is none */
static function functions[MODULES][FUNCTIONS_MAX];
static function *tables[MODULES][FUNCTIONS_MAX];

_Atomic bool cws_nvtx_attached;
static void *domain;

static int get_table(int module, function ***out_table, unsigned *out_count)
{
    if (module <= 0 || module >= MODULES)
        return 0;
    if (out_table)
        *out_table = tables[module];
    if (out_count)
        *out_count = module_functions[module];
    return 1;
}

static void set_version(uint32_t version) { (void)version; }

static const void *get_export(uint32_t which)
{
    static const struct {
        size_t bytes;
        int (*get_table)(int module, function ***out_table, unsigned *out_count);
    } callbacks = {sizeof callbacks, get_table};
    static const struct {
        size_t bytes;
        uint32_t version, reserved;
        void (*set_version)(uint32_t version);
    } version = {sizeof version, VERSION, 0, set_version};
    return which == TABLE_CALLBACKS ? (const void *)&callbacks : which == TABLE_VERSION ? (const void *)&version : NULL;
}

static void attach(void)
{
    const char *path = getenv("NVTX_INJECTION64_PATH");
    void *library = path && *path ? dlopen(path, RTLD_LAZY) : NULL;
    if (!library)
        return;
    int (*initialize)(const void *(*get)(uint32_t)) = (int (*)(const void *(*)(uint32_t)))dlsym(
        library, "InitializeInjectionNvtx2");
    for (unsigned m = 0; m < MODULES; m++)
        for (unsigned i = 1; i < module_functions[m]; i++)
            tables[m][i] = &functions[m][i];
    if (!initialize || !initialize(get_export)) {
        dlclose(library);
        return;
    }
    function *own = functions[MODULE_DOMAINS];
    if (!own[DOMAIN_RANGE_PUSH] || !own[DOMAIN_RANGE_POP])
        return; /* it does not care for ranges */
    if (own[DOMAIN_CREATE])
        domain = ((void *(*)(const char *))own[DOMAIN_CREATE])("codecllm");
    atomic_store(&cws_nvtx_attached, true);
}

void cws_nvtx_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, attach);
}

bool cws_nvtx_push(const char *text, uint64_t bytes)
{
    if (!cws_nvtx_is_on())
        return false;
    const struct attributes what = {.version = VERSION,
                                    .bytes = sizeof what,
                                    .payload_type = PAYLOAD_UINT64,
                                    .payload = bytes,
                                    .message_type = MESSAGE_ASCII,
                                    .message = text};
    ((int (*)(void *, const struct attributes *))functions[MODULE_DOMAINS][DOMAIN_RANGE_PUSH])(domain, &what);
    return true;
}

void cws_nvtx_pop(void) { ((int (*)(void *))functions[MODULE_DOMAINS][DOMAIN_RANGE_POP])(domain); }
