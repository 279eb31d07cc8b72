/* signal_stack.h - stacks of our own for the work of a SIGSEGV handler.
 *
 * The kernel calls a handler on the stack of the thread that faulted, or on the alternate one that the program gave it,
 * which may be small (8 KiB with SIGSTKSZ of old). So nothing but the kernel's frame and at most CWS_SIGNAL_ROOM bytes
 * of ours lies there: a handler begins with CWS_SIGNAL_ENTRY, calls cws_view_signal, and leaves to the program's
 * handler by cws_signal_go_on. The work is done on a stack of a pool.
 * Threads: any. Everything but the making of the pool is for signal handlers with all signals blocked. */
#ifndef CWS_SIGNAL_STACK_H
#define CWS_SIGNAL_STACK_H
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

enum {
    /* threads that are served at the same time; the others wait. A bit each in a word */
    CWS_SIGNAL_STACKS = 32,
};
/* What our part of a handler may take of the program's stack, beside the kernel's frame. */
#define CWS_SIGNAL_ROOM 1024

/* For functions that run on the program's stack: small frames in every build. */
#define CWS_ON_PROGRAM_STACK __attribute__((noinline, no_sanitize("address", "thread", "undefined")))

/* Makes the pool where there is none yet: before a handler that uses it is installed, and one at a time. It stays until
 * the process ends; a forked child has its own copy. 0, or -errno: there is none. Async-signal-safe. */
int cws_signal_stacks_make(void);

/* In a forked child, whose only thread is not in a handler: all stacks are free, whoever had them in the parent. */
void cws_signal_stacks_reset(void);

/* Calls fn(arg) on a stack of the pool, and waits until one is free: a thread that has one never waits for a thread
 * that waits for one. Without a pool, or on a machine other than x86-64 and aarch64: on the caller's stack. */
void cws_signal_stack_call(void (*fn)(void *), void *arg);

/* --- passing on to the program's handler -------------------------------------------------------------- */

struct cws_signal_next {
    void (*handler)(int signo, siginfo_t *info, void *ucontext); /* NULL: there is none, return */
    uint64_t mask;                                               /* the kernel's set of blocked signals */
};

/* How the kernel would have called `action`, which has a handler, where `ucontext` was interrupted. */
struct cws_signal_next cws_signal_next_of(const struct sigaction *action, int signo, const void *ucontext);

/* --- where the kernel enters -------------------------------------------------------------------------- */

/* For the entry only: the line that the alternate stack is too small, on a stack of its own, and the end. */
_Noreturn void cws_signal_no_room(int signo, const siginfo_t *info, const void *ucontext)
    __attribute__((visibility("hidden")));

_Static_assert(offsetof(ucontext_t, uc_stack.ss_sp) == 16 && offsetof(ucontext_t, uc_stack.ss_size) == 32,
               "the entry reads them");

/* CWS_SIGNAL_ENTRY(entry, target): defines `entry` to give to sigaction, with SA_SIGINFO and all signals in sa_mask. It
 * goes on to `target`, of the same type, unless this is an alternate stack with less than CWS_SIGNAL_ROOM bytes left
 * below the kernel's frame. Until that is known it touches no stack. */
#define CWS_SIGNAL_DECLARE(entry, target)                                                                              \
    void entry(int, siginfo_t *, void *) __attribute__((visibility("hidden")));                                        \
    void target(int, siginfo_t *, void *) __attribute__((visibility("hidden"), used, noinline))
#define CWS_SIGNAL_TEXT_(x) #x
#define CWS_SIGNAL_TEXT(x) CWS_SIGNAL_TEXT_(x)
#define CWS_SIGNAL_SYMBOL(name) ".globl " #name "\n.hidden " #name "\n.type " #name ", %function\n" #name ":\n"

#if defined(__x86_64__)
#define CWS_SIGNAL_SWITCHES 1
#define CWS_SIGNAL_ENTRY(entry, target)                                                                                \
    CWS_SIGNAL_DECLARE(entry, target);                                                                                 \
    __asm__(".pushsection .text\n.p2align 4\n" CWS_SIGNAL_SYMBOL(                                                      \
        entry) ".cfi_startproc\n"                                                                                      \
               "endbr64\n"                                                                                             \
               "movq %rsp, %rax\n"                                                                                     \
               "subq 16(%rdx), %rax\n" /* above the bottom of the alternate stack */                                   \
               "cmpq 32(%rdx), %rax\n" /* not below its top: this is another stack */                                  \
               "jae 1f\n"                                                                                              \
               "cmpq $" CWS_SIGNAL_TEXT(CWS_SIGNAL_ROOM) ", %rax\n"                                                    \
                                                         "jb cws_signal_leave\n"                                       \
                                                         "1: jmp " #target "\n"                                        \
                                                         ".cfi_endproc\n.size " #entry ", .-" #entry "\n.popsection")
#elif defined(__aarch64__)
#define CWS_SIGNAL_SWITCHES 1
#define CWS_SIGNAL_ENTRY(entry, target)                                                                                \
    CWS_SIGNAL_DECLARE(entry, target);                                                                                 \
    __asm__(".pushsection .text\n.p2align 4\n" CWS_SIGNAL_SYMBOL(                                                      \
        entry) ".cfi_startproc\n"                                                                                      \
               "hint #34\n" /* bti c */                                                                                \
               "ldr x9, [x2, #16]\n"                                                                                   \
               "ldr x10, [x2, #32]\n"                                                                                  \
               "mov x11, sp\n"                                                                                         \
               "sub x11, x11, x9\n" /* above the bottom of the alternate stack */                                      \
               "cmp x11, x10\n"     /* not below its top: this is another stack */                                     \
               "b.hs 1f\n"                                                                                             \
               "cmp x11, #" CWS_SIGNAL_TEXT(CWS_SIGNAL_ROOM) "\n"                                                      \
                                                             "b.hs 1f\n"                                               \
                                                             "b cws_signal_leave\n"                                    \
                                                             "1: b " #target "\n"                                      \
                                                             ".cfi_endproc\n.size " #entry ", .-" #entry               \
                                                             "\n.popsection")
#else
#define CWS_SIGNAL_SWITCHES 0
#define CWS_SIGNAL_ENTRY(entry, target)                                                                                \
    CWS_SIGNAL_DECLARE(entry, target);                                                                                 \
    void entry(int signo, siginfo_t *info, void *ucontext) { target(signo, info, ucontext); }                          \
    CWS_SIGNAL_DECLARE(entry, target)
#endif
#endif
