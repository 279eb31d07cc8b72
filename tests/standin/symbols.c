/* symbols.c - calls by name, and the per-thread variants, which here are the calls themselves: their default stream is
 * the legacy stream, which orders more than a program that asks for the variant may count on. */
#include "symbols.h"

#include "state.h"

#include <stdio.h>
#include <string.h>

/* Only the addresses matter here; the definitions are elsewhere, each with its own parameters. */
#if defined(__x86_64__)
#define JUMP "jmp "
#define JUMP_END "@PLT"
#else
#define JUMP "b "
#define JUMP_END ""
#endif
#define DECLARE(name) extern char entry_##name[] __asm__(#name);
#define VARIANT(name, suffix)                                                                                          \
    extern char entry_##name##suffix[] __asm__(#name #suffix);                                                         \
    __asm__(".text\n.globl " #name #suffix "\n.type " #name #suffix ", %function\n" #name #suffix                      \
            ": " JUMP #name JUMP_END "\n"                                                                              \
            ".size " #name #suffix ", .-" #name #suffix "\n");
#define VARIANT_PTSZ(name) DECLARE(name) VARIANT(name, _ptsz)
#define VARIANT_PTDS(name) DECLARE(name) VARIANT(name, _ptds)
STANDIN_PLAIN(DECLARE)
STANDIN_STREAM(VARIANT_PTSZ)
STANDIN_LEGACY(VARIANT_PTDS)

#define ROW(name) {#name, entry_##name},
#define ROW_PTSZ(name) ROW(name){#name "_ptsz", entry_##name##_ptsz},
#define ROW_PTDS(name) ROW(name){#name "_ptds", entry_##name##_ptds},
static const struct {
    const char *name;
    void *address;
} SYMBOLS[] = {STANDIN_PLAIN(ROW) STANDIN_STREAM(ROW_PTSZ) STANDIN_LEGACY(ROW_PTDS)};

void *standin_resolve(void *arg, const char *symbol)
{
    (void)arg;
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof *SYMBOLS; i++)
        if (strcmp(SYMBOLS[i].name, symbol) == 0)
            return SYMBOLS[i].address;
    return NULL;
}

void *proc_address(const char *symbol, int version, uint64_t flags)
{
    static const char *const SUFFIXES[] = {"_v2_ptsz", "_ptsz", "_v2_ptds", "_ptds", "_v2", ""};
    char name[96];
    /* the one of 4 parameters */
    bool old_query = strcmp(symbol, "cuGetProcAddress") == 0 && version < 12000;
    for (size_t i = old_query ? 5 : flags & 2 ? 0 : 4; i < 6; i++) {
        snprintf(name, sizeof name, "%s%s", symbol, SUFFIXES[i]);
        void *address = standin_resolve(NULL, name);
        if (address)
            return address;
    }
    return NULL;
}
