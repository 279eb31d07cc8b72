/* neighbor.c - the line for a process in which comfy-aimdo manages device memory, too.
 *
 * comfy-aimdo replaces the driver's allocations by patching their first instructions, and moves weights in and out
 * within what it takes for the free memory. Both managers at once would hold each other's memory for memory that cannot
 * be dropped. It is known by the name of its library, which ComfyUI loads before torch. */
#include "neighbor.h"
#include "shim/say.h"

#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

/* 1, which ends the walk: this is its library, under the name of any of its builds (aimdo.so, aimdo_rocm.so). */
static int is_neighbor(struct dl_phdr_info *info, size_t bytes, void *data)
{
    const char *slash = strrchr(info->dlpi_name, '/'), *name = slash ? slash + 1 : info->dlpi_name;
    (void)bytes;
    (void)data;
    return strncmp(name, "aimdo", 5) == 0 && strstr(name, ".so") != NULL;
}

void cws_cuda_note_neighbor(void)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (dl_iterate_phdr(is_neighbor, NULL) && !atomic_flag_test_and_set(&said))
        cws_shim_say("comfy-aimdo (ComfyUI's dynamic VRAM) manages device memory in this process, too; what it holds "
                     "counts in CODEC_VRAM_BUDGET and is not paged. Start ComfyUI with --disable-dynamic-vram");
}
