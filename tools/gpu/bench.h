/* bench.h - what the parts of bench_decode share. A failure of the driver or of memory ends the program. */
#ifndef CWS_TOOLS_GPU_BENCH_H
#define CWS_TOOLS_GPU_BENCH_H
#include "store/format/content_hash.h"
#include "store/cuda/decoder.h"
#include "tests/store/codec_data.h"

#include <stdio.h>

struct bench {
    struct cws_driver driver;
    struct cws_gpu_decoder *decoder;
    CUstream stream;
    struct cws_encode_scratch *scratch;
};

_Noreturn void bench_die(const char *what, const char *why);
void bench_driver(const struct bench *b, CUresult r, const char *what);
void bench_rc(int rc, const struct cws_error *err);
void *bench_need(void *p);
CUdeviceptr bench_device(const struct bench *b, size_t bytes);
void bench_free(const struct bench *b, CUdeviceptr p);
void bench_clear(const struct bench *b, CUdeviceptr p, size_t bytes); /* on the stream */
void bench_upload(const struct bench *b, CUdeviceptr to, const void *from, size_t bytes);
void bench_download(const struct bench *b, void *to, CUdeviceptr from, size_t bytes);

/* Every case against the reference decoder, then `rounds` of corrupted chunks. The number of findings, each printed. */
unsigned bench_check(struct bench *b, unsigned rounds);

/* Decodes `weights` weights of N(0, 0.02) for each lane length and mode; label names the variant in each line. */
/* only: symbols per lane; 0: several */
unsigned bench_time(struct bench *b, const char *label, unsigned long long most_weights, unsigned only);

#endif
