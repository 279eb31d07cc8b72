/* model_index.h - does a model directory hold what its indexes of shards say? Threads: one.
 *
 * Transformers loads NAME.safetensors where it is there, else the shards that NAME.safetensors.index.json names; others
 * load every *.safetensors file. So an index may be left over from another build, and be wrong without doing harm. */
#ifndef CWS_MODEL_INDEX_H
#define CWS_MODEL_INDEX_H
#include "model_dir.h"
#include <jansson.h>

/* Checks every index in the directory. Refused are:
 *   one that is no JSON, or has no "weight_map" object of file names, unless the file that is loaded in its place is
 *   there; one that names a shard that is not there, unless that file is there, or none of its shards is but other
 *   weight files lie beside it, or other weight files hold all the tensors of the missing shards; a shard name that
 *   leads out of the directory: absolute, or with a part ".." .
 * What is wrong and not refused is one line per index, where `say` is true. Marks the entries that an index names.
 * CWS_E_INPUT with index and shard in the line, -errno. */
CWS_MUST_CHECK int cws_model_index_check(struct cws_model_dir *dir, bool say, struct cws_error *err);

/* The weight files that are no safetensors files though they have the name, and that nothing needs: they become
 * CWS_MODEL_OTHER, with a line each where `say` is true. Needed are those that an index names and those that are loaded
 * by their name; an empty file beside another one is never needed by what could be loaded. Call cws_model_index_check
 * first.
 * Errors: -errno. */
CWS_MUST_CHECK int cws_model_index_set_strays_aside(struct cws_model_dir *dir, bool say, struct cws_error *err);

/* The shards of an index, each once: keys of a JSON object. NULL: there is no weight_map, or no memory. */
json_t *cws_model_index_shards(const char *text, size_t len);

#endif
