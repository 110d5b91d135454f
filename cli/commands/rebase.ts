import type { Command } from 'commander';
import { type BaseOptions, Image, takingAway } from '../../src/engine/index.js';
import { askForWork } from '../control.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../images.js';
import { checkBase, onFrozenLayer } from '../making.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { quote, word } from '../quote.js';
import { findImage, findTarget, type ImageTarget, type Target } from '../target.js';
import { patiently, waitOption } from '../wait-option.js';

export function addRebase(program: Command): void {
  const command = program
    .command('rebase')
    .summary('put an image on another base')
    .description(
      'Puts an image on another base. Its content stays the same: data that differs between the two bases ' +
        'is copied.',
    )
    .argument('<image>', 'the image')
    .requiredOption('-b, --base <image[@snapshot]>', 'the new base; empty (""): no base, as with “pcow flatten”')
    .option(
      '-u, --unsafe',
      'only change the name of the base, without comparing contents: for a base that was moved or copied',
    )
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(rebase);
  addNotes(command, {
    text: [
      'Snapshots keep their content as well. If you stop the command in the middle, the image still stands ' +
        'on the old base. With --unsafe the old base need not exist any more, and the new one must hold the ' +
        'same data, or the content of the image changes. If the new base is the old one at another path, you ' +
        'need not name its snapshot.',
    ],
    examples: [
      { command: 'pcow rebase vm1 --base base@patched', does: 'on a newer snapshot of its base' },
      { command: 'pcow rebase vm1 --base ""', does: 'on no base' },
      { command: 'pcow rebase vm1 --unsafe --base ../bases/base', does: 'after its base was moved' },
    ],
  });
}

interface Options {
  base: string;
  unsafe?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

async function rebase(given: string, { base: newBase, unsafe, json, wait, progress }: Options): Promise<void> {
  const image = await findImage(given);
  const base = newBase === '' ? null : await findTarget(newBase);
  if (unsafe === true) {
    await patiently(wait, () => rebaseBlindly(image, base));
  } else {
    if (base !== null) await checkBase(base, image);
    await patiently(wait, () => rebaseSafely(image, base, progress));
  }
  if (json === true) sayJson({ image: image.file, base: base && { path: base.image.file, snapshot: base.snapshot } });
  else say(base === null ? `${image.name} stands on no base now` : `${image.name} stands on ${newBase} now`);
}

async function rebaseSafely(image: ImageTarget, base: Target | null, form: ProgressForm | undefined): Promise<void> {
  if (image.mount === null) {
    const change = (standing: BaseOptions | null) =>
      withImage(image.file, { write: true }, (open) =>
        withProgress(`rebase ${image.name}`, form, (options) => open.rebase(standing, options)),
      );
    await (base === null ? change(null) : onFrozenLayer(base, change));
  } else if (base === null) {
    await askForWork({ mount: image.mount, name: image.name }, 'flatten', 'now', `rebase ${image.name}`, form);
  } else if (base.image.mount?.mountpoint === image.mount.mountpoint) {
    const text = [base.image.name, base.snapshot ?? []].flat().join(' ');
    await askForWork({ mount: image.mount, name: image.name }, 'rebase', text, `rebase ${image.name}`, form);
  } else {
    throw new Failure(
      'PCOW_BASE_OUTSIDE',
      `${quote(image.given)} is mounted, and ${quote(base.image.given)} is not in the same mount`,
      `move it into ${image.mount.directory}, or end the mount first: pcow umount ${word(image.mount.mountpoint)}`,
    );
  }
}

/** The image's own base may be missing: it is not opened. */
export async function rebaseBlindly(image: ImageTarget, base: Target | null): Promise<void> {
  if (image.mount !== null) {
    throw new Failure(
      'PCOW_BUSY',
      `the base of ${image.name} can't be changed unseen while it is mounted on ${image.mount.mountpoint}`,
      `pcow umount ${word(image.mount.mountpoint)}`,
    );
  }
  if (base === null) {
    await unlessStoodOn(image, () => Image.setBaseBlindly(image.file, null));
    return;
  }
  await checkBase(base, image);
  const setBase = (standing: BaseOptions) => Image.setBaseBlindly(image.file, standing);
  const present = await Image.baseOf(image.file);
  const { uuid, layer } = await withImage(base.image.file, {}, (open) => ({
    uuid: open.info().uuid,
    layer: base.snapshot === null ? present?.layer : open.layerOf(base.snapshot),
  }));
  if (present?.uuid === uuid && present.layer === layer) {
    // The same base in another place: the layer stays, whatever was written to the base since.
    await setBase({ path: base.image.file, layer: present.layer });
  } else {
    await unlessStoodOn(image, () => onFrozenLayer(base, setBase));
  }
}

/** Snapshots of the image may read otherwise afterwards: nobody may stand on them. */
async function unlessStoodOn(image: ImageTarget, change: () => Promise<void>): Promise<void> {
  await takingAway({ file: image.file, what: `the base of ${image.name} can't be changed unseen` }, change);
}
