/* huffman.h - the prefix code shared by SPLIT and QUANT: lengths, their packed form and canonical codes. Pure
 * functions, no allocation. cws_huffman_lengths() is declared in codec.h; the decoding tables are in decode_table.h.
 *
 * Canonical code: symbols sorted by (length, symbol) get rising codes, as in RFC 1951; a code is written
 * from its most significant bit on into a stream that is filled from the least significant bit on, so codes
 * are kept bit-reversed. Codes are complete: every bit string decodes. */
#ifndef CWS_HUFFMAN_H
#define CWS_HUFFMAN_H
#include "codec.h"

/* Two four-bit lengths per byte, low nibble first. */
void cws_huffman_pack(const uint8_t lengths[256], uint8_t packed[128]);

/* 0, or CWS_E_CORRUPT when a length is over CWS_CODE_BITS_MAX or the code is not complete. */
CWS_MUST_CHECK int cws_huffman_unpack(const uint8_t packed[128], uint8_t lengths[256], struct cws_error *err);

/* Bit-reversed canonical codes; 0 for absent symbols. */
void cws_huffman_codes(const uint8_t lengths[256], uint16_t codes[256]);

#endif
