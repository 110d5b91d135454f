import type { Command } from 'commander';
import { withStore } from '../../src/registry/open-store.js';
import { push } from '../../src/registry/push.js';
import { formatSize } from '../../src/images/sizes.js';
import { withImage } from '../../src/images/with-image.js';
import { findSnapshotTarget } from '../find-image.js';
import { addNotes } from '../output/help.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { say, sayJson } from '../output/stdout.js';
import { addRegistryOptions, httpOf, type RegistryFlags } from '../registry-options.js';

interface Options extends RegistryFlags {
  json?: boolean;
  progress?: ProgressForm;
}

export function addPush(program: Command): void {
  const command = program
    .command('push')
    .summary('put a snapshot into a registry')
    .description(
      'Puts a snapshot, with the snapshots on which it stands, into a registry or an OCI layout.',
    )
    .argument('<image@name>', 'the image and the snapshot')
    .argument('<reference>', 'HOST/REPOSITORY:TAG, or oci:DIRECTORY:TAG');
  addRegistryOptions(command)
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(pushCommand);
  addNotes(command, {
    text: [
      'Each snapshot is a layer. The same content has the same digest, whoever pushes it, and what is there ' +
        'already is not sent: run an interrupted push again. The image may be in use.',
      'The credentials of “pcow login”, “docker login” and “skopeo login” are used.',
    ],
    examples: [
      {
        command: 'pcow push golden@v1 registry.example.org/images/golden:v1',
        does: 'into a registry',
      },
      {
        command: 'pcow push golden@v1 oci:/mnt/usb/images:v1',
        does: 'into a directory, for a machine without a network',
      },
    ],
  });
}

async function pushCommand(given: string, reference: string, options: Options): Promise<void> {
  const { image: target, snapshot } = await findSnapshotTarget(given);
  const pushed = await withImage(target.file, {}, (image) =>
    withProgress(`push ${target.name}`, options.progress, (long) =>
      withStore(reference, 'push', { ...httpOf(options), signal: long.signal }, (store) =>
        push(image, image.snapshotInfo(snapshot).id, store, long),
      ),
    ),
  );
  if (options.json === true) {
    sayJson({ image: target.name, snapshot, reference, ...pushed });
    return;
  }
  const { sent, present, digest } = pushed;
  say(
    `pushed ${target.name}@${snapshot}: ${formatSize(sent)} sent, ${formatSize(present)} were there`,
  );
  say(`${reference}@${digest}`);
}
