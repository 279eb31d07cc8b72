/* nvrtc.c - a stand-in for NVRTC, libnvrtc.so.12 in <build>/standin. It compiles nothing: it looks whether the program
 * is whole (every #include "x" has a text) and gives an image that the stand-in driver takes, followed by the options
 * it was called with. STANDIN_NVRTC=refuse: compiling fails with a log; =old: it knows no device that is new enough;
 * =short: no image. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default"))) int
#define FATBIN_MAGIC 0xba55ed50u

struct program {
    const char *texts[16], *names[16];
    int count;
    char log[256], options[512];
};

static unsigned compiled;

API standin_nvrtc_compiled(void);
API nvrtcVersion(int *major, int *minor);
API nvrtcGetNumSupportedArchs(int *count);
API nvrtcGetSupportedArchs(int *arches);
API nvrtcCreateProgram(struct program **out, const char *text, const char *name, int headers, const char *const *texts,
                       const char *const *names);
API nvrtcCompileProgram(struct program *of, int count, const char *const *options);
API nvrtcDestroyProgram(struct program **of);
API nvrtcGetProgramLogSize(struct program *of, size_t *bytes);
API nvrtcGetProgramLog(struct program *of, char *text);
API nvrtcGetCUBINSize(struct program *of, size_t *bytes);
API nvrtcGetCUBIN(struct program *of, char *image);
API nvrtcGetPTXSize(struct program *of, size_t *bytes);
API nvrtcGetPTX(struct program *of, char *image);

static bool asked_to(const char *what)
{
    const char *value = getenv("STANDIN_NVRTC");
    return value && strcmp(value, what) == 0;
}

API standin_nvrtc_compiled(void) { return (int)compiled; }

API nvrtcVersion(int *major, int *minor)
{
    *major = 12;
    *minor = 4;
    return 0;
}

static const int known[] = {70, 75, 80, 90, 100};

API nvrtcGetNumSupportedArchs(int *count)
{
    *count = asked_to("old") ? 1 : (int)(sizeof known / sizeof *known);
    return 0;
}

API nvrtcGetSupportedArchs(int *arches)
{
    memcpy(arches, known, asked_to("old") ? sizeof *known : sizeof known);
    return 0;
}

API nvrtcCreateProgram(struct program **out, const char *text, const char *name, int headers, const char *const *texts,
                       const char *const *names)
{
    struct program *p = calloc(1, sizeof *p);
    if (!p || headers < 0 || headers > 15)
        abort();
    p->texts[0] = text;
    p->names[0] = name;
    for (int i = 0; i < headers; i++) {
        p->texts[i + 1] = texts[i];
        p->names[i + 1] = names[i];
    }
    p->count = headers + 1;
    *out = p;
    return 0;
}

/* Does a text of this name come with the program? */
static bool has(const struct program *p, const char *name, size_t length)
{
    for (int i = 0; i < p->count; i++)
        if (strlen(p->names[i]) == length && strncmp(p->names[i], name, length) == 0)
            return true;
    return false;
}

static bool is_whole(struct program *p)
{
    for (int i = 0; i < p->count; i++)
        for (const char *at = p->texts[i]; (at = strstr(at, "#include ")); at++) {
            const char *name = at + strlen("#include ") + 1;
            size_t length = strcspn(name, "\">\n");
            if (!has(p, name, length)) {
                snprintf(p->log, sizeof p->log, "%s: error: no %.*s\nmore\n", p->names[i], (int)length, name);
                return false;
            }
        }
    return strstr(p->texts[0], "cws_gpu_decode_kernel") && strstr(p->texts[0], "cws_gpu_hash_kernel");
}

API nvrtcCompileProgram(struct program *of, int count, const char *const *options)
{
    compiled++;
    if (asked_to("refuse")) {
        snprintf(of->log, sizeof of->log, "decode.cu(7): error: a fault that was asked for\n      somewhere\n");
        return 6;
    }
    for (int i = 0; i < count; i++) {
        size_t used = strlen(of->options);
        snprintf(of->options + used, sizeof of->options - used, "%s ", options[i]);
    }
    return is_whole(of) ? 0 : 6;
}

API nvrtcDestroyProgram(struct program **of)
{
    free(*of);
    *of = NULL;
    return 0;
}

API nvrtcGetProgramLogSize(struct program *of, size_t *bytes)
{
    *bytes = strlen(of->log) + 1;
    return 0;
}

API nvrtcGetProgramLog(struct program *of, char *text)
{
    memcpy(text, of->log, strlen(of->log) + 1);
    return 0;
}

static int image(struct program *of, const char *kind, char *to)
{
    const uint32_t magic[4] = {FATBIN_MAGIC};
    memcpy(to, magic, sizeof magic);
    sprintf(to + sizeof magic, "%s %s", kind, of->options);
    return 0;
}

static int image_size(struct program *of, const char *kind, size_t *bytes)
{
    *bytes = asked_to("short") ? 0 : 16 + strlen(kind) + 1 + strlen(of->options) + 1;
    return 0;
}

API nvrtcGetCUBINSize(struct program *of, size_t *bytes) { return image_size(of, "cubin", bytes); }
API nvrtcGetCUBIN(struct program *of, char *to) { return image(of, "cubin", to); }
API nvrtcGetPTXSize(struct program *of, size_t *bytes) { return image_size(of, "ptx", bytes); }
API nvrtcGetPTX(struct program *of, char *to) { return image(of, "ptx", to); }
