/* pager.h - the inside of uvm/host/: the one pager, its views, and what the modules offer each other. Only uvm/ and its
 * tests include it.
 *
 * Suffix _locked: the caller holds the pager lock. "May drop the lock" is said where it is so. Every thread that calls
 * in here has its signals blocked (store/base/guard.h), but for the contract functions of view.h, which do it
 * themselves. */
#ifndef CWS_PAGER_H
#define CWS_PAGER_H
#include "store/base/trace.h"
#include "block.h"
#include "channel.h"
#include "uvm/policy/policy.h"
#include "rung.h"
#include "source.h"
#include "store/base/guard.h"
#include "store/base/lock.h"
#include "store/base/os.h"
#include "store/base/own_fd.h"
#include "store/base/sys.h"
#include "view.h"
#include <pthread.h>
#include <time.h>

enum {
    CWS_SLOTS_MAX = 4,      /* decoders at work at the same time */
    CWS_STREAMS = 4,        /* sequential readers followed in one view */
    CWS_QUEUE_ENTRIES = 64, /* readahead waiting for a worker; a power of two */
    CWS_VIEWS_MAX = 32768,  /* half of what vm.max_map_count allows by default */
    /* far below vm.max_map_count: the sigsegv rung needs up to two mappings for each */
    CWS_BLOCKS_RESIDENT_MAX = 16384,
};
#define CWS_BLOCK_BYTES_MIN ((uint64_t)64 << 10)
#define CWS_BLOCK_BYTES_MAX ((uint64_t)1 << 20)
#define CWS_BUDGET_UNLIMITED (UINT64_MAX / 4)

/* set: the page is the view's. Cleared: it was unmapped, and may be another mapping's by now */
#define CWS_ATTR_MAPPED 0x80u
#define CWS_ATTR_PROT 0x07u /* PROT_READ | PROT_WRITE as the program asked */

struct cws_stream {      /* pager lock. One sequential reader: a fault in [begin, end] continues it */
    uint32_t begin, end; /* block indexes; end is the last one asked for ahead */
    uint32_t window;     /* how far to go ahead, in blocks */
};

struct cws_view {
    uint8_t *base;
    size_t bytes;    /* multiple of the page size */
    uint64_t offset; /* of base in the source */
    struct cws_source *source;
    uint32_t block_bytes, block_count;
    struct cws_block *blocks;
    int prot; /* of every page while attrs is NULL */
    /* one per page, or NULL: all mapped with `prot`. An entry is changed by the owner of its CHANGING block, under
     * the pager lock */
    uint8_t *_Atomic attrs;
    bool unmapped;                  /* no page is mapped (says so where there is no array); pager lock */
    size_t mapped_pages;            /* pager lock */
    int uffd;                       /* of its channel; -1: none */
    struct cws_channel *channel;    /* views lock; NULL: none */
    uint32_t slot, slot_generation; /* names the view in the queue */
    /* pager lock; threads that looked the view up and still use it. Destruction waits for 0 */
    _Atomic uint32_t users;
    struct cws_stream streams[CWS_STREAMS];
    uint32_t next_stream;
    struct cws_view *next_ending; /* views lock; list of views that an unmap ends */
    bool ending;                  /* views lock; is in it */
};

struct cws_decoder_slot { /* one decoder: its private memory; the source's cursor of the same number belongs to it */
    uint8_t *staging;
    size_t staging_bytes;
};

struct cws_ahead { /* a queued guess */
    uint32_t view_slot, view_generation, block;
};

struct cws_outside {     /* pager lock. What outside.c knows; bytes */
    _Atomic bool active; /* a phase of reading is on; may be read without the lock */
    uint64_t base;       /* anonymous memory outside of views when it began */
    /* in this phase: of blocks that were filled for the first time; at the last sample, about so many of these */
    uint64_t read, copied;
    uint64_t read_before, copied_before; /* in phases that ended */
    uint64_t sampled, read_at;           /* `decoded` at the last sample, at the last first fill */
    time_t decoded_at;                   /* seconds: when the last block was filled */
    bool warned;
    bool off; /* memory outside of views is not watched any more */
};

/* resident == bytes of CLEAN blocks; in_flight == bytes reserved by FILLING from ABSENT; written == bytes of WRITTEN
 * blocks. resident + in_flight <= budget, unless nothing that is resident may be dropped, or room is being made for a
 * smaller one (cws_pager_set_budget). */
struct cws_pager {
    struct cws_lock views_lock, lock;
    _Atomic bool running; /* changed under the views lock */
    bool child;           /* in a forked child: no workers */
    const struct cws_rung *rung;
    struct cws_options options;
    _Atomic uint64_t budget; /* pager lock; may be read without it */
    uint64_t block_bytes;
    struct cws_policy policy;
    uint64_t resident, in_flight, written, peak;
    uint64_t faults, write_faults, decoded, evictions, prefetched, errors, dead_reads, dead_read_bytes;
    bool warned_written, warned_stuck;
    struct cws_outside outside;
    _Atomic uint32_t busy;     /* busy blocks; fork waits for 0 */
    _Atomic uint32_t forking;  /* set by fork: no block becomes busy */
    _Atomic uint32_t evicting; /* counts evictions that ended, to wait for one */
    uint32_t evictions_running;
    struct cws_decoder_slot slots[CWS_SLOTS_MAX];
    unsigned slot_count;
    uint32_t slots_taken; /* bit per slot */
    _Atomic uint32_t slot_word;
    struct cws_ahead queue[CWS_QUEUE_ENTRIES];
    uint32_t queue_head, queue_tail;
    int epoll_fd, kick_fd, pagemap_fd, hole_fd;
    int statm_fd;
    int zero_fd; /* -1: view memory is MAP_ANONYMOUS */
    pthread_t workers[CWS_SLOTS_MAX];
    unsigned worker_count;
    _Atomic bool stop;
    struct cws_guard fork_guard; /* from prepare to parent or child */
};
extern struct cws_pager cws_pager;

/* --- pages of a view (pages.c) ------------------------------------------------------------------ */

static inline size_t cws_block_begin(const struct cws_view *v, uint32_t block)
{
    return (size_t)block * v->block_bytes;
}
static inline size_t cws_block_end(const struct cws_view *v, uint32_t block)
{
    size_t end = ((size_t)block + 1) * v->block_bytes;
    return end < v->bytes ? end : v->bytes;
}
static inline uint32_t cws_block_of(const struct cws_view *v, size_t at) { return (uint32_t)(at / v->block_bytes); }

/* Fresh memory for pages of a view, or to be moved into one: private, without swap reserved; `more` are further MAP_
 * flags, `offset` is where in the view it belongs, so that neighbours of one protection are one mapping. Result as of
 * cws_sys_mmap. On the sigsegv rung it is a private mapping of /dev/zero: anonymous memory like any, but smaps shows a
 * name, by which views can be told from outside where userfaultfd does not mark them. */
long cws_view_memory(void *addr, size_t len, int prot, int more, size_t offset);

/* The attributes of the page at byte `at`. */
unsigned cws_page_attr(const struct cws_view *v, size_t at);
/* The next run of mapped pages with equal protection in [at, end): true, [*out_begin, *out_end) and *out_prot; false:
 * none is left. */
bool cws_page_run(const struct cws_view *v, size_t at, size_t end, size_t *out_begin, size_t *out_end, int *out_prot);
size_t cws_pages_mapped_bytes(const struct cws_view *v, size_t begin, size_t end);
/* The views lock is held. Allocates the attribute array if there is none: 0 or -ENOMEM. */
CWS_MUST_CHECK int cws_pages_need_attrs(struct cws_view *v);
/* Is there memory behind this page (present or in swap)? From pagemap; UNKNOWN when that cannot be read. */
enum cws_page_presence { CWS_PAGE_ABSENT, CWS_PAGE_THERE, CWS_PAGE_UNKNOWN };
/* Of several: ABSENT or UNKNOWN when one of them is. */
enum cws_page_presence cws_pages_present(const void *addr, size_t pages);
static inline enum cws_page_presence cws_page_present(const void *addr) { return cws_pages_present(addr, 1); }

/* --- which view (index.c) ----------------------------------------------------------------------- */

/* A stretch of a view that is still the view's, as byte offsets in it. */
struct cws_piece {
    struct cws_view *view;
    size_t from, to;
};
/* The caller holds both locks. -ENOMEM: too many views. */
CWS_MUST_CHECK int cws_index_insert_locked(struct cws_view *v);
/* [addr, addr + len) belongs to no view any more. Never called where it needs an entry more than there are
 * (can_cut). */
void cws_index_cut_locked(const void *addr, size_t len);
/* False: all entries are taken, and the range lies inside one, which would become two. */
bool cws_index_can_cut_locked(const void *addr, size_t len);
/* The view ends; all of it was cut. */
void cws_index_forget_locked(struct cws_view *v);
/* The first piece of a view in [addr, addr + len); false: none. */
bool cws_index_find_locked(const void *addr, size_t len, struct cws_piece *out);
/* Every view once: start with *slot = 0 until NULL. */
struct cws_view *cws_index_next_locked(uint32_t *slot);
size_t cws_index_count_locked(void);
/* The view that a queue entry means, or NULL when it ended. */
struct cws_view *cws_index_slot_locked(uint32_t slot, uint32_t generation);

static inline void cws_view_use_locked(struct cws_view *v) { atomic_fetch_add(&v->users, 1); }
static inline void cws_view_unuse_locked(struct cws_view *v)
{
    if (atomic_fetch_sub(&v->users, 1) == 1)
        cws_wake(&v->users);
}

/* --- budget (budget.c) ------------------------------------------------------------------------------- */

/* Reserves `bytes` of the budget, dropping clean blocks. May drop the lock. False, only for_prefetch: no room worth
 * it. */
bool cws_budget_reserve_locked(uint64_t bytes, bool for_prefetch);
/* The least budget that blocks of their present size allow. */
uint64_t cws_pager_least_budget_now(void);
/* Bytes became or are no longer written; warns once past the budget. */
void cws_budget_written_locked(uint64_t bytes);
/* Block state changes that touch the busy count. End wakes threads that faulted meanwhile. */
void cws_busy_begin_locked(struct cws_block *b, enum cws_block_state to);
void cws_busy_end_locked(struct cws_block *b, enum cws_block_state to);
/* Waits until the block is not busy and no fork is under way. Drops the lock while it waits. */
void cws_busy_wait_locked(struct cws_block *b);
/* A free decoder. Drops the lock while it waits. */
unsigned cws_slot_take_locked(void);
void cws_slot_give_locked(unsigned slot);
/* Makes slot memory of at least `bytes`. 0 or -ENOMEM. No lock. */
CWS_MUST_CHECK int cws_slot_need(unsigned slot, size_t bytes);

/* --- memory outside of views (outside.c) --------------------------------------------------------------- */

/* A block was filled, and counted in `decoded`; may write the one line. Does not drop the lock. */
void cws_outside_filled_locked(struct cws_block *b, uint64_t bytes);
/* Called now and then while nothing is decoded in a phase of reading. No lock is held. */
void cws_outside_look(void);
/* Anonymous memory of the process that is no view's; 0: not known. */
uint64_t cws_outside_bytes_locked(void);

/* --- filling (fill.c) -------------------------------------------------------------------------------- */

enum cws_fill_why { CWS_FILL_FAULT, CWS_FILL_WRITE_FAULT, CWS_FILL_HOLD, CWS_FILL_AHEAD };

/* Decodes and publishes one block. The caller uses the view and holds no lock.
 * 0: the block was filled, or is no longer ABSENT for another reason: look again; for AHEAD also when there was no
 * room, or it failed: that is said when the program asks for the block. Else the code of the failed decode: the block
 * is FAILED, the line was written to stderr. */
int cws_fill(struct cws_view *v, uint32_t block, enum cws_fill_why why, struct cws_error *err);
/* A write to a CLEAN block was announced: it becomes WRITTEN and writable. */
void cws_make_written_locked(struct cws_view *v, uint32_t block);
/* Decodes [begin, end) (byte offsets in the view, in this block) again. `replace`: the caller owns the block (CHANGING)
 * and all pages are put back; else it was CLEAN or WRITTEN, if it still is it is claimed, and missing pages are put
 * back. The state stays. No lock is held. On failure the line was written to stderr, and the missing pages raise
 * SIGBUS; with `replace` nothing has changed, or all of [begin, end) raises SIGBUS. */
int cws_refill(struct cws_view *v, uint32_t block, size_t begin, size_t end, bool replace, struct cws_error *err);

/* --- readahead (readahead.c), workers (workers.c) ---------------------------------------------------- */

void cws_readahead_fault_locked(struct cws_view *v, uint32_t block);
/* Queues one guess if the block is ABSENT and there is room: whether it was. */
bool cws_readahead_push_locked(struct cws_view *v, uint32_t block);
/* No guess is left in the queue; a worker may still be at work on one. */
void cws_readahead_forget_locked(void);
/* Wakes workers, so that they look at the queue of guesses. */
void cws_workers_kick(unsigned jobs);
CWS_MUST_CHECK int cws_workers_start(struct cws_error *err);
void cws_workers_stop(void);
/* A fault message of a uffd rung was read for byte `at` of view v, which the caller uses. */
void cws_workers_serve(struct cws_view *v, size_t at, bool write, bool protect);

/* --- the trace (pager_trace.c): spans and marks of a block, and the counters. Nothing without CODEC_TRACE ---- */

bool cws_block_trace_begin_slow(const struct cws_view *v, uint32_t block, enum cws_trace_kind kind, const char *why);
void cws_block_trace_mark_slow(const struct cws_view *v, uint32_t block, enum cws_trace_kind kind);
static inline bool cws_block_trace_begin(const struct cws_view *v, uint32_t block, enum cws_trace_kind kind,
                                         const char *why)
{
    return cws_trace_is_on() && cws_block_trace_begin_slow(v, block, kind, why);
}
static inline void cws_block_trace_mark(const struct cws_view *v, uint32_t block, enum cws_trace_kind kind)
{
    if (cws_trace_is_on())
        cws_block_trace_mark_slow(v, block, kind);
}
void cws_pager_trace_counts_locked(void);

/* --- the rest ---------------------------------------------------------------------------------------- */

/* "codecllm: TEXT\n" to stderr by one write(2). Safe in a handler. */
void cws_say(const char *fmt, ...) CWS_PRINTF(1, 2);
/* Prints the line and aborts the process: threads that wait for a page must never see zeros. */
_Noreturn void cws_die(const char *fmt, ...) CWS_PRINTF(1, 2);
/* Installs the SIGSEGV handling that the sigsegv rung needs (signal.c). 0 or -errno. Async-signal-safe. */
int cws_signal_install(void);
/* pthread_atfork, once (fork.c); the views lock is held. 0 or -errno. */
CWS_MUST_CHECK int cws_fork_register(void);
/* Lets workers read messages from a userfaultfd; `event` names it. 0 or -errno. */
CWS_MUST_CHECK int cws_workers_watch(int fd, uint64_t event);

/* Points where a test may stop a thread or make it fail. Compiled in with CWS_INJECT. */
enum cws_phase {
    CWS_PHASE_RESERVED,  /* the block is FILLING; before decoding */
    CWS_PHASE_DECODED,   /* before publishing */
    CWS_PHASE_PUBLISHED, /* pages are visible, the state is still FILLING */
    CWS_PHASE_EVICTING,  /* before pages are dropped */
    CWS_PHASE_DROPPED,   /* pages are dropped, the state is still EVICTING */
    CWS_PHASE_EVENT,     /* a worker has read a fault message */
};
#ifdef CWS_INJECT
extern void (*_Atomic cws_phase_hook)(enum cws_phase phase, struct cws_view *v, uint32_t block);
static inline void cws_phase(enum cws_phase phase, struct cws_view *v, uint32_t block)
{
    void (*hook)(enum cws_phase, struct cws_view *, uint32_t) = atomic_load_explicit(&cws_phase_hook,
                                                                                     memory_order_acquire);
    if (hook)
        hook(phase, v, block);
}
#else
static inline void cws_phase(enum cws_phase phase, struct cws_view *v, uint32_t block)
{
    (void)phase, (void)v, (void)block;
}
#endif
#endif
