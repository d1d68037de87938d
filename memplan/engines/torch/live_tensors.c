/* Counts the bytes of live CPU tensors exactly: stands in front of c10::alloc_cpu and c10::free_cpu.
 *
 * Preloaded into the engine process. libc10.so calls both through its own PLT, so these definitions
 * win; the originals are looked up in the library that is already loaded (RTLD_NEXT finds nothing,
 * because torch is loaded RTLD_LOCAL). Sizes are malloc's own. Every tensor is remembered with the
 * owner that was set when it was made, so that the composition at the peak is known at no extra cost.
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
#define SLOTS (1 << 15)    /* for live tensors with their owner; half of them can be taken */
#define SMALL (16 << 10)   /* tensors below this many bytes are counted for owner 0: a decode step makes
                              hundreds of them, which together hold next to nothing */

/* Set by the engine before it enters a part of the model: module << 8 | owner. */
int32_t memplan_owner = 0;
/* 0: tensors made from now on are not counted; for measuring what counting costs. */
int32_t memplan_counting = 1;

static struct {
  int64_t live, peak, by_owner[OWNERS], by_owner_at_peak[OWNERS];
  int32_t module_at_peak;
} now;

static struct {
  uintptr_t address;
  int64_t size_owner; /* size << 8 | owner */
} tensors[SLOTS];
static int remembered;
static int64_t not_remembered; /* bytes of tensors for which there was no slot */

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

static int remember(uintptr_t address, int64_t size_owner) {
  if (remembered > SLOTS / 2) return 0;
  size_t slot = home_of(address);
  while (tensors[slot].address) slot = (slot + 1) % SLOTS;
  tensors[slot].address = address;
  tensors[slot].size_owner = size_owner;
  remembered++;
  return 1;
}

static int64_t forget(uintptr_t address) { /* -1: never remembered */
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

static void born(void *memory) {
  int32_t at = memplan_owner, owner = at & 0xff;
  int64_t size = malloc_usable_size(memory);
  take_lock();
  if (size < SMALL) {
    owner = 0;
  } else if (!remember((uintptr_t)memory, size << 8 | owner)) {
    not_remembered += size;
    owner = 0;
  }
  now.live += size;
  now.by_owner[owner % OWNERS] += size;
  if (now.live > now.peak) {
    now.peak = now.live;
    now.module_at_peak = at >> 8;
    memcpy(now.by_owner_at_peak, now.by_owner, sizeof now.by_owner);
  }
  give_lock();
}

static void died(void *memory) {
  int64_t bytes = malloc_usable_size(memory);
  if (bytes < SMALL && !memplan_counting) return;
  take_lock();
  int64_t found = bytes < SMALL ? bytes << 8 : forget((uintptr_t)memory), size = found >> 8;
  if (found < 0) { /* made without a slot, or while nothing was counted */
    size = not_remembered ? bytes : 0;
    not_remembered -= size;
    found = 0;
  }
  now.live -= size;
  now.by_owner[(found & 0xff) % OWNERS] -= size;
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
  if (memory) died(memory);
  call(memory);
}

/* The interval that ends now: out[0] the peak of live bytes in it, out[1] live now, out[2] the module
 * at the peak, then OWNERS values: bytes by owner at the peak. The next one starts at what is live. */
void memplan_take_tensors(int64_t *out) {
  take_lock();
  out[0] = now.peak;
  out[1] = now.live;
  out[2] = now.module_at_peak;
  memcpy(out + 3, now.by_owner_at_peak, sizeof now.by_owner);
  now.peak = now.live;
  now.module_at_peak = 0;
  memcpy(now.by_owner_at_peak, now.by_owner, sizeof now.by_owner);
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
