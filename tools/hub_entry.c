/* hub_entry.c - finds the snapshot of a model in the cache of the Hugging Face Hub. */
#include "hub_entry.h"
#include "model_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Is `below` a directory in path? */
static bool has_directory(const char *path, const char *below)
{
    struct stat st;
    char *full = cws_path_join(path, below);
    bool is = stat(full, &st) == 0 && S_ISDIR(st.st_mode);
    free(full);
    return is;
}

static bool is_entry(const char *path)
{
    return has_directory(path, "snapshots") && (has_directory(path, "blobs") || has_directory(path, "refs"));
}

/* The directory below path/snapshots that refs/main names, in fresh memory; NULL: it names none that is there. */
static char *main_snapshot(const char *path)
{
    char commit[128] = "", *file = cws_path_join(path, "refs/main"), *snapshot = NULL;
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t bytes = fd < 0 ? 0 : read(fd, commit, sizeof commit - 1);
    commit[bytes > 0 ? bytes : 0] = '\0';
    commit[strcspn(commit, " \t\r\n")] = '\0';
    if (commit[0] && commit[0] != '.' && !strchr(commit, '/')) {
        char *snapshots = cws_path_join(path, "snapshots");
        if (has_directory(snapshots, commit))
            snapshot = cws_path_join(snapshots, commit);
        free(snapshots);
    }
    if (fd >= 0)
        close(fd);
    free(file);
    return snapshot;
}

/* The first by name of the directories in `path` that `accept` takes, in fresh memory, and how many there are. */
static char *first_directory(const char *path, bool (*accept)(const char *full, const char *name), size_t *out_count)
{
    DIR *handle = opendir(path);
    char *first = NULL;
    *out_count = 0;
    for (struct dirent *item; handle && (item = readdir(handle)) != NULL;) {
        char *full = cws_path_join(path, item->d_name);
        if (item->d_name[0] == '.' || !has_directory(path, item->d_name) || !accept(full, item->d_name)) {
            free(full);
            continue;
        }
        ++*out_count;
        if (!first || strcmp(full, first) < 0) {
            free(first);
            first = full;
        } else {
            free(full);
        }
    }
    if (handle)
        closedir(handle);
    return first;
}

static bool any(const char *full, const char *name)
{
    (void)full, (void)name;
    return true;
}

static bool is_model(const char *full, const char *name)
{
    return strncmp(name, "models--", strlen("models--")) == 0 && is_entry(full);
}

int cws_hub_snapshot(const char *path, char **out, struct cws_error *err)
{
    size_t count;
    int rc = 0;
    *out = NULL;
    if (!is_entry(path)) {
        char *model = first_directory(path, is_model, &count);
        if (model)
            rc = cws_fail(err, CWS_E_USAGE, "%s: is a cache of %zu model%s; name one of them, such as %s", path, count,
                          count == 1 ? "" : "s", model);
        free(model);
        return rc;
    }
    *out = main_snapshot(path);
    if (*out)
        return 0;
    char *snapshots = cws_path_join(path, "snapshots"), *first = first_directory(snapshots, any, &count);
    free(snapshots);
    if (count == 1) {
        *out = first;
        return 0;
    }
    if (count)
        rc = cws_fail(err, CWS_E_USAGE, "%s: has %zu snapshots, and refs/main names none of them; name one, such as %s",
                      path, count, first);
    else
        rc = cws_fail(err, CWS_E_USAGE, "%s: holds no snapshot; complete the download", path);
    free(first);
    return rc;
}
