/* abi.h - what libcws.so exports: stores in files and in memory, for programs that load a library (Python's ctypes).
 * Thin: each function checks its arguments and calls the one behind it (store.h, writer.h, symbols.h), whose contract
 * holds. codecllm_open() reads the CODEC_* variables (options.h); a value that is not understood is CWS_E_USAGE.
 *
 * Functions return 0 or a code of error.h and then fill *err with the line for a person. Structs are read and filled by
 * both sides: fields are only ever appended, and CODECLLM_ABI counts the changes. Sizes are bytes. Strings are UTF-8
 * with a NUL.
 * Threads: an open store may be used by any number of threads. Nothing here prints, exits, or keeps state but the
 * decoders of GPUs. */
#ifndef CWS_ABI_H
#define CWS_ABI_H
#include "store/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define CODECLLM_ABI 1
#define CODECLLM_API __attribute__((visibility("default")))

struct cws_store;

CODECLLM_API int codecllm_abi(void);

/* Is this text a value of CODEC_VRAM_BUDGET (2G, 512M, 50%, 0:2G,1:50%)? 0, or CWS_E_USAGE with the line that the
 * command says. Reads no environment. */
CODECLLM_API int codecllm_budget_check(const char *text, struct cws_error *err);

/* path: a packed file. memory: a whole packed file in memory, which stays the caller's and as it is until close; `name`
 * is for messages. */
CODECLLM_API int codecllm_open(const char *path, struct cws_store **out, struct cws_error *err);
CODECLLM_API int codecllm_open_memory(const void *data, uint64_t bytes, const char *name, struct cws_store **out,
                                      struct cws_error *err);
CODECLLM_API void codecllm_close(struct cws_store *s); /* NULL is fine */

/* Is this file a packed one? 1 yes, 0 no (also when it cannot be read). Only its end is looked at. */
CODECLLM_API int codecllm_is_store(const char *path);

/* The logical file's header, its 8 bytes of length included; valid until close. */
CODECLLM_API const uint8_t *codecllm_header(const struct cws_store *s, uint64_t *out_bytes);

struct codecllm_tensor {
    const char *name;  /* valid until close, as are the others */
    const char *dtype; /* "BF16" */
    const char *codec; /* "raw", "zstd", "split", "quant" */
    const uint64_t *shape;
    uint64_t ndim;
    uint64_t elems;
    uint64_t begin, end;   /* of the logical file: what codecllm_read takes */
    uint64_t stored_bytes; /* chunks and code table */
    uint32_t quant_bits;   /* 8 or 6; 0: lossless */
    uint32_t reserved;
};
CODECLLM_API uint64_t codecllm_tensor_count(const struct cws_store *s);
/* Tensor i in the order of the file. CWS_E_RANGE: there is none. */
CODECLLM_API int codecllm_tensor(const struct cws_store *s, uint64_t i, struct codecllm_tensor *out,
                                 struct cws_error *err);

/* Logical bytes [begin, end) to dst; jobs 0: all cores. On an error dst is undefined. */
CODECLLM_API int codecllm_read(const struct cws_store *s, unsigned jobs, uint64_t begin, uint64_t end, void *dst,
                               struct cws_error *err);
/* The whole tensor of a store in memory that holds one, into dst_bytes bytes, which must be its size. */
CODECLLM_API int codecllm_unpack(const void *data, uint64_t bytes, unsigned jobs, void *dst, uint64_t dst_bytes,
                                 struct cws_error *err);
/* Every chunk decoded and compared with its content hash. CWS_E_CORRUPT with the first fault. */
CODECLLM_API int codecllm_verify(const struct cws_store *s, unsigned jobs, struct cws_error *err);

/* Entropy, bits per element (order 0), of the symbols that tensor i is coded with, and how many bits of each element
 * are stored beside them uncoded. CWS_E_UNSUPPORTED: the tensor is not coded so. */
CODECLLM_API int codecllm_entropy(const struct cws_store *s, uint64_t i, double *out_entropy_bits,
                                  double *out_plain_bits, struct cws_error *err);

struct codecllm_input { /* a tensor to pack */
    const char *name;
    const char *dtype; /* "BF16" */
    const uint64_t *shape;
    uint64_t ndim;
    const void *data;   /* row-major, or NULL */
    uint64_t bytes;     /* of data; must be what dtype and shape say */
    const void *packed; /* instead: the bytes of a packed file of this one tensor, taken as they are */
    uint64_t packed_bytes;
};
struct codecllm_job {
    const struct codecllm_input *tensors;
    uint64_t tensor_count;
    const char *const *metadata; /* key, value, key, value, ... */
    uint64_t metadata_count;     /* pairs */
    const char *mode;            /* "lossless", "q8", "q6" */
    uint32_t jobs;               /* threads; 0: all cores */
    uint32_t reserved;
};
/* To a file, which appears whole or not at all; or to memory: *out is freed with codecllm_free(). */
CODECLLM_API int codecllm_pack_file(const struct codecllm_job *job, const char *path, struct cws_error *err);
CODECLLM_API int codecllm_pack_memory(const struct codecllm_job *job, uint8_t **out, uint64_t *out_bytes,
                                      struct cws_error *err);
/* Tensor i alone, as it is packed, as a store in memory whose tensor is called "tensor". */
CODECLLM_API int codecllm_extract(const struct cws_store *s, uint64_t i, uint8_t **out, uint64_t *out_bytes,
                                  struct cws_error *err);
CODECLLM_API void codecllm_free(void *data);

/* --- a compressed tensor on a GPU: gpu/gpu_tensor.h ----------------------------------------------------- */

struct cws_gpu_tensor;
/* From the bytes in host memory, which are not kept. CWS_E_UNSUPPORTED: some of it only the host can decode. No GPU is
 * needed. */
CODECLLM_API int codecllm_gpu_create(const void *data, uint64_t bytes, struct cws_gpu_tensor **out,
                                     struct cws_error *err);
CODECLLM_API void codecllm_gpu_destroy(struct cws_gpu_tensor *t); /* NULL is fine */
/* Bytes of device memory that a decode needs while it runs. */
CODECLLM_API uint64_t codecllm_gpu_scratch(const struct cws_gpu_tensor *t);
/* In the current context, on a stream of it (NULL: the default one), and waits for it. Device addresses, multiples of
 * 16. The first decode in a context loads the kernels. CWS_E_UNSUPPORTED: no driver, no kernels for the device;
 * CWS_E_CORRUPT; driver errors. */
CODECLLM_API int codecllm_gpu_decode(const struct cws_gpu_tensor *t, uint64_t packed, uint64_t scratch, uint64_t dst,
                                     void *stream, struct cws_error *err);

#endif
