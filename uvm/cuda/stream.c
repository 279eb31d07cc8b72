/* stream.c - how far the program's streams have come. Each use gets a number on its stream, and an event is recorded
 * behind every few of them. */
#include "state.h"

#include <string.h>
#include <time.h>

static CUstream same_name(CUstream handle) { return handle == CU_STREAM_LEGACY ? NULL : handle; }

/* A number for the calling thread, where it matters: CU_STREAM_PER_THREAD names another stream in each. No two threads
 * ever have the same number. */
static uint64_t owner_of(CUstream handle)
{
    static _Atomic uint64_t threads;
    static _Thread_local uint64_t self;
    if (handle != CU_STREAM_PER_THREAD)
        return 0;
    if (self == 0)
        self = atomic_fetch_add(&threads, 1) + 1;
    return self;
}

static void take_marks_locked(struct cws_gpu *gpu, struct cws_gpu_stream *s, bool wait)
{
    while (s->mark_count) {
        CUevent event = s->marks[s->mark_head].event;
        CUresult result = wait ? gpu->driver->event_sync(event) : gpu->driver->event_query(event);
        if (result == CUDA_ERROR_NOT_READY)
            return;
        /* Any other error is the context's end: nothing runs any more. */
        s->done = s->marks[s->mark_head].ticket;
        s->mark_head = (s->mark_head + 1) % CWS_GPU_EVENTS;
        s->mark_count--;
        wait = false;
    }
}

/* Notes which marks the stream has passed. `wait`: waits until it has passed one more. */
static void look_locked(struct cws_gpu *gpu, struct cws_gpu_stream *s, bool wait)
{
    if (!wait && s->looked == gpu->look_round)
        return;
    s->looked = gpu->look_round;
    if (s->mark_count) {
        bool exchanged;
        CUstreamCaptureMode mode = cws_driver_relax(gpu->driver, &exchanged);
        take_marks_locked(gpu, s, wait);
        cws_driver_restore(gpu->driver, mode, exchanged);
    }
    if (s->gone && s->mark_count == 0)
        s->used = false;
}

/* A place whose stream has no work in flight. If that stream comes again, it takes another place. */
static struct cws_gpu_stream *idle_place_locked(struct cws_gpu *gpu)
{
    gpu->look_round++;
    for (unsigned i = 0; i < gpu->stream_count; i++) {
        struct cws_gpu_stream *s = &gpu->streams[i];
        look_locked(gpu, s, false);
        if (s->done == s->issued)
            return s;
    }
    return NULL;
}

struct cws_gpu_stream *cws_gpu_stream_locked(struct cws_gpu *gpu, CUstream handle)
{
    struct cws_gpu_stream *empty = NULL;
    handle = same_name(handle);
    uint64_t owner = owner_of(handle);
    for (unsigned i = 0; i < gpu->stream_count; i++) {
        struct cws_gpu_stream *s = &gpu->streams[i];
        if (s->used && !s->gone && s->handle == handle && s->owner == owner)
            return s;
        if (!s->used && !empty)
            empty = s;
    }
    if (!empty && gpu->stream_count < CWS_GPU_STREAMS)
        empty = &gpu->streams[gpu->stream_count++];
    if (!empty)
        empty = idle_place_locked(gpu);
    if (!empty)
        return NULL;
    /* Tickets go on where the last stream of this place ended: what still names one of those is done. */
    empty->done = empty->marked = empty->issued;
    empty->handle = handle;
    empty->owner = owner;
    empty->used = true;
    empty->gone = false;
    empty->mark_head = empty->mark_count = 0;
    return empty;
}

/* An event that is recorded on a stream that captures becomes a part of the graph and is never reached. The legacy
 * stream answers with an error while another one captures, and recording on it would end that capture. */
bool cws_gpu_stream_captures_locked(struct cws_gpu *gpu, const struct cws_gpu_stream *s)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    return gpu->driver->stream_capturing(s->handle, &status) != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE;
}

static bool mark_locked(struct cws_gpu *gpu, struct cws_gpu_stream *s)
{
    if (s->marked == s->issued)
        return true;
    if (s->gone || s->owner != owner_of(s->handle) || cws_gpu_stream_captures_locked(gpu, s))
        return false;
    if (s->mark_count == CWS_GPU_EVENTS) {
        gpu->look_round++;
        look_locked(gpu, s, false);
    }
    /* then the last mark moves on: it is passed later, and says more */
    bool full = s->mark_count == CWS_GPU_EVENTS;
    unsigned at = (s->mark_head + s->mark_count - full) % CWS_GPU_EVENTS;
    if (!s->marks[at].event && gpu->driver->event_create(&s->marks[at].event, CU_EVENT_DISABLE_TIMING) != CUDA_SUCCESS)
        return false;
    if (gpu->driver->event_record(s->marks[at].event, s->handle) != CUDA_SUCCESS)
        return false;
    s->marks[at].ticket = s->marked = s->issued;
    s->mark_count += !full;
    return true;
}

/* Records a mark behind all uses of a stream. It is the last chance to do so. */
static void mark_or_wait_locked(struct cws_gpu *gpu, struct cws_gpu_stream *s)
{
    if (mark_locked(gpu, s) || cws_gpu_stream_captures_locked(gpu, s))
        return;
    cws_driver_wait(gpu->driver, s->handle);
    s->done = s->marked = s->issued;
    s->mark_head = s->mark_count = 0;
}

void cws_gpu_stream_note_use_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, CUstream handle)
{
    struct cws_gpu_stream *s = cws_gpu_stream_locked(gpu, handle);
    if (!s) { /* cannot be followed: as if it were used for ever */
        r->pinned = true;
        return;
    }
    uint32_t name = (uint32_t)(s - gpu->streams) + 1;
    struct cws_gpu_last_use *into = NULL;
    for (unsigned i = 0; i < CWS_GPU_USERS; i++) {
        struct cws_gpu_last_use *u = &r->uses[i];
        if (u->stream == name) {
            into = u;
            break;
        }
        if (!into && (!u->stream || gpu->streams[u->stream - 1].done >= u->ticket))
            into = u;
    }
    if (!into) { /* too many streams use it at once: wait for one of them */
        into = &r->uses[0];
        struct cws_gpu_stream *other = &gpu->streams[into->stream - 1];
        while (other->done < into->ticket && mark_locked(gpu, other))
            look_locked(gpu, other, true);
    }
    into->stream = name;
    into->ticket = ++s->issued;
    if (s->issued - s->marked >= CWS_GPU_MARK_EVERY)
        mark_locked(gpu, s);
}

void cws_gpu_stream_mark_own_locked(struct cws_gpu *gpu, CUstream handle)
{
    struct cws_gpu_stream *s = handle == CU_STREAM_PER_THREAD ? cws_gpu_stream_locked(gpu, handle) : NULL;
    if (s)
        mark_or_wait_locked(gpu, s);
}

static bool use_done_locked(struct cws_gpu *gpu, struct cws_gpu_last_use *u, bool mark)
{
    if (!u->stream)
        return true;
    struct cws_gpu_stream *s = &gpu->streams[u->stream - 1];
    if (s->done < u->ticket)
        look_locked(gpu, s, false);
    if (s->done < u->ticket) {
        if (mark && s->marked < u->ticket)
            mark_locked(gpu, s);
        return false;
    }
    u->stream = 0;
    return true;
}

bool cws_gpu_uses_done_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, bool mark)
{
    bool done = true;
    for (unsigned i = 0; i < CWS_GPU_USERS; i++)
        done &= use_done_locked(gpu, &r->uses[i], mark);
    return done;
}

bool cws_gpu_uses_only_locked(struct cws_gpu *gpu, struct cws_gpu_range *r, CUstream handle)
{
    struct cws_gpu_stream *s = cws_gpu_stream_locked(gpu, handle);
    for (unsigned i = 0; i < CWS_GPU_USERS; i++) {
        struct cws_gpu_last_use *u = &r->uses[i];
        if (u->stream && &gpu->streams[u->stream - 1] != s && !use_done_locked(gpu, u, false))
            return false;
    }
    return s != NULL;
}

void cws_gpu_uses_wait_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    while (!cws_gpu_uses_done_locked(gpu, r, true)) {
        const struct timespec pause = {.tv_nsec = 20000};
        gpu->look_round++;
        pthread_mutex_unlock(&gpu->lock);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&gpu->lock);
    }
}

void cws_gpu_stream_gone(struct cws_gpu *gpu, CUstream handle)
{
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_stream *s = cws_gpu_stream_locked(gpu, handle);
    if (s) {
        mark_or_wait_locked(gpu, s);
        s->gone = true;
        gpu->look_round++;
        look_locked(gpu, s, false);
        if (s->mark_count == 0) {
            s->done = s->issued;
            s->used = false;
        }
    }
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_stream_captures(struct cws_gpu *gpu, CUstream handle)
{
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_stream *s = cws_gpu_stream_locked(gpu, handle);
    if (s)
        mark_locked(gpu, s);
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_synchronized(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    gpu->look_round++;
    for (unsigned i = 0; i < gpu->stream_count; i++)
        look_locked(gpu, &gpu->streams[i], false);
    cws_gpu_wake_locked(gpu);
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_streams_close(struct cws_gpu *gpu)
{
    for (unsigned i = 0; i < gpu->stream_count; i++)
        for (unsigned k = 0; k < CWS_GPU_EVENTS; k++)
            if (gpu->streams[i].marks[k].event)
                gpu->driver->event_destroy(gpu->streams[i].marks[k].event);
    memset(gpu->streams, 0, sizeof gpu->streams);
    gpu->stream_count = 0;
}
