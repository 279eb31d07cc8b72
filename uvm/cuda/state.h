/* state.h - the inside of the CUDA manager: ranges, frames, sources, streams, and what its files offer each other.
 *
 * Files   manager.c open and close      arena.c addresses       frame.c physical memory and the budget
 *         range.c alloc, free   bind.c copies that bind  use.c begin, end     stream.c progress of streams
 *         file.c ordinary files as sources (mapping.h)
 *         spill.c what no source gives back   strict.c one use at a time
 *         set.c sets that were named together
 *         source.c compressed bytes in host memory           order_use.c what comes next, who stays (order.h)
 *         trace.c what CODEC_TRACE records                   nvtx.c ranges for a profiler
 *         loader.c the thread that loads and drops           load.c, drop.c its two sequences
 *
 * Locks, in this order: `strict` (strict.c), `slow` (one launch at a time waits for memory), `lock` (everything in
 * struct cws_gpu and below that does not say otherwise). Driver calls that take long (create, map, set access, unmap,
 * copies, launches, waits) are made without `lock`; event_record, event_query and pool_get are made under it. Only the
 * loader thread loads and drops; memory for fresh ranges is mapped by the thread that needs it.
 *
 * States of a range (suffix _locked: the caller holds `lock`)
 *
 *   RESERVED ---bind---> BOUND --load--> LOADING --> RESIDENT --drop--> DROPPING --> BOUND
 *      |                   ^                            |                   `--(was written)--> DIRTY
 *      `--first use--> MAKING --> ANONYMOUS             |
 *   ANONYMOUS, DIRTY --spill--> SPILLING --> SPILLED (host memory has it) --restore--> SPILLING --> as before
 *   any, when the program frees it --> CACHED (memory stays, for the next allocation of this size) or gone
 *
 * Invariants (cws_gpu_check)
 *   I1  A range is mapped exactly in RESIDENT, ANONYMOUS, DIRTY and CACHED. LOADING, MAKING, SPILLING and DROPPING
 *       belong to one thread.
 *   I2  A frame has exactly one place: a range, or the idle list. frame_bytes is the sum of all frames.
 *   I3  A range is dropped only with no holds, and after all of its uses are done on their streams.
 *   I4  frame_bytes + granted_bytes + ring_bytes + other_bytes <= budget, except after other_bytes grew by itself
 *       (pools). A range that is freed while uses name it is found by no address any more and lives on, RESERVED, until
 *       the last of them ends: a launch may name a range only by a stray word.
 *   I5  RESIDENT: the frame's content equalled the source when it was mapped. BOUND: nothing but the source has the
 *       content. */
#ifndef CWS_GPU_STATE_H
#define CWS_GPU_STATE_H
#include "store/format/content_hash.h"
#include "store/cuda/decoder.h"
#include "store/base/list.h"
#include "store/base/map.h"
#include "store/base/trace.h"
#include "manager.h"
#include "file.h"
#include "uvm/policy/order.h"
#include <pthread.h>
#include <stdatomic.h>

enum {
    CWS_GPU_USERS = 4,        /* streams whose last use of a range is remembered one by one */
    CWS_GPU_STREAMS = 256,    /* streams of the program that are followed at a time */
    CWS_GPU_EVENTS = 64,      /* marks in flight on a stream */
    CWS_GPU_MARK_EVERY = 16,  /* uses between two marks */
    CWS_GPU_SLOTS = 8,        /* batches of chunks in flight, at most */
    CWS_GPU_SLOT_CHUNKS = 64, /* chunks of a batch */
    CWS_GPU_LOADS = 12,       /* loads in flight */
    CWS_GPU_DROPS = 32,       /* evictions in flight */
    CWS_GPU_MANAGERS = 16,    /* of a process */
    CWS_GPU_SETS = 32,        /* largest sets of ranges that are remembered; bits of cws_gpu_range.sets */
    CWS_GPU_FETCHERS = 3,     /* threads that read stores */
};

enum cws_range_state {
    CWS_RANGE_RESERVED,
    CWS_RANGE_BOUND,
    CWS_RANGE_LOADING,
    CWS_RANGE_RESIDENT,
    CWS_RANGE_DROPPING,
    CWS_RANGE_MAKING,
    CWS_RANGE_ANONYMOUS,
    CWS_RANGE_DIRTY,
    CWS_RANGE_CACHED,
    CWS_RANGE_SPILLING,
    CWS_RANGE_SPILLED,
};

struct cws_gpu_frame {
    CUmemGenericAllocationHandle handle;
    uint32_t granules;
    CUdeviceptr alias;    /* mapped here as long as the frame lives */
    struct cws_list link; /* idle list */
};

/* Where the bytes of a bound range come from: one tensor of one store. Shared by all ranges bound to it. */
enum cws_source_state { CWS_SOURCE_WANTED, CWS_SOURCE_FETCHING, CWS_SOURCE_READY, CWS_SOURCE_FAILED };
struct cws_gpu_source {
    struct cws_store *store;   /* or, NULL: */
    struct cws_gpu_file *file; /* then tensor is the source's own */
    const struct cws_tensor_info *tensor;
    struct cws_list link; /* gpu->sources */
    uint32_t refs;        /* ranges, and loads under way */
    enum cws_source_state state;
    bool urgent;            /* a launch waits for it */
    struct cws_list wanted; /* WANTED: gpu->fetch_first if urgent, else gpu->fetch_later */
    bool keeps;             /* the bytes stay in host memory after a load */
    /* host holds the decoded bytes: the tensor has chunks that only the host decodes */
    bool plain;
    uint8_t *host; /* pinned; the stored bytes as they lie in the file, or the decoded ones */
    size_t host_bytes;
    struct cws_gpu_table *table; /* device form, or NULL */
    uint32_t loading;            /* loads that read host now */
    struct cws_error error;      /* why FAILED */
};

struct cws_gpu_last_use {
    uint32_t stream; /* index + 1; 0: empty */
    uint64_t ticket;
};

struct cws_gpu_range {
    CUdeviceptr base;
    size_t bytes; /* as asked for */
    uint32_t granules;
    enum cws_range_state state;
    uint32_t named; /* uses that have it in their list: it lives until they end */
    uint32_t holds; /* of these, those that keep its memory where it is */
    /* the program freed it, so that its addresses name nothing any more: who owns it (LOADING, SPILLING, ...) or
     * names it (RESERVED) ends it */
    bool freed;
    bool pinned, demanded;
    struct cws_gpu_frame *frame;
    struct cws_gpu_source *source;
    struct cws_gpu_last_use uses[CWS_GPU_USERS];
    uint32_t sets; /* bit per remembered set that it is part of */
    uint64_t used; /* gpu->uses at its last use */
    bool keeps;    /* spilling it failed: it stays on the device */
    /* pinned host memory, accounted as its span: SPILLED, its bytes; spill_kept, those of its last spill */
    void *spill;
    /* it is back on the device, and host memory still has a copy, which is right as long as nobody writes to the
     * range */
    bool spill_kept;
    struct cws_hash128 spill_hash;
    enum cws_range_state spilled_from;
    CUresult failed;             /* of the last load that was demanded */
    struct cws_list link;        /* gpu->ranges */
    struct cws_list wanted;      /* gpu->wanted when demanded */
    struct cws_list cached;      /* gpu->cached when CACHED, oldest first */
    struct cws_order_node order; /* in gpu->order while it has a source */
};

struct cws_gpu_stream {
    CUstream handle;
    /* of CU_STREAM_PER_THREAD: the thread, which alone can record on it; else 0 */
    uint64_t owner;
    bool used, gone;
    uint64_t issued, marked, done; /* tickets */
    uint64_t looked;               /* gpu->look_round when it was asked last */
    struct {
        uint64_t ticket;
        CUevent event;
    } marks[CWS_GPU_EVENTS];
    uint32_t mark_head, mark_count;
};

/* Moments of a batch, by the device's clock; only where a trace runs. */
enum cws_gpu_moment { CWS_MOMENT_COPY, CWS_MOMENT_COPIED, CWS_MOMENT_DECODE, CWS_MOMENT_DECODED, CWS_GPU_MOMENTS };

struct cws_gpu_slot { /* one batch: staging in device memory and its control block in pinned host memory */
    bool busy;
    CUdeviceptr device; /* slot_bytes of stored bytes, then the control block */
    CUdeviceptr device_table, device_jobs, device_results;
    struct cws_gpu_table *table; /* pinned: table, results and jobs follow each other as on the device */
    struct cws_gpu_job *jobs;
    struct cws_gpu_result *results;
    CUevent copied, done;
    struct cws_gpu_load *load;
    uint64_t first_chunk, chunks;
    CUevent moments[CWS_GPU_MOMENTS];
    uint32_t timed; /* bit per moment that was recorded */
};

struct cws_gpu_load { /* a range that is being loaded; belongs to the loader */
    struct cws_gpu_range *range;
    struct cws_gpu_source *source;
    uint64_t next_chunk; /* to be issued */
    uint64_t chunks_done;
    bool for_launch, failed;
    uint32_t lane; /* of the trace, + 1; 0: none */
    uint64_t begin_ns;
};

struct cws_gpu_drop { /* a range that is being evicted; belongs to the loader */
    struct cws_gpu_range *range;
    CUdeviceptr device_result;
    struct cws_gpu_hash_job *job;  /* pinned, which a kernel reads at the same address */
    struct cws_gpu_result *result; /* pinned */
    CUevent done;
    uint64_t begin_ns; /* for the trace; 0: it does not run */
};

struct cws_gpu_trace {
    uint32_t lanes;          /* bit per load that has one */
    uint64_t weights, fixed; /* as last recorded */
    CUevent anchor;          /* recorded at anchor_ns */
    uint64_t anchor_ns;
    uint64_t round_tick, rounds, round_ranges, before_ranges, before_uses; /* rounds of the order of uses */
};

struct cws_gpu_room { /* a thread waits until so many bytes are granted to it; on its stack */
    uint64_t bytes;
    bool granted, refused;
    struct cws_gpu_room *next;
};

struct cws_gpu_hole {
    uint64_t at;
    struct cws_gpu_hole *next;
};

struct cws_gpu_arena { /* addresses, in granules from base */
    CUdeviceptr base;
    uint64_t granules, next;
    struct cws_gpu_hole *holes[4096]; /* by size; larger ones are not used again */
};

struct cws_gpu_garbage { /* pinned memory that a fetcher is to free */
    struct cws_gpu_garbage *next;
    size_t bytes;
};

struct cws_gpu {
    const struct cws_driver *driver;
    struct cws_gpu_config config;
    CUdevice device;
    CUcontext context;
    struct cws_gpu_decoder *decoder;
    bool dead; /* forked child */
    bool work_due;
    bool starved; /* the loader finds no range to evict: the end of a use wakes it */

    pthread_mutex_t strict, slow, lock;
    bool strict_due;        /* all that is mapped and not held is to be evicted */
    pthread_cond_t changed; /* a range or a source changed its state, room was granted */
    pthread_cond_t work;    /* the loader has something to do: work_due, too */
    pthread_cond_t fetch;   /* a source is WANTED */
    pthread_t loader, fetchers[CWS_GPU_FETCHERS];
    unsigned threads; /* started: loader first */
    bool stop;

    struct cws_gpu_arena arena, aliases;
    struct cws_gpu_range **by_granule; /* of the arena; NULL: no range */
    struct cws_list ranges, cached, wanted, idle, sources, fetch_first, fetch_later;
    struct cws_map by_tensor; /* sources of stores; each is a struct cws_gpu_source * */
    uint32_t range_count;

    uint64_t frame_bytes, granted_bytes, ring_bytes, other_plain, other_pools, used_peak;
    /* bytes of sets of bound ranges that launches named, and whose ranges still are; 0: none */
    uint64_t sets[CWS_GPU_SETS];
    uint64_t largest_set, smallest_set; /* of these; smallest 0: there is a place free */
    uint64_t least_budget;
    uint64_t mapped_idle_bytes; /* of frame_bytes: idle list and CACHED */
    uint64_t fixed_bytes;       /* of frame_bytes: ANONYMOUS, DIRTY, MAKING */
    uint64_t bound_bytes;       /* spans of ranges with a source */
    uint64_t resident_bytes;    /* spans of RESIDENT ones */
    struct cws_gpu_pool {
        CUmemoryPool handle;
        /* as last asked; slack: what is unused, less what was allocated since */
        uint64_t reserved, unused, slack;
        uint64_t step, largest; /* the least it grew by; the largest allocation that it was asked for */
    } pools[16];                /* the first: what was the device's current one at first */
    unsigned pool_count;
    uint32_t pool_age;  /* allocations since they were asked */
    uint64_t pool_step; /* the most that one grew at a time */
    /* when it is looked next whether pools have too much, and how long after that */
    uint64_t trim_at_ns, trim_wait_ns;
    uint64_t pool_granted_bytes; /* of granted_bytes */
    struct cws_gpu_room *rooms;
    uint64_t uses;         /* begun */
    uint32_t refusals;     /* times in a row that the driver gave no memory though the budget had room */
    uint32_t waiting;      /* launches that wait for loads */
    uint32_t running_uses; /* begun, not ended, not waiting */
    uint32_t stuck_uses;   /* of these, whose thread waits for memory */

    unsigned stream_count;
    uint64_t look_round; /* a stream is asked once per round */
    struct cws_gpu_stream streams[CWS_GPU_STREAMS];

    struct cws_order order; /* of the bound ranges */
    /* the place in it from which on the loader is to look again; UINT64_MAX: it is awake, or nothing is to be loaded */
    uint64_t wake_at;
    struct cws_gpu_trace trace;
    uint64_t waited_since_ns; /* a launch waits for a better victim; 0: none does */

    /* the loader's own */
    CUstream copy_stream, decode_stream, drop_stream;
    uint8_t *control; /* pinned */
    size_t control_bytes;
    CUdeviceptr ring;
    uint64_t slot_bytes;
    unsigned slot_count;
    struct cws_gpu_slot slots[CWS_GPU_SLOTS];
    unsigned slot_next; /* slots are taken and done in turn */
    unsigned slot_oldest, slots_busy, load_count;
    struct cws_gpu_load loads[CWS_GPU_LOADS];
    /* the last is for spilling; in order: [drop_head, drop_head + drop_count) */
    struct cws_gpu_drop drops[CWS_GPU_DROPS + 1];
    unsigned drop_head, drop_count;
    uint64_t drop_bytes;

    uint64_t host_bytes, host_budget;
    uint64_t kept_bytes; /* spans of copies that are kept */
    /* bytes of the host budget that a spill waits for: fetches that no launch waits for leave them */
    uint64_t host_claimed;
    struct cws_gpu_garbage *garbage;
    uint64_t garbage_bytes;      /* bytes of that list and of what is being freed now; part of host_bytes */
    struct cws_gpu_stats counts; /* the counts since open only */
};

static inline uint64_t cws_gpu_span(const struct cws_gpu_range *r) { return (uint64_t)r->granules * CWS_GPU_GRANULE; }
static inline bool cws_gpu_is_mapped(enum cws_range_state s)
{
    return s == CWS_RANGE_RESIDENT || s == CWS_RANGE_ANONYMOUS || s == CWS_RANGE_DIRTY || s == CWS_RANGE_CACHED;
}

/* Writes one line for the user. The shim puts "codecllm: " before it. */
void cws_gpu_say(struct cws_gpu *gpu, const char *format, ...) CWS_PRINTF(2, 3);
/* Reports, once, that a driver call of ours failed which must not fail. The manager goes on. */
void cws_gpu_unexpected(struct cws_gpu *gpu, CUresult error, const char *what);

uint64_t cws_gpu_now_ns(void);

/* arena.c */
CWS_MUST_CHECK int cws_gpu_arena_open(struct cws_gpu *gpu, struct cws_gpu_arena *arena, uint64_t bytes,
                                      struct cws_error *err);
void cws_gpu_arena_close(struct cws_gpu *gpu, struct cws_gpu_arena *arena);
CUdeviceptr cws_gpu_arena_take_locked(struct cws_gpu_arena *arena, uint32_t granules); /* 0: full */
void cws_gpu_arena_give_locked(struct cws_gpu_arena *arena, CUdeviceptr at, uint32_t granules);
/* The range that holds an address of the arena, or NULL. */
struct cws_gpu_range *cws_gpu_range_at_locked(const struct cws_gpu *gpu, CUdeviceptr address);

/* frame.c */
uint64_t cws_gpu_used_locked(const struct cws_gpu *gpu);
uint64_t cws_gpu_undroppable_locked(const struct cws_gpu *gpu);
/* For the line that says that the budget is too small for something: the least that would do, as far as can be known.
 * `need`: for that itself; `fresh` of it: new bytes that cannot be dropped later. Beside those there must be room for
 * what launches will name: the largest set that one did, or the largest weight. */
uint64_t cws_gpu_least_budget_locked(struct cws_gpu *gpu, uint64_t need, uint64_t fresh);
void cws_gpu_recount_pools_locked(struct cws_gpu *gpu);
/* Bytes of the budget, granted at once or after the loader made room. Drops `lock` while it waits. False: they cannot
 * be had. */
bool cws_gpu_grant_locked(struct cws_gpu *gpu, uint64_t bytes);
/* A frame out of granted bytes, or NULL (then the grant is gone, too). Drops `lock`. */
struct cws_gpu_frame *cws_gpu_frame_create_locked(struct cws_gpu *gpu, uint32_t granules);
/* Destroys a frame that has no place. Drops `lock`. */
void cws_gpu_frame_destroy_locked(struct cws_gpu *gpu, struct cws_gpu_frame *frame);
/* takes one of that size; NULL: none */
struct cws_gpu_frame *cws_gpu_frame_idle_locked(struct cws_gpu *gpu, uint32_t granules);
void cws_gpu_frame_put_idle_locked(struct cws_gpu *gpu, struct cws_gpu_frame *frame);
/* Gives up idle frames and then cached ranges whose uses are done, until `bytes` are free. Drops `lock`. Whether
 * anything was given up. */
bool cws_gpu_release_idle_locked(struct cws_gpu *gpu, uint64_t bytes);
/* Maps a frame at a range, or unmaps it. No lock. */
CUresult cws_gpu_map(struct cws_gpu *gpu, const struct cws_gpu_range *r, const struct cws_gpu_frame *frame);
/* Maps a range again whose eviction was given up. */
void cws_gpu_map_again(struct cws_gpu *gpu, const struct cws_gpu_range *r, const struct cws_gpu_frame *frame);
CUresult cws_gpu_unmap(struct cws_gpu *gpu, const struct cws_gpu_range *r);

/* range.c */
void cws_gpu_range_set_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, enum cws_range_state to);
/* Ends a range that is not mapped: its address may be used again, once no use names it. */
void cws_gpu_range_end_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);
/* One use fewer has the range in its list. */
void cws_gpu_range_unname_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);

/* The program freed a mapped range: its memory waits for the next allocation of its size. */
void cws_gpu_range_cache_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);

/* spill.c; in the loader thread but for the first and forget. `lock` is dropped inside spill_one and restore. */
/* bytes of what could be spilled; looks through all ranges */
uint64_t cws_gpu_spillable_locked(const struct cws_gpu *gpu);
/* Spills the range that is needed last, as far as that is known. False: none can be spilled now. One may be later, when
 * its uses are done or fetchers have made room in host memory. */
bool cws_gpu_spill_one_locked(struct cws_gpu *gpu);
void cws_gpu_spill_restore_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, struct cws_gpu_frame *frame);
void cws_gpu_spill_forget_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);

/* strict.c; nothing happens where config.strict is not set. enter before a use begins; leave when it ended or could not
 * begin. drop in the loader thread: `lock` is dropped in it. */
void cws_gpu_strict_enter(struct cws_gpu *gpu);
void cws_gpu_strict_leave(struct cws_gpu *gpu, CUstream stream, bool queued);
bool cws_gpu_strict_drop_locked(struct cws_gpu *gpu);

/* set.c */
/* a launch names these */
void cws_gpu_set_note_locked(struct cws_gpu *gpu, struct cws_gpu_range *const *ranges, unsigned count);
/* it ends, or was written to */
void cws_gpu_set_forget_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);

/* use.c */
/* A launch waits for the range, or not any more. */
void cws_gpu_demand_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, bool demand);
/* Uses that the calling thread has begun and not ended. While the thread waits for memory they count as stuck: nobody
 * can wait for what they hold. */
unsigned cws_gpu_uses_open(const struct cws_gpu *gpu);

/* stream.c */
struct cws_gpu_stream *cws_gpu_stream_locked(struct cws_gpu *gpu, CUstream handle); /* NULL: too many */
void cws_gpu_stream_note_use_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, CUstream handle);
/* asks the driver; calling thread: as for marks */
bool cws_gpu_stream_captures_locked(struct cws_gpu *gpu, const struct cws_gpu_stream *s);
/* After uses of the calling thread's own stream were noted: no other thread can put a mark behind them. Other streams:
 * nothing. */
void cws_gpu_stream_mark_own_locked(struct cws_gpu *gpu, CUstream handle);
/* Are all uses of the range done? mark: where that is not known yet, put a mark behind them. */
bool cws_gpu_uses_done_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, bool mark);
bool cws_gpu_uses_only_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, CUstream handle); /* or done */
/* Waits until they are. Drops `lock`. */
void cws_gpu_uses_wait_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);
void cws_gpu_streams_close(struct cws_gpu *gpu);

/* source.c */
/* NULL: no memory */
struct cws_gpu_source *cws_gpu_source_get_locked(struct cws_gpu *gpu, struct cws_store *store,
                                                 const struct cws_tensor_info *tensor);
/* Of an ordinary file; takes its own reference, and `tensor` (cws_gpu_file_describe) where it succeeds. NULL: no
 * memory. */
struct cws_gpu_source *cws_gpu_source_of_file_locked(struct cws_gpu *gpu, struct cws_gpu_file *file,
                                                     struct cws_tensor_info *tensor);
const char *cws_gpu_source_path(const struct cws_gpu_source *s);
void cws_gpu_source_put_locked(struct cws_gpu *gpu, struct cws_gpu_source *s);
/* The bytes are wanted in host memory. READY, or not yet (a fetcher was woken), or FAILED. */
enum cws_source_state cws_gpu_source_want_locked(struct cws_gpu *gpu, struct cws_gpu_source *s, bool urgent);
/* A load read the last of them: bytes that do not stay are given up. */
void cws_gpu_source_done_locked(struct cws_gpu *gpu, struct cws_gpu_source *s);
/* pinned memory that host_bytes counts: a fetcher frees it */
void cws_gpu_host_give_locked(struct cws_gpu *gpu, void *host, size_t bytes);
/* The only range that the source has will not be loaded from it any more. */
void cws_gpu_source_unneeded_locked(struct cws_gpu *gpu, struct cws_gpu_source *s);
/* Bytes of the host budget that spilled content can have: free ones, those of compressed bytes that can be read from
 * their file again, and those of copies of what is on the device. */
uint64_t cws_gpu_host_left_locked(const struct cws_gpu *gpu);
/* Are so many free? If not, compressed bytes and copies are given up; the loader is woken when they are freed. */
bool cws_gpu_host_claim_locked(struct cws_gpu *gpu, uint64_t bytes);
void *cws_gpu_fetcher_main(void *gpu);
void cws_gpu_sources_close(struct cws_gpu *gpu);
uint64_t cws_gpu_host_default(void);

/* order_use.c */
void cws_gpu_order_add_locked(struct cws_gpu *gpu, struct cws_gpu_range *r); /* it got a source */
void cws_gpu_order_use_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);
void cws_gpu_order_forget_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);
void cws_gpu_order_walk_locked(struct cws_gpu *gpu);
/* what comes after r (NULL: first), or NULL */
struct cws_gpu_range *cws_gpu_order_coming_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);
/* What to drop for a range whose next use is at the place `until` (0: now), or NULL. Its uses may not be done yet. */
struct cws_gpu_range *cws_gpu_order_victim_locked(struct cws_gpu *gpu, uint64_t until, bool must_be_done);

/* trace.c. Nothing happens where no trace runs. Functions that return bool begin a span of the calling thread, for
 * cws_trace_end. */
void cws_gpu_trace_open(struct cws_gpu *gpu); /* the streams are there */
void cws_gpu_trace_close(struct cws_gpu *gpu);
/* before the order hears of it */
void cws_gpu_trace_use_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_range *r);
bool cws_gpu_trace_wait_slow_locked(const struct cws_gpu_use *use);
/* for a profiler */
void cws_gpu_wait_text_locked(const struct cws_gpu_use *use, char *out, size_t room, uint64_t *out_bytes);
bool cws_gpu_trace_range_slow(const struct cws_gpu_range *r, enum cws_trace_kind kind);
void cws_gpu_trace_memory_slow_locked(struct cws_gpu *gpu);
void cws_gpu_trace_load_begin_slow_locked(struct cws_gpu *gpu, struct cws_gpu_load *load);
void cws_gpu_trace_load_end_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_load *load);
void cws_gpu_trace_drop_slow_locked(struct cws_gpu *gpu, const struct cws_gpu_drop *drop, bool kept);
void cws_gpu_trace_moment_slow(struct cws_gpu *gpu, struct cws_gpu_slot *slot, enum cws_gpu_moment which);
void cws_gpu_trace_batch_slow(struct cws_gpu *gpu, struct cws_gpu_slot *slot); /* it is done */
/* in the loader, when it has nothing to do. True: the lock was dropped, look again */
bool cws_gpu_trace_idle_locked(struct cws_gpu *gpu);
static inline void cws_gpu_trace_moment(struct cws_gpu *gpu, struct cws_gpu_slot *slot, enum cws_gpu_moment which)
{
    if (cws_trace_is_on())
        cws_gpu_trace_moment_slow(gpu, slot, which);
}
static inline void cws_gpu_trace_memory_locked(struct cws_gpu *gpu)
{
    if (cws_trace_is_on())
        cws_gpu_trace_memory_slow_locked(gpu);
}

static inline void cws_gpu_wake_locked(struct cws_gpu *gpu)
{
    gpu->work_due = true;
    pthread_cond_signal(&gpu->work);
}
/* loader.c, load.c, drop.c: in the loader thread; `lock` is held and dropped inside. They return whether anything
 * moved. */
void *cws_gpu_loader_main(void *gpu);
/* of staging, with such a budget */
uint64_t cws_gpu_ring_bytes(const struct cws_gpu_config *config, uint64_t budget);
CWS_MUST_CHECK int cws_gpu_ring_open(struct cws_gpu *gpu, struct cws_error *err);
void cws_gpu_ring_close(struct cws_gpu *gpu);
bool cws_gpu_load_start_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, struct cws_gpu_frame *frame,
                               bool for_launch);
bool cws_gpu_loads_issue_locked(struct cws_gpu *gpu);
bool cws_gpu_loads_reap_locked(struct cws_gpu *gpu);
/* Hash of the range's bytes through its frame's alias, into drop->result: asynchronous, on drop_stream. */
CUresult cws_gpu_drop_hash(struct cws_gpu *gpu, struct cws_gpu_drop *drop, CUdeviceptr alias, size_t bytes);
bool cws_gpu_drop_start_locked(struct cws_gpu *gpu, struct cws_gpu_range *r);
bool cws_gpu_drops_reap_locked(struct cws_gpu *gpu);
bool cws_gpu_load_is_ready(const struct cws_gpu *gpu); /* the oldest batch is done; without the lock */
bool cws_gpu_drop_is_ready(const struct cws_gpu *gpu);

#endif
