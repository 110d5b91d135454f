// The files that a mount and its monitors exchange.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attach/packet.h"
#include "engine/error.h"

namespace pcow::addon {

// Device and inode from the kernel's memory, without a request to a filesystem that might not
// answer, such as this process's own mount, or one of another user. The device is that of the
// superblock: it is the same in every mount namespace, and is not reused while this descriptor is
// open.
bool identity_of(int descriptor, uint64_t* device, uint64_t* inode);

// Whether the writer's lock belongs to this open file description. It must be open for writing. The
// file is in the image directory's filesystem.
bool holds_lock(int descriptor);

// Opens the files, and adds them to the message with their paths. The first one has the writer's
// lock if `write` is set.
Result<void> add_files(protocol::Packet* packet, const std::vector<std::string>& paths, bool write);

}  // namespace pcow::addon
