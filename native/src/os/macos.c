#if defined(__APPLE__)

#include "os.h"

#include <sys/sysctl.h>

/* A number that the system has under a name. */
static int number(const char *name, int where_there_is_none) {
    int value = 0;
    size_t n_bytes = sizeof value;
    return sysctlbyname(name, &value, &n_bytes, NULL, 0) == 0 ? value : where_there_is_none;
}

/* Level 0 are the fastest. The others run at a fraction of their speed, and each barrier would wait for them. */
unsigned elutq_cores(void) {
    const int n = number("hw.perflevel0.physicalcpu", number("hw.physicalcpu", 1));
    return n < 1 ? 1 : (unsigned)n;
}

#if defined(__aarch64__)

bool elutq_system_has_dotprod(void) {
    return number("hw.optional.arm.FEAT_DotProd", 1) != 0; /* macOS 11 has no such name, and runs on no processor without */
}

bool elutq_system_has_i8mm(void) {
    return number("hw.optional.arm.FEAT_I8MM", 0) != 0;
}

#endif

#endif
