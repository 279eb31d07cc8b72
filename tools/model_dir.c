#include "model_dir.h"
#include "../store/store.h"
#include "say.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *cws_path_join(const char *a, const char *b)
{
    char *out = NULL;
    size_t len = strlen(a);
    if (asprintf(&out, "%s%s%s", a, len && a[len - 1] == '/' ? "" : "/", b) < 0) {
        cws_say_line("out of memory");
        exit(2);
    }
    return out;
}

int cws_path_is_directory(const char *path, struct cws_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return cws_fail_errno(err, errno, "%s", path);
    if (S_ISDIR(st.st_mode))
        return 1;
    return S_ISREG(st.st_mode) ? 0 : cws_fail(err, CWS_E_USAGE, "%s: is neither a file nor a directory", path);
}

static bool ends_with(const char *s, const char *suffix)
{
    size_t a = strlen(s), b = strlen(suffix);
    return a > b && strcmp(s + a - b, suffix) == 0;
}

static enum cws_model_kind kind_of(const char *name)
{
    const char *base = strrchr(name, '/');
    base = base ? base + 1 : name;
    if (ends_with(base, ".safetensors"))
        return CWS_MODEL_WEIGHTS;
    if (ends_with(base, ".safetensors.index.json"))
        return CWS_MODEL_INDEX;
    return strcmp(base, "config.json") == 0 ? CWS_MODEL_CONFIG : CWS_MODEL_OTHER;
}

static int append(struct cws_model_dir *dir, const char *path, enum cws_model_kind kind, struct cws_model_entry **out,
                  struct cws_error *err)
{
    struct cws_model_entry *grown = realloc(dir->entries, (dir->count + 1) * sizeof *grown);
    if (!grown)
        return cws_fail(err, -ENOMEM, "%s: out of memory", dir->root);
    dir->entries = grown;
    *out = &grown[dir->count];
    **out = (struct cws_model_entry){.path = strdup(path), .kind = kind};
    if (!(*out)->path)
        return cws_fail(err, -ENOMEM, "%s: out of memory", dir->root);
    dir->count++;
    return 0;
}

/* 1 store, 0 not, or -errno. */
static int probe(const char *path, struct cws_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return cws_fail_errno(err, errno, "%s: cannot open", path);
    int verdict = cws_store_probe_fd(fd);
    close(fd);
    return verdict < 0 ? cws_fail(err, verdict, "%s: cannot read: %s", path, cws_strerror(verdict)) : verdict;
}

static int scan(struct cws_model_dir *dir, const char *below, unsigned depth, bool say, struct cws_error *err);

static int scan_entry(struct cws_model_dir *dir, const char *path, unsigned depth, bool say, struct cws_error *err)
{
    char *full = cws_path_join(dir->root, path);
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    struct cws_model_entry *entry = NULL;
    struct stat st;
    int rc = 0;
    if (stat(full, &st) != 0) {
        int why = errno;
        rc = lstat(full, &st) == 0 && S_ISLNK(st.st_mode) && why == ENOENT
                 ? cws_fail(err, CWS_E_INPUT, "%s: the symbolic link leads nowhere; complete the download", full)
                 : cws_fail_errno(err, why, "%s", full);
    } else if (S_ISDIR(st.st_mode) && strcmp(base, ".git") != 0 && strcmp(base, ".cache") != 0) {
        if (depth >= CWS_MODEL_DEPTH)
            rc = cws_fail(err, CWS_E_INPUT, "%s: more than %d levels of directories; does a link lead back up?", full,
                          CWS_MODEL_DEPTH);
        else if ((rc = append(dir, path, CWS_MODEL_DIRECTORY, &entry, err)) == 0)
            rc = scan(dir, path, depth + 1, say, err);
    } else if (S_ISREG(st.st_mode)) {
        int store = probe(full, err);
        rc = store < 0 ? store : append(dir, path, kind_of(path), &entry, err);
        if (rc == 0) {
            entry->is_store = store;
            entry->bytes = (uint64_t)st.st_size;
        }
    } else {
        dir->left_out++;
        if (say)
            cws_say_line("%s: left out: %s", full, S_ISDIR(st.st_mode) ? "not part of the model" : "not a file");
    }
    free(full);
    return rc;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Entries in order of name, so that what is said comes in the same order on every file system. */
static int scan(struct cws_model_dir *dir, const char *below, unsigned depth, bool say, struct cws_error *err)
{
    char *full = below[0] ? cws_path_join(dir->root, below) : strdup(dir->root);
    struct dirent **items = NULL;
    int count = full ? scandir(full, &items, NULL, by_name) : -1;
    int rc = count < 0 ? cws_fail_errno(err, errno, "%s: cannot list", full ? full : dir->root) : 0;
    for (int i = 0; i < count; i++) {
        const char *name = items[i]->d_name;
        if (!rc && strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
            char *path = below[0] ? cws_path_join(below, name) : strdup(name);
            rc = path ? scan_entry(dir, path, depth, say, err) : cws_fail(err, -ENOMEM, "%s: out of memory", full);
            free(path);
        }
        free(items[i]);
    }
    free(items);
    free(full);
    return rc;
}

static int by_path(const void *a, const void *b)
{
    const struct cws_model_entry *x = a, *y = b;
    return strcmp(x->path, y->path);
}

int cws_model_dir_scan(const char *root, bool say_left_out, struct cws_model_dir *out, struct cws_error *err)
{
    *out = (struct cws_model_dir){.root = strdup(root)};
    int rc = out->root ? scan(out, "", 0, say_left_out, err) : cws_fail(err, -ENOMEM, "%s: out of memory", root);
    if (rc)
        cws_model_dir_free(out);
    else if (out->count)
        qsort(out->entries, out->count, sizeof *out->entries, by_path);
    return rc;
}

void cws_model_dir_free(struct cws_model_dir *dir)
{
    for (size_t i = 0; i < dir->count; i++)
        free(dir->entries[i].path);
    free(dir->entries);
    free(dir->root);
    *dir = (struct cws_model_dir){0};
}

static bool has_file(const struct cws_model_dir *dir, const char *path)
{
    struct cws_model_entry key = {.path = (char *)path};
    const struct cws_model_entry *found = bsearch(&key, dir->entries, dir->count, sizeof key, by_path);
    return found && found->kind != CWS_MODEL_DIRECTORY;
}

static int check_shard(const struct cws_model_dir *dir, const char *index, const char *full, const char *tensor,
                       const json_t *value, bool *out_missing, struct cws_error *err)
{
    const char *shard = json_string_value(value), *slash = strrchr(index, '/');
    char printable[256];
    if (!shard)
        return cws_fail(err, CWS_E_INPUT, "%s: weight_map: '%s' names no file", full,
                        cws_printable(tensor, printable, sizeof printable));
    if (!*shard || strchr(shard, '/') || strstr(shard, ".."))
        return cws_fail(err, CWS_E_INPUT, "%s: weight_map: shard name '%s' is refused: it must be a plain file name", full,
                        cws_printable(shard, printable, sizeof printable));
    char *path;
    if (asprintf(&path, "%.*s%s", slash ? (int)(slash - index + 1) : 0, index, shard) < 0)
        return cws_fail(err, -ENOMEM, "%s: out of memory", full);
    *out_missing = !has_file(dir, path);
    free(path);
    if (*out_missing)
        return cws_fail(err, CWS_E_INPUT, "%s: shard '%s' is not in the directory; complete the download", full,
                        cws_printable(shard, printable, sizeof printable));
    return 0;
}

static int check_index(const struct cws_model_dir *dir, const char *index, bool *out_missing, struct cws_error *err)
{
    char *full = cws_path_join(dir->root, index);
    json_error_t why;
    const char *tensor;
    json_t *value, *root = json_load_file(full, JSON_REJECT_DUPLICATES, &why);
    json_t *map = json_object_get(root, "weight_map");
    int rc = 0;
    if (!root)
        rc = cws_fail(err, CWS_E_INPUT, "%s: line %d: %s", full, why.line, why.text);
    else if (!json_is_object(map))
        rc = cws_fail(err, CWS_E_INPUT, "%s: has no \"weight_map\" object", full);
    else
        json_object_foreach(map, tensor, value) {
            if ((rc = check_shard(dir, index, full, tensor, value, out_missing, err)) != 0)
                break;
        }
    json_decref(root);
    free(full);
    return rc;
}

int cws_model_dir_check_indexes(const struct cws_model_dir *dir, bool *out_missing, struct cws_error *err)
{
    *out_missing = false;
    for (size_t i = 0; i < dir->count; i++) {
        if (dir->entries[i].kind != CWS_MODEL_INDEX)
            continue;
        int rc = check_index(dir, dir->entries[i].path, out_missing, err);
        if (rc)
            return rc;
    }
    return 0;
}
