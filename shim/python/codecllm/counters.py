"""The types of what codecllm.stats() and codecllm.memory_stats() return: ordinary dicts, with these keys."""

from typing import TypedDict


class Stats(TypedDict):
    """codecllm.stats(): paging on the host, since the process began. Written by shim/libc/paging.c."""

    # how pages are filled: "uffd-dev", "uffd", "uffd-user", "sigsegv", "eager"; "none" before the first store
    rung: str
    budget_bytes: int
    block_bytes: int
    views: int  # mappings of packed files, now
    faults: int  # touches of pages that were not there
    write_faults: int
    decoded_bytes: int  # in all
    evictions: int  # blocks dropped
    prefetched_blocks: int
    resident_bytes: int  # decoded weights in memory, now
    peak_bytes: int  # the most, with what was being decoded
    written_bytes: int  # in pages that the program wrote to
    reads: int  # of the packed files
    read_bytes: int
    errors: int  # blocks that could not be decoded
    mapped_bytes: int
    outside_bytes: int  # the process's own memory, beside the weights that are paged
    copied_bytes: int  # about how much of mapped_bytes the program has copied there


class MemoryStats(TypedDict):
    """codecllm.memory_stats(device): one GPU, in bytes where nothing else is said. Written by shim/cuda/counters.c."""

    budget: int
    used: int
    peak: int
    decoded: int  # weights in device memory
    compressed: int  # in pinned host memory
    staging: int
    other: int  # anonymous, idle and driver: activations and all else
    bound: int  # weights of packed and of ordinary files, in device memory or not
    adopted: int  # what the program copied from ordinary memory and is paged, too: pinned host memory has it
    anonymous: int
    dirty: int
    reserve: int  # freed a short while ago, kept for the next allocations of the program
    idle: int
    stolen: int  # of the reserve, in all, what was taken for something else
    driver: int
    ranges: int  # a count
    loads: int  # a count
    prefetched: int  # a count
    demand: int  # a count
    drops: int  # a count
    spilled: int  # written weights and idle allocations that are in host memory for now
    spills: int  # a count
    restores: int  # a count
    proven: int  # a count: allocations whose content was found to be weights that a kernel put together
    loaded_bytes: int
    link_bytes: int
    link_ns: int  # nanoseconds that the link was busy with these, by the device's clock
    stall_ns: int  # nanoseconds that launches waited
    weight_waits: int  # a count: a launch waited for a weight; nanoseconds
    weight_wait_ns: int
    fresh_waits: int  # the same for memory that has no content yet: activations
    fresh_wait_ns: int
    staging_waits: int  # what a launch waited for could be sent, and staging was full
    staging_wait_ns: int
    frames_created: int  # a count: pieces of physical memory taken from the driver
    frames_released: int  # and given back
    vmm_calls: int  # calls of the driver for that, and to map them
    least_budget: int
