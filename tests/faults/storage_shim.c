/* Stands between a process and its files (LD_PRELOAD): writes down what it does to those below one folder, and makes
 * an fsync or a write fail on request. Controlled through a small file that a test maps too; see storage_shim.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
  int32_t record;      /* 1: write the log */
  int32_t eio_count;   /* so many fsyncs of a path that contains eio_part fail with EIO */
  int32_t full;        /* 1: writes to a path that contains full_part fail with ENOSPC */
  int32_t failed;      /* how many calls were made to fail */
  char eio_part[128];
  char full_part[128];
};

static struct control *ctl;
static const char *root;
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
  const char *control = getenv("SHIM_CONTROL"), *log = getenv("SHIM_LOG");
  root = getenv("SHIM_ROOT");
  if (!control || !log || !root) return;
  int fd = open(control, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *map = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (map == MAP_FAILED) return;
  log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  ctl = map;
}

static int ours(const char *path) { return ctl && root && strncmp(path, root, strlen(root)) == 0; }

static int path_of(int fd, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = syscall(SYS_readlink, link, out, PATH_MAX - 1);
  if (n <= 0) return 0;
  out[n] = 0;
  return ours(out);
}

static uint64_t inode_of(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 ? (uint64_t)st.st_ino : 0;
}

static void note(char kind, uint64_t inode, uint64_t a, const char *one, size_t one_n, const char *two, size_t two_n) {
  if (!ctl || !ctl->record || log_fd < 0) return;
  uint64_t head[4] = {inode, a, one_n, two_n};
  struct iovec parts[4] = {{&kind, 1}, {head, sizeof head}, {(void *)one, one_n}, {(void *)two, two_n}};
  pthread_mutex_lock(&lock);
  (void)!syscall(SYS_writev, log_fd, parts, 4);
  pthread_mutex_unlock(&lock);
}

static int opened(int fd, int flags, int existed) {
  char path[PATH_MAX];
  if (fd >= 0 && ctl && path_of(fd, path) && !(flags & O_DIRECTORY)) {
    if (!existed) note('C', inode_of(fd), 0, path, strlen(path), "", 0);
    else if (flags & O_TRUNC) note('T', inode_of(fd), 0, path, strlen(path), "", 0);
  }
  return fd;
}

#define OPEN(name)                                                        \
  int name(const char *path, int flags, ...) {                            \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                \
      va_list more;                                                       \
      va_start(more, flags);                                              \
      mode = va_arg(more, mode_t);                                        \
      va_end(more);                                                       \
    }                                                                     \
    struct stat st;                                                       \
    int existed = lstat(path, &st) == 0;                                  \
    return opened(syscall(SYS_openat, AT_FDCWD, path, flags, mode), flags, existed); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                      \
  int name(int at, const char *path, int flags, ...) {                    \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                \
      va_list more;                                                       \
      va_start(more, flags);                                              \
      mode = va_arg(more, mode_t);                                        \
      va_end(more);                                                       \
    }                                                                     \
    struct stat st;                                                       \
    int existed = fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) == 0;       \
    return opened(syscall(SYS_openat, at, path, flags, mode), flags, existed); \
  }
OPENAT(openat)
OPENAT(openat64)

static int is_full(const char *path) {
  if (!ctl->full || !strstr(path, ctl->full_part)) return 0;
  __atomic_add_fetch(&ctl->failed, 1, __ATOMIC_SEQ_CST);
  errno = ENOSPC;
  return 1;
}

ssize_t write(int fd, const void *data, size_t n) {
  char path[PATH_MAX];
  if (!ctl || !path_of(fd, path)) return syscall(SYS_write, fd, data, n);
  if (is_full(path)) return -1;
  struct stat st;
  off_t at = syscall(SYS_lseek, fd, 0, SEEK_CUR);
  if ((fcntl(fd, F_GETFL) & O_APPEND) && fstat(fd, &st) == 0) at = st.st_size;
  ssize_t done = syscall(SYS_write, fd, data, n);
  if (done > 0) note('W', inode_of(fd), at, data, done, path, strlen(path));
  return done;
}

static ssize_t written_at(int fd, const void *data, size_t n, off_t at) {
  char path[PATH_MAX];
  if (!ctl || !path_of(fd, path)) return syscall(SYS_pwrite64, fd, data, n, at);
  if (is_full(path)) return -1;
  ssize_t done = syscall(SYS_pwrite64, fd, data, n, at);
  if (done > 0) note('W', inode_of(fd), at, data, done, path, strlen(path));
  return done;
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return written_at(fd, data, n, at); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return written_at(fd, data, n, at); }

static int truncated(int fd, off_t to) {
  char path[PATH_MAX];
  int done = syscall(SYS_ftruncate, fd, to);
  if (done == 0 && ctl && path_of(fd, path)) note('T', inode_of(fd), to, path, strlen(path), "", 0);
  return done;
}
int ftruncate(int fd, off_t to) { return truncated(fd, to); }
int ftruncate64(int fd, off64_t to) { return truncated(fd, to); }

static int synced(int fd, long call) {
  char path[PATH_MAX];
  if (!ctl || !path_of(fd, path)) return syscall(call, fd);
  if (ctl->eio_count > 0 && strstr(path, ctl->eio_part)) {
    __atomic_sub_fetch(&ctl->eio_count, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&ctl->failed, 1, __ATOMIC_SEQ_CST);
    errno = EIO;
    return -1;
  }
  int done = syscall(call, fd);
  if (done == 0) note('S', inode_of(fd), 0, path, strlen(path), "", 0);
  return done;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static void absolute(int at, const char *path, char *out) {
  char folder[PATH_MAX] = "";
  if (path[0] != '/') {
    if (at == AT_FDCWD) (void)!getcwd(folder, sizeof folder);
    else path_of(at, folder);
    strncat(folder, "/", sizeof folder - strlen(folder) - 1);
  }
  strncat(folder, path, sizeof folder - strlen(folder) - 1);
  memcpy(out, folder, sizeof folder);
}

static int renamed(int at, const char *from, int to_at, const char *to) {
  char one[PATH_MAX], two[PATH_MAX];
  int done = syscall(SYS_renameat, at, from, to_at, to);
  if (done != 0 || !ctl) return done;
  absolute(at, from, one);
  absolute(to_at, to, two);
  if (ours(two)) note('R', 0, 0, one, strlen(one), two, strlen(two));
  return done;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int at, const char *from, int to_at, const char *to) { return renamed(at, from, to_at, to); }

static int linked(int at, const char *from, int to_at, const char *to, int flags) {
  char one[PATH_MAX], two[PATH_MAX];
  int done = syscall(SYS_linkat, at, from, to_at, to, flags);
  if (done != 0 || !ctl) return done;
  absolute(at, from, one);
  absolute(to_at, to, two);
  if (ours(two)) note('L', 0, 0, one, strlen(one), two, strlen(two));
  return done;
}
int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int at, const char *from, int to_at, const char *to, int flags) { return linked(at, from, to_at, to, flags); }

static int removed(int at, const char *path, int flags) {
  char one[PATH_MAX];
  int done = syscall(SYS_unlinkat, at, path, flags);
  if (done != 0 || !ctl) return done;
  absolute(at, path, one);
  if (ours(one)) note('U', 0, 0, one, strlen(one), "", 0);
  return done;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return removed(at, path, flags); }

static int made(int at, const char *path, mode_t mode) {
  char one[PATH_MAX];
  int done = syscall(SYS_mkdirat, at, path, mode);
  if (done != 0 || !ctl) return done;
  absolute(at, path, one);
  if (ours(one)) note('M', 0, 0, one, strlen(one), "", 0);
  return done;
}
int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return made(at, path, mode); }

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  ssize_t done = syscall(SYS_sendmsg, fd, message, flags);
  if (done > 0 && ctl && ctl->record) {
    static __thread char joined[1 << 16];
    size_t n = 0;
    for (size_t i = 0; i < message->msg_iovlen && n < sizeof joined; i++) {
      size_t part = message->msg_iov[i].iov_len;
      if (part > sizeof joined - n) part = sizeof joined - n;
      memcpy(joined + n, message->msg_iov[i].iov_base, part);
      n += part;
    }
    note('X', 0, 0, joined, n < (size_t)done ? n : (size_t)done, "", 0);
  }
  return done;
}
