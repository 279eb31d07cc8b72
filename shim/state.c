/* state.c - the shim's options, and the few facts that every hook asks for: is it active, and does the pager run? */
#include "state.h"
#include "say.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

bool cws_shim_is_active;

static struct cws_options options; /* of the environment */
static const struct cws_options *_Atomic in_force = &options;
static struct cws_error options_error; /* found by cws_shim_activate, said when it matters */
static atomic_int owner_pid;           /* the process whose memory this is */
static atomic_bool pager_started;

void cws_shim_activate(void)
{
    if (cws_options_from_env(&options, &options_error)) {
        /* said by cws_shim_check_options */
    }
    cws_shim_is_active = true;
}

const struct cws_options *cws_shim_options(void) { return atomic_load_explicit(&in_force, memory_order_acquire); }

/* Threads may be reading any that was ever in force, so all are kept: one for each different budget. */
static struct other {
    struct cws_options options;
    struct other *next;
} * others;

static bool has_budget(const struct cws_options *o, const struct cws_options *of)
{
    bool same = o->budget_auto == of->budget_auto && o->budget_bytes == of->budget_bytes &&
                o->budget_percent == of->budget_percent && o->device_count == of->device_count;
    for (unsigned i = 0; i < o->device_count && same; i++)
        same = o->devices[i].device == of->devices[i].device && o->devices[i].bytes == of->devices[i].bytes &&
               o->devices[i].percent == of->devices[i].percent;
    return same;
}

int cws_shim_change_options(const struct cws_options *next)
{
    struct other *other = others;
    while (other && !has_budget(&other->options, next))
        other = other->next;
    if (!other) {
        other = malloc(sizeof *other);
        if (!other)
            return -ENOMEM;
        other->options = *next;
        other->next = others;
        others = other;
    }
    atomic_store_explicit(&in_force, &other->options, memory_order_release);
    return 0;
}

int cws_shim_check_options(void)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (!options_error.code)
        return 0;
    if (!atomic_flag_test_and_set(&said))
        cws_shim_say("%s", options_error.message);
    return -EINVAL;
}

bool cws_shim_pager_started(void) { return atomic_load_explicit(&pager_started, memory_order_acquire); }
void cws_shim_note_pager(void)
{
    atomic_store_explicit(&pager_started, true, memory_order_release);
    cws_shim_note_paging();
}

static void (*paging_begins)(void); /* set once, before anything pages */

void cws_shim_when_paging(void (*begins)(void)) { paging_begins = begins; }

void cws_shim_note_paging(void)
{
    static atomic_flag begun = ATOMIC_FLAG_INIT;
    if (paging_begins && !atomic_flag_test_and_set(&begun))
        paging_begins();
}

bool cws_shim_is_borrowed(void) { return getpid() != atomic_load_explicit(&owner_pid, memory_order_relaxed); }
void cws_shim_note_owner(void) { atomic_store(&owner_pid, getpid()); }
