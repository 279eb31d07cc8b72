/* model_index.c - compares the indexes of shards in a model directory with the files there. */
#include "model_index.h"
#include "store/pack/input.h"
#include "store/read/store.h"
#include "json_text.h"
#include "say.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INFIX ".safetensors.index."

/* An index, and how it was found to be. */
struct index {
    struct cws_model_dir *dir;
    const char *path; /* below the root */
    char *full;
    json_t *root, *map;             /* its text; its weight_map */
    struct cws_model_entry *single; /* what Transformers loads in its place, or NULL */
    const char *missing;            /* the first shard that is not there, or NULL */
    size_t present, absent;         /* weights whose shard is there, or not */
};

static int by_path(const void *a, const void *b)
{
    const struct cws_model_entry *x = a, *y = b;
    return strcmp(x->path, y->path);
}

/* The file at the directory of `beside`, then `name`; NULL when there is none. */
static struct cws_model_entry *find(const struct cws_model_dir *dir, const char *beside, const char *name)
{
    const char *slash = strrchr(beside, '/');
    char *path;
    if (asprintf(&path, "%.*s%s", slash ? (int)(slash - beside + 1) : 0, beside, name) < 0)
        return NULL;
    struct cws_model_entry key = {.path = path};
    struct cws_model_entry *found = bsearch(&key, dir->entries, dir->count, sizeof key, by_path);
    free(path);
    return found && found->kind != CWS_MODEL_DIRECTORY ? found : NULL;
}

static bool has_weights(const struct cws_model_entry *entry)
{
    return entry && entry->kind == CWS_MODEL_WEIGHTS && entry->bytes > 0;
}

static bool same_directory(const char *a, const char *b)
{
    const char *x = strrchr(a, '/'), *y = strrchr(b, '/');
    size_t len = x ? (size_t)(x - a) : 0;
    return len == (y ? (size_t)(y - b) : 0) && strncmp(a, b, len) == 0;
}

/* model.safetensors of model.safetensors.index.json, model.fp16.safetensors of model.safetensors.index.fp16.json. */
static struct cws_model_entry *find_single(const struct cws_model_dir *dir, const char *index)
{
    const char *slash = strrchr(index, '/'), *base = slash ? slash + 1 : index;
    const char *infix = strstr(base, INFIX), *json = strrchr(base, '.');
    const char *variant = infix ? infix + strlen(INFIX) : NULL;
    char *name;
    if (!infix || asprintf(&name, "%.*s%s%.*s.safetensors", (int)(infix - base), base, variant < json ? "." : "",
                           variant < json ? (int)(json - variant) : 0, variant) < 0)
        return NULL;
    struct cws_model_entry *found = find(dir, index, name);
    free(name);
    return has_weights(found) ? found : NULL;
}

/* May a shard be looked for under this name, and packed to it? */
static bool is_inside(const char *name)
{
    if (!*name || *name == '/')
        return false;
    for (const char *part = name; part; part = strchr(part, '/')) {
        part += *part == '/';
        size_t len = strcspn(part, "/");
        if (len == 0 || (len == 1 && part[0] == '.') || (len == 2 && part[0] == '.' && part[1] == '.'))
            return false;
    }
    return true;
}

/* --- a missing shard ----------------------------------------------------------------------------- */

/* Adds the names of the tensors of a weight file; nothing for one that cannot be read. */
static void add_tensors(json_t *names, const char *path, bool is_store)
{
    struct cws_error err;
    if (is_store) {
        struct cws_store *store;
        if (cws_store_open(path, CWS_IO_AUTO, &store, &err))
            return;
        for (size_t i = 0; i < cws_store_tensor_count(store); i++)
            json_object_set_new_nocheck(names, cws_store_tensor(store, i)->name, json_true());
        cws_store_close(store);
    } else {
        struct cws_pack_input in;
        const struct cws_pack_options options = {0};
        if (cws_pack_input_open(&in, path, &options, &err))
            return;
        for (size_t i = 0; i < in.source->tensor_count; i++)
            json_object_set_new_nocheck(names, in.source->tensors[i].name, json_true());
        cws_pack_input_close(&in);
    }
}

/* Do the weight files of the index's directory hold every tensor whose shard is not there? */
static bool has_all_tensors(const struct index *x)
{
    const char *slash = strrchr(x->path, '/'), *tensor;
    size_t place = slash ? (size_t)(slash - x->path) + 1 : 0;
    json_t *names = json_object(), *shard;
    bool all = names != NULL;
    for (size_t i = 0; i < x->dir->count; i++) {
        const struct cws_model_entry *entry = &x->dir->entries[i];
        if (has_weights(entry) && strncmp(entry->path, x->path, place) == 0) {
            char *path = cws_path_join(x->dir->root, entry->path);
            add_tensors(names, path, entry->is_store);
            free(path);
        }
    }
    json_object_foreach(x->map, tensor, shard)
        all = all && (find(x->dir, x->path, json_string_value(shard)) || json_object_get(names, tensor));
    json_decref(names);
    return all;
}

/* Is there a weight file in the directory of the index? */
static bool has_other_weights(const struct index *x)
{
    bool found = false;
    for (size_t i = 0; i < x->dir->count; i++)
        found = found || (has_weights(&x->dir->entries[i]) && same_directory(x->dir->entries[i].path, x->path));
    return found;
}

static int judge_missing(const struct index *x, bool say, struct cws_error *err)
{
    char shard[256];
    cws_printable(x->missing, shard, sizeof shard);
    const char *why =
        x->single ? "the model is complete without it, in one file"
        : !x->present && has_other_weights(x)
            ? "nor is any other that it names; is it the index of another build? Transformers will not load this "
              "directory, others load the weight files that are there"
        : has_all_tensors(x) ? "but all of its tensors are in other files; is it the index of another build?"
                             : NULL;
    if (!why)
        return cws_fail(err, CWS_E_INPUT, "%s: shard '%s' is not in the directory; complete the download", x->full,
                        shard);
    if (say)
        cws_say_line("%s: shard '%s' is not in the directory, %s", x->full, shard, why);
    return 0;
}

/* --- one index ----------------------------------------------------------------------------------- */

static int check_names(struct index *x, struct cws_error *err)
{
    const char *tensor;
    char printable[256];
    json_t *value;
    json_object_foreach(x->map, tensor, value)
    {
        const char *shard = json_string_value(value);
        if (!shard)
            return cws_fail(err, CWS_E_INPUT, "%s: weight_map: '%s' names no file", x->full,
                            cws_printable(tensor, printable, sizeof printable));
        if (!is_inside(shard))
            return cws_fail(err, CWS_E_INPUT,
                            "%s: weight_map: shard name '%s' is refused: it must be the name of a file below "
                            "this directory",
                            x->full, cws_printable(shard, printable, sizeof printable));
        struct cws_model_entry *entry = find(x->dir, x->path, shard);
        if (entry) {
            entry->is_needed = true;
            x->present++;
        } else if (x->absent++ == 0) {
            x->missing = shard;
        }
    }
    return 0;
}

/* Why it cannot be read, as an error. */
static int load(struct index *x, struct cws_json_twice *twice, struct cws_error *err)
{
    char *text;
    size_t len;
    struct stat st;
    int rc = cws_json_read(x->full, &text, &len, &st, err);
    if (rc)
        return rc;
    x->root = cws_json_objects(text, len, twice);
    free(text);
    x->map = json_object_get(x->root, "weight_map");
    return json_is_object(x->map) ? 0 : cws_fail(err, CWS_E_INPUT, "%s: has no \"weight_map\" object", x->full);
}

static int check_index(struct cws_model_dir *dir, const char *path, bool say, struct cws_error *err)
{
    struct index x = {
        .dir = dir, .path = path, .full = cws_path_join(dir->root, path), .single = find_single(dir, path)};
    struct cws_json_twice twice = {""};
    struct cws_error why = {0};
    int rc = load(&x, &twice, &why);
    if (rc == CWS_E_INPUT && x.single) {
        rc = 0;
        if (say)
            cws_say_line("%s; the model is complete without it, in one file", why.message);
    } else if (rc) {
        *err = why;
    } else {
        rc = check_names(&x, err);
        if (!rc && x.missing)
            rc = judge_missing(&x, say, err);
        else if (!rc && twice.text[0] && say)
            cws_say_line("%s: %s", x.full, twice.text);
    }
    json_decref(x.root);
    free(x.full);
    return rc;
}

int cws_model_index_check(struct cws_model_dir *dir, bool say, struct cws_error *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < dir->count; i++) {
        if (dir->entries[i].kind == CWS_MODEL_INDEX)
            rc = check_index(dir, dir->entries[i].path, say, err);
    }
    return rc;
}

json_t *cws_model_index_shards(const char *text, size_t len)
{
    struct cws_json_twice twice;
    json_t *root = cws_json_objects(text, len, &twice), *map = json_object_get(root, "weight_map"), *value;
    json_t *out = json_is_object(map) ? json_object() : NULL;
    const char *tensor;
    json_object_foreach(map, tensor, value)
    {
        if (out && json_is_string(value) &&
            json_object_set_new_nocheck(out, json_string_value(value), json_true()) != 0) {
            json_decref(out);
            out = NULL;
        }
    }
    json_decref(root);
    return out;
}

/* --- files that only look like weights ------------------------------------------------------------ */

/* Transformers, diffusers and PEFT load these by name: NAME.safetensors and NAME.VARIANT.safetensors. */
static bool is_loaded_by_name(const char *path)
{
    static const char *const names[] = {"model.", "diffusion_pytorch_model.", "adapter_model."};
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strncmp(base, names[i], strlen(names[i])) == 0)
            return true;
    }
    return false;
}

/* Could its directory be loaded if this file were not there? */
static bool can_do_without(const struct cws_model_dir *dir, const struct cws_model_entry *entry)
{
    for (size_t i = 0; i < dir->count; i++) {
        const struct cws_model_entry *other = &dir->entries[i];
        if (other != entry && has_weights(other) && same_directory(other->path, entry->path) &&
            (other->is_needed || is_loaded_by_name(other->path) || entry->bytes == 0))
            return true;
    }
    return false;
}

int cws_model_index_set_strays_aside(struct cws_model_dir *dir, bool say, struct cws_error *err)
{
    const struct cws_pack_options options = {0};
    for (size_t i = 0; i < dir->count; i++) {
        struct cws_model_entry *entry = &dir->entries[i];
        if (entry->kind != CWS_MODEL_WEIGHTS || entry->is_store || entry->is_needed || is_loaded_by_name(entry->path) ||
            !can_do_without(dir, entry))
            continue;
        struct cws_pack_input in;
        struct cws_error why = {0};
        char *path = cws_path_join(dir->root, entry->path);
        int rc = cws_pack_input_open(&in, path, &options, &why);
        if (!rc) {
            cws_pack_input_close(&in);
        } else if (rc == CWS_E_INPUT) {
            entry->kind = CWS_MODEL_OTHER;
            if (say)
                cws_say_line("%s (copied as it is: the model can be loaded without it)", why.message);
        } else {
            *err = why;
        }
        free(path);
        if (rc && rc != CWS_E_INPUT)
            return rc;
    }
    return 0;
}
