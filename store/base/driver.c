/* driver.c - the table of driver calls, filled from the installed libcuda.so.1. */
#include "driver.h"

#include <dlfcn.h>

int cws_driver_fill(struct cws_driver *out, void *(*resolve)(void *arg, const char *symbol), void *arg,
                    struct cws_error *err)
{
#define CWS_DRIVER_CALL(member, symbol, parameters)                                                                    \
    out->member = (CUresult(*) parameters)resolve(arg, symbol);                                                        \
    if (!out->member)                                                                                                  \
        return cws_fail(err, CWS_E_UNSUPPORTED, "the CUDA driver has no %s: version 12.4 or newer is needed", symbol);
    CWS_DRIVER_CALLS
#undef CWS_DRIVER_CALL
    return 0;
}

static void *resolve_in(void *library, const char *symbol) { return dlsym(library, symbol); }

int cws_driver_load(struct cws_driver *out, struct cws_error *err)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        return cws_fail(err, CWS_E_UNSUPPORTED, "no CUDA driver: %s", dlerror());
    return cws_driver_fill(out, resolve_in, library, err);
}

int cws_driver_fail(const struct cws_driver *driver, struct cws_error *err, CUresult error, const char *what)
{
    const char *name = NULL;
    if (!driver || driver->error_name(error, &name) != CUDA_SUCCESS || !name)
        name = "CUDA error";
    return cws_fail(err, -20000 - error, "%s: %s (%d)", what, name, error);
}

CUstreamCaptureMode cws_driver_relax(const struct cws_driver *driver, bool *exchanged)
{
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    *exchanged = driver->capture_mode(&mode) == CUDA_SUCCESS;
    return mode;
}

void cws_driver_restore(const struct cws_driver *driver, CUstreamCaptureMode mode, bool exchanged)
{
    if (exchanged)
        driver->capture_mode(&mode);
}

CUresult cws_driver_wait(const struct cws_driver *driver, CUstream stream)
{
    bool exchanged;
    CUstreamCaptureMode mode = cws_driver_relax(driver, &exchanged);
    CUresult result = driver->stream_sync(stream);
    cws_driver_restore(driver, mode, exchanged);
    return result;
}
