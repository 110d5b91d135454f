/*
 * A process that speaks the attach protocol (native/attach/protocol.h) and maps nothing: one
 * command a line on stdin, one answer a line on stdout.
 *
 *   fake-monitor FILE        opens the flat file for reading and writing (FILE:r only to read, FILE:p with O_PATH)
 *     attach w|r             "attached PATH..." or "refused ERRNO TEXT"
 *     next                   waits for a request: "KIND VALUE TEXT"
 *     done TEXT              answers it
 *     failed ERRNO TEXT
 *     answer-id NUMBER       answers a request of that number, asked for or not
 *     fetch NUMBER TEXT      asks for a remote block: "ok"
 *     resume UUID            shows the image to whoever listens now: "attached" or "refused ERRNO TEXT"
 *     let-go                 gives the image back: closes it, and waits for the mount to have it ("released 0 ");
 *                            requests that come meanwhile are not answered
 *     close                  closes the connection, and keeps the image's descriptors
 *     release                closes the image's descriptors
 *     open                   opens the flat file once more, for reading and writing: "ok" or an errno
 *     write OFFSET BYTE      to the flat file: "ok" or an errno
 *     punch OFFSET LENGTH    a hole in the flat file: "ok" or an errno
 *     fsync                  of the flat file: "ok" or an errno
 *     read OFFSET            the byte there of the flat file
 *     map-store OFFSET BYTE  by a mapping of the kernel's, which stays, and msync: "ok" or an errno
 *     dirty FILE             opens and maps another file, and stores into it
 *     show-dirty             shows that file on another connection: "ok"
 *     where                  the path of the socket
 *     hostile NAME           a connection that breaks the rules in this way; what the mount says to it
 *     many COUNT             opens so many silent connections: "ok"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
  ATTACH = 1,
  RESUME = 2,
  ATTACHED = 3,
  REFUSED = 4,
  PREPARE = 5,
  DONE = 13,
  FAILED = 14,
  RELEASE = 16,
  RELEASED = 17,
  FETCH = 25
};
enum { MAX_TEXT = 60000, MAX_FILES = 250 };

struct header {
  uint32_t magic;
  uint16_t version, kind;
  uint32_t id, value, length, zero;
};

static const char* const names[] = {
    "",       "attach", "resume",  "attached", "refused", "prepare", "cut",
    "commit", "finish", "abort",   "delete",   "status",  "metrics", "done",
    "failed", "sync",   "release", "released", "want",    "bases",   "rename",
    "store",  "want-shared", "shared", "may-fetch", "fetch", "fetched"};

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static struct header answer;
static char text[MAX_TEXT + 1];
static int files[MAX_FILES];
static int file_count;

static int connection(void) {
  const int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (connect(made, (struct sockaddr*)&address, sizeof address)) {
    close(made);
    return -1;
  }
  return made;
}

static struct header header_of(int kind, uint32_t id, uint32_t value, size_t length) {
  return (struct header){0x574f4350, 1, (uint16_t)kind, id, value, (uint32_t)length, 0};
}

static void send_raw(int to, const void* head, size_t head_length, const void* body, size_t length,
                     const int* sent, int count) {
  struct iovec parts[] = {{(void*)head, head_length}, {(void*)body, length}};
  char control[CMSG_SPACE(MAX_FILES * sizeof(int))] = {0};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
  if (count) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(part), sent, (size_t)count * sizeof(int));
  }
  sendmsg(to, &message, MSG_NOSIGNAL);
}

static void send_message(int to, int kind, uint32_t id, uint32_t value, const char* body,
                         const int* sent, int count) {
  const struct header head = header_of(kind, id, value, strlen(body));
  send_raw(to, &head, sizeof head, body, strlen(body), sent, count);
}

/* 0: the connection has ended. Descriptors go to `files`. */
static int receive(int from, int patience_ms) {
  struct pollfd ready = {from, POLLIN, 0};
  if (patience_ms >= 0 && poll(&ready, 1, patience_ms) == 0) return -1;
  char control[CMSG_SPACE(MAX_FILES * sizeof(int))];
  struct iovec parts[] = {{&answer, sizeof answer}, {text, MAX_TEXT}};
  struct msghdr message = {
      .msg_iov = parts, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
  const ssize_t length = recvmsg(from, &message, MSG_CMSG_CLOEXEC);
  if (length <= 0) return 0;
  text[length - (ssize_t)sizeof answer] = '\0';
  struct cmsghdr* part = CMSG_FIRSTHDR(&message);
  if (part) {
    file_count = (int)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(files, CMSG_DATA(part), (size_t)file_count * sizeof(int));
  }
  return 1;
}

static void say_answer(int from) {
  switch (receive(from, 20000)) {
    case -1: puts("silence"); return;
    case 0: puts("closed"); return;
  }
  if (answer.kind == ATTACHED) {
    printf("attached");
    for (const char* path = text; path < text + answer.length; path += strlen(path) + 1)
      printf(" %s", path);
    puts("");
  } else {
    printf("%s %u %s\n", names[answer.kind], answer.value, text);
  }
}

static void hostile(const char* name, int flat) {
  const int to = connection();
  struct header head = header_of(ATTACH, 0, 1, 0);
  const int two[] = {flat, flat};
  int pipes[2];
  char* large = calloc(1, 200000);
  if (strcmp(name, "short") == 0) {
    send_raw(to, &head, 10, "", 0, &flat, 1);
  } else if (strcmp(name, "magic") == 0) {
    head.magic = 1;
    send_raw(to, &head, sizeof head, "", 0, &flat, 1);
  } else if (strcmp(name, "version") == 0) {
    head.version = 2;
    send_raw(to, &head, sizeof head, "", 0, &flat, 1);
  } else if (strcmp(name, "length") == 0) {
    head.length = 5;
    send_raw(to, &head, sizeof head, "x", 1, &flat, 1);
  } else if (strcmp(name, "long") == 0) {
    head.length = 100000;
    send_raw(to, &head, sizeof head, large, head.length, &flat, 1);
  } else if (strcmp(name, "zero") == 0) {
    head.zero = 1;
    send_raw(to, &head, sizeof head, "", 0, &flat, 1);
  } else if (strcmp(name, "value") == 0) {
    send_message(to, ATTACH, 0, 7, "", &flat, 1);
  } else if (strcmp(name, "text") == 0) {
    send_message(to, ATTACH, 0, 1, "text", &flat, 1);
  } else if (strcmp(name, "uuid") == 0) {
    send_message(to, RESUME, 0, 1, "no uuid", &flat, 1);
  } else if (strcmp(name, "no-descriptor") == 0) {
    send_message(to, ATTACH, 0, 1, "", NULL, 0);
  } else if (strcmp(name, "two-descriptors") == 0) {
    send_message(to, ATTACH, 0, 1, "", two, 2);
  } else if (strcmp(name, "many-descriptors") == 0) {
    int many[200];
    for (int i = 0; i < 200; i++) many[i] = flat;
    send_message(to, ATTACH, 0, 1, "", many, 200);
  } else if (strcmp(name, "pipe") == 0 && pipe(pipes) == 0) {
    send_message(to, ATTACH, 0, 1, "", pipes, 1);
  } else if (strcmp(name, "resume-pipe") == 0 && pipe(pipes) == 0) {
    send_message(to, RESUME, 0, 1, "00000000-0000-0000-0000-000000000000", pipes, 1);
  } else if (strcmp(name, "resume-flat-file") == 0) {
    send_message(to, RESUME, 0, 1, "00000000-0000-0000-0000-000000000000", &flat, 1);
  } else if (strcmp(name, "order") == 0) {
    send_message(to, DONE, 1, 0, "", NULL, 0);
  } else if (strcmp(name, "kind") == 0) {
    send_message(to, 99, 1, 0, "", NULL, 0);
  } else if (strcmp(name, "request") == 0) {
    send_message(to, PREPARE, 1, 0, "s", NULL, 0);
  } else if (strcmp(name, "release") == 0) {
    send_message(to, RELEASE, 0, 0, "", NULL, 0);
  } else if (strcmp(name, "empty") == 0) {
    send_raw(to, "", 0, "", 0, NULL, 0);
  } else if (strcmp(name, "silence") != 0) {
    exit(2);
  }
  say_answer(to);
  free(large);
  close(to);
}

static int map_store(int flat, unsigned offset, unsigned byte) {
  static unsigned char* base;
  const off_t size = lseek(flat, 0, SEEK_END);
  if (!base) base = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, flat, 0);
  if (base == MAP_FAILED) {
    base = NULL;
    return errno;
  }
  base[offset] = (unsigned char)byte;
  return msync(base, (size_t)size, MS_SYNC) ? errno : 0;
}

static const char* outcome(int failed) { return failed ? strerrorname_np(errno) : "ok"; }

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  char* const mode = strrchr(argv[1], ':');
  if (mode) *mode = '\0';
  const int flags = !mode ? O_RDWR : mode[1] == 'r' ? O_RDONLY : O_PATH;
  const int flat = open(argv[1], flags | O_CLOEXEC);
  if (flat < 0) return perror(argv[1]), 1;
  if (getxattr(argv[1], "user.pcow.attach", address.sun_path, sizeof address.sun_path - 1) < 0)
    return perror("user.pcow.attach"), 1;
  int mount = -1, other = -1;
  volatile char* stored = NULL;
  puts("ready");
  fflush(stdout);
  char line[4096], word[4096];
  while (fgets(line, sizeof line, stdin)) {
    unsigned number, byte;
    line[strcspn(line, "\n")] = '\0';
    if (sscanf(line, "attach %4095s", word) == 1) {
      mount = connection();
      send_message(mount, ATTACH, 0, word[0] == 'w', "", &flat, 1);
      say_answer(mount);
    } else if (sscanf(line, "resume %4095s", word) == 1) {
      while ((mount = connection()) < 0) usleep(10000);
      send_message(mount, RESUME, 0, 1, word, files, 1);
      say_answer(mount);
    } else if (strcmp(line, "next") == 0) {
      say_answer(mount);
    } else if (strncmp(line, "done ", 5) == 0) {
      send_message(mount, DONE, answer.id, 0, line + 5, NULL, 0);
      puts("ok");
    } else if (sscanf(line, "failed %u %4095[^\n]", &number, word) == 2) {
      send_message(mount, FAILED, answer.id, number, word, NULL, 0);
      puts("ok");
    } else if (sscanf(line, "answer-id %u", &number) == 1) {
      send_message(mount, DONE, number, 0, "", NULL, 0);
      puts("ok");
    } else if (sscanf(line, "fetch %u %4095[^\n]", &number, word) == 2) {
      send_message(mount, FETCH, 0, number, word, NULL, 0);
      puts("ok");
    } else if (strcmp(line, "where") == 0) {
      puts(address.sun_path);
    } else if (strcmp(line, "let-go") == 0) {
      for (int i = 0; i < file_count; i++) close(files[i]);
      file_count = 0;
      send_message(mount, RELEASE, 0, 0, "", NULL, 0);
      int received;
      do {
        received = receive(mount, 20000);
      } while (received == 1 && answer.kind != RELEASED && answer.kind != REFUSED);
      if (received == 1) {
        printf("%s %u %s\n", names[answer.kind], answer.value, text);
      } else {
        puts(received ? "silence" : "closed");
      }
      close(mount);
    } else if (strcmp(line, "close") == 0) {
      close(mount);
      puts("ok");
    } else if (strcmp(line, "release") == 0) {
      for (int i = 0; i < file_count; i++) close(files[i]);
      file_count = 0;
      puts("ok");
    } else if (strcmp(line, "open") == 0) {
      puts(open(argv[1], O_RDWR | O_CLOEXEC) < 0 ? strerrorname_np(errno) : "ok");
    } else if (sscanf(line, "write %u %u", &number, &byte) == 2) {
      const char value = (char)byte;
      puts(pwrite(flat, &value, 1, number) == 1 ? "ok" : strerrorname_np(errno));
    } else if (sscanf(line, "punch %u %u", &number, &byte) == 2) {
      puts(outcome(fallocate(flat, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, number, byte)));
    } else if (strcmp(line, "fsync") == 0) {
      puts(outcome(fsync(flat)));
    } else if (sscanf(line, "map-store %u %u", &number, &byte) == 2) {
      const int err = map_store(flat, number, byte);
      puts(err ? strerrorname_np(err) : "ok");
    } else if (sscanf(line, "dirty %4095s", word) == 1) {
      other = open(word, O_RDWR | O_CLOEXEC);
      stored = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
      puts(outcome(stored == MAP_FAILED));
      if (stored != MAP_FAILED) *stored = 1;
    } else if (strcmp(line, "show-dirty") == 0) {
      send_message(connection(), ATTACH, 0, 1, "", &other, 1);
      puts("ok");
    } else if (sscanf(line, "read %u", &number) == 1) {
      unsigned char value;
      if (pread(flat, &value, 1, number) == 1) {
        printf("%u\n", value);
      } else {
        puts(strerrorname_np(errno));
      }
    } else if (sscanf(line, "hostile %4095s", word) == 1) {
      hostile(word, flat);
    } else if (sscanf(line, "many %u", &number) == 1) {
      for (unsigned i = 0; i < number; i++) connection();
      puts("ok");
    } else {
      return 2;
    }
    fflush(stdout);
  }
  return 0;
}
