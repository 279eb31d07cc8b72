/* standin.h - a stand-in for the CUDA driver: what tests say to it. It is built twice from the same objects: as
 * libcuda.so.1 in <build>/standin/, for programs that load the driver by name, and as the static library cws_standin,
 * for tests that fill a table with cws_driver_fill(&driver, standin_resolve, NULL, &err). It proves logic, never speed.
 *
 * Device memory is pages of a memory file, mapped at the device's own addresses in a reservation of this process: a
 * kernel is a host function that loads from and stores to them, and an access to an address with nothing behind it ends
 * the context with CUDA_ERROR_ILLEGAL_ADDRESS, as on a GPU. Memory is never zero when handed out: each byte is
 * STANDIN_POISON. Streams are threads. Environment, read by cuInit: STANDIN_DEVICES, STANDIN_DEVICE_MB,
 * STANDIN_DELAY_US, STANDIN_SEED. At any time: STANDIN_CAPABILITY, the compute capability, 9.0 if it is not set.
 *
 * There is one device, or there are two, each with a memory and contexts of its own; streams, events, modules and
 * graphs belong to a context, as CUDA has it. What CUDA forbids between devices and this one permits: memory is there
 * for the kernels, copies and fills of every device as soon as cuMemSetAccess gave it to one of them, and that which
 * cuMemAlloc or a pool gave is so at once, because all devices use the page tables of this process. What is stricter:
 * an error of one context is every context's until a primary one is reset or released.
 * Threads: any function from any thread, except standin_reset. */
#ifndef STANDIN_H
#define STANDIN_H
#include "store/base/cuda_abi.h"

#include <stdbool.h>

#ifdef __cplusplus
#error "C only"
#endif
#define STANDIN_API __attribute__((visibility("default")))
#define STANDIN_POISON 0xA5
#define STANDIN_GRANULE ((size_t)2 << 20)

/* Address of the driver call with exactly this symbol, or NULL. Fits cws_driver_fill. */
STANDIN_API void *standin_resolve(void *arg, const char *symbol);

/* Waits for all streams (so none may be held by a lost event), then forgets everything: objects, memory, contexts,
 * armed failures, counters, log, delays. cuInit is needed again. `device_bytes`: the size of the device from then on,
 * rounded down to 2 MiB; 0: from the environment, or 256 MiB. No other thread may be in a call. */
STANDIN_API void standin_reset(size_t device_bytes);
/* Between standin_reset, which forgets it, and cuInit: how many devices there are, 1 or 2, each of the size given
 * there. 0: from the environment, or 1. */
STANDIN_API void standin_devices(unsigned count);

/* ---- Failures. */
/* The n-th call from now (1: the next) of `call` returns `error` and does nothing; once. n 0: every call from now on.
 * `call`: the symbol with or without _v2 or _ptsz; NULL: any call that can fail. */
STANDIN_API void standin_fail(const char *call, unsigned n, CUresult error);
STANDIN_API void standin_fail_none(void); /* disarms them all */
/* an armed failure with n > 0 has not happened yet */
STANDIN_API bool standin_fail_pending(void);
/* the context's error from now on, as if a kernel had failed so */
STANDIN_API void standin_break(CUresult error);
STANDIN_API unsigned long standin_calls(const char *call); /* calls made since the reset; NULL: all */

/* ---- The log: the last 16384 calls since the reset, oldest first. `a` and `b` are the call's first two arguments
 * worth telling: for most, an address or handle and a size. */
struct standin_entry {
    const char *call;
    unsigned long long a, b;
};
/* the last `room` of them; returns how many */
STANDIN_API size_t standin_log(struct standin_entry *out, size_t room);
STANDIN_API void standin_log_clear(void);

/* Bytes of each device that other programs have: they are in no account but cuMemGetInfo's. */
STANDIN_API void standin_others(size_t bytes);

/* ---- Time. */
/* Each operation of a stream waits a random time below max_us first. 0 0: none. */
STANDIN_API void standin_delay(unsigned seed, unsigned max_us);
/* The stream begins no further operation until it is let go. NULL: the legacy stream of the current context. */
STANDIN_API void standin_hold(CUstream stream);
STANDIN_API void standin_let_go(CUstream stream);
/* As standin_hold, but lets `operations` more run first: a stream stopped at any point of a sequence. */
STANDIN_API void standin_hold_after(CUstream stream, unsigned operations);

/* ---- What is left. */
struct standin_leaks {
    size_t handles, mappings, reservations; /* VMM: not released, not unmapped, not freed */
    size_t allocations, host_blocks;        /* cuMemAlloc*; host memory allocated or registered */
    size_t streams, events, modules, pools, graphs, contexts;
};
STANDIN_API struct standin_leaks standin_leaks(void);
STANDIN_API size_t standin_leak_count(void); /* their sum */
/* "handles 2, events 1"; empty if none. Returns the count */
STANDIN_API size_t standin_leak_text(char *text, size_t room);
STANDIN_API size_t standin_device_used(void);                  /* physical bytes in use, of all devices */
STANDIN_API unsigned standin_misuses(char *text, size_t room); /* what a driver permits and a program should not do, as
                                                                   * destroying a stream that has work; the last one's
                                                                   * text */

/* ---- Kernels. An image for cuModuleLoadData is a struct standin_image; it must outlive the module. A kernel runs once
 * per launch, on its stream's thread; params[i] points at its i-th argument, in a copy made at the launch. */
#define STANDIN_PARAMS_MAX 16
struct standin_kernel {
    const char *name;
    void (*run)(void **params, const unsigned grid[3], const unsigned block[3]);
    unsigned param_count;
    struct {
        unsigned offset, bytes;
    } params[STANDIN_PARAMS_MAX];
};
#define STANDIN_IMAGE_MAGIC "STANDIN\1"
struct standin_image {
    char magic[9]; /* STANDIN_IMAGE_MAGIC */
    size_t kernel_count;
    const struct standin_kernel *kernels;
};

/* Kernels for tests (test_kernels.c lists their parameters):
 *   fill(u8 *to, u64 bytes, u32 value)              copy(u8 *to, const u8 *from, u64 bytes)
 *   sum(u64 *out, const u8 *from, u64 bytes)        add(u32 *to, u64 words, u32 value)
 *   gather(u64 *out, u8 *const *from, u64 count, u64 bytes)   out[i]: the sum of the bytes at from[i], a table in
 *                                                             device memory
 *   scatter(u8 *const *to, u64 count, u64 bytes, u32 value)   the same, writing
 *   many(struct of 40 pointers by value, u64 bytes, u64 *out) as the list of a foreach kernel
 *   map_sum(u64 *out, tensor map by value, u64 bytes)         the sum of the bytes at its address
 *   nothing()
 * The image is also what cuModuleLoadData("standin:test") gives a program that cannot link it. */
STANDIN_API extern const struct standin_image standin_test_image;

/* Host versions of the kernels in store/cuda (gpu_kernels.c). Any image that begins as a fatbin does loads as this one,
 * if it has something for the device's capability, so what this project builds for GPUs runs here; a build without nvcc gives this address instead. */
STANDIN_API extern const struct standin_image standin_gpu_image;
#endif
