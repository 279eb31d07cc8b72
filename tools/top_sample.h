/* top_sample.h - what `codecllm top` shows: the counters of processes that page, and what follows from two samples.
 * Threads: one. Running out of memory ends the program with a line. */
#ifndef CWS_TOP_SAMPLE_H
#define CWS_TOP_SAMPLE_H
#include "store/base/error.h"
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cws_top_row { /* of host memory, or of one GPU, of a process */
    int pid;
    char program[64]; /* its name, printable */
    enum cws_top_kind {
        CWS_TOP_HOST,
        CWS_TOP_GPU,
        CWS_TOP_NOTHING, /* it answers, and pages nothing now: no counters */
        CWS_TOP_SILENT,  /* it did not answer: no counters */
    } kind;
    int gpu;          /* its number */
    uint64_t at_ns;   /* when the counters were read */
    json_t *counters; /* an object */
};

struct cws_top_sample {
    struct cws_top_row *rows; /* by number of process, host before GPUs */
    size_t count;
};

/* An empty sample is all zero; both empty `s` first. Of one process: 0 or a code of cws_ask, after `seconds` at
 * most. Of all that this user may ask and that listen in this network namespace: one that does not answer in 2 s is
 * CWS_TOP_SILENT. */
CWS_MUST_CHECK int cws_top_sample_one(struct cws_top_sample *s, int pid, unsigned seconds, struct cws_error *err);
void cws_top_sample_all(struct cws_top_sample *s);
void cws_top_sample_free(struct cws_top_sample *s);

struct cws_top_figures {
    uint64_t budget, weights, of, written, other; /* bytes */
    /* since the sample before, a second; NAN where there is none, or none can be told */
    double loads, decoded_bytes, read_bytes, drops;
    double ahead; /* of the loads, those that began before the program asked; NAN: there were none */
    double link;  /* of the time: the link to the GPU was busy, launches waited, for weights, for memory */
    double waits, weight_waits, memory_waits;
};

/* Of a row with counters. before: the sample before; NULL: none. */
void cws_top_figures(const struct cws_top_row *row, const struct cws_top_sample *before, struct cws_top_figures *out);
uint64_t cws_top_counter(const struct cws_top_row *row, const char *name); /* 0: the process has none of that name */
const char *cws_top_device(const struct cws_top_row *row, char text[32]);  /* "host", "GPU 0"; returns text */

#endif
