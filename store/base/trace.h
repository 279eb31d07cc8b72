/* trace.h - what happened when, as a file for a person: CODEC_TRACE=FILE. ui.perfetto.dev and chrome://tracing load it,
 * `codecllm plot` draws it.
 *
 * The file is a JSON array of trace events, one per line, times in microseconds of CLOCK_MONOTONIC. While the program
 * runs, and after it was killed, the closing bracket is missing: both viewers accept that, and so does any reader that
 * appends it. The last hundredth of a second may be missing then, and after kill -9 the last line may be cut.
 *
 * Recording copies one record into a ring of fixed size: no lock, no allocation, no system call but the thread's
 * number; safe in signal and fault handlers and with any lock held. A thread of its own writes the file. When it cannot
 * keep up records are dropped, never spans that have begun, and an event "lost" tells how many. When the file cannot be
 * written (full disk), one line is said, the file is cut behind its last whole event, and recording ends. A forked
 * child records nothing.
 * Threads: any function from any thread, unless it says otherwise. */
#ifndef CWS_TRACE_H
#define CWS_TRACE_H
#include "error.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum cws_trace_kind {
    CWS_TRACE_FAULT,    /* host: an instruction waits for a block; why: read, write */
    CWS_TRACE_PREFETCH, /* host: a block is decoded on a guess */
    CWS_TRACE_HOLD,     /* host: a block is decoded for a system call */
    CWS_TRACE_EVICT,    /* host: a clean block is dropped */
    CWS_TRACE_UNMAPPED, /* mark. Host: the program gave a block up */
    CWS_TRACE_WRITTEN,  /* mark. The program wrote to a block or range: it can no longer be dropped */
    CWS_TRACE_READ,     /* stored bytes of a chunk: waiting for the reader, checksum */
    CWS_TRACE_DECODE,   /* of a chunk; on a lane: of a batch, on the device */
    CWS_TRACE_PUBLISH,  /* host: decoded pages are put in place */
    /* mark. A launch or a copy named a bound range; why: hit, or what state it was in */
    CWS_TRACE_USE,
    CWS_TRACE_WAIT,  /* a launch waits for its ranges */
    CWS_TRACE_FETCH, /* stored bytes of a part of a tensor are brought to pinned host memory */
    CWS_TRACE_LOAD,  /* lane: a range, from its frame to its mapping; why: demand, ahead */
    CWS_TRACE_COPY,  /* lane: stored bytes to the device, by the device's clock */
    CWS_TRACE_MAP,   /* a frame is mapped at its range */
    /* lane: unmapped, hashed, its frame given back; why: dropped, or written and kept */
    CWS_TRACE_DROP,
    CWS_TRACE_CYCLE, /* mark. The order of uses begins anew: a token, in most programs */
    CWS_TRACE_LOST,  /* mark. The ring was full */
    CWS_TRACE_KINDS
};

struct cws_trace_what {
    enum cws_trace_kind kind;
    const char *tensor; /* copied, at most 185 bytes of it; NULL: none */
    const char *why;    /* static; NULL: none */
    uint64_t bytes;
    uint64_t tensor_bytes; /* of the whole tensor; 0: not said */
    uint64_t index;        /* block, range, chunk or batch; UINT64_MAX: none */
};

/* Lines that are no threads: work that overlaps in one thread, and the device's own. */
enum { CWS_TRACE_LOADS = 16, CWS_TRACE_DROPS = 32, CWS_TRACE_LANES = 64 };
enum cws_trace_lane {
    CWS_LANE_LOAD = 0,
    CWS_LANE_DROP = CWS_TRACE_LOADS,
    CWS_LANE_COPY = CWS_TRACE_LOADS + CWS_TRACE_DROPS,
    CWS_LANE_DECODE
};
static inline uint32_t cws_trace_lane(int device, enum cws_trace_lane lane, unsigned index)
{
    return 1u + (uint32_t)device * CWS_TRACE_LANES + (uint32_t)lane + index;
}

extern _Atomic bool cws_trace_running; /* read it by cws_trace_is_on */
/* What it costs where nobody traces: this. */
static inline bool cws_trace_is_on(void)
{
    return __builtin_expect(atomic_load_explicit(&cws_trace_running, memory_order_relaxed), false);
}

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t cws_trace_now(void);

/* A span of this thread. Spans of a thread nest. What begin returns goes to end, which says nothing if begin did
 * not. */
bool cws_trace_begin_slow(const struct cws_trace_what *what);
void cws_trace_end_slow(enum cws_trace_kind kind);
#define CWS_TRACE_BEGIN(...) (cws_trace_is_on() && cws_trace_begin_slow(&(const struct cws_trace_what){__VA_ARGS__}))
static inline void cws_trace_end(enum cws_trace_kind kind, bool begun)
{
    if (__builtin_expect(begun, false))
        cws_trace_end_slow(kind);
}

/* A span of a lane, all at once, when it is over. Spans of one lane do not overlap and come in order. */
void cws_trace_span(uint32_t lane, uint64_t begin_ns, uint64_t end_ns, const struct cws_trace_what *what);
/* A moment of this thread. */
void cws_trace_mark_slow(const struct cws_trace_what *what);
#define CWS_TRACE_MARK(...)                                                                                            \
    (cws_trace_is_on() ? cws_trace_mark_slow(&(const struct cws_trace_what){__VA_ARGS__}) : (void)0)
/* Bytes in memory now. device < 0: of the host's views; `fixed` cannot be dropped (written there; anonymous and written
 * ranges, staging and the driver's own here). */
void cws_trace_count(int device, uint64_t weights, uint64_t fixed);

/* Starts recording into a file: made or, if it is a trace of ours or empty, replaced. Recording already, into any file:
 * 0 and nothing happens. While another process writes to the file, FILE.PID is made instead (FILE.PID.1, ... where that
 * is there). Errors, with a line: -errno, CWS_E_INPUT (what is there is no trace, a link, no regular file or character
 * device, another user's, or has further hard links). `say` gets one line, without a newline, when something happens
 * later; it is called by the writing thread. At exit the file is finished. */
CWS_MUST_CHECK int cws_trace_start(const char *path, void (*say)(const char *line), struct cws_error *err);
/* Writes what is left and finishes the file. Nothing happens if it does not run. */
void cws_trace_stop(void);
/* The same question that cws_trace_start asks, nothing is made: could the file be written? 0 or the error. */
CWS_MUST_CHECK int cws_trace_check(const char *path, struct cws_error *err);
#endif
