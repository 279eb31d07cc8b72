/* memory.c - the devices' addresses, their physical memory, and cuMemMap and its relatives. Physical memory is a part of
 * one sparse memory file whose offsets are never used twice, so a stale mapping can never show another piece's
 * bytes. */
#include "state.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILE_BYTES ((off_t)1 << 50)

struct reservation {
    CUdeviceptr begin;
    size_t bytes;
    bool internal; /* of a heap */
};
static struct mapping *mappings; /* by address */
static size_t mapping_count, mapping_room;
static struct reservation *reservations; /* by address */
static size_t reservation_count, reservation_room;
static struct piece **handles; /* by id - HANDLE_BASE */
static size_t handle_count, handle_room, pieces_alive;
static off_t file_end;
struct host_block {
    const char *begin;
    size_t bytes;
    bool registered;
    struct host_block *next;
};
static struct host_block *host_blocks;
#define HANDLE_BASE 0x5000000ull

static void grow(void **items, size_t count, size_t *room, size_t item_bytes)
{
    if (count < *room)
        return;
    *room = *room ? 2 * *room : 64;
    *items = realloc(*items, *room * item_bytes);
    if (!*items)
        abort();
}

void memory_init_locked(void)
{
    if (standin.arena)
        return;
    void *arena = mmap(NULL, ARENA_BYTES + STANDIN_GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                       0);
    standin.memory_fd = memfd_create("standin-device", MFD_CLOEXEC);
    if (arena == MAP_FAILED || standin.memory_fd < 0 || ftruncate(standin.memory_fd, FILE_BYTES) != 0) {
        perror("standin: no memory for the device");
        abort();
    }
    standin.arena = (unsigned char *)(((uintptr_t)arena + STANDIN_GRANULE - 1) & ~(uintptr_t)(STANDIN_GRANULE - 1));
}

bool in_arena(const void *address)
{
    uintptr_t at = (uintptr_t)address, base = (uintptr_t)standin.arena;
    return standin.arena && at >= base && at - base < ARENA_BYTES;
}

/* ---- Pieces. */
struct piece *piece_create_locked(size_t bytes, struct device *device)
{
    static unsigned char poison[STANDIN_GRANULE];
    if (device && (bytes > standin.device_bytes || device->used > standin.device_bytes - bytes))
        return NULL;
    if (poison[0] != STANDIN_POISON)
        memset(poison, STANDIN_POISON, sizeof poison);
    struct piece *piece = take_memory(sizeof *piece);
    piece->offset = (size_t)file_end;
    piece->bytes = bytes;
    piece->device = device;
    file_end += (off_t)bytes;
    for (size_t done = 0; done < bytes; done += sizeof poison)
        if (pwrite(standin.memory_fd, poison, sizeof poison, (off_t)(piece->offset + done)) != (ssize_t)sizeof poison) {
            perror("standin: device memory");
            abort();
        }
    if (device)
        device->used += bytes;
    pieces_alive++;
    return piece;
}

void piece_drop_locked(struct piece *piece)
{
    if (piece->held || piece->mappings > 0)
        return;
    if (fallocate(standin.memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)piece->offset,
                  (off_t)piece->bytes) != 0)
        perror("standin: punch");
    if (piece->device)
        piece->device->used -= piece->bytes;
    pieces_alive--;
    free(piece);
}

static struct piece *piece_of_locked(CUmemGenericAllocationHandle handle)
{
    if (handle < HANDLE_BASE || handle - HANDLE_BASE >= handle_count)
        return NULL;
    return handles[handle - HANDLE_BASE];
}

/* ---- Addresses. */
static size_t reservation_after(CUdeviceptr address) /* the first that begins behind it */
{
    size_t low = 0, high = reservation_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (reservations[middle].begin <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct reservation *reservation_at(CUdeviceptr address)
{
    size_t i = reservation_after(address);
    if (i == 0 || address - reservations[i - 1].begin >= reservations[i - 1].bytes)
        return NULL;
    return &reservations[i - 1];
}

static bool addresses_free(CUdeviceptr begin, size_t bytes)
{
    CUdeviceptr base = U64(standin.arena);
    if (begin < base || begin - base > ARENA_BYTES || bytes > ARENA_BYTES - (begin - base))
        return false;
    size_t i = reservation_after(begin);
    if (i > 0 && begin - reservations[i - 1].begin < reservations[i - 1].bytes)
        return false;
    return i == reservation_count || reservations[i].begin - begin >= bytes;
}

CUdeviceptr addresses_take_locked(size_t bytes, size_t alignment, CUdeviceptr hint, bool internal)
{
    CUdeviceptr mask = (alignment > STANDIN_GRANULE ? alignment : STANDIN_GRANULE) - 1;
    CUdeviceptr at = hint && (hint & mask) == 0 && addresses_free(hint, bytes) ? hint : 0;
    if (!at) { /* first fit: addresses are used again soon */
        at = (U64(standin.arena) + mask) & ~mask;
        for (size_t i = 0; i < reservation_count && reservations[i].begin < at + bytes; i++)
            if (reservations[i].begin + reservations[i].bytes > at)
                at = (reservations[i].begin + reservations[i].bytes + mask) & ~mask;
        if (!addresses_free(at, bytes))
            return 0;
    }
    grow((void **)&reservations, reservation_count, &reservation_room, sizeof *reservations);
    size_t i = reservation_after(at);
    memmove(&reservations[i + 1], &reservations[i], (reservation_count++ - i) * sizeof *reservations);
    reservations[i] = (struct reservation){at, bytes, internal};
    return at;
}

void addresses_give_locked(CUdeviceptr begin)
{
    struct reservation *r = reservation_at(begin);
    if (!r)
        return;
    size_t i = (size_t)(r - reservations);
    memmove(&reservations[i], &reservations[i + 1], (--reservation_count - i) * sizeof *reservations);
}

/* ---- Mappings. */
static size_t mapping_after(CUdeviceptr address)
{
    size_t low = 0, high = mapping_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (mappings[middle].begin <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct mapping *mapping_at_locked(CUdeviceptr address)
{
    size_t i = mapping_after(address);
    if (i == 0 || address - mappings[i - 1].begin >= mappings[i - 1].bytes)
        return NULL;
    return &mappings[i - 1];
}

bool mapping_add_locked(CUdeviceptr begin, struct piece *piece, size_t offset, size_t bytes, struct chunk *chunk)
{
    size_t i = mapping_after(begin);
    if ((i > 0 && begin - mappings[i - 1].begin < mappings[i - 1].bytes) ||
        (i < mapping_count && mappings[i].begin - begin < bytes))
        return false;
    if (mmap((void *)(uintptr_t)begin, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, standin.memory_fd,
             (off_t)(piece->offset + offset)) == MAP_FAILED) {
        perror("standin: map");
        abort();
    }
    madvise((void *)(uintptr_t)begin, bytes, MADV_DONTFORK); /* a child has no device */
    grow((void **)&mappings, mapping_count, &mapping_room, sizeof *mappings);
    memmove(&mappings[i + 1], &mappings[i], (mapping_count++ - i) * sizeof *mappings);
    mappings[i] = (struct mapping){begin, bytes, piece, {0}, chunk};
    piece->mappings++;
    return true;
}

/* What the addresses permit: all devices' threads are threads of one process. */
static int mapping_access(const struct mapping *mapping)
{
    int access = CU_MEM_ACCESS_FLAGS_PROT_NONE;
    for (unsigned i = 0; i < DEVICES_MAX; i++)
        access |= mapping->access[i];
    return access;
}

void mapping_access_locked(struct mapping *mapping, const struct device *device, int access)
{
    mapping->access[device_ordinal(device)] = access;
    access = mapping_access(mapping);
    int protection = access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_READ | PROT_WRITE
                     : access == CU_MEM_ACCESS_FLAGS_PROT_READ    ? PROT_READ
                                                                  : PROT_NONE;
    if (mprotect((void *)(uintptr_t)mapping->begin, mapping->bytes, protection) != 0) {
        perror("standin: access");
        abort();
    }
}

void mapping_remove_locked(CUdeviceptr begin)
{
    size_t i = (size_t)(mapping_at_locked(begin) - mappings);
    struct piece *piece = mappings[i].piece;
    if (mmap((void *)(uintptr_t)begin, mappings[i].bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
        perror("standin: unmap");
        abort();
    }
    memmove(&mappings[i], &mappings[i + 1], (--mapping_count - i) * sizeof *mappings);
    piece->mappings--;
    piece_drop_locked(piece);
}

bool host_pinned_locked(const void *memory, size_t bytes)
{
    for (struct host_block *block = host_blocks; block; block = block->next)
        if ((const char *)memory >= block->begin && (const char *)memory < block->begin + block->bytes)
            return bytes <= (size_t)(block->begin + block->bytes - (const char *)memory);
    return false;
}

bool device_bytes_locked(CUdeviceptr address, size_t bytes, int access)
{
    if (!in_arena((void *)(uintptr_t)address))
        return host_pinned_locked((void *)(uintptr_t)address, bytes);
    for (CUdeviceptr at = address, end = address + bytes; at < end;) {
        struct mapping *mapping = mapping_at_locked(at);
        if (!mapping || (mapping_access(mapping) & access) != access || (mapping->chunk && !block_at_locked(at)))
            return false;
        at = mapping->begin + mapping->bytes;
    }
    return true;
}

/* ---- The calls. */
static bool granular(unsigned long long value) { return value % STANDIN_GRANULE == 0; }

static bool good_prop(const CUmemAllocationProp *prop)
{
    if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return false;
    if (prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE)
        return device_of(prop->location.id) != NULL;
    return prop->location.type == CU_MEM_LOCATION_TYPE_HOST || prop->location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
}

API cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop,
                                  CUmemAllocationGranularity_flags which)
{
    ENTER("cuMemGetAllocationGranularity", 0, which, 0);
    if (!bytes || !good_prop(prop) || which < 0 || which > 1)
        return CUDA_ERROR_INVALID_VALUE;
    *bytes = STANDIN_GRANULE;
    return CUDA_SUCCESS;
}

API cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                        unsigned long long flags)
{
    ENTER("cuMemAddressReserve", 0, bytes, alignment);
    if (!address || bytes == 0 || !granular(bytes) || (alignment & (alignment - 1)) || flags)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    CUdeviceptr at = addresses_take_locked(bytes, alignment, hint, false);
    if (at)
        *address = at;
    return unlock(at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

API cuMemAddressFree(CUdeviceptr address, size_t bytes)
{
    ENTER("cuMemAddressFree", 0, address, bytes);
    lock();
    struct reservation *r = reservation_at(address);
    if (!r || r->internal || r->begin != address || r->bytes != bytes)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    size_t i = mapping_after(address);
    if ((i > 0 && mappings[i - 1].begin == address) || (i < mapping_count && mappings[i].begin < address + bytes))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    addresses_give_locked(address);
    return unlock(CUDA_SUCCESS);
}

API cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop,
                unsigned long long flags)
{
    ENTER("cuMemCreate", 0, bytes, 0);
    if (!handle || !good_prop(prop) || bytes == 0 || !granular(bytes) || flags)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    bool on_device = prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    struct piece *piece = piece_create_locked(bytes, on_device ? device_of(prop->location.id) : NULL);
    if (!piece)
        return unlock(CUDA_ERROR_OUT_OF_MEMORY);
    grow((void **)&handles, handle_count, &handle_room, sizeof *handles);
    piece->held = true;
    piece->prop = *prop;
    piece->id = HANDLE_BASE + handle_count;
    handles[handle_count++] = piece;
    *handle = piece->id;
    return unlock(CUDA_SUCCESS);
}

API cuMemRelease(CUmemGenericAllocationHandle handle)
{
    ENTER("cuMemRelease", 0, handle, 0);
    lock();
    struct piece *piece = piece_of_locked(handle);
    if (!piece)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    handles[handle - HANDLE_BASE] = NULL;
    piece->held = false;
    piece_drop_locked(piece);
    return unlock(CUDA_SUCCESS);
}

API cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
             unsigned long long flags)
{
    ENTER("cuMemMap", 0, address, bytes);
    if (bytes == 0 || !granular(address) || !granular(bytes) || !granular(offset) || flags)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    struct piece *piece = piece_of_locked(handle);
    struct reservation *r = reservation_at(address);
    if (!piece || !r || r->internal || bytes > r->bytes - (address - r->begin) || offset > piece->bytes ||
        bytes > piece->bytes - offset)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    return unlock(mapping_add_locked(address, piece, offset, bytes, NULL) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* Whether [address, address + bytes) is whole mappings, one behind the other, made by cuMemMap. */
static bool whole_mappings(CUdeviceptr address, size_t bytes)
{
    CUdeviceptr at = address;
    while (at < address + bytes) {
        struct mapping *mapping = mapping_at_locked(at);
        if (!mapping || mapping->begin != at || mapping->chunk)
            return false;
        at += mapping->bytes;
    }
    return bytes > 0 && at == address + bytes;
}

API cuMemUnmap(CUdeviceptr address, size_t bytes)
{
    ENTER("cuMemUnmap", 0, address, bytes);
    lock();
    if (!whole_mappings(address, bytes))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    for (CUdeviceptr at = address; at < address + bytes;) {
        size_t step = mapping_at_locked(at)->bytes;
        mapping_remove_locked(at);
        at += step;
    }
    return unlock(CUDA_SUCCESS);
}

API cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count)
{
    ENTER("cuMemSetAccess", 0, address, bytes);
    if (!access || count == 0)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    bool good = whole_mappings(address, bytes);
    for (size_t i = 0; i < count; i++)
        good = good && (access[i].flags == 0 || access[i].flags == 1 || access[i].flags == 3);
    if (!good)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < count; i++)
        if (access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE && !device_of(access[i].location.id))
            return unlock(CUDA_ERROR_INVALID_DEVICE);
    for (size_t i = 0; i < count; i++)
        for (CUdeviceptr at = address;
             access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE && at < address + bytes;) {
            struct mapping *mapping = mapping_at_locked(at);
            mapping_access_locked(mapping, device_of(access[i].location.id), access[i].flags);
            at += mapping->bytes;
        }
    return unlock(CUDA_SUCCESS);
}

API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    ENTER("cuMemGetAllocationPropertiesFromHandle", 0, handle, 0);
    lock();
    struct piece *piece = piece_of_locked(handle);
    if (piece && prop)
        *prop = piece->prop;
    return unlock(piece && prop ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* ---- Host memory that the device may use. */
static CUresult host_add(void *memory, size_t bytes, bool registered)
{
    struct host_block *block = take_memory(sizeof *block);
    *block = (struct host_block){memory, bytes, registered, NULL};
    lock();
    for (struct host_block *other = host_blocks; other; other = other->next)
        if ((char *)memory < other->begin + other->bytes && other->begin < (char *)memory + bytes) {
            free(block);
            return unlock(ERROR_ALREADY_REGISTERED);
        }
    block->next = host_blocks;
    host_blocks = block;
    return unlock(CUDA_SUCCESS);
}

static CUresult host_take(void *memory, bool registered, CUresult absent)
{
    lock();
    struct host_block **link = &host_blocks;
    while (*link && ((*link)->begin != memory || (*link)->registered != registered))
        link = &(*link)->next;
    struct host_block *block = *link;
    if (!block)
        return unlock(absent);
    streams_wait_locked(NULL);                 /* CUDA waits for what may use it */
    for (link = &host_blocks; *link != block;) /* the list may have changed in the wait */
        link = &(*link)->next;
    *link = block->next;
    unlock(0);
    if (!registered)
        free(memory);
    free(block);
    return CUDA_SUCCESS;
}

static CUresult host_alloc(void **memory, size_t bytes)
{
    if (!memory || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    void *got = NULL;
    if (posix_memalign(&got, 4096, bytes) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memset(got, STANDIN_POISON, bytes);
    *memory = got;
    return host_add(got, bytes, false);
}

API cuMemHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    ENTER("cuMemHostAlloc", CALL_CONTEXT | CALL_UNSAFE, bytes, flags);
    return flags > 7 ? CUDA_ERROR_INVALID_VALUE : host_alloc(memory, bytes);
}

API cuMemAllocHost_v2(void **memory, size_t bytes)
{
    ENTER("cuMemAllocHost_v2", CALL_CONTEXT | CALL_UNSAFE, bytes, 0);
    return host_alloc(memory, bytes);
}

API cuMemFreeHost(void *memory)
{
    ENTER("cuMemFreeHost", CALL_CONTEXT | CALL_UNSAFE, U64(memory), 0);
    return host_take(memory, false, CUDA_ERROR_INVALID_VALUE);
}

API cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags)
{
    ENTER("cuMemHostRegister_v2", CALL_CONTEXT | CALL_UNSAFE, U64(memory), bytes);
    if (!memory || bytes == 0 || flags > 15)
        return CUDA_ERROR_INVALID_VALUE;
    return host_add(memory, bytes, true);
}

API cuMemHostUnregister(void *memory)
{
    ENTER("cuMemHostUnregister", CALL_CONTEXT | CALL_UNSAFE, U64(memory), 0);
    return host_take(memory, true, ERROR_NOT_REGISTERED);
}

API cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *memory, unsigned flags)
{
    ENTER("cuMemHostGetDevicePointer_v2", CALL_CONTEXT, U64(memory), 0);
    lock();
    bool known = address && !flags && host_pinned_locked(memory, 1);
    if (known)
        *address = U64(memory);
    return unlock(known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* ---- What is left. */
struct standin_leaks standin_leaks(void)
{
    struct standin_leaks leaks = {0};
    lock();
    for (size_t i = 0; i < handle_count; i++)
        leaks.handles += handles[i] != NULL;
    for (size_t i = 0; i < mapping_count; i++)
        leaks.mappings += !mappings[i].chunk;
    for (size_t i = 0; i < reservation_count; i++)
        leaks.reservations += !reservations[i].internal;
    for (struct host_block *block = host_blocks; block; block = block->next)
        leaks.host_blocks++;
    leaks.pools = object_count_locked(OBJECT_POOL) - standin.device_count;
    for (unsigned i = 0; i < standin.device_count; i++)
        leaks.allocations += standin.devices[i].plain.used_blocks + standin.devices[i].default_pool->used_blocks;
    leaks.streams = object_count_locked(OBJECT_STREAM);
    leaks.events = object_count_locked(OBJECT_EVENT);
    leaks.modules = object_count_locked(OBJECT_MODULE) + object_count_locked(OBJECT_LIBRARY);
    leaks.graphs = object_count_locked(OBJECT_GRAPH) + object_count_locked(OBJECT_EXEC);
    leaks.contexts = object_count_locked(OBJECT_CONTEXT);
    unlock(0);
    return leaks;
}

size_t standin_leak_text(char *text, size_t room)
{
    struct standin_leaks leaks = standin_leaks();
    const struct {
        const char *name;
        size_t count;
    } rows[] = {{"handles", leaks.handles},         {"mappings", leaks.mappings}, {"reservations", leaks.reservations},
                {"allocations", leaks.allocations}, {"host", leaks.host_blocks},  {"streams", leaks.streams},
                {"events", leaks.events},           {"modules", leaks.modules},   {"pools", leaks.pools},
                {"graphs", leaks.graphs},           {"contexts", leaks.contexts}};
    size_t total = 0, at = 0;
    if (room)
        text[0] = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        total += rows[i].count;
        if (rows[i].count && at < room)
            at += (size_t)snprintf(text + at, room - at, "%s%s %zu", at ? ", " : "", rows[i].name, rows[i].count);
    }
    return total;
}

size_t standin_leak_count(void)
{
    char text[1];
    return standin_leak_text(text, 0);
}

size_t standin_device_used(void)
{
    size_t used = 0;
    lock();
    for (unsigned i = 0; i < standin.device_count; i++)
        used += standin.devices[i].used;
    unlock(0);
    return used;
}

void memory_reset_locked(void)
{
    while (mapping_count > 0)
        mapping_remove_locked(mappings[mapping_count - 1].begin);
    for (size_t i = 0; i < handle_count; i++)
        if (handles[i]) {
            handles[i]->held = false;
            piece_drop_locked(handles[i]);
        }
    handle_count = reservation_count = 0;
    free(handles);
    free(mappings);
    free(reservations);
    handles = NULL;
    mappings = NULL;
    reservations = NULL;
    handle_room = mapping_room = reservation_room = 0;
    while (host_blocks) {
        struct host_block *block = host_blocks;
        host_blocks = block->next;
        if (!block->registered)
            free((void *)(uintptr_t)block->begin);
        free(block);
    }
    if (pieces_alive != 0) {
        fprintf(stderr, "standin: %zu pieces of physical memory are lost\n", pieces_alive);
        abort();
    }
}
