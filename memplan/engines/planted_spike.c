/* A spike that no Python thread can look at: mapped, filled, held and unmapped in one call.
 * times_ns: CLOCK_MONOTONIC before its first page, with all of it resident, and before it goes.
 * Returns 0, or errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

int memplan_plant(int64_t spike_bytes, int64_t hold_ns, int64_t times_ns[3]) {
  times_ns[0] = now_ns();
  void *spike = mmap(0, spike_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (spike == MAP_FAILED) return errno;
  times_ns[1] = now_ns();
  struct timespec until = {(times_ns[1] + hold_ns) / 1000000000,
                           (times_ns[1] + hold_ns) % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0) == EINTR) {
  }
  times_ns[2] = now_ns();
  munmap(spike, spike_bytes);
  return 0;
}
