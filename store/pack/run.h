/* run.h - packing itself, whatever the input and the output are, and what its parts share. Private to the files of this
 * folder that are named here.
 *
 *   pack.c    makes the buffers, runs the parts, gives the result
 *   group.c   cuts the model into groups of tensors, and a group into items for the threads
 *   plan.c    chooses each tensor's codec and its code
 *   encode.c  encodes the chunks and writes them in order
 *   index.c   writes what stands behind the chunks
 *
 * Tensors are taken in groups of up to CWS_PACK_GROUP_BYTES and CWS_PACK_GROUP_TENSORS, which are read once; a larger
 * tensor is a group of its own and is read once to count and once to encode. In a group all threads first read, then
 * plan, then encode. The file does not depend on the number of threads. */
#ifndef CWS_PACK_RUN_H
#define CWS_PACK_RUN_H
#include "store/codec/encode.h"
#include "input.h"
#include <pthread.h>

/* Where a store goes: written once from front to end, but for gaps, which are zero bytes. One thread at a time. */
struct cws_pack_sink {
    /* 0 or an error */
    int (*write)(void *arg, const void *data, size_t bytes, uint64_t offset, struct cws_error *err);
    void *arg;
};

/* Everything between open and commit. Errors as cws_pack_file; what was written then is of no use. */
CWS_MUST_CHECK int cws_pack_run(struct cws_pack_input *in, const struct cws_pack_sink *sink,
                                const struct cws_pack_options *options, struct cws_pack_result *result,
                                struct cws_error *err);

/* The same into a file that appears whole or not at all. */
CWS_MUST_CHECK int cws_pack_input_to_file(struct cws_pack_input *in, const char *out_path,
                                          const struct cws_pack_options *options, struct cws_pack_result *result,
                                          struct cws_error *err);

/* --- what the parts share ------------------------------------------------------------------------ */

#define CWS_PACK_GROUP_BYTES (UINT64_C(64) << 20)
#define CWS_PACK_GROUP_TENSORS 4096u     /* each takes 3 KiB while its group is at work */
#define CWS_PACK_PIECE_BYTES (1u << 20)  /* what a thread reads at a time */
#define CWS_PACK_SAMPLE_BYTES (1u << 20) /* cws_plan_sample takes no more */

/* What one thread works with. */
struct cws_pack_hand {
    uint8_t *input;   /* a chunk, where the group is not in memory */
    uint8_t *scratch; /* input before conversion; sample */
    uint8_t *decoded; /* lossy chunks are decoded again, for their content hash */
    struct cws_encode_scratch *encode;
    struct cws_decode_scratch *decode;
    struct cws_decode_table *table;
    uint32_t table_id;               /* that `table` holds; UINT32_MAX: none */
    const struct cws_store *packed;  /* of `cursor`; NULL: none */
    struct cws_store_cursor *cursor; /* of the last tensor that was packed already */
};

struct cws_pack_slot { /* an encoded chunk on its way to the file */
    uint8_t *data;
    bool ready;
};

struct cws_pack_work { /* a tensor of the group */
    struct cws_plan plan;
    uint64_t histogram[256]; /* under lock */
    uint64_t first_item;     /* of the group's items */
    const uint8_t *data;     /* logical bytes, or NULL: to be read */
    bool counting, refused;  /* refused: under lock */
};

struct cws_packing {
    struct cws_pack_input *in;
    const struct cws_pack_sink *out;
    const struct cws_pack_options *options;
    unsigned jobs;
    struct cws_pack_hand *hands; /* by thread */
    uint64_t data_at;            /* where the next chunk goes */

    struct cws_tensor_record *records;
    struct cws_chunk_record *chunks;
    uint8_t (*tables)[128];
    uint64_t chunk_count, chunk_room;
    uint32_t table_count;

    size_t group_begin, group_end; /* tensors */
    struct cws_pack_work *work;    /* of the group */
    uint8_t *group_data;           /* CWS_PACK_GROUP_BYTES, or less for a small file */
    uint64_t group_chunk;          /* index of its first chunk */

    pthread_mutex_t lock; /* protects error and all that is said to be under it */
    pthread_cond_t turn;
    struct cws_error error; /* the first one */
    struct cws_pack_slot *slots;
    unsigned slot_count;
    uint64_t written; /* items of the group that are in the file */
    bool writing, stopped;
    uint64_t done;
};

/* Keeps the first error of all threads; gives it words where it has none. Returns code. Any thread. */
int cws_pack_fail(struct cws_packing *p, int code, const struct cws_error *err);

static inline bool cws_pack_cancelled(const struct cws_packing *p)
{
    return p->options->cancel && __atomic_load_n(p->options->cancel, __ATOMIC_RELAXED);
}

static inline const struct cws_header_tensor *cws_pack_tensor(const struct cws_packing *p, size_t t)
{
    return &p->in->logical->tensors[t];
}

static inline uint64_t cws_pack_tensor_bytes(const struct cws_packing *p, size_t t)
{
    return cws_pack_tensor(p, t)->end - cws_pack_tensor(p, t)->begin;
}

/* What a tensor takes of the group's memory: each starts on a cache line. */
static inline uint64_t cws_pack_group_room(const struct cws_packing *p, size_t t)
{
    return (cws_pack_tensor_bytes(p, t) + 63) / 64 * 64;
}

/* group.c: packs all tensors, group by group. What the functions below return is 0 or an error that p->error tells of;
 * -ECANCELED has no words. */
CWS_MUST_CHECK int cws_pack_groups(struct cws_packing *p);

/* group.c: items, the group's tensors cut into parts of a given size. unit: bytes of a part; 0: each tensor's own chunk
 * size. Numbering comes first, and returns the number of items. */
struct cws_pack_item {
    size_t t; /* tensor */
    struct cws_pack_work *work;
    uint64_t begin; /* in the tensor */
    size_t bytes;
};
uint64_t cws_pack_number_items(struct cws_packing *p, uint32_t unit, bool only_counting);
struct cws_pack_item cws_pack_find_item(const struct cws_packing *p, uint64_t i, uint32_t unit);
/* The item's bytes, from memory or from the file; valid until the thread's next item. */
CWS_MUST_CHECK int cws_pack_get_item(struct cws_packing *p, struct cws_pack_hand *h, const struct cws_pack_item *item,
                                     const uint8_t **out, struct cws_error *err);

/* plan.c: makes the plan of each tensor of the group final. */
CWS_MUST_CHECK int cws_pack_plan_group(struct cws_packing *p);

/* encode.c: fills in the records of the group's tensors and chunks, and writes the chunks. */
CWS_MUST_CHECK int cws_pack_encode_group(struct cws_packing *p);

/* index.c: writes index and trailer. *out_bytes: of the whole file. */
CWS_MUST_CHECK int cws_pack_write_index(struct cws_packing *p, uint64_t front_bytes, uint64_t front_xxh3,
                                        uint64_t *out_bytes, struct cws_error *err);
#endif
