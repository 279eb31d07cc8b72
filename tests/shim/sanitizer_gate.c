/* sanitizer_gate.c - preloaded before a libcodecshim.so that is built with a sanitizer. The sanitizer's runtime calls
 * some of the functions that the shim replaces while it is not initialised yet, and while it writes a report, perhaps
 * about a thread that holds a lock of the shim's. Those calls go straight to the kernel, every other caller's go on to
 * the shim. Not instrumented itself. */
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* of the runtime's code; written once, by the first call, before there are threads */
static uintptr_t begin, end;

static int look_at(struct dl_phdr_info *info, size_t bytes, void *arg)
{
    (void)bytes, (void)arg;
    if (!strstr(info->dlpi_name, "/libtsan.") && !strstr(info->dlpi_name, "/libasan."))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X)) {
            begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            end = begin + info->dlpi_phdr[i].p_memsz;
        }
    return 1;
}

static bool is_runtime(const void *caller)
{
    if (!end) {
        end = 1;
        dl_iterate_phdr(look_at, NULL);
    }
    return (uintptr_t)caller >= begin && (uintptr_t)caller < end;
}

/* The next definition of a name, the shim's; looked for once. */
#define NEXT(name)                                                                                                     \
    (__extension__({                                                                                                   \
        static __typeof__(name) *next_;                                                                                \
        __typeof__(name) *found_ = __atomic_load_n(&next_, __ATOMIC_RELAXED);                                          \
        if (!found_)                                                                                                   \
            __atomic_store_n(&next_, found_ = (__typeof__(name) *)dlsym(RTLD_NEXT, #name), __ATOMIC_RELAXED);          \
        found_;                                                                                                        \
    }))
#define FROM_RUNTIME() is_runtime(__builtin_return_address(0))

int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    int mode = va_arg(arguments, int); /* of no use where there is none, and of no harm */
    va_end(arguments);
    return FROM_RUNTIME() ? (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode) : NEXT(open)(path, flags, mode);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return FROM_RUNTIME() ? (int)syscall(SYS_fcntl, fd, command, argument) : NEXT(fcntl)(fd, command, argument);
}

int close(int fd) { return FROM_RUNTIME() ? (int)syscall(SYS_close, fd) : NEXT(close)(fd); }

ssize_t read(int fd, void *data, size_t bytes)
{
    return FROM_RUNTIME() ? syscall(SYS_read, fd, data, bytes) : NEXT(read)(fd, data, bytes);
}

int fstat(int fd, struct stat *out) { return FROM_RUNTIME() ? (int)syscall(SYS_fstat, fd, out) : NEXT(fstat)(fd, out); }

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    return FROM_RUNTIME() ? (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset)
                          : NEXT(mmap)(addr, len, prot, flags, fd, offset);
}

int munmap(void *addr, size_t len)
{
    return FROM_RUNTIME() ? (int)syscall(SYS_munmap, addr, len) : NEXT(munmap)(addr, len);
}
