/* file_mode.c - the owner and the permissions of an output, taken over from its input; a group's bits only where the
 * output has the same group. */
#include "file_mode.h"
#include "os.h"

#include <unistd.h>

int cws_file_mode_take(int fd, const struct stat *like, mode_t most)
{
    struct stat st;
    int code = cws_os_fstat(fd, &st);
    if (code)
        return code;
    mode_t mode = (like ? like->st_mode : 0666) & 0777 & most & ~cws_os_umask();
    mode_t others = mode & 0007, group = mode >> 3 & 0007;
    if (like && like->st_uid != st.st_uid && geteuid() == 0 && cws_os_fchown(fd, like->st_uid, like->st_gid) == 0)
        st.st_gid = like->st_gid;
    /* The group of the output may be larger than that of the input. */
    if (like && like->st_gid != st.st_gid && (group & ~others) && cws_os_fchown(fd, (uid_t)-1, like->st_gid) != 0)
        mode &= ~(mode_t)0070 | others << 3;
    if (S_ISDIR(st.st_mode))
        /* from the directory that it was made in: new files get its group */
        mode |= 0500 | (st.st_mode & S_ISGID);
    (void)cws_os_fchmod(fd, mode | 0400);
    return 0;
}
