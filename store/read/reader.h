/* reader.h - reads extents of one file into staging slots, several at a time.
 *
 *   submit(slot, offset, bytes) ... wait(slot) -> the bytes, valid until the slot is submitted again
 *
 * Engines: io_uring (uring.c) where the kernel grants a ring; otherwise pread, by a small pool of threads when there
 * are several slots (preadv.c). Availability is probed, never guessed from a version; CODEC_IO forces one.
 * Short reads, EINTR and EAGAIN are retried in here. Where an engine fails on an extent, plain pread has the last word.
 * Threads: a reader belongs to one thread at a time, and may move between threads while no extent is in flight.
 * submit and wait never allocate memory, except that the first submit on a thread may set up a ring. */
#ifndef CWS_READER_H
#define CWS_READER_H
#include "store/codec/codec.h"
#include "store/base/error.h"
#include "store/base/options.h"
#include <stddef.h>
#include <stdint.h>

enum cws_direct {                   /* O_DIRECT */
                  CWS_DIRECT_AUTO,  /* with 8 slots or more, for a file of more than half of what the process may have
                       * (memory_limit.h): the page cache could not keep it */
                  CWS_DIRECT_NEVER, /* the page cache serves as the cache of compressed bytes */
                  CWS_DIRECT_ALWAYS /* where the file system allows it */
};

struct cws_reader_options {
    enum cws_io_engine engine;
    enum cws_direct direct;
    unsigned slots;      /* extents in flight at most; at least 1 */
    size_t extent_bytes; /* of the largest extent */
    uint64_t file_bytes;
    const void *memory; /* not NULL: these file_bytes bytes are read instead of `fd`, in place; the rest but slots does
                         * not matter */
};

struct cws_reader;

/* `fd` stays the caller's and must stay open. CWS_IO_URING where no ring is granted: CWS_E_UNSUPPORTED; -ENOMEM;
 * -errno. */
CWS_MUST_CHECK int cws_reader_create(int fd, const struct cws_reader_options *options, struct cws_reader **out,
                                     struct cws_error *err);
void cws_reader_destroy(struct cws_reader *r); /* NULL is fine; waits for what is in flight */

/* Starts reading [offset, offset + bytes) into a slot that is not in flight. Cannot fail: what goes wrong shows at
 * wait. */
void cws_reader_submit(struct cws_reader *r, unsigned slot, uint64_t offset, size_t bytes);

/* The bytes [offset, offset + bytes) are going to be submitted, all of them soon: where they go through the page cache
 * the kernel begins to read them, in large requests. May wait for memory, not for the bytes. */
void cws_reader_expect(const struct cws_reader *r, uint64_t offset, uint64_t bytes);

/* Waits for a slot that was submitted. *out_data: the bytes, followed by at least CWS_STREAM_PAD readable bytes,
 * aligned to 64 where the offset is; of memory they lie where they are, and what follows is what follows there.
 * CWS_E_SHORT_READ: the file ends inside the extent; -errno. No message: the caller knows what the extent is. May be
 * called again for a slot that was waited for already, with the same result. */
CWS_MUST_CHECK int cws_reader_wait(struct cws_reader *r, unsigned slot, const uint8_t **out_data);

/* Waits until nothing is in flight; the slots' contents are forgotten. */
void cws_reader_drain(struct cws_reader *r);

/* In a child after fork: gives up what belongs to the parent (ring, threads); from then on plain pread.
 * Async-signal-safe. */
void cws_reader_after_fork(struct cws_reader *r);

/* What it uses, for messages and tests: "io_uring", "io_uring+direct", "preadv", "preadv+direct", "memory". Static. */
const char *cws_reader_engine(const struct cws_reader *r);

/* Does this kernel grant this process a ring? 0 or -errno. */
int cws_reader_probe_uring(void);

#endif
