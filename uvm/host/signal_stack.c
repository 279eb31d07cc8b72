/* signal_stack.c - the pool of handler stacks, and the few instructions that change from one stack to another. */
#include "signal_stack.h"

#include "pager.h"

#include <linux/futex.h>
#include <string.h>

/* A decode takes about 11 KiB where it uses AVX-512, and sanitizers several times that. Pages that nobody touched cost
 * nothing. */
#define STACK_BYTES ((size_t)128 << 10)

static uint8_t *_Atomic pool;     /* guard, stack, guard, stack, ..., guard; NULL: none */
static size_t guard_bytes;        /* written before `pool` */
static _Atomic uint32_t unused;   /* a bit for each free stack */
static _Atomic uint32_t released; /* counts stacks given back, to wait for one */
static _Atomic uint32_t waiters;

int cws_signal_stacks_make(void)
{
    if (!CWS_SIGNAL_SWITCHES || atomic_load(&pool))
        return 0;
    size_t guard = CWS_PAGE_BYTES, step = guard + STACK_BYTES, bytes = CWS_SIGNAL_STACKS * step + guard;
    long at = cws_sys_mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (at < 0 && at > -4096)
        return (int)at;
    uint8_t *base = (uint8_t *)at;
    for (size_t i = 0; i < CWS_SIGNAL_STACKS; i++) {
        int code = cws_sys_mprotect(base + i * step + guard, STACK_BYTES, PROT_READ | PROT_WRITE);
        if (code) {
            cws_sys_munmap(base, bytes);
            return code;
        }
    }
    guard_bytes = guard;
    atomic_store(&unused, UINT32_MAX);
    atomic_store(&pool, base);
    return 0;
}

void cws_signal_stacks_reset(void)
{
    atomic_store(&waiters, 0);
    atomic_store(&unused, UINT32_MAX);
}

/* --- changing the stack --------------------------------------------------------------------------------- */

#if CWS_SIGNAL_SWITCHES
_Static_assert(CWS_SIGNAL_STACKS == 32, "a bit each");

/* Calls fn(arg) on the stack that ends at `top`, a multiple of 16. */
void cws_signal_switch(void (*fn)(void *), void *arg, void *top) __attribute__((visibility("hidden")));

/* Where cws_signal_no_room runs: the first thread that comes has it, and others wait for the end. */
uint8_t cws_signal_last_stack[16384] __attribute__((aligned(16), visibility("hidden"), used));
uint32_t cws_signal_last_taken __attribute__((visibility("hidden"), used));

#if defined(__x86_64__)
__asm__(".pushsection .text\n.p2align 4\n" CWS_SIGNAL_SYMBOL(
    cws_signal_switch) ".cfi_startproc\n"
                       "endbr64\n"
                       "pushq %rbp\n"
                       ".cfi_def_cfa_offset 16\n.cfi_offset %rbp, -16\n"
                       "movq %rsp, %rbp\n"
                       ".cfi_def_cfa_register %rbp\n"
                       "movq %rdx, %rsp\n"
                       "movq %rdi, %rax\n"
                       "movq %rsi, %rdi\n"
                       "call *%rax\n"
                       "movq %rbp, %rsp\n"
                       "popq %rbp\n"
                       ".cfi_def_cfa %rsp, 8\n"
                       "ret\n"
                       ".cfi_endproc\n.size cws_signal_switch, .-cws_signal_switch\n"
                       ".p2align 4\n" CWS_SIGNAL_SYMBOL(
                           cws_signal_leave) ".cfi_startproc\n.cfi_undefined %rip\n"
                                             "movl $1, %eax\n"
                                             "xchgl %eax, cws_signal_last_taken(%rip)\n"
                                             "testl %eax, %eax\n"
                                             "jnz 2f\n"
                                             "leaq cws_signal_last_stack+16384(%rip), %rsp\n"
                                             "call cws_signal_no_room\n"
                                             "2: pause\n"
                                             "jmp 2b\n"
                                             ".cfi_endproc\n.size cws_signal_leave, .-cws_signal_leave\n.popsection");
#else
__asm__(".pushsection .text\n.p2align 4\n" CWS_SIGNAL_SYMBOL(
    cws_signal_switch) ".cfi_startproc\n"
                       "hint #34\n" /* bti c */
                       "stp x29, x30, [sp, #-16]!\n"
                       ".cfi_def_cfa_offset 16\n.cfi_offset x29, -16\n.cfi_offset x30, -8\n"
                       "mov x29, sp\n"
                       ".cfi_def_cfa_register x29\n"
                       "mov x9, x0\n"
                       "mov x0, x1\n"
                       "mov sp, x2\n"
                       "blr x9\n"
                       "mov sp, x29\n"
                       ".cfi_def_cfa_register sp\n"
                       "ldp x29, x30, [sp], #16\n"
                       ".cfi_def_cfa_offset 0\n.cfi_restore x29\n.cfi_restore x30\n"
                       "ret\n"
                       ".cfi_endproc\n.size cws_signal_switch, .-cws_signal_switch\n"
                       ".p2align 4\n" CWS_SIGNAL_SYMBOL(
                           cws_signal_leave) ".cfi_startproc\n.cfi_undefined x30\n"
                                             "adrp x9, cws_signal_last_taken\n"
                                             "add x9, x9, :lo12:cws_signal_last_taken\n"
                                             "mov w10, #1\n"
                                             "1: ldaxr w11, [x9]\n"
                                             "stlxr w12, w10, [x9]\n"
                                             "cbnz w12, 1b\n"
                                             "cbnz w11, 2f\n"
                                             "adrp x9, cws_signal_last_stack+16384\n"
                                             "add x9, x9, :lo12:cws_signal_last_stack+16384\n"
                                             "mov sp, x9\n"
                                             "bl cws_signal_no_room\n"
                                             "2: yield\n"
                                             "b 2b\n"
                                             ".cfi_endproc\n.size cws_signal_leave, .-cws_signal_leave\n.popsection");
#endif

/* Seen by ThreadSanitizer, for which a stack that goes from one thread to another is memory that both write to. */
static __attribute__((noinline)) int try_take(void)
{
    uint32_t seen = atomic_load(&unused);
    while (seen) { /* the lowest: what few threads need stays warm, and the others' pages untouched */
        int i = __builtin_ctz(seen);
        if (atomic_compare_exchange_weak(&unused, &seen, seen & ~(UINT32_C(1) << i)))
            return i;
    }
    return -1;
}

static __attribute__((noinline)) int take(void)
{
    for (;;) {
        uint32_t seen = atomic_load(&released);
        int i = try_take();
        if (i >= 0)
            return i;
        atomic_fetch_add(&waiters, 1);
        i = try_take(); /* given back before we were counted */
        if (i < 0)
            cws_wait(&released, seen);
        atomic_fetch_sub(&waiters, 1);
        if (i >= 0)
            return i;
    }
}

static __attribute__((noinline)) void give(int i)
{
    atomic_fetch_or(&unused, UINT32_C(1) << i);
    atomic_fetch_add(&released, 1);
    if (atomic_load(&waiters))
        CWS_SYSCALL(SYS_futex, &released, FUTEX_WAKE_PRIVATE, 1, (void *)0, (void *)0, 0);
}

CWS_ON_PROGRAM_STACK void cws_signal_stack_call(void (*fn)(void *), void *arg)
{
    uint8_t *base = atomic_load(&pool);
    if (!base) {
        fn(arg);
        return;
    }
    int i = take();
    cws_signal_switch(fn, arg, base + ((size_t)i + 1) * (guard_bytes + STACK_BYTES));
    give(i);
}
#else
void cws_signal_stack_call(void (*fn)(void *), void *arg) { fn(arg); }
#endif

void cws_signal_no_room(int signo, const siginfo_t *info, const void *ucontext)
{
    const stack_t *stack = &((const ucontext_t *)ucontext)->uc_stack;
    (void)signo, (void)info;
    cws_die("a signal frame leaves less than %d of the %zu bytes of a thread's alternate signal stack: give "
            "sigaltstack() more, or set no alternate stack",
            CWS_SIGNAL_ROOM, stack->ss_size);
}

struct cws_signal_next cws_signal_next_of(const struct sigaction *action, int signo, const void *ucontext)
{
    /* in one union with sa_handler, which ignores what else it is given */
    struct cws_signal_next next = {.handler = action->sa_sigaction};
    uint64_t before;
    memcpy(&before, &((const ucontext_t *)ucontext)->uc_sigmask, sizeof before);
    memcpy(&next.mask, &action->sa_mask, sizeof next.mask);
    next.mask |= before;
    if (!(action->sa_flags & (int)SA_NODEFER))
        next.mask |= UINT64_C(1) << (signo - 1);
    return next;
}
