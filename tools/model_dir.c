/* model_dir.c - walks over a model directory and sorts its files by kind. */
#include "model_dir.h"
#include "store/read/store.h"
#include "say.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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
    const char *infix = strstr(base, ".safetensors.index."); /* then "json", or "VARIANT.json" */
    if (infix && infix > base && ends_with(infix, ".json"))
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

/* Is this what codecllm itself leaves in a directory while it writes, or after a kill? */
static bool is_left_over(const char *base, const char *full, bool directory)
{
    if (base[0] != '.' || !strstr(base, directory ? ".partial-" : ".codecllm-tmp."))
        return false;
    char *marker = cws_path_join(full, CWS_PARTIAL_MARKER);
    bool is = !directory || access(marker, F_OK) == 0;
    free(marker);
    return is;
}

/* The directories that hold the one at work, itself last. */
struct chain {
    const struct chain *above;
    dev_t device;
    ino_t inode;
};

static bool leads_back(const struct chain *chain, const struct stat *st)
{
    for (; chain; chain = chain->above) {
        if (chain->device == st->st_dev && chain->inode == st->st_ino)
            return true;
    }
    return false;
}

struct scan {
    struct cws_model_dir *dir;
    bool say;
    struct cws_error *err;
};

static int scan(const struct scan *s, const char *below, unsigned depth, const struct chain *chain);

static void leave_out(const struct scan *s, const char *full, const char *why)
{
    s->dir->left_out++;
    if (s->say)
        cws_say_line("%s: left out: %s", full, why);
}

static int scan_directory(const struct scan *s, const char *path, const char *full, unsigned depth,
                          const struct chain *chain, const struct stat *st)
{
    struct cws_model_entry *entry;
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const struct chain here = {chain, st->st_dev, st->st_ino};
    if (strcmp(base, ".git") == 0 || strcmp(base, ".cache") == 0)
        return leave_out(s, full, "not part of the model"), 0;
    if (is_left_over(base, full, /* directory */ true))
        return leave_out(s, full, "codecllm makes a directory there, or was killed when it did"), 0;
    if (leads_back(chain, st))
        return leave_out(s, full, "a link back to a directory that holds it"), 0;
    if (depth >= CWS_MODEL_DEPTH)
        return cws_fail(s->err, CWS_E_INPUT, "%s: more than %d levels of directories", full, CWS_MODEL_DEPTH);
    int rc = append(s->dir, path, CWS_MODEL_DIRECTORY, &entry, s->err);
    return rc ? rc : scan(s, path, depth + 1, &here);
}

static int scan_file(const struct scan *s, const char *path, const char *full, const struct stat *st)
{
    struct cws_model_entry *entry;
    const char *slash = strrchr(path, '/');
    if (is_left_over(slash ? slash + 1 : path, full, /* directory */ false))
        return leave_out(s, full, "codecllm writes a file there, or was killed when it did"), 0;
    int store = probe(full, s->err);
    int rc = store < 0 ? store : append(s->dir, path, kind_of(path), &entry, s->err);
    if (rc == 0) {
        entry->is_store = store;
        entry->bytes = (uint64_t)st->st_size;
    }
    return rc;
}

static int scan_entry(const struct scan *s, const char *path, unsigned depth, const struct chain *chain)
{
    char *full = cws_path_join(s->dir->root, path);
    struct stat st;
    int rc = 0;
    if (stat(full, &st) != 0) {
        int why = errno;
        bool link = lstat(full, &st) == 0 && S_ISLNK(st.st_mode);
        if (link && why == ELOOP)
            leave_out(s, full, "a link that leads back to itself");
        else
            rc = link && why == ENOENT
                     ? cws_fail(s->err, CWS_E_INPUT, "%s: the symbolic link leads nowhere; complete the download", full)
                     : cws_fail_errno(s->err, why, "%s", full);
    } else if (S_ISDIR(st.st_mode)) {
        rc = scan_directory(s, path, full, depth, chain, &st);
    } else if (S_ISREG(st.st_mode)) {
        rc = scan_file(s, path, full, &st);
    } else {
        leave_out(s, full, "not a file");
    }
    free(full);
    return rc;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

/* Entries in order of name, so that what is said comes in the same order on every file system. */
static int scan(const struct scan *s, const char *below, unsigned depth, const struct chain *chain)
{
    char *full = below[0] ? cws_path_join(s->dir->root, below) : strdup(s->dir->root);
    struct dirent **items = NULL;
    int count = full ? scandir(full, &items, NULL, by_name) : -1;
    int rc = count < 0 ? cws_fail_errno(s->err, errno, "%s: cannot list", full ? full : s->dir->root) : 0;
    for (int i = 0; i < count; i++) {
        const char *name = items[i]->d_name;
        if (!rc && strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
            char *path = below[0] ? cws_path_join(below, name) : strdup(name);
            rc = path ? scan_entry(s, path, depth, chain) : cws_fail(s->err, -ENOMEM, "%s: out of memory", full);
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
    const struct scan s = {out, say_left_out, err};
    struct stat st;
    int rc = out->root ? 0 : cws_fail(err, -ENOMEM, "%s: out of memory", root);
    if (!rc && stat(root, &st) != 0)
        rc = cws_fail_errno(err, errno, "%s", root);
    if (!rc)
        rc = scan(&s, "", 0, &(struct chain){NULL, st.st_dev, st.st_ino});
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
