/* access.c - computes and sets the permissions of output directories. */
#include "access.h"
#include "store/base/file_mode.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool lies_in(const char *path, const char *directory)
{
    size_t len = strlen(directory);
    if (strcmp(directory, "/") == 0)
        return true;
    return strncmp(path, directory, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

/* Which of owner (0700), group (0070) and others (0007) of `file` may search the directory `dir`. A member of the
 * file's group may be one of the directory's group or not: both must be let in. */
static mode_t let_in(const struct stat *dir, const struct stat *file)
{
    mode_t out = 0;
    bool owner = dir->st_mode & 0100, group = dir->st_mode & 0010, others = dir->st_mode & 0001;
    if (dir->st_uid == file->st_uid ? owner : others)
        out |= 0700;
    if (dir->st_gid == file->st_gid ? group : group && others)
        out |= 0070;
    if (others)
        out |= 0007;
    return out;
}

/* The permissions of `in` that the way to it leaves. *file: its stat. */
static int reach(const char *root, const char *in, struct stat *file, mode_t *out, struct cws_error *err)
{
    char *base = realpath(root, NULL), *real = base ? realpath(in, NULL) : NULL;
    int rc = 0;
    *out = 0777;
    if (!real || stat(real, file) != 0) {
        rc = cws_fail_errno(err, errno, "%s", base ? in : root);
        free(base);
        free(real);
        return rc;
    }
    char *end = lies_in(real, base) ? NULL : strrchr(real, '/');
    for (; !rc && end && end != real; end = strrchr(real, '/')) {
        struct stat dir;
        *end = '\0';
        if (lies_in(base, real)) /* this one and those above hide the input directory as well */
            break;
        if (stat(real, &dir) != 0)
            rc = cws_fail_errno(err, errno, "%s", real);
        else
            *out &= let_in(&dir, file);
    }
    free(base);
    free(real);
    return rc;
}

int cws_access_narrow_file(const char *root, const char *in, const char *out, struct cws_error *err)
{
    struct stat from, to;
    mode_t most;
    int rc = reach(root, in, &from, &most, err);
    if (rc || most == 0777)
        return rc;
    if (lstat(out, &to) != 0)
        return cws_fail_errno(err, errno, "%s", out);
    /* One who owns a file that is out of his reach does not get it; the process, which read it, does. */
    if (!(most & 0700) && to.st_uid != geteuid() && lchown(out, geteuid(), getegid()) != 0)
        return cws_fail_errno(err, errno, "%s: cannot take it from its owner", out);
    if (chmod(out, to.st_mode & (most | 0700) & 0777) != 0)
        return cws_fail_errno(err, errno, "%s: cannot give it its permissions", out);
    return 0;
}

static int set_directory(const char *root, const char *in, const char *out, struct cws_error *err)
{
    struct stat like;
    mode_t most;
    int rc = reach(root, in, &like, &most, err);
    if (rc)
        return rc;
    int fd = open(out, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return cws_fail_errno(err, errno, "%s: cannot open", out);
    if (!(most & 0700)) {
        like.st_uid = geteuid();
        like.st_gid = getegid();
    }
    rc = cws_file_mode_take(fd, &like, most | 0700);
    close(fd);
    return rc ? cws_fail_errno(err, -rc, "%s: cannot give it its permissions", out) : 0;
}

int cws_access_set_directories(const struct cws_model_dir *dir, const char *to, struct cws_error *err)
{
    int rc = 0;
    for (size_t i = dir->count; !rc && i-- > 0;) { /* from the last path: what is in a directory comes before it */
        if (dir->entries[i].kind != CWS_MODEL_DIRECTORY)
            continue;
        char *in = cws_path_join(dir->root, dir->entries[i].path), *out = cws_path_join(to, dir->entries[i].path);
        rc = set_directory(dir->root, in, out, err);
        free(in);
        free(out);
    }
    return rc;
}
