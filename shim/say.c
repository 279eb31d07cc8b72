/* say.c - lines on stderr, and error codes as errno. */
#include "say.h"
#include "store/base/sys.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

void cws_shim_say(const char *format, ...)
{
    char line[640] = "codecllm: ";
    const size_t prefix = sizeof "codecllm: " - 1;
    int saved = errno;
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(line + prefix, sizeof line - prefix - 1, format, arguments);
    va_end(arguments);
    size_t bytes = prefix + (len < 0 ? 0 : (size_t)len);
    if (bytes > sizeof line - 2)
        bytes = sizeof line - 2;
    line[bytes++] = '\n';
    cws_sys_write(STDERR_FILENO, line, bytes); /* raw: write() ends a thread that is cancelled */
    errno = saved;
}

int cws_shim_errno(int code)
{
    if (code >= -4095)
        return -code;
    switch (code) {
    case CWS_E_USAGE:
    case CWS_E_RANGE: return EINVAL;
    case CWS_E_BUDGET: return ENOMEM;
    case CWS_E_VERSION:
    case CWS_E_FEATURE:
    case CWS_E_UNSUPPORTED: return EOPNOTSUPP;
    default: return EIO;
    }
}
