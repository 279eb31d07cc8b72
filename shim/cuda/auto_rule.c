/* auto_rule.c - the rule of CODEC_VRAM_BUDGET=auto, without a driver or a clock. */
#include "auto_budget.h"

#define MARGIN_LEAST ((uint64_t)256 << 20)
enum { MARGIN_SHARE = 50, STEP_SHARE = 16, QUIET = 10 };

static uint64_t margin(const struct cws_auto_rule *r)
{
    return r->total / MARGIN_SHARE > MARGIN_LEAST ? r->total / MARGIN_SHARE : MARGIN_LEAST;
}

static uint64_t in_range(const struct cws_auto_rule *r, uint64_t bytes)
{
    return bytes < r->min ? r->min : bytes > r->max ? r->max : bytes;
}

struct cws_auto_rule cws_auto_rule_of(const struct cws_options *options, uint64_t total)
{
    return (struct cws_auto_rule){
        .total = total, .min = options->auto_min, .max = options->auto_max ? options->auto_max : UINT64_MAX};
}

uint64_t cws_auto_first(const struct cws_auto_rule *r, uint64_t free_bytes)
{
    return in_range(r, free_bytes > margin(r) ? free_bytes - margin(r) : 0);
}

uint64_t cws_auto_next(struct cws_auto_rule *r, uint64_t budget, uint64_t used, uint64_t free_bytes)
{
    int64_t left = (int64_t)(used + free_bytes) - (int64_t)budget, keep = (int64_t)margin(r);
    int64_t want = (int64_t)budget + left - keep;
    uint64_t there = in_range(r, want > 0 ? (uint64_t)want : 0);
    r->quiet = left > keep + keep / 2 && there > budget ? r->quiet + 1 : 0;
    if (left < keep / 2)
        return there < budget ? there : budget;
    if (r->quiet < QUIET)
        return budget;
    r->quiet = 0;
    return there - budget < r->total / STEP_SHARE ? there : budget + r->total / STEP_SHARE;
}
