/* Refuses below the folder VOLUME what a volume of Databricks refuses: appends, changes within a file, renames, links
   and locks. A library to preload into the server, its tasks and the client. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_below(const char *path) {
    const char *volume = getenv("VOLUME");
    size_t length = volume ? strlen(volume) : 0;
    return length && strncmp(path, volume, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int fd_is_below(int descriptor) {
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX);
    path[length > 0 ? length : 0] = 0;
    return is_below(path);
}

static int at_is_below(int folder, const char *path) {
    char here[PATH_MAX + 1];
    if (path[0] == '/') return is_below(path);
    return folder == AT_FDCWD ? getcwd(here, sizeof here) && is_below(here) : fd_is_below(folder);
}

static int refused(int error) {
    errno = error;
    return -1;
}

/* A file is written from its begin to its end. */
static int is_refused(int folder, const char *path, int flags) {
    int writes = (flags & O_ACCMODE) != O_RDONLY, begins = flags & (O_TRUNC | O_EXCL);
    return writes && ((flags & O_APPEND) || !begins) && !(flags & O_DIRECTORY) && at_is_below(folder, path);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        return is_refused(AT_FDCWD, path, flags) ? refused(EOPNOTSUPP) : REAL(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE(flags) \
        return is_refused(folder, path, flags) ? refused(EOPNOTSUPP) : REAL(name)(folder, path, flags, mode); \
    }
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        int appends = mode[0] == 'a' || (mode[0] == 'r' && strchr(mode, '+')); \
        if (appends && at_is_below(AT_FDCWD, path)) { errno = EOPNOTSUPP; return NULL; } \
        return REAL(name)(path, mode); \
    }
#define FCNTL(name) \
    int name(int descriptor, int command, ...) { \
        va_list rest; \
        va_start(rest, command); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW; \
        return locks && fd_is_below(descriptor) ? refused(ENOSYS) : REAL(name)(descriptor, command, argument); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)
FCNTL(fcntl)
FCNTL(fcntl64)

int flock(int descriptor, int operation) {
    return fd_is_below(descriptor) ? refused(ENOSYS) : REAL(flock)(descriptor, operation);
}

int renameat2(int from, const char *path, int to, const char *goal, unsigned int flags) {
    if (at_is_below(from, path) || at_is_below(to, goal)) return refused(ENOSYS);
    return REAL(renameat2)(from, path, to, goal, flags);
}

int renameat(int from, const char *path, int to, const char *goal) { return renameat2(from, path, to, goal, 0); }

int rename(const char *path, const char *goal) { return renameat2(AT_FDCWD, path, AT_FDCWD, goal, 0); }

int linkat(int from, const char *path, int to, const char *goal, int flags) {
    return at_is_below(to, goal) ? refused(ENOSYS) : REAL(linkat)(from, path, to, goal, flags);
}

int link(const char *path, const char *goal) { return linkat(AT_FDCWD, path, AT_FDCWD, goal, 0); }

int symlinkat(const char *path, int to, const char *goal) {
    return at_is_below(to, goal) ? refused(ENOSYS) : REAL(symlinkat)(path, to, goal);
}

int symlink(const char *path, const char *goal) { return symlinkat(path, AT_FDCWD, goal); }
