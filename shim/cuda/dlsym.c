/* dlsym.c - replaces dlsym, so that a look-up of a function of the CUDA driver finds our hook. The export carries no
 * version, so it answers for every one that the C libraries gave dlsym.
 *
 * Names that are not cu[A-Z]... go on by a jump, not a call: RTLD_NEXT and RTLD_DEFAULT mean "as seen from the return
 * address", so the real dlsym has to find the caller's there. */
#include "hooks.h"

#include <dlfcn.h>
#include <stddef.h>

cws_dlsym_function cws_real_dlsym;

/* Not instrumented: a sanitizer's runtime looks up names before it has set up the memory that the checks read. */
__attribute__((used, no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined"))) cws_dlsym_function
cws_find_dlsym(void)
{
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"};
    cws_dlsym_function found = NULL;
    for (size_t i = 0; i < sizeof versions / sizeof *versions && !found; i++)
        found = (cws_dlsym_function)dlvsym(RTLD_NEXT, "dlsym", versions[i]);
    if (!found)
        /* no C library of this kind exists; a NULL result would look like a missing symbol */
        __builtin_trap();
    __atomic_store_n(&cws_real_dlsym, found, __ATOMIC_RELAXED);
    return found;
}

#if defined __x86_64__
__asm__(".pushsection .text\n"
        ".p2align 4\n"
        ".globl dlsym\n"
        ".type dlsym, @function\n"
        "dlsym:\n"
        ".cfi_startproc\n"
        "  endbr64\n"
        "  testq %rsi, %rsi\n"
        "  je 1f\n"
        "  cmpb $'c', (%rsi)\n"
        "  jne 1f\n"
        "  cmpb $'u', 1(%rsi)\n"
        "  jne 1f\n"
        "  movzbl 2(%rsi), %eax\n"
        "  subl $'A', %eax\n"
        "  cmpl $25, %eax\n"
        "  ja 1f\n"
        "  pushq %rdi\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  pushq %rsi\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  subq $8, %rsp\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  call cws_cuda_dlsym\n"
        "  addq $8, %rsp\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  popq %rsi\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  popq %rdi\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  testq %rax, %rax\n"
        "  je 1f\n"
        "  ret\n"
        "1: movq cws_real_dlsym(%rip), %rax\n"
        "  testq %rax, %rax\n"
        "  je 2f\n"
        "  jmp *%rax\n"
        "2: pushq %rdi\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  pushq %rsi\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  subq $8, %rsp\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  call cws_find_dlsym\n"
        "  addq $8, %rsp\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  popq %rsi\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  popq %rdi\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  jmp *%rax\n"
        ".cfi_endproc\n"
        ".size dlsym, . - dlsym\n"
        ".popsection\n");
#elif defined __aarch64__
__asm__(".pushsection .text\n"
        ".p2align 4\n"
        ".globl dlsym\n"
        ".type dlsym, %function\n"
        "dlsym:\n"
        ".cfi_startproc\n"
        "  hint #34\n" /* bti c */
        "  cbz x1, 1f\n"
        "  ldrb w2, [x1]\n"
        "  cmp w2, #'c'\n"
        "  b.ne 1f\n"
        "  ldrb w2, [x1, #1]\n"
        "  cmp w2, #'u'\n"
        "  b.ne 1f\n"
        "  ldrb w2, [x1, #2]\n"
        "  sub w2, w2, #'A'\n"
        "  cmp w2, #25\n"
        "  b.hi 1f\n"
        "  stp x29, x30, [sp, #-32]!\n"
        "  .cfi_adjust_cfa_offset 32\n"
        "  .cfi_rel_offset x29, 0\n"
        "  .cfi_rel_offset x30, 8\n"
        "  stp x0, x1, [sp, #16]\n"
        "  bl cws_cuda_dlsym\n"
        "  mov x2, x0\n"
        "  ldp x0, x1, [sp, #16]\n"
        "  ldp x29, x30, [sp], #32\n"
        "  .cfi_restore x29\n"
        "  .cfi_restore x30\n"
        "  .cfi_adjust_cfa_offset -32\n"
        "  cbz x2, 1f\n"
        "  mov x0, x2\n"
        "  ret\n"
        "1: adrp x16, cws_real_dlsym\n"
        "  ldr x16, [x16, #:lo12:cws_real_dlsym]\n"
        "  cbz x16, 2f\n"
        "  br x16\n"
        "2: stp x29, x30, [sp, #-32]!\n"
        "  .cfi_adjust_cfa_offset 32\n"
        "  stp x0, x1, [sp, #16]\n"
        "  bl cws_find_dlsym\n"
        "  mov x16, x0\n"
        "  ldp x0, x1, [sp, #16]\n"
        "  ldp x29, x30, [sp], #32\n"
        "  .cfi_adjust_cfa_offset -32\n"
        "  br x16\n"
        ".cfi_endproc\n"
        ".size dlsym, . - dlsym\n"
        ".popsection\n");
#else
#error "dlsym has to be replaced by a jump that keeps the return address: write it for this processor"
#endif
