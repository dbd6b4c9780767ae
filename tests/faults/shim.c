/* Between a process and the C library (LD_PRELOAD): its n-th file operation is where it dies, or fails; its clock jumps.

   Counted are the operations that change what is on disk, on files under one folder. A write that is to die writes half
   of its bytes first: a torn write. Once an operation has failed, so do all later ones that need room on the disk, as
   they do on a disk that is full. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char under[PATH_MAX];
static long fatal;      /* the operation that goes wrong, from 1; 0: none */
static int what;        /* SIGKILL's negative, or the errno it fails with */
static int trace = -1;  /* where to write a line for each operation */
static long counted, moments, jump;

void fault_arm(const char *folder, long at, int how, int log) {
    strncpy(under, folder, sizeof under - 1);
    fatal = at, what = how, trace = log;
}

void fault_clock(long seconds) { jump = seconds; }

/* 0: go on; -1: it fails; 1: write half, then die. */
static int step(const char *name, const char *path, const char *to, long bytes) {
    if (!under[0] || strncmp(path, under, strlen(under))) return 0;
    long now = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    int spends = name[0] == 'w' || name[0] == 'o' || name[0] == 'm';
    if (trace >= 0) {
        char line[2 * PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\n", name, path, to, bytes);
        if (REAL(write)(trace, line, length) < 0) abort();
    }
    if (!fatal || now < fatal) return 0;
    if (what < 0) {
        if (bytes > 1) return 1;
        kill(getpid(), SIGKILL);
    }
    if (now > fatal && !(what == ENOSPC && spends)) return 0;
    errno = what;
    return -1;
}

static char *of(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *at(int folder, const char *name, char *path) {
    if (name[0] == '/' || folder == AT_FDCWD) return name;
    of(folder, path);
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
    return path;
}

#define PATHNAME(name, arguments, given, path) \
    int name arguments { return step(#name, path, "", 0) ? -1 : REAL(name) given; }

int mkdir(const char *path, mode_t mode) {
    int there = access(path, F_OK) == 0; /* then nothing changes on disk */
    return !there && step("mkdir", path, "", 0) ? -1 : REAL(mkdir)(path, mode);
}

PATHNAME(rmdir, (const char *path), (path), path)
PATHNAME(unlink, (const char *path), (path), path)

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    return step("unlink", at(folder, name, path), "", 0) ? -1 : REAL(unlinkat)(folder, name, flags);
}

int rename(const char *from, const char *to) { return step("rename", from, to, 0) ? -1 : REAL(rename)(from, to); }

int renameat(int one, const char *from, int two, const char *to) {
    char a[PATH_MAX], b[PATH_MAX];
    return step("rename", at(one, from, a), at(two, to, b), 0) ? -1 : REAL(renameat)(one, from, two, to);
}

#define OPENED(name, real) \
    int name(const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        int writes = flags & (O_CREAT | O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY; \
        return writes && step("open", path, "", !!(flags & O_TRUNC)) ? -1 : REAL(real)(path, flags, mode); \
    }

OPENED(open, open)
OPENED(open64, open64)

#define OPENEDAT(name) \
    int name(int folder, const char *file, int flags, ...) { \
        va_list more; \
        char path[PATH_MAX]; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        int writes = flags & (O_CREAT | O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY; \
        return writes && step("open", at(folder, file, path), "", !!(flags & O_TRUNC)) ? -1 : REAL(name)(folder, file, flags, mode); \
    }

OPENEDAT(openat)
OPENEDAT(openat64)

#define SYNCED(name) \
    int name(int file) { \
        char path[PATH_MAX]; \
        return step("fsync", of(file, path), "", 0) ? -1 : REAL(name)(file); \
    }

SYNCED(fsync)
SYNCED(fdatasync)

#define TRUNCATED(name, size) \
    int name(int file, size length) { \
        char path[PATH_MAX]; \
        return step("truncate", of(file, path), "", 0) ? -1 : REAL(name)(file, length); \
    }

TRUNCATED(ftruncate, off_t)
TRUNCATED(ftruncate64, off64_t)

#define WRITTEN(name, arguments, all, half, bytes) \
    ssize_t name arguments { \
        char path[PATH_MAX]; \
        int how = under[0] && file != trace ? step("write", of(file, path), "", bytes) : 0; \
        if (how < 0) return -1; \
        if (how == 0) return REAL(name) all; \
        half; \
        kill(getpid(), SIGKILL); \
        return -1; \
    }

WRITTEN(write, (int file, const void *data, size_t size), (file, data, size),
        if (REAL(write)(file, data, size / 2) < 0) abort(), (long)size)
WRITTEN(pwrite, (int file, const void *data, size_t size, off_t place), (file, data, size, place),
        if (REAL(pwrite)(file, data, size / 2, place) < 0) abort(), (long)size)
WRITTEN(pwrite64, (int file, const void *data, size_t size, off64_t place), (file, data, size, place),
        if (REAL(pwrite64)(file, data, size / 2, place) < 0) abort(), (long)size)
WRITTEN(writev, (int file, const struct iovec *parts, int count), (file, parts, count),
        if (REAL(write)(file, parts[0].iov_base, parts[0].iov_len / 2) < 0) abort(), (long)count + 1)

/* The system's clock: each time it is asked it is right, or `jump` seconds ahead, or as much behind. */
static long shift(void) { return jump ? jump * (__atomic_add_fetch(&moments, 1, __ATOMIC_SEQ_CST) % 3 - 1) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static __typeof__(&clock_gettime) real;
    if (!real) real = REAL(clock_gettime);
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    now->tv_sec += shift();
    return result;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
