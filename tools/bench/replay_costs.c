/* replay_costs.c - what things cost in the simulation of a paged program: the default of each, and where it is from. */
#include "replay_paging.h"

#include <stdlib.h>
#include <string.h>

/* X(name, default, unit, meaning). Measured: by bench_decode, by calls to the driver alone, or in a trace of a
 * denoising step on an H200. Fitted: chosen so that measured times come out, of a token of TinyLlama's shape at 1700M
 * and of a step of FLUX.1-dev's at 12G (docs/benchmarks/2026-11-27.md). The others are what the code looks like. */
#define COSTS(X)                                                                                                       \
    X(link_gbps, 54, "GB/s", "host to device, pinned")                                                                 \
    X(link_share, 0.9, "", "of that speed, while the device works; in a trace")                                        \
    X(copy_us, 3, "us", "of a batch beside its bytes; in a trace")                                                     \
    X(copy_gap_us, 2, "us", "between two batches; in a trace")                                                         \
    X(stored_share, 0.668, "", "of a weight's bytes that is stored")                                                   \
    X(decode_us, 9, "us", "of a batch's decoding beside its bytes; bench_decode")                                      \
    X(decode_gbps, 2000, "GB/s", "decoded bytes; bench_decode")                                                        \
    X(hash_us, 9, "us", "of a hash beside its bytes")                                                                  \
    X(hash_gbps, 3800, "GB/s", "hashed bytes; bench_decode")                                                           \
    X(crowded, 3, "times", "as long take both beside the program's kernels; in a trace")                               \
    X(slow_decode, 1, "share", "of the device that they take from kernels, of the time they take alone")               \
    X(slow_copy, 0.08, "share", "of their speed that kernels lose while the link is busy; fitted")                     \
    X(flops, 500, "TFLOP/s", "of kernels, before a round is scaled; FLUX's step")                                      \
    X(memory_gbps, 3500, "GB/s", "of kernels, likewise")                                                               \
    X(kernel_us, 3, "us", "of a kernel at least, likewise")                                                            \
    X(create_us, 20, "us", "cuMemCreate")                                                                              \
    X(release_us, 10, "us", "cuMemRelease")                                                                            \
    X(release_us_mib, 0.3, "us", "of it, a MiB")                                                                       \
    X(map_us, 1, "us", "cuMemMap")                                                                                     \
    X(access_us, 45, "us", "cuMemSetAccess while the program launches; in a trace")                                    \
    X(unmap_us, 20, "us", "cuMemUnmap")                                                                                \
    X(lock_share, 0.6, "share",                                                                                        \
      "of the loader's calls for memory, by which they hold the program's thread up; fitted")                          \
    X(send_us, 15, "us", "of the loader to send a batch")                                                              \
    X(drop_us, 10, "us", "of it to send a hash")                                                                       \
    X(reap_us, 3, "us", "of it for what is done")                                                                      \
    X(step_us, 2, "us", "of it to look what to do")                                                                    \
    X(wake_us, 15, "us", "until a thread that waits goes on")                                                          \
    X(launch_us, 12, "us", "of the program's thread to launch a kernel, before a round is scaled")                     \
    X(use_us, 3, "us", "of it for a weight, likewise")                                                                 \
    X(alloc_us, 4, "us", "of it to allocate or free, likewise")                                                        \
    X(sync_us, 20, "us", "of it to see that the device is done")                                                       \
    X(queue_launches, 1024, "kernels", "by which the program may be ahead")

#define AS_DEFAULT(name, fallback, unit, meaning) .name = (fallback),
#define AS_ROW(name, fallback, unit, meaning) {#name, unit, meaning, fallback, offsetof(struct replay_costs, name)},

const struct replay_costs replay_costs_default = {COSTS(AS_DEFAULT)};
static const struct replay_cost_row rows[] = {COSTS(AS_ROW)};
enum { ROWS = sizeof rows / sizeof *rows };
_Static_assert(ROWS * sizeof(double) == sizeof(struct replay_costs), "each cost has a row");

bool replay_cost_row(size_t i, struct replay_cost_row *out)
{
    if (i >= ROWS)
        return false;
    *out = rows[i];
    return true;
}

double replay_cost_get(const struct replay_costs *c, const struct replay_cost_row *row)
{
    double value;
    memcpy(&value, (const char *)c + row->offset, sizeof value);
    return value;
}

int replay_cost_set(struct replay_costs *c, const char *text, struct cws_error *err)
{
    size_t length = strcspn(text, "=");
    for (size_t i = 0; i < ROWS && text[length]; i++) {
        if (strlen(rows[i].name) != length || strncmp(rows[i].name, text, length) != 0)
            continue;
        char *end;
        double value = strtod(text + length + 1, &end);
        if (end == text + length + 1 || *end || !(value >= 0) || value > 1e6)
            return cws_fail(err, CWS_E_USAGE, "%s: a number from 0 to 1000000 is wanted", rows[i].name);
        memcpy((char *)c + rows[i].offset, &value, sizeof value);
        return 0;
    }
    return cws_fail(err, CWS_E_USAGE, "%.80s: NAME=VALUE is wanted; --costs lists names", text);
}
