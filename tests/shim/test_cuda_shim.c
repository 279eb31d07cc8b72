/* Description: a program that uses the driver (a stand-in) under the preloaded library sees the driver's functions
 * through hooks however it looks them up, and gets right bytes from weights that do not fit the budget, by every kind
 * of launch, copy and graph. */
#include "cuda_shim_fixture.h"
#include "tests/support/hang.h"

#include <pthread.h>
#include <sys/syscall.h>

static CUstream stream;
static CUdeviceptr at[TENSORS], scratch;

static const char *library_of(const void *address)
{
    Dl_info info;
    return dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}
static const char *name_of(const void *address)
{
    Dl_info info;
    return dladdr(address, &info) && info.dli_sname ? info.dli_sname : "";
}
static bool is_hook(const void *address) { return strstr(library_of(address), "codecshim") != NULL; }

/* --- how functions are found ----------------------------------------------------------------------------- */

static void dlsym_finds_hooks_of_the_driver_only(void **state)
{
    (void)state;
    static const char *const hooked[] = {"cuLaunchKernel",      "cuLaunchKernel_ptsz",  "cuMemAllocAsync",
                                         "cuMemcpyHtoD_v2",     "cuMemcpyHtoD_v2_ptds", "cuGetProcAddress",
                                         "cuGetProcAddress_v2", "cuGraphLaunch",        "cuMemGetInfo_v2"};
    for (size_t i = 0; i < sizeof hooked / sizeof *hooked; i++) {
        void *found = dlsym(driver_handle, hooked[i]);
        if (!is_hook(found) || strcmp(name_of(found), hooked[i]) != 0)
            fail_msg("%s is %s of %s", hooked[i], name_of(found), library_of(found));
    }
    assert_false(is_hook(dlsym(driver_handle, "cuInit")));
    assert_non_null(dlsym(driver_handle, "cuInit"));
    assert_null(dlsym(driver_handle, "cuNoSuchFunction"));
    assert_non_null(dlerror());
    assert_ptr_equal(dlsym(RTLD_DEFAULT, "cuLaunchKernel"), dlsym(driver_handle, "cuLaunchKernel"));
}

#ifdef __x86_64__
void *old_dlsym(void *handle, const char *name);
void *new_dlsym(void *handle, const char *name);
__asm__(".symver old_dlsym, dlsym@GLIBC_2.2.5");
__asm__(".symver new_dlsym, dlsym@GLIBC_2.34");

static void every_version_of_dlsym_is_replaced(void **state)
{
    (void)state;
    assert_true(is_hook(old_dlsym(driver_handle, "cuLaunchKernel")));
    assert_true(is_hook(new_dlsym(driver_handle, "cuLaunchKernel")));
    assert_ptr_equal(old_dlsym(RTLD_DEFAULT, "strlen"), new_dlsym(RTLD_DEFAULT, "strlen"));
}
#endif

/* Two libraries define the same name; the first one asks for the next. */
static void rtld_next_means_next_after_the_caller(void **state)
{
    (void)state;
    int (*ask)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "dlsym_first_asks_next");
    assert_non_null(ask);
    assert_int_equal(ask(), 2);
}

static CUresult real_of(const char *name, void **out, int version, unsigned long long flags, int *status)
{
    void *(*resolve)(void *, const char *) = (void *(*)(void *, const char *))dlsym(driver_handle, "standin_resolve");
    CUresult (*real)(const char *, void **, int, unsigned long long, int *) = (CUresult(*)(
        const char *, void **, int, unsigned long long, int *))resolve(NULL, "cuGetProcAddress_v2");
    return real(name, out, version, flags, status);
}

static void proc_addresses_are_replaced_in_every_version(void **state)
{
    (void)state;
    static const struct {
        const char *name, *symbol;
        int version;
        unsigned flags;
    } rows[] = {
        {"cuLaunchKernel", "cuLaunchKernel", 7000, 0},         {"cuLaunchKernel", "cuLaunchKernel", 12000, 1},
        {"cuLaunchKernel", "cuLaunchKernel_ptsz", 12000, 2},   {"cuMemcpyHtoD", "cuMemcpyHtoD_v2", 12000, 0},
        {"cuMemcpyHtoD", "cuMemcpyHtoD_v2_ptds", 12000, 2},    {"cuMemAlloc", "cuMemAlloc_v2", 12000, 2},
        {"cuMemAllocAsync", "cuMemAllocAsync_ptsz", 12000, 2}, {"cuGetProcAddress", "cuGetProcAddress", 11030, 0},
        {"cuGetProcAddress", "cuGetProcAddress_v2", 12000, 0}, {"cuMemsetD8Async", "cuMemsetD8Async_ptsz", 12000, 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        void *first = NULL, *second = NULL;
        int status = -1;
        OK(cu.cuGetProcAddress(rows[i].name, &first, rows[i].version, rows[i].flags));
        OK(cu.cuGetProcAddress_v2(rows[i].name, &second, rows[i].version, rows[i].flags, &status));
        assert_int_equal(status, 0);
        if (first != second || !is_hook(first) || strcmp(name_of(first), rows[i].symbol) != 0)
            fail_msg("%s, version %d, flags %u: %s of %s", rows[i].name, rows[i].version, rows[i].flags, name_of(first),
                     library_of(first));
    }
}

static void answers_without_a_hook_are_the_drivers(void **state)
{
    (void)state;
    static const char *const names[] = {"", "cuInit", "cuDeviceGetCount", "cuEventCreate", "cuNoSuchFunction"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *ours = &cu, *theirs = &cu;
        int our_status = -7, their_status = -7, version = *names[i] ? 12000 : 0;
        CUresult want = real_of(names[i], &theirs, version, 0, &their_status);
        assert_int_equal(cu.cuGetProcAddress_v2(names[i], &ours, version, 0, &our_status), want);
        assert_ptr_equal(ours, theirs);
        assert_int_equal(our_status, their_status);
    }
}

/* --- weights ------------------------------------------------------------------------------------------- */

static void load_all(void)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        OK(cu.cuMemAllocAsync(&at[i], tensor_bytes(i), stream));
        OK(cu.cuMemcpyHtoDAsync_v2(at[i], view + tensor_begin[i], tensor_bytes(i), stream));
    }
}

static void free_all(void)
{
    for (unsigned i = 0; i < TENSORS; i++)
        OK(cu.cuMemFreeAsync(at[i], stream));
    OK(cu.cuStreamSynchronize(stream));
}

enum how { PLAIN, EX, COOPERATIVE, BLOCK, THREAD_STREAM, WAYS };

static CUresult launch(enum how how, CUfunction f, CUstream on, void **params, void *block, size_t block_bytes)
{
    CUlaunchConfig config = {1, 1, 1, 1, 1, 1, 0, on, NULL, 0};
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, block, CU_LAUNCH_PARAM_BUFFER_SIZE, &block_bytes,
                     CU_LAUNCH_PARAM_END};
    switch (how) {
    case EX: return cu.cuLaunchKernelEx(&config, f, params, NULL);
    case COOPERATIVE: return cu.cuLaunchCooperativeKernel(f, 1, 1, 1, 1, 1, 1, 0, on, params);
    case BLOCK: return cu.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, on, NULL, extra);
    case THREAD_STREAM: return cu.cuLaunchKernel_ptsz(f, 1, 1, 1, 1, 1, 1, 0, on, params, NULL);
    default: return cu.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, on, params, NULL);
    }
}

static uint64_t device_sum(enum how how, CUfunction f, CUdeviceptr from, size_t bytes)
{
    struct {
        CUdeviceptr out, from;
        uint64_t bytes;
    } p = {scratch, from, bytes};
    void *params[] = {&p.out, &p.from, &p.bytes};
    uint64_t sum = 0;
    OK(launch(how, f, stream, params, &p, sizeof p));
    OK(cu.cuMemcpyDtoHAsync_v2(&sum, scratch, 8, stream));
    OK(cu.cuStreamSynchronize(stream));
    return sum;
}

static void copies_from_a_store_bind_and_kernels_read_them_right(void **state)
{
    (void)state;
    load_all();
    assert_true(stat_of("bound") >= logical_bytes - 65536);
    assert_int_equal(stat_of("loads"), stat_of("prefetched")); /* nothing was needed yet */
    CUfunction sum = kernel("sum");
    for (unsigned how = 0; how < WAYS; how++)
        for (unsigned i = 0; i < TENSORS; i++)
            assert_int_equal(device_sum((enum how)how, sum, at[i], tensor_bytes(i)),
                             sum_of(content(i), tensor_bytes(i)));
    assert_true(stat_of("drops") > 0);
    assert_true(stat_of("peak") <= stat_of("budget"));
    assert_true(stat_of("budget") < logical_bytes);
    free_all();
}

/* Frees are in stream order, and the manager hears of them later. */
static void wait_for_frees(void)
{
    OK(cu.cuCtxSynchronize());
    for (unsigned i = 0; i < HANG_SECONDS * 1000 && stat_of("bound") + stat_of("adopted") != 0; i++)
        usleep(1000);
    assert_int_equal(stat_of("bound"), 0);
    assert_int_equal(stat_of("adopted"), 0);
}

/* An unpacked file, mapped and closed as a loader does it: its tensors bind where nobody wrote to the mapping, and
 * outlive it. */
static void copies_from_an_ordinary_file_bind_too(void **state)
{
    (void)state;
    enum { WRITTEN = 4 };
    char path[512];
    const char *dir = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/cuda_shim.%d.unpacked.safetensors", dir ? dir : "/tmp", (int)getpid());
    FILE *file = fopen(path, "wb");
    assert_true(file && fwrite(logical, 1, logical_bytes, file) == logical_bytes && fclose(file) == 0);
    int fd = open(path, O_RDONLY);
    uint8_t *mapped = mmap(NULL, logical_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(fd >= 0 && mapped != MAP_FAILED);
    close(fd);
    wait_for_frees();
    mapped[tensor_begin[WRITTEN] + 100] ^= 1;
    for (unsigned i = 0; i < TENSORS; i++) {
        OK(cu.cuMemAllocAsync(&at[i], tensor_bytes(i), stream));
        OK(cu.cuMemcpyHtoDAsync_v2(at[i], mapped + tensor_begin[i], tensor_bytes(i), stream));
    }
    OK(cu.cuStreamSynchronize(stream));
    size_t all = 0;
    for (unsigned i = 0; i < TENSORS; i++)
        all += i == WRITTEN ? 0 : tensor_bytes(i);
    /* neighbours of the written page may share it */
    assert_true(stat_of("bound") <= all && stat_of("bound") >= all - 4 * MIB);
    munmap(mapped, logical_bytes);
    unlink(path);
    CUfunction sum = kernel("sum");
    uint64_t changed = sum_of(content(WRITTEN), tensor_bytes(WRITTEN)) - content(WRITTEN)[100] +
                       (content(WRITTEN)[100] ^ 1);
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            assert_int_equal(device_sum(PLAIN, sum, at[i], tensor_bytes(i)),
                             i == WRITTEN ? changed : sum_of(content(i), tensor_bytes(i)));
    assert_true(stat_of("peak") <= stat_of("budget"));
    free_all();
}

/* A model that was read into memory, or that comes back from the host: its bytes are known again, and only exactly its
 * bytes. */
static void a_tensors_bytes_bind_from_anywhere(void **state)
{
    (void)state;
    enum { CHANGED = 3, SWAPPED = 5 };
    CUfunction sum = kernel("sum");
    uint8_t *copy = malloc(logical_bytes);
    size_t all = 0;
    assert_non_null(copy);
    memcpy(copy, logical, logical_bytes);
    copy[tensor_begin[CHANGED] + tensor_bytes(CHANGED) - 1] ^= 0x80;
    for (unsigned i = 0; i < 16; i++) { /* two words of 16 bytes change places */
        uint8_t *a = copy + tensor_begin[SWAPPED] + i, byte = *a;
        *a = a[512];
        a[512] = byte;
    }
    wait_for_frees();
    for (unsigned i = 0; i < TENSORS; i++) {
        OK(cu.cuMemAllocAsync(&at[i], tensor_bytes(i), stream));
        OK(cu.cuMemcpyHtoDAsync_v2(at[i], copy + tensor_begin[i], tensor_bytes(i), stream));
        all += i == CHANGED || i == SWAPPED ? 0 : tensor_bytes(i);
    }
    OK(cu.cuStreamSynchronize(stream));
    assert_int_equal(stat_of("bound"), all);
    uint64_t sums[2] = {sum_of(copy + tensor_begin[CHANGED], tensor_bytes(CHANGED)),
                        sum_of(copy + tensor_begin[SWAPPED], tensor_bytes(SWAPPED))};
    memset(copy, 0, logical_bytes); /* what was bound does not come from here */
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            assert_int_equal(device_sum(PLAIN, sum, at[i], tensor_bytes(i)), i == CHANGED ? sums[0]
                                                                             : i == SWAPPED
                                                                                 ? sums[1]
                                                                                 : sum_of(content(i), tensor_bytes(i)));
    assert_true(stat_of("peak") <= stat_of("budget"));
    free_all();
    free(copy);
}

/* Three tensors in one allocation each, as engines fuse projections: from the view, or from a copy of it. */
static void tensors_that_are_put_together_bind(void **state)
{
    (void)state;
    CUfunction sum = kernel("sum");
    uint8_t *copy = malloc(logical_bytes);
    assert_non_null(copy);
    memcpy(copy, logical, logical_bytes);
    wait_for_frees();
    for (unsigned i = 0; i < TENSORS; i += 3) {
        size_t bytes = 0;
        OK(cu.cuMemAllocAsync(&at[i], tensor_bytes(i) + tensor_bytes(i + 1) + tensor_bytes(i + 2), stream));
        for (unsigned k = i; k < i + 3; bytes += tensor_bytes(k++)) {
            const uint8_t *from = (i % 2 ? copy : view) + tensor_begin[k];
            OK(cu.cuMemcpyHtoDAsync_v2(at[i] + bytes, from, tensor_bytes(k), stream));
        }
    }
    OK(cu.cuStreamSynchronize(stream));
    for (unsigned pass = 0; pass < 3; pass++) {
        for (unsigned i = 0; i < TENSORS; i += 3) {
            size_t bytes = tensor_bytes(i) + tensor_bytes(i + 1) + tensor_bytes(i + 2);
            assert_int_equal(device_sum(PLAIN, sum, at[i], bytes), sum_of(content(i), bytes));
        }
    }
    size_t all = 0;
    for (unsigned i = 0; i < TENSORS; i++)
        all += tensor_bytes(i);
    assert_int_equal(stat_of("bound"), all);
    assert_true(stat_of("peak") <= stat_of("budget"));
    for (unsigned i = 0; i < TENSORS; i += 3)
        OK(cu.cuMemFreeAsync(at[i], stream));
    OK(cu.cuStreamSynchronize(stream));
    free(copy);
}

static void *let_go_soon(void *arg)
{
    void (*let_go)(CUstream) = (void (*)(CUstream))dlsym(driver_handle, "standin_let_go");
    (void)arg;
    usleep(200000);
    let_go(stream);
    return NULL;
}

/* Bytes of no store come from ordinary memory: they are those of the time of the call, whatever becomes of the buffer.
 * From pinned memory they are adopted only if nothing is to come before. */
static void copies_of_other_bytes_are_adopted(void **state)
{
    (void)state;
    enum { ROOM = 6 << 20 }; /* of a size that nothing here has */
    const bool strict = getenv("CODEC_STRICT") != NULL;
    CUdeviceptr late[2];
    void (*hold)(CUstream) = (void (*)(CUstream))dlsym(driver_handle, "standin_hold");
    CUfunction sum = kernel("sum");
    uint64_t sums[TENSORS];
    uint8_t *buffer = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(buffer != MAP_FAILED);
    wait_for_frees();
    CUmemoryPool pool;
    OK(cu.cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cu.cuMemPoolTrimTo(pool, 0)); /* no memory of what other tests freed */
    for (unsigned i = 0; i < TENSORS; i++) {
        memcpy(buffer, content(i), tensor_bytes(i));
        for (size_t k = 0; k < tensor_bytes(i); k += 3)
            buffer[k] ^= (uint8_t)(i + 1);
        sums[i] = sum_of(buffer, tensor_bytes(i));
        OK(cu.cuMemAllocAsync(&at[i], tensor_bytes(i), stream));
        if (i % 2)
            OK(cu.cuMemcpyHtoDAsync_v2(at[i], buffer, tensor_bytes(i), stream));
        else
            OK(cu.cuMemcpyHtoD_v2(at[i], buffer, tensor_bytes(i)));
        memset(buffer, 0x55, ROOM);
    }
    assert_true(stat_of("adopted") >= 20 * MIB);
    assert_true(stat_of("compressed") >= stat_of("adopted"));
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned i = 0; i < TENSORS; i++)
            assert_int_equal(device_sum(PLAIN, sum, at[i], tensor_bytes(i)), sums[i]);
    assert_true(stat_of("peak") <= stat_of("budget"));

    CUresult (*unregister)(void *memory) = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemHostUnregister");
    OK(cu.cuMemHostRegister_v2(buffer, ROOM, 0));
    for (unsigned idle = 0; idle < 2; idle++) {
        unsigned long long before = stat_of("adopted");
        OK(cu.cuMemAllocAsync(&late[idle], ROOM, stream));
        memset(buffer, 0x11, ROOM);
        OK(cu.cuStreamSynchronize(stream));
        bool held = !idle && !strict; /* in strict mode each call waits for the stream */
        pthread_t soon;
        if (held) { /* for a while: memory for the copy may have to wait for what ran on it before */
            hold(stream);
            OK(pthread_create(&soon, NULL, let_go_soon, NULL));
        }
        OK(cu.cuMemsetD8Async(scratch, 0, 8, stream));
        if (idle)
            OK(cu.cuStreamSynchronize(stream));
        OK(cu.cuMemcpyHtoDAsync_v2(late[idle], buffer, ROOM, stream));
        assert_true(stat_of("adopted") - before >= (idle ? ROOM : 0) || strict); /* what came before is, too */
        if (held)
            pthread_join(soon, NULL);
        OK(cu.cuStreamSynchronize(stream));
        memset(buffer, 0x22, ROOM);
        assert_int_equal(device_sum(PLAIN, sum, late[idle], ROOM), 0x11 * (uint64_t)ROOM);
    }
    OK(cu.cuMemFreeAsync(late[0], stream));
    OK(cu.cuMemFreeAsync(late[1], stream));
    free_all();
    wait_for_frees();
    OK(unregister(buffer)); /* or memory that is pinned later at its place is refused */
    munmap(buffer, ROOM);
}

/* A program that keeps its weights in pinned memory and copies them into a buffer on the device again and again: once
 * the buffer is bound, a copy is queued at once, as without a pager. */
static void a_buffer_is_filled_again(void **state)
{
    (void)state;
    void (*hold)(CUstream) = (void (*)(CUstream))dlsym(driver_handle, "standin_hold");
    CUresult (*unregister)(void *memory) = dlsym(driver_handle, "cuMemHostUnregister");
    CUdeviceptr buffer;
    CUresult (*query)(CUstream) = dlsym(driver_handle, "cuStreamQuery");
    const size_t bytes = tensor_bytes(0);
    pthread_t soon;
    uint8_t *keep = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(keep != MAP_FAILED && tensor_bytes(3) == bytes);
    if (getenv("CODEC_STRICT")) /* each call waits for the stream */
        return;
    memcpy(keep, content(0), bytes);
    memcpy(keep + bytes, content(3), bytes);
    OK(cu.cuMemHostRegister_v2(keep, 2 * bytes, 0));
    OK(cu.cuMemAllocAsync(&buffer, bytes, stream));
    for (unsigned i = 0; i < 6; i++) {
        uint64_t told;
        if (i > 1) {
            hold(stream);
            OK(pthread_create(&soon, NULL, let_go_soon, NULL));
            OK(cu.cuMemsetD8Async(scratch, 0, 8, stream));
        }
        OK(cu.cuMemcpyHtoDAsync_v2(buffer, keep + i % 2 * bytes, bytes, stream));
        told = stat_of("loads");
        if (i > 1) {
            assert_int_equal(query(stream), CUDA_ERROR_NOT_READY);
            pthread_join(soon, NULL);
        }
        assert_int_equal(device_sum(PLAIN, kernel("sum"), buffer, bytes), sum_of(content(i % 2 ? 3 : 0), bytes));
        assert_true(i < 2 || stat_of("loads") == told);
    }
    OK(cu.cuMemFreeAsync(buffer, stream));
    OK(cu.cuStreamSynchronize(stream));
    OK(unregister(keep));
    munmap(keep, 2 * bytes);
}

static void a_kernel_handle_in_the_functions_place_is_understood(void **state)
{
    (void)state;
    CUlibrary library;
    CUkernel k;
    load_all();
    OK(cu.cuLibraryLoadData(&library, "standin:test", NULL, NULL, 0, NULL, NULL, 0));
    OK(cu.cuLibraryGetKernel(&k, library, "sum"));
    for (unsigned i = 0; i < TENSORS; i++)
        assert_int_equal(device_sum(PLAIN, (CUfunction)k, at[i], tensor_bytes(i)), sum_of(content(i), tensor_bytes(i)));
    OK(cu.cuLibraryUnload(library));
    for (unsigned i = 0; i < TENSORS; i++) /* the cache was dropped; the function is asked about again */
        assert_int_equal(device_sum(PLAIN, kernel("sum"), at[i], tensor_bytes(i)), sum_of(content(i), tensor_bytes(i)));
    free_all();
}

/* A kernel of NCCL reads its pointers from memory that the host writes: what was named just now, and what is new, is
 * there, and stays until it is done. Its arguments come as a block, or, in old versions, one by one. */
static void queued_kernel_finds_its_memory(enum how how)
{
    void (*hold)(CUstream) = (void (*)(CUstream))dlsym(driver_handle, "standin_hold");
    CUdeviceptr from, to, more;
    CUresult result;
    pthread_t soon;
    static uint64_t queue[3];
    uint64_t address = (uint64_t)(uintptr_t)queue;
    void *params[] = {&address};
    load_all();
    OK(cu.cuMemAllocAsync(&from, 8 * MIB, stream));
    OK(cu.cuMemsetD8Async(from, 0x21, 8 * MIB, stream));
    OK(cu.cuMemAllocAsync(&to, 8 * MIB, stream)); /* nothing has named it */
    queue[0] = to;
    queue[1] = from;
    queue[2] = 8 * MIB;
    OK(cu.cuStreamSynchronize(stream));
    if (!getenv("CODEC_STRICT")) { /* in which each call waits for the stream */
        hold(stream);
        OK(pthread_create(&soon, NULL, let_go_soon, NULL));
    }
    CUfunction queued = kernel("_Z18ncclDevKernel_Test24ncclDevKernelArgsStorageILm4096EE");
    OK(launch(how, queued, stream, params, &address, sizeof address));
    result = cu.cuMemAllocAsync(&more, 20 * MIB, stream); /* memory is short while it waits for its turn */
    for (unsigned i = 0; i < TENSORS && result == CUDA_SUCCESS; i += 3)
        assert_int_equal(device_sum(PLAIN, kernel("sum"), at[i], tensor_bytes(i)), sum_of(content(i), tensor_bytes(i)));
    if (!getenv("CODEC_STRICT"))
        pthread_join(soon, NULL);
    OK(cu.cuStreamSynchronize(stream));
    assert_int_equal(device_sum(PLAIN, kernel("sum"), to, 8 * MIB), 0x21 * 8 * (uint64_t)MIB);
    if (result == CUDA_SUCCESS)
        OK(cu.cuMemFreeAsync(more, stream));
    OK(cu.cuMemFreeAsync(from, stream));
    OK(cu.cuMemFreeAsync(to, stream));
    free_all();
}

static void a_kernel_with_a_queue_finds_its_memory(void **state)
{
    (void)state;
    queued_kernel_finds_its_memory(PLAIN);
    queued_kernel_finds_its_memory(BLOCK);
}

/* The list of a foreach kernel: pointers inside one parameter. */
static void pointers_inside_a_struct_are_found(void **state)
{
    (void)state;
    CUdeviceptr list[40] = {0};
    uint64_t bytes = 4096, want = 0, got = 0;
    load_all();
    for (unsigned i = 0; i < 4; i++) {
        list[7 * i] = at[i] + 1000 * i;
        want += sum_of(content(i) + 1000 * i, bytes);
    }
    void *params[] = {list, &bytes, &scratch};
    OK(launch(PLAIN, kernel("many"), stream, params, NULL, 0));
    OK(cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream));
    OK(cu.cuStreamSynchronize(stream));
    assert_int_equal(got, want);
    free_all();
}

/* A table of pointers in device memory, brought there by a small copy. */
static void pointers_in_a_small_copy_are_kept(void **state)
{
    (void)state;
    CUdeviceptr table, sums;
    uint64_t count = 2, bytes = 4096, got[2];
    load_all();
    CUdeviceptr pointers[2] = {at[1], at[4] + 64};
    OK(cu.cuMemAlloc_v2(&table, sizeof pointers));
    OK(cu.cuMemAlloc_v2(&sums, sizeof got));
    OK(cu.cuMemcpyHtoD_v2(table, pointers, sizeof pointers));
    CUfunction sum = kernel("sum");
    for (unsigned round = 0; round < 2;
         round++) { /* the first use makes them resident, the others do not push them out */
        device_sum(PLAIN, sum, at[1], 16);
        device_sum(PLAIN, sum, at[4], 16);
        for (unsigned i = 6; i < TENSORS; i++)
            device_sum(PLAIN, sum, at[i], 16);
        void *params[] = {&sums, &table, &count, &bytes};
        OK(launch(PLAIN, kernel("gather"), stream, params, NULL, 0));
        OK(cu.cuStreamSynchronize(stream));
        OK(cu.cuMemcpyDtoH_v2(got, sums, sizeof got));
        assert_int_equal(got[0], sum_of(content(1), bytes));
        assert_int_equal(got[1], sum_of(content(4) + 64, bytes));
    }
    OK(cu.cuMemFree_v2(table));
    OK(cu.cuMemFree_v2(sums));
    free_all();
}

static void a_kernel_of_unknown_parameters_needs_everything(void **state)
{
    (void)state;
    void (*fail_call)(const char *, unsigned,
                      CUresult) = (void (*)(const char *, unsigned, CUresult))dlsym(driver_handle, "standin_fail");
    void (*fail_none)(void) = (void (*)(void))dlsym(driver_handle, "standin_fail_none");
    CUmodule other;
    CUfunction sum;
    load_all();
    OK(cu.cuModuleLoadData(&other, "standin:test"));
    OK(cu.cuModuleGetFunction(&sum, other, "sum"));
    uint64_t bytes = 64;
    void *params[] = {&scratch, &at[0], &bytes};
    fail_call("cuFuncGetParamInfo", 0, CUDA_ERROR_INVALID_HANDLE);
    fail_call("cuKernelGetParamInfo", 0, CUDA_ERROR_INVALID_HANDLE);
    assert_int_equal(launch(PLAIN, sum, stream, params, NULL, 0), CUDA_ERROR_OUT_OF_MEMORY);
    fail_none();
    /* the driver fails, as all its calls do once a kernel has failed: that is said, and not remembered */
    CUfunction gather;
    OK(cu.cuModuleGetFunction(&gather, other, "gather"));
    fail_call("cuFuncGetParamInfo", 0, CUDA_ERROR_LAUNCH_FAILED);
    fail_call("cuKernelGetParamInfo", 0, CUDA_ERROR_LAUNCH_FAILED);
    assert_int_equal(launch(PLAIN, gather, stream, params, NULL, 0), CUDA_ERROR_LAUNCH_FAILED);
    fail_none();
    fail_call("cuFuncGetParamInfo", 0, CUDA_ERROR_LAUNCH_FAILED); /* the other query still refuses the handle */
    assert_int_equal(launch(PLAIN, gather, stream, params, NULL, 0), CUDA_ERROR_LAUNCH_FAILED);
    fail_none();
    OK(launch(PLAIN, gather, stream, (void *[]){&scratch, &scratch, &(uint64_t){0}, &bytes}, NULL, 0));
    fail_call("cuFuncGetParamInfo", 0, CUDA_ERROR_INVALID_HANDLE);
    fail_call("cuKernelGetParamInfo", 0, CUDA_ERROR_INVALID_HANDLE);
    for (unsigned i = 3; i < TENSORS; i++)
        OK(cu.cuMemFreeAsync(at[i], stream));
    OK(launch(PLAIN, sum, stream, params, NULL, 0)); /* now everything fits */
    fail_none();
    OK(cu.cuStreamSynchronize(stream));
    for (unsigned i = 0; i < 3; i++)
        OK(cu.cuMemFreeAsync(at[i], stream));
    OK(cu.cuStreamSynchronize(stream));
    OK(cu.cuModuleUnload(other));
}

/* --- copies --------------------------------------------------------------------------------------------- */

static void expect(CUdeviceptr from, const uint8_t *want, size_t bytes)
{
    uint8_t *got = malloc(bytes);
    assert_non_null(got);
    OK(cu.cuCtxSynchronize()); /* what the legacy stream did is not ordered before ours */
    OK(cu.cuMemcpyDtoHAsync_v2(got, from, bytes, stream));
    OK(cu.cuStreamSynchronize(stream));
    assert_memory_equal(got, want, bytes);
    free(got);
}

static void every_copy_brings_paged_bytes(void **state)
{
    (void)state;
    const size_t n = MIB + 512; /* of tensor 2, 5, 8, 11 */
    uint8_t *host = malloc(3 * MIB);
    CUdeviceptr to;
    load_all();
    OK(cu.cuMemAllocAsync(&to, n, stream));
    for (unsigned way = 0; way < 7; way++) {
        unsigned i = 2 + 3 * (way % 4);
        OK(cu.cuMemsetD8Async(to, 0xee, n, stream));
        for (unsigned k = 0; k < TENSORS; k += 3) /* push it out */
            device_sum(PLAIN, kernel("sum"), at[k], 16);
        CUresult result = (way == 0   ? cu.cuMemcpyDtoDAsync_v2(to, at[i], n, stream)
                           : way == 1 ? cu.cuMemcpyDtoD_v2(to, at[i], n)
                           : way == 2 ? cu.cuMemcpy(to, at[i], n)
                           : way == 3 ? cu.cuMemcpyAsync(to, at[i], n, stream)
                           : way == 4 ? cu.cuMemcpyPeer(to, context, at[i], context, n)
                           : way == 5 ? cu.cuMemcpyPeerAsync(to, context, at[i], context, n, stream)
                                      : cu.cuMemcpyBatchAsync(&to, &at[i], (size_t[]){n}, 1,
                                                              &(CUmemcpyAttributes){.srcAccessOrder = 1}, &(size_t){0},
                                                              1, &(size_t){0}, stream));
        if (result != CUDA_SUCCESS)
            fail_msg("way %u: %d", way, result);
        expect(to, content(i), n);
    }
    OK(cu.cuMemcpyDtoH_v2(host, at[1], tensor_bytes(1)));
    assert_memory_equal(host, content(1), tensor_bytes(1));
    OK(cu.cuMemFreeAsync(to, stream));
    free_all();
    free(host);
}

static void boxes_are_copied(void **state)
{
    (void)state;
    uint8_t got[64 * 100];
    load_all();
    CUDA_MEMCPY2D flat = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = at[0],
                          .srcPitch = 1024,
                          .srcXInBytes = 16,
                          .srcY = 3,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = got,
                          .dstPitch = 64,
                          .WidthInBytes = 64,
                          .Height = 100};
    OK(cu.cuMemcpy2D_v2(&flat));
    for (unsigned y = 0; y < 100; y++)
        assert_memory_equal(got + 64 * y, content(0) + (y + 3) * 1024 + 16, 64);
    flat.srcDevice = at[1];
    OK(cu.cuMemcpy2DUnaligned_v2(&flat));
    assert_memory_equal(got, content(1) + 3 * 1024 + 16, 64);
    flat.srcDevice = at[3];
    OK(cu.cuMemcpy2DAsync_v2(&flat, stream));
    OK(cu.cuStreamSynchronize(stream));
    assert_memory_equal(got, content(3) + 3 * 1024 + 16, 64);
    CUDA_MEMCPY3D deep = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = at[4],
                          .srcPitch = 256,
                          .srcHeight = 16,
                          .srcZ = 2,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = got,
                          .dstPitch = 64,
                          .dstHeight = 10,
                          .WidthInBytes = 64,
                          .Height = 10,
                          .Depth = 10};
    OK(cu.cuMemcpy3D_v2(&deep));
    for (unsigned z = 0; z < 10; z++)
        for (unsigned y = 0; y < 10; y++)
            assert_memory_equal(got + (z * 10 + y) * 64, content(4) + ((z + 2) * 16 + y) * 256, 64);
    free_all();
}

/* Host memory of views that the driver reads or writes, in pieces where it is more than may be held. */
static void views_are_read_and_written(void **state)
{
    (void)state;
    CUdeviceptr to;
    const size_t n = 3 * MIB;
    OK(cu.cuMemAllocAsync(&to, 4 * MIB, stream)); /* larger than the tensor: nothing binds */
    OK(cu.cuMemcpyHtoDAsync_v2(to, view + tensor_begin[0], n, stream));
    expect(to, content(0), n);
    OK(cu.cuMemcpyAsync(to, (uintptr_t)(view + tensor_begin[3]), n, stream));
    expect(to, content(3), n);
    CUDA_MEMCPY2D flat = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = view + tensor_begin[6],
                          .srcPitch = 1024,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = to,
                          .dstPitch = 1024,
                          .WidthInBytes = 1024,
                          .Height = 3072};
    OK(cu.cuMemcpy2D_v2(&flat));
    expect(to, content(6), n);
    uint8_t *written = (uint8_t *)(uintptr_t)view + tensor_begin[9];
    OK(cu.cuMemcpyDtoH_v2(written, to, n));
    assert_memory_equal(written, content(6), n);
    assert_int_equal(cu.cuMemHostRegister_v2(written, 4096, 0), CUDA_ERROR_NOT_SUPPORTED);
    /* What was written to does not bind. */
    CUdeviceptr changed;
    OK(cu.cuMemAllocAsync(&changed, n, stream));
    unsigned long long bound = stat_of("bound");
    OK(cu.cuMemcpyHtoDAsync_v2(changed, written, n, stream));
    assert_int_equal(stat_of("bound"), bound);
    expect(changed, content(6), n);
    OK(cu.cuMemFreeAsync(changed, stream));
    OK(cu.cuMemFreeAsync(to, stream));
    OK(cu.cuStreamSynchronize(stream));
}

static void sets_write_where_they_should(void **state)
{
    (void)state;
    const size_t n = 2 * MIB;
    uint8_t *want = malloc(n);
    CUdeviceptr to;
    load_all();
    OK(cu.cuMemAllocAsync(&to, n, stream));
    memset(want, 0x11, n);
    OK(cu.cuMemsetD8_v2(to, 0x11, n));
    expect(to, want, n);
    OK(cu.cuMemsetD16_v2(to, 0x2222, 1000));
    memset(want, 0x22, 2000);
    OK(cu.cuMemsetD32_v2(to + 4096, 0x33333333, 1000));
    memset(want + 4096, 0x33, 4000);
    OK(cu.cuMemsetD2D8_v2(to + MIB, 1024, 0x44, 10, 20));
    for (unsigned y = 0; y < 20; y++)
        memset(want + MIB + 1024 * y, 0x44, 10);
    OK(cu.cuCtxSynchronize());
    OK(cu.cuMemsetD16Async(to + 16384, 0x5555, 100, stream));
    memset(want + 16384, 0x55, 200);
    OK(cu.cuMemsetD32Async(to + 32768, 0x66666666, 100, stream));
    memset(want + 32768, 0x66, 400);
    OK(cu.cuMemsetD2D32Async(to + 65536, 512, 0x77777777, 4, 8, stream));
    for (unsigned y = 0; y < 8; y++)
        memset(want + 65536 + 512 * y, 0x77, 16);
    expect(to, want, n);
    /* A weight that is written to keeps what was written. */
    OK(cu.cuMemsetD8Async(at[1] + 512, 0x99, 4096, stream));
    memcpy(want, content(1), n);
    memset(want + 512, 0x99, 4096);
    for (unsigned k = 0; k < TENSORS; k += 3)
        device_sum(PLAIN, kernel("sum"), at[k], 16);
    expect(at[1], want, n);
    OK(cu.cuMemFreeAsync(to, stream));
    free_all();
    free(want);
}

/* --- memory ----------------------------------------------------------------------------------------------- */

static bool is_paged(CUdeviceptr address)
{
    CUipcMemHandle handle;
    return cu.cuIpcGetMemHandle(&handle, address) == CUDA_ERROR_NOT_SUPPORTED;
}

static void small_and_plain_memory_is_the_drivers_and_counted(void **state)
{
    (void)state;
    CUdeviceptr small, plain, base;
    size_t bytes;
    unsigned long long before = stat_of("driver");
    OK(cu.cuMemAllocAsync(&small, 4096, stream));
    OK(cu.cuMemAlloc_v2(&plain, 5 * MIB));
    assert_false(is_paged(small) || is_paged(plain));
    assert_true(stat_of("driver") >= before + 5 * MIB);
    OK(cu.cuMemGetAddressRange_v2(&base, &bytes, plain + 4096));
    assert_true(base == plain && bytes >= 5 * MIB);
    OK(cu.cuMemFree_v2(plain));
    OK(cu.cuMemFreeAsync(small, stream));
    OK(cu.cuStreamSynchronize(stream));
    assert_true(stat_of("driver") < before + 5 * MIB);
    for (unsigned i = 0; i < 2000; i++) { /* the table of sizes is not left full */
        OK(cu.cuMemAlloc_v2(&plain, 4096));
        OK(cu.cuMemFree_v2(plain));
    }
    assert_true(stat_of("driver") < before + 5 * MIB);
}

static void pools_of_the_program_are_paged_unless_shared(void **state)
{
    (void)state;
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemoryPool pool, usual;
    CUdeviceptr a, b;
    OK(cu.cuMemPoolCreate(&pool, &props));
    OK(cu.cuDeviceGetDefaultMemPool(&usual, 0));
    OK(cu.cuMemAllocFromPoolAsync(&a, 2 * MIB, pool, stream));
    OK(cu.cuMemAllocFromPoolAsync(&b, 2 * MIB, usual, stream));
    assert_true(is_paged(a) && is_paged(b));
    OK(cu.cuMemFreeAsync(a, stream));
    OK(cu.cuMemFreeAsync(b, stream));
    OK(cu.cuStreamSynchronize(stream));
    OK(cu.cuMemPoolDestroy(pool));
}

/* As torch.cuda.empty_cache() does. */
static void a_trimmed_pool_keeps_no_freed_memory(void **state)
{
    (void)state;
    CUmemoryPool pool;
    CUdeviceptr a, b;
    OK(cu.cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cu.cuMemPoolTrimTo(pool, 0));
    unsigned long long before = stat_of("used");
    OK(cu.cuMemAllocAsync(&a, 6 * MIB, stream));
    OK(cu.cuMemAllocAsync(&b, 4 * MIB, stream));
    OK(cu.cuMemsetD8Async(a, 1, 6 * MIB, stream));
    OK(cu.cuMemsetD8Async(b, 2, 4 * MIB, stream));
    OK(cu.cuMemFreeAsync(a, stream));
    OK(cu.cuCtxSynchronize());
    unsigned long long kept = getenv("CODEC_STRICT") ? 0 : 6 * MIB; /* where nothing stays that was freed */
    assert_int_equal(stat_of("reserve"), kept);
    OK(cu.cuMemPoolTrimTo(pool, 8 * MIB));
    assert_int_equal(stat_of("reserve"), kept);
    OK(cu.cuMemPoolTrimTo(pool, 0));
    assert_int_equal(stat_of("reserve"), 0);
    assert_in_range(stat_of("used"), 0, before + 10 * MIB - kept); /* before, memory may have lain idle */
    OK(cu.cuMemFreeAsync(b, stream));
    OK(cu.cuCtxSynchronize());
    OK(cu.cuMemPoolTrimTo(pool, 0));
    assert_in_range(stat_of("used"), 0, before + 10 * MIB - (kept ? 10 * MIB : 0));
}

static void too_much_fails_at_the_allocation(void **state)
{
    (void)state;
    CUdeviceptr held[64], more;
    unsigned count = 0;
    CUresult result = CUDA_SUCCESS;
    while (count < 64 && result == CUDA_SUCCESS) {
        result = cu.cuMemAllocAsync(&held[count], 4 * MIB, stream);
        if (result == CUDA_SUCCESS)
            OK(cu.cuMemsetD8Async(held[count++], 1, 4 * MIB, stream));
    }
    assert_int_equal(result, CUDA_ERROR_OUT_OF_MEMORY);
    /* what was made before goes to host memory, while that lasts */
    assert_true(count > 0 && count * 4 * MIB <= stat_of("budget") + stat_of("compressed"));
    assert_int_equal(cu.cuMemAlloc_v2(&more, stat_of("budget")), CUDA_ERROR_OUT_OF_MEMORY);
    /* small allocations of pools are counted late */
    assert_in_range(stat_of("peak"), 0, stat_of("budget") + 65536);
    while (count)
        OK(cu.cuMemFreeAsync(held[--count], stream));
    OK(cu.cuStreamSynchronize(stream));
    load_all(); /* and it goes on */
    assert_int_equal(device_sum(PLAIN, kernel("sum"), at[0], tensor_bytes(0)), sum_of(content(0), tensor_bytes(0)));
    free_all();
}

static void paged_memory_answers_as_memory_does(void **state)
{
    (void)state;
    CUdeviceptr base, start = 0;
    size_t bytes, range = 0;
    unsigned type = 0;
    int ordinal = -1;
    bool managed = true, mapped = false;
    CUcontext of = NULL;
    void *host = &base;
    CUipcMemHandle handle;
    load_all();
    CUdeviceptr inside = at[5] + 4097;
    OK(cu.cuMemGetAddressRange_v2(&base, &bytes, inside));
    assert_true(base == at[5] && bytes == tensor_bytes(5));
    OK(cu.cuMemGetAddressRange_v2(NULL, NULL, inside));
    OK(cu.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, inside));
    OK(cu.cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, inside));
    OK(cu.cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, inside));
    OK(cu.cuPointerGetAttribute(&of, CU_POINTER_ATTRIBUTE_CONTEXT, inside));
    OK(cu.cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, inside));
    OK(cu.cuPointerGetAttribute(&mapped, CU_POINTER_ATTRIBUTE_MAPPED, inside));
    assert_true(type == CU_MEMORYTYPE_DEVICE && ordinal == 0 && start == inside && of == context && !managed && mapped);
    assert_int_equal(cu.cuPointerGetAttribute(&host, CU_POINTER_ATTRIBUTE_HOST_POINTER, inside),
                     CUDA_ERROR_INVALID_VALUE);
    CUpointer_attribute which[] = {CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
                                   CU_POINTER_ATTRIBUTE_HOST_POINTER};
    void *data[] = {&start, &range, &host};
    OK(cu.cuPointerGetAttributes(3, which, data, inside));
    assert_true(start == at[5] && range == tensor_bytes(5) && host == NULL);
    assert_int_equal(cu.cuIpcGetMemHandle(&handle, at[5]), CUDA_ERROR_NOT_SUPPORTED);
    free_all();
}

static void free_memory_is_the_budgets(void **state)
{
    (void)state;
    size_t free_bytes, total;
    OK(cu.cuMemGetInfo_v2(&free_bytes, &total));
    assert_true(total >= 1.2 * (1 << 30)); /* transformers subtracts so much */
    assert_true(free_bytes <= stat_of("budget") && free_bytes > 0);
}

/* More weights are written to than the budget holds: some go to host memory, and come back as they were written. */
static void written_weights_go_to_the_host_and_come_back(void **state)
{
    (void)state;
    enum { COUNT = TENSORS };
    unsigned long long spills = stat_of("spills"), restores = stat_of("restores");
    load_all();
    for (unsigned i = 0; i < COUNT; i++)
        OK(cu.cuMemsetD8Async(at[i] + 100, 0xa5, 1, stream));
    assert_true(stat_of("spills") > spills && stat_of("spilled") >= MIB);
    for (unsigned i = 0; i < COUNT; i++) { /* the view, not the file: a test before this one wrote to it */
        const uint8_t *from = (const uint8_t *)view + tensor_begin[i];
        assert_int_equal(device_sum(PLAIN, kernel("sum"), at[i], tensor_bytes(i)),
                         sum_of(from, tensor_bytes(i)) - from[100] + 0xa5);
    }
    assert_true(stat_of("restores") > restores);
    assert_true(stat_of("peak") <= stat_of("budget"));
    free_all();
    for (unsigned wait = 0; wait < HANG_SECONDS * 1000 && stat_of("spilled") != 0; wait++)
        usleep(1000);
    assert_int_equal(stat_of("spilled"), 0);
}

static void *launch_until_cancelled(void *arg)
{
    OK(cu.cuCtxSetCurrent(context));
    CUfunction f = kernel("sum");
    pthread_setcanceltype(*(const int *)arg, NULL);
    for (unsigned i = 0;; i++) { /* waits for room again and again: the budget does not hold all of them */
        CUdeviceptr out = scratch, from = at[i % TENSORS];
        uint64_t bytes = tensor_bytes(i % TENSORS);
        void *params[] = {&out, &from, &bytes};
        (void)launch(PLAIN, f, stream, params, NULL, 0);
        pthread_testcancel();
    }
    return NULL;
}

static void a_cancelled_launch_leaves_nothing_locked(void **state)
{
    (void)state;
    static const int types[] = {PTHREAD_CANCEL_DEFERRED, PTHREAD_CANCEL_ASYNCHRONOUS};
    load_all();
    for (unsigned round = 0; round < 40; round++) {
        pthread_t thread;
        void *result;
        assert_int_equal(0,
                         pthread_create(&thread, NULL, launch_until_cancelled, (void *)(uintptr_t)&types[round % 2]));
        usleep(round * 97 % 5000);
        assert_int_equal(0, pthread_cancel(thread));
        assert_int_equal(0, pthread_join(thread, &result));
        assert_ptr_equal(result, PTHREAD_CANCELED);
        unsigned i = round % TENSORS;
        assert_int_equal(device_sum(PLAIN, kernel("sum"), at[i], tensor_bytes(i)),
                         sum_of((const uint8_t *)view + tensor_begin[i], tensor_bytes(i)));
    }
    free_all();
}

/* The file as it is stored: system calls made directly are not seen by the shim. */
static void copy_stored_file(const char *to)
{
    static uint8_t buffer[1 << 16];
    int in = (int)syscall(SYS_openat, AT_FDCWD, model_path, O_RDONLY | O_CLOEXEC), out = creat(to, 0600);
    long got;
    assert_true(in >= 0 && out >= 0);
    while ((got = syscall(SYS_read, in, buffer, sizeof buffer)) > 0)
        assert_int_equal(write(out, buffer, (size_t)got), got);
    assert_int_equal(got, 0);
    assert_int_equal(close(out), 0);
    syscall(SYS_close, in);
}

/* transformers makes an allocation of a model's size before it loads it, and frees it unused. Last: the store that is
 * opened here is never bound. */
static void an_allocation_for_what_is_about_to_be_loaded_is_granted(void **state)
{
    (void)state;
    char path[600];
    CUdeviceptr all;
    struct stat st;
    size_t free_bytes, total, model = stat_of("budget") + 2 * MIB;
    assert_true(model <= logical_bytes);
    assert_int_equal(cu.cuMemAllocAsync(&all, model, stream), CUDA_ERROR_OUT_OF_MEMORY);
    snprintf(path, sizeof path, "%s.other", model_path);
    copy_stored_file(path);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && fstat(fd, &st) == 0 && (size_t)st.st_size == logical_bytes);
    OK(cu.cuMemGetInfo_v2(&free_bytes, &total));
    assert_in_range(free_bytes, logical_bytes, logical_bytes + stat_of("budget"));
    OK(cu.cuMemAllocAsync(&all, model, stream));
    /* it is not for use */
    assert_int_equal(cu.cuMemsetD8Async(all, 1, model, stream), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cu.cuMemFreeAsync(all, stream));
    assert_int_equal(cu.cuMemAllocAsync(&all, logical_bytes + MIB, stream), CUDA_ERROR_OUT_OF_MEMORY);
    close(fd);
    unlink(path);
    load_all();
    assert_int_equal(device_sum(PLAIN, kernel("sum"), at[1], tensor_bytes(1)), sum_of(content(1), tensor_bytes(1)));
    free_all();
}

/* --- graphs ------------------------------------------------------------------------------------------------ */

static CUgraphExec capture_sums(unsigned first, unsigned count, CUresult *out_result)
{
    CUgraph graph;
    CUgraphExec exec = NULL;
    CUfunction sum = kernel("sum");
    OK(cu.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    for (unsigned i = 0; i < count; i++) {
        CUdeviceptr out = scratch + 8 * i;
        uint64_t bytes = tensor_bytes(first + i);
        void *params[] = {&out, &at[first + i], &bytes};
        OK(launch(i % 2 ? EX : PLAIN, sum, stream, params, NULL, 0));
    }
    OK(cu.cuStreamEndCapture(stream, &graph));
    *out_result = cu.cuGraphInstantiateWithFlags(&exec, graph, 0);
    OK(cu.cuGraphDestroy(graph));
    return exec;
}

static void graphs_hold_what_their_nodes_name(void **state)
{
    (void)state;
    CUresult result;
    uint64_t got[3];
    load_all();
    CUgraphExec exec = capture_sums(0, 3, &result);
    OK(result);
    for (unsigned round = 0; round < 4; round++) {
        for (unsigned k = 3; k < TENSORS; k++) /* push them out */
            device_sum(PLAIN, kernel("sum"), at[k], 16);
        OK(cu.cuMemsetD8Async(scratch, 0, sizeof got, stream));
        OK(cu.cuGraphLaunch(exec, stream));
        OK(cu.cuMemcpyDtoHAsync_v2(got, scratch, sizeof got, stream));
        OK(cu.cuStreamSynchronize(stream));
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(got[i], sum_of(content(i), tensor_bytes(i)));
    }
    OK(cu.cuGraphExecDestroy(exec));
    exec = capture_sums(0, TENSORS, &result);
    assert_int_equal(result, CUDA_ERROR_OUT_OF_MEMORY); /* all of them at once do not fit */
    assert_null(exec);
    assert_int_equal(device_sum(PLAIN, kernel("sum"), at[4], tensor_bytes(4)), sum_of(content(4), tensor_bytes(4)));
    free_all();
}

/* What is allocated in a capture is a node of the graph, and the driver takes that memory at the first launch: weights
 * have gone for it by then. */
static void memory_of_graphs_has_room(void **state)
{
    (void)state;
    void (*fail_call)(const char *, unsigned,
                      CUresult) = (void (*)(const char *, unsigned, CUresult))dlsym(driver_handle, "standin_fail");
    void (*fail_none)(void) = (void (*)(void))dlsym(driver_handle, "standin_fail_none");
    CUgraph graph;
    CUgraphExec exec;
    CUdeviceptr kept, freed;
    CUfunction sum = kernel("sum");
    uint64_t bytes = 2 * MIB, sum_bytes = tensor_bytes(1), sums[TENSORS], got;
    uint32_t value = 7;
    load_all(); /* some bytes were written in the view, by tests before this one */
    for (unsigned i = 0; i < TENSORS; i++)
        sums[i] = device_sum(PLAIN, sum, at[i], tensor_bytes(i));
    unsigned long long before = stat_of("driver");
    OK(cu.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cu.cuMemAllocAsync(&kept, bytes, stream));
    OK(cu.cuMemAllocAsync(&freed, bytes, stream));
    OK(launch(PLAIN, kernel("fill"), stream, (void *[]){&kept, &bytes, &value}, NULL, 0));
    OK(launch(EX, kernel("fill"), stream, (void *[]){&freed, &bytes, &value}, NULL, 0));
    OK(cu.cuMemFreeAsync(freed, stream));
    OK(launch(PLAIN, sum, stream, (void *[]){&scratch, &at[1], &sum_bytes}, NULL, 0));
    OK(cu.cuStreamEndCapture(stream, &graph));
    OK(cu.cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cu.cuGraphDestroy(graph));
    fail_call("cuGraphLaunch", 0, CUDA_ERROR_LAUNCH_FAILED); /* the first one is the first that does not fail */
    assert_int_equal(cu.cuGraphLaunch(exec, stream), CUDA_ERROR_LAUNCH_FAILED);
    fail_none();
    for (unsigned k = 0; k < TENSORS; k++)
        assert_int_equal(device_sum(PLAIN, sum, at[k], tensor_bytes(k)), sums[k]);
    for (unsigned i = 0; i < 3; i++) {
        OK(cu.cuGraphLaunch(exec, stream));
        OK(cu.cuStreamSynchronize(stream));
        OK(cu.cuMemcpyDtoH_v2(&got, scratch, 8));
        assert_int_equal(got, sums[1]);
        assert_int_equal(device_sum(PLAIN, sum, kept, bytes), (uint64_t)value * bytes);
        for (unsigned k = 0; k < TENSORS; k++)
            assert_int_equal(device_sum(PLAIN, sum, at[k], tensor_bytes(k)), sums[k]);
    }
    assert_in_range(stat_of("driver") - before, 2 * bytes, 3 * bytes);
    assert_true(stat_of("peak") <= stat_of("budget"));
    OK(cu.cuGraphExecDestroy(exec));
    free_all();
}

/* Ends the capture of a kernel that leaves a sum in `scratch`, and launches the graph. */
static CUgraphExec run_captured(CUgraph *graph, uint64_t expected)
{
    CUgraphExec exec;
    uint64_t got = 0;
    OK(cu.cuStreamEndCapture(stream, graph));
    OK(cu.cuGraphInstantiateWithFlags(&exec, *graph, 0));
    OK(cu.cuGraphLaunch(exec, stream));
    OK(cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream));
    OK(cu.cuStreamSynchronize(stream));
    assert_int_equal(got, expected);
    return exec;
}

/* Another stream pages while one captures in the mode that forbids waiting and asking, to every thread: whatever we do
 * for it, the capture goes on. */
static void work_beside_a_capture_does_not_end_it(void **state)
{
    (void)state;
    enum { FRESH = 6 };
    CUresult (*pin)(void **memory, size_t bytes, unsigned flags) = dlsym(dlopen("libcuda.so.1", RTLD_NOW),
                                                                         "cuMemHostAlloc");
    CUresult (*unpin)(void *memory) = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemFreeHost");
    CUstream other, another;
    CUgraph graph;
    CUgraphExec exec;
    CUdeviceptr fresh[FRESH];
    uint64_t bytes = 4096;
    uint8_t *pinned;
    load_all();
    OK(pin((void **)&pinned, logical_bytes, 0));
    memcpy(pinned, logical, logical_bytes);
    OK(cu.cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cu.cuStreamCreate(&another, CU_STREAM_NON_BLOCKING));
    for (unsigned i = 0; i < FRESH; i++) /* freed and used again below */
        OK(cu.cuMemAllocAsync(&fresh[i], tensor_bytes(i), other));
    for (unsigned i = 0; i < FRESH; i++)
        OK(cu.cuMemFreeAsync(fresh[i], other));
    OK(cu.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    void *params[] = {&scratch, &at[7], &bytes};
    OK(launch(PLAIN, kernel("sum"), stream, params, NULL, 0));
    for (unsigned round = 0; round < 4; round++) {
        for (unsigned i = 0; i < FRESH; i++) {
            OK(cu.cuMemAllocAsync(&fresh[i], tensor_bytes(i), other));
            if (round % 2) /* it has to be waited for and taken away before it can be bound */
                OK(cu.cuMemsetD8Async(fresh[i], 5, tensor_bytes(i), other));
            OK(cu.cuMemcpyHtoDAsync_v2(fresh[i], pinned + tensor_begin[i], tensor_bytes(i), other));
        }
        for (unsigned i = 0; i < FRESH && round < 3; i++)
            OK(cu.cuMemFreeAsync(fresh[i], round % 2 ? other : another));
    }
    for (unsigned k = 0; k < 3 * TENSORS; k++) { /* more than fits, so they come and go */
        CUdeviceptr to = scratch + 64, from = k % 4 ? at[k % TENSORS] : fresh[k % FRESH];
        void *others[] = {&to, &from, &bytes};
        OK(launch(PLAIN, kernel("sum"), other, others, NULL, 0));
    }
    OK(cu.cuMemsetD8Async(at[3] + 8, 1, 1, other));
    for (unsigned i = 0; i < FRESH; i++)
        OK(cu.cuMemFreeAsync(fresh[i], other));
    exec = run_captured(&graph, sum_of(content(7), bytes));
    OK(cu.cuGraphExecDestroy(exec));
    OK(cu.cuGraphDestroy(graph));
    OK(cu.cuStreamSynchronize(other));
    OK(cu.cuStreamSynchronize(another));
    OK(cu.cuStreamDestroy_v2(another));
    OK(cu.cuStreamDestroy_v2(other));
    OK(unpin(pinned));
    free_all();
}

static void a_stream_that_joins_a_capture_is_not_worked_on(void **state)
{
    (void)state;
    CUstream other;
    CUevent fork, join;
    CUgraph graph;
    CUgraphExec exec;
    uint64_t bytes = tensor_bytes(7);
    load_all();
    OK(cu.cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cu.cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
    OK(cu.cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
    OK(cu.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cu.cuEventRecord(fork, stream));
    OK(cu.cuStreamWaitEvent(other, fork, 0));
    void *params[] = {&scratch, &at[7], &bytes};
    OK(launch(PLAIN, kernel("sum"), other, params, NULL, 0));
    OK(cu.cuMemsetD8Async(at[8], 0, 64, other));
    OK(cu.cuMemcpyDtoDAsync_v2(scratch + 64, at[10] + 128, 512, other));
    OK(cu.cuEventRecord(join, other));
    OK(cu.cuStreamWaitEvent(stream, join, 0));
    exec = run_captured(&graph, sum_of(content(7), bytes));
    expect(scratch + 64, content(10) + 128, 512);
    for (unsigned k = 11; k < TENSORS; k++) /* push them out */
        device_sum(PLAIN, kernel("sum"), at[k], 16);
    OK(cu.cuMemsetD8Async(scratch + 64, 0, 512, stream));
    OK(cu.cuGraphLaunch(exec, stream));
    expect(scratch + 64, content(10) + 128, 512);
    OK(cu.cuGraphExecDestroy(exec));
    OK(cu.cuGraphDestroy(graph));
    OK(cu.cuEventDestroy_v2(fork));
    OK(cu.cuEventDestroy_v2(join));
    for (unsigned i = 0; i < 40; i++) /* both streams are followed again */
        OK(launch(PLAIN, kernel("sum"), other, params, NULL, 0));
    OK(cu.cuStreamSynchronize(other));
    OK(cu.cuStreamDestroy_v2(other));
    free_all();
}

/* --- the end ------------------------------------------------------------------------------------------------ */

static void a_reset_context_can_be_used_again(void **state)
{
    (void)state;
    CUfunction unused;
    load_all();
    OK(cu.cuDevicePrimaryCtxReset_v2(0));
    OK(cu.cuDevicePrimaryCtxRetain(&context, 0));
    OK(cu.cuCtxSetCurrent(context));
    OK(cu.cuModuleLoadData(&module, "standin:test"));
    OK(cu.cuModuleGetFunction(&unused, module, "sum"));
    OK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cu.cuMemAlloc_v2(&scratch, 4096));
    load_all();
    assert_int_equal(device_sum(PLAIN, kernel("sum"), at[0], tensor_bytes(0)), sum_of(content(0), tensor_bytes(0)));
    free_all();
}

static int setup(void **state)
{
    (void)state;
    fixture_model();
    fixture_map();
    fixture_open_driver();
    OK(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CUresult result = cu.cuMemAlloc_v2(&scratch, 4096);
    if (result != CUDA_SUCCESS || stat_of("budget") == ~0ull) {
        fprintf(stderr, "no manager: built without kernels for the GPU\n");
        unlink(model_path);
        exit(77);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    munmap((void *)(uintptr_t)view, logical_bytes);
    unlink(model_path);
    free(logical);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dlsym_finds_hooks_of_the_driver_only),
#ifdef __x86_64__
        cmocka_unit_test(every_version_of_dlsym_is_replaced),
#endif
        cmocka_unit_test(rtld_next_means_next_after_the_caller),
        cmocka_unit_test(proc_addresses_are_replaced_in_every_version),
        cmocka_unit_test(answers_without_a_hook_are_the_drivers),
        cmocka_unit_test(copies_from_a_store_bind_and_kernels_read_them_right),
        cmocka_unit_test(copies_from_an_ordinary_file_bind_too),
        cmocka_unit_test(a_tensors_bytes_bind_from_anywhere),
        cmocka_unit_test(tensors_that_are_put_together_bind),
        cmocka_unit_test(copies_of_other_bytes_are_adopted),
        cmocka_unit_test(a_buffer_is_filled_again),
        cmocka_unit_test(a_kernel_handle_in_the_functions_place_is_understood),
        cmocka_unit_test(a_kernel_with_a_queue_finds_its_memory),
        cmocka_unit_test(pointers_inside_a_struct_are_found),
        cmocka_unit_test(pointers_in_a_small_copy_are_kept),
        cmocka_unit_test(a_kernel_of_unknown_parameters_needs_everything),
        cmocka_unit_test(every_copy_brings_paged_bytes),
        cmocka_unit_test(boxes_are_copied),
        cmocka_unit_test(views_are_read_and_written),
        cmocka_unit_test(sets_write_where_they_should),
        cmocka_unit_test(small_and_plain_memory_is_the_drivers_and_counted),
        cmocka_unit_test(pools_of_the_program_are_paged_unless_shared),
        cmocka_unit_test(a_trimmed_pool_keeps_no_freed_memory),
        cmocka_unit_test(too_much_fails_at_the_allocation),
        cmocka_unit_test(paged_memory_answers_as_memory_does),
        cmocka_unit_test(free_memory_is_the_budgets),
        cmocka_unit_test(graphs_hold_what_their_nodes_name),
        cmocka_unit_test(memory_of_graphs_has_room),
        cmocka_unit_test(work_beside_a_capture_does_not_end_it),
        cmocka_unit_test(a_stream_that_joins_a_capture_is_not_worked_on),
        cmocka_unit_test(a_reset_context_can_be_used_again),
        cmocka_unit_test(an_allocation_for_what_is_about_to_be_loaded_is_granted),
        cmocka_unit_test(written_weights_go_to_the_host_and_come_back),
        cmocka_unit_test(a_cancelled_launch_leaves_nothing_locked),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
