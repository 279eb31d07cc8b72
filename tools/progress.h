/* progress.h - a bar with rate and time left on stderr, when stderr is a terminal; nothing otherwise. Also the
 * interruption flag, because both belong to a verb that takes long.
 * Threads: update is called by one thread at a time; the flag may be read by any. */
#ifndef CWS_PROGRESS_H
#define CWS_PROGRESS_H
#include <stdbool.h>
#include <stdint.h>

struct cws_progress {
    bool shown; /* stderr is a terminal that can take a bar */
    const char *verb;
    char item[64];        /* file being worked on, printable, cut to fit */
    uint64_t total_bytes; /* of all items */
    uint64_t base_bytes;  /* of the items finished */
    uint64_t item_bytes;
    double begin_s, drawn_s;
};

/* Starts a bar over items of total_bytes together. `p` is the caller's and must outlive end. One at a time. */
void cws_progress_begin(struct cws_progress *p, const char *verb, uint64_t total_bytes);
/* The next item; what came before counts as done. */
void cws_progress_item(struct cws_progress *p, const char *name, uint64_t item_bytes);
/* The callback of the writer and of verify; arg is the struct cws_progress. done and total are of the item. */
void cws_progress_update(void *arg, uint64_t done, uint64_t total);
void cws_progress_end(struct cws_progress *p);
/* Takes the bar off the terminal before something else is printed there. */
void cws_progress_erase(void);

/* SIGINT, SIGTERM and SIGHUP set the flag; one that comes a third of a second later or more ends the process as usual.
 * Idempotent. */
const volatile int *cws_interrupt_flag(void);

#endif
