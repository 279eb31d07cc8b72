/* utf8.h - walking over UTF-8 text, which may be broken, as names in files may be.
 *
 * A character is well formed as Unicode (table 3-7) has it: the shortest form, no surrogates, at most U+10FFFF.
 * Text ends with a NUL, behind which nothing is read. No allocation, no errors. Threads: any; safe in a signal
 * handler. */
#ifndef CWS_UTF8_H
#define CWS_UTF8_H
#include <stddef.h>

/* Bytes of the character at s, 1 to 4, or 0: what is there is none. A NUL is a character of one byte. */
size_t cws_utf8_bytes(const char *s);

/* Characters of the text. Of broken text: the bytes that do not continue a character. */
size_t cws_utf8_count(const char *text);
#endif
