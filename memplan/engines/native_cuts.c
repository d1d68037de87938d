/* Cuts the engine's life into intervals with exact peaks, without Python on the way.
 *
 * Each cut reads what is resident and the high-water mark, stamps the clock and sets the mark back. A
 * segment is ended by the engine's own thread (end_segment); a thread of ours cuts what lasts longer
 * than slice_s, also while C code holds Python's lock, and looks for children of the engine. What was
 * read is kept in records of one size until memplan_cuts_take.
 *
 * Between two steps of a model /proc/self/status costs as much to read as all else that a cut does. So
 * the mark comes from getrusage wherever it can, what is resident from statm, and what only the status
 * tells is read by our thread, while the engine goes on: at a slice after what is mapped from files or
 * shared has changed, and else every TOLD_S, for page tables and swap.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TOLD 4              /* of a status, in the order in which the kernel writes them */
#define RECORDS 4096        /* 3 minutes of slices and more; then slices grow longer */
#define ENDS 128            /* segments that can be kept until they are taken */
#define TENSOR_BYTES 1024   /* of a segment, at most */
#define STACK_BYTES (256 << 10)
#define LONG_WAIT_S 100e-6
#define TOLD_S 0.25

/* Of Python's stable interface, so that none of its headers is needed. */
void *PyCFunction_NewEx(void *, void *, void *), *PyTuple_New(ssize_t);
void *PyLong_FromVoidPtr(void *), *PyLong_AsVoidPtr(void *), *PyLong_FromLongLong(long long);
void *PyFloat_FromDouble(double);
int PyTuple_SetItem(void *, ssize_t, void *);
void Py_DecRef(void *);

/* What stands instead of a time where nothing was ended. */
#define LOST (-1.0)         /* the mark can no longer be set back */
#define CHILDREN (-2.0)     /* the engine has processes beside this one */
#define FULL (-3.0)         /* take first */

static const char *const LINES[TOLD] = {"\nVmHWM:", "\nRssShmem:", "\nVmPTE:", "\nVmSwap:"};
enum { HWM, SHMEM, PAGE_TABLES, SWAP };

struct record {
  double end_s;
  int64_t peak_bytes;
  /* Bytes when it ended; shmem at most slice_s before, the last two TOLD_S. -1: not told by this kernel. */
  int64_t resident_bytes, anon_bytes, file_bytes, shmem_bytes, page_tables_bytes, swap_bytes;
  int64_t is_end; /* of a segment, not of a slice */
};

struct cuts {
  int64_t peak_bytes; /* of the segment that was ended last */
  double epoch_s, slice_s, look_s, cut_s, looked_s;
  int64_t earlier_bytes, page_bytes;
  int status, statm, clear;
  int is_lost, is_over, is_paused;
  atomic_int has_children;
  void (*take_tensors)(void *);
  int64_t tensor_bytes;
  pthread_mutex_t lock;
  pthread_cond_t over;
  pthread_t thread;
  int64_t open_peak_bytes; /* of the open segment's slices so far */
  int count, ends;
  int64_t told[TOLD]; /* by the status that was read last */
  int64_t shared_bytes, told_shared_bytes; /* of files and shared, now and when it was read */
  double told_s;
  char text[4096], thread_text[4096], names[4096];
  struct record records[RECORDS];
  char tensors[ENDS][TENSOR_BYTES];
};

static double now_s(const struct cuts *cuts) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + now.tv_nsec * 1e-9 - cuts->epoch_s;
}

/* The high-water mark, but never below what this process had before it became this program
 * (signal->maxrss), which no reset touches. */
static int64_t largest_resident(void) {
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_maxrss * (int64_t)1024; /* of the process */
}

static void read_status(const struct cuts *cuts, char text[4096], int64_t told[TOLD]) {
  ssize_t length = pread(cuts->status, text, 4095, 0);
  text[length > 0 ? length : 0] = 0;
  char *at = text;
  for (int i = 0; i < TOLD; i++) {
    char *line = strstr(at, LINES[i]);
    told[i] = line ? strtoll(line + strlen(LINES[i]), &at, 10) * 1024 : -1;
  }
}

/* -1: it cannot be read. */
static int64_t high_water(struct cuts *cuts) {
  int64_t largest = largest_resident();
  if (largest > cuts->earlier_bytes) return largest;
  read_status(cuts, cuts->text, cuts->told);
  /* That took a while, and another thread's memory can have come and gone meanwhile. */
  largest = largest_resident();
  return largest > cuts->earlier_bytes ? largest : cuts->told[HWM];
}

static void read_resident(struct cuts *cuts, struct record *read) {
  char text[128], *at = text;
  ssize_t length = pread(cuts->statm, text, sizeof text - 1, 0);
  text[length > 0 ? length : 0] = 0;
  strtoll(text, &at, 10); /* size */
  read->resident_bytes = strtoll(at, &at, 10) * cuts->page_bytes;
  int64_t shared_bytes = strtoll(at, &at, 10) * cuts->page_bytes, shmem_bytes = cuts->told[SHMEM];
  cuts->shared_bytes = shared_bytes;
  read->anon_bytes = shmem_bytes < 0 ? -1 : read->resident_bytes - shared_bytes;
  if (shared_bytes < shmem_bytes) shmem_bytes = shared_bytes; /* it was read a moment ago */
  read->file_bytes = shmem_bytes < 0 ? -1 : shared_bytes - shmem_bytes;
  read->shmem_bytes = shmem_bytes;
  read->page_tables_bytes = cuts->told[PAGE_TABLES];
  read->swap_bytes = cuts->told[SWAP];
}

/* Waits for whoever holds the map of this process's memory: 8 ms while 32 MiB are being populated. A
 * reset waits for it too, and if it did so after the mark was read, what came and went would be lost.
 * Returns whether that took long. */
static int wait_for_map(const struct cuts *cuts) {
  double began_s = now_s(cuts);
  syscall(SYS_brk, 0); /* takes the lock, changes nothing */
  return now_s(cuts) - began_s > LONG_WAIT_S;
}

/* Ends an interval; the lock is held. 0: the mark was not set back, and nothing is kept. */
static int cut(struct cuts *cuts, int is_end) {
  struct record read = {.is_end = is_end};
  read_resident(cuts, &read);
  if (wait_for_map(cuts)) read_resident(cuts, &read);
  int64_t mark_bytes = read.resident_bytes > 0 ? high_water(cuts) : -1;
  /* Between reading and resetting: what lived before is below this instant, what lives after above. */
  double end_s = now_s(cuts);
  if (mark_bytes < 0 || pwrite(cuts->clear, "5", 1, 0) != 1) {
    cuts->is_lost = 1;
    return 0;
  }
  int64_t peak_bytes = mark_bytes > read.resident_bytes ? mark_bytes : read.resident_bytes;
  cuts->cut_s = end_s;
  if (peak_bytes > cuts->open_peak_bytes) cuts->open_peak_bytes = peak_bytes;
  struct record *last = cuts->count ? &cuts->records[cuts->count - 1] : NULL;
  int is_alike = last && !last->is_end && last->peak_bytes == peak_bytes;
  int is_full = cuts->count >= RECORDS - 2 * ENDS && !is_end && last && !last->is_end;
  if (!is_alike && !is_full) last = &cuts->records[cuts->count++];
  if (is_full && last->peak_bytes > peak_bytes) peak_bytes = last->peak_bytes;
  read.peak_bytes = peak_bytes;
  read.end_s = end_s;
  *last = read;
  return 1;
}

static double end_segment(struct cuts *cuts) {
  if (atomic_load_explicit(&cuts->has_children, memory_order_relaxed)) return CHILDREN;
  pthread_mutex_lock(&cuts->lock);
  double end_s = LOST;
  if (cuts->ends == ENDS) {
    end_s = FULL;
  } else if (!cuts->is_lost && cut(cuts, 1)) {
    if (cuts->take_tensors) cuts->take_tensors(cuts->tensors[cuts->ends]);
    cuts->ends++;
    cuts->peak_bytes = cuts->open_peak_bytes;
    cuts->open_peak_bytes = 0;
    end_s = cuts->cut_s;
  }
  pthread_mutex_unlock(&cuts->lock);
  return end_s;
}

/* A function of Python's without arguments: (end_s, peak_bytes, began_s), as NativeCuts.end. Called
 * through ctypes the same takes 15 us longer, once a step. */
static void *end_for_python(void *handle, void *nothing) {
  (void)nothing;
  struct cuts *cuts = PyLong_AsVoidPtr(handle);
  double began_s = now_s(cuts), end_s = end_segment(cuts);
  void *told = PyTuple_New(3);
  if (!told) return NULL;
  PyTuple_SetItem(told, 0, PyFloat_FromDouble(end_s));
  PyTuple_SetItem(told, 1, PyLong_FromLongLong(cuts->peak_bytes));
  PyTuple_SetItem(told, 2, PyFloat_FromDouble(began_s));
  return told;
}

static struct { /* PyMethodDef, Include/methodobject.h */
  const char *name;
  void *(*function)(void *, void *);
  int flags;
  const char *doc;
} method = {"end", end_for_python, 4 /* METH_NOARGS */, NULL};

void *memplan_cuts_end_function(struct cuts *cuts) {
  void *handle = PyLong_FromVoidPtr(cuts), *made = PyCFunction_NewEx(&method, handle, NULL);
  Py_DecRef(handle);
  return made;
}

/* Records since the last call, those of the open segment too; they are kept here as well. out: room
 * for RECORDS; tensors: for ENDS times tensor_bytes. Returns ends << 16 | how many records. */
int memplan_cuts_take(struct cuts *cuts, struct record *out, char *tensors) {
  pthread_mutex_lock(&cuts->lock);
  int count = cuts->count, ends = cuts->ends, open = 0;
  memcpy(out, cuts->records, count * sizeof *out);
  for (int i = 0; i < ends && cuts->take_tensors; i++)
    memcpy(tensors + i * cuts->tensor_bytes, cuts->tensors[i], cuts->tensor_bytes);
  while (open < count && !cuts->records[count - 1 - open].is_end) open++;
  memmove(cuts->records, cuts->records + count - open, open * sizeof *out);
  cuts->count = open;
  cuts->ends = 0;
  pthread_mutex_unlock(&cuts->lock);
  return ends << 16 | count;
}

/* Whether a thread of ours has a child. Without malloc: a second thread that uses it gets an arena. */
static int look_for_children(struct cuts *cuts) {
  int found = 0, folder = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return 0;
  long length;
  while (!found && (length = syscall(SYS_getdents64, folder, cuts->names, sizeof cuts->names)) > 0) {
    for (long at = 0; !found && at < length; at += *(uint16_t *)(cuts->names + at + 16)) {
      char path[64], first;
      if (cuts->names[at + 19] == '.') continue;
      snprintf(path, sizeof path, "%s/children", cuts->names + at + 19);
      int list = openat(folder, path, O_RDONLY | O_CLOEXEC);
      if (list < 0) continue; /* the thread has ended */
      found = read(list, &first, 1) == 1;
      close(list);
    }
  }
  close(folder);
  return found;
}

static void *keep_cutting(void *given) {
  struct cuts *cuts = given;
  pthread_mutex_lock(&cuts->lock);
  while (!cuts->is_over) {
    double due_s = cuts->cut_s + cuts->slice_s, look_due_s = cuts->looked_s + cuts->look_s;
    if (cuts->is_paused || cuts->is_lost || look_due_s < due_s) due_s = look_due_s;
    due_s += cuts->epoch_s + 1e-4;
    struct timespec until = {(time_t)due_s, (long)((due_s - (double)(time_t)due_s) * 1e9)};
    pthread_cond_timedwait(&cuts->over, &cuts->lock, &until);
    double at_s = now_s(cuts);
    if (cuts->is_over || cuts->is_paused) {
      cuts->looked_s = at_s;
      continue;
    }
    if (!cuts->is_lost && at_s >= cuts->cut_s + cuts->slice_s) cut(cuts, 0);
    if (cuts->shared_bytes != cuts->told_shared_bytes || at_s >= cuts->told_s + TOLD_S) {
      int64_t told[TOLD], shared_bytes = cuts->shared_bytes;
      pthread_mutex_unlock(&cuts->lock);
      read_status(cuts, cuts->thread_text, told);
      pthread_mutex_lock(&cuts->lock);
      memcpy(cuts->told, told, sizeof told);
      cuts->told_shared_bytes = shared_bytes;
      cuts->told_s = at_s;
    }
    if (at_s >= cuts->looked_s + cuts->look_s) {
      cuts->looked_s = at_s;
      pthread_mutex_unlock(&cuts->lock);
      atomic_store_explicit(&cuts->has_children, look_for_children(cuts), memory_order_relaxed);
      pthread_mutex_lock(&cuts->lock);
    }
  }
  pthread_mutex_unlock(&cuts->lock);
  return NULL;
}

static int start_thread(struct cuts *cuts) {
  pthread_condattr_t clock;
  pthread_condattr_init(&clock);
  pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
  pthread_cond_init(&cuts->over, &clock);
  pthread_mutex_init(&cuts->lock, NULL);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, STACK_BYTES);
  sigset_t all, before; /* signals are the engine's own threads' to handle */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&cuts->thread, &small, keep_cutting, cuts);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!error) pthread_setname_np(cuts->thread, "memplan-slices");
  return error;
}

static void close_files(const struct cuts *cuts) {
  if (cuts->status >= 0) close(cuts->status);
  if (cuts->statm >= 0) close(cuts->statm);
  if (cuts->clear >= 0) close(cuts->clear);
}

/* Goes on with the interval that the last reset began, at cut_s. NULL, and errno, where the files cannot
 * be opened or no thread can be had. earlier_bytes: getrusage's mark at a time when this program had
 * just begun; above it, it is the program's own. take_tensors writes tensor_bytes of its own at every
 * end of a segment; may be NULL. */
struct cuts *memplan_cuts_open(double epoch_s, double cut_s, double slice_s, double look_s,
                               int64_t earlier_bytes, void (*take_tensors)(void *),
                               int64_t tensor_bytes) {
  if (tensor_bytes > TENSOR_BYTES) {
    errno = E2BIG;
    return NULL;
  }
  struct cuts *cuts = mmap(NULL, sizeof *cuts, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* zero, and malloc knows nothing */
  if (cuts == MAP_FAILED) return NULL;
  cuts->epoch_s = epoch_s;
  cuts->cut_s = cut_s;
  cuts->slice_s = slice_s;
  cuts->look_s = look_s;
  cuts->earlier_bytes = earlier_bytes;
  cuts->page_bytes = sysconf(_SC_PAGESIZE);
  cuts->take_tensors = take_tensors;
  cuts->tensor_bytes = tensor_bytes;
  cuts->status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  cuts->statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  cuts->clear = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  int error = cuts->status < 0 || cuts->statm < 0 || cuts->clear < 0 ? errno : 0;
  if (!error) {
    read_status(cuts, cuts->text, cuts->told);
    error = start_thread(cuts);
  }
  if (error) {
    close_files(cuts);
    munmap(cuts, sizeof *cuts);
    errno = error;
    return NULL;
  }
  return cuts;
}

/* While paused nothing is cut but by end_segment. */
void memplan_cuts_pause(struct cuts *cuts, int is_paused) {
  pthread_mutex_lock(&cuts->lock);
  cuts->is_paused = is_paused;
  pthread_cond_signal(&cuts->over); /* the thread may sleep for longer than a slice */
  pthread_mutex_unlock(&cuts->lock);
}

/* Ends the thread; the last take comes before, and nothing after. */
void memplan_cuts_close(struct cuts *cuts) {
  pthread_mutex_lock(&cuts->lock);
  cuts->is_over = 1;
  pthread_cond_signal(&cuts->over);
  pthread_mutex_unlock(&cuts->lock);
  pthread_join(cuts->thread, NULL);
  close_files(cuts);
  munmap(cuts, sizeof *cuts);
}
