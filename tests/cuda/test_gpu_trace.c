/* Description: CODEC_TRACE of the CUDA manager, against the stand-in driver: uses with what they met, waits of
 * launches, loads with their reads, copies and decoding by the device's clock, drops, memory inside the budget, rounds
 * of a cyclic scan; any driver call of the trace's own may fail. NVTX: a profiler's library gets a range for each wait;
 * one that is none, or refuses, changes nothing. */
#include "tests/support/sample_model.h"
#include "tests/standin/standin.h"
#include "store/pack/writer.h"
#include "tests/support/trace_file.h"
#include "store/base/trace.h"
#include "uvm/cuda/manager.h"
#include "uvm/cuda/nvtx.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { TENSORS = 8, ROUNDS = 6 };
#define MIB ((size_t)1 << 20)
#define TENSOR_BYTES (4 * MIB)
static const uint32_t image_of_kernels[16] = {0xba55ed50};

static struct cws_driver driver;
static struct cws_store *store;
static const char *path;
static char said[1024];
static void say(const char *line) { snprintf(said, sizeof said, "%s", line); }

static int group_setup(void **state)
{
    (void)state;
    char json[2048];
    size_t len = 0;
    uint64_t seed = 5;
    uint8_t *data = malloc(TENSORS * TENSOR_BYTES);
    for (size_t i = 0; i < TENSORS * TENSOR_BYTES; i += 2) {
        uint64_t r = sample_random(&seed);
        uint16_t value = (uint16_t)((r & 0x807f) | (120 - (unsigned)__builtin_ctzll(r | 64)) << 7);
        memcpy(data + i, &value, 2);
    }
    for (size_t i = 0; i < TENSORS; i++)
        len += (size_t)snprintf(json + len, sizeof json - len,
                                "%s\"layers.%zu.w\":{\"dtype\":\"BF16\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                                i ? "," : "{", i, TENSOR_BYTES / 2, i * TENSOR_BYTES, (i + 1) * TENSOR_BYTES);
    snprintf(json + len, sizeof json - len, "}");
    struct bytes plain = sample_file(json, 1, data, TENSORS * TENSOR_BYTES);
    const char *in = sample_path("in"), *out = sample_path("out");
    struct cws_error err = {0};
    sample_save(in, plain.data, plain.size);
    free(data);
    free(plain.data);
    path = sample_path("gpu.json");
    if (cws_pack_file(in, out, &(struct cws_pack_options){0}, NULL, &err) ||
        cws_store_open(out, CWS_IO_AUTO, &store, &err))
        fail_msg("%s", err.message);
    return 0;
}
static int group_teardown(void **state)
{
    (void)state;
    cws_store_close(store);
    return 0;
}

struct run {
    struct cws_gpu *gpu;
    CUcontext context;
    CUstream stream;
    CUdeviceptr at[TENSORS];
};

static void open_traced(struct run *run, uint64_t budget)
{
    struct cws_error err = {0};
    standin_reset(256 * MIB);
    assert_int_equal(cws_driver_fill(&driver, standin_resolve, NULL, &err), 0);
    assert_int_equal(driver.init(0), 0);
    assert_int_equal(driver.primary_retain(&run->context, 0), 0);
    assert_int_equal(driver.context_set(run->context), 0);
    said[0] = '\0';
    if (cws_trace_start(path, say, &err))
        fail_msg("%s", err.message);
    const struct cws_gpu_config config = {.driver = &driver,
                                          .budget_bytes = budget,
                                          .host_budget_bytes = 64 * MIB,
                                          .policy = CWS_POLICY_NEXT,
                                          .prefetch = true,
                                          .ring_bytes = 8 * MIB,
                                          .kernels = image_of_kernels,
                                          .say = say};
    if (cws_gpu_open(&config, 0, &run->gpu, &err))
        fail_msg("%s", err.message);
    assert_int_equal(driver.stream_create(&run->stream, CU_STREAM_NON_BLOCKING), 0);
}

static void close_traced(struct run *run)
{
    char text[256];
    cws_gpu_close(run->gpu);
    cws_trace_stop();
    assert_int_equal(driver.stream_destroy(run->stream), 0);
    assert_int_equal(driver.primary_release(0), 0);
    if (standin_leak_text(text, sizeof text))
        fail_msg("left behind: %s", text);
}

static void use(struct run *run, unsigned i)
{
    struct cws_gpu_use use;
    uint8_t byte;
    assert_int_equal(cws_gpu_begin(run->gpu, run->stream, &run->at[i], 1, &use), 0);
    assert_int_equal(driver.copy_out_async(&byte, run->at[i], 1, run->stream), 0);
    cws_gpu_end(run->gpu, &use, true);
    assert_int_equal(driver.stream_sync(run->stream), 0);
}

static void scan(struct run *run)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        assert_int_equal(cws_gpu_alloc(run->gpu, TENSOR_BYTES, run->stream, &run->at[i]), 0);
        assert_true(
            cws_gpu_bind(run->gpu, run->at[i], TENSOR_BYTES, run->stream, store, cws_store_tensor(store, i)->begin));
    }
    for (unsigned round = 0; round < ROUNDS; round++)
        for (unsigned i = 0; i < TENSORS; i++)
            use(run, i);
}

/* Sums over the events of a name; each must name a tensor of the model. */
static long long sum(json_t *events, const char *name, const char *phases, const char *why, long long *out_bytes)
{
    json_t *e;
    size_t i;
    long long n = 0;
    *out_bytes = 0;
    json_array_foreach(events, i, e)
    {
        const char *own = json_string_value(json_object_get(e, "name"));
        if (!own || strcmp(own, name) != 0 || !strchr(phases, json_string_value(json_object_get(e, "ph"))[0]) ||
            (why && strcmp(trace_text(e, "why"), why) != 0))
            continue;
        assert_true(strncmp(trace_text(e, "tensor"), "layers.", 7) == 0);
        *out_bytes += trace_number(e, "bytes");
        n++;
    }
    return n;
}

static void a_scan_is_told_as_it_was(void **state)
{
    (void)state;
    struct run run;
    struct cws_gpu_stats s;
    long long bytes;
    open_traced(&run, 36 * MIB);
    scan(&run);
    cws_gpu_settle(run.gpu);
    cws_gpu_stats_get(run.gpu, &s);
    close_traced(&run);
    json_t *events = trace_load(path, getpid(), true), *e;
    assert_int_equal(sum(events, "use", "i", NULL, &bytes), TENSORS * ROUNDS);
    assert_int_equal(bytes, TENSORS * ROUNDS * TENSOR_BYTES);
    assert_int_equal(sum(events, "load", "X", NULL, &bytes), s.loads);
    assert_int_equal(bytes, s.loaded_bytes);
    assert_true(s.loads > TENSORS);
    assert_int_equal(sum(events, "load", "X", "ahead", &bytes), s.prefetched);
    assert_int_equal(sum(events, "drop", "X", "dropped", &bytes), s.drops);
    assert_true(s.drops > 0);
    long long missed = sum(events, "use", "i", "miss", &bytes),
              late = sum(events, "use", "i", "loading", &bytes) + sum(events, "use", "i", "dropping", &bytes);
    assert_int_equal(sum(events, "wait for weights", "B", "weights", &bytes), missed + late);
    assert_true(missed > 0);
    assert_true(sum(events, "copy", "X", NULL, &bytes) > 0);
    assert_true(bytes > 0 && bytes <= (long long)s.link_bytes);
    sum(events, "decode", "X", NULL, &bytes);
    assert_int_equal(bytes, s.loaded_bytes);
    assert_int_equal(sum(events, "fetch", "B", NULL, &bytes), TENSORS);
    assert_true(sum(events, "read", "B", NULL, &bytes) >= TENSORS);
    assert_true(sum(events, "map", "B", NULL, &bytes) >= (long long)s.loads);
    assert_int_equal(trace_count(events, "cycle", 'i'), ROUNDS - 1);
    size_t counts = 0;
    for (; (e = trace_event(events, "GPU 0 memory", 'C', counts)) != NULL; counts++)
        assert_true(trace_number(e, "weights") + trace_number(e, "fixed") <= (long long)(36 * MIB));
    assert_true(counts > s.loads);
    json_decref(events);
}

static void device_times_lie_inside_their_loads(void **state)
{
    (void)state;
    struct run run;
    open_traced(&run, 64 * MIB);
    double before = (double)cws_trace_now() / 1e3;
    scan(&run);
    double after = (double)cws_trace_now() / 1e3;
    close_traced(&run);
    json_t *events = trace_load(path, getpid(), true), *e;
    size_t n = 0;
    for (; (e = trace_event(events, "copy", 'X', n)) != NULL; n++) {
        double at = json_number_value(json_object_get(e, "ts")), span = json_number_value(json_object_get(e, "dur"));
        /* the two clocks were compared once, with an event */
        assert_true(at > before - 1e6 && at + span < after + 1e6);
    }
    assert_true(n > 0);
    json_decref(events);
}

/* Without events for it, there is a trace without the device's clock. */
static void calls_of_the_trace_may_fail(void **state)
{
    (void)state;
    static const char *const calls[] = {"cuEventCreate", "cuEventRecord", "cuEventElapsedTime", "cuEventSynchronize"};
    long long bytes;
    for (unsigned c = 0; c < sizeof calls / sizeof *calls; c++) {
        struct run run;
        standin_reset(256 * MIB);
        open_traced(&run, 64 * MIB);
        cws_gpu_close(run.gpu);
        struct cws_error err = {0};
        const struct cws_gpu_config config = {.driver = &driver,
                                              .budget_bytes = 64 * MIB,
                                              .host_budget_bytes = 64 * MIB,
                                              .prefetch = true,
                                              .ring_bytes = 8 * MIB,
                                              .kernels = image_of_kernels,
                                              .say = say};
        /* The first events are the ring's and the manager's own. */
        unsigned own = c == 0 ? 2 * 8 + 32 + 1 + 3 : 1;
        standin_fail(calls[c], own, CUDA_ERROR_UNKNOWN);
        if (cws_gpu_open(&config, 0, &run.gpu, &err))
            fail_msg("%s: %s", calls[c], err.message);
        if (c < 3 && c != 1)
            scan(&run);
        assert_false(standin_fail_pending());
        standin_fail_none();
        close_traced(&run);
        json_t *events = trace_load(path, getpid(), true);
        assert_true(c == 1 || c == 3 || sum(events, "load", "X", NULL, &bytes) >= TENSORS);
        assert_true(c == 2 || trace_count(events, "copy", 'X') == 0);
        json_decref(events);
    }
}

/* --- NVTX ------------------------------------------------------------------------------------------------ */

static void *tool_symbol(void *tool, const char *name)
{
    void *at = dlsym(tool, name);
    assert_non_null(at);
    return at;
}

/* In a process of its own, for a profiler is looked for once. Exit 0: as expected. */
static void with_profiler(const char *library, const char *how, bool expected)
{
    struct run run;
    setenv("NVTX_INJECTION64_PATH", library, 1);
    setenv("NVTX_TOOL", how, 1);
    open_traced(&run, 36 * MIB);
    scan(&run);
    assert_int_equal(cws_nvtx_is_on(), expected);
    close_traced(&run);
    if (!expected)
        return;
    void *tool = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    assert_non_null(tool);
    assert_int_equal(*(int *)tool_symbol(tool, "nvtx_tool_wrong"), 0);
    assert_int_equal(*(int *)tool_symbol(tool, "nvtx_tool_depth"), 0);
    assert_string_equal((char *)tool_symbol(tool, "nvtx_tool_domain"), "codecllm");
    assert_true(strncmp((char *)tool_symbol(tool, "nvtx_tool_last"), "wait for layers.", 16) == 0);
    json_t *events = trace_load(path, getpid(), true);
    assert_int_equal(*(int *)tool_symbol(tool, "nvtx_tool_begun"), trace_count(events, "wait for weights", 'B'));
    assert_int_equal(*(uint64_t *)tool_symbol(tool, "nvtx_tool_bytes"),
                     trace_count(events, "wait for weights", 'B') * TENSOR_BYTES);
    json_decref(events);
}

static void a_profiler_gets_ranges_of_waits(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) { /* a profiler, one that refuses, no library, one that is none */
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
            char text[8];
            snprintf(text, sizeof text, "%u", i);
            setenv("NVTX_CASE", text, 1);
            execl("/proc/self/exe", "test_gpu_trace", (char *)NULL);
            _exit(99);
        }
        int status = -1;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
}

static void one_case(void **state)
{
    (void)state;
    static const char *const paths[] = {NVTX_TOOL_LIBRARY, NVTX_TOOL_LIBRARY, "/no/such/library.so", "libm.so.6"};
    int i = atoi(getenv("NVTX_CASE"));
    with_profiler(paths[i], i == 1 ? "refuse" : "", i == 0);
}

int main(void)
{
    const struct CMUnitTest alone[] = {cmocka_unit_test(one_case)};
    if (getenv("NVTX_CASE"))
        return cmocka_run_group_tests(alone, group_setup, group_teardown);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_scan_is_told_as_it_was),
        cmocka_unit_test(device_times_lie_inside_their_loads),
        cmocka_unit_test(calls_of_the_trace_may_fail),
        cmocka_unit_test(a_profiler_gets_ranges_of_waits),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
