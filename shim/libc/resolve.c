/* resolve.c - finds the real functions of the C library behind our hooks. */
#include "hooks.h"

#include <dlfcn.h>
#include <errno.h>

struct cws_real cws_real;

static const char *const names[CWS_HOOK_COUNT] = {
#define CWS_HOOK(name, result, parameters) #name,
#include "hooks.def"
#undef CWS_HOOK
};

/* Stands in for a symbol that this C library lacks. Both results that a caller can tell failure by: -1 and, for the few
 * functions that return a pointer, they exist in every C library we build for. */
static long absent(void)
{
    errno = ENOSYS;
    return -1;
}

_Static_assert(sizeof(struct cws_real) == CWS_HOOK_COUNT * sizeof(void *), "one pointer per line of hooks.def");

void *cws_real_find(enum cws_hook_index which)
{
    int saved = errno;
    void **slot = (void **)&cws_real + which;
    void *found = dlsym(RTLD_NEXT, names[which]);
#ifdef __x86_64__
    if (!found) /* names kept only for old programs have no default version */
        found = dlvsym(RTLD_NEXT, names[which], "GLIBC_2.2.5");
#endif
    if (!found)
        found = (void *)absent;
    __atomic_store_n(slot, found, __ATOMIC_RELAXED);
    errno = saved;
    return found;
}

void cws_real_find_all(void)
{
    for (unsigned i = 0; i < CWS_HOOK_COUNT; i++)
        cws_real_find((enum cws_hook_index)i);
}

unsigned cws_real_count(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < CWS_HOOK_COUNT; i++)
        count += ((void **)&cws_real)[i] != (void *)absent;
    return count;
}
