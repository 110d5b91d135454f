/** What people type who know other programs, and what there is for it here. */

const SNAPSHOTS = '“pcow rm” deletes an image, “pcow delete” a snapshot';
const HOLDS =
  '“pcow clone IMAGE@NAME keep-NAME” keeps a snapshot from being deleted until “pcow rm keep-NAME”; “pcow list DIR” shows both';
const BY_ITSELF = 'leave it out: the format is found by itself';

/** Names of commands elsewhere. Those that are only misspelled are not for this list. */
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
  mv: '“pcow rename” gives an image another name',
  show: '“pcow info” tells what an image is, “pcow list” what there is',
  status: '“pcow info” tells what an image is, “pcow top” what a mount is doing',
  lvs: '“pcow list” lists images and snapshots',
  unmount: '“pcow umount” ends a mount',
  revert: '“pcow rollback IMAGE@NAME” goes back to a snapshot',
  restore: '“pcow rollback IMAGE@NAME” goes back to a snapshot, “pcow receive” takes in a backup',
  hold: HOLDS,
  holds: HOLDS,
  release: HOLDS,
  promote: '“pcow flatten” makes an image stand on nothing',
  extend: '“pcow resize IMAGE +SIZE” makes an image larger',
  lvextend: '“pcow resize IMAGE +SIZE” makes an image larger',
  shrink: '“pcow resize IMAGE SIZE --shrink” makes an image smaller',
  fsck: '“pcow check” verifies the structure, “pcow scrub” the bytes',
  verify: '“pcow check” verifies the structure, “pcow scrub” the bytes',
  repair: '“pcow check IMAGE --repair” mends what can be mended',
  backup: '“pcow send” writes a snapshot as a stream, “pcow export” all of an image',
  trim: '“pcow compact” gives back what nothing needs any more',
  amend: '“pcow resize” changes the size, “pcow convert --block-size” copies into other blocks',
  bitmap: '“pcow diff IMAGE@NAME” tells what was written since a snapshot',
  bench: 'a mounted image is a file: “qemu-img bench -f raw”, or fio',
  dd: 'a mounted image is a file: dd itself',
};

/** Options elsewhere, by command; those under “*” are the same for all commands. */
const OPTIONS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  '*': {
    '-q': 'what a command did is told on standard output: > /dev/null',
    '-p': 'on a terminal the progress shows by itself; elsewhere --progress json tells it',
    '-U': 'leave it out: an image may be looked at while it is in use',
    '--force-share': 'leave it out: an image may be looked at while it is in use',
    '--output': '--json is for programs',
    '-f': BY_ITSELF,
    '-F': BY_ITSELF,
    '--image-opts': 'name the image by its file',
    '--object': 'there is no encryption',
  },
  create: {
    '-f': 'pcow makes images of its own format, so leave it out; “qemu-img create -f FORMAT” makes others',
    '-F': 'a base is a Pcow image, so leave it out; “pcow convert FILE NEW” makes one of another format',
    '-o': 'cluster_size is --block-size here, backing_file is --base; the size comes after the name',
    '-u': 'the base is looked at; “pcow rebase --unsafe” says where it will be',
    '--size': 'the size comes after the name: pcow create IMAGE SIZE',
  },
  clone: {
    '-s': 'what to stand on comes first: pcow clone IMAGE@NAME NEW',
    '-o': 'a clone has the properties of its base',
  },
  convert: {
    '-U': 'take a snapshot, and convert that: IMAGE@NAME',
    '-C': 'copying within the file system is not offered: cp --reflink copies an image file',
    '-s': 'the snapshot is named by -l',
    '-F': 'the base is a Pcow image: -B IMAGE@NAME',
    '--target-is-zero': 'leave it out: zeros are written only where something else is',
    '--bitmaps': 'every snapshot tells what was written since: pcow diff',
    '--salvage': 'what can’t be read ends the copy: “pcow check --repair” first',
    '-r': 'slow it down from outside: ionice, or a control group',
    '-S': 'leave it out: zeros of 4 KiB are never written. For a file with all its space: fallocate',
  },
  snapshot: {
    '-c': 'pcow snapshot IMAGE@NAME',
    '-l': 'pcow list IMAGE',
    '-a': 'pcow rollback IMAGE@NAME',
    '-d': 'pcow delete IMAGE@NAME',
    '-r': 'name each image: pcow snapshot IMAGE@NAME IMAGE@NAME takes them as one cut',
    '-n': 'the name comes after the image: pcow snapshot IMAGE@NAME',
    '-L': 'a snapshot takes space only for what is written afterwards: no size is set aside',
  },
  delete: {
    '-r': 'name each image; a pattern stands for many snapshots of one: pcow delete "IMAGE@daily-*"',
    '-f': 'what is in use is not deleted',
    '-R': '“pcow rm” deletes the images that stand on it; they are named where they are in the way',
  },
  rm: {
    '-r': 'an image is deleted with its snapshots; name those that stand on it, too',
    '-f': 'what is in use is not deleted; with what stands on it: pcow rm BASE IMAGE…',
  },
  list: {
    '-t': '“pcow list DIR” lists images, “pcow list IMAGE” snapshots',
    '-l': '“pcow list DIR” lists images, “pcow list IMAGE” snapshots',
    '-H': '--json is for programs',
    '-o': '--json has everything: jq takes what is wanted of it',
    '-a': 'without arguments all mounts are listed',
  },
  check: {
    '-r': '--repair mends what can be mended',
    '-T': 'leave it out: nothing depends on caches here',
  },
  resize: {
    '--preallocation': 'an image takes space as it is written: for a raw file, “pcow convert”, then fallocate',
    '-L': 'the size comes after the name: pcow resize IMAGE +5G',
  },
  rebase: { '-p': 'a progress bar shows by itself on a terminal', '-c': 'the content is kept as it is' },
  commit: { '-b': 'an image is committed to its base; “pcow rebase” changes that first', '-d': '“pcow rm” deletes it' },
  send: {
    '-i': '--from NAME: what changed since that snapshot',
    '-I': '--from NAME, one snapshot after another; “pcow export” has all of them',
    '-R': '“pcow export” has an image with its bases and snapshots',
    '-n': '--dry-run',
    '-t': '--resume TOKEN',
    '-v': 'on a terminal the progress shows by itself',
  },
  receive: { '-F': '--force', '-A': '--abort', '-s': 'leave it out: what arrived is always kept' },
  mount: {
    '-o': 'options as of mount(8) are those of “mount -t fuse.pcow DIR MOUNTPOINT -o …”; here: pcow mount --help',
    '-f': '--foreground',
    '-r': '--read-only',
    '-t': 'leave it out: or mount(8) itself, mount -t fuse.pcow DIR MOUNTPOINT',
  },
  umount: {
    '-l': '“umount -l MOUNTPOINT” takes it out of sight; it ends with its last user',
    '-f': 'who uses it is named; that has to end first',
    '-a': '“pcow list” lists all mounts; name one',
  },
};

/** What there is in place of a command of another program. */
export function commandInstead(name: string): string | undefined {
  return Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
}

/** What there is in place of an option of another program. */
export function optionInstead(command: string, flag: string): string | undefined {
  return ownOptionInstead(command, flag) ?? ownOptionInstead('*', flag);
}

/** The same, less what holds for all commands. */
export function ownOptionInstead(command: string, flag: string): string | undefined {
  return OPTIONS[command]?.[flag];
}

/** `resize vm1 -10M`: a size that begins with “-” is no option. Behind “--” it is an argument. */
export function withSmallerSize(args: string[]): string[] {
  const [command, ...words] = args;
  const smaller = (word: string) => /^-\d/.test(word);
  if (command !== 'resize' || words.includes('--') || !words.some(smaller)) return args;
  return [command, ...words.filter((word) => !smaller(word)), '--', ...words.filter(smaller)];
}
