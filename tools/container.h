/* container.h - what stands between this process and the machine: a container, a seccomp filter, the kernel of a
 * sandbox, and devices that were left out. For `codecllm doctor`, which tells what to do about each.
 * root: "" for this machine, or a directory that holds proc/, dev/ and run/, for tests.
 * Threads: one. Changes nothing; system calls are tried with arguments that the kernel refuses. */
#ifndef CWS_CONTAINER_H
#define CWS_CONTAINER_H
#include <stdbool.h>
#include <stddef.h>

struct cws_text {
    char text[256];
};

/* The container that this process runs in and what shows it, "Docker (/.dockerenv)"; "": none is seen. */
struct cws_text cws_container_name(const char *root);

/* Does another kernel than Linux answer, gVisor's? */
bool cws_container_is_gvisor(const char *root);

/* Filters of seccomp in force: 0 none, else 1 and more; -1 where the kernel does not tell. */
int cws_seccomp_filters(const char *root);

enum cws_filtered_call { CWS_CALL_USERFAULTFD, CWS_CALL_IO_URING };
/* The errno with which a seccomp filter answers the call; 0: it comes to the kernel, or there is no filter. */
int cws_seccomp_answer(const char *root, enum cws_filtered_call call);

/* Why /dev/userfaultfd cannot be used, and what to do; code: what opening it gave, -errno. */
struct cws_text cws_container_uffd_text(int code, bool in_container);

/* Parts of an NVIDIA driver without the others, and what to do; "": nothing is missing, or there is no such driver.
 * libcuda: it could be loaded. */
struct cws_text cws_container_gpu_text(const char *root, bool in_container, bool libcuda);

#endif
