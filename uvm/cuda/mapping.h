/* mapping.h - which file lies behind memory of this process, and whether the memory still shows it. Asked of the
 * kernel; nothing is kept.
 * Threads: any. Uses store/base/os.h, so that the shim's hooks are not entered. */
#ifndef CWS_MAPPING_H
#define CWS_MAPPING_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct cws_mapping {
    uintptr_t begin, end;
    uint64_t offset, inode; /* of the file at `begin` */
    /* as the kernel tells it for mappings, which is not st_dev on some file systems */
    dev_t device;
    char path[4096]; /* as the kernel tells it: with " (deleted)" behind it if that is so */
};

/* The private mapping of a file that holds all of [at, at + bytes), bytes > 0. False: there is none, or it cannot be
 * told. A few microseconds from Linux 6.11 on, before that the list of all mappings is read: 30 us and more. */
bool cws_mapping_find(uintptr_t at, size_t bytes, struct cws_mapping *out);

/* No page of [at, at + bytes), in a private mapping of a file, was written to: /proc/self/pagemap says what is still
 * the file's. False, too, where it cannot be told. */
bool cws_mapping_is_clean(uintptr_t at, size_t bytes);
#endif
