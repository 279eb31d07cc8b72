/* cmd_unpack.c - codecllm unpack: a store, or a directory with stores, back into plain safetensors files. */
#include "store/read/store.h"
#include "store/pack/writer.h"
#include "access.h"
#include "hub_entry.h"
#include "model_index.h"
#include "output_dir.h"
#include "progress.h"
#include "say.h"
#include "verbs.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct unpack {
    const char *in, *out;
    unsigned jobs;
    enum cws_io_engine io;
    bool quiet;
    const volatile int *cancel;
    struct cws_progress progress;
    double begin_s;
    uint64_t stored_bytes, logical_bytes;
    size_t stores, copies, lossy;
};

static int interrupted(const struct unpack *job, struct cws_error *err)
{
    return __atomic_load_n(job->cancel, __ATOMIC_RELAXED)
               ? cws_fail(err, -ECANCELED, "%s: interrupted; nothing was written", job->out)
               : 0;
}

/* Logical size of a store and whether it is lossy; refuses what cannot be opened before anything is written. */
static int look_at_store(struct unpack *job, const char *path, uint64_t *logical, struct cws_error *err)
{
    struct cws_store *store;
    int rc = cws_store_open(path, job->io, &store, err);
    if (rc)
        return rc;
    *logical = cws_store_logical_bytes(store);
    job->lossy += cws_store_is_lossy(store);
    job->stored_bytes += cws_store_file_bytes(store);
    job->logical_bytes += *logical;
    job->stores++;
    cws_store_close(store);
    return 0;
}

static int unpack_store(struct unpack *job, const char *in, const char *out, uint64_t logical, struct cws_error *err)
{
    cws_progress_item(&job->progress, in, logical);
    int rc = cws_unpack_file(in, out, job->io, job->jobs, cws_progress_update, &job->progress, job->cancel, err);
    return rc == -ECANCELED ? interrupted(job, err) : rc;
}

static int unpack_single(struct unpack *job, struct cws_error *err)
{
    uint64_t logical;
    int rc = cws_output_file_check(job->in, job->out, err);
    if (!rc)
        rc = look_at_store(job, job->in, &logical, err);
    if (rc)
        return rc;
    cws_progress_begin(&job->progress, "unpack", logical);
    rc = unpack_store(job, job->in, job->out, logical, err);
    cws_progress_end(&job->progress);
    return rc;
}

static int unpack_entry(struct unpack *job, const struct cws_model_entry *entry, const char *in, const char *out,
                        struct cws_error *err)
{
    if (entry->kind == CWS_MODEL_DIRECTORY)
        return mkdir(out, 0700) == 0 ? 0 : cws_fail_errno(err, errno, "%s: cannot make the directory", out);
    if (entry->is_store)
        return unpack_store(job, in, out, entry->bytes, err);
    job->copies++;
    return cws_copy_file(in, out, err);
}

static int unpack_entries(struct unpack *job, const struct cws_model_dir *dir, const char *to, struct cws_error *err)
{
    for (size_t i = 0; i < dir->count; i++) {
        char *in = cws_path_join(dir->root, dir->entries[i].path), *out = cws_path_join(to, dir->entries[i].path);
        int rc = interrupted(job, err);
        if (!rc)
            rc = unpack_entry(job, &dir->entries[i], in, out, err);
        if (!rc && dir->entries[i].kind != CWS_MODEL_DIRECTORY)
            rc = cws_access_narrow_file(dir->root, in, out, err);
        free(in);
        free(out);
        if (rc)
            return rc;
    }
    return cws_access_set_directories(dir, to, err);
}

/* Opens every store once: their logical sizes are the total, and a damaged one is refused before work is done (one
 * that was cut short does not look like a store from its end, but must not be copied as if it were plain). */
static int check_stores(struct unpack *job, struct cws_model_dir *dir, struct cws_error *err)
{
    for (size_t i = 0; i < dir->count; i++) {
        struct cws_model_entry *entry = &dir->entries[i];
        if (!entry->is_store && entry->kind != CWS_MODEL_WEIGHTS)
            continue;
        char *path = cws_path_join(dir->root, entry->path);
        int rc = look_at_store(job, path, &entry->bytes, err);
        free(path);
        if (rc == CWS_E_NOT_STORE && !entry->is_store)
            continue; /* a plain file among packed ones: copied */
        if (rc)
            return rc;
    }
    return job->stores ? 0 : cws_fail(err, CWS_E_NOT_STORE, "%s: holds no packed file", job->in);
}

static int unpack_directory(struct unpack *job, struct cws_error *err)
{
    struct cws_model_dir dir;
    struct cws_output_dir output;
    char *snapshot;
    int rc = cws_hub_snapshot(job->in, &snapshot, err);
    if (rc)
        return rc;
    if (snapshot && !job->quiet)
        cws_say_line("%s: an entry of the Hub's cache; %s is unpacked", job->in, snapshot);
    rc = cws_model_dir_scan(snapshot ? snapshot : job->in, !job->quiet, &dir, err);
    free(snapshot);
    if (rc)
        return rc;
    rc = cws_model_index_check(&dir, !job->quiet, err);
    if (!rc)
        rc = check_stores(job, &dir, err);
    if (!rc)
        rc = cws_output_dir_begin(job->in, job->out, &output, err);
    if (!rc) {
        cws_progress_begin(&job->progress, "unpack", job->logical_bytes);
        rc = unpack_entries(job, &dir, output.temporary, err);
        cws_progress_end(&job->progress);
        if (rc)
            cws_output_dir_abort(&output);
        else
            rc = cws_output_dir_commit(&output, err);
    }
    cws_model_dir_free(&dir);
    return rc;
}

static void say_summary(const struct unpack *job)
{
    char also[64] = "";
    if (job->stores > 1 || job->copies)
        snprintf(also, sizeof also, " (%zu unpacked, %zu copied)", job->stores, job->copies);
    cws_say_line("%s: %s -> %s, %s%s", job->out, cws_size_text(job->stored_bytes).text,
                 cws_size_text(job->logical_bytes).text,
                 cws_time_text(cws_now_s() - job->begin_s, job->logical_bytes).text, also);
    if (job->lossy)
        cws_say_line("%s: note: packed with q8 or q6, so these are not the bits of the original weights", job->out);
}

static int run_unpack(int argc, char **argv)
{
    static const struct option longs[] = {
        {"jobs", required_argument, NULL, 'j'}, {"quiet", no_argument, NULL, 'q'}, {NULL, 0, NULL, 0}};
    struct unpack job = {.begin_s = cws_now_s()};
    struct cws_options options;
    struct cws_error err = {0};
    int c;
    while ((c = getopt_long(argc, argv, ":j:q", longs, NULL)) != -1) {
        switch (c) {
        case 'j':
            if (cws_parse_jobs(optarg, &job.jobs))
                return cws_say_usage("unpack", "--jobs %s: use 1 to 1024", optarg);
            break;
        case 'q': job.quiet = true; break;
        case ':': return cws_say_usage("unpack", "%s needs a value", argv[optind - 1]);
        default: return cws_say_usage("unpack", "unknown option %s", argv[optind - 1]);
        }
    }
    if (argc - optind != 2)
        return cws_say_usage("unpack", "needs an input and an output");
    if (cws_options_from_env(&options, &err)) {
        cws_say_line("%s", err.message);
        return CWS_EXIT_FAILURE;
    }
    job.io = options.io;
    job.in = argv[optind];
    job.out = argv[optind + 1];
    job.cancel = cws_interrupt_flag();
    int rc = cws_path_is_directory(job.in, &err);
    if (rc >= 0)
        rc = rc ? unpack_directory(&job, &err) : unpack_single(&job, &err);
    if (rc)
        return cws_say_error(job.in, job.out, &err);
    if (!job.quiet)
        say_summary(&job);
    return CWS_EXIT_FINE;
}

const struct cws_verb cws_verb_unpack = {
    .name = "unpack",
    .summary = "give back the plain safetensors file or model directory",
    .run = run_unpack,
    .help = "Usage: codecllm unpack [OPTIONS] IN OUT\n"
            "\n"
            "Writes the plain safetensors file of a store, or a model directory with every store unpacked.\n"
            "Every checksum is verified on the way; OUT appears only when it is complete.\n"
            "\n"
            "Options:\n"
            "  --jobs N       threads (default: all cores)\n"
            "  -q, --quiet    no bar and no summary\n"
            "\n"
            "Examples:\n"
            "  codecllm unpack ./TinyLlama.packed ./TinyLlama.again\n"
            "  codecllm unpack model.packed.safetensors model.safetensors\n",
};
