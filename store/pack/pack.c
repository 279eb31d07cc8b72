/* Packing. Tensors are taken in groups of up to GROUP_BYTES and GROUP_TENSORS, which are read once; a larger tensor is a group of its own and
 * is read once to count and once to encode. In a group all threads first read, then count, then encode; chunks are
 * written in order, so that the file does not depend on the number of threads. */
#include "store/base/atomic_file.h"
#include "store/format/checksum.h"
#include "store/format/content_hash.h"
#include "store/format/header_text.h"
#include "run.h"
#include "store/base/parallel.h"
#include "store/read/store.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define GROUP_BYTES (UINT64_C(64) << 20)
#define GROUP_TENSORS 4096u     /* each takes 3 KiB while its group is at work */
#define PIECE_BYTES (1u << 20)  /* what a thread reads at a time */
#define SAMPLE_BYTES (1u << 20) /* cws_plan_sample takes no more */
#define SAMPLE_PIECE (16u << 10)

/* What one thread works with. */
struct hand {
    uint8_t *input;   /* a chunk, where the group is not in memory */
    uint8_t *scratch; /* input before conversion; sample */
    uint8_t *decoded; /* lossy chunks are decoded again, for their content hash */
    struct cws_encode_scratch *encode;
    struct cws_decode_scratch *decode;
    struct cws_decode_table *table;
    uint32_t table_id; /* that `table` holds; UINT32_MAX: none */
};

struct slot { /* an encoded chunk on its way to the file */
    uint8_t *data;
    bool ready;
};

struct tensor_work {
    struct cws_plan plan;
    uint64_t histogram[256]; /* under lock */
    uint64_t first_item;     /* of the group's items */
    const uint8_t *data;     /* logical bytes, or NULL: to be read */
    bool counting, refused;  /* refused: under lock */
};

struct packing {
    struct cws_pack_input *in;
    const struct cws_pack_sink *out;
    const struct cws_pack_options *options;
    unsigned jobs;
    struct hand *hands;
    uint64_t data_at; /* where the next chunk goes */

    struct cws_tensor_record *records;
    struct cws_chunk_record *chunks;
    uint8_t (*tables)[128];
    uint64_t chunk_count, chunk_room;
    uint32_t table_count;

    size_t group_begin, group_end; /* tensors */
    struct tensor_work *work;      /* of the group */
    uint8_t *group_data;           /* GROUP_BYTES, or less for a small file */
    uint64_t group_chunk;          /* index of its first chunk */

    pthread_mutex_t lock; /* protects error and all that is said to be under it */
    pthread_cond_t turn;
    struct cws_error error; /* the first one */
    struct slot *slots;
    unsigned slot_count;
    uint64_t written; /* items of the group that are in the file */
    bool writing, stopped;
    uint64_t done;
};

static int fail_first(struct packing *p, int code, const struct cws_error *err)
{
    pthread_mutex_lock(&p->lock);
    if (!p->error.code) {
        p->error = *err;
        if (!err->message[0]) /* not all of the codec's failures have words */
            cws_fail(&p->error, code, "%s: cannot pack: %s", p->in->path, cws_strerror(code));
        p->error.code = code;
    }
    pthread_mutex_unlock(&p->lock);
    return code;
}

static bool cancelled(const struct packing *p)
{
    return p->options->cancel && __atomic_load_n(p->options->cancel, __ATOMIC_RELAXED);
}

static const struct cws_header_tensor *tensor_of(const struct packing *p, size_t t)
{
    return &p->in->logical->tensors[t];
}

static uint64_t tensor_bytes(const struct packing *p, size_t t)
{
    return tensor_of(p, t)->end - tensor_of(p, t)->begin;
}

/* What a tensor takes of the group's memory: each starts on a cache line. */
static uint64_t group_room(const struct packing *p, size_t t)
{
    return (tensor_bytes(p, t) + 63) / 64 * 64;
}

/* --- items: the group's tensors cut into parts of a given size -------------------------------------- */

struct item {
    size_t t; /* tensor */
    struct tensor_work *work;
    uint64_t begin; /* in the tensor */
    size_t bytes;
};

/* unit 0: each tensor's own chunk size. Returns the number of items. */
static uint64_t number_items(struct packing *p, uint32_t unit, bool only_counting)
{
    uint64_t items = 0;
    for (size_t t = p->group_begin; t < p->group_end; t++) {
        struct tensor_work *w = &p->work[t - p->group_begin];
        uint64_t size = unit ? unit : w->plan.chunk_bytes, bytes = tensor_bytes(p, t);
        w->first_item = items;
        if (!only_counting || w->counting)
            items += bytes / size + (bytes % size != 0);
    }
    return items;
}

static struct item find_item(const struct packing *p, uint64_t i, uint32_t unit)
{
    size_t low = p->group_begin, high = p->group_end; /* the last tensor whose first item is not behind i */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (p->work[middle - p->group_begin].first_item <= i)
            low = middle;
        else
            high = middle;
    }
    struct tensor_work *w = &p->work[low - p->group_begin];
    uint64_t size = unit ? unit : w->plan.chunk_bytes, bytes = tensor_bytes(p, low);
    struct item item = {.t = low, .work = w, .begin = (i - w->first_item) * size};
    item.bytes = (size_t)(bytes - item.begin < size ? bytes - item.begin : size);
    return item;
}

/* The item's bytes, from memory or from the file. */
static int get_item(struct packing *p, struct hand *h, const struct item *item, const uint8_t **out, struct cws_error *err)
{
    *out = item->work->data ? item->work->data + item->begin : h->input;
    return item->work->data ? 0 : cws_pack_input_read(p->in, item->t, item->begin, item->bytes, h->input, h->scratch, err);
}

/* --- read ------------------------------------------------------------------------------------------- */

static int load_item(void *arg, unsigned thread, uint64_t i)
{
    struct packing *p = arg;
    struct cws_error err = {0};
    struct item item = find_item(p, i, PIECE_BYTES);
    if (cancelled(p))
        return -ECANCELED;
    int code = cws_pack_input_read(p->in, item.t, item.begin, item.bytes, (uint8_t *)item.work->data + item.begin,
                                   p->hands[thread].scratch, &err);
    return code ? fail_first(p, code, &err) : 0;
}

static int load_group(struct packing *p)
{
    uint64_t at = 0;
    for (size_t t = p->group_begin; p->in->memory && t < p->group_end; t++)
        p->work[t - p->group_begin].data = p->in->memory[t]->data;
    if (p->in->memory || group_room(p, p->group_begin) > GROUP_BYTES)
        return 0; /* or a large tensor, alone */
    for (size_t t = p->group_begin; t < p->group_end; t++) {
        p->work[t - p->group_begin].data = p->group_data + at;
        at += group_room(p, t);
    }
    return cws_parallel(p->jobs, number_items(p, PIECE_BYTES, false), load_item, NULL, p);
}

/* --- choose ----------------------------------------------------------------------------------------- */

static int choose(const struct packing *p, size_t t, struct cws_plan *plan, const uint8_t *sample, size_t bytes, struct cws_error *err)
{
    char shown[CWS_NAME_SHOWN_BYTES];
    struct cws_error why = {0};
    int code = cws_plan_sample(plan, sample, bytes, &why);
    return code ? cws_fail(err, code, "%s: tensor \"%s\": %s", p->in->path, cws_name_shown(tensor_of(p, t)->name, shown), why.message) : 0;
}

/* At most 1 MiB at even spacing, in whole rows where the codec has rows. */
static int sample_tensor(struct packing *p, struct hand *h, size_t t, struct tensor_work *w, struct cws_error *err)
{
    uint64_t bytes = tensor_bytes(p, t);
    if (bytes <= SAMPLE_BYTES) {
        struct item all = {.t = t, .work = w, .bytes = (size_t)bytes};
        const uint8_t *data;
        int code = get_item(p, h, &all, &data, err);
        if (!code)
            code = choose(p, t, &w->plan, data, (size_t)bytes, err);
        return code;
    }
    uint64_t unit = w->plan.row_elems ? w->plan.row_elems * w->plan.elem_bytes : w->plan.elem_bytes;
    if (unit > SAMPLE_BYTES) /* the start of a row says what it can */
        unit = w->plan.elem_bytes;
    size_t piece = (size_t)(unit < SAMPLE_PIECE ? SAMPLE_PIECE / unit * unit : unit), count = SAMPLE_BYTES / piece, at = 0;
    for (size_t k = 0; k < count; k++) {
        uint64_t last = (bytes - piece) / unit; /* in units */
        struct item part = {.t = t, .work = w, .bytes = piece};
        part.begin = (count > 1 ? (uint64_t)((unsigned __int128)last * k / (count - 1)) : last / 2) * unit;
        const uint8_t *data;
        int code = get_item(p, h, &part, &data, err);
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
    struct packing *p = arg;
    size_t t = p->group_begin + i;
    struct tensor_work *w = &p->work[i];
    const struct cws_header_tensor *tensor = tensor_of(p, t);
    struct cws_error err = {0};
    cws_plan_begin(&w->plan, p->in->excluded[t] ? CWS_MODE_LOSSLESS : p->options->mode, tensor->dtype, tensor->shape, tensor->ndim);
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
    return code ? fail_first(p, code, &err) : 0;
}

static int count_item(void *arg, unsigned thread, uint64_t i)
{
    struct packing *p = arg;
    struct hand *h = &p->hands[thread];
    struct item item = find_item(p, i, 0);
    struct cws_error err = {0};
    uint64_t histogram[256] = {0};
    const uint8_t *data;
    if (cancelled(p))
        return -ECANCELED;
    int code = get_item(p, h, &item, &data, &err);
    if (code)
        return fail_first(p, code, &err);
    int refused = cws_plan_count(&item.work->plan, data, item.bytes, item.begin / item.work->plan.elem_bytes, histogram);
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
    struct packing *p = arg;
    struct tensor_work *w = &p->work[i];
    struct cws_error err = {0};
    if (!w->counting)
        return 0;
    if (w->refused) {
        w->refused = false;
        cws_plan_refuse_quant(&w->plan);
        int code = sample_tensor(p, &p->hands[thread], p->group_begin + i, w, &err);
        if (code)
            return fail_first(p, code, &err);
        w->counting = w->plan.needs_count;
    } else {
        w->counting = cws_plan_finish(&w->plan, w->histogram) == 1;
    }
    memset(w->histogram, 0, sizeof w->histogram);
    return 0;
}

static int plan_group(struct packing *p)
{
    size_t tensors = p->group_end - p->group_begin;
    int code = cws_parallel(p->jobs, tensors, plan_item, NULL, p);
    while (!code) {
        /* A tensor that is not counted any more has no items, so that find_item() never meets it: it shares its first item
         * with the tensor behind it. */
        uint64_t items = number_items(p, 0, true);
        if (!items)
            break;
        code = cws_parallel(p->jobs, items, count_item, NULL, p);
        if (!code)
            code = cws_parallel(p->jobs, tensors, settle_item, NULL, p);
    }
    return code;
}

/* --- encode and write ------------------------------------------------------------------------------- */

/* A lossy chunk's content hash is that of what a reader will get. */
static int decode_again(struct hand *h, const struct cws_tensor_record *r, const struct tensor_work *w, const struct item *item,
                        const struct slot *slot, const struct cws_chunk_record *c, struct cws_error *err)
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
    return cws_chunk_decode(&context, slot->data, c->stored_bytes, item->bytes, 0, item->bytes, h->decoded, h->decode, err);
}

/* Writes all that is ready and next. Called and left with the lock held. */
static int write_ready_locked(struct packing *p)
{
    int code = 0;
    p->writing = true;
    while (!code && !p->stopped && p->slots[p->written % p->slot_count].ready) {
        static const uint8_t zeros[CWS_CHUNK_ALIGN];
        struct slot *slot = &p->slots[p->written % p->slot_count];
        struct cws_chunk_record *c = &p->chunks[p->group_chunk + p->written];
        struct cws_error err = {0};
        c->offset = p->data_at;
        pthread_mutex_unlock(&p->lock);
        uint64_t gap = -(uint64_t)c->stored_bytes % CWS_CHUNK_ALIGN;
        memcpy(slot->data + c->stored_bytes, zeros, gap); /* the buffer has room for it */
        code = p->out->write(p->out->arg, slot->data, c->stored_bytes + gap, c->offset, &err);
        if (code)
            fail_first(p, code, &err);
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

/* Chunk k of a tensor that is packed already. Its checksum has the chunk's place in it, and is made anew. */
static int take_chunk(const struct cws_memory_tensor *m, uint64_t k, uint64_t place, struct slot *slot, struct cws_chunk_record *c,
                      struct cws_error *err)
{
    const struct cws_tensor_info *t = cws_store_tensor(m->packed, m->packed_index);
    const struct cws_chunk_record *from = &t->chunks[k];
    struct cws_store_cursor *cursor;
    int code = cws_store_cursor_create(m->packed, 1, &cursor, err);
    if (!code)
        code = cws_store_fetch(cursor, t, k, 1, slot->data, err);
    cws_store_cursor_destroy(cursor);
    if (code)
        return code;
    c->stored_bytes = from->stored_bytes;
    c->logical_bytes = from->logical_bytes;
    c->codec = from->codec;
    c->xxh3 = cws_checksum(slot->data, from->stored_bytes, place);
    memcpy(c->content_hash, from->content_hash, sizeof c->content_hash);
    return 0;
}

/* Encodes a chunk into its slot and fills in its record. */
static int encode_chunk(struct packing *p, struct hand *h, const struct item *item, uint64_t place, struct slot *slot,
                        struct cws_error *err)
{
    struct cws_chunk_record *c = &p->chunks[place];
    const uint8_t *data;
    size_t stored;
    enum cws_codec_id codec;
    struct cws_hash128 sum = {0, 0};
    bool lossy = item->work->plan.codec == CWS_CODEC_QUANT;
    int code = get_item(p, h, item, &data, err);
    if (!code && !lossy) /* before the encoder, which is slower to get its input from memory than from the cache */
        cws_content_hash_add(&sum, cws_content_key, data, item->bytes, item->begin);
    if (!code)
        code = cws_chunk_encode(&item->work->plan, data, item->bytes, item->begin / item->work->plan.elem_bytes, slot->data, &stored, &codec,
                                h->encode, err);
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

static int encode_item(void *arg, unsigned thread, uint64_t i)
{
    struct packing *p = arg;
    struct item item = find_item(p, i, 0);
    struct slot *slot = &p->slots[i % p->slot_count];
    struct cws_error err = {0};

    pthread_mutex_lock(&p->lock);
    while (i >= p->written + p->slot_count && !p->stopped)
        pthread_cond_wait(&p->turn, &p->lock);
    bool stopped = p->stopped;
    pthread_mutex_unlock(&p->lock);
    if (stopped || cancelled(p))
        return -ECANCELED;

    const struct cws_memory_tensor *from = p->in->memory ? p->in->memory[item.t] : NULL;
    uint64_t place = p->group_chunk + i;
    int code = from && from->packed ? take_chunk(from, item.begin / item.work->plan.chunk_bytes, place, slot, &p->chunks[place], &err)
                                    : encode_chunk(p, &p->hands[thread], &item, place, slot, &err);
    if (code)
        return fail_first(p, code, &err);

    pthread_mutex_lock(&p->lock);
    slot->ready = true;
    if (!p->writing)
        code = write_ready_locked(p);
    pthread_mutex_unlock(&p->lock);
    return code;
}

static void stop_encoding(void *arg)
{
    struct packing *p = arg;
    pthread_mutex_lock(&p->lock);
    p->stopped = true;
    pthread_cond_broadcast(&p->turn);
    pthread_mutex_unlock(&p->lock);
}

static int reserve_chunks(struct packing *p, uint64_t more, struct cws_error *err)
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

/* The plans are final: fills in the tensors' records, and encodes. */
static int encode_group(struct packing *p)
{
    uint64_t items = number_items(p, 0, false);
    struct cws_error err = {0};
    int code = reserve_chunks(p, items, &err);
    if (code)
        return fail_first(p, code, &err);
    p->group_chunk = p->chunk_count;
    for (size_t t = p->group_begin; t < p->group_end; t++) {
        const struct tensor_work *w = &p->work[t - p->group_begin];
        struct cws_tensor_record *r = &p->records[t];
        bool empty = tensor_bytes(p, t) == 0;
        *r = (struct cws_tensor_record){
            .first_chunk = p->chunk_count,
            .chunk_count = tensor_bytes(p, t) / w->plan.chunk_bytes + (tensor_bytes(p, t) % w->plan.chunk_bytes != 0),
            .chunk_bytes = w->plan.chunk_bytes,
            .table = UINT32_MAX,
            .dtype = cws_dtype_code(w->plan.dtype),
            .codec = empty ? CWS_CODEC_RAW : (uint8_t)w->plan.codec,
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
    p->written = 0;
    code = cws_parallel(p->jobs, items, encode_item, stop_encoding, p);
    if (!code && p->written != items)
        code = fail_first(p, CWS_E_BUG, &(struct cws_error){.message = "packing ended before all chunks were written"});
    for (size_t t = p->group_begin; t < p->group_end && !code; t++) {
        struct cws_hash128 sum = {0, 0};
        for (uint64_t k = 0; k < p->records[t].chunk_count; k++) {
            const uint64_t *part = p->chunks[p->records[t].first_chunk + k].content_hash;
            cws_hash128_add(&sum, (struct cws_hash128){part[0], part[1]});
        }
        p->records[t].content_hash[0] = sum.lo;
        p->records[t].content_hash[1] = sum.hi;
    }
    return code;
}

static int pack_group(struct packing *p)
{
    int code = 0;
    p->work = calloc(p->group_end - p->group_begin, sizeof *p->work);
    if (!p->work)
        return fail_first(p, -ENOMEM, &(struct cws_error){.message = "not enough memory to pack"});
    code = load_group(p);
    if (!code)
        code = plan_group(p);
    if (!code)
        code = encode_group(p);
    free(p->work);
    p->work = NULL;
    return code;
}

static int pack_tensors(struct packing *p)
{
    size_t count = p->in->logical->tensor_count;
    int code = 0;
    for (size_t t = 0; t < count && !code; t = p->group_end) {
        uint64_t room = group_room(p, t);
        p->group_begin = t;
        for (p->group_end = t + 1; p->group_end < count && p->group_end - t < GROUP_TENSORS &&
                                   room + group_room(p, p->group_end) <= GROUP_BYTES;
             p->group_end++)
            room += group_room(p, p->group_end);
        code = pack_group(p);
    }
    return code;
}

/* --- index and trailer ------------------------------------------------------------------------------ */

static uint64_t index_bytes(const struct packing *p)
{
    return sizeof(struct cws_index_header) + (p->in->logical->header_bytes + 7) / 8 * 8 +
           p->in->logical->tensor_count * sizeof *p->records + p->chunk_count * sizeof *p->chunks + p->table_count * sizeof *p->tables;
}

static uint8_t *append(uint8_t *at, const void *data, size_t bytes)
{
    if (bytes)
        memcpy(at, data, bytes);
    return at + bytes;
}

static int write_end(struct packing *p, uint64_t front_bytes, uint64_t front_xxh3, uint64_t *out_bytes, struct cws_error *err)
{
    const struct cws_header *h = p->in->logical;
    struct cws_trailer t = {
        .magic = CWS_MAGIC,
        .version = CWS_FORMAT_VERSION,
        .trailer_bytes = sizeof t,
        .logical_bytes = h->header_bytes + h->data_bytes,
        .front_bytes = front_bytes,
        .front_xxh3 = front_xxh3,
        .index_offset = p->data_at,
        .index_bytes = index_bytes(p),
    };
    if (t.index_offset + t.index_bytes + sizeof t == front_bytes + h->data_bytes)
        t.index_offset += CWS_CHUNK_ALIGN; /* a plain loader would believe the size */
    t.file_bytes = t.index_offset + t.index_bytes + sizeof t;
    uint64_t gap = t.index_offset - p->data_at, total = gap + t.index_bytes + sizeof t;
    uint8_t *bytes = calloc(1, total);
    if (!bytes)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for the index", p->in->path);
    struct cws_index_header head = {
        .header_bytes = h->header_bytes,
        .tensor_count = (uint32_t)h->tensor_count,
        .table_count = p->table_count,
        .chunk_count = p->chunk_count,
    };
    uint8_t *at = append(bytes + gap, &head, sizeof head);
    at = append(at, p->in->header_text, h->header_bytes) + -h->header_bytes % 8;
    at = append(at, p->records, h->tensor_count * sizeof *p->records);
    at = append(at, p->chunks, p->chunk_count * sizeof *p->chunks);
    at = append(at, p->tables, p->table_count * sizeof *p->tables);
    struct cws_hash128 sum = {0, 0};
    for (size_t i = 0; i < h->tensor_count; i++) {
        cws_content_hash_add(&sum, cws_content_key, p->records[i].content_hash, sizeof p->records[i].content_hash,
                             i * sizeof p->records[i].content_hash);
        if (p->records[i].codec == CWS_CODEC_QUANT)
            t.incompat |= CWS_INCOMPAT_LOSSY;
        if (p->records[i].dtype > CWS_F64)
            t.incompat |= CWS_INCOMPAT_TYPES;
    }
    t.content_hash[0] = sum.lo;
    t.content_hash[1] = sum.hi;
    t.index_xxh3 = XXH3_64bits(bytes + gap, t.index_bytes);
    t.trailer_xxh3 = XXH3_64bits(&t, offsetof(struct cws_trailer, trailer_xxh3));
    append(at, &t, sizeof t);
    *out_bytes = t.file_bytes;
    int code = p->out->write(p->out->arg, bytes, total, p->data_at, err);
    free(bytes);
    return code;
}

/* --- the whole -------------------------------------------------------------------------------------- */

static size_t slot_room(void)
{
    /* No plan makes larger chunks than CWS_CHUNK_BYTES; the bound of each codec is asked for, and the padding added. */
    size_t room = 0;
    static const enum cws_codec_id codecs[] = {CWS_CODEC_RAW, CWS_CODEC_ZSTD, CWS_CODEC_SPLIT, CWS_CODEC_QUANT};
    for (unsigned bytes = 1; bytes <= 8; bytes *= 2) {
        for (unsigned k = 0; k < 4; k++) {
            struct cws_plan plan = {.codec = codecs[k], .elem_bytes = bytes, .lane_symbols = 64, .row_elems = 1};
            size_t bound = cws_chunk_bound(&plan, CWS_CHUNK_BYTES);
            room = bound > room ? bound : room;
        }
    }
    return room + CWS_CHUNK_ALIGN + CWS_STREAM_PAD;
}

static int allocate(struct packing *p)
{
    const struct cws_header *h = p->in->logical;
    uint64_t group = 64;
    for (size_t t = 0; !p->in->memory && t < h->tensor_count && group < GROUP_BYTES; t++)
        group += group_room(p, t);
    size_t room = slot_room();
    p->jobs = cws_parallel_jobs(p->options->jobs);
    p->slot_count = 2 * p->jobs + 2;
    p->hands = calloc(p->jobs, sizeof *p->hands);
    p->slots = calloc(p->slot_count, sizeof *p->slots);
    p->records = calloc(h->tensor_count + 1, sizeof *p->records);
    p->tables = calloc(h->tensor_count + 1, sizeof *p->tables);
    p->group_data = aligned_alloc(64, group < GROUP_BYTES ? group : GROUP_BYTES);
    if (!p->hands || !p->slots || !p->records || !p->tables || !p->group_data)
        return -ENOMEM;
    for (unsigned i = 0; i < p->slot_count; i++)
        if (!(p->slots[i].data = malloc(room)))
            return -ENOMEM;
    for (unsigned i = 0; i < p->jobs; i++) {
        struct hand *d = &p->hands[i];
        d->table_id = UINT32_MAX;
        d->input = malloc(SAMPLE_BYTES);
        d->decoded = malloc(SAMPLE_BYTES);
        d->scratch = malloc((size_t)PIECE_BYTES * CWS_PACK_SCRATCH_PER_BYTE);
        d->table = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
        if (!d->input || !d->decoded || !d->scratch || !d->table || cws_encode_scratch_create(&d->encode) ||
            cws_decode_scratch_create(&d->decode))
            return -ENOMEM;
    }
    return 0;
}

static void release(struct packing *p)
{
    for (unsigned i = 0; p->hands && i < p->jobs; i++) {
        free(p->hands[i].input);
        free(p->hands[i].decoded);
        free(p->hands[i].scratch);
        free(p->hands[i].table);
        cws_encode_scratch_destroy(p->hands[i].encode);
        cws_decode_scratch_destroy(p->hands[i].decode);
    }
    for (unsigned i = 0; p->slots && i < p->slot_count; i++)
        free(p->slots[i].data);
    free(p->hands);
    free(p->slots);
    free(p->records);
    free(p->chunks);
    free(p->tables);
    free(p->group_data);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->turn);
}

static int write_store(struct packing *p, uint64_t *out_bytes, struct cws_error *err)
{
    uint8_t *front;
    uint64_t front_bytes;
    int code = cws_header_write_front(p->in->path, p->in->logical, &front, &front_bytes, err);
    if (code)
        return code;
    uint64_t front_xxh3 = XXH3_64bits(front, front_bytes);
    p->data_at = front_bytes;
    p->done = p->in->logical->header_bytes;
    code = p->out->write(p->out->arg, front, front_bytes, 0, err);
    free(front);
    if (!code) {
        code = pack_tensors(p);
        if (p->error.code && err) /* the first error in time says more than the loop's result */
            *err = p->error;
        else if (code)
            cws_fail(err, code, "%s: %s", p->in->path, code == -ECANCELED ? "cancelled" : cws_strerror(code));
        if (p->error.code)
            code = p->error.code;
    }
    if (!code)
        code = write_end(p, front_bytes, front_xxh3, out_bytes, err);
    /* A file that changed between two reads may fail in any way: that is the reason to give. */
    struct cws_error changed = {0};
    if (code != -ECANCELED && cws_pack_input_changed(p->in, &changed)) {
        code = changed.code;
        if (err)
            *err = changed;
    }
    return code;
}

static void count_unknown(const struct cws_header *h, struct cws_pack_result *result)
{
    for (size_t i = h->tensor_count; i-- > 0;)
        if (h->tensors[i].dtype == CWS_OTHER) {
            result->unknown_types++;
            snprintf(result->unknown_type, sizeof result->unknown_type, "%s", h->tensors[i].dtype_name);
        }
}

int cws_pack_run(struct cws_pack_input *in, const struct cws_pack_sink *sink, const struct cws_pack_options *options,
                 struct cws_pack_result *result, struct cws_error *err)
{
    struct packing p = {.in = in, .out = sink, .options = options};
    uint64_t stored_bytes = 0;
    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.turn, NULL);
    int code = allocate(&p);
    if (code)
        cws_fail(err, code, "%s: not enough memory to pack with %u threads; use fewer (--jobs)", in->path, p.jobs);
    if (!code)
        code = write_store(&p, &stored_bytes, err);
    if (!code && result) {
        *result = (struct cws_pack_result){
            .input_bytes = (uint64_t)in->opened.st_size,
            .logical_bytes = in->logical->header_bytes + in->logical->data_bytes,
            .stored_bytes = stored_bytes,
            .tensor_count = in->logical->tensor_count,
            .chunk_count = p.chunk_count,
        };
        count_unknown(in->logical, result);
    }
    release(&p);
    return code;
}

static int write_file(void *arg, const void *data, size_t bytes, uint64_t offset, struct cws_error *err)
{
    return cws_atomic_write(arg, data, bytes, offset, err);
}

int cws_pack_input_to_file(struct cws_pack_input *in, const char *out_path, const struct cws_pack_options *options,
                           struct cws_pack_result *result, struct cws_error *err)
{
    struct cws_atomic_file out;
    struct cws_pack_sink sink = {write_file, &out};
    int code = cws_atomic_begin(&out, out_path, in->memory ? NULL : &in->opened, err);
    if (code)
        return code;
    struct cws_pack_result done;
    code = cws_pack_run(in, &sink, options, &done, err);
    if (code) {
        cws_atomic_abort(&out);
        return code;
    }
    code = cws_atomic_commit(&out, err);
    if (!code && result)
        *result = done;
    return code;
}

int cws_pack_file(const char *in_path, const char *out_path, const struct cws_pack_options *options, struct cws_pack_result *result,
                  struct cws_error *err)
{
    struct cws_pack_input in;
    int code = cws_pack_input_open(&in, in_path, options, err);
    if (code)
        return code;
    code = cws_pack_input_to_file(&in, out_path, options, result, err);
    cws_pack_input_close(&in);
    return code;
}
