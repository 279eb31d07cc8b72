/* streams.h - how far the program's streams have come. Each use gets a number, a ticket, on its stream, and an event, a
 * mark, is recorded behind every few of them.
 *
 * A launch may hand the addresses that it named to the one after it, in device memory: the kernel that prepares a
 * grouped matrix product writes them into a table, and the product itself names the table alone. So the last launch of
 * each thread is not done before the next thing that the thread does with the driver has a mark behind it, too.
 * A thread that does nothing more does not hold its memory for ever: after settle_ns the launch is settled all the
 * same, or after settle_waiting_ns where the thread itself waits for memory, and so queues nothing. Only its own thread
 * can put a mark on CU_STREAM_PER_THREAD; there the one behind the launch itself is what counts then.
 *
 * Streams: legacy and NULL are the same stream; CU_STREAM_PER_THREAD is another one in each thread that names it.
 * Threads: the caller of every function holds the manager's lock. */
#ifndef CWS_GPU_STREAMS_H
#define CWS_GPU_STREAMS_H
#include "core.h"

enum {
    CWS_GPU_USERS = 4,     /* streams whose last use of something is remembered one by one */
    CWS_GPU_STREAMS = 256, /* streams of the program that are followed at a time */
    CWS_GPU_EVENTS = 64,   /* marks in flight on a stream */
    CWS_GPU_LAUNCHERS = 8, /* threads whose last launch on a stream is remembered */
};

struct cws_gpu_stream {
    CUstream handle;
    CUcontext context; /* its own, in which its events are made and recorded */
    /* of CU_STREAM_PER_THREAD: the thread, which alone can record on it; else 0 */
    uint64_t owner;
    bool used, gone;
    uint64_t issued, marked, done; /* tickets */
    uint64_t behind, reached;      /* tickets issued before the last mark, before the last one that was passed */
    uint64_t looked;               /* cws_gpu_streams.round when it was asked last */
    struct {
        uint64_t ticket; /* up to which all is done when it is passed */
        uint64_t behind; /* tickets issued before it */
        CUevent event;
    } marks[CWS_GPU_EVENTS];
    uint32_t mark_head, mark_count;
    struct {
        uint64_t thread; /* 0: none */
        uint64_t ticket; /* the first of its last launch, behind which it has done nothing yet */
        bool waits;      /* the thread waits for memory since then */
    } last[CWS_GPU_LAUNCHERS];
    uint64_t open, open_since_ns; /* the oldest of these, and since when somebody waits for it */
};

struct cws_gpu_streams {
    struct cws_gpu_core *core;
    unsigned count;
    uint64_t round;    /* a stream is asked once per round */
    uint64_t progress; /* moves when it is seen that one has come further */
    struct cws_gpu_stream at[CWS_GPU_STREAMS];
};

struct cws_gpu_user {
    uint32_t stream; /* index + 1; 0: empty */
    uint64_t ticket;
};
struct cws_gpu_users { /* the last uses of something, by stream: zero-initialised */
    struct cws_gpu_user of[CWS_GPU_USERS];
};

void cws_gpu_streams_init(struct cws_gpu_streams *s, struct cws_gpu_core *core);
/* The lock is not held; nobody waits. */
void cws_gpu_streams_close(struct cws_gpu_streams *s);

/* What is known of the streams is old: they are asked again. */
static inline void cws_gpu_streams_look_again(struct cws_gpu_streams *s) { s->round++; }

/* A launch was queued on the stream; its uses are noted next. What the calling thread launched before is settled. */
void cws_gpu_stream_launched(struct cws_gpu_streams *s, CUstream handle);
/* The calling thread has done something else since its last launch: that is settled. */
void cws_gpu_streams_settle(struct cws_gpu_streams *s);
/* The calling thread waits for memory before it does anything else. */
void cws_gpu_streams_waits(struct cws_gpu_streams *s);
/* Work that uses it was queued on the stream. False: the stream cannot be followed; it counts as used for ever. */
CWS_MUST_CHECK bool cws_gpu_users_note(struct cws_gpu_streams *s, struct cws_gpu_users *users, CUstream handle);
/* Are all uses done? mark: where that is not known yet, put a mark behind them. */
bool cws_gpu_users_done(struct cws_gpu_streams *s, struct cws_gpu_users *users, bool mark);
/* The same of memory that the program has freed: nothing reaches it that was not queued before, so a mark behind its
 * last use is enough. */
bool cws_gpu_users_passed(struct cws_gpu_streams *s, struct cws_gpu_users *users, bool mark);
/* The same, but for uses on this stream. */
bool cws_gpu_users_only(struct cws_gpu_streams *s, struct cws_gpu_users *users, CUstream handle);
/* Waits until they are. In a thread of the program its last launch is settled. */
void cws_gpu_users_wait_drops_lock(struct cws_gpu_streams *s, struct cws_gpu_users *users);

/* May something be recorded on it? Not while it captures, nor if there are too many streams. Calling thread: as for
 * marks. */
bool cws_gpu_stream_can_record(struct cws_gpu_streams *s, CUstream handle);
/* After uses of the calling thread's own stream were noted: no other thread can put a mark behind them. Other streams:
 * nothing. The last launch is settled no sooner for it. */
void cws_gpu_stream_mark_own(struct cws_gpu_streams *s, CUstream handle);
/* Puts a mark behind what was noted, if that can be done. */
void cws_gpu_stream_mark(struct cws_gpu_streams *s, CUstream handle);
/* Before it captures: the same, and what was launched there is settled, as no mark can be put behind it any more. */
void cws_gpu_stream_mark_last(struct cws_gpu_streams *s, CUstream handle);
/* Has the device come to the end of what was noted and marked? A stream that is not followed has not. */
bool cws_gpu_stream_is_done(struct cws_gpu_streams *s, CUstream handle);
/* The program destroys it. */
void cws_gpu_stream_end(struct cws_gpu_streams *s, CUstream handle);
/* A context ends, with its streams and events; what was queued there is done. */
void cws_gpu_streams_context_end(struct cws_gpu_streams *s, CUcontext context);
/* All that was queued before is done. */
void cws_gpu_streams_synchronized(struct cws_gpu_streams *s);

/* NULL, or what does not hold. */
const char *cws_gpu_streams_check(const struct cws_gpu_streams *s);
#endif
