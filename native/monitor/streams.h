// Recognises sequential accesses. For each of a few streams it says how far to go beyond an access;
// the distance doubles while accesses follow one another.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace pcow {

class Streams {
 public:
  // `first`: bytes beyond the second access of a stream; `largest`: the maximum.
  constexpr Streams(uint64_t first, uint64_t largest) : first_(first), largest_(largest) {}

  // Bytes to go beyond an access at `offset`: 0 if it follows no other access.
  uint64_t ahead(uint64_t offset) {
    const auto found = std::find_if(streams_.begin(), streams_.end(), [&](const Stream& stream) {
      return stream.expected == offset;
    });
    if (found == streams_.end()) {
      newest_ = (newest_ + 1) % streams_.size();
      streams_[newest_] = {};
    } else {
      newest_ = static_cast<size_t>(found - streams_.begin());
      streams_[newest_].ahead = std::clamp(streams_[newest_].ahead * 2, first_, largest_);
    }
    return streams_[newest_].ahead;
  }
  // What the last ahead() returned.
  uint64_t ahead() const { return streams_[newest_].ahead; }
  // The access of the last ahead() was served up to `end`: the next access of its stream is
  // expected there.
  void served_to(uint64_t end) { streams_[newest_].expected = end; }
  // An access at `offset` was to be served up to `end`, but was not: it comes again.
  void take_back(uint64_t offset, uint64_t end) {
    for (Stream& stream : streams_)
      if (stream.expected == end) stream.expected = offset;
  }

 private:
  struct Stream {
    uint64_t expected = ~uint64_t{0};
    uint64_t ahead = 0;
  };

  const uint64_t first_;
  const uint64_t largest_;
  std::array<Stream, 8> streams_;
  size_t newest_ = 0;  // the stream of the last access
};

}  // namespace pcow
