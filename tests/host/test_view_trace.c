/* Description: CODEC_TRACE of a store's views, on every rung: faults, prefetches, reads, decodes and evictions with the
 * tensors' names, as many as were counted, in the threads that served them; never more bytes than the budget; a forked
 * child adds nothing; a trace that cannot be written is one line. */
#include "pattern_source.h"
#include "tests/support/sample_model.h"
#include "store/pack/writer.h"
#include "tests/support/trace_file.h"

#include <sys/wait.h>
#include <unistd.h>

enum { TENSORS = 3, ELEMS = 700000 };
static struct bytes original;
static const char *packed, *trace;

static int prepare(void **state)
{
    (void)state;
    char json[512];
    size_t used = 0, bytes = ELEMS * 2;
    uint64_t seed = 11;
    uint8_t *data = malloc(TENSORS * bytes);
    for (size_t i = 0; i < TENSORS * bytes; i += 2) {
        uint64_t r = next_random(&seed);
        uint16_t value = (uint16_t)((r & 0x807f) | (120 - (unsigned)__builtin_ctzll(r | 64)) << 7);
        memcpy(data + i, &value, 2);
    }
    for (size_t i = 0; i < TENSORS; i++)
        used += (size_t)snprintf(
            json + used, sizeof json - used,
            "%s\"gewicht.\xc3\xa4\\\"%zu\":{\"dtype\":\"BF16\",\"shape\":[%d],\"data_offsets\":[%zu,%zu]}",
            i ? "," : "{", i, ELEMS, i * bytes, (i + 1) * bytes);
    snprintf(json + used, sizeof json - used, "}");
    original = sample_file(json, 1, data, TENSORS * bytes);
    free(data);
    const char *plain = sample_path("plain");
    struct cws_error err = {0};
    packed = sample_path("packed");
    trace = sample_path("view.json");
    sample_save(plain, original.data, original.size);
    if (cws_pack_file(plain, packed, &(struct cws_pack_options){.jobs = 1}, NULL, &err))
        fail_msg("%s", err.message);
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    free(original.data);
    return 0;
}

static uint8_t *map_store(struct cws_store **out)
{
    void *at = NULL;
    struct cws_error err = {0};
    if (cws_store_open(packed, CWS_IO_AUTO, out, &err) ||
        cws_view_map(*out, NULL, original.size, PROT_READ | PROT_WRITE, 0, 0, &at, &err))
        fail_msg("%s", err.message);
    return at;
}

static struct cws_options options_with(const char *path)
{
    struct cws_options o = {.active = true, .budget_bytes = MIB, .prefetch = true, .policy = CWS_POLICY_NEXT};
    snprintf(o.trace, sizeof o.trace, "%s", path);
    return o;
}

/* Counts events of that name; each of them names a tensor. */
static size_t named(json_t *events, const char *name, const char *why)
{
    json_t *e;
    size_t i, n = 0;
    json_array_foreach(events, i, e)
    {
        const char *own = json_string_value(json_object_get(e, "name")),
                   *phase = json_string_value(json_object_get(e, "ph"));
        if (!own || strcmp(own, name) != 0 || !strchr("Bi", *phase) || (why && strcmp(trace_text(e, "why"), why) != 0))
            continue;
        if (strncmp(trace_text(e, "tensor"), "gewicht.\xc3\xa4\"", 11) != 0)
            fail_msg("%s of \"%s\"", name, trace_text(e, "tensor"));
        assert_true(trace_number(e, "bytes") > 0);
        n++;
    }
    return n;
}

static void check_counter(json_t *events, uint64_t budget, uint64_t last_fixed)
{
    json_t *e;
    long long fixed = 0, weights = -1;
    size_t i;
    json_array_foreach(events, i, e)
    {
        if (strcmp(json_string_value(json_object_get(e, "name")) ? json_string_value(json_object_get(e, "name")) : "",
                   "views in memory") != 0)
            continue;
        weights = trace_number(e, "weights");
        long long now = trace_number(e, "fixed");
        assert_true((uint64_t)weights <= budget);
        fixed = now > fixed ? now : fixed;
    }
    assert_int_equal(weights, 0); /* all was unmapped in the end */
    assert_int_equal(fixed, last_fixed);
}

static void what_is_paged_is_recorded(void **state)
{
    (void)state;
    struct cws_store *s;
    struct cws_pager_stats written, stats;
    start_pager_with(options_with(trace));
    uint8_t *at = map_store(&s);
    for (int pass = 0; pass < 2; pass++)
        assert_memory_equal(at, original.data, original.size);
    at[original.size / 2] ^= 1;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        _exit(memcmp(at, original.data, original.size / 2) != 0);
    int status = -1;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    cws_pager_stats_get(&written);
    unmap_view(at, original.size);
    cws_pager_stats_get(&stats); /* not before: readahead goes on as long as there is a view */
    cws_store_close(s);
    stop_pager();
    cws_trace_stop();
    json_t *events = trace_load(trace, getpid(), true);
    bool eager = rung_is("eager");
    assert_true(named(events, "fault", NULL) >= stats.faults);
    assert_true(eager || stats.faults > 0);
    assert_int_equal(named(events, "evict", NULL), stats.evictions);
    assert_true(named(events, "prefetch", NULL) >= stats.prefetched_blocks);
    assert_true(named(events, "read", NULL) > 0);
    assert_true(named(events, "decode", NULL) > 0);
    assert_true(named(events, "publish", NULL) * stats.block_bytes >= stats.decoded_bytes);
    if (!eager) {
        assert_true(named(events, "unmapped", NULL) > 0);
        assert_int_equal(named(events, "written", NULL) + named(events, "fault", "write"), 1);
        check_counter(events, MIB, written.written_bytes);
    }
    if (rung_is("sigsegv")) /* the thread that faults does the work, in its handler */
        assert_int_equal(json_integer_value(json_object_get(trace_event(events, "fault", 'B', 0), "tid")), gettid());
    json_decref(events);
}

static void without_a_file_it_runs_all_the_same(void *arg)
{
    struct cws_store *s;
    (void)arg;
    start_pager_with(options_with("/no-such-folder/t.json"));
    uint8_t *at = map_store(&s);
    _exit(memcmp(at, original.data, original.size) ? 1 : 0);
}

static void a_trace_that_cannot_be_written_is_a_line(void **state)
{
    (void)state;
    char text[4096];
    assert_int_equal(in_child(without_a_file_it_runs_all_the_same, NULL, text, sizeof text), 0);
    assert_non_null(strstr(text, "codecllm: CODEC_TRACE=/no-such-folder/t.json cannot be written: No such file or "
                                 "directory; the program runs without a trace\n"));
}

static int tests(void)
{
    const struct CMUnitTest all[] = {
        cmocka_unit_test(a_trace_that_cannot_be_written_is_a_line),
        cmocka_unit_test(what_is_paged_is_recorded),
    };
    return cmocka_run_group_tests(all, prepare, clean_up);
}

int main(int argc, char **argv) { return for_each_rung(argc, argv, tests); }
