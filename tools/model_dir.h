/* model_dir.h - what is in a model directory as Hugging Face lays it out: files to pack, an index of shards, the rest.
 * Symbolic links are followed, as every hub cache is made of them. Version-control and download state (.git, .cache) is
 * left out. Directories may nest CWS_MODEL_DEPTH levels. Threads: one. */
#ifndef CWS_MODEL_DIR_H
#define CWS_MODEL_DIR_H
#include "store/base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CWS_MODEL_DEPTH 8
#define CWS_PARTIAL_MARKER ".codecllm-partial" /* in a directory that is being made: output_dir.h */

enum cws_model_kind {
    CWS_MODEL_DIRECTORY,
    CWS_MODEL_WEIGHTS, /* NAME.safetensors, packed or not */
    CWS_MODEL_INDEX,   /* NAME.safetensors.index.json, NAME.safetensors.index.VARIANT.json */
    CWS_MODEL_CONFIG,  /* config.json */
    CWS_MODEL_OTHER,
};

struct cws_model_entry {
    char *path; /* below the root; a directory comes before what is in it */
    enum cws_model_kind kind;
    bool is_store;  /* a regular file that is a codecllm store, whatever its name */
    bool is_needed; /* an index names it: cws_model_index_check */
    uint64_t bytes;
};

struct cws_model_dir {
    char *root;
    struct cws_model_entry *entries; /* by path */
    size_t count;
    /* sockets, pipes, devices, .git, .cache, links back up, what codecllm is writing: each was said on stderr when
     * scan was told to */
    size_t left_out;
};

/* Lists `root`. On an error nothing is left to free. Errors: -errno with the path in the line; CWS_E_INPUT: nested too
 * deep or a link that goes nowhere. A link back to a directory that holds it is left out. */
CWS_MUST_CHECK int cws_model_dir_scan(const char *root, bool say_left_out, struct cws_model_dir *out,
                                      struct cws_error *err);
void cws_model_dir_free(struct cws_model_dir *dir);

/* What a person named as an input: 1 a directory, 0 a regular file; otherwise -errno or CWS_E_USAGE (a pipe, a device)
 * with the path in the line. */
CWS_MUST_CHECK int cws_path_is_directory(const char *path, struct cws_error *err);

/* "a/b" in fresh memory; ends the process with a line when there is none. */
char *cws_path_join(const char *a, const char *b);

#endif
