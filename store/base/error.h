/* error.h - one error type for the whole project. No I/O.
 *
 * Functions return `int`: 0, or a negative code.
 *   -1 .. -4095       -errno of the operating system
 *   -10000 .. -10999  the codes below; values are pinned, gaps are for later
 *   -20000 - CUresult a CUDA driver error
 * A function that takes `struct cws_error *err` also writes one line for a person: what, where and
 * what to do. `err` may be NULL. The line is written once, where the failure is found; callers that
 * add nothing forward it untouched. There is no "last error" and nothing here touches errno.
 * Threads: any; the caller owns the struct. Never allocates (fault handlers use it). */
#ifndef CWS_ERROR_H
#define CWS_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

#define CWS_MUST_CHECK __attribute__((warn_unused_result))
#define CWS_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

enum cws_code {
    CWS_E_NOT_STORE = -10010,   /* the file is not a codecllm store (no trailer magic) */
    CWS_E_VERSION = -10020,     /* a store of a format version this build does not read */
    CWS_E_FEATURE = -10021,     /* the store needs an incompatible feature this build lacks */
    CWS_E_TRUNCATED = -10030,   /* the file is shorter than it says */
    CWS_E_CORRUPT = -10031,     /* a checksum or a validity rule of docs/format.md failed */
    CWS_E_CHANGED = -10032,     /* the file was replaced, truncated or rewritten while open */
    CWS_E_SHORT_READ = -10033,  /* end of file inside an extent */
    CWS_E_INPUT = -10040,       /* an input file breaks the safetensors rules */
    CWS_E_USAGE = -10050,       /* bad argument, option or environment value */
    CWS_E_RANGE = -10051,       /* offset or index outside the object */
    CWS_E_UNSUPPORTED = -10060, /* valid, but this build or machine cannot do it */
    CWS_E_BUDGET = -10070,      /* the budget is too small; the line names the least that works */
    CWS_E_BUSY = -10071,        /* the object is in a state that forbids the call; nothing changed */
    CWS_E_NO_GAIN = -10080,     /* an encoder's output would not be smaller; store raw instead */
    CWS_E_BUG = -10090,         /* an internal invariant failed */
};

struct cws_error {
    int code;          /* 0: nothing recorded */
    char message[480]; /* one line, no newline, NUL-terminated; "" when code is 0 */
};

/* Short fixed text for any code of the three families, e.g. for `tool: path: TEXT`.
 * Returns a static string; never NULL. */
const char *cws_strerror(int code);

/* Records `code` and the formatted line in `err` (if not NULL).
 * Formatting uses vsnprintf with integer, pointer and string conversions only (no allocation). */
void cws_error_set(struct cws_error *err, int code, const char *fmt, ...) CWS_PRINTF(3, 4);

/* As above, for a failed system call: the code is -errnum, and ": strerror(errnum)" is appended. */
void cws_error_set_errno(struct cws_error *err, int errnum, const char *fmt, ...) CWS_PRINTF(3, 4);

/* `return cws_fail(err, CODE, ...)`: records and gives the code. Macros, so that a compiler or analyser of the caller
 * sees that the value is the code, which is never 0. Arguments are evaluated once. */
#define cws_fail(err, code, ...)                                                                                       \
    ({                                                                                                                 \
        int cws_fail_code_ = (code);                                                                                   \
        cws_error_set((err), cws_fail_code_, __VA_ARGS__);                                                             \
        cws_fail_code_;                                                                                                \
    })
#define cws_fail_errno(err, errnum, ...)                                                                               \
    ({                                                                                                                 \
        int cws_fail_errnum_ = (errnum);                                                                               \
        cws_error_set_errno((err), cws_fail_errnum_, __VA_ARGS__);                                                     \
        -cws_fail_errnum_;                                                                                             \
    })

#ifdef __cplusplus
}
#endif
#endif
