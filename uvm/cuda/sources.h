/* sources.h - where the bytes of bound ranges come from, and the pinned host memory that they wait in. A source is one
 * tensor of one store or of one file, shared by all that is bound to it. Fetcher threads read its stored bytes into
 * host memory; what is spilled (spill.c) is counted here, too, and goes before them. A source that was adopted
 * (adopt.h) has neither store nor file: its host memory is all that has the bytes, and lives as long as it.
 *
 *   READY, no host memory   nobody needs the bytes now
 *   WANTED --> FETCHING --> READY with host memory, or FAILED
 *   adopted: READY with host memory, until the content on the device is another one (cws_gpu_source_unneeded)
 *
 * Threads: the caller of every function holds the manager's lock, but for open and close. */
#ifndef CWS_GPU_SOURCES_H
#define CWS_GPU_SOURCES_H
#include "store/base/list.h"
#include "store/base/map.h"
#include "store/cuda/decoder.h"
#include "core.h"
#include "file.h"
#include <pthread.h>

enum { CWS_GPU_FETCHERS = 3 }; /* threads that read stores */

enum cws_source_state { CWS_SOURCE_WANTED, CWS_SOURCE_FETCHING, CWS_SOURCE_READY, CWS_SOURCE_FAILED };
struct cws_gpu_source {
    struct cws_store *store;   /* or, NULL: */
    struct cws_gpu_file *file; /* or, both NULL, host; then tensor is the source's own */
    const struct cws_tensor_info *tensor;
    struct cws_list link; /* cws_gpu_sources.all */
    uint32_t refs;        /* extents, and loads under way */
    enum cws_source_state state;
    bool urgent;            /* a launch waits for it */
    struct cws_list wanted; /* WANTED: cws_gpu_sources.first if urgent, else .later */
    bool keeps;             /* the bytes stay in host memory after a load */
    /* host holds the decoded bytes: the tensor has chunks that only the host decodes */
    bool plain;
    uint8_t *host; /* pinned; the stored bytes as they lie in the file, or the decoded ones */
    size_t host_bytes;
    struct cws_gpu_table *table; /* device form, or NULL */
    uint32_t loading;            /* loads that read host now */
    struct cws_error error;      /* why FAILED */
};

struct cws_gpu_garbage { /* pinned memory that a fetcher is to free */
    struct cws_gpu_garbage *next;
    size_t bytes;
};

struct cws_gpu_sources {
    struct cws_gpu_core *core;
    struct cws_list all;
    struct cws_map by_tensor;     /* those of stores; each is a struct cws_gpu_source * */
    struct cws_list first, later; /* WANTED */
    struct cws_cond fetch;        /* a source is WANTED, or there is garbage */
    pthread_t fetchers[CWS_GPU_FETCHERS];
    unsigned threads;
    uint64_t host_bytes, host_budget;
    uint64_t kept_bytes; /* of host_bytes: copies of what is on the device */
    /* bytes of the host budget that a spill waits for: fetches that no launch waits for leave them */
    uint64_t claimed;
    struct cws_gpu_garbage *garbage;
    uint64_t garbage_bytes; /* of that list and of what is being freed now; part of host_bytes */
};

/* host_budget: bytes of pinned memory; 0: half of what this machine or its cgroup has free. Starts no thread. */
void cws_gpu_sources_init(struct cws_gpu_sources *s, struct cws_gpu_core *core, uint64_t host_budget);
CWS_MUST_CHECK int cws_gpu_sources_start(struct cws_gpu_sources *s, struct cws_error *err);
/* The core was stopped: waits until the threads have ended. */
void cws_gpu_sources_join(struct cws_gpu_sources *s);
void cws_gpu_sources_close(struct cws_gpu_sources *s);

/* The source of a tensor, with a reference for the caller. NULL: no memory. */
struct cws_gpu_source *cws_gpu_source_get(struct cws_gpu_sources *s, struct cws_store *store,
                                          const struct cws_tensor_info *tensor);
/* The same of an ordinary file; takes its own reference to it, and `tensor` (cws_gpu_file_describe) where it
 * succeeds. */
struct cws_gpu_source *cws_gpu_source_of_file(struct cws_gpu_sources *s, struct cws_gpu_file *file,
                                              struct cws_tensor_info *tensor);
void cws_gpu_source_retain(struct cws_gpu_source *source); /* one more reference */
/* The same of memory that was adopted: `host`, `host_bytes` of cws_gpu_host_reserve_drops_lock, is the source's where
 * it succeeds, and so is `tensor` (cws_gpu_raw_describe). */
struct cws_gpu_source *cws_gpu_source_of_memory(struct cws_gpu_sources *s, struct cws_tensor_info *tensor,
                                                uint8_t *host, size_t host_bytes);
static inline bool cws_gpu_source_is_adopted(const struct cws_gpu_source *s) { return !s->store && !s->file; }
/* Its bytes cannot be had any more: what it was of was written to. */
static inline bool cws_gpu_source_is_gone(const struct cws_gpu_source *s)
{
    return cws_gpu_source_is_adopted(s) && !s->host;
}
void cws_gpu_source_put(struct cws_gpu_sources *s, struct cws_gpu_source *source);
const char *cws_gpu_source_path(const struct cws_gpu_source *source);

/* The bytes are wanted in host memory. READY, or not yet (a fetcher was woken), or FAILED. */
enum cws_source_state cws_gpu_source_want(struct cws_gpu_sources *s, struct cws_gpu_source *source, bool urgent);
/* A load begins to read them, with a reference of its own; has read the last of them: bytes that do not stay are given
 * up. */
void cws_gpu_source_load_begin(struct cws_gpu_sources *s, struct cws_gpu_source *source);
void cws_gpu_source_load_end(struct cws_gpu_sources *s, struct cws_gpu_source *source);
/* All that is bound to it was written to, or is to be: if that is one, nobody will load from it any more. */
void cws_gpu_source_unneeded(struct cws_gpu_sources *s, struct cws_gpu_source *source);

/* --- host memory for what is adopted --- */

/* Pinned bytes that a tensor of `bytes` bytes takes. */
size_t cws_gpu_host_bytes_of(size_t bytes);
/* Counts so many of them as taken, where the budget of host memory has them: compressed bytes, which can be read again,
 * are given up for them, and a part of the budget stays for what comes and goes. May wait a moment until what was given
 * up is free. False: it has not. */
bool cws_gpu_host_reserve_drops_lock(struct cws_gpu_sources *s, size_t host_bytes);

/* --- host memory for what is spilled --- */

/* Bytes that spilled content can have: free ones, those of compressed bytes that can be read from their file again, and
 * those of copies of what is on the device. */
uint64_t cws_gpu_host_left(const struct cws_gpu_sources *s);
/* Bytes of the host budget that nothing has. */
uint64_t cws_gpu_host_unused(const struct cws_gpu_sources *s);
/* `bytes` are to be had: compressed bytes are given up for them. Whether they are free by now, or will be once fetchers
 * have swept, which wakes the loader; else the caller gives up copies, and asks again. */
enum cws_host_room { CWS_HOST_FREE, CWS_HOST_SWEEPING, CWS_HOST_SHORT };
enum cws_host_room cws_gpu_host_claim(struct cws_gpu_sources *s, uint64_t bytes);
/* The loader begins a pass: what is still to be made is claimed again. True: there was a claim. */
bool cws_gpu_host_unclaim(struct cws_gpu_sources *s);
/* The loader ends it: a claim that was not made again leaves room for fetches. */
void cws_gpu_host_unclaimed(struct cws_gpu_sources *s);
/* `bytes` of host memory were or will be taken by a spill; they were not. */
void cws_gpu_host_take(struct cws_gpu_sources *s, uint64_t bytes);
void cws_gpu_host_untake(struct cws_gpu_sources *s, uint64_t bytes);
/* Taken memory now is a copy of what is on the device, or the only one again. */
void cws_gpu_host_keep(struct cws_gpu_sources *s, uint64_t bytes);
void cws_gpu_host_unkeep(struct cws_gpu_sources *s, uint64_t bytes);
/* Pinned memory that was taken: a fetcher frees it. */
void cws_gpu_host_give(struct cws_gpu_sources *s, void *host, size_t bytes);

/* NULL, or what does not hold. */
const char *cws_gpu_sources_check(const struct cws_gpu_sources *s);
#endif
