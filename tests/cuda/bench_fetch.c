/* bench_fetch.c - how fast the sources of the CUDA manager bring the stored bytes of a packed file to pinned host
 * memory, in rounds over all of its tensors as a program that generates tokens wants them, and what share of the disk's
 * speed that is. Nothing is decoded; pinned memory is the stand-in driver's, which costs less than a real one's.
 *
 *   bench_fetch STORE [HOST_BUDGET_MIB [ROUNDS [uring|preadv]]]        default: 256 MiB, 2 rounds, the best engine
 *
 * The file is dropped from the page cache before each round (what a hypervisor caches below is out of reach). The
 * disk's speed is that of 16 direct reads of 1 MiB in flight over the same file. */
#include "uvm/cuda/sources.h"
#include "store/read/reader.h"
#include "tests/standin/standin.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOADS = 6 }; /* tensors under way at a time, as the loader has them */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void need(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "bench_fetch: %s\n", what);
    exit(2);
}

/* GB/s of the disk. */
static double disk_speed(int fd, uint64_t bytes)
{
    enum { DEPTH = 16, EXTENT = 1 << 20 };
    struct cws_reader *r;
    struct cws_error err = {0};
    struct cws_reader_options options = {
        .direct = CWS_DIRECT_ALWAYS, .slots = DEPTH, .extent_bytes = EXTENT, .file_bytes = bytes};
    need(!cws_reader_create(fd, &options, &r, &err), err.message);
    uint64_t extents = bytes / EXTENT;
    double begin = now();
    for (uint64_t i = 0, started = 0; i < extents; i++) {
        const uint8_t *data;
        for (; started < extents && started < i + DEPTH; started++)
            cws_reader_submit(r, (unsigned)(started % DEPTH), started * EXTENT, EXTENT);
        need(!cws_reader_wait(r, (unsigned)(i % DEPTH), &data), "a read failed");
    }
    double seconds = now() - begin;
    printf("%-12s %6.2f GB/s (%s, %d reads of %d KiB in flight)\n", "disk", (double)(extents * EXTENT) / seconds / 1e9,
           cws_reader_engine(r), DEPTH, EXTENT >> 10);
    cws_reader_destroy(r);
    return (double)(extents * EXTENT) / seconds / 1e9;
}

struct walk {
    struct cws_gpu_core core;
    struct cws_gpu_sources sources;
    struct cws_gpu_source **list;
    size_t count;
};

/* Parts of sources, one after the other. */
struct at {
    size_t source;
    uint32_t part;
};

static struct cws_gpu_part *part_at(struct walk *w, struct at *at)
{
    if (at->source < w->count && at->part == w->list[at->source]->part_count)
        *at = (struct at){.source = at->source + 1};
    return at->source < w->count ? &w->list[at->source]->parts[at->part] : NULL;
}

static void round_over_all_drops_lock(struct walk *w)
{
    struct at ended = {0}, begun = {0};
    struct cws_gpu_part *p;
    cws_gpu_lock(&w->core);
    for (; (p = part_at(w, &ended)) != NULL; ended.part++) {
        struct cws_gpu_part *next;
        for (; (next = part_at(w, &begun)) != NULL && begun.source < ended.source + LOADS; begun.part++)
            cws_gpu_part_begin(&w->sources, next);
        cws_gpu_part_need(&w->sources, p);
        while (p->state != CWS_SOURCE_READY && p->state != CWS_SOURCE_FAILED)
            cws_gpu_changed_wait_drops_lock(&w->core);
        need(p->state == CWS_SOURCE_READY, p->source->error.message);
        cws_gpu_part_end(&w->sources, p, true);
    }
    cws_gpu_unlock(&w->core);
}

static void say(const char *line) { fprintf(stderr, "bench_fetch: %s\n", line); }

int main(int argc, char **argv)
{
    struct cws_driver driver;
    struct cws_error err = {0};
    struct cws_store *store;
    struct walk w = {.count = 0};
    struct stat st;
    if (argc < 2 || argc > 5) {
        fprintf(stderr, "usage: bench_fetch STORE [HOST_BUDGET_MIB [ROUNDS [uring|preadv]]]\n");
        return 2;
    }
    uint64_t budget = (argc > 2 ? strtoull(argv[2], NULL, 10) : 256) << 20;
    unsigned rounds = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 2;
    enum cws_io_engine io = argc < 5 ? CWS_IO_AUTO : !strcmp(argv[4], "uring") ? CWS_IO_URING : CWS_IO_PREADV;
    int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    need(fd >= 0 && !fstat(fd, &st), "the store cannot be read");
    need(!cws_store_open(argv[1], io, &store, &err), err.message);
    standin_reset((size_t)1 << 30);
    need(!cws_driver_fill(&driver, standin_resolve, NULL, &err) && driver.init(0) == CUDA_SUCCESS, err.message);
    const struct cws_gpu_config config = {.driver = &driver, .say = say};
    need(driver.primary_retain(&w.core.context, 0) == CUDA_SUCCESS, "no context");
    driver.context_set(w.core.context);
    CUcontext context = w.core.context;
    cws_gpu_core_init(&w.core, &config, 0);
    w.core.context = context;
    cws_gpu_sources_init(&w.sources, &w.core, budget);
    w.list = calloc(cws_store_tensor_count(store), sizeof(struct cws_gpu_source *));
    for (size_t i = 0; i < cws_store_tensor_count(store); i++) {
        const struct cws_tensor_info *t = cws_store_tensor(store, i);
        if (t->end - t->begin >= 1 << 20)
            w.list[w.count++] = cws_gpu_source_get(&w.sources, store, t);
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    double disk = disk_speed(fd, (uint64_t)st.st_size);
    need(!cws_gpu_sources_start(&w.sources, &err), err.message);
    for (unsigned i = 0; i < rounds; i++) {
        struct cws_store_counters before, after;
        cws_store_counters_get(store, &before);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        double begin = now();
        round_over_all_drops_lock(&w);
        double seconds = now() - begin;
        cws_store_counters_get(store, &after);
        double read = (double)(after.read_bytes - before.read_bytes) / 1e9;
        printf("round %-6u %6.2f GB/s, %.2f GB, %.2f of the disk\n", i + 1, read / seconds, read,
               read / seconds / disk);
    }
    cws_gpu_core_stop(&w.core);
    cws_gpu_sources_join(&w.sources);
    cws_gpu_sources_close(&w.sources);
    free(w.list);
    cws_store_close(store);
    close(fd);
    return 0;
}
