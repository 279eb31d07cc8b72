/* sanitized.h - tests do less under a sanitizer: everything is several times slower. */
#ifndef CWS_TEST_SANITIZED_H
#define CWS_TEST_SANITIZED_H
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
#else
enum { SANITIZED = 0 };
#endif

/* Of the ways of paging one by userfaultfd and one by SIGSEGV will do: nearly all of the code is shared. */
static inline bool rung_is_left_out(const char *rung)
{
    if (!SANITIZED || strcmp(rung, "uffd-dev") == 0 || strcmp(rung, "sigsegv") == 0)
        return false;
    return strcmp(rung, "uffd-user") != 0 || access("/dev/userfaultfd", R_OK | W_OK) == 0;
}
#endif
