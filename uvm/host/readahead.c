/* readahead.c - readahead: when a program reads a tensor block after block, the workers decode the next ones. The pager
 * sees only faults. So a stream is the interval that was asked for ahead, and the next fault inside it or right behind
 * it proves the guess right and doubles the window. At the end of a tensor the guess goes on in the tensor that was
 * needed after it last time. */
#include "pager.h"

enum { WINDOW_FIRST = 2, WINDOW_MAX = 8, HOPS_MAX = 4 };

bool cws_readahead_push_locked(struct cws_view *v, uint32_t block)
{
    struct cws_pager *p = &cws_pager;
    if (p->queue_tail - p->queue_head == CWS_QUEUE_ENTRIES || cws_block_state(&v->blocks[block]) != CWS_ABSENT)
        return false;
    p->queue[p->queue_tail++ % CWS_QUEUE_ENTRIES] = (struct cws_ahead){v->slot, v->slot_generation, block};
    return true;
}

static uint32_t window_max(void)
{
    uint64_t units = cws_pager.policy.window_bytes / cws_pager.block_bytes / 2;
    return units > WINDOW_MAX ? WINDOW_MAX : units < 1 ? 1 : (uint32_t)units;
}

/* The blocks of region r that this view has: false if none. */
static bool region_blocks(const struct cws_view *v, uint32_t r, uint32_t *out_first, uint32_t *out_last)
{
    uint64_t begin, end;
    v->source->ops->region(v->source, r, &begin, &end);
    if (end <= v->offset || begin >= v->offset + v->bytes || begin >= end)
        return false;
    size_t from = begin > v->offset ? (size_t)(begin - v->offset) : 0;
    size_t to = end - v->offset < v->bytes ? (size_t)(end - v->offset) : v->bytes;
    *out_first = cws_block_of(v, from);
    *out_last = cws_block_of(v, to - 1);
    return true;
}

/* Remembers that region r follows the last one that faulted. */
static void learn(struct cws_source *s, uint32_t r)
{
    if (r == CWS_NO_REGION || r == s->last_region)
        return;
    if (s->successor && s->last_region != CWS_NO_REGION)
        s->successor[s->last_region] = r;
    s->last_region = r;
}

static struct cws_stream *stream_of(struct cws_view *v, uint32_t block)
{
    for (unsigned i = 0; i < CWS_STREAMS; i++) {
        struct cws_stream *s = &v->streams[i];
        if (s->window && block >= s->begin && block <= s->end + 1) {
            uint32_t most = window_max();
            s->window = s->window * 2 < most ? s->window * 2 : most;
            return s;
        }
    }
    struct cws_stream *s = &v->streams[v->next_stream++ % CWS_STREAMS];
    s->window = WINDOW_FIRST < window_max() ? WINDOW_FIRST : window_max();
    s->end = block;
    return s;
}

void cws_readahead_forget_locked(void) { cws_pager.queue_head = cws_pager.queue_tail; }

void cws_readahead_fault_locked(struct cws_view *v, uint32_t block)
{
    struct cws_pager *p = &cws_pager;
    struct cws_source *source = v->source;
    uint64_t at = v->offset + cws_block_begin(v, block);
    if (!p->options.prefetch || p->worker_count == 0 || at >= source->bytes)
        return;
    uint32_t region = source->ops->region_at(source, at), first, last;
    learn(source, region);
    struct cws_stream *s = stream_of(v, block);
    bool fresh = s->end == block;
    s->begin = block;
    if (region == CWS_NO_REGION || !region_blocks(v, region, &first, &last)) {
        s->end = block;
        return;
    }
    /* The first touch in the middle of a tensor is no sign of a walk; the second one, next to it, is. */
    uint32_t budget = fresh && block != first ? 1 : s->window;
    uint32_t pushed = 0, next = (s->end > block && s->end <= last ? s->end : block) + 1;
    for (unsigned hops = 0; pushed < budget;) {
        if (next > last) {
            region = source->successor ? source->successor[region] : CWS_NO_REGION;
            if (region == CWS_NO_REGION || ++hops > HOPS_MAX || !region_blocks(v, region, &first, &last))
                break;
            next = first;
            s->begin = first;
        }
        s->end = next;
        pushed += cws_readahead_push_locked(v, next++);
    }
    if (pushed)
        cws_workers_kick(pushed);
}
