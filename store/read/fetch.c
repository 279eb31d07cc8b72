/* fetch.c - the stored bytes of a tensor, checked but not decoded: for a decoder that is not this process's CPU. */
#include "internal.h"

#include <string.h>

int cws_store_fetch(struct cws_store_cursor *c, const struct cws_tensor_info *t, uint64_t first, uint64_t count,
                    void *dst, struct cws_error *err)
{
    uint64_t chunk = t->record->first_chunk + first, stop = chunk + count, base = t->chunks[first].offset;
    unsigned depth = cws_cursor_depth(c);
    int code = 0;
    cws_cursor_drain(c);
    cws_cursor_expect(c, chunk, stop);
    for (uint64_t started = chunk, at = chunk; at < stop && !code; at++) {
        for (; started < stop && started < at + depth; started++)
            cws_cursor_start(c, (unsigned)(started % depth), started, /* with_gap */ false);
        const struct cws_chunk_record *r = &t->chunks[at - t->record->first_chunk];
        const uint8_t *stored = NULL;
        code = cws_cursor_check(c, (unsigned)(at % depth), t, at, /* with_gap */ false, &stored, err);
        if (!code)
            memcpy((uint8_t *)dst + (r->offset - base), stored, r->stored_bytes);
    }
    if (code)
        cws_cursor_drain(c);
    return code;
}
