// The content of an image, sector by sector, and what of it a power cut may leave.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "crash_workload.h"
#include "engine/image/image.h"

namespace crash {

constexpr size_t kSector = 512;
// The content of each sector; 0: zeros. In persistent memory a sector may be torn between two
// words: then its number stands for the stamps of its words.
using Stamps = std::vector<uint64_t>;

struct Content {
  Stamps active;
  std::map<std::string, Stamps> snapshots;
  friend bool operator==(const Content&, const Content&) = default;
};

// What a disk may hold: `active` contains the stamps that each sector may have.
struct World {
  std::vector<std::set<uint64_t>> active;
  std::map<std::string, Stamps> snapshots;
};

World exactly(const Content& content);
bool allows(const World& world, const Content& content);
// The reason why the content is not allowed.
std::string difference(const World& world, const Content& content);

// A sector contains the number of its write, and its own position.
void fill_sector(uint64_t stamp, uint64_t sector, uint8_t* bytes);

pcow::Result<std::unique_ptr<pcow::Image>> open_image(const std::string& path, bool write,
                                                      pcow::FileObserver* observer);
// Writes sectors with a new stamp, into the image and into `content`.
pcow::Result<void> write_sectors(pcow::Image* image, Content* content, uint64_t first,
                                 uint64_t count, Run* run);
// Remote sub-blocks are read from `run.registry`.
Stamps read_stamps(const Run& run, const pcow::Image& image, const pcow::View* view,
                   const std::string& what);
Content read_content(const Run& run, const pcow::Image& image);

// Fills a block with what the registry has.
pcow::Result<void> fetch(const Run& run, pcow::Image* image, uint64_t layer, uint64_t block,
                         uint64_t blocks);
pcow::Result<void> fetch_all(const Run& run, pcow::Image* image);
// Runs an operation on an image; if it needs remote bytes, fetches these and runs it again.
template <typename Do>
auto with_fetches(const Run& run, pcow::Image* image, const Do& what) {
  for (;;) {
    auto outcome = what();
    if (outcome || !outcome.error().remote) return outcome;
    const pcow::RemoteBlock wanted = *outcome.error().remote;
    if (auto fetched = fetch(run, image, wanted.layer, wanted.block, 1); !fetched)
      return decltype(outcome)(fetched.error());
  }
}

// All checksums must be right. `whole`: a layer that has checksums must have all of them.
void must_have_checksums(const Run& run, const pcow::Image& image, bool whole);
// The check must find nothing: neither in a state that a crash may leave, nor in an image that a
// writer has closed.
void must_be_sound(const Run& run, const std::string& path);

}  // namespace crash
