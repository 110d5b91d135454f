/** The engine as the rest of Pcow uses it. */
export { crc32c } from './checksum.js';
export { checkImage } from './check.js';
export {
  dependants,
  type Dependant,
  refuseWhereStoodOn,
  saidOf,
  survey,
  takingAway,
} from './dependants.js';
export { exists, receiptOf, removeRemains } from './drafts.js';
export { isPcowError, PcowError, type PcowErrorCode, type RemoteBlock } from './errors.js';
export { lockWriter, standingOn } from './file-lock.js';
export { givingItAName, howToName, imageFilesIn } from './image-files.js';
export { giveName, isMissing, removeName } from './names.js';
export { checkPlace, isInPersistentMemory } from './places.js';
export { removeImage } from './removal.js';
export { type Making, mayBeReplaced, throughDraft } from './replace.js';
export { renameImage, type Standing } from './rename.js';
export { Image, snapshotTogether } from './image.js';
export {
  type DirectoryRecovery,
  recoverDirectory,
  recoverImage,
  type Recovery,
} from './recovery.js';
export { nextData } from './sparse-file.js';
export type * from './types.js';
export { compressed, decompressed } from './zstd.js';
export { openUnnamed } from './unnamed-file.js';
export {
  checkBlockSize,
  checkCreated,
  checkSize,
  checkSnapshotName,
  FORBIDDEN_IN_NAMES,
  MAX_BLOCK_SIZE,
  MAX_NAME_LENGTH,
  MAX_SIZE,
  MIN_BLOCK_SIZE,
  MIN_SIZE,
  SIZE_UNIT,
} from './validate.js';
