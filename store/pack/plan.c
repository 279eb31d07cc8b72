/* plan.c - the choice of each tensor's codec and code. A sample of the tensor shows which codec fits it best.
 * Codecs with a code per tensor need a count of all of its symbols first, from which the code is made. */
#include "store/base/parallel.h"
#include "store/read/store.h"
#include "run.h"

#include <errno.h>
#include <string.h>

#define SAMPLE_PIECE (16u << 10)

/* --- sample ----------------------------------------------------------------------------------------- */

static int choose(const struct cws_packing *p, size_t t, struct cws_plan *plan, const uint8_t *sample, size_t bytes,
                  struct cws_error *err)
{
    char shown[CWS_NAME_SHOWN_BYTES];
    struct cws_error why = {0};
    int code = cws_plan_sample(plan, sample, bytes, &why);
    return code ? cws_fail(err, code, "%s: tensor \"%s\": %s", p->in->path,
                           cws_name_shown(cws_pack_tensor(p, t)->name, shown), why.message)
                : 0;
}

/* At most 1 MiB at even spacing, in whole rows where the codec has rows. */
static int sample_tensor(struct cws_packing *p, struct cws_pack_hand *h, size_t t, struct cws_pack_work *w,
                         struct cws_error *err)
{
    uint64_t bytes = cws_pack_tensor_bytes(p, t);
    if (bytes <= CWS_PACK_SAMPLE_BYTES) {
        struct cws_pack_item all = {.t = t, .work = w, .bytes = (size_t)bytes};
        const uint8_t *data;
        int code = cws_pack_get_item(p, h, &all, &data, err);
        if (!code)
            code = choose(p, t, &w->plan, data, (size_t)bytes, err);
        return code;
    }
    uint64_t unit = w->plan.row_elems ? w->plan.row_elems * w->plan.elem_bytes : w->plan.elem_bytes;
    if (unit > CWS_PACK_SAMPLE_BYTES) /* the start of a row says what it can */
        unit = w->plan.elem_bytes;
    size_t piece = (size_t)(unit < SAMPLE_PIECE ? SAMPLE_PIECE / unit * unit : unit);
    size_t count = CWS_PACK_SAMPLE_BYTES / piece, at = 0;
    for (size_t k = 0; k < count; k++) {
        uint64_t last = (bytes - piece) / unit; /* in units */
        struct cws_pack_item part = {.t = t, .work = w, .bytes = piece};
        part.begin = (count > 1 ? (uint64_t)((unsigned __int128)last * k / (count - 1)) : last / 2) * unit;
        const uint8_t *data;
        int code = cws_pack_get_item(p, h, &part, &data, err);
        if (code)
            return code;
        memcpy(h->decoded + at, data, piece);
        at += piece;
    }
    return choose(p, t, &w->plan, h->decoded, at, err);
}

/* A tensor that is packed already: its chunks stay as they are. */
static void plan_packed(struct cws_plan *plan, const struct cws_memory_tensor *m)
{
    const struct cws_tensor_info *t = cws_store_tensor(m->packed, m->packed_index);
    const uint8_t *table = cws_store_table(m->packed, t);
    plan->codec = (enum cws_codec_id)t->record->codec;
    plan->chunk_bytes = t->record->chunk_bytes;
    plan->row_elems = t->record->row_elems;
    plan->quant_bits = t->record->quant_bits;
    plan->needs_count = false;
    if (table)
        memcpy(plan->packed, table, sizeof plan->packed);
}

static int plan_item(void *arg, unsigned thread, uint64_t i)
{
    struct cws_packing *p = arg;
    size_t t = p->group_begin + i;
    struct cws_pack_work *w = &p->work[i];
    const struct cws_header_tensor *tensor = cws_pack_tensor(p, t);
    struct cws_error err = {0};
    cws_plan_begin(&w->plan, p->in->excluded[t] ? CWS_MODE_LOSSLESS : p->options->mode, tensor->dtype, tensor->shape,
                   tensor->ndim);
    if (p->in->memory && p->in->memory[t]->packed) {
        plan_packed(&w->plan, p->in->memory[t]);
        return 0;
    }
    if (p->in->excluded[t]) {
        w->plan.codec = CWS_CODEC_RAW;
        w->plan.needs_count = false;
        return 0;
    }
    int code = sample_tensor(p, &p->hands[thread], t, w, &err);
    w->counting = w->plan.needs_count && tensor->begin != tensor->end;
    return code ? cws_pack_fail(p, code, &err) : 0;
}

/* --- count ------------------------------------------------------------------------------------------ */

static int count_item(void *arg, unsigned thread, uint64_t i)
{
    struct cws_packing *p = arg;
    struct cws_pack_hand *h = &p->hands[thread];
    struct cws_pack_item item = cws_pack_find_item(p, i, 0);
    struct cws_error err = {0};
    uint64_t histogram[256] = {0};
    const uint8_t *data;
    if (cws_pack_cancelled(p))
        return -ECANCELED;
    int code = cws_pack_get_item(p, h, &item, &data, &err);
    if (code)
        return cws_pack_fail(p, code, &err);
    int refused = cws_plan_count(&item.work->plan, data, item.bytes, item.begin / item.work->plan.elem_bytes,
                                 histogram);
    pthread_mutex_lock(&p->lock);
    item.work->refused |= refused != 0;
    for (unsigned s = 0; s < 256; s++)
        item.work->histogram[s] += histogram[s];
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* After a count: fixes the code, or asks for another count. */
static int settle_item(void *arg, unsigned thread, uint64_t i)
{
    struct cws_packing *p = arg;
    struct cws_pack_work *w = &p->work[i];
    struct cws_error err = {0};
    if (!w->counting)
        return 0;
    if (w->refused) {
        w->refused = false;
        cws_plan_refuse_quant(&w->plan);
        int code = sample_tensor(p, &p->hands[thread], p->group_begin + i, w, &err);
        if (code)
            return cws_pack_fail(p, code, &err);
        w->counting = w->plan.needs_count;
    } else {
        w->counting = cws_plan_finish(&w->plan, w->histogram) == 1;
    }
    memset(w->histogram, 0, sizeof w->histogram);
    return 0;
}

int cws_pack_plan_group(struct cws_packing *p)
{
    size_t tensors = p->group_end - p->group_begin;
    int code = cws_parallel(p->jobs, tensors, plan_item, NULL, p);
    while (!code) {
        /* A tensor that is not counted any more has no items, so that cws_pack_find_item() never meets it: it shares
         * its first item with the tensor behind it. */
        uint64_t items = cws_pack_number_items(p, 0, true);
        if (!items)
            break;
        code = cws_parallel(p->jobs, items, count_item, NULL, p);
        if (!code)
            code = cws_parallel(p->jobs, tensors, settle_item, NULL, p);
    }
    return code;
}
