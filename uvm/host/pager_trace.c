/* pager_trace.c - CODEC_TRACE records of views' blocks (no lock needed: sources answer from what never changes) and of
 * the pager's counts (its lock is held). */
#include "pager.h"

static void describe(const struct cws_view *v, uint32_t block, enum cws_trace_kind kind, const char *why,
                     struct cws_trace_what *out)
{
    struct cws_source *s = v->source;
    uint64_t begin = v->offset + cws_block_begin(v, block), end = v->offset + cws_block_end(v, block), from, to;
    *out = (struct cws_trace_what){.kind = kind, .why = why, .bytes = end - begin, .index = block};
    if (!s->ops->name)
        return;
    uint32_t region = begin < s->bytes ? s->ops->region_at(s, begin) : CWS_NO_REGION;
    if (region == CWS_NO_REGION && end <= s->bytes) /* it begins in a header */
        region = s->ops->region_at(s, end - 1);
    if (region == CWS_NO_REGION)
        return;
    s->ops->region(s, region, &from, &to);
    out->tensor = s->ops->name(s, region);
    out->tensor_bytes = to - from;
}

bool cws_block_trace_begin_slow(const struct cws_view *v, uint32_t block, enum cws_trace_kind kind, const char *why)
{
    struct cws_trace_what what;
    describe(v, block, kind, why, &what);
    return cws_trace_begin_slow(&what);
}

void cws_block_trace_mark_slow(const struct cws_view *v, uint32_t block, enum cws_trace_kind kind)
{
    struct cws_trace_what what;
    describe(v, block, kind, NULL, &what);
    cws_trace_mark_slow(&what);
}

void cws_pager_trace_counts_locked(void)
{
    if (cws_trace_is_on())
        cws_trace_count(-1, cws_pager.resident, cws_pager.written);
}
