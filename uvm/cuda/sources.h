/* sources.h - where the bytes of bound ranges come from, and the pinned host memory that they wait in. A source is one
 * tensor of one store or of one file, shared by all that is bound to it. It has parts: chunks that follow each other
 * and are read, kept and given up together. Fetcher threads read their stored bytes into host memory; what is spilled
 * (spill.c) is counted here, too, and goes before them. A source that was adopted (adopt.h) has neither store nor file:
 * its host memory, of its one part, is all that has the bytes, and lives as long as it.
 *
 * A part:
 *   READY, no host memory   nobody needs the bytes now
 *   WANTED --> FETCHING --> READY with host memory, or FAILED
 *   adopted: READY with host memory, until the content on the device is another one (cws_gpu_source_unneeded)
 *
 * Pinned memory is never more than the host budget. A share of it, `leave`, is for what comes and goes: parts that are
 * read for one load. All else (parts that stay, what was adopted and spilled) has the rest. Of what comes and goes, the
 * parts that loads need next come first, and those that are only ahead give way to them. Each load needs one part, and
 * what it needs it can send: so whoever waits for room gets it. Memory of what comes and goes is used again, because
 * pinning and freeing take the driver long.
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

enum { CWS_GPU_FETCHERS = 6 }; /* threads that read stores */

enum cws_source_state { CWS_SOURCE_WANTED, CWS_SOURCE_FETCHING, CWS_SOURCE_READY, CWS_SOURCE_FAILED };
struct cws_gpu_part {
    struct cws_gpu_source *source;
    uint64_t first_chunk, chunk_count;
    enum cws_source_state state;
    /* WANTED: cws_gpu_sources.first if it is needed, .ahead if it is loading, else .later. READY, with host memory that
     * does not stay: .passing */
    struct cws_list link;
    bool keeps;    /* the bytes stay in host memory after a load */
    uint8_t *host; /* pinned; the stored bytes as they lie in the file, or the decoded ones (plain) */
    size_t host_bytes;
    uint32_t loading, needed; /* loads that have begun it; for which it is the next, or under way: they read host */
};
struct cws_gpu_source {
    struct cws_store *store;   /* or, NULL: */
    struct cws_gpu_file *file; /* or, both NULL, host; then tensor is the source's own */
    const struct cws_tensor_info *tensor;
    struct cws_list link; /* cws_gpu_sources.all */
    uint32_t refs;        /* extents, and loads under way */
    uint32_t fetching;    /* parts */
    bool listed;          /* in cws_gpu_sources.by_tensor */
    /* host holds the decoded bytes: the tensor has chunks that only the host decodes */
    bool plain;
    struct cws_gpu_table *table; /* device form, or NULL */
    struct cws_error error;      /* why a part FAILED */
    uint64_t part_chunks;        /* of each part but the last */
    uint32_t part_count;
    struct cws_gpu_part parts[];
};

struct cws_gpu_garbage { /* pinned memory that a fetcher is to free, or that lies idle */
    struct cws_gpu_garbage *next;
    size_t bytes;
};

struct cws_gpu_sources {
    struct cws_gpu_core *core;
    struct cws_list all;
    struct cws_map by_tensor; /* those of stores, by cws_store_tensor_key; each is a struct cws_gpu_source * */
    struct cws_list first, ahead, later, passing; /* parts */
    struct cws_cond fetch;                        /* a part is WANTED, there is room for one, or garbage */
    pthread_t fetchers[CWS_GPU_FETCHERS];
    unsigned threads;
    uint64_t host_bytes, host_budget; /* pinned: all of it */
    uint64_t leave;                   /* of the budget: for what comes and goes */
    uint64_t part_bytes;              /* of host memory of a part, at most, unless one chunk has more */
    uint64_t passing_bytes;           /* of host_bytes: parts that do not stay, and idle memory */
    uint64_t kept_bytes;              /* of host_bytes: copies of what is on the device */
    /* bytes of the host budget that a spill waits for: fetches that no launch waits for leave them */
    uint64_t claimed;
    struct cws_gpu_garbage *garbage;
    uint64_t garbage_bytes;       /* of that list and of what is being freed now; part of host_bytes */
    struct cws_gpu_garbage *idle; /* of parts that came and went, for the next */
    uint64_t idle_bytes;          /* of that list; part of passing_bytes */
};

/* host_budget: bytes of pinned memory, CWS_PINNED_LEAST at least; 0: cws_memory_limit_pinned. Starts no thread. */
void cws_gpu_sources_init(struct cws_gpu_sources *s, struct cws_gpu_core *core, uint64_t host_budget);
/* So much of the host budget is pinned for staging, which others count. Before anything else is. */
void cws_gpu_host_withhold(struct cws_gpu_sources *s, uint64_t bytes);
CWS_MUST_CHECK int cws_gpu_sources_start(struct cws_gpu_sources *s, struct cws_error *err);
/* The core was stopped: waits until the threads have ended. */
void cws_gpu_sources_join(struct cws_gpu_sources *s);
void cws_gpu_sources_close(struct cws_gpu_sources *s);

/* The source of a tensor, with a reference for the caller: one for all stores of the same file. NULL: no memory. */
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
    return cws_gpu_source_is_adopted(s) && !s->parts[0].host;
}
/* The part that has a chunk of the tensor. */
static inline struct cws_gpu_part *cws_gpu_source_part(struct cws_gpu_source *s, uint64_t chunk)
{
    return &s->parts[chunk / s->part_chunks];
}
void cws_gpu_source_put(struct cws_gpu_sources *s, struct cws_gpu_source *source);
const char *cws_gpu_source_path(const struct cws_gpu_source *source);

/* These chunks are wanted in host memory, as far as they can stay there. */
void cws_gpu_source_want(struct cws_gpu_sources *s, struct cws_gpu_source *source, uint64_t first_chunk,
                         uint64_t chunk_count);
/* A load begins a part, with a reference of its own to its source. It is to be READY with host memory, and may be
 * WANTED again until it is needed. */
void cws_gpu_part_begin(struct cws_gpu_sources *s, struct cws_gpu_part *part);
/* A load needs a part that it has begun: nothing of what it needed before is still to be sent. It will be READY with
 * host memory until it ends, or FAILED. */
void cws_gpu_part_need(struct cws_gpu_sources *s, struct cws_gpu_part *part);
/* A load has read the last of a part, or gives up; needed: as above. Bytes that do not stay are given up. */
void cws_gpu_part_end(struct cws_gpu_sources *s, struct cws_gpu_part *part, bool needed);
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
/* `bytes` of host memory, which were claimed, are taken by a spill; they were not. */
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
