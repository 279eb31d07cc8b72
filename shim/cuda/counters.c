/* counters.c - the counters of each GPU's manager (struct cws_gpu_stats), as lines for a person and as JSON for the
 * Python package. docs/commands.md and shim/python/codecllm/counters.py say what each is. */
#include "device.h"
#include "shim/say.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

/* --- lines --------------------------------------------------------------------------------------------- */

static void say_mib(const char *what, uint64_t bytes)
{
    cws_shim_say("  %-16s %12.1f MiB", what, (double)bytes / (1 << 20));
}
static void say_count(const char *what, uint64_t count) { cws_shim_say("  %-16s %12" PRIu64, what, count); }
static void say_time(const char *what, uint64_t ns, uint64_t times)
{
    cws_shim_say("  %-16s %12.1f ms, %" PRIu64 " times", what, (double)ns / 1e6, times);
}

static void say_device(int ordinal, const struct cws_gpu_stats *s)
{
    cws_shim_say("paging of GPU %d", ordinal);
    say_mib("budget", s->budget_bytes);
    say_mib("peak", s->peak_bytes);
    say_mib("weights decoded", s->decoded_bytes);
    say_mib("weights in all", s->bound_bytes);
    say_mib("adopted", s->adopted_bytes);
    say_mib("other ranges", s->anonymous_bytes);
    say_mib("kept for them", s->reserve_bytes);
    say_mib("staging", s->staging_bytes);
    say_mib("driver's own", s->other_bytes);
    say_mib("compressed, host", s->host_bytes);
    say_count("loads", s->loads);
    say_count("prefetched", s->prefetched);
    say_count("waited for", s->demand);
    say_count("drops", s->drops);
    if (s->spills > 0)
        cws_shim_say("  %-16s %12" PRIu64 " (%" PRIu64 " came back, %.1f MiB are away)", "to the host", s->spills,
                     s->restores, (double)s->spilled_bytes / (1 << 20));
    if (s->proven > 0)
        say_count("recognized", s->proven);
    say_mib("decoded in all", s->loaded_bytes);
    cws_shim_say("  %-16s %12.1f MiB in %.1f ms", "over the link", (double)s->link_bytes / (1 << 20),
                 (double)s->link_ns / 1e6);
    cws_shim_say("  %-16s %12.1f ms", "launches waited", (double)s->stall_ns / 1e6);
    say_time("  for weights", s->weight_wait_ns, s->weight_waits);
    say_time("  for memory", s->fresh_wait_ns, s->fresh_waits);
    say_time("  for staging", s->staging_wait_ns, s->staging_waits);
    cws_shim_say("  %-16s %12" PRIu64 " made, %" PRIu64 " given back, %" PRIu64 " calls", "pieces of memory",
                 s->frames_created, s->frames_released, s->vmm_calls);
    say_mib("least budget", s->least_budget_bytes);
}

void cws_cuda_say_counters(void)
{
    struct cws_gpu_stats s;
    unsigned count = atomic_load(&cws_cuda_device_count);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (!gpu)
            continue;
        cws_gpu_stats_get(gpu, &s);
        say_device(cws_cuda_devices[i].ordinal, &s);
    }
}

/* --- JSON ------------------------------------------------------------------------------------------------ */

static const struct {
    const char *key;
    size_t offset; /* of a uint64_t in struct cws_gpu_stats */
} fields[] = {
#define FIELD(key, member)                                                                                             \
    {                                                                                                                  \
        key, offsetof(struct cws_gpu_stats, member)                                                                    \
    }
    FIELD("budget", budget_bytes),
    FIELD("used", used_bytes),
    FIELD("peak", peak_bytes),
    FIELD("decoded", decoded_bytes),
    FIELD("compressed", host_bytes),
    FIELD("staging", staging_bytes),
    FIELD("bound", bound_bytes),
    FIELD("adopted", adopted_bytes),
    FIELD("anonymous", anonymous_bytes),
    FIELD("dirty", dirty_bytes),
    FIELD("reserve", reserve_bytes),
    FIELD("idle", idle_bytes),
    FIELD("stolen", stolen_bytes),
    FIELD("driver", other_bytes),
    FIELD("ranges", ranges),
    FIELD("loads", loads),
    FIELD("prefetched", prefetched),
    FIELD("demand", demand),
    FIELD("drops", drops),
    FIELD("spilled", spilled_bytes),
    FIELD("spills", spills),
    FIELD("restores", restores),
    FIELD("proven", proven),
    FIELD("loaded_bytes", loaded_bytes),
    FIELD("link_bytes", link_bytes),
    FIELD("link_ns", link_ns),
    FIELD("stall_ns", stall_ns),
    FIELD("weight_waits", weight_waits),
    FIELD("weight_wait_ns", weight_wait_ns),
    FIELD("fresh_waits", fresh_waits),
    FIELD("fresh_wait_ns", fresh_wait_ns),
    FIELD("staging_waits", staging_waits),
    FIELD("staging_wait_ns", staging_wait_ns),
    FIELD("frames_created", frames_created),
    FIELD("frames_released", frames_released),
    FIELD("vmm_calls", vmm_calls),
    FIELD("least_budget", least_budget_bytes),
#undef FIELD
};

struct text { /* of a buffer that may be too small: `at` goes on past its end */
    char *buf;
    size_t n, at;
};

static void put(struct text *t, const char *format, ...) CWS_PRINTF(2, 3);
static void put(struct text *t, const char *format, ...)
{
    va_list arguments;
    bool fits = t->at < t->n;
    va_start(arguments, format);
    int len = vsnprintf(fits ? t->buf + t->at : NULL, fits ? t->n - t->at : 0, format, arguments);
    va_end(arguments);
    t->at += len < 0 ? 0 : (size_t)len;
}

static void put_device(struct text *t, int ordinal, const struct cws_gpu_stats *s)
{
    put(t, "{\"device\": %d", ordinal);
    put(t, ", \"other\": %" PRIu64, s->anonymous_bytes + s->reserve_bytes + s->idle_bytes + s->other_bytes);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        put(t, ", \"%s\": %" PRIu64, fields[i].key, *(const uint64_t *)((const char *)s + fields[i].offset));
    put(t, "}");
}

CWS_EXPORT size_t codecllm_gpu_stats_json(char *buf, size_t n)
{
    struct cws_gpu_stats s;
    struct text t = {buf, n, 0};
    unsigned count = atomic_load(&cws_cuda_device_count), shown = 0;
    put(&t, "[");
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (!gpu)
            continue;
        cws_gpu_stats_get(gpu, &s);
        put(&t, "%s", shown++ ? ", " : "");
        put_device(&t, cws_cuda_devices[i].ordinal, &s);
    }
    put(&t, "]");
    return t.at;
}
