/* launch.c - kernel launches: finds the ranges that a kernel's parameters point to. Every aligned word that is an
 * address of a range counts as a pointer, as in a conservative garbage collector. */
#include "capture.h"
#include "layout.h"
#include "shim/say.h"

#include <string.h>

/* CU_LAUNCH_PARAM_BUFFER_POINTER and _SIZE: the parameters as one block. False: not understood. */
static bool scan_block(void **extra, struct cws_cuda_list *list)
{
    const char *block = NULL;
    size_t bytes = 0;
    for (int i = 0; extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
        if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER)
            block = extra[i + 1];
        else if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE && extra[i + 1])
            bytes = *(const size_t *)extra[i + 1];
        else
            return false;
    }
    for (size_t at = 0; block && at + 8 <= bytes; at += 8) {
        CUdeviceptr word;
        memcpy(&word, block + at, sizeof word);
        cws_cuda_list_add(list, word);
    }
    return true;
}

void cws_cuda_scan_params(CUfunction function, void **params, void **extra, struct cws_cuda_list *list)
{
    if (CWS_UNLIKELY(atomic_load_explicit(&cws_cuda_high, memory_order_relaxed) == 0)) /* there was never a range */
        return;
    const struct cws_cuda_layout *layout = cws_cuda_layout_of(function);
    list->recent |= layout && layout->queued;
    if (CWS_UNLIKELY(extra != NULL) && !params) {
        if (!scan_block(extra, list))
            cws_cuda_list_add_everything(list);
        return;
    }
    if (CWS_UNLIKELY(!layout || !layout->known)) {
        list->why = layout ? layout->error : CUDA_ERROR_OUT_OF_MEMORY;
        cws_cuda_list_add_everything(list);
        return;
    }
    for (uint32_t i = 0; params && i < layout->count; i++) {
        const char *param = params[layout->words[i].param];
        CUdeviceptr word;
        memcpy(&word, param + layout->words[i].at, sizeof word);
        cws_cuda_list_add(list, word);
    }
}

/* A launch with unknown parameters could not begin: the manager's line says what is missing, this one why so much was
 * asked for. True: the driver fails, as it does after a kernel that did, and its error is the launch's. */
static bool say_unknown(CUfunction function, CUresult why)
{
    const char *name = cws_cuda_kernel_name(function), *error = NULL;
    name = name ? name : "(no name)";
    if (why == CUDA_ERROR_INVALID_HANDLE) {
        cws_shim_say("kernel %s: the driver does not tell its parameters, so all weights have to be resident when it "
                     "runs",
                     name);
        return false;
    }
    cws_cuda_driver()->error_name(why, &error);
    cws_shim_say("kernel %s: the driver fails to tell its parameters (%s, %d), so what it needs is not known", name,
                 error ? error : "no name", (int)why);
    return true;
}

/* Begins the use of what the parameters name. On success cws_cuda_end is due. */
static CUresult begin_launch(CUfunction function, void **params, void **extra, CUstream order, struct cws_cuda_use *use)
{
    struct cws_cuda_list list;
    use->count = 0;
    if (cws_cuda_is_capturing(order)) /* nothing runs now; cuGraphLaunch makes it ready */
        return CUDA_SUCCESS;
    cws_cuda_list_init(&list);
    cws_cuda_scan_params(function, params, extra, &list);
    if (CWS_UNLIKELY(list.recent))
        cws_cuda_list_add_recent(&list);
    CUresult result = cws_cuda_begin(order, &list, use);
    if (CWS_UNLIKELY(result != CUDA_SUCCESS && list.everything) && say_unknown(function, list.why))
        result = list.why;
    cws_cuda_list_deinit(&list);
    return result;
}

CUresult cws_do_cuLaunchKernel(cws_fn_cuLaunchKernel real, CUstream own, CUfunction function, unsigned grid_x,
                               unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                               unsigned shared, CUstream stream, void **params, void **extra)
{
    struct cws_cuda_use use;
    CUresult result = begin_launch(function, params, extra, cws_cuda_stream(stream, own), &use);
    if (CWS_UNLIKELY(result != CUDA_SUCCESS))
        return result;
    result = real(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, params, extra);
    cws_cuda_end(&use, result == CUDA_SUCCESS);
    return result;
}

CUresult cws_do_cuLaunchKernelEx(cws_fn_cuLaunchKernelEx real, CUstream own, const CUlaunchConfig *config,
                                 CUfunction function, void **params, void **extra)
{
    struct cws_cuda_use use;
    CUresult result = begin_launch(function, params, extra, cws_cuda_stream(config ? config->hStream : NULL, own),
                                   &use);
    if (CWS_UNLIKELY(result != CUDA_SUCCESS))
        return result;
    result = real(config, function, params, extra);
    cws_cuda_end(&use, result == CUDA_SUCCESS);
    return result;
}

CUresult cws_do_cuLaunchCooperativeKernel(cws_fn_cuLaunchCooperativeKernel real, CUstream own, CUfunction function,
                                          unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                          unsigned block_y, unsigned block_z, unsigned shared, CUstream stream,
                                          void **params)
{
    struct cws_cuda_use use;
    CUresult result = begin_launch(function, params, NULL, cws_cuda_stream(stream, own), &use);
    if (CWS_UNLIKELY(result != CUDA_SUCCESS))
        return result;
    result = real(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, params);
    cws_cuda_end(&use, result == CUDA_SUCCESS);
    return result;
}

/* Deprecated, and one stream per device: one use for each launch of the list. */
CUresult cws_do_cuLaunchCooperativeKernelMultiDevice(cws_fn_cuLaunchCooperativeKernelMultiDevice real, CUstream own,
                                                     CUDA_LAUNCH_PARAMS *list, unsigned count, unsigned flags)
{
    struct cws_cuda_use uses[CWS_CUDA_DEVICES];
    CUresult result = CUDA_SUCCESS;
    unsigned begun = 0;
    if (!list || count > CWS_CUDA_DEVICES)
        return real(list, count, flags);
    for (; begun < count && result == CUDA_SUCCESS; begun++)
        result = begin_launch(list[begun].function, list[begun].kernelParams, NULL,
                              cws_cuda_stream(list[begun].hStream, own), &uses[begun]);
    if (result == CUDA_SUCCESS)
        result = real(list, count, flags);
    while (begun > 0)
        cws_cuda_end(&uses[--begun], result == CUDA_SUCCESS);
    return result;
}

CUresult cws_do_cuModuleUnload(cws_fn_cuModuleUnload real, CUstream own, CUmodule module)
{
    (void)own;
    CUresult result = real(module);
    cws_cuda_layout_unloaded();
    return result;
}

CUresult cws_do_cuLibraryUnload(cws_fn_cuLibraryUnload real, CUstream own, CUlibrary library)
{
    (void)own;
    CUresult result = real(library);
    cws_cuda_layout_unloaded();
    return result;
}
