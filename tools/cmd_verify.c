/* cmd_verify.c - codecllm verify: every checksum, every chunk decoded, content hashes compared. Findings are data
 * (stdout). */
#include "store/read/store.h"
#include "model_index.h"
#include "progress.h"
#include "say.h"
#include "verbs.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct verify {
    unsigned jobs;
    enum cws_io_engine io;
    bool quiet;
    int worst; /* enum cws_exit */
    const char *path;
    uint64_t faults; /* of the file at work */
    struct cws_progress progress;
    const volatile int *cancel;
};

static void note(struct verify *v, int status)
{
    if (status > v->worst)
        v->worst = status;
}

/* One line on stdout. It may quote names out of the file, so nothing that drives a terminal gets through. */
static void print_finding(const char *fmt, ...) CWS_PRINTF(1, 2);
static void print_finding(const char *fmt, ...)
{
    char text[8192], printable[8192];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    cws_progress_erase();
    puts(cws_printable(text, printable, sizeof printable));
}

static int on_fault(void *arg, const struct cws_verify_fault *fault)
{
    struct verify *v = arg;
    v->faults++;
    if (strstr(fault->message, v->path)) /* the library's line for a chunk: file, tensor, offsets and cause */
        print_finding("%s", fault->message);
    else if (fault->tensor)
        print_finding("%s: tensor \"%s\": file offset %llu, logical offset %llu: %s", v->path, fault->tensor,
                      (unsigned long long)fault->file_offset, (unsigned long long)fault->logical_offset,
                      fault->message);
    else
        print_finding("%s: file offset %llu: %s", v->path, (unsigned long long)fault->file_offset, fault->message);
    return __atomic_load_n(v->cancel, __ATOMIC_RELAXED);
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct verify *v = arg;
    cws_progress_update(&v->progress, done, total);
}

/* A file that does not open: damage is a finding, anything else a failure. */
static void report_open(struct verify *v, const char *path, const struct cws_error *err)
{
    bool finding = err->code == CWS_E_TRUNCATED || err->code == CWS_E_CORRUPT || err->code == CWS_E_SHORT_READ;
    if (!finding) {
        note(v, cws_say_error(path, NULL, err));
        return;
    }
    if (strstr(err->message, path))
        print_finding("%s", err->message);
    else
        print_finding("%s: %s", path, err->message);
    note(v, CWS_EXIT_FINDING);
}

static void verify_store(struct verify *v, const char *path, bool in_directory)
{
    struct cws_error err = {0};
    struct cws_store *store;
    v->path = path;
    v->faults = 0;
    if (cws_store_open(path, v->io, &store, &err)) {
        if (in_directory && err.code == CWS_E_NOT_STORE)
            cws_say_line("%s: not packed, not checked", path);
        else
            report_open(v, path, &err);
        return;
    }
    uint64_t logical = cws_store_logical_bytes(store);
    double begin_s = cws_now_s();
    cws_progress_begin(&v->progress, "verify", logical);
    cws_progress_item(&v->progress, path, logical);
    int rc = cws_store_verify(store, v->jobs, on_fault, on_progress, v, &err);
    cws_progress_end(&v->progress);
    double seconds = cws_now_s() - begin_s;
    if (__atomic_load_n(v->cancel, __ATOMIC_RELAXED)) {
        cws_say_line("%s: interrupted", path);
        note(v, CWS_EXIT_FAILURE);
    } else if (rc < 0) {
        note(v, cws_say_error(path, NULL, &err));
    } else if (v->faults) {
        print_finding("%s: %llu fault%s", path, (unsigned long long)v->faults, v->faults == 1 ? "" : "s");
        note(v, CWS_EXIT_FINDING);
    } else if (!v->quiet) {
        size_t tensors = cws_store_tensor_count(store);
        uint64_t chunks = cws_store_chunk_count(store);
        print_finding("%s: fine: %zu tensor%s, %llu chunk%s, %s", path, tensors, tensors == 1 ? "" : "s",
                      (unsigned long long)chunks, chunks == 1 ? "" : "s", cws_size_text(logical).text);
        cws_say_line("%s: verified in %s", path, cws_time_text(seconds, logical).text);
    }
    cws_store_close(store);
}

static void verify_directory(struct verify *v, const char *root)
{
    struct cws_error err = {0};
    struct cws_model_dir dir;
    size_t seen = 0;
    if (cws_model_dir_scan(root, false, &dir, &err)) {
        note(v, cws_say_error(root, NULL, &err));
        return;
    }
    if (cws_model_index_check(&dir, !v->quiet, &err)) {
        print_finding("%s", err.message);
        note(v, CWS_EXIT_FINDING);
    }
    for (size_t i = 0; i < dir.count && !__atomic_load_n(v->cancel, __ATOMIC_RELAXED); i++) {
        const struct cws_model_entry *entry = &dir.entries[i];
        if (entry->kind == CWS_MODEL_DIRECTORY || !(entry->is_store || entry->kind == CWS_MODEL_WEIGHTS))
            continue;
        char *path = cws_path_join(root, entry->path);
        verify_store(v, path, true);
        seen += entry->is_store;
        free(path);
    }
    if (seen == 0 && v->worst == CWS_EXIT_FINE) {
        cws_say_line("%s: holds no packed file", root);
        note(v, CWS_EXIT_FAILURE);
    }
    cws_model_dir_free(&dir);
}

static int run_verify(int argc, char **argv)
{
    static const struct option longs[] = {
        {"jobs", required_argument, NULL, 'j'}, {"quiet", no_argument, NULL, 'q'}, {NULL, 0, NULL, 0}};
    struct verify v = {0};
    struct cws_options options;
    struct cws_error err = {0};
    int c;
    while ((c = getopt_long(argc, argv, ":j:q", longs, NULL)) != -1) {
        switch (c) {
        case 'j':
            if (cws_parse_jobs(optarg, &v.jobs))
                return cws_say_usage("verify", "--jobs %s: use 1 to 1024", optarg);
            break;
        case 'q': v.quiet = true; break;
        case ':': return cws_say_usage("verify", "%s needs a value", argv[optind - 1]);
        default: return cws_say_usage("verify", "unknown option %s", argv[optind - 1]);
        }
    }
    if (optind == argc)
        return cws_say_usage("verify", "needs a packed file or directory");
    if (cws_options_from_env(&options, &err)) {
        cws_say_line("%s", err.message);
        return CWS_EXIT_FAILURE;
    }
    v.io = options.io;
    v.cancel = cws_interrupt_flag();
    for (; optind < argc && !__atomic_load_n(v.cancel, __ATOMIC_RELAXED); optind++) {
        err = (struct cws_error){0};
        int directory = cws_path_is_directory(argv[optind], &err);
        if (directory < 0)
            note(&v, cws_say_error(argv[optind], NULL, &err));
        else if (directory)
            verify_directory(&v, argv[optind]);
        else
            verify_store(&v, argv[optind], false);
    }
    return v.worst;
}

const struct cws_verb cws_verb_verify = {
    .name = "verify",
    .summary = "check every checksum and decode every chunk",
    .run = run_verify,
    .help = "Usage: codecllm verify [OPTIONS] PATH...\n"
            "\n"
            "Reads packed files, or all packed files of directories: every checksum is checked, every chunk\n"
            "decoded, every content hash compared. Names tensor and offset of each fault and goes on with\n"
            "the next file. Exit status: 0 fine, 1 a fault was found, 2 a file could not be checked.\n"
            "\n"
            "Options:\n"
            "  --jobs N       threads (default: all cores)\n"
            "  -q, --quiet    print faults only\n"
            "\n"
            "Examples:\n"
            "  codecllm verify ./TinyLlama.packed\n"
            "  codecllm verify --quiet *.safetensors && echo all fine\n",
};
