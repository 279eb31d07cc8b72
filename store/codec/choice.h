/* choice.h - which of several implementations this machine runs: the best one, or the one that a test asks for.
 * Threads: any. */
#ifndef CWS_CHOICE_H
#define CWS_CHOICE_H
#include <stdatomic.h>
#include <stdbool.h>

/* The first member of a table of functions. */
struct cws_variant {
    const char *name;
    bool (*runs_here)(void);
};

struct cws_choice {
    const struct cws_variant *const *all; /* best first; the last one runs everywhere */
    unsigned count;
    /* NULL: not asked for yet; racing first uses choose the same one */
    _Atomic(const struct cws_variant *) chosen;
};

/* The one in use: the first that runs here, unless one was forced. Never NULL. */
const struct cws_variant *cws_choice_get(struct cws_choice *c);
/* The i-th of those that run here, best first; NULL: there are no more. */
const char *cws_choice_name(const struct cws_choice *c, unsigned i);
/* From now on this one; NULL: the best again. CWS_E_UNSUPPORTED: no such name runs here (nothing changed). */
int cws_choice_force(struct cws_choice *c, const char *name);

#endif
