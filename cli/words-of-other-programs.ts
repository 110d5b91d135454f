/** Commands and options of other programs, and their equivalents here. */

const SNAPSHOTS = '“pcow rm” deletes an image, “pcow delete” a snapshot';
const HOLDS =
  '“pcow clone IMAGE@NAME keep-NAME” keeps a snapshot from being deleted until “pcow rm keep-NAME”; “pcow list DIR” shows both';
const BY_ITSELF = 'omit it: the format is detected';

/** Commands of other programs. Misspelled commands are not in this list. */
const COMMANDS: Readonly<Record<string, string>> = {
  remove: SNAPSHOTS,
  destroy: SNAPSHOTS,
  del: SNAPSHOTS,
  lvremove: SNAPSHOTS,
  snap: '“pcow snapshot IMAGE@NAME” takes one, “pcow list IMAGE” lists them',
  lvcreate: '“pcow create” makes an image, “pcow snapshot” a snapshot',
  new: '“pcow create” makes an image',
  copy: '“pcow clone” makes an image that stands on another, “pcow convert” a copy',
  cp: '“pcow clone” makes an image that stands on another, “pcow convert” a copy',
  mv: '“pcow rename” renames an image',
  show: '“pcow info” describes an image, “pcow list” lists them',
  status: '“pcow info” describes an image, “pcow top” shows what a mount is doing',
  lvs: '“pcow list” lists images and snapshots',
  unmount: '“pcow umount” ends a mount',
  revert: '“pcow rollback IMAGE@NAME” goes back to a snapshot',
  restore: '“pcow rollback IMAGE@NAME” goes back to a snapshot, “pcow receive” restores a backup',
  hold: HOLDS,
  holds: HOLDS,
  release: HOLDS,
  promote: '“pcow flatten” makes an image independent of its base',
  extend: '“pcow resize IMAGE +SIZE” makes an image larger',
  lvextend: '“pcow resize IMAGE +SIZE” makes an image larger',
  shrink: '“pcow resize IMAGE SIZE --shrink” makes an image smaller',
  fsck: '“pcow check” verifies the structure, “pcow scrub” the bytes',
  verify: '“pcow check” verifies the structure, “pcow scrub” the bytes',
  repair: '“pcow check IMAGE --repair” repairs what can be repaired',
  backup: '“pcow send” writes a snapshot as a stream, “pcow export” all of an image',
  trim: '“pcow compact” gives back blocks that hold only zeros',
  amend: '“pcow resize” changes the size, “pcow convert --block-size” changes the block size',
  bitmap: '“pcow diff IMAGE@NAME” shows what was written since a snapshot',
  bench: 'a mounted image is a file: “qemu-img bench -f raw”, or fio',
  dd: 'a mounted image is a file: dd itself',
};

/** Options of other programs, by command; those under “*” apply to all commands. */
const OPTIONS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  '*': {
    '-q': 'commands report on standard output: > /dev/null',
    '-p': 'progress is shown on a terminal; elsewhere use --progress json',
    '-U': 'omit it: an image can be read while it is in use',
    '--force-share': 'omit it: an image can be read while it is in use',
    '--output': '--json is for programs',
    '-f': BY_ITSELF,
    '-F': BY_ITSELF,
    '--image-opts': 'name the image by its file',
    '--object': 'there is no encryption',
  },
  create: {
    '-f': 'omit it: pcow makes images in its own format; “qemu-img create -f FORMAT” makes others',
    '-F': 'omit it: a base is a Pcow image; “pcow convert FILE NEW” makes one from another format',
    '-o': 'cluster_size is --block-size here, backing_file is --base; the size comes after the name',
    '-u': 'the base must exist; “pcow rebase --unsafe” changes its path later',
    '--size': 'the size comes after the name: pcow create IMAGE SIZE',
  },
  clone: {
    '-s': 'the base comes first: pcow clone IMAGE@NAME NEW',
    '-o': 'a clone has the properties of its base',
  },
  convert: {
    '-U': 'take a snapshot, and convert it: IMAGE@NAME',
    '-C': 'copying within the filesystem is not supported: cp --reflink copies an image file',
    '-s': 'use -l to name the snapshot',
    '-F': 'the base is a Pcow image: -B IMAGE@NAME',
    '--target-is-zero': 'omit it: zeros are written only over other data',
    '--bitmaps': 'every snapshot can show what was written since: pcow diff',
    '--salvage': 'unreadable data ends the copy: use “pcow check --repair” first',
    '-r': 'slow it down from outside: ionice, or a control group',
    '-S': 'omit it: zeros of 4 KiB are never written. To allocate all space of a file: fallocate',
  },
  snapshot: {
    '-c': 'pcow snapshot IMAGE@NAME',
    '-l': 'pcow list IMAGE',
    '-a': 'pcow rollback IMAGE@NAME',
    '-d': 'pcow delete IMAGE@NAME',
    '-r': 'name each image: pcow snapshot IMAGE@NAME IMAGE@NAME takes them as one cut',
    '-n': 'the name comes after the image: pcow snapshot IMAGE@NAME',
    '-L': 'a snapshot takes space only for what is written afterwards: no size is reserved',
  },
  delete: {
    '-r': 'name each image; a pattern stands for many snapshots of one: pcow delete "IMAGE@daily-*"',
    '-f': 'images in use are not deleted',
    '-R': '“pcow rm” deletes the images that stand on it; the error names them',
  },
  rm: {
    '-r': 'an image is deleted with its snapshots; also name the images that stand on it',
    '-f': 'images in use are not deleted; with the images that stand on it: pcow rm BASE IMAGE…',
  },
  list: {
    '-t': '“pcow list DIR” lists images, “pcow list IMAGE” snapshots',
    '-l': '“pcow list DIR” lists images, “pcow list IMAGE” snapshots',
    '-H': '--json is for programs',
    '-o': '--json has everything: select fields with jq',
    '-a': 'without arguments all mounts are listed',
  },
  check: {
    '-r': '--repair repairs what can be repaired',
    '-T': 'omit it: nothing depends on caches here',
  },
  resize: {
    '--preallocation':
      'an image takes space as it is written: for a raw file, “pcow convert”, then fallocate',
    '-L': 'the size comes after the name: pcow resize IMAGE +5G',
  },
  rebase: { '-p': 'a progress bar is shown on a terminal', '-c': 'the content is not changed' },
  commit: {
    '-b': 'an image is committed to its base; “pcow rebase” changes that first',
    '-d': '“pcow rm” deletes it',
  },
  send: {
    '-i': '--from NAME: what changed since that snapshot',
    '-I': '--from NAME, one snapshot after another; “pcow export” has all of them',
    '-R': '“pcow export” has an image with its bases and snapshots',
    '-n': '--dry-run',
    '-t': '--resume TOKEN',
    '-v': 'progress is shown on a terminal',
  },
  receive: { '-F': '--force', '-A': '--abort', '-s': 'omit it: received data is always kept' },
  mount: {
    '-o': 'for options of mount(8) use “mount -t fuse.pcow DIR MOUNTPOINT -o …”; see pcow mount --help',
    '-f': '--foreground',
    '-r': '--read-only',
    '-t': 'omit it, or use mount(8): mount -t fuse.pcow DIR MOUNTPOINT',
  },
  umount: {
    '-l': '“umount -l MOUNTPOINT” removes it from view; it ends with its last user',
    '-f': 'the error names the processes that use it: end them first',
    '-a': '“pcow list” lists all mounts; name one',
  },
};

/** The equivalent of a command of another program. */
export function commandInstead(name: string): string | undefined {
  return Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
}

/** The equivalent of an option of another program. */
export function optionInstead(command: string, flag: string): string | undefined {
  return ownOptionInstead(command, flag) ?? ownOptionInstead('*', flag);
}

/** The same, without those that apply to all commands. */
export function ownOptionInstead(command: string, flag: string): string | undefined {
  return OPTIONS[command]?.[flag];
}

/**
 * `resize vm1 -10M`: a size that begins with “-” is not an option. After “--” it is an argument.
 */
export function withSmallerSize(args: string[]): string[] {
  const [command, ...words] = args;
  const smaller = (word: string) => /^-\d/.test(word);
  if (command !== 'resize' || words.includes('--') || !words.some(smaller)) return args;
  return [command, ...words.filter((word) => !smaller(word)), '--', ...words.filter(smaller)];
}
