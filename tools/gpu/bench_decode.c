/* bench_decode.c - the GPU decoders: right, and how fast. Not installed.
 *   bench_decode check [--rounds N] [--nvrtc WHAT]                 against the reference decoder, odd sizes, corrupt
 *                                                                  chunks
 *   bench_decode time [--weights N] [--lanes SYMBOLS] [--image FILE --warps N | --nvrtc WHAT] [--waves N]
 *                     [--label TEXT]
 * --nvrtc 1: with kernels that NVRTC compiles now, whatever the build has; 75: the same, as PTX for compute capability
 * 7.5, which later devices run, too.
 * Exit 0: fine; 1: a finding; 2: it could not run. */
#include "bench.h"
#include "store/cuda/compile.h"

static void *read_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0)
        bench_die(path, "cannot be opened");
    long bytes = ftell(f);
    rewind(f);
    void *all = bench_need(malloc((size_t)bytes + 1));
    if (bytes <= 0 || fread(all, 1, (size_t)bytes, f) != (size_t)bytes)
        bench_die(path, "cannot be read");
    fclose(f);
    return all;
}

static void *compile(const struct bench *b, CUdevice device, unsigned nvrtc)
{
    struct cws_error err;
    struct cws_gpu_target target = {.ptx = nvrtc > 1};
    char path[1024];
    void *image;
    size_t bytes;
    int version;
    bench_driver(b, b->driver.device_attribute(&target.major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device),
                 "compute capability");
    bench_driver(b, b->driver.device_attribute(&target.minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device),
                 "compute capability");
    if (target.ptx) {
        target.major = (int)nvrtc / 10;
        target.minor = (int)nvrtc % 10;
    }
    bench_driver(b, b->driver.driver_version(&target.driver_version), "version of the driver");
    bench_rc(cws_gpu_compiler_find(&target, path, &version, &err), &err);
    bench_rc(cws_gpu_compile(&target, &image, &bytes, &err), &err);
    printf("kernels: %zu bytes for compute capability %d.%d by NVRTC %d.%d, %s\n", bytes, target.major, target.minor,
           version / 1000, version % 1000, path);
    return image;
}

static void start(struct bench *b, const void *image, unsigned warps, unsigned waves, unsigned nvrtc)
{
    struct cws_error err;
    CUdevice device;
    CUcontext context;
    void *compiled = NULL;
    bench_rc(cws_driver_load(&b->driver, &err), &err);
    bench_driver(b, b->driver.init(0), "cuInit");
    bench_driver(b, b->driver.device_get(&device, 0), "device 0");
    bench_driver(b, b->driver.primary_retain(&context, device), "context");
    bench_driver(b, b->driver.context_set(context), "context");
    if (nvrtc)
        image = compiled = compile(b, device, nvrtc);
    if (image)
        bench_rc(cws_gpu_decoder_create_from(&b->driver, image, warps, &b->decoder, &err), &err);
    else
        bench_rc(cws_gpu_decoder_create(&b->driver, NULL, &b->decoder, &err), &err);
    free(compiled);
    cws_gpu_decoder_tune(b->decoder, waves);
    bench_driver(b, b->driver.stream_create(&b->stream, CU_STREAM_NON_BLOCKING), "stream");
    if (cws_encode_scratch_create(&b->scratch) != 0)
        bench_die("memory", "not enough");
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    unsigned rounds = 20, warps = CWS_GPU_BLOCK_WARPS, waves = 0, lanes = 0, nvrtc = 0;
    unsigned long long weights = 256ull << 20;
    const char *image = NULL, *label = "built-in";
    for (int i = 2; i + 1 < argc; i += 2) {
        const char *v = argv[i + 1];
        if (strcmp(argv[i], "--rounds") == 0)
            rounds = (unsigned)strtoul(v, NULL, 10);
        else if (strcmp(argv[i], "--weights") == 0)
            weights = strtoull(v, NULL, 10);
        else if (strcmp(argv[i], "--lanes") == 0)
            lanes = (unsigned)strtoul(v, NULL, 10);
        else if (strcmp(argv[i], "--image") == 0)
            image = v;
        else if (strcmp(argv[i], "--warps") == 0)
            warps = (unsigned)strtoul(v, NULL, 10);
        else if (strcmp(argv[i], "--waves") == 0)
            waves = (unsigned)strtoul(v, NULL, 10);
        else if (strcmp(argv[i], "--nvrtc") == 0)
            nvrtc = (unsigned)strtoul(v, NULL, 10);
        else if (strcmp(argv[i], "--label") == 0)
            label = v;
        else
            bench_die(argv[i], "unknown option");
    }
    bool check = argc > 1 && strcmp(argv[1], "check") == 0;
    if (argc < 2 || argc % 2 != 0 || (!check && strcmp(argv[1], "time") != 0))
        bench_die("usage", "bench_decode check|time [--option value]...");
    start(&b, image ? read_file(image) : NULL, warps, waves, nvrtc);
    unsigned findings = check ? bench_check(&b, rounds) : bench_time(&b, label, weights, lanes);
    cws_gpu_decoder_destroy(b.decoder);
    cws_encode_scratch_destroy(b.scratch);
    return findings != 0;
}
