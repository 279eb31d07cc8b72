/* engine.h - what reader.c and its engines share. Not for anyone else. */
#ifndef CWS_READER_ENGINE_H
#define CWS_READER_ENGINE_H
#include "reader.h"
#include <stdatomic.h>
#include <stdbool.h>

#define CWS_DIRECT_ALIGN 4096u /* of offset, length and memory; at least any block size in use */

enum cws_slot_state { CWS_SLOT_IDLE, CWS_SLOT_IN_FLIGHT, CWS_SLOT_DONE };

/* One extent. offset and bytes are widened to CWS_DIRECT_ALIGN at both ends when direct; data is at buffer + skip. */
struct cws_slot {
    uint8_t *buffer;
    uint64_t offset;
    size_t bytes;  /* to be asked for */
    size_t needed; /* enough for the caller: a direct read may end at the end of the file */
    size_t got;
    size_t skip;
    int code; /* valid when DONE */
    unsigned retries;
    _Atomic enum cws_slot_state state; /* a pool thread sets DONE last */
};

struct cws_reader_engine {
    const char *name, *direct_name;
    void (*submit)(struct cws_reader *r, unsigned slot);
    void (*wait)(struct cws_reader *r, unsigned slot); /* until the slot is DONE */
    void (*after_fork)(struct cws_reader *r);          /* leaves threads and rings to the parent */
    void (*destroy)(struct cws_reader *r);             /* nothing is in flight */
};

struct cws_uring; /* uring.c */
struct cws_pool;  /* preadv.c */

struct cws_reader {
    const struct cws_reader_engine *engine;
    struct cws_slot *slots;
    uint8_t *staging; /* all slot buffers: one anonymous mapping, so that it can be registered */
    size_t staging_bytes, slot_bytes;
    unsigned slot_count;
    const uint8_t *memory; /* or NULL */
    uint64_t memory_bytes;
    int fd;
    int direct_fd;      /* the same file with O_DIRECT, or -1 */
    atomic_bool direct; /* direct_fd is in use; cleared for good when a read is refused with EINVAL */
    struct cws_uring *uring;
    struct cws_pool *pool;
};

/* Finishes a slot with plain pread, whatever was read so far, and sets its code; the caller marks it DONE. Any
 * thread. */
void cws_reader_finish_slot(struct cws_reader *r, struct cws_slot *s);

/* Reads a whole slot with pread, direct where that is on. The caller marks it DONE. Any thread. */
void cws_reader_read_slot(struct cws_reader *r, struct cws_slot *s);

extern const struct cws_reader_engine cws_engine_uring, cws_engine_preadv, cws_engine_plain;
int cws_uring_create(struct cws_reader *r); /* 0 or -errno */
int cws_pool_create(struct cws_reader *r);  /* 0 or -errno */

#endif
