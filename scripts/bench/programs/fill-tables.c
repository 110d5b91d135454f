/*
 * Makes an image half full without writing its data: fill-tables IMAGE ENTRIES
 *
 * The frozen layers, one after another, get entries for half as many blocks as the image has;
 * ENTRIES (a divisor of 512) in each page of a table that has any. The blocks that they name are a
 * hole behind the end of the file. The image must be closed (docs/format.md).
 */
#include "bench.h"

enum { PAGE = 4096, BLOCK = 65536, PER_PAGE = 512 };

static uint64_t number(const char* at) {
  uint64_t value;
  memcpy(&value, at, 8);
  return value;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  uint64_t each = strtoull(argv[2], NULL, 10);
  static char slots[2][PAGE];
  struct stat status;
  int file = open(argv[1], O_RDWR);
  if (file < 0 || fstat(file, &status) < 0 || pread(file, slots, sizeof slots, 0) != sizeof slots)
    die(argv[1]);
  const char* superblock = number(slots[0] + 32) > number(slots[1] + 32) ? slots[0] : slots[1];
  size_t length = number(superblock + 88);
  char* directory = malloc(length);
  if (!directory ||
      pread(file, directory, length, (off_t)number(superblock + 80)) != (ssize_t)length)
    die("directory");
  uint32_t layers;
  memcpy(&layers, directory + 12, 4);
  uint64_t frozen = layers - 1, active = number(directory + 40);

  uint64_t blocks = number(directory + 64 + 24) / BLOCK;  // of the first layer; all are as large
  uint64_t chunks = blocks / PER_PAGE, pages = blocks / 2 / each;
  uint64_t index = ((uint64_t)status.st_size + BLOCK - 1) / BLOCK;
  if (ftruncate(file, (off_t)((index + pages * each) * BLOCK)) < 0) die("ftruncate");
  const char* layer = directory + 64;
  for (uint64_t done = 0, nth = 0; nth < frozen;
       layer += 64 + ((number(layer + 48) >> 32) + 7) / 8 * 8) {
    if (number(layer) == active) continue;
    for (uint64_t end = pages * (nth + 1) / frozen; done < end; done++) {
      uint64_t page[PER_PAGE] = {0};
      for (uint64_t i = 0; i < each; i++)
        page[(done / chunks * each + i) % PER_PAGE] = index++ << 32 | 0xffffffffu;
      off_t at = (off_t)(number(layer + 32) + done % chunks * PAGE);
      if (pwrite(file, page, PAGE, at) != PAGE) die("pwrite");
    }
    nth++;
  }
  if (fsync(file) < 0) die("fsync");
  return 0;
}
