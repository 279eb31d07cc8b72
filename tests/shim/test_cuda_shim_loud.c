/* Description: what cannot work on a paged GPU ends with an error and one line that says why and what to do: hidden
 * pointers, forked children, budgets that are too small, caches that outgrow theirs, another manager of device memory.
 * Each case is a process of its own: this program, started again with the case's name. */
#include "cuda_shim_fixture.h"

static CUstream stream;
static CUdeviceptr at[TENSORS], scratch, table;

/* --- inside: the cases. Exit status 0: went as told. --------------------------------------------------------- */

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "case failed at line %d: %s\n", __LINE__, #condition);                                     \
            exit(9);                                                                                                   \
        }                                                                                                              \
    } while (0)

static CUresult run_kernel(const char *name, void **params)
{
    return cu.cuLaunchKernel(kernel(name), 1, 1, 1, 1, 1, 1, 0, stream, params, NULL);
}

static void touch(unsigned i)
{
    uint64_t bytes = 16;
    void *params[] = {&scratch, &at[i], &bytes};
    MUST(run_kernel("sum", params) == CUDA_SUCCESS);
}

/* Weights, and a table in device memory that points to one of them; it came by a copy too large to be looked
 * through. */
static void start(void)
{
    static uint64_t pointers[(128 << 10) / 8];
    fixture_map();
    fixture_open_driver();
    MUST(cu.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == 0);
    MUST(cu.cuMemAlloc_v2(&scratch, 4096) == 0);
    for (unsigned i = 0; i < TENSORS; i++) {
        MUST(cu.cuMemAllocAsync(&at[i], tensor_bytes(i), stream) == 0);
        MUST(cu.cuMemcpyHtoDAsync_v2(at[i], view + tensor_begin[i], tensor_bytes(i), stream) == 0);
    }
    MUST(cu.cuMemAlloc_v2(&table, sizeof pointers) == 0);
    pointers[0] = at[1];
    MUST(cu.cuMemcpyHtoD_v2(table, pointers, sizeof pointers) == 0);
    MUST(cu.cuCtxSynchronize() == 0);
}

static void push_out(void)
{
    touch(1);
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 2; i < TENSORS; i++)
            touch(i);
    MUST(cu.cuStreamSynchronize(stream) == 0);
}

static int hidden_read(void)
{
    uint64_t count = 1, bytes = 4096;
    start();
    push_out();
    void *params[] = {&scratch, &table, &count, &bytes};
    MUST(run_kernel("gather", params) == CUDA_SUCCESS);
    MUST(cu.cuStreamSynchronize(stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
    return 0;
}

/* What was used a moment ago is still there, unless CODEC_STRICT says that it must not be. */
static int hidden_read_at_once(void)
{
    uint64_t count = 1, bytes = 4096, got = 0;
    start();
    touch(1);
    void *params[] = {&scratch, &table, &count, &bytes};
    MUST(run_kernel("gather", params) == CUDA_SUCCESS);
    CUresult result = cu.cuStreamSynchronize(stream);
    if (result == CUDA_ERROR_ILLEGAL_ADDRESS)
        return 3;
    MUST(result == CUDA_SUCCESS && cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream) == 0 &&
         cu.cuStreamSynchronize(stream) == 0);
    MUST(got == sum_of(view + tensor_begin[1], bytes));
    return 0;
}

static int hidden_write(void)
{
    uint64_t count = 1, bytes = 4096;
    unsigned value = 1;
    start();
    push_out();
    void *params[] = {&table, &count, &bytes, &value};
    MUST(run_kernel("scatter", params) == CUDA_SUCCESS);
    MUST(cu.cuCtxSynchronize() == CUDA_ERROR_ILLEGAL_ADDRESS);
    return 0;
}

static int pinned_read(void)
{
    uint64_t count = 1, bytes = 4096, got = 0;
    start();
    push_out();
    void *params[] = {&scratch, &table, &count, &bytes};
    MUST(run_kernel("gather", params) == CUDA_SUCCESS);
    MUST(cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream) == 0 && cu.cuStreamSynchronize(stream) == CUDA_SUCCESS);
    MUST(got == sum_of(view + tensor_begin[1], bytes));
    return 0;
}

/* No launch has ever named it. */
static int pinned_read_first(void)
{
    uint64_t count = 1, bytes = 4096, got = 0;
    start();
    void *params[] = {&scratch, &table, &count, &bytes};
    MUST(run_kernel("gather", params) == CUDA_SUCCESS);
    CUresult result = cu.cuStreamSynchronize(stream);
    if (result == CUDA_ERROR_ILLEGAL_ADDRESS)
        return 3;
    MUST(result == CUDA_SUCCESS && cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream) == 0 &&
         cu.cuStreamSynchronize(stream) == 0);
    MUST(got == sum_of(view + tensor_begin[1], bytes));
    return 0;
}

/* Weights through a tensor map, made while they were on the GPU and used when they are not. */
static int mapped(void)
{
    uint64_t bytes = 4096, got = 0, map[16], dims[] = {64, 64};
    unsigned box[] = {8, 8}, steps[] = {1, 1};
    start();
    MUST(cu.cuTensorMapEncodeTiled(map, 9, 2, (void *)(uintptr_t)at[2], dims, dims, box, steps, 0, 0, 0, 0) == 0);
    MUST(cu.cuTensorMapReplaceAddress(map, (void *)(uintptr_t)(at[1] + 16)) == 0);
    push_out();
    void *params[] = {&scratch, map, &bytes};
    MUST(run_kernel("map_sum", params) == CUDA_SUCCESS);
    MUST(cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream) == 0 && cu.cuStreamSynchronize(stream) == CUDA_SUCCESS);
    MUST(got == sum_of(view + tensor_begin[1] + 16, bytes));
    return 0;
}

static int forked(void)
{
    int status;
    start();
    pid_t child = fork();
    if (child == 0) {
        CUdeviceptr more;
        bool refused = cu.cuMemAllocAsync(&more, 2 * MIB, stream) == CUDA_ERROR_NOT_INITIALIZED &&
                       cu.cuCtxSynchronize() == CUDA_ERROR_NOT_INITIALIZED;
        _exit(refused ? 0 : 1);
    }
    MUST(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    touch(3); /* the parent goes on */
    MUST(cu.cuStreamSynchronize(stream) == 0);
    return 0;
}

static int too_small(void)
{
    CUdeviceptr memory;
    fixture_open_driver();
    MUST(cu.cuMemAlloc_v2(&memory, 4096) == CUDA_ERROR_OUT_OF_MEMORY);
    MUST(cu.cuMemAllocAsync(&memory, 2 * MIB, NULL) == CUDA_ERROR_OUT_OF_MEMORY);
    return 0;
}

/* --- a cache of keys and values, which grows by concatenation */

enum { LAYERS = 12, ROW = 1 << 20, ROWS = 5 }; /* two rows fit the budget, five not with 16 MiB of host memory */

struct cache {
    CUdeviceptr at;
    unsigned rows;
};

/* A row more: into a new allocation, as torch.cat does. An error leaves the cache as it was. */
static CUresult append(struct cache *c)
{
    CUdeviceptr more;
    CUresult result = cu.cuMemAllocAsync(&more, (size_t)(c->rows + 1) * ROW, stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (c->rows)
        MUST(cu.cuMemcpyDtoDAsync_v2(more, c->at, (size_t)c->rows * ROW, stream) == 0);
    MUST(cu.cuMemsetD8Async(more + (size_t)c->rows * ROW, (unsigned char)(c->rows + 1), ROW, stream) == 0);
    if (c->rows)
        MUST(cu.cuMemFreeAsync(c->at, stream) == 0);
    *c = (struct cache){more, c->rows + 1};
    return CUDA_SUCCESS;
}

static void expect_rows(const struct cache *c)
{
    uint8_t got = 0;
    for (unsigned row = 0; row < c->rows; row++) {
        MUST(cu.cuMemcpyDtoHAsync_v2(&got, c->at + (size_t)(row + 1) * ROW - 1, 1, stream) == 0);
        MUST(cu.cuStreamSynchronize(stream) == 0 && got == row + 1);
    }
}

/* A step of a model: each layer uses a weight, and its cache has a row more. */
static CUresult step(struct cache *layers, unsigned number)
{
    CUresult result = CUDA_SUCCESS;
    for (unsigned i = 0; i < LAYERS && result == CUDA_SUCCESS; i++) {
        touch((number * LAYERS + i) % TENSORS);
        result = append(&layers[i]);
    }
    return result;
}

/* Returns the steps that were done; the caches are right, and freed. */
static unsigned grow(void)
{
    struct cache layers[LAYERS] = {{0}};
    unsigned number = 0;
    CUresult result = CUDA_SUCCESS;
    while (number < ROWS && (result = step(layers, number)) == CUDA_SUCCESS)
        number++;
    MUST(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY);
    for (unsigned i = 0; i < LAYERS; i++)
        expect_rows(&layers[i]);
    for (unsigned i = 0; i < LAYERS; i++)
        MUST(layers[i].rows == 0 || cu.cuMemFreeAsync(layers[i].at, stream) == 0);
    return number;
}

static void expect_weights(void)
{
    uint64_t got, bytes = 64 << 10;
    for (unsigned i = 0; i < TENSORS; i++) {
        void *params[] = {&scratch, &at[i], &bytes};
        MUST(run_kernel("sum", params) == CUDA_SUCCESS);
        MUST(cu.cuMemcpyDtoHAsync_v2(&got, scratch, 8, stream) == 0 && cu.cuStreamSynchronize(stream) == CUDA_SUCCESS);
        MUST(got == sum_of(view + tensor_begin[i], bytes));
    }
}

/* It is refused memory, frees the caches, and can do all of it again. */
static int cache_refused(void)
{
    start();
    for (unsigned round = 0; round < 2; round++) {
        unsigned steps = grow();
        MUST(steps >= 2 && steps < ROWS);
        expect_weights();
    }
    return 0;
}

static int cache_to_host(void)
{
    start();
    MUST(grow() == ROWS);
    expect_weights();
    return 0;
}

/* ComfyUI loads the library before it uses the GPU. */
static int beside_aimdo(void)
{
    MUST(dlopen("aimdo.so", RTLD_NOW | RTLD_GLOBAL));
    start();
    expect_weights();
    return 0;
}

/* Work is still queued, and the loader is busy. */
static int left_alone(void)
{
    start();
    for (unsigned i = 0; i < TENSORS; i++)
        touch(i);
    return 0;
}

static const struct {
    const char *name;
    int (*run)(void);
} cases[] = {{"hidden_read", hidden_read},
             {"hidden_write", hidden_write},
             {"pinned_read", pinned_read},
             {"pinned_read_first", pinned_read_first},
             {"hidden_read_at_once", hidden_read_at_once},
             {"mapped", mapped},
             {"forked", forked},
             {"too_small", too_small},
             {"cache_refused", cache_refused},
             {"cache_to_host", cache_to_host},
             {"beside_aimdo", beside_aimdo},
             {"left_alone", left_alone}};

/* --- outside --------------------------------------------------------------------------------------------------- */

static char said[8192];

/* Runs a case with one more variable set; its exit status. What it wrote is in `said`. */
static int run_case(const char *name, const char *variable, const char *value)
{
    int ends[2], status;
    size_t len = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork(); /* this process never used the driver */
    if (child == 0) {
        if (variable)
            setenv(variable, value, 1);
        setenv("CUDA_SHIM_MODEL", model_path, 1);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        execl("/proc/self/exe", "test_cuda_shim_loud", name, (char *)NULL);
        _exit(8);
    }
    close(ends[1]);
    for (ssize_t got; len < sizeof said - 1 && (got = read(ends[0], said + len, sizeof said - 1 - len)) > 0;)
        len += (size_t)got;
    said[len] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        print_error("%s", said);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

static unsigned lines_with(const char *text)
{
    unsigned count = 0;
    for (const char *at_text = said; (at_text = strstr(at_text, text)); at_text += strlen(text))
        count++;
    return count;
}

static void hidden_reads_fail_and_name_the_remedy(void **state)
{
    (void)state;
    assert_int_equal(run_case("hidden_read", "CODEC_POLICY", "lru"), 0);
    assert_int_equal(lines_with("CODEC_PIN="), 1);
}
static void hidden_writes_fail_and_name_the_remedy(void **state)
{
    (void)state;
    assert_int_equal(run_case("hidden_write", "CODEC_POLICY", "lru"), 0);
    assert_int_equal(lines_with("CODEC_PIN="), 1);
}
static void strict_mode_shows_a_hidden_read_at_once(void **state)
{
    (void)state;
    assert_int_equal(run_case("hidden_read_at_once", NULL, NULL), 0);
    assert_string_equal(said, "");
    assert_int_equal(run_case("hidden_read_at_once", "CODEC_STRICT", "1"), 3);
    assert_int_equal(lines_with("CODEC_PIN="), 1);
}
static void pinned_weights_stay(void **state)
{
    (void)state;
    assert_int_equal(run_case("pinned_read", "CODEC_PIN", "other,w0[01]"), 0);
    assert_string_equal(said, "");
    assert_int_equal(run_case("pinned_read_first", "CODEC_PIN", "other"), 3);
    assert_int_equal(run_case("pinned_read_first", "CODEC_PIN", "other,w0[01]"), 0);
    assert_string_equal(said, "");
}
static void the_address_in_a_tensor_map_is_found(void **state)
{
    (void)state;
    assert_int_equal(run_case("mapped", "CODEC_POLICY", "lru"), 0);
    assert_string_equal(said, "");
    assert_int_equal(run_case("mapped", "STANDIN_TENSOR_MAP", "hide"), 0);
    assert_int_equal(lines_with("this driver hides the address in a tensor map"), 1);
}
static void a_forked_child_is_refused_with_one_line(void **state)
{
    (void)state;
    assert_int_equal(run_case("forked", NULL, NULL), 0);
    assert_int_equal(lines_with("a forked process cannot use the GPU of its parent"), 1);
    assert_int_equal(run_case("forked", "CODEC_STRICT", "1"), 0);
    assert_int_equal(lines_with("a forked process cannot use the GPU of its parent"), 1);
}
static void a_budget_below_the_least_is_refused(void **state)
{
    (void)state;
    assert_int_equal(run_case("too_small", "CODEC_VRAM_BUDGET", "2M"), 0);
    assert_int_equal(lines_with("codecllm: GPU 0: "), 1);
}
static void a_cache_that_outgrows_the_budget_is_refused_and_can_be_freed(void **state)
{
    (void)state;
    assert_int_equal(run_case("cache_refused", "CODEC_HOST_BUDGET", "16M"), 0);
    assert_int_equal(lines_with("does not fit CODEC_VRAM_BUDGET (40 MiB"), 2); /* a line each time */
    assert_int_equal(lines_with("the least budget that would have done is"), 2);
}
static void a_cache_that_outgrows_the_budget_goes_to_the_host(void **state)
{
    (void)state;
    assert_int_equal(run_case("cache_to_host", NULL, NULL), 0);
    assert_string_equal(said, "");
}
static void another_manager_of_device_memory_is_told_once(void **state)
{
    (void)state;
    assert_int_equal(run_case("beside_aimdo", NULL, NULL), 0);
    assert_int_equal(lines_with("--disable-dynamic-vram"), 1);
    assert_int_equal(lines_with("\n"), 1);
}
static void a_program_that_just_ends_ends_quietly(void **state)
{
    (void)state;
    assert_int_equal(run_case("left_alone", NULL, NULL), 0);
    assert_string_equal(said, "");
    assert_int_equal(run_case("left_alone", "CODEC_STATS", "1"), 0);
    assert_int_equal(lines_with("paging of GPU 0"), 1);
}

static int setup(void **state)
{
    (void)state;
    fixture_model();
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    unlink(model_path);
    free(logical);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hidden_reads_fail_and_name_the_remedy),
        cmocka_unit_test(hidden_writes_fail_and_name_the_remedy),
        cmocka_unit_test(the_address_in_a_tensor_map_is_found),
        cmocka_unit_test(strict_mode_shows_a_hidden_read_at_once),
        cmocka_unit_test(pinned_weights_stay),
        cmocka_unit_test(a_forked_child_is_refused_with_one_line),
        cmocka_unit_test(a_budget_below_the_least_is_refused),
        cmocka_unit_test(a_cache_that_outgrows_the_budget_is_refused_and_can_be_freed),
        cmocka_unit_test(a_cache_that_outgrows_the_budget_goes_to_the_host),
        cmocka_unit_test(another_manager_of_device_memory_is_told_once),
        cmocka_unit_test(a_program_that_just_ends_ends_quietly),
    };
    if (argc < 2)
        return cmocka_run_group_tests(tests, setup, teardown);
    model_path = getenv("CUDA_SHIM_MODEL");
    fixture_layout();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strcmp(argv[1], cases[i].name) == 0)
            return cases[i].run();
    return 7;
}
