/* decoder.c - a decoder in a CUDA context: its kernels are loaded once and launched for each batch. */
#include "decoder.h"
#include "compile.h"

#include <errno.h>
#include <stdlib.h>

#define WAVES_DEFAULT 1u

struct kernel {
    CUfunction function;
    unsigned blocks; /* that the device holds at a time */
};

struct cws_gpu_decoder {
    const struct cws_driver *driver;
    CUmodule module;
    struct kernel decode[CWS_GPU_KINDS], hash;
    unsigned sms, warps; /* of the device; of a block */
    unsigned waves;
};

static int find_kernel(struct cws_gpu_decoder *d, const char *name, struct kernel *out, struct cws_error *err)
{
    int per_sm = 0;
    CUresult r = d->driver->module_function(&out->function, d->module, name);
    if (r == CUDA_SUCCESS)
        r = d->driver->occupancy(&per_sm, out->function, (int)(32 * d->warps), 0);
    if (r != CUDA_SUCCESS)
        return cws_driver_fail(d->driver, err, r, name);
    if (per_sm < 1)
        return cws_fail(err, CWS_E_UNSUPPORTED, "%s does not fit this device", name);
    out->blocks = (unsigned)per_sm * d->sms;
    return 0;
}

/* Did the driver say that it cannot run such an image here? Another one may do. */
static bool is_about_the_image(CUresult r)
{
    return r == CUDA_ERROR_INVALID_IMAGE || r == CUDA_ERROR_NO_BINARY_FOR_GPU || r == CUDA_ERROR_INVALID_PTX ||
           r == CUDA_ERROR_UNSUPPORTED_PTX_VERSION || r == CUDA_ERROR_JIT_COMPILER_NOT_FOUND;
}

/* The kernels that came with the library, those that an earlier program compiled on this machine, or new ones. */
static int load_some(struct cws_gpu_decoder *d, const struct cws_gpu_target *target, void (*say)(const char *line),
                     struct cws_error *err)
{
    CUresult r = cws_gpu_image() ? d->driver->module_load(&d->module, cws_gpu_image()) : CUDA_ERROR_NO_BINARY_FOR_GPU;
    size_t bytes = 0;
    void *image = NULL;
    if (!is_about_the_image(r))
        return r == CUDA_SUCCESS ? 0 : cws_driver_fail(d->driver, err, r, "loading the decoding kernels");
    image = cws_gpu_cache_read(target, &bytes);
    if (image) {
        r = d->driver->module_load(&d->module, image);
        free(image);
        if (!is_about_the_image(r))
            return r == CUDA_SUCCESS
                       ? 0
                       : cws_driver_fail(d->driver, err, r, "loading the decoding kernels that were kept");
    }
    if (say)
        say("compiling the decoding kernels for this GPU: some seconds, once");
    int rc = cws_gpu_compile(target, &image, &bytes, err);
    if (rc != 0)
        return rc;
    r = d->driver->module_load(&d->module, image);
    if (r == CUDA_SUCCESS)
        cws_gpu_cache_write(target, image, bytes);
    free(image);
    return r == CUDA_SUCCESS ? 0
                             : cws_driver_fail(d->driver, err, r, "loading the decoding kernels that were compiled");
}

/* image: NULL for the library's choice. */
static int load(struct cws_gpu_decoder *d, const void *image, void (*say)(const char *line), struct cws_error *err)
{
    CUdevice device;
    int sms = 0;
    struct cws_gpu_target target = {0};
    CUresult r = d->driver->context_device(&device);
    if (r == CUDA_SUCCESS)
        r = d->driver->device_attribute(&sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    if (r == CUDA_SUCCESS)
        r = d->driver->device_attribute(&target.major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    if (r == CUDA_SUCCESS)
        r = d->driver->device_attribute(&target.minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    if (r == CUDA_SUCCESS)
        r = d->driver->driver_version(&target.driver_version);
    if (r != CUDA_SUCCESS)
        return cws_driver_fail(d->driver, err, r, "the device's properties");
    if (10 * target.major + target.minor < 10 * CWS_GPU_MAJOR_MIN + CWS_GPU_MINOR_MIN)
        return cws_fail(err, CWS_E_UNSUPPORTED, "the GPU has compute capability %d.%d; paging needs %d.%d or later",
                        target.major, target.minor, CWS_GPU_MAJOR_MIN, CWS_GPU_MINOR_MIN);
    d->sms = (unsigned)sms;
    if (image) {
        r = d->driver->module_load(&d->module, image);
        if (r != CUDA_SUCCESS)
            return cws_driver_fail(d->driver, err, r, "loading the decoding kernels");
    } else {
        int rc = load_some(d, &target, say, err);
        if (rc != 0)
            return rc;
    }
    static const char *const names[CWS_GPU_KINDS] = {"cws_gpu_decode_kernel", "cws_gpu_decode_split2_kernel",
                                                     "cws_gpu_decode_quant2_kernel"};
    int rc = find_kernel(d, "cws_gpu_hash_kernel", &d->hash, err);
    for (unsigned kind = 0; kind < CWS_GPU_KINDS && rc == 0; kind++)
        rc = find_kernel(d, names[kind], &d->decode[kind], err);
    return rc;
}

static int create(const struct cws_driver *driver, const void *image, unsigned block_warps,
                  void (*say)(const char *line), struct cws_gpu_decoder **out, struct cws_error *err)
{
    *out = NULL;
    struct cws_gpu_decoder *d = calloc(1, sizeof *d);
    if (!d)
        return cws_fail_errno(err, ENOMEM, "the GPU decoder");
    d->driver = driver;
    d->warps = block_warps;
    d->waves = WAVES_DEFAULT;
    int rc = load(d, image, say, err);
    if (rc != 0) {
        cws_gpu_decoder_destroy(d);
        return rc;
    }
    *out = d;
    return 0;
}

int cws_gpu_decoder_create_from(const struct cws_driver *driver, const void *image, unsigned block_warps,
                                struct cws_gpu_decoder **out, struct cws_error *err)
{
    return create(driver, image, block_warps, NULL, out, err);
}

int cws_gpu_decoder_create(const struct cws_driver *driver, void (*say)(const char *line), struct cws_gpu_decoder **out,
                           struct cws_error *err)
{
    return create(driver, NULL, CWS_GPU_BLOCK_WARPS, say, out, err);
}

void cws_gpu_decoder_destroy(struct cws_gpu_decoder *dec)
{
    if (!dec)
        return;
    if (dec->module)
        dec->driver->module_unload(dec->module);
    free(dec);
}

void cws_gpu_decoder_tune(struct cws_gpu_decoder *dec, unsigned waves) { dec->waves = waves ? waves : WAVES_DEFAULT; }

/* As many blocks as there are tiles for their warps, a multiple of the SMs so that each has as much to do, and no more
 * than fit: a block then loads its table once. Few tiles are spread one to a block. */
static unsigned grid_of(const struct cws_gpu_decoder *d, const struct kernel *k, const struct cws_gpu_batch *batch)
{
    unsigned most = k->blocks * d->waves, want = (batch->tiles + d->warps - 1) / d->warps;
    unsigned grid = (want + d->sms - 1) / d->sms * d->sms;
    grid = grid < most ? grid : most;
    return grid < batch->tiles ? grid : batch->tiles;
}

static int launch(const struct cws_gpu_decoder *d, const struct kernel *k, CUstream stream, CUdeviceptr jobs,
                  const struct cws_gpu_batch *batch, CUdeviceptr results, const uint64_t key[2], const char *what,
                  struct cws_error *err)
{
    if (batch->count == 0)
        return 0;
    uint32_t count = batch->count, units = batch->units;
    uint64_t key0 = key[0], key1 = key[1];
    void *params[] = {&jobs, &count, &units, &results, &key0, &key1};
    CUresult r = CUDA_SUCCESS;
    if (units != 0)
        r = d->driver->launch(k->function, grid_of(d, k, batch), 1, 1, 32 * d->warps, 1, 1, 0, stream, params, NULL);
    return r == CUDA_SUCCESS ? 0 : cws_driver_fail(d->driver, err, r, what);
}

int cws_gpu_decode(const struct cws_gpu_decoder *dec, CUstream stream, CUdeviceptr jobs,
                   const struct cws_gpu_batch *batch, CUdeviceptr results, const uint64_t key[2], struct cws_error *err)
{
    if ((unsigned)batch->kind >= CWS_GPU_KINDS)
        return cws_fail(err, CWS_E_BUG, "a batch for the GPU without a plan");
    return launch(dec, &dec->decode[batch->kind], stream, jobs, batch, results, key, "launching the decoder", err);
}

int cws_gpu_hash(const struct cws_gpu_decoder *dec, CUstream stream, CUdeviceptr jobs,
                 const struct cws_gpu_batch *batch, CUdeviceptr results, const uint64_t key[2], struct cws_error *err)
{
    return launch(dec, &dec->hash, stream, jobs, batch, results, key, "launching the hash", err);
}
