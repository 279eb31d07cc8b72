/* options.h - every CODEC_* environment variable, in one table: name, default, meaning, parser. `codecllm doctor`,
 * the shim's CODEC_VERBOSE line and the table in docs/environment.md come from here. */
#ifndef CWS_OPTIONS_H
#define CWS_OPTIONS_H
#include "error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cws_io_engine { CWS_IO_AUTO, CWS_IO_URING, CWS_IO_PREADV };
enum cws_policy_id { CWS_POLICY_NEXT, CWS_POLICY_LRU };

#define CWS_OPTIONS_DEVICES 16

struct cws_options {
    bool active;                 /* CODEC_VRAM_BUDGET is set */
    uint64_t budget_bytes;       /* CODEC_VRAM_BUDGET as a size; of "0:2G,1:4G" the first entry; 0: a percentage. What
                                  * it means: cws_options_host_budget, cws_options_device_budget */
    unsigned budget_percent;     /* of the memory that the budget is for; 0: not a percentage */
    bool budget_auto;            /* "auto": by what is free; both are 0 then */
    uint64_t auto_min, auto_max; /* "auto:MIN-MAX"; 0: none */
    unsigned device_count;       /* entries of a list per device; 0: not a list */
    struct {
        int device;
        uint64_t bytes; /* 0: percent counts */
        unsigned percent;
    } devices[CWS_OPTIONS_DEVICES];
    uint64_t host_budget_bytes; /* CODEC_HOST_BUDGET; 0: default */
    enum cws_policy_id policy;  /* CODEC_POLICY=next|lru */
    bool prefetch;              /* CODEC_PREFETCH=0|1, default 1 */
    enum cws_io_engine io;      /* CODEC_IO=uring|preadv */
    bool stats;                 /* CODEC_STATS=1 */
    bool strict;                /* CODEC_STRICT=1 */
    bool adopt;                 /* CODEC_ADOPT=0|1, default 1 */
    int verbose;                /* CODEC_VERBOSE=0|1 */
    char pin[256];              /* CODEC_PIN: tensor names with * and ?, comma-separated; empty: none */
    char trace[1024];           /* CODEC_TRACE: where a trace is written (trace.h); empty: nowhere */
    const char *pager;          /* CODEC_PAGER: force a rung (uffd-dev, uffd, uffd-user, sigsegv, eager); NULL:
                                  * probe */
};

/* Reads the environment. CWS_E_USAGE with one line naming variable, value and what is accepted; *out is then the
 * default. Never allocates. */
CWS_MUST_CHECK int cws_options_from_env(struct cws_options *out, struct cws_error *err);

/* Is this a value of CODEC_VRAM_BUDGET? 0, or CWS_E_USAGE with the line that cws_options_from_env says.
 * Reads no environment. */
CWS_MUST_CHECK int cws_options_check_budget(const char *value, struct cws_error *err);

/* Another budget for `o`, in the forms of CODEC_VRAM_BUDGET but for "auto"; all else stays. CWS_E_USAGE, and nothing
 * changed: not understood. */
CWS_MUST_CHECK int cws_options_set_budget(struct cws_options *o, const char *value, struct cws_error *err);

/* The budget of host memory now; a percentage is one of what this process may have (memory_limit.h), "auto" half of
 * what it may still take. 0: nothing could be told. */
uint64_t cws_options_host_budget(const struct cws_options *o);
/* The budget of a device that has device_bytes of memory; 0: a list that does not name it. For "auto" it depends on
 * what is free (shim/cuda/auto_budget.h): here the most that it may become. */
uint64_t cws_options_device_budget(const struct cws_options *o, int device, uint64_t device_bytes);

/* Calls visit for each CODEC_* name in the environment that no row of the table knows. */
void cws_options_unknown(void (*visit)(void *arg, const char *name_and_value), void *arg);

/* Row i of the table (static strings), for doctor and --help; false past the end. `value` is getenv() or NULL. */
struct cws_option_row {
    const char *name, *fallback, *meaning, *value;
};
bool cws_options_row(size_t i, struct cws_option_row *out);

/* "2G", "512M", "64K", "1048576", "1.5G": powers of 1024. 0 or CWS_E_USAGE. */
int cws_parse_bytes(const char *text, size_t len, uint64_t *out);
#endif
