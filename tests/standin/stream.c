/* stream.c - streams and events. A stream is a thread and a queue; what orders operations of different streams is a
 * list of (stream, sequence) that an operation waits for. The legacy stream is a stream like the others, whose
 * operations wait for all blocking streams of its context, and for which theirs wait. */
#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

_Thread_local sigjmp_buf *volatile fault_return;
static struct sigaction old_action;

/* ---- A fault in device memory ends the operation, and the context. */
static void on_fault(int signal, siginfo_t *info, void *ucontext)
{
    static _Thread_local bool passing_on;
    if (fault_return && in_arena(info->si_addr))
        siglongjmp(*fault_return, 1);
    struct sigaction next = old_action;
    if (passing_on || (!(next.sa_flags & SA_SIGINFO) && (next.sa_handler == SIG_DFL || next.sa_handler == SIG_IGN))) {
        /* nobody's: the access faults again */
        sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
        return;
    }
    passing_on = true; /* a handler set after ours passes on to ours */
    if (next.sa_flags & SA_SIGINFO)
        next.sa_sigaction(signal, info, ucontext);
    else
        next.sa_handler(signal);
    passing_on = false;
}

/* Again before each operation: programs and test frameworks set handlers of their own. */
void fault_handler_install(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER}, now;
    if (sigaction(SIGSEGV, NULL, &now) == 0 && now.sa_sigaction == on_fault)
        return;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &old_action);
}

/* Runs it; false: it reached device memory that is not there. */
static bool operation_run(const struct operation *operation)
{
    sigjmp_buf env;
    if (sigsetjmp(env, 0) != 0) {
        fault_return = NULL;
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGSEGV);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        return false;
    }
    fault_return = &env;
    operation->run(operation->data);
    fault_return = NULL;
    return true;
}

/* ---- The thread. */
static bool may_begin_locked(const struct CUstream_st *stream)
{
    const struct operation *operation = stream->first;
    if (operation->sequence > stream->holds_at)
        return false;
    for (size_t i = 0; i < operation->dependency_count; i++)
        if (operation->dependencies[i].stream->completed < operation->dependencies[i].sequence)
            return false;
    return true;
}

static void operation_free_locked(struct operation *operation)
{
    for (size_t i = 0; i < operation->dependency_count; i++)
        stream_reference_drop_locked(operation->dependencies[i].stream);
    if (operation->drop)
        operation->drop(operation->data);
    else
        free(operation->data);
    free(operation->dependencies);
    free(operation);
}

static void pause_random(struct CUstream_st *stream, unsigned max_us)
{
    unsigned us = (unsigned)rand_r(&stream->seed) % max_us;
    nanosleep(&(struct timespec){0, (long)us * 1000}, NULL);
}

static void *stream_thread(void *arg)
{
    struct CUstream_st *stream = arg;
    lock();
    for (;;) {
        while (stream->first ? !may_begin_locked(stream) : !stream->destroyed)
            pthread_cond_wait(&standin.changed, &standin.lock);
        struct operation *operation = stream->first;
        if (!operation)
            break;
        bool run = standin.sticky == CUDA_SUCCESS && operation->run, good = true;
        unsigned delay_us = standin.delay_us;
        fault_handler_install();
        unlock(0);
        if (run && delay_us)
            pause_random(stream, delay_us);
        if (run)
            good = operation_run(operation);
        lock();
        if (!good && standin.sticky == CUDA_SUCCESS)
            standin.sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
        stream->first = operation->next;
        if (!stream->first)
            stream->last = NULL;
        stream->completed = operation->sequence;
        operation_free_locked(operation);
        pthread_cond_broadcast(&standin.changed);
    }
    stream->context->workers--;
    stream_reference_drop_locked(stream);
    pthread_cond_broadcast(&standin.changed);
    unlock(0);
    return NULL;
}

struct CUstream_st *stream_create_locked(struct CUctx_st *context, unsigned flags)
{
    struct CUstream_st *stream = take_memory(sizeof *stream);
    stream->context = context;
    stream->references = 2; /* the handle and the thread */
    stream->flags = flags;
    stream->blocking = !(flags & CU_STREAM_NON_BLOCKING);
    stream->holds_at = UINT64_MAX;
    stream->seed = ++standin.seed * 2654435761u;
    stream->all_next = standin.streams;
    standin.streams = stream;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t all, old;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* the program's signals are the program's */
    if (pthread_create(&stream->thread, &attributes, stream_thread, stream) != 0) {
        perror("standin: thread");
        abort();
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    context->workers++;
    return stream;
}

void stream_reference_drop_locked(struct CUstream_st *stream)
{
    if (--stream->references > 0)
        return;
    struct CUstream_st **link = &standin.streams;
    while (*link != stream)
        link = &(*link)->all_next;
    *link = stream->all_next;
    for (size_t i = 0; i < stream->pending_count; i++)
        stream_reference_drop_locked(stream->pending[i].stream);
    free(stream->pending);
    free(stream);
}

bool stream_busy_locked(const struct CUstream_st *stream) { return stream->completed < stream->submitted; }

void stream_close_locked(struct CUstream_st *stream)
{
    stream->destroyed = true;
    pthread_cond_broadcast(&standin.changed);
    stream_reference_drop_locked(stream);
}

/* The calling thread's own stream of the context; it lives as long as that does. */
static struct CUstream_st *own_stream_locked(struct CUctx_st *context)
{
    static unsigned long threads;
    static _Thread_local unsigned long self;
    self = self ? self : ++threads;
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        if (stream->owner == self && stream->context == context)
            return stream;
    struct CUstream_st *stream = stream_create_locked(context, CU_STREAM_DEFAULT);
    stream->owner = self;
    return stream;
}

struct CUstream_st *stream_of_locked(CUstream handle)
{
    if (handle != NULL && handle != CU_STREAM_LEGACY && handle != CU_STREAM_PER_THREAD)
        return object_is_locked(OBJECT_STREAM, handle) ? handle : NULL;
    struct CUctx_st *context = context_handle_locked();
    if (!context || !context->legacy)
        return NULL;
    return handle == CU_STREAM_PER_THREAD ? own_stream_locked(context) : context->legacy;
}

/* ---- Submission. */
void stream_depend_locked(struct CUstream_st *stream, struct CUstream_st *on, uint64_t sequence)
{
    if (on == stream || on->completed >= sequence)
        return;
    struct dependency *grown = realloc(stream->pending, (stream->pending_count + 1) * sizeof *grown);
    if (!grown)
        abort();
    stream->pending = grown;
    stream->pending[stream->pending_count++] = (struct dependency){on, sequence};
    on->references++;
}

static void depend_on_blocking(struct CUstream_st *stream)
{
    struct CUstream_st *legacy = stream->context->legacy;
    if (stream == legacy) {
        for (struct CUstream_st *other = standin.streams; other; other = other->all_next)
            if (other->blocking && other->context == stream->context)
                stream_depend_locked(stream, other, other->submitted);
    } else if (stream->blocking && legacy) {
        stream_depend_locked(stream, legacy, legacy->submitted);
    }
}

static CUresult submit_locked(struct CUstream_st *stream, struct operation *operation)
{
    CUresult refused = stream->capture ? capture_append_locked(stream->capture, operation)
                                       : capture_legacy_locked(stream);
    if (stream->capture) { /* the graph has what it needs */
        free(operation);
        return refused;
    }
    if (refused != CUDA_SUCCESS) {
        operation_free_locked(operation);
        return refused;
    }
    depend_on_blocking(stream);
    operation->dependencies = stream->pending;
    operation->dependency_count = stream->pending_count;
    stream->pending = NULL;
    stream->pending_count = 0;
    operation->sequence = ++stream->submitted;
    if (stream->last)
        stream->last->next = operation;
    else
        stream->first = operation;
    stream->last = operation;
    pthread_cond_broadcast(&standin.changed);
    return CUDA_SUCCESS;
}

CUresult stream_submit_locked(struct CUstream_st *stream, void (*run)(void *), void *data, void (*drop)(void *),
                              int node_type)
{
    struct operation *operation = take_memory(sizeof *operation);
    operation->run = run;
    operation->data = data;
    operation->drop = drop;
    operation->node_type = node_type;
    return submit_locked(stream, operation);
}

CUresult stream_submit_kernel_locked(struct CUstream_st *stream, void (*run)(void *), void *data, void (*drop)(void *),
                                     struct CUfunc_st *function)
{
    struct operation *operation = take_memory(sizeof *operation);
    operation->run = run;
    operation->data = data;
    operation->drop = drop;
    operation->node_type = NODE_KERNEL;
    operation->function = function;
    return submit_locked(stream, operation);
}

CUresult stream_wait_locked(struct CUstream_st *stream, uint64_t sequence)
{
    stream->references++;
    while (stream->completed < sequence)
        pthread_cond_wait(&standin.changed, &standin.lock);
    stream_reference_drop_locked(stream);
    return standin.sticky;
}

static bool is_of(const struct CUstream_st *stream, const struct CUctx_st *context)
{
    return !context || stream->context == context;
}

static bool any_busy_locked(const struct CUctx_st *context)
{
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        if (is_of(stream, context) && stream_busy_locked(stream))
            return true;
    return false;
}

/* For what had been submitted when it was called, at least. */
CUresult streams_wait_locked(const struct CUctx_st *context)
{
    size_t count = 0;
    struct dependency *targets = NULL;
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        count += is_of(stream, context) && stream_busy_locked(stream);
    targets = take_memory(count * sizeof *targets);
    size_t filled = 0;
    for (struct CUstream_st *stream = standin.streams; stream && filled < count; stream = stream->all_next)
        if (is_of(stream, context) && stream_busy_locked(stream)) {
            targets[filled++] = (struct dependency){stream, stream->submitted};
            stream->references++;
        }
    for (size_t i = 0; i < filled; i++) {
        stream_wait_locked(targets[i].stream, targets[i].sequence);
        stream_reference_drop_locked(targets[i].stream);
    }
    free(targets);
    return standin.sticky;
}

void mark_drop_locked(struct mark *mark)
{
    if (!mark || --mark->references > 0)
        return;
    if (mark->stream)
        stream_reference_drop_locked(mark->stream);
    free(mark);
}

static void event_destroy_locked(struct CUevent_st *event)
{
    object_remove_locked(OBJECT_EVENT, event);
    mark_drop_locked(event->mark);
    free(event);
}

void streams_let_go_locked(const struct CUctx_st *context)
{
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        if (is_of(stream, context))
            stream->holds_at = UINT64_MAX;
    pthread_cond_broadcast(&standin.changed);
}

void streams_end_locked(struct CUctx_st *context)
{
    streams_let_go_locked(context);
    while (any_busy_locked(context))
        pthread_cond_wait(&standin.changed, &standin.lock);
    struct CUevent_st *event;
    for (size_t i = 0; (event = object_index_locked(OBJECT_EVENT, i)) != NULL;)
        if (event->context == context)
            event_destroy_locked(event); /* another one takes its place */
        else
            i++;
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        if (stream->context == context)
            object_remove_locked(OBJECT_STREAM, stream);
    context->legacy = NULL;
}

/* After all that refers to streams is gone, but for marks and waits of other contexts. */
void streams_join_locked(struct CUctx_st *context)
{
    for (;;) {
        struct CUstream_st *stream = standin.streams;
        while (stream && (stream->destroyed || stream->context != context))
            stream = stream->all_next;
        if (!stream)
            break;
        stream_close_locked(stream);
    }
    while (context->workers > 0)
        pthread_cond_wait(&standin.changed, &standin.lock);
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        if (stream->context == context)
            stream->context = NULL;
}

/* ---- What tests say to streams. */
void standin_delay(unsigned seed, unsigned max_us)
{
    lock();
    standin.seed = seed;
    standin.delay_us = max_us;
    unsigned i = 0;
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        stream->seed = (seed + ++i) * 2654435761u;
    unlock(0);
}

static void hold(CUstream handle, uint64_t more)
{
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (stream)
        stream->holds_at = more == UINT64_MAX ? more : stream->completed + more;
    pthread_cond_broadcast(&standin.changed);
    unlock(0);
}
void standin_hold(CUstream stream) { hold(stream, 0); }
void standin_let_go(CUstream stream) { hold(stream, UINT64_MAX); }
void standin_hold_after(CUstream stream, unsigned operations) { hold(stream, operations); }

/* ---- The calls. */
static CUresult create(CUstream *stream, unsigned flags)
{
    if (!stream || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *stream = stream_create_locked(context_handle_locked(), flags);
    object_add_locked(OBJECT_STREAM, *stream);
    return unlock(CUDA_SUCCESS);
}

API cuStreamCreate(CUstream *stream, unsigned flags)
{
    ENTER("cuStreamCreate", CALL_CONTEXT, flags, 0);
    return create(stream, flags);
}

API cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority)
{
    ENTER("cuStreamCreateWithPriority", CALL_CONTEXT, flags, priority);
    return create(stream, flags);
}

API cuStreamGetPriority(CUstream stream, int *priority)
{
    ENTER("cuStreamGetPriority", CALL_CONTEXT, U64(stream), 0);
    if (!priority)
        return CUDA_ERROR_INVALID_VALUE;
    *priority = 0;
    return CUDA_SUCCESS;
}

API cuStreamGetFlags(CUstream handle, unsigned *flags)
{
    ENTER("cuStreamGetFlags", CALL_CONTEXT, U64(handle), 0);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (stream && flags)
        *flags = stream->flags;
    return unlock(stream && flags ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE);
}

API cuStreamGetCtx(CUstream handle, CUcontext *context)
{
    ENTER("cuStreamGetCtx", CALL_CONTEXT, U64(handle), 0);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || !context)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    *context = stream->context;
    return unlock(CUDA_SUCCESS);
}

API cuStreamDestroy_v2(CUstream stream)
{
    ENTER("cuStreamDestroy_v2", 0, U64(stream), 0);
    lock();
    if (!object_is_locked(OBJECT_STREAM, stream))
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture)
        stream->capture->invalid = true;
    if (stream_busy_locked(stream))
        misuse_locked("a stream was destroyed while it had work"); /* which CUDA lets end */
    object_remove_locked(OBJECT_STREAM, stream);
    stream_close_locked(stream);
    return unlock(CUDA_SUCCESS);
}

static CUresult capturing(struct CUstream_st *stream)
{
    stream->capture->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

API cuStreamSynchronize(CUstream handle)
{
    ENTER("cuStreamSynchronize", CALL_UNSAFE, U64(handle), 0);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream)
        return unlock(handle ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_CONTEXT);
    if (stream->capture)
        return unlock(capturing(stream));
    if (stream_is_legacy(stream)) /* waiting for it is waiting for all that it would wait for */
        stream_submit_locked(stream, NULL, NULL, NULL, NODE_NONE);
    CUresult result = stream_wait_locked(stream, stream->submitted);
    heaps_synchronised_locked();
    return unlock(result);
}

API cuStreamQuery(CUstream handle)
{
    ENTER("cuStreamQuery", CALL_UNSAFE, U64(handle), 0);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture)
        return unlock(capturing(stream));
    bool busy = stream_busy_locked(stream);
    for (struct CUstream_st *other = standin.streams; stream_is_legacy(stream) && other; other = other->all_next)
        busy |= other->blocking && other->context == stream->context && stream_busy_locked(other);
    return unlock(busy ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
}

API cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags)
{
    ENTER("cuStreamWaitEvent", 0, U64(handle), U64(event));
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || !object_is_locked(OBJECT_EVENT, event) || flags > 1)
        return unlock(flags > 1 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE);
    struct mark *mark = event->mark;
    if (!mark)
        return unlock(CUDA_SUCCESS);
    if (mark->capture) { /* the stream joins the capture */
        if (stream->capture && stream->capture != mark->capture)
            return unlock(capturing(stream));
        if (!object_is_locked(OBJECT_GRAPH, mark->capture) || mark->capture->done)
            return unlock(CUDA_ERROR_INVALID_VALUE);
        stream->capture = mark->capture;
        return unlock(CUDA_SUCCESS);
    }
    if (stream->capture)
        return unlock(
            CUDA_SUCCESS); /* an edge to work before the graph; a wait for what is done, in a program that is right */
    stream_depend_locked(stream, mark->stream, mark->sequence);
    return unlock(stream_submit_locked(stream, NULL, NULL, NULL, NODE_NONE));
}

API cuEventCreate(CUevent *event, unsigned flags)
{
    ENTER("cuEventCreate", CALL_CONTEXT, flags, 0);
    if (!event || flags > 7)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *event = take_memory(sizeof **event);
    (*event)->context = context_handle_locked();
    (*event)->flags = flags;
    object_add_locked(OBJECT_EVENT, *event);
    return unlock(CUDA_SUCCESS);
}

API cuEventDestroy_v2(CUevent event)
{
    ENTER("cuEventDestroy_v2", 0, U64(event), 0);
    lock();
    if (!object_is_locked(OBJECT_EVENT, event))
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    event_destroy_locked(event);
    return unlock(CUDA_SUCCESS);
}

static void mark_run(void *data)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    lock();
    ((struct mark *)data)->seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    unlock(0);
}
static void mark_drop(void *data) { mark_drop_locked(data); }

API cuEventRecord(CUevent event, CUstream handle)
{
    ENTER("cuEventRecord", 0, U64(event), U64(handle));
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || !object_is_locked(OBJECT_EVENT, event) || event->context != stream->context)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    CUresult refused = stream->capture ? CUDA_SUCCESS : capture_legacy_locked(stream);
    if (refused != CUDA_SUCCESS)
        return unlock(refused);
    mark_drop_locked(event->mark);
    struct mark *mark = event->mark = take_memory(sizeof *mark);
    mark->references = 1;
    if (stream->capture) {
        mark->capture = stream->capture;
        return unlock(CUDA_SUCCESS);
    }
    mark->references = 2;
    mark->stream = stream;
    stream->references++;
    mark->sequence = stream->submitted + 1;
    return unlock(stream_submit_locked(stream, mark_run, mark, mark_drop, NODE_NONE));
}

API cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags)
{
    return flags > 1 ? CUDA_ERROR_INVALID_VALUE : cuEventRecord(event, stream);
}

static bool mark_done_locked(const struct mark *mark) { return !mark || mark->stream->completed >= mark->sequence; }
enum { ERROR_CAPTURED_EVENT = 907 };

API cuEventQuery(CUevent event)
{
    ENTER("cuEventQuery", CALL_UNSAFE, U64(event), 0);
    lock();
    if (!object_is_locked(OBJECT_EVENT, event))
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (event->mark && event->mark->capture)
        return unlock(ERROR_CAPTURED_EVENT);
    return unlock(mark_done_locked(event->mark) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY);
}

API cuEventSynchronize(CUevent event)
{
    ENTER("cuEventSynchronize", CALL_UNSAFE, U64(event), 0);
    lock();
    if (!object_is_locked(OBJECT_EVENT, event))
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    struct mark *mark = event->mark;
    if (mark && mark->capture)
        return unlock(ERROR_CAPTURED_EVENT);
    CUresult result = mark ? stream_wait_locked(mark->stream, mark->sequence) : CUDA_SUCCESS;
    heaps_synchronised_locked();
    return unlock(result);
}

API cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to)
{
    ENTER("cuEventElapsedTime", 0, U64(from), U64(to));
    lock();
    if (!milliseconds)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    const CUevent events[2] = {from, to};
    for (int i = 0; i < 2; i++)
        if (!object_is_locked(OBJECT_EVENT, events[i]) || (events[i]->flags & CU_EVENT_DISABLE_TIMING) ||
            !events[i]->mark || events[i]->mark->capture)
            return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (from->context->device != to->context->device)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (!mark_done_locked(from->mark) || !mark_done_locked(to->mark))
        return unlock(CUDA_ERROR_NOT_READY);
    *milliseconds = (float)(1e3 * (to->mark->seconds - from->mark->seconds));
    return unlock(CUDA_SUCCESS);
}

API cuCtxSynchronize(void)
{
    ENTER("cuCtxSynchronize", CALL_CONTEXT | CALL_UNSAFE, 0, 0);
    lock();
    CUresult result = streams_wait_locked(context_handle_locked());
    heaps_synchronised_locked();
    return unlock(result);
}

struct host_call {
    void (*function)(void *);
    void *arg;
};
static void host_run(void *data)
{
    struct host_call *call = data;
    call->function(call->arg);
}

API cuLaunchHostFunc(CUstream handle, void (*function)(void *), void *arg)
{
    ENTER("cuLaunchHostFunc", 0, U64(handle), 0);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || !function)
        return unlock(function ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE);
    struct host_call *call = take_memory(sizeof *call);
    *call = (struct host_call){function, arg};
    return unlock(stream_submit_locked(stream, host_run, call, NULL, NODE_HOST));
}
