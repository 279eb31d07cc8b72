/* torch_allocator.c - reads and changes the variables that choose PyTorch's allocator. */
#include "torch_allocator.h"

#include "say.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define BACKEND "backend:cudaMallocAsync"
#define SPACES " \t\n\r\v\f"

bool cws_torch_may_see_gpu(void)
{
    static const char *const paths[] = {"/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"};
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible) {
        visible += strspn(visible, SPACES);
        size_t len = strcspn(visible, SPACES);
        if (len == 0 || (len == 2 && memcmp(visible, "-1", 2) == 0))
            return false;
    }
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (access(paths[i], F_OK) == 0)
            return true;
    return false;
}

/* [*text, *text + *len) without the spaces around it. */
static void trim(const char **text, size_t *len)
{
    while (*len && strchr(SPACES, **text)) {
        ++*text;
        --*len;
    }
    while (*len && strchr(SPACES, (*text)[*len - 1]))
        --*len;
}

/* The length of the entry at `text`: to the next comma that is in no bracket. */
static size_t entry_length(const char *text)
{
    int depth = 0;
    size_t len = 0;
    for (; text[len] && !(text[len] == ',' && depth <= 0); len++)
        depth += (text[len] == '[') - (text[len] == ']');
    return len;
}

enum verdict { KEPT, SAID_AGAIN, IN_THE_WAY };

static enum verdict judge(const char *entry, size_t len)
{
    const char *colon = memchr(entry, ':', len), *key = entry, *value = colon ? colon + 1 : entry + len;
    size_t key_len = colon ? (size_t)(colon - entry) : len, value_len = len - (size_t)(value - entry);
    trim(&key, &key_len);
    trim(&value, &value_len);
    if (key_len == 7 && memcmp(key, "backend", 7) == 0)
        return value_len == 15 && memcmp(value, "cudaMallocAsync", 15) == 0 ? SAID_AGAIN : IN_THE_WAY;
    if (key_len == 19 && memcmp(key, "expandable_segments", 19) == 0 && value_len == 4 &&
        strncasecmp(value, "true", 4) == 0)
        return IN_THE_WAY;
    return KEPT;
}

char *cws_torch_allocator_conf(const char *before, bool *out_changed)
{
    char *conf = malloc(strlen(before) + sizeof "," BACKEND), *end = conf;
    *out_changed = false;
    if (!conf)
        return NULL;
    for (;;) {
        const char *entry = before;
        size_t whole = entry_length(before), len = whole;
        trim(&entry, &len);
        enum verdict verdict = len ? judge(entry, len) : SAID_AGAIN;
        *out_changed |= verdict == IN_THE_WAY;
        if (verdict == KEPT) {
            memcpy(end, entry, len);
            end += len;
            *end++ = ',';
        }
        if (!before[whole])
            break;
        before += whole + 1;
    }
    memcpy(end, BACKEND, sizeof BACKEND);
    return conf;
}

int cws_torch_allocator_choose(void)
{
    static const char *const names[] = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *before = getenv(names[i]);
        bool changed;
        char *conf = cws_torch_allocator_conf(before ? before : "", &changed);
        if (!conf)
            return -ENOMEM;
        if (changed)
            cws_say_line("%s=%s is now %s (paging on the GPU needs this allocator)", names[i], before, conf);
        int failed = setenv(names[i], conf, 1);
        free(conf);
        if (failed)
            return -ENOMEM;
    }
    return 0;
}
