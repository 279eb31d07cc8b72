/* mapping.c - asks the kernel which file lies behind an address of this process: PROCMAP_QUERY where there is one, else
 * the text of /proc/self/maps. */
#include "mapping.h"
#include "store/base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PAGE ((uintptr_t)4096)

/* --- one question -------------------------------------------------------------------------------------- */

/* PROCMAP_QUERY of /proc/PID/maps, Linux 6.11 (include/uapi/linux/fs.h), which older headers do not have. */
struct query {
    uint64_t size, flags, address;                             /* in */
    uint64_t begin, end, vma_flags, page_bytes, offset, inode; /* out */
    /* name_bytes: in, the room; out, with the NUL */
    uint32_t major_number, minor_number, name_bytes, build_bytes;
    uint64_t name, build; /* in */
};
_Static_assert(sizeof(struct query) == 104, "the kernel's layout");
#define QUERY _IOWR('f', 17, struct query)
#define QUERY_SHARED 8u

/* 1: found; 0: not that; or -errno: it cannot be asked. */
static int ask(int fd, uintptr_t at, size_t bytes, struct cws_mapping *out)
{
    struct query q = {.size = sizeof q, .address = at, .name_bytes = sizeof out->path, .name = (uintptr_t)out->path};
    int code = cws_os_ioctl(fd, QUERY, &q);
    if (code < 0)
        return code == -ENOENT || code == -ENAMETOOLONG ? 0 : code;
    out->begin = q.begin;
    out->end = q.end;
    out->offset = q.offset;
    out->inode = q.inode;
    out->device = makedev(q.major_number, q.minor_number);
    return at >= q.begin && at < q.end && bytes <= q.end - at && !(q.vma_flags & QUERY_SHARED) && q.inode != 0 &&
           q.name_bytes > 0 && out->path[0] == '/';
}

/* --- the list ------------------------------------------------------------------------------------------- */

/* A number and the character behind it, which is stepped over. */
static bool number(char **at, int base, char behind, unsigned long *out)
{
    char *end;
    *out = strtoul(*at, &end, base);
    bool good = end != *at && *end == behind;
    *at = end + good;
    return good;
}

/* "begin-end rwxp offset major:minor inode   path" */
static bool parse_line(char *line, struct cws_mapping *m)
{
    unsigned long begin, end, offset, major_number, minor_number, inode;
    if (!number(&line, 16, '-', &begin) || !number(&line, 16, ' ', &end) || strlen(line) < 5 || line[3] != 'p')
        return false;
    line += 5;
    if (!number(&line, 16, ' ', &offset) || !number(&line, 16, ':', &major_number) ||
        !number(&line, 16, ' ', &minor_number) || !number(&line, 10, ' ', &inode))
        return false;
    line += strspn(line, " ");
    m->begin = begin;
    m->end = end;
    m->offset = offset;
    m->inode = inode;
    m->device = makedev((unsigned)major_number, (unsigned)minor_number);
    snprintf(m->path, sizeof m->path, "%s", line);
    return inode != 0 && m->path[0] == '/';
}

static bool look_through(int fd, uintptr_t at, size_t bytes, struct cws_mapping *out)
{
    enum { ROOM = 64 << 10 };
    char *text = malloc(ROOM);
    uint64_t offset = 0;
    size_t have = 0;
    bool found = false, over = !text;
    while (!over) {
        /* a page of lines, not all that there is room for */
        ssize_t got = cws_os_pread(fd, text + have, ROOM - 1 - have, offset);
        if (got == -EINTR || got == -EAGAIN)
            continue;
        if (got <= 0)
            break;
        offset += (uint64_t)got;
        have += (size_t)got;
        text[have] = '\0';
        char *line = text;
        for (char *end; !over && (end = strchr(line, '\n')) != NULL; line = end + 1) {
            unsigned long from, to;
            *end = '\0';
            char *rest = line;
            if (number(&rest, 16, '-', &from) && number(&rest, 16, ' ', &to) && at < to) {
                over = true; /* addresses rise: this one, or none */
                found = at >= from && bytes <= to - at && parse_line(line, out);
            }
        }
        have -= (size_t)(line - text);
        memmove(text, line, have);
        over |= have == ROOM - 1;
    }
    free(text);
    return found;
}

bool cws_mapping_find(uintptr_t at, size_t bytes, struct cws_mapping *out)
{
    int fd = cws_os_openat(AT_FDCWD, "/proc/self/maps", O_RDONLY, 0);
    if (fd < 0)
        return false;
    int code = ask(fd, at, bytes, out);
    bool found = code < 0 ? look_through(fd, at, bytes, out) : code > 0;
    cws_os_close(fd);
    return found;
}

/* --- pages ---------------------------------------------------------------------------------------------- */

bool cws_mapping_is_clean(uintptr_t at, size_t bytes)
{
    enum { AT_ONCE = 512 };
    const uint64_t present = 1ull << 63, swapped = 1ull << 62, of_file = 1ull << 61;
    uint64_t entries[AT_ONCE];
    uintptr_t first = at / PAGE, end = (at + bytes + PAGE - 1) / PAGE;
    int fd = sysconf(_SC_PAGESIZE) == (long)PAGE ? cws_os_openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY, 0) : -1;
    bool clean = fd >= 0;
    while (clean && first < end) {
        size_t count = end - first < AT_ONCE ? end - first : AT_ONCE, got;
        clean = cws_os_read_full(fd, entries, count * sizeof *entries, first * sizeof *entries, &got) == 0 &&
                got == count * sizeof *entries;
        /* a page that is neither was not touched, or given back: the file's */
        for (size_t i = 0; clean && i < count; i++)
            clean = !(entries[i] & swapped) && (!(entries[i] & present) || (entries[i] & of_file));
        first += count;
    }
    if (fd >= 0)
        cws_os_close(fd);
    return clean;
}
