/* machine.h - what this machine offers, read from the kernel and from the CUDA driver. Nothing here changes anything.
 * Threads: one. */
#ifndef CWS_MACHINE_H
#define CWS_MACHINE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The number in a file of /proc or /sys. False when it is not there; "max" gives UINT64_MAX. */
bool cws_machine_number(const char *path, uint64_t *out);

enum { CWS_CAP_IPC_LOCK = 14 }; /* as linux/capability.h has it */
bool cws_machine_has_capability(unsigned which);

/* "EPERM"; static text. */
const char *cws_machine_errno_name(int code);

/* "avx2 bmi2 ..." of those a decoder could use. */
void cws_machine_cpu_features(char *buf, size_t size);

struct cws_machine_gpu {
    char name[128];
    uint64_t memory_bytes;
    int major, minor; /* compute capability */
    bool vmm;         /* CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED */
};
struct cws_cuda {
    bool driver; /* libcuda.so.1 could be loaded */
    int result;  /* of cuInit; 0 fine */
    int version; /* 12040 is 12.4 */
    int device_count;
    struct cws_machine_gpu devices[16]; /* the first ones */
};
void cws_machine_cuda(struct cws_cuda *out);

#endif
