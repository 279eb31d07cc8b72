/* choice.c - picks the decoder or encoder for this processor, or the one that a test names. */
#include "choice.h"
#include "store/base/error.h"

#include <stddef.h>
#include <string.h>

static const struct cws_variant *runnable(const struct cws_choice *c, unsigned i)
{
    for (unsigned v = 0; v < c->count; v++)
        if (c->all[v]->runs_here() && i-- == 0)
            return c->all[v];
    return NULL;
}

const struct cws_variant *cws_choice_get(struct cws_choice *c)
{
    const struct cws_variant *v = atomic_load_explicit(&c->chosen, memory_order_relaxed);
    if (!v) {
        v = runnable(c, 0);
        atomic_store_explicit(&c->chosen, v, memory_order_relaxed);
    }
    return v;
}

const char *cws_choice_name(const struct cws_choice *c, unsigned i)
{
    const struct cws_variant *v = runnable(c, i);
    return v ? v->name : NULL;
}

int cws_choice_force(struct cws_choice *c, const char *name)
{
    const struct cws_variant *v = NULL;
    for (unsigned i = 0; name && (v = runnable(c, i)) && strcmp(v->name, name) != 0; i++)
        continue;
    if (name && !v)
        return CWS_E_UNSUPPORTED;
    atomic_store_explicit(&c->chosen, v, memory_order_relaxed);
    return 0;
}
