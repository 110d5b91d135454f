// The monitor's own heap (monitor/heap.cc), which this program uses, too. Allocations of all sizes
// and alignments, by several threads, keep what is written to them, and never overlap. A child that
// is made in the middle of a change begins with a heap of its own.
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "check.h"

namespace {

struct Piece {
  uint8_t* bytes = nullptr;
  size_t length = 0;
  std::align_val_t alignment{1};
  uint8_t value = 0;

  bool is_whole() const {
    for (size_t i = 0; i < length; i++)
      if (bytes[i] != value) return false;
    return true;
  }
};

Piece make(std::mt19937_64* random) {
  Piece piece;
  piece.length = (*random)() % (size_t{1} << (*random)() % 20);
  piece.value = static_cast<uint8_t>((*random)());
  const bool aligned = (*random)() % 4 == 0;
  if (aligned) piece.alignment = std::align_val_t{size_t{1} << (*random)() % 13};
  piece.bytes = static_cast<uint8_t*>(
      aligned ? operator new(piece.length, piece.alignment) : operator new(piece.length));
  const size_t least = std::max<size_t>(static_cast<size_t>(piece.alignment), aligned ? 1 : 16);
  CHECK(reinterpret_cast<uintptr_t>(piece.bytes) % least == 0);
  memset(piece.bytes, piece.value, piece.length);
  return piece;
}

void unmake(const Piece& piece) {
  CHECK(piece.is_whole());
  if (static_cast<size_t>(piece.alignment) == 1)
    operator delete(piece.bytes);
  else
    operator delete(piece.bytes, piece.alignment);
}

void work(uint64_t seed, int steps, std::vector<Piece>* pieces) {
  std::mt19937_64 random(seed);
  for (int step = 0; step < steps; step++) {
    if (pieces->size() < 100 || random() % 2) {
      pieces->push_back(make(&random));
    } else {
      std::swap((*pieces)[random() % pieces->size()], pieces->back());
      unmake(pieces->back());
      pieces->pop_back();
    }
  }
}

void threads_at_random(uint64_t seed) {
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; i++) {
    threads.emplace_back([seed, i] {
      std::vector<Piece> pieces;
      work(seed + i, 5000, &pieces);
      for (const Piece& piece : pieces) unmake(piece);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Another thread uses the heap all the time, so that in most of the copies its lock is held, or its
// pools are half changed.
void children(uint64_t seed) {
  std::vector<Piece> pieces;
  work(seed, 1000, &pieces);
  std::atomic<bool> over{false};
  std::thread busy([&] {
    for (std::vector<Piece> own; !over; own.clear()) {
      work(seed + 1, 200, &own);
      for (const Piece& piece : own) unmake(piece);
    }
  });
  for (int i = 0; i < 50; i++) {
    const auto child =
        static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
    CHECK(child >= 0);
    if (child == 0) {
      alarm(120);
      for (const Piece& piece : pieces) unmake(piece);
      std::vector<Piece> own;
      work(seed + 2, 100, &own);
      for (const Piece& piece : own) unmake(piece);
      _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  over = true;
  busy.join();
  for (const Piece& piece : pieces) unmake(piece);
}

}  // namespace

int main() {
  const uint64_t seed = test_seed();
  threads_at_random(seed);
  children(seed);
  return 0;
}
