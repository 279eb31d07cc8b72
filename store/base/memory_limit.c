/* memory_limit.c - limits of host memory, read from /proc, from control groups and from the process. */
#include "memory_limit.h"
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>

/* Of a longer name of a group only the groups above are read. Small, because the
 * thread that maps the first store may have a small stack. */
enum { PATH_BYTES = 1024 };

/* --- files, line by line ------------------------------------------------------------------------- */

struct lines {
    int fd;
    uint64_t offset;
    size_t at, end;
    char buf[2048];
};

static bool lines_open(struct lines *l, const char *root, const char *directory, const char *file)
{
    char whole[PATH_BYTES];
    int len = snprintf(whole, sizeof whole, "%s%s/%s", root, directory, file);
    l->offset = 0;
    l->at = l->end = 0;
    l->fd = len > 0 && (size_t)len < sizeof whole ? cws_os_openat(AT_FDCWD, whole, O_RDONLY | O_NONBLOCK, 0) : -1;
    return l->fd >= 0;
}

/* The next line without its end, cut to size - 1 bytes. False: there is none. */
static bool lines_next(struct lines *l, char *line, size_t size)
{
    size_t len = 0;
    bool any = false;
    for (;;) {
        if (l->at == l->end) {
            size_t got = 0;
            if (cws_os_read_full(l->fd, l->buf, sizeof l->buf, l->offset, &got) || got == 0)
                break;
            l->offset += got;
            l->at = 0;
            l->end = got;
        }
        any = true;
        char c = l->buf[l->at++];
        if (c == '\n')
            break;
        if (len + 1 < size)
            line[len++] = c;
    }
    line[len] = '\0';
    return any;
}

/* The number behind `key` in the first line that begins with it. False: none, or it is "max". */
static bool number_in(const char *root, const char *directory, const char *file, const char *key, uint64_t *out)
{
    struct lines l;
    char line[128], *end;
    bool found = false;
    if (!lines_open(&l, root, directory, file))
        return false;
    while (!found && lines_next(&l, line, sizeof line)) {
        if (strncmp(line, key, strlen(key)) != 0)
            continue;
        *out = strtoull(line + strlen(key), &end, 10);
        found = end != line + strlen(key);
        if (!found)
            break;
    }
    cws_os_close(l.fd);
    return found;
}

/* --- control groups ------------------------------------------------------------------------------ */

/* The two versions' names for the same. */
struct version {
    const char *limits[2], *used, *reclaimable;
};
static const struct version versions[2] = {
    {{"memory.limit_in_bytes", NULL}, "memory.usage_in_bytes", "total_inactive_file "},
    {{"memory.max", "memory.high"}, "memory.current", "inactive_file "},
};

static void take_limit(struct cws_memory_limit *out, uint64_t bytes, const char *what, const char *where)
{
    if (bytes >= out->bytes)
        return;
    out->bytes = bytes;
    if (snprintf(out->from, sizeof out->from, where ? "%s of %s" : "%s", what, where) >= (int)sizeof out->from)
        memcpy(out->from + sizeof out->from - 4, "...", 4);
}

/* What is left of a group's limit. */
static uint64_t left_in(const char *root, const char *group, const struct version *v, uint64_t limit)
{
    uint64_t used, reclaimable = 0;
    if (!number_in(root, group, v->used, "", &used))
        return limit;
    if (!number_in(root, group, "memory.stat", v->reclaimable, &reclaimable) || reclaimable > used)
        reclaimable = 0;
    used -= reclaimable;
    return used < limit ? limit - used : 0;
}

/* The limits of one group. One that is no less than the machine's memory is none: version 1 writes a number near
 * 2^63. */
static void read_group(const char *root, const char *group, const struct version *v, struct cws_memory_limit *out)
{
    for (int i = 0; i < 2 && v->limits[i]; i++) {
        uint64_t limit, left;
        if (!number_in(root, group, v->limits[i], "", &limit) || limit >= out->physical_bytes)
            continue;
        take_limit(out, limit, v->limits[i], group);
        left = left_in(root, group, v, limit);
        if (left < out->free_bytes)
            out->free_bytes = left;
    }
}

/* From the process's group up to the mount: a limit holds for everything below it. Groups that are not there (they were
 * removed, or are hidden from a container) are passed over. */
static void read_groups(const char *root, const char *mount, const char *below, const struct version *v,
                        struct cws_memory_limit *out)
{
    char group[PATH_BYTES];
    size_t least = strlen(mount);
    bool cut = snprintf(group, sizeof group, "%s%s", mount, strcmp(below, "/") == 0 ? "" : below) >= (int)sizeof group;
    for (;; cut = false) {
        if (!cut)
            read_group(root, group, v, out);
        char *slash = strrchr(group, '/');
        if (!slash || (size_t)(slash - group) < least || slash == group)
            return;
        *slash = '\0';
    }
}

/* Is `word` one of the comma-separated words of a list that ends at `stop`? */
static bool has_word(const char *list, const char *stop, const char *word)
{
    size_t len = strlen(word);
    for (;;) {
        const char *comma = memchr(list, ',', (size_t)(stop - list)), *end = comma ? comma : stop;
        if ((size_t)(end - list) == len && memcmp(list, word, len) == 0)
            return true;
        if (!comma)
            return false;
        list = comma + 1;
    }
}

/* The process's group of each version, "" where it has none. */
static void own_groups(const char *root, char groups[2][PATH_BYTES])
{
    struct lines l;
    char line[PATH_BYTES];
    groups[0][0] = groups[1][0] = '\0';
    if (!lines_open(&l, root, "/proc/self", "cgroup"))
        return;
    while (lines_next(&l, line, sizeof line)) { /* "4:cpu,memory:/group" or "0::/group"; a group's name may hold a
                                                 * colon */
        char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;
        if (!group || group[1] != '/')
            continue;
        if (strncmp(line, "0::", 3) == 0)
            memcpy(groups[1], group + 1, strlen(group + 1) + 1);
        else if (has_word(list + 1, group, "memory"))
            memcpy(groups[0], group + 1, strlen(group + 1) + 1);
    }
    cws_os_close(l.fd);
}

/* mountinfo writes a space, a tab, a newline and a backslash as \ooo. In place. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from; to++) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' && from[3] >= '0' &&
            from[3] <= '7') {
            *to = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

/* The version of a line of mountinfo ("31 23 0:28 ROOT MOUNT OPTIONS ... - TYPE SOURCE OPTIONS"), with its root and its
 * mount point; -1: it mounts no memory groups. Writes into the line. */
static int parse_mount(char *line, char **tree, char **mount)
{
    char *field[5], *save = NULL, *rest = strstr(line, " - ");
    if (!rest)
        return -1;
    *rest = '\0';
    rest += 3;
    field[0] = strtok_r(line, " ", &save);
    for (int i = 1; i < 5 && field[i - 1]; i++)
        field[i] = strtok_r(NULL, " ", &save);
    for (int i = 0; i < 5; i++)
        if (!field[i])
            return -1;
    *tree = field[3];
    *mount = field[4];
    unescape(*tree);
    unescape(*mount);
    if (strncmp(rest, "cgroup2 ", 8) == 0)
        return 1;
    const char *options = strrchr(rest, ' ');
    return strncmp(rest, "cgroup ", 7) == 0 && has_word(options + 1, options + strlen(options), "memory") ? 0 : -1;
}

/* Where a group lies below a mount that shows the tree from `tree` on; NULL: it does not. "/.." is a tree from above
 * this namespace's root: what lies between is not named, so only the mount's own limits are seen. */
static const char *below_mount(const char *group, const char *tree)
{
    size_t len = strlen(tree);
    if (strncmp(tree, "/..", 3) == 0)
        return "/";
    if (strncmp(group, "/..", 3) == 0)
        return NULL;
    if (strcmp(tree, "/") == 0)
        return group;
    if (strncmp(group, tree, len) != 0 || (group[len] && group[len] != '/'))
        return NULL;
    return group[len] ? group + len : "/";
}

static void read_control_groups(const char *root, struct cws_memory_limit *out)
{
    struct lines l;
    char groups[2][PATH_BYTES], line[PATH_BYTES], *tree, *mount;
    bool any = false;
    own_groups(root, groups);
    if (lines_open(&l, root, "/proc/self", "mountinfo")) {
        while (lines_next(&l, line, sizeof line)) {
            int version = parse_mount(line, &tree, &mount);
            if (version < 0)
                continue;
            const char *below = groups[version][0] ? below_mount(groups[version], tree) : NULL;
            any = true;
            if (below)
                read_groups(root, mount, below, &versions[version], out);
        }
        cws_os_close(l.fd);
    }
    if (any)
        return;
    /* Where mounts cannot be told, they are where everybody has them. */
    read_groups(root, "/sys/fs/cgroup", groups[1][0] ? groups[1] : "/", &versions[1], out);
    read_groups(root, "/sys/fs/cgroup/memory", groups[0][0] ? groups[0] : "/", &versions[0], out);
}

/* ------------------------------------------------------------------------------------------------- */

static void read_resource_limit(int resource, const char *name, struct cws_memory_limit *out)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        take_limit(out, limit.rlim_cur, name, NULL);
}

void cws_memory_limit_get(const char *root, struct cws_memory_limit *out)
{
    int saved = errno;
    struct sysinfo info;
    uint64_t kib;
    *out = (struct cws_memory_limit){.physical_bytes = UINT64_MAX, .bytes = UINT64_MAX, .free_bytes = UINT64_MAX};
    if (number_in(root, "/proc", "meminfo", "MemTotal:", &kib))
        out->physical_bytes = kib * 1024;
    else if (sysinfo(&info) == 0)
        out->physical_bytes = (uint64_t)info.totalram * info.mem_unit;
    if (number_in(root, "/proc", "meminfo", "MemAvailable:", &kib))
        out->free_bytes = kib * 1024;
    take_limit(out, out->physical_bytes, "physical memory", NULL);
    read_control_groups(root, out);
    read_resource_limit(RLIMIT_AS, "RLIMIT_AS (ulimit -v)", out);
    read_resource_limit(RLIMIT_DATA, "RLIMIT_DATA (ulimit -d)", out);
    errno = saved;
}

uint64_t cws_memory_limit_pinned(const struct cws_memory_limit *limit)
{
    uint64_t bytes = limit->free_bytes == UINT64_MAX ? (uint64_t)1 << 30 : limit->free_bytes / 2;
    return bytes < CWS_PINNED_LEAST ? CWS_PINNED_LEAST : bytes;
}
