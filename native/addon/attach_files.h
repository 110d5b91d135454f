// The files that a mount and its monitors show and hand one another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attach/packet.h"
#include "engine/error.h"

namespace pcow::addon {

// Device and inode from what the kernel has in memory: no request to a file system that might not answer, such as this process's own
// mount, or a stranger's. The device is that of the superblock: the same in every mount namespace, and no other's as long as this
// descriptor is open.
bool identity_of(int descriptor, uint64_t* device, uint64_t* inode);

// Whether the writer's lock belongs to this open file (its description), which must be open for writing. The file lies on the
// image directory's file system.
bool holds_lock(int descriptor);

// Opens them, and adds them to the message with their paths: the first one with the writer's lock where `write` says so.
Result<void> add_files(protocol::Packet* packet, const std::vector<std::string>& paths, bool write);

}  // namespace pcow::addon
