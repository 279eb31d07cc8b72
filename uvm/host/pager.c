/* pager.c - start and end of the pager, its choice of a rung, its options and its counters. */
#include "pager.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cws_pager cws_pager = {
    .views_lock = {.rank = CWS_RANK_VIEWS},
    .lock = {.rank = CWS_RANK_PAGER},
    .epoll_fd = -1,
    .kick_fd = -1,
    .pagemap_fd = -1,
    .statm_fd = -1,
    .hole_fd = -1,
    .zero_fd = -1,
};

#ifdef CWS_INJECT
void (*_Atomic cws_phase_hook)(enum cws_phase phase, struct cws_view *v, uint32_t block);
#endif

static const struct cws_rung *const rungs[] = {&cws_rung_uffd_dev, &cws_rung_uffd, &cws_rung_uffd_user,
                                               &cws_rung_sigsegv, &cws_rung_eager};
enum { RUNG_COUNT = sizeof rungs / sizeof *rungs, LEAST_BLOCKS = 16, BUDGET_BLOCKS = 32 };

static void say_va(const char *fmt, va_list args)
{
    char line[1024] = "codecllm: ";
    size_t used = strlen(line);
    int n = vsnprintf(line + used, sizeof line - used - 1, fmt, args);
    used = n < 0 ? used : used + (size_t)n < sizeof line - 1 ? used + (size_t)n : sizeof line - 2;
    line[used++] = '\n';
    cws_sys_write(2, line, used);
}

void cws_say(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say_va(fmt, args);
    va_end(args);
}

void cws_die(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say_va(fmt, args);
    va_end(args);
    abort();
}

static const struct cws_rung *rung_named(const char *name)
{
    for (size_t i = 0; i < RUNG_COUNT; i++)
        if (strcmp(rungs[i]->name, name) == 0)
            return rungs[i];
    return NULL;
}

int cws_pager_probe(const char *rung, struct cws_error *err)
{
    const struct cws_rung *r = rung_named(rung);
    if (!r)
        return cws_fail(err, CWS_E_USAGE, "%s: no such rung; there are uffd-dev, uffd, uffd-user, sigsegv and eager",
                        rung);
    return r->probe(r, err);
}

static int choose_rung(const struct cws_options *options, const struct cws_rung **out, struct cws_error *err)
{
    if (options->pager) {
        struct cws_error why = {0};
        const struct cws_rung *r = rung_named(options->pager);
        int code = cws_pager_probe(options->pager, &why);
        if (code)
            return cws_fail(err, CWS_E_UNSUPPORTED,
                            "CODEC_PAGER=%s does not work here: %s (unset it to let the program choose)",
                            options->pager, why.message);
        *out = r;
        return 0;
    }
    for (size_t i = 0; i < RUNG_COUNT; i++) {
        *out = rungs[i];
        if ((*out)->probe(*out, NULL) == 0)
            return 0;
    }
    return CWS_E_BUG; /* eager always works */
}

static uint64_t power_of_two_below(uint64_t n)
{
    uint64_t p = 1;
    while (p <= n / 2)
        p *= 2;
    return p;
}

uint64_t cws_pager_least_budget(void) { return LEAST_BLOCKS * CWS_BLOCK_BYTES_MIN; }
uint64_t cws_pager_least_budget_now(void) { return LEAST_BLOCKS * cws_pager.block_bytes; }

static uint64_t choose_block_bytes(uint64_t budget)
{
    uint64_t bytes = power_of_two_below(budget / BUDGET_BLOCKS);
    return bytes < CWS_BLOCK_BYTES_MIN   ? CWS_BLOCK_BYTES_MIN
           : bytes > CWS_BLOCK_BYTES_MAX ? CWS_BLOCK_BYTES_MAX
                                         : bytes;
}

static unsigned choose_slots(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 2 ? 2 : cores > CWS_SLOTS_MAX ? CWS_SLOTS_MAX : (unsigned)cores;
}

static void close_all(void)
{
    struct cws_pager *p = &cws_pager;
    cws_workers_stop();
    for (unsigned i = 0; i < CWS_SLOTS_MAX; i++) {
        if (p->slots[i].staging)
            cws_sys_munmap(p->slots[i].staging, p->slots[i].staging_bytes);
        p->slots[i] = (struct cws_decoder_slot){0};
    }
    if (p->pagemap_fd >= 0)
        cws_os_close(p->pagemap_fd);
    if (p->statm_fd >= 0)
        cws_os_close(p->statm_fd);
    if (p->hole_fd >= 0)
        cws_os_close(p->hole_fd);
    if (p->zero_fd >= 0)
        cws_os_close(p->zero_fd);
    p->pagemap_fd = p->statm_fd = p->hole_fd = p->zero_fd = -1;
    p->rung = NULL;
}

static void reset_accounts(void)
{
    struct cws_pager *p = &cws_pager;
    p->resident = p->in_flight = p->written = p->peak = 0;
    p->faults = p->write_faults = p->decoded = p->evictions = p->prefetched = p->errors = p->dead_reads =
        p->dead_read_bytes = 0;
    p->warned_written = p->warned_stuck = p->child = false;
    p->outside = (struct cws_outside){0};
    p->slots_taken = 0;
    p->queue_head = p->queue_tail = 0;
}

static int start_locked(const struct cws_options *options, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    if (p->running)
        return 0;
    if (CWS_PAGE_BYTES > CWS_BLOCK_BYTES_MIN) /* a block is whole pages */
        return cws_fail(err, CWS_E_UNSUPPORTED, "this kernel's pages of %zu bytes are too large to page with",
                        CWS_PAGE_BYTES);
    uint64_t budget = options->active ? cws_options_host_budget(options) : CWS_BUDGET_UNLIMITED;
    if (budget < cws_pager_least_budget())
        return cws_fail(err, CWS_E_BUDGET, "CODEC_VRAM_BUDGET is %" PRIu64 " bytes%s; the least that works is %" PRIu64,
                        budget,
                        options->budget_percent ? " here ('codecllm doctor' says of what it is a percentage)" : "",
                        cws_pager_least_budget());
    if (budget > CWS_BUDGET_UNLIMITED)
        budget = CWS_BUDGET_UNLIMITED;
    int code = choose_rung(options, &p->rung, err);
    if (code)
        return code;
    reset_accounts();
    p->options = *options;
    p->options.budget_bytes = budget; /* what a percentage came to */
    p->block_bytes = choose_block_bytes(budget);
    if (p->rung->whole && options->active) {
        cws_say("no way to catch page faults works here, so mapped stores are decoded whole and the budget of %" PRIu64
                " bytes cannot be kept (codecllm doctor says why)",
                budget);
        budget = CWS_BUDGET_UNLIMITED;
    }
    p->budget = budget;
    cws_policy_init(&p->policy, options->policy, budget, p->block_bytes, &cws_tuning_default);
    p->slot_count = choose_slots();
    p->pagemap_fd = cws_own_fd_note(cws_os_openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY, 0));
    p->statm_fd = cws_own_fd_note(cws_os_openat(AT_FDCWD, "/proc/self/statm", O_RDONLY, 0));
    p->hole_fd = cws_own_fd_note(memfd_create("codecllm-failed", MFD_CLOEXEC));
    if (p->rung->needs_signal) /* without it, it is MAP_ANONYMOUS */
        p->zero_fd = cws_own_fd_note(cws_os_openat(AT_FDCWD, "/dev/zero", O_RDWR, 0));
    if (p->hole_fd < 0)
        code = cws_fail_errno(err, errno, "memfd_create");
    if (!code && !p->rung->whole)
        code = cws_workers_start(err);
    if (!code && p->rung->needs_signal && (code = cws_signal_install()) != 0)
        cws_fail_errno(err, -code, "the pager's signal handler could not be installed");
    if (!code && (code = cws_fork_register()) != 0)
        cws_fail_errno(err, -code, "the pager's fork handlers could not be registered");
    if (code) {
        close_all();
        return code;
    }
    p->running = true;
    return 0;
}

static void say_line(const char *line) { cws_say("%s", line); }

/* A trace that cannot be written is said, and no reason not to run. */
void cws_pager_trace_start(const struct cws_options *options)
{
    struct cws_error err = {0};
    if (options->trace[0] && cws_trace_start(options->trace, say_line, &err))
        cws_say("%s; the program runs without a trace", err.message);
}

int cws_pager_start(const struct cws_options *options, struct cws_error *err)
{
    struct cws_guard guard = cws_guard_begin();
    cws_pager_trace_start(options);
    cws_lock_take(&cws_pager.views_lock);
    int code = start_locked(options, err);
    cws_lock_drop(&cws_pager.views_lock);
    cws_guard_end(&guard);
    return code;
}

int cws_pager_stop(void)
{
    struct cws_guard guard = cws_guard_begin();
    int code = 0;
    cws_lock_take(&cws_pager.views_lock);
    cws_lock_take(&cws_pager.lock);
    if (cws_index_count_locked())
        code = CWS_E_BUSY;
    cws_lock_drop(&cws_pager.lock);
    if (!code && cws_pager.running) {
        cws_pager.running = false;
        close_all();
    }
    cws_lock_drop(&cws_pager.views_lock);
    cws_guard_end(&guard);
    return code;
}

const char *cws_pager_rung(void) { return cws_pager.rung ? cws_pager.rung->name : "none"; }
uint64_t cws_pager_block_bytes(void) { return cws_pager.block_bytes; }
unsigned cws_pager_slots(void) { return cws_pager.slot_count; }
bool cws_view_needs_signal(void) { return cws_pager.rung && cws_pager.rung->needs_signal; }

static void add_source_counters(struct cws_pager_stats *out)
{
    struct cws_view *v, *other;
    for (uint32_t i = 0; (v = cws_index_next_locked(&i)) != NULL;) {
        bool seen = false; /* several views may share a source */
        for (uint32_t j = 0; !seen && (other = cws_index_next_locked(&j)) != v;)
            seen = other->source == v->source;
        uint64_t reads = 0, bytes = 0;
        if (!seen && v->source->ops->counters)
            v->source->ops->counters(v->source, &reads, &bytes);
        out->reads += reads;
        out->read_bytes += bytes;
    }
}

void cws_pager_stats_get(struct cws_pager_stats *out)
{
    struct cws_pager *p = &cws_pager;
    struct cws_guard guard = cws_guard_begin();
    cws_outside_look();
    cws_lock_take(&p->lock);
    *out = (struct cws_pager_stats){
        .budget_bytes = p->options.active ? p->options.budget_bytes : p->budget,
        .block_bytes = p->block_bytes,
        .faults = p->faults,
        .write_faults = p->write_faults,
        .decoded_bytes = p->decoded,
        .evictions = p->evictions,
        .prefetched_blocks = p->prefetched,
        .resident_bytes = p->resident,
        .peak_bytes = p->peak,
        .written_bytes = p->written,
        .reads = p->dead_reads,
        .read_bytes = p->dead_read_bytes,
        .views = cws_index_count_locked(),
        .errors = p->errors,
        .mapped_bytes = p->policy.total_bytes,
        .outside_bytes = cws_outside_bytes_locked(),
        .copied_bytes = p->outside.copied + p->outside.copied_before,
    };
    add_source_counters(out);
    cws_lock_drop(&p->lock);
    cws_guard_end(&guard);
}
