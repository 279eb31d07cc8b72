/* cmd_inspect.c - codecllm inspect: what is in a store. Read-only; decodes nothing unless a tensor's symbols are asked
 * for. */
#include "store/read/store.h"
#include "inspect_json.h"
#include "model_dir.h"
#include "say.h"
#include "store/read/symbols.h"
#include "table.h"
#include "verbs.h"

#include <getopt.h>
#include <langinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct inspect {
    const char *tensor; /* --tensor */
    enum cws_io_engine io;
    bool json;
    int worst;           /* enum cws_exit */
    size_t files, found; /* stores shown; of them with the tensor */
    struct cws_inspect_totals all;
    struct cws_inspect_json out;
};

static void shape_text(const struct cws_tensor_info *t, char *buf, size_t size)
{
    size_t at = 0;
    buf[at++] = '[';
    for (size_t i = 0; i < t->ndim && at + 24 < size; i++)
        at += (size_t)snprintf(buf + at, size - at, i ? ", %llu" : "%llu", (unsigned long long)t->shape[i]);
    snprintf(buf + at, size - at, "]");
}

static double ratio(uint64_t logical, uint64_t stored) { return stored ? (double)logical / (double)stored : 1.0; }

static void bits_cell(struct cws_table *table, uint64_t stored, uint64_t elems)
{
    if (elems)
        cws_table_cell(table, "%.2f", 8.0 * (double)stored / (double)elems);
    else
        cws_table_cell(table, "-");
}

static void size_cells(struct cws_table *table, uint64_t logical, uint64_t stored, uint64_t elems)
{
    cws_table_cell(table, "%s", cws_size_text(logical).text);
    cws_table_cell(table, "%s", cws_size_text(stored).text);
    cws_table_cell(table, "%.3f", ratio(logical, stored));
    bits_cell(table, stored, elems);
}

static void print_tensors(const struct cws_store *store, const struct cws_inspect_totals *sum)
{
    static const char *const heads[] = {"tensor",  "dtype",  "shape", "codec",
                                        "logical", "stored", "ratio", "bits/weight"};
    struct cws_table *table = cws_table_create("llllrrrr");
    char name[512], shape[256];
    size_t count = cws_store_tensor_count(store);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cws_table_cell(table, "%s", heads[i]);
    cws_table_rule(table);
    for (size_t i = 0; i < count; i++) {
        const struct cws_tensor_info *t = cws_store_tensor(store, i);
        shape_text(t, shape, sizeof shape);
        cws_table_cell(table, "%s", cws_printable(t->name, name, sizeof name));
        cws_table_cell(table, "%s", t->dtype_name);
        cws_table_cell(table, "%s", shape);
        cws_table_cell(table, "%s", cws_inspect_codec_name(t));
        size_cells(table, t->end - t->begin, t->stored_bytes, t->elems);
    }
    if (count)
        cws_table_rule(table);
    cws_table_cell(table, "%zu tensor%s", count, count == 1 ? "" : "s");
    for (int i = 0; i < 3; i++)
        cws_table_cell(table, "%s", "");
    size_cells(table, sum->tensor_bytes, sum->tensor_stored_bytes, sum->elems);
    cws_table_print(table);
    cws_table_destroy(table);
}

static void print_codecs(const struct cws_inspect_totals *sum)
{
    struct cws_table *table = cws_table_create("lrrrrr");
    static const char *const heads[] = {"codec", "tensors", "logical", "stored", "ratio", "bits/weight"};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cws_table_cell(table, "%s", heads[i]);
    cws_table_rule(table);
    for (size_t i = 0; i < CWS_INSPECT_CODECS; i++) {
        const struct cws_inspect_codec *codec = &sum->codecs[i];
        if (codec->tensors == 0)
            continue;
        cws_table_cell(table, "%s", cws_inspect_codec_label(i));
        cws_table_cell(table, "%llu", (unsigned long long)codec->tensors);
        size_cells(table, codec->logical_bytes, codec->stored_bytes, codec->elems);
    }
    cws_table_print(table);
    cws_table_destroy(table);
}

static void print_file(const char *path, const struct cws_store *store, const struct cws_inspect_totals *sum)
{
    const struct cws_trailer *trailer = cws_store_trailer(store);
    printf("%s: store, format %u, %s\n\n", path, trailer->version,
           cws_store_is_lossy(store) ? "lossy (not the bits that were packed)" : "lossless");
    print_tensors(store, sum);
    putchar('\n');
    print_codecs(sum);
    printf("\nLogical file: %s (%llu B)\n", cws_size_text(sum->logical_bytes).text,
           (unsigned long long)sum->logical_bytes);
    printf("Stored file:  %s (%llu B), ratio %.3f", cws_size_text(sum->file_bytes).text,
           (unsigned long long)sum->file_bytes, ratio(sum->logical_bytes, sum->file_bytes));
    if (sum->elems)
        printf(", %.2f bits/weight with everything counted", 8.0 * (double)sum->file_bytes / (double)sum->elems);
    printf("\nChunks:       %llu\nContent hash: %016llx%016llx\n", (unsigned long long)cws_store_chunk_count(store),
           (unsigned long long)trailer->content_hash[1], (unsigned long long)trailer->content_hash[0]);
}

/* --- one tensor -------------------------------------------------------------------------------------- */

/* A bar of `width` columns at most; eighths of a column where the terminal's character set has them. */
static void print_bar(double part, int width)
{
    static const char *const eighths[] = {"", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589"};
    bool utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    int units = (int)(part * width * (utf8 ? 8 : 1) + 0.5);
    if (units == 0 && part > 0)
        units = 1;
    for (int i = 0; i < units / (utf8 ? 8 : 1); i++)
        fputs(utf8 ? "\u2588" : "#", stdout);
    if (utf8)
        fputs(eighths[units % 8], stdout);
}

static void print_symbols(const struct cws_tensor_info *t, const struct cws_symbols *symbols)
{
    bool quant = t->record->codec == CWS_CODEC_QUANT;
    uint64_t most = 1;
    for (unsigned s = 0; s < 256; s++)
        most = symbols->count[s] > most ? symbols->count[s] : most;
    printf("\n%6s %12s %8s %9s\n", quant ? "code" : "byte", "count", "share", "code bits");
    for (unsigned s = 0; s < 256; s++) {
        if (!symbols->count[s])
            continue;
        printf("%6d %12llu %7.3f%% %9u  ", quant ? (int)s - 128 : (int)s, (unsigned long long)symbols->count[s],
               100.0 * (double)symbols->count[s] / (double)symbols->total, symbols->length[s]);
        print_bar((double)symbols->count[s] / (double)most, 40);
        putchar('\n');
    }
    printf("\n%llu %s, entropy %.4f bits each, code %.4f bits each (%.2f %% over)\n",
           (unsigned long long)symbols->total, quant ? "codes" : "exponent bytes", symbols->entropy_bits,
           symbols->mean_bits,
           symbols->entropy_bits > 0 ? 100.0 * (symbols->mean_bits / symbols->entropy_bits - 1) : 0.0);
}

static int print_tensor(const char *path, const struct cws_store *store, const struct cws_tensor_info *t,
                        struct cws_error *err)
{
    struct cws_symbols symbols;
    char name[512], shape[256];
    bool coded = t->record->codec == CWS_CODEC_SPLIT || t->record->codec == CWS_CODEC_QUANT;
    int rc = coded ? cws_symbols_count(store, t, &symbols, err) : 0;
    if (rc)
        return rc;
    uint64_t bytes = t->end - t->begin;
    shape_text(t, shape, sizeof shape);
    printf("File:    %s\nTensor:  %s\nType:    %s %s\nCodec:   %s, chunks: %llu, of %s at most\n", path,
           cws_printable(t->name, name, sizeof name), t->dtype_name, shape, cws_inspect_codec_name(t),
           (unsigned long long)t->record->chunk_count, cws_size_text(t->record->chunk_bytes).text);
    printf("Logical: %s (%llu B) at offset %llu\nStored:  %s (%llu B), ratio %.3f", cws_size_text(bytes).text,
           (unsigned long long)bytes, (unsigned long long)t->begin, cws_size_text(t->stored_bytes).text,
           (unsigned long long)t->stored_bytes, ratio(bytes, t->stored_bytes));
    if (t->elems)
        printf(", %.2f bits/weight", 8.0 * (double)t->stored_bytes / (double)t->elems);
    printf("\nHash:    %016llx%016llx\n", (unsigned long long)t->record->content_hash[1],
           (unsigned long long)t->record->content_hash[0]);
    if (coded)
        print_symbols(t, &symbols);
    return 0;
}

/* --- the verb ------------------------------------------------------------------------------------------ */

static void inspect_tensor(struct inspect *job, const char *path, const struct cws_store *store)
{
    struct cws_error err = {0};
    const struct cws_tensor_info *t = cws_store_tensor_find(store, job->tensor);
    if (!t)
        return;
    job->found++;
    if (job->json)
        cws_inspect_json_tensor(&job->out, store, t, &err);
    else
        (void)print_tensor(path, store, t, &err);
    if (err.code)
        job->worst = cws_say_error(path, NULL, &err);
}

static void inspect_store(struct inspect *job, const char *path)
{
    struct cws_error err = {0};
    struct cws_store *store;
    struct cws_inspect_totals sum = {0};
    if (cws_store_open(path, job->io, &store, &err)) {
        int status = err.code == CWS_E_TRUNCATED || err.code == CWS_E_CORRUPT ? CWS_EXIT_FINDING : CWS_EXIT_FAILURE;
        cws_say_error(path, NULL, &err);
        job->worst = status > job->worst ? status : job->worst;
        return;
    }
    cws_inspect_add(store, &sum);
    cws_inspect_add(store, &job->all);
    if (job->tensor) {
        inspect_tensor(job, path, store);
    } else if (job->json) {
        cws_inspect_json_store(&job->out, path, store, &sum);
    } else {
        if (job->files)
            putchar('\n');
        print_file(path, store, &sum);
    }
    job->files++;
    cws_store_close(store);
}

static void inspect_directory(struct inspect *job, const char *root)
{
    struct cws_error err = {0};
    struct cws_model_dir dir;
    if (cws_model_dir_scan(root, false, &dir, &err)) {
        job->worst = cws_say_error(root, NULL, &err);
        return;
    }
    for (size_t i = 0; i < dir.count; i++) {
        char *path = cws_path_join(root, dir.entries[i].path);
        if (dir.entries[i].is_store)
            inspect_store(job, path);
        else if (dir.entries[i].kind == CWS_MODEL_WEIGHTS)
            cws_say_line("%s: not a readable store, not shown; 'codecllm verify' tells why", path);
        free(path);
    }
    cws_model_dir_free(&dir);
    if (job->files == 0 && job->worst == CWS_EXIT_FINE) {
        cws_say_line("%s: holds no packed file", root);
        job->worst = CWS_EXIT_FAILURE;
    } else if (job->files > 1 && !job->json && !job->tensor) {
        const struct cws_inspect_totals *all = &job->all;
        printf("\n%s: %zu stores, all together\n\n", root, job->files);
        print_codecs(all);
        printf("\nLogical files: %s (%llu B)\nStored files:  %s (%llu B), ratio %.3f\n",
               cws_size_text(all->logical_bytes).text, (unsigned long long)all->logical_bytes,
               cws_size_text(all->file_bytes).text, (unsigned long long)all->file_bytes,
               ratio(all->logical_bytes, all->file_bytes));
    }
}

static int run_inspect(int argc, char **argv)
{
    static const struct option longs[] = {
        {"json", no_argument, NULL, 'J'}, {"tensor", required_argument, NULL, 't'}, {NULL, 0, NULL, 0}};
    struct inspect job = {0};
    struct cws_options options;
    struct cws_error err = {0};
    int c;
    while ((c = getopt_long(argc, argv, ":t:", longs, NULL)) != -1) {
        switch (c) {
        case 'J': job.json = true; break;
        case 't': job.tensor = optarg; break;
        case ':': return cws_say_usage("inspect", "%s needs a value", argv[optind - 1]);
        default: return cws_say_usage("inspect", "unknown option %s", argv[optind - 1]);
        }
    }
    if (argc - optind != 1)
        return cws_say_usage("inspect", "needs one packed file or directory");
    if (job.tensor) { /* the only case that reads more than the index */
        if (cws_options_from_env(&options, &err)) {
            cws_say_line("%s", err.message);
            return CWS_EXIT_FAILURE;
        }
        job.io = options.io;
    }
    const char *path = argv[optind];
    int directory = cws_path_is_directory(path, &err);
    if (directory < 0)
        job.worst = cws_say_error(path, NULL, &err);
    else if (directory)
        inspect_directory(&job, path);
    else
        inspect_store(&job, path);
    if (job.tensor && job.files && !job.found) {
        cws_say_line("%s: no tensor is called '%s'", path, job.tensor);
        job.worst = CWS_EXIT_FAILURE;
    }
    if (job.json && cws_inspect_json_end(&job.out, job.tensor ? NULL : &job.all) != 0) {
        cws_say_line("out of memory");
        job.worst = CWS_EXIT_FAILURE;
    }
    return job.worst;
}

const struct cws_verb cws_verb_inspect = {
    .name = "inspect",
    .summary = "show what is in a packed file or directory",
    .run = run_inspect,
    .help = "Usage: codecllm inspect [OPTIONS] PATH\n"
            "\n"
            "Shows the tensors of a packed file, or of every packed file of a directory, with their codecs and\n"
            "sizes. Reads the index only; 'codecllm verify' checks the data.\n"
            "\n"
            "Options:\n"
            "  --json           the same for programs\n"
            "  --tensor NAME    one tensor: decodes it and draws how often each coded symbol occurs\n"
            "\n"
            "Examples:\n"
            "  codecllm inspect ./TinyLlama.packed\n"
            "  codecllm inspect --tensor model.embed_tokens.weight ./TinyLlama.packed\n"
            "  codecllm inspect --json model.packed.safetensors | jq '.totals'\n",
};
