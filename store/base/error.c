/* error.c - error messages, and the words for each code. */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *cws_strerror(int code)
{
    switch (code) {
    case 0: return "no error";
    case CWS_E_NOT_STORE: return "not a codecllm store";
    case CWS_E_VERSION: return "unsupported store version";
    case CWS_E_FEATURE: return "store needs a feature this build lacks";
    case CWS_E_TRUNCATED: return "store is truncated";
    case CWS_E_CORRUPT: return "store is corrupt";
    case CWS_E_CHANGED: return "file changed while in use";
    case CWS_E_SHORT_READ: return "unexpected end of file";
    case CWS_E_INPUT: return "not a valid safetensors file";
    case CWS_E_USAGE: return "invalid argument";
    case CWS_E_RANGE: return "out of range";
    case CWS_E_UNSUPPORTED: return "not supported here";
    case CWS_E_BUDGET: return "budget too small";
    case CWS_E_BUSY: return "busy";
    case CWS_E_NO_GAIN: return "does not compress";
    case CWS_E_BUG: return "internal error";
    }
    if (code < 0 && code >= -4095) {
        /* strerrordesc_np returns static text: no locale, no buffer, no allocation. */
        const char *text = strerrordesc_np(-code);
        return text ? text : "unknown system error";
    }
    if (code <= -20000)
        return "CUDA driver error";
    return "unknown error";
}

void cws_error_set(struct cws_error *err, int code, const char *fmt, ...)
{
    if (err) {
        int saved = errno;
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        err->code = code;
        errno = saved;
    }
}

void cws_error_set_errno(struct cws_error *err, int errnum, const char *fmt, ...)
{
    if (err) {
        int saved = errno;
        va_list args;
        va_start(args, fmt);
        int used = vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        if (used >= 0 && (size_t)used < sizeof err->message)
            snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", cws_strerror(-errnum));
        err->code = -errnum;
        errno = saved;
    }
}
