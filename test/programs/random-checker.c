/*
 * Takes snapshots of an image that random-mapper works on, and clones of them, and says whether
 * each is what all of its threads had done at one moment, and stays that. Where the mount dies,
 * what was not answered is asked of the next one: it has happened, or not.
 *
 *   random-checker MODEL MOUNTPOINT IMAGE SEED FIRST      until its input ends; then "N snapshots", named rFIRST and so on
 *   random-checker MODEL FILE                             once: FILE holds all that was done; says how many steps that is
 */
#define _GNU_SOURCE
#include <poll.h>

#include "random-model.h"
#include "random-mount.h"

enum { MOST = 4, CLONE_WRITES = 8, LOOK_AGAIN_MS = 5 };

struct kept {
  char name[32];
  uint64_t sum;
};

static struct model* model;
static const char *mountpoint, *image;
static uint8_t content[(size_t)PAGES * PAGE];
static struct page pages[PAGES];

/* While it is open the mount cannot be ended, but it can die. */
static int open_mount(void) {
  const int mount = open_in_mount(mountpoint, O_RDONLY | O_DIRECTORY);
  MUST(mount >= 0);
  return mount;
}

/* A call has failed, perhaps only because the mount has died. */
static void must_be_dead(int mount, const char* path) {
  const int err = errno;
  const bool dead = !lives(mount);
  errno = err;
  if (!dead) dprintf(1, "%s: ", path);
  MUST(dead);
}

static bool try_to_read(int directory, const char* path) {
  const int fd = openat(directory, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  size_t at = 0;
  for (ssize_t got = 1; got > 0 && at < sizeof content; at += (size_t)got) {
    got = pread(fd, content + at, sizeof content - at, (off_t)at);
    if (got < 0) break;
  }
  close(fd);
  return at == sizeof content;
}

static void read_all(const char* path) {
  for (bool done = false; !done;) {
    const int mount = open_mount();
    done = try_to_read(mount, path);
    if (!done) must_be_dead(mount, path);
    close(mount);
  }
}

static uint64_t sum_of_content(void) {
  uint64_t sum = 14695981039346656037u;
  for (size_t at = 0; at < sizeof content; at += 8) {
    uint64_t word;
    memcpy(&word, content + at, 8);
    sum = (sum ^ word) * 1099511628211u;
  }
  return sum;
}

static bool differs[PAGES];
static uint32_t difference;

static void look_at(uint32_t page) {
  const bool now = !is_page(content + (size_t)page * PAGE, &pages[page]);
  difference += now - differs[page];
  differs[page] = now;
}

static uint32_t length_of(struct step step) { return step.kind == ZERO ? step.extra : 1; }

/*
 * Whether the differences are only in what this step was about to change, and each such byte is
 * from before or after it.
 */
static bool is_halfway(int thread, struct step step, uint64_t number) {
  static struct page after[PAGES];
  uint32_t in_step = 0;
  for (uint32_t page = step.page; page < step.page + length_of(step); page++) {
    after[page] = pages[page];
    in_step += differs[page];
  }
  if (in_step != difference) return false;
  apply(after, thread, step, number);
  for (uint32_t page = step.page; page < step.page + length_of(step); page++) {
    uint8_t old[PAGE], new[PAGE];
    bytes_of(&pages[page], old);
    bytes_of(&after[page], new);
    for (int at = 0; at < PAGE; at++) {
      const uint8_t byte = content[(size_t)page * PAGE + at];
      if (byte != old[at] && byte != new[at]) return false;
    }
  }
  return true;
}

/*
 * `content` is what the thread's pages had after one step between `from` and `to`, or in the middle
 * of one.
 */
static void check_thread(const char* what, int thread, uint64_t from, uint64_t to) {
  const struct step* steps = model->logs[thread].steps;
  begin_with(pages);
  for (uint64_t number = 1; number <= from; number++)
    apply(pages, thread, steps[number - 1], number);
  memset(differs, 0, sizeof differs);
  difference = 0;
  for (uint32_t page = 0; page < PAGES; page++)
    if (owner_of(page) == thread) look_at(page);
  const uint32_t at_first = difference;
  for (uint64_t number = from + 1; difference > 0; number++) {
    if (number > to) {
      dprintf(1,
              "%s: the pages of thread %d are of no step from %lu to %lu: %u differ after the "
              "first, %u after the last\n",
              what, thread, (unsigned long)from, (unsigned long)to, at_first, difference);
      for (uint32_t page = 0, told = 0; page < PAGES && told < 4; page++) {
        if (!differs[page]) continue;
        uint64_t first;
        memcpy(&first, content + (size_t)page * PAGE, 8);
        dprintf(1, "  page %u begins with %016lx, not %016lx; byte 8 is %02x, not %02x\n", page,
                (unsigned long)first, (unsigned long)pages[page].cells[0],
                content[(size_t)page * PAGE + 8], pages[page].fill);
        told++;
      }
      _exit(1);
    }
    const struct step step = steps[number - 1];
    if (is_halfway(thread, step, number)) return;
    apply(pages, thread, step, number);
    for (uint32_t page = step.page; page < step.page + length_of(step); page++) look_at(page);
  }
}

/*
 * The errno of a control file of `of`; 0: it is done. `again`: a mount died meanwhile, so this was
 * requested more than once.
 */
static int control(const char* of, const char* which, const char* text, bool* again) {
  char path[256];
  snprintf(path, sizeof path, ".pcow/%s/%s", of, which);
  for (*again = false;; *again = true) {
    const int mount = open_mount();
    const int fd = openat(mount, path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    const int err = fd >= 0 && write(fd, text, strlen(text)) > 0 ? 0 : errno;
    if (fd >= 0) close(fd);
    const bool answered = err == 0 || lives(mount);
    close(mount);
    if (answered) return err;
  }
}

/* `done`: the errno if it had been done already. */
static void command(const char* of, const char* which, const char* text, int done) {
  bool again;
  errno = control(of, which, text, &again);
  const bool right = errno == 0 || (again && errno == done);
  if (!right) dprintf(1, "%s of %s, %s: ", which, of, text);
  MUST(right);
}

static void read_snapshot(const char* name) {
  char path[256];
  snprintf(path, sizeof path, ".pcow/%s/at/%s", image, name);
  read_all(path);
}

static void take(struct kept* kept, unsigned number) {
  uint64_t from[THREADS];
  snprintf(kept->name, sizeof kept->name, "r%u", number);
  for (int thread = 0; thread < THREADS; thread++) from[thread] = model->logs[thread].done;
  command(image, "snapshot", kept->name, EEXIST);
  uint64_t to[THREADS];
  for (int thread = 0; thread < THREADS; thread++) to[thread] = model->logs[thread].begun;
  read_snapshot(kept->name);
  kept->sum = sum_of_content();
  for (int thread = 0; thread < THREADS; thread++)
    check_thread(kept->name, thread, from[thread], to[thread]);
}

static void must_be_as_before(const struct kept* kept) {
  read_snapshot(kept->name);
  if (sum_of_content() != kept->sum) dprintf(1, "%s has changed\n", kept->name);
  MUST(sum_of_content() == kept->sum);
}

static void write_page(const char* path, const uint8_t* bytes, uint32_t page) {
  for (bool done = false; !done;) {
    const int mount = open_mount();
    const int fd = openat(mount, path, O_WRONLY | O_CLOEXEC);
    done = fd >= 0 && pwrite(fd, bytes, PAGE, (off_t)page * PAGE) == PAGE;
    if (!done) must_be_dead(mount, path);
    if (fd >= 0) close(fd);
    close(mount);
  }
}

/*
 * An image on a snapshot: it begins with the content of the snapshot, is written, and is removed.
 * Meanwhile the snapshot cannot be deleted, and does not change.
 */
static void clone(const struct kept* kept, unsigned number, unsigned* seed) {
  static uint8_t expected[sizeof content];
  char name[32], words[80];
  snprintf(name, sizeof name, "c%u", number);
  snprintf(words, sizeof words, "%s %s", name, kept->name);
  command(image, "clone", words, EEXIST);
  read_all(name);
  if (sum_of_content() != kept->sum)
    dprintf(1, "%s, a clone of %s, is not as that\n", name, kept->name);
  MUST(sum_of_content() == kept->sum);
  memcpy(expected, content, sizeof content);
  for (int count = 0; count < CLONE_WRITES; count++) {
    const uint32_t page = rand_r(seed) % PAGES;
    uint8_t* bytes = expected + (size_t)page * PAGE;
    memset(bytes, 1 + rand_r(seed) % 255, PAGE);
    write_page(name, bytes, page);
  }
  bool again;
  MUST(control(image, "delete", kept->name, &again) == EBUSY);
  read_all(name);
  MUST(memcmp(content, expected, sizeof content) == 0);
  must_be_as_before(kept);
  command(name, "remove", name, ENOENT);
}

static bool input_ended(int wait_ms) {
  struct pollfd input = {.fd = 0, .events = POLLIN};
  return poll(&input, 1, wait_ms) > 0;
}

static uint64_t steps_done(void) {
  uint64_t steps = 0;
  for (int thread = 0; thread < THREADS; thread++) steps += model->logs[thread].done;
  return steps;
}

/*
 * There should be steps, and not time, between two snapshots. Returns false if the input has ended.
 */
static bool await_steps(unsigned steps) {
  const uint64_t from = steps_done();
  while (steps_done() - from < steps)
    if (input_ended(LOOK_AGAIN_MS)) return false;
  return !input_ended(0);
}

static void snapshots(unsigned seed, unsigned first) {
  struct kept kept[MOST];
  unsigned count = 0, number = first;
  while (await_steps(rand_r(&seed) % (rand_r(&seed) % 4 ? 500 : 5000))) {
    if (count == MOST || (count > 0 && rand_r(&seed) % 4 == 0)) {
      const unsigned which = rand_r(&seed) % count;
      must_be_as_before(&kept[which]);
      command(image, "delete", kept[which].name, ENOENT);
      kept[which] = kept[--count];
    }
    take(&kept[count++], number);
    if (rand_r(&seed) % 4 == 0) clone(&kept[rand_r(&seed) % count], number, &seed);
    number++;
  }
  dprintf(1, "%u snapshots\n", number - first);
}

int main(int argc, char** argv) {
  MUST(argc == 3 || argc == 6);
  model = open_model(argv[1]);
  if (argc == 3) {
    MUST(try_to_read(AT_FDCWD, argv[2]));
    uint64_t steps = 0;
    for (int thread = 0; thread < THREADS; thread++) {
      check_thread(argv[2], thread, model->logs[thread].done, model->logs[thread].begun);
      steps += model->logs[thread].done;
    }
    dprintf(1, "%lu\n", (unsigned long)steps);
    return 0;
  }
  mountpoint = argv[2];
  image = argv[3];
  snapshots((unsigned)atoi(argv[4]), (unsigned)atoi(argv[5]));
}
