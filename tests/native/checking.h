/* What a check says, and how many of them were wrong. */
#ifndef CHECKING_H
#define CHECKING_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

#include "compiler.h"

static unsigned n_failures;

ELUTQ_FORMAT(2, 3) static bool check(bool right, const char *format, ...) {
    if (right)
        return true;
    n_failures++;
    va_list arguments;
    va_start(arguments, format);
    printf("WRONG ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    return false;
}

#endif
