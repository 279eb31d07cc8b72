/* pack, unpack, copy: the round trip is exact, the output depends on nothing but input and options, and whatever fails
 * leaves everything as it was. */
#include "tests/support/inject.h"
#include "tests/support/sample_model.h"
#include "store/base/atomic_file.h"
#include "store/pack/convert.h"
#include "store/read/store.h"
#include "store/pack/writer.h"
#include "tests/support/sanitized.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct bytes model, small; /* about 700 KB and 30 KB */

static void same_file(const char *path, struct bytes want)
{
    struct bytes got = sample_load(path);
    assert_int_equal(want.size, got.size);
    assert_memory_equal(want.data, got.data, want.size);
    free(got.data);
}

static unsigned files_in_directory(void)
{
    char path[400];
    snprintf(path, sizeof path, "%s", sample_path("x"));
    *strrchr(path, '/') = '\0';
    unsigned count = 0;
    DIR *d = opendir(path);
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}

static void pack(const char *in, const char *out, const struct cws_pack_options *o)
{
    struct cws_error err = {0};
    if (cws_pack_file(in, out, o, NULL, &err))
        fail_msg("%s", err.message);
}

static void unpack(const char *in, const char *out, unsigned jobs)
{
    struct cws_error err = {0};
    if (cws_unpack_file(in, out, CWS_IO_AUTO, jobs, NULL, NULL, NULL, &err))
        fail_msg("%s", err.message);
}

static int no_fault(void *arg, const struct cws_verify_fault *f)
{
    (void)arg;
    print_error("%s\n", f->message);
    return 0;
}

static void the_round_trip_is_exact(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out"), *back = sample_path("back");
    for (uint64_t seed = 1; seed < 8; seed++) {
        struct bytes m = sample_model(seed, seed % 2 == 0);
        sample_save(in, m.data, m.size);
        struct cws_pack_options o = {.jobs = 1 + seed % 3};
        struct cws_pack_result result;
        struct cws_error err;
        assert_int_equal(0, cws_pack_file(in, out, &o, &result, &err));
        struct stat st;
        assert_int_equal(0, stat(out, &st));
        assert_int_equal(st.st_size, result.stored_bytes);
        assert_int_equal(m.size, result.logical_bytes);
        assert_int_equal(m.size, result.input_bytes);
        assert_int_equal(20, result.tensor_count);
        unpack(out, back, 1 + seed % 4);
        same_file(back, m);
        free(m.data);
    }
    assert_int_equal(0, unlink(in) | unlink(out) | unlink(back));
}

static void edge_files_survive(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{}",
        "{}     \n",
        "{\"__metadata__\":{\"format\":\"codecllm\",\"codecllm_version\":\"7\"}}",
        "{\"a\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[0,0]}}",
        "{\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[0,2]}}",
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"b\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[1,9]}}"),
    };
    static const size_t data_bytes[] = {0, 0, 0, 0, 2, 9};
    const char *in = sample_path("in"), *out = sample_path("out"), *back = sample_path("back");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q6; mode++) {
            struct bytes f = sample_file(texts[i], 0, "123456789", data_bytes[i]);
            sample_save(in, f.data, f.size);
            pack(in, out, &(struct cws_pack_options){.jobs = 2, .mode = (enum cws_mode)mode});
            unpack(out, back, 2);
            same_file(back, f);
            free(f.data);
        }
    }
}

/* A file of exactly the size that its front implies must not come out: the writer moves the index on. Bytes that are
 * partly noise, partly zeros make zstd hit that size. */
static void no_size_makes_a_plain_file(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out");
    unsigned moved = 0;
    char json[200];
    uint8_t data[2048];
    for (unsigned spaces = 0; spaces < 64;
         spaces += 8) { /* moves the end of the file by 8, the noise by multiples of 64 */
        for (unsigned noise = 1200; noise < 2048; noise += SANITIZED ? 48 : 16) {
            uint64_t seed = 1;
            memset(data, 0, sizeof data);
            for (unsigned i = 0; i < noise; i++)
                data[i] = (uint8_t)sample_random(&seed);
            snprintf(json, sizeof json, "{\"a\":{\"dtype\":\"U8\",\"shape\":[2048],\"data_offsets\":[0,2048]}}%*s",
                     spaces, "");
            struct bytes f = sample_file(json, 0, data, sizeof data);
            sample_save(in, f.data, f.size);
            free(f.data);
            pack(in, out, &(struct cws_pack_options){.jobs = 1});
            struct cws_store *s;
            struct cws_error err;
            assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
            const struct cws_trailer *t = cws_store_trailer(s);
            assert_true(t->front_bytes + sizeof data != t->file_bytes);
            const struct cws_chunk_record *c = &cws_store_tensor(s, 0)->chunks[0];
            moved += t->index_offset - c->offset - c->stored_bytes >= CWS_CHUNK_ALIGN;
            assert_int_equal(0, cws_store_verify(s, 1, no_fault, NULL, NULL, &err));
            cws_store_close(s);
        }
    }
    assert_true(moved > 0); /* the case did come up */
}

static void the_output_depends_on_input_and_options_only(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out");
    sample_save(in, model.data, model.size);
    for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q6; mode++) {
        struct bytes first = {0};
        for (unsigned jobs = 1; jobs <= 7; jobs += 2) {
            pack(in, out, &(struct cws_pack_options){.jobs = jobs, .mode = (enum cws_mode)mode});
            if (jobs == 1)
                first = sample_load(out);
            else
                same_file(out, first);
        }
        free(first.data);
    }
}

static void lossy_stores_verify_and_say_so(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out"), *back = sample_path("back"),
               *again = sample_path("again");
    sample_save(in, model.data, model.size);
    for (int mode = CWS_MODE_Q8; mode <= CWS_MODE_Q6; mode++) {
        pack(in, out, &(struct cws_pack_options){.jobs = 3, .mode = (enum cws_mode)mode});
        struct cws_store *s;
        struct cws_error err;
        assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
        assert_true(cws_store_is_lossy(s));
        assert_int_equal(0, cws_store_verify(s, 2, no_fault, NULL, NULL, &err));
        cws_store_close(s);
        unpack(out, back, 2);
        unpack(out, again, 1);
        struct bytes lossy = sample_load(back);
        same_file(again, lossy);
        assert_int_equal(model.size, lossy.size);
        assert_memory_not_equal(model.data, lossy.data, model.size);
        free(lossy.data);
    }
}

static void excluded_tensors_stay_as_they_are(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out");
    static const char *const globs[] = {"a.*", "e?", NULL};
    sample_save(in, model.data, model.size);
    pack(in, out,
         &(struct cws_pack_options){
             .jobs = 2, .mode = CWS_MODE_Q8, .exclude = globs, .convert = true, .dtype = CWS_BF16});
    struct cws_store *s;
    struct cws_error err;
    assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
    const struct cws_tensor_info *t = cws_store_tensor_find(s, "a.first");
    assert_int_equal(CWS_CODEC_RAW, t->record->codec);
    assert_int_equal(CWS_F32, t->dtype);
    assert_int_equal(CWS_CODEC_RAW, cws_store_tensor_find(s, "e4")->record->codec);
    assert_int_equal(CWS_BF16, cws_store_tensor_find(s, "half")->dtype);
    assert_int_equal(CWS_CODEC_QUANT, cws_store_tensor_find(s, "half")->record->codec);
    cws_store_close(s);
}

/* A tensor of more than the 64 MiB that are kept in memory is read twice. */
static void a_large_tensor_is_streamed(void **state)
{
    (void)state;
    enum { MIB = 70 };
    const char *in = sample_path("in"), *out = sample_path("out"), *back = sample_path("back");
    char json[300];
    size_t bytes = (size_t)MIB << 20;
    uint8_t *data = malloc(bytes + 8);
    uint64_t seed = 3;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t r = sample_random(&seed) & UINT64_C(0x807f807f807f807f);
        r |= UINT64_C(0x3c003d003c003b80);
        memcpy(data + i, &r, 8);
    }
    snprintf(json, sizeof json,
             "{\"big\":{\"dtype\":\"BF16\",\"shape\":[%d,1024],\"data_offsets\":[0,%zu]},"
             "\"end\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[%zu,%zu]}}",
             MIB * 512, bytes, bytes, bytes + 3);
    struct bytes f = sample_file(json, 1, data, bytes + 3);
    free(data);
    sample_save(in, f.data, f.size);
    pack(in, out, &(struct cws_pack_options){0});
    unpack(out, back, 0);
    same_file(back, f);
    struct stat st;
    assert_int_equal(0, stat(out, &st));
    assert_true((size_t)st.st_size < f.size * 3 / 4);
    free(f.data);
    unlink(in);
    unlink(out);
    unlink(back);
}

/* --- conversion ---------------------------------------------------------------------------------- */

/* The oracle: the nearest of all 2^16 values, ties to the even one, by plain search. */
static double value16(enum cws_dtype dtype, uint16_t bits)
{
    int sign = bits >> 15, eb = dtype == CWS_F16 ? 5 : 8, mb = 15 - eb, e = bits >> mb & ((1 << eb) - 1),
        bias = (1 << (eb - 1)) - 1;
    double m = bits & ((1 << mb) - 1);
    double v = e == (1 << eb) - 1 ? (m != 0 ? (double)NAN : (double)INFINITY)
               : e == 0           ? ldexp(m, 1 - bias - mb)
                                  : ldexp(m + (1 << mb), e - bias - mb);
    return sign ? -v : v;
}

static uint16_t nearest16(enum cws_dtype dtype, double v)
{
    uint16_t low = 0, high = dtype == CWS_F16 ? 0x7c00 : 0x7f80; /* the magnitude lies between */
    double a = fabs(v), top;
    if (isinf(v))
        return (uint16_t)(high | (signbit(v) ? 0x8000 : 0));
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (value16(dtype, middle) <= a)
            low = middle;
        else
            high = middle;
    }
    top = isinf(value16(dtype, high)) ? 2 * value16(dtype, (uint16_t)(high - 1)) - value16(dtype, (uint16_t)(high - 2))
                                      : value16(dtype, high);
    double down = a - value16(dtype, low), up = top - a;
    uint16_t best = down < up || (down == up && low % 2 == 0) ? low : high;
    return (uint16_t)(best | (signbit(v) ? 0x8000 : 0));
}

static void casts_round_to_nearest_even(void **state)
{
    (void)state;
    static const enum cws_dtype small_types[] = {CWS_F16, CWS_BF16};
    uint64_t seed = 11;
    for (int k = 0; k < 2; k++) {
        enum cws_dtype to = small_types[k];
        for (int i = 0; i < 200000; i++) {
            uint32_t f32 = (uint32_t)sample_random(&seed);
            if (i % 2) /* ties and their neighbours, in the range of F16 too */
                f32 = (uint32_t)(sample_random(&seed) % 0x8000) << 13 | (f32 & 0x80000001) | (i % 4 == 1 ? 0x1000 : 0);
            float f;
            memcpy(&f, &f32, 4);
            uint16_t got;
            cws_convert(CWS_F32, to, &f32, &got, 1);
            if (isnan(f))
                assert_true(isnan(value16(to, got)));
            else if (got != nearest16(to, f))
                fail_msg("f32 %08x to %s: %04x, not %04x", f32, cws_dtype_name(to), got, nearest16(to, f));
            /* F64 in one step: just off a tie of the small type, which F32 in between would lose. */
            double d = value16(to, (uint16_t)(sample_random(&seed) & 0x7fff));
            if (isfinite(d)) {
                double next = value16(to, (uint16_t)(nearest16(to, d) + 1)), tie = (d + next) / 2;
                if (isfinite(next)) {
                    double off = nextafter(tie, i % 2 ? 0 : 1e300);
                    cws_convert(CWS_F64, to, &off, &got, 1);
                    assert_int_equal(nearest16(to, off), got);
                }
            }
        }
        for (uint32_t bits = 0; bits < 65536; bits++) { /* widening is exact, and comes back */
            uint16_t in = (uint16_t)bits, back;
            uint32_t wide;
            float f;
            cws_convert(to, CWS_F32, &in, &wide, 1);
            memcpy(&f, &wide, 4);
            if (isnan(value16(to, in))) {
                assert_true(isnan(f));
                continue;
            }
            assert_true((double)f == value16(to, in) && (signbit(f) != 0) == (in >> 15 != 0));
            cws_convert(CWS_F32, to, &wide, &back, 1);
            assert_int_equal(in, back);
        }
    }
    for (int i = 0; i < 200000; i++) { /* F64 to F32: the processor knows */
        uint64_t bits = sample_random(&seed);
        if (i % 2)
            bits = (bits & UINT64_C(0x800fffffffffffff)) | (uint64_t)(0x360 + sample_random(&seed) % 0x120) << 52;
        double d;
        float want;
        uint32_t got, want_bits;
        memcpy(&d, &bits, 8);
        want = (float)d;
        memcpy(&want_bits, &want, 4);
        cws_convert(CWS_F64, CWS_F32, &bits, &got, 1);
        if (isnan(d))
            assert_true((got & 0x7fc00000) == 0x7fc00000);
        else
            assert_int_equal(want_bits, got);
    }
}

static void a_converted_file_is_a_right_safetensors_file(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out"), *back = sample_path("back"),
               *twice = sample_path("twice");
    sample_save(in, small.data, small.size);
    static const enum cws_dtype types[] = {CWS_BF16, CWS_F16, CWS_F32};
    for (int k = 0; k < 3; k++) {
        pack(in, out, &(struct cws_pack_options){.jobs = 2, .convert = true, .dtype = types[k]});
        struct cws_store *s;
        struct cws_error err;
        assert_int_equal(0, cws_store_open(out, CWS_IO_AUTO, &s, &err));
        uint64_t header_bytes;
        const char *text = (const char *)cws_store_header(s, &header_bytes) + 8;
        assert_int_equal(0, header_bytes % 8);
        assert_true(strncmp(text, "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"tab\\u0009line\\u000a\"},", 60) ==
                    0);
        assert_int_equal(types[k], cws_store_tensor_find(s, "a.first")->dtype);
        assert_int_equal(types[k], cws_store_tensor_find(s, "scalar")->dtype);
        assert_int_equal(CWS_F8_E5M2, cws_store_tensor_find(s, "e5")->dtype);
        assert_int_equal(CWS_I64, cws_store_tensor_find(s, "ids")->dtype);
        cws_store_close(s);
        unpack(out, back, 1);
        /* What was converted has nothing left to convert: packed again it is the same file, header and all. */
        pack(back, out, &(struct cws_pack_options){.jobs = 1, .convert = true, .dtype = types[k]});
        unpack(out, twice, 1);
        struct bytes b = sample_load(back);
        same_file(twice, b);
        free(b.data);
    }
}

/* --- refusals ------------------------------------------------------------------------------------ */

static void refused(int code, const char *in, const char *out, const char *part)
{
    struct cws_error err = {0};
    int got = cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 2}, NULL, &err);
    if (got != code || !strstr(err.message, part))
        fail_msg("code %d, message \"%s\", expected \"%s\"", got, err.message, part);
}

static void bad_names_are_refused(void **state)
{
    (void)state;
    struct cws_error err;
    const char *in = sample_path("in"), *out = sample_path("out"), *link = sample_path("link"),
               *target = sample_path("target");
    sample_save(in, small.data, small.size);
    sample_save(target, "keep me", 7);
    unlink(link);
    assert_int_equal(0, symlink(target, link));
    refused(CWS_E_USAGE, in, link, "symbolic link");
    same_file(target, (struct bytes){(uint8_t *)"keep me", 7});
    assert_int_equal(0, unlink(link));
    assert_int_equal(0, symlink(in, link));
    pack(link, out, &(struct cws_pack_options){.jobs = 1}); /* followed on the input */
    refused(CWS_E_USAGE, in, in, "the output is the input");
    refused(CWS_E_USAGE, link, in, "the output is the input");
    same_file(in, small);
    refused(CWS_E_USAGE, out, target, "already a codecllm store");
    refused(-ENOENT, "/nonexistent/file", target, "cannot open");
    refused(-ENOENT, in, "/nonexistent/file", "directory");
    refused(CWS_E_USAGE, in, "/tmp/", "not a name");
    refused(CWS_E_USAGE, in, "/", "not a name");
    refused(CWS_E_USAGE, in, "..", "not a name");
    refused(CWS_E_USAGE, in, "/dev/null", "not a regular file");
    refused(CWS_E_INPUT, "/dev/null", target, "not a regular file");
    refused(CWS_E_INPUT, "/", target, "not a regular file");
    assert_int_equal(CWS_E_USAGE, cws_unpack_file(out, out, CWS_IO_AUTO, 1, NULL, NULL, NULL, &err));
    assert_int_equal(CWS_E_NOT_STORE, cws_unpack_file(in, target, CWS_IO_AUTO, 1, NULL, NULL, NULL, &err));
    same_file(target, (struct bytes){(uint8_t *)"keep me", 7});
    char name[300];
    memset(name, 'n', sizeof name);
    memcpy(name, "/tmp/", 5);
    name[5 + 255] = '\0'; /* the longest name that there is */
    pack(in, name, &(struct cws_pack_options){.jobs = 1});
    assert_int_equal(0, unlink(name));
    name[5 + 255] = 'n';
    name[5 + 256] = '\0';
    refused(CWS_E_USAGE, in, name, "not a name");
    unlink(link);
}

static void copies_and_writes_whole_files(void **state)
{
    (void)state;
    struct cws_error err;
    const char *in = sample_path("in"), *out = sample_path("out");
    for (size_t size = 0; size <= 3u << 20; size = size ? size * 1024 : 1) {
        struct bytes b = {calloc(1, size + 1), size};
        memset(b.data, 'c', size);
        sample_save(in, b.data, size);
        assert_int_equal(0, cws_copy_file(in, out, &err));
        same_file(out, b);
        assert_int_equal(0, cws_write_file(out, "text", 4, NULL, &err));
        same_file(out, (struct bytes){(uint8_t *)"text", 4});
        free(b.data);
    }
    assert_int_equal(CWS_E_USAGE, cws_copy_file(in, in, &err));
    assert_int_equal(CWS_E_USAGE, cws_copy_file("/", out, &err));
}

/* --- permissions --------------------------------------------------------------------------------- */

static unsigned mode_of(const char *path)
{
    struct stat st;
    assert_int_equal(0, stat(path, &st));
    return st.st_mode & 07777;
}

/* The temporary file beside the output, while it is written. */
static void look_at_the_temporary(void *arg, uint64_t done, uint64_t total)
{
    (void)done, (void)total;
    char place[400];
    snprintf(place, sizeof place, "%s", sample_path("x"));
    *strrchr(place, '/') = '\0';
    DIR *d = opendir(place);
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d));) {
        struct stat st;
        if (strstr(e->d_name, ".codecllm-tmp.") && fstatat(dirfd(d), e->d_name, &st, 0) == 0) {
            assert_int_equal(0600, st.st_mode & 07777);
            *(bool *)arg = true;
        }
    }
    closedir(d);
}

static void outputs_have_the_permissions_of_their_input(void **state)
{
    (void)state;
    static const struct {
        mode_t input, umask, replaced, want; /* replaced 0: nothing was there */
    } cases[] = {
        {0600, 0022, 0, 0600},    {0644, 0022, 0, 0644},    {0755, 0022, 0, 0755},    {0640, 0022, 0, 0640},
        {0666, 0022, 0, 0644},    {0644, 0077, 0, 0600},    {0444, 0022, 0, 0444},    {04755, 0022, 0, 0755},
        {0644, 0022, 0600, 0600}, {0600, 0022, 0644, 0600}, {0644, 0022, 0640, 0640}, {0640, 0002, 0604, 0600},
    };
    const char *in = sample_path("in"), *out = sample_path("out"), *store = sample_path("store");
    struct cws_error err;
    mode_t before = umask(0022);
    sample_save(in, small.data, small.size);
    pack(in, store, &(struct cws_pack_options){.jobs = 1});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *inputs[] = {in, store, in};
        for (unsigned verb = 0; verb < 4; verb++) {
            bool seen = false;
            struct stat st;
            struct cws_pack_options o = {.jobs = 1, .progress = look_at_the_temporary, .arg = &seen};
            unlink(out);
            if (cases[i].replaced) {
                sample_save(out, "earlier", 7);
                assert_int_equal(0, chmod(out, cases[i].replaced));
            }
            assert_int_equal(0, chmod(inputs[verb % 3], cases[i].input));
            assert_int_equal(0, stat(inputs[verb % 3], &st));
            umask(cases[i].umask);
            int code = verb == 0 ? cws_pack_file(in, out, &o, NULL, &err)
                       : verb == 1
                           ? cws_unpack_file(store, out, CWS_IO_AUTO, 1, look_at_the_temporary, &seen, NULL, &err)
                       : verb == 2 ? cws_copy_file(in, out, &err)
                                   : cws_write_file(out, "text", 4, &st, &err);
            umask(0022);
            assert_int_equal(0, code);
            if (mode_of(out) != cases[i].want)
                fail_msg("case %zu, verb %u: mode %o instead of %o", i, verb, mode_of(out), (unsigned)cases[i].want);
            assert_true(seen || verb > 1);
        }
    }
    chmod(in, 0644);
    unlink(out);
    assert_int_equal(0, cws_write_file(out, "text", 4, NULL, &err)); /* from memory: what open(2) gives */
    assert_int_equal(0644, mode_of(out));
    chmod(out, 0600);
    assert_int_equal(0, cws_write_file(out, "text", 4, NULL, &err));
    assert_int_equal(0600, mode_of(out));
    unlink(out);
    umask(before);
}

static void outputs_of_root_belong_to_the_owner_of_their_input(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out");
    struct cws_error err;
    struct stat st;
    if (geteuid() != 0)
        skip();
    sample_save(in, "text", 4);
    unlink(out);
    if (chown(in, 12345, 12346) != 0) /* a user namespace of one user */
        skip();
    chmod(in, 0640);
    assert_int_equal(0, cws_copy_file(in, out, &err));
    assert_int_equal(0, stat(out, &st));
    assert_int_equal(12345, st.st_uid);
    assert_int_equal(12346, st.st_gid);
    assert_int_equal(0640, st.st_mode & 07777);
    unlink(in);
}

/* A group that the output cannot be given to: those of the process's own group must not read what they could not. */
static void a_group_that_cannot_be_kept_gets_what_others_get(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out");
    struct cws_error err;
    struct stat st;
    sample_save(in, "text", 4);
    sample_save(out, "text", 4);
    unlink(out);
    assert_int_equal(0, stat(in, &st));
    st.st_gid = 54321;
    st.st_ino = 0; /* as if another file */
    st.st_mode = S_IFREG | 0664;
    if (geteuid() == 0) {
        assert_int_equal(0, cws_write_file(out, "text", 4, &st, &err));
        struct stat got;
        assert_int_equal(0, stat(out, &got));
        assert_true(got.st_gid == 54321 || (got.st_mode & 0070) == 0040);
    } else {
        mode_t before = umask(0002);
        assert_int_equal(0, cws_write_file(out, "text", 4, &st, &err));
        umask(before);
        assert_int_equal(0644, mode_of(out));
    }
    unlink(out);
}

/* --- interrupted --------------------------------------------------------------------------------- */

static volatile int cancel_now;

static void cancel_in_the_middle(void *arg, uint64_t done, uint64_t total)
{
    (void)arg;
    if (done > total / 3)
        __atomic_store_n(&cancel_now, 1, __ATOMIC_RELAXED);
}

static void cancelling_leaves_everything_as_it_was(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out"), *store = sample_path("store");
    struct cws_error err;
    sample_save(in, model.data, model.size);
    sample_save(out, "earlier", 7);
    pack(in, store, &(struct cws_pack_options){.jobs = 2});
    unsigned files = files_in_directory();
    for (unsigned jobs = 1; jobs < 4; jobs++) {
        cancel_now = 0;
        struct cws_pack_options o = {.jobs = jobs, .progress = cancel_in_the_middle, .cancel = &cancel_now};
        assert_int_equal(-ECANCELED, cws_pack_file(in, out, &o, NULL, &err));
        same_file(out, (struct bytes){(uint8_t *)"earlier", 7});
        assert_int_equal(files, files_in_directory());
        cancel_now = 1;
        assert_int_equal(-ECANCELED, cws_unpack_file(store, out, CWS_IO_AUTO, jobs, NULL, NULL, &cancel_now, &err));
        same_file(out, (struct bytes){(uint8_t *)"earlier", 7});
        assert_int_equal(files, files_in_directory());
    }
}

static void die_in_the_middle(void *arg, uint64_t done, uint64_t total)
{
    (void)arg;
    if (done > total / 3)
        kill(getpid(), SIGKILL);
}

static void a_killed_pack_leaves_one_file_that_the_next_removes(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out");
    sample_save(in, model.data, model.size);
    sample_save(out, "earlier", 7);
    unsigned files = files_in_directory();
    pid_t child = fork();
    if (child == 0) {
        _exit(cws_pack_file(in, out, &(struct cws_pack_options){.jobs = 2, .progress = die_in_the_middle}, NULL, NULL)
                  ? 1
                  : 0);
    }
    int status;
    assert_int_equal(child, waitpid(child, &status, 0));
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    same_file(out, (struct bytes){(uint8_t *)"earlier", 7});
    same_file(in, model);
    assert_int_equal(files + 1, files_in_directory());
    char left[400], living[400];
    snprintf(left, sizeof left, "%s", sample_path("x"));
    snprintf(strrchr(left, '/'), 100, "/.out.codecllm-tmp.%d.0", (int)child);
    /* One of a living process is left alone. */
    snprintf(living, sizeof living, "%s", sample_path("x"));
    snprintf(strrchr(living, '/'), 100, "/.out.codecllm-tmp.%d.99", (int)getppid());
    sample_save(living, "x", 1);
    pack(in, out, &(struct cws_pack_options){.jobs = 2});
    assert_int_equal(0, access(living, F_OK));
    unlink(living);
    assert_int_equal(files, files_in_directory());
}

struct meddling {
    const char *path;
    bool done;
};

static void touch_the_input(void *arg, uint64_t done, uint64_t total)
{
    struct meddling *m = arg;
    (void)done, (void)total;
    if (m->done)
        return;
    m->done = true;
    int fd = open(m->path, O_WRONLY);
    struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    assert_int_equal(1, pwrite(fd, "x", 1, (off_t)model.size - 1));
    futimens(fd, times);
    close(fd);
}

static void an_input_that_changes_is_refused(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out");
    struct cws_error err;
    sample_save(in, model.data, model.size);
    unlink(out);
    struct meddling m = {.path = in};
    struct cws_pack_options o = {.jobs = 2, .progress = touch_the_input, .arg = &m};
    assert_int_equal(CWS_E_CHANGED, cws_pack_file(in, out, &o, NULL, &err));
    assert_int_equal(-1, access(out, F_OK));
}

/* --- the N-th failure ---------------------------------------------------------------------------- */

static int do_pack(const char *in, const char *out, unsigned jobs, struct cws_error *err)
{
    return cws_pack_file(in, out, &(struct cws_pack_options){.jobs = jobs, .mode = CWS_MODE_Q8}, NULL, err);
}

static int do_unpack(const char *in, const char *out, unsigned jobs, struct cws_error *err)
{
    return cws_unpack_file(in, out, CWS_IO_AUTO, jobs, NULL, NULL, NULL, err);
}

static int do_copy(const char *in, const char *out, unsigned jobs, struct cws_error *err)
{
    (void)jobs;
    return cws_copy_file(in, out, err);
}

static int do_verify(const char *in, const char *out, unsigned jobs, struct cws_error *err)
{
    struct cws_store *s;
    (void)out;
    int code = cws_store_open(in, CWS_IO_AUTO, &s, err);
    if (code)
        return code;
    struct cws_error why = {0};
    code = cws_store_verify(s, jobs, no_fault, NULL, NULL, &why);
    if (code == 1) /* a read that fails is a fault, reported as such */
        code = cws_fail(err, -EIO, "fault");
    else if (code)
        *err = why;
    cws_store_close(s);
    return code;
}

/* Fails call after call until one run is clean. Either the result is right, or an error was returned with a message,
 * the earlier output is untouched and nothing is left over. */
static void each_failure(int (*work)(const char *, const char *, unsigned, struct cws_error *), const char *in,
                         const char *out, struct bytes want, enum inject_kind kind, bool must_succeed, unsigned jobs)
{
    unsigned fired_count = 0;
    for (unsigned nth = 1;; nth += SANITIZED ? 1 + nth / 8 : 1) {
        if (nth > 20000)
            fail_msg("kind %d never ends", kind);
        sample_save(out, "earlier", 7);
        unsigned files = files_in_directory(), descriptors = inject_open_files();
        struct cws_error err = {0};
        inject_arm(kind, nth);
        int code = work(in, out, jobs, &err);
        int fired = inject_disarm();
        fired_count += (unsigned)fired;
        if (code && (!fired || must_succeed || code > 0 || !err.message[0] || err.code != code))
            fail_msg("kind %d, call %u, jobs %u: code %d, message \"%s\"", kind, nth, jobs, code, err.message);
        if (work == do_verify) {
            same_file(out, (struct bytes){(uint8_t *)"earlier", 7});
        } else if (code == 0 || (kind == INJECT_SYNC && strstr(err.message, "its directory")))
            same_file(out, want);
        else
            same_file(out, (struct bytes){(uint8_t *)"earlier", 7});
        assert_int_equal(files, files_in_directory());
        assert_int_equal(descriptors, inject_open_files());
        if (!fired)
            break;
    }
    if (work != do_verify || kind == INJECT_ALLOC || kind == INJECT_SHORT_READ)
        assert_true(fired_count > 0);
}

static void every_failure_is_clean(void **state)
{
    (void)state;
    const char *in = sample_path("in"), *out = sample_path("out"), *store = sample_path("store"),
               *logical = sample_path("logical");
    sample_save(in, small.data, small.size);
    struct cws_error err;
    assert_int_equal(0, do_pack(in, store, 1, &err));
    unpack(store, logical, 1);
    struct bytes packed = sample_load(store), unpacked = sample_load(logical);
    static const struct {
        enum inject_kind kind;
        bool must_succeed;
    } kinds[] = {
        {INJECT_SHORT_READ, true}, {INJECT_EINTR, true},  {INJECT_EAGAIN, true}, {INJECT_SHORT_WRITE, true},
        {INJECT_READ, false},      {INJECT_WRITE, false}, {INJECT_SYNC, false},  {INJECT_RENAME, false},
        {INJECT_OPEN, false},      {INJECT_STAT, false},  {INJECT_ALLOC, false},
    };
    for (unsigned jobs = 1; jobs <= 3; jobs += 2) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            each_failure(do_pack, in, out, packed, kinds[k].kind, kinds[k].must_succeed, jobs);
            each_failure(do_unpack, store, out, unpacked, kinds[k].kind, kinds[k].must_succeed, jobs);
            each_failure(do_verify, store, out, unpacked, kinds[k].kind, kinds[k].must_succeed, jobs);
            if (kinds[k].kind != INJECT_NONE && jobs == 1)
                each_failure(do_copy, in, out, small, kinds[k].kind, kinds[k].must_succeed, jobs);
        }
    }
    free(packed.data);
    free(unpacked.data);
}

static int setup(void **state)
{
    (void)state;
    model = sample_model(1, 1);
    small = sample_model(2, 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(model.data);
    free(small.data);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_round_trip_is_exact),
        cmocka_unit_test(edge_files_survive),
        cmocka_unit_test(no_size_makes_a_plain_file),
        cmocka_unit_test(the_output_depends_on_input_and_options_only),
        cmocka_unit_test(lossy_stores_verify_and_say_so),
        cmocka_unit_test(excluded_tensors_stay_as_they_are),
        cmocka_unit_test(a_large_tensor_is_streamed),
        cmocka_unit_test(casts_round_to_nearest_even),
        cmocka_unit_test(a_converted_file_is_a_right_safetensors_file),
        cmocka_unit_test(bad_names_are_refused),
        cmocka_unit_test(copies_and_writes_whole_files),
        cmocka_unit_test(outputs_have_the_permissions_of_their_input),
        cmocka_unit_test(outputs_of_root_belong_to_the_owner_of_their_input),
        cmocka_unit_test(a_group_that_cannot_be_kept_gets_what_others_get),
        cmocka_unit_test(cancelling_leaves_everything_as_it_was),
        cmocka_unit_test(a_killed_pack_leaves_one_file_that_the_next_removes),
        cmocka_unit_test(an_input_that_changes_is_refused),
        cmocka_unit_test(every_failure_is_clean),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
