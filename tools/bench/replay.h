/* replay.h - the parts of replay_policy: traces of uses, the model of a machine, the simulations of both pagers, and
 * the tuned numbers that they take.
 * Threads: one. */
#ifndef CWS_REPLAY_H
#define CWS_REPLAY_H
#include "store/base/error.h"
#include "store/base/options.h"
#include "uvm/policy/tuning.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct replay_item { /* one range: a weight */
    char name[96];
    uint64_t bytes;
};

/* Uses in the order in which launches name them. A round is a token: at its end the program waits for the device. */
struct replay_trace {
    struct replay_item *items;
    uint32_t *uses; /* indexes of items */
    size_t item_count, item_room, use_count, use_room;
    size_t *rounds; /* rounds[r]: the first use behind round r */
    size_t round_count, round_room;
};

/* --- traces (replay_trace.c). Running out of memory ends the process with a line. --- */

struct replay_shape {
    const char *name;
    /* experts 0: dense; keys: width of k and v */
    unsigned layers, hidden, keys, inner, vocabulary, experts;
};
extern const struct replay_shape replay_tinyllama, replay_llama8b, replay_mixtral;

/* A weight, appended. layer < 0: none. Returns its index. */
size_t replay_add_item(struct replay_trace *t, uint64_t bytes, const char *prefix, const char *name, int layer);
/* A model's ranges of 1 MiB and more, in the order of a forward pass, appended; bf16. Returns the first one's index. */
size_t replay_add_model(struct replay_trace *t, const struct replay_shape *shape, const char *prefix);
/* One forward pass of a model that was added at `first`. Routed layers use two experts each, by *seed; each is the one
 * of the pass before with a chance of a quarter (`chosen`: 2 per layer, kept by the caller), else any. */
void replay_add_pass(struct replay_trace *t, const struct replay_shape *shape, size_t first, uint64_t *seed,
                     unsigned char *chosen);
void replay_end_round(struct replay_trace *t);
/* The uses that a CODEC_TRACE file tells of, closed or not. 0, or a code with a line. */
CWS_MUST_CHECK int replay_load(struct replay_trace *t, const char *path, struct cws_error *err);
void replay_free(struct replay_trace *t);

/* --- what it comes to --- */

struct replay_machine {
    double link_gbps;   /* host to device */
    double decode_gbps; /* of decoded bytes */
    double memory_gbps; /* device memory: what a use costs beside use_us */
    double use_us;      /* of a program's own work per use */
    double launch_us;   /* of the launching thread per use */
    double map_us;      /* map and set access, on the loader's thread */
    double drop_us;     /* unmap, hash, wait, on the loader's thread */
    double ratio;       /* of bytes to stored bytes */
    double host_gbps;   /* of the host pager: decode and publish */
};

struct replay_window { /* rounds that count: [from, to). Before, caches fill; behind, the bound looks ahead */
    size_t from, to;
};

struct replay_result {
    double uses_bytes, loaded_bytes; /* of the rounds that count */
    double seconds, busy_seconds;    /* busy: had everything been resident */
    size_t uses, hits, rounds;       /* hit: there when it was named */
};

enum replay_rule {
    REPLAY_NEXT, /* the manager's policies (uvm/policy/order.h) */
    REPLAY_LRU,
    REPLAY_BELADY, /* what the trace uses last goes: the order is known, not learned */
};

/* What a rule makes of the CUDA manager, in a model of its loader. `room`: bytes for weights. 0, or CWS_E_BUDGET. */
CWS_MUST_CHECK int replay_device(const struct replay_trace *t, const struct replay_machine *m,
                                 const struct cws_tuning *tuning, enum replay_rule rule, uint64_t room,
                                 struct replay_window window, struct replay_result *out, struct cws_error *err);
/* The host pager's policy (uvm/policy/policy.h) with blocks of block_bytes; no readahead: a miss costs the time to
 * decode a block. */
CWS_MUST_CHECK int replay_host(const struct replay_trace *t, const struct replay_machine *m,
                               const struct cws_tuning *tuning, enum cws_policy_id policy, uint64_t room,
                               uint32_t block_bytes, struct replay_window window, struct replay_result *out,
                               struct cws_error *err);
/* What no policy can beat: bytes that must be loaded if ranges could be kept and dropped byte by byte and the future
 * were known (Belady's rule, which is optimal for that), and the time if they came over the link without a pause and
 * all else were free. `unit`: sizes are rounded up to it. */
void replay_bound(const struct replay_trace *t, const struct replay_machine *m, uint64_t room, uint64_t unit,
                  struct replay_window window, struct replay_result *out);
/* Belady's rule on whole ranges: what is needed last goes, all of it. Time as in the bound. Not the least that is
 * possible (ranges differ in size), but what a policy that knows the future and drops whole ranges gets. */
void replay_belady(const struct replay_trace *t, const struct replay_machine *m, uint64_t room, uint64_t unit,
                   struct replay_window window, struct replay_result *out);

/* --- tuned numbers (replay_tuning.c) --- */

enum { REPLAY_SWEEP_MAX = 64 };
struct replay_sweep {
    struct cws_tuning_row row;
    unsigned count;
    uint64_t values[REPLAY_SWEEP_MAX];
};

/* Does a simulation read it? Is it the host pager's that does? */
bool replay_has(const struct cws_tuning_row *row);
bool replay_is_of_views(const struct cws_tuning_row *row);
/* "NAME=VALUE". 0, or CWS_E_USAGE with a line, and nothing is set: a name, a value or a form that cannot be, or a
 * number that no simulation reads. */
CWS_MUST_CHECK int replay_set(struct cws_tuning *t, const char *text, struct cws_error *err);
/* "NAME=VALUE,VALUE..." or "NAME=FROM:TO:STEPS", both ends among them. As replay_set. */
CWS_MUST_CHECK int replay_sweep_of(struct replay_sweep *s, const char *text, struct cws_error *err);
/* A value as it may be given: bytes as "32M". */
struct replay_value {
    char text[24];
};
struct replay_value replay_value(const struct cws_tuning_row *row, uint64_t value);
#endif
