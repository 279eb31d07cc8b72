/* replay_policy.c - compares replacement policies by simulation: hit rate, bytes over the link and stall time of
 * each, beside the optimum, on recorded or made-up uses. The policies are the code that pages (uvm/policy/order.h
 * for a GPU, uvm/policy/policy.h for host memory); traces are made from the shapes of models, or recorded by
 * CODEC_TRACE. `replay_policy --help` lists options and what the columns mean. */
#include "store/base/options.h"
#include "replay_rounds.h"
#include "tools/say.h"
#include "tools/table.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GRANULE ((uint64_t)2 << 20)
#define RING_BYTES ((uint64_t)64 << 20)
enum { ROUNDS = 24, MOE_ROUNDS = 80, BLOCK_BYTES = 1 << 20 };

static const char help[] =
    "Usage: replay_policy [OPTIONS] [SET ...]\n"
    "       replay_policy [OPTIONS] --trace FILE --budget SIZE\n"
    "       replay_policy [OPTIONS] --device [--program NAME]\n"
    "\n"
    "Sets (default: all): tinyllama, 8b (cyclic scans), two (TinyLlama drafts four tokens, then 8B makes one, again "
    "and again),\n"
    "moe (Mixtral 8x7B's sizes, two of eight experts a layer, fixed seed).\n"
    "\n"
    "  --trace FILE      uses recorded by CODEC_TRACE on a GPU\n"
    "  --budget SIZE,... of device memory; may be given several times (default: a few for each set)\n"
    "  --other SIZE      of it, for what is no weight (default 0; with --device 80M, beside activations); staging "
    "takes a "
    "32nd and 64M at most\n"
    "  --rounds N        tokens; the second half is counted (default 24; moe 80, where each expert comes seldom)\n"
    "  --link GBPS       host to device (55.5)           --ratio R         of a weight to its stored bytes (1.5)\n"
    "  --decode GBPS     decoded bytes (1200)            --memory GBPS     what a use reads its weight at (3500)\n"
    "  --use-us US       the program's own time per use (75)   --launch-us US  of its launching thread (5)\n"
    "  --map-us US       to map a range (35)             --drop-us US      to unmap and hash one (45)\n"
    "  --host GBPS       decode and publish, host pager (2)\n"
    "\n"
    "  --tuning          lists the tuned numbers of the policies and the loader, with what they may be, and ends\n"
    "  --set NAME=VALUE  runs with another value of one; may be given several times\n"
    "  --sweep NAME=VALUE,VALUE...\n"
    "  --sweep NAME=FROM:TO:STEPS\n"
    "                    a row for each value instead of one for each policy, of `next` (views_...: of `host next`), "
    "beside the optimum\n"
    "                    and `belady, timed` with what --set says\n"
    "\n"
    "  --device          predicts the time of a round of a program instead, with all that costs time: "
    "its thread, the loader, the device, memory\n"
    "  --program NAME    tinyllama, 8b (a token, batch 1), flux (a step of FLUX.1-dev's shape), prefill (of 8b's "
    "shape, 4 "
    "x 2048 tokens); default: all\n"
    "  --plain-ms MS     of a round with everything resident: of its kernels (flux, prefill), or of its launching "
    "thread "
    "(tokens)\n"
    "  --tier            each row once more, with weights that stay compressed on the device where that pays\n"
    "  --host-ms MS      of the launching thread alone (flux: 100, prefill: 45)\n"
    "  --cost NAME=VALUE what something costs; may be given several times; --costs lists them. Here --link sets "
    "link_gbps, and --ratio stored_share\n"
    "\n"
    "hit: bytes of uses that did not have to be loaded for them. link: bytes copied a token. stall: time a token "
    "beyond that with everything resident.\n"
    "x best: time over that of the row `optimum`, which no policy can beat: Belady's rule on bytes instead of whole "
    "ranges, everything but the link and the\n"
    "program's own work free, and the link never idle. belady: the same with whole ranges, still without a cost but "
    "the link. belady, timed: that rule with the trace's\n"
    "order, in the machine in which the policies run. x belady: time over that of `belady, timed`.\n"
    "\n"
    "With --device, of a round, the mean of the second half of --rounds (32): ms: its time; of plain: over that with "
    "everything resident. busy: of the link.\n"
    "wait, memory ms: the launching thread waits for weights, for memory of activations. frames: memory made anew in "
    "another size. calls: of the driver, for memory.\n"
    "reserve: memory of activations, in use and kept. evicted: weights, for memory of activations.\n";

static struct replay_machine machine = {.link_gbps = 55.5,
                                        .decode_gbps = 1200,
                                        .memory_gbps = 3500,
                                        .use_us = 75,
                                        .launch_us = 5,
                                        .map_us = 35,
                                        .drop_us = 45,
                                        .ratio = 1.5,
                                        .host_gbps = 2};
static uint64_t other_bytes = UINT64_MAX, budgets[16]; /* UINT64_MAX: not given */
static unsigned budget_count, round_total;
static struct replay_rounds device; /* of --device */
static bool is_device, ratio_given, link_given;
static struct cws_tuning tuning;  /* as --set says */
static struct replay_sweep sweep; /* count 0: none */

static void beside(struct cws_table *t, const struct replay_result *r, const struct replay_result *best)
{
    if (best)
        cws_table_cell(t, "%.3f", r->seconds / best->seconds);
    else
        cws_table_cell(t, "-");
}

/* policy: or the value of a sweep */
static void row(struct cws_table *t, const char *set, const char *budget, const char *policy,
                const struct replay_result *r, const struct replay_result *best)
{
    double n = r->rounds ? (double)r->rounds : 1;
    cws_table_cell(t, "%s", set);
    cws_table_cell(t, "%s", budget);
    cws_table_cell(t, "%s", policy);
    cws_table_cell(t, "%.1f %%", 100 * (1 - r->loaded_bytes / r->uses_bytes));
    cws_table_cell(t, "%.1f", r->loaded_bytes / machine.ratio / n / 1e6);
    cws_table_cell(t, "%.2f", 1e3 * (r->seconds - r->busy_seconds) / n);
    cws_table_cell(t, "%.2f", 1e3 * r->seconds / n);
    beside(t, r, best);
}

static int cannot(const char *set, const char *budget, const char *rule, const struct cws_error *err)
{
    cws_say_line("%s, %s, %s: %s", set, budget, rule, err->message);
    return 1;
}

/* For weights: staging is taken off as the manager does. */
static uint64_t room_for(const struct cws_tuning *t, uint64_t budget)
{
    uint64_t share = budget / t->staging_share, ring = share < RING_BYTES ? share : RING_BYTES;
    return budget > ring + other_bytes ? (budget - ring - other_bytes) / GRANULE * GRANULE : 0;
}

static struct replay_window counted(const struct replay_trace *t)
{
    return (struct replay_window){.from = (t->round_count - 1) / 2, .to = t->round_count - 1};
}

/* A row for each value, beside the bounds with the numbers as they are. */
static int replay_sweep(struct cws_table *table, const char *set, const struct replay_trace *t, uint64_t budget)
{
    const struct replay_window window = counted(t);
    const bool views = replay_is_of_views(&sweep.row);
    struct replay_result best, belady, r;
    struct cws_error err = {0};
    uint64_t room = room_for(&tuning, budget);
    char text[32];
    int status = 0;
    snprintf(text, sizeof text, "%.1f GiB", (double)budget / (1u << 30));
    replay_bound(t, &machine, room, GRANULE, window, &best);
    if (!views && replay_device(t, &machine, &tuning, REPLAY_BELADY, room, window, &belady, &err))
        return cannot(set, text, "belady, timed", &err);
    for (unsigned i = 0; i < sweep.count; i++) {
        const struct replay_value value = replay_value(&sweep.row, sweep.values[i]);
        struct cws_tuning tried = tuning;
        cws_tuning_set(&tried, sweep.row.name, sweep.values[i]);
        room = room_for(&tried, budget);
        int code = views ? replay_host(t, &machine, &tried, CWS_POLICY_NEXT, room, BLOCK_BYTES, window, &r, &err)
                         : replay_device(t, &machine, &tried, REPLAY_NEXT, room, window, &r, &err);
        if (code) {
            char what[128];
            snprintf(what, sizeof what, "%s=%s", sweep.row.name, value.text);
            status = cannot(set, text, what, &err);
            continue;
        }
        row(table, set, text, value.text, &r, views ? NULL : &best);
        beside(table, &r, views ? NULL : &belady);
        cws_table_cell(table, "%s", sweep.values[i] == sweep.row.fallback ? "default" : "");
    }
    cws_table_rule(table);
    return status;
}

static int replay(struct cws_table *table, const char *set, const struct replay_trace *t, uint64_t budget)
{
    static const struct {
        const char *name;
        enum replay_rule rule;
    } rules[] = {{"next", REPLAY_NEXT}, {"lru", REPLAY_LRU}, {"belady, timed", REPLAY_BELADY}};
    static const struct {
        const char *name;
        enum cws_policy_id id;
    } host[] = {{"host next", CWS_POLICY_NEXT}, {"host lru", CWS_POLICY_LRU}};
    const struct replay_window window = counted(t);
    uint64_t room = room_for(&tuning, budget);
    struct replay_result best, r;
    struct cws_error err = {0};
    char text[32];
    if (sweep.count)
        return replay_sweep(table, set, t, budget);
    snprintf(text, sizeof text, "%.1f GiB", (double)budget / (1u << 30));
    replay_bound(t, &machine, room, GRANULE, window, &best);
    row(table, set, text, "optimum", &best, &best);
    replay_belady(t, &machine, room, GRANULE, window, &r);
    row(table, set, text, "belady", &r, &best);
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (replay_device(t, &machine, &tuning, rules[i].rule, room, window, &r, &err))
            return cannot(set, text, rules[i].name, &err);
        row(table, set, text, rules[i].name, &r, &best);
    }
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) {
        if (replay_host(t, &machine, &tuning, host[i].id, room, BLOCK_BYTES, window, &r, &err))
            return cannot(set, text, host[i].name, &err);
        row(table, set, text, host[i].name, &r, NULL);
    }
    cws_table_rule(table);
    return 0;
}

/* --- sets ------------------------------------------------------------------------------------------------- */

static void make_cyclic(struct replay_trace *t, const struct replay_shape *shape)
{
    uint64_t seed = 20261123;
    unsigned char chosen[2 * 64] = {0};
    size_t first = replay_add_model(t, shape, "");
    unsigned rounds = round_total ? round_total : shape->experts ? MOE_ROUNDS : ROUNDS;
    for (unsigned i = 0; i < rounds; i++) {
        replay_add_pass(t, shape, first, &seed, chosen);
        replay_end_round(t);
    }
}

static void make_tinyllama(struct replay_trace *t) { make_cyclic(t, &replay_tinyllama); }
static void make_8b(struct replay_trace *t) { make_cyclic(t, &replay_llama8b); }
static void make_moe(struct replay_trace *t) { make_cyclic(t, &replay_mixtral); }

static void make_two(struct replay_trace *t)
{
    uint64_t seed = 1;
    size_t draft = replay_add_model(t, &replay_tinyllama, "draft."),
           target = replay_add_model(t, &replay_llama8b, "target.");
    for (unsigned i = 0; i < (round_total ? round_total : ROUNDS); i++) {
        for (unsigned k = 0; k < 4; k++)
            replay_add_pass(t, &replay_tinyllama, draft, &seed, NULL);
        replay_add_pass(t, &replay_llama8b, target, &seed, NULL);
        replay_end_round(t);
    }
}

static const struct {
    const char *name;
    void (*make)(struct replay_trace *t);
    double gib[4];
} sets[] = {
    {"tinyllama", make_tinyllama, {1.7, 1.1, 0.6}},
    {"8b", make_8b, {12, 8, 4, 3}},
    {"two", make_two, {8, 6, 4}},
    {"moe", make_moe, {48, 24, 12}},
};

static int run_set(struct cws_table *table, size_t i)
{
    struct replay_trace t = {0};
    int status = 0;
    sets[i].make(&t);
    for (unsigned k = 0; k < 4 && !budget_count && sets[i].gib[k] > 0; k++)
        status |= replay(table, sets[i].name, &t, (uint64_t)(sets[i].gib[k] * (1u << 30)));
    for (unsigned k = 0; k < budget_count; k++)
        status |= replay(table, sets[i].name, &t, budgets[k]);
    replay_free(&t);
    return status;
}

static int run_recorded(struct cws_table *table, const char *path)
{
    struct replay_trace t = {0};
    struct cws_error err = {0};
    int status = 0, code = replay_load(&t, path, &err);
    if (code || t.round_count < 4 || !budget_count) {
        if (code)
            cws_say_line("%s", err.message);
        else if (!budget_count)
            cws_say_line("--trace needs a --budget");
        else
            cws_say_line("%s: %zu rounds of its order are too few to tell anything: let the program make more tokens",
                         path, t.round_count);
        replay_free(&t);
        return 2;
    }
    for (unsigned k = 0; k < budget_count; k++)
        status |= replay(table, "recorded", &t, budgets[k]);
    replay_free(&t);
    return status;
}

/* --- options ------------------------------------------------------------------------------------------------ */

enum {
    OPT_TRACE = 256,
    OPT_BUDGET,
    OPT_OTHER,
    OPT_ROUNDS,
    OPT_HELP,
    OPT_TUNING,
    OPT_SET,
    OPT_SWEEP,
    OPT_DEVICE,
    OPT_PROGRAM,
    OPT_COST,
    OPT_COSTS,
    OPT_TIER,
    OPT_NUMBER,
    OPT_RATIO = OPT_NUMBER + 7, /* of numbers */
    OPT_PLAIN_MS = OPT_NUMBER + 9,
    OPT_HOST_MS,
};
static double *const numbers[] = {&machine.link_gbps, &machine.decode_gbps, &machine.memory_gbps, &machine.use_us,
                                  &machine.launch_us, &machine.map_us,      &machine.drop_us,     &machine.ratio,
                                  &machine.host_gbps, &device.plain_ms,     &device.host_ms};
static const struct option longs[] = {
    {"trace", 1, NULL, OPT_TRACE},
    {"budget", 1, NULL, OPT_BUDGET},
    {"other", 1, NULL, OPT_OTHER},
    {"rounds", 1, NULL, OPT_ROUNDS},
    {"help", 0, NULL, OPT_HELP},
    {"link", 1, NULL, OPT_NUMBER},
    {"decode", 1, NULL, OPT_NUMBER + 1},
    {"memory", 1, NULL, OPT_NUMBER + 2},
    {"use-us", 1, NULL, OPT_NUMBER + 3},
    {"launch-us", 1, NULL, OPT_NUMBER + 4},
    {"map-us", 1, NULL, OPT_NUMBER + 5},
    {"drop-us", 1, NULL, OPT_NUMBER + 6},
    {"ratio", 1, NULL, OPT_NUMBER + 7},
    {"host", 1, NULL, OPT_NUMBER + 8},
    {"tuning", 0, NULL, OPT_TUNING},
    {"set", 1, NULL, OPT_SET},
    {"sweep", 1, NULL, OPT_SWEEP},
    {"device", 0, NULL, OPT_DEVICE},
    {"program", 1, NULL, OPT_PROGRAM},
    {"cost", 1, NULL, OPT_COST},
    {"tier", 0, NULL, OPT_TIER},
    {"costs", 0, NULL, OPT_COSTS},
    {"plain-ms", 1, NULL, OPT_PLAIN_MS},
    {"host-ms", 1, NULL, OPT_HOST_MS},
    {NULL, 0, NULL, 0},
};

static bool parse_number(const char *text, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value > 0) || value > 1e9)
        return false;
    *out = value;
    return true;
}

static bool take_budgets(const char *text)
{
    for (size_t length; *text; text += length + (text[length] == ',')) {
        length = strcspn(text, ",");
        if (budget_count == sizeof budgets / sizeof *budgets ||
            cws_parse_bytes(text, length, &budgets[budget_count++]) != 0)
            return false;
    }
    return budget_count > 0;
}

/* False: the value is nonsense. */
static bool take_option(int c, const char **trace)
{
    double rounds;
    switch (c) {
    case OPT_TRACE: *trace = optarg; return true;
    case OPT_BUDGET: return take_budgets(optarg);
    case OPT_DEVICE: is_device = true; return true;
    case OPT_TIER: device.tier = true; return true;
    case OPT_PROGRAM: device.program = optarg; return true;
    case OPT_OTHER: return cws_parse_bytes(optarg, strlen(optarg), &other_bytes) == 0;
    case OPT_ROUNDS:
        if (!parse_number(optarg, &rounds) || rounds < 8 || rounds > 100000)
            return false;
        round_total = (unsigned)rounds;
        return true;
    default:
        ratio_given |= c == OPT_RATIO;
        link_given |= c == OPT_NUMBER;
        return parse_number(optarg, numbers[c - OPT_NUMBER]);
    }
}

/* False, with a line: it cannot be. */
static bool take_tuned(int c)
{
    const char *name = c == OPT_COST ? "--cost" : c == OPT_SWEEP ? "--sweep" : "--set";
    struct cws_error err = {0};
    int code;
    if (c == OPT_SWEEP && sweep.count) {
        cws_say_line("--sweep: one number at a time");
        return false;
    }
    if (c == OPT_COST)
        code = replay_cost_set(&device.costs, optarg, &err);
    else
        code = c == OPT_SWEEP ? replay_sweep_of(&sweep, optarg, &err) : replay_set(&tuning, optarg, &err);
    if (code)
        cws_say_line("%s %s", name, err.message);
    return code == 0;
}

static int list_tuning(void)
{
    static const char *const heads[] = {"number", "default", "from", "to", "unit", "here", "meaning"};
    struct cws_table *t = cws_table_create("lrrrlll");
    struct cws_tuning_row r;
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cws_table_cell(t, "%s", heads[i]);
    cws_table_rule(t);
    for (size_t i = 0; cws_tuning_row(i, &r); i++) {
        cws_table_cell(t, "%s", r.name);
        cws_table_cell(t, "%s", replay_value(&r, r.fallback).text);
        cws_table_cell(t, "%s", replay_value(&r, r.least).text);
        cws_table_cell(t, "%s", replay_value(&r, r.most).text);
        cws_table_cell(t, "%s", r.unit);
        cws_table_cell(t, "%s", replay_has(&r) ? "yes" : "no");
        cws_table_cell(t, "%s", r.meaning);
    }
    cws_table_print(t);
    cws_table_destroy(t);
    puts("\nshare: one part in so many. here: --set and --sweep take it; the others are the CUDA manager's alone. "
         "uvm/policy/tuning.h says more.");
    return fflush(stdout) == 0 ? 0 : 2;
}

static int run_device(void)
{
    device.budgets = budgets;
    device.budget_count = budget_count;
    device.other = other_bytes == UINT64_MAX ? (uint64_t)80 << 20 : other_bytes;
    device.rounds = round_total;
    device.tuning = &tuning;
    device.sweep = &sweep;
    if (link_given)
        device.costs.link_gbps = machine.link_gbps;
    if (ratio_given)
        device.costs.stored_share = 1 / machine.ratio;
    int status = replay_rounds_print(&device);
    return fflush(stdout) == 0 ? status : 2;
}

static struct cws_table *new_table(void)
{
    const char *first = sweep.count ? sweep.row.name : "policy";
    const char *const heads[] = {"set",      "budget",   first,    "hit",      "link MB",
                                 "stall ms", "token ms", "x best", "x belady", ""};
    struct cws_table *t = cws_table_create(sweep.count ? "lrrrrrrrrl" : "lrlrrrrr");
    for (size_t i = 0; i < (sweep.count ? 10 : 8); i++)
        cws_table_cell(t, "%s", heads[i]);
    cws_table_rule(t);
    return t;
}

int main(int argc, char **argv)
{
    const char *trace = NULL;
    int c, status = 0;
    opterr = 0;
    tuning = cws_tuning_default;
    device.costs = replay_costs_default;
    while ((c = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
        if (c == OPT_HELP) {
            fputs(help, stdout);
            return 0;
        }
        if (c == OPT_TUNING)
            return list_tuning();
        if (c == OPT_COSTS)
            return replay_costs_print();
        if (c == OPT_SET || c == OPT_SWEEP || c == OPT_COST) {
            if (!take_tuned(c))
                return 2;
            continue;
        }
        if (c == '?' || c == ':' || !take_option(c, &trace)) {
            cws_say_line("%s: unknown, without its value, or with one that cannot be; see --help", argv[optind - 1]);
            return 2;
        }
    }
    if (is_device)
        return run_device();
    other_bytes = other_bytes == UINT64_MAX ? 0 : other_bytes;
    struct cws_table *table = new_table();
    if (trace)
        status = run_recorded(table, trace);
    for (size_t i = 0; i < sizeof sets / sizeof *sets && !trace; i++) {
        bool wanted = optind == argc;
        for (int k = optind; k < argc; k++)
            wanted |= strcmp(argv[k], sets[i].name) == 0;
        if (wanted)
            status |= run_set(table, i);
    }
    if (status != 2)
        cws_table_print(table);
    cws_table_destroy(table);
    return fflush(stdout) == 0 ? status : 2;
}
