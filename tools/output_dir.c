#include "output_dir.h"
#include "model_dir.h"
#include "say.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The directory that holds `path`, in fresh memory; NULL without memory. */
static char *parent_of(const char *path)
{
    char *copy = strdup(path), *out = copy ? strdup(dirname(copy)) : NULL;
    free(copy);
    return out;
}

/* 0 if nothing stands at `path` or an empty directory. */
static int check_free(const char *path, struct cws_error *err)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : cws_fail_errno(err, errno, "%s", path);
    if (S_ISLNK(st.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: is a symbolic link; outputs are not written through links, name a new directory",
                        path);
    if (!S_ISDIR(st.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: is a file; a directory needs a directory for its output", path);
    DIR *handle = opendir(path);
    if (!handle)
        return cws_fail_errno(err, errno, "%s: cannot list", path);
    bool empty = true;
    for (struct dirent *item; empty && (item = readdir(handle)) != NULL;)
        empty = strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0;
    closedir(handle);
    return empty ? 0
                 : cws_fail(err, CWS_E_USAGE, "%s: exists and is not empty; name a new directory or remove this one", path);
}

/* Refuses an output below the input: it would be scanned as part of the model the next time. */
static int check_apart(const char *in, const char *parent, const char *out, struct cws_error *err)
{
    char *a = realpath(in, NULL), *b = a ? realpath(parent, NULL) : NULL;
    int rc = 0;
    if (!a)
        rc = cws_fail_errno(err, errno, "%s", in);
    else if (!b)
        rc = cws_fail_errno(err, errno, "%s: its directory", out);
    else if (strncmp(a, b, strlen(a)) == 0 && (b[strlen(a)] == '/' || b[strlen(a)] == '\0'))
        rc = cws_fail(err, CWS_E_USAGE, "%s: lies inside the input directory; name a directory beside it", out);
    free(a);
    free(b);
    return rc;
}

static int make_temporary(struct cws_output_dir *d, const char *parent, struct cws_error *err)
{
    const char *slash = strrchr(d->final, '/');
    if (asprintf(&d->temporary, "%s/.%s.partial-XXXXXX", parent, slash ? slash + 1 : d->final) < 0) {
        d->temporary = NULL;
        return cws_fail(err, -ENOMEM, "%s: out of memory", d->final);
    }
    if (!mkdtemp(d->temporary)) {
        int rc = cws_fail_errno(err, errno, "%s: cannot make a directory there", parent);
        free(d->temporary);
        d->temporary = NULL;
        return rc;
    }
    mode_t mask = umask(0);
    umask(mask);
    chmod(d->temporary, 0777 & ~mask); /* mkdtemp made it private; a failure leaves it so, which is safe */
    return 0;
}

int cws_output_dir_begin(const char *in, const char *out, struct cws_output_dir *d, struct cws_error *err)
{
    *d = (struct cws_output_dir){.final = strdup(out)};
    char *parent = NULL;
    int rc = 0;
    if (!d->final)
        rc = cws_fail(err, -ENOMEM, "%s: out of memory", out);
    for (size_t n = rc ? 0 : strlen(d->final); n > 1 && d->final[n - 1] == '/'; n--)
        d->final[n - 1] = '\0';
    if (!rc && !(parent = parent_of(d->final)))
        rc = cws_fail(err, -ENOMEM, "%s: out of memory", out);
    const char *name = rc ? "" : strrchr(d->final, '/');
    name = name && name[0] ? name + 1 : d->final;
    if (!rc && (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)) /* rename(2) cannot replace these */
        rc = cws_fail(err, CWS_E_USAGE, "%s: cannot be replaced by a new directory; give the output a name", out);
    if (!rc)
        rc = check_free(d->final, err);
    if (!rc)
        rc = check_apart(in, parent, out, err);
    if (!rc)
        rc = make_temporary(d, parent, err);
    free(parent);
    if (rc) {
        free(d->final);
        *d = (struct cws_output_dir){0};
    }
    return rc;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)at;
    return type == FTW_DP || type == FTW_D ? rmdir(path) : unlink(path);
}

void cws_output_dir_abort(struct cws_output_dir *d)
{
    if (d->temporary && nftw(d->temporary, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) != 0)
        cws_say_line("%s: could not be removed: %s; remove it by hand", d->temporary, cws_strerror(-errno));
    free(d->temporary);
    free(d->final);
    *d = (struct cws_output_dir){0};
}

int cws_output_dir_commit(struct cws_output_dir *d, struct cws_error *err)
{
    /* rename(2) takes the place of nothing or of an empty directory, and of nothing else. */
    if (rename(d->temporary, d->final) != 0) {
        int rc = cws_fail_errno(err, errno, "%s: cannot give the finished directory this name", d->final);
        cws_output_dir_abort(d);
        return rc;
    }
    char *parent = parent_of(d->final);
    int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)!fsync(fd); /* the files are already safe; some file systems refuse this */
        close(fd);
    }
    free(parent);
    free(d->temporary);
    free(d->final);
    *d = (struct cws_output_dir){0};
    return 0;
}

int cws_output_file_check(const char *in, const char *out, struct cws_error *err)
{
    struct stat from, to;
    if (stat(out, &to) != 0) /* nothing there, or something that writing will name */
        return 0;
    if (S_ISDIR(to.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: is a directory; name the file to write", out);
    if (stat(in, &from) == 0 && from.st_dev == to.st_dev && from.st_ino == to.st_ino)
        return cws_fail(err, CWS_E_USAGE, "%s: is the input itself; name another output", out);
    return 0;
}
