#include "error.h"

#include <stdarg.h>
#include <stdio.h>

int elutq_fail(const struct elutq_error *error, int status, const char *format, ...) {
    if (error->n_bytes == 0)
        return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, error->n_bytes, format, arguments);
    va_end(arguments);
    return status;
}
