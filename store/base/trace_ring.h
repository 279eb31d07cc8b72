/* trace_ring.h - between those who record (trace.c) and the thread that writes (trace_writer.c). Only these two and
 * their test include it. */
#ifndef CWS_TRACE_RING_H
#define CWS_TRACE_RING_H
#include "trace.h"

enum {
    CWS_RING_SLOTS = 16384, /* times 256 bytes */
    CWS_RING_SPARE = 4096,  /* left for ends: as many spans may be open at a time */
    CWS_RING_TENSOR = 186,
};

/* What every trace of ours begins with, and nothing else does: such a file may be replaced. */
#define CWS_TRACE_FIRST "[\n{\"name\":\"process_name\",\"cat\":\"codecllm\",\"ph\":\"M\",\"pid\":"

enum cws_record_phase { CWS_RECORD_BEGIN, CWS_RECORD_END, CWS_RECORD_SPAN, CWS_RECORD_MARK, CWS_RECORD_COUNT };

struct cws_trace_record {
    uint64_t at_ns, span_ns;
    uint64_t bytes, tensor_bytes, index;
    const char *why;
    int32_t device;  /* of a count */
    uint32_t thread; /* as of gettid; 0: lane says */
    uint32_t lane;
    uint8_t phase, kind;
    char tensor[CWS_RING_TENSOR]; /* NUL-terminated */
};

struct cws_trace_slot {
    _Atomic uint64_t turn; /* n + 1: holds the n-th record */
    struct cws_trace_record record;
};

/* The n-th record goes to slot n % CWS_RING_SLOTS. [tail, head) are taken; the writer alone moves the tail. */
struct cws_trace_ring {
    struct cws_trace_slot *slots;
    _Atomic uint64_t head, tail, lost;
};

/* Formats and writes; belongs to the writing thread. */
struct cws_trace_writer;
CWS_MUST_CHECK int cws_trace_writer_create(int fd, struct cws_trace_writer **out);
/* Writes the record, or buffers it. 0 or -errno: then the file ends behind its last whole event, and the writer is of
 * no more use. */
CWS_MUST_CHECK int cws_trace_writer_put(struct cws_trace_writer *w, const struct cws_trace_record *r);
CWS_MUST_CHECK int cws_trace_writer_flush(struct cws_trace_writer *w);
/* Ends spans that are open, and the array. */
CWS_MUST_CHECK int cws_trace_writer_finish(struct cws_trace_writer *w, uint64_t now_ns);
void cws_trace_writer_destroy(struct cws_trace_writer *w);
#endif
