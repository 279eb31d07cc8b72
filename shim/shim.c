#include "shim.h"
#include "store/base/memory_limit.h"
#include "uvm/host/sys.h"
#include "uvm/host/view.h"
#include "shim/cuda/cuda_shim.h"
#include "shim/libc/file_table.h"
#include "shim/libc/signals.h"
#include "shim/libc/hooks.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool cws_shim_is_active;

static struct cws_options options;
static struct cws_error options_error; /* of the environment, found by the constructor, said when it matters */
static atomic_int owner_pid;           /* the process whose memory this is */
static atomic_bool pager_started;
static int stats_pid; /* the process that mapped a store first prints the counters, not its children */

/* --- talking ----------------------------------------------------------------------------------- */

void cws_shim_say(const char *format, ...)
{
    char line[640] = "codecllm: ";
    const size_t prefix = sizeof "codecllm: " - 1;
    int saved = errno;
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(line + prefix, sizeof line - prefix - 1, format, arguments);
    va_end(arguments);
    size_t bytes = prefix + (len < 0 ? 0 : (size_t)len);
    if (bytes > sizeof line - 2)
        bytes = sizeof line - 2;
    line[bytes++] = '\n';
    cws_sys_write(STDERR_FILENO, line, bytes); /* raw: write() ends a thread that is cancelled */
    errno = saved;
}

int cws_shim_errno(int code)
{
    if (code >= -4095)
        return -code;
    switch (code) {
    case CWS_E_USAGE:
    case CWS_E_RANGE:
        return EINVAL;
    case CWS_E_BUDGET:
        return ENOMEM;
    case CWS_E_VERSION:
    case CWS_E_FEATURE:
    case CWS_E_UNSUPPORTED:
        return EOPNOTSUPP;
    default:
        return EIO;
    }
}

static void say_unknown(void *arg, const char *name_and_value)
{
    (void)arg;
    cws_shim_say("%.*s: no such setting; 'codecllm doctor' lists them", (int)strcspn(name_and_value, "="), name_and_value);
}

static void say_settings(void)
{
    struct cws_option_row row;
    cws_shim_say("version %s, pager %s, %u functions of the C library replaced", CWS_VERSION, cws_pager_rung(), cws_real_count());
    for (size_t i = 0; cws_options_row(i, &row); i++)
        cws_shim_say("%s=%s%s", row.name, row.value && *row.value ? row.value : row.fallback,
                     row.value && *row.value ? "" : " (default)");
    if (options.budget_percent) {
        struct cws_memory_limit limit;
        cws_memory_limit_get("", &limit);
        cws_shim_say("%u%% of host memory is %.1f MiB, of %.1f MiB: %s", options.budget_percent,
                     (double)cws_options_host_budget(&options) / (1 << 20), (double)limit.bytes / (1 << 20), limit.from);
    }
}

/* --- starting ---------------------------------------------------------------------------------- */

const struct cws_options *cws_shim_options(void) { return &options; }

int cws_shim_check_options(void)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (!options_error.code)
        return 0;
    if (!atomic_flag_test_and_set(&said))
        cws_shim_say("%s", options_error.message);
    return -EINVAL;
}

static int install_handler(void)
{
    cws_signal_refresh();
    return 0;
}

bool cws_shim_pager_started(void) { return atomic_load_explicit(&pager_started, memory_order_acquire); }

int cws_shim_start_pager(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct cws_error err = {0};
    if (cws_shim_pager_started())
        return 0;
    struct cws_guard guard = cws_guard_begin();
    pthread_mutex_lock(&lock);
    int code = 0;
    if (!cws_shim_pager_started()) {
        cws_view_signal_installer(install_handler);
        code = cws_pager_start(&options, &err);
        if (code) {
            cws_shim_say("%s", err.message);
            code = -cws_shim_errno(code);
        } else {
            /* After the pager's own child handler, which may install ours and puts back the mask of the thread that forked. */
            pthread_atfork(NULL, NULL, cws_signal_unblock);
            stats_pid = getpid();
            cws_options_unknown(say_unknown, NULL);
            if (options.verbose)
                say_settings();
            atomic_store_explicit(&pager_started, true, memory_order_release);
        }
    }
    pthread_mutex_unlock(&lock);
    cws_guard_end(&guard);
    return code;
}

bool cws_shim_is_borrowed(void) { return getpid() != atomic_load_explicit(&owner_pid, memory_order_relaxed); }
void cws_shim_note_fork(void) { atomic_store(&owner_pid, getpid()); }

static void fork_child(void)
{
    cws_shim_note_fork();
    cws_files_fork_child();
}

/* A program that is started with a store as its standard input, say, finds a descriptor that nobody has looked at. */
static void adopt_inherited(void)
{
    enum { LOOK_AT = 256 };
    struct pollfd fds[LOOK_AT];
    char link[64], path[PATH_MAX];
    for (int i = 0; i < LOOK_AT; i++)
        fds[i] = (struct pollfd){.fd = i};
    if (poll(fds, LOOK_AT, 0) < 0) /* fewer may be allowed: each is asked, then */
        for (int i = 0; i < LOOK_AT; i++)
            fds[i].revents = 0;
    for (int i = 0; i < LOOK_AT; i++) {
        if (fds[i].revents & POLLNVAL)
            continue;
        int flags = CWS_REAL(fcntl)(i, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH))
            continue;
        snprintf(link, sizeof link, "/proc/self/fd/%d", i);
        ssize_t len = readlink(link, path, sizeof path - 1);
        path[len > 0 ? len : 0] = '\0';
        if (cws_file_adopt(i, path) < 0)
            CWS_REAL(close)(i); /* the line was written; its raw bytes are nothing to read */
    }
}

__attribute__((constructor)) static void start(void)
{
    const char *budget = getenv("CODEC_VRAM_BUDGET");
    int saved = errno;
    atomic_store(&owner_pid, getpid());
    cws_real_find_all();
    if (budget && *budget && !dlsym(RTLD_DEFAULT, "cws_tool_real_files")) {
        if (cws_options_from_env(&options, &options_error)) {
            /* said at the first store: this program may never open one */
        }
        pthread_atfork(cws_files_fork_prepare, cws_files_fork_parent, fork_child);
        cws_shim_is_active = true;
        cws_cuda_start();
        adopt_inherited();
    }
    errno = saved;
}

/* --- counters ---------------------------------------------------------------------------------- */

CWS_EXPORT size_t codecllm_stats_json(char *buf, size_t n)
{
    struct cws_pager_stats s = {0};
    if (cws_shim_pager_started())
        cws_pager_stats_get(&s);
    int len = snprintf(buf, n,
                       "{\"rung\": \"%s\", \"budget_bytes\": %" PRIu64 ", \"block_bytes\": %" PRIu64 ", \"views\": %" PRIu64
                       ", \"faults\": %" PRIu64 ", \"write_faults\": %" PRIu64 ", \"decoded_bytes\": %" PRIu64
                       ", \"evictions\": %" PRIu64 ", \"prefetched_blocks\": %" PRIu64 ", \"resident_bytes\": %" PRIu64
                       ", \"peak_bytes\": %" PRIu64 ", \"written_bytes\": %" PRIu64 ", \"reads\": %" PRIu64
                       ", \"read_bytes\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"mapped_bytes\": %" PRIu64
                       ", \"outside_bytes\": %" PRIu64 ", \"copied_bytes\": %" PRIu64 "}",
                       cws_shim_pager_started() ? cws_pager_rung() : "none",
                       s.budget_bytes ? s.budget_bytes : cws_options_host_budget(&options), s.block_bytes, s.views, s.faults, s.write_faults,
                       s.decoded_bytes, s.evictions, s.prefetched_blocks, s.resident_bytes, s.peak_bytes, s.written_bytes, s.reads,
                       s.read_bytes, s.errors, s.mapped_bytes, s.outside_bytes, s.copied_bytes);
    return len < 0 ? 0 : (size_t)len;
}

static void say_bytes(const char *what, uint64_t bytes)
{
    cws_shim_say("  %-16s %12.1f MiB", what, (double)bytes / (1 << 20));
}

static void say_count(const char *what, uint64_t count) { cws_shim_say("  %-16s %12" PRIu64, what, count); }

__attribute__((destructor)) static void finish(void)
{
    struct cws_pager_stats s;
    if (!options.stats || !cws_shim_pager_started() || getpid() != stats_pid)
        return;
    cws_pager_stats_get(&s);
    cws_shim_say("paging of this process (%s)", cws_pager_rung());
    say_bytes("budget", s.budget_bytes);
    say_bytes("peak", s.peak_bytes);
    say_bytes("resident", s.resident_bytes);
    say_bytes("written", s.written_bytes);
    say_count("faults", s.faults);
    say_count("write faults", s.write_faults);
    say_bytes("decoded", s.decoded_bytes);
    say_count("evictions", s.evictions);
    say_count("prefetched", s.prefetched_blocks);
    say_count("reads", s.reads);
    say_bytes("read", s.read_bytes);
    if (s.copied_bytes) /* about as much was copied out of views */
        say_bytes("copied outside", s.copied_bytes);
    if (s.errors)
        say_count("errors", s.errors);
}
