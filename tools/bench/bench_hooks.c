/* bench_hooks.c - what the shim costs a program that has no store open: nanoseconds per call of the hooked functions,
 * best of several rounds. Run it plain and under LD_PRELOAD=libcodecshim.so, with and without CODEC_VRAM_BUDGET. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 15, CALLS = 20000 };

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#define MEASURE(name, call)                                                                                            \
    do {                                                                                                               \
        double best = 1e18;                                                                                            \
        for (int round = 0; round < ROUNDS; round++) {                                                                 \
            double begin = now_ns();                                                                                   \
            for (int i = 0; i < CALLS; i++)                                                                            \
                call;                                                                                                  \
            double each = (now_ns() - begin) / CALLS;                                                                  \
            best = each < best ? each : best;                                                                          \
        }                                                                                                              \
        printf("%-24s %8.1f ns\n", name, best);                                                                        \
    } while (0)

int main(int argc, char **argv)
{
    /* a file that is no store, larger than the smallest store */
    const char *path = argc > 1 ? argv[1] : argv[0];
    static char bytes[64];
    struct stat st;
    ssize_t ignored;
    int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY), file = open(path, O_RDONLY);
    FILE *stream = fopen("/dev/null", "w");
    if (zero < 0 || null < 0 || file < 0 || !stream) {
        perror(path);
        return 2;
    }
    MEASURE("read 1 byte", ignored = read(zero, bytes, 1));
    MEASURE("pread 64 bytes", ignored = pread(file, bytes, 64, 0));
    MEASURE("write 1 byte", ignored = write(null, bytes, 1));
    MEASURE("lseek", lseek(file, 0, SEEK_SET));
    MEASURE("fstat", fstat(file, &st));
    MEASURE("stat", stat(path, &st));
    MEASURE("open + close", close(open(path, O_RDONLY)));
    MEASURE("mmap + munmap", munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096));
    MEASURE("fwrite 8 bytes", ignored = (ssize_t)fwrite(bytes, 1, 8, stream));
    (void)ignored;
    return 0;
}
