/* store.h - an open store, read-only: what is in it, and its logical bytes at any offset.
 *
 * The logical file is the safetensors file that was packed: its header verbatim, then the tensors. Nothing
 * is ever mapped: front, index and trailer are read into private memory and checksummed there; chunks go
 * through a reader (reader.h), are checked against their XXH3 and decoded from the same buffer.
 * Threads: a cws_store is immutable after open; any thread may use it. A cws_store_cursor belongs to one
 * thread at a time. cws_store_read and the cursor never allocate, take no lock that is not their own, and do
 * not touch stdio, so a page-fault handler may call them. */
#ifndef CWS_STORE_H
#define CWS_STORE_H
#include "store/codec/codec.h"
#include "store/base/error.h"
#include "store/base/options.h"
#include "store/format/format.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct cws_store;
struct cws_store_cursor;

struct cws_tensor_info { /* valid as long as the store is open; do not modify */
    const char *name;    /* NUL-terminated UTF-8 */
    enum cws_dtype dtype;
    const char *dtype_name; /* as the header has it: also for CWS_OTHER */
    const uint64_t *shape;
    size_t ndim;
    uint64_t begin, end; /* logical file offsets, [begin, end), header included */
    uint64_t elems;
    uint64_t stored_bytes; /* its chunks, without padding, and its code table */
    const struct cws_tensor_record *record;
    const struct cws_chunk_record *chunks; /* record->chunk_count of them */
};

/* Is this open file a store? Reads only the trailer with pread; keeps the file position. 1 yes, 0 no
 * (any other file, directory, pipe), or -errno. Never allocates: the shim asks it at every open. */
int cws_store_probe_fd(int fd);

/* Opens a store. The descriptor form opens the file behind fd again (duplicates fd where that is refused), so fd may be
 * closed, and may have O_DIRECT. Everything of docs/format.md is validated here but the chunks' contents.
 *   io    how every cursor of this store reads: `io` of options.h, which the program parses once; nothing of the
 *         environment is read in here. CWS_IO_AUTO: the best that the kernel grants
 *   path  in the fd form for messages only
 * Errors: CWS_E_NOT_STORE, _VERSION, _FEATURE, _TRUNCATED, _CORRUPT, -errno; *out = NULL then. */
CWS_MUST_CHECK int cws_store_open(const char *path, enum cws_io_engine io, struct cws_store **out,
                                  struct cws_error *err);
CWS_MUST_CHECK int cws_store_open_fd(int fd, const char *path, enum cws_io_engine io, struct cws_store **out,
                                     struct cws_error *err);
/* Opens a store that lies in memory: nothing is copied but its index, and chunks are decoded from where they are. The
 * memory stays the caller's; it must not change until the last close. `name` stands for the path, in messages. Errors
 * as above, without -errno but -ENOMEM. */
CWS_MUST_CHECK int cws_store_open_memory(const void *data, uint64_t bytes, const char *name, struct cws_store **out,
                                         struct cws_error *err);
/* A store is reference-counted: open gives one reference, close drops one and frees at the last. NULL is fine.
 * No cursor may be left at the last close. Any thread. */
void cws_store_retain(struct cws_store *s);
void cws_store_close(struct cws_store *s);

/* Are both of the same file, as it was at the same time? Then their tensors are the same, one by one. Never of memory,
 * unless they are one. */
bool cws_store_is_same(const struct cws_store *a, const struct cws_store *b);
/* A number for a tensor: the same one for that of the same file in another store. Others may have it, too. */
uint64_t cws_store_tensor_key(const struct cws_store *s, const struct cws_tensor_info *tensor);
const char *cws_store_path(const struct cws_store *s);
uint64_t cws_store_logical_bytes(const struct cws_store *s);
uint64_t cws_store_file_bytes(const struct cws_store *s);
bool cws_store_is_lossy(const struct cws_store *s);
const struct cws_trailer *cws_store_trailer(const struct cws_store *s);
/* The original header: 8-byte length + JSON, header_bytes long. Logical bytes [0, header_bytes). */
const uint8_t *cws_store_header(const struct cws_store *s, uint64_t *out_header_bytes);
size_t cws_store_tensor_count(const struct cws_store *s);
const struct cws_tensor_info *cws_store_tensor(const struct cws_store *s, size_t i); /* by logical offset */
/* NULL: none */
const struct cws_tensor_info *cws_store_tensor_find(const struct cws_store *s, const char *name);
/* The tensor that holds logical byte `offset`, or NULL (the header). O(log n). Message making, readahead. */
const struct cws_tensor_info *cws_store_tensor_at(const struct cws_store *s, uint64_t offset);
uint64_t cws_store_chunk_count(const struct cws_store *s);

/* A cursor: reader, staging and decode scratch of one thread. `depth` = chunks in flight (1 for a fault handler). */
CWS_MUST_CHECK int cws_store_cursor_create(const struct cws_store *s, unsigned depth, struct cws_store_cursor **out,
                                           struct cws_error *err);
void cws_store_cursor_destroy(struct cws_store_cursor *c); /* NULL is fine */
/* After fork: the child must call this before it uses a cursor made by the parent (io_uring rings do not survive
 * fork); falls back to pread on the same descriptor. Async-signal-safe. */
void cws_store_cursor_after_fork(struct cws_store_cursor *c);

/* Fills dst with logical bytes [begin, end); past the logical end is CWS_E_RANGE. Every chunk touched is read whole and
 * checked; only the tiles needed are decoded. Errors: _CORRUPT, _SHORT_READ, _CHANGED, -errno; the message names
 * file, tensor and offset; dst is then undefined. */
CWS_MUST_CHECK int cws_store_read(struct cws_store_cursor *c, uint64_t begin, uint64_t end, void *dst,
                                  struct cws_error *err);

/* The same with `jobs` threads (0: all cores; fewer for a short range) and cursors of its own. Allocates; may be called
 * from any number of threads. */
CWS_MUST_CHECK int cws_store_read_parallel(const struct cws_store *s, unsigned jobs, uint64_t begin, uint64_t end,
                                           void *dst, struct cws_error *err);

/* Copies the stored bytes of chunks [first, first + count) of a tensor (count > 0, indices within the tensor), each
 * checked against its XXH3, to dst + (its file offset - that of the first): as they lie in the file; what lies between
 * them is not written. Errors as cws_store_read. */
CWS_MUST_CHECK int cws_store_fetch(struct cws_store_cursor *c, const struct cws_tensor_info *t, uint64_t first,
                                   uint64_t count, void *dst, struct cws_error *err);
/* The 128 packed bytes of a tensor's code table, or NULL where it has none. */
const uint8_t *cws_store_table(const struct cws_store *s, const struct cws_tensor_info *t);

/* Totals since open, over all cursors; any thread. */
struct cws_store_counters {
    uint64_t read_calls, read_bytes, decoded_bytes, chunks_decoded;
};
void cws_store_counters_get(const struct cws_store *s, struct cws_store_counters *out);

/* `verify`: every chunk read, checked, decoded whole, its content hash compared, with `jobs` threads (0: all cores).
 * report() is called (serialised) for each fault; returning non-zero stops. progress() may be NULL; it is given
 * logical bytes done, from any one thread at a time. Returns 0 (no fault), 1 (faults were reported) or an error. */
struct cws_verify_fault {
    const char *tensor; /* NULL: the file as a whole */
    uint64_t chunk;     /* index in the chunk table */
    uint64_t file_offset;
    uint64_t logical_offset; /* in the logical file */
    const char *message;
};
int cws_store_verify(const struct cws_store *s, unsigned jobs,
                     int (*report)(void *arg, const struct cws_verify_fault *fault),
                     void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg, struct cws_error *err);
#endif
