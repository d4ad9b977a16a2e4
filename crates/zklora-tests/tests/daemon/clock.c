/* Preloaded into a program, it adds the seconds in the file ZKLORA_TEST_CLOCK to the time of day, and to nothing else. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("ZKLORA_TEST_CLOCK");
    if (result == 0 && clock == CLOCK_REALTIME && path) {
        FILE *file = fopen(path, "r");
        long offset = 0;
        if (file) {
            if (fscanf(file, "%ld", &offset) == 1) time->tv_sec += offset;
            fclose(file);
        }
    }
    return result;
}
