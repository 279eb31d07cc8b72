/* bench_read.c - how fast a file is read in extents of a chunk's size: engine, direct or through the page cache,
 * extents in flight. This is where the cursor's queue depths come from.
 *
 *   bench_read FILE [EXTENT_BYTES]        default: 90112, a stored chunk of 256 KiB bf16
 *
 * "cold" rows drop the file from the page cache first (what a hypervisor caches below is out of reach). */
#include "store/read/reader.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Reads the whole file once; MB/s, or a negative code. */
static double read_all(int fd, enum cws_io_engine engine, enum cws_direct direct, unsigned depth, size_t extent,
                       uint64_t bytes, char *out_name, size_t name_bytes)
{
    struct cws_reader *r;
    struct cws_error err = {0};
    struct cws_reader_options options = {
        .engine = engine, .direct = direct, .slots = depth, .extent_bytes = extent, .file_bytes = bytes};
    int rc = cws_reader_create(fd, &options, &r, &err);
    if (rc) {
        fprintf(stderr, "bench_read: %s\n", err.message[0] ? err.message : cws_strerror(rc));
        return rc;
    }
    uint64_t extents = bytes / extent;
    double begin = now();
    for (uint64_t i = 0, started = 0; i < extents && rc == 0; i++) {
        for (; started < extents && started < i + depth; started++)
            cws_reader_submit(r, (unsigned)(started % depth), started * extent, extent);
        const uint8_t *data;
        rc = cws_reader_wait(r, (unsigned)(i % depth), &data);
    }
    double seconds = now() - begin;
    snprintf(out_name, name_bytes, "%s", cws_reader_engine(r));
    cws_reader_destroy(r);
    if (rc)
        fprintf(stderr, "bench_read: %s\n", cws_strerror(rc));
    return rc ? rc : (double)(extents * extent) / seconds / 1e6;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: bench_read FILE [EXTENT_BYTES]\n");
        return 2;
    }
    char *end = NULL;
    unsigned long extent = argc > 2 ? strtoul(argv[2], &end, 10) : 90112;
    int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || extent == 0 || (end && *end) || (uint64_t)st.st_size < extent) {
        fprintf(stderr, "bench_read: %s: cannot be read, or is smaller than an extent of %lu bytes\n", argv[1], extent);
        return 2;
    }
    static const unsigned depths[] = {1, 2, 4, 8, 16, 32};
    printf("%-20s %5s %12s %12s   (MB/s; extents of %lu bytes)\n", "engine", "depth", "cold", "warm", extent);
    for (int direct = 0; direct < 2; direct++) {
        for (int engine = CWS_IO_URING; engine <= CWS_IO_PREADV; engine++) {
            for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
                char name[40] = "";
                double rate[2];
                for (int warm = 0; warm < 2; warm++) {
                    if (!warm)
                        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
                    rate[warm] = read_all(fd, (enum cws_io_engine)engine, direct ? CWS_DIRECT_ALWAYS : CWS_DIRECT_NEVER,
                                          depths[d], extent, (uint64_t)st.st_size, name, sizeof name);
                }
                printf("%-20s %5u %12.0f %12.0f\n", name, depths[d], rate[0], rate[1]);
                fflush(stdout);
            }
        }
    }
    close(fd);
    return 0;
}
