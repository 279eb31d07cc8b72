/* fatbin.h - what an image of nvcc holds, by the headers of its parts. They are not documented; these are the fields
 * that nvcc 13.0 writes. Inside: a header of 16 bytes and more, then the parts, each with a header of its own. */
#ifndef FATBIN_H
#define FATBIN_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define FATBIN_MAGIC 0xBA55ED50u
enum { FATBIN_PTX = 1, FATBIN_ELF = 2 };

struct fatbin_head {
    uint32_t magic;
    uint16_t version, head_bytes;
    uint64_t bytes; /* of all parts */
};
struct fatbin_part {
    uint16_t kind, version;
    uint32_t head_bytes;
    uint64_t bytes; /* behind its header */
    uint32_t packed_bytes, unknown[2];
    uint32_t arch; /* 90 for 9.0 */
};

/* The part at *at of the image, 0 for the first; moves *at behind it. False: no further one, or no fatbin. */
static inline bool fatbin_next(const void *image, uint64_t *at, struct fatbin_part *out)
{
    struct fatbin_head head;
    uint32_t magic;
    memcpy(&magic, image, sizeof magic); /* another image may be shorter than the header of a fatbin */
    if (magic != FATBIN_MAGIC)
        return false;
    memcpy(&head, image, sizeof head);
    if (head.head_bytes < sizeof head)
        return false;
    uint64_t end = head.head_bytes + head.bytes, begin = *at ? *at : head.head_bytes;
    if (begin > end || end - begin < sizeof *out)
        return false;
    memcpy(out, (const char *)image + begin, sizeof *out);
    if (out->head_bytes < sizeof *out || out->bytes > end - begin || out->head_bytes > end - begin - out->bytes)
        return false;
    *at = begin + out->head_bytes + out->bytes;
    return true;
}

/* Has the image something for a device of this capability: code for it, or for a lower minor of the same major, or PTX
 * that is not for a later one? */
static inline bool fatbin_is_for(const void *image, int major, int minor)
{
    struct fatbin_part part;
    for (uint64_t at = 0; fatbin_next(image, &at, &part);) {
        bool not_later = part.arch <= (unsigned)(10 * major + minor);
        if (not_later && (part.kind == FATBIN_PTX || (part.kind == FATBIN_ELF && part.arch / 10 == (unsigned)major)))
            return true;
    }
    return false;
}

#endif
