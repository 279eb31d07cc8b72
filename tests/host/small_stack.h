/* small_stack.h - stacks that tell how much of them was used, and whether something was written beside them. */
#ifndef SMALL_STACK_H
#define SMALL_STACK_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

/* Of the program's stack, nothing of ours lies there but the kernel's frame and this much. A sanitizer puts functions
 * of its own between kernel and handler, and calls into its runtime where memory is looked at. */
#if defined(__SANITIZE_THREAD__)
enum { OURS_AT_MOST = 1024 + 3072 };
#elif defined(__SANITIZE_ADDRESS__)
enum { OURS_AT_MOST = 1024 + 1024 };
#else
enum { OURS_AT_MOST = 1024 };
#endif

enum { PAINT = 0xC5, BELOW_BYTES = 1 << 16, GUARD_BYTES = 1 << 16 };

struct small_stack {
    /* the stack is [low, top); below it BELOW_BYTES that nobody may write to, and guards around it all */
    uint8_t *map, *low, *top;
    size_t map_bytes;
};

static inline struct small_stack small_stack_new(size_t bytes)
{
    struct small_stack s;
    size_t whole = (bytes + BELOW_BYTES + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
    s.map_bytes = whole + 2 * GUARD_BYTES;
    s.map = mmap(NULL, s.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(s.map, MAP_FAILED);
    assert_int_equal(mprotect(s.map + GUARD_BYTES, whole, PROT_READ | PROT_WRITE), 0);
    s.top = s.map + GUARD_BYTES + whole;
    s.low = s.top - bytes;
    memset(s.map + GUARD_BYTES, PAINT, whole);
    return s;
}

static inline void small_stack_free(const struct small_stack *s) { munmap(s->map, s->map_bytes); }

/* Bytes between its top and the lowest one that was written; more than its size when something beside it was. */
static inline size_t small_stack_used(const struct small_stack *s)
{
    const uint8_t *at = s->map + GUARD_BYTES;
    while (at < s->top && *at == PAINT)
        at++;
    return (size_t)(s->top - at);
}

static inline bool small_stack_holds(const struct small_stack *s, const void *address)
{
    return (const uint8_t *)address >= s->low && (const uint8_t *)address < s->top;
}

/* Makes it the alternate stack of this thread, or with NULL none. */
static inline void use_as_alternate(const struct small_stack *s)
{
    stack_t stack = {.ss_flags = SS_DISABLE};
    if (s)
        stack = (stack_t){.ss_sp = s->low, .ss_size = (size_t)(s->top - s->low)};
    assert_int_equal(sigaltstack(&stack, NULL), 0);
}

static inline void small_stack_on_signal(int signo) { (void)signo; }

/* What the kernel puts on the stack for a signal, measured; a little more than that. */
static inline size_t kernel_frame_bytes(void)
{
    static size_t bytes;
    if (bytes)
        return bytes;
    struct small_stack s = small_stack_new(1 << 16);
    struct sigaction action = {.sa_handler = small_stack_on_signal, .sa_flags = SA_ONSTACK}, before;
    stack_t other;
    assert_int_equal(sigaltstack(NULL, &other), 0);
    use_as_alternate(&s);
    assert_int_equal(sigaction(SIGUSR2, &action, &before), 0);
    raise(SIGUSR2);
    assert_int_equal(sigaction(SIGUSR2, &before, NULL), 0);
    assert_int_equal(sigaltstack(&other, NULL), 0);
    bytes = small_stack_used(&s);
    small_stack_free(&s);
    return bytes;
}

/* What a program that goes by the kernel's word would give, and 2 KiB. */
static inline size_t least_stack_bytes(void)
{
    size_t least = getauxval(AT_MINSIGSTKSZ);
    if (least < kernel_frame_bytes())
        least = kernel_frame_bytes();
    return least + 2048 + (OURS_AT_MOST - 1024);
}

static inline void assert_only_the_frame_was_put_on(const struct small_stack *s, size_t frames)
{
    size_t used = small_stack_used(s), most = frames * (kernel_frame_bytes() + OURS_AT_MOST);
    if (used > most || used > (size_t)(s->top - s->low))
        fail_msg("%zu bytes of a stack of %zu were used; %zu frames of the kernel are %zu", used,
                 (size_t)(s->top - s->low), frames, frames * kernel_frame_bytes());
}
#endif
