/* static_jansson.c - see CMakeLists.txt: `stdin` as the statically linked libjansson sees it. It compares a FILE that
 * it was given with it, to name it in messages, and is never given one here. */
#include <stdio.h>

extern FILE *__wrap_stdin;
FILE *__wrap_stdin;
