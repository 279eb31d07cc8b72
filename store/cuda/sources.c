/* sources.c - the kernels' source files as text in this library, for the compiler on the user's machine. */
#include "compile.h"

/* The kernels' own files, as they lie in the repository. */
#define TEXT(symbol, file)                                                                                             \
    __asm__(".section .rodata\n" #symbol ":\n"                                                                         \
            ".incbin \"" CWS_GPU_SOURCE_DIR "/" file "\"\n"                                                            \
            ".byte 0\n"                                                                                                \
            ".previous\n");                                                                                            \
    extern const char symbol[] __attribute__((visibility("hidden")));

TEXT(cws_gpu_text_decode, "decode.cu")
TEXT(cws_gpu_text_elements, "elements.cuh")
TEXT(cws_gpu_text_hash, "hash.cuh")
TEXT(cws_gpu_text_lanes, "lanes.cuh")
TEXT(cws_gpu_text_job, "job.h")
TEXT(cws_gpu_text_format, "../format/format.h")

/* NVRTC has no headers of a C library. */
static const char stdint_text[] = "typedef unsigned char uint8_t;\n"
                                  "typedef unsigned short uint16_t;\n"
                                  "typedef int int32_t;\n"
                                  "typedef unsigned int uint32_t;\n"
                                  "typedef long long int64_t;\n"
                                  "typedef unsigned long long uint64_t;\n"
                                  "#define UINT64_C(x) x##ull\n"
                                  "#define UINT32_MAX 0xffffffffu\n";

const struct cws_gpu_sources cws_gpu_sources = {
    {"decode.cu", "elements.cuh", "hash.cuh", "lanes.cuh", "job.h", "store/format/format.h", "stdint.h"},
    {cws_gpu_text_decode, cws_gpu_text_elements, cws_gpu_text_hash, cws_gpu_text_lanes, cws_gpu_text_job,
     cws_gpu_text_format, stdint_text},
};
