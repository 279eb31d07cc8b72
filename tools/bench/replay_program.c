/* replay_program.c - makes the built-in programs. They follow tools/gpu/denoise.py, and a Llama of transformers, kernel
 * by kernel: what is allocated lives as long as a Python variable holds it there. */
#include "replay_program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const replay_programs[] = {"tinyllama", "8b", "flux", "prefill", NULL};

#define RANGE_BYTES_MIN (1u << 20) /* what is smaller is no range */

/* --- operations -------------------------------------------------------------------------------------------- */

static void add_op(struct replay_program *p, struct replay_op op)
{
    if (p->op_count == p->op_room) {
        p->op_room = p->op_room ? 2 * p->op_room : 1024;
        p->ops = realloc(p->ops, p->op_room * sizeof *p->ops);
        if (!p->ops) {
            fputs("replay_policy: out of memory\n", stderr);
            exit(2);
        }
    }
    p->ops[p->op_count++] = op;
}

/* An activation: its block, or REPLAY_NONE where it is too small for a range. */
struct tensor {
    uint32_t block;
    uint64_t bytes;
};

static struct tensor allocate(struct replay_program *p, uint64_t bytes)
{
    struct tensor t = {REPLAY_NONE, bytes};
    if (bytes < RANGE_BYTES_MIN)
        return t;
    t.block = p->block_count++;
    add_op(p, (struct replay_op){.kind = REPLAY_ALLOC, .block = t.block, .weight = REPLAY_NONE, .bytes = bytes});
    return t;
}

static void release(struct replay_program *p, struct tensor t)
{
    if (t.block != REPLAY_NONE)
        add_op(p, (struct replay_op){.kind = REPLAY_FREE, .block = t.block, .weight = REPLAY_NONE});
}

/* A kernel that reads `read` bytes and writes a new tensor. */
static struct tensor launch(struct replay_program *p, uint32_t weight, uint64_t read, double flops, uint64_t bytes)
{
    struct tensor out = allocate(p, bytes);
    add_op(p, (struct replay_op){
                  .kind = REPLAY_LAUNCH, .block = out.block, .weight = weight, .bytes = read + bytes, .flops = flops});
    return out;
}

/* Element by element: out of what is given, a tensor of the first one's size. */
static struct tensor map(struct replay_program *p, struct tensor x)
{
    return launch(p, REPLAY_NONE, x.bytes, 0, x.bytes);
}

static struct tensor mapped(struct replay_program *p, struct tensor x) /* and x is not needed any more */
{
    struct tensor out = map(p, x);
    release(p, x);
    return out;
}

static struct tensor joined(struct replay_program *p, uint64_t bytes) /* torch.cat */
{
    return launch(p, REPLAY_NONE, bytes, 0, bytes);
}

static uint32_t add_weight(struct replay_program *p, uint64_t to, uint64_t of, const char *name, int layer)
{
    return (uint32_t)replay_add_item(&p->weights, 2 * to * of, "", name, layer);
}

/* x of `rows` rows times a new weight of that name. */
static struct tensor linear(struct replay_program *p, uint64_t rows, uint64_t to, uint64_t of, const char *name,
                            int layer)
{
    uint32_t weight = add_weight(p, to, of, name, layer);
    return launch(p, weight, 2 * (rows * of + to * of), 2.0 * (double)rows * (double)to * (double)of, 2 * rows * to);
}

/* --- FLUX.1-dev's shape ------------------------------------------------------------------------------------- */

enum { HIDDEN = 3072, IMAGES = 4096, WORDS = 512, DOUBLES = 19, SINGLES = 38 };

static struct tensor normed(struct replay_program *p, struct tensor x)
{
    return mapped(p, mapped(p, map(p, x))); /* norm, times 1 + scale, plus shift */
}

static struct tensor turned(struct replay_program *p, struct tensor x)
{
    struct tensor cosine = map(p, x), half = launch(p, REPLAY_NONE, x.bytes / 2, 0, x.bytes / 2);
    struct tensor halves = joined(p, x.bytes);
    release(p, half);
    struct tensor sine = mapped(p, halves), out = map(p, x);
    release(p, cosine);
    release(p, sine);
    return out;
}

/* q, k, v stay the caller's. */
static struct tensor attend(struct replay_program *p, const struct tensor qkv[3], uint64_t rows)
{
    struct tensor q = map(p, qkv[0]), k = map(p, qkv[1]); /* their norms */
    struct tensor q_turned = turned(p, q), k_turned = turned(p, k);
    release(p, q);
    release(p, k);
    struct tensor out = launch(p, REPLAY_NONE, 3 * q.bytes, 4.0 * (double)rows * (double)rows * HIDDEN, q.bytes);
    release(p, q_turned);
    release(p, k_turned);
    return out;
}

struct stream { /* of a block with two: what it keeps between before and after */
    uint64_t rows;
    const char *names[7];
    struct tensor x, qkv[3];
};

static void before(struct replay_program *p, struct stream *s, int layer)
{
    linear(p, 1, 6ull * HIDDEN, HIDDEN, s->names[0], layer);
    struct tensor y = normed(p, s->x);
    for (unsigned i = 0; i < 3; i++)
        s->qkv[i] = linear(p, s->rows, HIDDEN, HIDDEN, s->names[1 + i], layer);
    release(p, y);
}

static void add_gated(struct replay_program *p, struct tensor *x, struct tensor y) /* x + gate * y */
{
    struct tensor gated = mapped(p, y), sum = map(p, gated);
    release(p, gated);
    release(p, *x);
    *x = sum;
}

static void after(struct replay_program *p, struct stream *s, int layer)
{
    add_gated(p, &s->x, linear(p, s->rows, HIDDEN, HIDDEN, s->names[4], layer));
    struct tensor y = normed(p, s->x), up = linear(p, s->rows, 4ull * HIDDEN, HIDDEN, s->names[5], layer);
    release(p, y);
    struct tensor inner = mapped(p, up), down = linear(p, s->rows, HIDDEN, 4ull * HIDDEN, s->names[6], layer);
    release(p, inner);
    add_gated(p, &s->x, down);
}

static void double_block(struct replay_program *p, struct stream *image, struct stream *text, int layer)
{
    struct tensor both[3] = {{REPLAY_NONE, 0}};
    before(p, image, layer);
    before(p, text, layer);
    for (unsigned i = 0; i < 3; i++)
        both[i] = joined(p, image->qkv[i].bytes + text->qkv[i].bytes);
    struct tensor out = attend(p, both, image->rows + text->rows);
    for (unsigned i = 0; i < 3; i++)
        release(p, both[i]);
    after(p, image, layer);
    after(p, text, layer);
    release(p, out);
    for (unsigned i = 0; i < 3; i++) {
        release(p, image->qkv[i]);
        release(p, text->qkv[i]);
    }
}

static void single_block(struct replay_program *p, struct tensor *x, int layer)
{
    const uint64_t rows = IMAGES + WORDS;
    struct tensor qkv[3] = {{REPLAY_NONE, 0}};
    linear(p, 1, 3ull * HIDDEN, HIDDEN, "single.modulation", layer);
    struct tensor y = normed(p, *x), up = linear(p, rows, 4ull * HIDDEN, HIDDEN, "single.up", layer);
    struct tensor inner = mapped(p, up);
    static const char *const names[] = {"single.q", "single.k", "single.v"};
    for (unsigned i = 0; i < 3; i++)
        qkv[i] = linear(p, rows, HIDDEN, HIDDEN, names[i], layer);
    struct tensor attended = attend(p, qkv, rows), all = joined(p, attended.bytes + inner.bytes);
    for (unsigned i = 0; i < 3; i++)
        release(p, qkv[i]);
    release(p, attended);
    struct tensor out = linear(p, rows, HIDDEN, 5ull * HIDDEN, "single.out", layer);
    release(p, all);
    add_gated(p, x, out);
    release(p, inner);
    release(p, y);
}

static void make_flux(struct replay_program *p)
{
    p->workspace = (uint32_t)replay_add_item(&p->weights, RANGE_BYTES_MIN, "", "workspace", -1);
    struct stream image = {.rows = IMAGES,
                           .names = {"image.modulation", "image.q", "image.k", "image.v", "image.out", "image.up",
                                     "image.down"}},
                  text = {
                      .rows = WORDS,
                      .names = {"text.modulation", "text.q", "text.k", "text.v", "text.out", "text.up", "text.down"}};
    text.x = linear(p, WORDS, HIDDEN, 4096, "text_in", -1);
    linear(p, 1, HIDDEN, 256, "time_in", -1);
    image.x = launch(p, REPLAY_NONE, 0, 0, 2ull * IMAGES * HIDDEN); /* of a weight that is no range */
    for (int i = 0; i < DOUBLES; i++)
        double_block(p, &image, &text, i);
    struct tensor x = joined(p, image.x.bytes + text.x.bytes);
    for (int i = 0; i < SINGLES; i++)
        single_block(p, &x, i);
    release(p, launch(p, REPLAY_NONE, x.bytes, 0, 2ull * IMAGES * 64)); /* the last layer, no range either */
    release(p, x);
    release(p, image.x);
    release(p, text.x);
}

enum { LAYERS_MOST = 64 };

/* --- Llamas ------------------------------------------------------------------------------------------------- */

/* Its keys and values stay, in `cache`. */
static void llama_attention(struct replay_program *p, const struct replay_shape *s, uint64_t rows, uint64_t context,
                            struct tensor *x, int layer, struct tensor cache[2])
{
    struct tensor y = mapped(p, map(p, *x)), qkv[3];
    static const char *const names[] = {"q", "k", "v"};
    for (unsigned i = 0; i < 3; i++)
        qkv[i] = linear(p, rows, i ? s->keys : s->hidden, s->hidden, names[i], layer);
    release(p, y);
    for (unsigned i = 0; i < 2; i++) { /* their rotation */
        struct tensor turn = turned(p, qkv[i]);
        release(p, qkv[i]);
        qkv[i] = turn;
    }
    struct tensor attended = launch(p, REPLAY_NONE, qkv[0].bytes + 2 * qkv[1].bytes,
                                    2.0 * (double)rows * (double)context * s->hidden, qkv[0].bytes);
    release(p, qkv[0]);
    struct tensor out = linear(p, rows, s->hidden, s->hidden, "o", layer);
    release(p, attended);
    cache[0] = qkv[1];
    cache[1] = qkv[2];
    struct tensor sum = map(p, out);
    release(p, out);
    release(p, *x);
    *x = sum;
}

static void llama_expansion(struct replay_program *p, const struct replay_shape *s, uint64_t rows, struct tensor *x,
                            int layer)
{
    struct tensor y = mapped(p, map(p, *x)), gate = mapped(p, linear(p, rows, s->inner, s->hidden, "gate", layer));
    struct tensor up = linear(p, rows, s->inner, s->hidden, "up", layer), inner = map(p, up);
    release(p, gate);
    release(p, up);
    struct tensor down = linear(p, rows, s->hidden, s->inner, "down", layer), sum = map(p, down);
    release(p, inner);
    release(p, y);
    release(p, down);
    release(p, *x);
    *x = sum;
}

static void make_llama(struct replay_program *p, const struct replay_shape *s, uint64_t rows, uint64_t context)
{
    struct tensor x = launch(p, add_weight(p, s->vocabulary, s->hidden, "embed", -1), 2 * rows * s->hidden, 0,
                             2 * rows * s->hidden);
    struct tensor cache[2 * LAYERS_MOST] = {{REPLAY_NONE, 0}};
    for (int i = 0; i < (int)s->layers; i++) {
        llama_attention(p, s, rows, context, &x, i, cache + 2 * (size_t)i);
        llama_expansion(p, s, rows, &x, i);
    }
    release(p,
            linear(p, rows / context, s->vocabulary, s->hidden, "lm_head", -1)); /* for the last row of each prompt */
    release(p, x);
    for (size_t i = 0; i < 2 * (size_t)s->layers; i++)
        release(p, cache[i]);
}

/* --- by name ------------------------------------------------------------------------------------------------ */

bool replay_program_make(struct replay_program *p, const char *name)
{
    *p = (struct replay_program){.name = name, .host_bound = true, .workspace = REPLAY_NONE};
    if (strcmp(name, "tinyllama") == 0) {
        p->host_ms = 24;
        make_llama(p, &replay_tinyllama, 1, 1);
    } else if (strcmp(name, "8b") == 0) {
        p->host_ms = 45;
        make_llama(p, &replay_llama8b, 1, 1);
    } else if (strcmp(name, "flux") == 0) {
        p->kernels_ms = 173;
        p->host_ms = 100;
        p->host_bound = false;
        make_flux(p);
    } else if (strcmp(name, "prefill") == 0) {
        p->host_ms = 45;
        p->host_bound = false;
        make_llama(p, &replay_llama8b, 4ull * 2048, 2048);
    } else {
        return false;
    }
    return true;
}

void replay_program_free(struct replay_program *p)
{
    replay_free(&p->weights);
    free(p->ops);
    *p = (struct replay_program){0};
}
