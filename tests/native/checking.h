/* What a check says, and how many there were and were wrong. */
#ifndef CHECKING_H
#define CHECKING_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>

#include "compiler.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define MOST_SAID 20

static atomic_uint n_checks, n_failures; /* checks of several threads count at once */

ELUTQ_FORMAT(2, 3) static bool check(bool right, const char *format, ...) {
    n_checks++;
    if (right || ++n_failures > MOST_SAID)
        return right;
    va_list arguments;
    va_start(arguments, format);
    printf("WRONG ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    return false;
}

#endif
