/* container.c - looks for containers, seccomp filters and left out devices. */
#include "container.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct cws_text text_of(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static struct cws_text text_of(const char *fmt, ...)
{
    struct cws_text t;
    va_list args;
    va_start(args, fmt);
    vsnprintf(t.text, sizeof t.text, fmt, args);
    va_end(args);
    return t;
}

static bool is_there(const char *root, const char *path)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    return access(full, F_OK) == 0;
}

/* The beginning of a file, as text; false: there is none. */
static bool read_text(const char *root, const char *path, char *out, size_t size)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    FILE *file = fopen(full, "re");
    size_t got = file ? fread(out, 1, size - 1, file) : 0;
    out[got] = '\0';
    if (file)
        fclose(file);
    return file != NULL;
}

struct cws_text cws_container_name(const char *root)
{
    static const struct {
        const char *part, *name;
    } groups[] = {{"kubepods", "Kubernetes"},
                  {"docker", "Docker"},
                  {"libpod", "Podman"},
                  {"lxc", "LXC"},
                  {"containerd", "containerd"}};
    char text[4096];
    if (is_there(root, "/.dockerenv"))
        return text_of("Docker (/.dockerenv)");
    if (is_there(root, "/run/.containerenv"))
        return text_of("Podman (/run/.containerenv)");
    if (read_text(root, "/run/systemd/container", text, sizeof text)) {
        text[strcspn(text, "\n")] = '\0';
        return text_of("%.64s (/run/systemd/container)", text);
    }
    if (is_there(root, "/var/run/secrets/kubernetes.io"))
        return text_of("Kubernetes (/var/run/secrets/kubernetes.io)");
    if (read_text(root, "/proc/1/cgroup", text, sizeof text))
        for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
            if (strstr(text, groups[i].part))
                return text_of("%s (/proc/1/cgroup)", groups[i].name);
    return text_of("%s", "");
}

bool cws_container_is_gvisor(const char *root)
{
    enum { READ_ALL = 3 };
    char text[4096] = "";
    /* All versions of it tell the same release and date of building. */
    if (read_text(root, "/proc/version", text, sizeof text) &&
        (strstr(text, "gVisor") || strstr(text, "4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016")))
        return true;
    int got = *root ? 0 : klogctl(READ_ALL, text, (int)sizeof text - 1);
    text[got > 0 ? got : 0] = '\0';
    return strstr(text, "Starting gVisor") != NULL;
}

int cws_seccomp_filters(const char *root)
{
    char text[8192];
    if (!read_text(root, "/proc/self/status", text, sizeof text))
        return -1;
    const char *mode = strstr(text, "\nSeccomp:"), *count = strstr(text, "\nSeccomp_filters:");
    if (!mode)
        return -1;
    if (strtol(mode + strlen("\nSeccomp:"), NULL, 10) == 0)
        return 0;
    long filters = count ? strtol(count + strlen("\nSeccomp_filters:"), NULL, 10) : 1;
    return filters > 0 ? (int)filters : 1;
}

/* The calls are made so that a kernel that has them refuses their arguments: the error tells who answered. */
int cws_seccomp_answer(const char *root, enum cws_filtered_call call)
{
    if (cws_seccomp_filters(root) <= 0)
        return 0;
    errno = 0;
    switch (call) {
    case CWS_CALL_USERFAULTFD: /* all flags: the one for user mode only is among them, which everybody may use */
        syscall(SYS_userfaultfd, -1);
        return errno == EINVAL ? 0 : errno;
    case CWS_CALL_IO_URING:
        syscall(SYS_io_uring_enter, -1, 0, 0, 0, NULL, 0);
        if (errno != EBADF)
            return errno;
        errno = 0;
        syscall(SYS_io_uring_setup, 1, NULL); /* what the kernel's own switch refuses is EPERM, too: not asked here */
        return errno == ENOSYS || errno == EACCES ? errno : 0;
    }
    return 0;
}

struct cws_text cws_container_uffd_text(int code, bool in_container)
{
    if (code == -ENOENT && in_container)
        return text_of("/dev/userfaultfd is not in this container; Docker: --device /dev/userfaultfd");
    if (code == -ENOENT)
        return text_of("there is no /dev/userfaultfd (Linux 6.1 and later have it)");
    if (code == -EACCES)
        return text_of("/dev/userfaultfd may not be opened; as root: setfacl -m u:%u:rw /dev/userfaultfd", geteuid());
    if (code == -EPERM && in_container)
        return text_of("/dev/userfaultfd is not among this container's devices; Docker: --device /dev/userfaultfd");
    return text_of("%s", "");
}

struct cws_text cws_container_gpu_text(const char *root, bool in_container, bool libcuda)
{
    bool device = false, control = is_there(root, "/dev/nvidiactl");
    bool module = is_there(root, "/proc/driver/nvidia/version");
    char name[32];
    for (unsigned i = 0; i < 64 && !device; i++) {
        snprintf(name, sizeof name, "/dev/nvidia%u", i);
        device = is_there(root, name);
    }
    if (device && control && !libcuda)
        return in_container ? text_of("%s is in this container, libcuda.so.1 is not; Docker: --gpus all -e "
                                      "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
                                      name)
                            : text_of("%s is there, libcuda.so.1 is not: install the driver's compute library "
                                      "(Debian: libcuda1, Ubuntu: libnvidia-compute-VERSION)",
                                      name);
    if ((module || device || libcuda) && !(device && control)) {
        const char *what = module || device ? "the machine has an NVIDIA driver" : "libcuda.so.1 is there";
        const char *missing = device ? "/dev/nvidiactl" : "/dev/nvidia0";
        return in_container ? text_of("%s, this container has no %s; Docker: --gpus all", what, missing)
                            : text_of("%s, and no %s; as root: nvidia-modprobe -u -c 0", what, missing);
    }
    return text_of("%s", "");
}
