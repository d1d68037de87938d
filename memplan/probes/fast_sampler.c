/* Reads the resident bytes of a process tree at a steady, fast pace and does nothing else.
 *
 *   fast_sampler FILE PERIOD_NS EPOCH_NS
 *
 * A line of pids on stdin says whom to follow from now on, with all their descendants; the end of
 * stdin ends it. It resets nothing. FILE gets a header and then records, in blocks at least once a
 * second, all of little-endian 64-bit integers: CLOCK_MONOTONIC in nanoseconds, and bytes. A record of
 * time 0 holds the CPU nanoseconds that this program used so far.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file is little-endian"
#endif

enum { MOST_PIDS = 512, MOST_RECORDS = 2048, SECOND_NS = 1000000000, LOOK_NS = 100000000 };
/* A reading that took longer than this was interrupted: nobody knows when it was true. */
enum { SURE_NS = 500000, LISTEN_NS = 10000000 };
/* Times slower while the engine runs on every core: there a reading a millisecond cost it 4 %. */
enum { SPARING = 10 };

struct process {
  int pid, statm;
};
static struct process family[MOST_PIDS];
static int count;
static struct {
  int64_t time_ns, value;
} records[MOST_RECORDS];
static int kept, file;
static volatile sig_atomic_t ending;

static void end(int signal) { (void)signal, ending = 1; }

static int64_t now_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * (int64_t)SECOND_NS + now.tv_nsec;
}

static void flush(void) {
  records[kept].time_ns = 0;
  records[kept++].value = now_ns(CLOCK_PROCESS_CPUTIME_ID);
  const char *data = (const char *)records;
  size_t left = kept * sizeof records[0];
  while (left) {
    ssize_t done = write(file, data, left);
    if (done < 0 && errno != EINTR) exit(5);
    if (done > 0) data += done, left -= done;
  }
  kept = 0;
}

static void forget(int i) {
  close(family[i].statm);
  family[i] = family[--count];
}

static void follow(int pid) {
  char path[64];
  for (int i = 0; i < count; i++)
    if (family[i].pid == pid) return;
  if (count == MOST_PIDS) return;
  snprintf(path, sizeof path, "/proc/%d/statm", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd >= 0) family[count++] = (struct process){pid, fd};
}

/* Bytes of the whole family; -1 when nobody is left. */
static int64_t resident_bytes(int64_t page_bytes) {
  int64_t pages = 0;
  for (int i = count - 1; i >= 0; i--) {
    char text[128];
    long long size = 0, resident = 0;
    ssize_t length = pread(family[i].statm, text, sizeof text - 1, 0);
    text[length > 0 ? length : 0] = 0;
    if (sscanf(text, "%lld %lld", &size, &resident) != 2 || !size)
      forget(i); /* gone, or a zombie */
    else
      pages += resident;
  }
  return count ? pages * page_bytes : -1;
}

/* Adds the children of every thread; a kernel without these files shows none. */
static void look_for_children(void) {
  for (int i = 0; i < count; i++) {
    char path[300], text[4096];
    snprintf(path, sizeof path, "/proc/%d/task", family[i].pid);
    DIR *tasks = opendir(path);
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
      if (!isdigit((unsigned char)task->d_name[0])) continue;
      snprintf(path, sizeof path, "/proc/%d/task/%s/children", family[i].pid, task->d_name);
      int fd = open(path, O_RDONLY | O_CLOEXEC);
      if (fd < 0) break;
      ssize_t length = read(fd, text, sizeof text - 1);
      text[length > 0 ? length : 0] = 0;
      close(fd);
      char *rest = text;
      for (long pid; (pid = strtol(rest, &rest, 10)) > 0;) follow((int)pid);
    }
    if (tasks) closedir(tasks);
  }
}

/* Stays off the cores that the engine's threads run on, if any other is left. A real-time task wakes
 * up where it slept, in front of whoever computes there, although another core may be idle. 0: none
 * is left. */
static int make_room(const cpu_set_t *allowed) {
  cpu_set_t left = *allowed;
  for (int i = 0; i < count; i++) {
    char path[300], text[1024];
    snprintf(path, sizeof path, "/proc/%d/task", family[i].pid);
    DIR *tasks = opendir(path);
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
      char state = 0;
      int cpu = -1;
      snprintf(path, sizeof path, "/proc/%d/task/%s/stat", family[i].pid, task->d_name);
      int fd = open(path, O_RDONLY | O_CLOEXEC);
      if (fd < 0) continue;
      ssize_t length = read(fd, text, sizeof text - 1);
      text[length > 0 ? length : 0] = 0;
      close(fd);
      /* proc(5): the name ends with the last ')'; then the state (3) and, 36 fields on, the core (39). */
      char *rest = strrchr(text, ')');
      if (rest && sscanf(rest, ") %c%*s", &state) == 1)
        for (int field = 2; rest && field < 39; field++) rest = strchr(rest + 1, ' ');
      if (rest && state == 'R' && sscanf(rest, " %d", &cpu) == 1 && cpu >= 0 && cpu < CPU_SETSIZE)
        CPU_CLR(cpu, &left);
    }
    if (tasks) closedir(tasks);
  }
  int is_left = CPU_COUNT(&left) > 0;
  sched_setaffinity(0, sizeof left, is_left ? &left : allowed);
  return is_left;
}

/* Takes lines of pids, waiting for one when there is nobody to follow. 0: memplan is gone. */
static int listen_to_memplan(void) {
  struct pollfd in = {.fd = 0, .events = POLLIN};
  while (!ending && poll(&in, 1, count ? 0 : -1) > 0) {
    char text[4096];
    ssize_t length = read(0, text, sizeof text - 1);
    if (length <= 0) return 0;
    text[length] = 0;
    while (count) forget(count - 1);
    char *rest = text;
    for (long pid; (pid = strtol(rest, &rest, 10)) > 0;) follow((int)pid);
    look_for_children();
  }
  return !ending;
}

/* 2: real time, 1: the highest priority of the ordinary class, 0: neither is allowed. */
static int64_t be_prompt(void) {
  struct sched_param lowest = {.sched_priority = 1};
  if (!sched_setscheduler(0, SCHED_FIFO, &lowest)) return 2;
  return setpriority(PRIO_PROCESS, 0, -20) ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  struct sigaction on_end = {.sa_handler = end};
  sigaction(SIGTERM, &on_end, NULL);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  int64_t period_ns = atoll(argv[2]), page_bytes = sysconf(_SC_PAGESIZE);
  int64_t header[] = {0x3153534e5449574dLL, /* MWITNSS1 */
                      period_ns, atoll(argv[3]), be_prompt()};
  file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0 || write(file, header, sizeof header) != sizeof header) return 5;
  cpu_set_t allowed;
  int may_move = !sched_getaffinity(0, sizeof allowed, &allowed); /* not above 1,024 cores */
  int64_t pace_ns = period_ns, due_ns = 0, looked_ns = 0, listened_ns = 0, flushed_ns = now_ns(CLOCK_MONOTONIC);
  while (!ending) {
    int64_t began_ns = now_ns(CLOCK_MONOTONIC);
    if (!count || began_ns - listened_ns >= LISTEN_NS) {
      if (!count && kept) flush();
      if (!listen_to_memplan()) break;
      listened_ns = began_ns = now_ns(CLOCK_MONOTONIC);
    }
    int64_t resident = resident_bytes(page_bytes);
    int64_t read_ns = now_ns(CLOCK_MONOTONIC);
    if (resident >= 0 && read_ns - began_ns <= SURE_NS) {
      records[kept].time_ns = read_ns;
      records[kept++].value = resident;
    }
    if (read_ns - looked_ns >= LOOK_NS) {
      look_for_children();
      if (may_move) pace_ns = make_room(&allowed) ? period_ns : SPARING * period_ns;
      looked_ns = read_ns;
    }
    if (kept && (kept >= MOST_RECORDS - 1 || read_ns - flushed_ns >= SECOND_NS)) {
      flush();
      flushed_ns = read_ns;
    }
    /* A late reader does not burst to catch up. */
    due_ns = due_ns + pace_ns > read_ns ? due_ns + pace_ns : read_ns + pace_ns;
    struct timespec due = {due_ns / SECOND_NS, due_ns % SECOND_NS};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
  }
  flush();
  return 0;
}
