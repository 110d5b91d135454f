// The ordering rules of docs/format.md, each asked for at the place that keeps it. The engine keeps
// all of them. In a test build (PCOW_BREAKABLE) one of them can be broken, to show that the
// power-cut simulator detects it: native/test/broken_rules_test.cc.
#pragma once

namespace pcow {

enum class Rule {
  kNone,
  // Opening.
  // What a killed writer left is on the disk before anything is punched or a slot written.
  kSyncAtOpening,
  kDropUndurable,    // after a host crash, what was written but not durable does not count
  kHideUnsealed,     // … nor does a snapshot that had not returned
  kPunchAtOpening,   // after an unclean end, all free space is punched
  kMarkBeforeWrite,  // the open mark is on the disk before anything else is changed
  // Writing.
  kDataBeforeEntry,   // the data is written before the entry is stored
  kDurableAfterSync,  // … which says `durable` only after a sync
  // Zeros that an entry promises are on the disk before it names their block.
  kZerosBeforeEntry,
  // A block that is moved is on the disk before an entry names its new place.
  kMovedBeforeEntry,
  kNoSyncSinceCopy,         // … and what has changed since was not covered by a sync
  kTableSpaceBeforeStore,   // a table's page has disk space before it is stored to
  kDataSpaceBeforeMapping,  // a block has disk space before it is mapped
  kFileReachesBeforeUse,    // the file reaches to the end of a block before it is used
  kFilledBeforeEntry,       // what is filled in is on the disk before an entry names it
  kRemoteBeforeRelease,     // an entry is remote before the block that it named is released
  kFreeingBeforePunch,      // a freeing is on the disk before the block is punched out
  kFreeingBeforeReuse,      // … and before the block is used again
  kHoleBeforeReuse,         // … and so is the hole
  // What a merge's heir releases is not used again before the merge is over.
  kHoldReleasesDuringMerges,
  // A layer's checksums of blocks that its heir takes over are gone before the heir can write
  // there.
  kChecksumsGoneBeforeHeir,
  kHeirBeforeHandingOver,  // what an heir has taken is durable before the parent loses it
  kMergeNearestFirst,      // nothing is merged into a layer that will be merged away itself
  // Syncing.
  kDataBeforeDurable,    // data and entries are on the disk before their `durable` bits
  kNotedBitsOnly,        // only bits that were noted before that sync become durable
  kDurableBeforeReturn,  // `durable` bits are on the disk before a sync returns
  // On persistent memory, where what is written and stored is durable at once.
  // Data is copied and fenced before the entry is stored; a layer directory, before its superblock.
  kCopyFencedBeforeEntry,
  kEntryFlushed,             // an entry is flushed after it is stored
  kEntryFencedBeforeReturn,  // … and fenced before the operation returns
  // The file reaches to the end of a block durably before an entry names the block.
  kLengthBeforeUse,
  kHolesBeforeReturn,   // a sync makes holes durable, too: nothing else does
  kMappedBeforeReturn,  // … and what others have stored through mappings of blocks
  // Changing the structure.
  // A layer directory is on the disk before the superblock that names it.
  kDirectoryBeforeSuperblock,
  kChecksumsBeforeSuperblock,    // a layer's checksums are, too
  kLongerTableBeforeSuperblock,  // the entries of a longer table are, too
  kHeirBeforeSuperblock,         // what an heir has taken is, too
  // What a root has taken in from its base is, before the superblock that names another base.
  kTakenInBeforeSuperblock,
  kSourceBeforeSuperblock,  // the source of a lazy image is on the disk before a superblock names it
  kSourceBeforeRemote,      // … and that superblock is, before an entry is remote
  kFilledBeforeSourceGone,  // all fills are on the disk before the superblock without a source
  kSuperblockBeforeReturn,  // the superblock is on the disk before a change returns
  kOtherSlot,               // the superblock that counts is never overwritten
  kDurableBeforeSeal,       // a frozen layer is on the disk before the superblock that seals it
  kSealedBeforeNamed,       // a frozen layer is sealed before another image names it as its base
  kSealBeforeReturn,        // the seal is on the disk before a snapshot returns
  // Names.
  kFileBeforeName,    // a file is on the disk before it gets its name
  kNameBeforeReturn,  // giving or removing a name is durable before the call returns
  // Closing.
  kSyncBeforeClean,   // everything is on the disk before the superblock says `clean`
  kHolesBeforeClean,  // all free space is holes before it does
  // What lay at the end of the file is durably gone before the file becomes shorter.
  kGoneBeforeShorter,
  kCount,
};

#ifdef PCOW_BREAKABLE
inline Rule broken_rule = Rule::kNone;
inline bool keeps(Rule rule) { return rule != broken_rule; }
// An image without a reserve, as an older writer made it: its file does not extend beyond what is
// in use, so more breaches show.
inline bool goes_without_reserve = false;
#else
constexpr bool keeps(Rule) { return true; }
constexpr bool goes_without_reserve = false;
#endif

}  // namespace pcow
