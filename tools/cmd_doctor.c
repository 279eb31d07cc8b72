/* cmd_doctor.c - codecllm doctor: what works on this machine, what does not and why, and every variable in force. */
#include "store/codec/codec.h"
#include "store/cuda/compile.h"
#include "store/cuda/decoder.h"
#include "store/base/memory_limit.h"
#include "store/base/options.h"
#include "store/read/reader.h"
#include "store/base/trace.h"
#include "uvm/host/view.h"
#include "container.h"
#include "machine.h"
#include "say.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Below it, io_uring's buffers for a few files at a time are not registered. */
#define MEMLOCK_BYTES_MIN (UINT64_C(4) << 20)

static void line(const char *key, const char *fmt, ...) CWS_PRINTF(2, 3);
static void line(const char *key, const char *fmt, ...)
{
    va_list args;
    printf("%-22s ", key);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
}

static void number_line(const char *key, const char *path, const char *meaning)
{
    uint64_t value;
    if (cws_machine_number(path, &value))
        line(key, "%llu%s%s", (unsigned long long)value, *meaning ? "  " : "", meaning);
    else
        line(key, "not known to this kernel");
}

static bool in_container(void) { return cws_container_name("").text[0] != '\0'; }

static const char *plural(int n) { return n == 1 ? "" : "s"; }

static void show_container(void)
{
    struct cws_text container = cws_container_name("");
    int filters = cws_seccomp_filters("");
    line("  container", "%s", container.text[0] ? container.text : "none is seen");
    if (cws_container_is_gvisor(""))
        line("  kernel", "gVisor's, not Linux: what is refused below, it does not have");
    if (filters > 0)
        line("  seccomp", "%d filter%s in force", filters, plural(filters));
    else
        line("  seccomp", filters == 0 ? "no filter" : "not known to this kernel");
}

/* The limit for what a process without CAP_IPC_LOCK locks. */
static void show_memlock(void)
{
    struct rlimit memlock;
    bool privileged = false;
    if (getrlimit(RLIMIT_MEMLOCK, &memlock) != 0)
        return;
    if (memlock.rlim_cur == RLIM_INFINITY) {
        line("  memlock limit", "none");
        return;
    }
    privileged = cws_machine_has_capability(CWS_CAP_IPC_LOCK);
    line("  memlock limit", "%s%s", cws_size_text(memlock.rlim_cur).text,
         privileged                             ? ", which this process need not keep"
         : memlock.rlim_cur < MEMLOCK_BYTES_MIN ? ": io_uring reads without registered buffers, a little slower; "
                                                  "ulimit -l, Docker: --ulimit memlock=-1"
                                                : "");
}

static void show_machine(void)
{
    struct utsname name;
    char features[128], from[256];
    struct cws_memory_limit limit;
    puts("Machine");
    if (uname(&name) == 0)
        line("  system", "%s %s %s", name.sysname, name.release, name.machine);
    cws_machine_cpu_features(features, sizeof features);
    line("  processors", "%ld, %s", sysconf(_SC_NPROCESSORS_ONLN), features);
    cws_memory_limit_get("", &limit);
    line("  memory", "%s", cws_size_text(limit.physical_bytes).text);
    if (limit.bytes < limit.physical_bytes)
        line("  memory limit", "%s: %s", cws_size_text(limit.bytes).text, cws_printable(limit.from, from, sizeof from));
    else
        line("  memory limit", "none");
    show_memlock();
    number_line("  vm.max_map_count", "/proc/sys/vm/max_map_count", "");
    show_container();
}

static void show_store(void)
{
    int ring = cws_reader_probe_uring(), filtered = ring ? cws_seccomp_answer("", CWS_CALL_IO_URING) : 0;
    uint64_t off = 0;
    puts("\nReading and decoding");
    if (ring == 0)
        line("  io_uring", "works");
    else if (filtered)
        line("  io_uring",
             "blocked by seccomp (%s): preadv threads are used; Docker: --security-opt seccomp=PROFILE, one that "
             "allows io_uring_setup, io_uring_enter and io_uring_register",
             cws_machine_errno_name(filtered));
    else if (cws_machine_number("/proc/sys/kernel/io_uring_disabled", &off) && off)
        line("  io_uring", "switched off by kernel.io_uring_disabled = %llu: preadv threads are used",
             (unsigned long long)off);
    else
        line("  io_uring", "refused (%s): preadv threads are used", cws_strerror(ring));
    printf("%-22s", "  decoders");
    for (unsigned i = 0; cws_decoder_name(i); i++)
        printf(" %s%s", cws_decoder_name(i), i == 0 ? " (in use)" : "");
    putchar('\n');
}

/* Why a rung does not work, and what to do about it. */
static void show_rung(const char *key, const char *rung, int rc, const struct cws_error *err)
{
    const char *message = err->message[0] ? err->message : cws_strerror(rc);
    int filtered = strncmp(rung, "uffd", 4) == 0 ? cws_seccomp_answer("", CWS_CALL_USERFAULTFD) : 0;
    if (strcmp(rung, "uffd-dev") == 0) {
        int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        struct cws_text why = cws_container_uffd_text(fd < 0 ? -errno : 0, in_container());
        if (fd >= 0)
            close(fd);
        line(key, "no: %s", why.text[0] ? why.text : message);
    } else if (filtered) {
        line(key, "no: blocked by seccomp (%s); Docker: --security-opt seccomp=PROFILE, one that allows userfaultfd",
             cws_machine_errno_name(filtered));
    } else if (strcmp(rung, "uffd") == 0 && rc == -EPERM) {
        line(key, "no: it needs CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd = 1");
    } else {
        line(key, "no: %s", message);
    }
}

static bool show_paging(const struct cws_options *options)
{
    static const char *const rungs[] = {"uffd-dev", "uffd", "uffd-user", "sigsegv", "eager"};
    const char *used = NULL;
    uint64_t unprivileged;
    puts("\nPaging on the host");
    for (size_t i = 0; i < sizeof rungs / sizeof *rungs; i++) {
        struct cws_error err = {0};
        char key[24];
        int rc = cws_pager_probe(rungs[i], &err);
        bool wanted = options->pager ? strcmp(options->pager, rungs[i]) == 0 : used == NULL;
        snprintf(key, sizeof key, "  %s", rungs[i]);
        if (rc == 0 && wanted)
            used = rungs[i];
        if (rc == 0)
            line(key, "works%s", wanted ? options->pager ? " (in use: CODEC_PAGER)" : " (in use)" : "");
        else
            show_rung(key, rungs[i], rc, &err);
    }
    if (cws_machine_number("/proc/sys/vm/unprivileged_userfaultfd", &unprivileged))
        line("  sysctl", "vm.unprivileged_userfaultfd = %llu", (unsigned long long)unprivileged);
    if (!used) {
        line("  verdict", "paging cannot work here");
        return false;
    }
    if (strcmp(used, "eager") == 0) {
        line("  verdict", "no paging: packed files are decoded whole when they are mapped, and no budget holds");
        return false;
    }
    line("  verdict", "works, by %s", used);
    return true;
}

/* Where a device's decoding kernels would come from. */
static void show_kernels(const struct cws_cuda *cuda)
{
    struct cws_gpu_target target = {.driver_version = cuda->driver ? cuda->version : 0};
    struct cws_error err = {0};
    char path[1024];
    int version;
    const char *profiler = getenv("NVTX_INJECTION64_PATH");
    char shown[256];
    line("  NVTX ranges", "%s",
         profiler && *profiler ? cws_printable(profiler, shown, sizeof shown) : "no profiler asks for them");
    if (cws_gpu_image())
        line("  GPU decoder", "built in for compute capability %s, for others as PTX of %s", cws_gpu_image_arches(),
             cws_gpu_image_ptx());
    else if (cws_gpu_compiler_find(&target, path, &version, &err) == 0)
        line("  GPU decoder", "compiled when needed by NVRTC %d.%d (%s)", version / 1000, version % 1000, path);
    else
        line("  GPU decoder", "compiled when needed; no NVRTC was found from here, but PyTorch for CUDA brings one");
}

static int devices_known(const struct cws_cuda *cuda)
{
    int room = sizeof cuda->devices / sizeof *cuda->devices;
    return cuda->device_count < room ? cuda->device_count : room;
}

static void show_device(int ordinal, const struct cws_machine_gpu *gpu)
{
    char old[64] = "";
    if (10 * gpu->major + gpu->minor < 10 * CWS_GPU_MAJOR_MIN + CWS_GPU_MINOR_MIN)
        snprintf(old, sizeof old, " (too old: paging needs %d.%d)", CWS_GPU_MAJOR_MIN, CWS_GPU_MINOR_MIN);
    line("  device", "%d: %s, %s, compute capability %d.%d%s, VMM %s", ordinal, gpu->name,
         cws_size_text(gpu->memory_bytes).text, gpu->major, gpu->minor, old, gpu->vmm ? "yes" : "no");
}

static void show_cuda(const struct cws_cuda *cuda)
{
    struct cws_text missing = {""};
    puts("\nCUDA");
    if (!cuda->driver || cuda->result != 0 || cuda->device_count == 0)
        missing = cws_container_gpu_text("", in_container(), cuda->driver);
    if (!cuda->driver) {
        line("  driver", "no CUDA driver: host paging");
    } else {
        line("  driver", "%d.%d", cuda->version / 1000, cuda->version % 1000 / 10);
        if (cuda->result != 0)
            line("  devices", "cuInit failed with %d: host paging", cuda->result);
        else if (cuda->device_count == 0)
            line("  devices", "none: host paging");
        for (int i = 0; i < devices_known(cuda); i++)
            show_device(i, &cuda->devices[i]);
    }
    if (missing.text[0])
        line("  missing", "%s", missing.text);
    show_kernels(cuda);
}

/* What the percentages of CODEC_VRAM_BUDGET, or auto, come to on this machine. */
static void show_percent(const struct cws_options *options, const struct cws_cuda *cuda)
{
    struct cws_memory_limit limit;
    if (options->budget_percent) {
        uint64_t budget = cws_options_host_budget(options);
        char from[256];
        cws_memory_limit_get("", &limit);
        line("  budget, host", "%s: %u%% of %s, %s", cws_size_text(budget).text, options->budget_percent,
             cws_size_text(limit.bytes).text, cws_printable(limit.from, from, sizeof from));
    }
    if (options->budget_auto)
        line("  budget, host", "%s: half of what is free, within the range",
             cws_size_text(cws_options_host_budget(options)).text);
    for (int i = 0; i < devices_known(cuda); i++) {
        uint64_t bytes = cuda->devices[i].memory_bytes, budget = cws_options_device_budget(options, i, bytes);
        unsigned percent = options->device_count ? 0 : options->budget_percent;
        char key[24];
        for (unsigned k = 0; k < options->device_count; k++)
            if (options->devices[k].device == i)
                percent = options->devices[k].percent;
        snprintf(key, sizeof key, "  budget, GPU %d", i);
        if (percent)
            line(key, "%s: %u%% of %s, the device's memory", cws_size_text(budget).text, percent,
                 cws_size_text(bytes).text);
    }
}

/* The pinned host memory that paging to a GPU may take. */
static void show_pinned(const struct cws_options *options, const struct cws_cuda *cuda)
{
    struct cws_memory_limit limit;
    char from[256];
    const char *here = devices_known(cuda) ? "for each GPU" : "for each GPU, if there were one";
    cws_memory_limit_get("", &limit);
    uint64_t bytes = options->host_budget_bytes, automatic = cws_memory_limit_pinned(&limit);
    struct cws_size_text asked = cws_size_text(bytes ? bytes : automatic), spare = cws_size_text(limit.free_bytes);
    if (bytes && bytes < CWS_PINNED_LEAST)
        line("  pinned memory", "CODEC_HOST_BUDGET is %s: paging to a GPU needs %s at least", asked.text,
             cws_size_text(CWS_PINNED_LEAST).text);
    else if (bytes > limit.free_bytes)
        line("  pinned memory", "%s at most %s: CODEC_HOST_BUDGET, which is more than the %s that are free", asked.text,
             here, spare.text);
    else if (bytes)
        line("  pinned memory", "%s at most %s: CODEC_HOST_BUDGET", asked.text, here);
    else if (limit.free_bytes == UINT64_MAX)
        line("  pinned memory", "%s at most %s: what is free is not known", asked.text, here);
    else
        line("  pinned memory", "%s at most %s: half of the %s that are free (%s)", asked.text, here, spare.text,
             cws_printable(limit.from, from, sizeof from));
}

static void unknown_variable(void *arg, const char *name_and_value)
{
    char text[256];
    (void)arg;
    line("  unknown", "%s", cws_printable(name_and_value, text, sizeof text));
}

/* False when a value cannot be understood. */
static bool show_options(struct cws_options *options, int rc, const struct cws_error *err)
{
    struct cws_option_row row;
    puts("\nVariables");
    for (size_t i = 0; cws_options_row(i, &row); i++) {
        char key[40], value[256];
        snprintf(key, sizeof key, "  %s", row.name);
        if (row.value && *row.value)
            line(key, "%s", cws_printable(row.value, value, sizeof value));
        else
            line(key, "(%s)", row.fallback);
    }
    cws_options_unknown(unknown_variable, NULL);
    struct cws_error why = {0};
    if (rc)
        line("  verdict", "%s", err->message);
    else if (options->trace[0] && (rc = cws_trace_check(options->trace, &why)) != 0)
        line("  verdict", "%s", why.message);
    return rc == 0;
}

static int run_doctor(int argc, char **argv)
{
    static const struct option longs[] = {{NULL, 0, NULL, 0}};
    struct cws_options options;
    struct cws_error err = {0};
    if (getopt_long(argc, argv, ":", longs, NULL) != -1)
        return cws_say_usage("doctor", "unknown option %s", argv[optind - 1]);
    if (optind != argc)
        return cws_say_usage("doctor", "takes no arguments");
    int rc = cws_options_from_env(&options, &err);
    show_machine();
    show_store();
    bool paging = show_paging(&options);
    struct cws_cuda cuda;
    cws_machine_cuda(&cuda);
    show_cuda(&cuda);
    bool understood = show_options(&options, rc, &err);
    show_percent(&options, &cuda);
    if (understood)
        show_pinned(&options, &cuda);
    return paging && understood ? CWS_EXIT_FINE : CWS_EXIT_FINDING;
}

const struct cws_verb cws_verb_doctor = {
    .name = "doctor",
    .summary = "tell what works on this machine, and the variables in force",
    .run = run_doctor,
    .help = "Usage: codecllm doctor\n"
            "\n"
            "Tells how packed files can be read and paged on this machine, what does not work and why, what the\n"
            "CUDA driver offers, and the value of every CODEC_* variable. Changes nothing.\n"
            "\n"
            "Exit status: 0 paging works, 1 it cannot work or a variable is not understood.\n"
            "\n"
            "Examples:\n"
            "  codecllm doctor\n"
            "  CODEC_PAGER=sigsegv codecllm doctor\n",
};
