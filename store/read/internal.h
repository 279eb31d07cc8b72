/* internal.h - the open store, shared by store.c, index.c, cursor.c and walk.c only. */
#ifndef CWS_STORE_INTERNAL_H
#define CWS_STORE_INTERNAL_H
#include "reader.h"
#include "store/format/safetensors.h"
#include "store.h"
#include <stdatomic.h>

/* Immutable after open, but refs and counters. */
struct cws_store {
    atomic_uint refs;
    int fd;                /* -1: the store is `memory` */
    const uint8_t *memory; /* the caller's; or NULL */
    char *path;
    enum cws_io_engine io; /* of its cursors */
    struct stat opened;    /* to tell damage from a change under our feet */
    struct cws_trailer trailer;
    uint8_t *index; /* index_bytes from the file, checksummed; the pointers below point into it */
    const uint8_t *header;
    const struct cws_tensor_record *records;
    const struct cws_chunk_record *chunks;
    const uint8_t (*tables)[128];
    uint64_t chunk_count;
    uint32_t table_count;
    struct cws_header *parsed; /* of `header`; names and shapes of `tensors` belong to it */
    struct cws_tensor_info *tensors;
    size_t tensor_count;
    uint32_t stored_max, logical_max; /* of one chunk; 0 without chunks */
    _Atomic uint64_t read_calls, read_bytes, decoded_bytes, chunks_decoded;
};

/* index.c: reads and validates everything behind the trailer. The trailer is already known to be sound and to fit the
 * file. On failure the store is left for cws_store_close() to tear down. */
CWS_MUST_CHECK int cws_store_load(struct cws_store *s, struct cws_error *err);

/* As cws_os_read_full(), from the file or the memory. */
CWS_MUST_CHECK int cws_store_read_stored(const struct cws_store *s, void *dst, size_t bytes, uint64_t offset,
                                         size_t *out_got);

/* Where the zero bytes behind chunk `chunk` end: at the next chunk or the index. */
uint64_t cws_store_gap_end(const struct cws_store *s, uint64_t chunk);
/* The tensor whose chunk this is. chunk < chunk_count. */
const struct cws_tensor_info *cws_store_chunk_tensor(const struct cws_store *s, uint64_t chunk);
/* Logical file offset of a chunk's first byte. */
uint64_t cws_store_chunk_begin(const struct cws_tensor_info *t, uint64_t chunk);

/* CWS_E_CHANGED with a message when the file is not as it was when it was opened, else 0. */
int cws_store_changed(const struct cws_store *s, struct cws_error *err);

/* cursor.c, one chunk at a time: start reading into a slot (0 .. depth-1), then check it and decode parts of it.
 * with_gap: the zero bytes behind the chunk are read and checked too. */
unsigned cws_cursor_depth(const struct cws_store_cursor *c);
void cws_cursor_drain(struct cws_store_cursor *c); /* waits for all that was started, forgets it */
/* Chunks [first, end) are going to be started. */
void cws_cursor_expect(const struct cws_store_cursor *c, uint64_t first, uint64_t end);
void cws_cursor_start(struct cws_store_cursor *c, unsigned slot, uint64_t chunk, bool with_gap);
CWS_MUST_CHECK int cws_cursor_check(struct cws_store_cursor *c, unsigned slot, const struct cws_tensor_info *t,
                                    uint64_t chunk, bool with_gap, const uint8_t **out_stored, struct cws_error *err);
CWS_MUST_CHECK int cws_cursor_decode(struct cws_store_cursor *c, const struct cws_tensor_info *t, uint64_t chunk,
                                     const uint8_t *stored, size_t begin, size_t end, void *dst, struct cws_error *err);

/* walk.c: decodes every chunk with `jobs` threads (0: all CPUs). `chunk` is called from many threads at once, with
 * the decoded bytes, or with code != 0 and the message; a non-zero result of it ends the walk and is the result. */
struct cws_walk_item {
    const struct cws_tensor_info *tensor;
    uint64_t chunk, logical_begin;
    const uint8_t *decoded; /* the chunk's logical bytes; NULL when code is not 0 */
    size_t bytes;
    int code; /* read, checksum, decode or content hash failed */
    const char *message;
};
struct cws_walk {
    unsigned jobs;
    bool with_gaps;
    int (*chunk)(void *arg, const struct cws_walk_item *item);
    void (*progress)(void *arg, uint64_t done, uint64_t total); /* may be NULL; from one thread at a time */
    void *arg, *progress_arg;
    const volatile int *cancel; /* may be NULL */
};
CWS_MUST_CHECK int cws_store_walk(const struct cws_store *s, const struct cws_walk *walk, struct cws_error *err);

#endif
