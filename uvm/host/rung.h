/* rung.h - the interface of a rung, which is a way to catch page faults in views and to answer them: one table of
 * functions each. Callers own the block (it is busy) or hold the pager lock. Ranges are byte offsets in the view;
 * runs of unmapped pages inside are left alone, whatever is there now. */
#ifndef CWS_RUNG_H
#define CWS_RUNG_H
#include "store/base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cws_view;
struct cws_decoder_slot;

struct cws_rung {
    const char *name;
    /* faults come as messages to the workers; view memory is not inherited by a raw fork */
    bool userfault;
    bool needs_signal; /* faults come as SIGSEGV */
    bool whole;        /* everything is decoded when it is mapped; nothing is ever dropped */
    /* Does it work on this machine? Leaves nothing behind. */
    int (*probe)(const struct cws_rung *self, struct cws_error *err);
    /* Called when the memory [base, base + bytes) is mapped, and no other thread knows of it yet. */
    int (*open)(struct cws_view *v, struct cws_error *err);
    /* Called after the last page was unmapped. */
    void (*close)(struct cws_view *v);
    /* Makes [begin, end) present at once from `from` (slot staging + some offset) and with the right protection:
     * writable as the program asked, or never. missing_only: pages that are there stay. Consumes the staging if it
     * likes. Wakes who faulted. 0 or -errno. */
    int (*publish)(struct cws_view *v, struct cws_decoder_slot *s, size_t begin, size_t end, bool writable,
                   bool missing_only);
    /* Makes [begin, end) absent. 0, or -errno: all pages are as they were. */
    CWS_MUST_CHECK int (*drop)(struct cws_view *v, size_t begin, size_t end);
    /* Ends the write protection of [begin, end) and wakes threads that wait for it. Called with the pager lock. */
    void (*allow_write)(struct cws_view *v, size_t begin, size_t end);
    /* Makes every touch of the absent pages of [begin, end) raise SIGBUS, and wakes threads that wait for them. */
    void (*poison)(struct cws_view *v, size_t begin, size_t end);
    /* Lets threads that faulted in [begin, end) try again. */
    void (*wake)(struct cws_view *v, size_t begin, size_t end);
    /* Applies the program's protection to [begin, end), whose block is in `state` (enum cws_block_state). 0 or
     * -errno. */
    int (*protect)(struct cws_view *v, size_t begin, size_t end, int prot, unsigned state);
    int (*create_uffd)(void); /* userfault rungs: descriptor or -errno */
};

extern const struct cws_rung cws_rung_uffd_dev, cws_rung_uffd, cws_rung_uffd_user, cws_rung_sigsegv, cws_rung_eager;

/* Maps the SIGBUS hole over [begin, end) (sigsegv, eager, and where there is no UFFDIO_POISON). */
void cws_rung_map_hole(struct cws_view *v, size_t begin, size_t end);
/* Shared by the rungs without userfaultfd. */
int cws_rung_move_publish(struct cws_view *v, struct cws_decoder_slot *s, size_t begin, size_t end, bool writable,
                          bool missing_only);
#endif
