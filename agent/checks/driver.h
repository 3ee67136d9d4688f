/* What a fuzz target and the driver know of each other. */
#ifndef DRIVER_H
#define DRIVER_H

#include <stddef.h>
#include <stdint.h>

/* A target: one input, looked at from a fresh state. Does not come back from what is wrong. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The law that the input breaks; the input is kept, the process ends. */
_Noreturn void broken(const char *law, long a, long b);

/* Puts all of the program's own variables back to what they were at the first call. What has to outlast it is on the heap. */
void start_afresh(void);

#endif
