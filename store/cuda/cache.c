/* cache.c - compiled kernels kept from one program to the next. A file is the image and the XXH3 of it, seeded with
 * that of the sources: one that was cut short, changed, or made of other sources is not taken. */
#include "store/base/atomic_file.h"
#include "store/format/checksum.h"
#include "store/base/os.h"
#include "compile.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IMAGE_BYTES_MAX (64u << 20)

static uint64_t seed_of_sources(const struct cws_gpu_target *target)
{
    uint64_t seed = (uint64_t)target->major * 1000 + (uint64_t)target->minor;
    for (size_t i = 0; i < CWS_GPU_SOURCES; i++)
        seed = cws_checksum(cws_gpu_sources.text[i], strlen(cws_gpu_sources.text[i]), seed);
    return seed;
}

/* False: no home, or a path that is too long. make: creates the directories that are missing. */
static bool path_of(const struct cws_gpu_target *target, bool make, char *out, size_t bytes)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = cache && cache[0] == '/' ? snprintf(out, bytes, "%s", cache)
            : home && home[0] == '/' ? snprintf(out, bytes, "%s/.cache", home)
                                     : -1;
    for (unsigned part = 0; part < 2 && n >= 0 && (size_t)n < bytes; part++) {
        if (part == 1)
            n += snprintf(out + n, bytes - (size_t)n, "/codecllm");
        if (make && (size_t)n < bytes)
            /* one that is there is fine; one that cannot be made shows when the file is */
            mkdir(out, 0700);
    }
    if (n >= 0 && (size_t)n < bytes)
        n += snprintf(out + n, bytes - (size_t)n, "/kernels-sm%d%d-%016llx.bin", target->major, target->minor,
                      (unsigned long long)seed_of_sources(target));
    return n >= 0 && (size_t)n < bytes;
}

/* Code from this file will run on the device: nobody but this user and root may have had a hand in it. */
static bool is_ours(const struct stat *s)
{
    return (s->st_uid == geteuid() || s->st_uid == 0) && !(s->st_mode & (S_IWGRP | S_IWOTH));
}

/* The directory of `path`, if nobody else can put files into it: a descriptor, or -1. */
static int open_directory(const char *path)
{
    char directory[1024];
    struct stat s;
    snprintf(directory, sizeof directory, "%.*s", (int)(strrchr(path, '/') - path), path);
    int fd = cws_os_openat(AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
    if (fd >= 0 && (cws_os_fstat(fd, &s) != 0 || !is_ours(&s))) {
        cws_os_close(fd);
        fd = -1;
    }
    return fd < 0 ? -1 : fd;
}

static void *read_image(int fd, const struct cws_gpu_target *target, size_t *bytes)
{
    struct stat s;
    size_t got = 0;
    uint64_t sum;
    if (cws_os_fstat(fd, &s) != 0 || !S_ISREG(s.st_mode) || !is_ours(&s) || s.st_nlink != 1 ||
        s.st_size <= (off_t)sizeof sum || s.st_size > IMAGE_BYTES_MAX)
        return NULL;
    size_t size = (size_t)s.st_size - sizeof sum;
    char *image = malloc(size + sizeof sum);
    if (image && (cws_os_read_full(fd, image, size + sizeof sum, 0, &got) != 0 || got != size + sizeof sum)) {
        free(image);
        return NULL;
    }
    if (!image)
        return NULL;
    memcpy(&sum, image + size, sizeof sum);
    if (sum != cws_checksum(image, size, seed_of_sources(target))) {
        free(image);
        return NULL;
    }
    image[size] = '\0'; /* PTX is a string */
    *bytes = size;
    return image;
}

void *cws_gpu_cache_read(const struct cws_gpu_target *target, size_t *bytes)
{
    char path[1024];
    int directory = path_of(target, false, path, sizeof path) ? open_directory(path) : -1;
    if (directory < 0)
        return NULL;
    /* a FIFO would wait for a writer */
    int fd = cws_os_openat(directory, strrchr(path, '/') + 1, O_RDONLY | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK, 0);
    cws_os_close(directory);
    if (fd < 0)
        return NULL;
    void *image = read_image(fd, target, bytes);
    cws_os_close(fd);
    return image;
}

void cws_gpu_cache_write(const struct cws_gpu_target *target, const void *image, size_t bytes)
{
    char path[1024];
    struct cws_atomic_file file;
    struct cws_error err = {0};
    uint64_t sum = cws_checksum(image, bytes, seed_of_sources(target));
    int directory = bytes <= IMAGE_BYTES_MAX && path_of(target, true, path, sizeof path) ? open_directory(path) : -1;
    if (directory < 0)
        return;
    cws_os_close(directory);
    if (cws_atomic_begin(&file, path, NULL, &err) != 0)
        return;
    if (fchmod(file.fd, 0600) != 0 || cws_atomic_write(&file, image, bytes, 0, &err) != 0 ||
        cws_atomic_write(&file, &sum, sizeof sum, bytes, &err) != 0 || cws_atomic_commit(&file, &err) != 0)
        cws_atomic_abort(&file);
}
