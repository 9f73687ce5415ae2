/*
 * A disk that fails on demand.
 *
 * Preloaded into a process, this library stands between it and the C library
 * for every call that reads or changes files below one directory. It counts
 * the calls, and makes those fail, wait or fall short that a rule in a shared
 * page names. Everything below other directories passes untouched.
 *
 *   METASTORE_FAULTS_DIR   the directory, absolute
 *   METASTORE_FAULTS_PAGE  the file that is the shared page
 *
 * The page is laid out as `struct page` below and in `src/faults/disk.rs`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The headers make a macro of it. */
#undef fread_unlocked

/* What a call does. */
enum {
    CALL_CREATE = 1 << 0,   /* open that may create, mkdir, rename, link */
    CALL_WRITE = 1 << 1,    /* write, pwrite and their kin */
    CALL_ALLOCATE = 1 << 2, /* fallocate, ftruncate */
    CALL_SYNC = 1 << 3,     /* fsync, fdatasync, sync_file_range */
    CALL_READ = 1 << 4,     /* read, pread, fread */
};
#define CALLS 5

/* What a file is for. */
enum {
    FILE_RAFT = 1 << 0,  /* below raft/ */
    FILE_STATE = 1 << 1, /* below state-N/ */
    FILE_SNAP = 1 << 2,  /* below snap/ */
    FILE_MARK = 1 << 3,  /* the watermark */
    FILE_OTHER = 1 << 4, /* the directories above these */
};

enum { ACTION_NONE, ACTION_FAIL, ACTION_DELAY, ACTION_SHORT, ACTION_LIE };

struct page {
    _Atomic uint64_t action; /* ACTION_NONE: the rest does not count */
    _Atomic uint64_t calls;  /* mask of calls that count */
    _Atomic uint64_t files;  /* mask of files that count */
    _Atomic uint64_t first;  /* the first one to hit, from 1 */
    _Atomic uint64_t times;  /* how many to hit, at most */
    _Atomic uint64_t error;  /* errno of ACTION_FAIL */
    _Atomic uint64_t delay;  /* milliseconds of ACTION_DELAY */
    _Atomic uint64_t seen;   /* calls that counted since the rule was set */
    _Atomic uint64_t hits;   /* those among them that were hit */
    _Atomic uint64_t waiting; /* calls that wait in ACTION_DELAY now */
    _Atomic uint64_t total[CALLS]; /* all calls, by what they do */
};

#define MAX_FILES 65536

static struct page *page;
static char root[PATH_MAX];
static size_t root_length;
/* What each descriptor's file is for, 0 when it is not below the directory. */
static _Atomic unsigned char kinds[MAX_FILES];

#define REAL(name)                                                             \
    static __typeof__(&name) real;                                             \
    if (!real)                                                                 \
    real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("METASTORE_FAULTS_DIR");
    const char *file = getenv("METASTORE_FAULTS_PAGE");
    if (!dir || !file || strlen(dir) >= sizeof root)
        return;
    int fd = open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return;
    strcpy(root, dir);
    root_length = strlen(root);
    page = mapped;
}

/* What a path is for, 0 when it is not below the directory. */
static unsigned kind_of(const char *path) {
    if (!page || !path || strncmp(path, root, root_length) != 0)
        return 0;
    const char *rest = path + root_length;
    if (*rest != '/' && *rest != '\0')
        return 0;
    if (strstr(rest, "/snap"))
        return FILE_SNAP;
    if (strstr(rest, "/raft"))
        return FILE_RAFT;
    if (strstr(rest, "/state-"))
        return FILE_STATE;
    if (strstr(rest, "/watermark"))
        return FILE_MARK;
    return FILE_OTHER;
}

/* The same for a path relative to a directory. */
static unsigned kind_at(int dir, const char *path) {
    if (!page || !path)
        return 0;
    if (path[0] == '/' || dir == AT_FDCWD)
        return kind_of(path);
    return dir >= 0 && dir < MAX_FILES ? kinds[dir] : 0;
}

static unsigned kind_of_file(int fd) { return page && fd >= 0 && fd < MAX_FILES ? kinds[fd] : 0; }

static int remember(int fd, unsigned kind) {
    if (fd >= 0 && fd < MAX_FILES)
        kinds[fd] = (unsigned char)kind;
    return fd;
}

/* Waits while the rule stands, at most `milliseconds`. */
static void wait_out(uint64_t milliseconds) {
    atomic_fetch_add(&page->waiting, 1);
    for (uint64_t waited = 0; waited < milliseconds && page->action == ACTION_DELAY; waited += 10) {
        struct timespec ten = {0, 10 * 1000 * 1000};
        nanosleep(&ten, NULL);
    }
    atomic_fetch_sub(&page->waiting, 1);
}

/*
 * Counts a call. The action to take: ACTION_FAIL sets errno, ACTION_DELAY has
 * waited already and counts as nothing.
 */
static int account(unsigned call, unsigned kind) {
    if (!kind)
        return ACTION_NONE;
    for (int i = 0; i < CALLS; i++)
        if (call == 1u << i)
            atomic_fetch_add(&page->total[i], 1);
    uint64_t action = page->action;
    if (action == ACTION_NONE || !(page->calls & call) || !(page->files & kind))
        return ACTION_NONE;
    uint64_t number = atomic_fetch_add(&page->seen, 1) + 1;
    uint64_t first = page->first;
    if (number < first || number - first >= page->times)
        return ACTION_NONE;
    atomic_fetch_add(&page->hits, 1);
    if (action == ACTION_DELAY) {
        wait_out(page->delay);
        return ACTION_NONE;
    }
    if (action == ACTION_FAIL)
        errno = (int)page->error;
    return (int)action;
}

#define FAIL_IF_HIT(call, kind)                                                \
    if (account(call, kind) == ACTION_FAIL)                                    \
    return -1

/* Opening. */

static unsigned mode_of(int flags, va_list arguments) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, unsigned) : 0;
}

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...) {                               \
        REAL(name);                                                            \
        va_list arguments;                                                     \
        va_start(arguments, flags);                                            \
        unsigned mode = mode_of(flags, arguments);                             \
        va_end(arguments);                                                     \
        unsigned kind = kind_of(path);                                         \
        if (flags & O_CREAT)                                                   \
            FAIL_IF_HIT(CALL_CREATE, kind);                                    \
        return remember(real(path, flags, mode), kind);                        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                           \
    int name(int dir, const char *path, int flags, ...) {                      \
        REAL(name);                                                            \
        va_list arguments;                                                     \
        va_start(arguments, flags);                                            \
        unsigned mode = mode_of(flags, arguments);                             \
        va_end(arguments);                                                     \
        unsigned kind = kind_at(dir, path);                                    \
        if (flags & O_CREAT)                                                   \
            FAIL_IF_HIT(CALL_CREATE, kind);                                    \
        return remember(real(dir, path, flags, mode), kind);                   \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    REAL(close);
    remember(fd, 0);
    return real(fd);
}

/* Names. */

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    FAIL_IF_HIT(CALL_CREATE, kind_of(path));
    return real(path, mode);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    FAIL_IF_HIT(CALL_CREATE, kind_of(to));
    return real(from, to);
}

int link(const char *from, const char *to) {
    REAL(link);
    FAIL_IF_HIT(CALL_CREATE, kind_of(to));
    return real(from, to);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    REAL(linkat);
    FAIL_IF_HIT(CALL_CREATE, kind_at(to_dir, to));
    return real(from_dir, from, to_dir, to, flags);
}

/* Writing. */

static size_t shortened(size_t length) { return length > 1 ? length / 2 : length; }

#define BEFORE_WRITE(fd, length)                                               \
    switch (account(CALL_WRITE, kind_of_file(fd))) {                           \
    case ACTION_FAIL:                                                          \
        return -1;                                                             \
    case ACTION_SHORT:                                                         \
        length = shortened(length);                                            \
    }

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    BEFORE_WRITE(fd, length)
    return real(fd, bytes, length);
}

#define PWRITE(name, offset_type)                                              \
    ssize_t name(int fd, const void *bytes, size_t length, offset_type at) {   \
        REAL(name);                                                            \
        BEFORE_WRITE(fd, length)                                               \
        return real(fd, bytes, length, at);                                    \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* Of several buffers the first alone, when it is to fall short. */
#define BEFORE_WRITEV(fd, parts, count)                                        \
    struct iovec half;                                                         \
    switch (account(CALL_WRITE, kind_of_file(fd))) {                           \
    case ACTION_FAIL:                                                          \
        return -1;                                                             \
    case ACTION_SHORT:                                                         \
        if (count > 0) {                                                       \
            half = parts[0];                                                   \
            half.iov_len = shortened(half.iov_len);                            \
            parts = &half;                                                     \
            count = 1;                                                         \
        }                                                                      \
    }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    BEFORE_WRITEV(fd, parts, count)
    return real(fd, parts, count);
}

#define PWRITEV(name, offset_type)                                             \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_type at) { \
        REAL(name);                                                            \
        BEFORE_WRITEV(fd, parts, count)                                        \
        return real(fd, parts, count, at);                                     \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t length,
                        unsigned flags) {
    REAL(copy_file_range);
    BEFORE_WRITE(out, length)
    return real(in, in_at, out, out_at, length, flags);
}

/* Space. */

#define TRUNCATE(name, offset_type)                                            \
    int name(int fd, offset_type length) {                                     \
        REAL(name);                                                            \
        FAIL_IF_HIT(CALL_ALLOCATE, kind_of_file(fd));                          \
        return real(fd, length);                                               \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define FALLOCATE(name, offset_type)                                           \
    int name(int fd, int mode, offset_type at, offset_type length) {           \
        REAL(name);                                                            \
        FAIL_IF_HIT(CALL_ALLOCATE, kind_of_file(fd));                          \
        return real(fd, mode, at, length);                                     \
    }
FALLOCATE(fallocate, off_t)
FALLOCATE(fallocate64, off64_t)

/* Gives its error back instead of setting it. */
#define POSIX_FALLOCATE(name, offset_type)                                     \
    int name(int fd, offset_type at, offset_type length) {                     \
        REAL(name);                                                            \
        if (account(CALL_ALLOCATE, kind_of_file(fd)) == ACTION_FAIL)           \
            return errno;                                                      \
        return real(fd, at, length);                                           \
    }
POSIX_FALLOCATE(posix_fallocate, off_t)
POSIX_FALLOCATE(posix_fallocate64, off64_t)

/* Syncing. */

#define BEFORE_SYNC(fd)                                                        \
    switch (account(CALL_SYNC, kind_of_file(fd))) {                            \
    case ACTION_FAIL:                                                          \
        return -1;                                                             \
    case ACTION_LIE:                                                           \
        return 0;                                                              \
    }

int fsync(int fd) {
    REAL(fsync);
    BEFORE_SYNC(fd)
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    BEFORE_SYNC(fd)
    return real(fd);
}

int sync_file_range(int fd, off64_t at, off64_t length, unsigned flags) {
    REAL(sync_file_range);
    /* Of nothing and to no end: a question whether there is such a call. */
    if (length != 0 || flags != 0) {
        BEFORE_SYNC(fd)
    }
    return real(fd, at, length, flags);
}

/* Reading. */

ssize_t read(int fd, void *bytes, size_t length) {
    REAL(read);
    FAIL_IF_HIT(CALL_READ, kind_of_file(fd));
    return real(fd, bytes, length);
}

#define PREAD(name, offset_type)                                               \
    ssize_t name(int fd, void *bytes, size_t length, offset_type at) {         \
        REAL(name);                                                            \
        FAIL_IF_HIT(CALL_READ, kind_of_file(fd));                              \
        return real(fd, bytes, length, at);                                    \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

size_t fread_unlocked(void *bytes, size_t size, size_t count, FILE *file) {
    REAL(fread_unlocked);
    if (account(CALL_READ, kind_of_file(fileno_unlocked(file))) == ACTION_FAIL)
        return 0;
    return real(bytes, size, count, file);
}
