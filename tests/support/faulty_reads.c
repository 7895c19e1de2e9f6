// Preloaded: once the file FAULT_FLAG exists, reads of files whose path holds FAULT_PATH fail ("eio"), end early ("end") or give
// 7 bytes at a time ("short").
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// 0: nothing is wrong with this read; 1: it gives few bytes; 2: it gives none; 3: it fails.
static int fault(int descriptor) {
    const char *wanted = getenv("FAULT_PATH"), *flag = getenv("FAULT_FLAG"), *kind = getenv("FAULT_KIND");
    char link[64], path[4096];
    if (!wanted || !flag || !kind || access(flag, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (!strstr(path, wanted)) return 0;
    return !strcmp(kind, "short") ? 1 : !strcmp(kind, "end") ? 2 : 3;
}

ssize_t pread(int descriptor, void *buffer, size_t size, off_t at) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pread");
    int found = fault(descriptor);
    if (found == 3) errno = EIO;
    return found == 3 ? -1 : found == 2 ? 0 : real(descriptor, buffer, found && size > 7 ? 7 : size, at);
}

ssize_t pread64(int descriptor, void *buffer, size_t size, off_t at) { return pread(descriptor, buffer, size, at); }

ssize_t read(int descriptor, void *buffer, size_t size) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "read");
    int found = fault(descriptor);
    if (found == 3) errno = EIO;
    return found == 3 ? -1 : found == 2 ? 0 : real(descriptor, buffer, found && size > 7 ? 7 : size);
}
