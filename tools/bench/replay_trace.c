/* replay_trace.c - makes traces of uses: from the shapes of models, or from what CODEC_TRACE recorded. */
#include "replay.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANGE_BYTES_MIN (1u << 20) /* smaller tensors are no ranges */

const struct replay_shape replay_tinyllama = {"TinyLlama-1.1B", 22, 2048, 256, 5632, 32000, 0};
const struct replay_shape replay_llama8b = {"Llama-3.1-8B", 32, 4096, 1024, 14336, 128256, 0};
const struct replay_shape replay_mixtral = {"Mixtral-8x7B", 32, 4096, 1024, 14336, 32000, 8};

static void *grown(void *list, size_t count, size_t *room, size_t bytes)
{
    if (count < *room)
        return list;
    *room = *room ? *room * 2 : 256;
    list = realloc(list, *room * bytes);
    if (!list) {
        fputs("replay_policy: out of memory\n", stderr);
        exit(2);
    }
    return list;
}

size_t replay_add_item(struct replay_trace *t, uint64_t bytes, const char *prefix, const char *name, int layer)
{
    t->items = grown(t->items, t->item_count, &t->item_room, sizeof *t->items);
    struct replay_item *item = &t->items[t->item_count];
    if (layer < 0)
        snprintf(item->name, sizeof item->name, "%s%s", prefix, name);
    else
        snprintf(item->name, sizeof item->name, "%slayers.%d.%s", prefix, layer, name);
    item->bytes = bytes;
    return t->item_count++;
}

static void add_use(struct replay_trace *t, size_t item)
{
    t->uses = grown(t->uses, t->use_count, &t->use_room, sizeof *t->uses);
    t->uses[t->use_count++] = (uint32_t)item;
}

void replay_end_round(struct replay_trace *t)
{
    t->rounds = grown(t->rounds, t->round_count, &t->round_room, sizeof *t->rounds);
    t->rounds[t->round_count++] = t->use_count;
}

/* --- models --------------------------------------------------------------------------------------------- */

static const char *const attention[] = {"q", "k", "v", "o"}, *const expert[] = {"gate", "up", "down"};

static uint64_t attention_bytes(const struct replay_shape *s, unsigned i)
{
    return 2ull * s->hidden * (i == 1 || i == 2 ? s->keys : s->hidden);
}

static size_t layer_items(const struct replay_shape *s) { return 4 + 3 * (size_t)(s->experts ? s->experts : 1); }

size_t replay_add_model(struct replay_trace *t, const struct replay_shape *s, const char *prefix)
{
    uint64_t table = 2ull * s->hidden * s->vocabulary, inner = 2ull * s->hidden * s->inner;
    size_t first = replay_add_item(t, table, prefix, "embed", -1);
    for (unsigned layer = 0; layer < s->layers; layer++) {
        for (unsigned i = 0; i < 4; i++)
            replay_add_item(t, attention_bytes(s, i), prefix, attention[i], (int)layer);
        for (unsigned e = 0; e < (s->experts ? s->experts : 1); e++) {
            for (unsigned i = 0; i < 3; i++) {
                char name[32];
                snprintf(name, sizeof name, s->experts ? "experts.%2$u.%1$s" : "%1$s", expert[i], e);
                replay_add_item(t, inner, prefix, name, (int)layer);
            }
        }
    }
    replay_add_item(t, table, prefix, "lm_head", -1);
    return first;
}

static uint64_t next_random(uint64_t *seed) /* xorshift64* */
{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * 0x2545f4914f6cdd1dull >> 32;
}

static void route(const struct replay_shape *s, uint64_t *seed, unsigned char *two)
{
    for (unsigned i = 0; i < 2; i++)
        if (next_random(seed) % 4 != 0)
            two[i] = (unsigned char)(next_random(seed) % s->experts);
    while (two[1] == two[0])
        two[1] = (unsigned char)(next_random(seed) % s->experts);
}

void replay_add_pass(struct replay_trace *t, const struct replay_shape *s, size_t first, uint64_t *seed,
                     unsigned char *chosen)
{
    add_use(t, first);
    for (unsigned layer = 0; layer < s->layers; layer++) {
        size_t at = first + 1 + layer * layer_items(s);
        for (unsigned i = 0; i < 4; i++)
            add_use(t, at + i);
        if (!s->experts) {
            for (unsigned i = 0; i < 3; i++)
                add_use(t, at + 4 + i);
            continue;
        }
        route(s, seed, chosen + 2 * (size_t)layer);
        for (unsigned k = 0; k < 2; k++)
            for (unsigned i = 0; i < 3; i++)
                add_use(t, at + 4 + 3 * (size_t)chosen[2 * (size_t)layer + k] + i);
    }
    add_use(t, first + 1 + s->layers * layer_items(s));
}

/* --- recorded ------------------------------------------------------------------------------------------- */

static char *load_text(const char *path, size_t *out_end, struct cws_error *err)
{
    FILE *f = fopen(path, "rbe");
    char *text = NULL;
    long size = -1;
    if (f && fseek(f, 0, SEEK_END) == 0)
        size = ftell(f);
    if (size >= 0 && (text = malloc((size_t)size + 2)) != NULL) {
        rewind(f);
        if (fread(text, 1, (size_t)size, f) != (size_t)size) {
            free(text);
            text = NULL;
        }
    }
    int why = errno;
    if (f)
        fclose(f);
    if (!text) {
        cws_error_set_errno(err, why ? why : EIO, "%s", path);
        return NULL;
    }
    *out_end = (size_t)size;
    return text;
}

/* The array up to `end`, closed if it is not. */
static json_t *parse(char *text, size_t end, json_error_t *why)
{
    while (end && strchr(" \t\r\n,", text[end - 1]))
        end--;
    if (end && text[end - 1] != ']')
        text[end++] = ']';
    text[end] = '\0';
    return json_loads(text, 0, why);
}

/* The events of a trace. One of a program that was killed is not closed; one that was cut otherwise ends behind its
 * last whole line. */
static json_t *load_events(const char *path, struct cws_error *err)
{
    size_t end = 0;
    char *text = load_text(path, &end, err);
    if (!text)
        return NULL;
    json_error_t why;
    size_t line = end;
    while (line && text[line - 1] != '\n')
        line--;
    json_t *events = parse(text, end, &why);
    if (!events && line)
        events = parse(text, line, &why);
    free(text);
    if (!json_is_array(events)) {
        cws_fail(err, CWS_E_INPUT, "%s: not a trace of CODEC_TRACE: line %d: %s", path, why.line,
                 events ? "not an array" : why.text);
        json_decref(events);
        return NULL;
    }
    return events;
}

struct recorded {
    double at;
    size_t item; /* SIZE_MAX: a round begins */
};

static int by_time(const void *a, const void *b)
{
    double x = ((const struct recorded *)a)->at, y = ((const struct recorded *)b)->at;
    return (x > y) - (x < y);
}

static size_t item_named(struct replay_trace *t, const char *name, uint64_t bytes)
{
    for (size_t i = 0; i < t->item_count; i++)
        if (t->items[i].bytes == bytes && strcmp(t->items[i].name, name) == 0)
            return i;
    return replay_add_item(t, bytes, "", name, -1);
}

int replay_load(struct replay_trace *t, const char *path, struct cws_error *err)
{
    json_t *events = load_events(path, err), *e;
    if (!events)
        return err->code;
    struct recorded *list = NULL;
    size_t count = 0, room = 0, i;
    json_array_foreach(events, i, e)
    {
        const char *name = json_string_value(json_object_get(e, "name"));
        bool use = name && strcmp(name, "use") == 0, cycle = name && strcmp(name, "cycle") == 0;
        if (!use && !cycle)
            continue;
        json_t *args = json_object_get(e, "args");
        const char *tensor = json_string_value(json_object_get(args, "tensor"));
        long long bytes = json_integer_value(json_object_get(args, "bytes"));
        if (use && (!tensor || bytes <= 0))
            continue;
        list = grown(list, count, &room, sizeof *list);
        list[count].at = json_number_value(json_object_get(e, "ts"));
        list[count++].item = cycle ? SIZE_MAX : item_named(t, tensor, (uint64_t)bytes);
    }
    json_decref(events);
    if (count)
        qsort(list, count, sizeof *list, by_time);
    for (i = 0; i < count; i++) {
        if (list[i].item == SIZE_MAX)
            replay_end_round(t);
        else
            add_use(t, list[i].item);
    }
    free(list);
    if (t->use_count == 0)
        return cws_fail(err, CWS_E_INPUT, "%s: tells of no uses: only traces of programs that page a GPU do", path);
    if (t->round_count == 0 || t->rounds[t->round_count - 1] != t->use_count)
        replay_end_round(t);
    return 0;
}

void replay_free(struct replay_trace *t)
{
    free(t->items);
    free(t->uses);
    free(t->rounds);
    *t = (struct replay_trace){0};
}
