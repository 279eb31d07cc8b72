/* pack.c - packing from beginning to end: makes the buffers, runs the parts (run.h) in their order, and sees to it that
 * the output file appears whole or not at all. */
#include "store/base/atomic_file.h"
#include "store/base/parallel.h"
#include "store/format/header_text.h"
#include "store/read/store.h"
#include "run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

int cws_pack_fail(struct cws_packing *p, int code, const struct cws_error *err)
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

/* --- buffers ---------------------------------------------------------------------------------------- */

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

static int make_hand(struct cws_pack_hand *h)
{
    h->table_id = UINT32_MAX;
    h->input = malloc(CWS_PACK_SAMPLE_BYTES);
    h->decoded = malloc(CWS_PACK_SAMPLE_BYTES);
    h->scratch = malloc((size_t)CWS_PACK_PIECE_BYTES * CWS_PACK_SCRATCH_PER_BYTE);
    h->table = aligned_alloc(64, (cws_decode_table_bytes() + 63) / 64 * 64);
    if (!h->input || !h->decoded || !h->scratch || !h->table || cws_encode_scratch_create(&h->encode) ||
        cws_decode_scratch_create(&h->decode))
        return -ENOMEM;
    return 0;
}

static int allocate(struct cws_packing *p)
{
    const struct cws_header *h = p->in->logical;
    uint64_t group = 64;
    for (size_t t = 0; !p->in->memory && t < h->tensor_count && group < CWS_PACK_GROUP_BYTES; t++)
        group += cws_pack_group_room(p, t);
    size_t room = slot_room();
    p->jobs = cws_parallel_jobs(p->options->jobs);
    p->slot_count = 2 * p->jobs + 2;
    p->hands = calloc(p->jobs, sizeof *p->hands);
    p->slots = calloc(p->slot_count, sizeof *p->slots);
    p->records = calloc(h->tensor_count + 1, sizeof *p->records);
    p->tables = calloc(h->tensor_count + 1, sizeof *p->tables);
    p->group_data = aligned_alloc(64, group < CWS_PACK_GROUP_BYTES ? group : CWS_PACK_GROUP_BYTES);
    if (!p->hands || !p->slots || !p->records || !p->tables || !p->group_data)
        return -ENOMEM;
    for (unsigned i = 0; i < p->slot_count; i++)
        if (!(p->slots[i].data = malloc(room)))
            return -ENOMEM;
    for (unsigned i = 0; i < p->jobs; i++)
        if (make_hand(&p->hands[i]))
            return -ENOMEM;
    return 0;
}

static void release(struct cws_packing *p)
{
    for (unsigned i = 0; p->hands && i < p->jobs; i++) {
        free(p->hands[i].input);
        free(p->hands[i].decoded);
        free(p->hands[i].scratch);
        free(p->hands[i].table);
        cws_encode_scratch_destroy(p->hands[i].encode);
        cws_decode_scratch_destroy(p->hands[i].decode);
        cws_store_cursor_destroy(p->hands[i].cursor);
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

/* --- the whole -------------------------------------------------------------------------------------- */

static int write_store(struct cws_packing *p, uint64_t *out_bytes, struct cws_error *err)
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
        code = cws_pack_groups(p);
        if (p->error.code && err) /* the first error in time says more than the loop's result */
            *err = p->error;
        else if (code)
            cws_fail(err, code, "%s: %s", p->in->path, code == -ECANCELED ? "cancelled" : cws_strerror(code));
        if (p->error.code)
            code = p->error.code;
    }
    if (!code)
        code = cws_pack_write_index(p, front_bytes, front_xxh3, out_bytes, err);
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
    struct cws_packing p = {.in = in, .out = sink, .options = options};
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

int cws_pack_file(const char *in_path, const char *out_path, const struct cws_pack_options *options,
                  struct cws_pack_result *result, struct cws_error *err)
{
    struct cws_pack_input in;
    int code = cws_pack_input_open(&in, in_path, options, err);
    if (code)
        return code;
    code = cws_pack_input_to_file(&in, out_path, options, result, err);
    cws_pack_input_close(&in);
    return code;
}
