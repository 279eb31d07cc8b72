/* file_version.h - whether two looks at a file saw the same one, and the same content. Threads: any. */
#ifndef CWS_FILE_VERSION_H
#define CWS_FILE_VERSION_H
#include <stdbool.h>
#include <sys/stat.h>

static inline bool cws_is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev;
}

/* As far as size and times tell: not of what was written within one tick of the file system's clock. */
static inline bool cws_is_same_version(const struct stat *a, const struct stat *b)
{
    return cws_is_same_file(a, b) && a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec && a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

#endif
