/* dlsym_first.c - with dlsym_second.c: two libraries with one name, for test_cuda_shim. */
#include <dlfcn.h>

__attribute__((visibility("default"))) int dlsym_which(void);
int dlsym_which(void) { return 1; }

__attribute__((visibility("default"))) int dlsym_first_asks_next(void);
int dlsym_first_asks_next(void)
{
    int (*next)(void) = (int (*)(void))dlsym(RTLD_NEXT, "dlsym_which");
    return next ? next() : 0;
}
