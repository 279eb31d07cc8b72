/* trace.c - the recording of trace events: a ring that any thread writes to, and the thread that empties it into
 * the file. */
#include "trace.h"
#include "guard.h"
#include "os.h"
#include "own_fd.h"
#include "sys.h"
#include "trace_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(struct cws_trace_slot) == 256, "a ring of 4 MiB");

_Atomic bool cws_trace_running;

static struct cws_trace_ring ring;
static pthread_mutex_t life = PTHREAD_MUTEX_INITIALIZER; /* start and stop */
static _Atomic bool started;                             /* there is a thread; false in a child */
static _Atomic uint32_t stopping;
static pthread_t thread;
static int file = -1;
static struct cws_trace_writer *writer;
static void (*say)(const char *line);

/* --- recording ------------------------------------------------------------------------------------- */

uint64_t cws_trace_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The next slot, if more than `spare` are free. Inside a guard: a slot that is left unpublished stops the writer for
 * good. */
static struct cws_trace_slot *claim(uint64_t spare, uint64_t *out_turn)
{
    uint64_t at = atomic_load_explicit(&ring.head, memory_order_relaxed);
    for (;;) {
        uint64_t tail = atomic_load_explicit(&ring.tail, memory_order_acquire);
        if (at < tail) { /* old: others have gone on */
            at = atomic_load_explicit(&ring.head, memory_order_relaxed);
            continue;
        }
        if (at - tail + spare >= CWS_RING_SLOTS) {
            atomic_fetch_add_explicit(&ring.lost, 1, memory_order_relaxed);
            return NULL;
        }
        if (atomic_compare_exchange_weak_explicit(&ring.head, &at, at + 1, memory_order_relaxed, memory_order_relaxed))
            break;
    }
    *out_turn = at + 1;
    return &ring.slots[at % CWS_RING_SLOTS];
}

static void publish(struct cws_trace_slot *slot, uint64_t turn)
{
    atomic_store_explicit(&slot->turn, turn, memory_order_release);
}

static void copy_tensor(struct cws_trace_record *r, const char *tensor)
{
    size_t n = tensor ? strnlen(tensor, sizeof r->tensor) : 0;
    if (n == sizeof r->tensor) {
        n = sizeof r->tensor - 1;
        memcpy(r->tensor, tensor, n - 3);
        memcpy(r->tensor + n - 3, "...", 3);
    } else if (n) {
        memcpy(r->tensor, tensor, n);
    }
    r->tensor[n] = '\0';
}

static bool record(enum cws_record_phase phase, uint64_t at, uint64_t span, uint32_t lane,
                   const struct cws_trace_what *what)
{
    uint64_t turn;
    uint32_t tid = lane ? 0 : (uint32_t)cws_os_gettid();
    struct cws_guard guard = cws_guard_begin();
    struct cws_trace_slot *slot = claim(phase == CWS_RECORD_END ? 0 : CWS_RING_SPARE, &turn);
    if (!slot) {
        cws_guard_end(&guard);
        return false;
    }
    struct cws_trace_record *r = &slot->record;
    r->at_ns = at;
    r->span_ns = span;
    r->bytes = what->bytes;
    r->tensor_bytes = what->tensor_bytes;
    r->index = what->index;
    r->why = what->why;
    r->device = -1;
    r->thread = tid;
    r->lane = lane;
    r->phase = (uint8_t)phase;
    r->kind = (uint8_t)what->kind;
    copy_tensor(r, what->tensor);
    publish(slot, turn);
    cws_guard_end(&guard);
    return true;
}

bool cws_trace_begin_slow(const struct cws_trace_what *what)
{
    return record(CWS_RECORD_BEGIN, cws_trace_now(), 0, 0, what);
}

void cws_trace_end_slow(enum cws_trace_kind kind)
{
    const struct cws_trace_what what = {.kind = kind};
    if (cws_trace_is_on())
        record(CWS_RECORD_END, cws_trace_now(), 0, 0, &what);
}

void cws_trace_mark_slow(const struct cws_trace_what *what) { record(CWS_RECORD_MARK, cws_trace_now(), 0, 0, what); }

void cws_trace_span(uint32_t lane, uint64_t begin_ns, uint64_t end_ns, const struct cws_trace_what *what)
{
    if (cws_trace_is_on())
        record(CWS_RECORD_SPAN, begin_ns, end_ns > begin_ns ? end_ns - begin_ns : 0, lane, what);
}

void cws_trace_count(int device, uint64_t weights, uint64_t fixed)
{
    uint64_t turn;
    if (!cws_trace_is_on())
        return;
    uint64_t now = cws_trace_now();
    struct cws_guard guard = cws_guard_begin();
    struct cws_trace_slot *slot = claim(CWS_RING_SPARE, &turn);
    if (slot) {
        slot->record = (struct cws_trace_record){
            .at_ns = now, .bytes = weights, .tensor_bytes = fixed, .device = device, .phase = CWS_RECORD_COUNT};
        publish(slot, turn);
    }
    cws_guard_end(&guard);
}

/* --- the writing thread ------------------------------------------------------------------------------ */

static int report_lost(void)
{
    uint64_t lost = atomic_exchange(&ring.lost, 0);
    if (!lost)
        return 0;
    const struct cws_trace_record r = {.at_ns = cws_trace_now(),
                                       .bytes = lost,
                                       .index = UINT64_MAX,
                                       .thread = (uint32_t)cws_os_gettid(),
                                       .phase = CWS_RECORD_MARK,
                                       .kind = CWS_TRACE_LOST};
    return cws_trace_writer_put(writer, &r);
}

/* Writes what is there. *out_stuck: a record was claimed and is not published yet. */
static int drain(bool *out_stuck)
{
    uint64_t tail = atomic_load_explicit(&ring.tail, memory_order_relaxed);
    int code = 0;
    while (!code && tail != atomic_load_explicit(&ring.head, memory_order_acquire)) {
        struct cws_trace_slot *slot = &ring.slots[tail % CWS_RING_SLOTS];
        if (atomic_load_explicit(&slot->turn, memory_order_acquire) != tail + 1)
            break;
        code = cws_trace_writer_put(writer, &slot->record);
        atomic_store_explicit(&ring.tail, ++tail, memory_order_release);
    }
    *out_stuck = tail != atomic_load_explicit(&ring.head, memory_order_relaxed);
    if (!code)
        code = report_lost();
    return code ? code : cws_trace_writer_flush(writer);
}

static void pause_ms(long ms)
{
    const struct timespec limit = {.tv_nsec = ms * 1000000};
    CWS_SYSCALL(SYS_futex, &stopping, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0);
}

static void *writer_main(void *arg)
{
    enum { EVERY_MS = 10, PATIENCE = 10 };
    bool stuck = false;
    int code = 0;
    (void)arg;
    prctl(PR_SET_NAME, "codecllm-trace");
    for (unsigned tries = 0; !code && tries < PATIENCE;) {
        bool stop = atomic_load(&stopping);
        code = drain(&stuck);
        if (!stop) {
            pause_ms(EVERY_MS);
        } else if (!stuck) {
            break;
        } else { /* what is being written down this instant is waited for, a little */
            const struct timespec moment = {.tv_nsec = 1000000};
            nanosleep(&moment, NULL);
            tries++;
        }
    }
    if (!code)
        code = cws_trace_writer_finish(writer, cws_trace_now());
    if (code) {
        char line[256];
        atomic_store(&cws_trace_running, false);
        snprintf(line, sizeof line,
                 "the trace ends early, its file cannot be written: %s (CODEC_TRACE); the program is not affected",
                 cws_strerror(code));
        say(line);
    }
    return NULL;
}

/* --- the file ---------------------------------------------------------------------------------------- */

static int left_alone(const char *path, const char *why, struct cws_error *err)
{
    return cws_fail(err, CWS_E_INPUT, "CODEC_TRACE=%s: %s; it is left alone (remove it, or choose another name)", path,
                    why);
}

/* What is there may be replaced: an empty file or a trace, which nobody else can have put there or have under another
 * name. A character device is written to (/dev/null). */
static int look_at(int fd, const char *path, struct cws_error *err)
{
    char head[sizeof CWS_TRACE_FIRST - 1];
    size_t got = 0;
    struct stat st;
    int code = cws_os_fstat(fd, &st);
    if (code)
        return cws_fail_errno(err, -code, "CODEC_TRACE=%s", path);
    if (S_ISCHR(st.st_mode))
        return 0;
    if (!S_ISREG(st.st_mode))
        return left_alone(path, "this is not a regular file", err);
    if (st.st_uid != geteuid())
        return left_alone(path, "this file is there and belongs to another user", err);
    if (st.st_nlink > 1)
        return left_alone(path, "this file is there and has other names (hard links)", err);
    code = cws_os_read_full(fd, head, sizeof head, 0, &got);
    if (code)
        return cws_fail_errno(err, -code, "CODEC_TRACE=%s", path);
    if (got && (got < sizeof head || memcmp(head, CWS_TRACE_FIRST, sizeof head) != 0))
        return left_alone(path, "this file is there and is not a trace", err);
    return 0;
}

static int cannot_open(int code, const char *path, struct cws_error *err)
{
    if (code == -ELOOP)
        return left_alone(path, "this is a symbolic link, which may lead anywhere", err);
    return cws_fail_errno(err, -code, "CODEC_TRACE=%s cannot be written", path);
}

/* In a directory that others can write to, a link or a FIFO may lie in wait under the name: links are not followed,
 * nothing blocks, and what was there is looked at. */
static int open_there(const char *path)
{
    return cws_os_openat(AT_FDCWD, path, O_RDWR | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK, 0);
}
static int open_new(const char *path)
{
    return cws_os_openat(AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY, 0666);
}

static int open_file(const char *path, int *out_fd, struct cws_error *err)
{
    int fd = open_new(path), code = 0;
    if (fd == -EEXIST) {
        fd = open_there(path);
        code = fd < 0 ? 0 : look_at(fd, path, err);
    }
    if (fd < 0)
        return cannot_open(fd, path, err);
    if (code) {
        cws_os_close(fd);
        return code;
    }
    *out_fd = fd;
    return 0;
}

/* FILE.PID, or FILE.PID.N when that is there: never one that is there already, which somebody may have put under a name
 * that can be guessed. */
static int open_own(const char *path, char *own, size_t bytes, int *out_fd, struct cws_error *err)
{
    enum { NAMES = 100 };
    int fd = -EEXIST;
    for (unsigned n = 0; fd == -EEXIST && n < NAMES; n++) {
        int len = snprintf(own, bytes, "%s.%d", path, (int)getpid());
        if (n && len > 0 && (size_t)len < bytes)
            snprintf(own + len, bytes - (size_t)len, ".%u", n);
        fd = open_new(own);
    }
    if (fd < 0)
        return cannot_open(fd, own, err);
    *out_fd = fd;
    return 0;
}

/* For this process alone, and empty. */
static int take_file(const char *path, int *out_fd, struct cws_error *err)
{
    int fd = -1, code = open_file(path, &fd, err);
    if (!code && cws_os_flock(fd, LOCK_EX | LOCK_NB) == -EWOULDBLOCK) {
        char own[4200], line[4400 + 4200];
        cws_os_close(fd);
        code = open_own(path, own, sizeof own, &fd, err);
        if (!code) {
            snprintf(line, sizeof line, "another process writes its trace to %s; the one of this process goes to %s",
                     path, own);
            say(line);
        }
    }
    if (code)
        return code;
    cws_os_ftruncate(fd, 0); /* fails where there is nothing to truncate, as on a terminal */
    *out_fd = cws_own_fd_note(fd);
    return 0;
}

int cws_trace_check(const char *path, struct cws_error *err)
{
    int fd = open_there(path), code = 0;
    if (fd >= 0) {
        code = look_at(fd, path, err);
        cws_os_close(fd);
        return code;
    }
    if (fd != -ENOENT)
        return cannot_open(fd, path, err);
    char folder[4200] = ".";
    const char *slash = strrchr(path, '/');
    if (slash)
        snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    if (access(folder, W_OK | X_OK) != 0)
        return cws_fail_errno(err, errno, "CODEC_TRACE=%s cannot be written", path);
    return 0;
}

/* --- start and stop ---------------------------------------------------------------------------------- */

static void after_fork(void)
{
    atomic_store(&cws_trace_running, false);
    atomic_store(&started, false);
    if (file >= 0)
        cws_os_close(file);
    file = -1;
    pthread_mutex_init(&life, NULL); /* the thread that held it is not here */
}

/* The first write is made here, so that a full disk is known at once. At a limit of file sizes it would end the
 * program: the signal is taken back. */
static int create_writer(void)
{
    static const struct timespec at_once;
    sigset_t limit, saved;
    sigemptyset(&limit);
    sigaddset(&limit, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &limit, &saved);
    int code = cws_trace_writer_create(file, &writer);
    if (code == -EFBIG)
        sigtimedwait(&limit, NULL, &at_once);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    return code;
}

static int start_thread(void)
{
    sigset_t all, saved;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved); /* no signal of the program is for it; it is inherited */
    int code = pthread_create(&thread, NULL, writer_main, NULL);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    return -code;
}

static int start_locked(const char *path, struct cws_error *err)
{
    static bool registered;
    if (!ring.slots) { /* for good: somebody may still write down what he began before a stop */
        void *slots = mmap(NULL, CWS_RING_SLOTS * sizeof *ring.slots, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (slots == MAP_FAILED)
            return cws_fail(err, -ENOMEM, "CODEC_TRACE=%s: no memory to record into", path);
        ring.slots = slots;
    }
    if (!registered && (pthread_atfork(NULL, NULL, after_fork) != 0 || atexit(cws_trace_stop) != 0))
        return cws_fail(err, -ENOMEM, "CODEC_TRACE=%s: no memory to start recording", path);
    registered = true;
    int code = take_file(path, &file, err);
    if (code)
        return code;
    atomic_store(&ring.tail, atomic_load(&ring.head));
    atomic_store(&ring.lost, 0);
    atomic_store(&stopping, 0);
    code = create_writer();
    if (!code && (code = start_thread()) != 0)
        cws_trace_writer_destroy(writer);
    if (code) {
        cws_os_close(file);
        file = -1;
        return cws_fail_errno(err, -code, "CODEC_TRACE=%s cannot be written", path);
    }
    atomic_store(&started, true);
    atomic_store(&cws_trace_running, true);
    return 0;
}

int cws_trace_start(const char *path, void (*say_line)(const char *line), struct cws_error *err)
{
    int code = 0;
    struct cws_guard guard = cws_guard_begin();
    pthread_mutex_lock(&life);
    if (!atomic_load(&started)) {
        say = say_line;
        code = start_locked(path, err);
    }
    pthread_mutex_unlock(&life);
    cws_guard_end(&guard);
    return code;
}

void cws_trace_stop(void)
{
    if (!atomic_load(&started)) /* in a child the lock may be the parent's */
        return;
    struct cws_guard guard = cws_guard_begin();
    pthread_mutex_lock(&life);
    if (atomic_load(&started)) {
        atomic_store(&cws_trace_running, false);
        atomic_store(&stopping, 1);
        CWS_SYSCALL(SYS_futex, &stopping, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        pthread_join(thread, NULL);
        cws_trace_writer_destroy(writer);
        cws_os_close(file);
        file = -1;
        atomic_store(&started, false);
    }
    pthread_mutex_unlock(&life);
    cws_guard_end(&guard);
}
