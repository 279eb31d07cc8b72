/* rung_eager.c - the eager rung: no fault is ever caught. Every block is decoded when the view is made, and nothing is
 * evicted. */
#include "pager.h"

static int probe(const struct cws_rung *self, struct cws_error *err)
{
    (void)self, (void)err;
    return 0;
}

static int view_open(struct cws_view *v, struct cws_error *err)
{
    (void)v, (void)err; /* map_source fills the blocks */
    return 0;
}

static void view_close(struct cws_view *v) { (void)v; }

static int publish(struct cws_view *v, struct cws_decoder_slot *s, size_t begin, size_t end, bool writable,
                   bool missing_only)
{
    (void)writable; /* a write is never seen, so nothing is write-protected */
    return cws_rung_move_publish(v, s, begin, end, /* writable */ true, missing_only);
}

static int drop(struct cws_view *v, size_t begin, size_t end) { return (void)v, (void)begin, (void)end, 0; }
static void allow_write(struct cws_view *v, size_t begin, size_t end) { (void)v, (void)begin, (void)end; }
static void wake(struct cws_view *v, size_t begin, size_t end) { (void)v, (void)begin, (void)end; }

static int protect(struct cws_view *v, size_t begin, size_t end, int prot, unsigned state)
{
    (void)state;
    return cws_sys_mprotect(v->base + begin, end - begin, prot);
}

const struct cws_rung cws_rung_eager = {.name = "eager",
                                        .whole = true,
                                        .probe = probe,
                                        .open = view_open,
                                        .close = view_close,
                                        .publish = publish,
                                        .drop = drop,
                                        .allow_write = allow_write,
                                        .poison = cws_rung_map_hole,
                                        .wake = wake,
                                        .protect = protect};
