/* The safetensors header parser on arbitrary bytes: no crash, and what it takes keeps its promises. */
#include "store/format/header_text.h"
#include "store/format/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void promise(int kept)
{
    if (!kept)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cws_error err = {0};
    struct cws_header *h, *again;
    uint64_t n = size, bytes, written_bytes;
    if (size < 2 || size > 65536)
        return 0;
    uint8_t *file = malloc(size + 8); /* the length is right: the text is what is fuzzed */
    promise(file != NULL);
    memcpy(file, &n, 8);
    memcpy(file + 8, data, size);
    promise(cws_header_length("f", file, size + 8, &bytes, &err) == 0 && bytes == size + 8);
    int code = cws_header_parse("f", file, bytes, UINT64_MAX, &h, &err);
    promise((code == 0) == (h != NULL) && (code == 0 || (code == CWS_E_INPUT && err.message[0])));
    free(file);
    if (code)
        return 0;
    uint64_t at = 0;
    for (size_t i = 0; i < h->tensor_count; i++) {
        const struct cws_header_tensor *t = &h->tensors[i];
        promise(t->begin == at && t->end >= at &&
                (t->dtype == CWS_OTHER || (cws_dtype_size(t->dtype, t->elems, &bytes) && t->end - t->begin == bytes)));
        at = t->end;
    }
    promise(at == h->data_bytes);
    /* Written out and read again it is the same. */
    uint8_t *text;
    promise(cws_header_write("f", h, &text, &written_bytes, &err) == 0);
    promise(cws_header_parse("f", text, written_bytes, UINT64_MAX, &again, &err) == 0);
    promise(again->tensor_count == h->tensor_count && again->data_bytes == h->data_bytes &&
            again->metadata_count == h->metadata_count);
    for (size_t i = 0; i < h->tensor_count; i++)
        promise(strcmp(h->tensors[i].name, again->tensors[i].name) == 0 &&
                strcmp(h->tensors[i].dtype_name, again->tensors[i].dtype_name) == 0 &&
                h->tensors[i].begin == again->tensors[i].begin);
    /* It lists the same tensors, in whatever order, and no others. */
    bool same;
    promise(cws_header_compare("f", text, written_bytes, h, &same, &err) == 0 && same);
    for (size_t i = 0; i < h->tensor_count; i++)
        promise(cws_header_find(h, h->tensors[i].name) == i);
    if (h->tensor_count) {
        again->tensor_count--;
        promise(cws_header_compare("f", text, written_bytes, again, &same, &err) == 0 && !same);
        again->tensor_count++;
    }
    free(text);
    cws_header_destroy(again);
    cws_header_destroy(h);
    return 0;
}
