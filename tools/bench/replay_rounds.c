/* replay_rounds.c - replay_policy --device: a table of predicted rounds of programs that are paged. */
#include "replay_rounds.h"
#include "tools/say.h"
#include "tools/table.h"

#include <stdio.h>
#include <string.h>

enum { ROUNDS = 32 }; /* half of them count: what stays is decided before */

static const struct {
    const char *program;
    double gib[4];
} usual[] = {
    {"tinyllama", {1700 / 1024., 1100 / 1024., 600 / 1024.}},
    {"8b", {8, 4, 3}},
    {"flux", {12, 8, 6, 4}},
    {"prefill", {12, 8}},
};

static struct cws_table *new_table(const struct replay_rounds *what)
{
    const char *const value = what->sweep->row.name, *const tier = "tier MB";
    const char *const heads[] = {"program", "budget",    value,    "ms",    "of plain",   "loads",   "link GB", "busy",
                                 "wait ms", "memory ms", "frames", "calls", "reserve MB", "evicted", tier};
    /* one for each head; the table keeps the string */
    static const char *const columns[] = {"lrrrrrrrrrrrr", "lrrrrrrrrrrrrr", "lrrrrrrrrrrrrrr"};
    struct cws_table *t = cws_table_create(columns[(what->sweep->count != 0) + what->tier]);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        if ((heads[i] != value || what->sweep->count) && (heads[i] != tier || what->tier))
            cws_table_cell(t, "%s", heads[i]);
    cws_table_rule(t);
    return t;
}

static void print_row(struct cws_table *t, const struct replay_paging *p, const char *value,
                      const struct replay_paged *r, bool tier)
{
    cws_table_cell(t, "%s", p->program->name);
    cws_table_cell(t, "%.0f MiB", (double)p->budget / (1 << 20));
    if (value)
        cws_table_cell(t, "%s", value);
    cws_table_cell(t, "%.1f", r->ms);
    cws_table_cell(t, "%.2f", r->ms / r->plain_ms);
    cws_table_cell(t, "%.0f", r->loads);
    cws_table_cell(t, "%.2f", r->link_bytes / 1e9);
    cws_table_cell(t, "%.0f %%", 100 * r->link_busy_ms / r->ms);
    cws_table_cell(t, "%.1f", r->weight_wait_ms);
    cws_table_cell(t, "%.1f", r->fresh_wait_ms);
    cws_table_cell(t, "%.1f", r->frames_made);
    cws_table_cell(t, "%.0f", r->calls);
    cws_table_cell(t, "%.0f", r->reserve_bytes / 1e6);
    cws_table_cell(t, "%.1f", r->fresh_evictions);
    if (tier)
        cws_table_cell(t, "%.0f", r->tier_bytes / 1e6);
}

/* A row; with a sweep one for each value. */
static int print_budget(struct cws_table *t, const struct replay_rounds *what, struct replay_paging *p, bool *printed)
{
    const struct replay_sweep *sweep = what->sweep;
    int status = 0;
    for (unsigned i = 0; i < (sweep->count ? sweep->count : 1); i++) {
        struct cws_tuning tuning = *what->tuning;
        struct cws_error err = {0};
        struct replay_paged r;
        struct replay_value value = {{0}};
        if (sweep->count) {
            cws_tuning_set(&tuning, sweep->row.name, sweep->values[i]);
            value = replay_value(&sweep->row, sweep->values[i]);
        }
        p->tuning = &tuning;
        if (replay_page(p, &r, &err) == 0) {
            *printed = true;
            print_row(t, p, sweep->count ? value.text : NULL, &r, what->tier);
            continue;
        }
        cws_say_line("%s", err.message);
        status = 1;
    }
    p->tuning = what->tuning; /* the loop's own is gone */
    return status;
}

static int print_program(struct cws_table *t, const struct replay_rounds *what, size_t index)
{
    struct replay_program program;
    bool printed = false;
    int status = 0;
    if (!replay_program_make(&program, usual[index].program))
        return 2;
    struct replay_paging p = {.program = &program,
                              .costs = &what->costs,
                              .other = what->other,
                              .host_ms = what->host_ms,
                              .rounds = what->rounds ? what->rounds : ROUNDS};
    if (program.host_bound)
        p.host_ms = what->plain_ms > 0 ? what->plain_ms : p.host_ms;
    else
        p.kernels_ms = what->plain_ms;
    unsigned count = what->budget_count ? what->budget_count : 4;
    for (unsigned i = 0; i < count; i++) {
        p.budget = what->budget_count ? what->budgets[i] : (uint64_t)(usual[index].gib[i] * (1u << 30));
        p.tier = false;
        if (p.budget)
            status |= print_budget(t, what, &p, &printed);
        p.tier = what->tier;
        if (p.budget && p.tier)
            status |= print_budget(t, what, &p, &printed);
    }
    replay_program_free(&program);
    if (printed)
        cws_table_rule(t);
    return status;
}

int replay_rounds_print(const struct replay_rounds *what)
{
    struct cws_table *t = new_table(what);
    bool any = false;
    int status = 0;
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        if (what->program && strcmp(what->program, usual[i].program) != 0)
            continue;
        any = true;
        status |= print_program(t, what, i);
    }
    if (any)
        cws_table_print(t);
    else
        cws_say_line("--program %s: there is none of that name; see --help", what->program);
    cws_table_destroy(t);
    return any ? status : 2;
}

int replay_costs_print(void)
{
    static const char *const heads[] = {"cost", "default", "unit", "meaning"};
    struct cws_table *t = cws_table_create("lrll");
    struct replay_cost_row r;
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cws_table_cell(t, "%s", heads[i]);
    cws_table_rule(t);
    for (size_t i = 0; replay_cost_row(i, &r); i++) {
        cws_table_cell(t, "%s", r.name);
        cws_table_cell(t, "%g", r.fallback);
        cws_table_cell(t, "%s", r.unit);
        cws_table_cell(t, "%s", r.meaning);
    }
    cws_table_print(t);
    cws_table_destroy(t);
    return fflush(stdout) == 0 ? 0 : 2;
}
