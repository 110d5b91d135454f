// An engine image that JavaScript objects, tasks on worker threads and FUSE requests share.
//
// The engine requires that close() is the last call. So each user of the image holds a lease. Once
// a close is requested, no new lease is given, and the close starts when the last lease is
// returned. No thread waits: returning the last lease starts the close.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "engine/image/image.h"

namespace pcow::addon {

// Requests on flat files since the image was opened. Any thread.
struct Traffic {
  using Counter = std::atomic<uint64_t>;
  Counter reads{0};
  Counter read_bytes{0};
  Counter writes{0};
  Counter written_bytes{0};
  Counter syncs{0};
  Counter discards{0};
  // those among `reads` that leave pages in the kernel's cache that may become stale
  Counter cached_reads{0};

  static void count(Counter& counter, uint64_t more) {
    counter.fetch_add(more, std::memory_order_relaxed);
  }
};

class SharedImage : public std::enable_shared_from_this<SharedImage> {
 public:
  // Its destructor returns the lease. Any thread.
  class Lease {
   public:
    explicit Lease(std::shared_ptr<SharedImage> owner) : owner_(std::move(owner)) {}
    ~Lease() {
      if (owner_) owner_->give_back();
    }
    Lease(Lease&&) = default;
    Lease& operator=(Lease&&) = delete;
    Image& operator*() const { return *owner_->image_; }
    Image* operator->() const { return owner_->image_.get(); }
    // Keeps the image in memory, even closed, as long as a view of it exists.
    std::shared_ptr<Image> keep() const { return owner_->image_; }

   private:
    std::shared_ptr<SharedImage> owner_;
  };

  // Any thread. `writer`: the image was opened for writing.
  SharedImage(std::unique_ptr<Image> image, bool writer)
      : path_(image->info().path), writer_(writer), image_(std::move(image)) {}

  // Any thread. Fails with kClosed after close_when_idle was called.
  Result<Lease> lease();
  // Any thread. A second call fails with kClosed, and its `start` is not called. `start` is called
  // once, without a lock held, by this call or by the thread that returns the last lease. It must
  // make sure that finish_close is called.
  Result<void> close_when_idle(std::function<void()> start);
  // Any thread except the JavaScript thread, because it syncs. Afterwards the image's files are
  // closed, unless a view keeps the image.
  Result<void> finish_close() {
    auto closed = image_->close();
    image_.reset();
    return closed;
  }

  // A different number for each opening of an image in this process.
  uint64_t serial() const { return serial_; }
  bool writer() const { return writer_; }
  const std::string& path() const { return path_; }
  Traffic& traffic() { return traffic_; }

 private:
  void give_back();

  static std::atomic<uint64_t> openings_;

  const std::string path_;
  const uint64_t serial_ = ++openings_;
  const bool writer_;
  Traffic traffic_;

  // Guards the three members below. Never held while the engine is called.
  std::mutex lock_;
  uint64_t leases_ = 0;
  bool closing_ = false;
  std::function<void()> start_close_;

  // Until it is closed, when there is no lease any more.
  std::shared_ptr<Image> image_;
};

}  // namespace pcow::addon
