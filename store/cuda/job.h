/* job.h - what the host and the kernels exchange: fixed layouts, little-endian, read by C and by CUDA C++. The host
 * fills jobs with cws_gpu_job_init() and cws_gpu_batch_plan() (decoder.h); nothing else makes a valid one. */
#ifndef CWS_GPU_JOB_H
#define CWS_GPU_JOB_H
#include "store/format/format.h"

#define CWS_GPU_BLOCK_WARPS 16u      /* of a block of the built-in kernels: a launch of any other size is wrong */
#define CWS_GPU_WINDOW 12u           /* bits of one lookup; holds every codeword */
#define CWS_GPU_RAW_TILE (16u << 10) /* bytes of a raw chunk or of plain memory that a warp takes at a time */

/* Entry w says what the low CWS_GPU_WINDOW bits w of a stream start with.
 * Pairs: two symbols where both fit. Otherwise, and in a table of singles, one. */
#define CWS_GPU_ENTRY_SECOND 8 /* symbol, then second symbol (0 if there is none) */
#define CWS_GPU_ENTRY_ALONE 16 /* 1 bit: a table of pairs, but only one symbol fits */
#define CWS_GPU_ENTRY_FIRST 20 /* 4 bits: length of the first codeword; the bit above is zero */
#define CWS_GPU_ENTRY_BITS 28  /* 4 bits: length of all that the entry decodes to */
struct cws_gpu_table {         /* device form of a code table; 16-byte aligned in device memory */
    uint32_t entry[1u << CWS_GPU_WINDOW];
    uint32_t pairs; /* 1: a table of pairs; 0: of singles, for codes whose pairs seldom fit */
    uint32_t reserved[3];
};

struct cws_gpu_job {     /* one chunk */
    uint64_t stored;     /* device address of the stored bytes */
    uint64_t dst;        /* device address of the chunk's decoded bytes */
    uint64_t table;      /* device address of a struct cws_gpu_table; 0 for raw */
    uint64_t first_word; /* index in the tensor of the chunk's first 16-byte word */
    uint32_t stored_bytes;
    uint32_t logical_bytes;
    uint32_t first_unit; /* of the batch: the units of all jobs before this one */
    uint32_t tiles;
    uint32_t directory_at; /* offsets of sections in the stored bytes */
    uint32_t streams_at;
    uint32_t scales_at; /* QUANT */
    uint32_t scale_bytes;
    /* QUANT; longer rows than a chunk are shortened, with the same boundaries in the chunk */
    uint32_t row_elems;
    uint32_t row_offset; /* QUANT: place in its row of the chunk's first element */
    uint8_t codec;       /* RAW, SPLIT, QUANT */
    uint8_t dtype;
    uint8_t tile_shift; /* a tile is 1 << tile_shift units */
    uint8_t reserved[21];
    struct cws_coded_head head; /* as the host read and checked it; the kernel compares it with the one in device
                                 * memory */
};

enum cws_gpu_status { /* pinned; of the failures of a chunk the highest value is told */
                      CWS_GPU_OK = 0,
                      CWS_GPU_BAD_LANE = 1,      /* a lane does not hold exactly its symbols */
                      CWS_GPU_BAD_SCALE = 2,     /* a scale code is not that of a normal number */
                      CWS_GPU_BAD_PADDING = 3,   /* bits behind a tile, the streams or the scales are not zero */
                      CWS_GPU_BAD_DIRECTORY = 4, /* the tiles do not follow each other */
                      CWS_GPU_BAD_HEAD = 5,      /* the head in device memory is not the one that the host read */
};

struct cws_gpu_result { /* one per job */
    uint64_t digit[4];  /* content hash of the decoded bytes at their place in the tensor, in base 2^32, lowest first,
                        * carries not yet taken (cws_gpu_result_hash): warps add to the digits without waiting for each
                        * other; only where status is 0 */
    uint32_t status;    /* enum cws_gpu_status */
    uint32_t reserved;
};

/* What a batch holds. A kernel that can do less needs fewer registers, and what it can do is faster. */
enum cws_gpu_kind {
    CWS_GPU_ANY,
    CWS_GPU_SPLIT2, /* SPLIT, elements of 2 bytes */
    CWS_GPU_QUANT2, /* QUANT, the same */
    CWS_GPU_KINDS
};

struct cws_gpu_hash_job { /* plain memory */
    uint64_t address;     /* multiple of 16 */
    uint64_t bytes;
    uint64_t first_word; /* index in the tensor of its first 16-byte word */
    uint32_t first_unit; /* set by cws_gpu_hash_plan */
    uint32_t reserved;
};

#ifndef __cplusplus
_Static_assert(sizeof(struct cws_gpu_table) == 16400, "table layout");
_Static_assert(sizeof(struct cws_gpu_job) == 128, "job layout");
_Static_assert(sizeof(struct cws_gpu_result) == 40, "result layout");
_Static_assert(sizeof(struct cws_gpu_hash_job) == 32, "hash job layout");
#endif
#endif
