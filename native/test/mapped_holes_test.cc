// A discard of a part of a block leaves a hole. A fault that maps the sub-blocks again must first
// give them disk space: the guest stores there, and on a full disk this would raise SIGBUS.
#include <sys/stat.h>

#include <vector>

#include "check.h"

using namespace pcow;

int main() {
  const TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  CreateOptions create;
  create.size = 1 << 20;
  MUST(create_image(path, create));
  OpenOptions options;
  options.write = true;
  auto image = MUST(Image::open(path, options));
  const auto disk_use = [&] { return MUST(image->sync()), image->info().disk_use; };
  const std::vector<char> bytes(65536, 1);
  MUST(image->write(65536, bytes.data(), bytes.size()));
  const uint64_t full = disk_use();
  for (const bool write : {true, false}) {
    MUST(image->discard(65536 + 8192, 32768));
    CHECK(disk_use() < full - 16384);
    FaultWork work;
    const Extent extent =
        MUST(write ? image->make_writable(65536 + 12288, {}, &work) : image->held(65536 + 12288));
    CHECK(extent.offset <= 65536 + 8192 && extent.offset + extent.length >= 65536 + 40960);
    CHECK(disk_use() >= full);
  }
  MUST(image->close());
  return 0;
}
