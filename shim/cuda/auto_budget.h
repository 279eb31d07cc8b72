/* auto_budget.h - CODEC_VRAM_BUDGET=auto: the budget of a GPU follows what other programs leave of its memory. A thread
 * asks the driver once a second how much is free; it is there in this mode only.
 *
 * The rule. A margin is to stay free: 256 MiB, or 2 % of the device where that is more. What would be left free if all
 * of the budget were used is looked at. Less than half of the margin: the budget gives way at once, so that the margin
 * is free again. More than one and a half of it, at ten looks in a row: the budget grows until the margin is left, by a
 * sixteenth of the device at most. It never leaves the range, and is not set below what cannot be dropped. */
#ifndef CWS_SHIM_CUDA_AUTO_BUDGET_H
#define CWS_SHIM_CUDA_AUTO_BUDGET_H
#include "store/base/options.h"

struct cws_auto_rule { /* of one device */
    uint64_t total;    /* bytes of the device; 0: not met yet */
    uint64_t min, max; /* the range */
    unsigned quiet;    /* looks in a row at which there was more */
};

struct cws_auto_rule cws_auto_rule_of(const struct cws_options *options, uint64_t total);
/* For a budget that nothing is used of yet. */
uint64_t cws_auto_first(const struct cws_auto_rule *r, uint64_t free_bytes);
/* At a look: the budget from now on, which may be the one that there is. */
uint64_t cws_auto_next(struct cws_auto_rule *r, uint64_t budget, uint64_t used, uint64_t free_bytes);

/* Begins to look, once: a manager was opened with such a budget. Any thread. It ends when the budget is set to
 * something else, and with the process. */
void cws_cuda_auto_start(void);

#endif
