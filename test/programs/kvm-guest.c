/*
 * A KVM guest of a dozen instructions, whose memory from 64 KiB on is the first eight blocks of a
 * file. Each pass adds one to the word at the start of each block, and copies it behind it: a read
 * and a write of the processor's own, by KVM's tables.
 *
 *   kvm-guest FILE     says "ready" or "no kvm"; then answers each line with the words that it sees, after one pass
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { BLOCK = 65536, BLOCKS = 8, FIRST = 0x10000 };

static void die(const char* what) {
  perror(what);
  exit(1);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) {
    puts("no kvm");
    return 0;
  }
  int file = open(argv[1], O_RDWR);
  if (file < 0) die(argv[1]);
  char* memory = mmap(NULL, BLOCK * BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  char* code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || code == MAP_FAILED) die("mmap");
  static const uint8_t text[] = {
      0xb8, 0x00, 0x10,       /*       mov ax, 0x1000    the segment of the first block */
      0x8e, 0xd8,             /* next: mov ds, ax */
      0x8b, 0x1e, 0x00, 0x00, /*       mov bx, [0] */
      0x43,                   /*       inc bx */
      0x89, 0x1e, 0x00, 0x00, /*       mov [0], bx */
      0x89, 0x1e, 0x02, 0x00, /*       mov [2], bx */
      0x05, 0x00, 0x10,       /*       add ax, 0x1000 */
      0x3d, 0x00, 0x90,       /*       cmp ax, 0x9000 */
      0x75, 0xe7,             /*       jne next */
      0xf4,                   /*       hlt */
  };
  memcpy(code, text, sizeof text);
  struct kvm_userspace_memory_region slots[] = {
      {.slot = 0, .guest_phys_addr = 0, .memory_size = 4096, .userspace_addr = (uintptr_t)code},
      {.slot = 1,
       .guest_phys_addr = FIRST,
       .memory_size = BLOCK * BLOCKS,
       .userspace_addr = (uintptr_t)memory},
  };
  for (int i = 0; i < 2; i++)
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slots[i]) < 0) die("KVM_SET_USER_MEMORY_REGION");
  int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0) die("KVM_CREATE_VCPU");
  int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  struct kvm_run* run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  if (run == MAP_FAILED) die("mmap of the processor");
  puts("ready");

  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    struct kvm_sregs special;
    struct kvm_regs registers = {.rip = 0, .rflags = 2};
    if (ioctl(cpu, KVM_GET_SREGS, &special) < 0) die("KVM_GET_SREGS");
    special.cs.base = special.cs.selector = special.ds.base = special.ds.selector = 0;
    if (ioctl(cpu, KVM_SET_SREGS, &special) < 0 || ioctl(cpu, KVM_SET_REGS, &registers) < 0)
      die("KVM_SET_REGS");
    if (ioctl(cpu, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_HLT) {
      printf("stopped with exit reason %u\n", run->exit_reason);
      continue;
    }
    for (int i = 0; i < BLOCKS; i++) {
      uint16_t words[2];
      memcpy(words, memory + (size_t)i * BLOCK, sizeof words);
      printf("%s%u%s", i ? " " : "", words[0], words[0] == words[1] ? "" : "!");
    }
    putchar('\n');
  }
  return 0;
}
