/* Takes snapshots of an image that random-mapper works on, and says whether each is what all of its threads had done at one moment,
 * and stays that.
 *
 *   random-checker MODEL MOUNTPOINT IMAGE SEED FIRST      until its input ends; then "N snapshots", named rFIRST and so on
 *   random-checker MODEL FILE                             once: FILE holds all that was done; says how many steps that is
 */
#define _GNU_SOURCE
#include <poll.h>

#include "random-model.h"

enum { MOST = 4 };

struct kept {
  char name[32];
  uint64_t sum;
};

static struct model* model;
static const char *mountpoint, *image;
static uint8_t content[(size_t)PAGES * PAGE];
static struct page pages[PAGES];

static void read_all(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) dprintf(1, "%s: ", path);
  MUST(fd >= 0);
  for (size_t at = 0; at < sizeof content;) {
    const ssize_t got = pread(fd, content + at, sizeof content - at, (off_t)at);
    MUST(got > 0);
    at += (size_t)got;
  }
  close(fd);
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

/* Whether what differs is only what this step was about to change, and each such byte is from before or after it. */
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

/* `content` has what the thread's pages held after one step between `from` and `to`, or in the middle of one. */
static void check_thread(const char* what, int thread, uint64_t from, uint64_t to) {
  const struct step* steps = model->logs[thread].steps;
  begin_with(pages);
  for (uint64_t number = 1; number <= from; number++) apply(pages, thread, steps[number - 1], number);
  memset(differs, 0, sizeof differs);
  difference = 0;
  for (uint32_t page = 0; page < PAGES; page++)
    if (owner_of(page) == thread) look_at(page);
  const uint32_t at_first = difference;
  for (uint64_t number = from + 1; difference > 0; number++) {
    if (number > to) {
      dprintf(
          1,
          "%s: the pages of thread %d are of no step from %lu to %lu: %u differ after the first, %u after the last\n",
          what, thread, (unsigned long)from, (unsigned long)to, at_first, difference);
      for (uint32_t page = 0, told = 0; page < PAGES && told < 4; page++) {
        if (!differs[page]) continue;
        uint64_t first;
        memcpy(&first, content + (size_t)page * PAGE, 8);
        dprintf(1, "  page %u begins with %016lx, not %016lx; byte 8 is %02x, not %02x\n", page, (unsigned long)first,
                (unsigned long)pages[page].cells[0], content[(size_t)page * PAGE + 8], pages[page].fill);
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

static void control(const char* which, const char* text) {
  char path[4096];
  snprintf(path, sizeof path, "%s/.pcow/%s/%s", mountpoint, image, which);
  const int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
  const bool done = fd >= 0 && write(fd, text, strlen(text)) > 0;
  if (!done) dprintf(1, "%s %s: ", which, text);
  MUST(done);
  close(fd);
}

static void read_snapshot(const char* name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/.pcow/%s/at/%s", mountpoint, image, name);
  read_all(path);
}

static void take(struct kept* kept, unsigned number) {
  uint64_t from[THREADS];
  snprintf(kept->name, sizeof kept->name, "r%u", number);
  for (int thread = 0; thread < THREADS; thread++) from[thread] = model->logs[thread].done;
  control("snapshot", kept->name);
  uint64_t to[THREADS];
  for (int thread = 0; thread < THREADS; thread++) to[thread] = model->logs[thread].begun;
  read_snapshot(kept->name);
  kept->sum = sum_of_content();
  for (int thread = 0; thread < THREADS; thread++) check_thread(kept->name, thread, from[thread], to[thread]);
}

static bool input_ended(int wait_ms) {
  struct pollfd input = {.fd = 0, .events = POLLIN};
  return poll(&input, 1, wait_ms) > 0;
}

static void snapshots(unsigned seed, unsigned first) {
  struct kept kept[MOST];
  unsigned count = 0, number = first;
  while (!input_ended(rand_r(&seed) % 300)) {
    if (count == MOST || (count > 0 && rand_r(&seed) % 4 == 0)) {
      const unsigned which = rand_r(&seed) % count;
      read_snapshot(kept[which].name);
      if (sum_of_content() != kept[which].sum) dprintf(1, "%s has changed\n", kept[which].name);
      MUST(sum_of_content() == kept[which].sum);
      control("delete", kept[which].name);
      kept[which] = kept[--count];
    }
    take(&kept[count++], number++);
  }
  dprintf(1, "%u snapshots\n", number - first);
}

int main(int argc, char** argv) {
  MUST(argc == 3 || argc == 6);
  model = open_model(argv[1]);
  if (argc == 3) {
    read_all(argv[2]);
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
