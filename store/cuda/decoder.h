/* decoder.h - chunks decoded by a GPU, through the driver table of driver.h. Host side only: no CUDA header is needed.
 *
 * A batch: for each chunk cws_gpu_job_init() from the chunk's bytes in host memory; cws_gpu_batch_plan(); the caller
 * copies the jobs, and the stored bytes, to the device on a stream; cws_gpu_decode() on the same stream; the caller
 * copies the results back. Chunks of many tensors, codecs and dtypes mix in one batch; neighbours with the same table
 * are cheaper.
 *
 * What is checked where: head, section sizes, padding between sections and behind the scales by cws_gpu_job_init(),
 * from the host's copy; directory, streams, scales and lane lengths by the kernel, from the device's. Together they
 * accept and refuse what cws_chunk_decode() does. The kernel stays inside [stored, stored + stored_bytes) and [dst, dst
 * + logical_bytes) whatever the device's copy holds, and ends after a bounded number of steps; a refused chunk's
 * destination is of no meaning. The XXH3 of stored bytes is the caller's to check.
 *
 * Threads: a decoder may be used by several threads at once (it does not change after create, but for
 * cws_gpu_decoder_tune). */
#ifndef CWS_GPU_DECODE_H
#define CWS_GPU_DECODE_H
#include "store/codec/codec.h"
#include "store/format/content_hash.h"
#include "store/base/driver.h"
#include "job.h"

struct cws_gpu_decoder;

/* The kernels, a fatbin; NULL where this build has none, because no nvcc was found: then they are compiled when they
 * are needed (compile.h). */
const void *cws_gpu_image(void);
/* The compute capabilities that it has code for, lowest first: "7.5 8.0"; and those of its PTX, which the driver
 * finishes for devices that it has no code for. Static text, "" without an image. */
const char *cws_gpu_image_arches(void);
const char *cws_gpu_image_ptx(void);

/* Loads the kernels into the current context: those of this build, those that were compiled and kept, or new ones (a
 * few seconds). `driver` must outlive it; say (may be NULL) hears one line before a compilation. 0; CWS_E_UNSUPPORTED:
 * a device below compute capability 7.5, or no kernels for it and nothing to compile them with; -ENOMEM; driver
 * errors. */
CWS_MUST_CHECK int cws_gpu_decoder_create(const struct cws_driver *driver, void (*say)(const char *line),
                                          struct cws_gpu_decoder **out, struct cws_error *err);
/* The same with other kernels than the built-in ones, built for blocks of so many warps (benchmark). */
CWS_MUST_CHECK int cws_gpu_decoder_create_from(const struct cws_driver *driver, const void *image, unsigned block_warps,
                                               struct cws_gpu_decoder **out, struct cws_error *err);
/* In the same context, when nothing that it launched is running. NULL is fine. */
void cws_gpu_decoder_destroy(struct cws_gpu_decoder *dec);

/* Benchmark: blocks of a launch per block that fits the device at a time; 0: the default. */
void cws_gpu_decoder_tune(struct cws_gpu_decoder *dec, unsigned waves);

/* Device form of a tensor's code table. 0, or CWS_E_CORRUPT for a code that cws_decode_table_init() refuses too. */
CWS_MUST_CHECK int cws_gpu_table_build(const uint8_t packed[128], struct cws_gpu_table *out, struct cws_error *err);

struct cws_gpu_chunk {
    enum cws_dtype dtype;
    enum cws_codec_id codec; /* RAW, SPLIT, QUANT. ZSTD: decode it on the host and give the bytes as RAW */
    uint64_t row_elems;      /* QUANT */
    uint64_t first_byte;     /* place of the decoded bytes in the tensor, a multiple of 16 */
    uint32_t stored_bytes;
    uint32_t logical_bytes;
    CUdeviceptr stored; /* multiple of 16; need not be filled yet */
    CUdeviceptr dst;    /* multiple of 16 */
    CUdeviceptr table;  /* SPLIT and QUANT: a struct cws_gpu_table, multiple of 16 */
};

/* *job for the chunk whose bytes are at stored_host (any alignment; read now, not kept). No driver call, no allocation.
 * 0; CWS_E_CORRUPT; CWS_E_UNSUPPORTED: zstd; CWS_E_BUG: an address or place that is not aligned, no table. */
CWS_MUST_CHECK int cws_gpu_job_init(struct cws_gpu_job *job, const struct cws_gpu_chunk *chunk, const void *stored_host,
                                    struct cws_error *err);

struct cws_gpu_batch {
    uint32_t count; /* of jobs */
    uint32_t units; /* of work in all of them */
    uint32_t tiles;
    enum cws_gpu_kind kind; /* which kernel decodes it */
};

/* Numbers the jobs of a batch and chooses its kernel; call it after the last change to them. CWS_E_RANGE: more than
 * 2^31 units (8 TB of bf16). */
CWS_MUST_CHECK int cws_gpu_batch_plan(struct cws_gpu_job *jobs, uint32_t count, struct cws_gpu_batch *out,
                                      struct cws_error *err);

/* Puts the decoding of a batch on `stream`. Asynchronous; no allocation, no synchronisation.
 *   jobs     device address of batch->count jobs, 16-byte aligned
 *   results  device address of as many results, 8-byte aligned, all zero: sums are added to them. (Uploaded behind the
 *            jobs they cost nothing; clearing them on the stream would cost a small batch 2 us.)
 *   key      of the content hash
 * The batch's jobs, tables and stored bytes must stay as they are until it ran. Driver errors; a batch of 0 jobs is
 * fine. */
CWS_MUST_CHECK int cws_gpu_decode(const struct cws_gpu_decoder *dec, CUstream stream, CUdeviceptr jobs,
                                  const struct cws_gpu_batch *batch, CUdeviceptr results, const uint64_t key[2],
                                  struct cws_error *err);

/* The content hash of plain device memory, in the same three steps, results zero before; the status of its results
 * stays 0. Fills first_unit.
 * CWS_E_BUG: an address that is no multiple of 16. */
CWS_MUST_CHECK int cws_gpu_hash_plan(struct cws_gpu_hash_job *jobs, uint32_t count, struct cws_gpu_batch *out,
                                     struct cws_error *err);
CWS_MUST_CHECK int cws_gpu_hash(const struct cws_gpu_decoder *dec, CUstream stream, CUdeviceptr jobs,
                                const struct cws_gpu_batch *batch, CUdeviceptr results, const uint64_t key[2],
                                struct cws_error *err);

/* The content hash in a result, as a store's chunk record has it. */
struct cws_hash128 cws_gpu_result_hash(const struct cws_gpu_result *r);

/* Static text of a result's status. */
const char *cws_gpu_status_text(uint32_t status);

#endif
