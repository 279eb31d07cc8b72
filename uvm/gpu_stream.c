/* How far the program's streams have come: tickets are counted per stream, and an event is recorded behind every few of them. */
#include "gpu_state.h"

#include <string.h>
#include <time.h>

static CUstream same_name(CUstream handle) { return handle == CU_STREAM_LEGACY ? NULL : handle; }

struct cws_gpu_stream *cws_gpu_stream_locked(struct cws_gpu *gpu, CUstream handle)
{
    struct cws_gpu_stream *empty = NULL;
    handle = same_name(handle);
    for (unsigned i = 0; i < gpu->stream_count; i++) {
        struct cws_gpu_stream *s = &gpu->streams[i];
        if (s->used && !s->gone && s->handle == handle)
            return s;
        if (!s->used && !empty)
            empty = s;
    }
    if (!empty) {
        if (gpu->stream_count == CWS_GPU_STREAMS)
            return NULL;
        empty = &gpu->streams[gpu->stream_count++];
    }
    /* Tickets go on where the last stream of this place ended: what still names one of those is done. */
    empty->done = empty->marked = empty->issued;
    empty->handle = handle;
    empty->used = true;
    empty->gone = empty->capturing = false;
    empty->mark_head = empty->mark_count = 0;
    return empty;
}

/* Takes in the marks that were passed. `wait`: at least one. */
static void look_locked(struct cws_gpu *gpu, struct cws_gpu_stream *s, bool wait)
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
    if (s->gone)
        s->used = false;
}

static bool mark_locked(struct cws_gpu *gpu, struct cws_gpu_stream *s)
{
    if (s->marked == s->issued)
        return true;
    if (s->gone || s->capturing)
        return false;
    if (s->mark_count == CWS_GPU_EVENTS) {
        look_locked(gpu, s, s->handle == CU_STREAM_PER_THREAD);
        if (s->mark_count == CWS_GPU_EVENTS)
            return false; /* a later mark covers these tickets, too */
    }
    unsigned at = (s->mark_head + s->mark_count) % CWS_GPU_EVENTS;
    if (!s->marks[at].event && gpu->driver->event_create(&s->marks[at].event, CU_EVENT_DISABLE_TIMING) != CUDA_SUCCESS)
        return false;
    if (gpu->driver->event_record(s->marks[at].event, s->handle) != CUDA_SUCCESS)
        return false;
    s->marks[at].ticket = s->marked = s->issued;
    s->mark_count++;
    return true;
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
    /* The stream of a thread is another one for each thread that names it so: only now is it this thread's. */
    if (s->handle == CU_STREAM_PER_THREAD || s->issued - s->marked >= CWS_GPU_MARK_EVERY)
        mark_locked(gpu, s);
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
    return s && s->handle != CU_STREAM_PER_THREAD;
}

void cws_gpu_uses_wait_locked(struct cws_gpu *gpu, struct cws_gpu_range *r)
{
    while (!cws_gpu_uses_done_locked(gpu, r, true)) {
        const struct timespec pause = {.tv_nsec = 20000};
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
        mark_locked(gpu, s);
        s->gone = true;
        look_locked(gpu, s, false);
        if (s->mark_count == 0) {
            s->done = s->issued;
            s->used = false;
        }
    }
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_stream_capturing(struct cws_gpu *gpu, CUstream handle, bool begins)
{
    pthread_mutex_lock(&gpu->lock);
    struct cws_gpu_stream *s = cws_gpu_stream_locked(gpu, handle);
    if (s) {
        if (begins)
            mark_locked(gpu, s);
        s->capturing = begins;
    }
    pthread_mutex_unlock(&gpu->lock);
}

void cws_gpu_synchronized(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&gpu->lock);
    for (unsigned i = 0; i < gpu->stream_count; i++)
        look_locked(gpu, &gpu->streams[i], false);
    pthread_cond_signal(&gpu->work);
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
