/* module.c - images, functions, launches. A CUkernel belongs to a library, a CUfunction to a module; a launch takes
 * either in its function slot (cudart passes the former), while each parameter query takes only its own kind. */
#include "tests/support/fatbin.h"
#include "state.h"

#include <stdlib.h>
#include <string.h>

#define SHARED_BYTES_DEFAULT (48u << 10)
#define SHARED_BYTES_MAX (227u << 10)

struct CUfunc_st {
    const struct standin_kernel *kernel;
    struct CUmod_st *module;
    unsigned dynamic_shared;
};
struct CUkern_st {
    const struct standin_kernel *kernel;
    struct CUfunc_st function; /* for the current context */
    struct CUlib_st *library;
};
struct CUmod_st {
    struct CUctx_st *context;
    const struct standin_image *image;
    struct CUfunc_st *functions;
};
struct CUlib_st {
    const struct standin_image *image;
    struct CUkern_st *kernels;
};
typedef struct CUlib_st *CUlibrary;

static const struct standin_image *image_of(const void *bytes)
{
    uint32_t first;
    memcpy(&first, bytes, sizeof first);
    if (first == FATBIN_MAGIC)
        return &standin_gpu_image;
    if (memcmp(bytes, STANDIN_IMAGE_MAGIC, 8) == 0)
        return bytes;
    return strncmp(bytes, "standin:test", 13) == 0 ? &standin_test_image : NULL;
}

static size_t kernel_find(const struct standin_image *image, const char *name)
{
    size_t i = 0;
    while (i < image->kernel_count && strcmp(image->kernels[i].name, name) != 0)
        i++;
    return i;
}

static CUresult module_load(CUmodule *module, const void *bytes)
{
    if (!module || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    const struct standin_image *image = image_of(bytes);
    struct fatbin_part part;
    uint64_t at = 0;
    if (!image)
        return CUDA_ERROR_INVALID_IMAGE;
    if (fatbin_next(bytes, &at, &part) && !fatbin_is_for(bytes, device_capability(0), device_capability(1)))
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    struct CUmod_st *m = take_memory(sizeof *m);
    m->image = image;
    m->functions = take_memory(image->kernel_count * sizeof *m->functions);
    lock();
    m->context = context_handle_locked();
    for (size_t i = 0; i < image->kernel_count; i++) {
        m->functions[i] = (struct CUfunc_st){&image->kernels[i], m, 0};
        object_add_locked(OBJECT_FUNCTION, &m->functions[i]);
    }
    object_add_locked(OBJECT_MODULE, m);
    *module = m;
    return unlock(CUDA_SUCCESS);
}

API cuModuleLoadData(CUmodule *module, const void *image)
{
    ENTER("cuModuleLoadData", CALL_CONTEXT, U64(image), 0);
    return module_load(module, image);
}

/* ---- Tensor maps: the address is the first word, xor the second. STANDIN_TENSOR_MAP=hide: as if a driver hid it. */
API cuTensorMapReplaceAddress(void *map, void *address)
{
    const char *how = getenv("STANDIN_TENSOR_MAP");
    uint64_t words[16] = {U64(address), 0};
    if (!map)
        return CUDA_ERROR_INVALID_VALUE;
    if (how && strcmp(how, "hide") == 0) {
        words[1] = UINT64_C(0x5555555555555555);
        words[0] ^= words[1];
    }
    memcpy(map, words, sizeof words);
    return CUDA_SUCCESS;
}

API cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const uint64_t *dims,
                           const uint64_t *strides, const unsigned *box, const unsigned *steps, int interleave,
                           int swizzle, int promotion, int fill)
{
    ENTER("cuTensorMapEncodeTiled", 0, U64(address), rank);
    (void)type, (void)strides, (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    return dims && box && steps && rank >= 1 && rank <= 5 ? cuTensorMapReplaceAddress(map, address)
                                                          : CUDA_ERROR_INVALID_VALUE;
}

API cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options, void **values)
{
    ENTER("cuModuleLoadDataEx", CALL_CONTEXT, U64(image), count);
    (void)options, (void)values;
    return module_load(module, image);
}

API cuModuleLoadFatBinary(CUmodule *module, const void *image)
{
    ENTER("cuModuleLoadFatBinary", CALL_CONTEXT, U64(image), 0);
    return module_load(module, image);
}

static void module_free_locked(struct CUmod_st *module)
{
    for (size_t i = 0; i < module->image->kernel_count; i++)
        object_remove_locked(OBJECT_FUNCTION, &module->functions[i]);
    object_remove_locked(OBJECT_MODULE, module);
    free(module->functions);
    free(module);
}

API cuModuleUnload(CUmodule module)
{
    ENTER("cuModuleUnload", CALL_CONTEXT, U64(module), 0);
    lock();
    if (!object_is_locked(OBJECT_MODULE, module))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    CUresult result = streams_wait_locked(module->context);
    module_free_locked(module);
    return unlock(result);
}

API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    ENTER("cuModuleGetFunction", CALL_CONTEXT, U64(module), 0);
    lock();
    if (!function || !name || !object_is_locked(OBJECT_MODULE, module))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    size_t i = kernel_find(module->image, name);
    if (i == module->image->kernel_count)
        return unlock(CUDA_ERROR_NOT_FOUND);
    *function = &module->functions[i];
    return unlock(CUDA_SUCCESS);
}

API cuLibraryLoadData(CUlibrary *library, const void *code, int *jit_options, void **jit_values, unsigned jit_count,
                      int *options, void **values, unsigned count)
{
    ENTER("cuLibraryLoadData", 0, U64(code), 0);
    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    const struct standin_image *image = code ? image_of(code) : NULL;
    if (!library || !image)
        return code ? CUDA_ERROR_INVALID_IMAGE : CUDA_ERROR_INVALID_VALUE;
    struct CUlib_st *l = take_memory(sizeof *l);
    l->image = image;
    l->kernels = take_memory(image->kernel_count * sizeof *l->kernels);
    lock();
    for (size_t i = 0; i < image->kernel_count; i++) {
        l->kernels[i] = (struct CUkern_st){&image->kernels[i], {&image->kernels[i], NULL, 0}, l};
        object_add_locked(OBJECT_KERNEL, &l->kernels[i]);
        object_add_locked(OBJECT_FUNCTION, &l->kernels[i].function);
    }
    object_add_locked(OBJECT_LIBRARY, l);
    *library = l;
    return unlock(CUDA_SUCCESS);
}

static void library_free_locked(struct CUlib_st *library)
{
    for (size_t i = 0; i < library->image->kernel_count; i++) {
        object_remove_locked(OBJECT_KERNEL, &library->kernels[i]);
        object_remove_locked(OBJECT_FUNCTION, &library->kernels[i].function);
    }
    object_remove_locked(OBJECT_LIBRARY, library);
    free(library->kernels);
    free(library);
}

API cuLibraryUnload(CUlibrary library)
{
    ENTER("cuLibraryUnload", 0, U64(library), 0);
    lock();
    if (!object_is_locked(OBJECT_LIBRARY, library))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    CUresult result = streams_wait_locked(NULL);
    library_free_locked(library);
    return unlock(result);
}

API cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    ENTER("cuLibraryGetKernel", 0, U64(library), 0);
    lock();
    if (!kernel || !name || !object_is_locked(OBJECT_LIBRARY, library))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    size_t i = kernel_find(library->image, name);
    if (i == library->image->kernel_count)
        return unlock(CUDA_ERROR_NOT_FOUND);
    *kernel = &library->kernels[i];
    return unlock(CUDA_SUCCESS);
}

API cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    ENTER("cuKernelGetFunction", CALL_CONTEXT, U64(kernel), 0);
    lock();
    if (!function || !object_is_locked(OBJECT_KERNEL, kernel))
        return unlock(function ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE);
    *function = &kernel->function;
    return unlock(CUDA_SUCCESS);
}

/* ---- What is known of a function. */
static CUresult param_info(const struct standin_kernel *kernel, size_t index, size_t *offset, size_t *bytes)
{
    if (index >= kernel->param_count || !offset)
        return CUDA_ERROR_INVALID_VALUE;
    *offset = kernel->params[index].offset;
    if (bytes)
        *bytes = kernel->params[index].bytes;
    return CUDA_SUCCESS;
}

API cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset, size_t *bytes)
{
    ENTER("cuFuncGetParamInfo", 0, U64(function), index);
    lock();
    if (!object_is_locked(OBJECT_FUNCTION, function))
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    return unlock(param_info(function->kernel, index, offset, bytes));
}

API cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t *offset, size_t *bytes)
{
    ENTER("cuKernelGetParamInfo", 0, U64(kernel), index);
    lock();
    if (!object_is_locked(OBJECT_KERNEL, kernel))
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    return unlock(param_info(kernel->kernel, index, offset, bytes));
}

/* The function in a slot that may hold a kernel. */
static struct CUfunc_st *function_of_locked(CUfunction slot)
{
    if (object_is_locked(OBJECT_FUNCTION, slot))
        return slot;
    return object_is_locked(OBJECT_KERNEL, slot) ? &((struct CUkern_st *)(void *)slot)->function : NULL;
}

API cuFuncSetAttribute(CUfunction slot, CUfunction_attribute which, int value)
{
    ENTER("cuFuncSetAttribute", CALL_CONTEXT, U64(slot), which);
    lock();
    struct CUfunc_st *function = function_of_locked(slot);
    if (!function)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        return unlock(which == 9 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE); /* 9: preferred carve-out */
    if (value < 0 || (unsigned)value > SHARED_BYTES_MAX)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    function->dynamic_shared = (unsigned)value;
    return unlock(CUDA_SUCCESS);
}

API cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction slot)
{
    ENTER("cuFuncGetAttribute", CALL_CONTEXT, U64(slot), which);
    lock();
    struct CUfunc_st *function = function_of_locked(slot);
    if (!function || !value)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    *value = which == 0 ? 1024 : which == 5 || which == 6 ? 90 : which == 8 ? (int)function->dynamic_shared : 0;
    return unlock(CUDA_SUCCESS);
}

API cuFuncGetName(const char **name, CUfunction slot)
{
    ENTER("cuFuncGetName", 0, U64(slot), 0);
    lock();
    struct CUfunc_st *function = function_of_locked(slot);
    if (!function || !name)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    *name = function->kernel->name;
    return unlock(CUDA_SUCCESS);
}

API cuKernelGetName(const char **name, CUkernel kernel)
{
    ENTER("cuKernelGetName", 0, U64(kernel), 0);
    lock();
    if (!object_is_locked(OBJECT_KERNEL, kernel) || !name)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    *name = kernel->kernel->name;
    return unlock(CUDA_SUCCESS);
}

API cuFuncGetModule(CUmodule *module, CUfunction slot)
{
    ENTER("cuFuncGetModule", 0, U64(slot), 0);
    lock();
    if (!object_is_locked(OBJECT_FUNCTION, slot) || !module)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    *module = slot->module;
    return unlock(CUDA_SUCCESS);
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction slot, int block_threads, size_t shared)
{
    ENTER("cuOccupancyMaxActiveBlocksPerMultiprocessor", CALL_CONTEXT, U64(slot), block_threads);
    lock();
    bool good = blocks && function_of_locked(slot) && block_threads > 0 && block_threads <= 1024 &&
                shared <= SHARED_BYTES_MAX;
    if (good)
        *blocks = 2048 / block_threads;
    return unlock(good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* ---- Launches. */
static void launch_run(void *data)
{
    struct launch *launch = data;
    launch->kernel->run(launch->params, launch->grid, launch->block);
}

/* The `extra` form: {1, buffer, 2, &bytes, NULL}. */
static CUresult extra_buffer(void **extra, const unsigned char **buffer, size_t *bytes)
{
    *buffer = NULL;
    *bytes = 0;
    for (; *extra; extra += 2) {
        if (*extra == (void *)1)
            *buffer = extra[1];
        else if (*extra == (void *)2)
            *bytes = *(size_t *)extra[1];
        else
            return CUDA_ERROR_INVALID_VALUE;
    }
    return *buffer ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult launch_params(struct launch *launch, void **params, void **extra)
{
    const struct standin_kernel *kernel = launch->kernel;
    const unsigned char *buffer = NULL;
    size_t bytes = 0;
    if (params && extra)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = extra ? extra_buffer(extra, &buffer, &bytes) : CUDA_SUCCESS;
    if (kernel->param_count > 0 && !params && !buffer)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; result == CUDA_SUCCESS && i < kernel->param_count; i++) {
        unsigned at = kernel->params[i].offset, size = kernel->params[i].bytes;
        if (buffer && (at > bytes || size > bytes - at))
            return CUDA_ERROR_INVALID_VALUE;
        launch->params[i] = launch->bytes + at;
        memcpy(launch->params[i], buffer ? buffer + at : params[i], size);
    }
    return result;
}

static CUresult launch(CUfunction slot, const unsigned grid[3], const unsigned block[3], unsigned shared,
                       CUstream handle, void **params, void **extra)
{
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    struct CUfunc_st *function = function_of_locked(slot);
    if (!stream || !function || (function->module && function->module->context != stream->context))
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    unsigned long long threads = (unsigned long long)block[0] * block[1] * block[2];
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535 || threads == 0 ||
        threads > 1024 ||
        shared > (function->dynamic_shared > SHARED_BYTES_DEFAULT ? function->dynamic_shared : SHARED_BYTES_DEFAULT))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    const struct standin_kernel *kernel = function->kernel;
    size_t bytes = 0;
    for (unsigned i = 0; i < kernel->param_count; i++)
        if (bytes < kernel->params[i].offset + kernel->params[i].bytes)
            bytes = kernel->params[i].offset + kernel->params[i].bytes;
    struct launch *data = take_memory(sizeof *data + bytes);
    data->kernel = kernel;
    data->function = slot == function ? function : NULL;
    data->kern = slot == function ? NULL : (CUkernel)(void *)slot;
    memcpy(data->grid, grid, sizeof data->grid);
    memcpy(data->block, block, sizeof data->block);
    data->shared = shared;
    CUresult result = launch_params(data, params, extra);
    if (result != CUDA_SUCCESS) {
        free(data);
        return unlock(result);
    }
    return unlock(stream_submit_kernel_locked(stream, launch_run, data, NULL, function));
}

API cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, CUstream stream, void **params, void **extra)
{
    ENTER("cuLaunchKernel", CALL_CONTEXT, U64(function), U64(stream));
    return launch(function, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, params, extra);
}

API cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared, CUstream stream, void **params)
{
    ENTER("cuLaunchCooperativeKernel", CALL_CONTEXT, U64(function), U64(stream));
    return launch(function, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, params, NULL);
}

struct launch_config { /* CUlaunchConfig */
    unsigned grid[3], block[3], shared;
    CUstream stream;
    void *attributes;
    unsigned attribute_count;
};

API cuLaunchKernelEx(const struct launch_config *config, CUfunction function, void **params, void **extra)
{
    ENTER("cuLaunchKernelEx", CALL_CONTEXT, U64(function), config ? U64(config->stream) : 0);
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    return launch(function, config->grid, config->block, config->shared, config->stream, params, extra);
}

void modules_end_locked(const struct CUctx_st *context)
{
    struct CUmod_st *module;
    for (size_t i = 0; (module = object_index_locked(OBJECT_MODULE, i)) != NULL;)
        if (module->context == context)
            module_free_locked(module); /* another one takes its place */
        else
            i++;
}

void libraries_end_locked(void)
{
    void *object;
    while ((object = object_any_locked(OBJECT_LIBRARY)) != NULL)
        library_free_locked(object);
}
