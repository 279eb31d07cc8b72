/* memory_limit.h - how much host memory this process may have: the machine's, or less where a control group or a
 * resource limit says so. The one place that reads these; CODEC_VRAM_BUDGET=50%, the default of CODEC_HOST_BUDGET, the
 * choice of O_DIRECT and `codecllm doctor` come from here.
 *
 * Counted are: MemTotal of /proc/meminfo (which containers may make smaller); memory.max and memory.high of the
 * process's group and of all groups above it that can be seen (control groups, version 2), memory.limit_in_bytes
 * (version 1); and RLIMIT_AS and RLIMIT_DATA. Where the groups are mounted, and which part of their tree, is read from
 * /proc/self/mountinfo: in a container the process's group is "/" or a path that begins above the mount. What cannot be
 * read limits nothing. */
#ifndef CWS_MEMORY_LIMIT_H
#define CWS_MEMORY_LIMIT_H
#include <stdint.h>

struct cws_memory_limit {
    uint64_t physical_bytes; /* MemTotal; UINT64_MAX: not known */
    uint64_t bytes;          /* the least of all limits, physical memory being one */
    uint64_t free_bytes;     /* about what it may still take: MemAvailable, or less where a group's limit is nearer;
                              * file pages that the kernel would give up count as free. Resource limits are not in it.
                              * UINT64_MAX: not known */
    char from[256];          /* what `bytes` comes from: "physical memory", "memory.max of /sys/fs/cgroup/x",
                              * "RLIMIT_AS", ... */
};

/* root: "" for this machine, or a directory that holds proc/ and the mount points, for tests.
 * Threads: any. Never allocates; keeps errno; no descriptor is left open. Takes about 0.1 ms: not for hot paths. */
void cws_memory_limit_get(const char *root, struct cws_memory_limit *out);

/* The least that paging to a GPU takes of pinned host memory. */
#define CWS_PINNED_LEAST ((uint64_t)4 << 20)
/* What it takes at most where CODEC_HOST_BUDGET says nothing, for each GPU: half of free_bytes, 1 GiB where that is not
 * known, CWS_PINNED_LEAST at least. */
uint64_t cws_memory_limit_pinned(const struct cws_memory_limit *limit);

#endif
