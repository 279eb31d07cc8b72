/* The decoding kernels compiled by NVRTC, and kept: against a stand-in for it, which the loader finds by its name.
 *   test_gpu_compile real   compiles the kernels for sm_75 and sm_90 with the NVRTC that is found, and looks at the
 *                           images */
#include "tests/support/hang.h"
#include "tests/standin/standin.h"
#include "store/cuda/compile.h"
#include "store/cuda/decoder.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define EM_CUDA_MACHINE 190

static const struct cws_gpu_target h100 = {9, 0, 12040, false};
static int (*compiled)(void);
static char cache[] = "/tmp/cws-kernels-XXXXXX";

static int setup(void **state)
{
    (void)state;
    void *library = dlopen("libnvrtc.so.12", RTLD_NOW);
    if (!library || !mkdtemp(cache))
        return 1;
    *(void **)&compiled = dlsym(library, "standin_nvrtc_compiled");
    return !compiled || setenv("XDG_CACHE_HOME", cache, 1);
}

static int teardown(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", cache);
    return system(command) != 0;
}

/* What the stand-in says that it made. */
static char *compiled_for(const struct cws_gpu_target *target, size_t *bytes)
{
    struct cws_error err = {0};
    void *image;
    if (cws_gpu_compile(target, &image, bytes, &err) != 0)
        fail_msg("%s", err.message);
    return image;
}

static void the_devices_own_architecture_is_compiled_for(void **state)
{
    (void)state;
    size_t bytes;
    char *image = compiled_for(&h100, &bytes);
    assert_string_equal(image + 16, "cubin --gpu-architecture=sm_90 -std=c++17 --device-int128 ");
    assert_int_equal(bytes, 16 + strlen(image + 16) + 1);
    free(image);
}

static void a_later_device_gets_ptx(void **state)
{
    (void)state;
    size_t bytes;
    char *image = compiled_for(&(struct cws_gpu_target){12, 1, 13000, false}, &bytes);
    assert_non_null(strstr(image + 16, "ptx --gpu-architecture=compute_100 "));
    free(image);
    image = compiled_for(&(struct cws_gpu_target){8, 9, 0, false}, &bytes);
    assert_non_null(strstr(image + 16, "ptx --gpu-architecture=compute_80 "));
    free(image);
    image = compiled_for(&(struct cws_gpu_target){7, 5, 0, true}, &bytes); /* as it is asked for */
    assert_non_null(strstr(image + 16, "ptx --gpu-architecture=compute_75 "));
    free(image);
}

static void refuse(const char *how, const struct cws_gpu_target *target, int code, const char *line)
{
    struct cws_error err = {0};
    void *image = &err;
    size_t bytes;
    if (how)
        setenv("STANDIN_NVRTC", how, 1);
    assert_int_equal(cws_gpu_compile(target, &image, &bytes, &err), code);
    unsetenv("STANDIN_NVRTC");
    assert_null(image);
    if (!strstr(err.message, line) || strchr(err.message, '\n'))
        fail_msg("%s", err.message);
}

static void a_failure_is_one_line(void **state)
{
    (void)state;
    refuse("refuse", &h100, CWS_E_BUG, "error: a fault that was asked for");
    refuse("short", &h100, CWS_E_BUG, "does not compile");
    refuse("old", &h100, CWS_E_UNSUPPORTED, "compiles for no device of compute capability 9.0");
    refuse(NULL, &(struct cws_gpu_target){7, 2, 0, false}, CWS_E_UNSUPPORTED,
           "for no device of compute capability 7.2");
    refuse(NULL, &(struct cws_gpu_target){9, 0, 11080, false}, CWS_E_UNSUPPORTED, "no NVRTC for this driver was found");
}

static void doctor_can_name_it(void **state)
{
    (void)state;
    struct cws_error err = {0};
    char path[1024];
    int version = 0;
    assert_int_equal(cws_gpu_compiler_find(&h100, path, &version, &err), 0);
    assert_int_equal(version, 12004);
    assert_non_null(strstr(path, "/standin/libnvrtc.so.12"));
}

static void kept_file(char path[256])
{
    char command[128];
    snprintf(command, sizeof command, "ls %s/codecllm/kernels-sm90-*.bin", cache);
    FILE *list = popen(command, "r");
    assert_non_null(list);
    if (!fgets(path, 256, list))
        fail_msg("nothing was kept");
    path[strcspn(path, "\n")] = '\0';
    pclose(list);
}

static bool is_taken(void)
{
    size_t bytes = 0;
    void *image = cws_gpu_cache_read(&h100, &bytes);
    bool right = image && bytes == 9 && memcmp(image, "an image", 9) == 0;
    assert_true(!image || right);
    free(image);
    return right;
}

static void only_a_whole_file_of_ones_own_is_taken(void **state)
{
    (void)state;
    char path[256], other[300];
    size_t bytes;
    assert_false(is_taken());
    cws_gpu_cache_write(&h100, "an image", 9);
    assert_true(is_taken());
    assert_null(cws_gpu_cache_read(&(struct cws_gpu_target){8, 0, 12040, false}, &bytes));
    kept_file(path);

    assert_int_equal(chmod(path, 0620), 0);
    assert_false(is_taken());
    assert_int_equal(chmod(path, 0600), 0);
    assert_true(is_taken());

    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fputc('A', file);
    fclose(file);
    assert_false(is_taken());
    cws_gpu_cache_write(&h100, "an image", 9);
    assert_true(is_taken());
    assert_int_equal(truncate(path, 12), 0);
    assert_false(is_taken());
    assert_int_equal(truncate(path, 0), 0);
    assert_false(is_taken());

    cws_gpu_cache_write(&h100, "an image", 9);
    snprintf(other, sizeof other, "%s.other", path);
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(symlink(other, path), 0);
    assert_false(is_taken());
    assert_int_equal(unlink(path), 0);

    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    cws_gpu_cache_write(&h100, "an image", 9);
    assert_false(is_taken());
    setenv("XDG_CACHE_HOME", cache, 1);
}

static void what_others_can_have_put_there_is_not_taken(void **state)
{
    (void)state;
    char path[256], other[300], directory[256];
    snprintf(directory, sizeof directory, "%s/codecllm", cache);
    cws_gpu_cache_write(&h100, "an image", 9);
    kept_file(path);
    snprintf(other, sizeof other, "%s/twin", cache);
    assert_int_equal(link(path, other), 0); /* who holds the other name may be anybody */
    assert_false(is_taken());
    assert_int_equal(unlink(other), 0);
    assert_true(is_taken());

    static const mode_t open_to_others[] = {0720, 0702, 01777};
    for (size_t i = 0; i < sizeof open_to_others / sizeof *open_to_others; i++) {
        assert_int_equal(chmod(directory, open_to_others[i]), 0);
        assert_false(is_taken());
    }
    assert_int_equal(unlink(path), 0);
    cws_gpu_cache_write(&h100, "an image", 9); /* nor is anything put there */
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(chmod(directory, 0700), 0);
    if (geteuid() == 0) {
        cws_gpu_cache_write(&h100, "an image", 9);
        assert_int_equal(chown(directory, 12345, 12345), 0);
        assert_false(is_taken());
        assert_int_equal(chown(directory, 0, 0), 0);
        assert_true(is_taken());
        assert_int_equal(chown(path, 12345, 12345), 0);
        assert_false(is_taken());
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody writes to it: opening it would wait for ever */
    alarm(HANG_SECONDS);
    assert_false(is_taken());
    cws_gpu_cache_write(&h100, "an image", 9);
    alarm(0);
    assert_int_equal(unlink(path), 0);
}

static unsigned lines;

static void hear(const char *line)
{
    assert_non_null(strstr(line, "compiling"));
    lines++;
}

/* With built-in kernels the first load is that of them: it is made to fail as on a device that they are not for. */
static void a_decoder_compiles_once(void **state)
{
    (void)state;
    struct cws_driver cu;
    struct cws_error err = {0};
    struct cws_gpu_decoder *decoder;
    CUcontext context;
    int before = compiled();
    lines = 0;
    standin_reset((size_t)64 << 20);
    assert_int_equal(cws_driver_fill(&cu, standin_resolve, NULL, &err) || cu.init(0) ||
                         cu.primary_retain(&context, 0) || cu.context_set(context),
                     0);
    for (unsigned turn = 0; turn < 3; turn++) {
        if (cws_gpu_image())
            standin_fail("cuModuleLoadData", 1, CUDA_ERROR_NO_BINARY_FOR_GPU);
        if (cws_gpu_decoder_create(&cu, hear, &decoder, &err) != 0)
            fail_msg("%s", err.message);
        cws_gpu_decoder_destroy(decoder);
        assert_int_equal(compiled() - before, 1);
        assert_int_equal(lines, 1);
    }
    setenv("STANDIN_NVRTC", "refuse", 1);
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    if (cws_gpu_image())
        standin_fail("cuModuleLoadData", 1, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert_int_equal(cws_gpu_decoder_create(&cu, hear, &decoder, &err), CWS_E_BUG);
    assert_null(decoder);
    if (cws_gpu_image()) { /* not about the image: no other one is tried */
        standin_fail("cuModuleLoadData", 1, CUDA_ERROR_OUT_OF_MEMORY);
        assert_int_not_equal(cws_gpu_decoder_create(&cu, hear, &decoder, &err), 0);
        assert_int_equal(compiled() - before, 2);
    }
    unsetenv("STANDIN_NVRTC");
    setenv("XDG_CACHE_HOME", cache, 1);
    cu.primary_release(0);
}

static int compile_for_real(void)
{
    static const struct cws_gpu_target targets[] = {{7, 5, 0, false}, {9, 0, 0, false}};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        struct cws_gpu_target target = targets[i];
        struct cws_error err = {0};
        char path[1024];
        size_t bytes;
        int version, rc = cws_gpu_compiler_find(&target, path, &version, &err);
        void *image;
        if (rc == 0)
            rc = cws_gpu_compile(&target, &image, &bytes, &err);
        if (rc != 0) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        Elf64_Ehdr header;
        memcpy(&header, image, sizeof header);
        bool fine = memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_machine == EM_CUDA_MACHINE &&
                    memmem(image, bytes, ".text.cws_gpu_decode_kernel", 27) &&
                    memmem(image, bytes, ".text.cws_gpu_decode_split2_kernel", 34) &&
                    memmem(image, bytes, ".text.cws_gpu_decode_quant2_kernel", 34) &&
                    memmem(image, bytes, ".text.cws_gpu_hash_kernel", 25);
        printf("sm_%d%d: %zu bytes by %s, version %d.%d%s\n", target.major, target.minor, bytes, path, version / 1000,
               version % 1000, fine ? "" : ": NOT KERNELS");
        free(image);
        if (!fine)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_devices_own_architecture_is_compiled_for),
        cmocka_unit_test(a_later_device_gets_ptx),
        cmocka_unit_test(a_failure_is_one_line),
        cmocka_unit_test(doctor_can_name_it),
        cmocka_unit_test(only_a_whole_file_of_ones_own_is_taken),
        cmocka_unit_test(what_others_can_have_put_there_is_not_taken),
        cmocka_unit_test(a_decoder_compiles_once),
    };
    if (argc > 1 && strcmp(argv[1], "real") == 0)
        return compile_for_real();
    return cmocka_run_group_tests(tests, setup, teardown);
}
