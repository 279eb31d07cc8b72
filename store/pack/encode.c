/* encode.c - chunks of a group: encoded by all threads, written in order. An encoded chunk waits in its slot until all
 * before it are in the file; the thread that has the next one writes. A thread too far ahead waits for its slot. */
#include "store/base/parallel.h"
#include "store/format/checksum.h"
#include "store/format/content_hash.h"
#include "store/read/store.h"
#include "run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* --- one chunk -------------------------------------------------------------------------------------- */

/* The thread's cursor, which is kept: the chunks that a thread takes are often of one store. */
static int take_cursor(struct cws_pack_hand *h, const struct cws_store *packed, struct cws_error *err)
{
    if (h->packed == packed)
        return 0;
    cws_store_cursor_destroy(h->cursor);
    h->packed = NULL;
    int code = cws_store_cursor_create(packed, 1, &h->cursor, err);
    if (!code)
        h->packed = packed;
    return code;
}

/* Chunk k of a tensor that is packed already. Its checksum has the chunk's place in it, and is made anew. */
static int take_chunk(struct cws_pack_hand *h, const struct cws_memory_tensor *m, uint64_t k, uint64_t place,
                      struct cws_pack_slot *slot, struct cws_chunk_record *c, struct cws_error *err)
{
    const struct cws_tensor_info *t = cws_store_tensor(m->packed, m->packed_index);
    const struct cws_chunk_record *from = &t->chunks[k];
    int code = take_cursor(h, m->packed, err);
    if (!code)
        code = cws_store_fetch(h->cursor, t, k, 1, slot->data, err);
    if (code)
        return code;
    c->stored_bytes = from->stored_bytes;
    c->logical_bytes = from->logical_bytes;
    c->codec = from->codec;
    c->xxh3 = cws_checksum(slot->data, from->stored_bytes, place);
    memcpy(c->content_hash, from->content_hash, sizeof c->content_hash);
    return 0;
}

/* A lossy chunk's content hash is that of what a reader will get. */
static int decode_again(struct cws_pack_hand *h, const struct cws_tensor_record *r, const struct cws_pack_work *w,
                        const struct cws_pack_item *item, const struct cws_pack_slot *slot,
                        const struct cws_chunk_record *c, struct cws_error *err)
{
    if (h->table_id != r->table) {
        h->table_id = UINT32_MAX;
        int code = cws_decode_table_init(h->table, w->plan.packed, err);
        if (code)
            return code;
        h->table_id = r->table;
    }
    struct cws_chunk_context context = {
        .dtype = w->plan.dtype,
        .codec = CWS_CODEC_QUANT,
        .table = h->table,
        .row_elems = w->plan.row_elems,
        .first_elem = item->begin / w->plan.elem_bytes,
    };
    return cws_chunk_decode(&context, slot->data, c->stored_bytes, item->bytes, 0, item->bytes, h->decoded, h->decode,
                            err);
}

/* Encodes a chunk into its slot and fills in its record. */
static int encode_chunk(struct cws_packing *p, struct cws_pack_hand *h, const struct cws_pack_item *item,
                        uint64_t place, struct cws_pack_slot *slot, struct cws_error *err)
{
    struct cws_chunk_record *c = &p->chunks[place];
    const uint8_t *data;
    size_t stored;
    enum cws_codec_id codec;
    struct cws_hash128 sum = {0, 0};
    bool lossy = item->work->plan.codec == CWS_CODEC_QUANT;
    int code = cws_pack_get_item(p, h, item, &data, err);
    if (!code && !lossy) /* before the encoder, which is slower to get its input from memory than from the cache */
        cws_content_hash_add(&sum, cws_content_key, data, item->bytes, item->begin);
    if (!code)
        code = cws_chunk_encode(&item->work->plan, data, item->bytes, item->begin / item->work->plan.elem_bytes,
                                slot->data, &stored, &codec, h->encode, err);
    if (code)
        return code;
    c->stored_bytes = (uint32_t)stored;
    c->logical_bytes = (uint32_t)item->bytes;
    c->codec = (uint8_t)codec;
    c->xxh3 = cws_checksum(slot->data, stored, place);
    if (codec == CWS_CODEC_QUANT) {
        code = decode_again(h, &p->records[item->t], item->work, item, slot, c, err);
        data = h->decoded;
    }
    if (!code && lossy)
        cws_content_hash_add(&sum, cws_content_key, data, item->bytes, item->begin);
    c->content_hash[0] = sum.lo;
    c->content_hash[1] = sum.hi;
    return code;
}

/* --- in order --------------------------------------------------------------------------------------- */

/* Writes all that is ready and next. Called and left with the lock held. */
static int write_ready_locked(struct cws_packing *p)
{
    int code = 0;
    p->writing = true;
    while (!code && !p->stopped && p->slots[p->written % p->slot_count].ready) {
        static const uint8_t zeros[CWS_CHUNK_ALIGN];
        struct cws_pack_slot *slot = &p->slots[p->written % p->slot_count];
        struct cws_chunk_record *c = &p->chunks[p->group_chunk + p->written];
        struct cws_error err = {0};
        c->offset = p->data_at;
        pthread_mutex_unlock(&p->lock);
        uint64_t gap = -(uint64_t)c->stored_bytes % CWS_CHUNK_ALIGN;
        memcpy(slot->data + c->stored_bytes, zeros, gap); /* the buffer has room for it */
        code = p->out->write(p->out->arg, slot->data, c->stored_bytes + gap, c->offset, &err);
        if (code)
            cws_pack_fail(p, code, &err);
        pthread_mutex_lock(&p->lock);
        slot->ready = false;
        p->data_at += c->stored_bytes + gap;
        p->written++;
        p->done += c->logical_bytes;
        if (!code && p->options->progress)
            p->options->progress(p->options->arg, p->done, p->in->logical->header_bytes + p->in->logical->data_bytes);
        pthread_cond_broadcast(&p->turn);
    }
    p->writing = false;
    return code;
}

static int encode_item(void *arg, unsigned thread, uint64_t i)
{
    struct cws_packing *p = arg;
    struct cws_pack_item item = cws_pack_find_item(p, i, 0);
    struct cws_pack_slot *slot = &p->slots[i % p->slot_count];
    struct cws_error err = {0};

    pthread_mutex_lock(&p->lock);
    while (i >= p->written + p->slot_count && !p->stopped)
        pthread_cond_wait(&p->turn, &p->lock);
    bool stopped = p->stopped;
    pthread_mutex_unlock(&p->lock);
    if (stopped || cws_pack_cancelled(p))
        return -ECANCELED;

    const struct cws_memory_tensor *from = p->in->memory ? p->in->memory[item.t] : NULL;
    uint64_t place = p->group_chunk + i;
    struct cws_pack_hand *hand = &p->hands[thread];
    int code;
    if (from && from->packed)
        code = take_chunk(hand, from, item.begin / item.work->plan.chunk_bytes, place, slot, &p->chunks[place], &err);
    else
        code = encode_chunk(p, hand, &item, place, slot, &err);
    if (code)
        return cws_pack_fail(p, code, &err);

    pthread_mutex_lock(&p->lock);
    slot->ready = true;
    if (!p->writing)
        code = write_ready_locked(p);
    pthread_mutex_unlock(&p->lock);
    return code;
}

static void stop_encoding(void *arg)
{
    struct cws_packing *p = arg;
    pthread_mutex_lock(&p->lock);
    p->stopped = true;
    pthread_cond_broadcast(&p->turn);
    pthread_mutex_unlock(&p->lock);
}

/* --- a group ---------------------------------------------------------------------------------------- */

static int reserve_chunks(struct cws_packing *p, uint64_t more, struct cws_error *err)
{
    if (more == 0)
        return 0;
    if (p->chunk_count + more > p->chunk_room) {
        uint64_t room = p->chunk_room * 2 > p->chunk_count + more ? p->chunk_room * 2 : p->chunk_count + more;
        struct cws_chunk_record *chunks = realloc(p->chunks, room * sizeof *chunks);
        if (!chunks)
            return cws_fail(err, -ENOMEM, "%s: not enough memory for the index", p->in->path);
        p->chunks = chunks;
        p->chunk_room = room;
    }
    memset(p->chunks + p->chunk_count, 0, more * sizeof *p->chunks);
    return 0;
}

/* The record of tensor t, whose plan is final. Its content hash comes when the chunks are there. */
static void begin_record(struct cws_packing *p, size_t t)
{
    const struct cws_pack_work *w = &p->work[t - p->group_begin];
    struct cws_tensor_record *r = &p->records[t];
    uint64_t bytes = cws_pack_tensor_bytes(p, t);
    *r = (struct cws_tensor_record){
        .first_chunk = p->chunk_count,
        .chunk_count = bytes / w->plan.chunk_bytes + (bytes % w->plan.chunk_bytes != 0),
        .chunk_bytes = w->plan.chunk_bytes,
        .table = UINT32_MAX,
        .dtype = cws_dtype_code(w->plan.dtype),
        .codec = bytes == 0 ? CWS_CODEC_RAW : (uint8_t)w->plan.codec,
    };
    if (r->codec == CWS_CODEC_QUANT) {
        r->row_elems = w->plan.row_elems;
        r->quant_bits = (uint8_t)w->plan.quant_bits;
    }
    if (r->codec == CWS_CODEC_QUANT || r->codec == CWS_CODEC_SPLIT) {
        r->table = p->table_count++;
        memcpy(p->tables[r->table], w->plan.packed, sizeof *p->tables);
    }
    p->chunk_count += r->chunk_count;
}

static void finish_record(struct cws_packing *p, struct cws_tensor_record *r)
{
    struct cws_hash128 sum = {0, 0};
    for (uint64_t k = 0; k < r->chunk_count; k++) {
        const uint64_t *part = p->chunks[r->first_chunk + k].content_hash;
        cws_hash128_add(&sum, (struct cws_hash128){part[0], part[1]});
    }
    r->content_hash[0] = sum.lo;
    r->content_hash[1] = sum.hi;
}

int cws_pack_encode_group(struct cws_packing *p)
{
    uint64_t items = cws_pack_number_items(p, 0, false);
    struct cws_error err = {0};
    int code = reserve_chunks(p, items, &err);
    if (code)
        return cws_pack_fail(p, code, &err);
    p->group_chunk = p->chunk_count;
    for (size_t t = p->group_begin; t < p->group_end; t++)
        begin_record(p, t);
    p->written = 0;
    code = cws_parallel(p->jobs, items, encode_item, stop_encoding, p);
    if (!code && p->written != items)
        code = cws_pack_fail(p, CWS_E_BUG,
                             &(struct cws_error){.message = "packing ended before all chunks were written"});
    for (size_t t = p->group_begin; t < p->group_end && !code; t++)
        finish_record(p, &p->records[t]);
    return code;
}
