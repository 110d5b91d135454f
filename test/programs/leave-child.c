/* Maps a flat file, forks a child that lives on, says the child's pid, and waits to be killed.
 *
 *   leave-child FLATFILE
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int fd = open(argv[1], O_RDWR);
  char* memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return perror(argv[1]), 1;
  memory[0] = 1;
  /*
   * The flat file itself belongs to the mount: an open one in the child says nothing about the
   * image.
   */
  close(fd);
  const pid_t child = fork();
  if (child == 0) {
    close(1);
    for (;;) pause();
  }
  printf("%d\n", (int)child);
  fflush(stdout);
  for (;;) pause();
}
