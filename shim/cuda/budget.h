/* budget.h - other budgets for the GPUs of this process, and sleep, for shim/budget.c. Threads: any, none inside a
 * use. */
#ifndef CWS_SHIM_CUDA_BUDGET_H
#define CWS_SHIM_CUDA_BUDGET_H
#include "store/base/error.h"
#include "store/base/options.h"

struct cws_cuda_budgets { /* of a change that is under way */
    unsigned count;       /* managers that are open */
    struct {
        struct cws_gpu *gpu;
        int ordinal;
        uint64_t before, bytes; /* bytes == before: it stays */
        bool shrunk;
    } of[CWS_OPTIONS_DEVICES];
};

/* What each is to have. Until cws_cuda_budgets_end no manager opens or closes. */
void cws_cuda_budgets_begin(struct cws_cuda_budgets *b, const struct cws_options *options);
/* Those that are to have less; the first that cannot says so, with the number of the GPU. */
CWS_MUST_CHECK int cws_cuda_budgets_shrink(struct cws_cuda_budgets *b, struct cws_error *err);
/* Those that are to have more, which always works; or all that have less as before. */
void cws_cuda_budgets_grow(struct cws_cuda_budgets *b);
void cws_cuda_budgets_restore(struct cws_cuda_budgets *b);
void cws_cuda_budgets_end(void);

struct cws_cuda_budget_rows { /* of each manager that is open, bytes */
    unsigned count;
    struct {
        int ordinal;
        uint64_t budget, used;
    } of[CWS_OPTIONS_DEVICES];
};
void cws_cuda_budgets_get(struct cws_cuda_budget_rows *out);

void cws_cuda_sleep(void);
void cws_cuda_wake(void);

#endif
