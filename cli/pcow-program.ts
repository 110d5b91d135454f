/** The commands of `pcow`, in the order of the help. */
import type { Command } from 'commander';
import { newProgram } from './run-program.js';

type Add = (program: Command) => void;

/**
 * Each command is loaded when it is needed: loading all of them takes longer than most commands
 * run.
 */
const COMMANDS: Readonly<Record<string, () => Promise<Add>>> = {
  create: async () => (await import('./commands/create.js')).addCreate,
  clone: async () => (await import('./commands/clone.js')).addClone,
  info: async () => (await import('./commands/info.js')).addInfo,
  list: async () => (await import('./commands/list.js')).addList,
  snapshot: async () => (await import('./commands/snapshot.js')).addSnapshot,
  rollback: async () => (await import('./commands/rollback.js')).addRollback,
  delete: async () => (await import('./commands/delete.js')).addDelete,
  resize: async () => (await import('./commands/resize.js')).addResize,
  convert: async () => (await import('./commands/convert.js')).addConvert,
  rebase: async () => (await import('./commands/rebase.js')).addRebase,
  flatten: async () => (await import('./commands/flatten.js')).addFlatten,
  commit: async () => (await import('./commands/commit.js')).addCommit,
  compact: async () => (await import('./commands/compact.js')).addCompact,
  rename: async () => (await import('./commands/rename.js')).addRename,
  rm: async () => (await import('./commands/rm.js')).addRm,
  map: async () => (await import('./commands/map.js')).addMap,
  diff: async () => (await import('./commands/diff.js')).addDiff,
  compare: async () => (await import('./commands/compare.js')).addCompare,
  measure: async () => (await import('./commands/measure.js')).addMeasure,
  send: async () => (await import('./commands/send.js')).addSend,
  receive: async () => (await import('./commands/receive.js')).addReceive,
  export: async () => (await import('./commands/export.js')).addExport,
  import: async () => (await import('./commands/import.js')).addImport,
  push: async () => (await import('./commands/push.js')).addPush,
  pull: async () => (await import('./commands/pull.js')).addPull,
  prefetch: async () => (await import('./commands/prefetch.js')).addPrefetch,
  trace: async () => (await import('./commands/trace.js')).addTrace,
  login: async () => (await import('./commands/login.js')).addLogin,
  logout: async () => (await import('./commands/logout.js')).addLogout,
  check: async () => (await import('./commands/check.js')).addCheck,
  scrub: async () => (await import('./commands/scrub.js')).addScrub,
  recover: async () => (await import('./commands/recover.js')).addRecover,
  mount: async () => (await import('./commands/mount.js')).addMount,
  umount: async () => (await import('./commands/umount.js')).addUmount,
  'qemu-args': async () => (await import('./commands/qemu-args.js')).addQemuArgs,
  'libvirt-xml': async () => (await import('./commands/libvirt-xml.js')).addLibvirtXml,
  run: async () => (await import('./commands/run.js')).addRun,
  top: async () => (await import('./commands/top.js')).addTop,
  doctor: async () => (await import('./commands/doctor.js')).addDoctor,
  completion: async () => (await import('./commands/completion.js')).addCompletion,
  'exit-codes': async () => (await import('./commands/exit-codes.js')).addExitCodes,
};

/** With only the command of this name, if there is one; otherwise with all of them. */
export async function pcowProgram(only?: string): Promise<Command> {
  const program = newProgram('pcow').description(
    'Images of persistent memory for virtual machines: thin, on bases, with snapshots.\n\n' +
      'IMAGE is an image file (vm1.pcow), its flat file in a mount (/mnt/vm1), or either without “.pcow”.\n' +
      'Where the directory of an image is mounted, a change goes through the mount.',
  );
  // So that “run” can pass on everything after its command.
  program.enablePositionalOptions();
  const one = only !== undefined && Object.hasOwn(COMMANDS, only) ? COMMANDS[only] : undefined;
  const adds = await Promise.all(
    (one === undefined ? Object.values(COMMANDS) : [one]).map((load) => load()),
  );
  for (const add of adds) add(program);
  return program;
}
