/* image.c - the kernels that nvcc compiled with this library, if it did. */
#include "decoder.h"

#ifdef CWS_GPU_FATBIN
__asm__(".section .rodata\n"
        ".balign 64\n"
        "cws_gpu_fatbin:\n"
        ".incbin \"" CWS_GPU_FATBIN "\"\n"
        ".byte 0\n"
        ".previous\n");
extern const unsigned char cws_gpu_fatbin[] __attribute__((visibility("hidden")));

const void *cws_gpu_image(void) { return cws_gpu_fatbin; }
const char *cws_gpu_image_arches(void) { return CWS_GPU_ARCHES; }
const char *cws_gpu_image_ptx(void) { return CWS_GPU_PTX; }
#else
const void *cws_gpu_image(void) { return NULL; }
const char *cws_gpu_image_arches(void) { return ""; }
const char *cws_gpu_image_ptx(void) { return ""; }
#endif
