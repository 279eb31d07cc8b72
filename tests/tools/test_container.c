/* What doctor sees of containers, seccomp filters and left out devices, in directories made for it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/container.h"

static char root[] = "/tmp/cws-container-XXXXXX";

static int command(const char *what)
{
    char text[256];
    snprintf(text, sizeof text, "%s '%s'", what, root);
    return system(text);
}

static int setup(void **state)
{
    (void)state;
    return !mkdtemp(root);
}

static int teardown(void **state)
{
    (void)state;
    return command("rm -rf");
}

/* A machine with nothing but these files, path and content in turn, up to NULL. */
static void machine(const char *const *files)
{
    char path[512];
    assert_int_equal(command("rm -rf"), 0);
    assert_int_equal(mkdir(root, 0700), 0);
    for (; *files; files += 2) {
        snprintf(path, sizeof path, "%s%s", root, files[0]);
        for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
            *slash = '\0';
            mkdir(path, 0700); /* may be there */
            *slash = '/';
        }
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(files[1], file);
        fclose(file);
    }
}
#define MACHINE(...) machine((const char *const[]){__VA_ARGS__, NULL})

static void containers_have_names(void **state)
{
    (void)state;
    static const struct {
        const char *path, *content, *name;
    } cases[] = {
        {"/.dockerenv", "", "Docker (/.dockerenv)"},
        {"/run/.containerenv", "engine=\"podman\"\n", "Podman (/run/.containerenv)"},
        {"/run/systemd/container", "lxc\n", "lxc (/run/systemd/container)"},
        {"/proc/1/cgroup", "0::/kubepods/besteffort/pod1\n", "Kubernetes (/proc/1/cgroup)"},
        {"/proc/1/cgroup", "4:memory:/docker/0a1b\n0::/docker/0a1b\n", "Docker (/proc/1/cgroup)"},
        {"/proc/1/cgroup", "0::/init.scope\n", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MACHINE(cases[i].path, cases[i].content);
        assert_string_equal(cws_container_name(root).text, cases[i].name);
    }
    MACHINE(NULL);
    assert_string_equal(cws_container_name(root).text, "");
}

static void gvisor_is_known_by_its_version(void **state)
{
    (void)state;
    MACHINE("/proc/version", "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n");
    assert_true(cws_container_is_gvisor(root));
    MACHINE("/proc/version",
            "Linux version 4.4.0-210-generic (builder) #242-Ubuntu SMP Fri Apr 16 09:57:56 UTC 2021\n");
    assert_false(cws_container_is_gvisor(root));
    MACHINE(NULL);
    assert_false(cws_container_is_gvisor(root));
}

static void filters_are_counted(void **state)
{
    (void)state;
    MACHINE("/proc/self/status", "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t3\n");
    assert_int_equal(cws_seccomp_filters(root), 3);
    MACHINE("/proc/self/status", "Name:\tx\nSeccomp:\t2\n"); /* before Linux 5.9 */
    assert_int_equal(cws_seccomp_filters(root), 1);
    MACHINE("/proc/self/status", "Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n");
    assert_int_equal(cws_seccomp_filters(root), 0);
    assert_int_equal(cws_seccomp_answer(root, CWS_CALL_IO_URING), 0);
    MACHINE("/proc/self/status", "Name:\tx\n");
    assert_int_equal(cws_seccomp_filters(root), -1);
    MACHINE(NULL);
    assert_int_equal(cws_seccomp_filters(root), -1);
}

static void a_missing_device_has_a_remedy(void **state)
{
    (void)state;
    assert_non_null(strstr(cws_container_uffd_text(-ENOENT, true).text, "Docker: --device /dev/userfaultfd"));
    assert_null(strstr(cws_container_uffd_text(-ENOENT, false).text, "Docker"));
    assert_non_null(strstr(cws_container_uffd_text(-EPERM, true).text, "Docker: --device /dev/userfaultfd"));
    assert_non_null(strstr(cws_container_uffd_text(-EACCES, false).text, "setfacl"));
    assert_string_equal(cws_container_uffd_text(0, true).text, "");
}

static void parts_of_a_gpu_driver_are_told(void **state)
{
    (void)state;
    MACHINE(NULL);
    assert_string_equal(cws_container_gpu_text(root, true, false).text, "");
    assert_non_null(strstr(cws_container_gpu_text(root, true, true).text, "no /dev/nvidia0; Docker: --gpus all"));
    MACHINE("/proc/driver/nvidia/version", "NVRM version\n");
    assert_non_null(strstr(cws_container_gpu_text(root, true, false).text, "no /dev/nvidia0; Docker: --gpus all"));
    assert_non_null(strstr(cws_container_gpu_text(root, false, false).text, "nvidia-modprobe"));
    MACHINE("/dev/nvidia3", "", "/proc/driver/nvidia/version", "NVRM version\n");
    assert_non_null(strstr(cws_container_gpu_text(root, true, true).text, "no /dev/nvidiactl"));
    MACHINE("/dev/nvidia3", "", "/dev/nvidiactl", "", "/proc/driver/nvidia/version", "NVRM version\n");
    assert_non_null(strstr(cws_container_gpu_text(root, true, false).text, "NVIDIA_DRIVER_CAPABILITIES=compute"));
    assert_non_null(strstr(cws_container_gpu_text(root, false, false).text, "/dev/nvidia3 is there"));
    assert_string_equal(cws_container_gpu_text(root, true, true).text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(containers_have_names),
        cmocka_unit_test(gvisor_is_known_by_its_version),
        cmocka_unit_test(filters_are_counted),
        cmocka_unit_test(a_missing_device_has_a_remedy),
        cmocka_unit_test(parts_of_a_gpu_driver_are_told),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
