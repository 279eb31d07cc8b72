/* cmd_pack.c - codecllm pack: one safetensors file, or a model directory, into a store or a directory of stores. */
#include "store/read/store.h"
#include "store/pack/writer.h"
#include "access.h"
#include "hub_entry.h"
#include "json_replace.h"
#include "json_text.h"
#include "model_index.h"
#include "output_dir.h"
#include "progress.h"
#include "say.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct pack {
    const char *in, *out;
    struct cws_pack_options options;
    const char *dtype_name; /* as config.json writes it, or NULL */
    bool quiet;
    struct cws_progress progress;
    double begin_s;
    uint64_t input_bytes, stored_bytes, elems; /* of the weights packed so far */
    size_t stores, copies;
};

static int interrupted(const struct pack *job, struct cws_error *err)
{
    return __atomic_load_n(job->options.cancel, __ATOMIC_RELAXED)
               ? cws_fail(err, -ECANCELED, "%s: interrupted; nothing was written", job->out)
               : 0;
}

/* The number of elements and of tensor bytes of a store that was just written. */
static int measure_store(const char *path, uint64_t *elems, uint64_t *tensor_bytes, struct cws_error *err)
{
    struct cws_store *store;
    int rc = cws_store_open(path, CWS_IO_AUTO, &store, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < cws_store_tensor_count(store); i++) {
        const struct cws_tensor_info *t = cws_store_tensor(store, i);
        *elems += t->elems;
        *tensor_bytes += t->end - t->begin;
    }
    cws_store_close(store);
    return 0;
}

static int pack_store(struct pack *job, const char *in, const char *out, uint64_t bytes, struct cws_error *err)
{
    struct cws_pack_result result;
    uint64_t tensor_bytes = 0;
    cws_progress_item(&job->progress, in, bytes);
    int rc = cws_pack_file(in, out, &job->options, &result, err);
    if (rc == -ECANCELED)
        return interrupted(job, err);
    if (!rc)
        rc = measure_store(out, &job->elems, &tensor_bytes, err);
    if (rc)
        return rc;
    if (result.unknown_types)
        cws_say_line("%s: %llu tensor%s of a type that this build does not know (%s): packed as plain bytes", in,
                     (unsigned long long)result.unknown_types, result.unknown_types == 1 ? "" : "s",
                     result.unknown_type);
    job->input_bytes += result.input_bytes;
    job->stored_bytes += result.stored_bytes;
    job->stores++;
    return 0;
}

/* --- the texts of a model directory that name a dtype or a size --------------------------------- */

static int is_float_dtype(const char *value, size_t len)
{
    static const char *const names[] = {"\"float64\"", "\"float32\"", "\"float16\"", "\"bfloat16\""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strlen(names[i]) == len && memcmp(names[i], value, len) == 0)
            return 1;
    }
    return 0;
}

static int is_number(const char *value, size_t len) { return len > 0 && value[0] >= '0' && value[0] <= '9'; }

/* config.json with every dtype it gives to weights set to the one that was asked for. */
static int write_config(struct pack *job, const char *in, const char *out, struct cws_error *err)
{
    static const char *const keys[] = {"dtype", "torch_dtype"};
    char quoted[16], *text, *next;
    size_t len, count;
    struct stat st;
    int rc = cws_json_read(in, &text, &len, &st, err);
    snprintf(quoted, sizeof quoted, "\"%s\"", job->dtype_name);
    for (size_t i = 0; !rc && i < sizeof keys / sizeof *keys; i++) {
        if (cws_json_replace(text, len, keys[i], is_float_dtype, quoted, &next, &len, &count)) {
            free(text);
            return cws_fail(err, -ENOMEM, "%s: out of memory", in);
        }
        free(text);
        text = next;
    }
    if (rc)
        return rc;
    rc = cws_write_file(out, text, len, &st, err);
    free(text);
    return rc;
}

/* Tensor bytes of the shards that an index names, as they are in the output; none of it when one is no store there. */
static int sum_shards(const char *index_text, size_t len, const char *out_index, uint64_t *total, struct cws_error *err)
{
    json_t *shards = cws_model_index_shards(index_text, len), *value;
    const char *shard, *slash = strrchr(out_index, '/');
    int rc = 0;
    json_object_foreach(shards, shard, value)
    {
        char *path;
        uint64_t elems = 0;
        if (rc)
            break;
        if (asprintf(&path, "%.*s%s", (int)(slash - out_index + 1), out_index, shard) < 0) {
            rc = cws_fail(err, -ENOMEM, "%s: out of memory", out_index);
            continue;
        }
        rc = measure_store(path, &elems, total, err);
        free(path);
    }
    json_decref(shards);
    return shards ? rc : CWS_E_NOT_STORE;
}

/* The index with metadata.total_size as it is after the cast; one of another build is copied. */
static int write_index(const char *in, const char *out, struct cws_error *err)
{
    char number[24], *text, *next;
    size_t len, count;
    struct stat st;
    uint64_t total = 0;
    int rc = cws_json_read(in, &text, &len, &st, err);
    if (rc == CWS_E_INPUT) /* the model is complete without it: cws_model_index_check */
        return cws_copy_file(in, out, err);
    if (rc)
        return rc;
    rc = sum_shards(text, len, out, &total, err);
    if (rc == -ENOENT || rc == CWS_E_NOT_STORE) {
        free(text);
        return cws_copy_file(in, out, err);
    }
    snprintf(number, sizeof number, "%llu", (unsigned long long)total);
    if (!rc && cws_json_replace(text, len, "total_size", is_number, number, &next, &len, &count))
        rc = cws_fail(err, -ENOMEM, "%s: out of memory", in);
    free(text);
    if (rc)
        return rc;
    rc = cws_write_file(out, next, len, &st, err);
    free(next);
    return rc;
}

/* --- directories -------------------------------------------------------------------------------- */

/* One line for weights that are copied though the same model is packed beside them. */
static void say_other_weights(const struct cws_model_dir *dir)
{
    static const char *const ends[] = {".bin",     ".pt",   ".pth",  ".ckpt",      ".h5",
                                       ".msgpack", ".gguf", ".onnx", ".onnx_data", ".nemo"};
    enum { LARGE = 1 << 20 }; /* training_args.bin and its like are none */
    const char *first = NULL;
    uint64_t bytes = 0;
    size_t count = 0;
    for (size_t i = 0; i < dir->count; i++) {
        const char *end = strrchr(dir->entries[i].path, '.');
        for (size_t e = 0; end && dir->entries[i].kind == CWS_MODEL_OTHER && e < sizeof ends / sizeof *ends; e++) {
            if (strcmp(end, ends[e]) == 0 && dir->entries[i].bytes >= LARGE) {
                first = first ? first : dir->entries[i].path;
                bytes += dir->entries[i].bytes;
                count++;
            }
        }
    }
    if (count == 1)
        cws_say_line("%s/%s: weights in another format, %s: copied, not packed; remove it if no program loads it",
                     dir->root, first, cws_size_text(bytes).text);
    else if (count)
        cws_say_line("%s: %zu files of weights in other formats (%s is the first), %s: copied, not packed; remove them "
                     "if no program loads them",
                     dir->root, count, first, cws_size_text(bytes).text);
}

static int check_model(const struct pack *job, struct cws_model_dir *dir, uint64_t *total, struct cws_error *err)
{
    size_t weights = 0;
    int rc = cws_model_index_check(dir, !job->quiet, err);
    *total = 0;
    if (!rc)
        rc = cws_model_index_set_strays_aside(dir, !job->quiet, err);
    for (size_t i = 0; !rc && i < dir->count; i++) {
        if (dir->entries[i].is_store)
            rc = cws_fail(err, CWS_E_USAGE, "%s/%s: is packed already; unpack it first", dir->root,
                          dir->entries[i].path);
        if (dir->entries[i].kind == CWS_MODEL_WEIGHTS) {
            weights++;
            *total += dir->entries[i].bytes;
        }
    }
    if (!rc && weights == 0)
        rc = cws_fail(err, CWS_E_USAGE,
                      "%s: holds no *.safetensors file; convert other weight files to safetensors first", job->in);
    if (!rc && !job->quiet)
        say_other_weights(dir);
    return rc;
}

static int pack_entry(struct pack *job, const struct cws_model_entry *entry, const char *in, const char *out,
                      struct cws_error *err)
{
    switch (entry->kind) {
    case CWS_MODEL_DIRECTORY:
        return mkdir(out, 0700) == 0 ? 0 : cws_fail_errno(err, errno, "%s: cannot make the directory", out);
    case CWS_MODEL_WEIGHTS: return pack_store(job, in, out, entry->bytes, err);
    case CWS_MODEL_INDEX:
        job->copies++;
        return job->options.convert ? write_index(in, out, err) : cws_copy_file(in, out, err);
    case CWS_MODEL_CONFIG:
        job->copies++;
        return job->options.convert ? write_config(job, in, out, err) : cws_copy_file(in, out, err);
    case CWS_MODEL_OTHER: job->copies++; return cws_copy_file(in, out, err);
    }
    return cws_fail(err, CWS_E_BUG, "%s: unknown kind of entry", in);
}

/* Everything but the indexes in the first pass: an index is written from the shards that it names. */
static int pack_entries(struct pack *job, const struct cws_model_dir *dir, const char *to, struct cws_error *err)
{
    for (int indexes = 0; indexes < 2; indexes++) {
        for (size_t i = 0; i < dir->count; i++) {
            const struct cws_model_entry *entry = &dir->entries[i];
            if ((entry->kind == CWS_MODEL_INDEX) != indexes)
                continue;
            char *in = cws_path_join(dir->root, entry->path), *out = cws_path_join(to, entry->path);
            int rc = interrupted(job, err);
            if (!rc)
                rc = pack_entry(job, entry, in, out, err);
            if (!rc && entry->kind != CWS_MODEL_DIRECTORY)
                rc = cws_access_narrow_file(dir->root, in, out, err);
            free(in);
            free(out);
            if (rc)
                return rc;
        }
    }
    return cws_access_set_directories(dir, to, err);
}

static int pack_directory(struct pack *job, struct cws_error *err)
{
    struct cws_model_dir dir;
    struct cws_output_dir output;
    uint64_t total;
    char *snapshot;
    int rc = cws_hub_snapshot(job->in, &snapshot, err);
    if (rc)
        return rc;
    if (snapshot && !job->quiet)
        cws_say_line("%s: an entry of the Hub's cache; %s is packed", job->in, snapshot);
    rc = cws_model_dir_scan(snapshot ? snapshot : job->in, !job->quiet, &dir, err);
    free(snapshot);
    if (rc)
        return rc;
    rc = check_model(job, &dir, &total, err);
    if (!rc)
        rc = cws_output_dir_begin(job->in, job->out, &output, err);
    if (!rc) {
        cws_progress_begin(&job->progress, "pack", total);
        rc = pack_entries(job, &dir, output.temporary, err);
        cws_progress_end(&job->progress);
        if (rc)
            cws_output_dir_abort(&output);
        else
            rc = cws_output_dir_commit(&output, err);
    }
    cws_model_dir_free(&dir);
    return rc;
}

static int pack_single(struct pack *job, struct cws_error *err)
{
    struct stat st = {0};
    int rc = cws_output_file_check(job->in, job->out, err);
    if (rc)
        return rc;
    int fd = open(job->in, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cws_fail_errno(err, errno, "%s: cannot open", job->in);
    int store = fstat(fd, &st) == 0 ? cws_store_probe_fd(fd) : -errno;
    close(fd);
    if (store == 1)
        return cws_fail(err, CWS_E_USAGE, "%s: is packed already; unpack it first", job->in);
    if (store < 0)
        return cws_fail(err, store, "%s: cannot read: %s", job->in, cws_strerror(store));
    cws_progress_begin(&job->progress, "pack", (uint64_t)st.st_size);
    rc = pack_store(job, job->in, job->out, (uint64_t)st.st_size, err);
    cws_progress_end(&job->progress);
    return rc;
}

/* --- the verb ------------------------------------------------------------------------------------- */

static void say_summary(const struct pack *job)
{
    char also[64] = "";
    if (job->stores > 1 || job->copies)
        snprintf(also, sizeof also, " (%zu packed, %zu copied)", job->stores, job->copies);
    cws_say_line("%s: %s -> %s, ratio %.3f, %.2f bits/weight, %s%s", job->out, cws_size_text(job->input_bytes).text,
                 cws_size_text(job->stored_bytes).text,
                 job->stored_bytes ? (double)job->input_bytes / (double)job->stored_bytes : 0,
                 job->elems ? 8.0 * (double)job->stored_bytes / (double)job->elems : 0,
                 cws_time_text(cws_now_s() - job->begin_s, job->input_bytes).text, also);
}

static int parse_mode(struct pack *job, const char *text)
{
    static const char *const names[] = {"lossless", "q8", "q6"};
    static const enum cws_mode modes[] = {CWS_MODE_LOSSLESS, CWS_MODE_Q8, CWS_MODE_Q6};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i]) == 0) {
            job->options.mode = modes[i];
            return 0;
        }
    }
    return CWS_E_USAGE;
}

static int parse_dtype(struct pack *job, const char *text)
{
    static const char *const names[] = {"bf16", "f16", "f32"};
    static const char *const config_names[] = {"bfloat16", "float16", "float32"};
    static const enum cws_dtype dtypes[] = {CWS_BF16, CWS_F16, CWS_F32};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i]) == 0) {
            job->options.convert = true;
            job->options.dtype = dtypes[i];
            job->dtype_name = config_names[i];
            return 0;
        }
    }
    return CWS_E_USAGE;
}

static int run_pack(int argc, char **argv)
{
    static const struct option longs[] = {
        {"mode", required_argument, NULL, 'm'}, {"dtype", required_argument, NULL, 'd'},
        {"jobs", required_argument, NULL, 'j'}, {"exclude", required_argument, NULL, 'x'},
        {"quiet", no_argument, NULL, 'q'},      {NULL, 0, NULL, 0}};
    struct pack job = {.begin_s = cws_now_s()};
    const char **exclude = calloc((size_t)argc + 1, sizeof *exclude);
    size_t excluded = 0;
    int c, bad = exclude ? 0 : CWS_EXIT_FAILURE;
    while (!bad && (c = getopt_long(argc, argv, ":m:d:j:x:q", longs, NULL)) != -1) {
        switch (c) {
        case 'm':
            bad = parse_mode(&job, optarg) ? cws_say_usage("pack", "--mode %s: use lossless, q8 or q6", optarg) : 0;
            break;
        case 'd':
            bad = parse_dtype(&job, optarg) ? cws_say_usage("pack", "--dtype %s: use bf16, f16 or f32", optarg) : 0;
            break;
        case 'j':
            bad = cws_parse_jobs(optarg, &job.options.jobs) ? cws_say_usage("pack", "--jobs %s: use 1 to 1024", optarg)
                                                            : 0;
            break;
        case 'x': exclude[excluded++] = optarg; break;
        case 'q': job.quiet = true; break;
        case ':': bad = cws_say_usage("pack", "%s needs a value", argv[optind - 1]); break;
        default: bad = cws_say_usage("pack", "unknown option %s", argv[optind - 1]); break;
        }
    }
    if (!bad && argc - optind != 2)
        bad = cws_say_usage("pack", "needs an input and an output");
    if (!bad) {
        struct cws_error err = {0};
        job.in = argv[optind];
        job.out = argv[optind + 1];
        job.options.exclude = excluded ? exclude : NULL;
        job.options.progress = cws_progress_update;
        job.options.arg = &job.progress;
        job.options.cancel = cws_interrupt_flag();
        int rc = cws_path_is_directory(job.in, &err);
        if (rc >= 0)
            rc = rc ? pack_directory(&job, &err) : pack_single(&job, &err);
        if (rc)
            bad = cws_say_error(job.in, job.out, &err);
        else if (!job.quiet)
            say_summary(&job);
    }
    free(exclude);
    return bad;
}

const struct cws_verb cws_verb_pack = {
    .name = "pack",
    .summary = "compress a safetensors file or a model directory",
    .run = run_pack,
    .help = "Usage: codecllm pack [OPTIONS] IN OUT\n"
            "\n"
            "Packs a safetensors file, or every *.safetensors file of a model directory (sharded ones,\n"
            "pipelines, snapshots and models--ORG--NAME entries of the Hub's cache, too; all other files\n"
            "are copied). OUT appears only when it is complete. Lossless unless --mode says\n"
            "otherwise: 'codecllm unpack' gives back the same file to the bit.\n"
            "\n"
            "Options:\n"
            "  --mode MODE      lossless (default), q8 or q6 (smaller, not exact)\n"
            "  --dtype TYPE     cast float tensors to bf16, f16 or f32 first; config.json follows\n"
            "  --exclude GLOB   leave tensors whose name matches as they are (may be repeated)\n"
            "  --jobs N         threads (default: all cores)\n"
            "  -q, --quiet      no bar and no summary\n"
            "\n"
            "Examples:\n"
            "  codecllm pack ./TinyLlama ./TinyLlama.packed\n"
            "  codecllm pack model.safetensors model.packed.safetensors\n"
            "  codecllm pack --mode q8 --exclude 'lm_head.*' ./TinyLlama ./TinyLlama.q8\n",
};
