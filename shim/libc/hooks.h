/* hooks.h - the replaced functions of the C library: prototypes of ours, pointers to the real ones.
 *
 * A hook is written as cws_hook_NAME and exported under NAME by an assembler label, so that the C library's own macros,
 * redirections and attributes for NAME do not touch its definition. Off_t, stat and their 64-bit names are the same
 * types on the 64-bit systems this project runs on, so one definition carries both names (CWS_SAME).
 * A real function is called as CWS_REAL(name)(...). Any thread, also before our constructor has run and in signal
 * handlers; a symbol that the C library lacks fails with ENOSYS, because no program linked against it can have called
 * it. */
#ifndef CWS_SHIM_HOOKS_H
#define CWS_SHIM_HOOKS_H
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

_Static_assert(sizeof(off_t) == 8 && sizeof(long) == 8, "64-bit systems only");

typedef void (*cws_signal_handler)(int);

#define CWS_EXPORT __attribute__((visibility("default")))
#define CWS_UNLIKELY(x) __builtin_expect(!!(x), 0)

#define CWS_HOOK(name, result, parameters) CWS_EXPORT result cws_hook_##name parameters __asm__(#name);
#include "hooks.def"
#undef CWS_HOOK

struct cws_real {
#define CWS_HOOK(name, result, parameters) result(*real_##name) parameters;
#include "hooks.def"
#undef CWS_HOOK
};

/* Written once per entry, from NULL to its final value; writing it twice writes the same. */
extern struct cws_real cws_real;

enum cws_hook_index {
#define CWS_HOOK(name, result, parameters) CWS_HOOK_##name,
#include "hooks.def"
#undef CWS_HOOK
    CWS_HOOK_COUNT
};

/* Fills in one entry and returns it. Never allocates. */
void *cws_real_find(enum cws_hook_index which);
/* Fills in all of them: later calls then need no dynamic linker, whose lock a fork child may have inherited taken. */
void cws_real_find_all(void);
/* How many of the symbols this C library has. */
unsigned cws_real_count(void);

#define CWS_REAL(name)                                                                                                 \
    (__extension__({                                                                                                   \
        __typeof__(cws_real.real_##name) real_ = __atomic_load_n(&cws_real.real_##name, __ATOMIC_RELAXED);             \
        CWS_UNLIKELY(!real_) ? (__typeof__(real_))cws_real_find(CWS_HOOK_##name) : real_;                              \
    }))

/* Gives the definition of `target` a second exported name. In the file that defines it. */
#define CWS_SAME(name, target) extern __typeof__(cws_hook_##name) cws_hook_##name __attribute__((alias(#target)))

#endif
