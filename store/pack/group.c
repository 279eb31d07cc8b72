/* group.c - groups of tensors that are packed together, and the items that the threads take of them one by one.
 * A group is read into memory once, then planned and encoded. */
#include "store/base/parallel.h"
#include "run.h"

#include <errno.h>
#include <stdlib.h>

/* --- items ------------------------------------------------------------------------------------------ */

uint64_t cws_pack_number_items(struct cws_packing *p, uint32_t unit, bool only_counting)
{
    uint64_t items = 0;
    for (size_t t = p->group_begin; t < p->group_end; t++) {
        struct cws_pack_work *w = &p->work[t - p->group_begin];
        uint64_t size = unit ? unit : w->plan.chunk_bytes, bytes = cws_pack_tensor_bytes(p, t);
        w->first_item = items;
        if (!only_counting || w->counting)
            items += bytes / size + (bytes % size != 0);
    }
    return items;
}

struct cws_pack_item cws_pack_find_item(const struct cws_packing *p, uint64_t i, uint32_t unit)
{
    size_t low = p->group_begin, high = p->group_end; /* the last tensor whose first item is not behind i */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (p->work[middle - p->group_begin].first_item <= i)
            low = middle;
        else
            high = middle;
    }
    struct cws_pack_work *w = &p->work[low - p->group_begin];
    uint64_t size = unit ? unit : w->plan.chunk_bytes, bytes = cws_pack_tensor_bytes(p, low);
    struct cws_pack_item item = {.t = low, .work = w, .begin = (i - w->first_item) * size};
    item.bytes = (size_t)(bytes - item.begin < size ? bytes - item.begin : size);
    return item;
}

int cws_pack_get_item(struct cws_packing *p, struct cws_pack_hand *h, const struct cws_pack_item *item,
                      const uint8_t **out, struct cws_error *err)
{
    *out = item->work->data ? item->work->data + item->begin : h->input;
    return item->work->data ? 0
                            : cws_pack_input_read(p->in, item->t, item->begin, item->bytes, h->input, h->scratch, err);
}

/* --- groups ----------------------------------------------------------------------------------------- */

static int load_item(void *arg, unsigned thread, uint64_t i)
{
    struct cws_packing *p = arg;
    struct cws_error err = {0};
    struct cws_pack_item item = cws_pack_find_item(p, i, CWS_PACK_PIECE_BYTES);
    if (cws_pack_cancelled(p))
        return -ECANCELED;
    int code = cws_pack_input_read(p->in, item.t, item.begin, item.bytes, (uint8_t *)item.work->data + item.begin,
                                   p->hands[thread].scratch, &err);
    return code ? cws_pack_fail(p, code, &err) : 0;
}

static int load_group(struct cws_packing *p)
{
    uint64_t at = 0;
    for (size_t t = p->group_begin; p->in->memory && t < p->group_end; t++)
        p->work[t - p->group_begin].data = p->in->memory[t]->data;
    if (p->in->memory || cws_pack_group_room(p, p->group_begin) > CWS_PACK_GROUP_BYTES)
        return 0; /* or a large tensor, alone */
    for (size_t t = p->group_begin; t < p->group_end; t++) {
        p->work[t - p->group_begin].data = p->group_data + at;
        at += cws_pack_group_room(p, t);
    }
    return cws_parallel(p->jobs, cws_pack_number_items(p, CWS_PACK_PIECE_BYTES, false), load_item, NULL, p);
}

static int pack_group(struct cws_packing *p)
{
    int code = 0;
    p->work = calloc(p->group_end - p->group_begin, sizeof *p->work);
    if (!p->work)
        return cws_pack_fail(p, -ENOMEM, &(struct cws_error){.message = "not enough memory to pack"});
    code = load_group(p);
    if (!code)
        code = cws_pack_plan_group(p);
    if (!code)
        code = cws_pack_encode_group(p);
    free(p->work);
    p->work = NULL;
    return code;
}

int cws_pack_groups(struct cws_packing *p)
{
    size_t count = p->in->logical->tensor_count;
    int code = 0;
    for (size_t t = 0; t < count && !code; t = p->group_end) {
        uint64_t room = cws_pack_group_room(p, t);
        p->group_begin = t;
        for (p->group_end = t + 1; p->group_end < count && p->group_end - t < CWS_PACK_GROUP_TENSORS &&
                                   room + cws_pack_group_room(p, p->group_end) <= CWS_PACK_GROUP_BYTES;
             p->group_end++)
            room += cws_pack_group_room(p, p->group_end);
        code = pack_group(p);
    }
    return code;
}
