/* bench_manager.c - the CUDA manager on the stand-in driver: what a cyclic scan loads and waits for at several budgets,
 * and what begin and end cost another thread meanwhile. Times are those of this machine's processor: they compare two
 * versions of the manager, and say nothing of a GPU. */
#define GPU_TENSORS 60
#include "gpu_fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* A second thread with a stream of its own and an allocation that stays: what does a begin and an end cost while the
 * loader works? */
struct beside {
    struct fixture *f;
    CUdeviceptr at;
    atomic_bool stop;
    double us[1 << 17];
    size_t count;
};

static void *use_beside(void *arg)
{
    struct beside *b = arg;
    const struct timespec pause = {.tv_nsec = 20000};
    driver.context_set(b->f->context);
    while (!atomic_load(&b->stop)) {
        struct cws_gpu_use use;
        double begin = now_us();
        if (cws_gpu_begin(b->f->gpu, CU_STREAM_PER_THREAD, &b->at, 1, &use) != CUDA_SUCCESS)
            abort();
        cws_gpu_end(b->f->gpu, &use, false);
        double took = now_us() - begin;
        if (b->count < sizeof b->us / sizeof *b->us)
            b->us[b->count++] = took;
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void scan(struct fixture *f, unsigned passes)
{
    for (unsigned pass = 0; pass < passes; pass++) {
        for (unsigned i = 0; i < TENSORS; i++) {
            CUdeviceptr to = f->scratch, from = f->at[i];
            uint64_t bytes = 4096;
            void *params[] = {&to, &from, &bytes};
            if (launch(f, "sum", &from, 1, params) != CUDA_SUCCESS)
                abort();
        }
        driver.stream_sync(f->stream);
    }
}

static void at_budget(uint64_t mib)
{
    enum { LEARN = 3, PASSES = 12 };
    struct fixture *f = open_gpu(256 * MIB, mib * MIB, true);
    struct cws_gpu_stats before, after;
    static struct beside b;
    b.f = f;
    b.count = 0;
    atomic_store(&b.stop, false);
    pthread_t thread;
    standin_delay(1, 300);
    bind_all(f);
    if (cws_gpu_alloc(f->gpu, 2 * MIB, f->stream, &b.at) != CUDA_SUCCESS)
        abort();
    scan(f, LEARN);
    cws_gpu_stats_get(f->gpu, &before);
    pthread_create(&thread, NULL, use_beside, &b);
    scan(f, PASSES);
    atomic_store(&b.stop, true);
    pthread_join(thread, NULL);
    cws_gpu_stats_get(f->gpu, &after);
    qsort(b.us, b.count, sizeof *b.us, by_value);
    printf("%3lu MiB  %5.1f loads, %5.1f of them waited for, %6.1f MiB, stall %6.1f ms a pass;  begin and end %5.2f "
           "us, 90 of 100 below %5.2f us\n",
           (unsigned long)mib, (double)(after.loads - before.loads) / PASSES,
           (double)(after.demand - before.demand) / PASSES,
           (double)(after.loaded_bytes - before.loaded_bytes) / PASSES / (1 << 20),
           (double)(after.stall_ns - before.stall_ns) / 1e6 / PASSES, b.us[b.count / 2], b.us[b.count * 9 / 10]);
    cws_gpu_free(f->gpu, b.at, f->stream, true);
    free_all(f);
    close_gpu(f);
}

int main(void)
{
    void *state = NULL;
    group_setup(&state);
    for (uint64_t mib = 60; mib <= 150; mib += 30)
        at_budget(mib);
    group_teardown(&state);
    return 0;
}
