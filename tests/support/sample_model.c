#include "sample_model.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    abort();
}

uint64_t sample_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static double normal(uint64_t *state)
{
    double u = (double)(sample_random(state) >> 11) / 9007199254740992.0,
           v = (double)(sample_random(state) >> 11) / 9007199254740992.0;
    return sqrt(-2 * log(u + 1e-300)) * cos(6.283185307179586 * v);
}

struct bytes sample_file(const char *json, int pad, const void *data, size_t data_bytes)
{
    uint64_t n = strlen(json), room = pad ? (n + 7) / 8 * 8 : n;
    struct bytes f = {malloc(8 + room + data_bytes + 1), 8 + room + data_bytes};
    if (!f.data)
        die("sample_file");
    memcpy(f.data, &room, 8);
    memset(f.data + 8, ' ', room);
    memcpy(f.data + 8, json, n);
    if (data_bytes)
        memcpy(f.data + 8 + room, data, data_bytes);
    return f;
}

/* `rows` 0: one dimension. kind: w weights, i small integers, r random bytes, c constant, n pairs of half-byte weights,
 * e scales. */
struct entry {
    const char *name, *dtype;
    unsigned elem_bytes;
    size_t rows, elems; /* elems: of elem_bytes */
    char kind;
    const char *shape; /* NULL: that of elems */
};

static void fill(const struct entry *e, uint8_t *out, uint64_t *state)
{
    for (size_t i = 0; i < e->elems; i++, out += e->elem_bytes) {
        uint64_t bits = sample_random(state);
        float w = (float)(normal(state) * 0.02);
        uint32_t f;
        double d = w;
        memcpy(&f, &w, 4);
        if (e->kind == 'w' && e->elem_bytes == 2)
            bits = e->dtype[0] == 'B'    ? f >> 16
                   : fabsf(w) < 0x1p-14f ? 0
                                         : (f >> 16 & 0x8000) | (((f >> 13) - (112u << 10)) & 0x7fff);
        else if (e->kind == 'w' && e->elem_bytes == 4)
            bits = f;
        else if (e->kind == 'w' && e->elem_bytes == 8)
            memcpy(&bits, &d, 8);
        else if (e->kind == 'w')
            bits = (f >> 24 & 0x80) | (0x30 + (bits & 7));
        else if (e->kind == 'i')
            bits = i % 97 / 7;
        else if (e->kind == 'c')
            bits = 1;
        else if (e->kind == 'n')
            bits = (bits & 0x99) | (bits >> 8 & 0x22) | (bits >> 16 & bits >> 24 & 0x44);
        else if (e->kind == 'e')
            bits = 118 + (uint64_t)__builtin_ctzll(bits | 256);
        memcpy(out, &bits, e->elem_bytes);
    }
}

static struct bytes make_model(const struct entry *entries, size_t count, uint64_t seed, int scale)
{
    size_t total = 0, len = 0, room = 8192, begin[32];
    char *json = malloc(room);
    for (size_t i = 0; i < count; i++) {
        begin[i] = total;
        total += entries[i].elems * entries[i].elem_bytes;
    }
    uint8_t *data = malloc(total);
    if (!json || !data)
        die("make_model");
    for (size_t i = 0; i < count; i++)
        fill(&entries[i], data + begin[i], &seed);
    len += (size_t)snprintf(json, room, "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"tab\\tline\\n\"}");
    for (size_t k = 0; k < count; k++) { /* the text's order is not the data's */
        const struct entry *e = &entries[(k * 7 + 3) % count];
        size_t at = begin[e - entries], end = at + e->elems * e->elem_bytes;
        len += (size_t)snprintf(json + len, room - len, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", e->name, e->dtype);
        if (e->shape)
            len += (size_t)snprintf(json + len, room - len, "%s", e->shape);
        else if (e->rows)
            len += (size_t)snprintf(json + len, room - len, "%zu,%zu", e->rows, e->elems / e->rows);
        else if (e->elems != 1)
            len += (size_t)snprintf(json + len, room - len, "%zu", e->elems);
        len += (size_t)snprintf(json + len, room - len, "],\"data_offsets\":[%zu,%zu]}", at, end);
    }
    snprintf(json + len, room - len, "}");
    struct bytes f = sample_file(json, /* pad */ scale, data, total);
    free(json);
    free(data);
    return f;
}

struct bytes sample_model(uint64_t seed, int scale)
{
    size_t big = scale ? 130000 : 3000, row = 50;
    const struct entry entries[] = {
        {"z.last \\\" \\u00e9", "BF16", 2, 60, big / 60 * 60, 'w', NULL},
        {"a.first", "F32", 4, big / row / 4, big / row / 4 * row, 'w', NULL},
        {"nothing", "F32", 4, 0, 0, 'w', NULL},
        {"scalar", "F64", 8, 0, 1, 'w', NULL},
        {"half", "F16", 2, big / row / 2, big / row / 2 * row, 'w', NULL},
        {"odd", "U8", 1, 0, 13, 'r', NULL},
        {"noise", "BF16", 2, 0, scale ? 9001 : 901, 'r', NULL},
        {"mask", "BOOL", 1, 0, 777, 'c', NULL},
        {"ids", "I64", 8, 0, scale ? 4001 : 401, 'i', NULL},
        {"i8", "I8", 1, 0, 99, 'i', NULL},
        {"u16", "U16", 2, 0, 31, 'i', NULL},
        {"i16", "I16", 2, 0, 32, 'i', NULL},
        {"u32", "U32", 4, 0, 33, 'i', NULL},
        {"i32", "I32", 4, 0, 100, 'i', NULL},
        {"u64", "U64", 8, 0, 3, 'r', NULL},
        {"e4", "F8_E4M3", 1, 0, scale ? 60000 : 600, 'w', NULL},
        {"e5", "F8_E5M2", 1, 0, 4096, 'w', NULL},
        {"doubles", "F64", 8, 0, scale ? 5000 : 500, 'w', NULL},
        {"nothing more", "I8", 1, 0, 0, 'i', NULL},
        {"one", "BF16", 2, 1, 1, 'w', NULL},
    };
    return make_model(entries, sizeof entries / sizeof *entries, seed, scale);
}

struct bytes sample_later_types(uint64_t seed)
{
    const struct entry entries[] = {
        {"scales", "F8_E8M0", 1, 40, 4000, 'e', NULL},
        {"blocks", "F4", 1, 0, 20000, 'n', "40,20,25,2"}, /* 2 to a byte; one of more than a tile */
        {"blocks.small", "F4", 1, 0, 3, 'n', "3,2"},
        {"complex", "C64", 4, 0, 6000, 'w', "30,100"},
        {"complex.scalar", "C64", 4, 0, 2, 'w', ""},
        {"e4", "F8_E4M3FNUZ", 1, 50, 5000, 'w', NULL},
        {"e5", "F8_E5M2FNUZ", 1, 0, 700, 'w', NULL},
        {"six", "F6_E2M3", 1, 0, 300, 'r', "20,20"},
        {"six.too", "F6_E3M2", 1, 0, 3, 'r', "4"},
        {"nothing", "F4", 1, 0, 0, 'r', "0,3"},
        {"not yet", "I4", 1, 0, 333, 'r', "111,6"}, /* a dtype that nobody knows, and its bytes */
        {"not yet scalar", "F2_of_tomorrow", 1, 0, 900, 'i', ""},
        {"usual", "BF16", 2, 60, 6000, 'w', NULL},
    };
    return make_model(entries, sizeof entries / sizeof *entries, seed, 0);
}

void sample_save(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || (size && fwrite(data, 1, size, f) != size) || fclose(f))
        die(path);
}

struct bytes sample_load(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END))
        die(path);
    struct bytes b = {NULL, (size_t)ftell(f)};
    rewind(f);
    b.data = malloc(b.size + 1);
    if (!b.data || fread(b.data, 1, b.size, f) != b.size)
        die(path);
    fclose(f);
    return b;
}

static char directory[200];
static pid_t owner;

static void remove_directory(void)
{
    if (getpid() != owner)
        return;
    DIR *d = opendir(directory);
    if (!d)
        return;
    char path[600];
    for (const struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            remove(path);
    }
    closedir(d);
    rmdir(directory);
}

const char *sample_path(const char *name)
{
    static char paths[32][300];
    static unsigned count;
    if (!directory[0]) {
        const char *tmp = getenv("TMPDIR");
        snprintf(directory, sizeof directory, "%.100s/cws-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
        if (!mkdtemp(directory))
            die(directory);
        owner = getpid();
        atexit(remove_directory);
    }
    char path[300];
    snprintf(path, sizeof path, "%s/%.90s", directory, name);
    for (unsigned i = 0; i < count; i++)
        if (strcmp(paths[i], path) == 0)
            return paths[i];
    if (count == 32)
        die("sample_path: too many names");
    return strcpy(paths[count++], path);
}
