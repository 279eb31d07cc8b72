/* compile.c - NVRTC: found on the user's machine, and run over the kernels' sources. */
#include "compile.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLACES_MAX 256
#define ARCHES_MAX 64

/* NVRTC as its documentation describes it; the versions that can do sm_80 and later have all of these. */
typedef void *program;
#define NVRTC_CALLS                                                                                                    \
    NVRTC_CALL(version, "nvrtcVersion", (int *major, int *minor))                                                      \
    NVRTC_CALL(arch_count, "nvrtcGetNumSupportedArchs", (int *count))                                                  \
    NVRTC_CALL(arches, "nvrtcGetSupportedArchs", (int *arches))                                                        \
    NVRTC_CALL(create, "nvrtcCreateProgram",                                                                           \
               (program * out, const char *text, const char *name, int headers, const char *const *texts,              \
                const char *const *names))                                                                             \
    NVRTC_CALL(compile, "nvrtcCompileProgram", (program of, int count, const char *const *options))                    \
    NVRTC_CALL(destroy, "nvrtcDestroyProgram", (program * of))                                                         \
    NVRTC_CALL(log_size, "nvrtcGetProgramLogSize", (program of, size_t * bytes))                                       \
    NVRTC_CALL(log, "nvrtcGetProgramLog", (program of, char *text))                                                    \
    NVRTC_CALL(cubin_size, "nvrtcGetCUBINSize", (program of, size_t * bytes))                                          \
    NVRTC_CALL(cubin, "nvrtcGetCUBIN", (program of, char *image))                                                      \
    NVRTC_CALL(ptx_size, "nvrtcGetPTXSize", (program of, size_t * bytes))                                              \
    NVRTC_CALL(ptx, "nvrtcGetPTX", (program of, char *image))

struct compiler {
    void *library;
    char path[1024];
    int major, minor;
#define NVRTC_CALL(member, symbol, parameters) int(*member) parameters;
    NVRTC_CALLS
#undef NVRTC_CALL
};

/* --- finding it ----------------------------------------------------------------------------------- */

/* Directories to look into. */
struct places {
    char *at[PLACES_MAX];
    size_t count;
};

static void add_place(struct places *p, const char *directory, size_t length, const char *below)
{
    char path[1024];
    int n = snprintf(path, sizeof path, "%.*s%s", (int)length, directory, below);
    if (n < 0 || (size_t)n >= sizeof path)
        return;
    for (size_t i = 0; i < p->count; i++)
        if (strcmp(p->at[i], path) == 0)
            return;
    if (p->count < PLACES_MAX && (p->at[p->count] = strdup(path)))
        p->count++;
}

/* Beside the CUDA libraries that the process has: there lies the NVRTC that belongs to them. PyTorch's packages keep
 * each in a directory of its own. */
static int near_loaded(struct dl_phdr_info *info, size_t size, void *arg)
{
    static const char *const families[] = {"/libcudart",   "/libcublas", "/libtorch_cuda",
                                           "/libc10_cuda", "/libcudnn",  "/libcupy"};
    static const char *const below[] = {"", "/../../cuda_nvrtc/lib", "/../../cu13/lib", "/../../nvidia/cuda_nvrtc/lib",
                                        "/../../nvidia/cu13/lib"};
    const char *name = info->dlpi_name, *slash = name ? strrchr(name, '/') : NULL;
    (void)size;
    if (!slash)
        return 0;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strncmp(slash, families[i], strlen(families[i])) == 0)
            for (size_t k = 0; k < sizeof below / sizeof *below; k++)
                add_place(arg, name, (size_t)(slash - name), below[k]);
    return 0;
}

static bool open_library(struct compiler *c, const char *path, const struct cws_gpu_target *target)
{
    struct link_map *map;
    *c = (struct compiler){.library = dlopen(path, RTLD_NOW | RTLD_LOCAL)};
    if (!c->library)
        return false;
#define NVRTC_CALL(member, symbol, parameters) c->member = (int(*) parameters)dlsym(c->library, symbol);
    NVRTC_CALLS
#undef NVRTC_CALL
#define NVRTC_CALL(member, symbol, parameters) &&c->member
    if (true NVRTC_CALLS && c->version(&c->major, &c->minor) == 0 &&
        (target->driver_version == 0 || c->major <= target->driver_version / 1000)) {
#undef NVRTC_CALL
        const char *where = dlinfo(c->library, RTLD_DI_LINKMAP, &map) == 0 && map->l_name[0] ? map->l_name : path;
        snprintf(c->path, sizeof c->path, "%.1023s", where);
        return true;
    }
    dlclose(c->library);
    return false;
}

static bool open_in(struct compiler *c, const char *directory, const struct cws_gpu_target *target)
{
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"};
    char path[1100];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s%s%s", directory, *directory ? "/" : "", names[i]);
        if (open_library(c, path, target))
            return true;
    }
    return false;
}

static int find(struct compiler *c, const struct cws_gpu_target *target, struct cws_error *err)
{
    static const char *const roots[] = {"CUDA_HOME", "CUDA_PATH"};
    struct places places = {.count = 0};
    bool found = false;
    dl_iterate_phdr(near_loaded, &places);
    add_place(&places, "", 0, ""); /* wherever the loader looks */
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
        const char *root = getenv(roots[i]);
        if (root)
            add_place(&places, root, strlen(root), "/lib64");
    }
    add_place(&places, "", 0, "/usr/local/cuda/lib64");
    for (size_t i = 0; i < places.count; i++) {
        found = found || open_in(c, places.at[i], target);
        free(places.at[i]);
    }
    if (found)
        return 0;
    return cws_fail(
        err, CWS_E_UNSUPPORTED,
        "no NVRTC%s was found to compile the decoding kernels with; it comes with PyTorch for CUDA, with the CUDA "
        "toolkit, and as the Python package nvidia-cuda-nvrtc-cu12; or build where nvcc is",
        target->driver_version ? " for this driver" : "");
}

int cws_gpu_compiler_find(const struct cws_gpu_target *target, char path[1024], int *version, struct cws_error *err)
{
    struct compiler c;
    int rc = find(&c, target, err);
    if (rc != 0)
        return rc;
    memcpy(path, c.path, sizeof c.path);
    *version = 1000 * c.major + c.minor;
    dlclose(c.library);
    return 0;
}

/* --- compiling ------------------------------------------------------------------------------------ */

/* The device's own architecture, or the latest before it, as PTX for the driver to finish. */
static int choose(const struct compiler *c, const struct cws_gpu_target *target, int *arch, bool *exact,
                  struct cws_error *err)
{
    int arches[ARCHES_MAX], count = 0, wanted = 10 * target->major + target->minor;
    *arch = 0;
    if (c->arch_count(&count) != 0 || count < 1 || count > ARCHES_MAX || c->arches(arches) != 0)
        return cws_fail(err, CWS_E_UNSUPPORTED, "%s does not tell what it compiles for", c->path);
    for (int i = 0; i < count; i++)
        if (arches[i] <= wanted && arches[i] > *arch)
            *arch = arches[i];
    *exact = *arch == wanted && !target->ptx;
    if (*arch < 10 * CWS_GPU_MAJOR_MIN + CWS_GPU_MINOR_MIN)
        return cws_fail(err, CWS_E_UNSUPPORTED, "%s (version %d.%d) compiles for no device of compute capability %d.%d",
                        c->path, c->major, c->minor, target->major, target->minor);
    return 0;
}

static int refused(const struct compiler *c, program of, int code, struct cws_error *err)
{
    size_t bytes = 0;
    char *log = NULL, *first = NULL;
    if (c->log_size(of, &bytes) == 0 && bytes > 1 && (log = calloc(1, bytes + 1)) && c->log(of, log) == 0)
        first = strstr(log, "error") ? strstr(log, "error") : log;
    if (first)
        first[strcspn(first, "\n")] = '\0';
    int rc = cws_fail(err, CWS_E_BUG, "%s (version %d.%d) does not compile the decoding kernels (%d): %s", c->path,
                      c->major, c->minor, code, first ? first : "it does not say why");
    free(log);
    return rc;
}

static int take(const struct compiler *c, program of, bool exact, void **image, size_t *bytes, struct cws_error *err)
{
    size_t size = 0;
    int code = exact ? c->cubin_size(of, &size) : c->ptx_size(of, &size);
    if (code != 0 || size == 0)
        return refused(c, of, code, err);
    char *out = malloc(size + 1); /* PTX is a string */
    if (!out)
        return cws_fail_errno(err, ENOMEM, "the decoding kernels");
    code = exact ? c->cubin(of, out) : c->ptx(of, out);
    if (code != 0) {
        free(out);
        return refused(c, of, code, err);
    }
    out[size] = '\0';
    *image = out;
    *bytes = size;
    return 0;
}

static int compile(const struct compiler *c, const struct cws_gpu_target *target, void **image, size_t *bytes,
                   struct cws_error *err)
{
    char architecture[64];
    const char *options[] = {architecture, "-std=c++17", "--device-int128"};
    const struct cws_gpu_sources *s = &cws_gpu_sources;
    program of = NULL;
    bool exact;
    int arch, rc = choose(c, target, &arch, &exact, err);
    if (rc != 0)
        return rc;
    snprintf(architecture, sizeof architecture, "--gpu-architecture=%s_%d", exact ? "sm" : "compute", arch);
    int code = c->create(&of, s->text[0], s->name[0], CWS_GPU_SOURCES - 1, s->text + 1, s->name + 1);
    if (code != 0)
        return cws_fail(err, CWS_E_BUG, "%s does not take the decoding kernels (%d)", c->path, code);
    code = c->compile(of, sizeof options / sizeof *options, options);
    rc = code ? refused(c, of, code, err) : take(c, of, exact, image, bytes, err);
    c->destroy(&of);
    return rc;
}

int cws_gpu_compile(const struct cws_gpu_target *target, void **image, size_t *bytes, struct cws_error *err)
{
    struct compiler c;
    *image = NULL;
    int rc = find(&c, target, err);
    if (rc != 0)
        return rc;
    rc = compile(&c, target, image, bytes, err);
    dlclose(c.library);
    return rc;
}
