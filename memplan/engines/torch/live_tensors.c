/* Counts the bytes of live CPU tensors exactly: stands in front of c10::alloc_cpu and c10::free_cpu.
 *
 * Preloaded into the engine process. libc10.so calls both through its own PLT, so these definitions
 * win; the originals are looked up in the library that is already loaded (RTLD_NEXT finds nothing,
 * because torch is loaded RTLD_LOCAL). Sizes are malloc's own. Every tensor that is not small is
 * remembered with the owner that was set when it was made, so that the composition at the peak is known.
 *
 * Called thousands of times a step, between computations that leave nothing in the processor's caches:
 * what counts here is how many lines of memory are touched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OWNERS 64          /* parts of the model that memory is told apart by */
#define RECENT 64          /* live tensors that are looked for first: most live for a moment only */
#define SLOTS (1 << 15)    /* for older ones; half of them can be taken */
#define SMALL (16 << 10)   /* tensors below this many bytes are counted for owner 0: a decode step makes
                              hundreds of them, which together hold next to nothing */

/* Set by the engine before it enters a part of the model: module << 8 | owner. */
int32_t memplan_owner = 0;
/* 0: nothing is counted, neither what is made nor what is freed; for measuring what counting costs. */
int32_t memplan_counting = 1;

/* Small tensors of the thread that takes the counts, since it booked them last; no other touches it, so
 * it needs no lock. Where other threads make tensors meanwhile, a peak is off by what these hold at most. */
static struct {
  int64_t net, most; /* made less freed, now and at most */
  int32_t module_at_most;
} ours;
static __thread int is_ours __attribute__((tls_model("initial-exec")));

static struct {
  int64_t live, peak, by_owner[OWNERS], by_owner_at_peak[OWNERS];
  int32_t module_at_peak;
} now;

static struct {
  uintptr_t address[RECENT]; /* the newest last */
  int64_t size_owner[RECENT];
  int count;
} recent;

static struct {
  uintptr_t address;
  int64_t size_owner; /* size << 8 | owner */
} tensors[SLOTS];
static int remembered;
static int64_t not_remembered; /* bytes of tensors for which there was no slot */
static int is_taken;           /* some thread takes the counts */

static atomic_flag lock = ATOMIC_FLAG_INIT;
static void take_lock(void) {
  while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire)) {
  }
}
static void give_lock(void) { atomic_flag_clear_explicit(&lock, memory_order_release); }

static void *original(const char *symbol) {
  void *library = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);
  void *found = library ? dlsym(library, symbol) : NULL;
  if (!found) {
    fprintf(stderr, "memplan: libc10.so has no %s\n", symbol);
    abort();
  }
  return found;
}

/* Open addressing with linear probing; a removal moves later entries of its run back. */
static size_t home_of(uintptr_t address) { return (address >> 6) * 0x9E3779B97F4A7C15ull >> 49; }

static void put(uintptr_t address, int64_t size_owner) {
  if (remembered > SLOTS / 2) { /* counted for owner 0 from now on */
    int64_t size = size_owner >> 8;
    not_remembered += size;
    now.by_owner[(size_owner & 0xff) % OWNERS] -= size;
    now.by_owner[0] += size;
    return;
  }
  size_t slot = home_of(address);
  while (tensors[slot].address) slot = (slot + 1) % SLOTS;
  tensors[slot].address = address;
  tensors[slot].size_owner = size_owner;
  remembered++;
}

static void remember(uintptr_t address, int64_t size_owner) {
  if (recent.count == RECENT) {
    int older = RECENT / 2;
    for (int i = 0; i < older; i++) put(recent.address[i], recent.size_owner[i]);
    recent.count -= older;
    memmove(recent.address, recent.address + older, recent.count * sizeof *recent.address);
    memmove(recent.size_owner, recent.size_owner + older, recent.count * sizeof *recent.size_owner);
  }
  recent.address[recent.count] = address;
  recent.size_owner[recent.count++] = size_owner;
}

static int64_t forget(uintptr_t address) { /* -1: never remembered */
  for (int i = recent.count - 1; i >= 0; i--) {
    if (recent.address[i] != address) continue;
    int64_t found = recent.size_owner[i];
    for (recent.count--; i < recent.count; i++) {
      recent.address[i] = recent.address[i + 1];
      recent.size_owner[i] = recent.size_owner[i + 1];
    }
    return found;
  }
  size_t slot = home_of(address);
  while (tensors[slot].address != address) {
    if (!tensors[slot].address) return -1;
    slot = (slot + 1) % SLOTS;
  }
  int64_t found = tensors[slot].size_owner;
  for (size_t next = (slot + 1) % SLOTS; tensors[next].address; next = (next + 1) % SLOTS) {
    size_t distance = (next - home_of(tensors[next].address)) % SLOTS;
    if (distance >= (next - slot) % SLOTS) {
      tensors[slot] = tensors[next];
      slot = next;
    }
  }
  tensors[slot].address = 0;
  remembered--;
  return found;
}

static void note_peak(int64_t bytes, int32_t module) {
  now.peak = bytes;
  now.module_at_peak = module;
  memcpy(now.by_owner_at_peak, now.by_owner, sizeof now.by_owner);
}

/* Before anything else changes what is live; the lock is held. */
static void book_ours(void) {
  if (now.live + ours.most > now.peak) {
    note_peak(now.live + ours.most, ours.module_at_most);
    now.by_owner_at_peak[0] += ours.most;
  }
  now.live += ours.net;
  now.by_owner[0] += ours.net;
  ours.net = ours.most = 0;
}

static void born(void *memory) {
  int32_t at = memplan_owner, owner = (at & 0xff) % OWNERS;
  int64_t size = malloc_usable_size(memory);
  int is_small = size < SMALL;
  if (is_small && is_ours) {
    ours.net += size;
    if (ours.net > ours.most) {
      ours.most = ours.net;
      ours.module_at_most = at >> 8;
    }
    return;
  }
  take_lock();
  if (is_ours) book_ours();
  now.live += size;
  now.by_owner[is_small ? 0 : owner] += size;
  if (!is_small) remember((uintptr_t)memory, size << 8 | owner);
  if (now.live > now.peak) note_peak(now.live, at >> 8);
  give_lock();
}

static void died(void *memory) {
  int64_t size = malloc_usable_size(memory);
  int is_small = size < SMALL;
  if (is_small && is_ours) {
    ours.net -= size;
    return;
  }
  take_lock();
  if (is_ours) book_ours();
  int64_t found = is_small ? size << 8 : forget((uintptr_t)memory);
  if (found < 0) { /* made without a slot, or while nothing was counted */
    if (not_remembered < size) size = not_remembered;
    not_remembered -= size;
    found = size << 8;
  }
  now.live -= found >> 8;
  now.by_owner[found & 0xff] -= found >> 8;
  give_lock();
}

void *_ZN3c109alloc_cpuEm(size_t size) { /* c10::alloc_cpu(unsigned long) */
  static void *(*call)(size_t);
  if (!call) call = (void *(*)(size_t))original("_ZN3c109alloc_cpuEm");
  void *memory = call(size);
  if (memory && memplan_counting) born(memory);
  return memory;
}

void _ZN3c108free_cpuEPv(void *memory) { /* c10::free_cpu(void*) */
  static void (*call)(void *);
  if (!call) call = (void (*)(void *))original("_ZN3c108free_cpuEPv");
  if (memory && memplan_counting) died(memory);
  call(memory);
}

/* To be called by one thread, whose small tensors are counted without a lock from then on.
 * The interval that ends now: out[0] the peak of live bytes in it, out[1] live now, out[2] the module
 * at the peak, then OWNERS values: bytes by owner at the peak. The next one starts at what is live. */
void memplan_take_tensors(int64_t *out) {
  take_lock();
  if (!is_taken) is_taken = is_ours = 1;
  if (is_ours) book_ours();
  out[0] = now.peak;
  out[1] = now.live;
  out[2] = now.module_at_peak;
  memcpy(out + 3, now.by_owner_at_peak, sizeof now.by_owner);
  now.peak = now.live;
  now.module_at_peak = 0;
  memcpy(now.by_owner_at_peak, now.by_owner, sizeof now.by_owner);
  give_lock();
}

/* Where nothing was counted for a while, what is remembered may be gone: forgets all of it, if it is much.
 * What is live is wrong from then on. */
void memplan_forget_tensors(void) {
  take_lock();
  if (remembered >= SLOTS / 4) {
    memset(tensors, 0, sizeof tensors);
    remembered = recent.count = 0;
  }
  give_lock();
}

/* Python's own heap: arenas of small objects, mapped one by one. */
static atomic_llong interpreter_bytes;

void *memplan_map_arena(void *context, size_t size) {
  (void)context;
  void *arena = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (arena == MAP_FAILED) return NULL;
  atomic_fetch_add(&interpreter_bytes, (long long)size);
  return arena;
}

void memplan_unmap_arena(void *context, void *arena, size_t size) {
  (void)context;
  munmap(arena, size);
  atomic_fetch_sub(&interpreter_bytes, (long long)size);
}

int64_t memplan_interpreter_bytes(void) { return atomic_load(&interpreter_bytes); }
