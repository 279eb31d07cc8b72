/* bench_wait.c - three ways for a thread to learn that the device has done something: asking every 20 to 60 us, waiting
 * for an event that blocks, and a host function behind the work. How late each tells it, what it costs the thread, and
 * what it costs the stream. Not installed.
 *   bench_wait [ROUNDS]
 * Exit 0: measured; 2: it could not run. */
#include "store/base/driver.h"
#include "store/base/lock.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { BATCH = 8 << 20, MANY = 200, SMALL = 64 << 10 };

typedef CUresult launch_host_func(CUstream stream, void (*run)(void *), void *arg);

static struct cws_driver driver;
static CUcontext context;
static CUstream stream;
static CUevent event, blocking;
static CUdeviceptr device;
static void *host;
static launch_host_func *host_func;
static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_GPU);
static struct cws_cond told;
static bool is_told;
static _Atomic uint64_t done_ns; /* as a thread saw it that did nothing but ask */
static _Atomic unsigned round_number;
static _Atomic bool ending;

static void need(CUresult r, const char *what)
{
    struct cws_error err;
    if (r == CUDA_SUCCESS)
        return;
    cws_driver_fail(&driver, &err, r, what);
    fprintf(stderr, "bench_wait: %s\n", err.message);
    exit(2);
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Asks without a pause, so that it knows to a microsecond when the batch of a round was done. */
static void *watch(void *arg)
{
    (void)arg;
    driver.context_set(context);
    for (unsigned seen = 0; !atomic_load(&ending);) {
        unsigned round = atomic_load(&round_number);
        if (round == seen)
            continue;
        while (driver.event_query(event) == CUDA_ERROR_NOT_READY) {
        }
        atomic_store(&done_ns, now_ns(CLOCK_MONOTONIC));
        seen = round;
    }
    return NULL;
}

static void tell(void *arg)
{
    (void)arg;
    cws_lock_take(&lock);
    is_told = true;
    cws_cond_signal(&told);
    cws_lock_drop(&lock);
}

static void ask(void)
{
    cws_lock_take(&lock);
    for (uint64_t ns = 20000; driver.event_query(event) == CUDA_ERROR_NOT_READY; ns = ns < 60000 ? ns + ns / 2 : ns)
        cws_cond_wait_ns_drops_lock(&told, &lock, ns);
    cws_lock_drop(&lock);
}

static void wait_for_event(void) { driver.event_sync(blocking); }

static void wait_to_be_told(void)
{
    cws_lock_take(&lock);
    while (!is_told)
        cws_cond_wait_drops_lock(&told, &lock);
    cws_lock_drop(&lock);
}

static int compare(const void *a, const void *b)
{
    double one = *(const double *)a, other = *(const double *)b;
    return one < other ? -1 : one > other;
}

static void measure(const char *name, unsigned rounds, void (*wait)(void), bool with_function)
{
    double *late = malloc(rounds * sizeof *late);
    uint64_t cpu = 0;
    if (!late)
        exit(2);
    for (unsigned i = 0; i < rounds; i++) {
        atomic_store(&done_ns, 0);
        is_told = false;
        need(driver.copy_in_async(device, host, BATCH, stream), "copying");
        need(driver.event_record(event, stream), "recording");
        need(driver.event_record(blocking, stream), "recording");
        if (with_function)
            need(host_func(stream, tell, NULL), "a host function");
        atomic_fetch_add(&round_number, 1);
        uint64_t begin = now_ns(CLOCK_THREAD_CPUTIME_ID);
        wait();
        uint64_t at = now_ns(CLOCK_MONOTONIC);
        cpu += now_ns(CLOCK_THREAD_CPUTIME_ID) - begin;
        while (!atomic_load(&done_ns)) {
        }
        late[i] = ((double)at - (double)atomic_load(&done_ns)) / 1e3;
    }
    qsort(late, rounds, sizeof *late, compare);
    printf(
        "%-14s told %6.1f us after it was done (median), %6.1f us (of ten, the last); %6.1f us of the thread's time\n",
        name, late[rounds / 2], late[rounds / 10 * 9], (double)cpu / rounds / 1e3);
    free(late);
}

/* Small copies, each with a host function behind it, or none: what that costs the stream. */
static double stream_us(bool with_function)
{
    need(driver.stream_sync(stream), "waiting");
    uint64_t begin = now_ns(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < MANY; i++) {
        need(driver.copy_in_async(device, host, SMALL, stream), "copying");
        if (with_function)
            need(host_func(stream, tell, NULL), "a host function");
    }
    need(driver.stream_sync(stream), "waiting");
    return (double)(now_ns(CLOCK_MONOTONIC) - begin) / 1e3 / MANY;
}

static void start(void)
{
    struct cws_error err;
    CUdevice which;
    if (cws_driver_load(&driver, &err)) {
        fprintf(stderr, "bench_wait: %s\n", err.message);
        exit(2);
    }
    need(driver.init(0), "cuInit");
    need(driver.device_get(&which, 0), "device 0");
    need(driver.primary_retain(&context, which), "context");
    need(driver.context_set(context), "context");
    need(driver.stream_create(&stream, CU_STREAM_NON_BLOCKING), "stream");
    need(driver.event_create(&event, CU_EVENT_DISABLE_TIMING), "event");
    need(driver.event_create(&blocking, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC), "event");
    need(driver.mem_alloc(&device, BATCH), "device memory");
    need(driver.host_alloc(&host, BATCH, CU_MEMHOSTALLOC_PORTABLE), "host memory");
    memset(host, 1, BATCH);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    host_func = library ? (launch_host_func *)dlsym(library, "cuLaunchHostFunc") : NULL;
    if (!host_func) {
        fprintf(stderr, "bench_wait: the driver has no cuLaunchHostFunc\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1000;
    pthread_t watcher;
    if (argc > 2 || rounds < 10) {
        fprintf(stderr, "bench_wait: usage: bench_wait [ROUNDS], 10 or more\n");
        return 2;
    }
    start();
    prctl(PR_SET_TIMERSLACK, 1000); /* as the loader */
    if (pthread_create(&watcher, NULL, watch, NULL))
        return 2;
    measure("asking", rounds, ask, false);
    measure("event", rounds, wait_for_event, false);
    measure("host function", rounds, wait_to_be_told, true);
    atomic_store(&ending, true);
    pthread_join(watcher, NULL);
    stream_us(false);
    printf("a copy of %d KiB takes the stream %.1f us, with a host function behind it %.1f us\n", SMALL >> 10,
           stream_us(false), stream_us(true));
    return 0;
}
