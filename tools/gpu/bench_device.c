/* bench_device.c - device memory and failures for the parts of bench_decode (bench.h). */
#include "bench.h"

_Noreturn void bench_die(const char *what, const char *why)
{
    fprintf(stderr, "bench_decode: %s: %s\n", what, why);
    exit(2);
}

void bench_driver(const struct bench *b, CUresult r, const char *what)
{
    struct cws_error err;
    if (r == CUDA_SUCCESS)
        return;
    cws_driver_fail(&b->driver, &err, r, what);
    bench_die("driver", err.message);
}

void bench_rc(int rc, const struct cws_error *err)
{
    if (rc != 0)
        bench_die("failed", err->message);
}

void *bench_need(void *p)
{
    if (!p)
        bench_die("memory", "not enough");
    return p;
}

CUdeviceptr bench_device(const struct bench *b, size_t bytes)
{
    CUdeviceptr p = 0;
    bench_driver(b, b->driver.mem_alloc(&p, bytes ? bytes : 1), "allocation");
    return p;
}

void bench_free(const struct bench *b, CUdeviceptr p) { bench_driver(b, b->driver.mem_free(p), "free"); }

void bench_clear(const struct bench *b, CUdeviceptr p, size_t bytes)
{
    bench_driver(b, b->driver.set8_async(p, 0, bytes, b->stream), "clearing");
}

void bench_upload(const struct bench *b, CUdeviceptr to, const void *from, size_t bytes)
{
    /* On the stream: one that does not block is not ordered behind a plain copy, which may end before the bytes are
     * there. */
    bench_driver(b, b->driver.copy_in_async(to, from, bytes, b->stream), "copy to the device");
    bench_driver(b, b->driver.stream_sync(b->stream), "copy to the device");
}

void bench_download(const struct bench *b, void *to, CUdeviceptr from, size_t bytes)
{
    bench_driver(b, b->driver.copy_out(to, from, bytes), "copy from the device");
}
