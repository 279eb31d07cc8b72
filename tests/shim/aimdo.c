/* aimdo.c - a library with the name of comfy-aimdo's, for test_cuda_shim_loud. */
__attribute__((visibility("default"))) int aimdo_is_here(void);
int aimdo_is_here(void) { return 1; }
