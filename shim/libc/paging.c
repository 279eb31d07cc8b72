/* paging.c - starts the pager when the first store is mapped, and writes its counters when the program ends. */
#include "paging.h"
#include "hooks.h"
#include "shim/say.h"
#include "shim/state.h"
#include "signals.h"
#include "store/base/guard.h"
#include "store/base/lock.h"
#include "store/base/memory_limit.h"
#include "uvm/host/view.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int stats_pid; /* the process that mapped a store first prints the counters, not its children */

/* --- starting ---------------------------------------------------------------------------------- */

static void say_unknown(void *arg, const char *name_and_value)
{
    (void)arg;
    cws_shim_say("%.*s: no such setting; 'codecllm doctor' lists them", (int)strcspn(name_and_value, "="),
                 name_and_value);
}

static void say_settings(const struct cws_options *options)
{
    struct cws_option_row row;
    cws_shim_say("version %s, pager %s, %u functions of the C library replaced", CWS_VERSION, cws_pager_rung(),
                 cws_real_count());
    for (size_t i = 0; cws_options_row(i, &row); i++)
        cws_shim_say("%s=%s%s", row.name, row.value && *row.value ? row.value : row.fallback,
                     row.value && *row.value ? "" : " (default)");
    if (options->budget_auto)
        cws_shim_say("the budget of host memory is %.1f MiB: half of what is free, within the range",
                     (double)cws_options_host_budget(options) / (1 << 20));
    if (options->budget_percent) {
        struct cws_memory_limit limit;
        cws_memory_limit_get("", &limit);
        cws_shim_say("%u%% of host memory is %.1f MiB, of %.1f MiB: %s", options->budget_percent,
                     (double)cws_options_host_budget(options) / (1 << 20), (double)limit.bytes / (1 << 20), limit.from);
    }
}

static int install_handler(void)
{
    cws_signals_refresh();
    return 0;
}

int cws_shim_start_pager(void)
{
    static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_PAGER_START);
    struct cws_error err = {0};
    if (cws_shim_pager_started())
        return 0;
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&lock);
    int code = 0;
    if (!cws_shim_pager_started()) {
        cws_view_signal_installer(install_handler);
        code = cws_pager_start(cws_shim_options(), &err);
        if (code) {
            cws_shim_say("%s", err.message);
            code = -cws_shim_errno(code);
        } else {
            /* After the pager's own child handler, which may install ours and puts back the mask of the thread that
             * forked. */
            pthread_atfork(NULL, NULL, cws_signals_unblock);
            stats_pid = getpid();
            cws_options_unknown(say_unknown, NULL);
            if (cws_shim_options()->verbose)
                say_settings(cws_shim_options());
            cws_shim_note_pager();
        }
    }
    cws_lock_drop(&lock);
    cws_guard_end(&guard);
    return code;
}

/* --- counters ---------------------------------------------------------------------------------- */

CWS_EXPORT size_t codecllm_stats_json(char *buf, size_t n)
{
    struct cws_pager_stats s = {0};
    if (cws_shim_pager_started())
        cws_pager_stats_get(&s);
    int len = snprintf(
        buf, n,
        "{\"rung\": \"%s\", \"budget_bytes\": %" PRIu64 ", \"block_bytes\": %" PRIu64 ", \"views\": %" PRIu64
        ", \"faults\": %" PRIu64 ", \"write_faults\": %" PRIu64 ", \"decoded_bytes\": %" PRIu64
        ", \"evictions\": %" PRIu64 ", \"prefetched_blocks\": %" PRIu64 ", \"resident_bytes\": %" PRIu64
        ", \"peak_bytes\": %" PRIu64 ", \"written_bytes\": %" PRIu64 ", \"reads\": %" PRIu64
        ", \"read_bytes\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"mapped_bytes\": %" PRIu64
        ", \"outside_bytes\": %" PRIu64 ", \"copied_bytes\": %" PRIu64 "}",
        cws_shim_pager_started() ? cws_pager_rung() : "none",
        s.budget_bytes ? s.budget_bytes : cws_options_host_budget(cws_shim_options()), s.block_bytes, s.views, s.faults,
        s.write_faults, s.decoded_bytes, s.evictions, s.prefetched_blocks, s.resident_bytes, s.peak_bytes,
        s.written_bytes, s.reads, s.read_bytes, s.errors, s.mapped_bytes, s.outside_bytes, s.copied_bytes);
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
    if (!cws_shim_options()->stats || !cws_shim_pager_started() || getpid() != stats_pid)
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
