/** The commands of `pcow`, in the order of the help. */
import type { Command } from 'commander';
import { addCheck } from './commands/check.js';
import { addClone } from './commands/clone.js';
import { addCompletion } from './commands/completion.js';
import { addCompare } from './commands/compare.js';
import { addConvert } from './commands/convert.js';
import { addCreate } from './commands/create.js';
import { addDelete } from './commands/delete.js';
import { addDiff } from './commands/diff.js';
import { addDoctor } from './commands/doctor.js';
import { addExitCodes } from './commands/exit-codes.js';
import { addExport } from './commands/export.js';
import { addImport } from './commands/import.js';
import { addInfo } from './commands/info.js';
import { addLibvirtXml } from './commands/libvirt-xml.js';
import { addList } from './commands/list.js';
import { addMap } from './commands/map.js';
import { addMeasure } from './commands/measure.js';
import { addMount } from './commands/mount.js';
import { addQemuArgs } from './commands/qemu-args.js';
import { addReceive } from './commands/receive.js';
import { addCommit } from './commands/commit.js';
import { addCompact } from './commands/compact.js';
import { addFlatten } from './commands/flatten.js';
import { addRebase } from './commands/rebase.js';
import { addRecover } from './commands/recover.js';
import { addRename } from './commands/rename.js';
import { addRm } from './commands/rm.js';
import { addResize } from './commands/resize.js';
import { addRollback } from './commands/rollback.js';
import { addRun } from './commands/run.js';
import { addScrub } from './commands/scrub.js';
import { addSend } from './commands/send.js';
import { addSnapshot } from './commands/snapshot.js';
import { addTop } from './commands/top.js';
import { addUmount } from './commands/umount.js';
import { newProgram } from './program.js';

export function pcowProgram(): Command {
  const program = newProgram('pcow').description(
    'Images of persistent memory for virtual machines: thin, on bases, with snapshots.\n\n' +
      'IMAGE is an image file (vm1.pcow), its flat file in a mount (/mnt/vm1), or either without “.pcow”.\n' +
      'Where the directory of an image is mounted, a change goes through the mount.',
  );
  // So that “run” can leave alone what comes after its command.
  program.enablePositionalOptions();
  for (const add of [
    addCreate,
    addClone,
    addInfo,
    addList,
    addSnapshot,
    addRollback,
    addDelete,
    addResize,
    addConvert,
    addRebase,
    addFlatten,
    addCommit,
    addCompact,
    addRename,
    addRm,
    addMap,
    addDiff,
    addCompare,
    addMeasure,
    addSend,
    addReceive,
    addExport,
    addImport,
    addCheck,
    addScrub,
    addRecover,
    addMount,
    addUmount,
    addQemuArgs,
    addLibvirtXml,
    addRun,
    addTop,
    addDoctor,
    addCompletion,
    addExitCodes,
  ]) {
    add(program);
  }
  return program;
}
