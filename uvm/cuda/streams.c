/* streams.c - how far the program's streams have come. */
#include "streams.h"

#include <string.h>
#include <time.h>

void cws_gpu_streams_init(struct cws_gpu_streams *streams, struct cws_gpu_core *core)
{
    *streams = (struct cws_gpu_streams){.core = core};
}

static CUstream same_name(CUstream handle) { return handle == CU_STREAM_LEGACY ? NULL : handle; }

/* A number for the calling thread. No two threads ever have the same. */
static uint64_t self(void)
{
    static _Atomic uint64_t threads;
    static _Thread_local uint64_t number;
    if (number == 0)
        number = atomic_fetch_add(&threads, 1) + 1;
    return number;
}

/* CU_STREAM_PER_THREAD names another stream in each thread. */
static uint64_t owner_of(CUstream handle) { return handle == CU_STREAM_PER_THREAD ? self() : 0; }

/* --- the last launch of each thread ------------------------------------------------------------------------------ */

/* Of this thread: where its last launch is remembered. */
static _Thread_local struct {
    const struct cws_gpu_streams *streams; /* NULL: nowhere */
    unsigned stream, place;
    uint64_t ticket;
} latest;

/* NULL: it is settled. */
static struct cws_gpu_stream *latest_of(struct cws_gpu_streams *streams)
{
    if (latest.streams != streams)
        return NULL;
    struct cws_gpu_stream *s = &streams->at[latest.stream];
    bool there = s->last[latest.place].thread == self() && s->last[latest.place].ticket == latest.ticket;
    return there ? s : NULL;
}

/* The stream of what was settled, or NULL. */
static struct cws_gpu_stream *settle_latest(struct cws_gpu_streams *streams)
{
    struct cws_gpu_stream *s = latest_of(streams);
    if (s)
        s->last[latest.place].thread = 0;
    if (latest.streams == streams)
        latest.streams = NULL;
    return s;
}

void cws_gpu_streams_waits(struct cws_gpu_streams *streams)
{
    struct cws_gpu_stream *s = latest_of(streams);
    if (s)
        s->last[latest.place].waits = true;
}

static void settle_all(struct cws_gpu_stream *s) { memset(s->last, 0, sizeof s->last); }

/* The tickets up to which whatever a mark is put behind now is done. */
static uint64_t settled(const struct cws_gpu_stream *s)
{
    uint64_t open = s->issued + 1;
    for (unsigned i = 0; i < CWS_GPU_LAUNCHERS; i++)
        if (s->last[i].thread && s->last[i].ticket < open)
            open = s->last[i].ticket;
    return open - 1;
}

/* A mark that only the stream's own thread could put behind what follows is taken for the one behind that. */
static void trust_marks(struct cws_gpu_stream *s)
{
    if (s->mark_count)
        s->marks[(s->mark_head + s->mark_count - 1) % CWS_GPU_EVENTS].ticket = s->behind;
    else
        s->done = s->reached;
    s->marked = s->behind;
}

/* Somebody waits for a ticket that is not settled. Its thread may do nothing more, or wait for him: after a while the
 * oldest launch is settled. Whether it was. */
static bool settle_late(const struct cws_gpu_streams *streams, struct cws_gpu_stream *s)
{
    uint64_t open = settled(s) + 1, now = cws_gpu_now_ns(), most = streams->core->tuning->settle_ns;
    if (s->open != open) {
        s->open = open;
        s->open_since_ns = now;
    }
    for (unsigned i = 0; i < CWS_GPU_LAUNCHERS; i++)
        if (s->last[i].thread && s->last[i].ticket == open && s->last[i].waits)
            most = streams->core->tuning->settle_waiting_ns;
    if (now - s->open_since_ns < most)
        return false;
    for (unsigned i = 0; i < CWS_GPU_LAUNCHERS; i++)
        if (s->last[i].thread && s->last[i].ticket == open)
            s->last[i].thread = 0;
    if (s->owner && s->owner != self())
        trust_marks(s);
    return true;
}

/* --- marks ----------------------------------------------------------------------------------------------------- */

static void take_marks(struct cws_gpu_streams *streams, struct cws_gpu_stream *s, bool wait)
{
    while (s->mark_count) {
        CUevent event = s->marks[s->mark_head].event;
        CUresult result = wait ? streams->core->driver->event_sync(event) : streams->core->driver->event_query(event);
        if (result == CUDA_ERROR_NOT_READY)
            return;
        /* Any other error is the context's end: nothing runs any more. */
        s->done = s->marks[s->mark_head].ticket;
        s->reached = s->marks[s->mark_head].behind;
        streams->progress++;
        s->mark_head = (s->mark_head + 1) % CWS_GPU_EVENTS;
        s->mark_count--;
        wait = false;
    }
}

/* Notes which marks the stream has passed. `wait`: waits until it has passed one more. */
static void look(struct cws_gpu_streams *streams, struct cws_gpu_stream *s, bool wait)
{
    if (!wait && s->looked == streams->round)
        return;
    s->looked = streams->round;
    if (s->mark_count) {
        bool exchanged;
        CUstreamCaptureMode mode = cws_driver_relax(streams->core->driver, &exchanged);
        take_marks(streams, s, wait);
        cws_driver_restore(streams->core->driver, mode, exchanged);
    }
    if (s->gone && s->mark_count == 0)
        s->used = false;
}

/* Nothing that was queued on it runs any more. */
static void all_done(struct cws_gpu_stream *s)
{
    s->done = s->marked = s->behind = s->reached = s->issued;
    s->mark_head = s->mark_count = 0;
    settle_all(s);
}

/* The context of a stream. Those that have no handle of their own belong to the one that is current. */
static CUcontext context_of(const struct cws_gpu_streams *streams, CUstream handle)
{
    const struct cws_driver *d = streams->core->driver;
    CUcontext context = NULL;
    bool own = handle != NULL && handle != CU_STREAM_PER_THREAD;
    if (!own || d->stream_context(handle, &context) != CUDA_SUCCESS)
        d->context_get(&context);
    return context;
}

/* May the place be a stream's of this context? Events stay where they were made: another thread may wait for one. */
static bool suits(const struct cws_gpu_stream *s, CUcontext context)
{
    bool has_events = false;
    for (unsigned i = 0; i < CWS_GPU_EVENTS; i++)
        has_events |= s->marks[i].event != NULL;
    return s->context == context || !has_events;
}

/* A place that no stream has, or one whose stream has no work in flight. If that stream comes again, it takes another
 * place. */
static struct cws_gpu_stream *place_for(struct cws_gpu_streams *streams, CUcontext context)
{
    for (unsigned i = 0; i < streams->count; i++)
        if (!streams->at[i].used && suits(&streams->at[i], context))
            return &streams->at[i];
    if (streams->count < CWS_GPU_STREAMS)
        return &streams->at[streams->count++];
    streams->round++;
    for (unsigned i = 0; i < streams->count; i++) {
        struct cws_gpu_stream *s = &streams->at[i];
        look(streams, s, false);
        if (s->reached == s->issued && suits(s, context))
            return s;
    }
    return NULL;
}

/* NULL: there are too many. */
static struct cws_gpu_stream *find(struct cws_gpu_streams *streams, CUstream handle)
{
    handle = same_name(handle);
    uint64_t owner = owner_of(handle);
    bool own = handle != NULL && handle != CU_STREAM_PER_THREAD;
    CUcontext context = own ? NULL : context_of(streams, handle);
    for (unsigned i = 0; i < streams->count; i++) {
        struct cws_gpu_stream *s = &streams->at[i];
        if (s->used && !s->gone && s->handle == handle && s->owner == owner && (own || s->context == context))
            return s;
    }
    context = own ? context_of(streams, handle) : context;
    struct cws_gpu_stream *s = place_for(streams, context);
    if (!s)
        return NULL;
    /* Tickets go on where the last stream of this place ended: what still names one of those is done. */
    all_done(s);
    s->handle = handle;
    s->context = context;
    s->owner = owner;
    s->used = true;
    s->gone = false;
    return s;
}

/* Events belong to a context, and NULL names the legacy stream of the one that is current. So what is done with a
 * stream is done in its own context: the thread may be another device's loader, or the program's with another device
 * current. */
struct elsewhere {
    CUcontext before;
    bool moved;
};

static struct elsewhere enter(const struct cws_gpu_streams *streams, const struct cws_gpu_stream *s)
{
    const struct cws_driver *d = streams->core->driver;
    struct elsewhere e = {0};
    e.moved = d->context_get(&e.before) == CUDA_SUCCESS && e.before != s->context &&
              d->context_set(s->context) == CUDA_SUCCESS;
    return e;
}

static void leave(const struct cws_gpu_streams *streams, struct elsewhere e)
{
    if (e.moved)
        streams->core->driver->context_set(e.before);
}

/* An event that is recorded on a stream that captures becomes a part of the graph and is never reached. The legacy
 * stream answers with an error while another one captures, and recording on it would end that capture. */
static bool captures(const struct cws_gpu_streams *streams, const struct cws_gpu_stream *s)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    return streams->core->driver->stream_capturing(s->handle, &status) != CUDA_SUCCESS ||
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

static bool can_record(const struct cws_gpu_streams *streams, const struct cws_gpu_stream *s)
{
    struct elsewhere e = enter(streams, s);
    bool can = !captures(streams, s);
    leave(streams, e);
    return can;
}

static bool record(const struct cws_gpu_streams *streams, const struct cws_gpu_stream *s, CUevent *event)
{
    const struct cws_driver *d = streams->core->driver;
    struct elsewhere e = enter(streams, s);
    bool recorded = !captures(streams, s) &&
                    (*event || d->event_create(event, CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS) &&
                    d->event_record(*event, s->handle) == CUDA_SUCCESS;
    leave(streams, e);
    return recorded;
}

/* Puts a mark behind all that was queued, if there is none yet. False: that cannot be done. */
static bool mark(struct cws_gpu_streams *streams, struct cws_gpu_stream *s)
{
    uint64_t upto = settled(s);
    if (s->marked == upto && s->behind == s->issued)
        return true;
    if (s->gone || s->owner != owner_of(s->handle))
        return false;
    if (s->mark_count == CWS_GPU_EVENTS) {
        streams->round++;
        look(streams, s, false);
    }
    /* then the last mark moves on: it is passed later, and says more */
    bool full = s->mark_count == CWS_GPU_EVENTS;
    unsigned at = (s->mark_head + s->mark_count - full) % CWS_GPU_EVENTS;
    if (!record(streams, s, &s->marks[at].event))
        return false;
    s->marks[at].ticket = s->marked = upto;
    s->marks[at].behind = s->behind = s->issued;
    s->mark_count += !full;
    return true;
}

/* Records a mark behind all uses of a stream. It is the last chance to do so. */
static void mark_or_wait(struct cws_gpu_streams *streams, struct cws_gpu_stream *s)
{
    if (mark(streams, s) || !can_record(streams, s))
        return;
    struct elsewhere e = enter(streams, s);
    cws_driver_wait(streams->core->driver, s->handle);
    leave(streams, e);
    all_done(s);
}

void cws_gpu_streams_settle(struct cws_gpu_streams *streams)
{
    struct cws_gpu_stream *s = settle_latest(streams);
    if (s && s->owner)
        mark_or_wait(streams, s);
}

void cws_gpu_stream_mark(struct cws_gpu_streams *streams, CUstream handle)
{
    struct cws_gpu_stream *s = find(streams, handle);
    if (s)
        mark(streams, s);
}

void cws_gpu_stream_mark_last(struct cws_gpu_streams *streams, CUstream handle)
{
    struct cws_gpu_stream *s = find(streams, handle);
    if (!s)
        return;
    settle_all(s);
    mark(streams, s);
}

bool cws_gpu_stream_is_done(struct cws_gpu_streams *streams, CUstream handle)
{
    struct cws_gpu_stream *s = find(streams, handle);
    if (!s)
        return false;
    streams->round++;
    look(streams, s, false);
    return s->reached == s->issued;
}

void cws_gpu_stream_mark_own(struct cws_gpu_streams *streams, CUstream handle)
{
    struct cws_gpu_stream *s = handle == CU_STREAM_PER_THREAD ? find(streams, handle) : NULL;
    if (s)
        mark_or_wait(streams, s);
}

bool cws_gpu_stream_can_record(struct cws_gpu_streams *streams, CUstream handle)
{
    const struct cws_gpu_stream *s = find(streams, handle);
    return s && can_record(streams, s);
}

/* --- uses ---------------------------------------------------------------------------------------------------- */

void cws_gpu_stream_launched(struct cws_gpu_streams *streams, CUstream handle)
{
    struct cws_gpu_stream *s = find(streams, handle);
    unsigned place = 0;
    struct cws_gpu_stream *before = settle_latest(streams);
    if (before && before->owner && before != s) /* nothing more may come there */
        mark_or_wait(streams, before);
    if (!s)
        return;
    for (unsigned i = 0; i < CWS_GPU_LAUNCHERS; i++) {
        if (s->last[i].thread == self() || !s->last[i].thread) {
            place = i;
            break;
        }
        place = s->last[i].ticket < s->last[place].ticket ? i : place;
    }
    latest.streams = streams;
    latest.stream = (unsigned)(s - streams->at);
    latest.place = place;
    s->last[place].thread = self();
    s->last[place].ticket = latest.ticket = s->issued + 1;
    s->last[place].waits = false;
}

/* Too many streams use it at once: waits for one of them, which is rare, and so may be done under the lock. One whose
 * use is settled, or the first. */
static struct cws_gpu_user *make_place(struct cws_gpu_streams *streams, struct cws_gpu_users *users)
{
    struct cws_gpu_user *u = &users->of[0];
    for (unsigned i = CWS_GPU_USERS; i-- > 0;)
        if (settled(&streams->at[users->of[i].stream - 1]) >= users->of[i].ticket)
            u = &users->of[i];
    struct cws_gpu_stream *other = &streams->at[u->stream - 1];
    if (settled(other) < u->ticket)
        settle_all(other);
    while (other->done < u->ticket && mark(streams, other))
        look(streams, other, true);
    return other->done >= u->ticket ? u : NULL;
}

bool cws_gpu_users_note(struct cws_gpu_streams *streams, struct cws_gpu_users *users, CUstream handle)
{
    struct cws_gpu_stream *s = find(streams, handle);
    if (!s)
        return false;
    uint32_t name = (uint32_t)(s - streams->at) + 1;
    struct cws_gpu_user *into = NULL;
    for (unsigned i = 0; i < CWS_GPU_USERS; i++) {
        struct cws_gpu_user *u = &users->of[i];
        if (u->stream == name) {
            into = u;
            break;
        }
        if (!into && (!u->stream || streams->at[u->stream - 1].done >= u->ticket))
            into = u;
    }
    if (!into)
        into = make_place(streams, users);
    if (!into)
        return false;
    into->stream = name;
    into->ticket = ++s->issued;
    if (settled(s) >= s->marked + streams->core->tuning->mark_every)
        mark(streams, s);
    return true;
}

/* Is a use over? freed: of memory that is, for which it is enough that the device has passed it. */
static bool is_over(struct cws_gpu_streams *streams, struct cws_gpu_user *u, bool freed, bool with_mark)
{
    struct cws_gpu_stream *s = u->stream ? &streams->at[u->stream - 1] : NULL;
    const uint64_t *come = s ? freed ? &s->reached : &s->done : NULL;
    if (s && *come < u->ticket)
        look(streams, s, false);
    if (!s || *come >= u->ticket) {
        u->stream = 0;
        return true;
    }
    bool marked = (freed ? s->behind : s->marked) >= u->ticket;
    if (with_mark && !marked && (freed || settled(s) >= u->ticket || settle_late(streams, s)))
        mark(streams, s);
    return false;
}

static bool are_over(struct cws_gpu_streams *streams, struct cws_gpu_users *users, bool freed, bool with_mark)
{
    bool over = true;
    for (unsigned i = 0; i < CWS_GPU_USERS; i++)
        over &= is_over(streams, &users->of[i], freed, with_mark);
    return over;
}

bool cws_gpu_users_done(struct cws_gpu_streams *streams, struct cws_gpu_users *users, bool with_mark)
{
    return are_over(streams, users, /* freed */ false, with_mark);
}

bool cws_gpu_users_passed(struct cws_gpu_streams *streams, struct cws_gpu_users *users, bool with_mark)
{
    return are_over(streams, users, /* freed */ true, with_mark);
}

bool cws_gpu_users_only(struct cws_gpu_streams *streams, struct cws_gpu_users *users, CUstream handle)
{
    struct cws_gpu_stream *s = find(streams, handle);
    for (unsigned i = 0; i < CWS_GPU_USERS; i++) {
        struct cws_gpu_user *u = &users->of[i];
        if (u->stream && &streams->at[u->stream - 1] != s && !is_over(streams, u, /* freed */ true, false))
            return false;
    }
    return s != NULL;
}

/* The last mark of the first stream whose use is not done, if there is one behind the use; else NULL. */
static CUevent event_behind(const struct cws_gpu_streams *streams, const struct cws_gpu_users *users)
{
    for (unsigned i = 0; i < CWS_GPU_USERS; i++) {
        if (!users->of[i].stream)
            continue;
        const struct cws_gpu_stream *s = &streams->at[users->of[i].stream - 1];
        if (s->mark_count && s->marked >= users->of[i].ticket)
            return s->marks[(s->mark_head + s->mark_count - 1) % CWS_GPU_EVENTS].event;
    }
    return NULL;
}

/* Without the lock. Events are destroyed only as the manager closes. */
static void wait_for(const struct cws_gpu_streams *streams, CUevent event)
{
    /* No mark can be put behind the use now: its stream captures, or is another thread's own. */
    const struct timespec pause = {.tv_nsec = 20000};
    bool exchanged;
    if (!event) {
        nanosleep(&pause, NULL);
        return;
    }
    CUstreamCaptureMode mode = cws_driver_relax(streams->core->driver, &exchanged);
    streams->core->driver->event_sync(event);
    cws_driver_restore(streams->core->driver, mode, exchanged);
}

void cws_gpu_users_wait_drops_lock(struct cws_gpu_streams *streams, struct cws_gpu_users *users)
{
    cws_gpu_streams_settle(streams);
    while (!cws_gpu_users_done(streams, users, true)) {
        CUevent event = event_behind(streams, users);
        streams->round++;
        cws_gpu_unlock(streams->core);
        wait_for(streams, event);
        cws_gpu_lock(streams->core);
    }
}

/* --- what the program does with streams ----------------------------------------------------------------------- */

void cws_gpu_stream_end(struct cws_gpu_streams *streams, CUstream handle)
{
    struct cws_gpu_stream *s = find(streams, handle);
    if (!s)
        return;
    settle_all(s);
    mark_or_wait(streams, s);
    s->gone = true;
    streams->round++;
    look(streams, s, false);
    if (s->mark_count == 0) {
        all_done(s);
        s->used = false;
    }
}

void cws_gpu_streams_context_end(struct cws_gpu_streams *streams, CUcontext context)
{
    for (unsigned i = 0; i < streams->count; i++) {
        struct cws_gpu_stream *s = &streams->at[i];
        if (s->context != context)
            continue;
        all_done(s);
        for (unsigned k = 0; k < CWS_GPU_EVENTS; k++)
            s->marks[k].event = NULL; /* they end with their context */
        s->used = false;
    }
}

void cws_gpu_streams_synchronized(struct cws_gpu_streams *streams)
{
    streams->round++;
    for (unsigned i = 0; i < streams->count; i++)
        look(streams, &streams->at[i], false);
}

void cws_gpu_streams_close(struct cws_gpu_streams *streams)
{
    for (unsigned i = 0; i < streams->count; i++)
        for (unsigned k = 0; k < CWS_GPU_EVENTS; k++)
            if (streams->at[i].marks[k].event)
                streams->core->driver->event_destroy(streams->at[i].marks[k].event);
    memset(streams->at, 0, sizeof streams->at);
    streams->count = 0;
}

const char *cws_gpu_streams_check(const struct cws_gpu_streams *streams)
{
    for (unsigned i = 0; i < streams->count; i++) {
        const struct cws_gpu_stream *s = &streams->at[i];
        if (s->done > s->marked || s->marked > s->issued || s->behind > s->issued || s->marked > s->behind)
            return "streams: one has come further than its uses";
        if (s->mark_count > CWS_GPU_EVENTS ||
            (s->mark_count && s->marks[s->mark_head].ticket <= s->done && s->marks[s->mark_head].behind <= s->reached))
            return "streams: a mark lies behind one that was passed";
    }
    return NULL;
}
